"""The demo's pictures and networks: generated scenes, the embedded legacy network and its conversion."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..conversion import convert, fit_head
from ..data.shape_renderer import CLASS_NAMES, SHAPES, render_group, render_scene
from ..sources import Source, resolve
from .images import EvaluationImage
from .network import ExplainedNetwork, explained_network

__all__ = ["DEMO_METHODS", "DEMO_WEIGHTS", "demo_images", "demo_networks"]

DEMO_METHODS = ("cam", "gradcam", "gradcam++", "layercam", "reciprocam")
DEMO_WEIGHTS = "demo"  # those that come with camify
_TRAINING_SCENES = 480
_RIDGE = 1.0  # hardly fits worse than the best (R^2 held out 0.97, 0.98), and its maps find twice as many objects
_SMALL = 0.6
# Class, number of objects, factor on their size, seed; of small ones most are not recognized, so the seeds are chosen.
_SCENES = (
    *((label, 1, 1.0, label + 1) for label in range(len(CLASS_NAMES))),
    *((0, 2, 0.8, 7), (1, 3, 0.7, 8), (3, 2, 0.8, 9), (4, 3, 0.7, 10), (5, 2, 0.8, 11)),
    *((0, 1, _SMALL, 139), (2, 1, _SMALL, 107), (4, 1, _SMALL, 145), (5, 1, _SMALL, 143)),
)


def demo_images() -> list[EvaluationImage]:
    """15 scenes, all of a class that the legacy network sees in them: six of one object, five of more, four small."""
    return [_scene(number, *row) for number, row in enumerate(_SCENES, start=1)]


def _scene(number: int, label: int, count: int, shrink: float, seed: int) -> EvaluationImage:
    group = render_group(label, count, (7, 3, seed), SHAPES.height, shrink=shrink)
    kind = f" x {count}" if count > 1 else ", small" if shrink == _SMALL else ""
    boxes = torch.tensor(group.boxes, dtype=torch.float32) / SHAPES.height
    pixels = torch.from_numpy(group.image).permute(2, 0, 1).contiguous()
    name = CLASS_NAMES[label]
    return EvaluationImage(f"{number:02d} {name}{kind}", pixels, boxes, (name,) * count, label)


def demo_networks(
    methods: Sequence[str], weights: str = DEMO_WEIGHTS, augmentations: str | Sequence[str] | None = None
) -> list[ExplainedNetwork]:
    """The legacy network and its conversion, whose classifier is fitted to it on other generated scenes.

    Raises:
        CheckpointError: the weights of the legacy network are not there.
    """
    legacy = resolve(f"camify/tiny_vgg@{weights}")
    net = convert(legacy, head="gap", head_channels=128, input_size=SHAPES.height, seed=0)
    fit_head(net, _training_images(), teacher=legacy.model, ridge=_RIDGE)
    converted = Source(net, f"{legacy.name}, head=gap, classifier fitted", legacy.class_names, (), legacy.preprocessing)
    sources = {"legacy": legacy, "converted": converted}
    return [explained_network(source, name, methods, augmentations=augmentations) for name, source in sources.items()]


def _training_images() -> Tensor:
    transform = SHAPES.evaluation()
    scenes = [
        render_scene(index % len(CLASS_NAMES), (7, 0, index), SHAPES.height).image for index in range(_TRAINING_SCENES)
    ]
    return torch.stack([transform(torch.from_numpy(scene).permute(2, 0, 1)) for scene in scenes])
