"""Explaining many image files: pictures, raw maps, boxes and figures, streamed and resumable."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..boxes import BoxRule
from ..data.box_formats.writing import BOX_FILES, BoxFiles, refuse_foreign, refuse_shared_labels, relative_names
from ..data.image_checks import constant_notes, gray_range_notes
from ..drawing.encoding import encoded
from ..drawing.grid import POSITIVE, Cell, Row, grid_figure
from ..drawing.overlay import ClassMap, Region, overlay_picture
from ..drawing.primitives import PANEL
from ..errors import ConfigError
from ..files import write_whole
from ..image_files import GrayRange
from ..methods import PRECISIONS, check_targets, make_methods
from ..progress import tracked
from ..ranks import ONE, Ranks
from .explained_boxes import write_explained_boxes
from .explained_folder import RESULTS, ExplainedFolder, file_stamp, model_sha256
from .images import ImageBatch, image_batches
from .network import ExplainedNetwork, box_maps, box_rules
from .timing import fastest_format, folded, use_format

__all__ = ["ExplainOptions", "Summary", "explain_files"]

_T = TypeVar("_T")
_FORMATS = ("png", "jpg")
_FEW = 64  # images, for which preparing the network for speed does not pay


@dataclass(frozen=True)
class ExplainOptions:
    """What is drawn and written.

    Attributes:
        targets: classes by index, the same for every image; empty: the ``topk`` most probable of each image, of one
            logit first the class that it stands for.
        topk: how many classes.
        threshold: of the normalized map, in [0, 1), from which on a pixel belongs to its box; None takes that of the
            box rule: of ``cam`` the network's own where it has one, else ``camify.boxes.DEFAULT_RULE``, by Otsu.
        colormap: name in ``matplotlib.colormaps``.
        picture: ``"png"`` or ``"jpg"``.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"`` (autocast).
    """

    targets: tuple[int, ...] = ()
    topk: int = 1
    threshold: float | None = None
    colormap: str = "inferno"
    picture: str = "png"
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if self.topk < 1 or not (self.threshold is None or 0 <= self.threshold < 1):
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
        precision_error: what reduced precision changes on the first images: the largest difference of a probability,
            and that of a map in shares of its peak.
        box_rules: by method, how its boxes are cut.
        notes: what had to be assumed.
        box_files: files of boxes for other tools.
        gray_ranges: the values of gray files of more than 8 bits.
        constant: files all of whose pixels are equal.
    """

    results: int = 0
    before: int = 0
    unreadable: dict[Path, str] = field(default_factory=dict)
    memory_format: str = "as it was"
    precision_error: tuple[float, float] | None = None
    box_rules: dict[str, BoxRule] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    box_files: list[Path] = field(default_factory=list)
    gray_ranges: dict[Path, GrayRange] = field(default_factory=dict)
    constant: list[Path] = field(default_factory=list)


