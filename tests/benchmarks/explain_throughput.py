"""camify explain over many photographs against the loop that a user would write, and its memory.

``python tests/benchmarks/explain_throughput.py [--count 1000] [--network resnet18] [--picture png] [--photos FOLDER]``:
images a second of a plain float32 forward loop over a DataLoader with one worker, and of ``explain_files`` (maps,
pictures, boxes, figures) with one worker, in alternation on the same files: copies of those of a folder, or generated
ones of 320 px with the noise of a camera, which PNG hardly compresses. ``--memory`` prints the peak memory of runs over
100 and over ``--count`` images, each in its own process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.models import get_model

from camify.data import Preprocessing
from camify.evaluation.explain_files import ExplainOptions, explain_files
from camify.evaluation.images import image_batches, image_files
from camify.evaluation.network import explained_network
from camify.sources import Source


def photographs(folder, count, photos=None):
    if photos is not None:
        found = image_files([photos])
        files = [folder / f"{index:05d}{found[index % len(found)].suffix}" for index in range(count)]
        for index, path in enumerate(files):
            shutil.copyfile(found[index % len(found)], path)
        return files
    rng = np.random.default_rng(0)
    files = []
    for index in range(count):
        path = folder / f"{index:05d}.jpg"
        if index < 200:
            coarse = Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).resize((320, 240))
            noise = rng.normal(0, 8, (240, 320, 3))
            Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)).save(path, quality=90)
        else:
            path.write_bytes(files[index % 200].read_bytes())
        files.append(path)
    return files


def plain(model, files):
    for batch in image_batches(files, Preprocessing(), batch_size=16, workers=1):
        with torch.inference_mode():
            model(batch.images)


def ours(network, files, out, **options):
    explained = explained_network(Source.of(build(network), network), network, ("cam",))
    return explain_files(explained, files, out, ExplainOptions(**options)).memory_format


def build(network):
    torch.manual_seed(0)
    return get_model(network, weights=None).eval()


def speed(network, count, options, photos):
    with tempfile.TemporaryDirectory() as name:
        files = photographs(Path(name), count, photos)
        model = build(network)
        ratios = []
        for index in range(3):
            start = time.perf_counter()
            plain(model, files)
            loop = time.perf_counter() - start
            start = time.perf_counter()
            kind = ours(network, files, Path(name, f"out{index}"), **options)
            mine = time.perf_counter() - start
            ratios.append(loop / mine)
            rates = f"loop {count / loop:.1f} images/s, camify explain {count / mine:.1f} ({kind})"
            print(f"{network}: {rates}", flush=True)
        print(f"{network} {options}: throughput {statistics.median(ratios):.2f} of the loop's")


def peak(network, files, out, options):
    ours(network, files, out, **options)
    print(f"{len(files)} images: peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB", flush=True)


def memory(network, count, options, photos):
    with tempfile.TemporaryDirectory() as name:
        files = photographs(Path(name), count, photos)
        for number in (100, count):
            arguments = (network, files[:number], Path(name, f"out{number}"), options)
            process = multiprocessing.get_context("spawn").Process(target=peak, args=arguments)
            process.start()
            process.join()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--picture", default="png")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--photos", help="folder of photographs to use instead of generated ones")
    parser.add_argument("--memory", action="store_true")
    given = parser.parse_args()
    settings = {"picture": given.picture, "precision": given.precision}
    (memory if given.memory else speed)(given.network, given.count, settings, given.photos)
