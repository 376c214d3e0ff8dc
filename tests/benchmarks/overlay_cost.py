"""Share of an epoch that pictures, record and page take: ``python tests/benchmarks/overlay_cost.py``.

Trains the demo's network for three epochs and times the callbacks inside the same run, epoch by epoch.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import pytorch_lightning as pl

import camify
from camify.training import RunRecord


class Stopwatch(pl.Callback):
    """Wall time of every epoch, from the start of one to the start of the next."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.marks.append(time.perf_counter())

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.marks.append(time.perf_counter())


def timed(callback: pl.Callback, hook: str) -> list[float]:
    """Durations of one of a callback's hooks, filled in as it runs."""
    durations: list[float] = []
    inner = getattr(callback, hook)

    def outer(*arguments: object) -> None:
        start = time.perf_counter()
        inner(*arguments)
        durations.append(time.perf_counter() - start)

    setattr(callback, hook, outer)
    return durations


def main() -> None:
    """Print the medians."""
    root = Path(__file__).parents[2]
    data = camify.data.ShapesDataModule()
    module = camify.CAMFineTuner(
        f"camify/tiny_vgg@{root / 'checkpoints' / 'demo_legacy.safetensors'}",
        class_names=data.class_names, head_channels=128, input_size=96, lr=0.005, freeze_epochs=1,
    )  # fmt: skip
    overlays, record, watch = camify.CAMOverlayLogger(), RunRecord(quiet=True), Stopwatch()
    drawing, writing = timed(overlays, "on_validation_end"), timed(record, "on_train_epoch_end")
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=4, logger=False, enable_checkpointing=False, default_root_dir=folder,
            enable_progress_bar=False, num_sanity_val_steps=0, callbacks=[watch, overlays, record],
        )  # fmt: skip
        trainer.fit(module, data)
    epochs = [b - a for a, b in zip(watch.marks, watch.marks[1:], strict=False)]
    for name, durations in (("overlays", drawing), ("results and page", writing)):
        shares = [100 * part / whole for part, whole in zip(durations, epochs, strict=False)]
        print(f"{name}: median {statistics.median(durations):.2f} s, {statistics.median(shares):.1f} % of an epoch")
    print(f"epoch: median {statistics.median(epochs):.1f} s")


if __name__ == "__main__":
    main()
