"""export_web: a CAM-ready network as a folder for any web server; it runs in the browser, with nothing behind it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..boxes import DEFAULT_RULE
from ..console import shell_quoted
from ..drawing.primitives import tint_parts
from ..errors import ConfigError, ConversionError
from ..exporters import Exported, export, open_exported
from ..files import WEB_PAGE, free_folder, to_json, whole_folder
from ..model import CAMNet
from ..reports.html import STYLE, render
from ..sources.exported_files import rule_of_maps
from .runtime import CDN, SCRIPT, WASM, Runtime, integrity_of, published_runtime, runtime_of

__all__ = ["OWN_FILES", "WebFolder", "export_web"]

MODEL, PAGE, STYLESHEET = "model.onnx", "index.html", "style.css"
CODE = ("page.js", "session.js", "downloads.js", "maps.js", "network.js")
OWN_FILES = (WEB_PAGE, MODEL, PAGE, STYLESHEET, *CODE, "runtime", f"runtime/{SCRIPT}", f"runtime/{WASM}")
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class WebFolder:
    """What was written.

    Attributes:
        path: the folder.
        exported: the ONNX file in it.
        bytes: of all that a browser loads for it.
        runtime: version of onnxruntime-web, and where browsers get it.
        notes: what has to be said.
    """

    path: Path
    exported: Exported
    bytes: int
    runtime: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{self.path} ({self.bytes / 1e6:.1f} MB to load): {PAGE} runs the network in the browser",
            f"onnxruntime-web {self.runtime}",
            str(self.exported),
            *self.notes,
            f"Serve it: python -m http.server --directory {shell_quoted(self.path)} 8000, then open http://localhost:8000",
        ]
        return "\n".join(lines)


def export_web(
    model: CAMNet,
    folder: str | Path,
    *,
    runtime: str | Path | None = None,
    input_size: int | tuple[int, int] | None = None,
    opset: int | None = None,
    precision: str = "fp32",
    images: Tensor | None = None,
    labels: Tensor | None = None,
    overwrite: bool = False,
) -> WebFolder:
    """Write a folder that any static web server can serve: the network runs in the browser, camera included.

    The page takes pictures as they are; resizing and normalizing happen inside the ONNX file, so that its answers are
    those of Python. The folder is written whole or not at all.

    Args:
        model: the network; left as it is.
        folder: new or empty, or one that this function wrote before.
        runtime: the folder of npm's package onnxruntime-web, whose files are copied beside the page; None: browsers
            load them from a public server (jsdelivr) and compare their hashes.
        input_size: of the pictures that are traced, see ``camify.export``.
        opset: of ONNX; None takes torch's.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``: smaller files.
        images: with fp16 and int8, uint8 RGB pictures (N, H, W, 3) to measure what that loses.
        labels: (N,) their classes.
        overwrite: replace a folder that this function wrote before.

    Raises:
        ConfigError: the folder holds something else, the runtime's files are not there, or the model does not say how
            a picture becomes its input.
        ConversionError: the network cannot be exported, or takes no single picture.
        CheckpointError: the ONNX file does not give what the network gives.
    """
    folder = Path(folder)
    if not isinstance(model, CAMNet):
        raise ConfigError(f"export_web takes a CAMNet, not a {type(model).__name__}. Use camify.convert(model) first.")
    if model.preprocessing is None:
        raise ConfigError(
            f"{folder}: the page needs to know how a picture becomes the input, and the model does not say. Set"
            " model.preprocessing (see camify.Preprocessing), save it and export that."
        )
    if model.preprocessing.input_format == "channels":
        raise ConfigError(
            f"{folder}: the network takes {model.preprocessing.channels} channels, which no picture in a browser has."
            " Export it with --to onnx, and give the file prepared tensors."
        )
    free_folder(folder, WEB_PAGE, OWN_FILES, "--out", overwrite=overwrite)
    engine = published_runtime() if runtime is None else runtime_of(runtime)
    with whole_folder(folder) as aside:
        exported = export(
            model, aside / MODEL, preprocess=True, input_size=input_size, opset=opset, precision=precision,
            images=images, labels=labels,
        )  # fmt: skip
        about, notes = page_data(model, exported, engine)
        _write(aside, about, engine)
        exported = replace(exported, path=folder / MODEL)
    where = f"from {CDN}, by its hashes" if engine.folder is None else "beside the page"
    size = sum(file["bytes"] for file in about["files"].values())
    return WebFolder(folder, exported, size, f"{engine.version} {where}", tuple(notes))


def page_data(model: CAMNet, exported: Exported, engine: Runtime) -> tuple[dict[str, Any], list[str]]:
    """What the page knows of the network, as JSON values, and what has to be said.

    Raises:
        ConversionError: the file takes several pictures at a time only.
    """
    record = open_exported(exported.path).record
    if "batch" not in record["dynamic"]:
        raise ConversionError(
            f"{MODEL}: takes batches of one fixed size only, and a page has one picture. {' '.join(exported.notes)}"
        )
    preprocessing, classes = model.preprocessing, model.classes
    if preprocessing is None:  # asked before; the file could not have been written
        raise ConfigError("the model does not say how a picture becomes its input.")
    rule, notes = rule_of_maps(model.box_rule or DEFAULT_RULE, "object_maps" in exported.outputs)
    content = exported.path.read_bytes()
    script, wasm = engine.files
    picture_size = None if {"height", "width"} <= set(record["dynamic"]) else record["input"]["size"]
    if picture_size is not None:
        notes.append(f"the browser resizes pictures to {picture_size[0]} x {picture_size[1]}: answers differ a little")
    about = {
        "title": title_of(record["source"]),
        "source": record["source"],
        "license": record["license"],
        "camify_version": record["camify_version"],
        "precision": record["precision"],
        "task": str(classes.task),
        "task_is_known": model.task_is_known,
        "classes": classes.titles(model.num_classes),
        "named": classes.names is not None,
        "positive": classes.positive,
        "untrained": record["untrained"],
        "pool": record["pool"],
        "input_size": [preprocessing.height, preprocessing.width],
        "picture_size": picture_size,
        "kinds": kinds_of(model),
        "rule": (rule or DEFAULT_RULE).to_dict(),
        "rule_text": str(rule or DEFAULT_RULE),
        "notes": [*notes, *([] if exported.loss is None else [f"{record['precision']}: {exported.loss}"])],
        "runtime": engine.version,
        "files": {
            "model": {"url": MODEL, "bytes": len(content), "integrity": integrity_of(content)},
            "script": {"url": engine.address + script.name, "bytes": script.bytes, "integrity": script.integrity},
            "wasm": {"url": engine.address + wasm.name, "bytes": wasm.bytes, "integrity": wasm.integrity},
        },
        "tint": [[round(float(value), 4) for value in row] for row in tint_parts("inferno")],
    }
    return about, notes


def kinds_of(model: CAMNet) -> list[str]:
    """The kinds of maps that differ for this network and are in its file."""
    contrast = ["contrast"] if model.task.exclusive and model.num_classes > 1 else []
    return ["plain", *contrast, *(["object"] if model.object_weight is not None else [])]


def title_of(source: str) -> str:
    """A network's name for a heading."""
    return source.partition("@")[0].rstrip("/").rpartition("/")[2] or "Network"


def _write(folder: Path, about: dict[str, Any], engine: Runtime) -> None:
    outside = CDN if engine.folder is None else ""
    page = render(_HERE / "index.html.j2", title=about["title"], outside=outside)
    (folder / PAGE).write_text(page, encoding="utf-8")
    styles = (STYLE, _HERE / "page.css")
    (folder / STYLESHEET).write_text("\n".join(path.read_text("utf-8") for path in styles), encoding="utf-8")
    for name in CODE:
        (folder / name).write_bytes((_HERE / name).read_bytes())
    if engine.folder is not None:
        (folder / engine.address).mkdir()
        for file in engine.files:
            (folder / engine.address / file.name).write_bytes((engine.folder / file.name).read_bytes())
    (folder / WEB_PAGE).write_text(to_json(about, indent=None), encoding="utf-8")
