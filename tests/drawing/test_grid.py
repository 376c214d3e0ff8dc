"""Figures: heat where the map is hot, boxes, notes, and sizes."""

from __future__ import annotations

import numpy as np
import torch

from camify.drawing.grid import Cell, Row, grid_figure


def figure(cells, **options):
    row = Row(torch.full((3, 40, 40), 0.5), torch.tensor([[4.0, 4, 20, 20]]), ("a network", "logit 1"), cells)
    return np.asarray(grid_figure("Title", [("", f"method {i}") for i in range(len(cells))], [row, row], **options))


def test_heat_is_drawn_where_it_is():
    heat = torch.zeros(40, 40)
    heat[20:, 20:] = 1
    hot, cold = figure([Cell(heat)]), figure([Cell(torch.zeros(40, 40))])
    top, left = 12 + 3 * 19, 12 + 152 + 8  # margin and three lines; margin, picture, gap
    differs = (hot != cold).any(2)
    rows, columns = np.nonzero(differs[: top + 152])  # below it stands that the cold one is without heat
    half = 152 // 2
    assert left + half - 3 <= columns.min() <= left + half + 3
    assert top + half - 3 <= rows.min() <= top + half + 3


def test_equal_maps_of_any_scale_look_equal():
    heat = torch.rand(40, 40)
    assert np.array_equal(figure([Cell(heat)]), figure([Cell(heat.clone())]))


def test_what_cannot_be_served_is_a_note():
    assert figure([Cell(None, note="needs conversion")]).shape == figure([Cell(torch.zeros(40, 40))]).shape


def test_wide_and_tall_pictures_and_odd_text():
    row = Row(torch.rand(3, 20, 60), None, ("x" * 500, "\n\ud800"), [Cell(torch.rand(20, 60), "caption")])
    tall = Row(torch.rand(3, 60, 20), None, ("", ""), [Cell(torch.rand(60, 20), "")])
    for one in (row, tall):
        picture = grid_figure("t" * 900, [("", "m")], [one])
        assert picture.width >= 300


def test_a_long_name_does_not_push_the_class_out_of_the_title(monkeypatch):
    lines = []
    monkeypatch.setattr("camify.drawing.grid.write_line", lambda draw, at, text, *rest, **how: lines.append(text))
    row = Row(torch.rand(3, 40, 40), None, ("", ""), [Cell(torch.rand(4, 4))])
    grid_figure(f"{'long' * 20}.jpg · single object · compared class: cat", [("", "m")], [row])
    assert "single object · compared class: cat" in lines
    grid_figure("short.jpg · class: cat", [("", "m")], [row])
    assert "short.jpg · class: cat" in lines


def test_panoramas_alone_are_drawn_larger():
    wide, square = (Row(torch.rand(3, *size), None, ("", ""), [Cell(torch.rand(4, 4))]) for size in ((20, 200), (9, 9)))
    alone, both = (grid_figure("", [("", "m")], rows, side=100) for rows in ([wide], [wide, square]))
    assert (alone.width, both.width) == (2 * 300 + 8 + 24, 2 * 100 + 8 + 24)


def test_a_raw_map_starts_at_zero_or_at_its_positive_least_value():
    signed, positive = torch.tensor([[-4.0, 0.0], [1.0, 2.0]]), torch.tensor([[1.0, 2.0], [2.0, 3.0]])
    assert Cell.of_map(signed).heat.tolist() == [[-2.0, 0.0], [0.5, 1.0]]
    assert Cell.of_map(positive).heat.tolist() == [[0.0, 0.5], [0.5, 1.0]]
    assert Cell.of_map(signed).caption == "raw -4 to 2"


def test_a_map_without_heat_says_so_below_it():
    nothing, negative = Cell(torch.zeros(40, 40), "raw 0 to 0"), Cell.of_map(torch.full((4, 4), -1.0))
    first, second = (figure([cell])[12 + 3 * 19 + 152 :, 12 + 152 + 8 :] for cell in (nothing, negative))
    below = slice(19, 19 + 15)  # the second line
    assert (first[below] != first[0, 0]).any()
    assert np.array_equal(first[below], second[below])


def test_the_rule_stands_whole_beside_the_key_also_of_a_narrow_figure():
    narrow, wide = figure([Cell(torch.rand(40, 40))]), figure([Cell(torch.rand(40, 40))] * 6)
    assert narrow.shape[0] > wide.shape[0]
    assert (narrow[-12 - 10 :] != narrow[-1, -1]).any()
