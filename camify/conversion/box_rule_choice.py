"""A network's box rule, chosen on the images with boxes that there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ..batch import Batch
from ..box_features import box_features
from ..boxes import DEFAULT_RULE, OTSU, BoxRule
from ..errors import ConversionError, DataError
from ..eval_mode import eval_mode, plain_tensors
from ..maps import MAP_KINDS, upsample
from ..metrics.functional import box_ious, resize_boxes, thresholds
from ..model import CAMNet
from ..normalizers import NORMALIZERS
from ..task import Task

__all__ = ["MOST_IMAGES", "choose_box_rule"]

MOST_IMAGES = 512
"""Images with boxes that are looked at: beyond that the choice no longer moves."""
_FEWEST = 20  # images: on fewer, what is chosen is worse than the default
_ERRORS = 2.0  # standard errors
_COARSE = 10  # cells of a side: on finer maps neither a finer one nor the mirrored image was worth its forwards
_FOLDS = 5
_CHUNK = 32  # images per forward, where they come as one tensor
_LEVELS = 100
_SIDE = 112  # pixels of the longer side at which boxes are compared: four times as fast as at 224
_CUTS: list[Any] = [*thresholds(_LEVELS).double().mul(_LEVELS).round().div(_LEVELS).tolist(), OTSU]


@plain_tensors()
@torch.no_grad()
def choose_box_rule(
    model: CAMNet,
    images_or_loader: Tensor | Iterable[Any],
    boxes: Sequence[Tensor] | None = None,
    *,
    labels: Tensor | None = None,
    clamp_weights: bool = False,
) -> BoxRule:
    """The rule by which a network's maps give the best boxes: ``model.box_rule = camify.choose_box_rule(model, ...)``.

    Candidates are all kinds of maps that the network has, with all normalizers, cut at 100 thresholds or by Otsu; of
    maps with at most 10 cells a side also with the mirrored image, and of half the stride where the network allows
    that. What is maximized is the
    mean IoU of the largest region's box with the best true one: chosen so on some photographs, boxes were better on
    others than chosen by hits at IoU 0.5, or at 0.3, 0.5 and 0.7, by all three figures.

    The rule that needs no boxes (PaS 90, Otsu; of the object maps where there are some) stays unless another's boxes
    are better by two standard errors of the difference, image by image; so does, in this order, what costs less: one
    forward, the mirrored image, a finer map, both. On fewer than 20 images with boxes nothing is chosen, as Otsu was
    better then: over AlexNet, VGG16, SqueezeNet and MobileNetV2 on photographs chosen on 20, .580 of the boxes on other
    images were right so, .563 by the best candidate as it is, .583 by the default. Chosen on 150 the best candidate as
    it is was about as good (.604, not .589, at IoU 0.5; .562, not .568, over IoU 0.3, 0.5 and 0.7).

    There the finer map was worth 3 to 5 points with MobileNetV2 (7 x 7 cells) and nothing with the others (13 x 13 and
    more); the mirrored image 0 to 2, too little to be taken mostly; the object map 12 with VGG16, 0 to 4 elsewhere.

    ``accuracy`` of the rule is cross-validated: the share of the images on which the rule that the other four fifths
    choose reaches IoU 0.5; where nothing was chosen, on which the rule does. Images go through the network once,
    of coarse maps four times, at most 512 that have boxes; boxes are compared at 112 px.

    Args:
        model: the network; left as it is.
        images_or_loader: images (N, 3, H, W), or batches: dicts with ``image``, ``label`` and ``boxes``, or ``Batch``.
        boxes: N tensors (n, 4), xyxy pixels of the images, exclusive, n may be 0; None: those of the batches.
        labels: (N,) classes of an image tensor; batches have their own. Without any, the predicted classes' maps.
        clamp_weights: maps of the classifier's positive weights, see ``BoxRule``.

    Returns:
        The rule; of a network whose classes do not exclude each other, or without boxes, the one that needs none.

    Raises:
        ConversionError: the model is no CAMNet.
        DataError: images, labels and boxes differ in number.
    """
    if not isinstance(model, CAMNet):
        raise ConversionError(f"{type(model).__name__} is not a CAMNet. Convert the network first.")
    kind = "plain" if model.object_weight is None else "object"
    start = replace(DEFAULT_RULE, kind=kind, clamp_weights=clamp_weights, source="otsu")
    if model.task is Task.MULTILABEL:
        return start
    choice = _Choice(model, start)
    with eval_mode(model):
        for images, classes, truths in _boxed(images_or_loader, boxes, labels):
            choice.add(images, classes, truths)
    return choice.rule()


class _Choice:
    """The IoU of every candidate's box on every image."""

    def __init__(self, model: CAMNet, start: BoxRule) -> None:
        self.model, self.start = model, start
        plain = model.map_weight()
        others = [kind for kind in MAP_KINDS[1:] if kind != "object" or model.object_weight is not None]
        self.kinds = ["plain", *(kind for kind in others if not torch.allclose(model.map_weight(kind), plain))]
        self.forwards: list[BoxRule] = []
        self.ious: list[Tensor] = []

    def add(self, images: Tensor, classes: Tensor | None, truths: Sequence[Tensor]) -> None:
        """Images (n, C, H, W), their classes (n,), None: the predicted ones, and the boxes of each."""
        model, (height, width) = self.model, images.shape[-2:]
        scale = min(1, _SIDE / max(height, width))
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        truths = [resize_boxes(truth, (height, width), size) for truth in truths]
        images = images.to(model.classifier.weight)
        features = model.forward_features(images)
        if classes is None:
            classes = model.classes.predicted(model.classes.two_sided(model.forward_head(features)))
        else:
            classes = model.classes.of_targets(classes).to(images.device)
        self.forwards = self.forwards or self._forwards(images, features)
        ious, known = [], dict[int | None, Tensor]({None: features})
        for forward in self.forwards:
            own = box_features(model, images, forward, known)
            for kind in self.kinds:
                maps = forward.maps(own, model.map_weight(kind, two_sided=True), classes)
                ious.append(torch.stack(list(box_ious(upsample(maps.float(), size).cpu(), truths).values())))
        self.ious.append(torch.stack(ious))

    def _forwards(self, images: Tensor, features: Tensor) -> list[BoxRule]:
        """Rules that differ in their forwards, the cheapest first; a finer map only where the network has one."""
        own = [replace(self.start, flip=flip) for flip in (False, True)]
        if min(features.shape[-2:]) > _COARSE:
            return own[:1]
        stride, odd = divmod(round(images.shape[-1] / features.shape[-1]), 2)
        finer = [] if odd or not stride else [replace(rule, map_stride=stride) for rule in own]
        try:
            for rule in finer[:1]:
                box_features(self.model, images[:1], rule)
        except ConversionError:
            return own
        return own + finer

    def rule(self) -> BoxRule:
        """The chosen rule."""
        if not self.ious:
            return self.start
        ious = torch.cat(self.ious, dim=2)  # (forwards * kinds, normalizers, N, cuts)
        count = ious.shape[2]
        scores_FCN = ious.permute(0, 1, 3, 2).reshape(len(self.forwards), -1, count)
        rules = list(product(self.kinds, NORMALIZERS, _CUTS))
        normalizer = (self.start.normalizer, self.start.percentile)
        first = (0, rules.index((self.start.kind if self.start.kind in self.kinds else "plain", normalizer, OTSU)))  # type: ignore[arg-type]
        best, held_out, fold_N = first, [scores_FCN[first]], torch.arange(count) % _FOLDS
        if count >= _FEWEST:
            best = chosen(scores_FCN, first)
            rest = [chosen(scores_FCN[:, :, fold_N != fold], first) for fold in range(_FOLDS)]
            held_out = [scores_FCN[other][fold_N == fold] for fold, other in enumerate(rest)]
        kind, (name, percentile), threshold = rules[best[1]]
        return replace(
            self.forwards[best[0]],
            normalizer=name,
            percentile=percentile,
            threshold=threshold,
            kind=kind,
            source="boxes",
            count=count,
            accuracy=float((torch.cat(held_out) >= 0.5).double().mean()),
        )


