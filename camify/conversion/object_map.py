"""The object map in closed form: one pass over images, with few boxes or none, and no prediction changes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..batch import Batch
from ..errors import ConfigError, ConversionError, DataError
from ..eval_mode import eval_mode, plain_tensors
from ..maps import class_maps, select, upsample
from ..metrics.functional import box_hits_by_threshold, box_masks
from ..model import CAMNet
from ..normalizers import normalize_maps
from ..preprocessing import warn_of_other_scale
from ..ranks import ONE, Ranks
from .cell_sums import CellSums, KeptImage

__all__ = ["ObjectMapReport", "fit_object_map"]

STRENGTH = 2.0
"""Of the shared map where nothing says better: it then varies twice as much over an image as the class's map."""
_STRENGTHS = (0.0, 1.0, STRENGTH, 4.0, 8.0)
_PENALTIES = tuple(10 ** (power / 2) for power in range(-4, 9))  # lambda, in units of the mean eigenvalue
_FREE = 1e3  # the mean feature's direction is scaled by this, so that it is as good as not penalized
_LEAST = 3  # with fewer of them nothing is left out: their penalty is the one below
_FEW = 10.0
_TO_CHOOSE = 10  # with fewer of them the strength is not chosen: chance would
_IOUS = (0.3, 0.5, 0.7)
_THRESHOLDS = 50
_CHUNK = 32


@dataclass(frozen=True)
class ObjectMapReport:
    """What ``fit_object_map`` did.

    Attributes:
        source: ``"mean feature"``, ``"boxes"`` or ``"masks"``.
        images: of the pass.
        with_objects: of them, those with a box or a mask.
        strength: how much the shared map varies over an image, in units of the predicted class's contrast map; 0 where
            the shared map did not help.
        penalty: lambda of the regression on boxes, in units of the mean eigenvalue; None without them.
        plain_accuracy: box accuracy of the contrast maps of the images with boxes (mean over IoU 0.3, 0.5 and 0.7 of
            the share whose best box at the best threshold reaches it); NaN without boxes, and of fewer than 3.
        object_accuracy: the same of the object maps, each image's from a fit to all images but it.
        seconds: that it took.
    """

    source: str
    images: int
    with_objects: int
    strength: float
    penalty: float | None
    plain_accuracy: float
    object_accuracy: float
    seconds: float

    def __str__(self) -> str:
        """The report in one or two lines."""
        objects = "" if self.source == "mean feature" else f" ({self.with_objects:,} with {self.source})"
        penalty = "" if self.penalty is None else f", penalty {self.penalty:.3g}"
        strength = f"strength {self.strength:g}{penalty}" if self.strength else "off: a shared map does not help here"
        first = f"object map by {self.source}: {self.images:,} images{objects}, {strength}, {self.seconds:.1f} s"
        if math.isnan(self.plain_accuracy):
            return first
        return f"{first}\nbox accuracy, held out: contrast {self.plain_accuracy:.3f}, object {self.object_accuracy:.3f}"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {key: None if value != value else value for key, value in asdict(self).items() if key != "seconds"}


