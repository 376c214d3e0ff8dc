from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

import camify
from camify.maps import normalize, upsample
from tests.training.conftest import SIZE, BlobData, Blobs, SmallLegacy, tuner

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*")


class Snapshots(pl.Callback):
    """Copies the features' weights and notes what autograd does, epoch by epoch."""

    def __init__(self):
        self.states, self.needs_grad, self.grads, self.training = [], [], [], []

    def on_train_epoch_start(self, trainer, module):
        self.states.append({k: v.clone() for k, v in module.model.features.state_dict().items()})

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == 0:
            self.needs_grad.append(module.model.features[2](module.model.features[:2](batch["image"])).requires_grad)
            self.training.append(module.model.features[1].training)

    def on_before_zero_grad(self, trainer, module, optimizer):
        self.grads.append(module.model.features[0].weight.grad is not None)

    def on_train_end(self, trainer, module):
        self.states.append({k: v.clone() for k, v in module.model.features.state_dict().items()})


def changed(before, after):
    return {key for key in before if not torch.equal(before[key], after[key])}


def test_frozen_features_get_no_gradient_and_stay_bit_identical(legacy, data, make_trainer):
    watch = Snapshots()
    module = tuner(legacy, freeze_epochs=1)
    make_trainer(watch, max_epochs=2).fit(module, data)
    first, second, last = watch.states
    assert changed(first, second) == {"cam_conv.weight", "cam_conv.bias"}, "while frozen only the new head learns"
    assert "0.weight" in changed(second, last)
    assert "1.running_mean" in changed(second, last), "free batch norm follows the data again"
    assert watch.needs_grad == [False, True]
    assert watch.training == [False, True]
    steps = len(watch.grads) // 2
    assert not any(watch.grads[:steps])


def test_parameter_groups_are_named_and_the_head_is_ten_times_faster(legacy, data, make_trainer):
    module = tuner(legacy, optimizer="sgd", lr=0.01, warmup_epochs=0, freeze_epochs=0)
    make_trainer(max_epochs=1, limit_train_batches=1).fit(module, data)
    groups = {group["name"]: group for group in module.optimizers().optimizer.param_groups}
    assert set(groups) == {"features", "head"}
    assert groups["head"]["initial_lr"] == pytest.approx(10 * groups["features"]["initial_lr"]) == pytest.approx(0.1)
    named = {id(p): name for name, p in module.model.named_parameters()}
    head = {named[id(p)] for p in groups["head"]["params"]}
    assert head == {
        "features.cam_conv.weight",
        "features.cam_conv.bias",
        "classifier.weight",
        "classifier.bias",
    }
    assert len(groups["features"]["params"]) + len(head) == len(list(module.model.parameters()))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_both_optimizers_learn_the_blobs(legacy, data, make_trainer, name):
    pl.seed_everything(0, verbose=False)
    module = tuner(legacy, optimizer=name, lr=0.02 if name == "sgd" else 0.002)
    trainer = make_trainer(max_epochs=6)
    trainer.fit(module, data)
    assert trainer.callback_metrics["val/acc"] >= 0.9


def test_logged_figures_equal_a_plain_loop(legacy, data, make_trainer):
    module = tuner(legacy)
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, data)
    model = module.model.eval()
    right, loss, count, boxes, heats = 0, 0.0, 0, [], []
    with torch.no_grad():
        for batch in data.val_dataloader():
            logits, maps = model.forward_with_maps(batch["image"])
            right += int((logits.argmax(1) == batch["label"]).sum())
            loss += float(F.cross_entropy(logits, batch["label"], reduction="sum"))
            count += len(logits)
            for index, label in enumerate(batch["label"]):
                heats.append(normalize(upsample(maps[index, label][None], (SIZE, SIZE)))[0])
                boxes.append(batch["boxes"][index])
    assert float(trainer.callback_metrics["val/acc"]) == pytest.approx(right / count)
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(loss / count, rel=1e-5)
    metric = camify.metrics.MaxBoxAccuracy(version=1)
    metric.update(torch.stack(heats), boxes)
    found = metric.compute()
    assert float(trainer.callback_metrics["val/max_box_acc"]) == pytest.approx(float(found["max_box_acc"]))
    assert float(trainer.callback_metrics["val/center_box_acc"]) == pytest.approx(float(found["center_box_acc"]))


def test_pairs_of_images_and_labels_train_as_well(legacy, make_trainer):
    def pairs(samples):
        return torch.stack([s["image"] for s in samples]), torch.tensor([s["label"] for s in samples])

    trainer = make_trainer(max_epochs=1)
    trainer.fit(
        tuner(legacy),
        DataLoader(Blobs(16, 0), 8, collate_fn=pairs),
        DataLoader(Blobs(16, 1), 8, collate_fn=pairs),
    )
    assert "val/acc" in trainer.callback_metrics
    assert "val/max_box_acc" not in trainer.callback_metrics


def test_without_boxes_there_is_no_box_accuracy(legacy, make_trainer):
    trainer = make_trainer(max_epochs=1)
    trainer.fit(tuner(legacy), BlobData(boxes=False))
    assert "val/max_box_acc" not in trainer.callback_metrics


