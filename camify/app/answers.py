"""What a network says of one picture, and the map of any class by any method: computed once, drawn as often as asked.

Nothing here knows a page. The network runs once for a picture; another class, map, threshold or color is drawn from
what that run gave (methods that run the network by their own definition, such as Score-CAM, do so for each class).
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from ..box_features import box_features
from ..boxes import DEFAULT_RULE, OTSU, BoxRule, otsu_thresholds
from ..data.image_checks import constant_notes, gray_range_notes
from ..drawing.primitives import MAP_BOX, heated_picture, outline_boxes, outline_region, scaled_size
from ..errors import ConfigError, DataError
from ..evaluation.network import ExplainedNetwork, box_maps, box_rules
from ..image_files import EncodedImage, read_with_range
from ..maps import upsample
from ..methods import CAM, Method
from ..methods.forward_pass import left_as_it_was
from ..metrics.functional.agreement import box_agreement, rank_correlations
from ..model import CAMNet
from ..normalizers import normalize_maps

__all__ = ["Agreement", "Answer", "Answers", "Identity", "MapChoice", "MapView", "agreement", "map_choices", "rule_of"]

SIDE = 768
"""Long side of a drawn picture, pixels."""
_KEPT = 3  # pictures whose answers a network keeps
_TOP = 5
_CLOSE = 0.005  # half a step of the slider: a threshold within it is the rule's own
_KINDS = {"contrast": "why this class and no other", "object": "where the object is"}


class MapChoice(NamedTuple):
    """A map that a network offers: a method, and of class activation maps the kind (``camify.maps.map_weight``)."""

    method: str
    kind: str = "plain"

    @property
    def label(self) -> str:
        """As a list names it.

        Example:
            >>> MapChoice("cam", "contrast").label
            'cam, contrast: why this class and no other'
        """
        return self.method if self.kind == "plain" else f"{self.method}, {self.kind}: {_KINDS[self.kind]}"


@dataclass(frozen=True)
class Identity:
    """The mean of a class activation map and the logit that it gives, by global average pooling.

    Attributes:
        mean: of the map.
        bias: of the class.
        logit: that the network gave.
    """

    mean: float
    bias: float
    logit: float

    @property
    def rest(self) -> float:
        """What the logit has beside mean and bias: nothing of a plain map, of another what all classes share."""
        return self.logit - self.mean - self.bias


@dataclass(frozen=True)
class MapView:
    """The map of one class over a picture, with the boxes that its threshold makes.

    Attributes:
        picture: the map over the picture, at the picture's own aspect, with region and boxes.
        choice: which map it is.
        target: number of the class.
        raw_hw: the map, raw and signed.
        threshold: of the normalized map, in [0, 1]; with Otsu's rule that of this map.
        rule: that cut the boxes.
        as_the_rule_says: whether the threshold is the rule's own, and not one that was asked for.
        boxes: (n, 4), xyxy pixels of the picture's file, exclusive.
        region_share: of the picture, that reaches the threshold.
        note: where there is nothing to draw, why.
        identity: of class activation maps behind global average pooling.
        milliseconds: that the map took.
    """

    picture: Image.Image
    choice: MapChoice
    target: int
    raw_hw: Tensor
    threshold: float
    rule: BoxRule
    as_the_rule_says: bool
    boxes: NDArray[Any]
    region_share: float
    note: str
    identity: Identity | None
    milliseconds: float


# ---------------------------------------------------------------- which maps


def map_choices(network: ExplainedNetwork) -> list[MapChoice]:
    """The maps that a network offers: of ``cam`` contrast and object maps too, where they say something of their own.

    The first is what its box rule cuts. Classes that do not exclude each other have plain maps only.
    """
    model = network.model
    choices = list[MapChoice]()
    for name, method in network.served.items():
        choices.append(MapChoice(name))
        if isinstance(method, CAM) and network.classes.task.exclusive and network.class_count > 1:
            has_object = isinstance(model, CAMNet) and model.object_weight is not None
            choices += [MapChoice(name, kind) for kind in ("contrast", *(["object"] if has_object else []))]
    own = model.box_rule.kind if isinstance(model, CAMNet) and model.box_rule is not None else "plain"
    return sorted(choices, key=lambda choice: choice != MapChoice("cam", own))  # stable: the others stay in order


def rule_of(network: ExplainedNetwork, choice: MapChoice) -> BoxRule:
    """The rule that cuts the boxes of a map: the network's own of the maps that it was chosen for, else the default."""
    rule = box_rules({choice.method: network.methods[choice.method]})[choice.method]
    return rule if rule.kind == choice.kind else replace(DEFAULT_RULE, kind=choice.kind)