@plain_tensors()
@torch.no_grad()
def fit_object_map(
    model: CAMNet,
    images_or_loader: Tensor | Iterable[Any],
    boxes: Sequence[Tensor] | Tensor | bool | None = None,
    *,
    strength: float | None = None,
    penalty: float | None = None,
    ranks: Ranks = ONE,
) -> ObjectMapReport:
    """Fit the vector that all classes share so that the maps say where the object is; no prediction changes.

    A softmax does not see a vector u that is added to the weights of all classes: every logit moves by ``u . f``, the
    same for all. So a CAM is determined only up to a map that all classes share (Oh & Noh 2025, arXiv 2511.05590, call
    it additive logit shift). Here u is chosen: ``model.object_weight`` is set, and with it
    ``model.forward_with_maps(x, kind="object")`` gives the contrast maps plus the shared map ``u . f(x, y)``. Where
    classes do not exclude each other (sigmoid) the object maps are only for boxes: they explain no logit.

    Without boxes, u is along the mean feature of the images: what is active on them, whatever the class. With boxes or
    masks, u is the ridge regression of the cells' features on the share of each cell that lies on the object, in which
    the direction of the mean feature is not penalized: with few boxes it is what the answer shrinks to. The penalty is
    the one of least leave-one-image-out error, in closed form: the residuals of image i are
    ``(I - H_ii)^-1 r_i`` with H_ii the image's block of the hat matrix (Cook & Weisberg 1982, section 3.3; Allen 1974
    for single rows). u is then scaled to ``strength`` and the strength chosen by the box accuracy of those held-out
    maps, of 0 (off), 1, 2, 4 and 8: another than 2 is taken where it is better by more than one standard error, of 10
    images or more.

    One pass; only sums (C^2 numbers, float64) and the features of at most 128 images with boxes, drawn, are kept.

    Args:
        model: the network, in place; its logits stay as they are. A box rule that cut another object map is dropped.
        images_or_loader: images (N, 3, H, W), or batches: dicts with ``image`` (and ``boxes`` or ``mask``), pairs or
            images; those of kept features (``Batch.size``) hold the last spatial map.
        boxes: None: no boxes. N tensors (n, 4), one per image in the order of the images, xyxy pixels, exclusive, n may
            be 0; or masks (N, H, W), bool. True: the batches' own masks, or boxes where they have no masks.
        strength: of the shared map; None chooses it.
        penalty: of the regression, in units of the mean eigenvalue; None chooses it.
        ranks: of several processes, which all call this, each with its part of the images: every so many-th of them,
            from its own number on. Their sums are added, what is kept of images goes to the first one, and all get the
            same vector, that of one process up to rounding.

    Raises:
        ConfigError: ``boxes``, ``strength`` or ``penalty`` have values that cannot be.
        ConversionError: the model is not a CAMNet.
        DataError: there are no images, no box although boxes were given, another number of them than of images, or
            features that are not finite.

    Example:
        >>> from torch import nn
        >>> features = nn.Conv2d(1, 2, 1, bias=False)  # a channel of the image, a channel of its negative
        >>> _ = features.weight.data.copy_(torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1))
        >>> network = CAMNet(features, nn.Linear(2, 2))
        >>> image = torch.tensor([[[[0.0, 1.0], [2.0, 5.0]]]])
        >>> fit_object_map(network, image).source
        'mean feature'
        >>> logits, maps = network.forward_with_maps(image, kind="object")
        >>> probabilities = (maps.mean((2, 3)) + network.classifier.bias).softmax(1)
        >>> bool(torch.allclose(probabilities, logits.softmax(1), atol=1e-6))
        True
    """
    start = time.perf_counter()
    boxes = None if boxes is False else boxes
    _check(model, images_or_loader, boxes, strength, penalty)
    sums = CellSums(model.classifier.in_features, ranks)
    kinds, weight_KC = set[str](), model.map_weight("contrast", two_sided=True)
    with eval_mode(model):
        for batch in _batches(images_or_loader, boxes):
            masks_NHW = None
            if boxes is not None:
                masks_NHW = batch.masks if batch.masks is not None else _masks_of(batch)
                kinds |= {"masks"} if batch.masks is not None else {"boxes"} if masks_NHW is not None else set()
            if batch.size is None:
                warn_of_other_scale(model, batch.images, model.preprocessing, stacklevel=4)
            images = batch.images.to(model.classifier.weight)
            features = images if batch.size is not None else model.forward_features(images)
            classes = model.classes.predicted(model.classes.two_sided(model.forward_head(features)))
            maps = select(class_maps(features, weight_KC), classes)
            sums.add(features.float().cpu(), maps.float().cpu(), masks_NHW, batch)
    sums.join()
    kinds = ranks.everywhere(set[str]().union(*ranks.gather(kinds)))
    source = next((kind for kind in ("masks", "boxes") if kind in kinds), "mean feature")
    vector, report, refusal = ranks.first(lambda: _solved(sums, source, strength, penalty, boxes is not None))
    if vector is None or report is None:
        raise DataError(refusal)
    like = model.classifier.weight
    object_weight = vector.to(like)
    if not bool(object_weight.isfinite().all()):
        raise DataError(f"The object map does not fit into {like.dtype}. Use float32.")
    model.object_weight = object_weight
    report = replace(report, seconds=time.perf_counter() - start)
    model.object_map = report.to_dict()
    if model.box_rule is not None and model.box_rule.kind == "object":
        model.box_rule = None
    return report


def _solved(
    sums: CellSums, source: str, strength: float | None, penalty: float | None, with_boxes: bool
) -> tuple[Tensor | None, ObjectMapReport | None, str]:
    """The shared vector (C,), float64, and the report; or why there is none, which all processes are to say."""
    try:
        return *_vector(sums, source, strength, penalty, with_boxes), ""
    except DataError as error:
        return None, None, str(error)


