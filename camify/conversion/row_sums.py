"""What a fit in closed form needs of rows that it sees once: their sums, and a uniform sample of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import DataError
from ..ranks import ONE, Ranks, sample_keys

__all__ = ["RowSums"]

_KEPT = 2048  # rows kept for a second look


class RowSums:
    """The sums of rows x (C) and y (K), from a shift near their means, and a uniform sample of the rows.

    Args:
        ranks: of the processes that share the rows; each has every so many-th, from its own number on.
    """

    def __init__(self, ranks: Ranks = ONE) -> None:
        self.n, self.ranks = 0, ranks

    def _allocate(self, shift_x: Tensor, shift_y: Tensor) -> None:
        # Sums about a point near the mean: their centering later does not cancel digits.
        self.shift_x, self.shift_y = shift_x, shift_y
        self.x, self.y, self.yy = torch.zeros_like(shift_x), torch.zeros_like(shift_y), shift_y.new_zeros(())
        self.xx, self.xy = shift_x.new_zeros(len(shift_x), len(shift_x)), shift_x.new_zeros(len(shift_x), len(shift_y))
        self.rows, self.targets = shift_x.new_zeros(_KEPT, len(shift_x)), shift_y.new_zeros(_KEPT, len(shift_y))
        self.numbers = torch.zeros(_KEPT, dtype=torch.int64)
        self.keys = torch.full((_KEPT,), torch.inf, dtype=torch.float64)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows x (N, C) and y (N, K)."""
        if self.n == 0:
            self._allocate(x.mean(0), y.mean(0))
        self._keep(x, y)
        x, y = x - self.shift_x, y - self.shift_y
        self.n += len(x)
        for total, part in zip(
            (self.x, self.y, self.xx, self.xy, self.yy),
            (x.sum(0), y.sum(0), x.T @ x, x.T @ y, (y * y).sum()),
            strict=True,
        ):
            total += part

    def _keep(self, x: Tensor, y: Tensor) -> None:
        """Keep the rows of the smallest keys: of all that there are while there are few."""
        numbers = self.ranks.rank + self.ranks.world_size * torch.arange(self.n, self.n + len(x))
        keys = sample_keys(numbers)
        if self.n + len(x) <= _KEPT:
            own = slice(self.n, self.n + len(x))
            self.rows[own], self.targets[own], self.numbers[own], self.keys[own] = x, y, numbers, keys
            return
        for row in (keys < self.keys.max()).nonzero().flatten().tolist():
            slot = int(self.keys.argmax())
            if keys[row] < self.keys[slot]:
                self.rows[slot], self.targets[slot] = x[row], y[row]
                self.numbers[slot], self.keys[slot] = numbers[row], keys[row]

    def join(self, head: nn.Linear) -> None:
        """Add the sums of all processes; in the first one the kept rows are those that one process would keep."""
        if self.ranks.world_size == 1:
            return
        like = self.x if self.n else head.weight.detach().cpu().double()
        own = (self.shift_x.cpu(), self.shift_y.cpu()) if self.n else None
        given = self.ranks.everywhere(own)  # the first process has the first row, if there is any
        if given is None:
            return
        shift_x, shift_y = (shift.to(like) for shift in given)
        if self.n == 0:
            self._allocate(shift_x, shift_y)
        move_x, move_y = self.shift_x - shift_x, self.shift_y - shift_y
        self.xx += torch.outer(self.x, move_x) + torch.outer(move_x, self.x) + self.n * torch.outer(move_x, move_x)
        self.xy += torch.outer(self.x, move_y) + torch.outer(move_x, self.y) + self.n * torch.outer(move_x, move_y)
        self.yy += 2 * self.y @ move_y + self.n * move_y @ move_y
        self.x += self.n * move_x
        self.y += self.n * move_y
        self.shift_x, self.shift_y = shift_x, shift_y
        count = torch.tensor(float(self.n), dtype=torch.float64)
        kept = [part[: self.n].cpu() for part in (self.rows, self.targets, self.numbers, self.keys)]
        self.ranks.add(self.x, self.y, self.xx, self.xy, self.yy, count)
        self.n = int(count)
        parts = self.ranks.gather(kept)
        if parts:
            rows, targets, numbers, keys = (torch.cat(same) for same in zip(*parts, strict=True))
            smallest = keys.argsort()[:_KEPT]
            order = smallest[numbers[smallest].argsort()]
            self.rows, self.targets = rows[order].to(like), targets[order].to(like)

    def center(self) -> None:
        """The means, and the second moments about them, in place of the sums."""
        x, y = self.x / self.n, self.y / self.n
        self.mean_x, self.mean_y = self.shift_x + x, self.shift_y + y
        self.xx -= self.n * torch.outer(x, x)
        self.xy -= self.n * torch.outer(x, y)
        self.tss = float(self.yy - self.n * y.square().sum())
        if not self.tss > 1e-12 * self.n * float(self.mean_y.square().sum()):
            raise DataError(f"All {self.n} targets are the same: nothing to fit. Give images of several classes.")

    def r2(self, weight: Tensor, bias: Tensor) -> float:
        """1 - RSS / TSS of the head's logits, centered over the classes."""
        weight, gap = weight - weight.mean(0), self.mean_y - (bias - bias.mean())
        gap = gap - weight @ self.mean_x
        rss = self.tss + ((weight @ self.xx - 2 * self.xy.T) * weight).sum() + self.n * gap.square().sum()
        return 1 - float(rss) / self.tss
