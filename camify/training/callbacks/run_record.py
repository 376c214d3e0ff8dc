"""RunRecord: what a run was, what it reached and what to do next; on screen, on disk and as a page."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping
from concurrent.futures import Future
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor

from ...console import console, shell_quoted, shown
from ...files import to_json, write_whole
from ...former_names import with_current_keys
from ...model import CAMNet
from ...ranks import current
from ...reports.run_folder import MAP_FIGURES, RESULTS, calibrations_by_name, read_run
from ...reports.run_page import render_page
from ..loaders import count_samples, is_dry_run
from ..module import CAMFineTuner
from ..run_folder import run_folder
from .class_record import ClassRecord, draw_examples, log_classes
from .console import closing_screen, epoch_line, opening_screen
from .export_best import ExportBest
from .measure_baselines import MeasureBaselines
from .selection import decline, pareto_set
from .worker import Background

__all__ = ["RunRecord"]


class RunRecord(pl.Callback):
    """Keeps the record of a fine-tuning run in its folder.

    Before training one screen says what will happen; the legacy network is measured where its classes are the data's,
    and the converted one before its first step. After every epoch ``results.json`` and ``report.html`` are written
    anew, with the epochs that no other beats in accuracy and map quality both (the Pareto set), and it is said when
    the maps get worse while the accuracy rises. At the end the best epoch's weights, with the box rule that
    the validation split chooses (``camify.choose_box_rule``), are exported to ``export/``, loaded again and
    compared, and one screen says what came out.

    Args:
        report: write ``report.html``.
        quiet: print nothing.
        quality: the logged figure of the maps that stands against accuracy; None takes ``"val/max_box_acc"``, or
            ``"val/grid_pointing"`` where that is not logged.
    """

    def __init__(self, report: bool = True, quiet: bool = False, quality: str | None = None) -> None:
        self.report, self.quiet, self.wanted_quality = report, quiet, quality
        self.history: list[dict[str, float]] = []
        self.baselines, self.export, self.classes = MeasureBaselines(quiet), ExportBest(), ClassRecord()
        self._examples: list[dict[str, Any]] = []
        self._page: Future[None] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Figures so far, plain values."""
        return {"history": self.history, **self.baselines.state_dict(), "classes": self.classes.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the figures of an interrupted run."""
        self.history = with_current_keys(state_dict["history"])
        self.baselines.load_state_dict(state_dict)
        self.classes.load_state_dict(state_dict.get("classes", {}))

    # ------------------------------------------------------------ hooks

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what will happen and measure the legacy network, before ``TrainingStages`` lets it go."""
        if not isinstance(pl_module, CAMFineTuner) or is_dry_run(trainer):
            return
        speaks = trainer.is_global_zero and not self.quiet
        if speaks:
            opening_screen(trainer, pl_module, run_folder(trainer))
        self.baselines.on_train_start(trainer, pl_module)
        pl_module.legacy_network.trusted(pl_module)
        for note in pl_module.legacy_network.notes if speaks else ():
            console(soft_wrap=True).print(f"{note}\n")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the converted network before its first step; say what a closed-form start gave."""
        if not isinstance(pl_module, CAMFineTuner) or is_dry_run(trainer) or trainer.global_step > 0:
            return
        if pl_module.fit_report is not None and trainer.is_global_zero and not self.quiet:
            console(soft_wrap=True).print(f"{pl_module.fit_report}\n")
        self.baselines.on_train_epoch_start(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A new validation's answers; of the one before it is known now whether it is the best so far."""
        if not _counts(trainer, pl_module):
            return
        latest = self.classes.latest
        if latest is not None and self.history and _best_epoch(trainer, self.history)["epoch"] == latest["epoch"]:
            self.classes.best = latest
        self.classes.begin(pl_module)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,  # noqa: ARG002
        batch_idx: int, dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:  # fmt: skip
        """Keep what the network said of a batch."""
        if dataloader_idx == 0 and isinstance(outputs, Mapping) and _counts(trainer, pl_module):
            self.classes.update(pl_module, outputs["logits"], outputs["targets"])

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Which class was taken for which."""
        if _counts(trainer, pl_module):
            self.classes.end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the epoch's figures, write results and page, print one line."""
        if not isinstance(pl_module, CAMFineTuner) or not trainer.is_global_zero or is_dry_run(trainer):
            return
        figures = {key: float(value) for key, value in trainer.callback_metrics.items() if _is_number(value)}
        before = self.history[-1] if self.history else None
        self.history.append({"epoch": trainer.current_epoch, **figures})
        network = pl_module.cam_net
        if network is not None:  # they travel in the checkpoint of this epoch
            network.results = self._results(self.history[-1], pl_module)
            network.box_rule = None  # a rule of other weights; a finished run chooses its own
        self._write(trainer, pl_module, finished=False)
        if not self.quiet:
            epoch_line(self.history[-1], before, self.baselines.figures, decline(self.history, "val/acc", self.quality))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Export the best epoch, write the final results and page, say what came out."""
        if not isinstance(pl_module, CAMFineTuner) or is_dry_run(trainer):
            return
        if not current().everywhere(bool(self.history)):
            return
        if not trainer.is_global_zero:
            self.export.export(trainer, pl_module, {})
            return
        epoch = _best_epoch(trainer, self.history)
        folder = run_folder(trainer)
        results = self._results(epoch, pl_module)
        self.export.exported = {"epoch": epoch["epoch"], **results, **self.export.export(trainer, pl_module, results)}
        self._draw_examples(trainer, pl_module, folder, epoch["epoch"])
        self._log_classes(trainer)
        self._write(trainer, pl_module, finished=True)
        if not self.quiet:
            closing_screen(folder, self.export.exported, self.baselines.figures)

    def on_exception(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002 - Lightning's signature
        exception: BaseException,
    ) -> None:
        """Wait for the page, and say how to go on after Ctrl-C and SIGTERM."""
        self._await_page()
        Background.of(trainer).finish()
        last = run_folder(trainer) / "last.ckpt"
        kept = last.is_file() or (isinstance(exception, SIGTERMException) and trainer.training)  # see StopSafely
        stopped = isinstance(exception, KeyboardInterrupt | SIGTERMException)
        if stopped and kept and trainer.is_global_zero and not self.quiet:
            console(soft_wrap=True).print(
                f"\nStopped in epoch {trainer.current_epoch}; what is in {last.name} is safe. Go on with:\n"
                f"  camify fit --config {shell_quoted(last.parent / 'config.yaml')} --ckpt_path {shell_quoted(last)}"
            )

    def _draw_examples(self, trainer: pl.Trainer, module: CAMFineTuner, folder: Path, epoch: float) -> None:
        """The images behind the cells of the confusion matrix, with the exported network's maps."""
        kept, exported = self.classes.of_epoch(epoch), self.export.exported.get("folder")
        if kept is None or exported is None or not kept["examples"] or not self.report:
            return
        network = CAMNet.from_pretrained(exported).to(module.device)
        self._examples = draw_examples(network, kept, trainer, folder / "overlays")

    def _log_classes(self, trainer: pl.Trainer) -> None:
        taken = self._classes_taken(finished=True)
        if taken is not None and trainer.loggers:
            calibrations = calibrations_by_name(taken["calibrations"], finished=True)
            log_classes(trainer, taken, calibrations)

    # ------------------------------------------------------------ results and page

    @property
    def quality(self) -> str:
        """The figure of the maps that stands against accuracy."""
        logged = self.history[-1] if self.history else {}
        return self.wanted_quality or next((key for key in MAP_FIGURES if key in logged), next(iter(MAP_FIGURES)))

    def _results(self, epoch: dict[str, float], module: CAMFineTuner) -> dict[str, Any]:
        results: dict[str, Any] = {
            key: value for key, value in epoch.items() if key.startswith("val/") and math.isfinite(value)
        }
        results["epochs_trained"] = len(self.history)
        results["validation_images"] = count_samples(module.trainer.val_dataloaders)
        if (seed := os.environ.get("PL_GLOBAL_SEED", "")).isdecimal():
            results["seed"] = int(seed)
        for who, row in self.baselines.figures.items():
            results |= {f"{who}/{key.removeprefix('val/')}": value for key, value in row.items()}
        return results

    def _write(self, trainer: pl.Trainer, module: CAMFineTuner, *, finished: bool) -> None:
        folder = run_folder(trainer)
        results = {
            "finished": finished,
            "source": module.source,
            "classes": module.class_names,
            "legacy": {"val/acc": None, **self.baselines.legacy},
            "start": self.baselines.start,
            "exported": self.export.exported,
            "history": self.history,
            "classes_taken": self._classes_taken(finished=finished),
            "pareto": {
                "figures": ["val/acc", self.quality],
                "epochs": [row["epoch"] for row in pareto_set(self.history, "val/acc", self.quality)],
            },
            "data": type(getattr(trainer, "datamodule", None)).__name__,
            "certificate": _certificate(module.cam_net),
            "environment": environment(trainer),
        }
        text = to_json(_finite(results), indent=2)
        write_whole(folder / RESULTS, text + "\n")
        self._await_page()
        if not self.report:
            return
        self._page = Background.of(trainer).start(partial(_write_page, folder))  # after its pictures
        if finished:
            self._await_page()
            Background.of(trainer).finish()

    def _classes_taken(self, *, finished: bool) -> dict[str, Any] | None:
        """Which class is taken for which: of the exported epoch when training has ended, else of the last one."""
        epoch = self.export.exported.get("epoch") if finished else None
        kept = self.classes.latest if epoch is None else self.classes.of_epoch(epoch)
        if kept is None:
            return None
        calibrations = {**self.baselines.calibrations, "now": kept["figures"]["calibration"]}
        return {
            "epoch": kept["epoch"],
            "figures": kept["figures"],
            "calibrations": calibrations,
            "examples": self._examples,
            "can_be_shown": bool(kept["examples"]),
        }

    def _await_page(self) -> None:
        page, self._page = self._page, None
        try:
            if page is not None:
                page.result()
        except Exception as error:  # noqa: BLE001 - the page never stops training
            self.report = False
            rank_zero_warn(shown(f"The report is off from here on: {type(error).__name__}: {error}. Training goes on."))


def _counts(trainer: pl.Trainer, module: pl.LightningModule) -> bool:
    """Whether this validation is one of a run's epochs."""
    fits = trainer.state.fn == "fit" and not trainer.sanity_checking and not is_dry_run(trainer)
    return fits and isinstance(module, CAMFineTuner)


def _write_page(folder: Path) -> None:
    write_whole(folder / "report.html", render_page(read_run(folder)))


def _certificate(network: CAMNet | None) -> dict[str, Any]:
    """What the conversion did, as the page shows it."""
    certificate = None if network is None else network.certificate
    if certificate is None:
        return {}
    parts = certificate.to_dict()["parts"]
    return {"rows": [{**part, "part": part["name"]} for part in parts], "facts": certificate.facts}


def environment(trainer: pl.Trainer) -> dict[str, str]:
    """Versions and machine."""
    packages = ("camify", "torch", "torchvision", "pytorch-lightning", "torchmetrics")
    device = torch.cuda.get_device_name() if trainer.strategy.root_device.type == "cuda" else platform.machine()
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "device": f"{trainer.strategy.root_device.type} ({device})",
        "precision": str(trainer.precision),
    }


def _best_epoch(trainer: pl.Trainer, history: list[dict[str, float]]) -> dict[str, float]:
    """The figures of the epoch whose weights the checkpoint callback holds as best; else of the last."""
    callback = trainer.checkpoint_callback
    monitor, score = getattr(callback, "monitor", None), getattr(callback, "best_model_score", None)
    if monitor is None or score is None:
        return history[-1]
    return next((row for row in history if row.get(monitor) == float(score)), history[-1])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)


def _finite(value: Any) -> Any:
    """JSON has no NaN: such figures become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
