"""Image files as batches: decoded in worker processes while the network runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..errors import DataError
from ..preprocessing import Preprocessing, read_image

__all__ = ["Batch", "image_batches", "image_files"]


def image_files(given: Sequence[str | Path]) -> list[Path]:
    """The image files among files and folders, each once, folders in order of name.

    Raises:
        DataError: there is no such file or folder, or a folder holds no image.
    """
    files: list[Path] = []
    for name in given:
        path = Path(name)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMG_EXTENSIONS and p.is_file())
            if not found:
                raise DataError(f"{path}: holds no images ({', '.join(IMG_EXTENSIONS)}).")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(f"{path}: no such file or folder.")
    return list(dict.fromkeys(files))


@dataclass(frozen=True)
class Batch:
    """Images that could be read, with the sizes (height, width) of their files; and those that could not, and why."""

    paths: list[Path]
    images: Tensor
    sizes: list[tuple[int, int]]
    unreadable: dict[Path, str]


class _Images(Dataset[tuple[Path, Tensor | None, tuple[int, int], str]]):
    def __init__(self, files: Sequence[Path], preprocessing: Preprocessing) -> None:
        self.files, self.transform = files, preprocessing.evaluation()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Path, Tensor | None, tuple[int, int], str]:
        path = self.files[index]
        try:
            image = read_image(path)
        except DataError as error:
            return path, None, (0, 0), str(error)
        size = (image.shape[-2], image.shape[-1])
        prepared: Tensor = self.transform(image)
        return path, prepared.as_subclass(Tensor), size, ""


def _collate(items: Sequence[tuple[Path, Tensor | None, tuple[int, int], str]]) -> Batch:
    good = [(path, image, size) for path, image, size, _ in items if image is not None]
    images = torch.stack([image for _, image, _ in good]) if good else torch.zeros(0)
    unreadable = {path: reason for path, image, _, reason in items if image is None}
    return Batch([path for path, _, _ in good], images, [size for *_, size in good], unreadable)


def image_batches(
    files: Sequence[Path], preprocessing: Preprocessing, *, batch_size: int, workers: int
) -> DataLoader[Batch]:
    """Batches of image files in order; a file that cannot be read is named in its batch."""
    loader: DataLoader[Batch] = DataLoader(
        _Images(files, preprocessing),  # type: ignore[arg-type]  # of items; the loader is of batches
        batch_size=batch_size,
        num_workers=min(workers, len(files) // batch_size),
        collate_fn=_collate,
    )
    return loader
