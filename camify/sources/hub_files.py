"""The files of a model repository as the Hugging Face Hub knows it: JSON, tensors and a card; no code is read."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import yaml

from ..checkpoint.folder import CARD, read_tensors
from ..errors import CheckpointError
from .state_dicts import State, read_state

__all__ = [
    "CARD",
    "CONFIG",
    "PICKLE_FILES",
    "PROCESSOR",
    "SMALL_FILES",
    "WEIGHT_FILES",
    "license_of",
    "read_json",
    "read_weights",
]

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
_WEIGHTS, _INDEX, _PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
SMALL_FILES = (CONFIG, PROCESSOR, CARD)
WEIGHT_FILES = (_WEIGHTS, _INDEX, "model-*-of-*.safetensors")
PICKLE_FILES = (_PICKLE,)
"""Of older repositories, which have no safetensors."""
_LARGEST_JSON = 2**24  # bytes: twenty thousand classes with long names


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: the file is missing, damaged, or far larger than such files are.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file.")
    if path.stat().st_size > _LARGEST_JSON:
        raise CheckpointError(f"{path}: has {path.stat().st_size / 2**20:.0f} MiB, far more than such a file needs.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON ({error}). The file is damaged.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}; expected names with values.")
    return content


def read_weights(folder: Path, notes: list[str]) -> State:
    """The tensors of a folder: safetensors, in one file or several, else plain tensors of ``torch.save``.

    Raises:
        CheckpointError: there are none, or a file is damaged or holds more than tensors.
    """
    if (folder / _WEIGHTS).is_file():
        return read_tensors(folder / _WEIGHTS)
    if (folder / _INDEX).is_file():
        parts = read_json(folder / _INDEX).get("weight_map")
        files = set(parts.values()) if isinstance(parts, dict) else set()
        if not files or not all(isinstance(file, str) and re.fullmatch(r"[\w-][\w.-]*", file) for file in files):
            raise CheckpointError(f"{folder / _INDEX}: field weight_map does not name the files of the weights.")
        return {key: tensor for file in sorted(files) for key, tensor in read_tensors(folder / file).items()}
    if (folder / _PICKLE).is_file():
        state, _ = read_state(folder / _PICKLE, notes)
        notes.append(f"the weights are in {_PICKLE}, which was read as plain tensors; nothing in it was run")
        return state
    raise CheckpointError(f"{folder}: holds {CONFIG} and no {_WEIGHTS}. Save it again with save_pretrained().")


def license_of(card: Path) -> str | None:
    """The license in the head of a model card, where there is one."""
    if not card.is_file() or card.stat().st_size > _LARGEST_JSON:
        return None
    head = re.match(r"---\n(.{0,10000}?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    with contextlib.suppress(yaml.YAMLError, RecursionError):
        fields = yaml.safe_load(head[1]) if head else None
        license_name = fields.get("license") if isinstance(fields, dict) else None
        return license_name if isinstance(license_name, str) else None
    return None
