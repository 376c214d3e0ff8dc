"""The page of a run's folder, of several runs, and both in a real browser."""

from __future__ import annotations

import base64
import json
import re

import pytest
from PIL import Image

import camify
from camify.cli.commands import main
from camify.reports.run_folder import read_run
from camify.reports.run_page import render_page
from camify.reports.runs_page import render_runs
from tests.browser import chromium


def write_run(
    folder, *, epochs=3, quality="val/max_box_acc", baseline="val/center_box_acc", images=2, methods=("cam",)
):
    """A run's folder as training leaves it, with one color as each picture.

    Without ``methods`` the index is as it was before there were several. In epoch 1 image 0 is taken for a dog.
    """
    overlays = folder / "overlays"
    watched = []
    for image in range(images):
        frames, strips = [], {}
        for method in methods or ("",):
            strips[method] = f"strips/{method}{image}.png"
            for e in range(epochs):
                frame = {"epoch": e, "file": f"epoch_{e}/{method}{image}.png", "caption": f"predicted cat, p 0.{e}"}
                if methods:
                    frame["method"] = method
                if methods and e == 1 and image == 0:
                    frame["predicted"] = f"epoch_{e}/predicted/{method}{image}.png"
                frames.append(frame)
        known = {"strips": strips} if methods else {"strip": strips[""]}
        watched.append({"name": f"image {image}", "true": "cat", "frames": frames, **known})
    find = {
        "kind": "mistakes",
        "epoch": epochs - 1,
        "name": "<b>odd</b>",
        "true": "dog",
        "file": "find.png",
        "caption": "x",
    }
    names = [frame["file"] for image in watched for frame in image["frames"]]
    names += [frame["predicted"] for image in watched for frame in image["frames"] if "predicted" in frame]
    names += [strip for image in watched for strip in image.get("strips", {"": image.get("strip")}).values()]
    for place, name in enumerate([*names, "find.png"]):
        (overlays / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 30), (40 * place % 256, 90, 20 * place % 256)).save(overlays / name)
    (overlays / "index.json").write_text(json.dumps({"watched": watched, "finds": [{**find, "caption": "x"}]}))
    history = [
        {"epoch": e, "val/acc": 0.5 + e / 10, quality: 0.3 + e / 10, baseline: 0.25, "val/loss": None}
        for e in range(epochs)
    ]
    results = {
        "finished": True, "source": "camify/tiny_vgg", "classes": ["cat", "dog"], "history": history,
        "legacy": {"val/acc": 0.9}, "start": {"val/acc": 0.4, quality: 0.1},
        "exported": {"epoch": 1, "val/acc": 0.6, quality: 0.4}, "certificate": {"rows": [], "facts": {"map": "7 by 7"}},
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.yaml").write_text("head: gap\n")
    return folder


def test_the_folder_holds_all_that_the_page_needs(tmp_path):
    report = read_run(write_run(tmp_path / "mine"))
    assert (report.title, report.finished, report.quality) == ("mine", True, ("val/max_box_acc", "box accuracy"))
    assert report.baseline == ("center box", 0.25)
    assert [row["score"] for row in report.results] == [0.9, 0.4, 0.6]
    assert [row["quality"] for row in report.results] == [None, 0.1, 0.4]
    assert [(track.name, track.kind, len(track.frames)) for track in report.images] == [
        ("image 0", "watched", 3), ("image 1", "watched", 3), ("<b>odd</b>", "mistakes", 1),
    ]  # fmt: skip
    assert all(frame.picture.startswith(b"RIFF") for track in report.images for frame in track.frames)
    assert "7 by 7" in render_page(report)


def test_object_maps_have_a_column_and_a_curve_of_their_own(tmp_path):
    folder = write_run(tmp_path)
    assert read_run(folder).objects is None
    assert "object maps" not in render_page(read_run(folder))
    results = json.loads((folder / "results.json").read_text())
    results["exported"]["val/object_box_acc"] = 0.487
    for row in results["history"]:
        row["val/object_box_acc"] = 0.45
    (folder / "results.json").write_text(json.dumps(results))
    report = read_run(folder)
    assert report.objects == ("val/object_box_acc", "object maps")
    assert [row.get("objects") for row in report.results] == [None, None, 0.487]
    page = render_page(report)
    assert "48.7" in page
    rows = re.findall(r"<tr.*?</tr>", page[page.index("Before and after") :].partition("</table>")[0], re.DOTALL)
    assert {len(re.findall("<t[hd]", row)) for row in rows} == {4}
    assert page.count("object maps") >= 2, "the column's head, and the curve's label"


def test_the_rule_of_the_exported_network_is_said_once_it_is_there(tmp_path):
    folder = write_run(tmp_path)
    assert read_run(folder).boxes == ""
    results = json.loads((folder / "results.json").read_text())
    results["exported"] |= {"boxes": "<PaS 90, Otsu>", "boxes_right": None}
    (folder / "results.json").write_text(json.dumps(results))
    assert read_run(folder).boxes == "<PaS 90, Otsu>"
    assert "Boxes of the exported network: &lt;PaS 90, Otsu&gt;." in render_page(read_run(folder))
    results["exported"]["boxes_right"] = 0.545
    (folder / "results.json").write_text(json.dumps(results))
    assert read_run(folder).boxes.endswith(": right on 54.5 % of the validation images (cross-validated)")
    (folder / "results.json").write_text(json.dumps(results | {"finished": False}))
    assert read_run(folder).boxes == ""


def test_without_boxes_the_figure_is_grid_pointing(tmp_path):
    report = read_run(write_run(tmp_path, quality="val/grid_pointing", baseline="val/grid_chance"))
    assert (report.quality, report.baseline) == (("val/grid_pointing", "grid pointing"), ("chance", 0.25))


def test_long_runs_show_some_epochs_the_first_and_the_last_among_them(tmp_path, monkeypatch):
    folder = write_run(tmp_path, epochs=10)
    whole = read_run(folder).images
    assert [frame.epoch for frame in whole[0].frames] == list(range(10))
    last = sum(track.frames[-1].size for track in whole if track.kind == "watched")
    others = sum(len(strip) for track in whole for strip in track.strips.values()) + whole[-1].frames[0].size
    monkeypatch.setattr("camify.reports.run_folder._MOST_BYTES", others + 4 * last)
    assert [frame.epoch for frame in read_run(folder).images[0].frames] == [0, 3, 6, 9]
    monkeypatch.setattr("camify.reports.run_folder._MOST_BYTES", 0)
    assert [frame.epoch for frame in read_run(folder).images[0].frames] == [0, 9]


def test_the_index_of_a_run_of_one_method_without_a_name_is_read(tmp_path):
    folder = write_run(tmp_path, methods=())
    track = read_run(folder).images[0]
    assert {frame.method for frame in track.frames} == {""}
    assert len(track.strips) == 1
    assert 'aria-label="Explanation method"' not in render_page(read_run(folder))


def test_what_is_no_run_is_refused(tmp_path):
    for content in (None, "{", "[]", '{"history": []}'):
        if content is not None:
            (tmp_path / "results.json").write_text(content)
        with pytest.raises(camify.DataError, match="cannot be read as the folder of a run"):
            read_run(tmp_path)


def test_runs_stand_side_by_side(tmp_path):
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two", epochs=5, images=3)
    html = render_runs([read_run(one), read_run(two)])
    assert "2 runs side by side" in html
    assert html.count("<h3>image ") == 2, "of the images, those that both have watched"
    assert "image 2" not in html
    assert "one, epoch 2" in html
    assert "two, epoch 4" in html
    assert html.count("<polyline") == 4, "accuracy and box accuracy of both"
    assert html.count("center box 25.0 %</text>") == 1, "one line for both, as the baseline is one"
    results = json.loads((two / "results.json").read_text())
    for row in results["history"]:
        row["val/center_box_acc"] = 0.75  # other data
    (two / "results.json").write_text(json.dumps(results))
    assert "center box 25.0 %" not in render_runs([read_run(one), read_run(two)]), "no line is right for both"
    same = render_runs([read_run(one)] * 2)
    assert "1: one" in same
    assert "2: one" in same


def test_images_of_one_name_are_set_side_by_side_only_where_their_files_are_equal(tmp_path):
    folders = [write_run(tmp_path / name, images=3) for name in ("one", "two")]
    digests = [["a", "b", "c"], ["x", "c", "b"]]  # an image's name has its number in the run, which may differ
    for folder, own in zip(folders, digests, strict=True):
        index = json.loads((folder / "overlays/index.json").read_text())
        for image, digest in zip(index["watched"], own, strict=True):
            image["sha256"] = digest
        (folder / "overlays/index.json").write_text(json.dumps(index))
    html = render_runs([read_run(folder) for folder in folders])
    assert html.count("<h3>image ") == 2
    assert "<h3>image 0" not in html
    index["watched"][1]["true"], index["watched"][0]["sha256"] = "dog", ""  # an older run: by name and class
    (folders[1] / "overlays/index.json").write_text(json.dumps(index))
    assert re.findall("<h3>image (.)", render_runs([read_run(folder) for folder in folders])) == ["0", "2"]


def test_the_command_writes_pages_and_replaces_none_unasked(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two")
    for _ in range(2):  # a run's own page is written anew
        main(["report", str(one)])
        assert "Watched images" in (one / "report.html").read_text()
    main(["report", str(one), str(two)])
    assert "2 runs" in (tmp_path / "comparison.html").read_text()
    with pytest.raises(SystemExit):
        main(["report", str(one), str(two)])
    assert "comparison.html: exists" in capsys.readouterr().err
    main(["report", str(one), str(two), "--overwrite", "true"])
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path / "nowhere")])
    assert "nowhere: cannot be read as the folder of a run" in capsys.readouterr().err


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened_browser:
        yield opened_browser


