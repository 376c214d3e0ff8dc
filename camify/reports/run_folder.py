"""What a run left on disk, as the page of the run shows it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..console import shell_quoted
from ..drawing.encoding import encoded
from ..errors import DataError
from ..former_names import with_current_keys
from ..image_files import open_image, upright_rgb
from .class_page import Example, class_view
from .run_page import Frame, ImageTrack, RunReport, share_text

__all__ = ["INDEX", "MAP_FIGURES", "RESULTS", "SCORES", "boxes_text", "calibrations_by_name", "read_run", "score_of"]

RESULTS, INDEX = "results.json", "overlays/index.json"
MAP_FIGURES = {
    "val/max_box_acc": ("box accuracy", "val/center_box_acc", "center box"),
    "val/object_box_acc": ("object maps", "val/center_box_acc", "center box"),
    "val/grid_pointing": ("grid pointing", "val/grid_chance", "chance"),
}
"""What is shown of the maps beside accuracy: the figure's name, and the baseline's figure and name."""
_OBJECTS = "val/object_box_acc"

SCORES = {"val/acc": "accuracy", "val/map": "mean average precision"}
"""What is shown of the classes: the figure's name; the second of labels that do not exclude each other."""

_MOST_BYTES = 13_500_000  # of the pictures in one page: a third more as text
_MOST_EPOCHS_OF_HIGHLIGHTS = 20


