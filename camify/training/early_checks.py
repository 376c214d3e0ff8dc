"""What cannot come to anything is refused by name: figures that nothing logs, nothing to train on, images of NaN."""

from __future__ import annotations

import difflib
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateFinder
from pytorch_lightning.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from ..batch import Batch
from ..errors import CamifyError, ConfigError, DataError, TrainingError
from ..eval_mode import eval_mode
from ..logits import running
from ..model import CAMNet
from .cam_metrics import CAM_METRICS
from .losses import smaller_mirrored
from .options import OptimizationOptions

__all__ = [
    "refuse_compiled_module", "refuse_nan_images", "refuse_nothing_trained", "refuse_one_rate",
    "refuse_several_loaders", "refuse_sharded_weights", "refuse_smaller_images", "refuse_unknown_monitors",
]  # fmt: skip

_BY_LIGHTNING = ("epoch", "step")  # what its checkpoints can follow besides
_FOLLOWS = {"monitor": "monitor", "wanted_quality": "quality"}  # attributes of callbacks that name a figure
_LOGS_ALONE = ("camify", "pytorch_lightning")


def refuse_unknown_monitors(trainer: pl.Trainer, module: Any) -> None:
    """Refuse callbacks that follow a figure which this run will not log.

    Where code of the user's own may log more (another module class, callbacks from elsewhere), Lightning says it later.
    What only some data give, such as figures of boxes, counts as known.

    Raises:
        ConfigError: names the figure, and those that there are.
    """
    kinds = [type(module), *(type(callback) for callback in trainer.callbacks)]  # type: ignore[attr-defined]
    if any(kind.__module__.partition(".")[0] not in _LOGS_ALONE for kind in kinds):
        return
    known = logged_names(module)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for attribute, option in _FOLLOWS.items():
            name = getattr(callback, attribute, None)
            if not isinstance(name, str) or name in (*known, *_BY_LIGHTNING) or name.startswith("lr-"):
                continue
            close = difflib.get_close_matches(name, known, n=1)
            guess = f" Did you mean {close[0]}?" if close else ""
            raise ConfigError(
                f"{type(callback).__name__}: {option}={name!r}, and nothing logs that.{guess} Logged are"
                f" {', '.join(known)}."
            )


def logged_names(module: Any) -> list[str]:
    """The figures that a CAMFineTuner can log, whatever the data have."""
    objective, quality = module.objective, module.quality
    beside = {name: getattr(objective, name) for name in ("distillation", "energy", "alignment", "equivariance")}
    terms = {"loss": True, "classification": any(beside.values()), **beside}
    maps = module.cam_net is not None and module.task.exclusive
    figures = [label for name in quality.names for label in CAM_METRICS[name].figures] if maps else []
    figures += ["grid_pointing", "grid_chance"] if maps and quality.grid is not None else []
    return [
        *(f"train/{name}" for name, logged in terms.items() if logged),
        *(f"val/{name}" for name in ("loss", module.score_name, *figures)),
    ]


def refuse_nothing_trained(trainer: pl.Trainer) -> None:
    """Refuse the end of a fit in which no step was made.

    Raises:
        TrainingError: says why there was none, as far as that is known.
    """
    if trainer.global_step > 0 or trainer.interrupted:
        return
    batches = trainer.num_training_batches
    why = "the training data have no batch (an empty data set, a loader with drop_last, or limit_train_batches=0)"
    if batches > 0:
        why = f"max_epochs={trainer.max_epochs}, max_steps={trainer.max_steps}"
    raise TrainingError(f"Nothing was trained: {why}. The weights are as they were, and nothing is exported.")


def refuse_sharded_weights(trainer: pl.Trainer) -> None:
    """Refuse strategies that keep in each process a piece of every weight.

    Maps, closed-form starts, baselines and pictures run parts of the network by themselves, and need whole weights.

    Raises:
        ConfigError: names the strategy, and what to take.
    """
    if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy):
        raise ConfigError(
            f"--trainer.strategy: {type(trainer.strategy).__name__} splits the weights among the processes, and class"
            " maps need them whole. Give ddp_find_unused_parameters_true; where memory is short, smaller batches with"
            " --trainer.accumulate_grad_batches, or --trainer.precision bf16-mixed."
        )


def refuse_compiled_module(module: pl.LightningModule) -> None:
    """Refuse a module that went through ``torch.compile`` as a whole.

    Raises:
        ConfigError: says what to take.
    """
    if getattr(module, "_compiler_ctx", None) is not None:  # Lightning's, of a module that it took out of that
        raise ConfigError(
            "The CAMFineTuner went through torch.compile, which would compile its metrics too. Give it as it is, with"
            " compile=True: that compiles the features."
        )


def refuse_one_rate(trainer: pl.Trainer, options: OptimizationOptions) -> None:
    """Refuse a search for one learning rate of all layers where the head learns at another one than the features.

    Raises:
        ConfigError: says what to set.
    """
    searches = any(isinstance(callback, LearningRateFinder) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    if searches and options.head_lr_factor != 1:
        raise ConfigError(
            "LearningRateFinder (Tuner.lr_find) tries one rate for all layers, and the head learns at"
            f" head_lr_factor={options.head_lr_factor:g} times that of the features. Give head_lr_factor=1 with it."
        )


def refuse_several_loaders(loaders: Any, split: str) -> None:
    """Refuse several loaders of one split.

    Raises:
        ConfigError: says how many there are, and how to make one of them.
    """
    count = len(loaders) if isinstance(loaders, list | tuple | dict) else 1
    if count > 1:
        raise ConfigError(
            f"There are {count} loaders of {split} data; CAMFineTuner takes one. Join their data sets with"
            " torch.utils.data.ConcatDataset, or give one of them."
        )


def refuse_nan_images(batch: Batch) -> None:
    """Refuse a batch with images that are not finite.

    Raises:
        DataError: names them, by file where that is known.
    """
    finite = torch.isfinite(batch.images).flatten(1).all(1)
    if bool(finite.all()):
        return
    places = (~finite).nonzero().flatten().tolist()
    names = [batch.paths[place] if batch.paths is not None else f"number {place} of its batch" for place in places]
    listed = ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
    raise DataError(f"{listed}: the image holds NaN or infinity as the network gets it. Mend or remove it.")


@torch.no_grad()
def refuse_smaller_images(network: CAMNet, scale: float) -> None:
    """Refuse to look at images of a share of their sides with a network that cannot.

    Raises:
        ConfigError: says at which size.
    """
    if network.certificate is None:
        return
    noise = torch.randn(1, *network.certificate.input_shape, generator=torch.Generator().manual_seed(0))
    smaller = smaller_mirrored(noise.to(next(network.parameters())), scale)
    size = "x".join(map(str, smaller.shape[2:]))
    try:
        with eval_mode(network), running(network, smaller):
            cells = network.forward_features(smaller).shape[2:].numel()
    except CamifyError as error:
        raise ConfigError(
            f"equivariance_weight: the network does not take images of {size}, equivariance_scale={scale:g} of its own"
            " size. Give a larger one; 1 mirrors only."
        ) from error
    if cells < 2:
        raise ConfigError(
            f"equivariance_scale={scale:g}: the map of an image of {size} is one cell, which says nothing. Give a"
            " larger one."
        )
