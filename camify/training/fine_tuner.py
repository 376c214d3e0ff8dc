"""CAMFineTuner: a converted classifier as a LightningModule."""

# ruff: noqa: ARG002 - arguments of the constructor are read from `hparams`, where the recipe has settled them

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from ..checkpoint import CKPT_RECORD, SCHEMA_VERSION
from ..errors import ConfigError, ConversionError, DataError
from ..maps import normalize, select, upsample
from ..metrics import MaxBoxAccuracy
from ..model import CAMNet
from ..modes import evaluating
from ..surgery import FitReport, convert, find_recipe, fit_head, resolve, settle_fine_tuning, settle_head
from .asking import single_loader
from .optimization import build_optimizer, check_options
from .schedule import lr_factor, set_frozen

__all__ = ["CAMFineTuner", "settle_options"]

Batch = Mapping[str, Any] | tuple[Tensor, Tensor] | list[Tensor]


class CAMFineTuner(pl.LightningModule):
    """Fine-tunes a CAM-ready classifier and measures, beside its accuracy, whether its maps find the objects.

    A legacy network is converted first (see ``camify.convert``). Batches are dicts (``image``, ``label``,
    optionally ``boxes``) as camify's data modules give them, or pairs (images, labels).

    Where an option is None, the recipe decides, else the default that is named here; ``hparams``, checkpoints and the
    run's ``config.yaml`` hold what was decided.

    Logged per epoch: ``train/loss``, ``val/loss``, ``val/acc`` and, where boxes are known, ``val/max_box_acc``
    (version 1: IoU 0.5, largest component, best threshold, map of the true class) beside ``val/centre_box_acc``,
    what the best fixed centred box reaches on the same images.

    Args:
        model: a CAMNet, a legacy network to convert, or a source such as ``"torchvision/vgg16"``.
        class_names: in label order; None takes those of the model. Rows of classes that the legacy has by these
            names are kept where its classifier is (see ``camify.convert``).
        recipe: a published network by name (``camify.surgery.RECIPES``): its layers, where ``model`` is a legacy
            network, and how it was fine-tuned. Options of the head that contradict it are refused, other options win.
        head: ``"gap"`` (default), ``"direct"``, ``"recast"``, or ``"none"`` to train a legacy network as it is,
            without maps.
        pool: ``"gap"`` (default), ``"gmp"`` or ``"lse"``.
        head_channels: widths of the new convolutions (``head="gap"``); None takes the published ones.
        dropout: between pooling and classifier; default 0.
        init: how the new classifier starts: ``"random"``, or ``"ridge"``: fitted in closed form, before the first
            step, to the legacy's logits where its classes are the data's, else to the labels (see ``camify.fit_head``).
        map_stride: pixels per cell of a finer map (strides become dilations); None keeps the legacy's.
        input_size: side of the input at which the conversion is proven, pixels.
        optimizer: ``"sgd"`` (default) or ``"adamw"``.
        lr: peak learning rate of the legacy's features; default 1e-3.
        head_lr_factor: the new head learns this much faster; default 10, as in wsolevaluation.
        fast_layers: layers of the features, by name, that learn at the head's rate; default none.
        bias_lr_factor: biases learn this much faster; default 1.
        momentum: of SGD; default 0.9.
        nesterov: Nesterov's momentum; default true.
        weight_decay: of all weights; default 5e-4.
        decay_biases: whether biases decay as the weights do; default true.
        schedule: ``"cosine"`` (default) or ``"step"``.
        lr_drops: with ``"step"``, the fractions of the training after which rates are tenfold less.
        warmup_epochs: linear rise of each group's learning rate after its start, before the schedule; default 0.5.
        freeze_epochs: epochs in which the features stay as they are and no gradient of them is computed; default 1.
        label_smoothing: of the cross-entropy, in [0, 1).

    Raises:
        ConversionError, CheckpointError, ConfigError: before anything is trained.
    """

    def __init__(
        self,
        model: str | nn.Module,
        class_names: list[str] | None = None,
        recipe: str | None = None,
        head: Literal["gap", "direct", "recast", "none"] | None = None,
        pool: Literal["gap", "gmp", "lse"] | None = None,
        head_channels: int | list[int] | None = None,
        dropout: float | None = None,
        map_stride: int | None = None,
        init: Literal["random", "ridge"] = "random",
        input_size: int = 224,
        optimizer: Literal["sgd", "adamw"] | None = None,
        lr: float | None = None,
        head_lr_factor: float | None = None,
        fast_layers: list[str] | None = None,
        bias_lr_factor: float | None = None,
        momentum: float | None = None,
        nesterov: bool | None = None,
        weight_decay: float | None = None,
        decay_biases: bool | None = None,
        schedule: Literal["cosine", "step"] | None = None,
        lr_drops: list[float] | None = None,
        warmup_epochs: float | None = None,
        freeze_epochs: int | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["model"])
        self.save_hyperparameters(settle_options(self.hparams))  # None becomes what was decided
        check_options(self.hparams)
        if class_names is not None and len(class_names) < 2:
            raise ConfigError(f"class_names={class_names}: a classifier needs at least two classes.")
        if init not in ("random", "ridge"):
            raise ConfigError(f"init={init!r} is unknown. Choose random or ridge.")
        self.fit_report: FitReport | None = None
        self.legacy: nn.Module | None = None  # set below, outside the module tree: it is never trained or saved
        self.source = ""
        names = ("recipe", "pool", "head_channels", "dropout", "map_stride", "input_size")
        options = {name: self.hparams[name] for name in names}
        self.model = self._prepare(model, class_names, self.hparams["head"], options)
        self.class_names = class_names
        if isinstance(self.model, CAMNet):
            self.model.class_names = class_names or self.model.class_names
            self.class_names = self.model.class_names
        count = self._count_classes(input_size)
        if class_names is not None and len(class_names) != count:
            raise ConfigError(
                f"The data has {len(class_names)} classes, the network {count}. Convert it with num_classes."
            )
        self.val_accuracy = MulticlassAccuracy(num_classes=count, average="micro")
        self.box_accuracy = MaxBoxAccuracy(version=1)

    def _prepare(
        self, model: str | nn.Module, class_names: list[str] | None, head: str, options: dict[str, Any]
    ) -> nn.Module:
        """The network to train: converted where it is a legacy one, which is then kept for comparison."""
        legacy_names: list[str] | None = None
        notes: tuple[str, ...] = ()
        licence: str | None = None
        self.source = model if isinstance(model, str) else type(model).__name__
        if isinstance(model, str):
            source = resolve(model)
            model, legacy_names, notes, licence = source.model, source.class_names, source.notes, source.licence
        if head == "none" or (isinstance(model, CAMNet) and _has_classes(model, class_names)):
            return model.train()
        if isinstance(model, CAMNet):  # has its layers already; other classes need another classifier only
            head, options = "direct", {**options, "recipe": None}
        # what the legacy knew of the data's classes stays, row by row, where both are named and its head is kept
        net = convert(model, head=head, class_names=class_names, legacy_class_names=legacy_names, **options).train()
        net.licence = net.licence or licence
        if net.certificate is not None:
            net.certificate = net.certificate.named(self.source, notes)
            comparable = legacy_names is None or class_names is None or legacy_names == class_names
            if comparable and net.certificate.legacy_classes == net.num_classes:
                object.__setattr__(self, "legacy", model)
        return net

    def _count_classes(self, input_size: int) -> int:
        if isinstance(self.model, CAMNet):
            return self.model.num_classes
        parameter = next(self.model.parameters())
        with torch.no_grad(), evaluating(self.model):
            logits = self.model(torch.zeros(1, 3, input_size, input_size).to(parameter))
        return int(logits.shape[1])

    # ------------------------------------------------------------ steps

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K)."""
        logits: Tensor = self.model(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy of one batch."""
        images, labels = _images_and_labels(batch)
        loss = F.cross_entropy(self.model(images), labels, label_smoothing=self.hparams["label_smoothing"])
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss, accuracy and box accuracy of one batch; the maps come from the same forward."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As in validation."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Logits (N, K), predicted classes (N,) and, of a CAMNet, their raw maps (N, h, w)."""
        images, _ = _images_and_labels(batch)
        logits, maps = self._logits_and_maps(images)
        classes = logits.argmax(dim=1)
        found: dict[str, Any] = {"logits": logits, "classes": classes}
        if maps is not None:
            found["maps"] = select(maps, classes)
        if isinstance(batch, Mapping) and "path" in batch:
            found["path"] = batch["path"]
        return found

    def _logits_and_maps(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        if isinstance(self.model, CAMNet):
            return self.model.forward_with_maps(images)
        return self.model(images), None

    def _evaluate(self, batch: Batch, stage: str) -> None:
        images, labels = _images_and_labels(batch)
        logits, maps = self._logits_and_maps(images)
        self.val_accuracy.update(logits, labels)
        size = len(labels)
        self.log(f"{stage}/loss", F.cross_entropy(logits, labels), prog_bar=True, batch_size=size)
        self.log(f"{stage}/acc", self.val_accuracy, prog_bar=True, batch_size=size)
        if maps is not None and isinstance(batch, Mapping) and "boxes" in batch:
            height, width = images.shape[-2:]
            heat = normalize(upsample(select(maps, labels).float(), (height, width)))
            self.box_accuracy.update(heat, batch["boxes"])

    def on_validation_epoch_end(self) -> None:
        """Log the box accuracy beside that of the best centred box."""
        self._log_boxes("val")

    def on_test_epoch_end(self) -> None:
        """As in validation."""
        self._log_boxes("test")

    def _log_boxes(self, stage: str) -> None:
        if not self.box_accuracy.update_called and self.trainer.world_size == 1:
            return  # several processes compute together, whether each saw boxes or not
        found = self.box_accuracy.compute()
        self.box_accuracy.reset()
        if not bool(found["count"] > 0):
            return
        for key in ("max_box_acc", "centre_box_acc", "best_threshold"):
            self.log(f"{stage}/{key}", found[key].float(), prog_bar=key != "best_threshold", sync_dist=False)

    # ------------------------------------------------------------ schedule

    def setup(self, stage: str) -> None:
        """Take class names and preprocessing from the data module; they travel in the checkpoint."""
        data = getattr(self.trainer, "datamodule", None)
        names = getattr(data, "class_names", None)
        if names is not None and self.class_names is not None and list(names) != list(self.class_names):
            raise DataError(
                f"The data's classes {list(names)[:5]} are not the model's {list(self.class_names)[:5]} in this order."
                " Give class_names=data.class_names."
            )
        if isinstance(self.model, CAMNet):
            preprocessing = getattr(data, "preprocessing", None)
            if preprocessing is not None:
                self.model.preprocessing = preprocessing.to_dict()
            if self.model.class_names is None and names is not None and len(names) == self.model.num_classes:
                self.class_names = self.model.class_names = list(names)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put everything but the weights beside them, as JSON: ``camify export`` makes a CAM-ready folder of both."""
        if isinstance(self.model, CAMNet):
            try:
                manifest = {"schema_version": SCHEMA_VERSION, **self.model.manifest()}
            except ConversionError as error:  # a layer of the user's own; saving goes on
                manifest = {"refused": str(error)}
            checkpoint[CKPT_RECORD] = json.dumps(manifest)

    def on_train_start(self) -> None:
        """Fit the classifier in closed form where that was asked for; let the legacy network go."""
        if self.hparams["init"] == "ridge" and self.global_step == 0 and isinstance(self.model, CAMNet):
            if self.trainer.world_size > 1:
                raise ConfigError("init='ridge' fits in one process. Fit and save the model first, then train it.")
            images = single_loader(self.trainer.train_dataloader)
            if self.legacy is None:
                self.fit_report = fit_head(self.model, images, labels=True)
            else:
                home = next(self.legacy.parameters()).device
                self.fit_report = fit_head(self.model, images, teacher=self.legacy.to(self.device))
                self.legacy.to(home)
        self.legacy = None  # its memory is needed no more

    def on_train_epoch_start(self) -> None:
        """Freeze or free the features, by the number of the epoch alone."""
        if isinstance(self.model, CAMNet):
            set_frozen(self.model, self.current_epoch < self.hparams["freeze_epochs"])

    def on_train_end(self) -> None:
        """Leave nothing frozen behind."""
        if isinstance(self.model, CAMNet):
            set_frozen(self.model, False)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """All parameters in named groups from the first step on; learning rates by ``lr_factor``."""
        optimizer = build_optimizer(self.model, self.hparams)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, [self._factor(g["name"]) for g in optimizer.param_groups]
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _factor(self, group: str) -> Any:
        total = int(self.trainer.estimated_stepping_batches)
        per_epoch = total / max(1, self.trainer.max_epochs or 1)
        warmup = round(self.hparams["warmup_epochs"] * per_epoch)
        late = group.startswith("features") and isinstance(self.model, CAMNet)
        start = round(self.hparams["freeze_epochs"] * per_epoch) if late else 0
        drops = self.hparams["lr_drops"]
        return lambda step: lr_factor(step, total, warmup=warmup, start=start, drops=drops)


def settle_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the head and of fine-tuning that are None, settled by the recipe or the defaults.

    Raises:
        ConversionError: no recipe has that name, or an option contradicts it.
    """
    recipe = find_recipe(options["recipe"])
    names = ("head", "pool", "dropout", "head_channels", "map_stride")
    return {
        **settle_head(recipe, {name: options[name] for name in names}),
        **settle_fine_tuning(recipe, options),
    }


def _has_classes(net: CAMNet, names: list[str] | None) -> bool:
    """Whether a network's classes are these, in this order, as far as it is known."""
    return names is None or (len(names) == net.num_classes and net.class_names in (None, names))


def _images_and_labels(batch: Batch) -> tuple[Tensor, Tensor]:
    if isinstance(batch, Mapping):
        return batch["image"], batch["label"]
    images, labels = batch
    return images, labels
