"""The heat of a picture is the map as everything else upsamples it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from camify.drawing.primitives import _levels
from camify.maps import upsample


@pytest.mark.parametrize("cells", [(7, 7), (1, 9), (14, 3), (60, 50)])
@pytest.mark.parametrize("size", [(224, 224), (300, 100), (5, 9)])
def test_levels_are_those_of_upsampled_maps(cells, size):
    maps = torch.randn(2, *cells, generator=torch.Generator().manual_seed(sum(cells)))
    for map_hw in (maps[0], maps[1].flip(-1), maps.transpose(0, 1)[:, 1], maps[0].bfloat16()):
        scale = float(map_hw.max())
        levels, note = _levels(map_hw, scale, size)
        expected = upsample(map_hw.float(), size[::-1]).div(scale).clamp(0, 1).mul(255)
        assert note == ""
        assert levels.shape == size[::-1]
        np.testing.assert_allclose(levels, expected.numpy(), rtol=0, atol=0.51)
