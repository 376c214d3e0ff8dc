"""Lightning's progress bar, of runs without a number of epochs too."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar

__all__ = ["EpochProgressBar", "use_epoch_progress_bar"]


class EpochProgressBar(RichProgressBar):
    """Says ``Epoch 2`` where the number of epochs is open; Lightning's own says ``Epoch 2/-2``."""

    def _get_train_description(self, current_epoch: int) -> str:
        if self.trainer.max_epochs is not None and self.trainer.max_epochs >= 0:
            return super()._get_train_description(current_epoch)
        return f"{f'Epoch {current_epoch}':{len(self.validation_description)}}"


def use_epoch_progress_bar(trainer: pl.Trainer) -> None:
    """Put it in the place of Lightning's default; a progress bar that the user chose stays."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    callbacks[:] = [EpochProgressBar() if type(callback) is RichProgressBar else callback for callback in callbacks]
