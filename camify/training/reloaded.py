"""``load_from_checkpoint``: the module that a checkpoint of training describes, rebuilt from plain data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoint.folder import CKPT_RECORD
from ..errors import CheckpointError
from ..sources.run_folders import fine_tuned_network
from .checkpoint_files import read_checkpoint
from .resume import run_of

__all__ = ["rebuilt"]


def rebuilt(kind: Any, path: Path, given: Mapping[str, Any]) -> Any:
    """A ``kind`` (``CAMFineTuner``) with the options and weights of a checkpoint.

    Args:
        kind: the class.
        path: of the checkpoint, as training writes it.
        given: arguments that go before what the checkpoint says; ``model`` is needed where it holds no network.

    Raises:
        CheckpointError: it is missing, damaged, of another network, or holds no network and none is given.
    """
    checkpoint = read_checkpoint(path)
    options = checkpoint.get("hyper_parameters")
    if not isinstance(options, dict):
        raise CheckpointError(f"{path}: holds no options of a CAMFineTuner. Is it the checkpoint of another module?")
    arguments = {str(name): value for name, value in options.items()} | dict(given)
    if "model" not in given:
        arguments["model"] = _network(checkpoint, path)
        if "teacher" not in given:
            arguments["teacher"] = None  # the legacy network, which is not in the checkpoint
    module = kind(**arguments)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    module.source = run_of(checkpoint).get("model.model", module.source)  # a run that goes on is still that one
    return module


def _network(checkpoint: Mapping[str, Any], path: Path) -> nn.Module:
    give = "Give it: CAMFineTuner.load_from_checkpoint(path, model=...), what the run was given as its model."
    if CKPT_RECORD not in checkpoint:
        raise CheckpointError(f"{path}: holds weights alone, not what network they are of (head='none'). {give}")
    try:
        return fine_tuned_network(checkpoint, path)
    except CheckpointError as error:
        raise CheckpointError(f"{error} {give}") from error
