"""What a step minimizes: classification, distillation from the legacy network, demands on maps. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..batch import Batch
from ..errors import ConfigError, DataError
from ..maps import normalize, upsample
from ..metrics.functional import box_masks
from ..task import Task
from .options import LossOptions

__all__ = [
    "Objective", "alignment_loss", "balanced_weights", "classification_loss", "distillation_loss", "energy_loss",
    "equivariance_loss", "object_masks", "smaller_mirrored",
]  # fmt: skip

_STRONG, _WEAK = 0.4, 0.2  # of the features' norm: Kim et al. 2022's thresholds of foreground and background
_NORM_SHARE = 0.1  # of the norm's part, beside that of the direction: their 0.05 to 0.5


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


def alignment_loss(features_NCHW: Tensor, weight_NC: Tensor) -> Tensor:
    """How far the direction of the features of a class's cells is from that of its weights, mean over images.

    Kim et al. 2022, "Bridging the Gap between Classification and Localization for Weakly Supervised Object
    Localization". A class map is ``|w| |f| cos(w, f)``: cells of an object whose features are long but
    point elsewhere are dark. With s the cosine and n the length of a cell's features, min-max over the image:

        ``mean(s | n < 0.2) - mean(s | n > 0.4) + (mean(n | s < 0) - mean(n | s > 0)) / 10``

    The mean over no cell is 0. Which cells count is taken as given, without gradient.

    Args:
        features_NCHW: last spatial map.
        weight_NC: the weights of one class of each image.
    """
    features = features_NCHW.float()
    cosine_NHW = F.cosine_similarity(features, weight_NC.float()[:, :, None, None], dim=1)
    length_NHW = normalize(torch.linalg.vector_norm(features, dim=1))
    direction = _mean_where(cosine_NHW, length_NHW < _WEAK) - _mean_where(cosine_NHW, length_NHW > _STRONG)
    length = _mean_where(length_NHW, cosine_NHW < 0) - _mean_where(length_NHW, cosine_NHW > 0)
    return (direction + _NORM_SHARE * length).sum() / max(len(features), 1)


def _mean_where(values_NHW: Tensor, chosen_NHW: Tensor) -> Tensor:
    """The mean (N,) of the chosen cells; 0 where there are none."""
    return (values_NHW * chosen_NHW).sum((1, 2)) / chosen_NHW.sum((1, 2)).clamp(min=1)


def smaller_mirrored(images: Tensor, scale: float) -> Tensor:
    """Images (..., H, W) mirrored, and resized to a share of their sides (bilinear, antialiased)."""
    height, width = (max(round(side * scale), 1) for side in images.shape[-2:])
    if (height, width) == tuple(images.shape[-2:]):
        return images.flip(-1)
    wide = images.to(torch.promote_types(images.dtype, torch.float32))  # torch antialiases no half precision on the CPU
    return F.interpolate(wide, size=(height, width), mode="bilinear", antialias=True).flip(-1).to(images.dtype)


def equivariance_loss(maps_NHW: Tensor, transformed_NHW: Tensor) -> Tensor:
    """How far the maps of ``smaller_mirrored`` images are from the mirrored maps, mean over images and cells.

    Wang et al. 2020, "Self-supervised Equivariant Attention Mechanism for Weakly Supervised Semantic Segmentation",
    equivariant regularization (L1). Of each map its positive evidence counts, as a share of its largest
    value; the maps are brought to the grid of the transformed ones. 0 where there is no image.

    Args:
        maps_NHW: raw maps (N, h, w) of the images.
        transformed_NHW: raw maps of the same classes of the transformed images, of a smaller grid or the same.
    """
    expected = upsample(_share_of_peak(maps_NHW), transformed_NHW.shape[-2:]).flip(-1)  # type: ignore[arg-type]
    return (expected - _share_of_peak(transformed_NHW)).abs().mean((1, 2)).sum() / max(len(maps_NHW), 1)


def _share_of_peak(maps_NHW: Tensor) -> Tensor:
    positive = maps_NHW.float().clamp(min=0)
    peak = positive.amax((1, 2), keepdim=True)
    return positive / torch.where(peak > 0, peak, 1)


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
    """The loss of a step: ``(1 - d) classification + d distillation + b energy + a alignment + e equivariance``.

    The energy, and what is to be equivariant, is that of a class's map relative to the mean map of all classes. Softmax
    does not see what all classes share, so a network could else push every map below zero, where no evidence is left to
    guide, at no cost in cross-entropy; relative evidence cannot vanish where a class wins. Of multi-label maps, each
    has its own zero.
    """

    task: Task = Task.MULTICLASS
    label_smoothing: float = 0.0
    class_weights: Tensor | None = None
    distillation: float = 0.0
    temperature: float = 1.0
    energy: float = 0.0
    alignment: float = 0.0
    equivariance: float = 0.0

    def __post_init__(self) -> None:
        weights = {"box_weight": self.energy, "align_weight": self.alignment, "equivariance_weight": self.equivariance}
        if not 0 <= self.distillation <= 1 or self.temperature <= 0 or min(weights.values()) < 0:
            raise ConfigError(
                f"distillation={self.distillation} must be in [0, 1], temperature={self.temperature} positive,"
                f" {', '.join(f'{name}={value}' for name, value in weights.items())} not negative."
            )

    @classmethod
    def of(cls, options: LossOptions, task: Task) -> Objective:
        """The loss that the options ask for; ``class_weights`` are set when the labels are known."""
        return cls(
            task,
            options.label_smoothing,
            None,
            options.teacher_weight if options.teacher else 0.0,
            options.teacher_temperature,
            options.box_weight,
            options.align_weight,
            options.equivariance_weight,
        )

    def __call__(
        self,
        logits_NK: Tensor,
        targets: Tensor,
        *,
        teacher_NK: Tensor | None = None,
        maps_NKHW: Tensor | None = None,
        masks_NHW: Tensor | None = None,
        features_NCHW: Tensor | None = None,
        weight_KC: Tensor | None = None,
        transformed_NKHW: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``loss`` and, where there are several, its terms by name: those whose weight and tensors are given.

        Args:
            logits_NK: of the images.
            targets: as ``Task.targets`` gives them.
            teacher_NK: logits of the teacher.
            maps_NKHW: raw class maps, for the energy and what is to be equivariant.
            masks_NHW: pixels of the objects, for the energy.
            features_NCHW: the last spatial map, for the alignment.
            weight_KC: of the classifier, likewise.
            transformed_NKHW: raw class maps of ``smaller_mirrored`` images.
        """
        weights = None if self.class_weights is None else self.class_weights.to(logits_NK)
        label = classification_loss(
            logits_NK, targets, task=self.task, class_weights=weights, label_smoothing=self.label_smoothing
        )  # fmt: skip
        terms, loss = {"classification": label}, label
        if teacher_NK is not None:
            taught = distillation_loss(logits_NK, teacher_NK, self.temperature, task=self.task)
            loss, terms["distillation"] = (1 - self.distillation) * loss + self.distillation * taught, taught
        images, classes = _present_classes(targets, self.task)
        if maps_NKHW is not None and masks_NHW is not None:
            maps, masks = self._relative(maps_NKHW, images, classes), masks_NHW.to(maps_NKHW.device)[images]
            terms["energy"] = energy_loss(upsample(maps.float().clamp(min=0), masks.shape[-2:]), masks)  # type: ignore[arg-type]
            loss = loss + self.energy * terms["energy"]
        if self.alignment and features_NCHW is not None and weight_KC is not None:
            terms["alignment"] = alignment_loss(features_NCHW[images], weight_KC[classes])
            loss = loss + self.alignment * terms["alignment"]
        if self.equivariance and maps_NKHW is not None and transformed_NKHW is not None:
            both = (self._relative(maps, images, classes) for maps in (maps_NKHW, transformed_NKHW))
            terms["equivariance"] = equivariance_loss(*both)
            loss = loss + self.equivariance * terms["equivariance"]
        return {"loss": loss} | (terms if len(terms) > 1 else {})

    def _relative(self, maps_NKHW: Tensor, images_M: Tensor, classes_M: Tensor) -> Tensor:
        """The maps (M, h, w) of classes of images; minus what all classes share, where these exclude each other."""
        maps = maps_NKHW[images_M, classes_M]
        return maps - maps_NKHW.mean(1)[images_M] if self.task is Task.MULTICLASS else maps


def _present_classes(targets: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """The images (M,) and the classes (M,) that they have; of mixed labels (cutmix) none."""
    if task is not Task.MULTICLASS:
        images, classes = torch.nonzero(targets >= 0.5, as_tuple=True)
        return images, classes
    count = 0 if targets.is_floating_point() else len(targets)
    return torch.arange(count, device=targets.device), targets[:count].long() if count else targets.new_zeros(0).long()
