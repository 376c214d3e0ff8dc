"""CAMFineTuner: a converted classifier as a LightningModule."""

# ruff: noqa: ARG002 - arguments of the constructor are read from `hparams`, where the recipe has settled them

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import FSDPStrategy
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchvision.transforms import v2

from ..batch import Batch
from ..errors import ConfigError, DataError
from ..maps import class_maps, select
from ..model import CAMNet
from ..modes import evaluating
from ..normalizers import Normalizer
from ..preprocessing import Preprocessing, refuse_contradiction
from ..surgery import FitReport
from ..task import Classes, Task
from .asking import read_images, single_loader
from .augmentation import hide_patches
from .cam_quality import CAMQuality, ValidationBatch, logits_and_maps
from .course import Course
from .earlier_maps import EarlierMaps
from .feature_cache import run_new_layers
from .labels import read_labels
from .legacy_classes import check_classes
from .losses import Objective, classification_loss, object_masks
from .optimization import build_optimizer, check_options
from .preparing import checkpoint_manifest, prepare, settle_options
from .resuming import StopSafely
from .schedule import lr_factor, one_cycle_factor
from .scores import class_score, score_inputs

__all__ = ["CAMFineTuner"]

_EARLIER = "camify_earlier_maps"  # in a checkpoint
_LABELS_READ = 512  # samples whose labels are read where the data set does not list them


