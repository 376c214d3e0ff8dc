"""The training command line: LightningCLI over CAMFineTuner and a data module."""

from __future__ import annotations

import difflib
import logging
import os
import re
import signal
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
import yaml
from jsonargparse import Namespace, get_loader, set_loader
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException

from .. import data as _data  # noqa: F401 - a config names its data modules without their package
from ..conversion import find_recipe
from ..errors import CamifyError, ConfigError
from ..training.callbacks.overlays import CAMOverlayLogger
from ..training.callbacks.predictions import PredictionTable
from ..training.callbacks.run_record import RunRecord
from ..training.module import CAMFineTuner
from ..training.options import FLAT, GROUP_OF, GROUPS, FineTuningOptions, put_into_groups
from .named_classes import (
    ALLOW_HELP,
    allow_packages,
    check_loaded,
    check_parsed,
    forbid_packages,
    import_refusal,
    packages_allowed,
    plain_checkpoint,
)

__all__ = ["FineTuningCLI", "main"]

_CONFIGS = ("--config", "-c")
_SUBCOMMANDS = ("fit", "validate", "test", "predict")
_NOISE = (
    ".*does not have many workers.*",
    ".*isinstance.treespec, LeafSpec.*",  # Lightning with a newer torch
    ".*exists and is not empty.*",  # the run's folder is chosen so that nothing is overwritten
)


_BY_NAME = re.compile(rf"--model\.({'|'.join(GROUP_OF)})(?=[=+]|$)")


