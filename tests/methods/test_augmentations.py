"""Maps as the mean over an image and its views: by hand in float64, cell by cell, and by identities."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import camify
from camify import explain, methods
from camify.boxes import BoxRule
from camify.cli.commands import main
from camify.data import Preprocessing
from camify.evaluation.explain_files import ExplainOptions, explain_files
from camify.evaluation.network import box_maps, explained_network
from camify.methods import make_methods, observe
from camify.model import CAMNet
from camify.sources import Source
from camify.task import Task

SIDES = (24, 32)  # six by eight cells of four pixels
TARGETS = [2, 0]


def network(*, head="gap"):
    torch.manual_seed(1)
    features = [nn.Conv2d(3, 5, 3, 2, 1), nn.ReLU(), nn.Conv2d(5, 4, 3, 2, 1), nn.ReLU()]
    pooled = [nn.AdaptiveAvgPool2d(1 if head == "gap" else 2), nn.Flatten()]
    behind = [nn.Linear(4, 3)] if head == "gap" else [nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3)]
    if head == "fixed":
        pooled, behind = [nn.Flatten()], [nn.Linear(4 * 48, 3)]
    return nn.Sequential(*features, *pooled, *behind).double().eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, *SIDES, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def raw(net, images, name="cam", **options):
    return explain(net, images, method=name, targets=TARGETS, normalize=None, size=None, **options)


def assert_equals(found, expected):
    assert float(expected.abs().max()) > 1e-4
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------- by hand


def moved(image, down, right):
    """With NumPy: wider by its edges, then cut."""
    height, width = image.shape[-2:]
    wide = np.pad(image.numpy(), [(0, 0)] * (image.ndim - 2) + [(2, 2), (2, 2)], mode="edge")
    return torch.from_numpy(wide[..., 2 - down : 2 - down + height, 2 - right : 2 - right + width].copy())


def sampled(map_hw, y, x):
    """Bilinear between four cells, or None beyond the centers of the outermost ones."""
    height, width = map_hw.shape
    if not (0 <= y <= height - 1 and 0 <= x <= width - 1):
        return None
    total = 0.0
    for row, column in itertools.product({math.floor(y), math.ceil(y)}, {math.floor(x), math.ceil(x)}):
        total += (1 - abs(y - row)) * (1 - abs(x - column)) * float(map_hw[row, column])
    return total


def by_hand(net, image, target, augmentations):
    """The mean of all that was seen of a cell."""

    def cam(seen):
        return torch.einsum("chw,c->hw", net[:4](seen[None])[0], net[-1].weight[target]).detach()

    plain = cam(image)
    height, width = plain.shape
    values = [[[float(plain[y, x])] for x in range(width)] for y in range(height)]
    views = []
    if "flip" in augmentations:
        views.append(cam(image.flip(-1)).flip(-1))
    if "sizes" in augmentations:
        for sides in ((20, 28), (28, 36)):  # one cell fewer and one more: 7/8 and 9/8 of six and eight
            small = nn.functional.interpolate(image[None], sides, mode="bilinear", antialias=True)[0]
            seen = cam(small)
            assert seen.shape == (sides[0] // 4, sides[1] // 4)
            views.append(nn.functional.interpolate(seen[None, None], plain.shape, mode="bilinear")[0, 0])
    for view, y, x in itertools.product(views, range(height), range(width)):
        values[y][x].append(float(view[y, x]))
    if "shifts" in augmentations:
        for down, right in itertools.product((-1, 1), (-1, 1)):
            seen = cam(moved(image, down, right))
            for y, x in itertools.product(range(height), range(width)):
                value = sampled(seen, y + down / 4, x + right / 4)
                if value is not None:
                    values[y][x].append(value)
    return torch.tensor([[sum(cell) / len(cell) for cell in row] for row in values], dtype=torch.float64)


EACH = [["flip"], ["shifts"], ["sizes"], ["flip", "shifts", "sizes"]]


@pytest.mark.parametrize("augmentations", EACH, ids="-".join)
def test_cam_by_hand(images, augmentations):
    net = network()
    expected = torch.stack([by_hand(net, *pair, augmentations) for pair in zip(images, TARGETS, strict=True)])
    assert_equals(raw(net, images, augmentations=augmentations), expected)
    assert not torch.allclose(expected, raw(net, images), rtol=1e-3)


def test_views_are_listed_and_moved_as_they_say(images):
    flip, *shifts, smaller, larger = methods.views_of(["flip", "shifts", "sizes"], SIDES, (6, 8))
    assert torch.equal(flip.of(images), images.flip(-1))
    assert [view.shift for view in shifts] == [(-1, -1), (-1, 1), (1, -1), (1, 1)]  # a quarter of four pixels
    for view in shifts:
        assert torch.equal(view.of(images), moved(images, *view.shift))
    assert (smaller.size, larger.size) == ((20, 28), (28, 36))
    assert [view.size for view in methods.views_of(["sizes"], (224, 224), (14, 14))] == [(192, 192), (256, 256)]
    assert [view.size for view in methods.views_of(["sizes"], (8, 32), (1, 2))] == [(8, 16), (16, 48)]
    assert {view.shift for view in methods.views_of(["shifts"], (96, 64), (3, 2))} == {
        (y, x) for y in (-8, 8) for x in (-8, 8)
    }


# ---------------------------------------------------------------- identities


def test_with_flips_cam_is_the_mean_of_cam_and_its_flipped_twin(images):
    net = network()
    twin = raw(net, images.flip(-1)).flip(-1)
    found = raw(net, images, augmentations="flip")
    assert_equals(found, (raw(net, images) + twin) / 2)
    logits = (net(images) + net(images.flip(-1))) / 2
    chosen = logits.detach().gather(1, torch.tensor(TARGETS)[:, None])[:, 0]
    assert_equals(found.mean((1, 2)) + net[-1].bias.detach()[TARGETS], chosen)
    assert_equals(raw(net, images.flip(-1), augmentations="flip").flip(-1), found)


def test_a_network_that_sees_single_pixels_has_the_same_map(images):
    """Moved and mirrored images have moved and mirrored maps: brought back they are the plain one, also at borders."""
    torch.manual_seed(2)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    net = net.double().eval()
    assert_equals(raw(net, images, augmentations=["flip", "shifts"]), raw(net, images))


def test_shifts_keep_a_linear_map():
    """Cells of means of a ramp: sampled between its cells a linear map is linear; edges alone are filled."""
    net = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(3, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 3))
    net = net.double().eval()
    ramp = (torch.arange(24.0)[:, None] + 2 * torch.arange(32.0)).double().expand(1, 3, -1, -1)
    plain, found = (
        explain(net, ramp, targets=1, normalize=None, size=None, layer=None, augmentations=names)
        for names in ((), "shifts")
    )
    assert_equals(found[:, 1:-1, 1:-1], plain[:, 1:-1, 1:-1])


@pytest.mark.parametrize("name", list(methods.METHODS))
def test_every_method_with_flips_is_the_mean_of_two(images, name):
    net = network(head="gap" if name == "cam" else "deep")
    options = {"samples": 2} if name in ("smoothgradcam++", "sscam", "iscam", "rise") else {}
    twin = raw(net, images.flip(-1), name, **options).flip(-1)
    assert_equals(
        raw(net, images, name, augmentations="flip", **options), (raw(net, images, name, **options) + twin) / 2
    )


def test_without_augmentations_maps_are_bit_for_bit_the_same(images):
    net = network(head="deep")
    for name in ("gradcam", "scorecam"):
        for nothing in ((), None, []):
            assert torch.equal(raw(net, images, name, augmentations=nothing), raw(net, images, name))


def test_several_classes_and_layers(images):
    net = network(head="deep")
    targets = torch.tensor([[2, 0], [1, 2]])
    layers = ["1", "3"]
    names = ["flip", "shifts", "sizes"]
    found = explain(
        net, images, method=["gradcam", "layercam"], targets=targets, layer="3", normalize=None, size=None,
        augmentations=names,
    )  # fmt: skip
    fused = explain(
        net, images, method="layercam", targets=targets, layer=layers, normalize=None, size=None, augmentations=names
    )
    assert fused.shape == (2, 2, 12, 16)
    for place in range(2):
        alone = {"method": "layercam", "targets": targets[:, place], "normalize": None, "size": None}
        assert_equals(found["layercam"][:, place], explain(net, images, layer="3", augmentations=names, **alone))
        assert_equals(fused[:, place], explain(net, images, layer=layers, augmentations=names, **alone))


# ---------------------------------------------------------------- cost


def test_views_are_run_once_for_all_methods_and_classes(images):
    net, calls = network(head="deep"), []
    first = net[0].forward
    net[0].forward = lambda x: calls.append(len(x)) or first(x)
    options = {"method": ["gradcam", "hirescam", "reciprocam", "lafam"], "targets": torch.tensor([[2, 0], [1, 2]])}
    options |= {"normalize": None, "size": None}
    explain(net, images, **options)
    calls.clear()
    explain(net, images, **options)
    plain = len(calls)
    calls.clear()
    explain(net, images, **options, augmentations=["flip", "shifts", "sizes"])
    assert plain == 1
    assert len(calls) == 8
    made = make_methods(net, ["gradcam", "scorecam"], augmentations="flip")
    assert made["gradcam"].all_forwards(4) == 1
    assert made["scorecam"].all_forwards(4) == 1 + 2 * 5
    assert make_methods(net, ["scorecam"])["scorecam"].all_forwards(4) == 5


# ---------------------------------------------------------------- what networks there are


class Gated(nn.Module):
    """Code that torch.fx cannot follow."""

    def __init__(self):
        super().__init__()
        self.features, self.head = network()[:4], nn.Linear(4, 3).double()

    def forward(self, x):
        x = self.features(x)
        if float(x.detach().sum()) > -1e9:
            x = x.mean((2, 3))
        return self.head(x)


def test_a_network_that_cannot_be_traced(images):
    torch.manual_seed(3)
    net = Gated().eval()
    traced = nn.Sequential(net.features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.head)
    names = ["flip", "shifts", "sizes"]
    assert_equals(raw(net, images, "gradcam", augmentations=names), raw(traced, images, "gradcam", augmentations=names))


def test_half_precision_and_one_logit():
    torch.manual_seed(3)
    net = CAMNet(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU()), nn.Linear(4, 1)).eval()
    net.task = Task.BINARY
    images = torch.randn(1, 3, 16, 16)
    options = {"targets": 1, "normalize": None, "size": None, "augmentations": ["flip", "shifts", "sizes"]}
    whole = explain(net, images, **options)
    half = explain(net.bfloat16(), images.bfloat16(), **options)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, whole, rtol=0.05, atol=0.02)


def test_what_cannot_be_is_said(images):
    net = network(head="fixed")
    with pytest.raises(camify.ConfigError, match=r"runs images of 24 x 32, but not of 20 x 28, .* Leave 'sizes' out"):
        raw(net, images, "gradcam", augmentations="sizes")
    assert raw(net, images, "gradcam", augmentations=["shifts", "flip"]).shape == (2, 6, 8)
    for wrong in ("rotate", ["flip", 3], 7, [["flip"]]):
        with pytest.raises(camify.ConfigError, match=r"augmentations=.* is unknown. Choose one or several of flip, sh"):
            raw(net, images, "gradcam", augmentations=wrong)


def test_lack_of_memory_and_bad_values_are_no_matter_of_sizes(images):
    net = network(head="deep")
    first, error = net[0].forward, torch.OutOfMemoryError("CUDA out of memory")

    def run(x):
        if x.shape[-1] > SIDES[1]:
            raise error
        return first(x)

    net[0].forward = run
    with pytest.raises(torch.OutOfMemoryError):
        raw(net, images, "gradcam", augmentations="sizes")
    net[0].forward = lambda x: first(x) * (torch.nan if x.shape[-1] > SIDES[1] else 1)
    with pytest.raises(camify.DataError, match="not finite"):
        raw(net, images, "gradcam", augmentations="sizes")


# ---------------------------------------------------------------- boxes, folders, commands


def cam_network(rule=None):
    torch.manual_seed(5)
    layers = [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU()]
    net = CAMNet(nn.Sequential(*layers), nn.Linear(8, 3)).eval()
    net.class_names, net.preprocessing, net.box_rule = ["ant", "bee", "cat"], Preprocessing(SIDES), rule
    return net


def maps_that_are_cut(net, rule, images, augmentations):
    (method,) = make_methods(net, ["cam"], augmentations=augmentations).values()
    with observe(net, images) as forward:
        targets = torch.tensor([[2, 1], [0, 2]])
        return box_maps(method, rule, forward, method.raw_maps(forward, targets), targets)


def test_a_rule_with_the_mirrored_image_counts_it_once(images):
    images, net = images.float(), cam_network()
    rule = BoxRule(flip=True, clamp_weights=True)
    plain = maps_that_are_cut(net, rule, images, ())
    torch.testing.assert_close(maps_that_are_cut(net, rule, images, "flip"), plain, rtol=1e-5, atol=1e-6)
    clamped = cam_network()
    clamped.classifier.weight.data.clamp_(min=0)
    targets = torch.tensor([[2, 1], [0, 2]])
    expected = explain(
        clamped, images, targets=targets, normalize=None, size=None, augmentations=["flip", "shifts", "sizes"]
    )  # each of the eight once
    found = maps_that_are_cut(net, rule, images, ["flip", "shifts", "sizes"])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    shifted = maps_that_are_cut(net, BoxRule(clamp_weights=True), images, "shifts")
    mirrored = maps_that_are_cut(net, BoxRule(clamp_weights=True), images.flip(-1), "shifts").flip(-1)
    both = maps_that_are_cut(net, rule, images, "shifts")  # the rule mirrors every view
    torch.testing.assert_close(both, (shifted + mirrored) / 2, rtol=1e-5, atol=1e-6)


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(2)
    (tmp_path / "in" / "bee").mkdir(parents=True)
    for index in range(2):
        pixels = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 48)).save(tmp_path / "in" / "bee" / f"{index}.png")
    return sorted((tmp_path / "in" / "bee").iterdir())


def test_explained_boxes_are_those_of_the_mean_map(photos, tmp_path):
    rule = BoxRule(threshold=0.6)
    net = cam_network(rule)
    network = explained_network(Source.of(net), "here", ("cam",), augmentations=["sizes", "flip"])
    explain_files(network, photos, tmp_path / "out", ExplainOptions(targets=(1,)))
    images = torch.stack([net.preprocessing.read(path) for path in photos])
    maps = explain(net, images, targets=1, normalize=None, size=None, augmentations=["flip", "sizes"])
    boxes = [box[0] * 2 for box in rule.boxes(maps, SIDES)]  # the files are of twice the size
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    for line, box, map_hw in zip(lines, boxes, maps, strict=True):
        assert line["classes"][0]["maps"]["cam"]["box"] == pytest.approx(box.tolist(), abs=0.051)
        stored = np.load(tmp_path / "out" / line["raw_maps"])
        np.testing.assert_allclose(stored[0, 0], map_hw.numpy(), rtol=1e-4, atol=1e-6)


def test_the_commands(photos, tmp_path, capsys):
    net = cam_network()
    folder, root, out = net.save_pretrained(tmp_path / "net"), tmp_path / "in", tmp_path / "out"
    common = ["--model", str(folder), "--augment", "sizes", "flip"]
    said = "very map is the mean over the image and its views (augmentations: flip, sizes), 3 further forwards"
    main(["explain", *map(str, photos), *common, "--out", str(out / "explained")])
    assert said in " ".join(capsys.readouterr().out.split())
    assert json.loads((out / "explained" / "explain.json").read_text())["augmentations"] == ["flip", "sizes"]
    with pytest.raises(SystemExit):
        main(["explain", *map(str, photos), *common[:2], "--out", str(out / "explained")])
    assert "augmentations" in capsys.readouterr().err
    main(["compare", *map(str, photos), *common, "--method", "cam", "gradcam", "--out", str(out / "compared")])
    document = json.loads((out / "compared" / "compare.json").read_text())
    assert said in " ".join(document["facts"].values())
    evaluated = ["--data", str(root), "--faithfulness", "2", "--mosaics", "0", "--sanity", "2"]
    main(["evaluate", *common, *evaluated, "--out", str(out / "evaluated")])
    document = json.loads((out / "evaluated" / "evaluation.json").read_text())
    assert said in document["facts"]["network"]
    for command in ("explain", "compare", "evaluate"):
        with pytest.raises(SystemExit):
            main([command, *common[:2], "--augment", "rotate"])
    assert "flip, shifts, sizes" in capsys.readouterr().err.replace("'", "")


def test_a_run_without_augmentations_of_an_older_camify_goes_on(photos, tmp_path):
    network = explained_network(Source.of(cam_network()), "here", ("cam",))
    explain_files(network, photos[:1], tmp_path / "out", ExplainOptions())
    record = tmp_path / "out" / "explain.json"
    settings = json.loads(record.read_text())
    del settings["augmentations"]
    record.write_text(json.dumps(settings))
    assert explain_files(network, photos, tmp_path / "out", ExplainOptions()).before == 1


def test_a_network_of_one_size_is_refused_before_anything_is_written(photos, tmp_path):
    source = Source(network(head="fixed").float(), "here", preprocessing=Preprocessing(SIDES))
    made = explained_network(source, "here", ("gradcam",), augmentations="sizes")
    with pytest.raises(camify.ConfigError, match="Leave 'sizes' out"):
        explain_files(made, photos, tmp_path / "out", ExplainOptions())
    assert not (tmp_path / "out").exists()
