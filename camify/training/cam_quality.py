"""CAM quality as validation figures: metrics by name, all from the maps that validation has anyway."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from ..batch import Batch
from ..errors import ConfigError
from ..maps import class_maps, normalize, select, upsample
from ..metrics import (
    ADCC,
    AverageDrop,
    AverageIncrease,
    Coherency,
    Complexity,
    DeletionAUC,
    EnergyPointingGame,
    GridPointingGame,
    InsertionAUC,
    LocalizationAccuracy,
    MaxBoxAccuracy,
    PixelAveragePrecision,
    PointingGame,
)
from ..metrics.functional import (
    area,
    deletion_curves,
    entropy,
    flip_equivariance,
    insertion_curves,
    masked_images,
    mosaic_plan,
    shift_equivariance,
    shifted,
    step_of,
    tiled,
)
from ..metrics.shares import MeanShare
from ..model import CAMNet
from ..modes import evaluating
from ..normalizers import Normalizer, normalize_maps
from ..task import Classes

__all__ = ["CAM_METRICS", "CAMQuality", "ValidationBatch", "logits_and_maps"]

_CURVE_STEPS = 16
_GRID = 2


def logits_and_maps(network: CAMNet, images: Tensor, *, clamp_weights: bool = False) -> tuple[Tensor, Tensor]:
    """Logits (N, K) and raw maps (N, K, h, w); of the classifier's positive weights only with ``clamp_weights``.

    Bae et al. 2020, "Rethinking Class Activation Mapping for Weakly Supervised Object Localization", section 3.2.
    """
    features, weight = network.forward_features(images), network.classifier.weight
    return network.forward_head(features), class_maps(features, weight.clamp(min=0) if clamp_weights else weight)


@dataclass
class ValidationBatch:
    """A batch as the metrics see it; what costs a forward is computed when it is asked for, once.

    Attributes:
        network: in eval mode.
        images: (N, C, H, W), as the network takes them.
        labels: (N,) classes.
        logits: (N, K) of the classes: of a network of one logit 2.
        maps: raw maps of all classes (N, K, h, w).
        boxes: N tensors (n, 4), xyxy pixels, exclusive; None where the data have none.
        masks: (N, H, W) bool of the objects; None where the data have none.
        heat_of: from raw maps at image size to heat in [0, 1].
        clamp_weights: whether the maps are those of the positive weights only (see ``logits_and_maps``).
        drift: (N,), see ``EarlierMaps``; None where the maps of the epoch before are not known.
    """

    network: CAMNet
    images: Tensor
    labels: Tensor
    logits: Tensor
    maps: Tensor
    boxes: Sequence[Tensor] | None = None
    masks: Tensor | None = None
    heat_of: Callable[[Tensor], Tensor] = normalize
    clamp_weights: bool = False
    drift: Tensor | None = None

    @classmethod
    def of(
        cls,
        network: CAMNet,
        batch: Batch,
        targets: Tensor,
        logits: Tensor,
        maps: Tensor,
        normalizer: Normalizer,
        clamp_weights: bool,
    ) -> ValidationBatch:
        """A batch with what a network said of it; targets as ``Task.targets`` gives them."""
        classes = network.classes
        logits, maps = classes.two_sided(logits), classes.two_sided(maps)
        heat_of = partial(normalize_maps, **normalizer._asdict())
        labels = classes.of_targets(targets)
        return cls(network, batch.images, labels, logits, maps, batch.boxes, batch.masks, heat_of, clamp_weights)

    @cached_property
    def own(self) -> Tensor:
        """The true class's raw map (N, h, w)."""
        return select(self.maps, self.labels).float()

    @cached_property
    def evidence(self) -> Tensor:
        """The true class's raw map at image size, (N, H, W)."""
        return self._at_image_size(self.own)

    @cached_property
    def heat(self) -> Tensor:
        """The same in [0, 1]."""
        return self.heat_of(self.evidence)

    @cached_property
    def objects(self) -> Sequence[Tensor] | Tensor:
        """Masks where they are known, else boxes."""
        if self.masks is not None:
            return self.masks
        return [] if self.boxes is None else self.boxes

    @cached_property
    def scores(self) -> Tensor:
        """The true class's probability, (N,)."""
        return self._scores(self.logits)

    @cached_property
    def masked(self) -> tuple[Tensor, Tensor]:
        """Its probability and heat where only what the map shows is left of the image."""
        logits, own = self._look_again(masked_images(self.images, self.heat))
        return self._scores(logits), self.heat_of(self._at_image_size(own))

    @cached_property
    def flipped(self) -> Tensor:
        """Its raw map (N, h, w) of the image flipped left to right."""
        return self._look_again(self.images.flip(-1))[1]

    @cached_property
    def moved(self) -> Tensor:
        """Its raw map at image size of the image moved by an eighth, (N, H, W)."""
        return self._at_image_size(self._look_again(shifted(self.images))[1])

    def _look_again(self, images: Tensor) -> tuple[Tensor, Tensor]:
        classes = self.network.classes
        logits, maps = logits_and_maps(self.network, images, clamp_weights=self.clamp_weights)
        return classes.two_sided(logits), select(classes.two_sided(maps), self.labels).float()

    def _at_image_size(self, maps_NHW: Tensor) -> Tensor:
        height, width = self.images.shape[-2:]
        return upsample(maps_NHW, (height, width))

    def _scores(self, logits: Tensor) -> Tensor:
        return self.network.classes.probabilities(logits).gather(1, self.labels[:, None])[:, 0]


