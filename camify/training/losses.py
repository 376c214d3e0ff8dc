"""What a step minimizes: classification, distillation from the legacy network, guidance by boxes. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..batch import Batch
from ..errors import ConfigError, DataError
from ..maps import select, upsample
from ..metrics.functional import box_masks
from ..task import Task
from .options import LossOptions

__all__ = ["Objective", "balanced_weights", "classification_loss", "distillation_loss", "energy_loss", "object_masks"]


def classification_loss(
    logits_NK: Tensor,
    targets: Tensor,
    *,
    task: Task = Task.MULTICLASS,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean cross-entropy of classes (N,) or distributions (N, K); of other tasks the binary one of every logit.

    ``class_weights`` (K,) weigh the classes, in the binary case what is positive. Smoothing moves a binary target by
    ``label_smoothing / 2`` towards 1/2 from either side. Binary targets (N, K) that are NaN are not known and count
    nothing; where none is known the loss is 0.
    """
    if task is Task.MULTICLASS:
        return F.cross_entropy(logits_NK, targets, weight=class_weights, label_smoothing=label_smoothing)
    known = ~targets.isnan()
    smooth = targets.nan_to_num(0.0).to(logits_NK.dtype) * (1 - label_smoothing) + label_smoothing / 2
    terms = F.binary_cross_entropy_with_logits(logits_NK, smooth, pos_weight=class_weights, reduction="none")
    return (terms * known).sum() / known.sum().clamp(min=1)


def distillation_loss(
    logits_NK: Tensor, teacher_NK: Tensor, temperature: float, *, task: Task = Task.MULTICLASS
) -> Tensor:
    """``T^2 KL(p(teacher / T) || p(logits / T))``, mean over images: its gradient does not shrink with T.

    Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in a Neural Network", section 2. Of other
    tasks the mean over logits of the same for the two outcomes of each.
    """
    student, teacher = logits_NK.float() / temperature, teacher_NK.float() / temperature
    if task is not Task.MULTICLASS:
        soft, binary_loss = task.probabilities(teacher), F.binary_cross_entropy_with_logits
        return temperature**2 * (binary_loss(student, soft) - binary_loss(teacher, soft))
    student, teacher = task.log_probabilities(student), task.log_probabilities(teacher)
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


def object_masks(batch: Batch) -> Tensor | None:
    """Pixels (N, H, W), bool, of each image's object: its mask where the batch has masks, else its boxes, else None."""
    if batch.masks is not None:
        return batch.masks.bool()
    return None if batch.boxes is None else box_masks(batch.boxes, *batch.image_size)


def balanced_weights(targets: Tensor, count: int, *, task: Task = Task.MULTICLASS) -> Tensor:
    """Class weights (K,) that make every class count the same: ``N / (K n_k)``; of other tasks ``(N - n_k) / n_k``.

    Targets are as ``Task.targets`` gives them; n_k counts those that are known.

    King & Zeng 2001, "Logistic Regression in Rare Events Data", as in scikit-learn's ``class_weight="balanced"``.

    Raises:
        DataError: a class has no training image.
    """
    if task is Task.MULTICLASS:
        total, counts = (
            torch.tensor(float(len(targets)), dtype=torch.float32),
            torch.bincount(targets, minlength=count).float(),
        )
    else:
        total, counts = (~targets.isnan()).float().sum(0), targets.nan_to_num(0.0).sum(0)
    empty = [index for index, number in enumerate(counts.tolist()) if number == 0]
    if empty:
        raise DataError(f"class_weights='balanced': no training image of class {empty[0]}. Give a list of weights.")
    return total / (count * counts) if task is Task.MULTICLASS else (total - counts) / counts


@dataclass
class Objective:
    """The loss of a step as a weighted sum: ``(1 - d) classification + d distillation + b energy``.

    The energy is that of a class's map relative to the mean map of all classes. Softmax does not see what all classes
    share, so a network could else push every map below zero, where no evidence is left to guide, at no cost in
    cross-entropy; relative evidence cannot vanish where a class wins. Of multi-label maps, each has its own zero.
    """

    task: Task = Task.MULTICLASS
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

    @classmethod
    def of(cls, options: LossOptions, task: Task) -> Objective:
        """The loss that the options ask for; ``class_weights`` are set when the labels are known."""
        distillation = options.teacher_weight if options.teacher else 0.0
        return cls(task, options.label_smoothing, None, distillation, options.teacher_temperature, options.box_weight)

    def __call__(
        self,
        logits_NK: Tensor,
        targets: Tensor,
        *,
        teacher_NK: Tensor | None = None,
        maps_NKHW: Tensor | None = None,
        masks_NHW: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``loss`` and, where there are several, its terms by name."""
        weights = None if self.class_weights is None else self.class_weights.to(logits_NK)
        label = classification_loss(
            logits_NK, targets, task=self.task, class_weights=weights, label_smoothing=self.label_smoothing
        )  # fmt: skip
        terms, loss = {"classification": label}, label
        if teacher_NK is not None:
            taught = distillation_loss(logits_NK, teacher_NK, self.temperature, task=self.task)
            loss, terms["distillation"] = (1 - self.distillation) * loss + self.distillation * taught, taught
        if maps_NKHW is not None and masks_NHW is not None:
            maps, masks = _maps_of_targets(maps_NKHW, targets, masks_NHW.to(maps_NKHW.device), self.task)
            terms["energy"] = energy_loss(upsample(maps.float().clamp(min=0), masks.shape[-2:]), masks)  # type: ignore[arg-type]
            loss = loss + self.energy * terms["energy"]
        return {"loss": loss} | (terms if len(terms) > 1 else {})


def _maps_of_targets(maps_NKHW: Tensor, targets: Tensor, masks_NHW: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """The maps (M, h, w) of the classes that an image has (see ``Objective``), and the masks that belong to them."""
    if task is Task.MULTICLASS:
        return select(maps_NKHW, targets) - maps_NKHW.mean(1), masks_NHW
    images, classes = torch.nonzero(targets >= 0.5, as_tuple=True)
    return maps_NKHW[images, classes], masks_NHW[images]
