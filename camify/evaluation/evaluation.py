"""Measuring a network and its maps on a labeled image folder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..drawing.encoding import encoded
from ..errors import ConfigError, ConversionError, DataError
from ..eval_mode import plain_tensors
from ..metrics.functional import mosaic_plan
from ..preprocessing import Preprocessing
from ..ranks import ONE, Ranks
from ..reports.class_page import Example
from ..sources import Source, resolve
from ..sources.source import require_network
from ..task import Classes, Task
from .class_figures import ClassAnswers, calibration, choose_examples, class_figures_of, example_picture
from .engine import CENTER_BOX, IOUS, Rows
from .evaluation_report import Evaluation, Figures
from .intervals import Answers, Figure, class_figures, figure, localization_figures, mean_figures
from .labeled_data import LabeledFolder, find_labeled
from .network import ExplainedNetwork, explained_network, placed_on, short_names
from .passes import (
    GRID,
    Run,
    explain_answers,
    measure_all,
    measure_answers,
    measure_cost,
    measure_mosaics,
    measure_sample,
)
from .sanity import UNCHANGED_FROM, measure_sanity, unchanged_methods

__all__ = ["evaluate", "evaluate_in_ranks"]

_STABILITY = ("flip", "shift")
_FORWARD_ONLY = ("reciprocam",)  # which every network can be asked for
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
    task: str | Task | None = None,
    check_images: bool = True,
    bits: int | None = None,
    preprocessing: str | Mapping[str, Any] | Preprocessing | None = None,
    pictures: int = 96,
    legacy: str | nn.Module | None = None,
    sanity: int = 0,
    augmentations: str | Sequence[str] | None = None,
) -> Evaluation:
    """Measure a network's accuracy and its maps' localization, stability, faithfulness and cost.

    Maps for localization are those of the true class, for faithfulness of the network's first choice. Every image is
    seen once; mosaics and the sample need further forwards. No map is kept, only some kilobytes an image.

    Args:
        model: a source (see ``camify.sources.resolve``), an exported file or a network, which is left as it was.
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
        task: ``"multiclass"``, ``"multilabel"`` or ``"binary"``: what the logits mean; None: what the network says.
        check_images: decode every image first, so that what cannot be read is named before anything is measured.
        bits: how many bits gray files of 16 or 32 bits use (see ``Preprocessing``); None: what the network says.
        preprocessing: what the network expects, where it does not say: ``"imagenet"``, ``"0..1"``, ``"0..255"``,
            ``"tf"``, ``"caffe"`` or fields of ``Preprocessing``; goes before what it says.
        pictures: so many images at most are drawn with the first method's maps, for the page: behind every cell of the
            confusion matrix some, mistakes first; 0 for none.
        legacy: the network before its conversion, whose accuracy and calibration are set beside; of the same classes.
        sanity: so many images, drawn, for sanity checks (see ``evaluation.sanity``); 0 for none.
        augmentations: of the methods, see ``camify.explain``.

    Returns:
        All figures; ``print`` shows them as tables, ``save(folder)`` writes them and a page.

    Raises:
        CamifyError: something given cannot be used; before anything is measured, where it can be known.
    """
    made = evaluate_in_ranks(ONE, **locals())
    if made is None:
        raise RuntimeError("a single process is the first one")
    return made


@plain_tensors()
def evaluate_in_ranks(
    ranks: Ranks, model: str | nn.Module, data: str | Path, *, methods: Sequence[str],
    class_names: Sequence[str] | None, split: str | None, limit: int | None, batch_size: int, seed: int,
    faithfulness: int, mosaics: int, threshold: float | None, device: str | torch.device | None, workers: int,
    options: Mapping[str, Any] | None, task: str | Task | None, check_images: bool, bits: int | None,
    preprocessing: str | Mapping[str, Any] | Preprocessing | None, pictures: int,
    legacy: str | nn.Module | None, sanity: int, augmentations: str | Sequence[str] | None,
) -> Evaluation | None:  # fmt: skip
    """``evaluate`` by several processes, which all call it: each runs whole batches, in turns.

    The batches, and so the rows, are those of one process; what is found wrong with the data is found by the first one.

    Returns:
        The figures, in the first process; None in the others.

    Raises:
        CamifyError: as ``evaluate``.
        EndedElsewhere: another process raised that.
    """
    with ranks.agree():
        if batch_size < 1 or min(faithfulness, mosaics, workers, pictures, sanity) < 0:
            raise ConfigError(
                f"batch_size={batch_size} must be at least 1; faithfulness={faithfulness}, mosaics={mosaics},"
                f" workers={workers}, pictures={pictures} and sanity={sanity} at least 0."
            )
        if threshold is not None and not 0 <= threshold < 1:
            raise ConfigError(f"threshold={threshold} must lie in [0, 1).")
        with torch.random.fork_rng(devices=[]):
            if ranks.world_size > 1:
                torch.manual_seed(seed)  # weights that are drawn are the same in all
            source, name = _source(model, methods)
    with placed_on(source.model, device):
        with ranks.agree():
            network = explained_network(
                source, name, methods, options=options, task=task, class_names=class_names, bits=bits,
                preprocessing=preprocessing, augmentations=augmentations,
            )  # fmt: skip
        images = ranks.first(
            lambda: find_labeled(
                Path(data), split, network.preprocessing, network.classes, network.class_count,
                limit=limit, seed=seed, check_images=check_images, workers=workers,
            )
        )  # fmt: skip
        if network.classes.task is Task.BINARY:  # which of the two the logit stands for
            network.classes = Classes(Task.BINARY, images.names)
        run = Run(images.images, batch_size, workers, seed, threshold, ranks)
        before = None if legacy is None else _legacy_answers(legacy, network, images, run, root=Path(data), split=split)
        return _measure(network, images, run, faithfulness, mosaics, pictures, before, sanity)


def _source(model: str | nn.Module, methods: Sequence[str]) -> tuple[Source, str]:
    if isinstance(model, str):
        return resolve(model).explained_by(methods), short_names([model])[0]
    require_network(model)
    name = type(model).__name__
    names, preprocessing = (getattr(model, key, None) for key in ("class_names", "preprocessing"))
    return Source(model, name, names, preprocessing=preprocessing), name


def _legacy_answers(
    legacy: str | nn.Module, network: ExplainedNetwork, data: LabeledFolder, run: Run, *, root: Path, split: str | None
) -> tuple[str, ClassAnswers | None]:
    """What the network before its conversion is, and what it says of the same images, prepared as it expects them.

    Raises:
        ConfigError: it has other classes.
    """
    with run.ranks.agree():
        source, _ = _source(legacy, _FORWARD_ONLY)
        known = source.preprocessing or network.preprocessing
        before = explained_network(
            source, "legacy", _FORWARD_ONLY, task=network.classes.task, class_names=source.class_names,
            preprocessing=known,
        )  # fmt: skip
        if before.class_count != network.class_count:
            raise ConfigError(
                f"--legacy: has {before.class_count} classes, the network {network.class_count}. Only the network that"
                " was converted, with the same classes, can be set beside."
            )
        if before.classes.names is None:
            before.classes = network.classes
    device = next(network.model.parameters()).device
    limit = len(data.images) if len(data.images) < data.available else None
    with placed_on(source.model, str(device)):
        images = run.ranks.first(
            lambda: find_labeled(
                root, split, before.preprocessing, before.classes, before.class_count, limit=limit, seed=run.seed,
                check_images=False,
            )
        )  # fmt: skip
        return before.source, measure_answers(before, replace(run, images=images.images))


def _measure(
    network: ExplainedNetwork, data: LabeledFolder, run: Run, faithfulness: int, mosaics: int, pictures: int,
    before: tuple[str, ClassAnswers | None] | None, sanity: int,
) -> Evaluation | None:  # fmt: skip
    start, seed = time.perf_counter(), run.seed
    answers_by_name, rows = measure_all(network, run)
    grids, reason = _grids(network, run, mosaics)
    drawn = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(seed))[:faithfulness]
    sample = measure_sample(network, run, sorted(drawn.tolist())) if faithfulness else {}
    if not run.ranks.is_first:
        return None
    checked = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(seed))[:sanity]
    sanity_rows, checks = measure_sanity(network, run, sorted(checked.tolist())) if sanity else ({}, "not asked for")
    sanity_figures = {name: mean_figures(values, seed) for name, values in sanity_rows.items()}
    answers = Answers(**answers_by_name)
    said = ClassAnswers(answers.labels, answers.predicted, answers.confidences)
    legacy = None if before is None else before[1]
    return Evaluation(
        network=network,
        data=data,
        answers=answers,
        rows=rows,
        accuracy={
            **{f"top{k}": figure(answers.ranks < k, seed=seed) for k in (1, 5)},
            **({} if legacy is None else {"legacy_top1": figure(legacy.right, seed=seed)}),
        },
        hard_share=_hard_share(answers, seed),
        localization=_localization(rows, answers, answers.with_boxes, seed),
        hard=_localization(rows, answers, answers.with_boxes & answers.hard[:, 1], seed),
        without_boxes=_without_boxes(rows, grids, sample, seed),
        faithfulness={
            name: mean_figures({key: v for key, v in values.items() if key not in _STABILITY}, seed)
            for name, values in sample.items()
        },
        sanity=sanity_figures,
        classes=_classes(rows, answers, grids, data),
        costs=measure_cost(network, run),
        by_class={
            **class_figures_of(said, network.titles),
            **({} if legacy is None else {"legacy_calibration": calibration(legacy.bins)}),
        },
        examples=_examples(network, run, said, pictures),
        facts=_facts(network, data, run, len(drawn), reason, time.perf_counter() - start, before)
        + _sanity_facts(sanity_figures, checks),
    )


def _examples(network: ExplainedNetwork, run: Run, said: ClassAnswers, most: int) -> list[Example]:
    """The images behind the cells of the confusion matrix, drawn."""
    numbers, titles = choose_examples(said, most), network.titles
    return [
        Example(
            answer.classes[1], answer.classes[0],
            example_picture(answer, titles, partial(encoded, kind="webp")),
            f"{answer.title}: {titles[answer.classes[0]]}, p {float(answer.probabilities[0]):.2f}",
        )
        for answer in explain_answers(network, run, numbers, said.predicted)
    ]  # fmt: skip


def _grids(network: ExplainedNetwork, run: Run, most: int) -> tuple[dict[str, Rows], str]:
    """Rows of mosaics, or why there are none."""
    if not most:
        return {}, "not measured (mosaics 0)"
    try:
        plan = mosaic_plan(torch.tensor(run.images.labels), GRID, run.seed)[:most]
    except DataError as error:  # too few classes
        return {}, str(error)
    try:
        grids = measure_mosaics(network, run, plan)
    except ConversionError as error:  # the network takes images of one size only
        return {}, str(error)
    return grids, f"{len(plan)} of {GRID} x {GRID} images"


def _hard_share(answers: Answers, seed: int) -> dict[str, Figure]:
    if not bool(answers.with_boxes.any()):
        return {}
    hard = answers.hard[answers.with_boxes]
    return {f"{iou:.1f}": figure(hard[:, index], seed=seed) for index, iou in enumerate(IOUS.tolist())}


def _localization(rows: Mapping[str, Rows], answers: Answers, kept: Tensor, seed: int) -> Figures:
    if not bool(kept.any()):
        return {}
    center = rows[CENTER_BOX]
    return {name: localization_figures(values, center, answers.ranks, kept, seed) for name, values in rows.items()}


def _without_boxes(
    rows: Mapping[str, Rows], grids: Mapping[str, Rows], sample: Mapping[str, Rows], seed: int
) -> Figures:
    """Figures by method; of mosaics the intervals are over the mosaics."""
    figures: Figures = {}
    for name, values in rows.items():
        if "entropy" not in values:
            continue
        parts = {key: values[key] for key in ("entropy", "area")}
        parts |= {key: sample[name][key] for key in _STABILITY if key in sample.get(name, {})}
        parts |= {"grid": grids[name]["grid"].mean(1)} if name in grids else {}
        figures[name] = mean_figures(parts, seed)
    return figures


def _classes(
    rows: Mapping[str, Rows], answers: Answers, grids: Mapping[str, Rows], data: LabeledFolder
) -> dict[int, dict[str, dict[str, float | int]]]:
    present = [number for number in data.classes.values() if bool((answers.labels == number).any())]
    figures = class_figures(rows, answers, present)
    for number, (name, values) in ((number, item) for number in present for item in grids.items()):
        figures[number][name]["grid"] = float(values["grid"][values["classes"] == number].mean())
    return figures


def _facts(
    network: ExplainedNetwork, data: LabeledFolder, run: Run, sample: int, mosaics: str, seconds: float,
    before: tuple[str, ClassAnswers | None] | None,
) -> list[tuple[str, str]]:  # fmt: skip
    count = len(run.images)
    drawn = "" if count == data.available else f", drawn of {data.available} with seed {run.seed}"
    boxed = "no boxes" if not data.has_boxes else f"boxes of {_count_boxed(run)}"
    cut = "the best one for these images" if run.threshold is None else f"{run.threshold}, as given"
    return [
        ("network", "; ".join([network.source, *network.notes])),
        *([] if before is None else [("legacy network", before[0])]),
        ("images", "; ".join([f"{data.folder}: {count} of {len(data.classes)} classes{drawn}; {boxed}", *data.notes])),
        ("task", _task(network)),
        ("methods", ", ".join(network.served)),
        *((f"{name} left out", reason) for name, reason in network.unserved.items()),
        ("threshold of GT-known, Top-1 and Top-5 Loc", cut),
        ("sample for stability and faithfulness", f"{sample} images, drawn with seed {run.seed}"),
        ("mosaics", mosaics),
        ("intervals", _INTERVALS),
        *([("processes", str(run.ranks.world_size))] if run.ranks.world_size > 1 else []),
        ("time", f"{seconds:.0f} s"),
    ]


def _sanity_facts(figures: Figures, checks: str) -> list[tuple[str, str]]:
    """What the sanity checks say, in a sentence."""
    if not figures:
        return [("sanity checks", checks)]
    said = [
        f"with random {check} the maps of {', '.join(names)} hardly change (rank correlation {UNCHANGED_FROM} or more)"
        for check, names in unchanged_methods(figures).items()
    ]
    return [("sanity checks", "; ".join([checks, *(said or ["the maps of all methods change"])]))]


def _count_boxed(run: Run) -> int:
    return 0 if run.images.boxes is None else int((run.images.boxes.counts > 0).sum())


def _task(network: ExplainedNetwork) -> str:
    """What the logits mean, and what that makes of the accuracy."""
    task = network.classes.task
    if task is Task.MULTILABEL:
        return (
            "multilabel: labels do not exclude each other, so top-k only asks whether the folder's label is among the k"
            " most probable"
        )
    if task is Task.BINARY:
        first, second = network.titles
        speaks_for = network.titles[network.classes.positive]
        return f"binary: one logit, which speaks for {speaks_for}; the classes are {first} and {second}"
    return "multiclass: the classes exclude each other"
