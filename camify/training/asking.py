"""What callbacks ask a trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

__all__ = ["count_samples", "is_dry_run", "run_folder", "single_loader"]


def run_folder(trainer: pl.Trainer) -> Path:
    """Where a run leaves its files: the logger's folder, else the trainer's."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def is_dry_run(trainer: pl.Trainer) -> bool:
    """Whether this is ``fast_dev_run``: nothing is kept of it."""
    return bool(getattr(trainer, "fast_dev_run", False))


def single_loader(loaders: Any) -> Any:
    """The first of several loaders, or the one there is."""
    return loaders[0] if isinstance(loaders, list | tuple) else loaders


def count_samples(loaders: Any) -> int | None:
    """Number of samples behind a loader, or None where it is not known."""
    dataset: Any = getattr(single_loader(loaders), "dataset", None)
    return len(dataset) if hasattr(dataset, "__len__") else None
