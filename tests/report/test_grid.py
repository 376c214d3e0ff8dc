"""Figures: heat where the map is hot, boxes, notes, and sizes."""

from __future__ import annotations

import numpy as np
import torch

from camify.report.grid import Cell, Row, grid_figure


def figure(cells, **options):
    row = Row(torch.full((3, 40, 40), 0.5), torch.tensor([[4.0, 4, 20, 20]]), ("a network", "logit 1"), cells)
    return np.asarray(grid_figure("Title", [("", f"method {i}") for i in range(len(cells))], [row, row], **options))


def test_heat_is_drawn_where_it_is():
    heat = torch.zeros(40, 40)
    heat[20:, 20:] = 1
    hot, cold = figure([Cell(heat)]), figure([Cell(torch.zeros(40, 40))])
    differs = (hot != cold).any(2)
    rows, columns = np.nonzero(differs)
    assert differs.any()
    half = 152 // 2
    first = 12 + 152 + 8  # margin, picture, gap
    assert columns.min() >= first + half - 3
    assert rows.min() >= 12 + 3 * 19 + half - 3


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