def explain_files(
    network: ExplainedNetwork,
    files: Sequence[Path],
    out: Path,
    options: ExplainOptions,
    *,
    batch_size: int = 16,
    workers: int = 1,
    overwrite: bool = False,
    boxes: BoxFiles | None = None,
    inputs: Sequence[Path] = (),
    progress: Callable[[Iterable[ImageBatch], str, int], Iterable[ImageBatch]] = tracked,
    report: Callable[[dict[str, Any]], None] = lambda _: None,
    ranks: Ranks = ONE,
) -> Summary:
    """Write for every image NAME_cam.png, NAME.npy (raw maps, classes x methods x h x w) and a line of results.jsonl.

    A line is written when the image's files are whole: a run that was interrupted goes on behind the last one, with the
    same network (by its hash), and does again what has changed or was damaged. A file that cannot be read has a line
    with its ``error``. Of several processes each explains whole batches, in turns: files, names and the order of the
    lines are those of one process, and any number of them goes on with what any number began. Memory does not depend on
    the number of images. ``explain.json`` holds the options, the box rules and the network's hash.

    Args:
        network: with its methods, all from one forward; it may be put into another memory format.
        files: images; those that cannot be read are named in the summary.
        out: folder to write, new or of the same run.
        options: what is drawn.
        batch_size: images in one forward.
        workers: processes that decode images.
        overwrite: begin anew in a folder of another run, and replace what has the same name.
        boxes: files for other tools with the boxes of the first method, of all images in the folder.
        inputs: files and folders that were given: names in these files are relative to the folder of all of them.
        progress: wraps the batches, given what they are called and their number.
        report: is called with every result, in order; of several processes in the first one, at the end.
        ranks: of several processes, which all call this.

    Returns:
        What the run did; in a process that is not the first its own part.

    Raises:
        ConfigError: the folder holds another run, or other files, or another process writes there.
        ConversionError: a method needs a CAM-ready network.
    """
    rules = box_rules(network.methods, options.threshold)
    with ExitStack() as stack:
        with ranks.agree():
            _require_box_files(boxes, out, files, inputs)
            settings = _settings(network, options, rules)
            folder = ExplainedFolder(out, settings, overwrite, ranks)
        pending, names, before = ranks.first(lambda: _plan(stack.enter_context(folder), files, options))
        stack.callback(folder.end)
        summary = Summary(before=before, box_rules=rules, notes=folder.notes)
        own = ranks.share(pending, batch_size)
        loader = image_batches(own, network.preprocessing, batch_size=batch_size, workers=workers)
        batches = iter(progress(loader, "explaining, batch", len(loader)) if ranks.is_first else loader)
        waiting = list[ImageBatch]()
        shared = ranks.first(lambda: _first_images(batches, waiting))  # on which all processes prepare alike
        if shared is not None and len(pending) > _FEW:
            network = _prepared(network, shared, ranks, summary)
        steps = _explained(chain(waiting, batches), network, rules, options, summary, measure=ranks.is_first)
        with ranks.agree():
            started = list(islice(steps, 1))  # what is wrong shows before anything is written
        if pending:
            folder.begin()
        now, joined = (report, _nobody) if ranks.world_size == 1 else (_nobody, report)
        write, restore = partial(_write_image, network, options), network.preprocessing.restore
        _write_all(chain(started, steps), write, restore, out, names, folder, summary, now)
        for path, reason in summary.unreadable.items():
            folder.write({"image": str(path), "file": file_stamp(path), "error": reason})
        folder.end()
        parts = ranks.gather(summary)
        ranks.first(lambda: folder.join(files, joined))
        if not parts:
            return summary
        whole = _whole_summary(parts, files)
        if boxes is not None and boxes.kinds:
            method, model = next(iter(network.methods)), f"{network.name} {settings['model_sha256'][:12]}"
            whole.box_files = write_explained_boxes(out, out / RESULTS, method, inputs, network.titles, model, boxes)
            if len(network.methods) > 1:
                whole.notes.append(f"the files of boxes hold those of {method}, the first method")
        return whole


def _nobody(_: dict[str, Any]) -> None:
    """Nothing is reported."""


def _settings(network: ExplainedNetwork, options: ExplainOptions, rules: Mapping[str, BoxRule]) -> dict[str, Any]:
    return {
        "model": network.name, **asdict(options), "targets": list(options.targets), "methods": list(network.methods),
        "layer": network.layer, "options": network.options, "task": network.classes.task.value,
        "box_rules": {name: rule.to_dict() for name, rule in rules.items()},
        "bits": network.preprocessing.bits, "model_sha256": model_sha256(network.model),
    }  # fmt: skip


def _plan(
    folder: ExplainedFolder, files: Sequence[Path], options: ExplainOptions
) -> tuple[list[Path], dict[Path, str], int]:
    """What is still to be done, the names of its output, and how many are done."""
    pending = folder.pending(files)
    return pending, folder.names(pending, (f"_cam.{options.picture}", ".npy")), len(files) - len(pending)


def _first_images(batches: Iterator[ImageBatch], read: list[ImageBatch]) -> Tensor | None:
    """The first images that can be read; the batches up to theirs are added to ``read``."""
    for batch in batches:
        read.append(batch)
        if batch.paths:
            return batch.images
    return None


def _prepared(network: ExplainedNetwork, images: Tensor, ranks: Ranks, summary: Summary) -> ExplainedNetwork:
    """The network as it runs fastest on images (N, C, H, W); the same in all processes."""
    with ranks.agree():
        network = _with_folded_norms(network, images)
    summary.memory_format = ranks.first(lambda: fastest_format(network.model, images))
    if not ranks.is_first:
        use_format(network.model, summary.memory_format)
    return network


def _explained(
    batches: Iterable[ImageBatch], network: ExplainedNetwork, rules: Mapping[str, BoxRule], options: ExplainOptions,
    summary: Summary, *, measure: bool,
) -> Iterator[tuple[ImageBatch, _BatchMaps]]:  # fmt: skip
    """Batches with images that could be read, and their maps; what is seen of the files goes into the summary."""
    for batch in batches:
        summary.unreadable |= batch.unreadable
        summary.gray_ranges |= batch.gray_ranges
        summary.constant += batch.constant
        if not batch.paths:
            continue
        if measure and summary.precision_error is None and options.precision != "fp32":
            summary.precision_error = _precision_error(network, batch.images[:4], rules, options)
        yield batch, _batch_maps(network, batch.images, rules, options)


