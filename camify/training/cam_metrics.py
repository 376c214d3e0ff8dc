"""CAM quality as validation figures: metrics by name, all from the maps that validation has anyway."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..batch import Batch
from ..errors import ConfigError
from ..eval_mode import eval_mode
from ..evaluation import engine
from ..evaluation.engine import IOU_50, IOUS, PIXEL_BINS, THRESHOLDS, Statistic
from ..maps import class_maps, normalize, select, upsample
from ..metrics import GridPointingGame, functional
from ..metrics.base import RowMeans
from ..metrics.checks import check_boxes, check_class_scores, check_masks, check_objects, check_scores, check_shares
from ..metrics.functional import masked_images, masks_of_objects, mosaic_plan, shifted, tiled
from ..model import CAMNet
from ..normalizers import Normalizer, normalize_maps
from ..ranks import current
from ..task import Classes

__all__ = ["CAM_METRICS", "CAMMetrics", "ValidationBatch", "logits_and_maps", "maps_of"]

_CURVE_STEPS = 16
_GRID = 2


def logits_and_maps(network: CAMNet, images: Tensor, *, clamp_weights: bool = False) -> tuple[Tensor, Tensor]:
    """Logits (N, K) and raw maps (N, K, h, w) of images; see ``maps_of``."""
    return maps_of(network, network.forward_features(images), clamp_weights=clamp_weights)


def maps_of(network: CAMNet, features_NCHW: Tensor, *, clamp_weights: bool = False) -> tuple[Tensor, Tensor]:
    """Logits (N, K) and raw maps (N, K, h, w); of the classifier's positive weights only with ``clamp_weights``.

    Bae et al. 2020, "Rethinking Class Activation Mapping for Weakly Supervised Object Localization", section 3.2.
    """
    weight = network.classifier.weight
    return network.forward_head(features_NCHW), class_maps(
        features_NCHW, weight.clamp(min=0) if clamp_weights else weight
    )


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
        drift: (N,), see ``MapDrift``; None where the maps of the epoch before are not known.
        object_maps: of the true classes, (N, h, w); None where the network has none.
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
    object_maps: Tensor | None = None

    @classmethod
    def of(
        cls, network: CAMNet, batch: Batch, targets: Tensor, logits: Tensor, maps: Tensor, normalizer: Normalizer,
        clamp_weights: bool,
    ) -> ValidationBatch:  # fmt: skip
        """A batch with what a network said of it; targets as ``Task.targets`` gives them."""
        classes = network.classes
        logits, maps = classes.two_sided(logits), classes.two_sided(maps)
        labels, heat_of = classes.of_targets(targets), partial(normalize_maps, **normalizer._asdict())
        return cls(network, batch.images, labels, logits, maps, batch.boxes, batch.masks, heat_of, clamp_weights)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images, pixels."""
        return self.images.shape[-2], self.images.shape[-1]

    @cached_property
    def own(self) -> Tensor:
        """The true class's raw map (N, h, w)."""
        return select(self.maps, self.labels).float()

    @cached_property
    def evidence(self) -> Tensor:
        """The true class's raw map at image size, (N, H, W)."""
        return upsample(self.own, self.size)

    @cached_property
    def heat(self) -> Tensor:
        """The same in [0, 1]."""
        return self.heat_of(self.evidence)

    @property
    def objects(self) -> Sequence[Tensor] | Tensor:
        """Masks where they are known, else boxes."""
        return self._given_boxes if self.masks is None else self.masks

    @cached_property
    def object_masks(self) -> Tensor:
        """Where the objects are, (N, H, W) bool."""
        return masks_of_objects(self.objects, *self.size)

    @cached_property
    def largest_hits(self) -> Tensor:
        """Whether the largest component's box hits at IoU 0.5, (N, T) at every threshold; see ``engine.box_hits``."""
        return self._box_hits(self.heat, self.own, largest=True, ious=IOUS[IOU_50 - 1 : IOU_50])[:, 0]

    @cached_property
    def object_hits(self) -> Tensor:
        """The same as ``largest_hits`` of the object maps."""
        maps: Any = self.object_maps  # the metric is left out where there are none
        heat = self.heat_of(upsample(maps.float(), self.size))
        return self._box_hits(heat, maps, largest=True, ious=IOUS[IOU_50 - 1 : IOU_50])[:, 0]

    @cached_property
    def every_hits(self) -> Tensor:
        """Whether the best box of all components hits, (N, 3, T) at each IoU; see ``engine.box_hits``."""
        return self._box_hits(self.heat, self.own, largest=False, ious=IOUS)

    def _box_hits(self, heat: Tensor, maps: Tensor, *, largest: bool, ious: Tensor) -> Tensor:
        cells = (maps.shape[-2], maps.shape[-1])
        return engine.box_hits(heat, self._given_boxes, largest=largest, ious=ious, cells=cells)

    @cached_property
    def center_hits(self) -> Tensor:
        """Whether fixed boxes around the center hit, (N, 3, S); see ``engine.center_box_hits``."""
        return engine.center_box_hits(self._given_boxes, self.size)

    @property
    def _given_boxes(self) -> Sequence[Tensor]:
        return [] if self.boxes is None else self.boxes

    def known_and_top(self, count: int) -> Tensor:
        """The hits of the largest component, and those of them whose class is among the first, (N, 2, T)."""
        check_class_scores("LocalizationAccuracy", self.logits, self.labels, len(self.images))
        ranks = functional.label_ranks(self.logits.float().cpu(), self.labels.cpu())
        return engine.hits_where(self.largest_hits, ranks < count)

    @cached_property
    def scores(self) -> Tensor:
        """The true class's probability, (N,)."""
        return self.network.classes.scores(self.logits, self.labels)

    @cached_property
    def masked(self) -> tuple[Tensor, Tensor]:
        """Its probability and heat where only what the map shows is left of the image."""
        logits, masked_maps = self._look_again(masked_images(self.images, self.heat))
        return self.network.classes.scores(logits, self.labels), self.heat_of(upsample(masked_maps, self.size))

    def faithfulness(self, name: str, title: str) -> Tensor:
        """The row of that name (N,) of ``engine.faithfulness_rows``; the title is for errors."""
        masked, heat = self.masked
        check_scores(title, self.scores, masked)
        heats = (self.heat, heat) if name == "adcc" else ()
        return engine.faithfulness_rows(self.scores, masked, *heats)[name]

    def curve(self, name: str, title: str) -> Tensor:
        """The row of that name (N,) of ``engine.curve_rows``; the title is for errors."""
        rows = engine.curve_rows(
            self.network, self.images, self.evidence, self.labels, batch_size=64, steps=_CURVE_STEPS, curves=(name,)
        )[name].clamp(0, 1)
        check_shares(title, "curves", rows, (None,))
        return rows

    @cached_property
    def flipped(self) -> Tensor:
        """Its raw map (N, h, w) of the image flipped left to right."""
        return self._look_again(self.images.flip(-1))[1]

    @cached_property
    def moved(self) -> Tensor:
        """Its raw map at image size of the image moved by an eighth, (N, H, W)."""
        return upsample(self._look_again(shifted(self.images))[1], self.size)

    def _look_again(self, images: Tensor) -> tuple[Tensor, Tensor]:
        classes = self.network.classes
        logits, maps = logits_and_maps(self.network, images, clamp_weights=self.clamp_weights)
        return classes.two_sided(logits), select(classes.two_sided(maps), self.labels).float()


