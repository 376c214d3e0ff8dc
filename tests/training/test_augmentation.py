"""Hide-and-Seek, attention-based dropout, CutMix and clamped weights against their definitions."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import v2

import camify
from camify.training.augmentation import attention_dropout, drop_attention, hide_patches
from camify.training.losses import Objective
from tests.training.conftest import SIZE, Blobs, tuner

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*")


def test_hidden_cells_are_whole_cells_of_one_grid_per_image():
    images = torch.ones(80, 3, 224, 224)
    found = hide_patches(images, 0.5)
    kinds = set()
    for image in found:
        assert torch.equal(image, image[:1].expand(3, -1, -1)), "a pixel is hidden in all channels"
        fits = []
        for side in (16, 32, 44, 56):
            cells = F.pad(image[0], (0, -224 % side, 0, -224 % side), value=2.0)
            cells = cells.unfold(0, side, side).unfold(1, side, side).flatten(2)
            fits.append(all(len(set(cell[cell < 2].tolist())) <= 1 for row in cells for cell in row))
        assert any(fits) or bool((image == 1).all())
        largest = [side for side, fit in zip((16, 32, 44, 56), fits, strict=True) if fit][-1]
        kinds.add("none" if bool((image == 1).all()) else largest)
    assert kinds == {"none", 16, 32, 44, 56}
    hidden = [float((image == 0).float().mean()) for image in found if not bool((image == 1).all())]
    assert sum(hidden) / len(hidden) == pytest.approx(0.5, abs=0.04)


def test_hiding_with_probability_0_changes_nothing_and_other_sizes_scale():
    images = torch.randn(8, 3, 40, 56)
    assert torch.equal(hide_patches(images, 0.0), images)
    sides = {round(40 / 14), round(40 / 7), round(40 * 11 / 56), 10}
    runs = set()
    for image in hide_patches(torch.ones(64, 1, 40, 40), 0.5):
        changes = [i for i in range(1, 40) if not torch.equal(image[0, i], image[0, i - 1])]
        runs |= {side for side in sides if changes and all(i % side == 0 for i in changes)}
    assert runs == sides


@pytest.mark.parametrize("drop", [True, False])
def test_attention_dropout_by_hand(drop):
    features = torch.rand(2, 3, 4, 5)
    found = attention_dropout(features, drop_rate=1.0 if drop else 0.0, gamma=0.8)
    for n in range(2):
        attention = features[n].mean(0)
        for y in range(4):
            for x in range(5):
                value = attention[y, x]
                factor = float(value <= 0.8 * attention.max()) if drop else float(torch.sigmoid(value))
                torch.testing.assert_close(found[n, :, y, x], features[n, :, y, x] * factor)


def test_attention_gives_no_gradient_of_its_own():
    features = torch.rand(1, 2, 3, 3, requires_grad=True)
    attention_dropout(features, drop_rate=0.0).sum().backward()
    expected = features.detach().mean(1, keepdim=True).sigmoid().expand_as(features)
    torch.testing.assert_close(features.grad, expected)


def test_either_mask_is_drawn_as_often_as_asked():
    features = torch.rand(1, 1, 2, 2)
    dropped = sum(bool((attention_dropout(features) == 0).any()) for _ in range(2000))
    assert dropped / 2000 == pytest.approx(0.75, abs=0.04)


def test_dropout_acts_in_training_only_and_goes_with_its_hooks():
    layers = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU())
    nn.init.ones_(layers[0].weight)
    nn.init.zeros_(layers[0].bias)
    x = torch.rand(1, 1, 3, 3)
    plain = layers(x)
    handles = drop_attention(layers, ["1"], 1.0, 0.5)
    assert not torch.equal(layers.train()(x), plain)
    assert torch.equal(layers.eval()(x), plain)
    for handle in handles:
        handle.remove()
    assert torch.equal(layers.train()(x), plain)


def test_layers_that_cannot_be_hooked_are_refused():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.act = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.ReLU()

        def forward(self, x):
            return self.act(self.act(self.body(x)))

    traced = torch.fx.symbolic_trace(Block())
    for name, words in (
        ("body", "run once. Choose for instance 'body.1'"),
        ("act", "run once"),
        ("x", "does not exist"),
    ):
        with pytest.raises(camify.ConfigError, match=words):
            drop_attention(traced, [name], 0.75, 0.9)


# ------------------------------------------------------------ in training


@pytest.mark.parametrize(
    "options", [{"hide_and_seek": 0.5}, {"cutmix": 1.0}, {"adl_layers": ["5"]}, {"pool": "tap"}, {"pool": "lse"}]
)
def test_every_option_trains_and_leaves_a_plain_network(legacy, data, make_trainer, options):
    pl.seed_everything(0, verbose=False)
    module = tuner(legacy, optimizer="adamw", lr=0.005, freeze_epochs=0, **options)
    trainer = make_trainer(max_epochs=5)
    trainer.fit(module, data)
    assert trainer.callback_metrics["val/acc"] >= 0.8
    assert not any(layer._forward_hooks for layer in module.model.modules())


def test_cutmix_pastes_the_neighbor_and_mixes_labels_by_area(legacy, monkeypatch):
    """What is learnt is torchvision's CutMix of the batch: same images, same soft labels."""
    seen = {}
    module = tuner(legacy, cutmix=1.0)
    module.log = lambda *args, **options: None
    monkeypatch.setattr(Objective, "__call__", lambda _, logits, labels, **__: {"loss": seen.update(labels=labels)})
    module.model.features.register_forward_pre_hook(lambda layer, inputs: seen.update(images=inputs[0]))
    blobs = Blobs(6, 0)
    batch = {"image": torch.stack([blobs[i]["image"] for i in range(6)]), "label": torch.tensor(blobs.labels)}
    torch.manual_seed(4)
    module.training_step(batch, 0)
    torch.manual_seed(4)
    images, labels = v2.CutMix(alpha=1.0, num_classes=2)(batch["image"], batch["label"])
    assert torch.equal(seen["images"], images)
    assert torch.equal(seen["labels"], labels)
    kept = (seen["images"] == batch["image"]).all(1).float().mean((1, 2))
    for index, label in enumerate(batch["label"].tolist()):
        assert float(seen["labels"][index, label]) == pytest.approx(float(kept[index]), abs=0.01)


