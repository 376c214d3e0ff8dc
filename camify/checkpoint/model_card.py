"""The model card: ``README.md`` of a checkpoint folder, from its manifest."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..console import shown

__all__ = ["hub_license", "model_card"]

_ENTITIES = {ord(character): f"&#{ord(character)};" for character in "&<>|[]`*\\"}
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,40}", re.ASCII)  # as the hub names licenses

_USE = """\
```python
import camify

model = camify.load("path/to/this/folder")        # torch and camify; no legacy code, no pickle
logits, maps = model.forward_with_maps(images)    # (N, K), (N, K, h, w)
```

`camify export path/to/this/folder --to onnx` (or `pt2`) makes one file of it for people without camify.
"""
_INTENDED = """\
## Intended use

Classifying images of the classes below, prepared as below, and showing where the evidence for a class lies.
`mean(map) + bias = logit` holds for every class: a map says where the evidence for a class lies in the picture, and
its mean is the score. It does not say why the evidence counts, that the decision is right, that the class is there,
or where an object ends. Pictures unlike those it was trained on get maps too.
"""
_ROWS = {  # figure: its name in the results, of the legacy network, of the center baseline
    "accuracy": ("val/acc", "legacy/acc", None),
    "mean average precision": ("val/map", "legacy/map", None),
    "box accuracy": ("val/max_box_acc", None, "val/center_box_acc"),
}


def hub_license(name: Any) -> str | None:
    """The license as the hub's settings take it; None where it is not known, or no short name."""
    return name if isinstance(name, str) and _LICENSE.fullmatch(name) else None


def model_card(manifest: Mapping[str, Any], *, overlays: bool = False) -> str:
    """Markdown with what the network is, how to use it, its classes and its figures."""
    record, shape = manifest["certificate"] or {}, manifest["architecture"]
    license_name = manifest.get("license")
    known = hub_license(license_name)
    lines = ["---", "library_name: camify", "pipeline_tag: image-classification"]
    lines += [
        "tags: [image-classification, class-activation-maps]",
        *([f"license: {known}"] if known else []),
        "---",
    ]
    lines += ["", f"# {_cell(record.get('source', 'network'))}, CAM-ready", ""]
    lines += [f"An image classifier of {shape['num_classes']} classes whose maps are an output.", "", _USE]
    if overlays:
        lines += ["![Pictures with the maps of their classes](overlays.png)", ""]
    lines.append(_INTENDED)
    if record:
        lines += [*_conversion(record), ""]
    lines += [f"License of the legacy weights: {_cell(license_name or 'not stated by their source')}.", ""]
    lines += _results(manifest["results"])
    if manifest["preprocessing"]:
        lines += ["## Preprocessing", "", "| step | value |", "|---|---|"]
        lines += [f"| {_cell(key)} | {_cell(value)} |" for key, value in manifest["preprocessing"].items()]
        lines.append("")
    if manifest.get("box_rule"):
        lines += ["## Boxes from maps", "", "| | |", "|---|---|"]
        rule = dict(manifest["box_rule"])
        if rule.get("source") != "mosaics":  # of former versions: on the images that it was chosen on
            rule["right boxes (IoU 0.5), cross-validated"] = rule.pop("accuracy", None)
        lines += [f"| {_cell(key)} | {_value(value)} |" for key, value in rule.items() if value is not None]
        lines.append("")
    if manifest["class_names"]:
        names = ", ".join(_cell(name) for name in manifest["class_names"][:200])
        more = " ..." if shape["num_classes"] > 200 else ""
        lines += ["## Classes", "", f"In order: {names}{more}", ""]
    return "\n".join(lines)


def _conversion(record: Mapping[str, Any]) -> Iterator[str]:
    (_, height, width), (map_h, map_w) = record["input_shape"], record["map_size"]
    yield from ("## Conversion", "", "| part | | layers | parameters |", "|---|---|---|---:|")
    for part in record["parts"]:
        name, status, layers = (_cell(part[key]) for key in ("name", "status", "layers"))
        yield f"| {name} | {status} | {layers} | {part['parameters']:,} |"
    line = f"Map {map_h} x {map_w} at {height} x {width} px; pooling: {record['pool'].upper()}."
    if record["identity_error"] is not None:
        line += f" Identity error at conversion: {record['identity_error']:.1e}."
    yield from ("", line)


def _results(results: Mapping[str, Any]) -> list[str]:
    """The figures: those that have a counterpart beside it, then the others."""
    if not results:
        return []
    lines = ["## Results", ""]
    beside = {name: row for name, row in _ROWS.items() if row[0] in results}
    if beside:
        count = results.get("validation_images")
        many = f" ({count} images)" if count is not None else ""
        lines += [f"| on the validation split{many} | before | after | center box |", "|---|---:|---:|---:|"]
        for name, keys in beside.items():
            after, before, center = ("" if key is None or key not in results else _value(results[key]) for key in keys)
            lines.append(f"| {name} | {before} | {after} | {center} |")
        lines += ["", "Center box: what the best fixed box around the center reaches on the same images.", ""]
    shown_keys = {key for row in beside.values() for key in row}
    others = {key: value for key, value in results.items() if key not in shown_keys}
    if others:
        lines += ["| figure | value |", "|---|---:|"]
        lines += [f"| {_cell(key)} | {_value(value)} |" for key, value in others.items()]
        lines.append("")
    return lines


def _cell(value: Any) -> str:
    """A value as text that can neither leave its table cell nor become a tag, a link or an image."""
    return shown(" ".join(str(value).split())).translate(_ENTITIES)


def _value(value: Any) -> str:
    if value is None:
        return "not measured"
    return f"{value:.4g}" if isinstance(value, float) else _cell(value)
