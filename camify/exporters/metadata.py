"""What an exported file says of itself: one JSON record, and for other tools the usual fields beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from ..boxes import DEFAULT_RULE, BoxRule
from ..checkpoint.bounds import MOST_CLASSES
from ..checkpoint.certificate import TOLERANCE
from ..checkpoint.folder import us_keys
from ..errors import CheckpointError, ConfigError, ConversionError
from ..files import to_json
from ..model import CAMNet
from ..preprocessing import LARGEST_SIDE, MOST_CHANNELS, Preprocessing
from ..task import Classes

__all__ = ["RECORD", "SEALED", "UNSEALED", "as_properties", "file_metadata", "read_record", "require_seal", "sealed"]

RECORD = "camify.json"
FORMAT_VERSION = 1
_KINDS: dict[str, Any] = {
    "format_version": int, "camify_version": str, "source": str, "license": str | None, "num_classes": int,
    "class_names": list | None, "preprocessing": dict | None, "input": dict, "outputs": list, "dynamic": list,
    "precision": str, "pool": str, "map": dict | None, "box_rule": dict | None, "results": dict,
}  # fmt: skip
_ADDED: dict[str, Any] = {  # later, and missing from older files
    "task": str | None, "untrained": list, "sha256": str | None, "object_map": dict | None,
}  # fmt: skip
_LATER: dict[str, Any] = {"task": None, "untrained": [], "sha256": None, "object_map": None}
UNSEALED = "0" * 64
"""In the place of a file's own SHA-256, while that is computed: see ``sealed``."""
SEALED = "sealed"
"""Name of the field that says, beside the record, that the record holds a SHA-256: one damage cannot hide both."""
_OUTPUTS = (
    ["logits", "maps"], ["logits", "maps", "boxes"],
    ["logits", "maps", "object_maps"], ["logits", "maps", "object_maps", "boxes"],
)  # fmt: skip
_AXES = {"batch", "height", "width"}


def file_metadata(
    model: CAMNet, *, preprocess: bool, outputs: tuple[str, ...], size: tuple[int, int], channels: int
) -> dict[str, Any]:
    """The record of a network, before it is known which axes are dynamic and how exact the file is."""
    certificate = None if model.certificate is None else model.certificate.published()
    prepared = {"kind": "float32 NCHW, prepared as in preprocessing", "channels": channels}
    raw = {"kind": "uint8 NHWC, RGB as read", "channels": 3}
    rule = model.box_rule or (DEFAULT_RULE if "boxes" in outputs else None)
    return {
        "format_version": FORMAT_VERSION,
        "camify_version": version("camify"),
        "source": certificate.source if certificate else type(model).__name__,
        "license": model.license,
        "num_classes": model.num_classes,
        "class_names": model.class_names,
        "task": str(model.task) if model.task_is_known else None,
        "untrained": list(model.untrained),
        "preprocessing": None if model.preprocessing is None else model.preprocessing.to_dict(),
        "input": {"name": "image", "size": list(size), **(raw if preprocess else prepared)},
        "outputs": list(outputs),
        "dynamic": [],
        "precision": "fp32",
        "pool": model.pool_name,
        "identity": f"mean(maps) + bias == logits within {TOLERANCE:g}" if model.pool_name == "gap" else None,
        "map": certificate.map if certificate else None,
        "box_rule": None if rule is None else rule.to_dict(),
        "object_map": model.object_map,
        "results": model.finite_results(),
    }


def as_properties(record: Mapping[str, Any]) -> dict[str, str]:
    """The record as text fields: all of it as JSON, and what other tools look for by name."""
    rule = record["box_rule"] or {}
    fields = {
        "class_names": record["class_names"],
        "preprocessing": record["preprocessing"],
        "normalizer": rule.get("normalizer"),
        "threshold": rule.get("threshold"),
        "map_stride": (record["map"] or {}).get("stride"),
    }
    known = {key: _json(value) for key, value in fields.items() if value is not None}
    return {RECORD: _json(record), **known}


