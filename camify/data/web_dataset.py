"""Shards of tar files as WebDataset has them, read as streams: nothing is listed, unpacked or kept."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..errors import ConfigError, DataError
from ..files import read_text
from ..image_files import EncodedImage, image_suffixes, read_reduced
from ..preprocessing import Preprocessing
from .boxes_csv import box_problem
from .counts import require_counts
from .loading import TrainingLoader
from .module import PreparedDataModule
from .samples import finish

__all__ = ["ShardImages", "WebDatasetDataModule"]

_LARGEST = 2**28  # bytes of a member: more than any image that is read
_LABELS = ("label", "labels", "cls", "class")
_LOOKED_AT = 16  # samples, to see whether there are boxes and one label or several


class ShardImages(IterableDataset[dict[str, Any]]):
    """The samples of tar files, one after the other; each process and loading process reads its own files.

    Files whose names are alike up to the first dot are one sample: an image (``.jpg``, ``.png``, ...), and its label in
    ``.cls`` (a number or a name) or ``.json``: ``{"label": "cat", "boxes": [[x0, y0, x1, y1], ...]}``, in pixels of the
    upright image, x1 and y1 exclusive; ``"labels"`` with a list of several. ``"box_labels"``
    may name the class of each box; those of other classes than the image's are left out.

    Args:
        shards: the files.
        class_names: in order; labels that are numbers are places in it.
        transform: of the samples.
        bits: see ``Preprocessing``.
        shuffled: how many samples wait for their turn, drawn; 0: in order, every sample once.
        rank: number of this process.
        world_size: of how many.
        batches: with ``shuffled``: of how many samples each an epoch has, beginning anew where they are over.
        batch_size: samples of such a batch.
    """

    def __init__(
        self,
        shards: Sequence[Path],
        class_names: Sequence[str],
        transform: v2.Transform,
        bits: int | None = None,
        *,
        shuffled: int = 0,
        rank: int = 0,
        world_size: int = 1,
        batches: int | None = None,
        batch_size: int = 1,
    ) -> None:
        self.shards = list(shards)[rank::world_size]
        self.class_names, self.transform, self.bits = list(class_names), transform, bits
        self.shuffled, self.batches, self.batch_size = shuffled, batches, batch_size
        self.least_size: tuple[int, int] | None = None
        self.has_boxes = True  # not known
        self.epoch_seed = torch.zeros((), dtype=torch.int64)
        self._numbers = {name: number for number, name in enumerate(class_names)}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The samples of an epoch."""
        worker = get_worker_info()
        number, total = (0, 1) if worker is None else (worker.id, worker.num_workers)
        shards = self.shards[number::total]
        if not self.shuffled:
            for shard in shards:
                yield from map(self.sample, samples_of(shard))
            return
        seed = int(self.epoch_seed) if worker is not None else int(torch.randint(2**62, ()))
        random = np.random.default_rng((seed, number))
        if worker is not None:
            torch.manual_seed(int(random.integers(2**62)))
        most, samples = None, _once(shards, random)
        if self.batches is not None:
            most = (self.batches // total + (number < self.batches % total)) * self.batch_size
            samples = _endless(shards, random)
        drawn = _shuffled(samples, self.shuffled, random)
        for done, raw in enumerate(drawn):
            if done == most:
                return
            yield self.sample(raw)

    def sample(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """A sample of the files of one.

        Raises:
            DataError: something of it cannot be right; names the shard, its key and the field.
        """
        place = f"{raw['__url__']}: {raw['__key__']}"
        suffix = next((name for name in raw if f".{name.rsplit('.', 1)[-1]}" in image_suffixes()), None)
        if suffix is None:
            raise DataError(f"{place}: no image. Its files: {', '.join(key for key in raw if key[:2] != '__')}.")
        known = _facts(raw, place)
        image, _, size = read_reduced(EncodedImage(raw[suffix], f"{place}.{suffix}"), self.bits, least=self.least_size)
        label = self._label(known, place)
        sample: dict[str, Any] = {"image": image, "label": label, "path": place, "original_size": size}
        if "boxes" in known:
            height, width = image.shape[-2:]
            scale = torch.tensor([width / size[1], height / size[0]] * 2, dtype=torch.float32)
            boxes = self._own_boxes(known, size, place) * scale
            sample["boxes"] = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))
        return finish(self.transform(sample))

    def _own_boxes(self, known: Mapping[str, Any], size: tuple[int, int], place: str) -> torch.Tensor:
        """The boxes (n, 4); where their labels are known those of the image's class."""
        boxes, labels = _boxes(known["boxes"], size, place), known.get("box_labels")
        if labels is None:
            return boxes
        if not isinstance(labels, list) or len(labels) != len(boxes):
            raise DataError(f"{place}.json: box_labels must be a list of {len(boxes)} labels, one for each of boxes.")
        label = self._label(known, place)
        numbers = [self._numbers.get(str(one), -1) for one in labels]
        own = [number == label if isinstance(label, int) else number >= 0 for number in numbers]
        return boxes[torch.tensor(own, dtype=torch.bool)]

    def _label(self, known: Mapping[str, Any], place: str) -> int | torch.Tensor:
        key = next((name for name in _LABELS if name in known), None)
        if key is None:
            raise DataError(f"{place}: no label. It stands in .cls, or in .json as label or labels.")
        value = known[key]
        if not isinstance(value, list):
            return self._number(value, place)
        label = torch.zeros(len(self.class_names), dtype=torch.float32)
        label[[self._number(one, place) for one in value]] = 1
        return label

    def _number(self, label: Any, place: str) -> int:
        number = self._numbers.get(str(label))
        if number is None and isinstance(label, int | str) and str(label).isdecimal():
            number = int(label)
        if number is None or number >= len(self.class_names):
            listed = ", ".join(self.class_names[:5]) + (", ..." if len(self.class_names) > 5 else "")
            raise DataError(
                f"{place}: label {str(label)[:40]!r} is none of the {len(self.class_names)} classes ({listed})."
            )
        return number


