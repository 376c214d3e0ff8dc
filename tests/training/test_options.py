"""Options in their groups and by their own names: one value, whichever way it was given."""

from __future__ import annotations

import dataclasses
import inspect
import re

import pytest
import torch
import yaml
from PIL import Image

import camify
from camify.cli.train import FineTuningCLI
from camify.conversion import FineTuning, find_recipe
from camify.errors import ConfigError
from camify.training.options import FLAT, GROUP_OF, GROUPS, FineTuningOptions, OptimizationOptions, put_into_groups
from tests.training.conftest import SIZE, BlobData, SmallLegacy, tuner

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*")

RUN = [
    "--model.model", "camify/tiny_vgg@demo", "--model.input_size", "96", "--data", "ShapesDataModule",
    "--data.train_count", "4", "--data.val_count", "4", "--trainer.logger", "false", "--trainer.accelerator", "cpu",
]  # fmt: skip


def test_every_option_has_one_name_a_default_and_a_line_that_explains_it():
    names = [option.name for group in GROUPS.values() for option in dataclasses.fields(group)]
    assert len(names) == len(set(names)) == len(GROUP_OF)
    assert set(FLAT) <= set(names)
    arguments = inspect.signature(camify.CAMFineTuner).parameters
    assert set(arguments) == {"model", "class_names", "recipe", *FLAT, *GROUPS, "data_task", "others"}
    for group in GROUPS.values():
        group()  # each has a default
        documented = re.findall(
            r"^        (\w+): ", inspect.getdoc(group).replace("\n    ", "\n        "), flags=re.MULTILINE
        )
        assert [name for name in documented if name != "ConfigError"] == [
            option.name for option in dataclasses.fields(group)
        ]


def test_the_defaults_that_the_group_documents_are_those_that_are_taken():
    documented = inspect.getdoc(OptimizationOptions)
    taken = dataclasses.asdict(FineTuning())
    for name, words in re.findall(
        r"^    (\w+): (.*?)(?=^    \w+: |^\S|\Z)", documented, flags=re.MULTILINE | re.DOTALL
    ):
        found = re.search(r"default (-?[\d.e-]+|true|none)\b|``\"(\w+)\"`` \(default\)", " ".join(words.split()))
        if found is None or name not in taken:
            continue
        value = yaml.safe_load(found[1] or found[2])
        expected = {"none": []}.get(value, value)
        actual = list(taken[name]) if isinstance(taken[name], tuple) else taken[name]
        assert actual == (float(expected) if isinstance(actual, float) else expected), name


