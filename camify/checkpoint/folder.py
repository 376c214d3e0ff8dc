"""The checkpoint folder on disk: ``model.safetensors``, ``camify.json``, ``README.md``.

Written aside and renamed, the manifest last: a folder that holds ``camify.json`` is complete. Neither file
can run code: tensors are safetensors, everything else is JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import CheckpointError
from ..eval_mode import plain_tensors
from ..files import MANIFEST, foreign_entry, interrupted_replacements, sync, to_json, whole_folder
from ..former_names import current_name, with_current_keys
from .bounds import MOST_CLASSES, MOST_FEATURES

__all__ = [
    "CARD",
    "CKPT_RECORD",
    "MANIFEST",
    "OVERLAYS",
    "OWN_FILES",
    "SCHEMA_VERSION",
    "WEIGHTS",
    "check_manifest",
    "file_sha256",
    "manifest_digest",
    "open_folder",
    "read_tensors",
    "us_keys",
    "write_folder",
]

WEIGHTS, CARD, OVERLAYS = "model.safetensors", "README.md", "overlays.png"
OWN_FILES = (WEIGHTS, MANIFEST, CARD, OVERLAYS)
SCHEMA_VERSION = 4
CKPT_RECORD = "camify"
"""Where in a Lightning checkpoint the manifest stands, as JSON text."""
_ADDED: dict[int, dict[str, Any]] = {  # by version: the fields that came with it, as older manifests are read
    2: dict.fromkeys(("license", "recipe", "box_rule", "map", "versions")),
    3: {"task": None, "untrained": []},
    4: {"object_map": None},
}
_ARCHITECTURE = ("pool", "dropout", "num_features", "num_classes", "bias", "head_layers", "features")


@plain_tensors()
def write_folder(
    folder: str | Path,
    tensors: Mapping[str, Tensor],
    manifest: Mapping[str, Any],
    card: str,
    overlays: bytes | None = None,
    check: Callable[[Mapping[str, Tensor], Mapping[str, Any]], None] | None = None,
) -> Path:
    """Write a checkpoint folder as a whole; a folder that camify wrote before is replaced in one step.

    Args:
        folder: new, or one that camify wrote.
        tensors: the weights.
        manifest: JSON values.
        card: the text of its README.md.
        overlays: a picture (PNG) that the card shows.
        check: is called with tensors and manifest as they were written, before the folder gets its name; what it raises
            leaves the former one there.

    Raises:
        CheckpointError: the place holds something that is not a camify checkpoint, or cannot be written.
    """
    folder = Path(folder)
    foreign = foreign_entry(folder, MANIFEST, OWN_FILES)
    if foreign:
        raise CheckpointError(
            f"{folder}: {foreign}, which camify did not write. It was not touched; choose another folder."
        )
    try:
        with whole_folder(folder) as aside, ThreadPoolExecutor(2) as beside:
            weights = aside / WEIGHTS
            safetensors.torch.save_file(_unshared(tensors), weights, metadata={"format": "pt"})
            weights.chmod(aside.stat().st_mode & 0o666)  # safetensors keeps it to its owner
            sync_ended, digest = beside.submit(sync, weights), beside.submit(file_sha256, weights)
            content = {"schema_version": SCHEMA_VERSION, **manifest}
            content = json.loads(json.dumps(content, allow_nan=False))  # as a reader has it
            if check is not None:
                check(read_tensors(weights), check_manifest(content, folder / MANIFEST))
            content["sha256"] = digest.result()
            content["digest"] = manifest_digest(content)
            if overlays is not None:
                (aside / OVERLAYS).write_bytes(overlays)
            (aside / CARD).write_text(card, encoding="utf-8")
            (aside / MANIFEST).write_text(to_json(content, indent=2) + "\n", encoding="utf-8")
            sync_ended.result()
    except CheckpointError:  # of the check
        raise
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: the manifest cannot be stored as JSON ({error}).") from error
    except (OSError, SafetensorError) as error:  # a full disk is either
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"{folder}: cannot be written ({reason}). Is there space, and a right to write?"
        ) from error
    return folder


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous, each with memory of its own: safetensors refuses layers that share theirs."""
    unshared: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        place = plain.untyped_storage().data_ptr()
        unshared[name] = plain.clone() if place in taken else plain
        taken.add(place)
    return unshared


