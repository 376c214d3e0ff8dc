"""What a recipe is: a published network with maps, layer by layer, how it was fine-tuned, and the source of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import fx

from ..errors import ConversionError
from .geometry import Change, layout
from .new_layers import Conv3x3, NewLayer

__all__ = ["FINE_TUNING_OPTIONS", "Family", "FineTuning", "Recipe", "settle_fine_tuning", "settle_head"]

_HEAD = {"head": "gap", "pool": "gap", "dropout": 0.0}
"""Of a conversion without recipe."""


@dataclass(frozen=True)
class Family:
    """The networks that a recipe is for, known by the order of their layers or by names of their modules."""

    name: str
    layout: str = ""
    modules: tuple[str, ...] = ()

    def misfit(self, network: fx.GraphModule) -> str | None:
        """What is expected and what was found instead; None where the network fits."""
        missing = [name for name in self.modules if not _has(network, name)]
        if missing:
            actual = ", ".join(name for name, _ in network.named_children())
            return f"the modules {', '.join(self.modules)}; found {_shorten(actual)}"
        actual = layout(network)
        if self.layout and actual != self.layout:
            return f"convolutions and max-pools (P) {_shorten(self.layout)}; found {_shorten(actual) or 'none'}"
        return None


def _has(network: fx.GraphModule, name: str) -> bool:
    try:
        network.get_submodule(name)
    except AttributeError:
        return False
    return True


def _shorten(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


@dataclass(frozen=True)
class FineTuning:
    """How a network is fine-tuned; the defaults are camify's own. See ``CAMFineTuner``.

    ``epochs`` and ``batch_size`` are the published ones; trainer and data module have the last word on them.
    """

    optimizer: str = "adamw"
    lr: float = 1e-4
    head_lr_factor: float = 10.0
    fast_layers: tuple[str, ...] = ()
    bias_lr_factor: float = 1.0
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-2
    decay_biases: bool = True
    schedule: str = "cosine"
    lr_drops: tuple[float, ...] = ()
    warmup_epochs: float = 0.5
    freeze_epochs: int | None = None
    gradient_clip: float = 10.0
    epochs: int | None = None
    batch_size: int | None = None

    def options(self) -> dict[str, Any]:
        """The options of ``CAMFineTuner``, by name."""
        values = asdict(self)
        return {
            name: list(values[name]) if isinstance(values[name], tuple) else values[name]
            for name in FINE_TUNING_OPTIONS
        }


SGD = FineTuning(optimizer="sgd", lr=1e-3, weight_decay=5e-4)
"""camify's own defaults where that optimizer is asked for."""
FINE_TUNING_OPTIONS = tuple(field.name for field in fields(FineTuning) if field.name not in ("epochs", "batch_size"))
"""Names of the options of ``CAMFineTuner`` that a recipe sets."""


@dataclass(frozen=True)
class Recipe:
    """A network with maps as published.

    Attributes:
        source: paper and section, or repository and file, and what they leave open.
        family: the networks that it is for.
        fine_tuning: how it was fine-tuned, and in ``fine_tuning_source`` who says so.
        head: ``"gap"`` (new layers and a new classifier), or ``"direct"`` (the old classifier stays with its classes).
        cut_after: the module with which the features end; None: where the last spatial map is, before its max-pool.
        changes: of strides, pools and paddings.
        layers: the new layers behind the features.
        pool: ``"gap"`` or ``"gmp"``.
        dropout: between pooling and classifier, while training.
        classifier: how the weights of the new classifier are drawn (see ``FILLERS``); its bias is 0.
        name: ``paper/network``.
    """

    source: str
    family: Family
    fine_tuning: FineTuning
    fine_tuning_source: str
    head: str = "gap"
    cut_after: str | None = None
    changes: tuple[Change, ...] = ()
    layers: tuple[NewLayer, ...] = ()
    pool: str = "gap"
    dropout: float = 0.0
    classifier: str = "gaussian"
    name: str = ""

    @property
    def convs(self) -> tuple[int, ...]:
        """Channels of the new convolutions."""
        return tuple(layer.channels for layer in self.layers if isinstance(layer, Conv3x3))

    def check(self, network: fx.GraphModule) -> None:
        """Refuse a network of another family.

        Raises:
            ConversionError: says what the recipe expects and what was found.
        """
        misfit = self.family.misfit(network)
        if misfit is not None:
            raise ConversionError(
                f"recipe={self.name!r} is for {self.family.name}: expected {misfit}."
                " Choose a recipe of the network's own family, or leave recipe out."
            )

    def notes(self) -> list[str]:
        """What a certificate says of the recipe."""
        changed = "; ".join(map(str, self.changes))
        return [f"Recipe {self.name}: {self.source}.", *([f"Changed as published: {changed}."] if changed else [])]


def settle_head(recipe: Recipe | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options ``head``, ``pool`` and ``dropout``: as given, else the recipe's, else the defaults.

    ``given`` may also hold ``head_channels`` and ``map_stride``, which a recipe has settled.

    Raises:
        ConversionError: an option contradicts the recipe.
    """
    if recipe is None:
        return {key: default if given.get(key) is None else given[key] for key, default in _HEAD.items()}
    settled = {key: getattr(recipe, key) for key in _HEAD}
    widths = given.get("head_channels")
    widths = (widths,) if isinstance(widths, int) else widths if widths is None else tuple(widths)
    for key, wanted in {**given, "head_channels": widths}.items():
        fixed = {**settled, "head_channels": recipe.convs, "map_stride": None}[key]
        if wanted is not None and wanted != fixed:
            says = "has strides of its own" if key == "map_stride" else f"says {fixed!r}"
            raise ConversionError(
                f"recipe={recipe.name!r} {says}, but {key}={wanted!r} was given. Leave {key} out, or the recipe."
            )
    return settled


def settle_fine_tuning(recipe: Recipe | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of fine-tuning: as given, else the recipe's, else the defaults."""
    own = FineTuning() if given.get("optimizer") in (None, "adamw") else SGD
    options = (recipe.fine_tuning if recipe is not None else own).options()
    return {key: default if given.get(key) is None else given[key] for key, default in options.items()}
