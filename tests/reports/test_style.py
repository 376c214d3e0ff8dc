"""The colors of the pages have the contrast that WCAG 2 asks of text (AA: 4.5), light and dark."""

import re

import pytest

from camify.reports.html import STYLE

LEAST = 4.5
DEPTHS = range(8, 89, 4)  # of a cell of the confusion matrix, percent

_LIGHT, _DARK = re.findall(r":root \{(.*?)\}", STYLE.read_text("utf-8"), re.DOTALL)
_NAMED = {name: dict(re.findall(r"--([\w-]+): ([^;]+);", rules)) for name, rules in (("l", _LIGHT), ("d", _DARK))}
THEMES = {"light": _NAMED["l"], "dark": _NAMED["l"] | _NAMED["d"]}


def rgb(text):
    digits = text[1:] if len(text) == 7 else "".join(digit * 2 for digit in text[1:])
    return [int(digits[i : i + 2], 16) for i in (0, 2, 4)]


def mixed(color, paper, share):
    """As ``color-mix(in srgb, color share, paper)``."""
    return [share * a + (1 - share) * b for a, b in zip(color, paper, strict=True)]


def luminance(color):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in color)]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_by_hand():
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast(rgb("#777"), rgb("#fff")) == pytest.approx(4.48, abs=0.01)  # a known near miss


@pytest.mark.parametrize("theme", THEMES)
def test_text_can_be_read_on_pages_and_cards(theme):
    colors = THEMES[theme]
    grounds = [rgb(colors["paper"]), rgb(colors["card"])]
    inks = ["ink", "muted", "accent", *(f"s{index}" for index in range(6))]
    least = {name: min(contrast(rgb(colors[name]), ground) for ground in grounds) for name in inks}
    assert {name: value for name, value in least.items() if value < LEAST} == {}


@pytest.mark.parametrize("theme", THEMES)
def test_a_tag_can_be_read_on_its_tint(theme):
    colors = THEMES[theme]
    paper = rgb(colors["paper"])
    share = int(re.search(r"var\(--tint\) (\d+)%", STYLE.read_text("utf-8"))[1]) / 100
    for name in ("kept", "dropped", "new"):
        assert contrast(rgb(colors[name]), mixed(rgb(colors[name]), paper, share)) >= LEAST, name


@pytest.mark.parametrize("theme", THEMES)
def test_a_number_can_be_read_in_every_cell_of_the_matrix(theme):
    colors = THEMES[theme]
    paper, ink, deepest = rgb(colors["paper"]), rgb(colors["ink"]), float(colors["deepest"])
    rule = r"\.matrix \.(right|wrong|others) \{ fill: color-mix\(in srgb, var\(--(\w+)\) calc\(var\(--deepest\)"
    kinds = re.findall(rule, STYLE.read_text("utf-8"))
    assert len(kinds) == 3
    for kind, name in kinds:
        least = min(contrast(ink, mixed(rgb(colors[name]), paper, deepest * depth / 100)) for depth in DEPTHS)
        assert least >= LEAST, (kind, least)
