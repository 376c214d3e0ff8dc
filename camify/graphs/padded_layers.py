"""Layers whose padding follows the size of the image, or is not the same on both sides: TensorFlow's and ONNX's."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["PaddedAvgPool2d", "SamePad2d"]


class SamePad2d(nn.Module):
    """Pads images (N, C, H, W) so that a window gives ceil(H / stride) x ceil(W / stride) cells: ``padding="same"``.

    TensorFlow puts the odd row and column behind the image, at the bottom and on the right; ``lower=True`` puts them in
    front (ONNX's ``SAME_LOWER``).

    Args:
        kernel_size: of the window that follows, (height, width).
        stride: likewise.
        dilation: likewise.
        value: of the new cells.
        lower: where the odd row and column go.
    """

    def __init__(
        self,
        kernel_size: tuple[int, int],
        stride: tuple[int, int],
        dilation: tuple[int, int] = (1, 1),
        value: float = 0.0,
        lower: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.dilation = kernel_size, stride, dilation
        self.value, self.lower = value, lower

    def forward(self, x: Tensor) -> Tensor:
        """The padded images."""
        return F.pad(x, self.pads(x), value=self.value)

    def pads(self, x: Tensor) -> list[int]:
        """Left, right, top and bottom, as ``F.pad`` takes them."""
        pads: list[int] = []
        for axis in (1, 0):
            reach = (self.kernel_size[axis] - 1) * self.dilation[axis] + 1 - self.stride[axis]
            total = reach + (-x.shape[2 + axis]) % self.stride[axis]  # no max where the windows overlap
            if reach < 0:
                total = max(total, 0)
            half = total // 2
            pads += [total - half, half] if self.lower else [half, total - half]
        return pads

    def extra_repr(self) -> str:
        """What ``print`` says of it."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}"


class PaddedAvgPool2d(nn.Module):
    """The mean over the cells of a window that lie in the image: those of the padding do not count.

    Args:
        kernel_size: (height, width).
        stride: likewise.
        padding: left, right, top and bottom; None: as ``SamePad2d``.
        lower: as there.
    """

    def __init__(
        self,
        kernel_size: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int, int, int] | None = None,
        lower: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.lower = kernel_size, stride, lower
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) -> (N, C, h, w)."""
        if self.padding is None:
            pads = SamePad2d(self.kernel_size, self.stride, lower=self.lower).pads(x)
        else:
            pads = list(self.padding)
        inside = F.pad(x.new_ones(1, 1, x.shape[2], x.shape[3]), pads)
        share = F.avg_pool2d(inside, self.kernel_size, self.stride)
        return F.avg_pool2d(F.pad(x, pads), self.kernel_size, self.stride) / share

    def extra_repr(self) -> str:
        """What ``print`` says of it."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding or 'same'}"
