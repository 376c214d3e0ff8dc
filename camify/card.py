"""The model card: ``README.md`` of a checkpoint folder, from its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["model_card"]

_ENTITIES = {ord(character): f"&#{ord(character)};" for character in "&<>|[]`*\\"}

_USE = """\
```python
import camify

model = camify.load("path/to/this/folder")        # torch and camify; no legacy code, no pickle
logits, maps = model.forward_with_maps(images)    # (N, K), (N, K, h, w)
```

`mean(map) + bias = logit` holds for every class: a map says where the evidence for a class lies in the
picture, and its mean is the score. It does not say why the evidence counts, that the decision is right, or
where an object ends.
"""


def model_card(manifest: Mapping[str, Any]) -> str:
    """Markdown with what the network is, how to use it, its classes and its figures."""
    record, shape = manifest["certificate"] or {}, manifest["architecture"]
    lines = ["---", "library_name: camify", "tags: [image-classification, class-activation-maps]", "---", ""]
    lines += [f"# {_cell(record.get('source', 'network'))}, CAM-ready", ""]
    lines += [f"An image classifier of {shape['num_classes']} classes whose maps are an output.", "", _USE]
    if record:
        (_, height, width), (map_h, map_w) = record["input_shape"], record["map_size"]
        lines += ["## Conversion", "", "| part | | layers | parameters |", "|---|---|---|---:|"]
        for part in record["parts"]:
            name, status, layers = (_cell(part[key]) for key in ("name", "status", "layers"))
            lines.append(f"| {name} | {status} | {layers} | {part['parameters']:,} |")
        lines += ["", f"Map {map_h} x {map_w} at {height} x {width} px; pooling: {record['pool'].upper()}."]
        if record["identity_error"] is not None:
            lines[-1] += f" Identity error at conversion: {record['identity_error']:.1e}."
        lines.append("")
    if manifest["results"]:
        lines += ["## Results", "", "| figure | value |", "|---|---:|"]
        lines += [f"| {_cell(key)} | {_value(value)} |" for key, value in manifest["results"].items()]
        lines.append("")
    if manifest["preprocessing"]:
        lines += ["## Preprocessing", "", "| step | value |", "|---|---|"]
        lines += [f"| {_cell(key)} | {_cell(value)} |" for key, value in manifest["preprocessing"].items()]
        lines.append("")
    if manifest["class_names"]:
        names = ", ".join(_cell(name) for name in manifest["class_names"][:200])
        more = " ..." if shape["num_classes"] > 200 else ""
        lines += ["## Classes", "", f"In order: {names}{more}", ""]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    """A value as text that can neither leave its table cell nor become a tag, a link or an image."""
    return " ".join(str(value).translate(_ENTITIES).split())


def _value(value: Any) -> str:
    if value is None:
        return "not measured"
    return f"{value:.4g}" if isinstance(value, float) else _cell(value)
