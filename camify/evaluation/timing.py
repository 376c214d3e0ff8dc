"""What a method costs, as a ratio to a plain forward measured beside it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..methods import observe
from ..modes import evaluating
from .network import Contender

__all__ = ["ALL", "interleaved_medians", "method_costs"]

ALL = "all of them together"
_BUDGET = 6.0  # seconds for one network


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


def method_costs(contender: Contender, images: Tensor, targets: Tensor, *, repeats: int = 21) -> dict[str, Any]:
    """Per method, and for all together, how many plain forwards the finished heats cost; with the seconds.

    The heats are upsampled and normalised, from one forward of the batch. ``all of them together`` share it.
    """
    size = (images.shape[-2], images.shape[-1])

    def forward() -> None:
        with torch.no_grad(), evaluating(contender.model):
            contender.model(images)

    def heats(names: tuple[str, ...]) -> None:
        methods = [contender.methods[name] for name in names]
        gradients = any(method.uses_gradients for method in methods)
        with observe(contender.model, images, gradients=gradients) as seen:
            for method in methods:
                method.heat(method.look(seen, targets), size)

    runs: dict[str, Callable[[], None]] = {"forward": forward}
    for name in contender.served:
        runs[name] = lambda name=name: heats((name,))  # type: ignore[misc]
    if len(contender.served) > 1:
        runs[ALL] = lambda: heats(tuple(contender.served))
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