class _Mean(MeanShare):
    """Mean over images of a number in 0..1, without those that have none (NaN)."""

    def update(self, values: Tensor) -> None:
        self._add(values[~values.isnan()])


@dataclass(frozen=True)
class _Readout:
    """How a metric is made, fed and logged: ``figures`` are keys of ``compute()`` and the names they are logged by."""

    make: Callable[..., Metric]
    update: Callable[[Any, ValidationBatch], None]
    figures: Mapping[str, str]
    needs: str = ""  # "boxes", "masks", "boxes or masks", "earlier maps", or nothing but labels


def _boxes(metric: Any, batch: ValidationBatch) -> None:
    metric.update(batch.heat, batch.boxes)


def _objects(metric: Any, batch: ValidationBatch) -> None:
    metric.update(batch.evidence, batch.objects)


def _curves(make: Callable[..., Tensor]) -> Callable[[Any, ValidationBatch], None]:
    return lambda metric, batch: metric.update(
        make(batch.network, batch.images, batch.evidence, batch.labels, steps=_CURVE_STEPS).clamp(0, 1)
    )


CAM_METRICS: Mapping[str, _Readout] = {
    "max_box_acc": _Readout(
        partial(MaxBoxAccuracy, version=1),
        _boxes,
        {key: key for key in ("max_box_acc", "centre_box_acc", "best_threshold")},
        "boxes",
    ),
    "max_box_acc_v2": _Readout(
        MaxBoxAccuracy,
        _boxes,
        {"max_box_acc": "max_box_acc_v2", "centre_box_acc": "centre_box_acc_v2"},
        "boxes",
    ),
    "localization": _Readout(
        LocalizationAccuracy,
        lambda metric, batch: metric.update(batch.heat, batch.boxes, batch.logits.float(), batch.labels),
        {"gt_known": "gt_known_loc", "top1": "top1_loc", "top5": "top5_loc", "centre_gt_known": "centre_gt_known_loc"},
        "boxes",
    ),
    "px_ap": _Readout(
        PixelAveragePrecision,
        lambda metric, batch: metric.update(batch.heat, batch.masks),
        {"px_ap": "px_ap", "centre_gaussian_ap": "centre_px_ap"},
        "masks",
    ),
    "pointing": _Readout(
        PointingGame, _objects, {"accuracy": "pointing", "centre_accuracy": "centre_pointing"}, "boxes or masks"
    ),
    "energy": _Readout(
        EnergyPointingGame, _objects, {"energy": "energy", "uniform_energy": "uniform_energy"}, "boxes or masks"
    ),
    "area": _Readout(_Mean, lambda metric, batch: metric.update(area(batch.heat)), {"": "map_area"}),
    "entropy": _Readout(_Mean, lambda metric, batch: metric.update(entropy(batch.own)), {"": "map_entropy"}),
    "flip_equivariance": _Readout(
        _Mean,
        lambda metric, batch: metric.update(flip_equivariance(batch.own, batch.flipped).clamp_min(0)),
        {"": "flip_equivariance"},
    ),
    "shift_equivariance": _Readout(
        _Mean,
        lambda metric, batch: metric.update(
            shift_equivariance(batch.evidence, batch.moved, step_of(*batch.evidence.shape[1:])).clamp_min(0)
        ),
        {"": "shift_equivariance"},
    ),
    "drift": _Readout(_Mean, lambda metric, batch: metric.update(batch.drift), {"": "map_drift"}, "earlier maps"),
    "average_drop": _Readout(
        AverageDrop, lambda metric, batch: metric.update(batch.scores, batch.masked[0]), {"": "average_drop"}
    ),
    "average_increase": _Readout(
        AverageIncrease, lambda metric, batch: metric.update(batch.scores, batch.masked[0]), {"": "average_increase"}
    ),
    "coherency": _Readout(
        Coherency, lambda metric, batch: metric.update(batch.heat, batch.masked[1]), {"": "coherency"}
    ),
    "complexity": _Readout(Complexity, lambda metric, batch: metric.update(batch.heat), {"": "complexity"}),
    "adcc": _Readout(
        ADCC,
        lambda metric, batch: metric.update(batch.scores, batch.masked[0], batch.heat, batch.masked[1]),
        {"": "adcc"},
    ),
    "insertion_auc": _Readout(InsertionAUC, _curves(insertion_curves), {"": "insertion_auc"}),
    "deletion_auc": _Readout(DeletionAUC, _curves(deletion_curves), {"": "deletion_auc"}),
}
"""Metrics by the names that a configuration gives; ``"grid_pointing"`` is another, on mosaics instead of batches."""


