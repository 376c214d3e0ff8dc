"""Which networks a page takes, which methods it offers on each, and which pictures it begins with."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

import camify
from camify.app.networks import MOST_EXAMPLES, example_files, open_networks
from camify.cli.commands import main
from camify.errors import ConfigError, ConversionError, DataError
from camify.methods import METHODS
from camify.preprocessing import Preprocessing
from camify.reports.run_folder import INDEX
from camify.sources import Source

from .conftest import NAMES, Answers


def test_a_legacy_network_is_offered_what_works_without_conversion():
    (network,) = open_networks(["camify/tiny_vgg"])
    assert list(network.served) == [name for name in METHODS if name not in ("cam", "rise")]
    assert next(iter(network.served)) == "gradcam"
    assert any("not offered: cam (needs conversion)" in note for note in network.notes)
    assert any(note.startswith("assumed:") for note in network.notes)


def test_a_checkpoint_is_offered_every_method(converted):
    assert list(converted.served) == [name for name in METHODS if name != "rise"]  # it takes thousands of runs
    assert converted.titles == NAMES


def test_methods_that_run_the_network_thousands_of_times_are_offered_by_name_only(monkeypatch):
    network = nn.Sequential(
        nn.Conv2d(3, 512, 8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 2)
    ).eval()  # fmt: skip
    source = Source(network, "wide", ["ant", "bee"], (), Preprocessing(32))
    monkeypatch.setattr("camify.app.networks.resolve", lambda text: source)
    (made,) = open_networks(["wide"])
    assert {*METHODS} - {*made.served} == {"sscam", "iscam", "rise"}
    assert any("unless named by --method" in note and "iscam 5121" in note for note in made.notes)
    (named,) = open_networks(["wide"], ["gradcam", "iscam"])
    assert list(named.served) == ["gradcam", "iscam"]


@pytest.mark.slow
def test_an_exported_file_offers_its_maps(networks, tmp_path, picture):
    if torch.__version__ < (2, 10):
        pytest.skip("exporting needs torch 2.10")
    file = tmp_path / "ants.onnx"
    camify.export(networks[1], file)
    (network,) = open_networks([str(file)])
    answers = Answers(network)
    assert [choice.kind for choice in answers.choices.values()] == ["object", "plain", "contrast"]
    images = network.preprocessing.read(picture)[None]
    expected = networks[1].predict_boxes(images)[0].numpy()
    view = answers.of(picture).view(next(iter(answers.choices.values())))
    assert (view.boxes / ([180 / 96, 60 / 96] * 2)) == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("count", [0, 3])
def test_one_network_or_two(folder, count):
    with pytest.raises(ConfigError, match=f"{count} networks: give one, or two"):
        open_networks([str(folder)] * count)


def test_two_networks_need_the_same_classes(folder, networks, tmp_path):
    other = camify.convert(networks[0], head="direct", input_size=96, seed=0)
    other.class_names = ["ant", "wasp", "bee"]
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="classes"):
        open_networks([str(folder), str(tmp_path / "other")])


def test_a_method_that_is_named_must_work(folder):
    with pytest.raises(ConversionError, match="cam cannot be used: CAM needs a CAM-ready network"):
        open_networks(["camify/tiny_vgg"], ["gradcam", "cam"])
    with pytest.raises(ConfigError, match="nonsense"):
        open_networks([str(folder)], ["nonsense"])


def test_names_of_classes_come_from_a_file(folder, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("one\ntwo\nthree\n")
    assert open_networks([str(folder)], ["cam"], class_names=str(names))[0].titles == ["one", "two", "three"]
    names.write_text("one\ntwo\n")
    with pytest.raises(DataError, match="3 classes"):
        open_networks([str(folder)], ["cam"], class_names=str(names))


def test_weights_on_the_page_stay_where_they_were_put(folder):
    (network,) = open_networks([str(folder)], ["cam"], device="cpu")
    assert isinstance(network.model, nn.Module)
    with pytest.raises(ConfigError, match="device"):
        open_networks([str(folder)], ["cam"], device="nowhere")


# ---------------------------------------------------------------- pictures to begin with


@pytest.fixture
def run(tmp_path):
    """The folder of a run that watched two images, of which one is gone, and a file that is none."""
    files = [tmp_path / "images" / name for name in ("there.png", "gone.png", "text.png")]
    files[0].parent.mkdir()
    Image.new("RGB", (9, 9)).save(files[0])
    files[2].write_text("no image")
    watched = [{"name": file.stem, "path": str(file)} for file in files] + [{"name": "generated"}]
    index = tmp_path / "run" / INDEX
    index.parent.mkdir(parents=True)
    index.write_text(json.dumps({"watched": watched}))
    return tmp_path / "run"


@pytest.mark.parametrize("part", ["", "export", "best.ckpt"])
def test_examples_are_the_images_that_the_run_watched(run, part):
    source = run / part
    if part:
        source.touch()
    files, said = example_files(None, [str(source)])
    assert [file.name for file in files] == ["there.png"]
    assert "1 of the images" in said


def test_a_run_that_says_nothing_of_its_images_has_no_examples(run, tmp_path):
    (run / INDEX).write_text("[")
    assert example_files(None, [str(run)]) == (
        [],
        f"examples: none, as {run} does not say where its images lie; give --examples",
    )
    assert example_files(None, ["camify/tiny_vgg"])[0] == []
    with pytest.raises(DataError, match="nowhere"):
        example_files(str(tmp_path / "nowhere"), [])


def test_of_a_large_folder_the_first_images_are_shown(tmp_path):
    for number in range(MOST_EXAMPLES + 1):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number:02}.png")
    files, said = example_files(str(tmp_path), [])
    assert len(files) == MOST_EXAMPLES
    assert f"the first of {MOST_EXAMPLES + 1}" in said


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "nowhere"], "device"),
        (["--port", "0"], "port"),
        (["--method", "nonsense"], "nonsense"),
        (["--class_names", "missing.txt"], "missing.txt"),
        (["--examples", "missing"], "missing: no such file or folder"),
        (["--colormap", "nonsense"], "nonsense"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_line(folder, capsys, words, said):
    with pytest.raises(SystemExit) as ended:
        main(["app", str(folder), *words])
    assert ended.value.code == 2
    message = capsys.readouterr().err.strip()
    assert said in message
    assert len(message.splitlines()) == 1


def test_without_gradio_the_command_says_what_to_install(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit):
        main(["app", str(folder), "--method", "cam"])
    assert "pip install 'camify[app]'" in capsys.readouterr().err


def test_an_older_gradio_is_refused(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", SimpleNamespace(__version__="6.9.1"))
    with pytest.raises(SystemExit):
        main(["app", str(folder), "--method", "cam"])
    assert "needs gradio 6.31, here is 6.9.1" in capsys.readouterr().err


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_an_address_that_others_reach_is_said(folder, capsys, monkeypatch, host, warned):
    served = []

    @contextmanager
    def serve(networks, examples, **options):
        served.append(options["host"])
        yield f"http://{options['host']}:7860/"

    monkeypatch.setattr("camify.cli.app.serve", serve)
    monkeypatch.setattr("camify.cli.app.wait_until_stopped", lambda: None)
    main(["app", str(folder), "--method", "cam", *(["--host", host] if warned else [])])
    said = capsys.readouterr().out
    assert served == [host]
    assert ("everybody on that network can reach the page" in said) == warned
    assert f"Page: http://{host}:7860/" in said