# ---------------------------------------------------------------- answers


class Answers:
    """What one network says of pictures; of the last few it is kept, so that each is read and run once.

    Threads take turns: a network is run by one at a time.

    Args:
        network: with the methods that it offers.
    """

    def __init__(self, network: ExplainedNetwork) -> None:
        self.network = network
        self.choices = {choice.label: choice for choice in map_choices(network)}
        self._kept = OrderedDict[str, Answer]()
        self._turn = Lock()

    def of(self, path: str | Path) -> Answer:
        """The answer to an image file.

        Raises:
            DataError: it is gone or no image, or the network gives NaN or infinite values for it.
        """
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise DataError(f"{Path(path).name}: is no longer there. Give the picture again.") from error
        key = hashlib.sha256(content).hexdigest()
        with self._turn:
            if key not in self._kept:
                self._kept[key] = Answer(self.network, EncodedImage(content, Path(path).name), self._turn)
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]


class Answer:
    """What a network says of one picture; the maps of its classes follow without running it again.

    Attributes:
        network: that was asked.
        size: (height, width) of the upright picture, pixels.
        picture: scaled, for drawing.
        notes: what has to be said of the picture's values.
        milliseconds: that the network took.
    """

    def __init__(self, network: ExplainedNetwork, file: EncodedImage, turn: Lock | None = None) -> None:
        self.network, self._turn = network, turn or Lock()
        preprocessing = network.preprocessing
        pixels, gray_range = read_with_range(file, preprocessing.bits)
        self.size = (pixels.shape[-2], pixels.shape[-1])
        self.picture = TF.to_pil_image(pixels).resize(scaled_size(*self.size, SIDE), Image.Resampling.BICUBIC)
        constant = [file] if bool((pixels == pixels[:, :1, :1]).all()) else []
        self.notes = gray_range_notes([] if gray_range is None else [(file, gray_range)])
        self.notes += constant_notes(constant, len(constant), 1)
        prepared: Tensor = preprocessing.evaluation()(pixels)
        start = time.perf_counter()
        with network.observe(prepared.as_subclass(Tensor)[None]) as forward:
            self._forward = forward
        self.milliseconds = 1000 * (time.perf_counter() - start)
        self._raw: dict[tuple[MapChoice, int], tuple[Tensor, Tensor, float]] = {}
        self._features: dict[tuple[int | None, bool], Tensor] = {}

    # ------------------------------------------------------------ classes

    @property
    def logits(self) -> Tensor:
        """Logits (K,) of the classes, on the CPU; of a network of one logit both sides."""
        return self._forward.logits[0].cpu()

    @property
    def probabilities(self) -> Tensor:
        """Probabilities (K,) of the classes, as the network's task says."""
        return self._forward.probabilities[0].cpu()

    @cached_property
    def predicted(self) -> int:
        """The class of the largest logit; of one logit the one that it speaks for."""
        return int(self._forward.classes.predicted(self._forward.logits)[0])

    def top(self, count: int = _TOP) -> list[int]:
        """The classes of the largest logits, the predicted one first."""
        ranked: list[int] = self._forward.classes.ranked(self._forward.logits, count)[0].tolist()
        return ranked

    # ------------------------------------------------------------ maps

    def view(
        self,
        choice: MapChoice,
        target: int | None = None,
        threshold: float | str | None = None,
        colormap: str = "inferno",
    ) -> MapView:
        """The map of a class with its boxes.

        Args:
            choice: one of ``map_choices``.
            target: number of the class; None: the predicted one.
            threshold: of the boxes, in [0, 1], or ``"otsu"``; None, or the rule's own: as the network's rule says.
            colormap: of matplotlib.

        Raises:
            ConfigError: there is no such class.
            ConversionError: the network has no map of the method.
            DataError: the map is not finite.
        """
        with self._turn:
            return self._view(choice, self.predicted if target is None else target, threshold, colormap)

    def _view(self, choice: MapChoice, target: int, threshold: float | str | None, colormap: str) -> MapView:
        if not 0 <= target < self.network.class_count:
            raise ConfigError(f"class {target}: the network has classes 0..{self.network.class_count - 1}.")
        raw_hw, cut_hw, milliseconds = self._maps(choice, target)
        own = rule_of(self.network, choice)
        rule, is_own = _with_threshold(own, threshold)
        size = (self._forward.images.shape[-2], self._forward.images.shape[-1])
        heat_1HW = normalize_maps(upsample(cut_hw[None].float(), size), rule.normalizer, rule.percentile)
        used = float(otsu_thresholds(heat_1HW)) if isinstance(rule.threshold, str) else rule.threshold
        region_HW = rule.cut(heat_1HW)[0].numpy()
        boxes = rule.mask_boxes(region_HW)
        picture, note = heated_picture(self.picture, raw_hw, float(raw_hw.max()), colormap)
        if region_HW.any():
            picture = outline_region(picture, region_HW)
            shape = torch.empty(3, *size)
            draw = ImageDraw.Draw(picture)
            outline_boxes(draw, torch.from_numpy(boxes), shape, picture.size, (0, 0), width=3, color=MAP_BOX)
        factors = np.array([self.size[1] / size[1], self.size[0] / size[0]] * 2)
        return MapView(
            picture, choice, target, raw_hw, used, rule, is_own, boxes * factors, float(region_HW.mean()), note,
            self._identity(choice, target, raw_hw), milliseconds,
        )  # fmt: skip

    def _method(self, choice: MapChoice) -> Method:
        method = self.network.methods[choice.method]
        return CAM(method.model, kind=choice.kind) if isinstance(method, CAM) else method

    def _maps(self, choice: MapChoice, target: int) -> tuple[Tensor, Tensor, float]:
        """The raw map (h, w) of a class, the one that the rule cuts, both on the CPU, and the milliseconds taken."""
        key = (choice, target)
        if key not in self._raw:
            start, forward, method = time.perf_counter(), self._forward, self._method(choice)
            targets = torch.tensor([target], device=forward.logits.device)
            with left_as_it_was(self.network.model):
                raw = method.raw_maps(forward, targets)
                rule = rule_of(self.network, choice)
                cut = box_maps(method, rule, forward, raw, targets, self._features_of(rule))
            taken = 1000 * (time.perf_counter() - start)
            self._raw[key] = (raw[0].float().cpu(), cut[0].float().cpu(), taken)
        return self._raw[key]

    def _features_of(self, rule: BoxRule) -> Tensor | None:
        """The features of a rule that runs the network again, kept; None where it does not."""
        model, key = self.network.model, (rule.map_stride, rule.flip)
        if key == (None, False) or not isinstance(model, CAMNet):
            return None
        if key not in self._features:
            known: dict[int | None, Tensor] = {None: self._forward.activations}
            self._features[key] = box_features(model, self._forward.images, rule, known)
        return self._features[key]

    def _identity(self, choice: MapChoice, target: int, raw_hw: Tensor) -> Identity | None:
        bias = self._forward.bias
        if bias is None or not isinstance(self.network.methods[choice.method], CAM):
            return None
        return Identity(float(raw_hw.double().mean()), float(bias[target]), float(self.logits[target]))


