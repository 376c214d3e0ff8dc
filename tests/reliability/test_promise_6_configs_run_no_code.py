"""A configuration is data: whatever it names, no foreign code runs, and the refusal is one line."""

from __future__ import annotations

import copy
import json
import sys
import textwrap

import pytest
import torch
import yaml

from camify.cli.commands import main as commands
from camify.cli.named_classes import packages_allowed
from camify.cli.train import FineTuningCLI, main
from camify.errors import ConfigError
from tests.foreign_code import RunsCode

pytestmark = pytest.mark.filterwarnings("ignore")  # the command line sets its own filters; these runs print them

BASE = {
    "trainer": {
        "max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "limit_train_batches": 1,
        "limit_val_batches": 1, "fast_dev_run": True,
    },
    "model": {"model": "camify/tiny_vgg", "input_size": 96, "head_channels": 8},
    "data": {
        "class_path": "ShapesDataModule",
        "init_args": {"train_count": 8, "val_count": 8, "test_count": 8, "batch_size": 4},
    },
    "overlays": {"num_images": 1},
}  # fmt: skip


def spec(name, **arguments):
    return {"class_path": name, "init_args": arguments} if arguments else {"class_path": name}


POPEN = spec("subprocess.Popen", args=["touch", "TRACE"])
SYSTEM = spec("os.system", command="touch TRACE")
HANDLER = spec(
    "torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler.SubprocessHandler",
    entrypoint="/usr/bin/touch", args=["TRACE"], env={}, stdout=None, stderr=None, local_rank_id=0,
)  # fmt: skip
FOLDER = spec("torchvision.datasets.DatasetFolder", root="ROOT", loader="numpy.testing.rundocs", extensions=[".py"])
BAR = "pytorch_lightning.callbacks.RichProgressBar"
HOSTILE = {
    "a process as callback": {"trainer.callbacks": [POPEN]},
    "a process as callback by text": {"trainer.callbacks": ["subprocess.Popen"]},
    "a function as callback": {"trainer.callbacks": [SYSTEM]},
    "a process as the only callback": {"trainer.callbacks": POPEN},
    "a process in a value of any type": {"trainer.callbacks": [spec(BAR, console_kwargs={"x": HANDLER})]},
    "a process in a list of any type": {"trainer.callbacks": [spec(BAR, console_kwargs={"x": [[HANDLER]]})]},
    "a process in dict_kwargs": {"trainer.callbacks": [{"class_path": BAR, "dict_kwargs": {"x": HANDLER}}]},
    "a process as theme": {"trainer.callbacks": [spec(BAR, theme=HANDLER)]},
    "a process as logger": {"trainer.logger": POPEN},
    "a process among loggers": {"trainer.logger": [spec("CSVLogger", save_dir="x"), HANDLER]},
    "a process as plugin": {"trainer.plugins": [POPEN]},
    "a process as strategy": {"trainer.strategy": POPEN},
    "a process as accelerator": {"trainer.accelerator": POPEN},
    "a process as profiler": {"trainer.profiler": POPEN},
    "a process as data": {"data": POPEN},
    "a class method as data": {
        "data": spec("pytorch_lightning.LightningDataModule.from_datasets", train_dataset=FOLDER)
    },
    "a class method of camify's as data": {"data": spec("camify.data.ShapesDataModule.from_datasets")},
    "a class method by its short name as data": {"data": spec("ShapesDataModule.from_datasets")},
    "a function of Lightning as logger": {
        "trainer.logger": spec("pytorch_lightning.loggers.csv_logs.rank_zero_experiment", fn=POPEN)
    },
    "a function of Lightning as function": {
        "trainer.callbacks": [
            spec("pytorch_lightning.callbacks.LambdaCallback", on_fit_start="lightning_fabric.utilities.cloud_io._load")
        ]
    },
    "a module through Lightning": {"trainer.callbacks": [spec("pytorch_lightning.trainer.trainer.os.system")]},
    "a module through camify": {"trainer.callbacks": [spec("camify.cli.train.os.system", command="touch TRACE")]},
    "another re-export of camify": {"trainer.callbacks": [spec("camify.cli.train.sys.exit")]},
    "a method of an allowed class": {
        "trainer.callbacks": [spec("pytorch_lightning.callbacks.EarlyStopping.__init_subclass__")]
    },
    "globals of an allowed class": {
        "trainer.callbacks": [spec("pytorch_lightning.callbacks.EarlyStopping.__init__.__globals__")]
    },
    "a launcher of Lightning": {
        "trainer.plugins": [
            spec("lightning_fabric.strategies.launchers.subprocess_script._SubprocessScriptLauncher", num_processes=1)
        ]
    },
    "a hook by name": {"trainer.strategy": spec("DDPStrategy", ddp_comm_hook="os.system")},
    "a callable that wraps": {"trainer.strategy": spec("DDPStrategy", ddp_comm_hook=spec("functools.partial", x="os"))},
    "an optimizer by class path": {"optimizer": SYSTEM},
    "an optimizer as the model's": {"model.optimizer": SYSTEM},
    "a model by class path": {"model": SYSTEM},
    "a network by class path": {"model.model": SYSTEM},
    "overlays by class path": {"overlays": SYSTEM},
    "a pickle module": {"trainer.callbacks": [spec("pickle.loads", data="x")]},
    "the parser itself": {"trainer.callbacks": [spec("jsonargparse.set_parsing_settings")]},
    "its own package": {"trainer.callbacks": [spec("trap_module.Trap")], "allow": ["trap_module"]},
    "a module beside the file": {"trainer.callbacks": ["trap_module.Trap"]},
    "programs in settings of W&B": {
        "trainer.logger": {
            "class_path": "WandbLogger",
            "dict_kwargs": {"settings": {"x_executable": "/usr/bin/touch", "_executable": "/usr/bin/touch"}},
        }
    },
    "pickles wanted": {"weights_only": False},
    "pickles wanted by 1": {"weights_only": 1},
}


