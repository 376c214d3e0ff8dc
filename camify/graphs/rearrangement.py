"""Which numbers a step has only moved, and where each of them stood before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["Rerun", "rearrangement"]

Rerun = Callable[..., Any]
"""Does a step again: ``rerun(given, others=None)`` takes other values for some of its inputs, and a number for the
tensors among the rest."""


def rearrangement(
    step: Rerun, inputs: Sequence[tuple[fx.Node, Tensor]], shape: torch.Size, index: int | None = None
) -> Tensor | None:
    """Where every number of a step's result stood among its inputs, counted over all; None where the step computes.

    The step is done with the numbers' places in the place of the numbers, twice in different codes. What is none of
    the inputs' numbers (padding, another tensor) counts as -1.

    Args:
        step: does it.
        inputs: those whose numbers are looked for.
        shape: of the result.
        index: of the result, where there are several.
    """
    total = sum(value.numel() for _, value in inputs)
    table = torch.randperm(total, generator=torch.Generator().manual_seed(0)) + 1
    answers = []
    for codes in (torch.arange(1, total + 1), -table):  # of either sign: an activation is no move
        parts = torch.split(codes.double(), [value.numel() for _, value in inputs])
        given = {
            node: part.reshape(value.shape).to(value.device) for (node, value), part in zip(inputs, parts, strict=True)
        }
        try:
            answer = step(given, others=0.0)
        except Exception:  # noqa: BLE001 - a step that does not take such numbers fails as it likes
            return None
        answer = answer[index] if index is not None and isinstance(answer, tuple | list) else answer
        if not isinstance(answer, Tensor) or answer.shape != shape or answer.dtype != torch.float64:
            return None
        answers.append(answer.cpu())
    first, second = answers
    order = first.long()
    if not torch.equal(order.double(), first) or int(order.min()) < 0 or int(order.max()) > total:
        return None
    order -= 1
    known = order >= 0
    same = torch.equal(second[known], -table[order[known]].double()) and not bool(second[~known].any())
    return order if same and bool(known.any()) else None
