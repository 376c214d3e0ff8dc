"""Measuring a network and its maps on a labelled image folder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ConversionError, DataError
from ..exporting import resolve_any
from ..metrics.functional import mosaic_plan
from ..surgery import Source
from .class_names import count_classes
from .engine import CENTRE_BOX, IOUS, Values
from .intervals import Answers, Figure, class_figures, figure, localisation_figures, mean_figures
from .labelled_images import Labelled, find_labelled
from .network import Contender, contender, short_names
from .passes import GRID, Run, close_look, cost_look, grid_look, main_look
from .results import Evaluation, Figures

__all__ = ["evaluate"]

_STABILITY = ("flip", "shift")
_INTERVALS = (
    "95 %, percentile bootstrap over the images (of grid pointing over the mosaics), 1000 resamples, every choice made"
    " anew in each; where all images agree no resample differs, and the interval is too narrow"
)


def evaluate(
    model: str | nn.Module,
    data: str | Path,
    *,
    methods: Sequence[str] = ("cam",),
    class_names: Sequence[str] | None = None,
    split: str | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
    faithfulness: int = 32,
    mosaics: int = 64,
    threshold: float | None = None,
    device: str | None = None,
    workers: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Measure a network's accuracy and its maps' localisation, stability, faithfulness and cost.

    Maps for localisation are those of the true class, for faithfulness of the network's first choice. Every image is
    seen once; mosaics and the sample need further forwards. No map is kept, only some kilobytes an image.

    Args:
        model: a source string (see ``camify.surgery.resolve``), an exported file or a network, which is left as it was.
        data: folder of ``SPLIT/CLASS/*`` or ``CLASS/*``, optionally with ``boxes.csv``; classes go by name.
        methods: names of explanation methods; all share one forward.
        class_names: of the network's classes, in order; None takes its own.
        split: folder of ``data``; None takes ``val``, or ``data`` itself where it has none.
        limit: measure on so many images, drawn; None takes all.
        batch_size: images in one forward.
        seed: of all draws.
        faithfulness: so many images, drawn, for stability and faithfulness, which need many forwards; 0 for none.
        mosaics: at most so many mosaics of four images for the grid pointing game; 0 for none.
        threshold: of the maps' boxes for GT-known, Top-1 and Top-5 Loc, in [0, 1); None takes the best one.
        device: where it is to run; None where the network is.
        workers: processes that decode images.
        options: of the methods.

    Raises:
        CamifyError: something given cannot be used; before anything is measured, where it can be known.
    """
    if batch_size < 1 or faithfulness < 0 or mosaics < 0 or workers < 0:
        raise ConfigError(
            f"batch_size={batch_size} must be at least 1; faithfulness={faithfulness}, mosaics={mosaics} and"
            f" workers={workers} at least 0."
        )
    if threshold is not None and not 0 <= threshold < 1:
        raise ConfigError(f"threshold={threshold} must lie in [0, 1).")
    start = time.perf_counter()
    measured = _contender(model, methods, options, device)
    count = count_classes(measured.model, measured.preprocessing)
    names = measured.class_names if class_names is None else list(class_names)
    if names is not None and len(names) != count:
        raise ConfigError(f"class_names: {len(names)} names for the network's {count} classes.")
    measured.class_names = names
    found = find_labelled(Path(data), split, measured.preprocessing, names, count, limit=limit, seed=seed)
    run = Run(found.images, batch_size, workers, seed, threshold)
    answers, rows = main_look(measured, run)
    grids, reason = _grids(measured, run, mosaics)
    drawn = torch.randperm(len(found.images), generator=torch.Generator().manual_seed(seed))[:faithfulness]
    closely = close_look(measured, run, sorted(drawn.tolist())) if faithfulness else {}
    return Evaluation(
        contender=measured,
        data=found,
        answers=answers,
        rows=rows,
        accuracy={f"top{k}": figure(answers.ranks < k, seed=seed) for k in (1, 5)},
        hard_share=_hard_share(answers, seed),
        localisation=_localisation(rows, answers, answers.with_boxes, seed),
        hard=_localisation(rows, answers, answers.with_boxes & answers.hard[:, 1], seed),
        without_boxes=_without_boxes(rows, grids, closely, seed),
        faithfulness={
            name: mean_figures({key: v for key, v in values.items() if key not in _STABILITY}, seed)
            for name, values in closely.items()
        },
        classes=_classes(rows, answers, grids, found),
        costs=cost_look(measured, run),
        facts=_facts(measured, found, run, len(drawn), reason, time.perf_counter() - start),
    )