class SizedShardImages(ShardImages):
    """Shards of which an epoch has a settled number of samples."""

    def __len__(self) -> int:
        return (self.batches or 0) * self.batch_size


# ---------------------------------------------------------------- files


def samples_of(shard: Path) -> Iterator[dict[str, Any]]:
    """The files of every sample of a tar file by their ends, with ``__key__`` and ``__url__``; nothing is unpacked.

    Raises:
        DataError: the file cannot be read; says after which sample.
    """
    from webdataset.tariterators import group_by_keys

    last = "its beginning"
    try:
        for sample in group_by_keys(_members(shard)):
            last = str(sample["__key__"])
            yield sample
    except DataError:
        raise
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise DataError(
            f"{shard}: cannot be read as a tar file after {last} ({str(error) or type(error).__name__})."
        ) from error


def _members(shard: Path) -> Iterator[dict[str, Any]]:
    """Names and contents of the files of a tar file, in order, as webdataset's own reader gives them.

    That one also opens what is no file: ``pipe:`` starts a program.
    """
    with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r|*") as stream:
        for member in stream:
            if not member.isfile() or member.name.rsplit("/", 1)[-1].startswith("."):
                continue
            if member.size > _LARGEST:
                raise DataError(f"{shard}: {member.name}: {member.size:,} bytes; at most {_LARGEST:,} are read.")
            content = stream.extractfile(member)
            yield {"fname": member.name, "data": b"" if content is None else content.read(), "__url__": str(shard)}
            stream.members = []  # type: ignore[attr-defined]  # else it keeps all


def _facts(raw: Mapping[str, Any], place: str) -> dict[str, Any]:
    """What ``.json`` and ``.cls`` say."""
    known: dict[str, Any] = {}
    if "json" in raw:
        try:
            known = json.loads(raw["json"])
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}.json: cannot be read ({error}).") from error
        if not isinstance(known, dict):
            raise DataError(f"{place}.json: holds a {type(known).__name__}; an object with label is needed.")
    if "cls" in raw:
        try:
            known = {**known, "label": raw["cls"].decode("utf-8").strip()}
        except UnicodeDecodeError as error:
            raise DataError(f"{place}.cls: cannot be read as UTF-8.") from error
    return known