def changed(changes, folder, trace):
    config = copy.deepcopy(BASE)
    config["trainer"]["default_root_dir"] = str(folder / "run")
    for key, value in changes.items():
        *parents, last = key.split(".")
        place = config
        for parent in parents:
            place = place[parent]
        place[last] = value
    text = yaml.safe_dump(config)
    return text.replace("TRACE", str(trace)).replace("ROOT", str(folder / "root"))


@pytest.fixture(autouse=True)
def _traps(tmp_path, monkeypatch, trace):
    """A module in the current folder and a file of doctests: who imports or runs them leaves a trace."""
    (tmp_path / "root" / "class").mkdir(parents=True)
    code = f"import pathlib\npathlib.Path({str(trace)!r}).touch()\n"
    (tmp_path / "root" / "class" / "x.py").write_text(f'"""\n>>> open({str(trace)!r}, "w").close()\n"""\n')
    (tmp_path / "trap_module.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("CAMIFY_RUN_FOLDER", raising=False)
    yield
    sys.modules.pop("trap_module", None)


@pytest.fixture
def fit_alone(monkeypatch):
    """The parsers of the other commands are alike, and take three quarters of the time."""
    skipped = FineTuningCLI.subcommands()["fit"]
    monkeypatch.setattr(FineTuningCLI, "subcommands", staticmethod(lambda: {"fit": skipped}))


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    assert left.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("camify: error: ")
    assert not any("Traceback" in line for line in error)
    return error[-1]


@pytest.mark.usefixtures("fit_alone")
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_configuration_is_refused_in_one_line(kind, tmp_path, trace, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(changed(HOSTILE[kind], tmp_path, trace))
    refused(capsys, "fit", "--config", str(path))
    assert not (tmp_path / "run").exists()


TEXTS = {
    "a tag that calls": "trainer: !!python/object/apply:os.system ['touch TRACE']",
    "a tag that makes": "trainer:\n  callbacks:\n  - !!python/object/new:subprocess.Popen [['touch', 'TRACE']]",
    "a tag that names": "trainer:\n  callbacks: [!!python/name:os.system '']",
    "a tag that imports": "trainer: {logger: !!python/module:trap_module ''}",
    "an anchor that is merged": (
        "x: &x\n  class_path: os.system\n  init_args: {command: touch TRACE}\n"
        "trainer:\n  callbacks:\n  - <<: *x\n"
    ),
    "another file of the configuration": "trainer: inner.yaml",
    "another file for a callback": "trainer:\n  callbacks: [inner_callback.yaml]",
    "another configuration": "config: inner_config.yaml",
    "all of it under its command": "fit:\n  trainer:\n    callbacks:\n    - {class_path: os.system}",
}  # fmt: skip


@pytest.mark.usefixtures("fit_alone")
@pytest.mark.parametrize("kind", TEXTS)
def test_hostile_yaml_is_refused_in_one_line(kind, tmp_path, trace, capsys):
    callback = f"class_path: os.system\ninit_args: {{command: touch {trace}}}\n"
    (tmp_path / "inner_callback.yaml").write_text(callback)
    (tmp_path / "inner.yaml").write_text("callbacks:\n- " + callback.replace("\n", "\n  ").strip() + "\n")
    (tmp_path / "inner_config.yaml").write_text("trainer:\n  callbacks:\n  - {class_path: os.system}\n")
    rest = {key: value for key, value in BASE.items() if key != "trainer"}
    path = tmp_path / "config.yaml"
    path.write_text(TEXTS[kind].replace("TRACE", str(trace)) + "\n" + yaml.safe_dump(rest))
    refused(capsys, "fit", "--config", str(path))


def test_the_environment_lets_nothing_in(tmp_path, trace, capsys, monkeypatch):
    path = tmp_path / "config.yaml"
    path.write_text(changed({"trainer.callbacks": [SYSTEM]}, tmp_path, trace))
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    monkeypatch.setenv("PL_CONFIG", str(path))
    monkeypatch.setenv("PL_FIT__CONFIG", str(path))
    refused(capsys, "fit")
    monkeypatch.delenv("PL_CONFIG")
    monkeypatch.delenv("PL_FIT__CONFIG")
    good = tmp_path / "good.yaml"
    good.write_text(changed({}, tmp_path, trace))
    callbacks = json.dumps([spec("os.system", command=f"touch {trace}")])
    monkeypatch.setenv("PL_FIT__TRAINER__CALLBACKS", callbacks)
    refused(capsys, "fit", "--config", str(good))


# ---------------------------------------------------------------- what is allowed


def test_classes_of_camify_and_lightning_are_built(tmp_path, trace):
    path = tmp_path / "config.yaml"
    allowed = {
        "trainer.callbacks": [
            spec("EarlyStopping", monitor="val/acc"),
            spec("pytorch_lightning.callbacks.DeviceStatsMonitor"),
            spec("pytorch_lightning.callbacks.early_stopping.EarlyStopping", monitor="val/loss"),
            spec("pytorch_lightning.callbacks.RichModelSummary"),
        ],
        "trainer.logger": spec("CSVLogger", save_dir=str(tmp_path / "logs")),
        "trainer.plugins": [spec("lightning_fabric.plugins.environments.LightningEnvironment")],
        "trainer.profiler": spec("pytorch_lightning.profilers.SimpleProfiler"),
        "data.class_path": "camify.data.ShapesDataModule",
        "weights_only": None,  # as older runs wrote it
    }
    path.write_text(changed(allowed, tmp_path, trace))
    main(["fit", "--config", str(path)])


OWN = """
from camify.data import ShapesDataModule
from pytorch_lightning.callbacks import Callback

class MyData(ShapesDataModule):
    pass

class MyCallback(Callback):
    def on_fit_start(self, trainer, pl_module):
        print("my callback ran")

def make_data() -> ShapesDataModule:
    return MyData()
"""


def test_a_package_is_let_in_by_the_command_line_alone_and_for_one_command(tmp_path, trace, capsys):
    (tmp_path / "my_package_17.py").write_text(textwrap.dedent(OWN))
    path = tmp_path / "config.yaml"
    own = {"data.class_path": "my_package_17.MyData", "trainer.callbacks": [spec("my_package_17.MyCallback")]}
    path.write_text(changed(own, tmp_path, trace))
    message = refused(capsys, "fit", "--config", str(path))
    assert "--allow my_package_17" in message
    assert "my_package_17" not in sys.modules
    main(["fit", "--config", str(path), "--allow", "my_package_17"])
    assert "my callback ran" in capsys.readouterr().out
    assert "--allow my_package_17" in refused(capsys, "fit", "--config", str(path)), "let in for good"
    path.write_text(changed({"data.class_path": "my_package_17.make_data", "data.init_args": {}}, tmp_path, trace))
    assert "no class" in refused(capsys, "fit", "--config", str(path), "--allow=my_package_17")
    path.write_text(changed({"data.class_path": "my_package_17.MyData.from_datasets"}, tmp_path, trace))
    refused(capsys, "fit", "--config", str(path), "--allow=my_package_17")
    path.write_text(changed({"trainer.callbacks": [SYSTEM]}, tmp_path, trace))
    refused(capsys, "fit", "--config", str(path), "--allow=my_package_17")
    sys.modules.pop("my_package_17", None)


def test_allow_takes_names_of_packages():
    assert packages_allowed(["fit", "--allow", "a.b", "--x", "1", "--allow=c"]) == (["fit", "--x", "1"], ["a.b", "c"])
    for wrong in (["--allow"], ["--allow="], ["--allow", "*"], ["--allow", "--config"], ["--allow", "jsonargparse"]):
        with pytest.raises(ConfigError, match="name of a package"):
            packages_allowed(wrong)


def test_the_names_are_classes_of_camify_and_lightning():
    import inspect

    from camify.cli.named_classes import _classes, _named

    assert {"camify.data.ImageFolderDataModule", "pytorch_lightning.loggers.WandbLogger"} <= _classes()
    known = [kind for kind in (_named(name) for name in _classes()) if kind is not None]
    assert len(known) > 50
    assert all(inspect.isclass(kind) for kind in known)
    assert {kind.__module__.split(".")[0] for kind in known} == {"camify", "pytorch_lightning", "lightning_fabric"}


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("variable", ["", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
def test_no_command_unpickles_a_checkpoint(command, variable, tmp_path, trace, capsys, monkeypatch):
    if variable:
        monkeypatch.setenv(variable, "1")
    skipped = FineTuningCLI.subcommands()[command]
    monkeypatch.setattr(FineTuningCLI, "subcommands", staticmethod(lambda: {command: skipped}))
    evil = tmp_path / "evil.ckpt"
    torch.save({"state_dict": RunsCode(trace), "epoch": 1, "global_step": 1}, evil)
    path = tmp_path / "config.yaml"
    path.write_text(changed({"trainer.fast_dev_run": False}, tmp_path, trace))
    words = (command, "--config", str(path), "--ckpt_path", str(evil))
    assert "evil.ckpt: cannot be read as plain weights" in refused(capsys, *words)
    monkeypatch.setattr("camify.cli.train.read_checkpoint", lambda file: None)  # nor does the trainer, later
    assert "evil.ckpt: cannot be read as plain weights" in refused(capsys, *words)


def test_weights_only_is_no_option(tmp_path, trace, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(changed({}, tmp_path, trace))
    for command in ("fit", "validate", "test", "predict"):
        assert "weights_only" in refused(capsys, command, "--config", str(path), "--weights_only", "false")
        with pytest.raises(SystemExit):
            main([command, "--help"])
        helped = capsys.readouterr().out
        assert "--weights_only" not in helped
        assert "--allow PACKAGE" in helped


def test_checkpoints_that_are_folders_are_refused(tmp_path, trace, capsys):
    """Sharded strategies keep a pickle in them."""
    path, folder = tmp_path / "config.yaml", tmp_path / "sharded.ckpt"
    folder.mkdir()
    path.write_text(changed({}, tmp_path, trace))
    assert "is no file" in refused(capsys, "fit", "--config", str(path), "--ckpt_path", str(folder))
    assert "no such file" in refused(capsys, "fit", "--config", str(path), "--ckpt_path", "last")
    (tmp_path / "run" / "hpc_ckpt_1.ckpt").mkdir(parents=True)
    assert "hpc_ckpt_1.ckpt" in refused(capsys, "fit", "--config", str(path))


# ---------------------------------------------------------------- the other commands


def test_options_of_methods_build_nothing(tmp_path, trace, capsys):
    hostile = f'{{"gaussian": {{"class_path": "subprocess.Popen", "init_args": {{"args": ["touch", "{trace}"]}}}}}}'
    for command in (("explain", "x.png", "--model", "camify/tiny_vgg", "--out", "o"), ("evaluate", "--model", "x")):
        with pytest.raises(SystemExit) as left:
            commands([*command, "--options", hostile])
        assert left.value.code == 2
