"""RunRecord: what a run was, what it reached and what to do next; on screen, on disk and as a page."""

from __future__ import annotations

import json
import math
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from ..files import write_whole
from ..model import CAMNet
from ..modes import evaluating
from ..report.page import RunReport, render_page
from .asking import count_samples, is_dry_run, run_folder, single_loader
from .export import best_weights, export_cam_net, export_legacy
from .fine_tuner import CAMFineTuner
from .overlays import CAMOverlayLogger
from .screens import closing_screen, epoch_line, opening_screen

__all__ = ["RunRecord"]


class RunRecord(pl.Callback):
    """Keeps the record of a fine-tuning run in its folder.

    Before training one screen says what will happen, and the legacy network's accuracy is measured where its
    classes are the data's. After every epoch ``results.json`` and ``report.html`` are written anew. At the end the
    best epoch's weights are exported to ``export/``, loaded again and compared, and one screen says what came out.

    Args:
        report: write ``report.html``.
        quiet: print nothing.
    """

    def __init__(self, report: bool = True, quiet: bool = False) -> None:
        self.report, self.quiet = report, quiet
        self.history: list[dict[str, float]] = []
        self.legacy_accuracy: float | None = None
        self.exported: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """Figures so far, plain values."""
        return {"history": self.history, "legacy_accuracy": self.legacy_accuracy}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the figures of an interrupted run."""
        self.history, self.legacy_accuracy = list(state_dict["history"]), state_dict["legacy_accuracy"]

    # ------------------------------------------------------------ hooks

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what will happen and measure what the legacy network reaches."""
        if not isinstance(pl_module, CAMFineTuner) or not trainer.is_global_zero or is_dry_run(trainer):
            return
        if not self.quiet:
            opening_screen(trainer, pl_module, run_folder(trainer))
        if self.legacy_accuracy is None and pl_module.legacy is not None:
            self.legacy_accuracy = _accuracy(pl_module.legacy, trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what a closed-form start gave."""
        if not isinstance(pl_module, CAMFineTuner) or self.quiet or not trainer.is_global_zero:
            return
        if pl_module.fit_report is not None:
            print(f"{pl_module.fit_report}\n")  # noqa: T201 - the user's terminal
            pl_module.fit_report = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the epoch's figures, write results and page, print one line."""
        if not isinstance(pl_module, CAMFineTuner) or not trainer.is_global_zero or is_dry_run(trainer):
            return
        figures = {key: float(value) for key, value in trainer.callback_metrics.items() if _is_number(value)}
        before = self.history[-1] if self.history else None
        self.history.append({"epoch": trainer.current_epoch, **figures})
        if isinstance(pl_module.model, CAMNet):  # they travel in the checkpoint of this epoch
            pl_module.model.results = self._results(self.history[-1], pl_module)
            pl_module.model.calibration = _calibration(self.history[-1])
        self._write(trainer, pl_module, finished=False)
        if not self.quiet:
            epoch_line(self.history[-1], before, self.legacy_accuracy)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Export the best epoch, write the final results and page, say what came out."""
        if not isinstance(pl_module, CAMFineTuner) or not trainer.is_global_zero or is_dry_run(trainer):
            return
        if not self.history:
            return
        best = best_weights(trainer)
        epoch = _best_epoch(trainer, self.history)
        folder = run_folder(trainer)
        self.exported = {"epoch": epoch["epoch"], **self._results(epoch, pl_module)}
        weights = best[0] if best else None
        if isinstance(pl_module.model, CAMNet):
            images = _some_images(trainer)
            pl_module.model.calibration = _calibration(epoch)
            error = export_cam_net(pl_module.model, weights, folder / "export", self._results(epoch, pl_module), images)
            self.exported |= {"folder": str(folder / "export"), "reload_error": error}
        else:
            export_legacy(pl_module.model, weights, folder / "legacy.safetensors", pl_module.class_names)
            self.exported["file"] = str(folder / "legacy.safetensors")
        self._write(trainer, pl_module, finished=True)
        if not self.quiet:
            closing_screen(folder, self.exported, self.legacy_accuracy)

    def on_exception(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002 - Lightning's signature
        exception: BaseException,
    ) -> None:
        """Say how to go on after Ctrl-C."""
        last = run_folder(trainer) / "last.ckpt"
        if isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero and last.is_file() and not self.quiet:
            print(  # noqa: T201 - the user's terminal
                f"\nStopped in epoch {trainer.current_epoch}; the epochs before are safe. Go on with:\n"
                f"  python train.py fit --config {last.parent}/config.yaml --ckpt_path {last}"
            )

    # ------------------------------------------------------------ results and page

    def _results(self, epoch: dict[str, float], module: CAMFineTuner) -> dict[str, Any]:
        results: dict[str, Any] = {
            key: value for key, value in epoch.items() if key.startswith("val/") and math.isfinite(value)
        }
        results["epochs_trained"] = len(self.history)
        results["validation_images"] = count_samples(module.trainer.val_dataloaders)
        if (seed := os.environ.get("PL_GLOBAL_SEED", "")).isdecimal():
            results["seed"] = int(seed)
        if self.legacy_accuracy is not None:
            results["legacy/acc"] = self.legacy_accuracy
        return results

    def _write(self, trainer: pl.Trainer, module: CAMFineTuner, *, finished: bool) -> None:
        folder = run_folder(trainer)
        results = {
            "finished": finished,
            "source": module.source,
            "classes": module.class_names,
            "legacy": {"val/acc": self.legacy_accuracy},
            "exported": self.exported,
            "history": self.history,
            "environment": environment(trainer),
        }
        text = json.dumps(_finite(results), indent=2, ensure_ascii=False, allow_nan=False)
        write_whole(folder / "results.json", text + "\n")
        if not self.report:
            return
        try:
            write_whole(folder / "report.html", render_page(self._page(trainer, module, finished=finished)))
        except Exception as error:  # noqa: BLE001 - the page never stops training
            self.report = False
            rank_zero_warn(f"The report is off from here on: {type(error).__name__}: {error}. Training goes on.")

    def _page(self, trainer: pl.Trainer, module: CAMFineTuner, *, finished: bool) -> RunReport:
        folder, network = run_folder(trainer), module.model
        certificate = network.certificate if isinstance(network, CAMNet) else None
        record = certificate.to_dict() if certificate else {"parts": ()}
        rows = [{**part, "part": part["name"]} for part in record["parts"]]
        overlays = next((c for c in getattr(trainer, "callbacks", ()) if isinstance(c, CAMOverlayLogger)), None)
        data = type(getattr(trainer, "datamodule", None)).__name__
        config = folder / "config.yaml"
        return RunReport(
            title=folder.name,
            finished=finished,
            subtitle=f"{module.source}, {len(module.class_names or ())} classes, {data}",
            certificate={"rows": rows, "facts": certificate.facts if certificate else {}},
            results=self._rows(finished),
            centre_box_accuracy=self.history[-1].get("val/centre_box_acc"),
            history=self.history,
            images=overlays.tracks() if overlays else [],
            config=config.read_text(encoding="utf-8") if config.is_file() else "",
            environment=environment(trainer),
            commands=commands(folder),
        )

    def _rows(self, finished: bool) -> list[dict[str, Any]]:
        known = self.legacy_accuracy is not None
        rows = [
            {
                "name": "legacy network",
                "accuracy": self.legacy_accuracy,
                "box_accuracy": None,
                "note": "as it came; it has no class maps" if known else "other classes: not comparable",
            }
        ]
        if finished and self.exported:
            rows.append(
                {
                    "name": "converted and fine-tuned",
                    "accuracy": self.exported.get("val/acc"),
                    "box_accuracy": self.exported.get("val/max_box_acc"),
                    "note": f"best epoch ({self.exported['epoch']:.0f}), exported",
                }
            )
        return rows


def commands(folder: Path) -> list[tuple[str, str]]:
    """What to do next, with the command."""
    return [
        (
            "Explain your own pictures with the exported network",
            f"camify explain PICTURE.jpg --model {folder}/export --out explained",
        ),
        (
            "Go on training",
            f"python train.py fit --config {folder}/config.yaml --ckpt_path {folder}/last.ckpt",
        ),
        ("See curves and overlays in TensorBoard", f"tensorboard --logdir {folder}"),
    ]


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


@torch.no_grad()
def _accuracy(network: nn.Module, trainer: pl.Trainer, module: CAMFineTuner) -> float:
    """Accuracy of the legacy network on the validation data; it is left as and where it was."""
    home = next(network.parameters()).device
    metric: MulticlassAccuracy | None = None
    with evaluating(network.to(module.device)):
        for batch in single_loader(trainer.val_dataloaders):
            moved = module.transfer_batch_to_device(batch, module.device, 0)
            images, labels = (moved["image"], moved["label"]) if isinstance(moved, dict) else moved
            logits = network(images)
            if metric is None:
                metric = MulticlassAccuracy(logits.shape[1], average="micro").to(module.device)
            metric.update(logits, labels)
    network.to(home)
    return float(metric.compute()) if metric is not None else math.nan


def _some_images(trainer: pl.Trainer) -> Tensor:
    batch = next(iter(single_loader(trainer.val_dataloaders)))
    images: Tensor = batch["image"] if isinstance(batch, dict) else batch[0]
    return images[:8].cpu().float()


def _best_epoch(trainer: pl.Trainer, history: list[dict[str, float]]) -> dict[str, float]:
    """The figures of the epoch whose weights the checkpoint callback holds as best; else of the last."""
    callback = trainer.checkpoint_callback
    monitor, score = getattr(callback, "monitor", None), getattr(callback, "best_model_score", None)
    if monitor is None or score is None:
        return history[-1]
    return next((row for row in history if row.get(monitor) == float(score)), history[-1])


def _calibration(figures: dict[str, float]) -> dict[str, Any] | None:
    """The threshold that this epoch's validation boxes ask for, with the scaling that ``val/max_box_acc`` has."""
    threshold = figures.get("val/best_threshold", math.nan)
    if not math.isfinite(threshold):
        return None
    return {"normalizer": "minmax", "percentile": None, "threshold": threshold}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)


def _finite(value: Any) -> Any:
    """JSON has no NaN: such figures become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
