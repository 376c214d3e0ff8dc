from __future__ import annotations

import pytest
import torch
from torch import Tensor

from camify.data import ShapesDataModule, shapes
from camify.data import shape_renderer as scenes
from camify.data.shape_renderer import CLASS_NAMES, render_scene
from camify.errors import ConfigError, DataError
from tests.data.equal import equal

SIZE = 32
COUNTS = {"train_count": 24, "val_count": 12, "test_count": 6}


def module(stage=None, **options):
    data = ShapesDataModule(**(COUNTS | {"image_size": SIZE, "batch_size": 5} | options))
    data.setup(stage)
    return data


def epoch(loader):
    return list(loader)


def mask_box(mask):
    rows, columns = torch.nonzero(mask.any(1)).ravel(), torch.nonzero(mask.any(0)).ravel()
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def test_same_seed_same_data_in_another_instance():
    for split in ("train", "val", "test"):
        one, two = module().splits[split], module().splits[split]
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.masks, two.masks)
        assert torch.equal(one.boxes, two.boxes)
    assert equal(epoch(module().val_dataloader()), epoch(module().val_dataloader()))


def test_data_does_not_depend_on_torch_random_state_or_other_splits():
    torch.manual_seed(1)
    one = module()
    torch.manual_seed(2)
    assert torch.equal(one.splits["val"].images, module("validate", train_count=6).splits["val"].images)


def test_another_seed_is_another_data_set():
    one, two = module().splits["train"], module(seed=1).splits["train"]
    assert not any(torch.equal(a, b) for a, b in zip(one.images, two.images, strict=True))
    assert one.labels == two.labels


def test_a_longer_data_set_begins_like_a_shorter_one():
    short, long = module(train_count=6), module(train_count=12)
    assert torch.equal(short.splits["train"].images, long.splits["train"].images[:6])


def test_no_picture_is_in_two_splits():
    images = [image.numpy().tobytes() for split in module().splits.values() for image in split.images]
    assert len(images) == len(set(images)) == sum(COUNTS.values())


def test_two_epochs_of_the_same_torch_seed_are_equal():
    loader = module(augment="crop_flip").train_dataloader()
    epochs = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        epochs.append(epoch(loader))
    assert equal(epochs[0], epochs[1])
    assert not equal(epochs[0], epochs[2])


@pytest.mark.parametrize("augment", ["flip", "crop_flip", "none"])
def test_mask_and_box_move_together(augment):
    margin = {"crop_flip": 1.5}.get(augment, 0)  # the mask moves by whole pixels, the box does not
    data = module(augment=augment).splits["train"]
    for _ in range(2):
        for index in range(len(data)):
            sample = data[index]
            box = mask_box(sample["mask"])
            assert sample["boxes"].shape == (1, 4)
            assert sample["boxes"][0].tolist() == pytest.approx(box, abs=margin or 1e-4)


def test_image_moves_with_the_mask():
    """A picture that is the mask stays the mask."""
    data = module(augment="flip").splits["train"]
    data.images = (data.masks[:, None] * 255).byte().expand(-1, 3, -1, -1)
    mirrored = 0
    for index in range(len(data)):
        sample = data[index]
        assert torch.equal(sample["image"] > 0, sample["mask"].expand(3, -1, -1))
        mirrored += not torch.equal(sample["mask"], data.masks[index])
    assert 0 < mirrored < len(data)


def test_validation_is_the_generated_scene():
    data = module("validate", seed=3)
    for index, sample in enumerate(data.splits["val"]):
        scene = render_scene(index % len(CLASS_NAMES), (3, 1, index), SIZE)
        picture = data.preprocessing.restore(sample["image"]) * 255
        assert torch.equal(picture.round().byte(), torch.from_numpy(scene.image).permute(2, 0, 1))
        assert torch.equal(sample["mask"], torch.from_numpy(scene.mask))
        assert sample["boxes"].tolist() == [list(map(float, scene.box))]


def test_sample_format():
    data = module()
    for split in ("train", "val", "test"):
        for index in range(6):
            sample = data.splits[split][index]
            assert set(sample) == {"image", "label", "boxes", "mask", "path"}
            assert [type(sample[key]) for key in ("image", "boxes", "mask")] == [Tensor] * 3
            assert sample["image"].dtype == torch.float32
            assert sample["image"].shape == (3, SIZE, SIZE)
            assert sample["boxes"].dtype == torch.float32
            assert sample["mask"].dtype == torch.bool
            assert sample["mask"].shape == (SIZE, SIZE)
            assert type(sample["label"]) is int
            assert f"{split}/{data.class_names[sample['label']]}/" in sample["path"]


def test_batches():
    data = module()
    for loader, count in ((data.train_dataloader, 24), (data.val_dataloader, 12), (data.test_dataloader, 6)):
        batches = epoch(loader())
        assert sum(len(batch["label"]) for batch in batches) == count
        assert batches[0]["image"].shape == (5, 3, SIZE, SIZE)
        assert batches[0]["mask"].shape == (5, SIZE, SIZE)
        assert [tuple(boxes.shape) for boxes in batches[0]["boxes"]] == [(1, 4)] * 5
    labels = torch.cat([batch["label"] for batch in epoch(data.val_dataloader())])
    assert labels.tolist() == [index % 6 for index in range(12)]
    assert equal(epoch(data.predict_dataloader()), epoch(data.test_dataloader()))


def test_class_names_before_and_after_setup():
    data = ShapesDataModule(**COUNTS, image_size=SIZE)
    assert data.class_names == list(CLASS_NAMES)
    data.setup()
    assert data.class_names == list(CLASS_NAMES)
    data.class_names.append("other")  # its own list
    assert ShapesDataModule(**COUNTS).class_names == list(CLASS_NAMES)


@pytest.mark.parametrize(
    ("stage", "splits"),
    [
        ("fit", ["train", "val"]),
        ("validate", ["val"]),
        ("test", ["test"]),
        ("predict", ["test"]),
        (None, ["train", "val", "test"]),
    ],
)
def test_setup_generates_what_the_stage_needs_once(monkeypatch, stage, splits):
    rendered = []

    def render(label, seed, size):
        rendered.append(seed)
        return scenes.render_scene(label, seed, size)

    monkeypatch.setattr(shapes, "render_scene", render)
    data = module(stage)
    assert sorted(data.splits) == sorted(splits)
    assert len(rendered) == sum(COUNTS[f"{split}_count"] for split in splits)
    before = dict(data.splits)
    data.setup(stage)
    assert data.splits == before
    data.setup(None)
    assert len(rendered) == sum(COUNTS.values())


@pytest.mark.parametrize("options", [{"image_size": 4}, {"augment": "mixup"}])
def test_options_that_cannot_work(options):
    with pytest.raises(ConfigError, match=str(next(iter(options.values())))):
        ShapesDataModule(**options)


@pytest.mark.parametrize("options", [{"train_count": 0}, {"val_count": -3}, {"seed": -1}])
def test_numbers_that_cannot_work(options):
    with pytest.raises(ConfigError, match=f"={next(iter(options.values()))}"):
        module(**options)


def test_pictures_too_small_for_the_shapes():
    with pytest.raises(DataError, match="at least 32"):
        module(image_size=16)
