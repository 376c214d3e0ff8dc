"""What a head makes of maps in which a single cell is left: the question of Recipro-CAM, without h w forwards."""

from __future__ import annotations

from collections.abc import Iterator
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .feature_split import TracedSplit
from .forward_pass import ForwardPass

__all__ = ["cell_logits"]

_MOST_VALUES = 2**24  # of one chunk of masked maps: 64 MiB in float32
_ROWS = (32, 128)  # of hidden units, whose weights are put in order at a time: in the cache of a CPU; elsewhere


@torch.no_grad()
def cell_logits(forward: ForwardPass, masks_PHW: Tensor) -> Tensor:
    """Logits (N, P, K) of P maps per image: the feature vector of cell p times the mask p, zero elsewhere.

    Three ways with the same result: a head that is linear after pooling answers in closed form; one that begins with
    steps without weights and a linear layer (VGG, AlexNet) needs that layer's weights once, as its input is zero but
    for a few positions; any other one sees the masked maps in chunks.

    Args:
        forward: of N images.
        masks_PHW: (h * w, h, w), one per cell, row by row.
    """
    count, channels = forward.activations.shape[:2]
    cells_NCP = forward.activations.flatten(2)
    vectors_NPC = cells_NCP.transpose(1, 2)
    weight, bias = forward.weight, forward.bias
    if weight is not None and bias is not None:
        return F.linear((cells_NCP * masks_PHW.mean((1, 2))).transpose(1, 2), weight, bias)
    if not forward.takes_any_batch:
        answers = [
            forward.head(vectors_NPC[:, p, :, None, None] * mask) for p, mask in enumerate(masks_PHW)
        ]  # what flows past the layer is one per image
        return torch.stack(answers, dim=1)
    sparse = _sparse_head(forward, masks_PHW, channels)
    if sparse is not None:
        return forward.classes.two_sided(sparse.logits(vectors_NPC), 2)
    rows = [forward.head(chunk) for chunk in _masked(vectors_NPC.flatten(0, 1), masks_PHW)]
    return torch.cat(rows).reshape(count, len(masks_PHW), -1)


def _masked(vectors_MC: Tensor, masks_PHW: Tensor) -> Iterator[Tensor]:
    """The maps (m, C, h, w) of vectors, cell by cell, in chunks of bounded size; M is a multiple of P."""
    cells = torch.arange(len(vectors_MC), device=vectors_MC.device) % len(masks_PHW)
    size = max(_MOST_VALUES // (vectors_MC.shape[1] * masks_PHW[0].numel()), 1)
    for part in torch.split(torch.arange(len(vectors_MC), device=vectors_MC.device), size):
        yield vectors_MC[part][:, :, None, None] * masks_PHW[cells[part]][:, None]


class _SparseHead:
    """Pools and the like, whose answer to one cell is the cell's vector at some positions; a linear layer; the rest.

    ``positive`` and ``negative`` (P, positions): the share of a vector's positive and negative part.
    """

    def __init__(self, linear: nn.Linear, rest: nn.Module, positive: Tensor, negative: Tensor) -> None:
        self.linear, self.rest, self.positive, self.negative = linear, rest, positive, negative

    def logits(self, vectors_NPC: Tensor) -> Tensor:
        """(N, P, K)."""
        count, cells, channels = vectors_NPC.shape
        weight = self.linear.weight
        positions = self.positive.shape[1]
        used = ((self.positive != 0) | (self.negative != 0)).T  # (positions, P)
        most_cells = int(used.sum(1).max())
        cell = used.to(torch.uint8).topk(most_cells, dim=1).indices  # where fewer are used, others with the share 0
        positive, negative = (share.T.gather(1, cell)[:, :, None, None] for share in (self.positive, self.negative))
        vectors = vectors_NPC.to(weight.dtype).transpose(0, 1)[cell]  # (positions, most, N, C)
        inputs = (vectors.relu() * positive - (-vectors).relu() * negative).flatten(1, 2)
        bias = self.linear.bias if self.linear.bias is not None else weight.new_zeros(len(weight))
        hidden = bias.repeat(cells, count, 1)
        rows = _ROWS[weight.device.type != "cpu"]
        blocks = torch.split(weight, rows)
        by_position = torch.empty_like(blocks[0]).view(positions, -1)  # memory that is filled anew for each block
        for block, into in zip(blocks, torch.split(hidden, rows, dim=2), strict=True):
            ordered = by_position[:, : len(block) * channels]
            ordered.copy_(block.reshape(-1, positions).T)
            answers = torch.bmm(inputs, ordered.view(positions, len(block), channels).transpose(1, 2))
            into.index_add_(0, cell.flatten(), answers.view(-1, count, len(block)))
        (logits,) = self.rest(hidden.flatten(0, 1))
        wide: Tensor = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return wide.reshape(cells, count, -1).transpose(0, 1)


_SHARES: WeakKeyDictionary[TracedSplit, tuple[Tensor, tuple[Tensor, Tensor] | None]] = WeakKeyDictionary()


def _sparse_head(forward: ForwardPass, masks_PHW: Tensor, channels: int) -> _SparseHead | None:
    parts = forward.split
    first = parts.first_linear if isinstance(parts, TracedSplit) else None
    if first is None or not isinstance(parts, TracedSplit):
        return None
    before, linear, rest = first
    cached = _SHARES.get(parts)
    if cached is None or cached[0].device != masks_PHW.device or not torch.equal(cached[0], masks_PHW):
        masks = masks_PHW.to(linear.weight)
        shares = [_shares(before, masks, channels, sign) for sign in (1.0, -1.0)]
        pair = (shares[0], shares[1]) if shares[0] is not None and shares[1] is not None else None
        cached = _SHARES[parts] = (masks_PHW, pair)
    return None if cached[1] is None else _SparseHead(linear, rest, *cached[1])


def _shares(before: nn.Module, masks_PHW: Tensor, channels: int, sign: float) -> Tensor | None:
    """What comes of one cell's vector at each position (P, positions), or None where channels are treated unlike.

    Found out by asking, with another size in every channel.
    """
    sizes = torch.linspace(0.5, 2.0, channels, dtype=torch.float32).to(masks_PHW)
    vectors = (sign * sizes).expand(len(masks_PHW), -1)
    factors = []
    for maps in _masked(vectors, masks_PHW):
        (answer,) = before(maps)
        if answer.dim() != 2 or answer.shape[1] % channels:
            return None
        shares = answer.reshape(len(maps), channels, -1) / (sign * sizes)[None, :, None]
        if not torch.allclose(shares, shares[:, :1].expand_as(shares), rtol=1e-3, atol=1e-5):
            return None
        factors.append(shares.mean(1))
    return torch.cat(factors)
