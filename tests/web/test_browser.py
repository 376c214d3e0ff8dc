"""The page in a real browser: its answers are Python's, and what goes wrong is said in it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2

import camify
from camify.boxes import DEFAULT_RULE, BoxRule
from camify.files import WEB_PAGE
from camify.web import export_web
from camify.web.runtime import SCRIPT
from tests.browser import served
from tests.exporters.conftest import SIZE, network
from tests.web.conftest import HOSTILE

SENTENCES = {  # what is damaged, and what the page says
    "model.onnx": "model.onnx is not the file that this page was made with: its SHA-384 is another one",
    f"runtime/{SCRIPT}": f"runtime/{SCRIPT} is not the file that this page was made with",
}


def opened(browser, address, width=1200, scheme="light", answers=None):
    """The page when it is ready or has failed; and what its console says, and the addresses that it asks for."""
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    if answers is not None:
        page.route(re.compile("^https:"), answers)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_selector("html[data-state]", timeout=60_000)
    return page, said, asked


def state(page):
    return page.evaluate("document.documentElement.dataset.state")


# ---------------------------------------------------------------- without a runtime


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "model.onnx" else pytest.mark.slow) for name in SENTENCES]
)
def test_a_changed_file_is_named(browser, page_folder, name):
    content = bytearray((page_folder / name).read_bytes())
    content[-9] ^= 1
    (page_folder / name).write_bytes(content)
    with served(page_folder) as address:
        page, _, _ = opened(browser, address)
        assert state(page) == "failed"
        assert page.inner_text("#problem").startswith(SENTENCES[name])
        assert page.is_disabled("#choose")
        page.close()


@pytest.mark.slow
def test_a_missing_file_is_named(browser, page_folder):
    (page_folder / "model.onnx").unlink()
    with served(page_folder) as address:
        page, _, _ = opened(browser, address)
        assert page.inner_text("#problem") == "model.onnx: the server answers 404. Is the file beside this page?"
        page.close()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [pytest.param(1200, "light", marks=pytest.mark.slow), (390, "dark")])
def test_names_of_users_are_text_and_nobody_else_is_asked(browser, page_folder, width, scheme):
    with served(page_folder) as address:
        page, said, asked = opened(browser, address, width, scheme)
        assert "The network cannot run here" in page.inner_text("#problem"), "the stand-in runs nothing"
        assert HOSTILE in page.inner_text("#summary")
        assert "CC-BY 4.0" in page.inner_text("#facts")
        assert page.query_selector("img") is None
        assert page.evaluate("document.documentElement.scrollWidth") == width, "nothing sticks out"
        assert said == []
        assert [url for url in asked if not url.startswith((address, f"blob:{address}", "data:"))] == []
        page.close()


@pytest.mark.slow
def test_opened_as_a_file_it_says_how_to_serve_it(browser, page_folder):
    page = browser.new_page()
    page.goto((page_folder / "index.html").as_uri())
    page.wait_for_selector("#start", state="visible")
    assert "python -m http.server" in page.inner_text("#start")
    page.close()


# ---------------------------------------------------------------- with onnxruntime-web


def with_object_map(**options):
    net = network(**options)
    net.register_buffer("object_weight", torch.randn(net.num_features) / 4)
    net.object_map = {"source": "test"}
    return net


def of_one_logit():
    net = network()
    net.reset_classifier(1)
    nn.init.normal_(net.classifier.weight)
    net.untrained = ()
    net.class_names = ["well", "sick"]
    return net.eval()


def of_labels():
    net = network()
    net.task = "multilabel"
    net.box_rule = BoxRule("ivr", 45.0, 0.3)
    return net


def of_blue_green_red():
    net = network()
    net.preprocessing = {**net.preprocessing.to_dict(), "input_format": "bgr"}
    net.box_rule = None
    return net


def mirrored():
    net = with_object_map()
    net.box_rule = BoxRule("pas", 90.0, 0.4, kind="object", flip=True, regions="all")
    return net


NETWORKS = {"object and mirrored": mirrored, "one logit": of_one_logit, "labels": of_labels, "BGR": of_blue_green_red}


def picture_file(path, size=(50, 70)):
    """A smooth picture, saved without loss."""
    torch.manual_seed(3)
    pixels = nn.functional.interpolate(torch.rand(1, 3, 6, 8), size=size, mode="bicubic").clamp(0, 1)[0]
    Image.fromarray((pixels.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)).save(path)
    return path


def as_input(net, path):
    """As the network's preprocessing says, without rounding in between: the exported file does not round either."""
    preprocessing, picture = net.preprocessing, camify.preprocessing.read_image(path).as_subclass(torch.Tensor)
    picture = picture.flip(0) if preprocessing.input_format == "bgr" else picture
    steps = [
        v2.ToDtype(torch.float32, scale=True), v2.Resize((SIZE, SIZE), antialias=True),
        v2.Normalize(preprocessing.mean, preprocessing.std),
    ]  # fmt: skip
    return v2.Compose(steps)(picture)[None]