class OneLineParser(LightningArgumentParser):
    """Says what is wrong in one line, and which option may have been meant; groups options given by their names."""

    def parse_args(self, args: Any = None, *given: Any, **options: Any) -> Any:
        """Parse a command line."""
        words = sys.argv[1:] if args is None else list(args)
        words = [_BY_NAME.sub(lambda match: f"--model.{GROUP_OF[match[1]]}.{match[1]}", word) for word in words]
        try:
            return super().parse_args(words, *given, **options)
        except (UnicodeError, RecursionError) as error:
            files = ", ".join(file for option, file in pairwise(words) if option in _CONFIGS)
            raise ConfigError(f"{files or 'An option'}: is no YAML that can be read as UTF-8 ({error}).") from error

    def parse_object(self, obj: Any, *given: Any, **options: Any) -> Any:
        """Parse options that are given as a dict."""
        plain = obj.as_dict() if isinstance(obj, Namespace) else obj
        return super().parse_object(_with_groups(plain), *given, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the error for ``main`` to print."""
        camify_error = _inner_error(ex) or import_refusal(message)
        message = re.sub(rf"\bmodel\.(?:{'|'.join(GROUPS)})\.(\w)", r"model.\1", message)  # as people write them
        text = str(camify_error) if camify_error is not None else _essence(message)
        unknown = re.search(r"(?:arguments: --|option '|Option ')([\w.]+)", message)
        guesses = difflib.get_close_matches(unknown[1], self._option_names(), n=1) if unknown else []
        raise ConfigError(f"{text}. Did you mean {guesses[0]}?" if guesses else text) from ex

    def _option_names(self) -> list[str]:
        """All options of this parser and its subcommands."""
        parsers: list[Any] = [self]
        for action in self._actions:
            parsers += (getattr(action, "_name_parser_map", None) or {}).values()
        return sorted({o.lstrip("-") for parser in parsers for a in parser._actions for o in a.option_strings})


def _with_groups(config: Any) -> Any:
    """A configuration whose model options stand in their groups; anything else as it is."""
    if not isinstance(config, dict):
        return config
    moved = {key: _with_groups(part) if key in _SUBCOMMANDS else part for key, part in config.items()}
    model = moved.get("model")
    if isinstance(model, dict):
        by_name = {name: value for name, value in model.items() if name in GROUP_OF}
        groups = {name: value for name, value in model.items() if name in GROUPS and isinstance(value, dict)}
        moved["model"] = {name: value for name, value in model.items() if name not in by_name} | put_into_groups(
            by_name, groups
        )
    return moved


def _essence(message: str) -> str:
    """A parser's message in one line; of a list of tried types, what those of the expected kind said."""
    text = re.sub(r": *\n(?! *- ) *", ": ", message.strip())
    tried = re.findall(r"^ *- ([A-Z](?!.*NoneType).*)", text, flags=re.MULTILINE)
    parts = [text.split(": Does not")[0] + ":", *tried] if tried else [text]
    return " ".join(" ".join(parts).split())


def _inner_error(error: BaseException | None) -> CamifyError | None:
    """The camify error that a library wrapped into its own, if there is one."""
    while error is not None and not isinstance(error, CamifyError):
        error = error.__cause__ or error.__context__
    return error


class SaveRunConfig(SaveConfigCallback):
    """Writes the resolved configuration into the run's folder when training starts, and only then."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Not yet: a run that may not go on must not replace the configuration of the one that stopped."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save before fitting; validating and testing write nothing."""
        super().setup(trainer, pl_module, "fit")


class FineTuningCLI(LightningCLI):
    """``fit``, ``validate``, ``test`` and ``predict``; a run keeps everything in ``trainer.default_root_dir``."""

    def __init__(self, args: ArgsType = None, run: bool = True) -> None:
        load = get_loader("yaml")
        args, packages = _without_allow(args)
        allow_packages(packages)
        set_loader("yaml", lambda text: _with_groups(check_loaded(load(text), packages)), (yaml.YAMLError,))
        try:
            super().__init__(
                CAMFineTuner,
                pl.LightningDataModule,
                subclass_mode_data=True,
                save_config_callback=SaveRunConfig,
                save_config_kwargs={"overwrite": True},  # a new run gets a new folder, see _choose_folder
                seed_everything_default=0,
                parser_class=OneLineParser,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                parser_kwargs={name: {"epilog": ALLOW_HELP} for name in self.subcommands()},
                args=args,
                run=run,
            )
        finally:
            set_loader("yaml", load, (yaml.YAMLError,))
            forbid_packages(packages)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's, without the option to read checkpoints as pickles."""
        return {name: {*skipped, "weights_only"} for name, skipped in LightningCLI.subcommands().items()}

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Arguments of the trainer; given by the caller, no environment variable overrules how checkpoints are read."""
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, and refuse what names no class before anything is built."""
        self.config = parser.parse_object(args) if isinstance(args, dict | Namespace) else parser.parse_args(args)
        check_parsed(self.config)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The callbacks every run has, and class names from the data."""
        parser.add_lightning_class_args(CAMOverlayLogger, "overlays")
        parser.add_lightning_class_args(RunRecord, "record")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "trainer.default_root_dir": "checkpoints/run",
                "trainer.enable_model_summary": False,  # the certificate says it
                "checkpoint.filename": "best",
                "checkpoint.monitor": "val/acc",
                "checkpoint.mode": "max",
                "checkpoint.save_last": True,
                "checkpoint.save_on_train_epoch_end": True,
                "checkpoint.enable_version_counter": False,
                "checkpoint.auto_insert_metric_name": False,
            }
        )
        parser.link_arguments("data", "model.class_names", compute_fn=_class_names, apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """A checkpoint's stored options do not overrule the configuration."""

    def before_instantiate_classes(self) -> None:
        """Settle what the recipe decides, so that it is written down; give a new run a folder of its own."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        model_config = config.model
        options = FineTuningOptions.of(
            model_config.recipe,
            {name: vars(model_config[name]) for name in GROUPS},
            {name: model_config[name] for name in FLAT},
        )
        for name, value in options.by_name().items():
            if name in FLAT:  # where people look for them
                model_config[name], model_config[f"{GROUP_OF[name]}.{name}"] = value, None
            else:
                model_config[f"{GROUP_OF[name]}.{name}"] = value
        recipe = find_recipe(config.model.recipe)
        if recipe is not None and config.trainer.max_epochs is None:
            config.trainer.max_epochs = recipe.fine_tuning.epochs
        if options.loss.task == "multilabel" and config.checkpoint.monitor == "val/acc":
            config.checkpoint.monitor = "val/map"
        folder = Path(config.trainer.default_root_dir)
        if "ckpt_path" in config:
            config.ckpt_path = plain_checkpoint(config.ckpt_path, folder)
        if self.subcommand == "fit" and not config.ckpt_path and not config.trainer.fast_dev_run:
            folder = _choose_folder(folder)
        config.trainer.default_root_dir = str(folder)
        config.checkpoint.dirpath = str(folder)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """A trainer that logs to TensorBoard and CSV in the run's folder, unless told otherwise."""
        config = self._get(self.config_init, "trainer")
        if config.logger in (None, True) and not config.fast_dev_run:
            kwargs["logger"] = self._loggers(config.default_root_dir) if self.subcommand in ("fit", None) else False
        trainer: pl.Trainer = super().instantiate_trainer(**kwargs)
        if self.subcommand == "predict":
            trainer.callbacks.append(PredictionTable())  # type: ignore[attr-defined]
        return trainer

    @staticmethod
    def _loggers(folder: str) -> list[Logger]:
        figures = Path(folder, "metrics.csv")
        if figures.is_file():  # a resumed run: CSVLogger would delete the figures so far
            count = len(list(figures.parent.glob("metrics-*.csv")))
            figures.rename(figures.with_name(f"metrics-{count + 1}.csv"))
        return [TensorBoardLogger(folder, name="", version=""), CSVLogger(folder, name="", version="")]


def _without_allow(args: ArgsType) -> tuple[ArgsType, list[str]]:
    """Arguments without ``--allow PACKAGE``, and the packages: only a command line lets them in."""
    if isinstance(args, dict | Namespace):
        return check_loaded(args, []), []
    return packages_allowed(sys.argv[1:] if args is None else list(args))


def _class_names(data: pl.LightningDataModule) -> list[str] | None:
    names = getattr(data, "class_names", None)
    return None if names is None else list(names)


def _choose_folder(folder: Path) -> Path:
    """The folder, or ``folder-2``, ``folder-3``, ... where it holds a run already: no run overwrites another.

    All processes of one run must agree: children started by Lightning inherit the choice; processes that
    something else started (torchrun, SLURM) take the folder as it is, which then must be free.
    """
    inherited = os.environ.get("CAMIFY_RUN_FOLDER")
    if inherited is not None:
        return Path(inherited)
    taken = (folder / "config.yaml").exists()
    if taken and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"{folder}: holds a run already. Choose another --trainer.default_root_dir.")
    number, free = 2, folder
    while (free / "config.yaml").exists():
        free, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    os.environ["CAMIFY_RUN_FOLDER"] = str(free)
    return free


def main(args: ArgsType = None) -> None:
    """Run the training command line; wrong input gives a clear message and exit code 2, no traceback."""
    for library in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    try:
        FineTuningCLI(args)
    except SIGTERMException:
        sys.exit(128 + signal.SIGTERM)  # Lightning alone leaves with 0
    except Exception as error:
        camify_error = _inner_error(error)
        if camify_error is None:
            raise
        sys.stderr.write(f"camify: error: {camify_error}\n")
        sys.exit(2)
    finally:
        os.environ.pop("CAMIFY_RUN_FOLDER", None)
