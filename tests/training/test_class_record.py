"""What a run records of its classes: against brute force, after resuming, and of several labels each."""

import json

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchmetrics.functional.classification import multilabel_average_precision, multilabel_stat_scores

import camify
from camify.metrics.functional import calibration_bins, expected_calibration_error
from camify.training import RunRecord
from camify.training.callbacks.class_record import sample_numbers
from tests.training.conftest import SIZE, BlobData, SmallLegacy

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*", "ignore:.*exists and is not empty.*"
)


def module_of(**options):
    torch.manual_seed(3)
    return camify.CAMFineTuner(
        SmallLegacy(),
        class_names=["red", "green"],
        input_size=SIZE,
        head_channels=8,
        optimizer="sgd",
        lr=0.02,
        **options,
    )


def taken(folder):
    return json.loads((folder / "results.json").read_text())["classes_taken"]


def test_the_record_is_that_of_the_exported_network(make_trainer, tmp_path):
    make_trainer(RunRecord(quiet=True), max_epochs=2).fit(module_of(), BlobData())
    network, known = camify.load(tmp_path / "export").eval(), taken(tmp_path)
    counts, confidences, right = {}, [], []
    with torch.no_grad():
        for batch in BlobData().val_dataloader():
            logits = network(batch["image"])
            for label, row in zip(batch["label"].tolist(), logits.softmax(1), strict=True):
                pair = (label, int(row.argmax()))
                counts[pair] = counts.get(pair, 0) + 1
                confidences.append(float(row.max()))
                right.append(pair[0] == pair[1])
    assert {(t, p): n for t, p, n in known["figures"]["pairs"]} == counts
    error = expected_calibration_error(calibration_bins(torch.tensor(confidences), torch.tensor(right)))
    assert known["figures"]["calibration"]["error"] == pytest.approx(error, abs=1e-6)
    assert known["calibrations"].keys() == {"legacy", "start", "now"}
    assert known["examples"], "they are drawn when the run ends"
    for entry in known["examples"]:
        assert (tmp_path / "overlays" / entry["file"]).is_file()
        assert (entry["true"], entry["predicted"]) in counts
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Which class is taken for which" in page
    assert "fine-tuned:" in page


@pytest.mark.slow
def test_a_resumed_run_has_the_record_of_one_that_was_not_interrupted(make_trainer, tmp_path):
    def fit(name, module, path=None):
        kept = ModelCheckpoint(tmp_path / name, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        trainer = make_trainer(
            kept, RunRecord(quiet=True), max_epochs=3, enable_checkpointing=True, default_root_dir=tmp_path / name
        )
        trainer.fit(module, BlobData(), ckpt_path=path, weights_only=None if path is None else True)
        return taken(tmp_path / name)

    module = module_of()
    torch.manual_seed(9)
    whole = fit("whole", module)
    resumed = fit("resumed", module_of(), tmp_path / "whole" / "epoch=1.ckpt")
    assert whole["figures"] == resumed["figures"]
    assert whole["calibrations"] == resumed["calibrations"]
    assert whole["examples"] == resumed["examples"]


class Labels(Dataset):
    """Three labels an image, of which one is not known."""

    def __init__(self, count):
        generator = torch.Generator().manual_seed(count)
        self.images = torch.rand(count, 3, 32, 32, generator=generator)
        self.labels = (torch.rand(count, 3, generator=generator) < 0.5).float()
        self.labels[0, 1] = torch.nan

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"image": self.images[index], "label": self.labels[index]}


def test_labels_that_do_not_exclude_each_other(make_trainer, tmp_path):
    module = camify.CAMFineTuner(
        SmallLegacy(3), class_names=["a", "b", "c"], head="gap", head_channels=4, input_size=32, task="multilabel",
        loss={"allow_unknown_labels": True},
    )  # fmt: skip
    train, val = (DataLoader(Labels(count), batch_size=4) for count in (8, 12))
    make_trainer(RunRecord(quiet=True), max_epochs=1).fit(module, train, val)
    known = taken(tmp_path)["figures"]
    with torch.no_grad():
        probabilities = camify.load(tmp_path / "export").eval()(Labels(12).images).sigmoid()
    labels = torch.where(Labels(12).labels.isnan(), -1, Labels(12).labels.nan_to_num()).long()
    options = {"num_labels": 3, "average": None, "ignore_index": -1}
    counts = multilabel_stat_scores(probabilities, labels, **options).tolist()
    average = multilabel_average_precision(probabilities, labels, **options).tolist()
    for row, (right, wrong, _, missed, there), precision in zip(known["classes"], counts, average, strict=True):
        assert (row["images"], row["missed"], row["wrong"]) == (there, missed, wrong)
        assert row["recall"] == pytest.approx(right / there)
        assert row["average_precision"] == pytest.approx(precision, abs=1e-5)
    assert "pairs" not in known
    missed = {(k, row) for row, k in ((probabilities < 0.5) & (labels == 1)).nonzero().tolist()}
    wrong = {(k, row) for row, k in ((probabilities >= 0.5) & (labels == 0)).nonzero().tolist()}
    examples = taken(tmp_path)["examples"]
    shown = [(entry["true"], int(entry["caption"].split(":")[0]), entry["predicted"]) for entry in examples]
    assert 0 < len(shown) == len(set(shown))
    assert {(k, row) for k, row, kind in shown if kind == -1} <= missed
    assert {(k, row) for k, row, kind in shown if kind == -2} <= wrong
    assert {k for k, _, kind in shown if kind == -2} == {k for k, _ in wrong}
    assert all((tmp_path / "overlays" / entry["file"]).is_file() for entry in examples)
    assert "average precision</th>" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("count", [2, 3])
def test_samples_of_several_processes(count):
    data = list(range(7))
    loaders = [
        DataLoader(data, sampler=DistributedSampler(data, num_replicas=count, rank=rank, shuffle=False), batch_size=2)
        for rank in range(count)
    ]
    for rank, loader in enumerate(loaders):
        seen = torch.cat(list(loader))
        assert sample_numbers(loader, len(seen), rank).tolist() == seen.tolist()
    assert sample_numbers(DataLoader(data, shuffle=True), 7, 0) is None
    assert sample_numbers(DataLoader(data), 7, 0).tolist() == data


def test_a_dry_run_and_other_modules_are_left_alone(make_trainer):
    record = RunRecord(quiet=True)
    make_trainer(record, fast_dev_run=True).fit(module_of(), BlobData())
    assert record.classes.latest is None
    assert isinstance(record, pl.Callback)
