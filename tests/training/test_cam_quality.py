"""CAM metrics of validation, chosen by name."""

from __future__ import annotations

import copy

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.nn import functional as F
from torch.utils.data import DataLoader

import camify
from camify import metrics
from camify.batch import Batch
from camify.data import collate
from camify.evaluation import engine
from camify.metrics import functional
from camify.normalizers import Normalizer
from camify.training import CAM_METRICS
from camify.training.cam_metrics import CAMMetrics, ValidationBatch, logits_and_maps
from tests.metrics.two_processes import in_two_processes, needs_fork

from .conftest import Blobs, SmallLegacy

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*")


@pytest.fixture
def converted(legacy):
    net = camify.convert(legacy, head="direct", input_size=32, seed=0).eval()
    net.untrained = ()  # as if it had been trained: it is to be measured
    return net


def validated(module, trainer, data):
    found = trainer.validate(module, data, verbose=False)[0]
    return {key.removeprefix("val/"): value for key, value in found.items()}


def looked_at(net, samples):
    """Images, labels, probabilities and heat of the true class, without camify: a 1x1 convolution, min-max, resize."""
    images, labels = torch.stack([s["image"] for s in samples]), torch.tensor([s["label"] for s in samples])
    net.eval()
    with torch.no_grad():
        features = net.features(images)
        maps = torch.einsum("kc,nchw->nkhw", net.classifier.weight, features)
        p = net.classifier(features.mean((2, 3))).softmax(1)
    own = maps[torch.arange(len(labels)), labels]
    big = F.interpolate(own[:, None], size=(32, 32), mode="bilinear", align_corners=False)[:, 0]
    low, high = big.amin((1, 2), keepdim=True), big.amax((1, 2), keepdim=True)
    return images, labels, p[torch.arange(len(labels)), labels], own, big, (big - low) / (high - low)


def test_figures_by_hand(converted, data, make_trainer):
    names = ["max_box_acc", "energy", "area", "entropy", "average_drop", "complexity", "coherency"]
    names += ["flip_equivariance", "shift_equivariance"]
    found = validated(camify.CAMFineTuner(converted, cam_metrics=names), make_trainer(), data)
    samples = Blobs(20, 1).samples
    images, labels, p, own, raw, heat = looked_at(converted, samples)

    assert found["map_area"] == pytest.approx(float((heat >= 0.5).float().mean()), abs=1e-5)
    share = own.clamp(min=0).flatten(1)
    share = share / share.sum(1, keepdim=True)
    spread = -(share * share.clamp_min(1e-30).log()).sum(1) / torch.tensor(float(share.shape[1])).log()
    assert found["map_entropy"] == pytest.approx(float(spread.mean()), abs=1e-5)
    inside = []
    for one, sample in zip(raw, samples, strict=True):
        x0, y0, x1, y1 = sample["boxes"][0].int().tolist()
        positive = one.clamp(min=0)
        inside.append(float(positive[y0:y1, x0:x1].sum() / positive.sum()))
    assert found["energy"] == pytest.approx(sum(inside) / len(inside), abs=1e-5)
    masked = [{**s, "image": i * h} for s, i, h in zip(samples, images, heat, strict=True)]
    _, _, after, _, _, heat_after = looked_at(converted, masked)
    assert found["average_drop"] == pytest.approx(float(((p - after).clamp(min=0) / p).mean()), abs=1e-5)
    assert found["complexity"] == pytest.approx(float(heat.mean()), abs=1e-5)
    pairs = [torch.stack([a.flatten(), b.flatten()]) for a, b in zip(heat, heat_after, strict=True)]
    alike = [(1 + float(torch.corrcoef(pair)[0, 1])) / 2 for pair in pairs]
    assert found["coherency"] == pytest.approx(sum(alike) / len(alike), abs=1e-5)
    turned = [{**s, "image": s["image"].flip(-1)} for s in samples]
    _, _, _, own_turned, _, _ = looked_at(converted, turned)
    pairs = [torch.stack([a.flatten(), b.flip(-1).flatten()]) for a, b in zip(own, own_turned, strict=True)]
    same = [max(float(torch.corrcoef(pair)[0, 1]), 0) for pair in pairs]
    assert found["flip_equivariance"] == pytest.approx(sum(same) / len(same), abs=1e-5)
    moved = [{**s, "image": F.pad(s["image"][None], (4, 0, 4, 0), mode="replicate")[0, :, :32, :32]} for s in samples]
    raw_moved = looked_at(converted, moved)[4]
    pairs = [torch.stack([a[:28, :28].flatten(), b[4:, 4:].flatten()]) for a, b in zip(raw, raw_moved, strict=True)]
    same = [max(float(torch.corrcoef(pair)[0, 1]), 0) for pair in pairs]
    assert found["shift_equivariance"] == pytest.approx(sum(same) / len(same), abs=1e-5)
    assert 0 <= found["center_box_acc"] <= 1
    assert labels.tolist() == [0, 1] * 10