def _contender(
    model: str | nn.Module, methods: Sequence[str], options: Mapping[str, Any] | None, device: str | None
) -> Contender:
    if len(set(methods)) < len(methods):
        raise ConfigError(f"--method: {', '.join(methods)}: each one once.")
    if isinstance(model, str):
        source, name = resolve_any(model, methods), short_names([model])[0]
    else:
        name = type(model).__name__
        names, known = (getattr(model, key, None) for key in ("class_names", "preprocessing"))
        source = Source(model, name, names, preprocessing=known)
    if device is not None:
        source.model.to(device)
    return contender(source, name, methods, options)


def _grids(measured: Contender, run: Run, most: int) -> tuple[dict[str, Values], str]:
    """Values of mosaics, or why there are none."""
    if not most:
        return {}, "not asked for"
    try:
        plan = mosaic_plan(torch.tensor(run.images.labels), GRID, run.seed)[:most]
    except DataError as error:  # too few classes
        return {}, str(error)
    try:
        found = grid_look(measured, run, plan)
    except ConversionError as error:  # the network takes images of one size only
        return {}, str(error)
    return found, f"{len(plan)} of {GRID} x {GRID} images"


def _hard_share(answers: Answers, seed: int) -> dict[str, Figure]:
    if not bool(answers.with_boxes.any()):
        return {}
    hard = answers.hard[answers.with_boxes]
    return {f"{iou:.1f}": figure(hard[:, index], seed=seed) for index, iou in enumerate(IOUS.tolist())}


def _localisation(rows: Mapping[str, Values], answers: Answers, kept: Tensor, seed: int) -> Figures:
    if not bool(kept.any()):
        return {}
    centre = rows[CENTRE_BOX]
    return {name: localisation_figures(values, centre, answers.ranks, kept, seed) for name, values in rows.items()}


def _without_boxes(
    rows: Mapping[str, Values], grids: Mapping[str, Values], closely: Mapping[str, Values], seed: int
) -> Figures:
    """Figures by method; of mosaics the intervals are over the mosaics."""
    found: Figures = {}
    for name, values in rows.items():
        if "entropy" not in values:
            continue
        parts = {key: values[key] for key in ("entropy", "area")}
        parts |= {key: closely[name][key] for key in _STABILITY if key in closely.get(name, {})}
        parts |= {"grid": grids[name]["grid"].mean(1)} if name in grids else {}
        found[name] = mean_figures(parts, seed)
    return found


def _classes(
    rows: Mapping[str, Values], answers: Answers, grids: Mapping[str, Values], data: Labelled
) -> dict[int, dict[str, dict[str, float | int]]]:
    present = [number for number in data.classes.values() if bool((answers.labels == number).any())]
    found = class_figures(rows, answers, present)
    for number, (name, values) in ((number, item) for number in present for item in grids.items()):
        found[number][name]["grid"] = float(values["grid"][values["classes"] == number].mean())
    return found


def _facts(
    measured: Contender, data: Labelled, run: Run, sample: int, mosaics: str, seconds: float
) -> list[tuple[str, str]]:
    count = len(run.images)
    drawn = "" if count == data.available else f", drawn of {data.available} with seed {run.seed}"
    boxed = "no boxes" if not data.has_boxes else f"boxes of {sum(bool(r.boxes) for r in run.images.records)}"
    cut = "the best one for these images" if run.threshold is None else f"{run.threshold}, as given"
    return [
        ("network", "; ".join([measured.source, *measured.notes])),
        ("images", "; ".join([f"{data.folder}: {count} of {len(data.classes)} classes{drawn}; {boxed}", *data.notes])),
        ("methods", ", ".join(measured.served)),
        *((f"{name} left out", reason) for name, reason in measured.unserved.items()),
        ("threshold of GT-known, Top-1 and Top-5 Loc", cut),
        ("sample for stability and faithfulness", f"{sample} images, drawn with seed {run.seed}"),
        ("mosaics", mosaics),
        ("intervals", _INTERVALS),
        ("time", f"{seconds:.0f} s"),
    ]
