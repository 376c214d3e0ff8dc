"""The labelled images that are measured on: one split of an image folder, its classes mapped to the network's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..data.folder import LabelledFile, LabelledImages, class_folders, image_paths, own_boxes
from ..errors import ConfigError, DataError
from ..preprocessing import Preprocessing

__all__ = ["Labelled", "find_labelled"]

_SPLIT = "val"


@dataclass(frozen=True)
class Labelled:
    """Images with the network's number of their class.

    Attributes:
        folder: that holds the class folders.
        images: in order of class and name.
        classes: the network's number of every class of the folder, by name.
        has_boxes: whether ``boxes.csv`` knows any of the images.
        available: number of images in the folder.
        notes: what has to be said about them.
    """

    folder: Path
    images: LabelledImages
    classes: dict[str, int]
    has_boxes: bool
    available: int
    notes: tuple[str, ...] = ()


def find_labelled(
    root: Path,
    split: str | None,
    preprocessing: Preprocessing,
    class_names: Sequence[str] | None,
    class_count: int,
    *,
    limit: int | None = None,
    seed: int = 0,
) -> Labelled:
    """The images of ``root/SPLIT/CLASS/*``, or ``root/CLASS/*`` without splits, with boxes of ``root/boxes.csv``.

    Args:
        root: the data's folder.
        split: None takes ``val``, or ``root`` itself where it has no folder of that name.
        preprocessing: how an image becomes an input.
        class_names: the network's, in order; None where nothing names them.
        class_count: how many classes the network has.
        limit: measure on so many images, drawn with the seed; None takes all.
        seed: of the draw.

    Raises:
        DataError: a folder is missing or empty, an image cannot be read, or boxes cannot be right.
        ConfigError: a class of the data is none of the network's, or the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit} must be at least 1.")
    folder = root / (split or _SPLIT)
    if split is None and not folder.is_dir():
        folder = root
    names = class_folders(folder)
    classes, notes = _class_numbers(names, class_names, class_count, folder)
    files = [(path, name) for name in names for path in image_paths(folder / name)]
    available = len(files)
    if limit is not None and limit < available:
        drawn = torch.randperm(available, generator=torch.Generator().manual_seed(seed))[:limit]
        files = [files[index] for index in sorted(drawn.tolist())]
    boxes = own_boxes(root, files, decode=True, others=True)
    if boxes is None:
        missing = "knows none of these images" if (root / "boxes.csv").is_file() else "does not exist"
        notes.append(f"no boxes: {root / 'boxes.csv'} {missing}")
    records = [LabelledFile(path, classes[name], None if boxes is None else boxes[path]) for path, name in files]
    images = LabelledImages(records, preprocessing.evaluation())
    return Labelled(folder, images, classes, boxes is not None, available, tuple(notes))


def _class_numbers(
    folders: Sequence[str], names: Sequence[str] | None, count: int, folder: Path
) -> tuple[dict[str, int], list[str]]:
    """The network's number of every class folder, and what was assumed."""
    if names is None:
        if len(folders) != count:
            raise ConfigError(
                f"{folder}: has {len(folders)} classes, the network {count}, and nothing names the network's."
                " Give a checkpoint folder with class names, or a folder of every class in the network's order."
            )
        assumed = "the network names no classes: those of the folder in alphabetical order were assumed to be its own"
        return {name: index for index, name in enumerate(folders)}, [assumed]
    unknown = [name for name in folders if name not in names]
    if unknown:
        listed = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise ConfigError(
            f"{folder}: {listed}: no class of the network has that name. Its classes: {', '.join(names[:5])}"
            f"{', ...' if len(names) > 5 else ''}. Rename the folders, or name the split with --split."
        )
    twice = sorted({name for name in folders if list(names).count(name) > 1})
    if twice:
        raise DataError(f"{folder / twice[0]}: the network has several classes of that name. Name them apart.")
    return {name: list(names).index(name) for name in folders}, []
