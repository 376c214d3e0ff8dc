"""Sanity checks of maps: does a map change when the network, or what it was taught, is replaced by chance?

Adebayo et al. 2018, "Sanity Checks for Saliency Maps", sections 3 and 4: a map that stays what it was does not depend
on what was replaced.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..conversion import fit_head
from ..errors import CamifyError
from ..metrics.functional import rank_correlations
from ..model import CAMNet
from ..ranks import ONE
from .engine import Rows
from .network import ExplainedNetwork
from .passes import Run

__all__ = ["ALL_LAYERS", "ANOTHER_IMAGE", "CHECKS", "UNCHANGED_FROM", "measure_sanity", "unchanged_methods"]

ANOTHER_IMAGE, LAST_LAYER, HALF, ALL_LAYERS, LABELS = (
    "another image", "last layer", "second half", "all layers", "labels",
)  # fmt: skip
CHECKS = (ANOTHER_IMAGE, LAST_LAYER, HALF, ALL_LAYERS, LABELS)
"""What a map is compared with: that of another image, or that of a network of which so much is random."""
UNCHANGED_FROM = 0.8
"""Mean rank correlation from which on a method is named: its maps do not depend on what was replaced."""


@torch.no_grad()
def measure_sanity(network: ExplainedNetwork, run: Run, numbers: Sequence[int]) -> tuple[dict[str, Rows], str]:
    """By method and check the rank correlation (N,) of each image's map with that of the changed network.

    Maps are those of the network's first choice, at their own resolution, after the ReLU where the method has one. NaN
    where one of the two is the same everywhere. Layers are made random by putting the values of each of their tensors
    into an order by chance: their size stays, what they learned goes; from the last layer on backwards, in the order in
    which they are defined. ``labels``: the classifier of a CAM-ready network fitted in closed form to the images'
    labels in an order by chance.

    Args:
        network: with its methods; it is left as it is.
        run: how the passes go; in one process.
        numbers: of the images.

    Returns:
        The rows, and why there are none where there are none.
    """
    layers = [name for name, module in network.model.named_modules() if _tensors(module)]
    if not layers:
        return {}, "not measured: the network has no layers of its own"
    if len(numbers) < 2:
        return {}, "not measured: there are too few images"
    batches = list(replace(run, ranks=ONE).batches(numbers, run.batch_size, "sanity checks, batch"))
    images = [batch["image"] for _, batch in batches]
    targets = list(_targets(network, images))
    own = _maps(network, images, targets)
    rows: dict[str, Rows] = {name: {ANOTHER_IMAGE: _correlations(maps, maps.roll(1, 0))} for name, maps in own.items()}
    changed: dict[str, nn.Module] = {
        check: _with_random_layers(network.model, names, run.seed)
        for check, names in (
            (LAST_LAYER, layers[-1:]), (HALF, layers[len(layers) // 2 :]), (ALL_LAYERS, layers),
        )
    }  # fmt: skip
    relabeled = _with_random_labels(network, run)
    for check, model in {**changed, **({} if relabeled is None else {LABELS: relabeled})}.items():
        for name, maps in _maps(_of_model(network, model), images, targets).items():
            if name in rows:
                rows[name][check] = _correlations(own[name], maps)
    return rows, f"{len(numbers)} images, {len(layers)} layers"


def unchanged_methods(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """By check the methods whose maps hardly change where so much is random; checks without one are left out."""
    unchanged = {
        check: [name for name, row in figures.items() if check in row and row[check].value >= UNCHANGED_FROM]
        for check in CHECKS[1:]
    }
    return {check: names for check, names in unchanged.items() if names}


def _tensors(module: nn.Module) -> list[Tensor]:
    """The tensors of a layer itself, of more than one number."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return [tensor for tensor in own if tensor.is_floating_point() and tensor.numel() > 1]


def _with_random_layers(model: nn.Module, names: Sequence[str], seed: int) -> nn.Module:
    """A copy of a network with the values of these layers in an order by chance."""
    random = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        for tensor in _tensors(random.get_submodule(name)):
            order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
            tensor.copy_(tensor.flatten()[order].reshape(tensor.shape))
    return random


def _with_random_labels(network: ExplainedNetwork, run: Run) -> nn.Module | None:
    """A copy whose classifier was fitted to labels in an order by chance; None where it is not linear after pooling."""
    model = network.model
    if not isinstance(model, CAMNet) or model.pool_name != "gap" or not network.classes.task.exclusive:
        return None
    labels = torch.as_tensor(run.images.labels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(run.seed))
    relabeled, whole = copy.deepcopy(model), replace(run, ranks=ONE)
    device = next(model.parameters()).device

    def batches() -> Iterator[dict[str, Tensor]]:
        for numbers, batch in whole.batches(range(len(labels)), run.batch_size, "fitting random labels, batch"):
            yield {"image": batch["image"].to(device), "label": labels[order[numbers]].to(device)}

    try:
        fit_head(relabeled, batches(), labels=True, ridge="one_se")
    except CamifyError:  # such as fewer images than it takes
        return None
    return relabeled


def _of_model(network: ExplainedNetwork, model: nn.Module) -> ExplainedNetwork:
    """The same methods on another network of the same layers."""
    return network.of_model(model.eval())


def _targets(network: ExplainedNetwork, images: Sequence[Tensor]) -> Iterator[Tensor]:
    for batch in images:
        with network.observe(batch) as forward:
            yield forward.classes.predicted(forward.logits)


def _maps(network: ExplainedNetwork, images: Sequence[Tensor], targets: Sequence[Tensor]) -> dict[str, Tensor]:
    """By method maps (N, h, w), float64, on the CPU."""
    parts: dict[str, list[Tensor]] = {}
    for batch, chosen in zip(images, targets, strict=True):
        with network.observe(batch) as forward:
            for name, raw in network.raw_maps(forward, chosen).items():
                kept = raw.relu() if network.methods[name].relu else raw
                parts.setdefault(name, []).append(kept.double().cpu())
    return {name: torch.cat(maps) for name, maps in parts.items()}


def _correlations(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's (N,) of maps (N, h, w); NaN where one is constant or not finite."""
    rows = []
    for pair in torch.stack([one, other], dim=1):
        known = bool(pair.isfinite().all())
        rows.append(rank_correlations(pair)[0, 1] if known else torch.tensor(torch.nan, dtype=torch.float64))
    return torch.stack(rows)
