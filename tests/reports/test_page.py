from __future__ import annotations

import base64
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from camify.reports.run_page import Frame, ImageTrack, RunReport, render_page

PNG, WEBP = b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP"
NASTY = """<script>alert("1")</script>'"&"""


class Page(HTMLParser):
    """All tags with their attributes, and all text outside of style and script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] not in ("style", "script"):
            self.words.append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def report(epochs: int = 3, *, name: str = "cat.jpg", finished: bool = True) -> RunReport:
    frames = [
        Frame(e, (PNG if e % 2 else WEBP) + f"{name} {e}".encode("utf-8", "replace"), f"epoch {e}: {name}", "cam")
        for e in range(epochs)
    ]
    return RunReport(
        title="shapes",
        finished=finished,
        subtitle="tiny_vgg -> GAP",
        certificate={
            "rows": [
                {"part": "features", "status": "kept", "layers": "features", "parameters": 1234567},
                {"part": "old head", "status": "dropped", "layers": "classifier", "parameters": 89},
            ],
            "facts": {"largest identity error": "2e-07", "map size": "12 by 12"},
        },
        results=[
            {"name": "legacy", "score": 0.951, "quality": None, "note": "no map"},
            {"name": "camify", "score": 0.972, "quality": 0.634, "note": ""},
        ],
        quality=("val/max_box_acc", "box accuracy"),
        baseline=("center box", 0.412),
        history=[
            {
                "epoch": e,
                "train/loss": 2 / (e + 1),
                "val/loss": 1.5,
                "val/acc": 0.5 + e / 100,
                "val/max_box_acc": 0.3,
            }
            for e in range(epochs)
        ],
        images=[
            ImageTrack(name, "cat", frames, {"cam": PNG + b"strip"}),
            ImageTrack("b.jpg", "dog", frames[-1:], {}),
        ],
        config="head: gap\n",
        environment={"torch": "2.6"},
        commands=[("Train on.", "python train.py fit")],
    )


def test_page_is_well_formed_and_loads_nothing():
    html = render_page(report())
    page = Page(html)
    addresses = [
        v for _, attributes in page.tags for k, v in attributes.items() if k in ("src", "href", "srcset", "data")
    ]
    assert addresses
    assert all(address.startswith("data:image/") for address in addresses)
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", html)
    assert not page.all("link") + page.all("iframe") + page.all("object")
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def test_text_is_never_markup():
    nasty = report(name=NASTY)
    nasty = replace(
        nasty,
        title=NASTY,
        subtitle=NASTY,
        certificate={
            "rows": [{"part": NASTY, "status": NASTY, "layers": NASTY, "parameters": 1}],
            "facts": {NASTY: NASTY},
        },
        results=[{"name": NASTY, "score": 0.5, "quality": 0.5, "note": NASTY}] * 2,
        history=[{"epoch": 0, NASTY: 1.0}],
        images=[replace(track, true_class=NASTY) for track in nasty.images],
        config=NASTY,
        environment={NASTY: NASTY},
        commands=[(NASTY, NASTY)],
    )
    html = render_page(nasty)
    page = Page(html)
    assert "<script>alert" not in html
    assert len(page.all("script")) == 1
    assert page.text.count(NASTY) >= 15
    known = {
        "class",
        "src",
        "alt",
        "id",
        "type",
        "data-epoch",
        "data-epochs",
        "data-kind",
        "hidden",
        "data-method",
        "data-of",
        "tabindex",
        "role",
        "aria-label",
    }
    strange = [a for tag, a in page.tags if tag in ("img", "div", "span", "button", "figure") and set(a) - known]
    assert not strange


@pytest.mark.parametrize("epochs", [1, 2, 17])
def test_one_slider_moves_through_all_epochs(epochs):
    page = Page(render_page(report(epochs)))
    (slider,) = page.all("input")
    assert slider["type"] == "range"
    assert (slider["min"], slider["max"], slider["value"]) == ("0", str(epochs - 1), str(epochs - 1))
    assert slider["data-epochs"].split() == [str(e) for e in range(epochs)]
    frames = [a for a in page.all("div") if a.get("class") == "frame"]
    assert [a["data-epoch"] for a in frames if "hidden" not in a] == [str(epochs - 1)] * 2


def test_every_picture_is_embedded():
    shown = report(5)
    sources = [image["src"] for image in Page(render_page(shown)).all("img") if image.get("src")]
    expected = [frame.picture for track in shown.images for frame in track.frames]
    expected += [strip for track in shown.images for strip in track.strips.values()]
    assert [base64.b64decode(s.split(",")[1]) for s in sources] == expected
    assert [s.split(";")[0] for s in sources[:2]] == ["data:image/webp", "data:image/png"]


def test_numbers_are_shown():
    text = Page(render_page(report())).text
    for expected in (
        "95.1 % → 97.2 %",
        "63.4 %",
        "center box 41.2 %",
        "1,234,567",
        "2e-07",
        "finished, 3 epochs",
    ):
        assert expected in text


def test_what_is_worth_a_look_has_a_place_of_its_own_and_a_filter():
    whole = report()
    find = ImageTrack("wrong.jpg", "dog", [Frame(1, PNG + b"wrong", "predicted cat, p 0.99")], {}, "mistakes")
    page = Page(render_page(replace(whole, images=[*whole.images, find])))
    assert [kind["data-kind"] for kind in page.all("div") if kind.get("class") == "kind"] == ["watched", "mistakes"]
    buttons = [button["data-kind"] for button in page.all("button") if "data-kind" in button]
    assert buttons == ["", "watched", "mistakes"]
    assert len([figure for figure in page.all("figure") if "data-once" in figure]) == 1
    assert "Confident mistakes" in page.text
    plain = Page(render_page(whole))
    assert not [button for button in plain.all("button") if "data-kind" in button], "nothing to filter"


def test_missing_values_are_an_en_dash():
    broken = report()
    broken = replace(
        broken,
        baseline=("center box", None),
        results=[{"name": "legacy", "score": None, "quality": math.nan, "note": None}],
        history=[
            {"epoch": 0, "train/loss": math.nan, "val/acc": math.inf},
            {"epoch": 1, "val/loss": 0.5},
            {"epoch": 2},
        ],
    )
    html = render_page(broken)
    assert "accuracy \N{EN DASH} box accuracy" in Page(html).text
    assert not re.search(r"\b(None|nan|inf)\b", Page(html).text)
    assert not re.search(r"\b(nan|inf)\b", html.split("<script>")[0].split("</style>")[1])


def test_only_an_unfinished_page_reloads_itself():
    running = Page(render_page(report(finished=False)))
    assert [m["content"] for m in running.all("meta") if m.get("http-equiv") == "refresh"] == ["20"]
    assert "training: epoch 2 of the run so far" in running.text
    assert "95.1 % → 52.0 %" in running.text  # the newest epoch, while there is no result yet
    finished = Page(render_page(report()))
    assert not [m for m in finished.all("meta") if m.get("http-equiv") == "refresh"]
    assert "of the run so far" not in finished.text


def test_a_run_that_has_just_begun_has_a_page():
    page = Page(
        render_page(
            RunReport(
                "new", False, "", {}, [], ("val/max_box_acc", "box accuracy"), ("center box", None), [], [], "", {}, []
            )
        )
    )
    assert "the first epoch has not ended yet" in page.text
    assert not page.all("input")


def test_curves_are_where_their_values_are():
    html = render_page(report(3))
    loss, accuracy = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    points = [tuple(map(float, p.split(","))) for p in re.search(r'class="line s0" points="(.*?)"', loss)[1].split()]
    assert [x for x, _ in points] == [48, 211, 374]
    bottom, top = (
        float(y) for y in re.findall(r'class="axis" d="M48 ([\d.]+)H', loss)[:: len(re.findall("axis", loss)) - 1]
    )
    heights = [(bottom - y) / (bottom - top) * 2 for _, y in points]  # the axis ends at 2
    assert heights == pytest.approx([2, 1, 2 / 3], abs=0.01)
    assert "<title>epoch 2, training: 0.6667</title>" in loss
    assert re.search(r'class="rule" d="M48 142.2H374"', accuracy)  # 41.2 % of the way from 232 up to 14
    labels = [float(y) for y in re.findall(r'<text class="\w+ label" x="384" y="([\d.]+)"', accuracy)]
    assert len(labels) == 3
    assert all(b - a >= 17 for a, b in pairwise(labels))


def test_names_with_half_a_surrogate_can_be_written():
    assert render_page(report(name="\udc80.jpg")).encode("utf-8")
