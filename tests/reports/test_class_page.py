"""The confusion matrix of a page: its counts against torchmetrics, its links and words in a real browser."""

import re

import pytest
import torch
from PIL import ImageColor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from camify.evaluation.class_figures import (
    ClassAnswers,
    calibration,
    choose_examples,
    class_figures_of,
)
from camify.metrics.functional import calibration_bins
from camify.reports.class_page import MOST_SHOWN, Example, class_view, confusion_sentences
from camify.reports.class_pictures import confusion_picture
from camify.reports.html import TEMPLATES, render, style_values
from camify.reports.run_page import share_text
from camify.reports.tables import Table
from tests.browser import chromium

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060000000050001"
    "a5f645400000000049454e44ae426082"
)


def answers(count, images=400, right=0.7):
    """Of so many classes, by chance."""
    labels = torch.randint(count, (images,))
    predicted = torch.where(torch.rand(images) < right, labels, torch.randint(count, (images,)))
    return ClassAnswers(labels, predicted, torch.rand(images))


def page_of(said, names, examples=(), sections=None):
    figures = class_figures_of(said, names)
    view = class_view(figures, examples, "images", {"network": figures["calibration"]})
    return render(
        TEMPLATES / "evaluation.html.j2", {"percent": share_text}, title="t", subtitle="s", stats=[], classes=view,
        sections=sections or {}, facts=[],
    )  # fmt: skip


def examples_of(said, names):
    rows = choose_examples(said, 40)
    return [Example(int(said.labels[i]), int(said.predicted[i]), PIXEL, f"image {i}") for i in rows]


# --- figures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 5, MOST_SHOWN, MOST_SHOWN + 1, 200])
def test_every_image_stands_in_one_cell(count):
    said, names = answers(count), [f"class {k}" for k in range(count)]
    figures = class_figures_of(said, names)
    view = class_view(figures, [], "images", {})["matrix"]
    matrix = multiclass_confusion_matrix(said.predicted, said.labels, num_classes=count)
    assert sum(int(cell["count"]) for cell in view["cells"]) == len(said)
    for cell in view["cells"]:
        words = re.fullmatch(r"(.+), (?:recognized|taken for (.+)): (\d+) of (\d+) \(\d+ %\)", cell["title"])
        true, predicted, images, total = words.groups()
        if "other" in true or "other" in (predicted or ""):
            continue
        row = names.index(true)
        assert int(images) == matrix[row, names.index(predicted or true)]
        assert int(total) == matrix[row].sum()
    assert len(view["rows"]) == min(count, MOST_SHOWN)
    others = [cell for cell in view["cells"] if cell["kind"] == "others"]
    assert len(others) == (count > MOST_SHOWN)


def test_classes_of_the_most_mistakes_come_first():
    labels = torch.tensor([0] * 10 + [1] * 10 + [2] * 10)
    predicted = torch.tensor([0] * 10 + [1] * 5 + [2] * 5 + [2] * 9 + [0])
    figures = class_figures_of(ClassAnswers(labels, predicted, torch.ones(30)), ["a", "b", "c"])
    assert [row[3] for row in class_view(figures, [], "", {})["matrix"]["rows"]] == ["c", "b", "a"]
    assert confusion_sentences(figures) == [
        "5 of 10 images of b (50 %) were taken for c",
        "1 of 10 images of c (10 %) was taken for a",
    ]


def test_figures_of_classes_by_hand():
    labels, predicted = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 3, 0])
    rows = {
        row["class"]: row for row in class_figures_of(ClassAnswers(labels, predicted, torch.ones(4)), "abcd")["classes"]
    }
    assert rows.keys() == {0, 1, 3}, "c was neither there nor predicted"
    assert rows[0] == {"class": 0, "images": 3, "precision": pytest.approx(2 / 3), "recall": pytest.approx(2 / 3),
                       "f1": pytest.approx(2 / 3)}  # fmt: skip
    assert (rows[1]["precision"], rows[1]["recall"], rows[1]["f1"]) == (None, 0, 0)
    assert (rows[3]["precision"], rows[3]["recall"]) == (0, None)


def test_examples_come_from_every_cell_mistakes_first():
    said = answers(4, 300, right=0.5)
    chosen = choose_examples(said, 24)
    right = said.right[chosen]
    assert len(set(chosen)) == len(chosen) == 24
    assert (right.long().diff() >= 0).all(), "mistakes first"
    cells = {(int(said.labels[i]), int(said.predicted[i])) for i in chosen if not said.right[i]}
    assert len(cells) == 12, "every confusion of four classes has its images"
    for true, predicted in cells:
        own = (said.labels == true) & (said.predicted == predicted)
        best = max(i for i in range(len(said)) if own[i] and said.confidences[i] == said.confidences[own].max())
        assert best in chosen, "the most certain of its cell"
    assert choose_examples(said, 0) == []


# --- the page ---------------------------------------------------------------------------------------------


def test_names_are_text():
    names = ["<b>bold</b>", "</script>\x1b[31m", '"quoted" & more']
    page = page_of(answers(3), names)
    assert "<b>bold" not in page
    assert "</script>" not in page
    assert "\x1b" not in page