def _with_threshold(own: BoxRule, threshold: float | str | None) -> tuple[BoxRule, bool]:
    """A rule with a threshold, and whether that is its own."""
    if threshold is None or threshold == own.threshold:
        return own, True
    if isinstance(threshold, str):
        return replace(own, threshold=OTSU, accuracy=None), False
    if not isinstance(own.threshold, str) and abs(threshold - own.threshold) < _CLOSE:
        return own, True
    return replace(own, threshold=threshold, accuracy=None), False


# ---------------------------------------------------------------- two networks


@dataclass(frozen=True)
class Agreement:
    """How alike two networks see a picture.

    Attributes:
        same_class: whether they predict the same class.
        correlation: Spearman's, of the two maps at the first network's input size; NaN where one is constant.
        box_iou: intersection over union of their first boxes; NaN where one has none.
    """

    same_class: bool
    correlation: float
    box_iou: float


def agreement(answers: Sequence[Answer], views: Sequence[MapView]) -> Agreement:
    """How alike two answers to one picture, and the maps that are shown of them, are."""
    size = (answers[0].network.preprocessing.height, answers[0].network.preprocessing.width)
    maps_2HW = torch.stack([upsample(view.raw_hw, size) for view in views])
    boxes_24 = torch.tensor([list(view.boxes[0]) if len(view.boxes) else [torch.nan] * 4 for view in views])
    same = answers[0].predicted == answers[1].predicted
    return Agreement(same, float(rank_correlations(maps_2HW)[0, 1]), float(box_agreement(boxes_24)[0, 1]))
