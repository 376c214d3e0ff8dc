"""camify explain as a function: what it writes, that it goes on where it stopped, and that its memory is bounded."""

from __future__ import annotations

import copy
import json
import tracemalloc

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import camify
from camify.data import Preprocessing
from camify.evaluation.explain_files import ExplainOptions, explain_files
from camify.evaluation.images import image_files
from camify.evaluation.network import explained_network
from camify.evaluation.timing import folded
from camify.maps import upsample
from camify.sources import Source
from camify.sources.demo_network import TinyVGG

PREPROCESSING = Preprocessing(96, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
NAMES = ["ant", "bee", "cat", "dog"]


@pytest.fixture
def net():
    return camify.convert(TinyVGG(4), head="direct", input_size=96, seed=0).eval()


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for index, (width, height) in enumerate([(120, 80), (96, 96), (60, 150), (100, 100), (90, 70)]):
        pixels = rng.integers(0, 255, (height // 10, width // 10, 3), dtype=np.uint8)
        where = folder / "more" if index == 3 else folder
        Image.fromarray(pixels).resize((width, height)).save(where / ("a.png" if index in (0, 3) else f"{index}.jpg"))
    return folder


def run(net, files, out, options=None, *, methods=("cam",), layer=None, method_options=None, **more):
    source = Source(net, "here", NAMES, preprocessing=PREPROCESSING)
    network = explained_network(source, "here", methods, layer=layer, options=method_options)
    return explain_files(network, files, out, options or ExplainOptions(), **more)


def results(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_what_is_written_follows_from_the_maps(net, photos, tmp_path):
    files = image_files([photos])
    done = run(net, files, tmp_path / "out", ExplainOptions(topk=2), methods=("cam", "gradcam"), batch_size=2)
    assert (done.results, done.before, done.unreadable) == (5, 0, {})
    found = results(tmp_path / "out")
    assert [result["image"] for result in found] == [str(path) for path in files]
    assert sorted(result["name"] for result in found) == ["1", "2", "4", "a", "a_2"]
    for path, result in zip(files, found, strict=True):
        image = PREPROCESSING.read(path)[None]
        with torch.no_grad():
            logits = net(image)[0]
        top = logits.topk(2)
        assert [entry["index"] for entry in result["classes"]] == top.indices.tolist()
        assert [entry["class"] for entry in result["classes"]] == [NAMES[k] for k in top.indices]
        assert [entry["logit"] for entry in result["classes"]] == pytest.approx(top.values.tolist(), abs=1e-4)
        probabilities = logits.softmax(0)[top.indices].tolist()
        assert [entry["probability"] for entry in result["classes"]] == pytest.approx(probabilities, abs=1e-5)
        raw = np.load(tmp_path / "out" / result["raw_maps"])
        assert raw.shape == (2, 2, 6, 6) or raw.shape == (2, 2, 12, 12)
        expected = camify.explain(
            net, image, method=["cam", "gradcam"], targets=top.indices[None], normalize=None, size=None
        )
        np.testing.assert_allclose(raw[:, 0], expected["cam"][0].numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(raw[:, 1], expected["gradcam"][0].numpy(), rtol=1e-4, atol=1e-6)
        with Image.open(tmp_path / "out" / result["picture"]) as picture:
            assert picture.width > picture.height > 300
        with Image.open(path) as image_file:
            assert result["size"] == [image_file.height, image_file.width]


def test_boxes_are_in_pixels_of_the_file(net, photos, tmp_path):
    """By hand: the pixels above the threshold in the heat at file size; one region is checked to a cell."""
    files = [photos / "2.jpg"]  # 60 x 150
    run(net, files, tmp_path / "out", ExplainOptions(threshold=0.5))
    box = results(tmp_path / "out")[0]["classes"][0]["maps"]["cam"]["box"]
    heat = camify.explain(net, PREPROCESSING.read(files[0])[None])[0]
    rows, columns = np.nonzero((heat >= 0.5).numpy())
    x, y = float(heat.argmax() % 96) * 60 / 96, float(heat.argmax() // 96) * 150 / 96
    assert 0 <= box[0] < box[2] <= 60
    assert 0 <= box[1] < box[3] <= 150
    assert columns.min() * 60 / 96 - 0.1 <= box[0]
    assert box[2] <= (columns.max() + 1) * 60 / 96 + 0.1
    assert rows.min() * 150 / 96 - 0.1 <= box[1]
    assert box[3] <= (rows.max() + 1) * 150 / 96 + 0.1
    assert (box[2] - box[0]) * (box[3] - box[1]) > 0
    assert x >= 0
    assert y >= 0


@pytest.fixture
def one_format(monkeypatch):
    """The memory format is found by time; without that, results are equal bit for bit."""
    monkeypatch.setattr("camify.evaluation.explain_files.fastest_format", lambda model, images: "contiguous")


@pytest.mark.usefixtures("one_format")
def test_a_run_goes_on_where_it_stopped(net, photos, tmp_path):
    files, whole, broken = image_files([photos]), tmp_path / "whole", tmp_path / "broken"
    run(net, files, whole, batch_size=2)

    def stops(batches, *_):
        for index, batch in enumerate(batches):
            if index == 2:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        run(net, files, broken, batch_size=2, progress=stops)
    kept = results(broken)
    assert 0 < len(kept) < 5
    with (broken / "results.jsonl").open("a") as file:
        file.write('{"image": "cut o')  # killed in the middle of a line
    done = run(net, files, broken, batch_size=2)
    assert (done.results, done.before) == (5 - len(kept), len(kept))
    assert results(broken) == results(whole)
    for path in whole.iterdir():
        assert (broken / path.name).read_bytes() == path.read_bytes()
    again = run(net, files, broken)
    assert (again.results, again.before) == (0, 5)
    record = broken / "explain.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"task": None}))  # as older versions wrote it
    assert run(net, files, broken).before == 5


def test_another_run_and_strangers_files_are_left_alone(net, photos, tmp_path):
    files, out = image_files([photos]), tmp_path / "out"
    run(net, files, out)
    with pytest.raises(camify.ConfigError, match=r"other settings \(topk\)"):
        run(net, files, out, ExplainOptions(topk=2))
    before = {path: path.read_bytes() for path in out.iterdir()}
    run(net, files, out, ExplainOptions(topk=2), overwrite=True)
    assert any(path.read_bytes() != content for path, content in before.items())
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "a_cam.png").write_bytes(b"my own")
    with pytest.raises(camify.ConfigError, match=r"a_cam\.png: exists"):
        run(net, files, mine)
    for wrong in ({"methods": ("magic",)}, {"methods": ("gradcam",), "layer": "x"}, {"method_options": {"sigma": 1}}):
        with pytest.raises(camify.ConfigError):
            run(net, files, tmp_path / "never", **wrong)
    assert not (tmp_path / "never").exists()
    assert (mine / "a_cam.png").read_bytes() == b"my own"


def test_what_cannot_be_read_is_named_and_the_rest_done(net, photos, tmp_path):
    (photos / "0_broken.jpg").write_text("no image")
    done = run(net, image_files([photos]), tmp_path / "out", batch_size=2)
    assert done.results == 5
    assert list(done.unreadable) == [photos / "0_broken.jpg"]
    assert "cannot be read" in done.unreadable[photos / "0_broken.jpg"]


@pytest.mark.usefixtures("one_format")
def test_workers_decode_the_same(net, photos, tmp_path):
    files = image_files([photos])
    run(net, files, tmp_path / "one", batch_size=2, workers=0)
    run(net, files, tmp_path / "two", batch_size=2, workers=2)
    assert results(tmp_path / "one") == results(tmp_path / "two")


def test_targets_are_explained_in_every_image(net, photos, tmp_path):
    run(net, image_files([photos]), tmp_path / "out", ExplainOptions(targets=(2, 0)))
    assert all(
        [entry["class"] for entry in result["classes"]] == ["cat", "ant"] for result in results(tmp_path / "out")
    )


def differences(net, files):
    """By hand: what autocast changes in the probabilities, and in the maps of the first class, of the network's own."""
    images = torch.stack([PREPROCESSING.read(path) for path in files])
    with torch.no_grad():
        logits, maps = net.eval().forward_with_maps(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low_logits, features = net(images), net.features(images).float()
        low_maps = torch.einsum("kc,nchw->nkhw", net.classifier.weight, features)  # a CAM is computed in float32
    worst = 0.0
    for index, k in enumerate(logits.argmax(1)):
        full, low = maps[index, k], low_maps[index, k]
        worst = max(worst, float((low - full).abs().max() / full.abs().max()))
    return float((low_logits.float().softmax(1) - logits.softmax(1)).abs().max()), worst


def test_reduced_precision_and_jpeg(net, photos, tmp_path):
    files = image_files([photos])
    run(net, files, tmp_path / "full")
    done = run(net, files, tmp_path / "half", ExplainOptions(precision="bf16", picture="jpg"))
    assert done.precision_error == pytest.approx(differences(net, files[:4]), rel=1e-4)
    assert 0 < done.precision_error[0] < 0.02
    assert 0 < done.precision_error[1] < 0.1
    for full, half in zip(results(tmp_path / "full"), results(tmp_path / "half"), strict=True):
        assert half["classes"][0]["probability"] == pytest.approx(full["classes"][0]["probability"], abs=0.02)
        assert half["picture"].endswith(".jpg")
        with Image.open(tmp_path / "half" / half["picture"]) as picture:
            assert picture.format == "JPEG"


def test_the_memory_format_changes_no_result(net, photos, tmp_path, monkeypatch):
    files = image_files([photos])
    run(net, files, tmp_path / "plain", batch_size=1)

    def to_channels_last(model, images):
        model.to(memory_format=torch.channels_last)
        return "channels_last"

    monkeypatch.setattr("camify.evaluation.explain_files.fastest_format", to_channels_last)
    monkeypatch.setattr("camify.evaluation.explain_files._FEW", 0)
    done = run(net, files, tmp_path / "last", batch_size=1)
    assert done.memory_format == "channels_last"
    for plain, last in zip(results(tmp_path / "plain"), results(tmp_path / "last"), strict=True):
        a, b = np.load(tmp_path / "plain" / plain["raw_maps"]), np.load(tmp_path / "last" / last["raw_maps"])
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_memory_hardly_grows_with_the_number_of_images(tmp_path):
    """Names, paths and lines of text alone are kept, 1 to 2 KB an image: of what Python and NumPy hold."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, stride=4, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(4, 3),
    ).eval()  # fmt: skip
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "0.png")
    files = [tmp_path / f"{index}.png" for index in range(200)]
    for path in files[1:]:
        path.hardlink_to(files[0])
    network = explained_network(Source(model, "here", preprocessing=Preprocessing(32)), "here", ("cam",))
    peaks = []
    for count in (10, 50, 200):  # the first fills what is computed once
        tracemalloc.start()
        explain_files(network, files[:count], tmp_path / f"out{count}", ExplainOptions(size=32), workers=0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[2] - peaks[1]) / 150 < 4000


@pytest.mark.parametrize("wrong", [{"topk": 0}, {"threshold": 1.0}, {"picture": "gif"}, {"precision": "int8"}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(camify.ConfigError, match=next(iter(wrong))):
        ExplainOptions(**wrong)


def test_folding_batch_norms_changes_no_result_and_not_the_network(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("camify.evaluation.explain_files._FEW", 0)
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=4).eval()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    before = copy.deepcopy(model.state_dict())
    assert not any(
        isinstance(layer, torch.nn.BatchNorm2d) for layer in folded(model, torch.rand(2, 3, 96, 96)).modules()
    )
    run(model, image_files([photos]), tmp_path / "out", methods=("gradcam",))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for result in results(tmp_path / "out"):
        image = PREPROCESSING.read(result["image"])[None]
        raw = camify.explain(model, image, method="gradcam", normalize=None, size=None)[0].numpy()
        found = np.load(tmp_path / "out" / result["raw_maps"])[0, 0]
        np.testing.assert_allclose(found, raw, rtol=1e-3, atol=1e-3 * float(np.abs(raw).max()))
    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    assert folded(plain, torch.rand(1, 3, 9, 9)) is plain


class Recurrent(torch.nn.Module):
    """One convolution, used twice, with a norm of its own each time."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.shared = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.norm1, self.norm2 = torch.nn.BatchNorm2d(8), torch.nn.BatchNorm2d(8)
        self.classifier = torch.nn.Linear(8, 4)

    def forward(self, images):
        value = self.norm1(self.shared(self.first(images))).relu()
        value = self.norm2(self.shared(value)).relu()
        return self.classifier(value.mean((2, 3)))


def test_a_convolution_that_is_used_twice_is_not_folded(photos, tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = Recurrent().eval()
    for norm, variance in ((model.norm1, 0.3), (model.norm2, 2.0)):
        norm.running_mean.normal_()
        norm.running_var.fill_(variance)
    images = torch.rand(5, 3, 32, 32)
    assert folded(model, images) is model
    monkeypatch.setattr("camify.evaluation.explain_files._FEW", 0)
    monkeypatch.setattr("camify.evaluation.explain_files.fastest_format", lambda model, images: "contiguous")
    run(model, image_files([photos]), tmp_path / "out", methods=("gradcam",))
    for result in results(tmp_path / "out"):
        with torch.no_grad():
            logits = model(PREPROCESSING.read(result["image"])[None])[0]
        assert result["classes"][0]["logit"] == pytest.approx(float(logits.max()), rel=1e-4)


def test_a_fold_that_breaks_numerically_is_not_taken(monkeypatch):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten()).eval()
    images = torch.rand(2, 3, 9, 9)
    assert folded(model, images) is not model
    with torch.no_grad():
        torch.testing.assert_close(folded(model, images)(images), model(images))
    model[0].weight.data.fill_(torch.nan)
    assert folded(model, images) is model, "NaN is not equal"


# --- pictures in their own shape --------------------------------------------------------------------------


@pytest.fixture
def wide(tmp_path):
    path = tmp_path / "wide.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 120, 3), dtype=np.uint8)).save(path)
    return path


def test_a_picture_keeps_its_shape(net, wide, tmp_path):
    square = tmp_path / "square.png"
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(square)
    run(net, [wide, square], tmp_path / "out")
    sizes = []
    for name in ("wide", "square"):
        with Image.open(tmp_path / "out" / f"{name}_cam.png") as picture:
            sizes.append(picture.size)
    assert sizes[0][0] == sizes[1][0], "both are 224 pixels wide"
    assert sizes[1][1] - sizes[0][1] == 224 - 75, "and 75 or 224 high"


def test_the_original_resolution(net, wide, tmp_path):
    run(net, [wide], tmp_path / "out", ExplainOptions(size="original", topk=2))
    (row,) = results(tmp_path / "out")
    pictures = [entry["maps"]["cam"]["picture"] for entry in row["classes"]]
    assert pictures == ["wide_cam.png", "wide_cam_2.png"]
    assert row["picture"] == pictures[0]
    for name in pictures:
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.size == (120, 40)


@pytest.mark.parametrize("size", [31, 4097, "large", 0, 1.5])
def test_sizes_that_cannot_be(size):
    with pytest.raises(camify.ConfigError, match="choose 32 to 4096 pixels, or 'original'"):
        ExplainOptions(size=size)


def test_maps_of_unlike_sizes_are_stored_in_the_largest_ones(photos, tmp_path):
    torch.manual_seed(0)
    net = TinyVGG(4).eval()  # a convolution with a bias and a batch norm are two parts of FullGrad: not folded
    files = image_files([photos])[:2]
    options = {"samples": 20}
    names = ["gradcam", "fullgrad", "rise"]
    done = run(net, files, tmp_path / "out", methods=names, method_options=options)
    assert done.notes == ["Raw maps are stored at the largest one's 96 x 96: upsampled are gradcam"]
    for path, result in zip(files, results(tmp_path / "out"), strict=True):
        raw = np.load(tmp_path / "out" / result["raw_maps"])
        (entry,) = result["classes"]
        image, target = PREPROCESSING.read(path)[None], entry["index"]
        maps = camify.explain(net, image, method=names, targets=target, normalize=None, size=None, **options)
        assert raw.shape == (1, 3, 96, 96)
        for place, (name, expected) in enumerate(maps.items()):
            large = expected if name != "gradcam" else upsample(expected, (96, 96))
            np.testing.assert_allclose(raw[0, place], large[0].numpy(), rtol=1e-3, atol=1e-4 * float(large.abs().max()))
            assert entry["maps"][name]["high"] == pytest.approx(float(raw[0, place].max()))
    assert run(net, files, tmp_path / "one", methods=["fullgrad"]).notes == []