def _vector(
    sums: CellSums, source: str, strength: float | None, penalty: float | None, with_boxes: bool
) -> tuple[Tensor, ObjectMapReport]:
    if sums.images == 0:
        raise DataError("There are no images: nothing to fit an object map to.")
    if with_boxes and sums.with_objects == 0:
        raise DataError("boxes: no image has a box or a mask. Give some, or leave boxes out.")
    direction = sums.mean_feature()
    chosen_penalty, held_out = None, None
    if sums.with_objects:
        direction, chosen_penalty, held_out = _regression(sums, direction, penalty)
    deviation = sums.deviation(direction)
    unit = sums.class_deviation() / deviation if deviation > 0 else 0.0
    contrast = object_ = math.nan
    if held_out is None:
        chosen = STRENGTH if strength is None else float(strength)
    else:
        chosen, contrast, object_ = _strength(sums, held_out, strength)
    return chosen * unit * direction, ObjectMapReport(
        source, sums.images, sums.with_objects, chosen, chosen_penalty, contrast, object_, math.nan
    )


def _regression(sums: CellSums, mean_C: Tensor, penalty: float | None) -> tuple[Tensor, float, list[Tensor] | None]:
    """The vector (C,), its penalty, and for every kept image its shared map (P,) by a fit to the others."""
    scaled = torch.eye(len(mean_C), dtype=torch.float64) + (_FREE - 1) * torch.outer(mean_C, mean_C)
    center, mean_covered = sums.total / sums.cells, sums.covered / sums.cells
    gram = sums.gram - sums.cells * torch.outer(center, center)
    product = sums.product - sums.covered * center
    unit = float(gram.diagonal().mean())
    values, vectors = torch.linalg.eigh(scaled @ gram @ scaled)
    basis = scaled @ vectors  # from coordinates to vectors (C,)
    values, loads = values.clamp_min(0), basis.T @ product
    if not unit > 0 or mean_covered > 1 - 1e-9:
        raise DataError("boxes: they cover all of every image, or the features do not vary: nothing to fit.")
    if sums.with_objects < _LEAST:
        fitted = float(_FEW if penalty is None else penalty)
        return basis @ (loads / (values + fitted * unit)), fitted, None
    penalties = _PENALTIES if penalty is None else (float(penalty),)
    rows = [((kept.cells.double() - center) @ basis, kept.covered.double() - mean_covered) for kept in sums.kept]
    fits = [(candidate, _held_out(rows, values + candidate * unit, loads, 1 / sums.cells)) for candidate in penalties]
    chosen, (_, maps) = min(fits, key=lambda fit: fit[1][0])
    return basis @ (loads / (values + chosen * unit)), chosen, maps


def _held_out(
    rows: list[tuple[Tensor, Tensor]], penalized_C: Tensor, loads_C: Tensor, leverage: float
) -> tuple[float, list[Tensor]]:
    """Sum of the images' mean squared errors, and the shared map (P,) of each, by a fit to all images but it.

    Args:
        rows: of each image its centered cells in the eigenbasis (P, C), and their centered targets (P,).
        penalized_C: eigenvalues, with the penalty.
        loads_C: products of the eigenbasis with the targets.
        leverage: of the intercept.
    """
    shrunk, error, maps = 1 / penalized_C.clamp_min(torch.finfo(torch.float64).tiny), 0.0, []
    for cells, covered in rows:
        hat = (cells * shrunk) @ cells.T + leverage
        residual = torch.linalg.solve(
            torch.eye(len(hat), dtype=torch.float64) - hat, covered - cells @ (shrunk * loads_C)
        )
        error += float(residual.square().mean())
        maps.append(covered - residual)
    return error, maps


def _strength(sums: CellSums, held_out: list[Tensor], given: float | None) -> tuple[float, float, float]:
    """The strength, and box accuracies of the contrast maps and of the object maps of that strength, held out."""
    deviation = math.sqrt(sum(float(shared.var(correction=0)) for shared in held_out) / len(held_out))
    unit = sums.class_deviation() / deviation if deviation > 0 else 0.0
    candidates = dict.fromkeys((0.0, STRENGTH, *(_STRENGTHS if given is None else (float(given),))))
    strengths_V11 = torch.tensor(list(candidates), dtype=torch.float64)[:, None, None]
    each = [
        _hits(kept, kept.map + (strengths_V11 * unit * shared.reshape(kept.map.shape)).float())
        for kept, shared in zip(sums.kept, held_out, strict=True)
    ]
    hits = dict(zip(candidates, torch.stack(each, dim=1), strict=True))
    scores = {value: _at_best_threshold(hits_NJT) for value, hits_NJT in hits.items()}
    chosen = STRENGTH if given is None else float(given)
    if given is None and len(held_out) >= _TO_CHOOSE:
        for value in sorted(_STRENGTHS, key=lambda value: -float(scores[value].mean())):
            gain = scores[value] - scores[STRENGTH]
            if float(gain.mean()) > float(gain.std()) / math.sqrt(len(gain)):
                chosen = value
                break
    return chosen, float(scores[0.0].mean()), float(scores[chosen].mean())


