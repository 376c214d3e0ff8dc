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
from camify.data import collate
from camify.training import CAM_METRICS
from camify.training.cam_quality import CAMQuality

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
    assert 0 <= found["centre_box_acc"] <= 1
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
        return camify.CAMFineTuner(net, cam_metrics=["drift"], lr=0.01)

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
    quality = CAMQuality(["grid_pointing"], grid_mosaics=4)
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
    assert {"max_box_acc", "centre_box_acc", "best_threshold", "map_area", "map_entropy"} <= set(found)
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
