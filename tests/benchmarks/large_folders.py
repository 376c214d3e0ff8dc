"""What folders of 10,000, 100,000 and 1,000,000 images cost before the first step: seconds and bytes an image.

    python tests/benchmarks/large_folders.py [--counts 10000 100000 1000000]

Tiny PNG files, linked to one another by the filesystem, in 1,000 class folders, with a box for every tenth. Each row is
a process of its own: listing, the first start (every image decoded), a second start (all are remembered), and how much
memory the data module then holds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 1000
LINKS = 20_000  # to one file, of what filesystems allow


def grow(root: Path, count: int) -> None:
    """Make a folder of so many images, nine in ten for training."""
    pixels = np.random.default_rng(0)
    lines = ["image,x0,y0,x1,y1,label"]
    root.mkdir()
    original = root / "original.png"
    for number in range(count):
        split = "val" if number % 10 == 9 else "train"
        folder = root / split / f"n{number // 10 % CLASSES:08d}"
        if number % LINKS == 0:
            original = root / f"{number}.png"
            Image.fromarray(pixels.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(original)
        folder.mkdir(parents=True, exist_ok=True)
        os.link(original, folder / f"ILSVRC2012_{split}_{number:08d}.png")
        if number % 10 == 0:
            lines.append(f"{split}/{folder.name}/ILSVRC2012_{split}_{number:08d}.png,1,1,5,5,{folder.name}")
    (root / "boxes.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def measure(root: Path) -> dict[str, float]:
    """Of this process, which has done nothing before."""
    from camify.data import ImageFolderDataModule

    def memory() -> int:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
        return pages * resource.getpagesize()

    data = ImageFolderDataModule(str(root), image_size=32, num_workers=2)
    before, start = memory(), time.perf_counter()
    count = sum(len(one.files) for one in data.listed.values())
    listed, listed_memory = time.perf_counter(), memory()
    data.setup("fit")
    ready = time.perf_counter()
    data.fingerprint()
    end = time.perf_counter()
    return {
        "images": count, "list s": listed - start, "set up s": ready - listed, "fingerprint s": end - ready,
        "listed bytes each": (listed_memory - before) / count, "held bytes each": (memory() - before) / count,
        "peak bytes each": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / count,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", default=None)
    options = parser.parse_args()
    if options.folder is not None:
        print(json.dumps(measure(Path(options.folder))))
        return
    for count in options.counts:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "data"
            grow(root, count)
            environment = {**os.environ, "CAMIFY_CACHE": str(Path(folder) / "cache")}
            for start in ("first", "second"):
                command = [sys.executable, __file__, "--folder", str(root)]
                done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
                row = json.loads(done.stdout.splitlines()[-1])
                print(f"{start} start: " + ", ".join(f"{key} {value:,.1f}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
