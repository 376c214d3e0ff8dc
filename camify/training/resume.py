"""Going on as if nothing had happened: seeds by epoch, the place within one, and whose run it is."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import StochasticWeightAveraging, WeightAveraging
from torch import Tensor

from ..batch import Batch
from ..errors import CheckpointError, TrainingError
from .early_checks import refuse_nan_images
from .run_folder import run_folder

__all__ = [
    "check_finite",
    "enter_epoch",
    "go_on",
    "refuse_changes",
    "run_of",
    "state_of_run",
    "stored_state",
]

_FREE = {  # options that say where a run is and how it is watched, not what it is
    "root", "table", "path", "boxes", "masks", "num_workers", "check_images", "check", "feature_cache",
    "feature_cache_gb", "compile", "cam_metrics", "grid_mosaics",
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
        for holder in (loader, getattr(loader, "batch_sampler", None)):
            set_epoch = getattr(getattr(holder, "sampler", None), "set_epoch", None)
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
