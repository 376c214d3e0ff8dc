"""Explaining many image files: pictures, raw maps, boxes and figures, streamed and resumable."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ..boxes import component_boxes
from ..errors import ConfigError
from ..files import slug, write_whole
from ..methods import PRECISIONS, Method, make_methods
from ..preprocessing import Preprocessing
from ..report.encoding import encoded
from ..report.overlay import ClassMap, Region, grid_picture, overlay_picture
from .batch_maps import batch_maps, precision_error
from .image_batches import Batch, image_batches
from .inference_speed import fastest_format, folded

__all__ = ["ExplainOptions", "Summary", "explain_files"]

SETTINGS, RESULTS = "explain.json", "results.jsonl"
_FORMATS = ("png", "jpg")
_FEW = 64  # images, for which preparing the network for speed does not pay


@dataclass(frozen=True)
class ExplainOptions:
    """What is drawn and written.

    Attributes:
        methods: names of explanation methods, all from one forward.
        targets: classes by index, the same for every image; empty: the ``topk`` most probable of each image.
        topk: how many classes.
        layer: exact name of the module whose map is looked at; None is the last spatial map.
        options: of the methods, such as ``variant``.
        threshold: share of a map's range above which its box lies.
        colormap: name in ``matplotlib.colormaps``.
        picture: ``"png"`` or ``"jpg"``.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"`` (autocast).
    """

    methods: tuple[str, ...] = ("cam",)
    targets: tuple[int, ...] = ()
    topk: int = 1
    layer: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    threshold: float = 0.2
    colormap: str = "inferno"
    picture: str = "png"
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if self.topk < 1 or not 0 <= self.threshold < 1:
            raise ConfigError(f"topk={self.topk} must be at least 1, threshold={self.threshold} in [0, 1).")
        if self.picture not in _FORMATS or self.precision not in PRECISIONS:
            raise ConfigError(
                f"picture={self.picture!r}: choose {' or '.join(_FORMATS)}; precision={self.precision!r}: choose one of"
                f" {', '.join(PRECISIONS)}."
            )


@dataclass
class Summary:
    """What a run did.

    Attributes:
        results: how many images were explained.
        before: how many were done before.
        unreadable: what could not be read, with the reason.
        memory_format: in which the network ran.
        precision_error: of reduced precision on the first images (see ``precision_error``).
    """

    results: int = 0
    before: int = 0
    unreadable: dict[Path, str] = field(default_factory=dict)
    memory_format: str = "as it was"
    precision_error: tuple[float, float] | None = None


def explain_files(
    model: nn.Module,
    preprocessing: Preprocessing,
    files: Sequence[Path],
    out: Path,
    options: ExplainOptions,
    *,
    source: str,
    class_names: Sequence[str],
    batch_size: int = 16,
    workers: int = 1,
    overwrite: bool = False,
    progress: Callable[[Iterable[Batch], int], Iterable[Batch]] = lambda batches, _: batches,
    report: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Summary:
    """Write for every image NAME_cam.png, NAME.npy (raw maps, classes x methods x h x w) and a line of results.jsonl.

    A line is written when the image's files are whole: a run that was interrupted goes on behind the last one. Memory
    does not depend on the number of images.

    Args:
        model: in any mode; it may be put into another memory format.
        preprocessing: how an image becomes an input.
        files: images; those that cannot be read are named in the summary.
        out: folder to write, new or of the same run.
        options: what is drawn.
        source: what the model was, for the record.
        class_names: of the model's classes.
        batch_size: images in one forward.
        workers: processes that decode images.
        overwrite: begin anew in a folder of another run, and replace what has the same name.
        progress: wraps the batches, given their number, for a progress bar.
        report: is called with every result.

    Raises:
        ConfigError: the folder holds another run, or other files.
        ConversionError: a method needs a CAM-ready network.
    """
    settings = {"model": source, **asdict(options), "methods": list(options.methods), "targets": list(options.targets)}
    done = _done_before(out, settings, overwrite)
    names = _names(files, out, done, options.picture, overwrite)
    pending = [path for path in files if str(path) not in done]
    summary = Summary(before=len(files) - len(pending))
    if options.layer is None and len(pending) > _FEW:
        model = folded(model)
    methods = make_methods(model, options.methods, options.layer, options.options)
    batches = image_batches(pending, preprocessing, batch_size=batch_size, workers=workers)

    def forwards() -> Iterator[list[Callable[[], dict[str, Any]]]]:
        for index, batch in enumerate(progress(batches, len(batches))):
            summary.unreadable |= batch.unreadable
            if index == 0 and batch.paths and len(pending) > _FEW:
                summary.memory_format = fastest_format(model, batch.images)
            if summary.precision_error is None and batch.paths and options.precision != "fp32":
                summary.precision_error = precision_error(
                    model, batch.images[:4], methods, layer=options.layer, precision=options.precision
                )
            if batch.paths:
                yield _jobs(batch, model, methods, preprocessing, options, class_names, names, out)

    work = forwards()
    first = next(work, None)  # what is wrong with the network or the options shows before anything is written
    if first is None:
        return summary
    if not done:
        _begin(out, settings)
    with ThreadPoolExecutor(2) as pool, (out / RESULTS).open("a", encoding="utf-8") as results:
        waiting: list[Future[dict[str, Any]]] = []
        for jobs in chain([first], work):
            waiting, ready = [pool.submit(job) for job in jobs], waiting
            _record(ready, results, summary, report)
        _record(waiting, results, summary, report)
    return summary


def _record(
    ready: Iterable[Future[dict[str, Any]]], results: Any, summary: Summary, report: Callable[[dict[str, Any]], None]
) -> None:
    for future in ready:
        result = future.result()
        results.write(json.dumps(result, ensure_ascii=False) + "\n")
        results.flush()
        summary.results += 1
        report(result)


# ---------------------------------------------------------------- the folder


def _done_before(out: Path, settings: dict[str, Any], overwrite: bool) -> dict[str, str]:
    """The images that this run has done before it was interrupted, with the names of their files."""
    record = out / SETTINGS
    written = json.loads(json.dumps(settings))
    if record.is_file() and not overwrite:
        try:
            before = json.loads(record.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{record}: cannot be read ({error}). Choose another --out.") from error
        changed = [key for key in written if not isinstance(before, dict) or before.get(key) != written[key]]
        if changed:
            raise ConfigError(
                f"{out}: was made with another {', '.join(changed)}. Choose another --out, or add --overwrite true."
            )
        return _done(out / RESULTS)
    return {}


def _begin(out: Path, settings: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / RESULTS).unlink(missing_ok=True)
    write_whole(out / SETTINGS, json.dumps(settings, indent=1))


def _done(results: Path) -> dict[str, str]:
    """Images of a results file, and what their files are called; a last line that was cut off is removed."""
    if not results.is_file():
        return {}
    lines = results.read_bytes().split(b"\n")
    if lines.pop():  # the rest of an interrupted line
        write_whole(results, b"".join(line + b"\n" for line in lines))
    found = [json.loads(line) for line in lines]
    return {result["image"]: result["name"] for result in found}


def _names(files: Sequence[Path], out: Path, done: dict[str, str], picture: str, overwrite: bool) -> dict[Path, str]:
    """A name for the files of every image that is still to be done; equal names get a number."""
    taken, names = set(done.values()), {}
    for path in files:
        if str(path) in done:
            continue
        stem = name = slug(path.stem)
        number = 2
        while name in taken:
            name, number = f"{stem}_{number}", number + 1
        taken.add(name)
        names[path] = name
    # Where a run was interrupted between an image's files and its line, they are this run's own.
    if not done and not overwrite:
        for name in names.values():
            for path in (out / f"{name}_cam.{picture}", out / f"{name}.npy"):
                if path.exists():
                    raise ConfigError(f"{path}: exists. Choose another --out, or add --overwrite true.")
    return names


# ---------------------------------------------------------------- one batch


def _jobs(
    batch: Batch,
    model: nn.Module,
    methods: dict[str, Method],
    preprocessing: Preprocessing,
    options: ExplainOptions,
    class_names: Sequence[str],
    names: dict[Path, str],
    out: Path,
) -> list[Callable[[], dict[str, Any]]]:
    """One forward; for every image what draws and writes its files and gives its line."""
    seen = batch_maps(
        model,
        batch.images,
        methods,
        targets=options.targets,
        topk=options.topk,
        layer=options.layer,
        precision=options.precision,
    )
    logits, targets, raw = seen.logits, seen.targets, seen.raw
    size = (batch.images.shape[-2], batch.images.shape[-1])
    hot = _hot(raw, list(methods.values()), size, options.threshold)
    probabilities, pictures = logits.softmax(1), preprocessing.restore(batch.images)

    def job(index: int) -> Callable[[], dict[str, Any]]:
        path, name = batch.paths[index], names[batch.paths[index]]
        chosen = targets[index].tolist()
        classes = [
            {
                "class": class_names[k],
                "index": k,
                "logit": float(logits[index, k]),
                "probability": float(probabilities[index, k]),
            }
            for k in chosen
        ]

        def run() -> dict[str, Any]:
            for entry, maps, masks in zip(classes, raw[index], hot[index], strict=True):
                entry["maps"] = {
                    method: _figures(one, mask, batch.sizes[index])
                    for method, one, mask in zip(methods, maps, masks, strict=True)
                }
            picture = _picture(pictures[index], list(methods), classes, raw[index], hot[index], options, path.name)
            files = {"picture": f"{name}_cam.{options.picture}", "raw_maps": f"{name}.npy"}
            write_whole(out / files["picture"], encoded(picture, options.picture))
            write_whole(out / files["raw_maps"], _array(raw[index]))
            return {"image": str(path), "name": name, "size": list(batch.sizes[index]), **files, "classes": classes}

        return run

    return [job(index) for index in range(len(batch.paths))]


def _hot(raw_NTMhw: Tensor, methods: Sequence[Method], size: tuple[int, int], threshold: float) -> NDArray[np.bool_]:
    """Where heat is above the threshold, (N, T, M, H, W); class by class, method by method, as heat is large."""
    hot = np.zeros((*raw_NTMhw.shape[:3], *size), dtype=bool)
    for t, (m, method) in product(range(hot.shape[1]), enumerate(methods)):
        hot[:, t, m] = (method.heat(raw_NTMhw[:, t, m], size) > threshold).numpy()
    return hot


def _figures(map_hw: Tensor, hot_HW: NDArray[np.bool_], file_size: tuple[int, int]) -> dict[str, Any]:
    """Range of a raw map, and the box of its largest region in pixels of the file (xyxy, exclusive)."""
    boxes = component_boxes(hot_HW, largest=True)
    factors = np.array([file_size[1] / hot_HW.shape[1], file_size[0] / hot_HW.shape[0]] * 2)
    return {
        "low": float(map_hw.min()),
        "high": float(map_hw.max()),
        "constant": not hot_HW.any(),
        "box": [round(float(value), 1) for value in boxes[0] * factors] if len(boxes) else None,
    }


def _picture(
    image: Tensor,
    methods: list[str],
    classes: list[dict[str, Any]],
    maps_TMhw: Tensor,
    hot_TMHW: NDArray[np.bool_],
    options: ExplainOptions,
    title: str,
) -> Image.Image:
    rows = [
        [ClassMap(entry["class"], one, entry["logit"], entry["probability"]) for one in maps]
        for entry, maps in zip(classes, maps_TMhw, strict=True)
    ]
    if len(methods) == len(rows) == 1:
        scale, region = float(rows[0][0].map_hw.max()), Region(hot_TMHW[0, 0], options.threshold)
        return overlay_picture(
            image, None, rows[0][0], scale=scale, region=region, colormap=options.colormap, title=title
        )
    return grid_picture(image, methods, rows, colormap=options.colormap, title=title)


def _array(maps: Tensor) -> bytes:
    content = io.BytesIO()
    np.save(content, maps.numpy())
    return content.getvalue()
