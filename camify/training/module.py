"""CAMFineTuner: a converted classifier as a LightningModule."""

# ruff: noqa: ARG002 - the constructor reads its arguments by name; hooks have Lightning's signatures

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchvision.transforms import v2

from ..batch import Batch
from ..console import warn
from ..conversion import FitReport
from ..errors import ConfigError, DataError
from ..eval_mode import eval_mode
from ..logits import logits_of, running
from ..maps import class_maps, map_weight, select
from ..model import CAMNet
from ..normalizers import Normalizer
from ..preprocessing import Preprocessing, refuse_contradiction, warn_of_other_scale
from ..ranks import current
from ..task import Classes, Task
from .augmentation import hide_patches
from .cam_metrics import CAMMetrics, ValidationBatch, logits_and_maps, maps_of
from .checkpoint_files import refuse_other_shapes
from .early_checks import (
    refuse_compiled_module,
    refuse_nan_images,
    refuse_one_rate,
    refuse_several_loaders,
    refuse_sharded_weights,
    refuse_smaller_images,
)
from .feature_cache import run_new_layers
from .labels import read_labels
from .legacy_classes import LegacyNetwork
from .loaders import count_samples, has_boxes, indexed, read_images
from .loggers import guard_loggers
from .losses import Objective, classification_loss, object_masks, smaller_mirrored
from .map_drift import MapDrift
from .mean_feature import MeanFeature, predicted_contrast
from .optimizer import build_optimizer
from .options import (
    FLAT,
    GROUPS,
    AugmentationOptions,
    CacheOptions,
    ConversionOptions,
    FineTuningOptions,
    LossOptions,
    MetricsOptions,
    OptimizationOptions,
)
from .plan import Plan, plan_run
from .prepare import checkpoint_manifest, prepare
from .reloaded import rebuilt
from .resume import refuse_changes
from .run_length import RateFactor, run_length_of, scale_rates
from .scores import bounded_score, class_score, score_inputs
from .stages import TrainingStages
from .stopping import StopSafely

__all__ = ["CAMFineTuner"]

_MAP_DRIFT, _PLAN, _MEAN_FEATURE = "camify_earlier_maps", "camify_plan", "camify_mean_feature"  # in a checkpoint
_OF_TRIALS = (".scale_batch_size_", ".lr_find_")  # checkpoints to which Lightning's finders return in the same run
_LABELS_READ = 512  # samples whose labels are read where the data set does not list them


