"""Samples compared, whatever they hold."""

from __future__ import annotations

import torch
from torch import Tensor


def equal(a, b):
    """Whether two samples, or parts of them, are the same to the bit."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b
