"""The page in a real browser: a picture goes in, probabilities, maps and boxes come out, and nobody else is asked."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from camify.app.page import serve
from camify.errors import ConfigError

from ..reports.test_run import browser  # noqa: F401 - the fixture
from .conftest import NAMES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),  # of libraries of the server
]


@pytest.fixture(scope="module")
def served(converted, picture, tmp_path_factory):
    """The address of a page of one network, with an example whose name is no text."""
    pytest.importorskip("gradio", minversion="6")
    odd = tmp_path_factory.mktemp("examples") / os.fsdecode(b"\xff \x1b<b>.png")
    shutil.copyfile(picture, odd)
    with serve([converted], [odd]) as address:
        yield address
    gc.collect()  # what the server leaves open is warned of here, where that is ignored


@pytest.fixture
def page(browser, served):  # noqa: F811
    yield from opened(browser, served)


def opened(browser, address, **options):  # noqa: F811
    """A page; afterwards no request has left this machine, and no script has failed."""
    page = browser.new_page(**{"viewport": {"width": 1280, "height": 1000}, **options})
    page.set_default_timeout(20_000)
    asked, failed = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#picture input[type=file]", state="attached")
    yield page
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert failed == []
    page.close()


def give(page, file):
    page.set_input_files("#picture input[type=file]", str(file))
    page.wait_for_selector(".camify-answer img")


def boxes(page, index=0):
    return page.inner_text(f"#answer-{index} .camify-boxes")


def changed(page, selector, before):
    """What stands there after it is no longer what it was."""
    page.wait_for_function("([s, t]) => document.querySelector(s)?.innerText !== t", arg=[selector, before])
    return page.inner_text(selector)


def test_a_picture_gets_probabilities_a_map_and_a_box(page, picture):
    assert "Give a picture" in page.inner_text("#answer-0")
    give(page, picture)
    rows = page.locator("#answer-0 tbody tr")
    assert sorted(row.split("\t")[0] for row in rows.all_inner_texts()) == sorted(NAMES), "text, not markup"
    assert sum(float(cell.strip("< ")) for cell in page.locator("tbody td").all_inner_texts()) == pytest.approx(
        1, abs=0.01
    )
    image = page.locator(".camify-answer img")
    assert image.evaluate("i => [i.naturalWidth, i.naturalHeight]") == [768, 256]
    assert image.get_attribute("alt").startswith("cam, object: where the object is: map of")
    shown = page.inner_text(".camify-headline strong")

    other = next(name for name in NAMES if name != shown)
    before = boxes(page)
    page.focus("#class input")
    page.keyboard.type(other[-5:])  # what is typed searches
    page.keyboard.press("Enter")
    assert changed(page, ".camify-headline strong", shown) == other

    before = boxes(page)
    page.focus("#threshold-0 input[type=range]")
    for _ in range(45):
        page.keyboard.press("ArrowRight")
    assert changed(page, "#answer-0 .camify-boxes", before) != before
    page.wait_for_function("() => document.querySelector('#answer-0').innerText.includes('0.87 (by hand)')")
    page.focus("#otsu-0 input")
    page.keyboard.press("Space")
    page.wait_for_function("() => document.querySelector('#answer-0').innerText.includes(\"Otsu's, of this map\")")
    assert page.input_value("#threshold-0 input[type=number]") != "0.87"

    page.click("#map-0 input")
    page.get_by_role("option", name="gradcam++", exact=True).click()
    page.wait_for_function("() => !document.querySelector('.camify-identity')")
    assert page.get_by_label("Otsu's threshold").is_checked()


def test_an_example_is_one_click_away_and_a_broken_file_is_a_sentence(page, tmp_path):
    page.get_by_role("button", name="Example 01_b.png").click()
    page.wait_for_selector(".camify-answer img")
    (tmp_path / "broken.png").write_bytes(b"no image")
    page.click("#picture button[aria-label='Remove Image']")
    page.wait_for_selector(".camify-empty")
    page.set_input_files("#picture input[type=file]", str(tmp_path / "broken.png"))
    page.wait_for_selector(".camify-refusal")
    assert "broken.png: cannot be read as an image" in page.inner_text(".camify-refusal")


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_nothing_sticks_out_and_every_control_has_a_name(browser, served, picture, width, scheme):  # noqa: F811
    for page in opened(browser, served, viewport={"width": width, "height": 900}, color_scheme=scheme):
        give(page, picture)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        labels = ("Class whose map is shown", "Colors of the map", "Map", "Threshold of the box", "Otsu's threshold")
        for label in labels:
            assert page.get_by_label(label).first.is_visible(), label
        unnamed = page.evaluate(
            """() => [...document.querySelectorAll('button, input:not([type=file]), img')].filter(e =>
                e.offsetParent && !(e.ariaLabel || e.title || e.innerText || e.alt || e.labels?.length
                || e.getAttribute('aria-labelledby') || e.closest('button')?.ariaLabel)).map(e => e.outerHTML)"""
        )
        assert unnamed == []


def test_two_networks_stand_side_by_side(browser, converted, legacy, picture):  # noqa: F811
    with serve([legacy, converted]) as address:
        for page in opened(browser, address):
            give(page, picture)
            page.wait_for_selector("#answer-1 img")
            left, right = (page.locator(f"#answer-{index} img").bounding_box() for index in range(2))
            assert left["x"] + left["width"] <= right["x"]
            assert abs(left["y"] - right["y"]) < 2
            assert re.search(r"Rank correlation of the two maps: -?\d\.\d\d", page.inner_text("#agreement"))
            before = page.inner_text("#agreement")
            first = re.search(r"reaches the threshold (\d\.\d\d)", page.inner_text("#answer-0"))[1]
            page.focus("#threshold-1 input[type=range]")
            for _ in range(30):
                page.keyboard.press("ArrowRight")
            assert changed(page, "#agreement", before) != before
            page.wait_for_function("() => document.querySelector('#answer-1').innerText.includes('0.72 (by hand)')")
            assert (page.input_value(number_of(0)), page.input_value(number_of(1))) == (f"{float(first):g}", "0.72")


def number_of(index):
    return f"#threshold-{index} input[type=number]"


# ---------------------------------------------------------------- the server


def listening(port):
    """The addresses at which somebody listens, as the kernel says them."""
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {words[1].split(":")[0] for words in lines if words[3] == "0A" and int(words[1].split(":")[1], 16) == port}


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the kernel does not say who listens")
def test_only_this_machine_reaches_the_page(served):
    assert listening(int(served.rstrip("/").rpartition(":")[2])) == {"0100007F"}


def test_a_port_that_is_taken_is_said(served, converted):
    port = int(served.rstrip("/").rpartition(":")[2])
    said = f"port {port}: the page cannot be served there"
    with pytest.raises(ConfigError, match=said), serve([converted], port=port):
        pass


def test_files_of_this_machine_are_not_served(served, folder, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "private.png")
    for file in (tmp_path / "private.png", folder / "camify.json", Path("/etc/passwd"), Path("README.md").resolve()):
        with pytest.raises(urllib.error.HTTPError, match=r"403|404") as refused:
            urllib.request.urlopen(f"{served}gradio_api/file={file}")
        refused.value.close()


def config_of(served):
    with urllib.request.urlopen(f"{served}config") as answer:
        return json.load(answer)


def posted(served, payload):
    """What the page answers where a picture is given by hand, not by its upload."""
    config = config_of(served)
    ids = {part["props"].get("elem_id"): part["id"] for part in config["components"]}
    event = next(d for d in config["dependencies"] if [ids["picture"], "change"] in [list(t) for t in d["targets"]])
    data = [payload, -1, "inferno", "cam", 0.5, False]
    body = json.dumps({"data": data, "fn_index": event["id"], "session_hash": "by-hand"}).encode()
    headers = {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{served}gradio_api/queue/join", body, headers)).close()
    with urllib.request.urlopen(f"{served}gradio_api/queue/data?session_hash=by-hand", timeout=20) as answer:
        for line in answer:
            if b"process_completed" in line:
                return line.decode()
    return ""


def test_a_picture_of_this_machine_is_not_shown_to_who_names_it(served, picture):
    meta = {"meta": {"_type": "gradio.FileData"}}
    config = config_of(served)
    (samples,) = [
        part["props"]["samples"] for part in config["components"] if part["props"].get("elem_id") == "examples"
    ]
    assert "data:image" in posted(served, {"path": samples[0][0]["path"], **meta}), "one that the page offers is"
    for payload in ({"path": str(picture)}, {"path": str(picture), **meta}):
        answer = posted(served, payload)
        assert "process_completed" in answer
        assert "data:image" not in answer


def test_the_server_asks_nobody(converted, monkeypatch):
    reached, connect = [], socket.socket.connect

    def noted(self, address):
        reached.append(address)
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", noted)
    with serve([converted]) as address:
        urllib.request.urlopen(address).close()
    hosts = {address[0] for address in reached if isinstance(address, tuple)}
    assert hosts == {"127.0.0.1"}


def test_uploaded_files_go_with_the_page(browser, converted, picture, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with serve([converted]) as address:
        for page in opened(browser, address):
            give(page, picture)
        assert [file for file in tmp_path.rglob("*") if file.is_file()]
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(address.rstrip("/").rpartition(":")[2])))