def test_clamped_weights_give_maps_of_positive_weights_and_leave_logits(legacy, data, make_trainer):
    module = tuner(legacy, clamp_weights=True)
    images = next(iter(data.val_dataloader()))["image"]
    with torch.no_grad():
        features = module.model.eval().features(images)
        logits, maps = module._logits_and_maps(images)
    weight = module.model.classifier.weight.detach()
    assert bool((weight < 0).any())
    expected = torch.einsum("kc,nchw->nkhw", torch.where(weight > 0, weight, 0), features)
    torch.testing.assert_close(maps, expected)
    torch.testing.assert_close(logits, module.model(images))
    module.train()
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, data)
    assert "val/max_box_acc" in trainer.callback_metrics


def test_the_normalizer_of_the_measured_boxes_can_be_chosen(legacy, data, make_trainer):
    for name in ("max", "ivr"):
        module = tuner(legacy, normalizer=name)
        trainer = make_trainer(max_epochs=1)
        trainer.fit(module, data)
        metric = camify.metrics.MaxBoxAccuracy(version=1)
        with torch.no_grad():
            for batch in data.val_dataloader():
                maps = module.model.eval().forward_with_maps(batch["image"])[1]
                heat = camify.maps.upsample(camify.maps.select(maps, batch["label"]), (SIZE, SIZE))
                if name == "max":
                    heat = heat.clamp(min=0) / heat.amax((1, 2), keepdim=True)
                else:
                    low = heat.flatten(1).quantile(0.45, dim=1)[:, None, None]
                    heat = ((heat - low) / (heat.amax((1, 2), keepdim=True) - low)).clamp(0, 1)
                metric.update(heat, batch["boxes"])
        found = float(trainer.callback_metrics["val/max_box_acc"])
        assert found == pytest.approx(float(metric.compute()["max_box_acc"]), abs=1e-6)