class _Figure(NamedTuple):
    """A figure that is logged: what ``statistic`` makes of the mean of a batch's ``row`` (N, *shape) of shares.

    The batch has what the metric needs; an image that has no figure has NaN.
    """

    row: Callable[[Any], Tensor]
    statistic: Statistic = lambda means: means
    shape: tuple[int, ...] = ()


class _CAMMetric(NamedTuple):
    """What one name stands for: figures by the names that they are logged by, and which data they need.

    ``title`` is the torchmetrics class of the same definition: errors name it.
    """

    figures: Mapping[str, _Figure]
    needs: str = ""  # "boxes", "masks", "boxes or masks", "earlier maps", "boxes and object maps", or labels alone
    title: str = ""


_CHECKS: Mapping[str, Callable[[str, Any], None]] = {
    "boxes": lambda title, batch: check_boxes(title, batch.boxes, *batch.size),  # heat is in [0, 1], or was refused
    "masks": lambda title, batch: check_masks(title, batch.heat, batch.masks),
    "boxes or masks": lambda title, batch: check_objects(title, batch.evidence, batch.objects),
}
_SIZES = len(functional.center_boxes(1, 1))
_LARGEST = _Figure(lambda batch: batch.largest_hits, engine.best, (THRESHOLDS,))
_CENTER = _Figure(lambda batch: batch.center_hits[:, IOU_50 - 1], engine.best, (_SIZES,))
_TOP = (engine.second_at_best, (2, THRESHOLDS))
_PIXELS = (lambda means: functional.average_precision(means[0])[None], (2, PIXEL_BINS + 1))

