"""How fast photographs of 12 megapixels are trained on: images a second with two workers, decoded whole and at a part.

    python tests/benchmarks/large_photographs.py [--images 96] [--workers 2]

JPEG files of 4000 x 3000 pixels, as cameras write them, drawn here. A small network trains on them at 224 pixels, so
that loading is what takes the time. Both ways take turns; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import nn

from camify.data import ImageFolderDataModule

WIDTH, HEIGHT = 4000, 3000
ROUNDS = 3


def grow(root: Path, count: int) -> None:
    """Photographs of noise at several scales: files of about 2 MB, as of cameras."""
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (60, 80, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT), 3)
        fine = random.normal(0, 9, (HEIGHT, WIDTH, 1)) * (1, 1, 1)
        picture = Image.fromarray((np.asarray(coarse) + fine).clip(0, 255).astype(np.uint8))
        for split in ("train", "val") if number < 2 else ("train",):
            path = root / split / f"class_{number % 2}" / f"{number:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.filter(ImageFilter.GaussianBlur(1)).save(path, quality=90)


def seconds(data: ImageFolderDataModule, least_size: tuple[int, int] | None) -> float:
    """One epoch of a small network."""
    data.splits["train"].least_size = least_size
    network = nn.Sequential(
        nn.Conv2d(3, 8, 7, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    start = time.perf_counter()
    for batch in data.train_dataloader():
        loss = nn.functional.cross_entropy(network(batch["image"]), batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        grow(Path(folder), options.images)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.jpg")) / options.images / 1e6
        data = ImageFolderDataModule(folder, num_workers=options.workers, batch_size=16, check="never")
        data.setup()
        least = data.splits["train"].least_size
        rows = [(seconds(data, None), seconds(data, least)) for _ in range(ROUNDS)]
    whole, part = (options.images / median(row[place] for row in rows) for place in (0, 1))
    print(f"{WIDTH} x {HEIGHT} px, {size:.1f} MB each, {options.workers} workers, images a second:")
    print(f"decoded whole {whole:.1f}, at a part {part:.1f}: {part / whole:.2f} times as fast")


if __name__ == "__main__":
    main()
