"""Batches of others, data without labels, other channels, sides and precisions: they work, or one sentence says why."""

from __future__ import annotations

import warnings

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import camify
from camify.batch import Batch

IMAGES = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 4

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*")


def network(channels=3, classes=4):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)
    )


def module(channels=3, classes=4, **options):
    names = list("abcdefg")[:classes]
    return camify.CAMFineTuner(network(channels, classes), names, **{"head": "direct", "input_size": 16, **options})


def trainer(**options):
    return pl.Trainer(
        **{
            "max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
            "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0, **options,
        }
    )  # fmt: skip


def loader(items):
    return DataLoader(items, batch_size=4)


FORMS = {
    "images": lambda: loader(IMAGES),
    "(images,)": lambda: loader(TensorDataset(IMAGES)),
    "image": lambda: loader([{"image": image} for image in IMAGES]),
    "images of a dict": lambda: loader([{"images": image} for image in IMAGES]),
    "(images, labels)": lambda: loader(TensorDataset(IMAGES, LABELS)),
    "(images, labels, paths)": lambda: loader([(i, int(k), "path") for i, k in zip(IMAGES, LABELS, strict=True)]),
    "pixel_values": lambda: loader([{"pixel_values": i, "labels": 1} for i in IMAGES]),
    "img": lambda: loader([{"img": i, "target": 1} for i in IMAGES]),
    "float64": lambda: loader(IMAGES.double()),
    "half": lambda: loader(IMAGES.half()),
}


@pytest.mark.parametrize("form", FORMS)
def test_predicting_needs_images_alone(form):
    tuner = module()
    batches = trainer().predict(tuner, FORMS[form]())
    with torch.no_grad():
        expected = tuner.eval()(IMAGES)
    tolerance = 1e-2 if form == "half" else 1e-5
    logits = torch.cat([batch["logits"] for batch in batches])
    torch.testing.assert_close(logits, expected, rtol=tolerance, atol=tolerance)
    assert batches[0]["maps"].shape == (4, 14, 14)


def test_several_loaders_are_predicted():
    batches = trainer().predict(module(), [loader(IMAGES), loader(IMAGES[:4])])
    assert [len(one) for one in batches] == [2, 1]


@pytest.mark.parametrize(
    ("labels", "same"),
    [
        (LABELS[:, None], LABELS), (LABELS.int(), LABELS), (LABELS.float(), LABELS),
        (nn.functional.one_hot(LABELS, 4), nn.functional.one_hot(LABELS, 4).float()),
    ],
)  # fmt: skip
def test_labels_in_other_forms_are_the_same_labels(labels, same):
    tuner = module()
    assert torch.equal(tuner.targets(Batch.of((IMAGES, labels))), same)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ((IMAGES, LABELS + 1), r"from 1 to 4 do not fit .*0\.\.3.*count from 1"),
        ((IMAGES, ["a"] * 8), r"labels must be .*These are names"),
        ((IMAGES, LABELS[:3]), r"int64 \(3,\).*labels must be"),
        (IMAGES, "have no labels: the second of a tuple, or label, labels"),
        ({"image": IMAGES, "label": None}, "have no labels"),
        ({"picture": IMAGES, "label": LABELS}, r"dict with picture: float32 \(8, 3, 16, 16\).*Known forms"),
        ((IMAGES.mul(255).byte(), LABELS), r"uint8 \(8, 3, 16, 16\).*must be a float tensor"),
        ((IMAGES[0], LABELS), r"float32 \(3, 16, 16\).*must be a float tensor"),
        ("cat", "A batch is a str"),
        ((IMAGES[:, :1], LABELS), r"images \(8, 1, 16, 16\).*takes 3 channels"),
    ],
)
def test_batches_that_cannot_be_are_named(batch, words):
    with pytest.raises(camify.DataError, match=words):
        module().training_step(batch, 0)


def test_arrays_are_batches():
    batch = Batch.of({"x": IMAGES.numpy(), "y": LABELS.numpy()})
    assert torch.equal(batch.images, IMAGES)
    assert torch.equal(batch.labels, LABELS)


def test_a_legacy_network_that_does_not_take_the_batches_is_named():
    legacy = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 4))
    tuner = camify.CAMFineTuner(legacy, list("abcd"), head="none", input_size=16)
    assert tuner(IMAGES).shape == (8, 4)
    with pytest.raises(camify.ConversionError, match=r"cannot run on input \(8, 3, 20, 16\)"):
        tuner.training_step((torch.randn(8, 3, 20, 16), LABELS), 0)


@pytest.mark.parametrize(("channels", "size"), [(1, 16), (3, (16, 24)), (5, [24, 16])])
def test_head_none_takes_other_channels_and_sides(channels, size):
    assert module(channels, head="none", input_size=size).num_classes == 4


@pytest.mark.parametrize(
    ("channels", "said"), [(1, ""), (2, "first, in gray, of"), (4, "first three of"), (13, "first three of")]
)
def test_overlays_of_other_channels_are_drawn(channels, said, tmp_path):
    data = loader([{"image": torch.randn(channels, 16, 20), "label": i % 2} for i in range(4)])
    overlays = camify.CAMOverlayLogger(num_images=2, num_highlights=0)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer(default_root_dir=tmp_path, callbacks=[overlays]).fit(module(channels, 2), data, data)
    words = [str(entry.message) for entry in told if "Overlays" in str(entry.message)]
    assert len(list((tmp_path / "overlays" / "epoch_000").glob("*.png"))) == 2
    assert [said in text for text in words] == ([True] if said else [])


def test_lightning_of_the_other_name_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lightning.pytorch", nn)
    with pytest.warns(UserWarning, match="lightning is imported.*Use pytorch_lightning"):
        module()
