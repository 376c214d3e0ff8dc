"""Options of the trainer whose values Lightning takes, and then divides by or ignores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError

__all__ = ["check_trainer_options"]


def check_trainer_options(options: Mapping[str, Any], command: str | None) -> None:
    """Refuse values with which a run cannot come to anything.

    Raises:
        ConfigError: names all of them.
    """
    least = {
        "check_val_every_n_epoch": 1,
        "accumulate_grad_batches": 1,
        "log_every_n_steps": 0,
        "num_sanity_val_steps": -1,
        "gradient_clip_val": 0,
    }
    complaints = [
        f"trainer.{name}={options[name]} must be at least {bound}."
        for name, bound in least.items()
        if isinstance(options.get(name), int | float) and options[name] < bound
    ]
    for name, why in {
        "max_epochs": "nothing would be trained",
        "max_steps": "nothing would be trained",
        "limit_train_batches": "nothing would be trained",
        "limit_val_batches": "the maps are measured in validation, and the best epoch is chosen by it",
    }.items():
        if command == "fit" and options.get(name) == 0 and not isinstance(options.get(name), bool):
            complaints.append(f"trainer.{name}={options[name]}: {why}. Give at least 1.")
    if complaints:
        raise ConfigError(" ".join(complaints))
