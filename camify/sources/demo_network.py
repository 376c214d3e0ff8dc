"""The legacy network of the embedded demo."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from ..preprocessing import Preprocessing
from .source import Source
from .weight_files import network_of_file

__all__ = ["DEMO_WEIGHTS", "TinyVGG", "is_demo", "load_demo"]

DEMO_WEIGHTS = Path(__file__).with_name("demo_legacy.safetensors")
"""Trained on the generated shapes: a copy of the ``legacy.safetensors`` that configs/demo_legacy.yaml leaves."""
_NAME = "camify/tiny_vgg"
_SHAPES = Preprocessing(96, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))  # of the generated shapes


def is_demo(text: str) -> bool:
    """Whether a text names the demo's network."""
    return text.partition("@")[0] == _NAME


def load_demo(text: str, weights: bool) -> Source:
    """``camify/tiny_vgg`` with random weights, ``@demo`` (those that come with camify) or ``@FILE``.

    Raises:
        CheckpointError: the file is missing, damaged or does not fit.
    """
    which = text.partition("@")[2]
    file = str(DEMO_WEIGHTS) if which == "demo" else which
    if not file or not (weights or Path(file).is_file()):
        return Source(TinyVGG(), text, preprocessing=_SHAPES)
    return network_of_file(text, TinyVGG, file, preprocessing=_SHAPES)


class TinyVGG(nn.Module):
    """A small VGG with a fully connected head: what people run, at a size that a laptop trains.

    Simonyan & Zisserman 2014, with batch norm: blocks of 3x3 convolutions and max-pools, then flatten and two
    hidden layers. Takes 96 x 96 px.
    """

    def __init__(self, num_classes: int = 6, widths: tuple[int, ...] = (16, 32, 64, 64)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for block, width in enumerate(widths):
            for _ in range(1 if block < 2 else 2):
                conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
                layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(channels * 6 * 6, 256), nn.ReLU(), nn.Dropout(0.5),
            nn.Linear(256, 128), nn.ReLU(), nn.Dropout(0.5),
            nn.Linear(128, num_classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, 3, 96, 96)."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits
