"""Checkpoints of training: written whole on every filesystem, read as plain data whose checksums are right."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from ..errors import CheckpointError
from ..files import whole_file
from ..sources.state_dicts import read_plain

__all__ = ["WholeCheckpoints", "follow_moved_run", "keep_checkpoints_whole", "read_checkpoint", "refuse_other_shapes"]

_LISTED = 3  # layers in a message


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints, written beside their target, synced and renamed; read without running code.

    Lightning writes them in the machine's temporary folder first and moves them: to another filesystem that is a copy,
    which a full disk or a killed process leaves half done in the place of the good one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; what stood there stays whole until the new one is."""
        if storage_options is not None or "://" in str(path):  # not on this machine
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        try:
            with whole_file(Path(path)) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not re.search("inline_container|Writer", str(error)):
                raise  # not of torch's writer of archives: such as a loading process that was killed meanwhile
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise CheckpointError(
                f"{path}: cannot be written ({reason}); free: {_free(Path(path)):.2f} GB. What stood there is whole."
            ) from error

    def load_checkpoint(
        self,
        path: Any,
        map_location: Callable[..., Any] | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint as plain data, unless the caller, in Python, says ``weights_only=False``."""
        if weights_only is False or "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only)
        return read_checkpoint(Path(path))


def _free(path: Path) -> float:
    """Free space where a file would be, 10^9 bytes."""
    place = next(folder for folder in path.absolute().parents if folder.is_dir())
    return shutil.disk_usage(place).free / 1e9


def keep_checkpoints_whole(trainer: pl.Trainer) -> None:
    """Let a trainer write and read as ``WholeCheckpoints``, unless it was given a way of its own."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpoints()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of training.

    Raises:
        CheckpointError: it is missing, damaged or no checkpoint of training; names the newest whole one beside it.
    """
    try:
        content = read_plain(path)
        if not isinstance(content, dict) or "state_dict" not in content:
            raise CheckpointError(f"{path}: is no checkpoint of training. Give last.ckpt or best.ckpt of a run.")
    except CheckpointError as error:
        other = _newest_whole(path)
        hint = "" if other is None else f" Whole, and from epoch {other[1]}: --ckpt_path {other[0]}"
        raise CheckpointError(f"{error}{hint}") from error
    return content


def _newest_whole(path: Path) -> tuple[Path, int] | None:
    """The checkpoint beside ``path`` of the latest epoch that can be read, and that epoch."""
    whole = []
    for other in path.parent.glob("*.ckpt") if path.parent.is_dir() else ():
        if other == path:
            continue
        try:
            content = read_plain(other)
            whole.append((int(content["epoch"]), int(content["global_step"]), other))
        except (CheckpointError, KeyError, TypeError, ValueError):
            continue
    return (max(whole)[2], max(whole)[0]) if whole else None


def refuse_other_shapes(checkpoint: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> None:
    """Refuse a checkpoint whose weights are not those of the network that is to take them.

    Raises:
        CheckpointError: names layers with both shapes.
    """
    stored = checkpoint.get("state_dict")
    if not stored:  # a strategy that loads the parts of its processes itself
        return
    differing = [
        f"{key}: {tuple(stored[key].shape)} in the checkpoint, {tuple(value.shape)} here"
        for key, value in state.items()
        if key in stored and stored[key].shape != value.shape
    ]
    lacking = [f"{key} is not in the checkpoint" for key in state if key not in stored]
    lacking += [f"{key} is not in the network" for key in stored if key not in state]
    problems = differing or lacking
    if problems:
        more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise CheckpointError(
            f"The checkpoint is of another network ({'; '.join(problems[:_LISTED])}{more}). Give the options of its"
            " run, for instance by its own config.yaml (head, head_channels, class_names, model)."
        )


def follow_moved_run(checkpoint: Mapping[str, Any], folder: Path) -> None:
    """Let what a checkpoint says of Lightning's ``ModelCheckpoint`` name the folder where the run is now.

    Else Lightning would forget which epoch was the best.
    """
    for key, state in checkpoint.get("callbacks", {}).items():
        before = state.get("dirpath") if key.startswith("ModelCheckpoint") else None
        if not before or Path(before).resolve() == folder.resolve():
            continue
        now = os.path.realpath(folder)
        state["dirpath"] = now
        for name in ("best_model_path", "last_model_path", "kth_best_model_path"):
            state[name] = state.get(name, "").replace(before, now, 1)
        state["best_k_models"] = {
            path.replace(before, now, 1): score for path, score in state.get("best_k_models", {}).items()
        }
