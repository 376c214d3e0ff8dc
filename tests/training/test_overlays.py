from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

import camify
from camify.batch import Batch
from camify.task import Classes, Task
from camify.training.callbacks.highlights import Highlights
from camify.training.callbacks.watched_images import choose_watched, watched_by_name
from camify.training.cam_metrics import ValidationBatch
from camify.training.map_drift import MapDrift
from tests.training.conftest import SIZE

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*")


@pytest.fixture
def module(legacy):
    return camify.CAMFineTuner(
        legacy, class_names=["red", "green"], input_size=SIZE, head_channels=8, optimizer="sgd", lr=0.02
    )


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


def pictures(folder, *, of_predicted=False):
    """Of true classes; with ``of_predicted`` also those of predicted ones, where they differ."""
    found = (path.relative_to(folder) for path in folder.rglob("*.png"))
    return sorted(path.as_posix() for path in found if of_predicted or "predicted" not in path.parts)


def test_every_epoch_leaves_a_picture_per_image_and_a_strip(module, data, make_trainer, tmp_path):
    make_trainer(camify.CAMOverlayLogger(num_images=3, num_highlights=0), max_epochs=2).fit(module, data)
    names = pictures(tmp_path / "overlays")
    assert len([name for name in names if name.startswith("epoch_000/")]) == 3
    assert len([name for name in names if name.startswith("epoch_001/")]) == 3
    assert len([name for name in names if name.startswith("strips/")]) == 3
    assert all(" " not in name for name in names), "names are safe anywhere"
    sizes = {size_of(tmp_path / "overlays" / name) for name in names if name.startswith("epoch")}
    assert len(sizes) == 1, "pictures of a run align"


def test_the_drawn_maps_are_those_of_the_network(module, data, make_trainer):
    overlays = camify.CAMOverlayLogger(num_images=4)
    make_trainer(overlays, max_epochs=1).fit(module, data)
    looks, labels = overlays.history[0], overlays._watched.batch.labels
    with torch.no_grad():
        logits, maps = module.model.eval().forward_with_maps(overlays._watched.batch.images)
    for index in range(4):
        predicted, true = int(logits[index].argmax()), int(labels[index])
        torch.testing.assert_close(looks["maps"]["cam"][index, 0], maps[index, predicted])
        torch.testing.assert_close(looks["maps"]["cam"][index, 1], maps[index, true])
        torch.testing.assert_close(looks["probabilities"][index, 1], logits.softmax(1)[index, true])


@pytest.mark.parametrize("method", ["gradcam", "reciprocam"])
def test_any_method_can_be_watched(module, data, make_trainer, method):
    overlays = camify.CAMOverlayLogger(num_images=2, method=method)
    make_trainer(overlays, max_epochs=1).fit(module, data)
    looks, batch = overlays.history[0], overlays._watched.batch
    expected = camify.explain(
        module.model, batch.images, method=method, targets=batch.labels, normalize=None, size=None
    )
    torch.testing.assert_close(looks["maps"][method][:, 1], expected)
    with pytest.raises(camify.ConfigError, match="magic"):
        camify.CAMOverlayLogger(method="magic")


def test_the_scale_of_an_image_is_its_largest_value_in_any_epoch(module, data, make_trainer):
    overlays = camify.CAMOverlayLogger(num_images=2)
    make_trainer(overlays, max_epochs=3).fit(module, data)
    values = [float(looks["maps"]["cam"][1].max()) for looks in overlays.history.values()]
    assert overlays._pictures().scale(1, "cam") == max(0.0, *values)


def test_tensorboard_gets_every_picture(module, data, make_trainer, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="", version="")
    trainer = make_trainer(
        camify.CAMOverlayLogger(num_images=2, num_highlights=0), max_epochs=2, logger=logger, log_every_n_steps=1
    )
    trainer.fit(module, data)
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()["images"]
    assert len(tags) == 2
    for tag in tags:
        found = events.Images(tag)
        assert len(found) == 2
        assert (found[0].width, found[0].height) == size_of(next((tmp_path / "overlays" / "epoch_000").iterdir()))


