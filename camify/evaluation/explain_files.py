"""Explaining many image files: pictures, raw maps, boxes and figures, streamed and resumable."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..boxes import BoxRule
from ..data.box_formats.writing import BOX_FILES, BoxFiles, refuse_foreign, refuse_shared_labels, relative_names
from ..data.image_checks import constant_notes, gray_range_notes
from ..drawing.primitives import PANEL
from ..errors import ConfigError
from ..image_files import GrayRange
from ..maps import upsample
from ..methods import PRECISIONS, FullGrad, check_targets
from ..progress import tracked
from ..ranks import ONE, Ranks
from .explained_boxes import write_explained_boxes
from .explained_folder import RESULTS, ExplainedFolder, file_stamp, model_sha256
from .explained_image import ImageMaps, Style, output_endings, write_image
from .images import ImageBatch, image_batches
from .network import ExplainedNetwork, box_maps, box_rules
from .onnx_features import AUTO, ONNXRUNTIME, TORCH, require_engine, use_torch_features, with_onnx_features
from .timing import fastest_format, folded, use_format

__all__ = ["ORIGINAL", "ExplainOptions", "Summary", "explain_files"]

_T = TypeVar("_T")
_FORMATS = ("png", "jpg")
_SMALLEST, _LARGEST = 32, 4096  # sides of pictures
ORIGINAL = "original"
"""As a size: the picture's own resolution."""
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
        size: of the longer side of a picture in the drawing, pixels; or ``"original"``: the heat and the box of every
            class and method over the picture in its own resolution, in files of their own, without captions.
    """

    targets: tuple[int, ...] = ()
    topk: int = 1
    threshold: float | None = None
    colormap: str = "inferno"
    picture: str = "png"
    precision: str = "fp32"
    size: int | str = PANEL

    def __post_init__(self) -> None:
        if self.size != ORIGINAL and not (isinstance(self.size, int) and _SMALLEST <= self.size <= _LARGEST):
            raise ConfigError(f"size={self.size!r}: choose {_SMALLEST} to {_LARGEST} pixels, or {ORIGINAL!r}.")
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
        memory_format: in which torch ran the network.
        engine: that ran its features, image -> last map: ``"torch"`` or ``"onnxruntime"``.
        engine_reason: why that one; empty where so few images are explained that there was no choice.
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
    engine: str = TORCH
    engine_reason: str = ""
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
    engine: str = AUTO,
    overwrite: bool = False,
    boxes: BoxFiles | None = None,
    inputs: Sequence[Path] = (),
    progress: Callable[[Iterable[ImageBatch], str, int], Iterable[ImageBatch]] = tracked,
    report: Callable[[dict[str, Any]], None] = lambda _: None,
    ranks: Ranks = ONE,
) -> Summary:
    """Write for every image NAME_cam.png in its own shape, NAME.npy (classes x methods x h x w) and a line of results.

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
        engine: that runs the features: ``"torch"``, ``"onnxruntime"`` (float32 on the CPU; the extra ``onnx``), or
            ``"auto"``: of many images the faster one, where both give the same up to rounding. A run may go on with
            another one.
        overwrite: begin anew in a folder of another run, and replace what has the same name.
        boxes: files for other tools with the boxes of the first method, of all images in the folder.
        inputs: files and folders that were given: names in these files are relative to the folder of all of them.
        progress: wraps the batches, given what they are called and their number.
        report: is called with every result, in order; of several processes in the first one, at the end.
        ranks: of several processes, which all call this.

    Returns:
        What the run did; in a process that is not the first its own part.

    Raises:
        ConfigError: the folder holds another run, or other files, or another process writes there; or the engine is
            unknown, or cannot run here.
        ConversionError: a method needs a CAM-ready network; or ``onnxruntime`` was given, and cannot run this one.
    """
    require_engine(engine, network, options.precision)
    rules = box_rules(network.methods, options.threshold)
    with ExitStack() as stack:
        with ranks.agree():
            _require_box_files(boxes, out, files, inputs)
            settings = _settings(network, options, rules)
            folder = ExplainedFolder(out, settings, overwrite, ranks)
        drawn = len(network.methods) * (len(options.targets) or options.topk)
        endings = output_endings(options.picture, drawn if options.size == ORIGINAL else 1)
        pending, names, before = ranks.first(lambda: _plan(stack.enter_context(folder), files, endings))
        stack.callback(folder.end)
        summary = Summary(before=before, box_rules=rules, notes=folder.notes)
        own = ranks.share(pending, batch_size)
        side = None if isinstance(options.size, str) else options.size
        loader = image_batches(own, network.preprocessing, batch_size=batch_size, workers=workers, picture_side=side)
        batches = iter(progress(loader, "explaining, batch", len(loader)) if ranks.is_first else loader)
        waiting = list[ImageBatch]()
        shared = ranks.first(lambda: _first_images(batches, waiting))  # on which all processes prepare alike
        if shared is not None and (len(pending) > _FEW or engine == ONNXRUNTIME):
            chosen = _prepared(network, shared, options, engine, len(own), ranks, summary)
            network = stack.enter_context(chosen)
        steps = _explained(chain(waiting, batches), network, rules, options, summary, measure=ranks.is_first)
        with ranks.agree():
            started = list(islice(steps, 1))  # what is wrong shows before anything is written
        if pending:
            folder.begin()
        now, joined = (report, _nobody) if ranks.world_size == 1 else (_nobody, report)
        style = Style(options.colormap, options.picture, side, network.preprocessing.bits)
        write = partial(write_image, list(network.methods), network.titles, style)
        _write_all(chain(started, steps), write, out, names, folder, summary, now)
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
        "layer": network.layer, "options": network.options,
        "augmentations": list(network.augmentations), "task": network.classes.task.value,
        "box_rules": {name: rule.to_dict() for name, rule in rules.items()},
        "bits": network.preprocessing.bits, "model_sha256": model_sha256(network.model),
    }  # fmt: skip


def _plan(
    folder: ExplainedFolder, files: Sequence[Path], endings: Sequence[str]
) -> tuple[list[Path], dict[Path, str], int]:
    """What is still to be done, the names of its output, and how many are done."""
    pending = folder.pending(files)
    return pending, folder.names(pending, endings), len(files) - len(pending)


def _first_images(batches: Iterator[ImageBatch], read: list[ImageBatch]) -> Tensor | None:
    """The first images that can be read; the batches up to theirs are added to ``read``."""
    for batch in batches:
        read.append(batch)
        if batch.paths:
            return batch.images
    return None


@contextmanager
def _prepared(
    network: ExplainedNetwork, images: Tensor, options: ExplainOptions, engine: str, count: int, ranks: Ranks,
    summary: Summary,
) -> Iterator[ExplainedNetwork]:  # fmt: skip
    """The network as it runs fastest on images (N, C, H, W); the same in all processes.

    Args:
        network: with its methods.
        images: the first ones.
        options: of the run.
        engine: as it was given.
        count: how many images a process explains.
        ranks: the processes.
        summary: learns what was chosen.
    """
    if any(rule.map_stride is not None for rule in box_rules(network.methods).values()):  # its forward is torch's
        network = _fastest_in_torch(network, images, ranks, summary)
    with ranks.agree():
        fast, reason = with_onnx_features(network, images, engine, count, options.precision)
    reasons = ranks.everywhere([why for is_fast, why in ranks.gather((fast is not None, reason)) if not is_fast])
    if fast is None or reasons:
        summary.engine_reason = (reasons or [reason])[0]
        if summary.memory_format == Summary.memory_format:
            network = _fastest_in_torch(network, images, ranks, summary)
    else:
        network, summary.engine, summary.engine_reason = fast, ONNXRUNTIME, reason
    try:
        yield network
    finally:
        if fast is not None:
            use_torch_features(fast)


def _fastest_in_torch(network: ExplainedNetwork, images: Tensor, ranks: Ranks, summary: Summary) -> ExplainedNetwork:
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
        maps = _batch_maps(network, batch.images, rules, options)
        if maps.note and maps.note not in summary.notes:
            summary.notes.append(maps.note)
        yield batch, maps


def _write_all(
    steps: Iterable[tuple[ImageBatch, _BatchMaps]], write: Callable[..., dict[str, Any]], out: Path,
    names: Mapping[Path, str], folder: ExplainedFolder, summary: Summary, report: Callable[[dict[str, Any]], None],
) -> None:  # fmt: skip
    """Draw beside the next forward: the rows of a batch are written when that is made."""
    waiting = list[Future[dict[str, Any]]]()
    with ThreadPoolExecutor(2) as pool:
        for batch, maps in steps:
            pictures: Sequence[Tensor | None] = batch.pictures or [None] * len(batch.paths)
            ready = waiting
            waiting = [
                pool.submit(write, maps.of(index), picture, path, size, out / names[path])
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
        note: which methods' maps had another size before; empty where none.
    """

    logits: Tensor
    probabilities: Tensor
    targets: Tensor
    raw: Tensor
    regions: NDArray[np.bool_]
    rules: list[BoxRule]
    note: str

    def of(self, index: int) -> ImageMaps:
        """Those of one image."""
        return ImageMaps(
            self.targets[index].tolist(), self.logits[index], self.probabilities[index], self.raw[index],
            self.regions[index], self.rules,
        )  # fmt: skip


