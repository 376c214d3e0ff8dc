"""What a run decides for itself: whether the legacy's features learn, and whether they are kept."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..eval_mode import eval_mode
from ..model import CAMNet
from .feature_cache import FrozenPart, changes_by_chance, run_new_layers
from .labels import has_random_access
from .loaders import count_samples, single_loader
from .options import FineTuningOptions
from .run_length import run_length_of

__all__ = ["ALL_EPOCHS", "FEW_IMAGES", "Plan", "plan_run", "weights_as_drawn"]

ALL_EPOCHS = 1_000_000
"""Of ``freeze_epochs``: more than any run has."""
FEW_IMAGES = 5_000
"""Training images up to which pretrained features stay as they are where nobody says otherwise."""

_TIMED = 4  # images of which features are timed
_DRAWN = 0.8  # share of the layers that are as a known way to draw them leaves them


@dataclass(frozen=True)
class Plan:
    """What was decided, and why.

    Attributes:
        freeze_epochs: as the option; ``ALL_EPOCHS`` where pretrained features are never to learn.
        throughout: the features stay frozen in all epochs of this run.
        feature_cache: ``"off"``, ``"memory"`` or ``"disk"``.
        mirrored: every image is kept with its mirror image, and each epoch draws one of them.
        reasons: sentences.
        seconds: that training will take, by a measured batch; None where that is not known.
    """

    freeze_epochs: int
    throughout: bool = False
    feature_cache: Literal["auto", "off", "memory", "disk"] = "off"
    mirrored: bool = False
    reasons: tuple[str, ...] = ()
    seconds: float | None = None

    def applied(self, options: FineTuningOptions) -> FineTuningOptions:
        """Options with what was decided; a run that goes on may keep its features elsewhere."""
        given, decided = options.cache.feature_cache, self.feature_cache
        cache = given if decided != "off" and given in ("memory", "disk") else decided
        return replace(
            options,
            optimization=replace(options.optimization, freeze_epochs=self.freeze_epochs),
            cache=replace(options.cache, feature_cache=cache),
        )

    def lasting(self, epochs: int | None) -> Plan:
        """This plan for a run of so many epochs in all, None: without such an end."""
        return replace(self, throughout=self.freeze_epochs >= (ALL_EPOCHS if epochs is None else epochs))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "reasons": list(self.reasons)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """The plan of a checkpoint."""
        return cls(**{**data, "reasons": tuple(data["reasons"])})


def plan_run(trainer: pl.Trainer, module: Any) -> Plan:
    """Decide what the options leave open, from the data and the network; nothing is drawn and nothing changes.

    - ``freeze_epochs``: pretrained features stay frozen in all epochs where training images are few; features whose
      weights are as they were drawn learn after one epoch, as do those of many images.
    - ``feature_cache``: features that stay frozen throughout are computed once and kept, each image with its mirror
      image, where nothing else is drawn at random and they fit into ``feature_cache_gb``.
    """
    network, options = module.cam_net, module.options
    if network is None:
        return Plan(options.optimization.freeze_epochs or 0)
    run_length_of(trainer)  # sets the data up
    reasons: list[str] = []
    frozen = _freeze_epochs(network, options, count_samples(trainer.train_dataloader), reasons)
    plan = Plan(frozen, mirrored=_mirrors(trainer, options)).lasting(run_length_of(trainer).epochs)
    cost = _Cost.of(network) if plan.throughout else None
    cache = _feature_cache(trainer, module, plan, cost, reasons)
    plan = replace(plan, feature_cache=cache, mirrored=plan.mirrored and cache != "off", reasons=tuple(reasons))
    return replace(plan, seconds=_seconds(trainer, plan, cost))


def _freeze_epochs(network: CAMNet, options: FineTuningOptions, count: int | None, reasons: list[str]) -> int:
    given: Any = options.optimization.freeze_epochs
    if given is not None:
        return int(given)
    if count is None:
        reasons.append("The features learn after one epoch: how many training images there are is not known.")
        return 1
    if weights_as_drawn(network):
        reasons.append(
            "The features learn after one epoch: their weights are as they were drawn, nothing trained them."
        )
        return 1
    if count > FEW_IMAGES:
        reasons.append(f"The features learn after one epoch: {count:,} training images are more than {FEW_IMAGES:,}.")
        return 1
    reasons.append(
        f"The features stay frozen: with {count:,} training images (up to {FEW_IMAGES:,}) a new head on pretrained"
        " features keeps what the legacy network knows, in minutes. Let them learn with --model.freeze_epochs 1."
    )
    return ALL_EPOCHS


def _mirrors(trainer: pl.Trainer, options: FineTuningOptions) -> bool:
    """Whether the augmentation is the mirror image alone, or may be."""
    data = getattr(trainer, "datamodule", None)
    return options.cache.cached_views is None and getattr(data, "augment", "none") in (None, "flip")


def _feature_cache(
    trainer: pl.Trainer, module: Any, plan: Plan, cost: _Cost | None, reasons: list[str]
) -> Literal["auto", "off", "memory", "disk"]:
    options: FineTuningOptions = module.options
    given = options.cache.feature_cache
    if given != "auto":
        return given
    loader = single_loader(trainer.train_dataloader)
    if cost is None:
        return "off"
    why = _why_not_kept(trainer, loader, options)
    if why is None:
        views = options.cache.cached_views or (2 if plan.mirrored else 1)
        need = 4e-9 * cost.numbers * (count_samples(loader) or 0) * views
        if need <= options.cache.feature_cache_gb:
            what = "each image and its mirror image" if plan.mirrored else "each image"
            reasons.append(f"Features of {what} are computed once and kept in memory ({need:.2f} GB).")
            return "memory"
        why = (
            f"they would take {need:.1f} GB, more than feature_cache_gb={options.cache.feature_cache_gb:g}. Raise it,"
            " or give --model.feature_cache disk"
        )
    reasons.append(f"Frozen features are computed anew in every epoch: {why}.")
    return "off"


def _why_not_kept(trainer: pl.Trainer, loader: Any, options: FineTuningOptions) -> str | None:
    """Why features of training images cannot be kept; None where they can."""
    change = options.augmentation
    augment = getattr(getattr(trainer, "datamodule", None), "augment", "none")  # of the user's own data not known
    if not isinstance(loader, DataLoader) or not has_random_access(loader):
        return "the training data are a stream, or have no known length"
    if change.cutmix or change.hide_and_seek or change.adl_layers:
        return "images or features change in every step (cutmix, hide_and_seek, adl_layers)"
    if options.loss.equivariance_weight:
        return "equivariance_weight needs the images"
    if options.cache.cached_views is not None or augment in (None, "flip"):
        return None
    if augment == "crop_flip":
        return "augment is crop_flip, which draws other crops in every epoch"
    return "images change from one reading to the next" if _chance(loader) else None


def _chance(loader: DataLoader[Any]) -> bool:
    with isolate_rng():
        return changes_by_chance(loader)


# ---------------------------------------------------------------- what it costs


@dataclass(frozen=True)
class _Cost:
    """Seconds per image of frozen features and of a step of the head, and how many numbers the features are."""

    features: float
    head: float
    numbers: int

    @classmethod
    def of(cls, network: CAMNet) -> _Cost | None:
        """Measured on noise of the network's own size; None where that is not known or does not run."""
        shape = None if network.certificate is None else network.certificate.input_shape
        if network.preprocessing is not None:
            shape = (network.preprocessing.channels, network.preprocessing.height, network.preprocessing.width)
        if shape is None:
            return None
        like = next(network.parameters())
        noise = torch.randn(_TIMED, *shape, generator=torch.Generator().manual_seed(0)).to(like)
        part = FrozenPart(network)
        try:
            with eval_mode(network):
                with torch.no_grad():
                    part(noise[:1])
                    start = time.perf_counter()
                    kept = part(noise)
                    features = (time.perf_counter() - start) / _TIMED
                head = _head_seconds(network, kept.clone())
        except Exception:  # noqa: BLE001 - the network's own errors are told where training meets them
            return None
        return cls(features, head, math.prod(kept.shape[1:]))


