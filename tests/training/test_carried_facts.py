"""What a network carries decides: preprocessing, task and classes, in training as everywhere."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import camify
from camify.data import ImageFolderDataModule, Preprocessing
from camify.training import RunRecord
from camify.training.callbacks.predictions import PredictionTable

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*")


@pytest.fixture
def trainer(tmp_path):
    def make(*callbacks, **options):
        options = {"max_epochs": 1, "default_root_dir": tmp_path / "run"} | options
        return pl.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=list(callbacks), **options,
        )  # fmt: skip

    return make


# ------------------------------------------------------------ preprocessing


@pytest.fixture
def grays(tmp_path):
    """Dark and light pictures, and a network that tells them apart by values in [0, 1] at 64 px."""
    for split in ("train", "val"):
        for name, gray in (("dark", 60), ("light", 130)):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for index in range(4):
                Image.fromarray(np.full((64, 64, 3), gray + index, np.uint8)).save(folder / f"{index}.png")
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)).eval()
    net[0].weight.data = torch.tensor([-1.0, 1.0])[:, None, None, None].expand(2, 3, 1, 1).clone()
    net[0].bias.data = torch.tensor([95 / 85, -95 / 85])
    net[3].weight.data, net[3].bias.data = torch.eye(2), torch.zeros(2)
    model = camify.convert(net, head="direct", input_size=64)
    model.class_names, model.preprocessing = ["dark", "light"], Preprocessing(64, (0, 0, 0), (1, 1, 1)).to_dict()
    return tmp_path / "data", str(model.save_pretrained(tmp_path / "net"))


@pytest.mark.parametrize("size", [None, 64])
def test_data_are_prepared_as_the_network_says(grays, trainer, tmp_path, size):
    root, net = grays
    module = camify.CAMFineTuner(net, class_names=["dark", "light"])
    data = ImageFolderDataModule(str(root), image_size=size, num_workers=0)
    runner = trainer(PredictionTable())
    runner.validate(module, data, verbose=False)
    assert float(runner.callback_metrics["val/acc"]) == 1.0
    assert module.model.preprocessing == data.preprocessing == Preprocessing(64, (0, 0, 0), (1, 1, 1))
    runner.test(module, data, verbose=False)
    assert float(runner.callback_metrics["test/acc"]) == 1.0
    runner.predict(module, data)
    rows = list(csv.DictReader((tmp_path / "run" / "predictions.csv").read_text().splitlines()))
    assert [row["class"] for row in rows] == ["dark"] * 4 + ["light"] * 4
    trainer(max_epochs=1).fit(camify.CAMFineTuner(net, lr=1e-9), ImageFolderDataModule(str(root), num_workers=0))


@pytest.mark.parametrize(
    ("given", "words"),
    [({"image_size": 32}, ["size 32 and 64"]), ({"mean": (0.4, 0.4, 0.4)}, ["mean (0.4, 0.4, 0.4) and (0, 0, 0)"])],
)
def test_a_contradiction_shows_both_values_and_can_be_overruled(grays, trainer, given, words):
    root, net = grays
    for run in ("validate", "fit"):
        with pytest.raises(camify.ConfigError) as refusal:
            getattr(trainer(), run)(camify.CAMFineTuner(net), ImageFolderDataModule(str(root), num_workers=0, **given))
        assert all(word in str(refusal.value) for word in [*words, "override_preprocessing"])
    forced = ImageFolderDataModule(str(root), num_workers=0, override_preprocessing=True, **given)
    module = camify.CAMFineTuner(net, lr=1e-9)
    trainer().validate(module, forced, verbose=False)
    assert module.model.preprocessing.size == 64, "measuring does not change what the network says"
    trainer().fit(module, forced)
    assert module.model.preprocessing == forced.preprocessing
    assert any("overruled" in note for note in module.model.certificate.notes)


def test_a_data_module_of_ones_own_is_compared_too(grays, trainer):
    _, net = grays

    class Own(pl.LightningDataModule):
        preprocessing = Preprocessing(64)

        def val_dataloader(self):
            return DataLoader(TensorDataset(torch.zeros(2, 3, 64, 64), torch.tensor([0, 1])), 2)

    with pytest.raises(camify.ConfigError, match="mean"):
        trainer().validate(camify.CAMFineTuner(net), Own(), verbose=False)


def test_means_of_0_to_255_are_refused_with_the_cause():
    with pytest.raises(camify.ConfigError, match=r"0..255: divide them by 255, which gives \(0.485"):
        Preprocessing(224, (123.68, 116.78, 103.94), (0.2, 0.2, 0.2))
    with pytest.raises(camify.ConfigError, match="divide them by 255"):
        Preprocessing(224, (0.5, 0.5, 0.5), (58.4, 57.1, 57.4))
    assert Preprocessing(64, (0.4, 0.4, 0.5), (1 / 255,) * 3).channels == 3


# ------------------------------------------------------------ classes


def colors(order, **head):
    """Images whose class is a color, and a legacy network that numbers them in some order."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 3
    images = torch.randn(96, 3, 32, 32, generator=generator) * 0.2
    images += 2 * nn.functional.one_hot(labels, 3)[:, :, None, None]
    legacy = nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)).eval()
    legacy[0].weight.data, legacy[0].bias.data = torch.eye(3)[:, :, None, None], torch.zeros(3)
    legacy[3].weight.data, legacy[3].bias.data = torch.eye(3)[order] * 5, torch.zeros(3)
    return legacy, DataLoader(TensorDataset(images, labels), batch_size=16)


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 2, 0], [1, 0, 2]])
def test_equal_counts_are_not_equal_classes(trainer, order):
    legacy, data = colors(order)
    pl.seed_everything(0, verbose=False)
    module = camify.CAMFineTuner(
        legacy, class_names=["a", "b", "c"], head="gap", head_channels=8, input_size=32, init="ridge", lr=1e-6
    )
    runner = trainer()
    runner.fit(module, data, data)
    assert float(runner.callback_metrics["val/acc"]) == 1.0
    trusted = order == [0, 1, 2]
    assert f"fitted to {'teacher' if trusted else 'labels'}" in str(module.fit_report)
    (note,) = module.legacy_network.notes
    assert ("believed" if trusted else "not taken to know") in note
    assert "on 96 training images, where chance is 33.3%" in note


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 2, 0]])
def test_rows_are_kept_only_of_classes_that_are_the_datas(trainer, order):
    legacy, data = colors(order)
    kept = []

    class First(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            kept.append(torch.equal(module.model.classifier.weight, legacy[3].weight))

    module = camify.CAMFineTuner(legacy, class_names=["a", "b", "c"], head="direct", input_size=32, lr=1e-9)
    trainer(First()).fit(module, data, data)
    assert kept[0] == (order == [0, 1, 2])


def test_names_say_which_class_is_which(trainer):
    legacy, data = colors([1, 2, 0])
    module = camify.CAMFineTuner(
        legacy, class_names=["a", "b", "c"], legacy_class_names=["b", "c", "a"], head="direct", input_size=32, lr=1e-9
    )
    assert torch.equal(module.model.classifier.weight, legacy[3].weight[[2, 0, 1]])
    runner = trainer()
    runner.fit(module, data, data)
    assert float(runner.callback_metrics["val/acc"]) == 1.0
    assert module.legacy_network.notes == []


def test_other_classes_of_a_network_change_its_last_layer_only():
    legacy, _ = colors([0, 1, 2])
    net = camify.convert(legacy, head="gap", head_channels=8, input_size=32, class_names=["a", "b", "c"], pool="gmp")
    net.untrained = ()
    for names, rows in ((["c", "a"], [2, 0]), (["b", "new", "a"], [1, None, 0])):
        other = camify.convert(net, head="direct", class_names=names)
        assert other.pool_name == "gmp"
        assert all(
            torch.equal(a, b) for a, b in zip(net.features.parameters(), other.features.parameters(), strict=True)
        )
        for place, row in enumerate(rows):
            if row is not None:
                assert torch.equal(other.classifier.weight[place], net.classifier.weight[row])
        assert other.untrained == (("classifier",) if None in rows else ())
        tuned = camify.CAMFineTuner(net, class_names=names)
        assert torch.equal(tuned.model.features[0].weight, net.features[0].weight)


# ------------------------------------------------------------ tasks


@pytest.mark.slow
def test_a_network_of_one_logit_is_fine_tuned_measured_and_predicted(trainer, tmp_path):
    torch.manual_seed(0)
    labels = torch.arange(32) % 2
    images = torch.randn(32, 3, 16, 16) * 0.1 + labels[:, None, None, None]
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
    module = camify.CAMFineTuner(
        net, class_names=["healthy", "tumor"], head="direct", input_size=16, optimizer="sgd", lr=0.05
    )
    assert (str(module.task), module.model.num_classes) == ("binary", 1)
    data = DataLoader(TensorDataset(images, labels), batch_size=8)
    runner = trainer(RunRecord(quiet=True), camify.CAMOverlayLogger(num_images=2), PredictionTable(), max_epochs=8)
    runner.fit(module, data, data)
    assert float(runner.callback_metrics["val/acc"]) == 1.0
    runner.predict(module, DataLoader(images, batch_size=8))
    rows = list(csv.DictReader((tmp_path / "run" / "predictions.csv").read_text().splitlines()))
    assert [row["class"] for row in rows] == ["healthy", "tumor"] * 16
    for row, logit in zip(rows, module.model.eval()(images)[:, 0].tolist(), strict=True):
        own = logit if row["class"] == "tumor" else -logit
        assert float(row["probability"]) == pytest.approx(1 / (1 + math.exp(-own)), abs=1e-5)
        assert float(row["logit"]) == pytest.approx(own, abs=1e-4)
    loaded = camify.load(tmp_path / "run" / "export")
    assert (str(loaded.task), loaded.class_names) == ("binary", ["healthy", "tumor"])
    for method in ("cam", "gradcam", "reciprocam"):
        pair = camify.explain(loaded, images[:2], method=method, targets=[[0, 1]] * 2, normalize=None, size=None)
        if method != "reciprocam":
            torch.testing.assert_close(pair[:, 0], -pair[:, 1])
        else:
            torch.testing.assert_close(pair.sum(1), torch.ones_like(pair[:, 0]))
    raw = loaded.forward_with_maps(images[:2])[1][:, 0]
    torch.testing.assert_close(
        camify.explain(loaded, images[:2], targets=1, normalize=None, size=None), raw.detach(), msg="evidence for"
    )


def test_binary_loss_is_that_of_torch(trainer):
    torch.manual_seed(1)
    images, labels = torch.randn(8, 3, 16, 16), torch.tensor([0.0, 1, 1, 0, 1, 0, 0, 1])
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)).eval()
    module = camify.CAMFineTuner(net, head="direct", input_size=16)
    module.model.untrained = ()
    logits = net(images)[:, 0].detach()
    for given in (labels, labels.long(), labels[:, None]):
        runner = trainer()
        runner.validate(module, DataLoader(TensorDataset(images, given), 8), verbose=False)
        expected = nn.functional.binary_cross_entropy_with_logits(logits, labels)
        assert float(runner.callback_metrics["val/loss"]) == pytest.approx(float(expected), rel=1e-5)
        right = ((logits > 0) == (labels > 0)).float().mean()
        assert float(runner.callback_metrics["val/acc"]) == pytest.approx(float(right))