def _hits(kept: KeptImage, maps_VHW: Tensor) -> Tensor:
    """Whether the best box of each of an image's maps hits at every IoU and threshold, (V, 3, T)."""
    heats = normalize_maps(upsample(maps_VHW, kept.size))
    truth = kept.boxes
    if truth is None:  # of a mask: the box around it, in cells
        rows, columns = (kept.covered.reshape(maps_VHW.shape[1:]) > 0.5).nonzero(as_tuple=True)
        if not len(rows):
            rows, columns = (kept.covered.reshape(maps_VHW.shape[1:]) > 0).nonzero(as_tuple=True)
        scale = torch.tensor([kept.size[1] / maps_VHW.shape[2], kept.size[0] / maps_VHW.shape[1]]).repeat(2)
        corners = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        truth = (corners * scale)[None]
    cells = (maps_VHW.shape[1], maps_VHW.shape[2])
    return box_hits_by_threshold(heats, [truth] * len(heats), _IOUS, _THRESHOLDS, cells=cells).float()


def _at_best_threshold(hits_NJT: Tensor) -> Tensor:
    """Per image (N,) the mean over the IoUs of its hits at the threshold that is best for all images."""
    best = hits_NJT.mean(0).argmax(1)
    return torch.stack([hits_NJT[:, index, place] for index, place in enumerate(best.tolist())], 1).mean(1)


def _masks_of(batch: Batch) -> Tensor | None:
    return None if batch.boxes is None else box_masks([boxes.cpu() for boxes in batch.boxes], *batch.image_size)


def _batches(source: Tensor | Iterable[Any], boxes: Any) -> Iterator[Batch]:
    """Batches with their boxes or masks: the given ones in order, or their own."""
    if isinstance(source, Tensor):
        source = [source[start : start + _CHUNK] for start in range(0, len(source), _CHUNK)]
    given = isinstance(boxes, Sequence | Tensor)
    count = 0
    for item in source:
        batch = Batch.of(item)
        cut = slice(count, count + len(batch))
        count += len(batch)
        if given and count > len(boxes):
            raise DataError(f"boxes: {len(boxes)} for {count} images or more. Give one tensor (n, 4) per image.")
        if isinstance(boxes, Tensor):
            batch.masks = boxes[cut] > 0
        elif given:
            batch.boxes = [torch.as_tensor(one).reshape(-1, 4).float() for one in boxes[cut]]
        if len(batch):
            yield batch
    if given and count < len(boxes):
        raise DataError(f"boxes: {len(boxes)} for {count} images. Give one tensor (n, 4) per image.")


def _check(model: Any, source: Any, boxes: Any, strength: float | None, penalty: float | None) -> None:
    if not isinstance(model, CAMNet):
        raise ConversionError(f"{type(model).__name__} is not a CAMNet. Convert the network first.")
    for name, value, positive in (("strength", strength, False), ("penalty", penalty, True)):
        right = value is None or (isinstance(value, int | float) and math.isfinite(value) and value >= 0)
        if not right or (positive and value == 0):
            raise ConfigError(
                f"{name}={value!r}: must be None, or a number{' above' if positive else ' of at least'} 0."
            )
    if boxes is not None:
        _check_boxes(source, boxes)


def _check_boxes(source: Any, boxes: Any) -> None:
    if boxes is True:
        if isinstance(source, Tensor):
            raise ConfigError("boxes=True is for a loader, which has its own. Give boxes of the images.")
        return
    if isinstance(boxes, str) or not isinstance(boxes, Sequence | Tensor):
        raise ConfigError("boxes: expected a list with one tensor (n, 4) per image, masks (N, H, W), or True.")
    if isinstance(source, Tensor):
        count = len(source)
        if len(boxes) != count:
            raise ConfigError(f"boxes: expected {count} tensors (n, 4), one per image, or masks ({count}, H, W).")
        if isinstance(boxes, Tensor) and boxes.shape != (count, *source.shape[2:]):
            raise ConfigError(
                f"boxes: masks are {tuple(boxes.shape)}; of these images they are {(count, *source.shape[2:])}. Boxes"
                " are a list with one tensor (n, 4) per image."
            )
    for index, image_boxes in enumerate(() if isinstance(boxes, Tensor) else boxes):
        values = torch.as_tensor(image_boxes, dtype=torch.float32)
        if values.numel() and (values.dim() != 2 or values.shape[1] != 4 or not bool(values.isfinite().all())):
            raise ConfigError(f"boxes: those of image {index} are {tuple(values.shape)}; expected finite (n, 4), xyxy.")
        if values.numel() and bool((values[:, 2:] <= values[:, :2]).any()):
            raise ConfigError(f"boxes: image {index} has one without area. Boxes are x0, y0, x1, y1, exclusive.")
