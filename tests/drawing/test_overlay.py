from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from camify.boxes import BoxRule
from camify.drawing import primitives as drawing
from camify.drawing.overlay import ClassMap, Region, boxes_in_overlay, overlay_picture, sheet_picture, strip_picture

TOP = drawing.MARGIN + 2 * drawing.LINE  # of the panels of an overlay
COLUMN = drawing.PANEL + drawing.GAP


def ramp(size: int = 6) -> torch.Tensor:
    return torch.linspace(-2, 4, size * size).reshape(size, size)


def plain(height: int = 64, width: int = 64, rgb: tuple[float, float, float] = (0.2, 0.6, 0.4)) -> torch.Tensor:
    return torch.tensor(rgb)[:, None, None].expand(3, height, width)


def class_map(name: str = "cat", map_hw: torch.Tensor | None = None) -> ClassMap:
    return ClassMap(name, ramp() if map_hw is None else map_hw, 1.234, 0.87)


def panel(picture: Image.Image, index: int, size: tuple[int, int] = (drawing.PANEL, drawing.PANEL)) -> np.ndarray:
    left = drawing.MARGIN + index * (max(size[0], drawing.COLUMN) + drawing.GAP)
    return np.asarray(picture.crop((left, TOP, left + size[0], TOP + size[1]))).astype(int)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Every line that is drawn, with its length in pixels."""
    lines: list[tuple[str, float]] = []
    monkeypatch.setattr(drawing, "_line", drawing._line.__wrapped__)  # else what recurs is not set again
    draw = ImageDraw.ImageDraw.text

    def text(self, xy, text, *args, font, **kwargs):
        lines.append((text, font.getlength(text)))
        return draw(self, xy, text, *args, font=font, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return lines


def bilinear(grid: torch.Tensor, x: int, y: int, side: int) -> float:
    """Value at the center of pixel (x, y), cell centers standing at half-integers, clamped at the border."""

    def near(pixel: int, cells: int) -> tuple[int, int, float]:
        at = min(max((pixel + 0.5) * cells / side - 0.5, 0), cells - 1)
        return math.floor(at), min(math.floor(at) + 1, cells - 1), at - math.floor(at)

    (y0, y1, v), (x0, x1, u) = near(y, grid.shape[0]), near(x, grid.shape[1])
    upper = float(grid[y0, x0]) * (1 - u) + float(grid[y0, x1]) * u
    lower = float(grid[y1, x0]) * (1 - u) + float(grid[y1, x1]) * u
    return upper * (1 - v) + lower * v


@pytest.mark.parametrize("colormap", ["inferno", "jet"])
@pytest.mark.parametrize("at", [(0, 0), (110, 20), (30, 150), (112, 112), (200, 190), (223, 223)])
def test_heat_has_the_color_of_the_raw_value(at, colormap):
    x, y = at
    pixel, scale = np.array([51, 153, 102]), 3.0
    heat = min(
        max(bilinear(ramp(), x, y, drawing.PANEL) / scale, 0.0), 1.0
    )  # a float: matplotlib reads an int as an index
    alpha, fade = 0.8 * heat**0.7, min(1, 2 * heat)
    gray = pixel @ [0.299, 0.587, 0.114] * 0.8
    expected = (1 - alpha) * ((1 - fade) * pixel + fade * gray)
    expected = expected + alpha * 255 * np.array(mpl.colormaps[colormap](heat)[:3])
    picture = overlay_picture(plain(), class_map(), class_map("dog", -ramp()), scale=scale, colormap=colormap)
    assert np.abs(panel(picture, 2)[y, x] - expected).max() <= 3


def test_second_panel_shows_the_predicted_class_or_the_cells_of_the_map():
    wrong = overlay_picture(plain(), class_map(), class_map("dog", ramp().flip(0, 1)), scale=3.0)
    assert np.array_equal(panel(wrong, 1), panel(wrong, 2)[::-1, ::-1])
    map_hw = torch.tensor([[1.0, -1.0], [0.0, 0.5]])
    right = overlay_picture(plain(), class_map("cat", map_hw), class_map("cat", map_hw), scale=1.0)
    cells = panel(right, 1)
    assert len(np.unique(cells[:112, :112].reshape(-1, 3), axis=0)) == 1
    assert (cells[:112, 112:] == drawing.GROUND).all()
    assert (cells[112:, :112] == drawing.GROUND).all()
    assert not (cells[112:, 112:] == drawing.GROUND).any()


def test_the_predicted_class_alone_is_drawn_as_if_it_were_the_only_one(written):
    dog = class_map("dog", ramp().flip(0, 1))
    both = overlay_picture(plain(), class_map(), dog, scale=3.0, of_predicted=True)
    assert {"true: cat", "✗ predicted: dog", "map of the predicted class"} <= {line for line, _ in written}
    alone = overlay_picture(plain(), None, dog, scale=3.0)
    for index in range(3):
        assert np.array_equal(panel(both, index), panel(alone, index))
    right = [overlay_picture(plain(), class_map(), class_map(), scale=3.0, of_predicted=of) for of in (False, True)]
    assert right[0] == right[1]


def test_negative_evidence_leaves_the_picture_as_it_is():
    map_hw = torch.full((4, 4), -5.0)
    map_hw[:, 3] = 5.0
    picture = overlay_picture(torch.rand(3, 224, 224), class_map("cat", map_hw), class_map("dog", -map_hw), scale=5.0)
    assert np.array_equal(panel(picture, 0)[:, :130], panel(picture, 2)[:, :130])
    assert not np.array_equal(panel(picture, 0)[:, 180:], panel(picture, 2)[:, 180:])


def test_one_scale_makes_pictures_comparable():
    half = overlay_picture(plain(), class_map("cat", ramp() / 2), class_map("dog"), scale=4.0)
    full = overlay_picture(plain(), class_map("cat", ramp()), class_map("dog"), scale=4.0)
    assert not np.array_equal(panel(half, 2), panel(full, 2))
    assert np.array_equal(panel(half, 1), panel(full, 1))


@pytest.mark.parametrize(
    ("map_hw", "scale", "note"),
    [
        (torch.zeros(5, 5), 3.0, "no positive evidence"),
        (-ramp().abs(), 3.0, "no positive evidence"),
        (torch.full((5, 5), 2.0), 3.0, "the same everywhere"),
        (torch.full((5, 5), math.nan), 3.0, "map is not finite"),
        (ramp(), 0.0, "no positive evidence"),
        (ramp(), math.nan, "no positive evidence"),
    ],
)
@pytest.mark.parametrize("predicted", ["cat", "dog"])
def test_flat_map_is_drawn_flat_and_says_so(map_hw, scale, note, predicted, written):
    shown = class_map("cat", map_hw)
    picture = overlay_picture(torch.rand(3, 80, 80), shown, class_map(predicted, map_hw), scale=scale)
    assert np.array_equal(panel(picture, 0), panel(picture, 2))
    assert note in [line for line, _ in written]


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (100, 200, (20, 10, 160, 90)),
        (200, 100, (10, 20, 90, 160)),
        (64, 64, (8, 8, 40, 56)),
        (448, 448, (0, 0, 448, 448)),
    ],
)
def test_box_is_drawn_at_its_pixels(height, width, box):
    boxes = torch.tensor([box], dtype=torch.float32)
    picture = overlay_picture(plain(height, width), class_map(), class_map("dog"), scale=3.0, boxes=boxes)
    factor = 224 / max(height, width)
    size = (round(width * factor), round(height * factor))
    for index in range(3):
        rows, columns = np.nonzero((panel(picture, index, size) == drawing.BOX).all(-1))
        found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert found == tuple(round(v * factor) for v in box)
        (placed,) = boxes_in_overlay(boxes.numpy(), (height, width), index)
        x0, x1 = round(placed[0]), round(placed[2])
        rows, columns = np.nonzero((np.asarray(picture) == drawing.BOX).all(-1)[TOP:, x0:x1])
        expected = (x0 + columns.min(), TOP + rows.min(), x0 + columns.max() + 1, TOP + rows.max() + 1)
        assert placed == pytest.approx(expected, abs=1), "in pixels of the whole picture"


@pytest.mark.parametrize("size", [(40, 400), (80, 600), (100, 400), (400, 40)])
def test_a_panorama_is_large_enough_to_see_and_its_boxes_are_where_they_are_drawn(size):
    height, width = size
    box = torch.tensor([[width * 0.25, height * 0.25, width * 0.75, height * 0.75]])
    picture = np.asarray(overlay_picture(plain(*size), class_map(), class_map("dog"), scale=3.0, boxes=box))
    short = min(224 * min(3, max(size) / min(size) / 3), 672) / max(size) * min(size)
    for index in range(3):
        ((x0, y0, x1, y1),) = boxes_in_overlay(box.numpy(), size, index)
        assert min(x1 - x0, y1 - y0) == pytest.approx(short / 2, abs=1.5)
        inside = picture[round(y0) : round(y1), round(x0) : round(x1)]
        edges = [inside[0], inside[-1], inside[:, 0], inside[:, -1]]
        assert all((edge == drawing.BOX).all(-1).mean() > 0.9 for edge in edges)


@pytest.mark.parametrize("scale", [0.00627, 1.234e-5, 0.000123, 12340.0])
def test_the_numbers_of_a_color_bar_are_whole_and_apart(scale, written, monkeypatch):
    places = []
    line = drawing.write_line
    monkeypatch.setattr(
        drawing, "write_line", lambda draw, at, *rest, **how: places.append(at[1]) or line(draw, at, *rest, **how)
    )
    drawing.color_bar(drawing.paper((10, 60)), (0, 12), 8, scale, "inferno")
    assert [text for text, _ in written] == [f"{scale:.3g}", "0"]
    assert places[1] - places[0] >= 11, "two lines of small letters"


def test_title_and_legend_do_not_touch(written):
    boxes, region = torch.tensor([[5.0, 5, 30, 30]]), Region(np.eye(6, dtype=bool), BoxRule("max", threshold=0.5))
    overlay_picture(
        plain(), class_map(), class_map(), scale=3.0, boxes=boxes, region=region, title="a title of many words " * 9
    )
    title = next(length for text, length in written if text.startswith("a title"))
    legend = sum(length + 30 for text, length in written if text.startswith(("ground truth", "found")))
    assert title + legend <= 3 * COLUMN - 2 * drawing.GAP


def test_what_rounds_to_nothing_has_no_sign(written):
    overlay_picture(plain(), ClassMap("cat", ramp(), -0.001, 0.5), ClassMap("dog", ramp(), -0.01, 0.5), scale=3.0)
    assert {"logit 0.00 · p 0.50", "logit -0.01 · p 0.50"} <= {text for text, _ in written}


def test_odd_boxes_do_not_stop_a_picture():
    boxes = torch.tensor([[30.0, 30, 30, 30], [50, 50, 10, 10], [-20, -20, 500, 500]])
    assert overlay_picture(plain(), class_map(), class_map(), scale=3.0, boxes=boxes).size
    assert overlay_picture(plain(), class_map(), class_map(), scale=3.0, boxes=torch.zeros(0, 4)).size


@pytest.mark.parametrize(("height", "width"), [(64, 64), (300, 500), (500, 60), (1, 1), (3, 900)])
def test_pictures_of_a_run_have_one_size(height, width):
    image, cat = plain(height, width), class_map()
    right = overlay_picture(image, cat, cat, scale=3.0, title="epoch 3")
    wrong = overlay_picture(image, cat, class_map("a much longer name of a class " * 9), scale=0.001)
    flat = overlay_picture(image, class_map("cat", torch.zeros(2, 3)), cat, scale=30000.0)
    assert right.size == wrong.size == flat.size
    assert right.mode == "RGB"


NAMES = [
    "日本語の名前",
    "кошка",
    "قطة",
    "a\nb\r\tc\0",
    "\udc80half",
    "x" * 5000,
    "😀 " * 100,
    "",
    "<script>",
    "e\u0301" * 300,
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_written_within_its_column(name, written):
    overlay_picture(plain(), class_map(name), class_map(name + "!"), scale=3.0, title=name)
    strip_picture(plain(), [ramp()], [name], scale=3.0, title=name)
    assert max(length for _, length in written) <= 3 * COLUMN + drawing.TICK
    captions = [length for line, length in written if line.startswith(("true: ", "✗ predicted: "))]
    assert len(captions) == 2
    assert max(captions) <= drawing.PANEL


def test_long_names_end_in_an_ellipsis(written):
    overlay_picture(plain(), class_map("w" * 100), class_map("dog"), scale=3.0)
    line, length = next(line for line in written if line[0].startswith("true: "))
    assert line.endswith("w…")
    assert drawing.PANEL - 15 < length <= drawing.PANEL


def test_captions_name_what_is_shown(written):
    overlay_picture(plain(), class_map(), class_map("dog"), scale=12.34, title="a.jpg")
    overlay_picture(plain(), class_map(), class_map(), scale=3.0)
    lines = [line for line, _ in written]
    assert {
        "a.jpg",
        "true: cat",
        "✗ predicted: dog",
        "✓ predicted: cat",
        "logit 1.23 · p 0.87",
        "12.3",
        "0",
    } <= set(lines)


def test_right_and_wrong_differ_in_color_too():
    def colors(picture: Image.Image) -> set[tuple[int, int, int]]:
        return {rgb for _, rgb in picture.getcolors(1 << 24)}

    right = colors(overlay_picture(plain(), class_map(), class_map(), scale=3.0))
    wrong = colors(overlay_picture(plain(), class_map(), class_map("dog"), scale=3.0))
    assert drawing.RIGHT in right - wrong
    assert drawing.WRONG in wrong - right


def test_inputs_of_other_types_are_read_and_left_alone():
    image = plain().clone().to(torch.bfloat16).requires_grad_()
    map_hw = ramp().double().requires_grad_()
    before = image.detach().clone(), map_hw.detach().clone()
    overlay_picture(image, class_map("cat", map_hw), class_map("cat", map_hw), scale=3.0)
    assert torch.equal(image.detach(), before[0])
    assert torch.equal(map_hw.detach(), before[1])


@pytest.mark.parametrize(("count", "rows"), [(0, 1), (3, 1), (10, 1), (11, 2), (23, 3)])
def test_strip_wraps_into_rows(count, rows, written):
    captions = [f"epoch {i}" for i in range(count)]
    picture = strip_picture(
        plain(50, 100), [ramp()] * count, captions, scale=3.0, boxes=torch.tensor([[10.0, 10, 60, 40]])
    )
    assert [line for line, _ in written][1 : count + 2] == ["image", *captions]
    assert picture.height < rows * (56 + 40) + 60
    assert picture.width <= 11 * (drawing.FRAME + drawing.GAP) + drawing.MARGIN + drawing.BAR + drawing.TICK
    assert drawing.BOX in {rgb for _, rgb in picture.getcolors(1 << 24)}


def test_strip_needs_a_caption_for_each_map():
    with pytest.raises(ValueError, match="zip"):
        strip_picture(plain(), [ramp()], [], scale=3.0)


def test_sheet_is_a_grid_in_reading_order():
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    sheet = sheet_picture([Image.new("RGB", (20, 10), c) for c in colors], columns=2)
    gap = drawing.GAP
    assert sheet.size == (40 + gap, 20 + gap)
    assert [sheet.getpixel(at) for at in ((0, 0), (20 + gap, 0), (0, 10 + gap))] == colors
    assert sheet.getpixel((39 + gap, 19 + gap)) == drawing.PAPER
    assert sheet_picture([Image.new("RGB", (20, 10))], columns=5).size == (20, 10)


def test_the_region_above_the_threshold_and_its_box_are_in_the_third_panel(written):
    mask = np.zeros((40, 40), bool)
    mask[5:15, 20:35] = True
    mask[30:33, 2:4] = True  # a smaller part
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    without = overlay_picture(plain(40, 40), class_map(), class_map(), scale=3.0, boxes=boxes)
    picture = overlay_picture(
        plain(40, 40), class_map(), class_map(), scale=3.0, boxes=boxes, region=Region(mask, BoxRule(threshold=0.35))
    )
    assert np.array_equal(panel(picture, 1), panel(without, 1))
    factor = drawing.PANEL / 40
    white = (panel(picture, 2) == drawing.MAP_BOX).all(-1)
    x0, y0, x1, y1 = (round(factor * value) for value in (20, 5, 35, 15))
    for line in (white[y0, x0:x1], white[y1 - 1, x0:x1], white[y0:y1, x0], white[y0:y1, x1 - 1]):
        assert line.all(), "the box of the largest part, to the pixel"
    around = (panel(picture, 2) != panel(without, 2)).any(-1)
    small = around[round(29 * factor) : round(34 * factor), round(factor) : round(5 * factor)]
    assert small.any(), "the smaller part has an outline"
    assert not around[round(17 * factor) : round(28 * factor)].any(), "and nothing else"
    lines = [line for line, _ in written]
    assert "found, threshold 0.35" in lines
    assert lines.count("ground truth") == 2


def test_without_a_region_nothing_is_said_of_one(written):
    empty = Region(np.zeros((40, 40), bool), BoxRule())
    plainly = overlay_picture(plain(40, 40), class_map(), class_map(), scale=3.0)
    assert overlay_picture(plain(40, 40), class_map(), class_map(), scale=3.0, region=empty) == plainly
    assert not any("found" in line or "ground truth" in line for line, _ in written)
