"""check: whether a folder, an exported file or somebody's checkpoint is CAM-ready, point by point."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..certificate import TOLERANCE
from ..checkpoint import MANIFEST, WEIGHTS, open_folder
from ..errors import CamifyError, CheckpointError
from ..exporting.exporting import FORMATS, open_exported
from ..exporting.onnx_file import OnnxFile
from ..exporting.pt2_file import Pt2File
from ..hub import fetch_folder, is_repository
from ..maps import identity_error
from ..model import CAMNet
from ..sources.resolve import resolve
from ..sources.run_folders import from_lightning
from .inspection import inspect

__all__ = ["Finding", "check"]


class Finding(NamedTuple):
    """Whether a point holds, which point it is, and what was found."""

    holds: bool
    point: str
    found: str


def check(source: str) -> list[Finding]:
    """What was looked at and found; CAM-ready if every point holds. The first that does not is the last.

    Args:
        source: a checkpoint folder, ``user/name`` on the hub, an ``.onnx`` or ``.pt2`` file, a ``.ckpt`` of a run, or a
            legacy network as ``camify.surgery.resolve`` takes it.
    """
    findings: list[Finding] = []
    try:
        _look(source, lambda point, found: findings.append(Finding(True, point, found)))
    except CamifyError as error:
        findings.append(Finding(False, "not CAM-ready", str(error)))
    return findings


Report = Callable[[str, str], None]


def _look(source: str, report: Report) -> None:
    path = Path(source)
    if path.suffix in FORMATS and "@" not in source:
        _look_at_file(source, report)
    elif path.is_dir() or (is_repository(source) and not source.startswith(("torchvision/", "timm/", "camify/"))):
        folder = path if path.is_dir() else fetch_folder(source)
        with open_folder(folder) as (tensors, manifest):
            model = CAMNet.from_parts(tensors, manifest, folder / MANIFEST)
        report("hashes", f"{WEIGHTS} and {MANIFEST} are as written (schema {manifest['schema_version']})")
        report("weights", f"{len(tensors)} tensors fit the architecture")
        _look_at_model(model, report)
    elif path.suffix == ".ckpt" and path.is_file():
        try:
            model = from_lightning(path)
        except CheckpointError as error:
            if "holds no field" not in str(error):
                raise
            _look_at_legacy(source, report)
        else:
            report("Lightning checkpoint", f"make a folder of it: camify export {source} --to folder")
            _look_at_model(model, report)
    else:
        _look_at_legacy(source, report)


def _look_at_model(model: CAMNet, report: Report) -> None:
    """The identity, the classes and a prediction on noise."""
    certificate = model.certificate
    shape = certificate.input_shape if certificate is not None else (3, 224, 224)
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    if model.pool_name != "gap":
        raise CheckpointError(f"pooled by {model.pool_name.upper()}: the maps do not add up to the logits")
    error = model.identity_error(images)
    if not error <= TOLERANCE:
        raise CheckpointError(f"the maps do not add up to the logits: error {error:.1e}, allowed {TOLERANCE:.0e}")
    report("identity", f"mean(map) + bias = logit, error {error:.1e}")
    with torch.no_grad():
        logits, maps = model.float().forward_with_maps(images)
    _look_at_prediction(logits, maps, model.num_classes, model.class_names, report)


def _look_at_file(source: str, report: Report) -> None:
    """An exported file: it is run on noise."""
    file = open_exported(source)
    record = file.record
    report(
        "file", f"readable; gives {', '.join(record['outputs'])}; dynamic: {', '.join(record['dynamic']) or 'nothing'}"
    )
    try:
        first, second = (file(_noise(file, seed)) for seed in (1, 2))
    except Exception as error:  # the runtime's own kinds
        raise CheckpointError(f"{source}: does not run on what it says it takes ({error}).") from error
    if record["pool"] != "gap":
        raise CheckpointError(f"{source}: pooled by {record['pool'].upper()}: the maps do not add up to the logits")
    bias = first["logits"][0] - first["maps"][0].double().mean((1, 2))
    found = identity_error(second["logits"], second["maps"], bias)
    allowed = TOLERANCE if record["precision"] == "fp32" else 0.05
    if not found <= allowed:
        raise CheckpointError(
            f"{source}: the maps do not add up to the logits: error {found:.1e}, allowed {allowed:.0e}"
        )
    report("identity", f"logit - mean(map) is the same for two images, error {found:.1e}")
    _look_at_prediction(second["logits"], second["maps"], record["num_classes"], record["class_names"], report)


def _noise(file: OnnxFile | Pt2File, seed: int) -> Tensor:
    generator, entry = torch.Generator().manual_seed(seed), file.record["input"]
    batch = 1 if "batch" in file.record["dynamic"] else 2
    if entry["kind"].startswith("uint8"):
        return torch.randint(0, 256, (batch, *entry["size"], 3), generator=generator, dtype=torch.uint8)
    return torch.randn(batch, entry["channels"], *entry["size"], generator=generator)


def _look_at_prediction(logits: Tensor, maps: Tensor, count: int, names: list[str] | None, report: Report) -> None:
    if logits.shape[1] != count or maps.shape[1] != count:
        raise CheckpointError(f"gives {logits.shape[1]} logits and {maps.shape[1]} maps for {count} classes")
    report("classes", f"{count}, {'named' if names else 'without names'}")
    probability, top = logits.softmax(1)[0].max(0)
    name = f" ({names[int(top)]})" if names else ""
    height, width = maps.shape[2:]
    report("sample", f"noise: class {int(top)}{name}, probability {float(probability):.3f}, map {height} x {width}")


def _look_at_legacy(source: str, report: Report) -> None:
    """Somebody's network: what it is, and whether its head is linear after pooling already."""
    found = resolve(source)
    report("weights", f"read as {found.name}{''.join(f'; {note}' for note in found.notes)}")
    inspection = inspect(found.model, input_size=224 if found.preprocessing is None else found.preprocessing.size)
    if not inspection.cam_ready:
        raise CheckpointError(f"{inspection.verdict}: {inspection.reason} Make it so: camify convert {source} FOLDER")
    report("head", inspection.reason)