def read_run(folder: str | Path) -> RunReport:
    """The report of a run, from its ``results.json``, ``config.yaml`` and ``overlays/``.

    Of long runs with many images not every epoch's pictures are taken, but the first, the last and as many evenly
    between as keep the page below 20 MB; all of them stay in ``overlays/``.

    Raises:
        DataError: the folder holds no run, or a file of it cannot be read.
    """
    folder = Path(folder)
    try:
        results = with_current_keys(json.loads(_inside(folder, RESULTS).read_text(encoding="utf-8")))
        index = {}
        if (folder / INDEX).is_file():
            index = with_current_keys(json.loads(_inside(folder, INDEX).read_text(encoding="utf-8")))
        history = [{key: value for key, value in row.items() if value is not None} for row in results["history"]]
        quality = next((key for key in MAP_FIGURES if any(key in row for row in history)), next(iter(MAP_FIGURES)))
        name, baseline, beside = MAP_FIGURES[quality]
        has_objects = quality != _OBJECTS and any(_OBJECTS in row for row in history)
        objects = (_OBJECTS, MAP_FIGURES[_OBJECTS][0]) if has_objects else None
        score = score_of(*history)
        config = _inside(folder, "config.yaml")
        return RunReport(
            title=folder.resolve().name,
            finished=bool(results["finished"]),
            subtitle=f"{results['source']}, {len(results['classes'] or ())} classes, {results.get('data', 'data')}",
            certificate=results.get("certificate") or {},
            results=_rows(results, quality, objects and objects[0], score[0]),
            quality=(quality, name),
            objects=objects,
            boxes=boxes_text(results.get("exported") or {}, share_text) if results["finished"] else "",
            baseline=(beside, history[-1].get(baseline) if history else None),
            history=history,
            images=_images(folder / "overlays", index),
            config=config.read_text(encoding="utf-8") if config.is_file() else "",
            environment=results.get("environment", {}),
            commands=commands(folder),
            score=score,
            classes=_classes(folder / "overlays", results.get("classes_taken"), finished=bool(results["finished"])),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise DataError(
            f"{folder}: cannot be read as the folder of a run ({type(error).__name__}: {error}). It needs {RESULTS}, as"
            " `camify fit` leaves it."
        ) from error


def commands(folder: Path) -> list[tuple[str, str]]:
    """What to do next, with the command."""
    config, last = (shell_quoted(folder / name) for name in ("config.yaml", "last.ckpt"))
    return [
        (
            "Explain your own pictures with the exported network",
            f"camify explain PICTURE.jpg --model {shell_quoted(folder / 'export')} --out explained",
        ),
        ("Go on training", f"camify fit --config {config} --ckpt_path {last}"),
        ("Put it beside another run", f"camify report {shell_quoted(folder)} OTHER_RUN --out comparison.html"),
        ("See curves and overlays in TensorBoard", f"tensorboard --logdir {shell_quoted(folder)}"),
    ]


def score_of(*rows: Mapping[str, Any]) -> tuple[str, str]:
    """The figure of the classes that is there, key and name; accuracy where there is none yet."""
    return next(((key, name) for row in rows for key, name in SCORES.items() if key in row), next(iter(SCORES.items())))


def _rows(results: Mapping[str, Any], quality: str, objects: str | None, score: str) -> list[dict[str, Any]]:
    legacy, start, exported = (results.get(key) or {} for key in ("legacy", "start", "exported"))
    has_score = legacy.get(score) is not None
    rows = [
        {
            "name": "legacy network",
            "score": legacy.get(score),
            "quality": None,
            "note": "as it came; it has no class maps" if has_score else "other classes: not comparable",
        }
    ]
    later = [("converted", start, "before the first step")]
    if results["finished"] and exported:
        later.append(("converted and fine-tuned", exported, f"best epoch ({exported['epoch']:.0f}), exported"))
    for name, figures, note in later:
        if figures:
            shares = {"score": figures.get(score), "quality": figures.get(quality), "objects": figures.get(objects)}
            rows.append({"name": name, **shares, "note": note})
    return rows


def boxes_text(exported: Mapping[str, Any], share: Callable[[float], str]) -> str:
    """How the exported network cuts its boxes, and how often they are right; empty before there is one."""
    rule, right = exported.get("boxes"), exported.get("boxes_right")
    if not rule or right is None:
        return rule or ""
    return f"{rule}: right on {share(right)} of the validation images (cross-validated)"


def calibrations_by_name(calibrations: Mapping[str, Any], *, finished: bool) -> dict[str, Any]:
    """Calibrations of a run's networks (``legacy``, ``start``, ``now``), by what a page calls them."""
    names = {"legacy": "legacy network", "start": "converted, before training"}
    return {names.get(who, "fine-tuned" if finished else "now"): known for who, known in calibrations.items()}


def _classes(overlays: Path, taken: Mapping[str, Any] | None, *, finished: bool) -> dict[str, Any] | None:
    """Which class is taken for which; None in runs of older versions."""
    if taken is None:
        return None
    calibrations = calibrations_by_name(taken["calibrations"], finished=finished)
    examples = [
        Example(entry["true"], entry["predicted"], _webp(_inside(overlays, entry["file"])), entry["caption"])
        for entry in taken["examples"]
    ]
    note = ""
    if not examples and (taken["figures"].get("pairs") or taken["can_be_shown"]):
        note = "The images behind the cells are drawn when training ends."
        if finished or not taken["can_be_shown"]:
            note = (
                "The images behind the cells are not known: the data are a stream, or drawn in an order of their own."
            )
    what = f"the validation images in epoch {taken['epoch']:g}{', which was exported' if finished else ''}"
    return class_view(taken["figures"], examples, what, calibrations, note)


# ---------------------------------------------------------------- pictures


def _images(overlays: Path, index: Mapping[str, Any]) -> list[ImageTrack]:
    highlights = _highlights(overlays, index)
    room = _MOST_BYTES - sum(frame.size for track in highlights for frame in track.frames)
    return [*_watched(overlays, index, room), *highlights]


def _watched(overlays: Path, index: Mapping[str, Any], room: int) -> list[ImageTrack]:
    """The watched images, in as many epochs as have room (bytes), going by how large the last one's pictures are."""
    images = index.get("watched", [])
    strips = [  # before there were several methods: one
        {name: _webp(_inside(overlays, file)) for name, file in (image.get("strips") or {"": image["strip"]}).items()}
        for image in images
    ]
    epochs = sorted({frame["epoch"] for image in images for frame in image["frames"]})
    if len(epochs) > 2:
        last = [
            _frame(overlays, frame) for image in images for frame in image["frames"] if frame["epoch"] == epochs[-1]
        ]
        room -= sum(len(strip) for by_method in strips for strip in by_method.values())
        most = max(2, room // max(1, sum(frame.size for frame in last)))
        if len(epochs) > most:
            epochs = [epochs[round(place * (len(epochs) - 1) / (most - 1))] for place in range(most)]
    return [
        ImageTrack(
            image["name"],
            image["true"],
            [_frame(overlays, frame) for frame in image["frames"] if frame["epoch"] in epochs],
            by_method,
            sha256=image.get("sha256", ""),
        )
        for image, by_method in zip(images, strips, strict=True)
    ]


def _highlights(overlays: Path, index: Mapping[str, Any]) -> list[ImageTrack]:
    highlights = index.get("highlights", [])
    epochs = sorted({highlight["epoch"] for highlight in highlights})[-_MOST_EPOCHS_OF_HIGHLIGHTS:]
    return [
        ImageTrack(highlight["name"], highlight["true"], [_frame(overlays, highlight)], {}, highlight["kind"])
        for highlight in highlights
        if highlight["epoch"] in epochs
    ]


def _frame(overlays: Path, entry: Mapping[str, Any]) -> Frame:
    predicted = _webp(_inside(overlays, entry["predicted"])) if "predicted" in entry else None
    return Frame(
        entry["epoch"], _webp(_inside(overlays, entry["file"])), entry["caption"], entry.get("method", ""), predicted
    )


def _inside(folder: Path, file: str) -> Path:
    """A file of a folder; nothing that the name, or a link, leads to elsewhere on the disk gets into a page."""
    path = (folder / file).resolve()
    if folder.resolve() not in path.parents:
        raise DataError(f"{folder / file}: lies outside {folder}")
    return path


def _webp(path: Path) -> bytes:
    return _encoded(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2048)
def _encoded(path: Path, changed: int) -> bytes:  # noqa: ARG001 - a file that changed is read anew
    """A picture as WebP, a fifth of its PNG."""
    with open_image(path) as picture:
        return encoded(upright_rgb(picture), "webp")
