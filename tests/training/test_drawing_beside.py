"""Pictures of several methods, and drawing in a thread of its own: whole at the end, however a run ends."""

from __future__ import annotations

import json
import shutil
import threading

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

import camify
from camify.training import RunRecord
from camify.training.callbacks.overlay_files import method_folders
from camify.training.callbacks.worker import Background
from tests.training.conftest import BlobData, tuner

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*", "ignore:.*exists and is not empty.*"
)


def pictures(folder):
    """Pixels of all pictures by their names."""
    found = {}
    for path in sorted(folder.rglob("*.png")):
        with Image.open(path) as picture:
            found[path.relative_to(folder).as_posix()] = np.asarray(picture)
    return found


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


class Keep(pl.Callback):
    """Saves a checkpoint and copies the pictures at the end of an epoch, as they are then."""

    def __init__(self, folder, epoch):
        self.folder, self.epoch = folder, epoch

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.folder / "kept.ckpt")


def watch(**options):
    return camify.CAMOverlayLogger(**{"num_images": 3, "num_highlights": 2, **options})


# ------------------------------------------------------------ several methods


@pytest.mark.slow
def test_several_methods_are_drawn_from_one_forward(legacy, data, make_trainer, tmp_path, monkeypatch):
    methods = ["cam", "gradcam++", "gradcam", "layercam"]
    forwards = []
    observe = camify.training.callbacks.watched_images.observe
    monkeypatch.setattr(
        "camify.training.callbacks.watched_images.observe", lambda *a, **k: forwards.append(1) or observe(*a, **k)
    )
    overlays, module = watch(method=methods), tuner(legacy)
    make_trainer(overlays, RunRecord(quiet=True), max_epochs=2).fit(module, data)
    assert len(forwards) == 2
    look, batch = overlays.history[1], overlays._watched.batch
    for target, place in ((look["classes"], 0), (batch.labels, 1)):
        expected = camify.explain(module.model, batch.images, method=methods, targets=target, normalize=None, size=None)
        for name in methods:
            torch.testing.assert_close(look["maps"][name][:, place], expected[name])
    folder = tmp_path / "overlays"
    index = json.loads((folder / "index.json").read_text())
    assert index["methods"] == methods
    for image in index["watched"]:
        assert list(image["strips"]) == methods
        assert [(f["method"], f["epoch"]) for f in image["frames"]] == [(m, e) for m in methods for e in range(2)]
    files = [
        f for image in index["watched"] for f in (*image["strips"].values(), *(x["file"] for x in image["frames"]))
    ]
    assert len(set(files)) == len(files) == 3 * 4 * 3
    assert all((folder / file).is_file() for file in files)
    assert len(list(folder.glob("animations/**/*.webp"))) == 12
    page = (tmp_path / "report.html").read_text()
    assert all(f'<button type="button" data-method="{name}"' in page for name in methods)


@pytest.mark.slow
def test_the_first_of_several_is_drawn_as_if_it_were_alone(legacy, data, make_trainer, tmp_path):
    drawn = []
    for name, method in (("alone", "gradcam"), ("first", ["gradcam", "reciprocam"])):
        torch.manual_seed(1)
        module = tuner(legacy)
        torch.manual_seed(2)
        make_trainer(watch(method=method), default_root_dir=tmp_path / name).fit(module, BlobData())
        drawn.append(pictures(tmp_path / name / "overlays"))
    alone, first = drawn
    assert same(alone, {name: first[name] for name in alone})
    assert all("reciprocam" in name for name in first.keys() - alone.keys())


def test_methods_do_not_share_a_folder():
    assert method_folders(["cam", "gradcam", "gradcam++"]) == {
        "cam": "", "gradcam": "gradcam/", "gradcam++": "gradcam_plus_plus/",
    }  # fmt: skip
    folders = method_folders(["cam", "a b", "a/b", "a?b", "mistakes", "predicted", "../.."])
    assert len(set(folders.values())) == 7
    assert not {"mistakes/", "predicted/"} & set(folders.values())
    assert all(".." not in folder for folder in folders.values())


