"""Going on as if nothing had happened: seeds by epoch, the place within one, whose run it is, and stopping."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import StochasticWeightAveraging, WeightAveraging
from pytorch_lightning.plugins.environments import SLURMEnvironment  # type: ignore[attr-defined]
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor

from ..batch import Batch
from ..console import console
from ..errors import CheckpointError, TrainingError
from .checkpoint_files import keep_checkpoints_whole
from .early_checks import refuse_nan_images
from .loaders import is_dry_run
from .run_folder import run_folder

__all__ = [
    "StopSafely",
    "check_finite",
    "enter_epoch",
    "go_on",
    "refuse_changes",
    "run_of",
    "state_of_run",
    "stored_state",
]

_FREE = {  # options that say where a run is and how it is watched, not what it is
    "root", "num_workers", "check_images", "feature_cache", "feature_cache_gb", "compile",
    "cam_metrics", "grid_mosaics",
}  # fmt: skip
_AVERAGING = (StochasticWeightAveraging, WeightAveraging)
_KEY = "camify_run"  # the network's record has another: see CKPT_RECORD


# ------------------------------------------------------------ chance


def enter_epoch(trainer: pl.Trainer, base_seed: int) -> None:
    """Seed all generators by run, epoch and process, and let the epoch's batches begin anew.

    An epoch then does not depend on what was drawn before it, in this process or in one that died.
    """
    seed = int(np.random.SeedSequence([base_seed, trainer.current_epoch, trainer.global_rank]).generate_state(1)[0])
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - augmentations of users draw from it
    random.seed(seed)
    if not trainer.fit_loop.epoch_loop.restarting and trainer.current_epoch > 0 and not trainer.fit_loop.is_resuming:
        return  # Lightning does so itself, but for the first epoch of a run and of a resumed one
    iter(_fetcher(trainer))


def go_on(trainer: pl.Trainer, base_seed: int, checkpoint: Mapping[str, Any]) -> None:
    """Stand where a run stopped within an epoch: the same batches are passed over, then the generators are as then."""
    for loader in trainer.fit_loop._combined_loader.flattened if trainer.fit_loop._combined_loader else ():
        set_epoch = getattr(getattr(loader, "sampler", None), "set_epoch", None)
        if set_epoch is not None:  # Lightning tells it later, when batches have been drawn
            set_epoch(trainer.current_epoch)
    enter_epoch(trainer, base_seed)
    fetcher = _fetcher(trainer)
    for _ in range(trainer.fit_loop.epoch_loop.batch_progress.current.ready):
        next(fetcher)
    fetcher.fetched = 0  # Lightning adds what was done
    states = checkpoint["random"]
    _set_random_state(states[min(trainer.global_rank, len(states) - 1)])


def _fetcher(trainer: pl.Trainer) -> Any:
    """Lightning's own source of batches; what it gives next cannot be asked for in a public way."""
    return trainer.fit_loop._data_fetcher


def _random_state() -> Tensor:
    """The state of torch's, NumPy's and Python's generators as bytes."""
    numpy = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    numbers = [int(numpy["pos"]), *(int(key) for key in numpy["key"]), *random.getstate()[1]]
    return torch.cat([torch.tensor(numbers, dtype=torch.int64).view(torch.uint8), torch.get_rng_state()])


def _set_random_state(state: Tensor) -> None:
    count = 1 + 624 + 625
    numbers = state[: 8 * count].clone().view(torch.int64).tolist()
    np.random.set_state(("MT19937", np.array(numbers[1:625], dtype=np.uint32), numbers[0], 0, 0.0))  # noqa: NPY002
    random.setstate((3, tuple(numbers[625:]), None))
    torch.set_rng_state(state[8 * count :].clone())  # a view would crash


# ------------------------------------------------------------ whose run


def state_of_run(trainer: pl.Trainer, module: pl.LightningModule, base_seed: int) -> dict[str, Any]:
    """What a checkpoint says of its run besides Lightning's own: seed, generators of every process, circumstances."""
    state = _random_state()
    states = torch.as_tensor(module.all_gather(state)).cpu() if trainer.world_size > 1 else state[None]
    data = getattr(trainer, "datamodule", None)
    run = _circumstances(trainer, module) | {"data": type(data).__name__}
    return {_KEY: {"seed": base_seed, "random": list(states), "run": run, "data": _fingerprint(data)}}


