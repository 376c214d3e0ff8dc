"""The gallery shows what its script makes, and the script makes it."""

from __future__ import annotations

import importlib.util
import re
import sys

import numpy as np
import pytest
from PIL import Image

from tests.documents import ROOT

DOCS = ROOT / "docs"
MOST_BYTES = 1_500_000  # of all pictures together


def shown() -> dict[str, str]:
    """Alternative texts by name of the picture, as the page has them."""
    text = (DOCS / "gallery.md").read_text("utf-8")
    inline = re.findall(r"!\[(.*?)\]\(gallery/([\w-]+)\.webp\)", text)
    directives = re.findall(r"```\{image\} gallery/([\w-]+)\.webp\n(?::alt: (.*)\n)?", text)
    pairs = [(name, alt) for alt, name in inline] + directives
    assert len(dict(pairs)) == len(pairs) == text.count(".webp"), "each once"
    return dict(pairs)


@pytest.fixture(scope="module")
def gallery():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("gallery", DOCS / "gallery.py")
    module = sys.modules["gallery"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gallery"]


def test_the_page_shows_what_the_script_makes(gallery):
    names = [picture.name for picture in gallery.PICTURES]
    assert sorted(shown()) == sorted(names)
    assert sorted(path.stem for path in (DOCS / "gallery").iterdir()) == sorted(names), "nothing else lies there"
    assert {picture.made_by for picture in gallery.PICTURES} <= gallery.MAKERS.keys()
    seen = {picture.made_by: set() for picture in gallery.PICTURES if picture.mode}
    for picture in gallery.PICTURES:
        seen.get(picture.made_by, set()).add(picture.mode)
    assert set().union(*seen.values()) >= gallery.MODES.keys(), "every mode is seen"


def test_every_picture_can_be_read_and_says_what_it_is(gallery):
    sizes = []
    for picture in gallery.PICTURES:
        assert len(shown()[picture.name]) > 20, picture.name
        path = DOCS / "gallery" / f"{picture.name}.webp"
        with Image.open(path) as image:
            assert image.format == "WEBP"
            if picture.mode:
                (width, height), _, scale = gallery.MODES[picture.mode]
                assert image.size == (width * scale, height * scale)
            else:
                assert 300 <= image.width <= 2000
            assert len(image.convert("RGB").resize((64, 64)).getcolors(4096)) > 100, "it shows something"
        sizes.append(path.stat().st_size)
    assert sum(sizes) < MOST_BYTES


@pytest.mark.parametrize("missing", ["chromium", "playwright"])
def test_what_is_missing_is_said_in_one_sentence(gallery, monkeypatch, tmp_path, missing):
    if missing == "playwright":
        monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    else:
        pytest.importorskip("playwright.sync_api")
        monkeypatch.setattr(gallery.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match=rf"(?i)^gallery: .*{missing}") as stopped:
        gallery.main(["strip", "--out", str(tmp_path)])
    assert "\n" not in str(stopped.value)
    assert not list(tmp_path.iterdir())


def test_what_needs_a_thing_is_made_after_it(gallery, monkeypatch, tmp_path):
    made = []
    makers = {
        name: (lambda work, name=name, **_: made.append(name), before) for name, (_, before) in gallery.MAKERS.items()
    }
    monkeypatch.setattr(gallery, "MAKERS", makers)
    gallery.make(["runs", "web", "evaluation"], tmp_path, "there")
    assert made == ["run", "runs", "shapes", "web", "evaluation"]


@pytest.mark.slow
def test_the_script_makes_the_page_that_needs_no_training(gallery, tmp_path):
    pytest.importorskip("playwright.sync_api")
    gallery.main(["compare-phone", "--out", str(tmp_path)])
    (path,) = tmp_path.iterdir()
    with Image.open(path) as image, Image.open(DOCS / "gallery" / path.name) as committed:
        assert image.size == committed.size
        made, there = (np.asarray(one.convert("L").resize((39, 80)), float) for one in (image, committed))
    assert np.abs(made - there).mean() < 12, "it looks like the one in the documentation"