def _head_seconds(network: CAMNet, kept_NCHW: Tensor) -> float:
    """Of forward and backward of the new head; gradients are not kept."""
    parameters = [p for p in network.parameter_groups()["head"] if p.requires_grad]
    with torch.enable_grad():
        for _ in range(2):  # the first warms up
            start = time.perf_counter()
            logits = network.forward_head(run_new_layers(network, kept_NCHW))
            torch.autograd.grad(logits.logsumexp(1).sum(), parameters, allow_unused=True)
    return (time.perf_counter() - start) / len(kept_NCHW)


def _seconds(trainer: pl.Trainer, plan: Plan, cost: _Cost | None) -> float | None:
    """Of a run whose features stay frozen: features once or in every epoch, and the head's steps."""
    count, val = count_samples(trainer.train_dataloader), count_samples(trainer.val_dataloaders)
    epochs = run_length_of(trainer).epochs
    if cost is None or count is None or epochs is None:
        return None
    passes = (2 if plan.mirrored else 1) if plan.feature_cache != "off" else epochs
    return cost.features * (count * passes + (val or 0)) + cost.head * count * epochs


# ---------------------------------------------------------------- drawn weights


@torch.no_grad()
def weights_as_drawn(network: CAMNet) -> bool:
    """Whether the legacy's features are as a known way to draw weights leaves them, so that nothing trained them.

    Batch norms that have seen data say that something did. Else the standard deviation of each layer's weights is
    compared with those of torch's default, He's (fan-in, fan-out), Xavier's and 0.02: a trained layer has another.
    """
    head = {id(module) for name in network.head_layers for module in [network.features.get_submodule(name)]}
    layers = [module for module in network.features.modules() if id(module) not in head]
    norms = [module for module in layers if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    means = [module.running_mean for module in norms if module.running_mean is not None]
    if means:
        return not any(bool(mean.any()) for mean in means)
    weights = [m.weight for m in layers if isinstance(m, nn.Conv2d | nn.Linear) and m.weight.numel() > 1]
    return bool(weights) and sum(_is_as_drawn(weight) for weight in weights) >= _DRAWN * len(weights)


def _is_as_drawn(weight: Tensor) -> bool:
    window = math.prod(weight.shape[2:])
    fan_in, fan_out = weight.shape[1] * window, weight.shape[0] * window
    known = (1 / math.sqrt(3 * fan_in), math.sqrt(2 / fan_in), math.sqrt(2 / fan_out),
             math.sqrt(2 / (fan_in + fan_out)), math.sqrt(1 / fan_in), 0.02, 0.01)  # fmt: skip
    deviation = float(weight.double().pow(2).mean().sqrt())
    tolerance = 0.01 + 4 * math.sqrt(0.5 / weight.numel())
    return any(abs(deviation / value - 1) <= tolerance for value in known)