@pytest.mark.parametrize("methods", [[], ["cam", "magic"]])
def test_what_is_no_method_is_refused_at_once(methods):
    with pytest.raises(camify.ConfigError, match="method="):
        camify.CAMOverlayLogger(method=methods)


def test_wrong_predictions_have_a_picture_of_the_predicted_class(legacy, data, make_trainer, tmp_path):
    overlays = watch(num_images=8)
    make_trainer(overlays, max_epochs=1).fit(tuner(legacy, lr=1e-6), data)
    wrong = overlays.history[0]["classes"] != overlays._watched.batch.labels
    assert 0 < int(wrong.sum()) < 8
    index = json.loads((tmp_path / "overlays" / "index.json").read_text())
    for image, differs in zip(index["watched"], wrong.tolist(), strict=True):
        assert ("predicted" in image["frames"][0]) == differs
        if differs:
            shown = [
                np.asarray(Image.open(tmp_path / "overlays" / image["frames"][0][k])) for k in ("file", "predicted")
            ]
            assert shown[0].shape == shown[1].shape
            assert not np.array_equal(*shown)
    mistakes = [find for find in index["highlights"] if find["kind"] == "mistakes"]
    assert all((tmp_path / "overlays" / find["predicted"]).is_file() for find in mistakes)


# ------------------------------------------------------------ going on


@pytest.mark.slow
def test_what_a_killed_run_had_not_drawn_is_drawn_when_it_goes_on(legacy, data, make_trainer, tmp_path):
    """Of the killed run there is the checkpoint, and not one picture."""
    runs = {}
    for name, callbacks in (("whole", []), ("killed", [Keep(tmp_path, 1)])):
        torch.manual_seed(1)
        module = tuner(legacy)
        torch.manual_seed(2)
        overlays = watch(method=["cam", "gradcam"])
        trainer = make_trainer(overlays, *callbacks, max_epochs=3, default_root_dir=tmp_path / name)
        trainer.fit(module, BlobData())
        runs[name] = pictures(tmp_path / name / "overlays")
    state = torch.load(tmp_path / "kept.ckpt", weights_only=True)["callbacks"]["CAMOverlayLogger"]
    assert state["undrawn"]["epoch"] == 1
    shutil.rmtree(tmp_path / "killed")
    # The pictures of epoch 0 had been drawn, as had what was worth a look then.
    for path in (tmp_path / "whole" / "overlays" / "epoch_000").rglob("*.png"):
        copy = tmp_path / "killed" / path.relative_to(tmp_path / "whole")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    resumed = make_trainer(
        watch(method=["cam", "gradcam"]), RunRecord(quiet=True), max_epochs=3, default_root_dir=tmp_path / "killed"
    )
    resumed.fit(tuner(legacy), BlobData(), ckpt_path=tmp_path / "kept.ckpt", weights_only=True)
    drawn = pictures(tmp_path / "killed" / "overlays")
    assert same(runs["whole"], {name: one for name, one in drawn.items() if not name.startswith("classes/")})
    assert "data:image/webp" in (tmp_path / "killed" / "report.html").read_text()


def test_a_run_that_knew_one_method_goes_on_with_several(legacy, data, make_trainer, tmp_path):
    trainer = make_trainer(watch(), Keep(tmp_path, 0), max_epochs=1)
    trainer.fit(tuner(legacy), data)
    checkpoint = torch.load(tmp_path / "kept.ckpt", weights_only=True)
    state = checkpoint["callbacks"]["CAMOverlayLogger"]
    state["history"] = {epoch: {**look, "maps": look["maps"]["cam"]} for epoch, look in state["history"].items()}
    checkpoint["callbacks"]["CAMOverlayLogger"] = {"history": state["history"], "found": []}  # as it was then
    torch.save(checkpoint, tmp_path / "old.ckpt")
    overlays = watch(method=["cam", "layercam"])
    make_trainer(overlays, max_epochs=2).fit(tuner(legacy), data, ckpt_path=tmp_path / "old.ckpt", weights_only=True)
    assert [list(overlays.history[epoch]["maps"]) for epoch in (0, 1)] == [["cam"], ["cam", "layercam"]]
    index = json.loads((tmp_path / "overlays" / "index.json").read_text())
    for image in index["watched"]:
        assert [(f["method"], f["epoch"]) for f in image["frames"]] == [("cam", 0), ("cam", 1), ("layercam", 1)]
    assert all((tmp_path / "overlays" / f["file"]).is_file() for image in index["watched"] for f in image["frames"])