def result_of(page):
    """What the page gives as JSON."""
    return json.loads(page.text_content("#json"))


def take(page, path):
    page.set_input_files("#file", str(path))
    page.wait_for_selector("#answer", state="visible")
    if not page.is_visible("#json"):
        page.click("#result summary")
    page.wait_for_function("name => document.querySelector('#json').textContent.includes(name)", arg=path.name)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_answers_maps_and_boxes_are_pythons(browser, node_modules, tmp_path, name):
    net = camify.load(NETWORKS[name]().save_pretrained(tmp_path / "net"))
    export_web(net, tmp_path / "page", runtime=node_modules / "onnxruntime-web")
    picture = picture_file(tmp_path / "picture.png")
    images, classes, rule = as_input(net, picture), net.classes, net.box_rule or DEFAULT_RULE
    with torch.no_grad():
        logits = classes.two_sided(net(images))[0]
    with served(tmp_path / "page") as address:
        page, said, asked = opened(browser, address)
        assert state(page) == "ready", page.inner_text("#problem")
        take(page, picture)
        first = result_of(page)
        np.testing.assert_allclose(first["logits"], logits, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(first["probabilities"], classes.probabilities(logits[None])[0], atol=1e-5)
        titles = classes.titles(net.num_classes)
        assert first["map"]["class"] == titles[int(classes.predicted(logits[None]))]
        assert first["map"]["kind"] == (rule.kind if net.task.exclusive else "plain")
        for kind in page.eval_on_selector_all("#kinds button", "buttons => buttons.map((b) => b.dataset.kind)"):
            page.eval_on_selector(f"#kinds [data-kind={kind}]", "button => button.click()")  # one kind has no switch
            weight = net.map_weight(kind, two_sided=True)
            for k in range(len(titles)):
                page.click(f"#classes [data-index='{k}']")
                found = result_of(page)
                assert (found["map"]["class"], found["map"]["kind"]) == (titles[k], kind)
                with torch.no_grad():
                    wanted = camify.maps.class_maps(net.forward_features(images), weight)[0, k]
                np.testing.assert_allclose(found["map"]["values"], wanted.flatten(), rtol=1e-3, atol=1e-3)
                (boxes,) = net.predict_boxes(images, torch.tensor([k]), rule=replace(rule, kind=kind))
                scaled = boxes * torch.tensor([70 / SIZE, 50 / SIZE] * 2)
                np.testing.assert_allclose(np.array(found["box"]["xyxy"]).reshape(-1, 4), scaled, atol=2.5)
        assert said == []
        assert [url for url in asked if not url.startswith((address, f"blob:{address}", "data:"))] == []
        page.close()


@pytest.fixture(scope="module")
def whole_page(net, node_modules, tmp_path_factory):
    return export_web(net, tmp_path_factory.mktemp("whole") / "page", runtime=node_modules / "onnxruntime-web").path


@pytest.mark.slow
def test_the_threshold_moves_the_box_and_everything_is_reached_by_keys(browser, whole_page, net, tmp_path):
    picture = picture_file(tmp_path / "picture.png")
    images = as_input(net, picture)
    with served(whole_page) as address:
        page, said, _ = opened(browser, address, 390, "dark")
        take(page, picture)
        page.focus("#threshold")
        for _ in range(30):
            page.keyboard.press("ArrowRight")
        found = result_of(page)["box"]
        assert found["threshold"] == pytest.approx(0.7)
        (box,) = net.predict_boxes(images, rule=replace(net.box_rule, threshold=found["threshold"]))
        np.testing.assert_allclose(found["xyxy"], box * torch.tensor([70 / SIZE, 50 / SIZE] * 2), atol=2.5)
        page.focus("#rule")
        page.keyboard.press("Enter")
        assert result_of(page)["box"]["threshold"] == pytest.approx(0.4)
        page.focus("#classes li:nth-child(3) button")
        page.keyboard.press("Enter")
        name = page.inner_text("#classes [aria-pressed=true] span >> nth=0")
        assert result_of(page)["map"]["class"] == name
        assert f"Map of {name}" in page.get_attribute("#canvas", "aria-label")
        assert f"Map of {name}." in page.inner_text("#spoken")
        nameless = page.eval_on_selector_all(
            "button, input:not([hidden]), canvas:not([aria-hidden])",
            "all => all.filter((e) => !(e.textContent.trim() || e.ariaLabel || e.labels?.length)).map((e) => e.id)",
        )
        assert nameless == []
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert said == []
        page.close()


@pytest.mark.slow
def test_the_camera_runs_and_frames_a_second_are_said(browser, whole_page):
    with served(whole_page) as address:
        page, said, _ = opened(browser, address)
        page.click("#camera")
        page.wait_for_selector("#figures >> text=frames a second")
        assert page.inner_text("#camera") == "Stop the camera"
        page.click("#camera")
        assert page.inner_text("#camera") == "Use the camera"
        page.click("#result summary")
        page.wait_for_selector("#json >> text=camera")
        shown = result_of(page)
        assert (shown["picture"], len(shown["logits"])) == ("camera", 4), "the last frame stays"
        page.wait_for_timeout(300)
        assert result_of(page)["milliseconds"] == shown["milliseconds"]
        assert said == []
        page.close()


@pytest.mark.slow
def test_several_threads_give_the_same_where_the_server_allows_them(browser, whole_page, net, tmp_path):
    picture = picture_file(tmp_path / "picture.png")
    headers = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
    with served(whole_page, headers) as address:
        page, said, _ = opened(browser, address)
        assert "several threads" in page.inner_text("#facts")
        take(page, picture)
        with torch.no_grad():
            np.testing.assert_allclose(result_of(page)["logits"], net(as_input(net, picture))[0], rtol=1e-4, atol=1e-4)
        assert said == []
        page.close()


@pytest.mark.slow
def test_where_the_network_has_one_size_the_browser_resizes_and_says_so(browser, whole_page, net, tmp_path):
    place, picture = shutil.copytree(whole_page, tmp_path / "page"), picture_file(tmp_path / "picture.png")
    about = json.loads((place / WEB_PAGE).read_text())
    (place / WEB_PAGE).write_text(json.dumps({**about, "picture_size": [SIZE, SIZE]}))
    with served(place) as address:
        page, _, _ = opened(browser, address)
        take(page, picture)
        found = result_of(page)
        assert (found["width"], found["height"]) == (70, 50), "the picture's own"
        with torch.no_grad():
            logits = net(as_input(net, picture))[0]
        np.testing.assert_allclose(found["logits"], logits, atol=0.1 * float(logits.abs().max()))
        assert page.inner_text("#picture-note").startswith(f"The browser made the picture {SIZE} x {SIZE} pixels")
        page.close()


@pytest.mark.slow
def test_of_two_pictures_given_at_once_the_last_one_is_shown(browser, whole_page, tmp_path):
    one, other = picture_file(tmp_path / "one.png"), picture_file(tmp_path / "other.png", (64, 48))
    with served(whole_page) as address:
        page, said, _ = opened(browser, address)
        page.set_input_files("#file", str(one))
        page.set_input_files("#file", str(other))
        page.click("#result summary", timeout=10_000)
        page.wait_for_selector("#json >> text=other.png")
        assert (result_of(page)["width"], result_of(page)["height"]) == (48, 64)
        assert (
            page.evaluate("document.querySelector('#canvas').width / document.querySelector('#canvas').height") == 0.75
        )
        assert said == []
        page.close()


@pytest.mark.slow
def test_a_file_that_is_no_image_is_named_and_the_next_one_is_taken(browser, whole_page, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    with served(whole_page) as address:
        page, said, _ = opened(browser, address)
        page.set_input_files("#file", str(tmp_path / "notes.txt"))
        page.wait_for_selector("#problem", state="visible")
        assert page.inner_text("#problem").startswith("notes.txt: this browser cannot read it as an image.")
        take(page, picture_file(tmp_path / "picture.png"))
        assert page.inner_text("#problem") == "Never trained: classifier. The answers mean nothing yet."
        assert said == []
        page.close()


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [False, True])
def test_from_a_public_server_only_the_known_bytes_run(browser, net, node_modules, tmp_path, damaged):
    """The public server is played by the files that npm delivers."""
    place = export_web(net, tmp_path / "page").path
    dist = shutil.copytree(node_modules / "onnxruntime-web" / "dist", tmp_path / "dist")
    if damaged:
        with (dist / SCRIPT).open("ab") as file:
            file.write(b"\n")
    with served(place) as address:
        page, said, _ = opened(
            browser,
            address,
            answers=lambda route: route.fulfill(
                path=dist / route.request.url.rpartition("/")[2], headers={"access-control-allow-origin": "*"}
            ),
        )
        assert state(page) == ("failed" if damaged else "ready"), said
        if damaged:
            assert f"/{SCRIPT} is not the file that this page was made with" in page.inner_text("#problem")
        page.close()
