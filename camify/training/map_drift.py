"""How far maps have moved since the epoch before."""

from __future__ import annotations

import torch
from torch import Tensor

from ..metrics.functional import drift

__all__ = ["MapDrift"]

_MOST = 4096  # maps that are kept: some hundred kB


class MapDrift:
    """The maps of the first validation images in the epoch before, by their place in the order of validation.

    Attributes:
        before: (n, h, w), n at most 4096; None before the end of the first epoch.
    """

    def __init__(self) -> None:
        self.before: Tensor | None = None
        self._now: list[Tensor] = []

    def begin(self) -> None:
        """A new epoch."""
        self._now = []

    def drift(self, maps_NHW: Tensor) -> Tensor | None:
        """``functional.drift`` (N,) of the next images' maps; None where their earlier ones are not known."""
        first = sum(map(len, self._now))
        last = first + len(maps_NHW)
        if last > _MOST:
            return None
        maps = maps_NHW.detach().float().cpu()
        self._now.append(maps)
        if self.before is None or last > len(self.before) or maps.shape[1:] != self.before.shape[1:]:
            return None
        return drift(maps, self.before[first:last])

    def end(self) -> None:
        """The maps of this epoch are those before the next one."""
        self.before = torch.cat(self._now) if self._now else None
        self._now = []