class CAMQuality(nn.Module):
    """The CAM metrics of validation, by name: their states sum over processes, and need no list of images.

    Args:
        names: of ``CAM_METRICS``, or ``"grid_pointing"``; None takes what costs next to nothing: ``max_box_acc``,
            ``area`` and ``entropy``, and ``grid_pointing`` where no boxes are known.
        grid_mosaics: how many mosaics of 2 x 2 images ``grid_pointing`` looks at, four forwards each; the same ones in
            every epoch.
        alone: one process measures, and waits for no other.

    Raises:
        ConfigError: a name is unknown.
    """

    def __init__(self, names: Sequence[str] | None = None, grid_mosaics: int = 16, *, alone: bool = False) -> None:
        super().__init__()
        known = [*CAM_METRICS, "grid_pointing"]
        unknown = [name for name in names or () if name not in known]
        if unknown:
            raise ConfigError(f"cam_metrics: {', '.join(unknown)} unknown. Choose of {', '.join(known)}.")
        if grid_mosaics < 1:
            raise ConfigError(f"grid_mosaics={grid_mosaics} must be at least 1.")
        wanted = ("max_box_acc", "area", "entropy", "grid_pointing") if names is None else tuple(dict.fromkeys(names))
        self.chosen, self.grid_mosaics = names is not None, grid_mosaics
        options = {"sync_on_compute": not alone}
        made = {name: CAM_METRICS[name].make(**options) for name in wanted if name in CAM_METRICS}
        self.metrics: Mapping[str, Metric] = nn.ModuleDict(made)  # type: ignore[assignment]  # a mapping in all but name
        self.grid = GridPointingGame(_GRID, **options) if "grid_pointing" in wanted else None
        self.alone = alone

    def update(self, batch: ValidationBatch) -> None:
        """Add a batch to every metric whose data it has.

        Raises:
            ConfigError: a metric was asked for by name, and the data have no boxes or masks.
        """
        boxes, masks = batch.boxes is not None, batch.masks is not None
        given = {"": True, "boxes": boxes, "masks": masks, "boxes or masks": boxes or masks}
        given["earlier maps"] = batch.drift is not None
        for name, metric in self.metrics.items():
            readout = CAM_METRICS[name]
            if given[readout.needs]:
                readout.update(metric, batch)
            elif self.chosen and readout.needs != "earlier maps":  # the first epoch has none
                raise ConfigError(
                    f"cam_metrics: {name} needs {readout.needs}, and the validation data have none. Leave it out, or"
                    " take grid_pointing, which needs none."
                )

    def compute(self) -> dict[str, float]:
        """All figures there are but grid pointing's, by the names they are logged by; all processes call it.

        The metrics begin anew.
        """
        figures: dict[str, float] = {}
        several = not self.alone and torch.distributed.is_available() and torch.distributed.is_initialized()
        for name, metric in self.metrics.items():
            if not metric.update_called and not several:
                continue  # several processes compute together, whether each has seen what the metric needs or not
            found = metric.compute()
            metric.reset()
            by_key = found if isinstance(found, Mapping) else {"": found}
            logged = {label: float(by_key[key]) for key, label in CAM_METRICS[name].figures.items()}
            if not all(math.isnan(value) for value in logged.values()):  # NaN: no image has what it needs
                figures |= logged
        return figures

    @torch.no_grad()
    def grid_pointing(
        self,
        network: CAMNet,
        labels: Sequence[int] | None,
        read: Callable[[Sequence[int]], Tensor],
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> dict[str, float]:
        """The share of evidence that lies in the right cell of mosaics, beside chance; all processes call it.

        Args:
            network: run in eval mode.
            labels: of the validation data; None where they are not known without reading the images.
            read: the images (N, C, H, W) of samples by number, as the network takes them.
            rank: of this process, which takes its share of the mosaics.
            world_size: number of processes.

        Raises:
            ConfigError: it was asked for by name, and the labels are not known or of fewer than four classes.
        """
        classes = len(set(labels or ()))
        if self.grid is None or labels is None or classes < _GRID**2:
            if self.grid is not None and self.chosen:
                wrong = f"has {classes} classes" if labels is not None else "has no `labels`, a list of classes"
                raise ConfigError(
                    f"cam_metrics: grid_pointing needs {_GRID**2} classes, and the validation data set {wrong}."
                )
            return {}
        numbers = torch.as_tensor(labels)
        for picked in mosaic_plan(numbers, _GRID)[: self.grid_mosaics][rank::world_size]:
            image = tiled(read(picked.tolist()).to(next(network.parameters()).device), _GRID)
            with evaluating(network):
                maps_KHW = network.forward_with_maps(image)[1][0]
            maps_KHW = Classes.carried_by(network, len(maps_KHW)).two_sided(maps_KHW, 0)
            maps = maps_KHW[numbers[picked].to(maps_KHW.device)].float()
            height, width = (-(-side // _GRID) * _GRID for side in maps.shape[-2:])  # cells of equal size
            self.grid.update(upsample(maps, (height, width)), torch.arange(len(picked), device=maps.device))
        found = self.grid.compute()
        self.grid.reset()
        return {"grid_pointing": float(found["grid_pointing"]), "grid_chance": float(found["chance"])}
