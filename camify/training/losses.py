"""What a step minimises: classification, distillation from the legacy network, guidance by boxes. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ConfigError, DataError
from ..maps import select, upsample
from ..metrics.functional import box_masks

__all__ = ["Objective", "balanced_weights", "classification_loss", "distillation_loss", "energy_loss", "object_masks"]


def classification_loss(
    logits_NK: Tensor,
    labels: Tensor,
    *,
    multilabel: bool = False,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean cross-entropy of labels (N,) or distributions (N, K); of multi-hot (N, K) the binary one of every class.

    ``class_weights`` (K,) weigh the classes, in the binary case what is positive. Smoothing moves a binary target by
    ``label_smoothing / 2`` towards 1/2 from either side.
    """
    if not multilabel:
        return F.cross_entropy(logits_NK, labels, weight=class_weights, label_smoothing=label_smoothing)
    targets = labels.to(logits_NK.dtype) * (1 - label_smoothing) + label_smoothing / 2
    return F.binary_cross_entropy_with_logits(logits_NK, targets, pos_weight=class_weights)


def distillation_loss(logits_NK: Tensor, teacher_NK: Tensor, temperature: float, *, multilabel: bool = False) -> Tensor:
    """``T^2 KL(softmax(teacher / T) || softmax(logits / T))``, mean over images: its gradient does not shrink with T.

    Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in a Neural Network", section 2. With ``multilabel`` the
    mean over classes of the same for each class's two outcomes.
    """
    student, teacher = logits_NK.float() / temperature, teacher_NK.float() / temperature
    if multilabel:
        soft, own = teacher.sigmoid(), F.binary_cross_entropy_with_logits
        return temperature**2 * (own(student, soft) - own(teacher, soft))
    student, teacher = student.log_softmax(1), teacher.log_softmax(1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def energy_loss(maps_NHW: Tensor, masks_NHW: Tensor) -> Tensor:
    """One minus the share of a map's positive evidence that lies on the object, mean over images that have an object.

    Rao et al. 2023, "Studying How to Efficiently and Effectively Guide Models with Explanations", eq. 6 (the energy
    pointing game as a loss; there without the constant 1). The map is an output, so one backward pass is enough. An
    image without positive evidence counts 1, without gradient. 0 where no image has an object.

    Args:
        maps_NHW: raw maps of image size.
        masks_NHW: pixels of the object, bool; all False where it is not known.
    """
    known = masks_NHW.flatten(1).any(1)
    energy = maps_NHW.float().clamp(min=0)
    whole, inside = energy.sum((1, 2)), (energy * masks_NHW).sum((1, 2))
    missed = 1 - torch.where(whole > 0, inside / torch.where(whole > 0, whole, 1), 0)
    return (missed * known).sum() / known.sum().clamp(min=1)


def object_masks(batch: Mapping[str, Any], height: int, width: int) -> Tensor | None:
    """Pixels (N, H, W), bool, of each image's object: its mask where the batch has masks, else its boxes, else None."""
    if "mask" in batch:
        masks: Tensor = batch["mask"].bool()
        return masks
    return box_masks(batch["boxes"], height, width) if "boxes" in batch else None


def balanced_weights(labels: Sequence[int] | Tensor, count: int, *, multilabel: bool = False) -> Tensor:
    """Class weights (K,) that make every class count the same: ``N / (K n_k)``; multi-label ``(N - n_k) / n_k``.

    King & Zeng 2001, "Logistic Regression in Rare Events Data", as in scikit-learn's ``class_weight="balanced"``.

    Raises:
        DataError: a class has no training image.
    """
    known = torch.as_tensor(labels)
    found = known.float().sum(0) if multilabel else torch.bincount(known, minlength=count).float()
    empty = [index for index, number in enumerate(found.tolist()) if number == 0]
    if empty:
        raise DataError(f"class_weights='balanced': no training image of class {empty[0]}. Give a list of weights.")
    return (len(known) - found) / found if multilabel else len(known) / (count * found)


@dataclass
class Objective:
    """The loss of a step as a weighted sum: ``(1 - d) classification + d distillation + b energy``.

    The energy is that of a class's map relative to the mean map of all classes. Softmax does not see what all classes
    share, so a network could else push every map below zero, where no evidence is left to guide, at no cost in
    cross-entropy; relative evidence cannot vanish where a class wins. Of multi-label maps, each has its own zero.
    """

    multilabel: bool = False
    label_smoothing: float = 0.0
    class_weights: Tensor | None = None
    distillation: float = 0.0
    temperature: float = 1.0
    energy: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.distillation <= 1 or self.temperature <= 0 or self.energy < 0:
            raise ConfigError(
                f"distillation={self.distillation} must be in [0, 1], temperature={self.temperature} positive,"
                f" box_weight={self.energy} not negative."
            )

    def __call__(
        self,
        logits_NK: Tensor,
        labels: Tensor,
        *,
        teacher_NK: Tensor | None = None,
        maps_NKHW: Tensor | None = None,
        masks_NHW: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``loss`` and, where there are several, its terms by name."""
        weights = None if self.class_weights is None else self.class_weights.to(logits_NK)
        label = classification_loss(
            logits_NK, labels,
            multilabel=self.multilabel, class_weights=weights, label_smoothing=self.label_smoothing,
        )  # fmt: skip
        terms, loss = {"classification": label}, label
        if teacher_NK is not None:
            taught = distillation_loss(logits_NK, teacher_NK, self.temperature, multilabel=self.multilabel)
            loss, terms["distillation"] = (1 - self.distillation) * loss + self.distillation * taught, taught
        if maps_NKHW is not None and masks_NHW is not None:
            maps, masks = _maps_of_labels(maps_NKHW, labels, masks_NHW.to(maps_NKHW.device), self.multilabel)
            terms["energy"] = energy_loss(upsample(maps.float().clamp(min=0), masks.shape[-2:]), masks)  # type: ignore[arg-type]
            loss = loss + self.energy * terms["energy"]
        return {"loss": loss} | (terms if len(terms) > 1 else {})


def _maps_of_labels(maps_NKHW: Tensor, labels: Tensor, masks_NHW: Tensor, multilabel: bool) -> tuple[Tensor, Tensor]:
    """The maps (M, h, w) of the classes that an image has (see ``Objective``), and the masks that belong to them."""
    if not multilabel:
        return select(maps_NKHW, labels) - maps_NKHW.mean(1), masks_NHW
    images, classes = torch.nonzero(labels, as_tuple=True)
    return maps_NKHW[images, classes], masks_NHW[images]
