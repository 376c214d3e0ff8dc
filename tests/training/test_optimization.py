"""How fast each parameter learns: groups, published schedules, and who decides an option."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch import nn

import camify
from camify.cli.train import FineTuningCLI, main
from camify.training.schedule import lr_factor
from tests.training.conftest import SIZE, SmallLegacy

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*")


class NarrowAlexNet(nn.Module):
    """AlexNet's order of layers, four channels wide."""

    def __init__(self):
        super().__init__()
        layers, before = [], 3
        for size in (11, 5, 3, 3, 3):
            layers += [nn.Conv2d(before, 4, size, padding=size // 2), nn.ReLU()]
            if len(layers) in (2, 5, 12):
                layers.append(nn.MaxPool2d(2))
            before = 4
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(4 * 4 * 4, 6), nn.ReLU(), nn.Linear(6, 2))

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


@pytest.fixture
def alexnet():
    network = NarrowAlexNet()
    kinds = "".join({"Conv2d": "C", "MaxPool2d": "P"}.get(type(m).__name__, "") for m in network.features)
    assert kinds == "CPCPCCCP"
    return network


NAMES = ["red", "green"]


def tuner(legacy, **options):
    return camify.CAMFineTuner(
        legacy, **{"class_names": NAMES, "legacy_class_names": NAMES, "input_size": SIZE, **options}
    )


def groups_of(module, make_trainer, data, **options):
    make_trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0, **options).fit(module, data)
    return {group["name"]: group for group in module.optimizers().optimizer.param_groups}


def test_without_a_recipe_the_documented_defaults_are_what_is_saved():
    options = tuner(SmallLegacy(), head_channels=8).hparams
    expected = {
        "recipe": None, "head": "gap", "pool": "gap", "dropout": 0.5, "optimizer": "adamw", "lr": 1e-4,
        "head_lr_factor": 10.0, "fast_layers": [], "bias_lr_factor": 1.0, "momentum": 0.9, "nesterov": True,
        "weight_decay": 0.01, "decay_biases": True, "schedule": "cosine", "lr_drops": [], "warmup_epochs": 0.5,
        "freeze_epochs": None, "gradient_clip": 10.0, "label_smoothing": 0.05, "feature_cache": "auto",
    }  # fmt: skip
    assert {name: options[name] for name in expected} == expected
    sgd = tuner(SmallLegacy(), head_channels=8, optimizer="sgd").hparams
    assert (sgd["lr"], sgd["weight_decay"], sgd["head_lr_factor"]) == (1e-3, 5e-4, 10.0)
    assert tuner(SmallLegacy(), head="direct").hparams["head_lr_factor"] == 30.0
    assert tuner(SmallLegacy(), head="direct", head_lr_factor=7).hparams["head_lr_factor"] == 7


def test_a_recipe_brings_its_layers_and_zhous_solver(alexnet, data, make_trainer):
    module = tuner(alexnet, recipe="zhou2016/alexnet-star-gap-released")
    options = module.hparams
    expected = {
        "head": "gap", "dropout": 0.5, "optimizer": "sgd", "lr": 1e-3, "head_lr_factor": 1.0, "bias_lr_factor": 2.0,
        "momentum": 0.9, "nesterov": False, "weight_decay": 5e-4, "decay_biases": False, "schedule": "step",
        "lr_drops": [0.25, 0.5, 0.75], "warmup_epochs": 0.0, "freeze_epochs": 0, "label_smoothing": 0.0,
    }  # fmt: skip
    assert {name: options[name] for name in expected} == expected
    assert module.model.features.cam_conv2.groups == 2
    groups = groups_of(module, make_trainer, data)
    assert sorted(groups) == ["features", "features biases", "head", "head biases"]
    for name, group in groups.items():
        assert group["initial_lr"] == pytest.approx(2e-3 if "biases" in name else 1e-3)
        assert group["weight_decay"] == (0.0 if "biases" in name else 5e-4)
        assert (group["momentum"], group["nesterov"]) == (0.9, False)
        assert all((p.dim() == 1) == ("biases" in name) for p in group["params"])
    assert sum(len(g["params"]) for g in groups.values()) == len(list(module.model.parameters()))


def test_given_options_win_over_the_recipe(alexnet):
    options = tuner(alexnet, recipe="zhou2016/alexnet-gap", lr=0.02, nesterov=True, freeze_epochs=2).hparams
    assert (options["lr"], options["nesterov"], options["freeze_epochs"]) == (0.02, True, 2)
    assert options["head_lr_factor"] == 1.0, "what is not given is the recipe's"
    options = tuner(alexnet, recipe="zhou2016/alexnet-gap", schedule="cosine", lr_drops=[]).hparams
    assert (options["schedule"], options["lr_drops"]) == ("cosine", [])


