"""The training command line: LightningCLI over CAMFineTuner and a data module."""

from __future__ import annotations

import logging
import re
import signal
import sys
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial, reduce
from itertools import pairwise
from operator import or_
from pathlib import Path
from typing import Any, NoReturn, get_args

import pytorch_lightning as pl
import yaml
from jsonargparse import Namespace, get_loader, set_loader
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException

from ..console import console
from ..conversion import find_recipe
from ..data import (  # noqa: F401 - a config names its data modules without their package
    HuggingFaceDataModule,
    ImageFolderDataModule,
    ImageTableDataModule,
    ShapesDataModule,
    TorchvisionDataModule,
    WebDatasetDataModule,
)
from ..errors import ConfigError
from ..files import write_whole
from ..former_names import current_name
from ..task import Task
from ..training.callbacks.overlays import CAMOverlayLogger
from ..training.callbacks.predictions import PredictionTable
from ..training.callbacks.progress_bar import use_epoch_progress_bar
from ..training.callbacks.run_record import RunRecord
from ..training.checkpoint_files import read_checkpoint, refuse_other_shapes
from ..training.loaders import is_dry_run
from ..training.module import CAMFineTuner
from ..training.options import FLAT, GROUP_OF, GROUPS, FineTuningOptions, put_into_groups
from ..training.resume import refuse_changes
from ..training.run_folder import claimed_folder, is_first_process, is_run_folder, run_folder
from .config_files import check_yaml, config_files, everything_wrong, unknown_keys
from .failures import camify_error_in, one_line_errors
from .model_and_data import CONFIGS, as_other_commands_take_it
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
from .parser_messages import guess, plainly
from .trainer_options import check_trainer_options

__all__ = ["FineTuningCLI", "main"]

_SUBCOMMANDS = ("fit", "validate", "test", "predict")
_NOISE = (
    ".*does not have many workers.*",
    ".*isinstance.treespec, LeafSpec.*",  # Lightning with a newer torch
    "Your `IterableDataset` has `__len__` defined.*",  # WebDatasetDataModule gives each loading process its own shards
    ".*exists and is not empty.*",  # the run's folder is chosen so that nothing is overwritten
)


_BY_NAME = re.compile(rf"--model\.({'|'.join(GROUP_OF)})(?=[=+]|$)")


