"""camify explain over many photographs against the loop that a user would write, and its memory.

``python tests/benchmarks/explain_throughput.py [--count 1000] [--network resnet18] [--engine auto torch onnxruntime]
[--repeats 3] [--picture png] [--bound] [--photos FOLDER]``: images and processor seconds of a plain float32 forward
loop over a DataLoader with one worker, and of ``explain_files`` (maps, pictures, boxes, figures) with one worker, all
its preparations included, in alternation on the same files: copies of those of a folder, or generated ones of 320 px
with the noise of a camera, which PNG hardly compresses. ``--count 300 --repeats 1`` takes a minute. ``--bound`` also
times what cannot be left out, without preparations: to decode, to run a ResNet's features by onnxruntime, to encode
and write a picture that is drawn. ``--memory`` prints the peak memory of runs over a tenth of ``--count`` images
(10,000) and over all, each in its own process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.models import get_model

from camify.data import Preprocessing
from camify.drawing.encoding import encoded
from camify.evaluation.explain_files import ExplainOptions, explain_files
from camify.evaluation.images import image_batches, image_files
from camify.evaluation.network import explained_network
from camify.evaluation.onnx_features import ENGINES, OnnxFeatures
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


def ours(network, files, out, engine, options):
    explained = explained_network(Source.of(build(network), network), network, ("cam",))
    summary = explain_files(explained, files, out, ExplainOptions(**options), engine=engine)
    return f"{summary.engine}, {summary.memory_format}; {summary.engine_reason}"


def least(run, sheet, files, out):
    """Decode, run the features, encode and write a picture: nothing else."""
    out.mkdir()
    with ThreadPoolExecutor(2) as pool:
        written = []
        for batch in image_batches(files, Preprocessing(), batch_size=16, workers=1, picture_side=224):
            run(batch.images)
            paths = [out / f"{path.stem}.png" for path in batch.paths]
            written += [pool.submit(lambda path: path.write_bytes(encoded(sheet, "png")), path) for path in paths]
        for future in written:
            future.result()


def build(network):
    torch.manual_seed(0)
    return get_model(network, weights=None).eval()


def cost(run):
    """Wall seconds, seconds of all processors in this process and the workers that it ended, and the result."""
    before = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    start = time.perf_counter()
    result = run()
    wall = time.perf_counter() - start
    after = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    spent = sum(b.ru_utime + b.ru_stime - a.ru_utime - a.ru_stime for a, b in zip(before, after, strict=True))
    return wall, spent, result


def speed(network, count, engines, repeats, options, photos, bound):
    with tempfile.TemporaryDirectory() as name:
        files = photographs(Path(name), count, photos)
        model = build(network)
        ratios = {engine: [] for engine in [*engines, "bound"][: len(engines) + bound]}
        features, sheet = None, None
        for index in range(repeats):
            loop, spent, _ = cost(partial(plain, model, files))
            print(
                f"{network}: loop {count / loop:.1f} images/s, {1000 * spent / count:.0f} CPU ms an image", flush=True
            )
            for engine in engines:
                out = Path(name, f"out{index}{engine}")
                mine, spent, kind = cost(partial(ours, network, files, out, engine, options))
                ratios[engine].append(loop / mine)
                figures = f"{count / mine:.1f} images/s, {1000 * spent / count:.0f} CPU ms an image, {loop / mine:.2f}"
                print(f"{network}: camify explain --engine {engine} {figures} of the loop ({kind})", flush=True)
            if bound:
                if features is None:
                    with torch.no_grad():
                        features = OnnxFeatures(nn.Sequential(*list(model.children())[:-2]), torch.rand(2, 3, 224, 224))
                    sheet = Image.open(next(iter(out.rglob("*.png")))).convert("RGB")
                mine, spent, _ = cost(partial(least, features, sheet, files, Path(name, f"least{index}")))
                ratios["bound"].append(loop / mine)
                print(f"{network}: least {count / mine:.1f} images/s, {1000 * spent / count:.0f} CPU ms an image")
        for engine, of_loop in ratios.items():
            print(f"{network} {options} {engine}: throughput {statistics.median(of_loop):.2f} of the loop's")


def peak(network, files, out, engine, options):
    kind = ours(network, files, out, engine, options)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{len(files)} images: peak {resident:.0f} MiB ({kind})", flush=True)


def memory(network, count, engines, options, photos):
    with tempfile.TemporaryDirectory() as name:
        files = photographs(Path(name), count, photos)
        for engine in engines:
            for number in (count // 10, count):
                arguments = (network, files[:number], Path(name, f"out{number}{engine}"), engine, options)
                process = multiprocessing.get_context("spawn").Process(target=peak, args=arguments)
                process.start()
                process.join()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--engine", nargs="+", default=["auto"], choices=ENGINES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--picture", default="png")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--photos", help="folder of photographs to use instead of generated ones")
    parser.add_argument("--bound", action="store_true")
    parser.add_argument("--memory", action="store_true")
    given = parser.parse_args()
    settings = {"picture": given.picture, "precision": given.precision}
    if given.memory:
        memory(given.network, given.count or 10_000, given.engine, settings, given.photos)
    else:
        speed(given.network, given.count or 1000, given.engine, given.repeats, settings, given.photos, given.bound)
