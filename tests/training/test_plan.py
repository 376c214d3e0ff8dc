"""What a run decides for itself: what stays frozen, what is kept, and that it says so."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import camify
from camify.data import ImageFolderDataModule
from camify.training import plan as planning
from camify.training.feature_cache import FrozenPart
from camify.training.known_features import KnownFeatures
from camify.training.plan import ALL_EPOCHS, FEW_IMAGES, Plan, plan_run, weights_as_drawn

SIDE = 32
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*isinstance.treespec, LeafSpec.*", "ignore:.*many workers.*", "ignore:.*GPU available.*"
)


def legacy(*, trained: bool = True) -> nn.Module:
    """A legacy network; its weights are those of no known way to draw them where it counts as trained."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 3),
    )  # fmt: skip
    if trained:
        for layer in (network[0], network[3]):
            layer.weight.data *= 4
    return network


@pytest.fixture
def root(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 4), ("val", 2)):
        for label in "ab":
            folder = tmp_path / "set" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 256, (SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    rows = [f"train/{label}/{number}.png,4,6,20,28,{label}" for label in "ab" for number in range(4)]
    (tmp_path / "set" / "boxes.csv").write_text("\n".join(["image,x0,y0,x1,y1,label", *rows]))
    return tmp_path / "set"


def run(root, tmp_path, *callbacks, network=None, epochs=3, augment=None, **options):
    pl.seed_everything(0, verbose=False)
    module = camify.CAMFineTuner(
        network or legacy(), class_names=["a", "b"], input_size=SIDE, head_channels=8, **options
    )
    data = ImageFolderDataModule(str(root), image_size=SIDE, batch_size=4, num_workers=0, augment=augment)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path / "run", callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(module, data)
    return module


def first_layer_runs(monkeypatch):
    """Counts the images that go through the legacy's first layer."""
    counted = []
    real = nn.Conv2d.forward

    def forward(self, x):
        if self.in_channels == 3:
            counted.append(len(x))
        return real(self, x)

    monkeypatch.setattr(nn.Conv2d, "forward", forward)
    return counted


def test_few_images_pretrained_features_stay_frozen_and_are_computed_once(root, tmp_path, monkeypatch):
    module = run(root, tmp_path)
    assert module.plan == Plan(ALL_EPOCHS, True, "memory", True, module.plan.reasons, module.plan.seconds)
    assert module.plan.seconds > 0
    said = " ".join(module.plan.reasons)
    assert "8 training images" in said
    assert "mirror image" in said
    assert "--model.freeze_epochs 1" in said
    before = camify.convert(legacy(), class_names=["a", "b"], input_size=SIDE, head_channels=8)
    for name, value in before.state_dict().items():
        if name.startswith(("features.0", "features.3")):
            assert torch.equal(value, module.model.state_dict()[name])
    counted = first_layer_runs(monkeypatch)
    run(root, tmp_path, epochs=2)
    two = sum(counted)
    counted.clear()
    run(root, tmp_path, epochs=6)
    assert sum(counted) == two, "more epochs run no image again"


@pytest.mark.parametrize(
    ("options", "frozen", "cache", "words"),
    [
        ({"freeze_epochs": 0}, 0, "off", ""),
        ({"freeze_epochs": 1}, 1, "off", ""),
        ({"freeze_epochs": 3}, 3, "memory", "mirror image"),
        ({"augment": "crop_flip"}, ALL_EPOCHS, "off", "augment is crop_flip"),
        ({"augment": "flip"}, ALL_EPOCHS, "memory", "mirror image"),
        ({"augment": "none"}, ALL_EPOCHS, "memory", "Features of each image are"),
        ({"hide_and_seek": 0.5}, ALL_EPOCHS, "off", "hide_and_seek"),
        ({"equivariance_weight": 0.1}, ALL_EPOCHS, "off", "equivariance_weight"),
        ({"feature_cache_gb": 1e-6}, ALL_EPOCHS, "off", "feature_cache disk"),
        ({"feature_cache": "off"}, ALL_EPOCHS, "off", ""),
        ({"feature_cache": "disk"}, ALL_EPOCHS, "disk", ""),
        ({"network": "drawn"}, 1, "off", "nothing trained them"),
    ],
)
def test_what_is_given_decides_and_the_rest_is_said(root, tmp_path, options, frozen, cache, words):
    options = {**options, "network": legacy(trained=False)} if "network" in options else options
    module = run(root, tmp_path, **options)
    assert (module.plan.freeze_epochs, module.plan.feature_cache) == (frozen, cache)
    assert words in " ".join(module.plan.reasons)
    assert module.options.optimization.freeze_epochs == frozen
    assert module.model.known_features is None


def test_many_images_and_streams_let_features_learn(monkeypatch):
    network = camify.convert(legacy(), num_classes=2, input_size=SIDE, head_channels=8)
    options = camify.CAMFineTuner(network).options
    for count, words in ((FEW_IMAGES + 1, "more than 5,000"), (None, "is not known")):
        reasons: list[str] = []
        assert planning._freeze_epochs(network, options, count, reasons) == 1
        assert words in reasons[0]
    assert planning._freeze_epochs(network, options, FEW_IMAGES, []) == ALL_EPOCHS


@pytest.mark.parametrize("chance", [False, True])
def test_own_data_are_kept_unless_they_change_by_chance(tmp_path, chance):
    class Own(TensorDataset):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image + (torch.rand(()) if chance else 0), label

    loader = DataLoader(Own(torch.randn(8, 3, SIDE, SIDE), torch.arange(8) % 2), 4, shuffle=True)
    module = camify.CAMFineTuner(legacy(), class_names=["a", "b"], input_size=SIDE, head_channels=8)
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, loader, DataLoader(Own(torch.randn(4, 3, SIDE, SIDE), torch.arange(4) % 2), 4))
    assert module.plan.feature_cache == ("off" if chance else "memory")
    assert ("one reading to the next" in " ".join(module.plan.reasons)) is chance