class CAMFineTuner(pl.LightningModule):
    """Fine-tunes a CAM-ready classifier and measures, beside its accuracy, whether its maps find the objects.

    A legacy network is converted first (see ``camify.convert``). Batches are dicts (``image``, ``label``,
    optionally ``boxes`` or ``mask``) as camify's data modules give them, or with Hugging Face's keys, or tuples
    (images, labels, ...): see ``camify.batch.Batch``.

    The options stand in six groups (``camify.training.options``); those that people set most are arguments of their own
    too. Every other one can also be given by its name alone: ``momentum=0.8``. Where an option is None, the recipe
    decides, else the default that its group names; ``options``, ``hparams``, checkpoints and the run's ``config.yaml``
    hold what was decided.

    Logged per epoch: ``train/loss``, ``val/loss``, ``val/acc`` and the figures of ``cam_metrics``, of the true
    classes' maps. By default these are, where boxes are known, ``val/max_box_acc`` (version 1: IoU 0.5, largest
    component, best threshold) beside ``val/center_box_acc``, what the best fixed centered box reaches on the same
    images; where there are none, ``val/grid_pointing`` beside ``val/grid_chance``; and ``val/map_area`` and
    ``val/map_entropy``, how much of the image the maps take. Each can be monitored.

    Args:
        model: a CAMNet, a legacy network to convert, or a source such as ``"torchvision/vgg16"``.
        class_names: in label order; None takes those of the model. Rows of classes that the legacy has by these
            names are kept where its classifier is (see ``camify.convert``).
        recipe: a published network by name (``camify.conversion.RECIPES``): its layers, where ``model`` is a legacy
            network, and how it was fine-tuned. Options of the head that contradict it are refused, other options win.
        head: ``"gap"`` (default), ``"direct"``, ``"recast"`` or ``"none"``; see ``ConversionOptions``.
        init: how the classifier starts: ``"random"`` (default), ``"ridge"`` or ``"recast"``; see ``ConversionOptions``.
        input_size: side of the input, pixels, or (height, width); see ``ConversionOptions``.
        optimizer: ``"adamw"`` (default) or ``"sgd"``.
        lr: peak learning rate of the legacy's features; default 1e-4, with SGD 1e-3.
        head_lr_factor: the new head learns this much faster; see ``OptimizationOptions``.
        weight_decay: of all weights; default 0.01, with SGD 5e-4.
        freeze_epochs: epochs in which the features stay as they are; None decides when the run starts.
        task: ``"multiclass"``, ``"multilabel"`` or ``"binary"``; see ``LossOptions``.
        cam_metrics: CAM metrics of validation by name (``camify.training.CAM_METRICS``); None: those above.
        conversion: how a legacy network becomes CAM-ready.
        optimization: how the weights learn.
        loss: what is learned.
        augmentation: what is changed of images and features in training.
        cache: the features of frozen epochs, kept.
        metrics: which maps are measured, and by what.
        data_task: what the labels of the data mean, as far as the data say so; ``task`` goes before it.
        **others: any option of the groups by its own name.

    Attributes:
        options: what was decided, in its groups.
        fit_report: what a start in closed form gave (``init="ridge"``), once training has begun.
        plan: what a run has decided for itself, and why, once it has begun; ``options`` then say so too.
        training_batch: of the step that is being made, else None.

    Raises:
        ConversionError, CheckpointError, ConfigError: before anything is trained.
    """

    def __init__(
        self,
        model: str | nn.Module,
        class_names: list[str] | None = None,
        recipe: str | None = None,
        head: Literal["gap", "direct", "recast", "none"] | None = None,
        init: Literal["random", "ridge", "recast"] | None = None,
        input_size: int | tuple[int, int] | None = None,
        optimizer: Literal["sgd", "adamw"] | None = None,
        lr: float | None = None,
        head_lr_factor: float | None = None,
        weight_decay: float | None = None,
        freeze_epochs: int | None = None,
        task: Literal["multiclass", "multilabel", "binary"] | None = None,
        cam_metrics: list[str] | None = None,
        conversion: ConversionOptions = ConversionOptions(),
        optimization: OptimizationOptions = OptimizationOptions(),
        loss: LossOptions = LossOptions(),
        augmentation: AugmentationOptions = AugmentationOptions(),
        cache: CacheOptions = CacheOptions(),
        metrics: MetricsOptions = MetricsOptions(),
        data_task: Literal["multiclass", "multilabel", "binary"] | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        given = locals()
        if "lightning.pytorch" in sys.modules:
            warn(
                "lightning is imported: CAMFineTuner is a LightningModule of pytorch_lightning, which a Trainer of"
                " lightning refuses. Use pytorch_lightning: import pytorch_lightning as pl; pl.Trainer(...).",
                stacklevel=2,
            )
        by_name = {name: given[name] for name in FLAT} | others
        options = FineTuningOptions.of(recipe, {name: given[name] for name in GROUPS}, by_name)
        if options.loss.task is None:
            options = replace(options, loss=replace(options.loss, task=data_task))
        self.options = options
        self.save_hyperparameters({"class_names": class_names, "recipe": recipe, **options.by_name()})
        if class_names is not None and len(class_names) < 2:
            raise ConfigError(f"class_names={class_names}: a classifier needs at least two classes.")
        prepared = prepare(model, class_names, options)
        self.legacy_network = LegacyNetwork(prepared.legacy, unproven=prepared.unproven_classes)
        self.fit_report: FitReport | None = None
        self.plan: Plan | None = None
        self.model, self.source, self._layers = prepared.network, prepared.source, prepared.layers
        self.frozen_by_user = [p for p in self.model.parameters() if not p.requires_grad]
        self.num_classes, self.task = prepared.num_classes, Task.of(prepared.task, prepared.num_classes)
        self.class_names = class_names or getattr(self.cam_net, "class_names", None)
        self._check_options()
        if self.cam_net is not None:
            self.cam_net.class_names, self.cam_net.task = self.class_names, self.task
        self.normalizer = Normalizer.published(options.metrics.normalizer, options.metrics.percentile)
        self.objective = Objective.of(options.loss, self.task)
        cutmix = options.augmentation.cutmix
        self.cutmix = v2.CutMix(alpha=cutmix, num_classes=self.num_classes) if cutmix else None
        self.score_name, self.val_accuracy = class_score(self.task, self.num_classes)
        self.val_loss = MeanMetric()
        self.quality = CAMMetrics(options.metrics.cam_metrics, options.metrics.grid_mosaics)
        self.map_drift, self.mean_feature = MapDrift(), MeanFeature()
        self._grid_pointing: dict[str, float] = {}
        self._scale_is_known = False
        self.training_batch: Batch | None = None

    def _check_options(self) -> None:
        """Refuse options that do not fit the network or its task."""
        options, count = self.options, self.num_classes
        if self.class_names is not None and len(self.class_names) not in self._name_counts:
            raise ConfigError(
                f"The data has {len(self.class_names)} classes, the network {count}. Convert it with num_classes."
            )
        if options.conversion.init == "ridge" and self.task is not Task.MULTICLASS:
            raise ConfigError(
                f"init='ridge' with task {self.task}: it fits classes that exclude each other. Use random."
            )
        if options.augmentation.cutmix and self.task is not Task.MULTICLASS:
            raise ConfigError(f"cutmix with task {self.task}: it mixes one class with another. Leave it out.")
        if options.loss.teacher is not None and self.legacy is None:
            raise ConfigError(
                "teacher='legacy': there is no legacy network with the data's classes. Leave teacher out."
            )
        if options.loss.equivariance_weight and self.cam_net is not None:
            refuse_smaller_images(self.cam_net, options.loss.equivariance_scale)
        weights = options.loss.class_weights
        if isinstance(weights, list) and (len(weights) != count or min(weights) < 0):
            raise ConfigError(f"class_weights={weights}: {count} numbers of at least 0 are needed, one per class.")

    @property
    def _name_counts(self) -> tuple[int, ...]:
        """How many names the classes may have: the one logit of a binary network speaks of two classes."""
        return (1, 2) if self.task is Task.BINARY else (self.num_classes,)

    @property
    def cam_net(self) -> CAMNet | None:
        """The network where it has maps; None where a legacy network is trained as it is (``head="none"``)."""
        return self.model if isinstance(self.model, CAMNet) else None

    @property
    def lr(self) -> float:
        """The peak learning rate of the features; Lightning's finder of rates sets it."""
        return self.options.optimization.lr

    @lr.setter
    def lr(self, rate: float) -> None:
        if self._trainer is not None:
            scale_rates(self._trainer, rate / self.lr)
        self.options = replace(self.options, optimization=replace(self.options.optimization, lr=rate))

    @property
    def multilabel(self) -> bool:
        """Whether an image may have several labels."""
        return self.task is Task.MULTILABEL

    @property
    def classes(self) -> Classes:
        """What the network's logits speak of."""
        return Classes.of(self.task, self.class_names, self.num_classes)

    @property
    def legacy(self) -> nn.Module | None:
        """The legacy network where its classes are the data's, until training starts."""
        return self.legacy_network.network

    @property
    def teacher(self) -> nn.Module | None:
        """The network whose logits are a second target, while there is one."""
        return self.legacy_network.teacher

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,  # noqa: ARG003 - Lightning's; the weights must fit
        weights_only: bool | None = None,
        **given: Any,
    ) -> CAMFineTuner:
        """The module of a checkpoint of training, with its options and weights; nothing else is needed of its run.

        The network is rebuilt from the record beside its weights: no code of the file runs. Weights come to the CPU,
        or to ``map_location`` where that is a device.

        Args:
            checkpoint_path: ``best.ckpt`` or ``last.ckpt`` of a run.
            map_location: the device.
            hparams_file: None; the options are in the checkpoint.
            strict: the weights must fit, whatever it says.
            weights_only: None or True.
            **given: arguments that go before the checkpoint's. ``model`` where it holds no record: of a run with
                ``head="none"``, or of layers that cannot be stored without their code.

        Raises:
            CheckpointError: it is missing, damaged, or holds no network.
            ConfigError: ``weights_only=False``, which would run what the file says, or a file of options.
        """
        if weights_only is False or hparams_file is not None:
            raise ConfigError(
                "load_from_checkpoint: a checkpoint is read as plain data, and holds its options. Leave weights_only"
                " and hparams_file out; options that are to be others are given by their names."
            )
        module: CAMFineTuner = rebuilt(cls, Path(checkpoint_path), given)
        return module.to(map_location) if isinstance(map_location, str | torch.device) else module

    # ------------------------------------------------------------ steps

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K)."""
        return self.model(images) if self.cam_net is not None else logits_of(self.model, images, finite=False)

    def _batch(self, given: Any) -> Batch:
        """A batch whose images the network can take, in its precision.

        Raises:
            DataError: its images have another number of channels.
        """
        batch, network = Batch.of(given), self.cam_net
        known = None if network is None else network.preprocessing
        certificate = None if network is None else network.certificate
        channels = known.channels if known is not None else certificate.input_shape[0] if certificate else None
        if batch.size is None and channels not in (None, batch.images.shape[1]):
            raise DataError(
                f"A batch has images {tuple(batch.images.shape)}, (N, C, H, W), and the network takes {channels}"
                f" channel{'s' * (channels != 1)}. Change the data set, or convert a network for its channels."
            )
        if network is not None and batch.size is None and not self._scale_is_known:
            warn_of_other_scale(network, batch.images, known)
            self._scale_is_known = True
        batch.images = batch.images.to(next(self.model.parameters()).dtype)
        return batch

    def targets(self, batch: Batch) -> Tensor:
        """The labels of a batch as the loss takes them (see ``Task.targets``).

        Raises:
            DataError: there are none, or they do not fit the task.
        """
        if batch.labels is None:
            raise DataError(
                "The batches have no labels: the second of a tuple, or label, labels, target, targets or y of a dict."
                " Training, validating and testing need them."
            )
        return self.targets_of(batch.labels)

    def targets_of(self, labels: Tensor) -> Tensor:
        """Labels as the loss takes them."""
        return self.task.targets(labels, self.num_classes, allow_unknown=self.options.loss.allow_unknown_labels)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one batch, and its terms where there are several."""
        self.training_batch = batch = self._batch(batch)
        inputs, labels = batch.images, self.targets(batch)
        cached = batch.size is not None
        if self.options.augmentation.hide_and_seek:
            inputs = hide_patches(inputs, self.options.augmentation.hide_and_seek)
        if self.cutmix is not None:
            inputs, labels = self.cutmix(inputs, labels)
        masks = object_masks(batch) if self.objective.energy else None
        logits, features = self._learn(inputs, cached=cached)
        taught = batch.teacher if cached and self.teacher else self._teach(inputs)
        of_maps = {} if features is None else self._maps_for_loss(inputs, features, masks is not None)
        terms = self.objective(logits, labels, teacher_NK=taught, masks_NHW=masks, **of_maps)
        for name, value in zip(terms, _mean_over_processes(list(terms.values())), strict=True):
            self.log(
                f"train/{name}", value, on_step=False, on_epoch=True, prog_bar=name == "loss", batch_size=len(labels)
            )
        return terms["loss"]

    def _learn(self, inputs: Tensor, *, cached: bool) -> tuple[Tensor, Tensor | None]:
        """Logits and, of a network that has maps, the last spatial map of images or of cached features."""
        network = self.cam_net
        if network is None:
            return self(inputs), None
        with running(network, inputs):
            features_NCHW = run_new_layers(network, inputs) if cached else network.forward_features(inputs)
        self.mean_feature.add(features_NCHW)
        return network.forward_head(features_NCHW), features_NCHW

    def _maps_for_loss(self, inputs: Tensor, features_NCHW: Tensor, guided: bool) -> dict[str, Tensor]:
        """What the objective's terms of maps look at."""
        network, objective = self.cam_net, self.objective
        if network is None or not (guided or objective.alignment or objective.equivariance):
            return {}
        weight = network.classifier.weight
        tensors = {"features_NCHW": features_NCHW, "weight_KC": weight}
        if guided or objective.equivariance:
            tensors["maps_NKHW"] = class_maps(features_NCHW, weight)
        if objective.equivariance:
            smaller = smaller_mirrored(inputs, self.options.loss.equivariance_scale)
            with eval_mode(network), running(network, smaller):  # running statistics stay those of whole images
                tensors["transformed_NKHW"] = class_maps(network.forward_features(smaller), weight)
        return tensors

    def _teach(self, images: Tensor) -> Tensor | None:
        if self.teacher is None:
            return None
        with torch.no_grad(), eval_mode(self.teacher):
            own = images.to(next(self.teacher.parameters()))  # its precision is its own
            return logits_of(self.teacher, own, finite=False)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After a step nothing counts as drawn any more."""
        self.training_batch = None
        if self.cam_net is not None:
            self.cam_net.untrained = ()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Loss, accuracy and CAM metrics of one batch; the maps come from the same forward, and callbacks see them.

        Returns:
            ``logits``, ``targets`` as ``Task.targets`` gives them and, where there are maps, ``seen``.
        """
        return self._evaluate(batch, "val", batch_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As in validation."""
        self._evaluate(batch, "test", batch_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Logits (N, K), predicted classes (N,) and, of a CAMNet, their raw maps (N, h, w); labels are not needed."""
        batch = self._batch(batch)
        logits, maps = self._logits_and_maps(batch.images)
        chosen = self.classes.two_sided(logits).argmax(dim=1)
        predictions: dict[str, Any] = {"logits": logits, "classes": chosen}
        if maps is not None:
            predictions["maps"] = select(self.classes.two_sided(maps), chosen)
        if batch.paths is not None:
            predictions["path"] = batch.paths
        return predictions

    def _logits_and_maps(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.cam_net is None:
            return self(images), None
        with running(self.cam_net, images):
            return logits_and_maps(self.cam_net, images, clamp_weights=self.options.metrics.clamp_weights)

    def _validated(self, images: Tensor, batch_idx: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Logits, maps and, of a network that has them, object maps (N, K, h, w) from one forward."""
        network = self.cam_net
        if network is None:
            return self(images), None, None
        with running(network, images):
            features = network.forward_features(images)
            logits, maps = maps_of(network, features, clamp_weights=self.options.metrics.clamp_weights)
        if batch_idx == 0 and self.trainer.state.fn == "fit" and self.task.exclusive:
            two_sided = self.classes.two_sided
            self.mean_feature.settle(features, predicted_contrast(two_sided(logits), two_sided(maps)))
        object_weight = self.mean_feature.object_weight if network.object_weight is None else network.object_weight
        if object_weight is None or not self.task.exclusive:
            return logits, maps, None
        weight = self.classes.two_sided(network.classifier.weight, 0)
        weight = map_weight(weight, "object", object_weight, exclusive=self.task.exclusive)
        return logits, maps, class_maps(features, weight)

    def _evaluate(self, batch: Any, stage: str, batch_idx: int) -> dict[str, Any]:
        batch = self._batch(batch)
        targets = self.targets(batch)
        logits, maps, object_maps = self._validated(batch.images, batch_idx)
        if not bool(logits.isfinite().all()):
            refuse_nan_images(batch)  # else it is the network's doing, and the metrics say so
        self.val_accuracy.update(*score_inputs(self.task, logits, targets))
        size, loss = len(batch), classification_loss(logits, targets, task=self.task)
        self.val_loss.update(loss, weight=size)  # Lightning's own mean over processes cuts sizes to whole numbers
        self.log(f"{stage}/loss", self.val_loss, prog_bar=True, batch_size=size)
        self.log(f"{stage}/{self.score_name}", self.val_accuracy, prog_bar=True, batch_size=size)
        network, answers = self.cam_net, {"logits": logits, "targets": targets}
        if maps is None or network is None or not self.task.exclusive:
            return answers
        if not has_boxes(self._loaders(stage)):  # no image of the split: as if the data had none
            batch.boxes = None
        clamp = self.options.metrics.clamp_weights
        validation_batch = ValidationBatch.of(network, batch, targets, logits, maps, self.normalizer, clamp)
        if object_maps is not None:
            validation_batch.object_maps = select(object_maps, validation_batch.labels)
        if stage == "val" and not self.trainer.sanity_checking:
            validation_batch.drift = self.map_drift.drift(validation_batch.own)
        self.quality.update(validation_batch)
        if batch_idx == 0:  # with the weights that are validated, which may be averaged ones
            self._grid_pointing = self._play_grid_pointing(network, stage, boxes=validation_batch.boxes is not None)
        return {**answers, "seen": validation_batch}

    def _play_grid_pointing(self, network: CAMNet, stage: str, *, boxes: bool) -> dict[str, float]:
        if self.trainer.sanity_checking or (boxes and not self.quality.chosen):
            return {}
        loader = indexed(self._loaders(stage))
        rank, count = self.global_rank, self.trainer.world_size
        labels, read = self.labeled_images(loader)
        return self.quality.grid_pointing(network, labels, read, rank=rank, world_size=count)

    def _loaders(self, stage: str) -> Any:
        return self.trainer.val_dataloaders if stage == "val" else self.trainer.test_dataloaders

    def labeled_images(self, loader: Any) -> tuple[list[int] | None, Callable[[Sequence[int]], Tensor]]:
        """Classes of a loader's samples, as far as they are known, and what reads the images of some, by place."""
        known = read_labels(loader, _LABELS_READ)
        if known is None:
            return None, partial(read_images, loader)
        numbers, labels = known
        classes = self.classes.of_targets(self.targets_of(labels))
        return classes.tolist(), lambda places: read_images(loader, [numbers[place] for place in places])

    def on_validation_epoch_start(self) -> None:
        """Maps are compared with those of the epoch before."""
        images = count_samples(self.trainer.val_dataloaders)
        self.val_accuracy = bounded_score(self.val_accuracy, self.task, self.num_classes, images).to(self.device)
        self._reset_metrics()
        self.map_drift.begin()

    def on_test_epoch_start(self) -> None:
        """As in validation."""
        self._reset_metrics()

    def _reset_metrics(self) -> None:
        """Their states may be of a run under ``inference_mode``, which training could not add to."""
        for metric in self.modules():
            if isinstance(metric, Metric):
                metric.reset()

    def on_validation_epoch_end(self) -> None:
        """Log the CAM metrics."""
        self._log_quality("val")
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self.map_drift.end()

    def on_test_epoch_end(self) -> None:
        """As in validation."""
        self._log_quality("test")

    def _log_quality(self, stage: str) -> None:
        if self.cam_net is None or not self.task.exclusive:
            return
        figures = self.quality.compute() | self._grid_pointing
        for key, value in figures.items():
            in_progress_bar = key in ("max_box_acc", "grid_pointing") or (self.quality.chosen and "center" not in key)
            self.log(f"{stage}/{key}", value, prog_bar=in_progress_bar, sync_dist=False)

    # ------------------------------------------------------------ schedule

    def setup(self, stage: str) -> None:
        """Take class names and preprocessing from the data module; they travel in the checkpoint."""
        refuse_compiled_module(self)
        refuse_one_rate(self.trainer, self.options.optimization)
        refuse_sharded_weights(self.trainer)
        data = getattr(self.trainer, "datamodule", None)
        names = getattr(data, "class_names", None)
        if names is not None and self.class_names is not None and list(names) != list(self.class_names):
            raise DataError(
                f"The data's classes {list(names)[:5]} are not the model's {list(self.class_names)[:5]} in this order."
                " Give class_names=data.class_names."
            )
        network = self.cam_net
        if network is None:
            return
        self._agree_on_preprocessing(network, data, stage)
        if stage == "fit":  # they were of the weights that now change
            network.object_weight = network.object_map = None
        if network.class_names is None and names is not None and len(names) in self._name_counts:
            self.class_names = network.class_names = list(names)

    def _agree_on_preprocessing(self, network: CAMNet, data: Any, stage: str) -> None:
        """The network's and the data's must be one; training may overrule the network's, where that was asked for."""
        used = getattr(data, "preprocessing", None)
        if not isinstance(used, Preprocessing):
            return
        override = bool(getattr(data, "override_preprocessing", False))
        expected = network.preprocessing
        refuse_contradiction(used, expected, override=override, where="data module")
        differences = [] if expected is None else used.differences(expected)
        if differences and stage == "fit" and network.certificate is not None:
            note = f"Preprocessing overruled in training: {'; '.join(differences)} before."
            network.certificate = replace(network.certificate, notes=(*network.certificate.notes, note))
        if expected is None or (differences and stage == "fit"):
            network.preprocessing = used
        elif stage == "fit" and used.bits is not None and expected.bits is None:  # it did not say, and now learns it
            network.preprocessing = replace(expected, bits=used.bits)

    def on_validation_start(self) -> None:
        """A network whose parts were drawn and never trained is not measured."""
        refuse_several_loaders(self._loaders("val"), "validation")
        self._refuse_untrained("validate")

    def on_test_start(self) -> None:
        """As in validation."""
        refuse_several_loaders(self._loaders("test"), "test")
        self._refuse_untrained("test")

    def on_predict_start(self) -> None:
        """As in validation."""
        self._refuse_untrained("predict")

    def _refuse_untrained(self, stage: str) -> None:
        untrained = () if self.cam_net is None else self.cam_net.untrained
        if untrained and self.trainer.state.fn == stage:
            raise ConfigError(
                f"{stage}: {', '.join(untrained)} of the network {'was' if len(untrained) == 1 else 'were'} drawn at"
                " random and never trained, so its figures would say nothing. Train it first (fit), or give a trained"
                " checkpoint: a run's export/ folder as the model, or its ckpt_path."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put everything but the weights beside them, as JSON: ``camify export`` makes a CAM-ready folder of both."""
        if self.cam_net is not None:
            checkpoint.update(checkpoint_manifest(self.cam_net))
        total = self.mean_feature.total
        checkpoint[_MEAN_FEATURE] = None if total is None else total.cpu()
        if self.plan is not None:
            checkpoint[_PLAN] = self.plan.to_dict()
        if self.map_drift.before is not None and self.trainer.world_size == 1:
            checkpoint[_MAP_DRIFT] = self.map_drift.before

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another network's weights, and another run's where training goes on, before anything is loaded.

        The maps of the epoch before are taken; of several processes they are not kept.

        Raises:
            CheckpointError: names what differs.
        """
        state = {key: value for key, value in self.state_dict().items() if key.startswith("model.")}
        refuse_other_shapes(checkpoint, state)
        if self._trainer is not None and self._trainer.state.fn == "fit":
            if not Path(self._trainer.ckpt_path or "").name.startswith(_OF_TRIALS):
                refuse_changes(self._trainer, self, checkpoint)
            self.mean_feature.total = checkpoint.get(_MEAN_FEATURE)
            self.plan = Plan.from_dict(checkpoint[_PLAN]) if _PLAN in checkpoint else None
        self.map_drift.before = checkpoint.get(_MAP_DRIFT)

    def configure_callbacks(self) -> list[pl.Callback]:
        """What every run has; and loggers that do not stop it."""
        guard_loggers(self.trainer)
        return [TrainingStages(), StopSafely()]

    def settle_plan(self) -> None:
        """Decide what the options leave open, or take it from the checkpoint of the run that goes on."""
        epochs = run_length_of(self.trainer).epochs  # sets the data up
        refuse_several_loaders(self.trainer.train_dataloader, "training")
        self.plan = plan_run(self.trainer, self) if self.plan is None else self.plan
        self.plan = self.plan.lasting(epochs)
        self.options = self.plan.applied(self.options)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """All parameters in named groups from the first step on; learning rates by ``RateFactor``.

        This is the first that Lightning asks for when data and weights are there: see ``settle_plan``.
        """
        self.settle_plan()
        head = [] if self.cam_net is None else self.cam_net.parameter_groups()["head"]
        features = self.model if self.cam_net is None else self.cam_net.features
        optimizer = build_optimizer(self.model, features, head, self.options.optimization, self._layers)
        waits = [
            str(group["name"]).startswith("features") and self.cam_net is not None for group in optimizer.param_groups
        ]
        factors: list[Callable[[int], float]] = [
            RateFactor(self.trainer, self.options.optimization, waits=late) for late in waits
        ]
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:  # fmt: skip
        """Clip as the trainer says, else by ``gradient_clip``; the gradients were found finite before."""
        if gradient_clip_val is None:
            gradient_clip_val = self.options.optimization.gradient_clip
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)


def _mean_over_processes(values: list[Tensor]) -> list[Tensor]:
    """Losses of a step, over the batches of all processes, which are equally large.

    Not by Lightning's ``sync_dist``: it waits for all processes where the first one reads a figure for its record.
    """
    ranks = current()
    if ranks.world_size == 1:
        return values
    together = torch.stack([value.detach() for value in values])
    ranks.add(together)
    return list(together / ranks.world_size)
