"""What the page answers to its controls, without a browser."""

from __future__ import annotations

import html
import re

import pytest
from PIL import Image

from camify.app.page import MOST_PROBABLE, Controls, Page, is_loopback
from camify.errors import ConversionError
from camify.methods import METHODS

from .conftest import NAMES


@pytest.fixture
def page(converted):
    return Page([converted])


def texts(piece):
    """A piece of HTML without its marks and its picture."""
    return html.unescape(re.sub(r"<[^>]*>", " ", piece))


def test_only_loopback_is_this_machine_alone():
    assert [is_loopback(host) for host in ("127.0.0.1", "127.3.2.1", "::1", "localhost")] == [True] * 4
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.7", "", "example.org", "127.0.0.1.example.org")))


def test_before_a_picture_is_given_it_says_so(page):
    pieces, settled, both = page.show(None, MOST_PROBABLE, "inferno", [page.first_controls(0)])
    assert "Give a picture" in pieces[0]
    assert settled == [Controls("cam, object: where the object is", 0.4237, otsu=False)]
    assert both == ""


def test_names_of_classes_are_text_and_nothing_else(page, picture):
    (piece,), _, _ = page.show(str(picture), 1, "inferno", [page.first_controls(0)])
    assert "<b>bee</b>" not in piece
    assert html.escape("<b>bee</b>") in piece
    assert all(name in texts(piece) for name in NAMES)
    assert f'alt="cam, object: where the object is: map of {html.escape(NAMES[1])} over the picture.' in piece


def test_a_piece_says_box_share_identity_and_time(page, picture):
    (piece,), _, _ = page.show(str(picture), 0, "inferno", [Controls("cam", 0.5, otsu=False)])
    said = texts(piece)
    x0, x1, y0, y1, share = map(int, re.search(r"x (\d+) to (\d+), y (\d+) to (\d+) \((\d+)%", said).groups())
    assert share == pytest.approx(100 * (x1 - x0) * (y1 - y0) / (180 * 60), abs=1.5)
    mean, sign, bias, total, logit = re.search(
        r"mean\(map\) \+ bias = (-?[\d.]+) ([+-]) ([\d.]+) = (-?[\d.]+); logit (-?[\d.]+)", said
    ).groups()
    assert float(mean) + float(sign + bias) == pytest.approx(float(total), abs=2e-4)
    assert float(logit) == pytest.approx(float(total), abs=2e-4)
    assert re.search(r"\d+ ms for the network, \d+ ms for the map", said)
    assert "(by hand) of the pas 90 normalized map" in said


def test_otsu_moves_the_slider_and_another_map_goes_back_to_its_rule(page, picture):
    by_otsu = Controls("cam, object: where the object is", 0.1, otsu=True)
    _, (settled,), _ = page.show(str(picture), 0, "inferno", [by_otsu])
    assert settled.otsu
    assert settled.threshold != 0.1
    (piece,), (settled,), _ = page.show(str(picture), 0, "inferno", [by_otsu], 0)
    assert settled == Controls(by_otsu.map, 0.42, otsu=False)
    assert "the network's rule, from boxes" in texts(piece)


def test_what_cannot_be_read_is_a_sentence(page, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    controls = [page.first_controls(0)]
    (piece,), settled, _ = page.show(str(tmp_path / "broken.jpg"), MOST_PROBABLE, "inferno", controls)
    assert 'role="alert"' in piece
    assert "broken.jpg: cannot be read as an image" in texts(piece)
    assert str(tmp_path) not in piece
    assert settled == controls


def test_a_file_that_was_deleted_meanwhile_is_asked_for_again(page, picture, tmp_path):
    copy = tmp_path / "old.png"
    copy.write_bytes(picture.read_bytes())
    controls = [page.first_controls(0)]
    assert "<figure" in page.show(str(copy), 0, "inferno", controls)[0][0]
    copy.unlink()
    assert "old.png: is no longer there. Give the picture again." in page.show(str(copy), 0, "inferno", controls)[0][0]


def test_a_method_that_refuses_at_run_time_says_why(converted, picture, monkeypatch):
    def refuse(*_):
        raise ConversionError("layer features: the logits do not depend on it. Give another layer.")

    monkeypatch.setattr(METHODS["gradcam"], "maps", refuse)
    page = Page([converted])
    (piece,), _, _ = page.show(str(picture), 0, "inferno", [Controls("gradcam", 0.5, otsu=True)])
    assert "the logits do not depend on it" in texts(piece)


def test_a_lack_of_memory_is_a_sentence_too(page, picture, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("camify.app.answers.Answer", fail)
    (piece,), _, _ = page.show(str(picture), 0, "inferno", [page.first_controls(0)])
    assert "not enough memory" in piece


def test_two_networks_show_the_first_one_s_class_and_how_alike_they_are(converted, legacy, picture):
    page = Page([legacy, converted])
    controls = [page.first_controls(index) for index in range(2)]
    pieces, _, both = page.show(str(picture), MOST_PROBABLE, "inferno", controls)
    predicted = NAMES[page.answers[0].of(picture).predicted]
    for piece in pieces:
        assert re.search(r"<strong>(.*?)</strong>", piece)[1] == html.escape(predicted)
    assert re.search(r"Rank correlation of the two maps: -?\d\.\d\d\.", texts(both))
    assert "Overlap of their boxes (IoU): " in texts(both)


def test_where_one_network_refuses_the_other_still_answers(converted, legacy, tmp_path, monkeypatch):
    Image.new("RGB", (9, 9)).save(tmp_path / "black.png")
    page = Page([legacy, converted])

    def refuse(*_):
        raise ConversionError("no")

    monkeypatch.setattr(METHODS["gradcam"], "maps", refuse)
    pieces, _, both = page.show(
        str(tmp_path / "black.png"), MOST_PROBABLE, "inferno", [page.first_controls(index) for index in range(2)]
    )
    assert 'role="alert"' in pieces[0]
    assert "<figure" in pieces[1]
    assert both == ""
