"""The course of a run: what happens before the first step, at the start of every epoch, and when it goes on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..conversion import balance_head, fit_head
from ..errors import ConfigError
from ..model import CAMNet
from ..ranks import ONE, Ranks, current
from .augmentation import drop_attention
from .checkpoint_files import follow_moved_run
from .early_checks import refuse_nothing_trained, refuse_unknown_monitors
from .feature_cache import FeatureCache
from .known_features import KnownFeatures
from .labels import read_labels
from .loaders import count_batches, single_loader, told, whole_split
from .losses import balanced_weights
from .resume import check_finite, enter_epoch, go_on, state_of_run, stored_state
from .run_folder import run_folder
from .run_length import renew_rates
from .schedule import set_frozen
from .standstill import Standstill

__all__ = ["TrainingStages"]


class TrainingStages(pl.Callback):
    """Does with a CAMFineTuner what its options say, epoch by epoch; ``CAMFineTuner`` brings it along.

    Freezing, seeds and caches depend on the number of the epoch alone, so that a resumed run is right by construction.
    """

    def __init__(self) -> None:
        self._cache: FeatureCache | None = None
        self._hooks: list[RemovableHandle] = []
        self._seed = 0
        self._resumed: Mapping[str, Any] | None = None
        self._standstill = Standstill()
        self._known: KnownFeatures | None = None

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:  # noqa: ARG002 - Lightning's signature
        """A run's chance begins with the seed that torch was given last."""
        self._seed, self._resumed = torch.initial_seed(), None

    # ------------------------------------------------------------ before the first step

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Bring the network into the form that was asked for: memory format, compiled features, dropped attention."""
        refuse_unknown_monitors(trainer, pl_module)
        pl_module.settle_plan()
        options, network = pl_module.options, pl_module.model
        if pl_module.plan is not None and pl_module.plan.throughout and pl_module.device.type == "cpu":
            network.known_features = KnownFeatures(options.cache.feature_cache_gb)
        ddp = getattr(trainer.strategy, "_ddp_kwargs", None)  # Lightning's DDP has them, other strategies do not
        if options.optimization.freeze_epochs and ddp is not None and not ddp.get("find_unused_parameters", False):
            raise ConfigError("freeze_epochs needs --trainer.strategy ddp_find_unused_parameters_true, or must be 0.")
        if options.optimization.channels_last:
            network.to(memory_format=torch.channels_last)
        if pl_module.cam_net is not None:
            change = options.augmentation
            layers = change.adl_layers or []
            self._hooks = drop_attention(network.features, layers, change.adl_drop_rate, change.adl_gamma)
            if options.optimization.compile:
                network.features.compile()

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Weigh the classes, fit the classifier in closed form, let the legacy network go or teach."""
        options, beside = pl_module.options, pl_module.legacy_network
        if trainer.global_step == 0:
            beside.trusted(pl_module)
        if options.loss.class_weights is not None:
            pl_module.objective.class_weights = _class_weights(options.loss.class_weights, trainer, pl_module)
        ridge = options.conversion.init == "ridge" and trainer.global_step == 0 and pl_module.cam_net is not None
        believed = beside.trusted(pl_module)
        if ridge and believed is not None:
            _fit_classifier(pl_module, _own_part(trainer), believed)
        # Where it does not teach, the legacy's memory is needed no more.
        legacy = believed if options.loss.teacher == "legacy" else None
        beside.let_go(teacher=None if legacy is None else legacy.to(pl_module.device))
        if ridge and believed is None:
            images = _own_part(trainer)
            if pl_module.plan is not None and pl_module.plan.feature_cache != "off":
                self._cache = self._cache or FeatureCache.of(pl_module, trainer)
                images = self._cache.batches(pl_module.model, current())
            _fit_classifier(pl_module, images, None)
        renew_rates(trainer)
        if self._resumed is not None and trainer.fit_loop.restarted_mid_epoch:  # no epoch starts then
            self._begin_epoch(trainer, pl_module)
            go_on(trainer, self._seed, self._resumed)

    # ------------------------------------------------------------ epoch by epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Freeze or free the features, seed and serve, by the number of the epoch alone."""
        pl_module.mean_feature.begin()
        self._begin_epoch(trainer, pl_module)
        enter_epoch(trainer, self._seed)

    def _begin_epoch(self, trainer: pl.Trainer, module: Any) -> None:
        self._freeze_and_serve(trainer, module)
        self._standstill.begin(trainer)

    def _freeze_and_serve(self, trainer: pl.Trainer, module: Any) -> None:
        if module.cam_net is None:
            return
        frozen = trainer.current_epoch < module.options.optimization.freeze_epochs
        set_frozen(module.model, frozen, module.frozen_by_user)
        if frozen and module.options.cache.feature_cache != "off":
            self._cache = self._cache or FeatureCache.of(module, trainer)
            self._cache.serve(trainer, trainer.current_epoch)
        elif self._cache is not None:
            self._cache.give_back(trainer)
            self._drop_cache()

    def on_before_backward(self, trainer: pl.Trainer, pl_module: Any, loss: Tensor) -> None:  # noqa: ARG002
        """Of an epoch without this nothing is expected: a pass over the data for averages of weights has none."""
        self._standstill.expects_steps = True

    def on_before_optimizer_step(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Stop where gradients are not finite; images that are the cause are named."""
        check_finite(trainer, optimizer, getattr(pl_module, "training_batch", None))
        self._standstill.step(optimizer)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """See whether the weights have moved, before a callback puts back what they were."""
        self._standstill.look(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:  # noqa: ARG002
        """Stop where nothing was trained in an epoch."""
        self._standstill.end(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Leave nothing frozen or hooked behind; the cache stays until the fit has ended, see ``kept_batches``."""
        if self._cache is not None:
            self._cache.give_back(trainer)
        for handle in self._hooks:
            handle.remove()
        pl_module.legacy_network.let_go()
        if pl_module.cam_net is not None:
            set_frozen(pl_module.model, False, pl_module.frozen_by_user)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """A run in which nothing was trained does not look like one that is finished."""
        refuse_nothing_trained(trainer)
        self._drop_cache()
        if pl_module.cam_net is not None:
            pl_module.cam_net.known_features = None

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002
        """Leave nothing cached behind."""
        self._drop_cache()
        if pl_module.cam_net is not None:
            pl_module.cam_net.known_features = None

    def kept_batches(self, network: CAMNet, ranks: Ranks = ONE) -> Iterable[Any] | None:
        """The training images' kept features, see ``FeatureCache.batches``; None where none are kept."""
        return None if self._cache is None else self._cache.batches(network, ranks)

    def _drop_cache(self) -> None:
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    # ------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Add what a resumed run must know."""
        checkpoint.update(state_of_run(trainer, pl_module, self._seed))

    def on_load_checkpoint(
        self,
        trainer: pl.Trainer,
        pl_module: Any,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        """Take the seed of the run that goes on; ``CAMFineTuner.on_load_checkpoint`` has compared its options."""
        if trainer.state.fn == "fit":
            self._resumed = stored_state(checkpoint)
            self._seed = self._resumed["seed"]
            follow_moved_run(checkpoint, run_folder(trainer))


def _class_weights(given: list[float] | str, trainer: pl.Trainer, module: Any) -> Tensor:
    if not isinstance(given, str):
        return torch.tensor(given, dtype=torch.float32)
    known = read_labels(single_loader(trainer.train_dataloader))
    if known is None:
        raise ConfigError("class_weights='balanced': the training data tells no labels. Give a list of numbers.")
    return balanced_weights(module.targets_of(known[1]), module.num_classes, task=module.task)


def _own_part(trainer: pl.Trainer) -> Any:
    """This process's part of the training images, in order."""
    ranks = current()
    return whole_split(trainer.train_dataloader, ranks.rank, ranks.world_size)


def _fit_classifier(module: Any, images: Any, legacy: nn.Module | None) -> None:
    """In every process the same: each runs its part of the images, and their sums are added."""
    ranks = current()
    images = told(images, "fitting the head in closed form, batch", count_batches(images), ranks)
    if legacy is None:
        module.fit_report = fit_head(module.model, images, labels=True, ridge="one_se", ranks=ranks)
    else:
        home = next(legacy.parameters()).device
        teacher = legacy.to(module.device)
        module.fit_report = fit_head(module.model, images, teacher=teacher, ridge="one_se", ranks=ranks)
        legacy.to(home)
    balance_head(module.model)
