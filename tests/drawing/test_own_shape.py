"""Pictures in the shape of their files, against Pillow and by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from camify.drawing.grid import Cell, Row, grid_figure
from camify.drawing.overlay import ClassMap, overlay_picture, plain_overlay
from camify.drawing.own_shape import in_shape, reduced


def photograph(height, width):
    """A smooth picture (3, H, W) uint8."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return (torch.stack([y, x, (y + x) / 2]) * 255).round().to(torch.uint8)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((300, 600), (112, 224)), ((600, 300), (224, 112)), ((90, 40), (90, 40)), ((100, 1000), (67, 672))],
)
def test_a_picture_is_made_smaller_never_larger(size, expected):
    image = photograph(*size)
    small = reduced(image, 224)
    assert small.shape == (3, *expected)
    assert small.dtype == torch.uint8
    reference = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(expected[::-1], Image.Resampling.BOX)
    difference = np.abs(small.permute(1, 2, 0).numpy().astype(int) - np.asarray(reference).astype(int))
    assert difference.max() <= 1


@pytest.mark.parametrize("size", [(300, 600), (600, 300), (37, 91), (224, 224)])
def test_what_was_squashed_comes_back_in_its_shape(size):
    """The way there by Pillow, the way back by camify: the picture at its own aspect."""
    image = photograph(*size)
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    squashed = torch.from_numpy(np.array(picture.resize((64, 64), Image.Resampling.BILINEAR))).permute(2, 0, 1) / 255
    back = in_shape(squashed, size)
    height, width = back.shape[-2:]
    assert max(height, width) == 64
    assert abs(width / height - size[1] / size[0]) < 0.06 * size[1] / size[0]
    reference = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)) / 255
    assert np.abs(back.permute(1, 2, 0).numpy() - reference).max() < 0.03


def test_without_a_known_shape_a_picture_stays_as_it_is():
    picture = torch.rand(3, 20, 20)
    assert in_shape(picture, None) is picture
    assert in_shape(picture, (0, 5)) is picture


def test_heat_is_stretched_over_the_whole_picture():
    """Two cells side by side over a wide picture: the heat of the left one ends in the middle."""
    image = torch.full((3, 50, 200), 128, dtype=torch.uint8)
    heated = np.asarray(plain_overlay(image, torch.tensor([[1.0, 0.0]]), scale=1.0)).astype(int)
    assert heated.shape == (50, 200, 3)
    assert (heated[:, :45] != 128).any(-1).all()
    assert (heated[:, 160:] == 128).all()
    assert (heated == heated[:1]).all(), "it does not vary from top to bottom"


def test_boxes_of_a_plain_overlay_are_in_pixels_of_the_file():
    image = torch.zeros(3, 60, 90, dtype=torch.uint8)
    box = np.array([[10.0, 20.0, 40.0, 50.0]])
    drawn = np.asarray(plain_overlay(image, torch.zeros(2, 2), scale=0.0, boxes=box))
    white = (drawn == 255).all(-1)
    ys, xs = white.nonzero()
    assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (10, 20, 40, 50)


def test_a_large_picture_is_tinted_like_a_small_one(monkeypatch):
    image, map_hw = photograph(64, 48), torch.rand(3, 3)
    whole = np.asarray(plain_overlay(image, map_hw, scale=1.0))
    monkeypatch.setattr("camify.drawing.primitives._BAND", 200)
    assert (np.asarray(plain_overlay(image, map_hw, scale=1.0)) == whole).all()


@pytest.mark.parametrize("long_side", [100, 300])
def test_panels_have_the_size_that_is_asked(long_side):
    one = ClassMap("cat", torch.rand(3, 3), 1.0, 0.5)
    small, large = (overlay_picture(photograph(80, 160), None, one, scale=1.0, long_side=side) for side in (100, 300))
    assert large.height - small.height == 100
    assert large.width > small.width


def test_a_grid_of_pictures_of_several_shapes():
    rows = [Row(photograph(*size), None, ("a", "b"), [Cell(torch.rand(2, 2))]) for size in ((50, 100), (100, 50))]
    heights = [grid_figure("", [("", "m")], part, side=100).height for part in (rows[:1], rows[1:], rows)]
    frame = grid_figure("", [("", "m")], [rows[0]] * 2, side=100).height - 2 * (heights[0] - 0)
    assert heights[2] == heights[0] + heights[1] + frame
