"""Images that nobody has prepared as the network takes them: said once, in explain, fits and training."""

from __future__ import annotations

import warnings

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

import camify
from camify.preprocessing import NORMALIZATIONS, Preprocessing

PIXELS = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def network(normalization="imagenet"):
    torch.manual_seed(0)
    legacy = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4),
    )  # fmt: skip
    return camify.convert(legacy, head="direct", input_size=32, preprocessing=normalization)


def prepared(pixels, normalization):
    values = NORMALIZATIONS[normalization]
    mean, std = (torch.tensor(values[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    return (pixels - mean) / std


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_images_that_were_prepared_pass_and_others_do_not(normalization):
    preprocessing = network(normalization).preprocessing
    low, high = prepared(torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 3, 1, 1), normalization).aminmax()
    for images in (prepared(PIXELS, normalization), torch.randn(4, 3, 8, 8) * high, torch.zeros(1, 3, 8, 8)):
        assert preprocessing.other_scale(images) is None
    raw = preprocessing.other_scale(PIXELS * 255)
    if high < 25:
        assert raw.startswith("their values reach 255, and as")
        assert f"{float(low):.3g}" in raw
        assert f"{float(high):.3g}" in raw
    else:
        assert raw is None
    unit = preprocessing.other_scale(PIXELS)
    assert (unit is None) == (normalization == "0..1")
    assert unit is None or unit.startswith("all their values lie between 0 and 1, and as")


@pytest.mark.parametrize("images", [torch.full((1, 3, 4, 4), torch.nan), torch.zeros(0, 3, 4, 4)])
def test_what_is_refused_elsewhere_is_not_looked_at(images):
    assert Preprocessing().other_scale(images) is None


def _train(model, images):
    module = camify.CAMFineTuner(model, class_names=list("abcd"))
    loader = DataLoader([(image, number % 4) for number, image in enumerate(images)], batch_size=4)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers|.*LeafSpec|.*number of training batches")
        options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        pl.Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **options).fit(module, loader, loader)


_USES = {
    "explain": lambda model, images: camify.explain(model, images, method="gradcam"),
    "fit_head": lambda model, images: camify.fit_head(model, images, labels=torch.arange(8) % 4),
    "fit_object_map": lambda model, images: camify.fit_object_map(model, images),
    "training": _train,
}


@pytest.mark.parametrize("use", _USES)
def test_it_is_said_once(use):
    model = network()
    _USES[use](network(), prepared(PIXELS, "imagenet"))
    with pytest.warns(UserWarning, match=r"images: their values reach 255.*between -2\.12 and 2\.64.*Give pictures"):
        _USES[use](model, PIXELS * 255)
    _USES[use](model, PIXELS * 255)


def test_a_network_that_does_not_say_what_it_takes_gets_what_it_is_given():
    model = network(None)
    assert model.preprocessing is None
    camify.explain(model, PIXELS * 255, method="gradcam")