def test_what_was_decided_is_in_the_checkpoint(alexnet, data, make_trainer, tmp_path):
    trainer = make_trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    trainer.fit(tuner(alexnet, recipe="zhou2016/alexnet-gap", lr=0.02), data)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    saved = torch.load(tmp_path / "run.ckpt", weights_only=True)["hyper_parameters"]
    assert (saved["recipe"], saved["lr"], saved["schedule"]) == ("zhou2016/alexnet-gap", 0.02, "step")
    assert "model" not in saved


def test_fast_layers_learn_at_the_heads_rate_as_layer4_in_wsolevaluation(legacy, data, make_trainer):
    module = tuner(legacy, head_channels=8, fast_layers=["4"], optimizer="sgd", freeze_epochs=0, warmup_epochs=0.0)
    groups = groups_of(module, make_trainer, data)
    second = module.model.features[4]
    assert {id(second.weight), id(second.bias)} <= {id(p) for p in groups["head"]["params"]}
    assert groups["head"]["initial_lr"] == pytest.approx(1e-2)
    assert camify.conversion.RECIPES["choe2020/resnet50"].fine_tuning.fast_layers == ("layer4",)


def test_a_converted_network_takes_the_rates_only(alexnet):
    net = camify.convert(alexnet, recipe="zhou2016/alexnet-gap", input_size=SIZE)
    module = tuner(net, recipe="zhou2016/alexnet-gap")
    assert module.model is net
    assert module.hparams["schedule"] == "step"


def test_steps_are_tenfold_drops_at_fractions_of_the_training():
    published = [0.2, 0.5, 0.8]  # wsolevaluation, 10 epochs: the rate falls when epochs 3, 6 and 9 begin
    factors = [lr_factor(epoch, 10, drops=published) for epoch in range(10)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001, 0.001])
    solver = [lr_factor(step, 160_000, drops=[0.25, 0.5, 0.75]) for step in (39_999, 40_000, 119_999, 120_000)]
    assert solver == pytest.approx([1, 0.1, 0.01, 0.001])
    assert lr_factor(3, 10, start=4, drops=published) == 0.0


def test_layer_decay_slows_every_twelve_parameters_as_timm_does(legacy, data, make_trainer):
    deep = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()) for _ in range(15)))
    network = nn.Sequential(deep, nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 2))
    module = tuner(network, head_channels=4, layer_decay=0.5, freeze_epochs=0, lr=0.01)
    groups = groups_of(module, make_trainer, data)
    names = {id(p): name for name, p in module.model.named_parameters()}
    trunk = [name for name in names.values() if "cam_conv" not in name and not name.startswith("classifier")]
    for index, name in enumerate(trunk):  # 30 parameters: layers of 12, 12 and 6
        group = next(g for g in groups.values() if name in {names[id(p)] for p in g["params"]})
        assert group["initial_lr"] == pytest.approx(0.01 * 0.5 ** (3 - index // 12))
    assert groups["head"]["initial_lr"] == pytest.approx(0.1)


def test_layer_decay_takes_timms_own_layers(data, make_trainer):
    timm = pytest.importorskip("timm")
    from timm.optim import param_groups_layer_decay

    network = timm.create_model("resnet10t", num_classes=2)
    options = {"head": "direct", "input_size": 64, "freeze_epochs": 0, "head_lr_factor": 1.0}
    module = tuner(network, layer_decay=0.5, lr=0.01, **options)
    groups = groups_of(module, make_trainer, data)
    rate = {id(p): group["initial_lr"] for group in groups.values() for p in group["params"]}
    found = {name.removeprefix("features."): rate[id(p)] for name, p in module.model.named_parameters()}
    reference = param_groups_layer_decay(network, layer_decay=0.5)
    names = {id(p): name for name, p in network.named_parameters()}
    for group in reference:
        for parameter in group["params"]:
            name = names[id(parameter)].replace("fc.", "classifier.")
            assert found[name] == pytest.approx(0.01 * group["lr_scale"]), name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"schedule": "step"}, "give schedule='step' and fractions"),
        ({"lr_drops": [0.5]}, "schedule='cosine'"),
        ({"schedule": "step", "lr_drops": [0.5, 1.5]}, "fractions"),
        ({"schedule": "linear"}, "schedule='linear'"),
        ({"momentum": 0.0, "optimizer": "sgd"}, "nesterov"),
        ({"momentum": 0.5}, "AdamW has none"),
        ({"nesterov": False}, "AdamW has none"),
        ({"bias_lr_factor": 0.0}, "bias_lr_factor=0"),
        ({"recipe": "zhou2016/alexnet"}, "is unknown"),
        ({"recipe": "zhou2016/alexnet-gap", "head": "none"}, "says 'gap', but head='none'"),
        ({"recipe": "zhou2016/alexnet-gap", "pool": "gmp"}, "says 'gap', but pool='gmp'"),
        ({"recipe": "zhou2016/vgg16-gap"}, "is for VGG16"),
    ],
)
def test_bad_options_are_refused(alexnet, options, words):
    with pytest.raises(camify.CamifyError, match=words):
        tuner(alexnet, **options)


