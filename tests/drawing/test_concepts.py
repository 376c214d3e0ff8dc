"""Concepts over their images: the right color at the right place, numbers, shapes of all kinds."""

from __future__ import annotations

import numpy as np
import torch

from camify.drawing.concepts import CONCEPT_COLORS, ConceptImage, concepts_picture
from camify.drawing.primitives import MARGIN

TITLE = ("Title", "second line")


def halves():
    """Two concepts: one to the left, one to the right."""
    maps = torch.zeros(2, 4, 4)
    maps[0, :, :2], maps[1, :, 2:] = 1, 1
    return maps


def panel(sheet, width, height):
    """The colored picture of a sheet of one image."""
    left, top = MARGIN + width + 2, MARGIN + 2 * 19 + 2
    return np.asarray(sheet)[top : top + height, left : left + width].astype(int)


def test_each_region_has_its_color():
    image = ConceptImage(torch.full((3, 80, 120), 255, dtype=torch.uint8), halves(), "white.png")
    drawn = panel(concepts_picture(TITLE, [image], [("a", "b")] * 2, side=120), 120, 80)
    for column, color in ((4, "orange"), (115, "sky blue")):
        wanted = 0.85 * np.array(CONCEPT_COLORS[color]) + 0.15 * (0.8 * 255 + 30)
        assert np.abs(drawn[70, column] - wanted).max() <= 2
    gray = concepts_picture(TITLE, [ConceptImage(image.picture, torch.zeros(2, 4, 4), "")], [("", "")] * 2, side=120)
    assert np.ptp(panel(gray, 120, 80)) == 0  # no color, no number


def test_the_colors_differ_also_without_red_or_green():
    """Seen as in protanopia and deuteranopia (Viénot et al. 1999, in linear light)."""
    lms = np.array([[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]])
    without_l = np.array([[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]])
    without_m = np.array([[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]])
    colors = np.array(list(CONCEPT_COLORS.values())) / 255
    for seen in (np.eye(3), without_l, without_m):
        shown = (np.linalg.inv(lms) @ seen @ lms @ (colors**2.2).T).T.clip(0, 1) ** (1 / 2.2) * 255
        distances = np.linalg.norm(shown[:, None] - shown[None], axis=2) + 1e3 * np.eye(len(colors))
        assert distances.min() > 25


def test_pictures_of_all_shapes_and_numbers_of_images_and_concepts():
    shapes = [(20, 90), (90, 20), (1, 1), (64, 64), (300, 30)]
    for count, concepts in ((1, 1), (5, 7), (9, 3)):
        images = [
            ConceptImage(torch.rand(3, *shapes[index % 5]), torch.rand(concepts, 7, 7), "x" * 300)
            for index in range(count)
        ]
        legend = [("\n\ud800" + "long " * 90, "")] * concepts
        sheet = concepts_picture(("t" * 500, ""), images, legend)
        assert sheet.width > 400
        assert sheet.height > 100