def test_a_logger_without_pictures_is_no_problem(module, data, make_trainer, tmp_path, recwarn):
    logger = CSVLogger(tmp_path, name="", version="")
    trainer = make_trainer(camify.CAMOverlayLogger(num_images=2), max_epochs=1, logger=logger, log_every_n_steps=1)
    trainer.fit(module, data)
    assert pictures(tmp_path / "overlays")
    assert not [warning for warning in recwarn if "Overlays" in str(warning.message)]


def test_a_failing_picture_is_reported_once_and_training_goes_on(module, data, make_trainer, monkeypatch):
    def fail(*arguments, **options):
        raise OSError("no space left")

    monkeypatch.setattr("camify.training.callbacks.overlay_files.write_whole", fail)
    trainer = make_trainer(camify.CAMOverlayLogger(num_images=2), max_epochs=3)
    with pytest.warns(UserWarning, match="no space left") as caught:
        trainer.fit(module, data)
    assert len([warning for warning in caught if "no space left" in str(warning.message)]) == 1
    assert trainer.current_epoch == 3


@pytest.mark.filterwarnings("ignore:.*fast_dev_run.*")
def test_a_dry_run_and_the_sanity_check_leave_nothing(module, data, make_trainer, tmp_path):
    make_trainer(camify.CAMOverlayLogger(), fast_dev_run=True).fit(module, data)
    assert not (tmp_path / "overlays").exists()
    trainer = make_trainer(camify.CAMOverlayLogger(), max_epochs=1, limit_train_batches=0)
    trainer.validate(module, data, verbose=False)
    assert not (tmp_path / "overlays").exists()


