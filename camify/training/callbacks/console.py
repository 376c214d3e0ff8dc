"""The screens of a run: what will happen, one line per epoch, what came out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from rich import box
from rich.table import Table

from ...console import console, shell_quoted, shown
from ...conversion import find_recipe
from ...reports.run_folder import MAP_FIGURES, SCORES, boxes_text, score_of
from ..loaders import count_samples
from ..module import CAMFineTuner
from ..run_length import run_length_of

__all__ = ["closing_screen", "epoch_line", "opening_screen"]


def opening_screen(trainer: pl.Trainer, module: CAMFineTuner, folder: Path) -> None:
    """Print what is trained on what, for how long, and where everything will be."""
    screen = console()
    network, options = module.model, module.options.optimization
    certificate = getattr(module.cam_net, "certificate", None)
    if certificate is not None:
        screen.print(certificate.table())
    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    train, val = (count_samples(loader) for loader in (trainer.train_dataloader, trainer.val_dataloaders))
    names = module.class_names or []
    counts = [f"{count}" if count is not None else "an unknown number of" for count in (train, val)]
    table.add_row(
        "data", f"{counts[0]} training, {counts[1]} validation images, {len(names)} classes: {_shorten(names)}"
    )
    if network_preprocessing := getattr(network, "preprocessing", None):
        table.add_row("input", network_preprocessing.describe())
    table.add_row("task", str(module.task))
    table.add_row("schedule", _schedule(trainer, module))
    for reason in module.plan.reasons if module.plan is not None else ():
        table.add_row("", reason)
    if module.plan is not None and module.plan.seconds is not None:
        table.add_row("", f"It takes about {_duration(module.plan.seconds)} and the validations.")
    table.add_row("optimizer", f"{options.optimizer}, lr {options.lr:g}, head x{options.head_lr_factor:g}")
    recipe = find_recipe(module.options.recipe)
    if recipe is not None:
        published = f"{recipe.fine_tuning.epochs} epochs in batches of {recipe.fine_tuning.batch_size}"
        table.add_row("recipe", f"{recipe.name}, fine-tuned as in {recipe.fine_tuning_source} ({published})")
    table.add_row("device", f"{trainer.strategy.root_device}, precision {trainer.precision}")
    table.add_row("run folder", f"{folder}  (report.html there can be opened while it runs)")
    screen.print(table)
    if module.legacy is not None:
        screen.print("\nMeasuring the legacy network's accuracy first ...")
    screen.print()


def _schedule(trainer: pl.Trainer, module: CAMFineTuner) -> str:
    run, frozen = run_length_of(trainer), module.options.optimization.freeze_epochs
    length = run.describe()
    if module.cam_net is None:
        return f"{length}, the whole legacy network, no conversion"
    start = run.first_step(frozen)
    ends = [end for end in (run.last_step(), start) if end is not None]
    if (run.epochs is not None and frozen >= run.epochs) or (len(ends) == 2 and ends[1] >= ends[0]):
        return f"{length} of the new head; the features stay frozen"
    if run.epochs is None:
        return f"{length}: {_epochs(frozen)} of the new head alone, then everything" if frozen else length
    start_words = f"{frozen} of the new head alone, then {run.epochs - frozen} of everything"
    return f"{length}: {start_words if frozen else 'everything at once'}"


def _duration(seconds: float) -> str:
    if seconds < 1.5:
        return "a second"
    return f"{round(seconds)} seconds" if seconds < 100 else f"{round(seconds / 60)} minutes"


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' * (count != 1)}"


def epoch_line(
    now: Mapping[str, float],
    before: Mapping[str, float] | None,
    baselines: Mapping[str, Mapping[str, float]],
    better: Mapping[str, float] | None = None,
) -> None:
    """Print one epoch's figures, with their change and what the run began with; and which epoch had ``better`` maps."""
    parts = [f"epoch {now['epoch']:.0f}"]
    for key, name in SCORES.items():
        if key in now:
            beside = "".join(f", {who} {row[key]:.3f}" for who, row in baselines.items() if key in row)
            parts.append(f"{name} {now[key]:.3f}{_change(key, now, before)}{beside}")
    told: set[str] = set()
    for key, (name, baseline, beside) in MAP_FIGURES.items():
        if key in now:
            begun = baselines.get("start", {}).get(key)
            first = f", start {begun:.3f}" if begun is not None else ""
            second = f", {beside} {now[baseline]:.3f}" if baseline not in told else ""
            told.add(baseline)
            parts.append(f"{name} {now[key]:.3f}{_change(key, now, before)}{second}{first}")
    if "train/loss" in now:
        parts.append(f"loss {now['train/loss']:.3f}")
    screen = console(soft_wrap=True)
    screen.print("  ·  ".join(parts))
    if better is not None:
        screen.print(f"  the accuracy rises, but the maps were better in epoch {better['epoch']:.0f}")


def closing_screen(folder: Path, exported: Mapping[str, Any], baselines: Mapping[str, Mapping[str, float]]) -> None:
    """Print what came out, where it is and the next command."""
    screen = console(soft_wrap=True)
    figures = {key: names for key, names in MAP_FIGURES.items() if key in exported}
    table = Table(title=f"best epoch: {exported['epoch']:.0f}", box=box.SIMPLE_HEAD, title_justify="left")
    score, score_name = score_of(exported)
    for column in ("", score_name, *(name for name, *_ in figures.values())):
        table.add_column(column, justify="left" if column == "" else "right")
    legacy, start = baselines.get("legacy", {}), baselines.get("start", {})
    table.add_row("legacy network", _figure(legacy.get(score)), *("no maps" for _ in figures))
    if start:
        table.add_row("converted, before training", *(_figure(start.get(key)) for key in (score, *figures)))
    table.add_row("now", _figure(exported.get(score)), *(_figure(exported[key]) for key in figures), style="bold")
    for baseline, beside in dict.fromkeys((baseline, beside) for _, baseline, beside in figures.values()):
        table.add_row(
            f"best fixed {beside}" if beside == "center box" else beside,
            "",
            *(_figure(exported[baseline]) if own == baseline else "" for _, own, _ in figures.values()),
        )
    screen.print(table)
    if "file" in exported:
        screen.print(f"weights   {exported['file']}")
        return
    screen.print(f"report    {folder / 'report.html'}")
    screen.print(f"pictures  {folder / 'overlays'}")
    screen.print(
        f"model     {exported['folder']}  (loaded again, same logits and maps within {exported['reload_error']:.0e})"
    )
    boxes = boxes_text(exported, _figure)
    if boxes:
        screen.print(f"boxes     {boxes}")
    screen.print(f"\nNext: camify explain YOUR_PICTURE.jpg --model {shell_quoted(exported['folder'])} --out explained")


def _change(key: str, now: Mapping[str, float], before: Mapping[str, float] | None) -> str:
    return f" ({now[key] - before[key]:+.3f})" if before is not None and key in before else ""


def _figure(value: float | None) -> str:
    return f"{value:.3f}" if value is not None else "-"


def _shorten(names: list[str]) -> str:
    return ", ".join(shown(name) for name in names[:8]) + (f", ... and {len(names) - 8} more" if len(names) > 8 else "")