_TRAINER = (
    "accumulate_grad_batches", "gradient_clip_val", "limit_train_batches", "limit_val_batches", "overfit_batches",
    "check_val_every_n_epoch", "val_check_interval",
)  # fmt: skip


def _circumstances(trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
    averaging = sorted(type(c).__name__ for c in trainer.callbacks if isinstance(c, _AVERAGING))  # type: ignore[attr-defined]
    return {
        "model.model": getattr(module, "source", None),
        "trainer.precision": str(trainer.precision),
        **{f"trainer.{name}": getattr(trainer, name) for name in _TRAINER},
        "processes": trainer.world_size,
        "averaging of weights": ", ".join(averaging) or None,
    }


def _fingerprint(data: Any) -> dict[str, Any] | None:
    """What a data module says of its files (see ``ImageFolderDataModule.fingerprint``); None where it says nothing."""
    tell = getattr(data, "fingerprint", None)
    return tell() if callable(tell) else None


def stored_state(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What ``state_of_run`` put into a checkpoint.

    Raises:
        CheckpointError: nothing did.
    """
    state: dict[str, Any] | None = checkpoint.get(_KEY)
    if state is None:
        raise CheckpointError(
            "The checkpoint was not written by this version of camify: training cannot go on from it."
        )
    return state


def run_of(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a checkpoint says of the circumstances of its run; of another's nothing."""
    state = checkpoint.get(_KEY)
    run = state.get("run") if isinstance(state, dict) else None
    return run if isinstance(run, dict) else {}


def refuse_changes(
    trainer: pl.Trainer, module: pl.LightningModule, checkpoint: Mapping[str, Any], data: Any = None
) -> None:
    """Refuse to go on where the run is not the one that stopped.

    The number of epochs may change (the rest of the schedule follows), and where and how fast things are read. What an
    earlier version did not write down is not compared.

    Args:
        trainer: of the run that goes on.
        module: what it trains.
        checkpoint: of the run that stopped.
        data: the data module; None takes the trainer's.

    Raises:
        CheckpointError: names every option, or what of the data, differs, with both values.
    """
    state = stored_state(checkpoint)
    data = getattr(trainer, "datamodule", None) if data is None else data
    current = {f"model.{key}": value for key, value in module.hparams.items()}
    current |= _circumstances(trainer, module) | {"data": type(data).__name__}
    resumed = {f"model.{key}": value for key, value in checkpoint.get("hyper_parameters", {}).items()} | state["run"]
    if data is not None and "datamodule_hyper_parameters" in checkpoint:
        current |= {f"data.{key}": value for key, value in data.hparams.items()}
        resumed |= {f"data.{key}": value for key, value in checkpoint["datamodule_hyper_parameters"].items()}
    changed = sorted(
        key
        for key in current.keys() & resumed.keys()
        if key.rpartition(".")[2] not in _FREE and _plain(current.get(key)) != _plain(resumed.get(key))
    )
    if changed:
        listed = "; ".join(f"{key}: {resumed.get(key)!r} then, {current.get(key)!r} now" for key in changed)
        raise CheckpointError(
            f"The run that stopped had other options ({listed}). Give it the same ones, for instance by its own"
            " config.yaml, or start a new run from its export: --model.model RUN/export."
        )
    stored, present = state.get("data"), _fingerprint(data)
    if stored is not None and present is not None and stored != present:
        listed = "; ".join(
            f"{key}: {stored.get(key)} then, {present.get(key)} now"
            for key in stored | present
            if stored.get(key) != present.get(key)
        )
        raise CheckpointError(
            f"The data is not that of the run that stopped ({listed}). Put it back as it was, or start a new run from"
            " its export: --model.model RUN/export."
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# ------------------------------------------------------------ stopping


class StopSafely(pl.Callback):
    """On SIGTERM and Ctrl-C leaves ``last.ckpt`` of the very batch in the run's folder; the run can go on from there.

    What comes in the last batch of an epoch or during validation waits for the end of the epoch, which is kept. A
    second Ctrl-C stops at once. Of several processes one may get the signal: all stop after the same batch.
    ``train.py`` exits with 143 or 130.
    """

    def __init__(self) -> None:
        self._signal = signal.SIGTERM
        self._requested = False  # in this process
        self._agreed = False  # in all
        self._handlers_before: dict[signal.Signals, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Checkpoints are written whole on every filesystem, and read without running code."""
        keep_checkpoints_whole(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """From here on signals wait for the batch; before, nothing is lost."""
        if threading.current_thread() is not threading.main_thread():
            return
        handle = partial(self._request, trainer)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._handlers_before[signal.SIGINT] = signal.signal(signal.SIGINT, handle)
        environment = trainer._accelerator_connector.cluster_environment
        requeues = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
        of_the_user = callable(trainer._signal_connector._original_handlers.get(signal.SIGTERM))
        if not requeues and not of_the_user:
            # Lightning's own handler leaves other processes waiting, and ends validation with nothing kept.
            self._handlers_before[signal.SIGTERM] = signal.signal(signal.SIGTERM, handle)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Stop where one of the processes was asked to."""
        self._agree(trainer, now=not trainer.is_last_batch)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Validation is not cut off: what stands before it could not be kept."""
        if self._agreed:
            trainer._signal_connector.received_sigterm = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Stop after a validation within an epoch."""
        if self._agreed:
            trainer._signal_connector.received_sigterm = not trainer.is_last_batch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Stop when the epoch's checkpoints are written."""
        self._agree(trainer, now=True)

    def _agree(self, trainer: pl.Trainer, *, now: bool) -> None:
        self._agreed = self._requested
        if trainer.world_size > 1:
            self._agreed = trainer.strategy.reduce_boolean_decision(self._requested, all=False)
        if self._agreed:
            trainer._signal_connector.received_sigterm = now  # Lightning's loops look for it

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Signals do what they did before."""
        self._restore(*tuple(self._handlers_before))

    def _restore(self, *numbers: signal.Signals) -> None:
        for number in numbers:
            signal.signal(number, self._handlers_before.pop(number))

    def _request(self, trainer: pl.Trainer, number: int, frame: Any) -> None:  # noqa: ARG002 - of signal handlers
        self._signal, self._requested = signal.Signals(number), True
        if hasattr(signal, "SIGCHLD"):  # loading processes may have got the signal too: their end is no error now
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if self._signal is signal.SIGINT:
            self._restore(signal.SIGINT)
            if trainer.is_global_zero:
                console().print("\nCtrl-C: training stops after this batch and keeps its state. Once more: at once.")
        if trainer.world_size == 1 and trainer.training and not trainer.is_last_batch:
            self._agreed = trainer._signal_connector.received_sigterm = True

    def on_exception(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002 - Lightning's signature
        exception: BaseException,
    ) -> None:
        """Save, unless nothing is to be kept."""
        self._restore(*tuple(self._handlers_before))
        if not isinstance(exception, SIGTERMException):
            return
        exception.signal = self._signal  # type: ignore[attr-defined]  # for the exit code
        if trainer.state.fn != "fit" or is_dry_run(trainer):
            return
        if trainer.training and trainer.checkpoint_callback is not None:
            trainer.save_checkpoint(run_folder(trainer) / "last.ckpt")


def check_finite(trainer: pl.Trainer, optimizer: torch.optim.Optimizer, batch: Batch | None = None) -> None:
    """Stop before a step whose gradients are not finite: the weights are still those of the step before.

    With a gradient scaler (``16-mixed``) infinite gradients are its business: it leaves such steps out.

    Args:
        trainer: of the run.
        optimizer: about to make a step.
        batch: of which the gradients are, where it is known.

    Raises:
        DataError: images of the batch are not finite; names them.
        TrainingError: says step, learning rate, precision and the last checkpoint.
    """
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        return
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not gradients or bool(torch.stack(torch._foreach_norm(gradients)).isfinite().all()):
        return
    if batch is not None:
        refuse_nan_images(batch)
    rates = ", ".join(f"{group.get('name', 'all')} {group['lr']:.3g}" for group in optimizer.param_groups)
    kept = [getattr(trainer.checkpoint_callback, name, "") for name in ("last_model_path", "best_model_path")]
    paths = (run_folder(trainer) / "last.ckpt", *kept)
    checkpoint_path = next((path for path in paths if path and Path(path).is_file()), "")
    raise TrainingError(
        f"Step {trainer.global_step} (epoch {trainer.current_epoch}): the gradients hold NaN or infinity; stopped"
        f" before the step. Learning rates: {rates}; precision {trainer.precision}."
        f" Last good checkpoint: {checkpoint_path or 'none yet'}."
        " Lower the learning rate, clip gradients (--trainer.gradient_clip_val 1), or use precision 32-true."
    )