def test_it_leaves_modes_and_weights_as_they_were(module, data, make_trainer):
    states = []
    for callbacks in ([], [camify.CAMOverlayLogger(num_images=4)]):
        torch.manual_seed(1)
        twin = camify.CAMFineTuner(
            camify.convert(module.model, head="direct", input_size=SIZE),
            class_names=["red", "green"],
            optimizer="sgd",
            lr=0.02,
        )
        torch.manual_seed(2)
        make_trainer(*callbacks, max_epochs=2).fit(twin, data)
        states.append(twin.model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_strips_go_on_after_resuming(module, data, make_trainer, tmp_path):
    first = make_trainer(camify.CAMOverlayLogger(num_images=2), max_epochs=1)
    first.fit(module, data)
    first.save_checkpoint(tmp_path / "last.ckpt")
    overlays = camify.CAMOverlayLogger(num_images=2)
    trainer = make_trainer(overlays, max_epochs=2)
    trainer.fit(module, data, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert sorted(overlays.history) == [0, 1]


@pytest.mark.parametrize("count", [1, 4, 7, 12])
def test_probes_are_spread_over_the_classes(count):
    labels = np.repeat([0, 1, 2, 3], [50, 5, 20, 30]).tolist()
    chosen = choose_watched(count, labels, len(labels), seed=0)
    assert chosen == choose_watched(count, labels, len(labels), seed=0)
    assert len(set(chosen)) == count
    per_class = np.bincount([labels[index] for index in chosen], minlength=4)
    assert per_class.max() - per_class.min() <= 1
    assert chosen != choose_watched(count, labels, len(labels), seed=1)


def test_probes_without_labels_are_spread_over_the_data():
    chosen = choose_watched(4, None, 100, seed=0)
    assert len(set(chosen)) == 4
    assert all(25 * index <= number < 25 * (index + 1) for index, number in enumerate(chosen))
    assert choose_watched(9, None, 3, seed=0) == [0, 1, 2]


def test_the_user_names_images(module, data, make_trainer, tmp_path):
    make_trainer(camify.CAMOverlayLogger(images=["3", "11"], num_highlights=0), max_epochs=1).fit(module, data)
    assert pictures(tmp_path / "overlays" / "epoch_000") == ["00_blob_3.png", "01_blob_11.png"]
    paths = ["val/cat/a.jpg", "val/dog/a.jpg", "val/dog/b.jpg"]
    dataset = type("Named", (list,), {"paths": paths})(paths)
    assert watched_by_name(dataset, ["b.jpg", "cat/a.jpg", "val/dog/a.jpg"]) == [2, 0, 1]
    for name, count in (("a.jpg", 2), ("c.jpg", 0)):
        with pytest.raises(camify.ConfigError, match=f"names {count} validation images"):
            watched_by_name(dataset, [name])
    with pytest.raises(camify.ConfigError, match="'99' names 0"):
        make_trainer(camify.CAMOverlayLogger(images=["99"]), max_epochs=1).fit(module, data)


def test_the_end_leaves_animations_a_sheet_and_an_index(module, data, make_trainer, tmp_path):
    make_trainer(camify.CAMOverlayLogger(num_images=2, num_highlights=1), max_epochs=3).fit(module, data)
    folder = tmp_path / "overlays"
    films = sorted((folder / "animations").iterdir())
    assert len(films) == 2
    with Image.open(films[0]) as film:
        assert film.n_frames == 3
        assert film.size == size_of(folder / "epoch_000" / f"{films[0].stem}.png")
    strips = [size_of(path) for path in (folder / "strips").iterdir()]
    assert size_of(folder / "sheet.png")[1] >= sum(height for _, height in strips)
    index = json.loads((folder / "index.json").read_text())
    assert [[frame["epoch"] for frame in image["frames"]] for image in index["watched"]] == [[0, 1, 2]] * 2
    named = [frame["file"] for image in index["watched"] for frame in image["frames"]]
    named += [image["strips"]["cam"] for image in index["watched"]] + [find["file"] for find in index["highlights"]]
    assert sorted([*named, "sheet.png"]) == pictures(folder)
    assert {find["kind"] for find in index["highlights"]} <= {"mistakes", "beside", "changed"}
    assert {find["epoch"] for find in index["highlights"] if find["kind"] == "changed"} == {1, 2}


def test_what_is_worth_a_look_by_hand():
    torch.manual_seed(0)
    images, logits, maps = torch.rand(5, 3, 8, 8), 3 * torch.randn(5, 3), torch.randn(5, 3, 4, 4)
    labels = torch.tensor([0, 1, 2, 0, 1])
    boxes = [torch.tensor([[0.0, 0.0, 4.0, 8.0]])] * 4 + [torch.zeros(0, 4)]  # the left half; the last has none
    network = SimpleNamespace(classes=Classes(Task.MULTICLASS))
    finds, earlier, second = Highlights(2), MapDrift(), torch.randn(5, 3, 4, 4)
    for epoch in (maps, second):
        finds.begin()
        earlier.begin()
        for part in (slice(0, 2), slice(2, 4), slice(4, 5)):
            seen = ValidationBatch(network, images[part], labels[part], logits[part], epoch[part], boxes[part])
            seen.drift = earlier.drift(seen.own)
            finds.update(seen, Batch(seen.images))
        found = finds.kept_by_kind()
        earlier.end()
        assert ("changed" in found) == (epoch is second), "nothing is known of an epoch before the first"
    p = logits.softmax(1)
    wrong = sorted((float(-p[i].max()), i) for i in range(5) if int(p[i].argmax()) != int(labels[i]))
    assert len(wrong) >= 2
    assert [find.name for find in found["mistakes"]] == [str(i) for _, i in wrong[:2]]
    assert found["mistakes"][0].classes == (int(p[wrong[0][1]].argmax()), int(labels[wrong[0][1]]))
    beside, moved = [], []
    for i in range(5):
        big = torch.nn.functional.interpolate(second[i, labels[i]][None, None], size=(8, 8), mode="bilinear")[0, 0]
        positive = big.clamp(min=0)
        beside.append(float(positive[:, 4:].sum() / positive.sum()))
        pair = torch.stack([maps[i, labels[i]].flatten(), second[i, labels[i]].flatten()])
        moved.append(1 - float(torch.corrcoef(pair)[0, 1]))
    order = sorted(range(4), key=lambda i: -beside[i])
    assert [find.name for find in found["beside"]] == [str(i) for i in order[:2]], "the image without a box is left out"
    assert found["beside"][0].score == pytest.approx(beside[order[0]], abs=1e-5)
    order = sorted(range(5), key=lambda i: -moved[i])
    assert [find.name for find in found["changed"]] == [str(i) for i in order[:2]]
    assert [find.score for find in found["changed"]] == pytest.approx([moved[i] for i in order[:2]], abs=1e-5)
    torch.testing.assert_close(found["changed"][0].maps[1], second[order[0], labels[order[0]]])