@pytest.mark.parametrize("kind", [torch.float32, torch.int64])
def test_multilabel_targets_are_floats_or_whole_numbers(trainer, kind):
    from sklearn.metrics import average_precision_score

    torch.manual_seed(2)
    images, labels = torch.randn(12, 3, 16, 16), (torch.rand(12, 3) > 0.5).to(kind)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    module = camify.CAMFineTuner(net, class_names=["a", "b", "c"], head="direct", input_size=16, task="multilabel")
    module.model.untrained = ()
    runner = trainer()
    runner.validate(module, DataLoader(TensorDataset(images, labels), 5), verbose=False)
    expected = average_precision_score(labels.numpy(), net(images).detach().numpy(), average="macro")
    assert float(runner.callback_metrics["val/map"]) == pytest.approx(expected, abs=1e-5)


def test_unknown_labels_count_nothing_where_that_is_asked_for(trainer):
    torch.manual_seed(2)
    images, labels = torch.randn(6, 3, 16, 16), (torch.rand(6, 3) > 0.5).float()
    labels[1, 2], labels[4, 0] = -1, torch.nan
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    options = {"class_names": ["a", "b", "c"], "head": "direct", "input_size": 16, "task": "multilabel"}
    data = DataLoader(TensorDataset(images, labels), 6)
    with pytest.raises(camify.DataError, match="allow_unknown_labels"):
        trainer().fit(camify.CAMFineTuner(net, **options), data, data)
    module = camify.CAMFineTuner(net, allow_unknown_labels=True, **options)
    module.model.untrained = ()
    runner = trainer()
    runner.validate(module, data, verbose=False)
    known = (labels != -1) & ~labels.isnan()
    expected = nn.functional.binary_cross_entropy_with_logits(net(images)[known].detach(), labels[known])
    assert float(runner.callback_metrics["val/loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_the_task_travels_with_the_checkpoint(trainer, tmp_path):
    images, labels = torch.randn(8, 3, 16, 16), torch.tensor([[1.0, 0, 1], [0, 1, 1]] * 4)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    module = camify.CAMFineTuner(net, class_names=["a", "b", "c"], head="direct", input_size=16, task="multilabel")
    data = DataLoader(TensorDataset(images, labels), 4)
    overlays = camify.CAMOverlayLogger(num_images=4)
    trainer(RunRecord(quiet=True), overlays).fit(module, data, data)
    watched = json.loads((tmp_path / "run" / "overlays" / "index.json").read_text())["watched"]
    for index, one in enumerate(watched):
        for frame in one["frames"]:
            predicted = int(overlays.history[frame["epoch"]]["classes"][index])
            right = bool(overlays._watched.present[index, predicted])
            assert ("predicted" not in frame) == right, "a picture of its own is that of a mistake"
    page = (tmp_path / "run" / "report.html").read_text()
    assert "mean average precision" in page
    assert "center box" not in page
    loaded = camify.load(tmp_path / "run" / "export")
    assert str(loaded.task) == "multilabel"
    assert json.loads((tmp_path / "run" / "export" / "camify.json").read_text())["task"] == "multilabel"
    assert str(camify.CAMFineTuner(loaded).task) == "multilabel"


@pytest.mark.parametrize(
    ("last", "task", "undo"),
    [
        (nn.Softmax(1), "multiclass", torch.log),
        (nn.LogSoftmax(1), "multiclass", lambda p: p),
        (nn.Sigmoid(), "multilabel", torch.logit),
    ],
)
def test_a_last_activation_is_taken_off(last, task, undo):
    torch.manual_seed(0)
    core = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    net, images = nn.Sequential(core, last).eval(), torch.randn(4, 3, 32, 32)
    inspection = camify.inspect(net, input_size=32)
    assert (inspection.verdict, inspection.task) == ("native", task)
    for head in ("direct", "recast"):
        model = camify.convert(net, head=head, input_size=32, seed=0)
        assert torch.equal(model.classifier.weight, core[4].weight)
        assert str(model.task) == task
        assert any("taken off" in note for note in model.certificate.notes)
        torch.testing.assert_close(model(images), core(images))
        difference = model(images) - undo(net(images))
        torch.testing.assert_close(difference - difference.mean(1, keepdim=True), torch.zeros(4, 3), atol=1e-4, rtol=0)
    heat = camify.explain(net, images, method="gradcam", targets=1, normalize=None, size=None)
    torch.testing.assert_close(
        heat, camify.explain(core, images, method="gradcam", targets=1, normalize=None, size=None)
    )


# ------------------------------------------------------------ labels and batches


class Listed(Dataset):
    """As torchvision's: a list of targets, which stands before the target transform."""

    def __init__(self, targets, target_transform=int, image=lambda i: torch.full((3, 32, 32), float(i % 4))):
        self.targets, self.target_transform, self.image = targets, target_transform, image

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.image(index), self.target_transform(self.targets[index])


@pytest.mark.parametrize("targets", [torch.arange(32) % 4, np.arange(32) % 4, [i % 4 for i in range(32)]])
@pytest.mark.parametrize("shift", [0, 1])
def test_labels_are_those_that_the_data_set_yields(trainer, targets, shift):
    """A Tensor as in MNIST, an array as in SVHN; after any transform."""
    weights = []

    class Weights(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            weights.append(module.objective.class_weights)

    data = Listed(targets, lambda label: min(int(label) + shift, 3))
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    options = {"class_names": list("abcd"), "legacy_class_names": list("abcd"), "head": "direct", "input_size": 32}
    module = camify.CAMFineTuner(net, class_weights=None if shift else "balanced", **options)
    runner = trainer(Weights(), camify.CAMOverlayLogger(num_images=4))
    runner.fit(module, DataLoader(data, 8), DataLoader(data, 8))
    assert ("val/grid_pointing" in runner.callback_metrics) == (not shift), "of three classes there are no mosaics"
    if not shift:
        assert weights[0].tolist() == [1.0] * 4


@pytest.mark.parametrize(
    "form",
    [
        lambda x, y: {"image": x, "label": y},
        lambda x, y: {"pixel_values": x, "labels": y},
        lambda x, y: (x, y, "beside"),
        lambda x, y: [x, y],
        lambda x, y: {"images": x, "label": y[:, None]},
    ],
)
def test_batches_of_other_forms_are_taken(trainer, form):
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 2
    loader = DataLoader(
        TensorDataset(images, labels), 4, collate_fn=lambda s: form(*map(torch.stack, zip(*s, strict=True)))
    )
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    runner = trainer()
    runner.fit(camify.CAMFineTuner(net, class_names=["a", "b"], head="direct", input_size=16), loader, loader)
    assert 0 <= float(runner.callback_metrics["val/acc"]) <= 1


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"picture": torch.zeros(2, 3, 8, 8)}, ["picture: float32 (2, 3, 8, 8)", "Known forms"]),
        (("a", "b"), ["tuple of str, str"]),
        ((torch.zeros(2, 8, 8), torch.zeros(2)), ["float32 (2, 8, 8)", "(N, C, H, W)"]),
        ((torch.zeros(2, 3, 8, 8), torch.zeros(3)), ["labels must be"]),
    ],
)
def test_a_batch_that_is_none_is_named(batch, words):
    from camify.batch import Batch

    with pytest.raises(camify.DataError) as refusal:
        Batch.of(batch)
    assert all(word in str(refusal.value) for word in words)


def test_labels_beyond_the_classes_are_named(trainer):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    data = DataLoader(TensorDataset(torch.randn(6, 3, 16, 16), torch.arange(6) % 3 + 1), 6)
    module = camify.CAMFineTuner(net, class_names=["a", "b", "c"], head="direct", input_size=16)
    with pytest.raises(camify.DataError, match=r"from 1 to 3 .* 0\.\.2"):
        trainer(num_sanity_val_steps=0).fit(module, data, data)
