"""Folders, here or on the Hub: camify's checkpoints, runs and their Lightning checkpoints, transformers' and timm's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoint.folder import CKPT_RECORD, MANIFEST, check_manifest
from ..checkpoint.hub import HUB_PREFIX, fetch_folder, is_repository
from ..errors import CheckpointError
from ..model import CAMNet
from .cached_files import require_hub_file
from .foreign_formats import foreign_error
from .hub_files import CONFIG, PICKLE_FILES, SMALL_FILES, WEIGHT_FILES, read_json
from .source import Source
from .state_dicts import read_plain
from .timm_models import load_timm_folder
from .torchvision_models import load_weights_file
from .transformers_models import load_transformers

__all__ = [
    "fine_tuned_network",
    "is_folder",
    "is_hub_name",
    "is_lightning",
    "is_prefixed_hub_name",
    "load_folder",
    "load_from_hub",
    "load_lightning",
]

_PREFIX = "model."  # of the network inside CAMFineTuner
_ORDER = ("best.ckpt", "last.ckpt")


def is_folder(text: str) -> bool:
    """Whether there is a folder of that name."""
    return bool(text) and Path(text).is_dir()


def load_folder(text: str, weights: bool) -> Source:
    """The network of a checkpoint folder, of a run's folder, or of one that transformers or timm wrote.

    Of a run that finished its ``export/`` is taken, of one that was interrupted ``best.ckpt``, else ``last.ckpt``.

    Raises:
        CheckpointError: it is none of them, or damaged.
    """
    folder = Path(text)
    if (folder / MANIFEST).is_file():
        return Source.of(CAMNet.from_pretrained(folder), text)
    if (folder / CONFIG).is_file():
        return _load_configured(folder, text)
    if (folder / "export" / MANIFEST).is_file():
        return Source.of(CAMNet.from_pretrained(folder / "export"), text, (f"taken from {folder / 'export'}",))
    files = sorted(folder.glob("*.ckpt"), key=lambda file: (file.name not in _ORDER, file.name))
    if not files:
        raise foreign_error(folder) or CheckpointError(
            f"{folder}: holds neither {MANIFEST} nor {CONFIG} nor a .ckpt file: it is no checkpoint folder of camify,"
            " transformers or timm, and no folder of a run."
        )
    return load_lightning(str(files[0]), weights, text, f"taken from {files[0]}")


def is_lightning(text: str) -> bool:
    """Whether a text can only name a ``.ckpt`` file."""
    return text.endswith(".ckpt") and ("@" not in text or Path(text).is_file())


def load_lightning(text: str, weights: bool, name: str | None = None, *notes: str) -> Source:
    """The network of a Lightning checkpoint: of ``CAMFineTuner`` the CAM-ready one, also of an interrupted run.

    One without camify's record is somebody else's: a weights file.

    Raises:
        CheckpointError: the file is damaged, needs code to be read, or its record contradicts its weights.
    """
    content = read_plain(Path(text))
    if not isinstance(content, dict) or CKPT_RECORD not in content:
        return load_weights_file(text, weights)
    return Source.of(fine_tuned_network(content, Path(text)), name or text, notes)


def fine_tuned_network(content: Mapping[str, Any], path: Path) -> CAMNet:
    """The CAM-ready network of the content of a Lightning checkpoint of ``CAMFineTuner``.

    Raises:
        CheckpointError: its record is damaged or contradicts its weights; names ``path``.
    """
    try:
        record = json.loads(content[CKPT_RECORD])
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: field {CKPT_RECORD} is not valid JSON ({error}).") from error
    if isinstance(record, dict) and "refused" in record:
        raise CheckpointError(f"{path}: {record['refused']}")
    tensors = content.get("state_dict")
    if not isinstance(tensors, dict):
        raise CheckpointError(f"{path}: holds no state_dict. Is it a Lightning checkpoint?")
    state = {key.removeprefix(_PREFIX): value for key, value in tensors.items() if str(key).startswith(_PREFIX)}
    where = path.with_name(f"{path.name}[{CKPT_RECORD}]")
    return CAMNet.from_parts(state, check_manifest(record, where), where)


def is_prefixed_hub_name(text: str) -> bool:
    """Whether a text says itself that it names a repository of the Hub."""
    return text.startswith(HUB_PREFIX)


def is_hub_name(text: str) -> bool:
    """Whether a text that no local form took can be ``user/name``; the libraries' names never are."""
    return is_repository(text)


def load_from_hub(text: str, weights: bool) -> Source:
    """The network of a repository of the Hub, camify's, transformers' or timm's; without ``weights`` from its cache.

    Raises:
        CheckpointError: it cannot be had, or is none of them.
    """
    folder = fetch_folder(text, cached=not weights, files=(MANIFEST, *SMALL_FILES))
    if (folder / CONFIG).is_file() and not (folder / MANIFEST).is_file():
        folder = fetch_folder(text, cached=not weights, files=(*SMALL_FILES, *WEIGHT_FILES))
        if not any(folder.glob("*.safetensors")):
            folder = fetch_folder(text, cached=not weights, files=(*SMALL_FILES, *PICKLE_FILES))
        _require_whole(folder)
        return _load_configured(folder, text)
    folder = fetch_folder(text, cached=not weights)
    _require_whole(folder)
    return Source.of(CAMNet.from_pretrained(folder), text)


def _require_whole(folder: Path) -> None:
    """Check the files of a repository in the Hub's cache that are read."""
    for pattern in (MANIFEST, *SMALL_FILES, *WEIGHT_FILES, *PICKLE_FILES):
        for file in folder.glob(pattern):
            require_hub_file(file)


def _load_configured(folder: Path, text: str) -> Source:
    """The network of a folder with a config.json.

    Raises:
        CheckpointError: the file is neither transformers' nor timm's, or the network cannot be had.
    """
    config = read_json(folder / CONFIG)
    if "model_type" in config:
        return load_transformers(folder, text)
    if isinstance(config.get("architecture"), str):
        return load_timm_folder(folder, text, config)
    raise CheckpointError(
        f"{folder / CONFIG}: names no network: transformers writes model_type there, timm architecture. Give a folder"
        f" of one of them, of camify ({MANIFEST}), or a file of weights with its network: torchvision/NAME@FILE."
    )