def _boxes(given: Any, size: tuple[int, int], place: str) -> torch.Tensor:
    try:
        boxes = [tuple(float(edge) for edge in box) for box in given]
        problems = [box_problem(box, np.array(size[::-1])) for box in boxes]  # type: ignore[arg-type]  # of four
    except (TypeError, ValueError) as error:
        raise DataError(f"{place}.json: boxes must be lists of four numbers x0, y0, x1, y1.") from error
    problem = next((problem for problem in problems if problem is not None), None)
    if problem is not None:
        raise DataError(f"{place}.json: {problem}")
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def _once(shards: Sequence[Path], random: np.random.Generator) -> Iterator[dict[str, Any]]:
    for number in random.permutation(len(shards)):
        yield from samples_of(shards[number])


def _endless(shards: Sequence[Path], random: np.random.Generator) -> Iterator[dict[str, Any]]:
    for _ in count():
        any_sample = False
        for sample in _once(shards, random):
            any_sample = True
            yield sample
        if not any_sample:
            return


def _shuffled(samples: Iterator[dict[str, Any]], size: int, random: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Each sample takes the place of one that is drawn among those that wait."""
    waiting: list[dict[str, Any]] = []
    for sample in samples:
        if len(waiting) < size:
            waiting.append(sample)
            continue
        place = int(random.integers(size))
        yield waiting[place]
        waiting[place] = sample
    yield from (waiting[place] for place in random.permutation(len(waiting)))


# ---------------------------------------------------------------- the data module


class WebDatasetDataModule(PreparedDataModule):
    """Shards of WebDataset, read as streams; extra ``webdataset``.

    Nothing is listed or checked before training starts; a sample that cannot be read stops it by name. What needs to
    look at single images again and again (watched images, mosaics, the choice of boxes) takes the first of the
    validation shards.

    Args:
        train: shards of training images: a file, ``"train-{000..127}.tar"`` or ``"train-*.tar"``, or several of these.
        val: likewise, of validation images.
        class_names: in order, or a text file with one a line; labels that are numbers are places in it, from 0.
        test: of test images.
        samples_per_epoch: training samples of an epoch; needed with several processes. None: all.
        shuffle: samples that wait, of which the next is drawn; files are drawn as well.
        image_size: this and all further arguments are those of ``ImageFolderDataModule``.

    Raises:
        ConfigError: the library is missing, or several processes do not know how long an epoch is.
        DataError: a shard is missing, or its first samples cannot be right.
    """

    def __init__(
        self,
        train: str | list[str],
        val: str | list[str],
        class_names: str | list[str],
        test: str | list[str] | None = None,
        samples_per_epoch: int | None = None,
        shuffle: int = 1000,
        image_size: int | tuple[int, int] | None = None,
        batch_size: int = 32,
        num_workers: int = 2,
        augment: str | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        override_preprocessing: bool = False,
        bits: int | None = None,
    ) -> None:
        super().__init__(
            {"size": image_size, "mean": mean, "std": std, "bits": bits}, Preprocessing(), augment=augment,
            batch_size=batch_size, num_workers=num_workers, override_preprocessing=override_preprocessing,
        )  # fmt: skip
        self.save_hyperparameters(logger=False)  # a resumed run must have the same
        counts = {"shuffle": shuffle, "samples_per_epoch": 1 if samples_per_epoch is None else samples_per_epoch}
        require_counts(least=1, **counts)
        self.shuffle, self.samples_per_epoch = shuffle, samples_per_epoch
        given = {"train": train, "val": val, **({} if test is None else {"test": test})}
        self.shards = {split: shard_files(patterns) for split, patterns in given.items()}
        self.class_names = _class_names(class_names)
        self.splits: dict[str, ShardImages] = {}
        first = self._first("train")
        self.task = "multilabel" if isinstance(first[0]["label"], torch.Tensor) else None
        self.has_boxes = {split: any("boxes" in sample for sample in self._first(split)) for split in self.shards}

    @property
    def notes(self) -> list[str]:
        """What was assumed about the shards."""
        return [
            f"{split}: {len(shards)} shards, read as a stream; images are checked as they come, boxes"
            f" {'' if self.has_boxes[split] else 'are not '}expected since the first samples have"
            f" {'some' if self.has_boxes[split] else 'none'}"
            for split, shards in self.shards.items()
        ]

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002 - every stage needs the same
        """Take the network's preprocessing, and settle who reads which shard.

        Raises:
            ConfigError: there are fewer shards than processes, or these do not know how long an epoch is.
        """
        self.settle_preprocessing()
        rank, world_size = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        say = not self.splits
        for split, shards in self.shards.items():
            if len(shards) < world_size:
                raise ConfigError(
                    f"{split}: {len(shards)} shards for {world_size} processes. Each needs one of its own."
                )
            training = split == "train"
            batches = None
            if training and self.samples_per_epoch is not None:
                batches = max(1, self.samples_per_epoch // (self.batch_size * world_size))
            elif training and world_size > 1:
                raise ConfigError(
                    "samples_per_epoch is needed with several processes: shards hold different numbers of images, and"
                    " all processes must make as many steps."
                )
            kind = ShardImages if batches is None else SizedShardImages
            images = kind(
                shards, self.class_names, self.transform_of(split), self.preprocessing.bits,
                shuffled=self.shuffle if training else 0, rank=rank, world_size=world_size, batches=batches,
                batch_size=self.batch_size,
            )  # fmt: skip
            images.has_boxes, images.least_size = self.has_boxes[split], self.least_size(split)
            self.splits[split] = images
        if say:
            self.say_notes()

    def fingerprint(self) -> dict[str, str]:
        """What tells whether the data is still the same: names and sizes of the shards."""
        return {
            split: ", ".join([f"{len(shards)} shards", f"{sum(shard.stat().st_size for shard in shards)} bytes"])
            for split, shards in self.shards.items()
        }

    def _first(self, split: str) -> list[dict[str, Any]]:
        """The first samples of a split.

        Raises:
            DataError: there are none, or they cannot be right.
        """
        images = ShardImages(self.shards[split], self.class_names, self.transform_of("val"), self.preprocessing.bits)
        samples = [sample for sample, _ in zip(images, range(_LOOKED_AT), strict=False)]
        if not samples:
            raise DataError(f"{self.shards[split][0]}: holds no samples.")
        return samples

    def _loader(self, split: str, *, shuffle: bool = False) -> DataLoader[dict[str, Any]]:
        images: Any = self.splits[split]
        kind = TrainingLoader if shuffle else DataLoader
        return kind(images, **self.loader_options(min(self.num_workers, len(images.shards))))


def shard_files(patterns: str | Sequence[str]) -> list[Path]:
    """The files of patterns, in order: ``{000..127}`` stands for numbers, ``*`` for anything.

    Raises:
        ConfigError: a pattern is an address or a command, which are not read, or webdataset is missing.
        DataError: a file is missing.
    """
    try:
        import webdataset  # noqa: F401 - said now
        from braceexpand import braceexpand
    except ImportError as error:
        raise ConfigError("WebDatasetDataModule needs webdataset. Run: pip install 'camify[webdataset]'.") from error
    files = list[Path]()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if ":" in pattern.split("/", 1)[0] and not Path(pattern).exists():
            raise ConfigError(f"{pattern[:80]!r}: only files are read, no addresses and no commands.")
        try:
            named = list(braceexpand(pattern))
        except ValueError as error:
            raise ConfigError(f"{pattern[:80]!r}: {error}.") from error
        for name in named:
            path = Path(name)
            matching = sorted(path.parent.glob(path.name)) if any(mark in path.name for mark in "*?[") else [path]
            files += matching
            missing = [one for one in matching if not one.is_file()] or ([path] if not matching else [])
            if missing:
                raise DataError(f"{missing[0]}: no such file.")
    return files


def _class_names(given: str | Sequence[str]) -> list[str]:
    if isinstance(given, str):
        names = [line.strip() for line in read_text(Path(given)).splitlines() if line.strip()]
        if not names:
            raise DataError(f"{given}: holds no names of classes. Write one a line, in order.")
        return names
    return list(given)
