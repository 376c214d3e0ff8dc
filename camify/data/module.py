"""What camify's data modules share: loaders, and preprocessing that follows the network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import DataLoader, Dataset

from ..console import console
from ..preprocessing import Preprocessing, agreed_preprocessing
from .counts import require_counts
from .loading import TrainingLoader, outlive_signals
from .samples import collate

__all__ = ["PreparedDataModule"]


class PreparedDataModule(pl.LightningDataModule):
    """Splits of samples as a network takes them.

    The preprocessing is the network's, where a trainer brings one that says what it expects; where it does not, what
    was given, else ``default``. Given values that contradict the network's are refused, unless they are to override it.

    Args:
        given: ``size``, ``mean``, ``std``, ``bits``; None where the user gave none.
        default: of what neither user nor network says.
        augment: see ``Preprocessing.training``; None: ``default_augment``, or mirror images alone where a run keeps
            features.
        batch_size: images per step.
        num_workers: loading processes.
        override_preprocessing: what was given goes before what the network expects.

    Attributes:
        preprocessing: how images become inputs; settled when a trainer sets the module up.
        splits: data sets by name.
    """

    class_names: list[str]
    default_augment = "crop_flip"

    def __init__(
        self,
        given: Mapping[str, Any],
        default: Preprocessing,
        *,
        augment: str | None,
        batch_size: int,
        num_workers: int = 0,
        override_preprocessing: bool = False,
    ) -> None:
        super().__init__()
        require_counts(least=1, batch_size=batch_size)
        require_counts(least=0, num_workers=num_workers)
        self._given, self._default, self.augment = dict(given), default, augment
        self._augment = augment or self.default_augment
        self.batch_size, self.num_workers = batch_size, num_workers
        self.override_preprocessing = override_preprocessing
        self.preprocessing = agreed_preprocessing(given, None, default)
        self.preprocessing.training(self._augment)  # an unknown name is refused now
        self.splits: dict[str, Any] = {}

    @property
    def notes(self) -> list[str]:
        """What was assumed about the data, one sentence each."""
        return []

    def say_notes(self) -> None:
        """Print the notes, in the first of several processes."""
        self.say(self.notes)

    def say(self, notes: Sequence[str]) -> None:
        """Print sentences about the data, in the first of several processes."""
        if self.trainer is None or self.trainer.is_global_zero:
            screen = console(soft_wrap=True)
            for note in notes:
                screen.print(f"Data: {note}.")

    def settle_preprocessing(self) -> bool:
        """Take what the trainer's network expects; whether that changed anything.

        Raises:
            ConfigError: what was given contradicts it; shows both.
        """
        network = getattr(getattr(self.trainer, "lightning_module", None), "model", None)
        expected = getattr(network, "preprocessing", None)
        before = self.preprocessing
        if isinstance(expected, Preprocessing):
            self.preprocessing = agreed_preprocessing(
                self._given, expected, self._default, override=self.override_preprocessing, where="data module"
            )
        return before != self.preprocessing

    def transform_of(self, split: str) -> Any:
        """The transform of a split's samples: with augmentation for ``"train"``."""
        return self.preprocessing.training(self._augment) if split == "train" else self.preprocessing.evaluation()

    def least_size(self, split: str) -> tuple[int, int] | None:
        """(height, width) that decoded images of a split have at least: large JPEGs may be decoded at a part.

        Of training images twice what they are resized to, which leaves each pixel within a gray level or two; all
        others are decoded whole, as everywhere.
        """
        if split != "train":
            return None
        height, width = self.preprocessing.resized(self._augment)
        return 2 * height, 2 * width

    @contextmanager
    def without_augmentation(self) -> Iterator[None]:
        """Training samples are read as validation samples are, for a while."""
        split = self.splits["train"]
        transform, split.transform = split.transform, self.transform_of("val")
        try:
            yield
        finally:
            split.transform = transform

    def _loader(self, split: str, *, shuffle: bool = False) -> DataLoader[dict[str, Any]]:
        data: Dataset[dict[str, Any]] = self.splits[split]
        kind = TrainingLoader if shuffle else DataLoader
        sampler = None if shuffle else _each_once(data, self.trainer)
        return kind(data, shuffle=shuffle, sampler=sampler, **self.loader_options(self.num_workers))

    def loader_options(self, workers: int) -> dict[str, Any]:
        """What all loaders are made with, whatever the order of their samples."""
        device = getattr(getattr(self.trainer, "strategy", None), "root_device", None)
        return {
            "batch_size": self.batch_size, "num_workers": workers, "persistent_workers": workers > 0,
            "pin_memory": device is not None and device.type == "cuda", "collate_fn": collate,
            "worker_init_fn": outlive_signals,
        }  # fmt: skip

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Training batches, shuffled."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Validation batches, in order."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Test batches, in order; those of val where there is no test split."""
        return self._loader("test" if "test" in self.splits else "val")

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        """The same as for testing."""
        return self.test_dataloader()


def _each_once(dataset: Dataset[Any], trainer: pl.Trainer | None) -> UnrepeatedDistributedSampler | None:
    """For measuring in several processes: every sample in exactly one of them, in order; None in a single process.

    Lightning's own sampler repeats some to give every process as many, which counts them twice.
    """
    if trainer is None or trainer.world_size == 1:
        return None
    return UnrepeatedDistributedSampler(
        dataset, num_replicas=trainer.world_size, rank=trainer.global_rank, shuffle=False
    )