class CAMFineTuner(pl.LightningModule):
    """Fine-tunes a CAM-ready classifier and measures, beside its accuracy, whether its maps find the objects.

    A legacy network is converted first (see ``camify.convert``). Batches are dicts (``image``, ``label``,
    optionally ``boxes`` or ``mask``) as camify's data modules give them, or with Hugging Face's keys, or tuples
    (images, labels, ...): see ``camify.batch.Batch``.

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
        input_size: side of the input at which the conversion is proven, pixels, or (height, width); None: what the
            weights expect, else 224.
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
        task: ``"multiclass"``: labels (N,), cross-entropy, ``val/acc``; ``"multilabel"``: labels (N, K) in [0, 1],
            binary cross-entropy, ``val/map``; ``"binary"``: a network of one logit, labels (N,) of 0 and 1, binary
            cross-entropy, ``val/acc``; its class names are two: negative, positive. None: what the network says, else
            by the number of its logits. The checkpoint keeps it.
        allow_unknown_labels: -1 and NaN stand for labels that are not known (multilabel and binary); they count neither
            in the loss nor in the figures. Else they are refused.
        legacy_class_names: the legacy network's classes in order, where its source does not know them. Where nothing
            names them and there are as many as in the data, its accuracy on training labels is measured first, and it
            is believed to know the data's classes (as a teacher, for ``init="ridge"``, for kept rows) only where that
            is well above chance.
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
        input_size: int | tuple[int, int] | None = None,
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
        task: Literal["multiclass", "multilabel", "binary"] | None = None,
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
        allow_unknown_labels: bool = False,
        legacy_class_names: list[str] | None = None,
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
        self.frozen_by_user = [p for p in self.model.parameters() if not p.requires_grad]
        self.unproven_classes = prepared.unproven_classes
        self.class_notes: list[str] = []
        self.num_classes = count = prepared.num_classes
        self.task, self.class_names = Task.of(prepared.task, count), class_names
        if self.cam_net is not None:
            self.class_names = class_names or self.cam_net.class_names
        allowed = (1, 2) if self.task is Task.BINARY else (count,)
        if self.class_names is not None and len(self.class_names) not in allowed:
            raise ConfigError(
                f"The data has {len(self.class_names)} classes, the network {count}. Convert it with num_classes."
            )
        if self.cam_net is not None:
            self.cam_net.class_names, self.cam_net.task = self.class_names, self.task
        if init == "ridge" and self.task is not Task.MULTICLASS:
            raise ConfigError(
                f"init='ridge' with task {self.task}: it fits classes that exclude each other. Use random."
            )
        if cutmix and self.task is not Task.MULTICLASS:
            raise ConfigError(f"cutmix with task {self.task}: it mixes one class with another. Leave it out.")
        if teacher is not None and self.legacy is None:
            raise ConfigError(
                "teacher='legacy': there is no legacy network with the data's classes. Leave teacher out."
            )
        weights = class_weights if isinstance(class_weights, list) else None
        if weights is not None and (len(weights) != count or min(weights) < 0):
            raise ConfigError(f"class_weights={weights}: {count} numbers of at least 0 are needed, one per class.")
        if isinstance(class_weights, str) and class_weights != "balanced":
            raise ConfigError(f"class_weights={class_weights!r}: give a list of numbers, or 'balanced'.")
        self.normalizer = Normalizer.published(normalizer, percentile)
        self.objective = Objective(
            task=self.task,
            label_smoothing=label_smoothing,
            distillation=teacher_weight if teacher else 0.0,
            temperature=teacher_temperature,
            energy=box_weight,
        )
        self.cutmix = v2.CutMix(alpha=cutmix, num_classes=count) if cutmix else None
        self.score_name, self.val_accuracy = class_score(self.task, count)
        self.val_loss, self.quality = MeanMetric(), CAMQuality(cam_metrics, grid_mosaics)
        self.earlier_maps = EarlierMaps()
        self._grid_pointing: dict[str, float] = {}

    @property
    def cam_net(self) -> CAMNet | None:
        """The network where it has maps; None where a legacy network is trained as it is (``head="none"``)."""
        return self.model if isinstance(self.model, CAMNet) else None

    @property
    def multilabel(self) -> bool:
        """Whether an image may have several labels."""
        return self.task is Task.MULTILABEL

    @property
    def classes(self) -> Classes:
        """What the network's logits speak of."""
        return Classes.of(self.task, self.class_names, self.num_classes)

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

    def trusted_legacy(self) -> nn.Module | None:
        """The legacy network where its classes are the data's; measured once, when training starts, if nothing says so.

        Equal counts are not equal classes. A legacy network whose classes have no names is believed where its accuracy
        on training labels is well above chance; else labels take its place, and rows of the classifier that were kept
        from it are drawn anew. ``class_notes`` says what was measured.
        """
        if self.legacy is None or not self.unproven_classes:
            return self.legacy
        self.unproven_classes = False
        loader = single_loader(self.trainer.train_dataloader)
        titles = self.classes.titles(self.num_classes)
        check = check_classes(self.legacy, loader, self.targets, self.classes, self.device)
        if check.trusted:
            self._say(
                f"The legacy network's classes have no names; its accuracy is {check.describe(titles)}: believed."
            )
            return self.legacy
        self._distrust_legacy(f"its accuracy is {check.describe(titles)}")
        return None

    def _distrust_legacy(self, reason: str) -> None:
        network = self.cam_net
        first = self.trainer.global_step == 0  # a run that goes on has trained them
        drawn = first and network is not None and "classifier" not in network.untrained
        if drawn and network is not None:
            nn.init.normal_(network.classifier.weight, std=0.01)
            nn.init.zeros_(network.classifier.bias)
            network.untrained = (*network.untrained, "classifier")
        rows = " Its classifier's rows were not kept but drawn anew." if drawn else ""
        self._say(
            f"The legacy network is not taken to know the data's classes: {reason}. Labels are used instead.{rows} If"
            " it does, name its classes: class_to_idx or classes in its file, or legacy_class_names."
        )
        self.keep_aside(legacy=None, teacher=None)

    def _say(self, note: str) -> None:
        self.class_notes.append(note)
        rank_zero_info(note)

    # ------------------------------------------------------------ steps

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K)."""
        logits: Tensor = self.model(images)
        return logits

    def targets(self, batch: Batch) -> Tensor:
        """The labels of a batch as the loss takes them (see ``Task.targets``).

        Raises:
            DataError: there are none, or they do not fit the task.
        """
        if batch.labels is None:
            raise DataError("The batches have no labels. Training, validating and testing need them.")
        return self.task.targets(
            batch.labels, self.num_classes, allow_unknown=bool(self.hparams["allow_unknown_labels"])
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one batch, and its terms where there are several."""
        batch = Batch.of(batch)
        inputs, labels = batch.images, self.targets(batch)
        cached = batch.size is not None
        if self.hparams["hide_and_seek"]:
            inputs = hide_patches(inputs, self.hparams["hide_and_seek"])
        if self.cutmix is not None:
            inputs, labels = self.cutmix(inputs, labels)
        masks = object_masks(batch) if self.objective.energy else None
        logits, maps = self._learn(inputs, cached=cached, maps=masks is not None)
        taught = batch.teacher if cached and self.teacher else self._teach(inputs)
        terms = self.objective(logits, labels, teacher_NK=taught, maps_NKHW=maps, masks_NHW=masks)
        for name, value in terms.items():
            self.log(
                f"train/{name}", value, on_step=False, on_epoch=True, prog_bar=name == "loss", batch_size=len(labels)
            )
        return terms["loss"]

    def _learn(self, inputs: Tensor, *, cached: bool, maps: bool) -> tuple[Tensor, Tensor | None]:
        """Logits and, where they are needed, maps of images or of cached features."""
        network = self.cam_net
        if network is None:
            return self.model(inputs), None
        found = run_new_layers(network, inputs) if cached else network.forward_features(inputs)
        return network.forward_head(found), class_maps(found, network.classifier.weight) if maps else None

    def _teach(self, images: Tensor) -> Tensor | None:
        if self.teacher is None:
            return None
        with torch.no_grad(), evaluating(self.teacher):
            logits: Tensor = self.teacher(images)
        return logits

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After a step nothing counts as drawn any more."""
        if self.cam_net is not None:
            self.cam_net.untrained = ()

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, ValidationBatch]:
        """Loss, accuracy and CAM metrics of one batch; the maps come from the same forward, and callbacks see them."""
        return self._evaluate(batch, "val", batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """As in validation."""
        self._evaluate(batch, "test", batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Logits (N, K), predicted classes (N,) and, of a CAMNet, their raw maps (N, h, w); labels are not needed."""
        batch = Batch.of(batch)
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
            return self.model(images), None
        return logits_and_maps(self.cam_net, images, clamp_weights=self.hparams["clamp_weights"])

    def _evaluate(self, batch: Any, stage: str, batch_idx: int) -> dict[str, ValidationBatch]:
        batch = Batch.of(batch)
        targets = self.targets(batch)
        logits, maps = self._logits_and_maps(batch.images)
        self.val_accuracy.update(*score_inputs(self.task, logits, targets))
        size, loss = len(batch), classification_loss(logits, targets, task=self.task)
        self.val_loss.update(loss, weight=size)  # Lightning's own mean over processes cuts sizes to whole numbers
        self.log(f"{stage}/loss", self.val_loss, prog_bar=True, batch_size=size)
        self.log(f"{stage}/{self.score_name}", self.val_accuracy, prog_bar=True, batch_size=size)
        network = self.cam_net
        if maps is None or network is None or not self.task.exclusive:
            return {}
        clamp = bool(self.hparams["clamp_weights"])
        seen = ValidationBatch.of(network, batch, targets, logits, maps, self.normalizer, clamp)
        if stage == "val" and not self.trainer.sanity_checking:
            seen.drift = self.earlier_maps.drift(seen.own)
        self.quality.update(seen)
        if batch_idx == 0:  # with the weights that are validated, which may be averaged ones
            self._grid_pointing = self._play_grid_pointing(network, stage, boxes=seen.boxes is not None)
        return {"seen": seen}

    def _play_grid_pointing(self, network: CAMNet, stage: str, *, boxes: bool) -> dict[str, float]:
        if self.trainer.sanity_checking or (boxes and not self.quality.chosen):
            return {}
        loader = single_loader(self.trainer.val_dataloaders if stage == "val" else self.trainer.test_dataloaders)
        rank, count = self.global_rank, self.trainer.world_size
        labels, read = self.labeled_images(loader)
        return self.quality.grid_pointing(network, labels, read, rank=rank, world_size=count)

    def labeled_images(self, loader: Any) -> tuple[list[int] | None, Callable[[Sequence[int]], Tensor]]:
        """Classes of a loader's samples, as far as they are known, and what reads the images of some, by place."""
        known = read_labels(loader, _LABELS_READ)
        if known is None:
            return None, partial(read_images, loader)
        numbers, labels = known
        allow = bool(self.hparams["allow_unknown_labels"])
        classes = self.classes.of_targets(self.task.targets(labels, self.num_classes, allow_unknown=allow))
        return classes.tolist(), lambda places: read_images(loader, [numbers[place] for place in places])

    def on_validation_epoch_start(self) -> None:
        """Maps are compared with those of the epoch before."""
        self._reset_metrics()
        self.earlier_maps.begin()

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
            self.earlier_maps.end()

    def on_test_epoch_end(self) -> None:
        """As in validation."""
        self._log_quality("test")

    def _log_quality(self, stage: str) -> None:
        if self.cam_net is None or not self.task.exclusive:
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
        network = self.cam_net
        if network is None:
            return
        self._agree_on_preprocessing(network, data, stage)
        sizes = (1, 2) if self.task is Task.BINARY else (network.num_classes,)
        if network.class_names is None and names is not None and len(names) in sizes:
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

    def on_validation_start(self) -> None:
        """A network whose parts were drawn and never trained is not measured."""
        self._refuse_untrained("validate")

    def on_test_start(self) -> None:
        """As in validation."""
        self._refuse_untrained("test")

    def on_predict_start(self) -> None:
        """As in validation."""
        self._refuse_untrained("predict")

    def _refuse_untrained(self, stage: str) -> None:
        drawn = () if self.cam_net is None else self.cam_net.untrained
        if drawn and self.trainer.state.fn == stage:
            raise ConfigError(
                f"{stage}: {', '.join(drawn)} of the network {'was' if len(drawn) == 1 else 'were'} drawn at random and"
                " never trained, so its figures would say nothing. Train it first (fit), or give a trained checkpoint:"
                " a run's export/ folder as the model, or its ckpt_path."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put everything but the weights beside them, as JSON: ``camify export`` makes a CAM-ready folder of both."""
        if self.cam_net is not None:
            checkpoint.update(checkpoint_manifest(self.cam_net))
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
        late = group.startswith("features") and self.cam_net is not None
        start = round(self.hparams["freeze_epochs"] * per_epoch) if late else 0
        if self.hparams["schedule"] == "one_cycle":
            return lambda step: one_cycle_factor(step, total, start=start)
        drops = self.hparams["lr_drops"]
        return lambda step: lr_factor(step, total, warmup=warmup, start=start, drops=drops)
