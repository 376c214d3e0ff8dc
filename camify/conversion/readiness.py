"""check: whether a folder, an exported file or somebody's checkpoint is CAM-ready, point by point."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..checkpoint.certificate import TOLERANCE
from ..checkpoint.folder import MANIFEST, WEIGHTS
from ..console import shell_quoted
from ..errors import CamifyError, CheckpointError
from ..exporters.onnx_file import OnnxFile
from ..exporters.pt2_file import Pt2File
from ..maps import identity_error
from ..model import CAMNet
from ..sources import Source, resolve
from ..sources.exported_files import exported_file_of
from ..task import Classes
from .inspection import inspect

__all__ = ["CheckResult", "check"]


class CheckResult(NamedTuple):
    """Whether a point holds, which point it is, and what is known of it."""

    holds: bool
    point: str
    message: str


def check(source: str) -> list[CheckResult]:
    """Every point that was checked; CAM-ready if every one holds. The first that does not is the last.

    Args:
        source: as ``camify.conversion.resolve`` takes it.
    """
    results: list[CheckResult] = []
    try:
        _check_source(resolve(source), lambda point, message: results.append(CheckResult(True, point, message)))
    except CamifyError as error:
        results.append(CheckResult(False, "not CAM-ready", str(error)))
    return results


Report = Callable[[str, str], None]


def _check_source(source: Source, report: Report) -> None:
    if source.only_maps:
        _check_file(exported_file_of(source), source.name, report)
    elif isinstance(source.model, CAMNet):
        if (Path(source.name) / MANIFEST).is_file():  # else loading it would have failed
            report("hashes", f"{WEIGHTS} and {MANIFEST} are as written")
        elif source.name.endswith(".ckpt"):
            command = f"camify export {shell_quoted(source.name)} --to folder"
            report("Lightning checkpoint", f"make a folder of it: {command}")
        notes = "".join(f"; {note}" for note in source.notes)
        report("weights", f"{len(source.model.state_dict())} tensors fit the architecture{notes}")
        _check_model(source.model, report)
    else:
        _check_legacy(source, report)


def _check_model(model: CAMNet, report: Report) -> None:
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
    _report_prediction(logits, maps, model.num_classes, model.classes, report)


def _check_file(file: OnnxFile | Pt2File, source: str, report: Report) -> None:
    """An exported file: it is run on noise."""
    record = file.record
    report(
        "file", f"readable; gives {', '.join(record['outputs'])}; dynamic: {', '.join(record['dynamic']) or 'nothing'}"
    )
    if isinstance(file, OnnxFile):
        older = "none: written by an older camify; damage may go unnoticed. Export it again"
        report("hash", f"SHA-256 as written, {record['sha256'][:16]}..." if record["sha256"] else older)
    try:
        first, second = (file(_noise(file, seed)) for seed in (1, 2))
    except Exception as failure:  # the runtime's own kinds
        raise CheckpointError(f"{source}: does not run on what it says it takes ({failure}).") from failure
    bias = first["logits"][0] - first["maps"][0].double().mean((1, 2))
    error = identity_error(second["logits"], second["maps"], bias)
    allowed = TOLERANCE if record["precision"] == "fp32" else 0.05
    if not error <= allowed:
        raise CheckpointError(
            f"{source}: the maps do not add up to the logits: error {error:.1e}, allowed {allowed:.0e}"
        )
    report("identity", f"logit - mean(map) is the same for two images, error {error:.1e}")
    classes = Classes.of(record["task"], record["class_names"], record["num_classes"])
    _report_prediction(second["logits"], second["maps"], record["num_classes"], classes, report)


def _noise(file: OnnxFile | Pt2File, seed: int) -> Tensor:
    generator, entry = torch.Generator().manual_seed(seed), file.record["input"]
    batch = 1 if "batch" in file.record["dynamic"] else 2
    if entry["kind"].startswith("uint8"):
        return torch.randint(0, 256, (batch, *entry["size"], 3), generator=generator, dtype=torch.uint8)
    return torch.randn(batch, entry["channels"], *entry["size"], generator=generator)


def _report_prediction(logits: Tensor, maps: Tensor, count: int, classes: Classes, report: Report) -> None:
    if logits.shape[1] != count or maps.shape[1] != count:
        raise CheckpointError(f"gives {logits.shape[1]} logits and {maps.shape[1]} maps for {count} classes")
    naming = "named" if classes.names else "without names"
    report("classes", f"{classes.count(count)}, {naming}, task {classes.task}")
    logits = classes.two_sided(logits)
    probability, top = classes.probabilities(logits)[0].max(0)
    name = f" ({classes.titles(logits.shape[1])[int(top)]})" if classes.names else ""
    height, width = maps.shape[2:]
    report("sample", f"noise: class {int(top)}{name}, probability {float(probability):.3f}, map {height} x {width}")


def _check_legacy(source: Source, report: Report) -> None:
    """Somebody's network: what it is, and whether its head is linear after pooling already."""
    report("weights", f"read as {source.name}{''.join(f'; {note}' for note in source.notes)}")
    inspection = inspect(source)
    if not inspection.cam_ready:
        raise CheckpointError(
            f"{inspection.verdict}: {inspection.reason} Make it so: camify convert {shell_quoted(source.name)} FOLDER"
        )
    report("head", inspection.reason)