class OneLineParser(LightningArgumentParser):
    """Says what is wrong in one line, and which option may have been meant; groups options given by their names."""

    def parse_args(self, args: Any = None, *given: Any, **options: Any) -> Any:
        """Parse a command line."""
        words = sys.argv[1:] if args is None else list(args)
        words = [_BY_NAME.sub(lambda match: f"--model.{GROUP_OF[match[1]]}.{match[1]}", word) for word in words]
        words = list(as_other_commands_take_it(words))
        try:
            return self._parse(words, *given, **options)
        except (UnicodeError, RecursionError) as error:
            files = ", ".join(file for option, file in pairwise(words) if option in CONFIGS)
            raise ConfigError(f"{files or 'An option'}: is no YAML that can be read as UTF-8 ({error}).") from error

    def _parse(self, words: list[str], *given: Any, **options: Any) -> Any:
        """Parse a command line; of several errors in its files all are named."""
        parser = self._parser_of(words)
        if parser is None:
            return super().parse_args(words, *given, **options)
        files = config_files(words, get_loader("yaml"))
        known = [*(action.dest for action in parser._actions), "weights_only"]  # null, as older runs wrote it
        unknown = unknown_keys(files, known)
        try:
            if unknown:
                raise ConfigError(unknown.pop(0))
            return super().parse_args(words, *given, **options)
        except ConfigError as error:
            first = error
        # Not in the handler: its errors would begin with the first.
        parse = partial(parser.parse_object, defaults=False)
        raise ConfigError(" Also: ".join([*everything_wrong(str(first), files, parse, known), *unknown])) from first

    def _parser_of(self, words: list[str]) -> OneLineParser | None:
        """The parser of the command that is given; None where this one has no commands."""
        by_command: Mapping[str, OneLineParser] = next(
            (names for action in self._actions if (names := getattr(action, "_name_parser_map", None))), {}
        )
        return next((by_command[word] for word in words if word in by_command), None)

    def parse_object(self, obj: Any, *given: Any, **options: Any) -> Any:
        """Parse options that are given as a dict."""
        plain = obj.as_dict() if isinstance(obj, Namespace) else obj
        return super().parse_object(_with_groups(plain), *given, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the error for ``main`` to print."""
        camify_error = camify_error_in(ex) or import_refusal(message)
        message = re.sub(rf"\bmodel\.(?:{'|'.join(GROUPS)})\.(\w)", r"model.\1", message)  # as people write them
        text = plainly(message, self) if camify_error is None else str(camify_error) + guess(message, self)
        raise ConfigError(text) from ex


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


class SaveRunConfig(SaveConfigCallback):
    """Writes the resolved configuration into the run's folder when training starts, and only then."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Not yet: a run that may not go on must not replace the configuration of the one that stopped."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Save before fitting; validating and testing write nothing."""
        if trainer.is_global_zero and not is_dry_run(trainer):
            write_whole(run_folder(trainer) / self.config_filename, self.parser.dump(self.config, skip_none=False))


class FineTuningCLI(LightningCLI):
    """``fit``, ``validate``, ``test`` and ``predict``; a run keeps everything in ``trainer.default_root_dir``."""

    def __init__(self, args: ArgsType = None, run: bool = True) -> None:
        self._checkpoint: dict[str, Any] | None = None
        _whole_numbers_first(pl.Trainer.__init__.__annotations__)
        load = get_loader("yaml")
        args, packages = _without_allow(args)
        first = args[0] if isinstance(args, list) and args else None
        self._only = first if first in _SUBCOMMANDS else None
        allow_packages(packages)
        set_loader("yaml", lambda text: _with_groups(check_loaded(load(check_yaml(text)), packages)), (yaml.YAMLError,))
        try:
            with ExitStack() as self._held:  # the run's folder
                super().__init__(
                    CAMFineTuner,
                    pl.LightningDataModule,
                    subclass_mode_data=True,
                    save_config_callback=SaveRunConfig,
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

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """The options of the command that is given alone: those of all four take a second to collect."""
        if self._only in (None, subcommand):
            return super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        self._subcommand_method_arguments[subcommand] = []
        return self.init_parser(**kwargs)

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
        parser.link_arguments("data", "model.data_task", compute_fn=_data_task, apply_on="instantiate")

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
        config.checkpoint.monitor = config.checkpoint.monitor and current_name(config.checkpoint.monitor)
        self._settle_folder(config)

    def _settle_folder(self, config: Namespace) -> None:
        """Give the run its folder: a new one, or that of the checkpoint from which it goes on."""
        folder = Path(config.trainer.default_root_dir)
        checkpoint = plain_checkpoint(config.get("ckpt_path"), folder)
        if checkpoint is not None:
            self._checkpoint, config.ckpt_path = read_checkpoint(checkpoint), str(checkpoint)
        if self.subcommand == "fit":
            folder = self._claim(folder, checkpoint, dry=bool(config.trainer.fast_dev_run))
            _keep_together(config.trainer.logger, folder)
        config.trainer.default_root_dir = config.checkpoint.dirpath = str(folder)

    def _claim(self, folder: Path, checkpoint: Path | None, *, dry: bool) -> Path:
        if dry:
            return Path(self._held.enter_context(tempfile.TemporaryDirectory()))
        if checkpoint is None or not is_run_folder(checkpoint.parent):
            return self._held.enter_context(claimed_folder(folder, go_on=False))
        if checkpoint.parent.resolve() != folder.resolve() and is_first_process():
            console().print(f"The run goes on where its checkpoint lies, in {checkpoint.parent}, not in {folder}.")
        return self._held.enter_context(claimed_folder(checkpoint.parent, go_on=True))

    def before_fit(self) -> None:
        """Compare the run that goes on with the one that stopped, before anything of it is loaded or renamed."""
        if self._checkpoint is None:
            return
        weights = {key: value for key, value in self.model.state_dict().items() if key.startswith("model.")}
        refuse_changes(self.trainer, self.model, self._checkpoint, self.datamodule)
        refuse_other_shapes(self._checkpoint, weights)
        self._checkpoint = None
        figures = run_folder(self.trainer) / "metrics.csv"
        if figures.is_file() and is_first_process():  # CSVLogger would delete the figures so far
            count = len(list(figures.parent.glob("metrics-*.csv")))
            figures.rename(figures.with_name(f"metrics-{count + 1}.csv"))

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """A trainer that logs to TensorBoard and CSV in the run's folder, unless told otherwise."""
        config = self._get(self.config_init, "trainer")
        check_trainer_options(vars(config), self.subcommand)
        if config.logger in (None, True) and not config.fast_dev_run:
            kwargs["logger"] = self._loggers(config.default_root_dir) if self.subcommand in ("fit", None) else False
        trainer: pl.Trainer = super().instantiate_trainer(**kwargs)
        use_epoch_progress_bar(trainer)
        trainer.claimed_folder = Path(config.default_root_dir)  # type: ignore[attr-defined]
        best = self._get(self.config_init, "checkpoint")
        if self.model.task is Task.MULTILABEL and best.monitor == "val/acc":
            best.monitor = "val/map"
        if best.save_last and best.monitor is not None:  # Lightning's own would be that of the best epoch
            best.save_last = False
            trainer.callbacks.append(  # type: ignore[attr-defined]
                ModelCheckpoint(best.dirpath, "last", save_on_train_epoch_end=True, enable_version_counter=False)
            )
        given = any(isinstance(callback, PredictionTable) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if self.subcommand == "predict" and not given:
            trainer.callbacks.append(PredictionTable())  # type: ignore[attr-defined]
        return trainer

    @staticmethod
    def _loggers(folder: str) -> list[Logger]:
        return [TensorBoardLogger(folder, name="", version=""), CSVLogger(folder, name="", version="")]


def _whole_numbers_first(annotations: dict[str, Any]) -> None:
    """Let options that are whole numbers or shares take 1 for a number: one batch, not all of them.

    ``typing`` gives ``Union[int, float]`` back in the order in which somebody asked for it first, and the parser takes
    the first type that fits.
    """
    for name, kind in annotations.items():
        kinds = get_args(kind)
        if int in kinds and float in kinds and kinds.index(float) < kinds.index(int):
            annotations[name] = reduce(or_, [int, *(other for other in kinds if other is not int)])


def _without_allow(args: ArgsType) -> tuple[ArgsType, list[str]]:
    """Arguments without ``--allow PACKAGE``, and the packages: only a command line lets them in."""
    if isinstance(args, dict | Namespace):
        return check_loaded(args, []), []
    return packages_allowed(sys.argv[1:] if args is None else list(args))


def _class_names(data: pl.LightningDataModule) -> list[str] | None:
    names = getattr(data, "class_names", None)
    return None if names is None else list(names)


def _data_task(data: pl.LightningDataModule) -> str | None:
    return getattr(data, "task", None)


def _keep_together(loggers: Any, folder: Path) -> None:
    """W&B's files go into the run's folder, where its configuration does not say otherwise."""
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        options = getattr(logger, "init_args", None)
        is_wandb = str(getattr(logger, "class_path", "")).endswith("WandbLogger")
        if is_wandb and options is not None and options.get("save_dir") in (".", None):
            options["save_dir"] = str(folder)


def main(args: ArgsType = None) -> None:
    """Run the training command line; wrong input gives a clear message and exit code 2, no traceback."""
    for library in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    try:
        with one_line_errors():
            FineTuningCLI(args)
    except SIGTERMException as stopped:
        sys.exit(128 + getattr(stopped, "signal", signal.SIGTERM))  # Lightning alone leaves with 0
    except SystemExit as left:
        if isinstance(left.__context__, KeyboardInterrupt):  # the second Ctrl-C
            sys.exit(128 + signal.SIGINT)
        raise