def test_every_epoch_draws_the_image_or_its_mirror_image_with_its_boxes(root, tmp_path):
    class Batches(pl.Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.seen.append((trainer.current_epoch, batch))

    batches = Batches()
    run(root, tmp_path, batches, epochs=8, box_weight=0.1)  # which looks at boxes: they are in the batches
    data = ImageFolderDataModule(str(root), image_size=SIDE, num_workers=0, augment="none")
    data.setup("fit")
    network = camify.convert(legacy(), class_names=["a", "b"], input_size=SIDE, head_channels=8).eval()
    part = FrozenPart(network)
    samples = {sample["path"]: sample for sample in data.splits["train"]}
    turned = {}
    for epoch, batch in batches.seen:
        for features, path, boxes in zip(batch["features"], batch["path"], batch["boxes"], strict=True):
            image = samples[path]["image"][None]
            with torch.no_grad():
                plain, mirror = part(image)[0], part(image.flip(-1))[0]
            is_mirror = torch.allclose(features, mirror, atol=1e-4)
            assert is_mirror or torch.allclose(features, plain, atol=1e-4)
            assert boxes.tolist() == ([[12, 6, 28, 28]] if is_mirror else [[4, 6, 20, 28]])
            turned[epoch, path] = is_mirror
    assert len(turned) == 8 * 8
    assert 20 <= sum(turned.values()) <= 44
    assert len({tuple(turned[epoch, path] for path in sorted(samples)) for epoch in range(8)}) > 4


def test_a_checkpoint_keeps_the_plan_and_more_epochs_free_what_was_frozen_for_all_of_them():
    plan = Plan(2, True, "memory", True, ("because",), 3.5)
    assert Plan.from_dict(plan.to_dict()) == plan
    assert plan.lasting(2).throughout
    assert not plan.lasting(3).throughout
    assert not plan.lasting(None).throughout
    assert Plan(ALL_EPOCHS).lasting(None).throughout
    options = camify.CAMFineTuner(legacy(), input_size=SIDE, head_channels=8, feature_cache="disk").options
    assert plan.applied(options).cache.feature_cache == "disk"
    assert plan.applied(options).optimization.freeze_epochs == 2


def test_known_features_are_those_of_the_network_and_of_the_images_own_bytes():
    network = camify.convert(legacy(), num_classes=2, input_size=SIDE, head_channels=8).eval()
    images = torch.randn(5, 3, SIDE, SIDE)
    with torch.no_grad():
        expected = network.forward_features(images)
        network.known_features = known = KnownFeatures(1)
        torch.testing.assert_close(network.forward_features(images), expected)
        torch.testing.assert_close(network.forward_features(images.flip(0)), expected.flip(0))
        assert len(known._kept) == 5
        changed = images.clone()
        changed[0, 0, 0, 0] += 1e-6
        network.forward_features(changed)
        assert len(known._kept) == 6
        torch.testing.assert_close(network.forward_features(images.double().float()), expected)
        network.known_features = KnownFeatures(1e-9)
        torch.testing.assert_close(network.forward_features(images), expected)
        assert not network.known_features._kept
    assert network.forward_features(images.requires_grad_()).requires_grad, "with gradients it is run"
    assert network.train().forward_features(images).requires_grad


def test_weights_as_drawn_are_known_for_what_they_are():
    for name in ("squeezenet1_1", "resnet18", "mobilenet_v3_small"):
        features = torchvision.models.get_model(name, weights=None)
        network = SimpleNamespace(head_layers=(), features=features)
        assert weights_as_drawn(network), name
    trained = SimpleNamespace(head_layers=(), features=torchvision.models.resnet18(weights=None))
    trained.features.bn1.running_mean += 0.1
    assert not weights_as_drawn(trained)
    own = SimpleNamespace(head_layers=(), features=legacy())
    assert not weights_as_drawn(own)
    assert weights_as_drawn(SimpleNamespace(head_layers=(), features=legacy(trained=False)))


def test_the_demo_network_counts_as_trained():
    assert not weights_as_drawn(camify.convert(camify.sources.resolve("camify/tiny_vgg@demo").model, input_size=96))


def test_a_network_without_maps_has_no_plan_to_make():
    module = camify.CAMFineTuner(legacy(), head="none", input_size=SIDE)
    assert plan_run(None, module) == Plan(0)


@pytest.mark.filterwarnings("ignore:.*resuming from a checkpoint.*")
def test_a_run_that_goes_on_is_the_run_that_was_not_interrupted(root, tmp_path):
    """With what it decided: the stored plan is taken, the same images are mirrored, the mean feature goes on."""

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.current_epoch == 1 and batch_idx == 0:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    whole = run(root, tmp_path, Keep(), epochs=4)
    module = camify.CAMFineTuner(legacy(), class_names=["a", "b"], input_size=SIDE, head_channels=8)
    data = ImageFolderDataModule(str(root), image_size=SIDE, batch_size=4, num_workers=0)
    trainer = pl.Trainer(
        max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path / "again",
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=tmp_path / "middle.ckpt")
    assert module.plan == whole.plan
    for (name, one), other in zip(whole.state_dict().items(), module.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert torch.equal(whole.mean_feature.total, module.mean_feature.total)