@contextmanager
def open_folder(folder: str | Path) -> Iterator[tuple[dict[str, Tensor], dict[str, Any]]]:
    """Tensors and manifest of a checkpoint folder, while the weights are compared with their hash beside.

    What is made of them is good when the context has ended.

    Raises:
        CheckpointError: a file is missing, damaged, from a newer camify, or not what the manifest says.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    tensors = read_tensors(folder / WEIGHTS)
    with ThreadPoolExecutor(1) as beside:
        digest = beside.submit(file_sha256, folder / WEIGHTS)
        try:
            yield tensors, manifest
        finally:  # if both fail, the hash says why
            if manifest.get("sha256") != digest.result():
                raise CheckpointError(
                    f"{folder / WEIGHTS}: does not match field sha256 of {MANIFEST}. The file was changed or damaged."
                )


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        problem = "holds no" if folder.is_dir() else "does not exist; expected a folder with"
        interrupted = [] if folder.is_dir() else interrupted_replacements(folder)
        if interrupted:
            raise CheckpointError(
                f"{folder}: saving it was interrupted between two renames; the previous one is whole:"
                f" {interrupted[-1]}. Rename it back."
            )
        raise CheckpointError(f"{folder}: {problem} {MANIFEST}. Give a folder written by save_pretrained().")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        digest = manifest_digest(manifest) if isinstance(manifest, dict) else None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON ({error}). The file is damaged; save it again.") from error
    checked: dict[str, Any] = check_manifest(manifest, path)
    if (manifest["schema_version"] > 1 or "digest" in manifest) and manifest.get("digest") != digest:
        raise CheckpointError(
            f"{path}: does not match its field digest. It was damaged, or changed by hand; to change names or"
            " preprocessing, load the model, set them, and save it again."
        )
    return checked


def check_manifest(manifest: Any, path: Path) -> dict[str, Any]:
    """A manifest of any known schema version as one of the newest.

    Raises:
        CheckpointError: it is from a newer camify, or a field is missing, wrong or at odds with another.
    """
    if not isinstance(manifest, dict) or not isinstance(manifest.get("schema_version"), int):
        raise CheckpointError(f"{path}: field schema_version is missing. Is this a camify checkpoint?")
    if isinstance(manifest["schema_version"], bool) or manifest["schema_version"] < 1:
        raise CheckpointError(f"{path}: field schema_version is {manifest['schema_version']}. Is the file damaged?")
    if manifest["schema_version"] > SCHEMA_VERSION:
        raise CheckpointError(
            f"{path}: schema_version {manifest['schema_version']} is newer than this camify reads"
            f" ({SCHEMA_VERSION}). Update camify."
        )
    current = us_keys(manifest)
    for version, fields in _ADDED.items():
        if manifest["schema_version"] < version:
            current = fields | current
    problem = _contradiction(current)
    if problem:
        raise CheckpointError(f"{path}: field {problem}. Was the file changed by hand?")
    return current


def us_keys(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest whose keys, and those of its results, are spelled as they are now."""
    current = {current_name(key): value for key, value in manifest.items()}
    return current | {"results": with_current_keys(current["results"])} if "results" in current else current


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of everything in a manifest but this."""
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    text = json.dumps(rest, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _contradiction(manifest: Mapping[str, Any]) -> str | None:
    """The field of a manifest that is missing, of the wrong kind, or at odds with the architecture; or None."""
    kinds: dict[str, Any] = {"architecture": dict, "class_names": list | None, "certificate": dict | None}
    kinds |= {"preprocessing": dict | None, "results": dict, "license": str | None, "recipe": str | None}
    kinds |= {"box_rule": dict | None, "map": dict | None, "versions": dict | None}
    kinds |= {"task": str | None, "untrained": list, "object_map": dict | None}
    for field, kind in kinds.items():
        if field not in manifest or not isinstance(manifest[field], kind):
            return f"{field} is missing or of the wrong kind"
    shape, names, record = manifest["architecture"], manifest["class_names"], manifest["certificate"]
    missing = [field for field in _ARCHITECTURE if field not in shape]
    if missing:
        return f"{missing[0]} of architecture is missing"
    if names is not None and not all(isinstance(name, str) for name in names):
        return "class_names holds something else than names"
    for field, most in (("num_classes", MOST_CLASSES), ("num_features", MOST_FEATURES)):
        if type(shape[field]) is not int or not 0 < shape[field] <= most:
            return f"{field} of architecture is {str(shape[field])[:40]}, which is no number from 1 to {most}"
    counts = (1, 2) if shape["num_classes"] == 1 else (shape["num_classes"],)  # one logit speaks of two classes
    if names is not None and len(names) not in counts:
        return f"class_names has {len(names)} names for {shape['num_classes']} classes"
    pairs = {"num_classes": "num_classes", "map_channels": "num_features", "pool": "pool"}
    for key, shape_key in pairs.items():
        if record is not None and record.get(key) != shape[shape_key]:
            problem = f"({record.get(key)!r}) contradicts the architecture ({shape_key}={shape[shape_key]!r})"
            return f"{key} of certificate {problem}"
    return None


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file.")
    try:
        return dict(safetensors.torch.load_file(os.fspath(path)))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error}). The file is damaged.") from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
