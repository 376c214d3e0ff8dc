"""RISE."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..maps import upsample
from .base import Method, register
from .forward_pass import PRECISIONS, ForwardPass, many_forwards

__all__ = ["RISE"]

_ROUNDING = 1e-6  # of probabilities, which differ with the number of images in a forward


@register("rise")
class RISE(Method):
    """RISE, the mean of random masks weighed by the probability of the masked image, at the size of the image.

    Petsiuk et al. 2018, "RISE: Randomized Input Sampling for Explanation of Black-box Models", eq. 6 and section 3.2:
    1 / (p S) sum_i P_c(x . M_i) M_i(x, y) over S masks. A mask is a grid of cells, each 1 with probability p, else 0,
    upsampled (bilinear) to one cell more than the image and cropped at a random place. The paper has 7 x 7 cells,
    p = 0.5 and 4,000 masks (8,000 for ResNet50), which are the defaults; the authors' code has 8 x 8, p = 0.1 and
    6,000. Looks at nothing but the network's answers: no gradient, no layer. One forward for every mask serves all
    classes. All images have the same masks. Where no mask changes the probability the map is constant.

    Args:
        model: any network that classifies images.
        layer: None; RISE looks at no layer.
        samples: masks.
        cells: of a mask along each side.
        probability: of a cell to be shown.
        seed: of the masks; they are the same on every device.
        chunk: masked images in one forward, memory grows with it; None: 8 on a CPU, 32 on a GPU, 64 in half precision.
        precision: ``"fp32"`` (as the network is), or ``"bf16"``, ``"fp16"``: the masked forwards under autocast.

    Raises:
        ConfigError: an option is out of its range, or a layer is given.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
        >>> with torch.no_grad():
        ...     _ = network[3].weight.copy_(torch.tensor([[-9.0], [9.0]]))  # class 1: a bright image
        >>> nn.init.ones_(network[0].weight) is network[0].weight
        True
        >>> image = torch.zeros(1, 1, 8, 8)
        >>> image[..., :4] = 1.0  # the left half is bright
        >>> maps = RISE(network, samples=200, cells=2)(image, targets=1)
        >>> bool(maps[..., :4].mean() > maps[..., 4:].mean())
        True
    """

    relu = False

    def __init__(
        self,
        model: nn.Module,
        layer: str | None = None,
        *,
        samples: int = 4000,
        cells: int = 7,
        probability: float = 0.5,
        seed: int = 0,
        chunk: int | None = None,
        precision: str = "fp32",
    ) -> None:
        if layer is not None:
            raise ConfigError(f"layer={layer!r}: RISE looks at no layer. Leave it None.")
        super().__init__(model, layer)
        for name, value in (("samples", samples), ("cells", cells), ("chunk", 1 if chunk is None else chunk)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"RISE: {name}={value!r}: must be a whole number of at least 1.")
        if isinstance(probability, bool) or not isinstance(probability, int | float) or not 0 < probability < 1:
            raise ConfigError(f"RISE: probability={probability!r} must lie between 0 and 1.")
        if precision not in PRECISIONS:
            raise ConfigError(f"RISE: precision={precision!r} is unknown. Choose one of {', '.join(PRECISIONS)}.")
        self.samples, self.cells, self.probability, self.seed = samples, cells, probability, seed
        self.chunk, self.precision = chunk, precision

    def further_forwards(self, channels: int) -> int:  # noqa: ARG002 - of no layer
        """One for every mask."""
        return self.samples

    def masks(
        self, size: tuple[int, int], at_once: int | None = None, device: torch.device | str = "cpu"
    ) -> Iterator[Tensor]:
        """Masks (M, H, W) in [0, 1] of images of a size, so many at a time; None: ``chunk``, or 8."""
        at_once = at_once or self.chunk or 8
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.samples, self.cells, self.cells)
        grids = (torch.rand(shape, generator=generator) < self.probability).float()
        sides = [math.ceil(side / self.cells) for side in size]  # of a cell, in pixels
        tops, lefts = (torch.randint(side, (self.samples,), generator=generator).tolist() for side in sides)
        for start in range(0, self.samples, at_once):
            chosen = slice(start, start + at_once)
            large = upsample(grids[chosen].to(device), ((self.cells + 1) * sides[0], (self.cells + 1) * sides[1]))
            yield torch.stack([
                mask[top : top + size[0], left : left + size[1]]
                for mask, top, left in zip(large, tops[chosen], lefts[chosen], strict=True)
            ])  # fmt: skip

    def maps(self, forward: ForwardPass, targets_N: Tensor) -> Tensor:
        """(N, H, W), not negative."""
        return self._class_maps(forward, targets_N[:, None])[:, 0]

    def raw_maps(self, forward: ForwardPass, targets: Tensor) -> Tensor:
        """Raw maps (N, H, W) or (N, T, H, W), all classes of an image from the same forwards."""
        if targets.dim() == 1:
            return super().raw_maps(forward, targets)
        with torch.autocast(forward.images.device.type, enabled=False):
            maps = self.averaged(forward, lambda one_forward: self._class_maps(one_forward, targets))
            return self._finite(maps, forward)

    def _class_maps(self, forward: ForwardPass, targets_NT: Tensor) -> Tensor:
        """(N, T, H, W)."""
        images, autocast = forward.images, PRECISIONS[self.precision]
        size, dtype = (images.shape[-2], images.shape[-1]), forward.logits.dtype
        total = torch.zeros(*targets_NT.shape, *size, dtype=dtype, device=images.device)
        low, high = torch.full_like(total[..., :1, :1], math.inf), torch.full_like(total[..., :1, :1], -math.inf)
        with many_forwards(self.model, images.device, self.precision, self.chunk) as at_once:
            for masks in self.masks(size, at_once, images.device):
                masks_MHW = masks.to(images)
                for index, (image, classes) in enumerate(zip(images, targets_NT, strict=True)):
                    logits = forward.network(image * masks_MHW[:, None], autocast=autocast)
                    scores_MT = forward.classes.probabilities(logits)[:, classes]
                    total[index] += torch.einsum("mt,mhw->thw", scores_MT, masks_MHW.to(dtype))
                    low[index] = torch.minimum(low[index], scores_MT.amin(0)[:, None, None])
                    high[index] = torch.maximum(high[index], scores_MT.amax(0)[:, None, None])
        varies = ~(high - low <= _ROUNDING * high)  # else only the masks' own unevenness would be seen
        return torch.where(varies, total / (self.samples * self.probability), high)
