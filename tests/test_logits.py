"""What a foreign network takes and returns is looked at once, before it is used."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import camify
from camify.logits import Spread, logits_of, require_image_input, require_logits, spread

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
METHODS = ("cam", "gradcam", "gradcam++", "layercam", "scorecam", "reciprocam")


def small(channels=3, classes=4):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    ).eval()


class Returns(nn.Module):
    """A small network that returns something made of its logits and its input."""

    def __init__(self, make):
        super().__init__()
        self.net, self.make = small(), make

    def forward(self, x):
        return self.make(self.net(x), x)


class Rows(nn.Module):
    """Right at 32 px only: at 64 px four rows of logits come of one image."""

    def __init__(self):
        super().__init__()
        self.features, self.fc = (
            nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4)),
            nn.Linear(512, 5),
        )

    def forward(self, x):
        return self.fc(self.features(x).view(-1, 512))


@dataclass
class Output:
    logits: Tensor
    features: Tensor


Pair = namedtuple("Pair", ["scores", "features"])

OTHERS = [
    (lambda y, x: None, r"returns None.*without a return"),
    (lambda y, x: (y, x), r"tuple of 2 outputs \(0: \(2, 4\), 1: \(2, 3, 32, 32\)\).*network\(x\)\[0\]"),
    (lambda y, x: [y], r"list of 1 output \(0: \(2, 4\)\).*network\(x\)\[0\]"),
    (lambda y, x: {"logits": y, "other": y}, r"dict of 2 outputs .*network\(x\)\['logits'\]"),
    (lambda y, x: OrderedDict(logits=y), r"ict of 1 output.*network\(x\)\['logits'\]"),
    (lambda y, x: Output(y, x), r"Output of 2 outputs \(logits: \(2, 4\), features.*network\(x\)\.logits"),
    (lambda y, x: Pair(y, x), r"Pair of 2 outputs \(scores: \(2, 4\), features.*network\(x\)\.scores"),
    (lambda y, x: "cat", "returns str"),
    (lambda y, x: y[:, 0], r"returns \(2,\).*\[:, None\]"),
    (lambda y, x: y[:, :, None, None], r"returns \(2, 4, 1, 1\).*flatten\(1\)"),
    (lambda y, x: x, r"returns \(2, 3, 32, 32\).*expected one tensor of logits \(N, classes\)"),
    (lambda y, x: y[:, :0], r"returns \(2, 0\)"),
    (lambda y, x: y.argmax(1, keepdim=True), r"int64 \(2, 1\): class numbers"),
    (lambda y, x: y.mean(0, keepdim=True), r"1 row of logits for 2 images.*joins the images"),
    (
        lambda y, x: torch.cat([y, y, y]),
        r"3 rows of logits for 1 image: .*size than 32x32\. Give input_size",
    ),
    (lambda y, x: y.T, r"2 rows of logits for 1 image.*\(classes, N\)"),
    (lambda y, x: y * torch.nan, "NaN or infinite logits. Are the weights damaged"),
]


@pytest.mark.parametrize(("make", "words"), OTHERS)
def test_what_is_no_logits_is_named_everywhere(make, words):
    model = Returns(make).eval()
    doors = [
        lambda: require_logits(model(IMAGES), IMAGES),
        lambda: logits_of(model, IMAGES),
        lambda: camify.convert(model, head="direct", input_size=32),
        lambda: camify.explain(model, IMAGES, method="layercam", layer="net.0"),
    ]
    for door in doors:
        with pytest.raises(camify.ConversionError, match=words):
            door()
    inspection = camify.inspect(model, example=IMAGES)
    assert inspection.verdict == "unsupported"


def test_a_teacher_that_gives_something_else_is_named():
    net = camify.convert(small(), head="direct", input_size=32)
    with pytest.raises(camify.ConversionError, match="teacher: The network returns tuple"):
        camify.fit_head(net, IMAGES, teacher=Returns(lambda y, x: (y,)))


@pytest.mark.parametrize(("method", "layer"), [*((name, None) for name in METHODS), ("gradcam", "features")])
def test_rows_are_not_taken_for_images(method, layer):
    with pytest.raises(camify.ConversionError, match=r"4 rows of logits for 1 image: .*than 64x64\. Give input_size"):
        camify.explain(Rows().eval(), torch.randn(1, 3, 64, 64), method=method, layer=layer)


def test_rows_are_not_taken_for_images_elsewhere():
    words = r"4 rows of logits for 1 image"
    assert "4 rows of logits for 1 image" in camify.inspect(Rows(), input_size=64).reason
    for door in (
        lambda: camify.convert(Rows(), head="direct", input_size=64),
        lambda: camify.CAMFineTuner(Rows(), class_names=list("abcde"), head="none", input_size=64),
        lambda: camify.metrics.functional.insertion_curves(
            Rows(), torch.randn(1, 3, 64, 64), torch.rand(1, 64, 64), torch.tensor([0]), steps=2
        ),
    ):
        with pytest.raises(camify.ConversionError, match=words):
            door()


def test_squeezed_logits_of_one_image_are_explained():
    model = Returns(lambda y, x: y.squeeze()).eval()
    assert camify.explain(model, IMAGES, method="gradcam").shape == (2, 32, 32)
    with pytest.raises(camify.ConversionError, match=r"returns \(4,\).*squeeze\(\)"):
        camify.explain(model, IMAGES[:1], method="gradcam")


# ---------------------------------------------------------------- what it takes


class Takes(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = small()


class Two(Takes):
    def forward(self, a, b):
        return self.net(a) + self.net(b)


class Three(Takes):
    def forward(self, a, b, *, c):
        return self.net(a)


class Nothing(Takes):
    def forward(self):
        return self.net.weight


class Free(Takes):
    def forward(self, *inputs, **options):
        return self.net(inputs[0])


class Optional(Takes):
    def forward(self, pixel_values=None, labels=None):
        return self.net(pixel_values)


@pytest.mark.parametrize(
    ("kind", "words"),
    [(Two, r"takes 2 inputs \(a, b\)"), (Three, r"takes 3 inputs \(a, b, c\)"), (Nothing, "takes no inputs")],
)
def test_other_numbers_of_inputs_are_named(kind, words):
    model = kind().eval()
    for door in (
        lambda: camify.convert(model, input_size=32),
        lambda: camify.explain(model, IMAGES, method="gradcam", layer="net.0"),
        lambda: camify.CAMFineTuner(model, class_names=["a", "b"], input_size=32),
    ):
        with pytest.raises(camify.ConversionError, match=words):
            door()
    assert camify.inspect(model, input_size=32).verdict == "unsupported"


def test_one_input_with_options_is_taken():
    for model in (Free().eval(), Optional().eval(), small()):
        require_image_input(model)
        torch.testing.assert_close(logits_of(model, IMAGES), model(IMAGES))
    with pytest.raises(camify.ConversionError, match=r"ModuleList\) has no forward"):
        require_image_input(nn.ModuleList([nn.Conv2d(3, 3, 3)]))


def network_of(layer, axes):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.fc = layer, nn.Linear(8, 2)

        def forward(self, x):
            return self.fc(self.layer(x).mean(axes))

    return Other()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            network_of(nn.Conv3d(3, 8, 3), (2, 3, 4)),
            r"videos \(N, C, D, H, W\); camify takes networks of images \(N, C, H, W\)",
        ),
        (network_of(nn.Conv1d(3, 8, 3), (2,)), "signals"),
        (network_of(nn.Embedding(10, 8), (1,)), "words"),
        (small(channels=5), r"Give images of 5 channels"),
    ],
)
def test_networks_of_something_else_than_images(model, words):
    for door in (
        lambda: camify.convert(model, example=IMAGES),
        lambda: camify.explain(model.eval(), IMAGES, method="gradcam"),
        lambda: camify.explain(model.eval(), IMAGES, method="gradcam", layer=next(iter(dict(model.named_children())))),
    ):
        with pytest.raises(camify.ConversionError, match=words):
            door()


# ---------------------------------------------------------------- the same each time


class Chance(nn.Module):
    """A dropout that is always on, or noise, somewhere."""

    def __init__(self, where):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc, self.where = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), where

    def forward(self, x):
        if self.where == "image":
            x = x + torch.randn_like(x)
        x = self.conv(x)
        if self.where == "features":
            x = F.dropout(x, 0.5)
        x = x.relu().mean((2, 3))
        if self.where == "head":
            x = F.dropout(x, 0.5)
        return self.fc(x)


@pytest.mark.parametrize(("where", "head"), [("image", "direct"), ("features", "direct"), ("features", "recast")])
def test_chance_before_the_map_is_refused(where, head):
    with pytest.raises(
        camify.ConversionError, match=r"other outputs for the same image \(largest difference .*change from"
    ):
        camify.convert(Chance(where), head=head, input_size=32)
    inspection = camify.inspect(Chance(where), input_size=32)
    assert inspection.verdict == "unsupported"
    assert "always on" in inspection.reason


def test_chance_in_a_head_that_is_dropped_is_noted():
    net = camify.convert(Chance("head"), head="gap", head_channels=4, input_size=32).eval()
    assert any("other outputs for the same image" in note for note in net.certificate.notes)
    assert torch.equal(net(IMAGES), net(IMAGES))
    assert "other outputs for the same image" in camify.inspect(Chance("head"), input_size=32).reason
    with pytest.raises(camify.ConversionError, match="is to be kept"):
        camify.convert(Chance("head"), head="recast", input_size=32)


@pytest.mark.parametrize("layer", [None, "conv"])
def test_chance_is_said_once_when_it_is_explained(layer, recwarn):
    model = Chance("head").eval()
    with pytest.warns(UserWarning, match="other outputs for the same image"):
        camify.explain(model, IMAGES, method="layercam", layer=layer, normalize=None)
    recwarn.clear()
    camify.explain(model, torch.randn(1, 3, 40, 40), method="layercam", layer=layer, normalize=None)
    assert not [entry for entry in recwarn if "same image" in str(entry.message)]


def test_spread_is_zero_of_the_usual_network_and_the_difference_of_others():
    assert spread(small(), IMAGES) == Spread(0.0, by_batch=False)
    with torch.no_grad():
        assert spread(small(), IMAGES, small()(IMAGES)) == Spread()
    calls = []

    def one_more_each_time(y, x):
        calls.append(1)
        return y + len(calls)

    assert spread(Returns(one_more_each_time).eval(), IMAGES).chance == pytest.approx(1.0, rel=1e-4)


def test_images_that_are_mixed_are_refused():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small()

        def forward(self, x):
            return self.net(x.transpose(0, 1).reshape(x.shape))

    with pytest.raises(camify.ConversionError, match="mixes images"):
        camify.convert(Mixed(), input_size=32)


def of_the_batch():
    network = small()
    network[1] = nn.Sequential(nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU())
    return network.eval()


BY_BATCH = {
    "batch norm without running statistics": of_the_batch,
    "softmax over axis 0": lambda: Returns(lambda y, x: y.softmax(0)).eval(),
    "centered in the batch": lambda: Returns(lambda y, x: y - y.mean(0)).eval(),
}


@pytest.mark.parametrize("name", BY_BATCH)
def test_logits_that_depend_on_the_rest_of_the_batch_are_said(name):
    network = BY_BATCH[name]()
    assert spread(network, IMAGES) == Spread(by_batch=True)
    note = "depend on which others are in its batch"
    assert note in camify.inspect(network, input_size=32).reason
    assert any(note in text for text in camify.convert(network, head="gap", input_size=32).certificate.notes)
    with pytest.warns(UserWarning, match=note):
        camify.explain(network, IMAGES, method="layercam", targets=1, normalize=None)
    if name == "centered in the batch":
        with pytest.raises(camify.ConversionError, match=f"kept head does not give.*{note}"):
            camify.convert(network, head="direct", input_size=32)


@pytest.mark.parametrize(("method", "count"), [("gradcam", 1), ("scorecam", 2), ("reciprocam", 1)])
def test_a_network_that_takes_no_single_image_is_told_so(method, count):
    network = Returns(lambda y, x: F.batch_norm(y, None, None, training=True)).eval()
    with (
        pytest.warns(UserWarning, match="which others are in its batch"),
        pytest.raises(
            camify.ConversionError, match=r"cannot run on input \(\d, 3, 32, 32\): Expected more than 1 value"
        ),
    ):
        camify.explain(network, IMAGES[:count], method=method)
