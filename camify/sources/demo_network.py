"""The legacy network of the embedded demo."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["TinyVGG"]


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
