"""CAMFineTuner: a converted classifier as a LightningModule."""

# ruff: noqa: ARG002 - arguments of the constructor are read from `hparams`, where the recipe has settled them

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import FSDPStrategy
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchvision.transforms import v2

from ..errors import ConfigError, DataError
from ..maps import class_maps, select
from ..model import CAMNet
from ..modes import evaluating
from ..normalizers import Normalizer
from ..surgery import FitReport
from .asking import Batch, images_and_labels, labels_of, read_images, single_loader
from .augmentation import hide_patches
from .cam_quality import CAMQuality, ValidationBatch, logits_and_maps
from .course import Course
from .earlier_maps import EarlierMaps
from .feature_cache import run_new_layers
from .losses import Objective, classification_loss, object_masks
from .optimization import build_optimizer, check_options
from .preparing import count_classes, prepare, record_of, settle_options
from .resuming import StopSafely
from .schedule import lr_factor, one_cycle_factor
from .scores import class_score

__all__ = ["CAMFineTuner"]

_EARLIER = "camify_earlier_maps"  # in a checkpoint


class CAMFineTuner(pl.LightningModule):
    """Fine-tunes a CAM-ready classifier and measures, beside its accuracy, whether its maps find the objects.

    A legacy network is converted first (see ``camify.convert``). Batches are dicts (``image``, ``label``,
    optionally ``boxes`` or ``mask``) as camify's data modules give them, or pairs (images, labels).

    Where an option is None, the recipe decides, else the default that is named here; ``hparams``, checkpoints and the
    run's ``config.yaml`` hold what was decided.

    Logged per epoch: ``train/loss``, ``val/loss``, ``val/acc`` and the figures of ``cam_metrics``, of the true
    classes' maps. By default these are, where boxes are known, ``val/max_box_acc`` (version 1: IoU 0.5, largest
    component, best threshold) beside ``val/centre_box_acc``, what the best fixed centred box reaches on the same
    images; where there are none, ``val/grid_pointing`` beside ``val/grid_chance``; and ``val/map_area`` and
    ``val/map_entropy``, how much of the image the maps take. Each can be monitored.

    Args:
        model: a CAMNet, a legacy network to convert, or a source such as ``"torchvision/vgg16"``.
        class_names: in label order; None takes those of the model. Rows of classes that the legacy has by these
            names are kept where its classifier is (see ``camify.convert``).
        recipe: a published network by name (``camify.surgery.RECIPES``): its layers, where ``model`` is a legacy
            network, and how it was fine-tuned. Options of the head that contradict it are refused, other options win.
        head: ``"gap"`` (default), ``"direct"``, ``"recast"``, or ``"none"`` to train a legacy network as it is,
            without maps.
        pool: ``"gap"`` (default), ``"gmp"``, ``"lse"`` or ``"tap"`` (thresholded average, Bae et al. 2020).
        head_channels: widths of the new convolutions (``head="gap"``); None takes the published ones.
        dropout: between pooling and classifier; default 0.
        init: how the classifier starts: ``"random"`` (default), as the conversion draws it; ``"ridge"``: fitted in
            closed form, before the first step, to the legacy's logits where its classes are the data's, else to the
            labels (see ``camify.fit_head``); ``"recast"``: the old head at every position (``head="recast"``).
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
        schedule: ``"cosine"`` (default), ``"step"`` or ``"one_cycle"`` (which has its own warm-up).
        lr_drops: with ``"step"``, the fractions of the training after which rates are tenfold less.
        warmup_epochs: linear rise of each group's learning rate after its start, before the schedule; default 0.5.
        freeze_epochs: epochs in which the features stay as they are and no gradient of them is computed; default 1.
        gradient_clip: largest norm of a step's gradient, longer ones are scaled down to it; default 10, which few
            steps of networks with batch norm reach, while others diverge without it; 0 is off, as it is in published
            recipes. ``Trainer(gradient_clip_val=...)`` goes before. Lightning cannot clip by norm under FSDP: off.
        label_smoothing: of the cross-entropy, in [0, 1).
        task: ``"multiclass"``, or ``"multilabel"``: labels (N, K) of 0 and 1, binary cross-entropy, ``val/map``.
        class_weights: of the classes in the loss, or ``"balanced"``: each class counts the same.
        teacher: ``"legacy"``: the legacy network's logits are a second target (Hinton et al. 2015).
        teacher_weight: of that target in the loss, in [0, 1]; the labels have the rest.
        teacher_temperature: softens both distributions.
        box_weight: of the guidance by boxes or masks, for the training images that have them: one minus the share of
            the true class's positive evidence that lies on the object (Rao et al. 2023), evidence relative to the
            mean of all classes; 0 is off.
        hide_and_seek: probability that a cell of an image is hidden (Singh & Lee 2017, there 0.5); 0 is off.
        cutmix: both parameters of the Beta distribution of the pasted area (Yun et al. 2019, there 1); 0 is off.
        adl_layers: layers of the features behind which the most attended cells are dropped (Choe & Shim 2019).
        adl_drop_rate: how often they are dropped; else cells are weighed by their attention.
        adl_gamma: share of the largest attention from which on a cell is dropped.
        clamp_weights: maps from the positive weights of the classifier only (Bae et al. 2020); logits stay.
        normalizer: of the maps whose boxes are measured: ``"minmax"``, ``"max"``, ``"pas"`` or ``"ivr"`` (see
            ``camify.normalizers``).
        percentile: of ``"pas"`` and ``"ivr"``; None takes the published 90 and 45.
        layer_decay: the rate of each layer of the features is this factor of the next one's; 1 is off.
        channels_last: weights in that memory format; what runs through them follows.
        compile: let ``torch.compile`` compile the features.
        feature_cache: compute the features of frozen epochs once: ``"memory"``, ``"disk"`` or ``"off"``.
        feature_cache_gb: the most that they may take.
        cached_views: draws of the augmentation that are kept of every image; None: the augmentation has no chance.
        cam_metrics: CAM metrics of validation by name (``camify.training.CAM_METRICS``); None: those above. Those of
            masked images cost a forward more, ``insertion_auc`` and ``deletion_auc`` 17.
        grid_mosaics: mosaics that ``grid_pointing`` looks at, four forwards each.

    Raises:
        ConversionError, CheckpointError, ConfigError: before anything is trained.
    """

    def __init__(
        self,
        model: str | nn.Module,
        class_names: list[str] | None = None,
        recipe: str | None = None,
        head: Literal["gap", "direct", "recast", "none"] | None = None,
        pool: Literal["gap", "gmp", "lse", "tap"] | None = None,
        head_channels: int | list[int] | None = None,
        dropout: float | None = None,
        map_stride: int | None = None,
        init: Literal["random", "ridge", "recast"] | None = None,
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
        schedule: Literal["cosine", "step", "one_cycle"] | None = None,
        lr_drops: list[float] | None = None,
        warmup_epochs: float | None = None,
        freeze_epochs: int | None = None,
        gradient_clip: float | None = None,
        label_smoothing: float = 0.0,
        task: Literal["multiclass", "multilabel"] = "multiclass",
        class_weights: list[float] | Literal["balanced"] | None = None,
        teacher: Literal["legacy"] | None = None,
        teacher_weight: float = 0.5,
        teacher_temperature: float = 2.0,
        box_weight: float = 0.0,
        hide_and_seek: float = 0.0,
        cutmix: float = 0.0,
        adl_layers: list[str] | None = None,
        adl_drop_rate: float = 0.75,
        adl_gamma: float = 0.9,
        clamp_weights: bool = False,
        normalizer: Literal["minmax", "max", "pas", "ivr"] = "minmax",
        percentile: float | None = None,
        layer_decay: float = 1.0,
        channels_last: bool = False,
        compile: bool = False,  # noqa: A002 - torch's word
        feature_cache: Literal["off", "memory", "disk"] = "off",
        feature_cache_gb: float = 4.0,
        cached_views: int | None = None,
        cam_metrics: list[str] | None = None,
        grid_mosaics: int = 16,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["model"])
        self.save_hyperparameters(settle_options(self.hparams))  # None becomes what was decided
        check_options(self.hparams)
        if class_names is not None and len(class_names) < 2:
            raise ConfigError(f"class_names={class_names}: a classifier needs at least two classes.")
        prepared = prepare(model, class_names, self.hparams)
        self.fit_report: FitReport | None = None
        self.keep_aside(legacy=prepared.legacy, teacher=None)
        self.model, self.source, self._layers = prepared.network, prepared.source, prepared.layers
        self.class_names = class_names
        if isinstance(self.model, CAMNet):
            self.model.class_names = class_names or self.model.class_names
            self.class_names = self.model.class_names
        self.num_classes = count = count_classes(self.model, input_size)
        if class_names is not None and len(class_names) != count:
            raise ConfigError(
                f"The data has {len(class_names)} classes, the network {count}. Convert it with num_classes."
            )
        if teacher is not None and self.legacy is None:
            raise ConfigError(
                "teacher='legacy': there is no legacy network with the data's classes. Leave teacher out."
            )
        weights = class_weights if isinstance(class_weights, list) else None
        if weights is not None and (len(weights) != count or min(weights) < 0):
            raise ConfigError(f"class_weights={weights}: {count} numbers of at least 0 are needed, one per class.")
        if isinstance(class_weights, str) and class_weights != "balanced":
            raise ConfigError(f"class_weights={class_weights!r}: give a list of numbers, or 'balanced'.")
        self.multilabel, self.normalizer = task == "multilabel", Normalizer.published(normalizer, percentile)
        self.objective = Objective(
            multilabel=self.multilabel,
            label_smoothing=label_smoothing,
            distillation=teacher_weight if teacher else 0.0,
            temperature=teacher_temperature,
            energy=box_weight,
        )
        self.cutmix = v2.CutMix(alpha=cutmix, num_classes=count) if cutmix else None
        self.score_name, self.val_accuracy = class_score(task, count)
        self.val_loss, self.quality = MeanMetric(), CAMQuality(cam_metrics, grid_mosaics)
        self.earlier_maps = EarlierMaps()
        self._grid_pointing: dict[str, float] = {}

    # Outside the module tree: they are never trained, moved or saved with it.

    @property
    def legacy(self) -> nn.Module | None:
        """The legacy network where its classes are the data's, until training starts."""
        return self._aside["legacy"]

    @property
    def teacher(self) -> nn.Module | None:
        """The network whose logits are a second target, while there is one."""
        return self._aside["teacher"]

    def keep_aside(self, *, legacy: nn.Module | None, teacher: nn.Module | None) -> None:
        """Keep these networks; assigning them would make them parts of this one."""
        self._aside = {"legacy": legacy, "teacher": teacher}

    # ------------------------------------------------------------ steps

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K)."""
        logits: Tensor = self.model(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch, and its terms where there are several."""
        inputs, labels = images_and_labels(batch)
        cached = isinstance(batch, Mapping) and "features" in batch
        if self.hparams["hide_and_seek"]:
            inputs = hide_patches(inputs, self.hparams["hide_and_seek"])
        if self.cutmix is not None:
            inputs, labels = self.cutmix(inputs, labels)
        masks = None
        if self.objective.energy and isinstance(batch, Mapping):
            height, width = batch["size"][0].tolist() if cached else inputs.shape[-2:]
            masks = object_masks(batch, height, width)
        logits, maps = self._learn(inputs, cached=cached, maps=masks is not None)
        taught = batch["teacher"] if cached and isinstance(batch, Mapping) and self.teacher else self._teach(inputs)
        terms = self.objective(logits, labels, teacher_NK=taught, maps_NKHW=maps, masks_NHW=masks)
        for name, value in terms.items():
            self.log(
                f"train/{name}", value, on_step=False, on_epoch=True, prog_bar=name == "loss", batch_size=len(labels)
            )
        return terms["loss"]

    def _learn(self, inputs: Tensor, *, cached: bool, maps: bool) -> tuple[Tensor, Tensor | None]:
        """Logits and, where they are needed, maps of images or of cached features."""
        if not isinstance(self.model, CAMNet):
            return self.model(inputs), None
        found = run_new_layers(self.model, inputs) if cached else self.model.forward_features(inputs)
        return self.model.forward_head(found), class_maps(found, self.model.classifier.weight) if maps else None

    def _teach(self, images: Tensor) -> Tensor | None:
        if self.teacher is None:
            return None
        with torch.no_grad(), evaluating(self.teacher):
            logits: Tensor = self.teacher(images)
        return logits

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, ValidationBatch]:
        """Loss, accuracy and CAM metrics of one batch; the maps come from the same forward, and callbacks see them."""
        return self._evaluate(batch, "val", batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As in validation."""
        self._evaluate(batch, "test", batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Logits (N, K), predicted classes (N,) and, of a CAMNet, their raw maps (N, h, w)."""
        images, _ = images_and_labels(batch)
        logits, maps = self._logits_and_maps(images)
        classes = logits.argmax(dim=1)
        found: dict[str, Any] = {"logits": logits, "classes": classes}
        if maps is not None:
            found["maps"] = select(maps, classes)
        if isinstance(batch, Mapping) and "path" in batch:
            found["path"] = batch["path"]
        return found

    def _logits_and_maps(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        if not isinstance(self.model, CAMNet):
            return self.model(images), None
        return logits_and_maps(self.model, images, clamp_weights=self.hparams["clamp_weights"])

    def _evaluate(self, batch: Batch, stage: str, batch_idx: int) -> dict[str, ValidationBatch]:
        images, labels = images_and_labels(batch)
        logits, maps = self._logits_and_maps(images)
        self.val_accuracy.update(logits, labels)
        size, loss = len(labels), classification_loss(logits, labels, multilabel=self.multilabel)
        self.val_loss.update(loss, weight=size)  # Lightning's own mean over processes cuts sizes to whole numbers
        self.log(f"{stage}/loss", self.val_loss, prog_bar=True, batch_size=size)
        self.log(f"{stage}/{self.score_name}", self.val_accuracy, prog_bar=True, batch_size=size)
        if maps is None or not isinstance(self.model, CAMNet) or self.multilabel:
            return {}
        seen = ValidationBatch.of(self.model, batch, logits, maps, self.normalizer, self.hparams["clamp_weights"])
        if stage == "val" and not self.trainer.sanity_checking:
            seen.drift = self.earlier_maps.drift(seen.own)
        self.quality.update(seen)
        if batch_idx == 0:  # with the weights that are validated, which may be averaged ones
            self._grid_pointing = self._play_grid_pointing(self.model, stage, boxes=seen.boxes is not None)
        return {"seen": seen}

    def _play_grid_pointing(self, network: CAMNet, stage: str, *, boxes: bool) -> dict[str, float]:
        if self.trainer.sanity_checking or (boxes and not self.quality.chosen):
            return {}
        loader = single_loader(self.trainer.val_dataloaders if stage == "val" else self.trainer.test_dataloaders)
        rank, count = self.global_rank, self.trainer.world_size
        read = partial(read_images, loader)
        return self.quality.grid_pointing(network, labels_of(loader), read, rank=rank, world_size=count)

    def on_validation_epoch_start(self) -> None:
        """Maps are compared with those of the epoch before."""
        self.earlier_maps.begin()

    def on_validation_epoch_end(self) -> None:
        """Log the CAM metrics."""
        self._log_quality("val")
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self.earlier_maps.end()

    def on_test_epoch_end(self) -> None:
        """As in validation."""
        self._log_quality("test")

    def _log_quality(self, stage: str) -> None:
        if not isinstance(self.model, CAMNet) or self.multilabel:
            return
        figures = self.quality.compute() | self._grid_pointing
        for key, value in figures.items():
            shown = key in ("max_box_acc", "grid_pointing") or (self.quality.chosen and "centre" not in key)
            self.log(f"{stage}/{key}", value, prog_bar=shown, sync_dist=False)

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
                self.model.preprocessing = preprocessing
            if self.model.class_names is None and names is not None and len(names) == self.model.num_classes:
                self.class_names = self.model.class_names = list(names)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put everything but the weights beside them, as JSON: ``camify export`` makes a CAM-ready folder of both."""
        checkpoint.update(record_of(self.model))
        if self.earlier_maps.before is not None and self.trainer.world_size == 1:
            checkpoint[_EARLIER] = self.earlier_maps.before

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the maps of the epoch before; of several processes they are not kept."""
        self.earlier_maps.before = checkpoint.get(_EARLIER)

    def configure_callbacks(self) -> list[pl.Callback]:
        """What every run has."""
        return [Course(), StopSafely()]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """All parameters in named groups from the first step on; learning rates by ``lr_factor``."""
        optimizer = build_optimizer(self.model, self.hparams, self._layers)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, [self._factor(g["name"]) for g in optimizer.param_groups]
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:  # fmt: skip
        """Clip as the trainer says, else by ``gradient_clip``; the gradients were found finite before."""
        if gradient_clip_val is None and not isinstance(self.trainer.strategy, FSDPStrategy):
            gradient_clip_val = self.hparams["gradient_clip"]
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _factor(self, group: str) -> Any:
        total = int(self.trainer.estimated_stepping_batches)
        per_epoch = total / max(1, self.trainer.max_epochs or 1)
        warmup = round(self.hparams["warmup_epochs"] * per_epoch)
        late = group.startswith("features") and isinstance(self.model, CAMNet)
        start = round(self.hparams["freeze_epochs"] * per_epoch) if late else 0
        if self.hparams["schedule"] == "one_cycle":
            return lambda step: one_cycle_factor(step, total, start=start)
        drops = self.hparams["lr_drops"]
        return lambda step: lr_factor(step, total, warmup=warmup, start=start, drops=drops)