def _write_all(
    steps: Iterable[tuple[ImageBatch, _BatchMaps]], write: Callable[..., dict[str, Any]],
    restore: Callable[[Tensor], Tensor], out: Path,
    names: Mapping[Path, str], folder: ExplainedFolder, summary: Summary, report: Callable[[dict[str, Any]], None],
) -> None:  # fmt: skip
    """Draw beside the next forward: the rows of a batch are written when that is made."""
    waiting = list[Future[dict[str, Any]]]()
    with ThreadPoolExecutor(2) as pool:
        for batch, maps in steps:
            pictures, ready = restore(batch.images), waiting
            waiting = [
                pool.submit(write, maps, index, picture, path, size, out / names[path])
                for index, (picture, path, size) in enumerate(zip(pictures, batch.paths, batch.sizes, strict=True))
            ]
            _record(ready, folder, summary, report)
        _record(waiting, folder, summary, report)


def _whole_summary(parts: Sequence[Summary], files: Sequence[Path]) -> Summary:
    """The summary of all processes, and its notes, in the order of the files."""
    places = {path: place for place, path in enumerate(files)}
    whole = replace(
        parts[0],
        results=sum(part.results for part in parts),
        unreadable=_in_order([part.unreadable for part in parts], places),
        gray_ranges=_in_order([part.gray_ranges for part in parts], places),
        constant=sorted((path for part in parts for path in part.constant), key=places.__getitem__),
    )
    whole.notes = [
        *parts[0].notes, *gray_range_notes(whole.gray_ranges.items()),
        *constant_notes(whole.constant, len(whole.constant), whole.results),
    ]  # fmt: skip
    return whole


def _in_order(parts: Sequence[Mapping[Path, _T]], places: Mapping[Path, int]) -> dict[Path, _T]:
    together = {path: value for part in parts for path, value in part.items()}
    return {path: together[path] for path in sorted(together, key=places.__getitem__)}


