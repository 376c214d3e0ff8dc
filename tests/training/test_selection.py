"""Pareto sets by brute force, decline, and the box rule that travels with the checkpoint."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from scipy import ndimage
from torch.utils.data import DataLoader, IterableDataset

import camify
from camify.boxes import DEFAULT_RULE, BoxRule
from camify.checkpoint.folder import manifest_digest
from camify.conversion.box_rule_choice import _boxed
from camify.task import Classes, Task
from camify.training import RunRecord
from camify.training.box_calibration import _examples
from camify.training.callbacks.selection import decline, pareto_set
from tests.training.conftest import SIZE, BlobData, Blobs, SmallLegacy

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*", "ignore:.*exists and is not empty.*"
)


def test_the_pareto_set_is_what_nothing_beats():
    generator = random.Random(0)
    for _ in range(50):
        rows = [{"epoch": e, "a": generator.randint(0, 5), "q": generator.randint(0, 5)} for e in range(8)]
        found = pareto_set(rows, "a", "q")
        for row in rows:
            beaten = any(
                o["a"] >= row["a"] and o["q"] >= row["q"] and (o["a"], o["q"]) != (row["a"], row["q"]) for o in rows
            )
            first = next(o for o in rows if (o["a"], o["q"]) == (row["a"], row["q"])) is row
            assert (row in found) == (not beaten and first)
    assert pareto_set([{"epoch": 0, "a": 1.0}], "a", "q") == []


def test_a_decline_is_named_when_accuracy_rises_and_maps_fall():
    history = [{"epoch": e, "a": a, "q": q} for e, a, q in [(0, 0.5, 0.4), (1, 0.6, 0.7), (2, 0.8, 0.6)]]
    assert decline(history, "a", "q")["epoch"] == 1
    assert decline(history[:2], "a", "q") is None
    assert decline([*history, {"epoch": 3, "a": 0.6, "q": 0.5}], "a", "q") is None, "accuracy is not higher"
    assert decline([*history[:2], {"epoch": 2, "a": 0.8, "q": 0.695}], "a", "q") is None, "within the margin"


def boxes_by_hand(maps, size, threshold):
    big = torch.nn.functional.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0].numpy()
    for one in big:
        heat = (one - one.min()) / (one.max() - one.min())
        regions, _ = ndimage.label(heat >= threshold, np.ones((3, 3)))
        ys, xs = np.nonzero(regions == np.bincount(regions.ravel())[1:].argmax() + 1)
        yield [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def small_net():
    return camify.convert(SmallLegacy(), head="direct", input_size=SIZE, seed=0).eval()


def test_predicted_boxes_are_those_of_the_rule():
    net, images = small_net(), torch.stack([Blobs(4, 0)[i]["image"] for i in range(4)])
    net.box_rule = BoxRule("minmax", None, 0.8)
    found = net.predict_boxes(images, torch.tensor([0, 1, 0, 1]))
    with torch.no_grad():
        maps = net.forward_with_maps(images)[1][torch.arange(4), torch.tensor([0, 1, 0, 1])]
    expected = list(boxes_by_hand(maps, (SIZE, SIZE), 0.8))
    assert [boxes[0].tolist() for boxes in found] == expected
    predicted = net.predict_boxes(images)
    with torch.no_grad():
        classes = net(images).argmax(1)
    assert all(torch.equal(a, b) for a, b in zip(predicted, net.predict_boxes(images, classes), strict=True))


def test_clamped_weights_and_flat_maps():
    net, images = small_net(), torch.stack([Blobs(2, 0)[i]["image"] for i in range(2)])
    clamped = net.predict_boxes(images, torch.tensor([0, 1]), rule=BoxRule(threshold=0.9, clamp_weights=True))
    twin = camify.convert(net, head="direct", input_size=SIZE).eval()
    with torch.no_grad():
        twin.classifier.weight.clamp_(min=0)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            clamped, twin.predict_boxes(images, torch.tensor([0, 1]), rule=BoxRule(threshold=0.9)), strict=True
        )
    )
    with torch.no_grad():
        twin.classifier.weight.zero_()
    assert [len(boxes) for boxes in twin.predict_boxes(images, rule=BoxRule())] == [0, 0]


def test_the_rule_travels_in_the_checkpoint_and_is_checked(tmp_path):
    net = small_net()
    net.box_rule = BoxRule("ivr", 45.0, 0.31, source="boxes", count=7, accuracy=0.5)
    net.save_pretrained(tmp_path / "net")
    assert camify.load(tmp_path / "net").box_rule == net.box_rule
    path = tmp_path / "net" / "camify.json"
    manifest = json.loads(path.read_text())
    for change in ({"threshold": 2.0}, {"normalizer": "best"}, {"percentile": None}):
        changed = {**manifest, "box_rule": {**manifest["box_rule"], **change}}
        path.write_text(json.dumps({**changed, "digest": manifest_digest(changed)}))
        with pytest.raises(camify.CheckpointError, match="box_rule"):
            camify.load(tmp_path / "net")
    first = {key: value for key, value in manifest.items() if key not in ("box_rule", "digest")}
    path.write_text(json.dumps({**first, "schema_version": 1}))
    assert camify.load(tmp_path / "net").box_rule is None


@pytest.fixture
def run(make_trainer, tmp_path):
    def train(data, monitor="val/max_box_acc", **options):
        pl.seed_everything(0, verbose=False)
        module = camify.CAMFineTuner(
            SmallLegacy(len(data.class_names)), class_names=data.class_names, input_size=SIZE, head_channels=8,
            lr=0.01, optimizer="adamw", freeze_epochs=0, legacy_class_names=data.class_names, **options,
        )  # fmt: skip
        best = ModelCheckpoint(tmp_path, "best", monitor, mode="max", save_on_train_epoch_end=True)
        stop = EarlyStopping(monitor, mode="max", patience=10, check_on_train_epoch_end=True)
        make_trainer(RunRecord(quiet=True), best, stop, max_epochs=3, enable_checkpointing=True).fit(module, data)
        return json.loads((tmp_path / "results.json").read_text()), camify.load(tmp_path / "export")

    return train


def test_a_run_can_be_steered_by_the_maps_and_leaves_a_calibrated_network(run):
    results, net = run(BlobData())
    history = results["history"]
    assert results["exported"]["epoch"] == max(history, key=lambda row: row["val/max_box_acc"])["epoch"]
    assert results["pareto"]["epochs"] == [r["epoch"] for r in pareto_set(history, "val/acc", "val/max_box_acc")]
    samples = [Blobs(20, 1)[i] for i in range(20)]
    images, labels = torch.stack([s["image"] for s in samples]), torch.tensor([s["label"] for s in samples])
    found = net.predict_boxes(images, labels)
    hits = [
        float(camify.metrics.functional.iou_with_best_box(box, s["boxes"])) >= 0.5 if len(box) else False
        for box, s in zip(found, samples, strict=True)
    ]
    assert net.box_rule.source == "boxes"
    assert net.box_rule.count == 20
    assert net.box_rule == camify.choose_box_rule(net, images, [s["boxes"] for s in samples], labels=labels)
    assert sum(hits) / 20 >= results["exported"]["val/max_box_acc"] - 0.15


def test_what_the_run_began_with_is_measured(run):
    results, _ = run(BlobData(), init="recast")
    pl.seed_everything(0, verbose=False)
    legacy = SmallLegacy().eval()
    samples = [Blobs(20, 1)[i] for i in range(20)]
    images, labels = torch.stack([s["image"] for s in samples]), torch.tensor([s["label"] for s in samples])
    with torch.no_grad():
        assert results["legacy"]["val/acc"] == pytest.approx(float((legacy(images).argmax(1) == labels).float().mean()))
    assert results["start"]["val/acc"] == results["legacy"]["val/acc"], "a recast head is the legacy's"
    metric = camify.metrics.MaxBoxAccuracy(version=1)
    with torch.no_grad():
        maps = camify.convert(legacy, head="recast", input_size=SIZE).eval().forward_with_maps(images)[1]
    heat = camify.maps.normalize(camify.maps.upsample(camify.maps.select(maps, labels), (SIZE, SIZE)))
    metric.update(heat, [s["boxes"] for s in samples])
    assert results["start"]["val/max_box_acc"] == pytest.approx(float(metric.compute()["max_box_acc"]))


class FourWithoutBoxes(BlobData):
    """Four classes, no boxes: red, green, blue and white squares."""

    def __init__(self):
        super().__init__(boxes=False)
        self.class_names = ["red", "green", "blue", "white"]

    def _loader(self, count, seed, **options):
        blobs = Blobs(count, seed, boxes=False)
        for index, (sample, kind) in enumerate(zip(blobs.samples, itertools.cycle(range(4)), strict=False)):
            image = sample["image"]
            sample["image"] = (
                image if kind < 2 else image.roll(1, 0) if kind == 2 else image.amax(0, keepdim=True).expand(3, -1, -1)
            )
            sample["label"] = blobs.labels[index] = kind
        return torch.utils.data.DataLoader(blobs, batch_size=8, collate_fn=camify.data.collate, **options)

    def train_dataloader(self):
        return self._loader(48, 0, shuffle=True)

    def val_dataloader(self):
        return self._loader(24, 1)


def test_without_boxes_otsu_cuts(run):
    results, net = run(FourWithoutBoxes(), monitor="val/acc")
    assert net.box_rule == replace(DEFAULT_RULE, kind="object", source="otsu")
    assert net.object_map["source"] == "mean feature"
    assert results["pareto"]["figures"] == ["val/acc", "val/grid_pointing"]
    assert len(results["pareto"]["epochs"]) >= 1
    assert len(net.predict_boxes(torch.randn(2, 3, SIZE, SIZE))) == 2


@pytest.mark.parametrize("known", [True, False])
def test_calibration_keeps_no_more_images_than_it_needs(known):
    """1,300 images, of which 512 are enough; evenly spread where their number is known."""

    class Stream(IterableDataset):
        def __iter__(self):
            return iter([(torch.full((1, 2, 2), float(index)), index % 3) for index in range(1300)])

    loader = DataLoader(list(Stream()) if known else Stream(), batch_size=100)
    net = SimpleNamespace(classes=Classes(Task.MULTICLASS))
    module = SimpleNamespace(cam_net=net, device=torch.device("cpu"), targets=lambda batch: batch.labels)
    batches = list(_examples(SimpleNamespace(val_dataloaders=loader), module))
    images = torch.cat([batch.images for batch in batches])
    assert len(images) == sum(len(batch.labels) for batch in batches) == (434 if known else 1300)
    assert images[-1].max() == 1299
    taken = list(_boxed(iter(batches), [torch.zeros(1, 4)] * len(images), None))
    assert sum(len(boxes) for _, _, boxes in taken) == (434 if known else 512)