def opened(page, page_file, width):
    """Open a page; what its console says, and the addresses that it asks for."""
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width, "nothing sticks out"
    return said, asked


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_in_a_browser_the_page_works_and_asks_nobody(browser, tmp_path, width, scheme):
    page_file = tmp_path / "report.html"
    page_file.write_text(render_page(read_run(write_run(tmp_path / "mine"))), encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said, asked = opened(page, page_file, width)

    def shown():
        return [f.get_attribute("data-epoch") for f in page.query_selector_all(".frame") if f.is_visible()]

    assert shown() == ["2", "2", "2"], "the last epoch of two watched images, and what it found"
    page.focus("#epoch")
    page.keyboard.press("ArrowLeft")
    assert (shown(), page.inner_text("#shown")) == (["1", "1"], "1")
    assert page.is_visible(".kind[data-kind=mistakes] .none")
    page.keyboard.press("End")
    page.click("button[data-kind=mistakes]")
    assert shown() == ["2"]
    assert page.inner_text(".kind:not([hidden]) h4").startswith("<b>odd</b>"), "text, not markup"
    page.click("button[data-kind='']")
    page.click(".frame:not([hidden]) .zoom >> nth=0")
    assert page.is_visible("dialog img")
    page.keyboard.press("Escape")
    assert not page.is_visible("dialog img")
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    page.close()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1200, "dark"), pytest.param(390, "light", marks=pytest.mark.slow)])
def test_in_a_browser_methods_and_classes_are_switched_by_keys(browser, tmp_path, width, scheme):
    page_file = tmp_path / "report.html"
    run = read_run(write_run(tmp_path / "mine", methods=("cam", "gradcam++")))
    page_file.write_text(render_page(run), encoding="utf-8")
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    said, asked = opened(page, page_file, width)
    watched = run.images[0]

    def shown():
        """Epoch, method and picture of what is seen of the first image."""
        (frame,) = [f for f in page.query_selector_all(".track:first-child >> nth=0 >> .frame") if f.is_visible()]
        (picture,) = [i for i in frame.query_selector_all("img") if i.is_visible()]
        source = base64.b64decode(picture.get_attribute("src").split(",")[1])
        return int(frame.get_attribute("data-epoch")), frame.get_attribute("data-method"), source

    def expected(epoch, method, *, of_predicted=False):
        (frame,) = [frame for frame in watched.frames if (frame.epoch, frame.method) == (epoch, method)]
        return epoch, method, frame.predicted if of_predicted else frame.picture

    def press(selector, key):
        page.focus(selector)
        page.keyboard.press(key)

    assert shown() == expected(2, "cam")
    press("button[data-method='gradcam++']", "Enter")
    assert shown() == expected(2, "gradcam++")
    assert page.get_attribute("button[data-method='gradcam++']", "aria-pressed") == "true"
    assert page.get_attribute("button[data-method=cam]", "aria-pressed") == "false"
    press("#epoch", "ArrowLeft")
    assert shown() == expected(1, "gradcam++"), "the slider moves within the method"
    press(".switch button[data-of=predicted]", "Space")
    assert shown() == expected(1, "gradcam++", of_predicted=True)
    press("#epoch", "ArrowLeft")
    assert shown() == expected(0, "gradcam++"), "where the prediction is right there is one picture"
    press("#epoch", "ArrowRight")
    press("button[data-method=cam]", "Space")
    assert shown() == expected(1, "cam", of_predicted=True)
    page.click("summary:has-text('All epochs')")
    strips = [f.get_attribute("data-method") for f in page.query_selector_all(".strip") if f.is_visible()]
    assert strips == ["cam", "cam"]
    press("#epoch", "End")
    page.click("button[data-kind=mistakes]")
    page.click("button[data-method='gradcam++']")
    finds = [f for f in page.query_selector_all(".kind[data-kind=mistakes] .frame") if f.is_visible()]
    assert len(finds) == 1, "what one method alone has drawn stays"
    page.reload()
    assert page.is_hidden(".kind[data-kind=watched]"), "a page that reloads itself keeps what was chosen"
    page.click("button[data-kind='']")
    assert shown() == expected(2, "gradcam++")
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    context.close()


def test_without_javascript_the_last_epoch_is_shown_and_nothing_that_does_not_work(browser, tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "report.html").write_text(render_page(read_run(folder)), encoding="utf-8")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((folder / "report.html").as_uri())
    assert page.locator("noscript p").is_visible()
    assert not page.locator(".slider").is_visible()
    assert page.locator(".copy").count() > 0
    assert page.locator(".copy:visible").count() == 0
    last = page.locator(".frame").last.get_attribute("data-epoch")
    assert {frame.get_attribute("data-epoch") for frame in page.locator(".frame:visible").all()} == {last}
    context.close()


def test_in_a_browser_runs_stand_side_by_side(browser, tmp_path):
    page_file = tmp_path / "runs.html"
    reports = [read_run(write_run(tmp_path / name)) for name in ("one", "two")]
    page_file.write_text(render_runs(reports), encoding="utf-8")
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(page_file.as_uri())
    left, right = (figure.bounding_box() for figure in page.query_selector_all(".beside >> nth=0 >> figure"))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    assert said == []
    page.close()
