"""The camify command, from arguments to files."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import camify
import camify.cli.commands
from camify.cli.commands import main
from camify.conversion import Source
from camify.data import Preprocessing
from camify.sources.demo_network import TinyVGG


@pytest.fixture
def folder(tmp_path):
    """A CAM-ready checkpoint of three classes."""
    torch.manual_seed(0)
    net = camify.convert(TinyVGG(3), head="direct", input_size=96, seed=0)
    net.class_names = ["ant", "bee", "c|at"]
    net.preprocessing = Preprocessing(96)
    return net.save_pretrained(tmp_path / "model")


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "in" / "my photo.png"
    path.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)).save(path)
    return path


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    assert left.value.code == 2
    output = capsys.readouterr()
    lines = output.err.strip().splitlines()
    assert len(lines) == 1, output.err
    assert lines[0].startswith("camify: error: ")
    return lines[0]


def test_inspect_prints_the_verdict_and_the_next_step(capsys):
    main(["inspect", "torchvision/squeezenet1_0", "--input_size", "96"])
    printed = capsys.readouterr().out
    assert "convertible" in printed
    assert "camify convert torchvision/squeezenet1_0" in printed


def test_convert_saves_a_folder_that_loads(tmp_path, capsys):
    out = tmp_path / "out"
    main(["convert", "camify/tiny_vgg", str(out), "--head", "direct", "--input_size", "96", "--seed", "1"])
    assert "identity" in capsys.readouterr().out
    net = camify.load(out)
    assert net.certificate.map_size == (12, 12)
    assert net.certificate.source == "camify/tiny_vgg"


def test_convert_takes_a_recipe(tmp_path, capsys):
    out, source = tmp_path / "out", "torchvision/googlenet@none"
    main(["convert", source, str(out), "--recipe", "zhou2016/googlenet-gap-released", "--input_size", "64"])
    assert "Recipe zhou2016/googlenet-gap-released" in " ".join(capsys.readouterr().out.split())
    net = camify.load(out)
    assert net.certificate.feature_layer == "inception4e"
    assert net.features.cam_conv.groups == 2
    error = refused(
        capsys, "convert", "camify/tiny_vgg", tmp_path / "no", "--recipe", "choe2020/vgg16", "--input_size", 96
    )
    assert "is for VGG16" in error
    assert not (tmp_path / "no").exists()


def test_explain_draws_the_map_of_the_predicted_class(folder, photo, tmp_path, capsys):
    main(["explain", str(photo), "--model", str(folder), "--out", str(tmp_path / "out")])
    with Image.open(tmp_path / "out" / "my_photo_cam.png") as picture:
        assert picture.width > picture.height > 100
    net = camify.load(folder)
    with torch.no_grad():
        predicted = int(net(Preprocessing(96).read(photo)[None]).argmax())
    assert net.class_names[predicted] in capsys.readouterr().out


def test_explain_fuses_the_layers_that_are_listed(folder, photo, tmp_path):
    out, layers = tmp_path / "out", ["features.9", "features.20"]
    arguments = ["--method", "layercam", "--layer", ", ".join(layers), "--out", str(out)]
    main(["explain", str(photo), "--model", str(folder), *arguments])
    net = camify.load(folder)
    expected = camify.explain(net, photo, method="layercam", layer=layers, normalize=None, size=None)
    np.testing.assert_allclose(np.load(out / "my_photo.npy")[0, 0], expected[0].numpy(), atol=1e-4)


def test_explain_says_which_methods_know_no_class_and_which_are_slow(photo, tmp_path, capsys):
    torch.manual_seed(0)
    model = camify.convert(TinyVGG(3, widths=(4, 4, 4, 4)), head="direct", input_size=96, seed=0)
    model.preprocessing = Preprocessing(96)
    folder, out = model.save_pretrained(tmp_path / "narrow"), tmp_path / "out"
    arguments = ["--method", "hirescam", "eigencam", "iscam", "--options", "{samples: 2}", "--targets", "0", "1"]
    main(["explain", str(photo), "--model", str(folder), *arguments, "--out", str(out)])
    printed = " ".join(capsys.readouterr().out.split())
    assert "The same map for every class: eigencam." in printed
    assert "512 channels by iscam 1,025 times." in printed
    first, second = np.load(out / "my_photo.npy")
    assert [np.array_equal(first[index], second[index]) for index in range(3)] == [False, True, False]


def test_class_names_come_from_a_file(photo, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"thing {index}" for index in range(6)))
    source, out = "camify/tiny_vgg", str(tmp_path / "out")
    main(["explain", str(photo), "--model", source, "--method", "gradcam", "--class_names", str(names), "--out", out])
    assert "thing " in capsys.readouterr().out
    main(["convert", source, str(tmp_path / "net"), "--input_size", "96", "--class_names", str(names)])
    assert camify.load(tmp_path / "net").class_names == names.read_text().split("\n")
    names.write_text("one\ntwo\none\n")
    command = ("explain", photo, "--model", source, "--method", "gradcam", "--out", tmp_path / "no", "--class_names")
    assert "line 3: 'one' stands there twice" in refused(capsys, *command, names)
    names.write_text("one\ntwo\n")
    assert "holds 2 names, and the network has 6" in refused(capsys, *command, names)
    assert "cannot be read" in refused(capsys, *command, tmp_path)
    assert not (tmp_path / "no").exists()


def test_explain_takes_folders_a_class_and_never_replaces_unasked(folder, photo, tmp_path, capsys):
    arguments = ["explain", photo.parent, "--model", folder, "--out", tmp_path / "out", "--targets", "bee"]
    main([str(argument) for argument in arguments])
    assert "bee" in capsys.readouterr().out
    before = (tmp_path / "out" / "my_photo_cam.png").read_bytes()
    other = [*arguments[:-1], "ant"]
    assert "--overwrite" in refused(capsys, *other)
    assert (tmp_path / "out" / "my_photo_cam.png").read_bytes() == before
    main([str(argument) for argument in [*other, "--overwrite", "true"]])
    assert (tmp_path / "out" / "my_photo_cam.png").read_bytes() != before


def test_pictures_of_one_name_do_not_overwrite_each_other(folder, photo, tmp_path):
    twin = tmp_path / "other" / "my photo.png"
    twin.parent.mkdir()
    twin.write_bytes(photo.read_bytes())
    main(["explain", str(photo), str(twin), "--model", str(folder), "--out", str(tmp_path / "out")])
    assert len(list((tmp_path / "out").glob("*_cam.png"))) == 2


def test_wrong_input_is_one_line_and_exit_code_2(folder, photo, tmp_path, capsys):
    broken = tmp_path / "broken.jpg"
    broken.write_text("not an image")
    assert "no such classifier" in refused(capsys, "inspect", "torchvision/nothing")
    assert "missing: SOURCE (see camify inspect --help)" in refused(capsys, "inspect")
    assert "camify fitt: there is no such command. Did you mean fit?" in refused(capsys, "fitt")
    assert "Did you mean explain?" in refused(capsys, "explian", photo)
    assert "Commands: fit, validate" in refused(capsys, "xyzzy")
    assert "--methd cam. Did you mean --method?" in refused(capsys, "explain", photo, "--methd", "cam")
    assert "Did you mean" not in refused(capsys, "inspect", "torchvision/alexnet", "--zzzz", "1")
    assert "gap" in refused(capsys, "convert", "camify/tiny_vgg", tmp_path / "x", "--head", "best")
    assert "input_size" in refused(capsys, "inspect", "torchvision/alexnet", "--input_size", "30")
    assert "nowhere.jpg" in refused(capsys, "explain", "nowhere.jpg", "--model", folder, "--out", tmp_path / "out")
    assert "no such class" in refused(
        capsys, "explain", photo, "--model", folder, "--out", tmp_path / "out", "--targets", "dog"
    )
    assert "no such module" in refused(
        capsys, "explain", photo, "--model", folder, "--out", tmp_path / "no", "--method", "gradcam", "--layer", "x"
    )
    assert "is unknown" in refused(
        capsys, "explain", photo, "--model", folder, "--out", tmp_path / "no", "--method", "magic"
    )
    assert "camify.convert" in refused(capsys, "explain", photo, "--model", "camify/tiny_vgg", "--out", tmp_path / "no")
    assert "1 could not be read" in refused(capsys, "explain", broken, "--model", folder, "--out", tmp_path / "no")
    assert not (tmp_path / "out").exists(), "nothing is written before everything is known to be right"


def test_a_users_folder_is_not_overwritten(photo, capsys):
    assert "did not write" in refused(
        capsys, "convert", "camify/tiny_vgg", photo.parent, "--head", "direct", "--input_size", "96"
    )
    assert photo.is_file()


def test_the_module_is_the_command():
    import camify.__main__ as entry

    assert entry.main is camify.cli.main


def test_converting_a_checkpoint_keeps_what_it_knows_of_its_input(folder, tmp_path):
    net = camify.load(folder)
    net.preprocessing = Preprocessing(96, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    net.save_pretrained(folder)
    main(["convert", str(folder), str(tmp_path / "again"), "--head", "direct", "--input_size", "96"])
    again = camify.load(tmp_path / "again")
    assert again.preprocessing == net.preprocessing
    assert again.class_names == net.class_names


@pytest.mark.parametrize(
    ("source", "mean"),
    [("camify/tiny_vgg", [0.5, 0.5, 0.5]), ("torchvision/squeezenet1_0@none", [0.485, 0.456, 0.406])],
)
def test_a_conversion_is_saved_with_the_preprocessing_of_its_source(tmp_path, capsys, source, mean):
    main(["convert", source, str(tmp_path / "out"), "--head", "direct", "--input_size", "96"])
    assert camify.load(tmp_path / "out").preprocessing.mean == tuple(mean)
    printed = capsys.readouterr().out
    assert ("Assumed: ImageNet's normalization at 96 px" in printed) == source.startswith("torchvision")


def test_the_input_size_is_the_weights_own_unless_given(tmp_path, monkeypatch):
    expected = Preprocessing(64, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    network = torchvision.models.squeezenet1_1(num_classes=3)
    source = Source(network, "a source", ["ant", "bee", "cat"], preprocessing=expected)
    monkeypatch.setattr("camify.cli.networks.resolve", lambda name: source)
    main(["convert", "named", str(tmp_path / "own"), "--head", "direct"])
    net = camify.load(tmp_path / "own")
    assert net.certificate.input_shape == (3, 64, 64)
    assert net.preprocessing == expected
    assert net.class_names == ["ant", "bee", "cat"]
    main(["convert", "named", str(tmp_path / "given"), "--head", "direct", "--input_size", "96"])
    net = camify.load(tmp_path / "given")
    assert net.certificate.input_shape == (3, 96, 96)
    assert net.preprocessing == replace(expected, size=96)


def test_importing_camify_and_starting_the_command_line_takes_little_beyond_torch():
    """Lightning and torchmetrics take as long to import as torch does, and only training and its metrics need them."""
    code = (
        "import sys, camify; camify.convert, camify.explain;"
        " print(sorted({'pytorch_lightning', 'torchmetrics', 'pandas', 'rich', 'matplotlib'} & {*sys.modules}));"
        " import camify.cli; print(sorted({'pytorch_lightning', 'torchmetrics', 'pandas'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]


@pytest.mark.parametrize("module", ["commands", "train"])
def test_ctrl_c_while_modules_are_imported_leaves_with_130(module, monkeypatch):
    def interrupted(name, package):
        assert (name, package) == (f".{module}", "camify.cli")
        raise KeyboardInterrupt

    monkeypatch.setattr("camify.cli.import_module", interrupted)
    with pytest.raises(SystemExit) as left:
        camify.cli.main(["--help"], module=module)
    assert left.value.code == 130
