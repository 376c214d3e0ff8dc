"""What an exported file says of itself: one JSON record, and for other tools the usual fields beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from ..checkpoint.certificate import TOLERANCE
from ..checkpoint.folder import us_keys
from ..errors import CheckpointError, ConfigError
from ..files import to_json
from ..model import CAMNet
from ..task import Classes

__all__ = ["RECORD", "as_properties", "file_metadata", "read_record"]

RECORD = "camify.json"
FORMAT_VERSION = 1
_KINDS: dict[str, Any] = {
    "format_version": int, "camify_version": str, "source": str, "license": str | None, "num_classes": int,
    "class_names": list | None, "preprocessing": dict | None, "input": dict, "outputs": list, "dynamic": list,
    "precision": str, "pool": str, "map": dict | None, "box_rule": dict | None, "results": dict,
}  # fmt: skip
_ADDED: dict[str, Any] = {"task": str | None, "untrained": list}  # later, and missing from older files


def file_metadata(
    model: CAMNet, *, preprocess: bool, outputs: tuple[str, ...], size: tuple[int, int], channels: int
) -> dict[str, Any]:
    """The record of a network, before it is known which axes are dynamic and how exact the file is."""
    certificate = model.certificate
    prepared = {"kind": "float32 NCHW, prepared as in preprocessing", "channels": channels}
    raw = {"kind": "uint8 NHWC, RGB as read", "channels": 3}
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
        "box_rule": model.box_rule.to_dict() if model.box_rule else None,
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
        record = {"task": None, "untrained": [], **us_keys(record)}
    for field, kind in (_KINDS | _ADDED).items():
        if not isinstance(record, dict) or field not in record or not isinstance(record[field], kind):
            raise CheckpointError(f"{path}: field {field} of its {RECORD} is missing or of the wrong kind.")
    if record["format_version"] > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format_version {record['format_version']} is newer than this camify. Update it."
        )
    try:
        if not all(isinstance(name, str) for name in record["class_names"] or ()):
            raise ConfigError("class_names holds something else than names")
        Classes.of(record["task"], record["class_names"], record["num_classes"])
    except ConfigError as error:
        raise CheckpointError(f"{path}: fields of its {RECORD} contradict each other: {error}") from error
    return dict(record)