def chosen(scores_FCN: Tensor, first: tuple[int, int]) -> tuple[int, int]:
    """Of F forwards, each dearer than the one before, and C candidates the one of best scores on N images.

    The first stays unless another is better by two standard errors, and what is cheaper as well.
    """
    best, images = first, scores_FCN.shape[2]
    for forward, scores_CN in enumerate(scores_FCN):
        candidate = (forward, int(scores_CN.mean(1).argmax()))
        gain = scores_FCN[candidate] - scores_FCN[best]
        if float(gain.mean()) > _ERRORS * float(gain.std()) / images**0.5:
            best = candidate
    return best


def _boxed(
    source: Tensor | Iterable[Any], boxes: Sequence[Tensor] | None, labels: Tensor | None
) -> Iterator[tuple[Tensor, Tensor | None, list[Tensor]]]:
    """Images with boxes, at most ``MOST_IMAGES``, their classes and boxes."""
    if isinstance(source, Tensor):
        for name, given in (("boxes", boxes), ("labels", labels)):
            if given is not None and len(given) != len(source):
                raise DataError(f"{len(given)} {name} for {len(source)} images.")
        cuts = [slice(start, start + _CHUNK) for start in range(0, len(source), _CHUNK)]
        source = [Batch(source[cut], None if labels is None else labels[cut]) for cut in cuts]
    seen = taken = 0
    for item in source:
        batch = Batch.of(item)
        truths = batch.boxes if boxes is None else list(boxes[seen : seen + len(batch)])
        seen += len(batch)
        if truths is not None and len(truths) != len(batch):
            raise DataError(f"{len(truths)} boxes for {len(batch)} images, after {seen - len(batch)} others.")
        places = [place for place, truth in enumerate(truths or ()) if len(truth)][: MOST_IMAGES - taken]
        if truths is not None and places:
            labels_N = None if batch.labels is None else batch.labels[places]
            yield batch.images[places], labels_N, [truths[place].cpu() for place in places]
            taken += len(places)
        if taken == MOST_IMAGES:
            return
    if boxes is not None and seen != len(boxes):
        raise DataError(f"{len(boxes)} boxes for {seen} images.")