@pytest.fixture(scope="module")
def browser():
    with chromium() as driven:
        yield driven


@pytest.mark.slow
@pytest.mark.parametrize(("count", "width"), [(3, 1280), (3, 390), (200, 390)])
def test_without_javascript_a_cell_leads_to_its_images(browser, tmp_path, count, width):
    said, names = answers(count), [f"a rather long name of class {k}" for k in range(count)]
    file = tmp_path / "page.html"
    file.write_text(page_of(said, names, examples_of(said, names)), encoding="utf-8")
    context = browser.new_context(java_script_enabled=False, viewport={"width": width, "height": 800})
    page = context.new_page()
    page.goto(file.as_uri())
    cells = page.locator(".cell-images")
    assert [cells.nth(i).is_visible() for i in range(3)] == [True, False, False], "the first confusion is open"
    link = page.locator(".matrix a").last
    target = link.get_attribute("href")
    assert re.search(r": \d+ of \d+ \(\d+ %\)$", link.get_attribute("aria-label"))
    link.focus()
    page.keyboard.press("Enter")
    assert page.locator(target).is_visible()
    assert page.locator(".cell-images:visible").count() == 1
    assert not page.locator(".matrix .share").first.is_visible()
    page.get_by_label("% of the true class").check()
    assert page.locator(".matrix .share").first.is_visible()
    assert not page.locator(".matrix .number").first.is_visible()
    context.close()


CUT_OFF = """() => {
  const drawing = document.querySelector(".matrix").getBoundingClientRect()
  return [...document.querySelectorAll(".matrix > text")].map(text => text.getBoundingClientRect())
    .filter(box => box.left < drawing.left || box.top < drawing.top).length
}"""


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_has_no_script_and_nothing_of_it_is_cut_off(browser, tmp_path, width):
    said, names = answers(200), [f"{k:03d} WWW_wide_letters of a very long name" for k in range(200)]
    wide = Table("Figures", "Wide", ["", *["a long head"] * 9], [["of a random map", *["0.417 [0.31, 0.56]"] * 9]], "")
    file = tmp_path / "page.html"
    file.write_text(page_of(said, names, sections={"Figures": [wide]}), encoding="utf-8")
    assert "<script" not in file.read_text(encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator(".matrix > text").count() == 2 + 2 * MOST_SHOWN
    assert page.evaluate(CUT_OFF) == 0, "labels are whole"
    name = page.locator("td.name").bounding_box()
    assert name["height"] < 90, "a name is not broken letter by letter"
    page.close()


def test_the_picture_for_loggers_has_the_matrix_of_the_page():
    labels, predicted = torch.tensor([0] * 10 + [1] * 10), torch.tensor([0] * 8 + [1] * 2 + [0] * 10)
    said = ClassAnswers(labels, predicted, torch.rand(20))
    matrix = class_view(class_figures_of(said, ["ant", "bee"]), [], "images", {})["matrix"]
    picture = confusion_picture(matrix, "title")
    colors = style_values()
    for cell in matrix["cells"]:
        share = int(cell["depth"]) / 100 * float(colors["deepest"])
        ground, own = (ImageColor.getrgb(colors[name]) for name in ("paper", "s0" if cell["kind"] == "right" else "s1"))
        expected = [share * a + (1 - share) * b for a, b in zip(own, ground, strict=True)]
        at = (int(cell["x"]) + 12 + 2, int(cell["y"]) + 12 + 30 + 2)  # the margin, and the room for the title
        assert picture.getpixel(at) == pytest.approx(expected, abs=1), cell["title"]
    assert [cell["count"] for cell in matrix["cells"]] == ["8", "2", "10"]


def test_a_label_has_room_for_its_letters():
    names = ["W" * 40, "i" * 40, "猫" * 40, "ox"]
    view = class_view(class_figures_of(answers(4), names), [], "images", {})["matrix"]
    labels = {title: (label, view["origin"] - x) for x, _, label, title in view["rows"]}
    assert labels["ox"][0] == "ox"
    assert labels["i" * 40][0].startswith("i" * 20), "narrow letters have room for more of them"
    assert len(labels["猫" * 40][0]) <= 150 / 12.5 + 1, "a letter of East Asia is as wide as it is high"
    assert all(label.endswith("…") for title, (label, _) in labels.items() if title[0] in "W猫")


def test_calibration_of_several_networks():
    bins = {
        name: calibration(calibration_bins(torch.rand(50), torch.rand(50) < share))
        for name, share in (("a", 0.2), ("b", 0.9))
    }
    said = answers(3)
    view = class_view(class_figures_of(said, "abc"), [], "", bins)["calibration"]
    assert [label for _, label, _ in view["lines"]] == [
        f"{name}: {100 * one['error']:.1f} %" for name, one in bins.items()
    ]
    assert all(44 <= x <= 284 and 8 <= y <= 248 for _, _, dots in view["lines"] for x, y, _, _ in dots)