def test_every_metric_has_a_name_and_can_be_monitored(converted, data, make_trainer, tmp_path):
    names = [name for name in CAM_METRICS if name != "px_ap"]
    keep = ModelCheckpoint(tmp_path / "kept", monitor="val/insertion_auc", mode="max")
    trainer = make_trainer(keep, max_epochs=2, enable_checkpointing=True, limit_train_batches=2)
    trainer.fit(camify.CAMFineTuner(converted, cam_metrics=names), data)
    logged = {label for name in names for label in CAM_METRICS[name].figures}
    assert logged <= {key.removeprefix("val/") for key in trainer.callback_metrics}
    assert float(keep.best_model_score) == pytest.approx(float(trainer.callback_metrics["val/insertion_auc"]))


def test_drift_by_hand_and_after_resuming(legacy, data, make_trainer, tmp_path):
    class Maps(pl.Callback):
        def __init__(self):
            self.seen = []

        def on_validation_start(self, trainer, pl_module):
            if not trainer.sanity_checking:
                self.seen.append(looked_at(copy.deepcopy(pl_module.model), Blobs(20, 1).samples)[3])

    def tuner():
        net = camify.convert(legacy, head="direct", input_size=32, seed=0)
        return camify.CAMFineTuner(net, cam_metrics=["drift"], optimizer="sgd", lr=0.01)

    maps, module = Maps(), tuner()
    trainer = make_trainer(maps, max_epochs=2)
    trainer.fit(module, data)
    pairs = [torch.stack([a.flatten(), b.flatten()]) for a, b in zip(*maps.seen, strict=True)]
    moved = [1 - float(torch.corrcoef(pair)[0, 1]) for pair in pairs]
    assert float(trainer.callback_metrics["val/map_drift"]) == pytest.approx(sum(moved) / len(moved), abs=1e-4)
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    again = make_trainer(max_epochs=3)
    again.fit(tuner(), data, ckpt_path=tmp_path / "stopped.ckpt")
    assert "val/map_drift" in again.callback_metrics, "the maps of the epoch before came along"


class Quarters(Blobs):
    """Four classes: a square in red, green, blue or gray; no boxes."""

    def __init__(self):
        super().__init__(24, 5, boxes=False)
        for index, sample in enumerate(self.samples):
            sample["label"] = index % 4
            sample["image"] = sample["image"].roll(index % 3, 0)
        self.labels = [sample["label"] for sample in self.samples]


