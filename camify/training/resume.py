"""Going on as if nothing had happened: seeds by epoch, the place within one, and whose run it is."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor

from ..errors import CheckpointError, TrainingError
from .loaders import is_dry_run, run_folder

__all__ = ["StopSafely", "check_finite", "enter_epoch", "go_on", "refuse_changes", "state_of_run"]

_FREE = {  # options that say where a run is and how it is watched, not what it is
    "root", "num_workers", "check_images", "feature_cache", "feature_cache_gb", "compile",
    "cam_metrics", "grid_mosaics",
}  # fmt: skip
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
    return {_KEY: {"seed": base_seed, "random": list(states), "run": _circumstances(trainer, module)}}


def _circumstances(trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
    return {
        "model.model": getattr(module, "source", None),
        "trainer.precision": str(trainer.precision),
        "trainer.accumulate_grad_batches": trainer.accumulate_grad_batches,
        "trainer.gradient_clip_val": trainer.gradient_clip_val,
        "processes": trainer.world_size,
    }


def refuse_changes(trainer: pl.Trainer, module: pl.LightningModule, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What ``state_of_run`` said, where the run that goes on is the one that stopped.

    The number of epochs may change (the rest of the schedule follows), and where and how fast things are read.

    Raises:
        CheckpointError: names every option that differs, with both values.
    """
    state: dict[str, Any] | None = checkpoint.get(_KEY)
    if state is None:
        raise CheckpointError(
            "The checkpoint was not written by this version of camify: training cannot go on from it."
        )
    data = getattr(trainer, "datamodule", None)
    current = {f"model.{key}": value for key, value in module.hparams.items()} | _circumstances(trainer, module)
    resumed = {f"model.{key}": value for key, value in checkpoint.get("hyper_parameters", {}).items()} | state["run"]
    if data is not None and "datamodule_hyper_parameters" in checkpoint:
        current |= {f"data.{key}": value for key, value in data.hparams.items()}
        resumed |= {f"data.{key}": value for key, value in checkpoint["datamodule_hyper_parameters"].items()}
    changed = sorted(
        key
        for key in current | resumed
        if key.rpartition(".")[2] not in _FREE and _plain(current.get(key)) != _plain(resumed.get(key))
    )
    if changed:
        listed = "; ".join(f"{key}: {resumed.get(key)!r} then, {current.get(key)!r} now" for key in changed)
        raise CheckpointError(
            f"The run that stopped had other options ({listed}). Give it the same ones, for instance by its own"
            " config.yaml, or start a new run from its export: --model.model RUN/export."
        )
    return state


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# ------------------------------------------------------------ stopping


class StopSafely(pl.Callback):
    """On SIGTERM leaves ``last.ckpt`` of the very batch in the run's folder; the run can go on from there.

    A signal that comes during validation leaves the checkpoint of the epoch before. ``train.py`` then exits with 143.
    """

    def on_exception(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002 - Lightning's signature
        exception: BaseException,
    ) -> None:
        """Save, unless nothing is to be kept."""
        if not isinstance(exception, SIGTERMException) or trainer.state.fn != "fit" or is_dry_run(trainer):
            return
        if trainer.training and trainer.checkpoint_callback is not None:
            trainer.save_checkpoint(run_folder(trainer) / "last.ckpt")


def check_finite(trainer: pl.Trainer, optimizer: torch.optim.Optimizer) -> None:
    """Stop before a step whose gradients are not finite: the weights are still those of the step before.

    With a gradient scaler (``16-mixed``) infinite gradients are its business: it leaves such steps out.

    Raises:
        TrainingError: says step, learning rate, precision and the last checkpoint.
    """
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        return
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not gradients or bool(torch.stack(torch._foreach_norm(gradients)).isfinite().all()):
        return
    rates = ", ".join(f"{group.get('name', 'all')} {group['lr']:.3g}" for group in optimizer.param_groups)
    checkpoint_path = getattr(trainer.checkpoint_callback, "last_model_path", "")
    checkpoint_path = checkpoint_path or getattr(trainer.checkpoint_callback, "best_model_path", "")
    raise TrainingError(
        f"Step {trainer.global_step} (epoch {trainer.current_epoch}): the gradients hold NaN or infinity; stopped"
        f" before the step. Learning rates: {rates}; precision {trainer.precision}."
        f" Last good checkpoint: {checkpoint_path or 'none yet'}."
        " Lower the learning rate, clip gradients (--trainer.gradient_clip_val 1), or use precision 32-true."
    )
