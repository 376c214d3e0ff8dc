"""The run: files in, a folder of pages and figures out, or one clear error and nothing written."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import camify
from camify.cli.commands import main
from camify.data import Preprocessing
from camify.errors import ConfigError, DataError
from camify.evaluation.comparison import compare, compare_files
from camify.evaluation.comparison_report import to_markdown
from camify.evaluation.images import boxes_of_class, image_files, images_with_notes
from camify.evaluation.network import find_networks, shared_titles
from camify.methods import Method, register
from camify.task import Classes

from .conftest import METHOD_NAMES


@pytest.fixture
def checkpoint(tmp_path, networks):
    net = networks[1]
    net.class_names, net.preprocessing = ["ant", "bee", "c|at"], Preprocessing(96).to_dict()
    return net.save_pretrained(tmp_path / "my net")


@pytest.fixture
def photos(tmp_path):
    """Three pictures, two of them with boxes in the table above their folder."""
    folder = tmp_path / "data" / "val" / "bee"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a|b", "<i>x", "plain"):
        Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    (tmp_path / "data" / "boxes.csv").write_text(
        "image,x0,y0,x1,y1,label\nval/bee/a|b.png,10,10,50,50,bee\nval/bee/plain.png,5,5,20,20,bee\n"
        "val/bee/plain.png,40,20,70,50,ant\nval/ant/other.png,0,0,9000,9000,ant\n"
    )
    return folder


def written(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_folder_holds_the_pages_and_the_figures(compared):
    folder, files = compared, written(compared)
    assert {"compare.html", "compare.json", "compare.md", "figures/overview.png"} <= set(files)
    assert len(files) == 3 + 1 + 2 * 3
    with Image.open(folder / "figures" / "overview.png") as picture:
        assert picture.width > 900
    assert [path.name for path in folder.parent.iterdir()] == ["out"], "nothing is left aside"


def test_the_page_stands_alone_and_shows_text_as_text(compared):
    page = (compared / "compare.html").read_text()
    assert "A &lt;script&gt; &amp; title" in page
    assert "&lt;b&gt;0|&lt;/b&gt;" in page
    assert "<script" not in page
    assert "<b>" not in page
    assert "needs conversion" in page
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert links
    assert all(link.startswith(("data:", "#")) for link in links), "no other file or host is needed"
    for heading in (
        "How alike the maps are",
        "Localization",
        "Faithfulness",
        "Changed inputs",
        "Cost",
        "How it was made",
    ):
        assert heading in page


def test_every_table_has_a_note_and_whole_rows(compared):
    text = (compared / "compare.md").read_text()
    blocks = re.findall(r"\*\*[^\n]+\*\*\n\n((?:\|[^\n]+\n)+)\n([^\n]+)\n", text)
    assert len(blocks) == 9
    for table, note in blocks:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1
        assert note.endswith(".")
    for path in re.findall(r"\]\((figures/[^)]+)\)", text):
        assert (compared / path).is_file()
    assert "\\<b\\>0\\|\\</b\\>" in text


def test_the_json_has_every_picture_pair_and_group(compared):
    found = json.loads((compared / "compare.json").read_text())
    assert len(found["images"]) == 5
    assert found["images"][3]["boxes"] is None
    assert found["images"][3]["by_column"]["pointing_15px"] == [None] * 9
    matrix = np.array(found["groups"]["overall"]["agreement"]["pearson"]["mean"], float)
    assert matrix.shape == (9, 9)
    np.testing.assert_allclose(matrix, matrix.T)
    assert "needs a CAM-ready network" in found["models"][0]["cannot_serve"]["cam"]
    assert {"single object", "mirrored input", "shifted input", "class not present"} <= found["groups"].keys()
    assert found["localization"][0]["count"] == 4


def test_without_boxes_there_is_no_localization(explained, pictures, tmp_path):
    folder = compare(explained, [pictures[3]], tmp_path / "out", title="Title")
    text = (folder / "compare.md").read_text()
    assert "## Localization" not in text
    assert "boxes unknown (N 1)" in text
    assert json.loads((folder / "compare.json").read_text())["localization"] == []


@pytest.mark.slow
def test_a_class_by_name_or_number_is_that_of_every_picture(explained, pictures, tmp_path):
    for number, target in enumerate(("c|at", "2")):
        out = compare(explained, pictures, tmp_path / f"out{number}", title="Title", target=target, figures=0)
        images = json.loads((out / "compare.json").read_text())["images"]
        assert {image["compared_class"] for image in images} == {"c|at"}
        # a picture with boxes of bees holds bees, whatever class is compared
        assert all(image["absent_class"] == "ant" for image in images if image["boxes"])
    with pytest.raises(ConfigError, match="no such class"):
        compare(explained, pictures, tmp_path / "no", title="Title", target="dog")
    assert not (tmp_path / "no").exists()


def test_the_command(checkpoint, photos, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["compare", photos, "--model", "camify/tiny_vgg", "--model", checkpoint, "--out", out]
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])  # 6 classes and 3
    assert stop.value.code == 2
    assert "has 3 classes, camify/tiny_vgg has 6" in capsys.readouterr().err
    assert not out.exists()
    main([str(argument) for argument in ["compare", photos, "--model", checkpoint, "--out", out, "--method", "cam"]])
    assert "compare.html" in capsys.readouterr().out
    found = json.loads((out / "compare.json").read_text())
    assert [image["scenario"] for image in found["images"]] == [
        "boxes unknown", "single object", "several instances" if found["images"][2]["compared_class"] == "c|at"
        else "single object" if found["images"][2]["compared_class"] == "ant" else "small object",
    ]  # fmt: skip
    assert found["columns"] == [{"model": "my net", "method": "cam"}]


def test_classes_are_named_by_a_file(checkpoint, photos, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("wolf\nlynx\nbear\n")
    out = tmp_path / "out"
    main(["compare", str(photos), "--model", str(checkpoint), "--out", str(out), "--method", "cam",
          "--class_names", str(names), "--target", "lynx", "--figures", "0"])  # fmt: skip
    images = json.loads((out / "compare.json").read_text())["images"]
    assert {image["compared_class"] for image in images} == {"lynx"}
    names.write_text("wolf\nlynx\n")
    with pytest.raises(DataError, match="holds 2 names, and the network has 3 classes"):
        compare_files([str(photos)], [str(checkpoint)], ["cam"], out=str(tmp_path / "no"), class_names=names)
    assert not (tmp_path / "no").exists()


def test_an_existing_folder_is_only_replaced_when_told_and_a_comparison(checkpoint, photos, tmp_path):
    arguments = {"images": [str(photos)], "models": [str(checkpoint)], "methods": ["cam"], "figures": 0}
    out = compare_files(**arguments, out=str(tmp_path / "out"))
    (out / "figures" / "mine.txt").touch()
    before = written(out)
    with pytest.raises(ConfigError, match="--overwrite true"):
        compare_files(**arguments, out=str(out))
    with pytest.raises(ConfigError, match=r"holds figures/mine\.txt, which camify did not write"):
        compare_files(**arguments, out=str(out), overwrite=True)
    assert written(out) == before
    (out / "figures" / "mine.txt").unlink()
    compare_files(**arguments, out=str(out), overwrite=True)
    assert written(out) == [name for name in before if not name.endswith("mine.txt")]
    with pytest.raises(ConfigError, match="which camify did not write"):
        compare_files(**arguments, out=str(photos), overwrite=True)
    assert len(written(photos)) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": ["nowhere.jpg"]}, "nowhere.jpg: no such file"),
        ({"images": []}, "give IMAGES"),
        ({"models": []}, "give IMAGES"),
        ({"methods": ["cam", "cam"]}, "each one once"),
        ({"methods": ["nocam"]}, "unknown"),
        ({"demo": True}, "--demo: brings its own"),
        ({"demo": True, "images": [], "models": [], "class_names": "names.txt"}, "Leave out IMAGES, .* --class_names"),
        ({"models": ["nothing"]}, "no such network"),
    ],
)
def test_wrong_input_is_said_before_anything_is_written(checkpoint, photos, tmp_path, change, message):
    arguments = {"images": [str(photos)], "models": [str(checkpoint)], "methods": ["cam"], **change}
    with pytest.raises(camify.CamifyError, match=message):
        compare_files(**arguments, out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_boxes_are_read_as_the_data_module_does(photos):
    pictures = {picture.name: picture for picture in images_with_notes(image_files([str(photos)]))[0]}
    torch.testing.assert_close(pictures["a|b.png"].boxes_at(60, 80), torch.tensor([[10.0, 10, 50, 50]]))
    assert pictures["<i>x.png"].boxes is None
    both = pictures["plain.png"]
    assert both.labels == ("bee", "ant")
    assert boxes_of_class(both, "ant").boxes_at(60, 80).tolist() == [[40, 20, 70, 50]]
    assert boxes_of_class(both, "wasp") is both
    table = photos.parents[1] / "boxes.csv"
    table.write_text(table.read_text().replace("val/bee/plain.png,5,5,20,20", "val/bee/plain.png,5,5,2000,20"))
    with pytest.raises(DataError, match=r"boxes.csv:3: .*leaves the image"):
        images_with_notes(image_files([str(photos)]))[0]


def test_a_damaged_picture_is_named(photos):
    (photos / "broken.jpg").write_text("not an image")
    with pytest.raises(DataError, match=r"broken\.jpg"):
        images_with_notes(image_files([str(photos)]))[0]


def test_networks_of_other_classes_are_refused(explained):
    first, second = explained
    assert shared_titles(explained) == ["ant", "bee", "c|at"]
    second.classes = Classes.of(None, None, 3)
    assert shared_titles(explained) == ["ant", "bee", "c|at"]
    first.classes = Classes.of(None, None, 3)
    assert shared_titles(explained) == ["class 0", "class 1", "class 2"]
    first.classes = Classes.of(None, ["ant", "bee", "cat"], 3)
    second.classes = Classes.of(None, ["ant", "cat", "bee"], 3)
    with pytest.raises(ConfigError, match="class 1 is 'cat', that of the legacy 'bee'"):
        shared_titles(explained)


def test_names_of_networks_are_short_and_differ(checkpoint):
    found = find_networks([str(checkpoint), "camify/tiny_vgg", "camify/tiny_vgg"], METHOD_NAMES)
    assert [network.name for network in found] == ["my net", "tiny_vgg (1)", "tiny_vgg (2)"]


def test_a_users_method_works_by_name(checkpoint, photos, tmp_path, clean_methods):
    @register("flat")
    class Flat(Method):
        """Nothing to see."""

        def maps(self, forward, targets_N):
            """Zeros (N, h, w)."""
            return torch.zeros_like(forward.activations[:, 0])

    out = compare_files([str(photos)], [str(checkpoint)], ["cam", "flat"], out=str(tmp_path / "out"), figures=1)
    found = json.loads((out / "compare.json").read_text())
    assert found["columns"][1] == {"model": "my net", "method": "flat"}
    assert found["groups"]["overall"]["agreement"]["pearson"]["mean"][0][1] is None
    assert found["groups"]["overall"]["agreement"]["pearson"]["count"][0][1] == 0
    assert found["groups"]["overall"]["by_column"]["absent_empty"][1] == 1


@pytest.mark.parametrize("text", ["a|b", "<b>", "*x* _y_ `z`", "two\nlines", "[x](y)"])
def test_markdown_shows_text_as_text(text):
    from camify.evaluation.comparison_report import Page

    page = to_markdown(Page(text, "", [], 0, [], []))
    assert page.startswith("# ")
    assert "\n" not in page.split("\n\n")[0]
    assert re.sub(r"\\(.)", r"\1", page.split("\n")[0][2:]) == " ".join(text.split())
    assert not re.search(r"(?<!\\)[|<>*`_\[\]]", page.split("\n")[0])