def test_grid_pointing_by_hand(make_trainer):
    torch.manual_seed(0)
    net, samples = camify.convert(SmallLegacy(4), head="direct", input_size=32, seed=0).eval(), Quarters()
    net.untrained = ()
    loader = DataLoader(samples, batch_size=5, collate_fn=collate)
    tuner = camify.CAMFineTuner(net, cam_metrics=["grid_pointing"], grid_mosaics=4)
    found = make_trainer().validate(tuner, loader, verbose=False)[0]
    by_label = {label: [i for i, own in enumerate(samples.labels) if own == label] for label in range(4)}
    seen = []

    class Watched(torch.nn.Module):
        """Looks at what the network is given, and works the share out again."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward_with_maps(self, image):
            logits, maps = net.forward_with_maps(image)
            tiles = [image[0, :, y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32)]
            for cell, tile in enumerate(tiles):
                number = next(i for i, s in enumerate(samples.samples) if torch.equal(s["image"], tile))
                positive = maps[0, samples.labels[number]].clamp(min=0)
                half = positive.shape[-1] // 2
                y, x = divmod(cell, 2)
                inside = positive[y * half : (y + 1) * half, x * half : (x + 1) * half].sum()
                seen.append((number, float(inside / positive.sum()) if positive.any() else 0.0))
            return logits, maps

    def read(numbers):
        return torch.stack([samples[number]["image"] for number in numbers])

    net.eval()
    quality = CAMMetrics(["grid_pointing"], grid_mosaics=4)
    again = quality.grid_pointing(Watched(), samples.labels, read)
    assert len({number for number, _ in seen}) == 16, "four mosaics, every image once"
    assert all(number in by_label[samples.labels[number]] for number, _ in seen)
    shares = [share for _, share in seen]
    assert again["grid_pointing"] == pytest.approx(sum(shares) / 16, abs=1e-6)
    assert found["val/grid_pointing"] == pytest.approx(again["grid_pointing"], abs=1e-6)
    assert found["val/grid_chance"] == 0.25
    halves = [quality.grid_pointing(net, samples.labels, read, rank=rank, world_size=2) for rank in (0, 1)]
    assert sum(half["grid_pointing"] for half in halves) / 2 == pytest.approx(again["grid_pointing"], abs=1e-6)


def test_without_boxes_the_default_is_grid_pointing(make_trainer):
    net = camify.convert(SmallLegacy(4), head="direct", input_size=32, seed=0)
    net.untrained = ()
    found = validated(camify.CAMFineTuner(net), make_trainer(), DataLoader(Quarters(), 6, collate_fn=collate))
    assert {"grid_pointing", "grid_chance", "map_area", "map_entropy"} <= set(found)
    assert "max_box_acc" not in found


def test_where_boxes_are_known_the_default_are_they(converted, data, make_trainer):
    found = validated(camify.CAMFineTuner(converted), make_trainer(), data)
    assert {"max_box_acc", "center_box_acc", "best_threshold", "map_area", "map_entropy"} <= set(found)
    assert "grid_pointing" not in found


def test_what_cannot_be_measured_is_said_before_training(converted, make_trainer):
    with pytest.raises(camify.ConfigError, match="beauty unknown"):
        camify.CAMFineTuner(converted, cam_metrics=["beauty"])
    with pytest.raises(camify.ConfigError, match="grid_mosaics=0"):
        camify.CAMFineTuner(converted, grid_mosaics=0)
    loader = DataLoader(Blobs(8, 0, boxes=False), 4, collate_fn=collate)
    for names, why in ((["localization"], "needs boxes"), (["px_ap"], "needs masks"), (["grid_pointing"], "2 classes")):
        with pytest.raises(camify.ConfigError, match=why):
            make_trainer().validate(camify.CAMFineTuner(converted, cam_metrics=names), loader, verbose=False)


# ------------------------------------------------------------ the engine's rows, and what they cost


COUNT = 9  # images: of them the first has no object, and one two boxes


def measured(part=slice(None), normalizer="minmax"):
    """A batch with boxes, masks, and the drift since an earlier epoch."""
    torch.manual_seed(1)
    network = camify.convert(SmallLegacy(3), head="direct", input_size=32, seed=0).eval()
    network.classifier.weight.data.normal_(0, 0.3)
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(COUNT, 3, 32, 32, generator=generator)
    low = 15 * torch.rand(COUNT, 2, 2, generator=generator)
    boxes = torch.cat([low, low + 2 + 15 * torch.rand(COUNT, 2, 2, generator=generator)], 2)
    boxes = [own[:count] for own, count in zip(boxes, (0, 1, 2, *[1] * 6), strict=True)]
    masks = torch.rand(COUNT, 32, 32, generator=generator) < 0.2
    masks[0] = False
    labels, drift = torch.arange(COUNT) % 3, torch.rand(COUNT, generator=generator)
    batch = Batch(images[part], labels[part], boxes[part], masks[part])
    with torch.no_grad():
        logits, maps = logits_and_maps(network, batch.images)
    found = ValidationBatch.of(network, batch, labels[part], logits, maps, Normalizer.published(normalizer), False)
    found.drift, found.object_maps = drift[part], torch.rand(COUNT, 4, 4, generator=generator)[part]
    return found


def figures_of(names, *batches):
    quality = CAMMetrics(names)
    with torch.no_grad():
        for batch in batches:
            quality.update(batch)
    return quality.compute()


def by_class(batch):
    """The same figures from the torchmetrics classes, which count for themselves."""

    def of(metric, *values):
        metric.update(*values)
        return metric.compute()

    def mean(row):
        return row[~row.isnan()].mean()

    def again(images):
        logits, maps = logits_and_maps(batch.network, images)
        return logits.softmax(1).gather(1, batch.labels[:, None])[:, 0], maps[torch.arange(COUNT), batch.labels]

    heat, raw, own = batch.heat, batch.evidence, batch.own
    curves = (batch.network, batch.images, raw, batch.labels)
    p = batch.logits.softmax(1).gather(1, batch.labels[:, None])[:, 0]
    masked_p, masked_own = again(functional.masked_images(batch.images, heat))
    masked = batch.heat_of(F.interpolate(masked_own[:, None], (32, 32), mode="bilinear")[:, 0])
    moved = F.interpolate(again(functional.shifted(batch.images))[1][:, None], (32, 32), mode="bilinear")[:, 0]
    first, second = (of(metrics.MaxBoxAccuracy(version), heat, batch.boxes) for version in (1, 2))
    object_heat = batch.heat_of(F.interpolate(batch.object_maps[:, None], (32, 32), mode="bilinear")[:, 0])
    objects = of(metrics.MaxBoxAccuracy(1), object_heat, batch.boxes)
    top = of(metrics.LocalizationAccuracy(), heat, batch.boxes, batch.logits, batch.labels)
    pixels = of(metrics.PixelAveragePrecision(), heat, batch.masks)
    pointing, energy = (of(kind(), raw, batch.masks) for kind in (metrics.PointingGame, metrics.EnergyPointingGame))
    return {
        **{name: first[name] for name in ("max_box_acc", "center_box_acc", "best_threshold")},
        **{f"{name}_v2": second[name] for name in ("max_box_acc", "center_box_acc")},
        "object_box_acc": objects["max_box_acc"],
        **{f"{name}_loc": top[name] for name in ("gt_known", "top1", "top5", "center_gt_known")},
        "px_ap": pixels["px_ap"], "center_px_ap": pixels["center_gaussian_ap"],
        "pointing": pointing["accuracy"], "center_pointing": pointing["center_accuracy"],
        "energy": energy["energy"], "uniform_energy": energy["uniform_energy"],
        "map_area": functional.area(heat).mean(), "map_entropy": mean(functional.entropy(own)),
        "map_drift": batch.drift.mean(),
        "flip_equivariance": mean(functional.flip_equivariance(own, again(batch.images.flip(-1))[1]).clamp_min(0)),
        "shift_equivariance": mean(functional.shift_equivariance(raw, moved, (4, 4)).clamp_min(0)),
        "average_drop": of(metrics.AverageDrop(), p, masked_p),
        "average_increase": of(metrics.AverageIncrease(), p, masked_p),
        "coherency": of(metrics.Coherency(), heat, masked), "complexity": of(metrics.Complexity(), heat),
        "adcc": of(metrics.ADCC(), p, masked_p, heat, masked),
        "insertion_auc": of(metrics.InsertionAUC(), functional.insertion_curves(*curves, steps=16)),
        "deletion_auc": of(metrics.DeletionAUC(), functional.deletion_curves(*curves, steps=16)),
    }  # fmt: skip


@pytest.mark.parametrize("normalizer", ["minmax", "ivr"])
@torch.no_grad()
def test_every_figure_is_that_of_the_torchmetrics_class(normalizer):
    batch = measured(normalizer=normalizer)
    found, expected = figures_of(list(CAM_METRICS), batch), by_class(batch)
    assert found.keys() == expected.keys() == {label for one in CAM_METRICS.values() for label in one.figures}
    for label, value in expected.items():
        assert found[label] == pytest.approx(float(value), abs=1e-6), label
    for name, one in CAM_METRICS.items():
        alone = figures_of([name], measured(normalizer=normalizer))
        assert alone == {label: found[label] for label in one.figures}, "asked for alone"


@torch.no_grad()
def test_figures_of_boxes_are_those_of_evaluate_s_rows():
    batch = measured()
    found = figures_of(["max_box_acc", "max_box_acc_v2", "localization", "energy"], batch)
    rows = engine.map_rows(batch.heat, batch.evidence, boxes=batch.boxes, masks=batch.masks)
    known = torch.tensor([len(own) > 0 for own in batch.boxes])
    hits = (rows["largest"][known] >= engine.IOU_50).double().mean(0)
    assert found["max_box_acc"] == found["gt_known_loc"] == pytest.approx(float(hits.max()))
    assert found["best_threshold"] == pytest.approx(float(hits.argmax()) / 100)
    every = torch.stack([(rows["all"][known] > level).double().mean(0).max() for level in range(3)])
    assert found["max_box_acc_v2"] == pytest.approx(float(every.mean()))
    assert found["energy"] == pytest.approx(float(rows["energy"].nanmean()))
    center = engine.baseline_rows(batch.boxes, (32, 32), range(COUNT), 0, None)[engine.CENTER_BOX]["largest"][known]
    assert found["center_box_acc"] == pytest.approx(float((center >= engine.IOU_50).double().mean(0).max()))


def test_boxes_may_be_one_tensor():
    listed, stacked = measured(part=slice(3, None)), measured(part=slice(3, None))
    stacked.boxes = torch.stack(stacked.boxes)
    names = ["max_box_acc", "max_box_acc_v2", "localization"]
    assert figures_of(names, stacked) == figures_of(names, listed)


@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_one_process_equals_two(tmp_path):
    whole = figures_of(list(CAM_METRICS), measured())
    batches = {part: measured(part=slice(*part)) for part in ((0, 5), (5, None))}
    for found in in_two_processes(
        lambda part: figures_of(list(CAM_METRICS), batches[part.start or 0, part.stop]), tmp_path
    ):
        assert found == pytest.approx(whole, abs=1e-6)
        assert all(found[label] == whole[label] for label in ("max_box_acc", "best_threshold", "pointing"))


@needs_fork
@pytest.mark.filterwarnings("ignore")
def test_a_process_without_boxes_waits_with_the_others(tmp_path):
    boxed = measured(part=slice(0, 5))
    without = measured(part=slice(5, None))
    without.boxes = without.masks = None

    def work(part):
        return figures_of(None, boxed if part.stop == 5 else without)

    for found in in_two_processes(work, tmp_path):
        assert found["max_box_acc"] == figures_of(["max_box_acc"], boxed)["max_box_acc"]
        assert found["map_area"] == pytest.approx(figures_of(["area"], measured())["map_area"])


def test_nothing_is_computed_that_was_not_asked_for(monkeypatch):
    calls = []

    def watch(name):
        real = getattr(functional, name)
        monkeypatch.setattr(
            functional, name, lambda *a, **k: (calls.append((name, k.get("largest"))), real(*a, **k))[1]
        )

    for name in functional.__all__:
        if callable(getattr(functional, name)):
            watch(name)
    batch = measured()
    calls.clear()
    batch.network.forward_features = None  # no further forward
    figures_of(None, batch)
    assert calls.count(("box_hits_by_threshold", True)) == 2  # of plain and of object maps, all images at once
    assert calls.count(("center_box_ious", None)) == 1
    assert {name for name, _ in calls} <= {
        "box_hits_by_threshold", "center_box_ious", "thresholds", "area", "entropy"
    }  # fmt: skip
    calls.clear()
    figures_of(["max_box_acc", "localization", "pointing", "px_ap", "complexity", "drift"], batch)
    assert not {name for name, _ in calls} & {"entropy", "area", "energy_share", "best_ious_by_threshold"}
    assert calls.count(("box_hits_by_threshold", True)) == 0, "the boxes of a batch are cut once"


def test_each_changed_image_has_one_forward(monkeypatch):
    batch, forwards = measured(), []
    real = batch.network.forward_features
    monkeypatch.setattr(
        batch.network, "forward_features", lambda images: (forwards.append(len(images)), real(images))[1]
    )
    figures_of(["average_drop", "average_increase", "coherency", "adcc", "complexity"], batch)
    assert forwards == [COUNT]
    figures_of(["flip_equivariance", "shift_equivariance"], batch)
    assert forwards == [COUNT] * 3


@pytest.mark.parametrize(
    ("name", "field", "change", "said"),
    [
        ("max_box_acc", "boxes", lambda own: own + 40, "MaxBoxAccuracy: a box of image 1 lies outside its 32 x 32 px"),
        ("max_box_acc_v2", "boxes", lambda own: own.flip(1), "MaxBoxAccuracy: boxes of image 1 need x0 < x1"),
        ("localization", "logits", lambda own: own * torch.nan, "LocalizationAccuracy: scores .* no NaN"),
        ("px_ap", "masks", lambda own: own[:16], r"PixelAveragePrecision: masks \(9, 16, 32\) are not \(9, 32, 32\)"),
        ("pointing", "masks", lambda own: own.float(), "PointingGame: masks .* must be bool"),
        ("energy", "maps", lambda own: own * torch.nan, "EnergyPointingGame: maps hold NaN or infinity"),
        ("average_drop", "logits", lambda own: own * torch.nan, "AverageDrop: scores must be probabilities"),
        ("insertion_auc", "images", lambda own: own * torch.nan, "InsertionAUC: curves must be probabilities"),
        ("area", "maps", lambda own: own * torch.nan, "maps hold NaN or infinity"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_the_words_of_the_class(name, field, change, said):
    batch = measured()
    given = [change(own) for own in getattr(batch, field)]
    setattr(batch, field, given if field == "boxes" else torch.stack(given))
    with pytest.raises(camify.DataError, match=said):
        figures_of([name], batch)