def test_same_seed_same_run(legacy, make_trainer):
    weights = []
    for _ in range(2):
        pl.seed_everything(5, verbose=False)
        module = tuner(legacy, dropout=0.2)
        make_trainer(max_epochs=2).fit(module, BlobData())
        weights.append(module.model.state_dict())
    assert not changed(*weights)


def test_the_users_network_is_not_trained(legacy, data, make_trainer):
    before = {key: value.clone() for key, value in legacy.state_dict().items()}
    make_trainer(max_epochs=1).fit(tuner(legacy, freeze_epochs=0), data)
    assert not changed(before, legacy.state_dict())


def test_validate_test_and_predict(legacy, data, make_trainer):
    module, trainer = tuner(legacy), make_trainer()
    for run in (trainer.validate, trainer.test, trainer.predict):
        with pytest.raises(camify.ConfigError, match=r"cam_conv.*never trained"):
            run(module, data)
    module.model.untrained = ()
    (figures,) = trainer.validate(module, data, verbose=False)
    assert {"val/acc", "val/loss", "val/max_box_acc", "val/center_box_acc"} <= set(figures)
    (figures,) = trainer.test(module, data, verbose=False)
    assert {"test/acc", "test/max_box_acc"} <= set(figures)
    found = trainer.predict(module, data)
    assert sum(len(part["classes"]) for part in found) == 20
    assert found[0]["maps"].shape[1:] == (16, 16)


def test_a_legacy_network_trains_as_it_is_with_head_none(legacy, data, make_trainer):
    trainer = make_trainer(max_epochs=1)
    module = tuner(legacy, head="none")
    assert module.model is legacy
    trainer.fit(module, data)
    assert "val/acc" in trainer.callback_metrics


def test_a_cam_net_is_taken_as_it_is(legacy):
    net = camify.convert(legacy, head="direct", input_size=SIZE)
    assert camify.CAMFineTuner(net, class_names=["red", "green"]).model is net
    other = camify.CAMFineTuner(net, class_names=["a", "b", "c"], input_size=SIZE).model
    assert other is not net
    assert other.num_classes == 3


def test_checkpoints_hold_plain_values_only(legacy, data, make_trainer, tmp_path):
    trainer = make_trainer(camify.CAMOverlayLogger(num_images=2), max_epochs=1)
    trainer.fit(tuner(legacy), data)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    state = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert "_class_path" not in state["hyper_parameters"]
    assert not any(key.startswith("legacy") for key in state["state_dict"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0.0}, "lr=0"),
        ({"freeze_epochs": -1}, "freeze_epochs=-1"),
        ({"optimizer": "lion"}, "lion"),
        ({"class_names": ["one"]}, "at least two"),
        ({"head": "none", "class_names": ["a", "b", "c"]}, "3 classes, the network 2"),
    ],
)
def test_bad_options_are_refused_before_training(legacy, options, words):
    with pytest.raises(camify.CamifyError, match=words):
        tuner(legacy, **options)


def test_other_classes_than_the_models_are_refused(data, make_trainer):
    module = camify.CAMFineTuner(SmallLegacy(), class_names=["green", "red"], input_size=SIZE, head_channels=4)
    with pytest.raises(camify.DataError, match="in this order"):
        make_trainer().fit(module, data)


class FirstLogits(pl.Callback):
    """The validation accuracy before the first step, and the classifier then."""

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 0:
            batch = next(iter(trainer.val_dataloaders))
            with torch.no_grad():
                logits = module.model.eval()(batch["image"])
            module.model.train()
            self.accuracy = float((logits.argmax(1) == batch["label"]).float().mean())


@pytest.mark.parametrize("comparable", [True, False])
def test_a_ridge_start_knows_the_classes_before_the_first_step(data, make_trainer, comparable):
    pl.seed_everything(0, verbose=False)
    teacher = SmallLegacy(2)
    make_trainer(max_epochs=6).fit(tuner(teacher, head="none", optimizer="adamw", lr=0.005), data)
    legacy = (
        teacher if comparable else camify.convert(teacher, head="gap", num_classes=7, head_channels=8, input_size=SIZE)
    )
    first = FirstLogits()
    names = ["red", "green"] if comparable else None
    module = tuner(legacy, init="ridge", head="gap" if comparable else "direct", legacy_class_names=names)
    assert (module.legacy is not None) == comparable
    make_trainer(first, max_epochs=1).fit(module, data)
    assert first.accuracy >= 0.75
    assert module.legacy is None


def test_what_the_user_had_frozen_stays_so(legacy, data, make_trainer):
    legacy.features[0].weight.requires_grad_(False)
    module = tuner(legacy, freeze_epochs=1)
    before = {key: value.clone() for key, value in module.model.state_dict().items()}
    make_trainer(max_epochs=2).fit(module, data)
    after = module.model.state_dict()
    frozen = [name for name, p in module.model.named_parameters() if not p.requires_grad]
    assert frozen == ["features.0.weight"]
    assert torch.equal(before["features.0.weight"], after["features.0.weight"])
    assert not torch.equal(before["features.4.weight"], after["features.4.weight"])