CAM_METRICS: Mapping[str, _CAMMetric] = {
    "max_box_acc": _CAMMetric({
        "max_box_acc": _LARGEST, "center_box_acc": _CENTER,
        "best_threshold": _LARGEST._replace(statistic=engine.best_threshold),
    }, "boxes", "MaxBoxAccuracy"),
    "object_box_acc": _CAMMetric({
        "object_box_acc": _Figure(lambda batch: batch.object_hits, engine.best, (THRESHOLDS,)),
    }, "boxes and object maps", "MaxBoxAccuracy"),
    "max_box_acc_v2": _CAMMetric({
        "max_box_acc_v2": _Figure(
            lambda batch: batch.every_hits,
            engine.mean_of_best, (len(IOUS), THRESHOLDS),
        ),
        "center_box_acc_v2": _Figure(lambda batch: batch.center_hits, engine.mean_of_best, (len(IOUS), _SIZES)),
    }, "boxes", "MaxBoxAccuracy"),
    "localization": _CAMMetric({
        "gt_known_loc": _LARGEST,
        "top1_loc": _Figure(lambda batch: batch.known_and_top(1), *_TOP),
        "top5_loc": _Figure(lambda batch: batch.known_and_top(5), *_TOP),
        "center_gt_known_loc": _CENTER,
    }, "boxes", "LocalizationAccuracy"),
    "px_ap": _CAMMetric({
        "px_ap": _Figure(lambda batch: engine.pixel_row(batch.heat, batch.masks), *_PIXELS),
        "center_px_ap": _Figure(lambda batch: engine.pixel_row(None, batch.masks), *_PIXELS),
    }, "masks", "PixelAveragePrecision"),
    "pointing": _CAMMetric({
        "pointing": _Figure(lambda batch: engine.pointing_row(batch.evidence, batch.object_masks)),
        "center_pointing": _Figure(lambda batch: engine.pointing_row(None, batch.object_masks)),
    }, "boxes or masks", "PointingGame"),
    "energy": _CAMMetric({
        "energy": _Figure(lambda batch: engine.energy_row(batch.evidence, batch.object_masks)),
        "uniform_energy": _Figure(lambda batch: engine.energy_row(None, batch.object_masks)),
    }, "boxes or masks", "EnergyPointingGame"),
    "area": _CAMMetric({"map_area": _Figure(lambda batch: functional.area(batch.heat))}),
    "entropy": _CAMMetric({"map_entropy": _Figure(lambda batch: functional.entropy(batch.own))}),
    "flip_equivariance": _CAMMetric({"flip_equivariance": _Figure(
        lambda batch: engine.stability_rows(batch.own, heat_of_mirrored=batch.flipped)["flip"].clamp_min(0)
    )}),
    "shift_equivariance": _CAMMetric({"shift_equivariance": _Figure(
        lambda batch: engine.stability_rows(batch.evidence, heat_of_shifted=batch.moved)["shift"].clamp_min(0)
    )}),
    "drift": _CAMMetric({"map_drift": _Figure(lambda batch: batch.drift)}, "earlier maps"),
    **{name: _CAMMetric({name: _Figure(row)}) for name, row in {
        "average_drop": lambda batch: batch.faithfulness("drop", "AverageDrop"),
        "average_increase": lambda batch: batch.faithfulness("increase", "AverageIncrease"),
        "coherency": lambda batch: functional.coherency(batch.heat, batch.masked[1]),
        "complexity": lambda batch: functional.complexity(batch.heat),
        "adcc": lambda batch: batch.faithfulness("adcc", "ADCC"),
        "insertion_auc": lambda batch: batch.curve("insertion", "InsertionAUC"),
        "deletion_auc": lambda batch: batch.curve("deletion", "DeletionAUC"),
    }.items()},
}  # fmt: skip
"""Metrics by the names that a configuration gives; ``"grid_pointing"`` is another, on mosaics instead of batches."""


