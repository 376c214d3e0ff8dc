"""What training makes of absurd images and labels, of gray files of 12 bits, and of validation images without boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import camify
from camify.data import ImageFolderDataModule, Preprocessing, collate
from camify.errors import ConfigError, DataError
from camify.task import Task

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*")


def loader(bad=None, value=float("nan"), count=8):
    generator = torch.Generator().manual_seed(0)
    samples = [
        {"image": torch.randn(3, 32, 32, generator=generator), "label": number % 4, "path": f"{number}.png"}
        for number in range(count)
    ]
    if bad is not None:
        samples[bad]["image"][1, 2, 3] = value
    return DataLoader(samples, batch_size=4, collate_fn=collate)


def tuner(legacy, **options):
    return camify.CAMFineTuner(legacy, class_names=list("abcd"), head="gap", input_size=32, **options)


@pytest.mark.parametrize("freeze_epochs", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_training_image_that_is_not_finite_is_named(legacy, make_trainer, value, freeze_epochs):
    module = tuner(legacy, freeze_epochs=freeze_epochs, feature_cache="off")
    with pytest.raises(DataError, match=r"^6\.png: the image holds NaN or infinity"):
        make_trainer(max_epochs=1).fit(module, loader(6, value), loader())


def test_no_batch_is_kept_after_a_step(legacy, make_trainer):
    module = tuner(legacy)
    make_trainer(max_epochs=1).fit(module, loader(), loader())
    assert module.training_batch is None


def test_labels_that_count_from_1_are_told_so():
    with pytest.raises(DataError, match=r"from 1 to 4 do not fit.*expected \(N,\) of 0..3\. They seem to count from 1"):
        Task.MULTICLASS.targets(torch.tensor([1, 2, 3, 4]), 4)
    with pytest.raises(DataError, match=r"of 0\.\.3\.$"):
        Task.MULTICLASS.targets(torch.tensor([0, 2, 7]), 4)


# ---------------------------------------------------------------- folders


def folder(root, dtype=np.uint8, largest=255):
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in "abcd":
            (root / split / label).mkdir(parents=True)
            for number in range(2):
                values = generator.integers(0, largest + 1, (32, 32)).astype(dtype)
                Image.fromarray(values).save(root / split / label / f"{number}.png")
    return root


@pytest.mark.parametrize("boxed", ["train", "val"])
def test_grid_pointing_stands_for_boxes_where_no_validation_image_has_one(legacy, make_trainer, tmp_path, boxed):
    root = folder(tmp_path / "set")
    rows = [f"{boxed}/{label}/{number}.png,4,4,20,20,{label}" for label in "abcd" for number in range(2)]
    (root / "boxes.csv").write_text("\n".join(["image,x0,y0,x1,y1,label", *rows]))
    data = ImageFolderDataModule(str(root), image_size=32, batch_size=4, num_workers=0)
    trainer = make_trainer(max_epochs=1)
    trainer.fit(tuner(legacy), datamodule=data)
    logged = {name for name in trainer.callback_metrics if "box" in name or "grid" in name}
    of_boxes = {"val/max_box_acc", "val/object_box_acc", "val/center_box_acc"}
    assert logged == ({"val/grid_pointing", "val/grid_chance"} if boxed == "train" else of_boxes)
    module = tuner(legacy, cam_metrics=["max_box_acc"])
    if boxed == "train":
        with pytest.raises(ConfigError, match="max_box_acc needs boxes, and the validation data have none"):
            make_trainer(max_epochs=1).fit(module, datamodule=data)


def test_what_training_learns_of_the_bits_is_what_the_network_expects_afterwards(legacy, make_trainer, tmp_path):
    root = folder(tmp_path / "set", np.uint16, 4095)
    net = camify.convert(legacy, head="gap", num_classes=4, input_size=32, seed=0)
    net.preprocessing = Preprocessing(32)
    module = camify.CAMFineTuner(net, class_names=list("abcd"))
    with pytest.raises(DataError, match=r"up to 40.. of 65535.*Give bits=12"):
        make_trainer(max_epochs=1).fit(module, datamodule=ImageFolderDataModule(str(root), num_workers=0))
    make_trainer(max_epochs=1).fit(module, datamodule=ImageFolderDataModule(str(root), num_workers=0, bits=12))
    assert module.model.preprocessing == Preprocessing(32, bits=12)
    again = ImageFolderDataModule(str(root), num_workers=0)
    make_trainer().validate(module, datamodule=again, verbose=False)
    assert again.preprocessing.bits == again.splits["val"].bits == 12
    with pytest.raises(ConfigError, match="bits 16 and 12"):
        make_trainer().validate(module, datamodule=ImageFolderDataModule(str(root), num_workers=0, bits=16))