def _json(value: Any) -> str:
    return value if isinstance(value, str) else to_json(value, indent=None)


def read_record(text: str | None, path: object) -> dict[str, Any]:
    """The record of an exported file.

    Raises:
        CheckpointError: there is none, or a field is missing or of the wrong kind.
    """
    if text is None:
        raise CheckpointError(f"{path}: holds no {RECORD}. Was it written by camify.export?")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its {RECORD} is not valid JSON ({error}). Export it again.") from error
    if isinstance(record, dict):
        record = {**_LATER, **us_keys(record)}
    for field, kind in (_KINDS | _ADDED).items():
        if not isinstance(record, dict) or field not in record or not isinstance(record[field], kind):
            raise CheckpointError(f"{path}: field {field} of its {RECORD} is missing or of the wrong kind.")
    if record["format_version"] > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format_version {record['format_version']} is newer than this camify. Update it."
        )
    _require_sense(record, path)
    return dict(record)


def _require_sense(record: Mapping[str, Any], path: object) -> None:
    wrong = _absurd_field(record)
    if wrong is not None:
        raise CheckpointError(f"{path}: field {wrong} of its {RECORD} is {str(record[wrong])[:80]}. Export it again.")
    try:
        if not all(isinstance(name, str) for name in record["class_names"] or ()):
            raise ConfigError("class_names holds something else than names")
        Classes.of(record["task"], record["class_names"], record["num_classes"])
        Preprocessing.of(record["preprocessing"])
        _ = record["box_rule"] is None or BoxRule.from_dict(record["box_rule"])
    except CheckpointError as error:
        raise CheckpointError(f"{path}: its {RECORD}: {error}") from error
    except ConfigError as error:
        raise CheckpointError(f"{path}: fields of its {RECORD} contradict each other: {error}") from error


def _absurd_field(record: Mapping[str, Any]) -> str | None:
    """The first field whose value no network has, or None."""
    image = record["input"]
    size, channels = image.get("size"), image.get("channels")
    pictures = str(image.get("kind", "")).startswith("uint8")
    right = {
        "num_classes": _is_count(record["num_classes"], MOST_CLASSES),
        "input": isinstance(size, list)
        and len(size) == len([side for side in size if _is_count(side, LARGEST_SIDE)]) == 2
        and (channels == 3 if pictures else _is_count(channels, MOST_CHANNELS))
        and isinstance(image.get("kind"), str),
        "outputs": record["outputs"] in _OUTPUTS,
        "dynamic": all(isinstance(axis, str) and axis in _AXES for axis in record["dynamic"]),
        "preprocessing": not pictures or record["preprocessing"] is not None,
        "untrained": all(isinstance(name, str) for name in record["untrained"]),
    }
    return next((field for field, is_right in right.items() if not is_right), None)


def _is_count(value: Any, most: int) -> bool:
    return type(value) is int and 0 < value <= most


# ---------------------------------------------------------------- what a file says of its own bytes


def sealed(content: bytes) -> bytes:
    """A file's bytes whose record holds ``UNSEALED`` once, with the SHA-256 of just these bytes in its place."""
    if content.count(UNSEALED.encode()) != 1:
        raise ConversionError("the file cannot hold its own SHA-256: it holds the place for it not once.")
    return content.replace(UNSEALED.encode(), hashlib.sha256(content).hexdigest().encode())


def require_seal(content: bytes, record: Mapping[str, Any], path: object, *, sealed: bool) -> None:
    """Check a file's bytes against the SHA-256 in its record; older files have none.

    Raises:
        CheckpointError: a byte of the file is another one than when it was written.
    """
    digest = record["sha256"]
    if digest is None and not sealed:
        return
    place = (digest or "").encode()
    unsealed = content.replace(place, UNSEALED.encode(), 1) if len(place) == len(UNSEALED) else b""
    if hashlib.sha256(unsealed).hexdigest() != digest:
        raise CheckpointError(
            f"{path}: does not match field sha256 of its {RECORD}. The file was changed or damaged; export it again."
        )
