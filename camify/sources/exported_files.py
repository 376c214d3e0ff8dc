"""An exported file as a network whose maps are the file's own."""

from __future__ import annotations

import mmap
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..boxes import BoxRule
from ..errors import CheckpointError, ConversionError
from ..exporters.export_file import FORMATS, open_exported
from ..exporters.metadata import RECORD, SEALED
from ..exporters.onnx_file import OnnxFile
from ..exporters.pt2_file import Pt2File
from ..maps import contrast_maps
from ..model import CAMNet
from ..preprocessing import Preprocessing
from ..task import Task
from .onnx_models import load_onnx, split_output
from .source import Source

__all__ = ["exported_file_of", "is_exported", "is_onnx", "load_exported", "load_onnx_file", "rule_of_maps"]

_LONGEST_METADATA = 2**26
_PRODUCER = b"\x12\x06camify"  # field producer_name of ONNX's ModelProto


def is_exported(text: str) -> bool:
    """Whether a text can only name a file of ``camify.export``, an ONNX file apart."""
    return Path(text).suffix in FORMATS and Path(text).suffix != ".onnx" and ("@" not in text or Path(text).is_file())


class _Maps(nn.Module):
    """Images as ``Preprocessing`` gives them -> the file's maps (N, K, h, w); with object maps the shared map last."""

    def __init__(self, file: OnnxFile | Pt2File) -> None:
        super().__init__()
        self.file, self.pictures = file, file.record["input"]["kind"].startswith("uint8")

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.file(self.as_taken(x.detach().cpu()))
        maps = outputs["maps"]
        if "object_maps" in outputs:
            task = Task.of(self.file.record["task"], maps.shape[1])
            contrast = contrast_maps(maps, exclusive=task.exclusive)
            maps = torch.cat([maps, outputs["object_maps"][:, :1] - contrast[:, :1]], 1)
        return maps.to(x)

    def as_taken(self, x: Tensor) -> Tensor:
        """Prepared images as what the file takes."""
        if not self.pictures:
            return x.float().contiguous()
        pictures = Preprocessing.from_dict(self.file.record["preprocessing"]).restore(x.float())
        return (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def is_onnx(text: str) -> bool:
    """Whether a text names an ONNX file, or one of its values; who wrote it is seen in the file."""
    return split_output(text)[0].suffix == ".onnx"


def load_onnx_file(text: str, weights: bool) -> Source:
    """``FILE.onnx``: of ``camify.export``, or of anybody."""
    return load_exported(text, weights) if _is_own(split_output(text)[0]) else load_onnx(text, weights)


def _is_own(path: Path) -> bool:
    """Whether camify wrote a file: one of three marks says so, of which one damage cannot hide all."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        marks = (RECORD.encode(), b"\x0a\x06" + SEALED.encode())  # keys of its metadata
        start = max(0, len(content) - _LONGEST_METADATA)  # metadata come last
        return _PRODUCER in content[:64] or any(content.find(mark, start) >= 0 for mark in marks)


def load_exported(text: str, weights: bool) -> Source:  # noqa: ARG001 - the file is the network
    """A CAMNet whose features are an exported file: their map is the class maps, and its linear layer adds the bias.

    Raises:
        CheckpointError: the file is damaged, does not run or is not camify's.
        ConversionError: it was pooled otherwise than by GAP: its maps do not give its logits.
    """
    file = open_exported(text)
    record = file.record
    if record["pool"] != "gap":
        raise ConversionError(
            f"{text}: pooled by {record['pool'].upper()}: the maps do not add up to the logits. Give the network that"
            " it was exported from."
        )
    maps, classes = _Maps(file), record["num_classes"]
    height, width = record["input"]["size"]
    images = torch.zeros(1 if "batch" in record["dynamic"] else 2, record["input"]["channels"], height, width)
    try:
        outputs = file(maps.as_taken(images))
    except Exception as error:  # the runtime's own kinds
        raise CheckpointError(f"{text}: does not run on what it says it takes ({error}).") from error
    if outputs["logits"].shape[1] != classes or outputs["maps"].shape[1] != classes:
        counts = f"{outputs['logits'].shape[1]} logits and {outputs['maps'].shape[1]} maps"
        raise CheckpointError(f"{text}: gives {counts} for {classes} classes.")
    has_object_maps = "object_maps" in outputs
    classifier = nn.Linear(classes + has_object_maps, classes)
    with torch.no_grad():
        classifier.weight.copy_(torch.eye(*classifier.weight.shape))
        classifier.bias.copy_(outputs["logits"][0] - outputs["maps"][0].double().mean((1, 2)))
    network = CAMNet(maps, classifier).eval()
    network.class_names, network.preprocessing = record["class_names"], record["preprocessing"]
    network.task, network.untrained = record["task"], tuple(record["untrained"])
    network.license = record["license"]
    if has_object_maps:
        network.object_weight, network.object_map = torch.eye(classes + 1)[-1], record["object_map"]
    notes: list[str] = []
    if record["box_rule"] is not None:
        network.box_rule, notes = rule_of_maps(BoxRule.from_dict(record["box_rule"]), has_object_maps)
    return replace(Source.of(network, text, tuple(notes)), only_maps=True)


def rule_of_maps(rule: BoxRule, has_object_maps: bool) -> tuple[BoxRule | None, list[str]]:
    """As much of a rule as can be had of a file's maps, and what has to be said of the rest."""
    if rule.clamp_weights or (rule.kind == "object" and not has_object_maps):
        what = "maps of positive weights" if rule.clamp_weights else "object maps"
        return None, [f"the file's box rule cuts {what}, which its maps do not give: the default rule cuts boxes"]
    if rule.map_stride is not None:
        finer = f"maps of stride {rule.map_stride}"
        return replace(rule, map_stride=None), [f"the file's box rule was chosen on {finer}; its own are coarser"]
    return rule, []


def exported_file_of(source: Source) -> OnnxFile | Pt2File:
    """The file behind a source that ``load_exported`` gave."""
    features: Any = source.model.features
    file: OnnxFile | Pt2File = features.file
    return file
