"""Head epochs from cached features are the head epochs without."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

import camify
from camify.ranks import ONE, current
from camify.training.feature_cache import FeatureCache, FrozenPart, run_new_layers
from tests.metrics.two_processes import in_two_processes, needs_fork
from tests.training.conftest import SIZE, BlobData, Blobs, SmallLegacy

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*")


def tuner(**options):
    torch.manual_seed(5)
    names = ["red", "green"]
    defaults = {
        "class_names": names,
        "legacy_class_names": names,
        "input_size": SIZE,
        "head_channels": 8,
        "lr": 0.02,
        "freeze_epochs": 2,
    }
    return camify.CAMFineTuner(SmallLegacy(), **defaults | options)


class Passes(pl.Callback):
    """Counts how many training images went through the first convolution, epoch by epoch."""

    def __init__(self):
        self.counts = []

    def on_train_epoch_start(self, trainer, module):
        self.counts.append(0)
        if len(self.counts) == 1:
            module.model.features[0].register_forward_hook(self.count)
        self.module = module

    def count(self, layer, inputs, output):
        if self.module.trainer.training:
            self.counts[-1] += len(output)


class FlippedData(BlobData):
    """Every reading of an image may be another."""

    def train_dataloader(self):
        loader = super().train_dataloader()
        plain = loader.dataset

        class Flipped(Blobs):
            def __getitem__(self, index):
                sample = plain[index]
                return {**sample, "image": sample["image"].flip(-1) if torch.rand(()) < 0.5 else sample["image"]}

        return DataLoader(Flipped(48, 0), batch_size=8, shuffle=True, collate_fn=loader.collate_fn)


@pytest.mark.parametrize(
    ("where", "options"),
    [
        ("memory", {}),
        ("disk", {"teacher": "legacy", "box_weight": 0.5, "dropout": 0.3}),
        pytest.param("disk", {}, marks=pytest.mark.slow),
        pytest.param("memory", {"head": "direct"}, marks=pytest.mark.slow),
        pytest.param("disk", {"head": "direct"}, marks=pytest.mark.slow),
        pytest.param("memory", {"teacher": "legacy", "box_weight": 0.5, "dropout": 0.3}, marks=pytest.mark.slow),
    ],
)
def test_a_run_with_the_cache_is_the_run_without(data, make_trainer, tmp_path, where, options):
    states, figures, watch = [], [], Passes()
    for cache in ("off", where):
        module = tuner(feature_cache=cache, **options)
        torch.manual_seed(1)
        trainer = make_trainer(*([watch] if cache != "off" else []), max_epochs=3)
        trainer.fit(module, data)
        states.append(module.model.state_dict())
        figures.append({key: float(value) for key, value in trainer.callback_metrics.items()})
    assert watch.counts[1:] == [0, 48], "frozen epochs run no features but to fill the cache, free ones run them all"
    for key in states[0]:
        torch.testing.assert_close(states[0][key], states[1][key], rtol=1e-4, atol=1e-5)
    assert figures[0] == pytest.approx(figures[1], rel=1e-3, abs=1e-4)
    assert not list(tmp_path.glob(".features-*")), "what lay on disk is gone"


@pytest.mark.parametrize("traced", [True, False])
def test_frozen_part_and_new_layers_are_the_features(traced):
    torch.manual_seed(0)
    legacy = SmallLegacy()
    net = camify.convert(
        legacy if not traced else Mixed(legacy), head="gap", head_channels=[4, 6], input_size=SIZE
    ).eval()
    assert isinstance(net.features, torch.fx.GraphModule) == traced
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        found = run_new_layers(net, FrozenPart(net)(images))
        torch.testing.assert_close(found, net.features(images))
    assert not any(layer._forward_pre_hooks for layer in net.modules())


class Mixed(torch.nn.Module):
    """A branch keeps the features from being a chain."""

    def __init__(self, legacy):
        super().__init__()
        self.a, self.b, self.head = legacy.features[:3], torch.nn.Conv2d(3, 8, 1), torch.nn.Linear(8 * SIZE * SIZE, 2)

    def forward(self, x):
        return self.head((self.a(x) + self.b(x)).flatten(1))


def test_chance_in_the_images_is_refused_unless_views_are_asked_for(make_trainer):
    with pytest.raises(camify.ConfigError, match="cached_views=V"):
        make_trainer(max_epochs=1).fit(tuner(feature_cache="memory"), FlippedData())
    watch = Passes()
    make_trainer(watch, max_epochs=3).fit(tuner(feature_cache="memory", cached_views=2), FlippedData())
    assert watch.counts == [96, 0, 48], "two views are computed once"


def test_views_are_other_draws_and_the_same_in_every_run(make_trainer):
    runs = []
    for _ in range(2):
        views = []

        class Observation(pl.Callback):
            def on_train_batch_start(self, trainer, module, batch, batch_idx, views=views):
                if batch_idx == 0:
                    cache = trainer.train_dataloader.dataset
                    views.append((cache.view, cache._features[cache.view].clone()))

        torch.manual_seed(7)
        make_trainer(Observation(), max_epochs=3, limit_val_batches=0).fit(
            tuner(feature_cache="memory", cached_views=2, freeze_epochs=3), FlippedData()
        )
        runs.append(views)
    assert [view for view, _ in runs[0]] == [0, 1, 0]
    assert not torch.equal(runs[0][0][1], runs[0][1][1])
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(*runs, strict=True))


def test_more_than_the_limit_is_refused_before_anything_is_computed(data, make_trainer):
    module = tuner(feature_cache="memory", feature_cache_gb=1e-4)
    with pytest.raises(
        camify.ConfigError, match=r"48 samples in 1 views take 0\.00 GB, more than feature_cache_gb=0.0001"
    ):
        make_trainer(max_epochs=1).fit(module, data)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cutmix": 1.0}, "feature_cache with cutmix"),
        ({"hide_and_seek": 0.5}, "feature_cache with hide_and_seek"),
        ({"freeze_epochs": 0}, "needs freeze_epochs"),
        ({"cached_views": 0}, "cached_views=0"),
        ({"feature_cache": "off", "cached_views": 2}, "cached_views=2"),
    ],
)
def test_what_cannot_be_cached_is_refused(options, words):
    with pytest.raises(camify.ConfigError, match=words):
        tuner(**{"feature_cache": "memory"} | options)


@pytest.mark.parametrize("guided", [False, True])
def test_steps_get_what_the_loss_reads_and_passes_get_all_that_is_known(guided, tmp_path):
    samples = Blobs(5, 0)
    cache = FeatureCache(
        tuner().model, DataLoader(samples, batch_size=4, collate_fn=camify.data.collate), where="memory", limit_gb=1,
        views=None, teacher=None, guided=guided, folder=tmp_path, device=torch.device("cpu"),
    )  # fmt: skip
    batch = cache.__getitems__([3, 0])
    given = set(samples[0]) - {"image"}
    objects = {"mask", "boxes"} & given
    assert objects
    assert given | {"features", "size"} == set(next(cache.batches(tuner().model)))
    wanted = {"mask" if "mask" in objects else "boxes"} if guided else set()
    assert set(batch) == given - objects | wanted | {"features", "size"}
    assert camify.batch.Batch.of(batch).paths == [samples[3]["path"], samples[0]["path"]]


@needs_fork
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_processes_of_a_machine_keep_the_features_of_one(tmp_path, where):
    """Each computes every second image; both have all, under the images' own numbers."""
    net = tuner().model
    teacher = SmallLegacy().eval()

    def keep(ranks, count):
        cache = FeatureCache(
            net, DataLoader(Blobs(21, 0), batch_size=4, collate_fn=camify.data.collate), where=where, limit_gb=1,
            views=None, mirrored=True, teacher=teacher, guided=True, folder=tmp_path, device=torch.device("cpu"),
            ranks=ranks, per_machine=count,
        )  # fmt: skip
        batches = [cache.__getitems__(range(21))]
        cache.view = 1
        batches.append(cache.__getitems__(range(21)))
        own = [batch["features"] for batch in cache.batches(net, ranks)]
        cache.close()
        for batch in batches:
            batch["path"] = list(batch["path"])
        return {"views": batches, "own": torch.cat(own)}

    alone = keep(ONE, 1)
    found = in_two_processes(lambda _: keep(current(), 2), tmp_path)
    for rank, kept in enumerate(found):
        for one, other in zip(alone["views"], kept["views"], strict=True):
            assert one.keys() == other.keys()
            assert other.pop("path") == one["path"]
            one = {key: value for key, value in one.items() if key != "path"}
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(kept["own"], alone["own"][rank::2], rtol=1e-5, atol=1e-6)
    assert not list(tmp_path.rglob("*features*"))
    assert not list(Path("/dev/shm").glob("camify-features-*"))