class CAMMetrics(nn.Module):
    """The CAM metrics of validation, by name: means of the engine's rows, sums over images and processes.

    Args:
        names: of ``CAM_METRICS``, or ``"grid_pointing"``; None takes what costs next to nothing: ``max_box_acc``,
            ``object_box_acc``, ``area`` and ``entropy``, and ``grid_pointing`` where no boxes are known.
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
        chosen = (
            ("max_box_acc", "object_box_acc", "area", "entropy", "grid_pointing")
            if names is None
            else tuple(dict.fromkeys(names))
        )
        self.chosen, self.grid_mosaics = names is not None, grid_mosaics
        options = {"sync_on_compute": not alone}
        self.names = tuple(name for name in chosen if name in CAM_METRICS)
        figures = [figure for name in self.names for figure in CAM_METRICS[name].figures.items()]
        self.means = RowMeans({label: figure.shape for label, figure in figures}, **options)
        self.grid = GridPointingGame(_GRID, **options) if "grid_pointing" in chosen else None
        self.alone = alone

    def update(self, batch: ValidationBatch) -> None:
        """Add a batch to every metric whose data it has.

        Raises:
            ConfigError: a metric was asked for by name, and the data have no boxes or masks.
        """
        boxes, masks = batch.boxes is not None, batch.masks is not None
        available = {"": True, "earlier maps": batch.drift is not None}
        available |= {"boxes": boxes, "masks": masks, "boxes or masks": boxes or masks}
        available |= {"boxes and object maps": boxes and batch.object_maps is not None}
        rows: engine.Rows = {}
        for name in self.names:
            metric = CAM_METRICS[name]
            if available[metric.needs]:
                if metric.needs in _CHECKS:
                    _CHECKS[metric.needs](metric.title, batch)
                rows |= {label: figure.row(batch) for label, figure in metric.figures.items()}
            elif self.chosen and metric.needs not in ("earlier maps", "boxes and object maps"):  # not before training
                raise ConfigError(
                    f"cam_metrics: {name} needs {metric.needs}, and the validation data have none. Leave it out, or"
                    " take grid_pointing, which needs none."
                )
        if rows:
            self.means.update(rows)

    def compute(self) -> dict[str, float]:
        """All figures there are but grid pointing's, by the names they are logged by; all processes call it.

        The metrics begin anew.
        """
        several = not self.alone and current().world_size > 1
        if not self.names or not (self.means.update_called or several):
            return {}  # several processes compute together, whether each has seen what the metrics need or not
        means, figures = self.means.compute(), dict[str, float]()
        self.means.reset()
        for name in self.names:
            logged = {
                label: float(figure.statistic(means[label][None].cpu()))
                for label, figure in CAM_METRICS[name].figures.items()
            }
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
            image = tiled(read(picked.tolist()).to(next(network.parameters())), _GRID)
            with eval_mode(network):
                maps_KHW = network.forward_with_maps(image)[1][0]
            maps_KHW = Classes.carried_by(network, len(maps_KHW)).two_sided(maps_KHW, 0)
            maps = maps_KHW[numbers[picked].to(maps_KHW.device)].float()
            height, width = (-(-side // _GRID) * _GRID for side in maps.shape[-2:])  # cells of equal size
            self.grid.update(upsample(maps, (height, width)), torch.arange(len(picked), device=maps.device))
        figures = self.grid.compute()
        self.grid.reset()
        return {"grid_pointing": float(figures["grid_pointing"]), "grid_chance": float(figures["chance"])}
