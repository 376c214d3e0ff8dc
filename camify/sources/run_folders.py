"""What can be exported: a checkpoint folder, a run of train.py, one of its Lightning checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

from ..checkpoint import CKPT_RECORD, MANIFEST, check_manifest
from ..errors import CheckpointError
from ..hub import is_repository
from ..model import CAMNet
from .state_dicts import read_plain

__all__ = ["cam_ready", "from_lightning"]

_PREFIX = "model."  # of the network inside CAMFineTuner
_ORDER = ("best.ckpt", "last.ckpt")


def cam_ready(source: str | Path) -> CAMNet:
    """The CAM-ready network of a checkpoint folder, of ``user/name`` on the hub, of a run's folder or a ``.ckpt`` file.

    Of a run that finished its ``export/`` is taken, of one that was interrupted ``best.ckpt``, else ``last.ckpt``.

    Raises:
        CheckpointError: it is none of these, or damaged.
    """
    path = Path(source)
    if is_repository(source) or (path / MANIFEST).is_file():
        return CAMNet.from_pretrained(source)
    if path.is_dir():
        if (path / "export" / MANIFEST).is_file():
            return CAMNet.from_pretrained(path / "export")
        return from_lightning(_checkpoint_of(path))
    if path.suffix == ".ckpt":
        return from_lightning(path)
    raise CheckpointError(
        f"{source}: is no checkpoint folder, run folder or .ckpt file. Of a legacy network make one first:"
        " camify convert SOURCE FOLDER"
    )


def _checkpoint_of(folder: Path) -> Path:
    """The Lightning checkpoint of a run's folder: the best epoch's, else the last."""
    found = sorted(folder.glob("*.ckpt"), key=lambda file: (file.name not in _ORDER, file.name))
    if not found:
        raise CheckpointError(f"{folder}: holds neither {MANIFEST} nor a .ckpt file. Is it the folder of a run?")
    return found[0]


def from_lightning(path: str | Path) -> CAMNet:
    """The CAM-ready network of a Lightning checkpoint of ``CAMFineTuner``, also of an interrupted run.

    Raises:
        CheckpointError: the file is damaged, needs code to be read, or says nothing of its architecture.
    """
    path = Path(path)
    content = read_plain(path)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise CheckpointError(f"{path}: holds no state_dict. Is it a Lightning checkpoint?")
    text = content.get(CKPT_RECORD)
    if not isinstance(text, str):
        raise CheckpointError(
            f"{path}: holds no field {CKPT_RECORD}: it is not of a CAM-ready network's fine-tuning, or older than"
            " camify 0.1. Give its weights with the network's name: camify convert torchvision/NAME@FILE FOLDER"
        )
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: field {CKPT_RECORD} is not valid JSON ({error}).") from error
    if isinstance(record, dict) and "refused" in record:
        raise CheckpointError(f"{path}: {record['refused']}")
    where = path.with_name(f"{path.name}[{CKPT_RECORD}]")
    state = {
        key.removeprefix(_PREFIX): value for key, value in content["state_dict"].items() if key.startswith(_PREFIX)
    }
    return CAMNet.from_parts(state, check_manifest(record, where), where)