def test_a_group_its_mapping_and_the_bare_name_say_the_same():
    ways = [
        {"optimization": OptimizationOptions(decay_biases=False, lr=0.3)},
        {"optimization": {"decay_biases": False, "lr": 0.3}},
        {"decay_biases": False, "lr": 0.3},
        {"optimization": {"decay_biases": False}, "lr": 0.3},
        {"optimization": OptimizationOptions(lr=0.3), "decay_biases": False, "lr": 0.3},
    ]
    told = [camify.CAMFineTuner(SmallLegacy(), input_size=SIZE, head_channels=8, **way).options for way in ways]
    assert all(options == told[0] for options in told)
    optimization = told[0].optimization
    assert (optimization.decay_biases, optimization.lr, optimization.schedule) == (False, 0.3, "cosine")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0.1, "optimization": OptimizationOptions(lr=0.2)}, "lr is given twice: 0.1, and 0.2 in optimization"),
        ({"momentun": 0.1}, "no option 'momentun'. Did you mean momentum?"),
        ({"optimization": {"lrr": 0.1}}, "in optimization no option 'lrr'. Did you mean lr?"),
        ({"lr": "fast"}, "lr='fast' must be a number"),
        ({"teacher_weight": [0.5]}, "teacher_weight=[0.5] must be a number"),
        ({"dropout": True}, "dropout=True must be a number"),
        ({"grid_mosaics": 0}, "grid_mosaics=0 must be positive"),
        ({"optimization": 3}, "optimization=3: give OptimizationOptions, or a dict of its options"),
        ({"cutmix": -1.0}, "cutmix=-1.0 must not be negative"),
        ({"hide_and_seek": 1.0}, "hide_and_seek=1.0 must be in [0, 1)"),
        ({"init": "ridge", "head": "recast", "feature_cache": "ram"}, "feature_cache='ram' is unknown"),
        ({"class_weights": "even"}, "or 'balanced'"),
        ({"schedule": "step"}, "give schedule='step' and fractions"),
        ({"recipe": "zhou2016/vgg16-gap", "momentum": 0.0, "nesterov": True}, "nesterov=True needs a momentum"),
    ],
)
def test_what_cannot_be_is_refused_by_name(options, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        camify.CAMFineTuner(SmallLegacy(), **{"input_size": SIZE, **options})


def test_the_recipe_settles_what_no_group_says_and_nothing_else():
    recipe = "zhou2016/vgg16-gap"
    groups = {name: group() for name, group in GROUPS.items()} | {"optimization": OptimizationOptions(nesterov=True)}
    options = FineTuningOptions.of(recipe, groups, {"lr": 0.5}).optimization
    published = find_recipe(recipe).fine_tuning
    assert (options.nesterov, options.lr) == (True, 0.5)
    assert (options.schedule, options.bias_lr_factor) == (published.schedule, published.bias_lr_factor)


def test_none_of_a_bare_option_says_that_it_was_not_given():
    assert put_into_groups({"lr": None}, {"optimization": {"lr": 0.2}}) == {"optimization": {"lr": 0.2}}
    assert put_into_groups({"percentile": None}, {}) == {"metrics": {"percentile": None}}


@pytest.mark.filterwarnings("ignore")  # Lightning's command line calls what jsonargparse deprecates
@pytest.mark.parametrize("given", [["--model", "camify/tiny_vgg"], ["--model=camify/tiny_vgg"]])
def test_the_network_is_named_as_in_the_other_commands(given, tmp_path):
    rest = [word for word in RUN if word not in ("--model.model", "camify/tiny_vgg@demo")]
    model = FineTuningCLI([*given, *rest, "--model.lr", "0.5"], run=False).config.model
    assert (model.model, model.lr) == ("camify/tiny_vgg", 0.5)
    options = tmp_path / "model.yaml"
    options.write_text(yaml.safe_dump({"model": "camify/tiny_vgg@demo", "conversion": {"head_channels": 8}}))
    model = FineTuningCLI(["--model", str(options), *rest], run=False).config.model
    assert (model.model, model.conversion.head_channels) == ("camify/tiny_vgg@demo", 8)


@pytest.mark.filterwarnings("ignore")  # Lightning's command line calls what jsonargparse deprecates
@pytest.mark.parametrize("equals", [True, False])
def test_the_data_are_a_folder_as_in_the_other_commands(equals, tmp_path):
    folder = tmp_path / "images"
    for name in ("train/cat", "train/dog", "val/cat", "val/dog"):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(folder / name / "0.png")
    given = [f"--data={folder}"] if equals else ["--data", str(folder)]
    rest = RUN[: RUN.index("--data")]
    data = FineTuningCLI([*rest, *given, "--data.batch_size", "3"], run=False).datamodule
    assert type(data).__name__ == "ImageFolderDataModule"
    assert (str(data.root), data.batch_size) == (str(folder), 3)
    config = tmp_path / "data.yaml"
    init = {"root": "elsewhere", "num_workers": 0, "batch_size": 5}
    config.write_text(yaml.safe_dump({"data": {"class_path": "ImageFolderDataModule", "init_args": init}}))
    data = FineTuningCLI(["--config", str(config), *rest, *given], run=False).datamodule
    assert (str(data.root), data.num_workers, data.batch_size) == (str(folder), 0, 5)
    with pytest.raises(ConfigError, match=r"--data no/where: no such folder"):
        FineTuningCLI([*rest, "--data", "no/where"], run=False)
    with pytest.raises(
        ConfigError, match=r"--data ImageFolder: no such folder, and no data module.*ImageFolderDataModule\?"
    ):
        FineTuningCLI([*rest, "--data", "ImageFolder"], run=False)


@pytest.mark.filterwarnings("ignore")  # Lightning's command line calls what jsonargparse deprecates
def test_the_command_line_takes_a_name_a_group_and_a_config_and_the_last_one_wins(tmp_path):
    config = tmp_path / "old.yaml"  # as runs were written before there were groups
    config.write_text(
        yaml.safe_dump(
            {"model": {"lr": 0.25, "momentum": 0.5, "optimizer": "sgd", "optimization": {"nesterov": False}}}
        )
    )
    given = ["--config", str(config), "--model.momentum=0.7", "--model.loss.label_smoothing", "0.1"]
    options = FineTuningCLI([*RUN, *given, "--model.lr", "0.5"], run=False).model.options
    optimization = options.optimization
    assert (optimization.lr, optimization.momentum, optimization.nesterov) == (0.5, 0.7, False)
    assert options.loss.label_smoothing == 0.1
    appended = FineTuningCLI([*RUN, "--model.adl_layers+", "features.3", "--model.adl_layers+=features.6"], run=False)
    assert appended.model.options.augmentation.adl_layers == ["features.3", "features.6"]
    as_dict = FineTuningCLI(
        {
            "model": {"model": "camify/tiny_vgg@demo", "input_size": 96, "optimizer": "sgd", "momentum": 0.1},
            "data": "ShapesDataModule",
        },
        run=False,
    )
    assert as_dict.model.options.optimization.momentum == 0.1


def test_a_checkpoint_of_lightning_gives_the_options_back(make_trainer, tmp_path):
    module = tuner(SmallLegacy(), momentum=0.5, clamp_weights=True, cam_metrics=["area"])
    trainer = make_trainer(max_epochs=1, limit_train_batches=1)
    trainer.fit(module, BlobData())
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    again = camify.CAMFineTuner.load_from_checkpoint(tmp_path / "run.ckpt", model=SmallLegacy())
    assert dict(again.hparams) == dict(module.hparams)
    assert torch.equal(again.model.classifier.weight, module.model.classifier.weight)
