"""What methods cost beside a plain forward, and what makes a network fast here: folded batch norms, memory format."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from ..eval_mode import eval_mode, without_hooks
from ..methods import observe
from ..model import CAMNet
from ..reports.tables import Table, number
from .network import ExplainedNetwork

__all__ = ["ALL", "cost_table", "fastest_format", "folded", "interleaved_medians", "method_costs", "use_format"]

ALL = "all of them together"
_BUDGET = 6.0  # seconds for one network
_WORTH_IT = 0.95  # of the time: less gain is noise
_SAME_LOGITS = 1e-4  # relative: more is not rounding


def interleaved_medians(
    runs: dict[str, Callable[[], Any]], *, repeats: int = 21, budget: float = _BUDGET
) -> dict[str, tuple[float, int]]:
    """Median seconds and number of repeats of each run, taken in turns after one warm-up round.

    A run whose warm-up took more than a tenth of the budget is repeated less often, but once at least; of one that took
    more than all of it the warm-up itself counts.
    """
    warm = {name: _seconds(run) for name, run in runs.items()}
    times = {name: [seconds] if seconds > budget else [] for name, seconds in warm.items()}
    total = max(sum(warm.values()), 1e-9)
    rounds = max(1, min(repeats, int(budget / total)))
    for index in range(repeats):
        for name, run in runs.items():
            if warm[name] <= budget and (index < rounds or warm[name] < budget / (10 * repeats)):
                times[name].append(_seconds(run))
    return {name: (statistics.median(taken), len(taken)) for name, taken in times.items()}


def method_costs(network: ExplainedNetwork, images: Tensor, targets: Tensor, *, repeats: int = 21) -> dict[str, Any]:
    """Per method, and for all together, how many plain forwards the finished heats cost; with the seconds.

    The heats are upsampled and normalized, from one forward of the batch. ``all of them together`` share it.
    """
    size = (images.shape[-2], images.shape[-1])
    task, names = network.classes.task, network.classes.names

    def forward() -> None:
        with torch.no_grad(), eval_mode(network.model):
            network.model(images)

    def heats(chosen: tuple[str, ...]) -> None:
        methods = [network.methods[name] for name in chosen]
        gradients = any(method.uses_gradients for method in methods)
        with observe(network.model, images, gradients=gradients, task=task, class_names=names) as one_forward:
            for method in methods:
                method.heat(method.raw_maps(one_forward, targets), size)

    runs: dict[str, Callable[[], None]] = {"forward": forward}
    for name in network.served:
        runs[name] = lambda name=name: heats((name,))  # type: ignore[misc]
    if len(network.served) > 1:
        runs[ALL] = lambda: heats(tuple(network.served))
    medians = interleaved_medians(runs, repeats=repeats)
    plain, count = medians.pop("forward")
    return {
        "batch": len(images),
        "repeats": count,
        "threads": torch.get_num_threads(),
        "forward_seconds": plain,
        "ratios": {name: seconds / plain for name, (seconds, _) in medians.items()},
    }


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def cost_table(costs: Mapping[str, dict[str, Any]]) -> Table:
    """Time as a ratio to a plain forward, by network as ``method_costs`` gives it."""
    rows = []
    for model, measured in costs.items():
        plain = 1000 * measured["forward_seconds"] / measured["batch"]
        rows += [[f"{model}: plain forward", "1", f"{plain:.1f}"]]
        rows += [
            [f"{model}: {name}", number(ratio), f"{plain * ratio:.1f}"] for name, ratio in measured["ratios"].items()
        ]
    first = next(iter(costs.values()))
    return Table(
        "Cost",
        "Time of a heat map as a ratio to a plain forward of the same network",
        ["", "ratio", "ms per image"],
        rows,
        f"Medians of runs in turns, warm, on this machine ({_conditions(first)}), upsampled and normalized;"
        f" `{ALL}`: one forward for every method. On a small network the fixed time of locating the layer counts much,"
        " on a large one it vanishes; a busy machine makes these figures noisy.",
    )


def _conditions(measured: dict[str, Any]) -> str:
    threads = "1 thread" if measured["threads"] == 1 else f"{measured['threads']} threads"
    return f"batch {measured['batch']}, {threads}, up to {measured['repeats']} repeats"


# ---------------------------------------------------------------- what runs fastest


def folded(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy in eval mode whose batch norms are part of the convolutions before them: the same logits up to rounding.

    The model itself where it has none, where torch.fx cannot trace it, or where the copy's logits of the images
    (N, C, H, W), of which four are taken, differ by more than 1e-4 of the largest one: folding goes by the layers'
    names, so a convolution that is used twice would be folded twice. No hook of the model is copied.
    """
    if not any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()):
        return model
    with without_hooks(model):
        network = copy.deepcopy(model).eval()
    try:
        if isinstance(network, CAMNet):
            network.features = fuse(network.features, inplace=True)
        else:
            network = fuse(network, inplace=True)
        images = images[:4].to(next(model.parameters()))
        with torch.no_grad(), eval_mode(model), without_hooks(model):
            logits, network_logits = model(images).double(), network(images).double()
    except Exception:  # noqa: BLE001 - whatever the tracer says of somebody's code: then it stays as it is
        return model
    same = bool((logits - network_logits).abs().max() <= _SAME_LOGITS * logits.abs().max())  # not of NaN
    return network if same else model


def fastest_format(model: nn.Module, images: Tensor) -> str:
    """Put a network into the memory format in which it runs such images fastest; returns ``channels_last`` or not.

    Six forwards of at most four images. The values are the same up to rounding.
    """
    parameter = next(model.parameters())
    images = images[:4].to(parameter.device, parameter.dtype)
    plain, last = [], []
    with torch.no_grad(), eval_mode(model), without_hooks(model):  # inference_mode would stay in the parameters
        for _ in range(3):  # in turns, as a machine is not equally fast all the time
            model.to(memory_format=torch.contiguous_format)
            plain.append(_forward_seconds(model, images))
            model.to(memory_format=torch.channels_last)
            last.append(_forward_seconds(model, images.contiguous(memory_format=torch.channels_last)))
    fastest = "channels_last" if min(last[1:]) < _WORTH_IT * min(plain[1:]) else "contiguous"
    use_format(model, fastest)
    return fastest


def use_format(model: nn.Module, name: str) -> None:
    """Put a network into a memory format that ``fastest_format`` names."""
    model.to(memory_format=torch.channels_last if name == "channels_last" else torch.contiguous_format)


def _forward_seconds(model: nn.Module, images: Tensor) -> float:
    start = time.perf_counter()
    model(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - start