def test_a_fast_layer_that_does_not_exist_is_refused(legacy, data, make_trainer):
    module = tuner(legacy, head_channels=8, fast_layers=["layer4"])
    with pytest.raises(camify.ConfigError, match="no layer 'layer4'"):
        make_trainer(max_epochs=1).fit(module, data)


@pytest.mark.filterwarnings("ignore")  # the command line sets its own filters
class Norms(pl.Callback):
    """Of the gradient before it is clipped, and of what plain SGD does with it: the step over the rate."""

    def __init__(self):
        self.before, self.steps = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        parameters = list(pl_module.parameters())
        self.before.append(float(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])))
        self.old = [p.detach().clone() for p in parameters]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        moved = torch.cat(
            [(p.detach() - old).flatten() for p, old in zip(pl_module.parameters(), self.old, strict=True)]
        )
        self.steps.append(float(moved.norm()) / 0.01)


@pytest.mark.parametrize(
    ("given", "of_trainer", "limit"),
    [({}, {}, 10.0), ({"gradient_clip": 2.0}, {}, 2.0), ({"gradient_clip": 0}, {}, None),
     ({}, {"gradient_clip_val": 3.0}, 3.0), ({}, {"gradient_clip_val": 0}, None)],
)  # fmt: skip
def test_no_step_is_longer_than_the_clipped_gradient(legacy, data, make_trainer, given, of_trainer, limit):
    plain = {"momentum": 0, "nesterov": False, "weight_decay": 0, "head_lr_factor": 1, "warmup_epochs": 0}
    module = tuner(
        legacy, optimizer="sgd", lr=0.01, freeze_epochs=0, schedule="step", lr_drops=[0.99], **plain, **given
    )
    with torch.no_grad():
        module.model.classifier.weight *= 1000  # as of a network whose features are large
    norms = Norms()
    make_trainer(norms, max_epochs=1, limit_train_batches=2, **of_trainer).fit(module, data)
    assert min(norms.before) > 20, "else the test says nothing"
    for before, step in zip(norms.before, norms.steps, strict=True):
        assert step == pytest.approx(limit or before, rel=2e-3)


@pytest.mark.filterwarnings("ignore")  # the command line sets its own filters
def test_the_runs_configuration_holds_what_was_decided(tmp_path, monkeypatch):
    monkeypatch.delenv("CAMIFY_RUN_FOLDER", raising=False)
    options = {
        "trainer": {
            "accelerator": "cpu", "default_root_dir": str(tmp_path / "run"), "enable_progress_bar": False,
            "limit_train_batches": 1, "limit_val_batches": 1, "max_epochs": 1,
        },
        "model": {"model": "torchvision/alexnet@none", "input_size": 96, "recipe": "zhou2016/alexnet-gap", "lr": 0.01},
        "data": {"class_path": "ShapesDataModule", "init_args": {"train_count": 4, "val_count": 4, "batch_size": 2}},
        "overlays": {"num_images": 1},
    }  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(options))
    main(["fit", "--config", str(path)])
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]
    assert (saved["recipe"], saved["lr"], saved["freeze_epochs"]) == ("zhou2016/alexnet-gap", 0.01, 0)
    assert (saved["optimization"]["schedule"], saved["optimization"]["lr"]) == ("step", None)
    assert (saved["head"], saved["conversion"]["dropout"]) == ("gap", 0.0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("given", "epochs"), [((), 8), (("--trainer.max_epochs", "3"), 3)])
def test_the_command_line_takes_the_published_epochs_where_none_are_given(tmp_path, given, epochs):
    arguments = [
        "--model.model", "torchvision/alexnet@none", "--model.input_size", "96",
        "--model.recipe", "zhou2016/alexnet-gap",
        "--data", "ShapesDataModule", "--data.train_count", "4", "--data.val_count", "4", "--trainer.logger", "false",
        "--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(tmp_path), *given,
    ]  # fmt: skip
    assert FineTuningCLI(arguments, run=False).trainer.max_epochs == epochs
