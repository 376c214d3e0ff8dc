"""An exported file as a network whose maps are the file's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ConversionError
from ..exporting.exporting import FORMATS, open_exported
from ..exporting.onnx_file import OnnxFile
from ..exporting.pt2_file import Pt2File
from ..model import CAMNet
from ..preprocessing import Preprocessing
from .resolve import Source, resolve

__all__ = ["network_of", "resolve_any"]


def resolve_any(source: str, methods: Sequence[str]) -> Source:
    """The network that a source string names (see ``camify.surgery.resolve``), or an exported file as one.

    Raises:
        ConfigError: of an exported file another method than ``"cam"`` is wanted.
        CamifyError: as ``resolve`` and ``network_of``.
    """
    if Path(source).suffix not in FORMATS or "@" in source:
        return resolve(source)
    if list(methods) != ["cam"]:
        raise ConfigError(f"{source}: an exported file holds class maps and no layers: cam is what it can show.")
    return network_of(source)


class _Maps(nn.Module):
    """Images as ``Preprocessing`` gives them -> the file's maps (N, K, h, w)."""

    def __init__(self, file: OnnxFile | Pt2File) -> None:
        super().__init__()
        self.file, self.pictures = file, file.record["input"]["kind"].startswith("uint8")

    def forward(self, x: Tensor) -> Tensor:
        return self.file(self._as_taken(x.detach().cpu()))["maps"].to(x)

    def _as_taken(self, x: Tensor) -> Tensor:
        """Prepared images as what the file takes."""
        if not self.pictures:
            return x.float().contiguous()
        pictures = Preprocessing.from_dict(self.file.record["preprocessing"]).restore(x.float())
        return (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def network_of(path: str | Path) -> Source:
    """A CAMNet whose features are an exported file: their map is the class maps, and its linear layer adds the bias.

    Raises:
        CheckpointError: the file is damaged or not camify's.
        ConversionError: it was pooled otherwise than by GAP: its maps do not give its logits.
    """
    file = open_exported(path)
    record = file.record
    if record["pool"] != "gap":
        raise ConversionError(f"{path}: pooled by {record['pool'].upper()}: its maps do not give its logits.")
    height, width = record["input"]["size"]
    maps = _Maps(file)
    probe = torch.zeros(1 if "batch" in record["dynamic"] else 2, record["input"]["channels"], height, width)
    found = file(maps._as_taken(probe))
    classifier = nn.Linear(record["num_classes"], record["num_classes"])
    with torch.no_grad():
        classifier.weight.copy_(torch.eye(record["num_classes"]))
        classifier.bias.copy_(found["logits"][0] - found["maps"][0].double().mean((1, 2)))
    network = CAMNet(maps, classifier).eval()
    network.class_names, network.preprocessing = record["class_names"], record["preprocessing"]
    return Source(network, str(path), record["class_names"], preprocessing=network.preprocessing)
