"""The folder of a run: where it is, that it is the run's alone, and what a run can go on from."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytorch_lightning as pl

from ..errors import ConfigError
from ..files import LONGEST_NAME, RUN_MARKER, claim, remove_all_leftovers, shortened

__all__ = ["RUN_MARKER", "claimed_folder", "is_first_process", "is_run_folder", "run_folder"]


def run_folder(trainer: pl.Trainer) -> Path:
    """Where a run leaves its files: what the command line claimed, else the first logger's folder, else the trainer's.

    ``trainer.log_dir`` says the same, but waits for all processes: one that writes alone would wait for ever.
    """
    claimed: Path | None = getattr(trainer, "claimed_folder", None)
    if claimed is not None:
        return claimed
    logger = trainer.logger
    own = getattr(logger, "log_dir", None)
    if own is None and logger is not None and logger.save_dir is not None:  # as Lightning places checkpoints
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        own = os.path.join(logger.save_dir, str(logger.name), version)  # noqa: PTH118 - may be a URL
    return Path(own or trainer.default_root_dir)


def is_first_process() -> bool:
    """Whether this is the only process of a run, or the first of several, as their launchers say."""
    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return int(next((rank for rank in ranks if rank is not None), "0")) == 0


def is_run_folder(folder: Path) -> bool:
    """Whether a run of camify stands there, of this version or an earlier one."""
    return (folder / RUN_MARKER).is_file() or (folder / "config.yaml").is_file()


@contextmanager
def claimed_folder(folder: Path, *, go_on: bool) -> Iterator[Path]:
    """A folder that is this run's alone for the time of the context: ``folder``, ``folder-2``, ``folder-3``, ...

    Two runs that start at the same moment get two folders. All processes of one run must agree: those that Lightning
    started inherit the choice; of those that something else started (torchrun, SLURM) the first one claims the folder
    as it is, which then must be free. A folder in which nothing was kept is removed at the end.

    Args:
        folder: where the run is wanted.
        go_on: the run that stopped there goes on; it must not be running.

    Raises:
        ConfigError: the folder holds something else than a run, its run is still alive, or it cannot be written.
    """
    inherited = os.environ.get("CAMIFY_RUN_FOLDER")
    if inherited is not None:
        yield Path(inherited)
        return
    if not is_first_process():
        yield folder
        return
    several = any(int(os.environ.get(name, "1")) > 1 for name in ("WORLD_SIZE", "SLURM_NTASKS"))
    chosen, number, is_new, descriptor = folder, 2, False, None
    while True:
        is_new = not chosen.exists()
        descriptor = _claim(chosen, go_on=go_on)
        if descriptor is not None:
            break
        if go_on:
            raise ConfigError(f"{chosen}: its run is still alive ({_owner(chosen)}). Wait for it, or stop it.")
        if several:
            raise ConfigError(f"{chosen}: holds a run already. Choose another --trainer.default_root_dir.")
        end = f"-{number}"
        chosen, number = folder.with_name(shortened(folder.name, LONGEST_NAME - len(end)) + end), number + 1
    os.environ["CAMIFY_RUN_FOLDER"] = str(chosen)
    try:
        yield chosen
    finally:
        del os.environ["CAMIFY_RUN_FOLDER"]
        if _names(chosen) == set() and is_new:
            (chosen / RUN_MARKER).unlink(missing_ok=True)
            chosen.rmdir()
        os.close(descriptor)


def _claim(folder: Path, *, go_on: bool) -> int | None:
    """Lock the marker of a folder that is free, or whose run goes on; None where it is another run's."""
    marker = folder / RUN_MARKER
    if folder.is_dir() and not is_run_folder(folder) and _names(folder):
        raise ConfigError(
            f"{folder}: holds {min(_names(folder))} and is no run of camify. Nothing was touched; choose another"
            " --trainer.default_root_dir."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        marker.touch()
        descriptor = _lock(marker)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror or error}).") from error
    if descriptor is None:
        return None
    remove_all_leftovers(folder)  # its run is dead: nobody else holds the lock
    if not go_on and _is_used(folder):
        os.close(descriptor)
        return None
    marker.write_text(json.dumps({"process": os.getpid(), "machine": socket.gethostname()}), encoding="utf-8")
    return descriptor


def _lock(marker: Path) -> int | None:
    try:
        return claim(marker)
    except FileNotFoundError:  # its run, which kept nothing, has just removed it
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
        return claim(marker)


def _names(folder: Path) -> set[str]:
    """What a folder holds but hidden files, such as the marker."""
    return {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}


def _is_used(folder: Path) -> bool:
    """Whether a run has begun to train there: one that was refused before left nothing that is needed."""
    return (folder / "config.yaml").is_file() or any(folder.glob("*.ckpt"))


def _owner(folder: Path) -> str:
    try:
        owner = json.loads((folder / RUN_MARKER).read_text(encoding="utf-8"))
        return f"process {owner['process']} on {owner['machine']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