def _require_box_files(boxes: BoxFiles | None, out: Path, files: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Refuse, before any work, files of boxes that cannot be written.

    Raises:
        ConfigError: something of that name is there that camify did not write.
        DataError: images would share a file.
    """
    for kind in () if boxes is None else boxes.kinds:
        refuse_foreign(out / BOX_FILES[kind][0])
        if kind == "yolo":
            refuse_shared_labels(relative_names([path.resolve() for path in files], inputs))


def _record(
    ready: Iterable[Future[dict[str, Any]]],
    folder: ExplainedFolder,
    summary: Summary,
    report: Callable[[dict[str, Any]], None],
) -> None:
    for future in ready:
        result = future.result()
        folder.write(result)
        summary.results += 1
        report(result)


# ---------------------------------------------------------------- one forward


@dataclass(frozen=True)
class _BatchMaps:
    """What a network says of N images, and their maps; on the CPU.

    Attributes:
        logits: (N, K).
        probabilities: (N, K).
        targets: the classes that are explained, (N, T).
        raw: signed maps (N, T, M, h, w) of M methods.
        regions: the pixels (N, T, M, H, W), bool, that belong to boxes.
        rules: of the M methods' boxes.
    """

    logits: Tensor
    probabilities: Tensor
    targets: Tensor
    raw: Tensor
    regions: NDArray[np.bool_]
    rules: list[BoxRule]


def _with_folded_norms(network: ExplainedNetwork, images: Tensor) -> ExplainedNetwork:
    """The network with its batch norms folded, as far as its values stay; not where a layer is named that could go."""
    if network.layer is not None:
        return network
    model = folded(network.model, images)
    return replace(network, model=model, methods=make_methods(model, list(network.methods), None, network.options))


def _batch_maps(
    network: ExplainedNetwork,
    images: Tensor,
    rules: Mapping[str, BoxRule],
    options: ExplainOptions,
    targets: Tensor | None = None,
) -> _BatchMaps:
    """One forward of images (N, C, H, W) for all methods; classes (N, T), None as the options say.

    Raises:
        ConfigError: the network has no such class, or no such layer.
    """
    kernels = [parameter for parameter in network.model.parameters() if parameter.dim() == 4]
    if images.device.type == "cpu" and not all(kernel.is_contiguous() for kernel in kernels):
        images = images.to(memory_format=torch.channels_last)
    kind, device = PRECISIONS[options.precision], next(network.model.parameters()).device.type
    with torch.autocast(device, dtype=kind, enabled=kind is not None), network.observe(images) as forward:
        if targets is None and options.targets:
            targets = torch.as_tensor(options.targets).expand(len(images), -1)
        elif targets is None:
            targets = forward.classes.ranked(forward.logits, options.topk)
        targets = check_targets(targets, forward.logits)
        raw = {name: method.raw_maps(forward, targets) for name, method in network.methods.items()}
        size = (images.shape[-2], images.shape[-1])
        regions = np.zeros((*targets.shape, len(raw), *size), dtype=bool)
        with torch.autocast(device, enabled=False):
            for m, (name, maps) in enumerate(raw.items()):
                cut = box_maps(network.methods[name], rules[name], forward, maps, targets)
                for t in range(targets.shape[1]):
                    regions[:, t, m] = rules[name].masks(cut[:, t], size).cpu().numpy()
        return _BatchMaps(
            forward.logits.cpu(), forward.probabilities.cpu(), targets.cpu(),
            torch.stack(list(raw.values()), dim=2).cpu(), regions, [rules[name] for name in raw],
        )  # fmt: skip


def _precision_error(
    network: ExplainedNetwork, images: Tensor, rules: Mapping[str, BoxRule], options: ExplainOptions
) -> tuple[float, float]:
    """What reduced precision changes, of the explained classes; see ``Summary``."""
    exact = _batch_maps(network, images, rules, replace(options, precision="fp32"))
    reduced = _batch_maps(network, images, rules, options, exact.targets)
    peaks = exact.raw.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(exact.raw.dtype).tiny)
    probabilities = (reduced.probabilities - exact.probabilities).abs().max()
    return float(probabilities), float(((reduced.raw - exact.raw) / peaks).abs().max())


# ---------------------------------------------------------------- one image


def _write_image(
    network: ExplainedNetwork, options: ExplainOptions, maps: _BatchMaps, index: int, image: Tensor, path: Path,
    size: tuple[int, int], stem: Path,
) -> dict[str, Any]:  # fmt: skip
    """Draw and write the files of an image of the batch, which begin with the stem; its line."""
    raw, titles = maps.raw[index], network.titles
    classes = [
        {
            "class": titles[k],
            "index": k,
            "logit": float(maps.logits[index, k]),
            "probability": float(maps.probabilities[index, k]),
            "maps": {
                method: _figures(method_maps, region, rule, size)
                for method, method_maps, region, rule in zip(
                    network.methods, raw[place], maps.regions[index, place], maps.rules, strict=True
                )
            },
        }
        for place, k in enumerate(maps.targets[index].tolist())
    ]
    region = Region(maps.regions[index, 0, 0], maps.rules[0])
    picture = _picture(image, list(network.methods), classes, raw, region, options.colormap, path.name)
    files = {"picture": f"{stem.name}_cam.{options.picture}", "raw_maps": f"{stem.name}.npy"}
    write_whole(stem.with_name(files["picture"]), encoded(picture, options.picture))
    content = io.BytesIO()
    np.save(content, raw.numpy())
    write_whole(stem.with_name(files["raw_maps"]), content.getvalue())
    return {
        "image": str(path),
        "file": file_stamp(path),
        "name": stem.name,
        "size": list(size),
        **files,
        "classes": classes,
    }


def _figures(map_hw: Tensor, region_HW: NDArray[np.bool_], rule: BoxRule, file_size: tuple[int, int]) -> dict[str, Any]:
    """Range of a raw map, and the boxes that the rule gives, in pixels of the file (xyxy, exclusive)."""
    factors = np.array([file_size[1] / region_HW.shape[1], file_size[0] / region_HW.shape[0]] * 2)
    boxes = [[round(float(value), 1) for value in box * factors] for box in rule.mask_boxes(region_HW)]
    return {
        "low": float(map_hw.min()),
        "high": float(map_hw.max()),
        "constant": not region_HW.any(),
        "box": boxes[0] if boxes else None,
        **({"boxes": boxes} if rule.regions == "all" else {}),
    }


def _picture(
    image: Tensor,
    methods: Sequence[str],
    classes: Sequence[Mapping[str, Any]],
    maps_TMhw: Tensor,
    region: Region,
    colormap: str,
    title: str,
) -> Image.Image:
    """One map in detail, with its region; of several classes or methods a grid."""
    if len(methods) == len(classes) == 1:
        entry, map_hw = classes[0], maps_TMhw[0, 0]
        class_map = ClassMap(entry["class"], map_hw, entry["logit"], entry["probability"])
        scale = float(map_hw.max())
        return overlay_picture(image, None, class_map, scale=scale, region=region, colormap=colormap, title=title)
    rows = []
    for entry, maps in zip(classes, maps_TMhw, strict=True):
        captions = (entry["class"], f"logit {entry['logit']:.2f} · p {entry['probability']:.2f}")
        rows.append(Row(image, None, captions, [Cell.of_map(one) for one in maps]))
    heads = [("", method) for method in methods]
    return grid_figure(title, heads, rows, rule=POSITIVE, side=PANEL, colormap=colormap)