# ------------------------------------------------------------ the thread


def names_of_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("camify-background")]


@pytest.mark.slow
def test_pictures_and_page_are_made_in_another_thread_which_ends(legacy, data, make_trainer, monkeypatch):
    threads = {}
    for name in ("camify.training.callbacks.overlays._draw", "camify.training.callbacks.run_record._write_page"):
        module, _, function = name.rpartition(".")
        inner = getattr(pytest.importorskip(module), function)

        def outer(*arguments, inner=inner, function=function):
            threads.setdefault(function, set()).add(threading.current_thread().name)
            return inner(*arguments)

        monkeypatch.setattr(name, outer)
    make_trainer(watch(), RunRecord(quiet=True), max_epochs=2).fit(tuner(legacy), data)
    assert threads.keys() == {"_draw", "_write_page"}
    assert all(name.startswith("camify-background") for of in threads.values() for name in of)
    assert names_of_threads() == []


def test_jobs_run_in_order_and_all_of_them(make_trainer):
    background, done = Background.of(make_trainer()), []
    hold = threading.Event()
    background.start(hold.wait)
    for number in range(20):
        background.start(lambda number=number: done.append(number))
    assert done == []
    hold.set()
    background.finish()
    assert done == list(range(20))
    assert not background.start(torch.is_grad_enabled).result()
    background.finish()


class Break(pl.Callback):
    """Stops the run in its second epoch."""

    def __init__(self, error):
        self.error = error

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 1:
            raise self.error


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), MemoryError()])
def test_a_run_that_breaks_leaves_everything_it_had_handed_over(
    legacy, data, make_trainer, tmp_path, monkeypatch, error
):
    monkeypatch.setattr("signal.signal", lambda *_: None)  # Lightning switches Ctrl-C off for good
    trainer = make_trainer(watch(), RunRecord(quiet=True), Break(error), max_epochs=3)
    with pytest.raises((type(error), SystemExit)):
        trainer.fit(tuner(legacy), data)
    index = json.loads((tmp_path / "overlays" / "index.json").read_text())
    files = [frame["file"] for image in index["watched"] for frame in image["frames"]]
    files += [file for image in index["watched"] for file in image["strips"].values()]
    files += [find["file"] for find in index["highlights"]]
    assert all((tmp_path / "overlays" / file).is_file() for file in files)
    assert "data:image/webp" in (tmp_path / "report.html").read_text()
    assert names_of_threads() == []


@pytest.mark.slow
def test_a_page_that_fails_is_reported_once(legacy, data, make_trainer, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr("camify.training.callbacks.run_record.render_page", fail)
    trainer = make_trainer(RunRecord(quiet=True), max_epochs=3)
    with pytest.warns(UserWarning, match="report is off .* no space left") as caught:
        trainer.fit(tuner(legacy), data)
    assert len([warning for warning in caught if "report is off" in str(warning.message)]) == 1
    assert (tmp_path / "results.json").is_file()


def test_loggers_are_called_by_the_main_thread(legacy, data, make_trainer, monkeypatch):
    calls = []

    def offer(self, loggers, offer, step):
        calls.append((threading.current_thread(), offer.boxes, step))

    monkeypatch.setattr("camify.training.callbacks.image_loggers.ImageLog.offer", offer)
    make_trainer(watch(num_highlights=0), max_epochs=3).fit(tuner(legacy), data)
    assert {thread for thread, *_ in calls} == {threading.main_thread()}
    assert any("ground truth" in boxes for _, boxes, _ in calls)
    assert [step for *_, step in calls] == [6] * 3 + [12] * 3 + [18] * 3