def _with_folded_norms(network: ExplainedNetwork, images: Tensor) -> ExplainedNetwork:
    """The network with its batch norms folded, as far as its values stay; not where a layer is named that could go.

    Nor for FullGrad: a folded layer has one bias in the place of two.
    """
    if network.layer is not None or any(isinstance(method, FullGrad) for method in network.methods.values()):
        return network
    return network.of_model(folded(network.model, images))


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
            together, note = _in_one_size(raw)
        return _BatchMaps(
            forward.logits.cpu(), forward.probabilities.cpu(), targets.cpu(), together.cpu(), regions,
            [rules[name] for name in raw], note,
        )  # fmt: skip


def _in_one_size(raw: Mapping[str, Tensor]) -> tuple[Tensor, str]:
    """Raw maps (N, T, h, w) by method as one tensor (N, T, M, h, w) of the largest one's size, and a note on it."""
    height, width = max((maps.shape[-2:] for maps in raw.values()), key=math.prod)
    smaller = [name for name, maps in raw.items() if maps.shape[-2:] != (height, width)]
    together = torch.stack(
        [upsample(maps, (height, width)) if name in smaller else maps for name, maps in raw.items()], dim=2
    )
    if not smaller:
        return together, ""
    return together, f"Raw maps are stored at the largest one's {height} x {width}: upsampled are {', '.join(smaller)}"


def _precision_error(
    network: ExplainedNetwork, images: Tensor, rules: Mapping[str, BoxRule], options: ExplainOptions
) -> tuple[float, float]:
    """What reduced precision changes, of the explained classes; see ``Summary``."""
    exact = _batch_maps(network, images, rules, replace(options, precision="fp32"))
    reduced = _batch_maps(network, images, rules, options, exact.targets)
    peaks = exact.raw.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(exact.raw.dtype).tiny)
    probabilities = (reduced.probabilities - exact.probabilities).abs().max()
    return float(probabilities), float(((reduced.raw - exact.raw) / peaks).abs().max())
