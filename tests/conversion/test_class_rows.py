"""Class rows kept by name: subsets, permutations and new classes, bit for bit."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

import camify
from camify.conversion import Source, convert
from camify.conversion.class_rows import match_rows
from camify.errors import ConversionError

NAMES = ["ant", "golden retriever", "cat", "T-shirt", "emu"]


class Native(nn.Module):
    """Linear after pooling, with or without a bias."""

    def __init__(self, classes=5, bias=True):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(6, classes, bias=bias)

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


class Hidden(nn.Module):
    """Flattens into hidden layers, as a VGG."""

    def __init__(self, classes=5):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, 4, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.fc = nn.Sequential(nn.Linear(6 * 16, 12), nn.ReLU(), nn.Linear(12, classes))

    def forward(self, x):
        return self.fc(self.features(x).flatten(1))


def rows_are(net, old, rows):
    bias = torch.zeros(old.out_features) if old.bias is None else old.bias
    for place, row in enumerate(rows):
        if row is not None:
            assert torch.equal(net.classifier.weight[place], old.weight[row])
            assert torch.equal(net.classifier.bias[place], bias[row])


@pytest.mark.parametrize(
    ("wanted", "rows"),
    [
        (["cat", "ant"], [2, 0]),  # a subset
        (NAMES[::-1], [4, 3, 2, 1, 0]),  # a permutation
        (["yak", "Golden_Retriever", "t shirt"], [None, 1, 3]),  # a new one; folded names
        ([*NAMES, "yak"], [0, 1, 2, 3, 4, None]),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_direct_keeps_rows_by_name(wanted, rows, bias):
    legacy = Native(bias=bias)
    before = {key: value.clone() for key, value in legacy.state_dict().items()}
    net = convert(legacy, head="direct", input_size=32, class_names=wanted, legacy_class_names=NAMES, seed=0)
    rows_are(net, legacy.fc, rows)
    assert net.class_names == wanted
    assert net.num_classes == net.certificate.num_classes == len(wanted)
    kept = len(rows) - rows.count(None)
    note = f"{kept} of {len(wanted)} class rows kept by name from the legacy's 5, bit for bit."
    assert note in net.certificate.notes
    assert net.certificate.cam_ready
    assert sum(p.numel() for p in net.parameters()) == sum(
        part.parameters for part in net.certificate.parts if part.status != "dropped"
    )
    images = torch.rand(2, 3, 32, 32)
    known = [place for place, row in enumerate(rows) if row is not None]
    torch.testing.assert_close(net(images)[:, known], legacy(images)[:, [r for r in rows if r is not None]])
    assert all(torch.equal(before[key], value) for key, value in legacy.state_dict().items())


@pytest.mark.parametrize("wanted", [["emu", "yak", "ant"], NAMES[1:] + NAMES[:1]])
def test_recast_keeps_the_last_layers_rows_by_name(wanted):
    legacy = Hidden().eval()
    net = convert(legacy, head="recast", input_size=32, class_names=wanted, legacy_class_names=NAMES, seed=0)
    rows = [NAMES.index(name) if name in NAMES else None for name in wanted]
    rows_are(net, legacy.fc[2], rows)
    images = torch.rand(2, 3, 32, 32)
    known = [place for place, row in enumerate(rows) if row is not None]
    torch.testing.assert_close(net(images)[:, known], legacy(images)[:, [r for r in rows if r is not None]])
    assert net.certificate.legacy_error < 1e-5
    assert net.certificate.legacy_classes == 5


def test_recast_changes_its_classes_by_name_only():
    for options in ({"num_classes": 3}, {"class_names": ["ant", "cat", "emu"]}):
        with pytest.raises(ConversionError, match=r"keeps the 5 classes.*class_names=, and legacy_class_names="):
            convert(Hidden(), head="recast", input_size=32, **options)


def test_new_rows_are_those_of_the_seed_and_names_in_order_keep_the_certificate():
    legacy = Native()
    options = {"head": "direct", "input_size": 32, "legacy_class_names": NAMES, "seed": 3}
    one, two = (convert(legacy, class_names=["yak", "cat"], **options) for _ in range(2))
    assert torch.equal(one.classifier.weight, two.classifier.weight)
    same = convert(legacy, class_names=[name.upper() for name in NAMES], **options)
    assert torch.equal(same.classifier.weight, legacy.fc.weight)
    assert same.certificate.parts == convert(legacy, **options).certificate.parts
    assert convert(legacy, **options).class_names == NAMES


def test_the_sources_own_names_serve_and_half_precision_stays_bit_for_bit(tmp_path):
    legacy = Native().half().eval()
    net = convert(Source(legacy, "mine", NAMES), head="direct", input_size=32, class_names=["emu", "cat"])
    assert net.classifier.weight.dtype == torch.float16
    rows_are(net, legacy.fc, [4, 2])
    again = convert(net.float(), head="direct", input_size=32, class_names=["cat", "yak"])  # a CAMNet knows its names
    rows_are(again, net.classifier, [1, None])
    loaded = camify.load(again.save_pretrained(tmp_path / "net"))
    assert loaded.class_names == ["cat", "yak"]
    assert loaded.certificate == again.certificate


def test_unknown_names_and_a_new_head_keep_no_rows():
    legacy = Native()
    net = convert(legacy, head="direct", input_size=32, class_names=list("abcde"))  # the legacy's names are not known
    assert torch.equal(net.classifier.weight, legacy.fc.weight)
    assert convert(legacy, head="direct", input_size=32, class_names=["a", "b"]).num_classes == 2
    net = convert(legacy, head="gap", head_channels=4, input_size=32, class_names=["cat"], legacy_class_names=NAMES)
    assert net.class_names == ["cat"]
    assert not any("by name" in note for note in net.certificate.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": ["a", "b", "a"]}, r"class_names: 'a' occurs more than once"),
        ({"class_names": []}, "expected a list of names"),
        ({"class_names": ["a", "b"], "num_classes": 3}, r"num_classes=3, but class_names has 2"),
        ({"legacy_class_names": ["a"]}, r"legacy_class_names: 1 names for a network of 5"),
    ],
)
def test_contradictions_are_refused(options, message):
    with pytest.raises(ConversionError, match=message):
        convert(Native(), head="direct", input_size=32, **options)


def test_a_reading_that_is_not_the_only_one_is_none():
    assert match_rows(["crane", "crane", "cat"], ["cat", "crane"]) == [2, None]
    assert match_rows(["a b", "A-B"], ["a_b"]) == [None]
    assert match_rows(["a b", "A-B"], ["a_b", "a b"]) == [1, 0]  # what is taken exactly is out of the question
    assert match_rows(["a b"], ["a_b", "A b"]) == [None, None]
    names = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    assert match_rows(names, ["tench", "Golden-Retriever", "yak"]) == [0, 207, None]


def test_fine_tuning_starts_from_what_the_legacy_knew(monkeypatch):
    legacy = Native()
    source = Source(legacy, "torchvision/native", NAMES)
    monkeypatch.setattr("camify.training.prepare.resolve", lambda name: source)
    module = camify.CAMFineTuner("torchvision/native", class_names=["Cat", "emu"], head="direct", input_size=32)
    rows_are(module.model, legacy.fc, [2, 4])
    assert any("2 of 2 class rows kept by name" in note for note in module.model.certificate.notes)
    other = camify.CAMFineTuner(module.model, class_names=["emu", "Cat"], input_size=32)  # the other order
    rows_are(other.model, legacy.fc, [4, 2])
