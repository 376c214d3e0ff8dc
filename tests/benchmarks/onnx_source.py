"""An ONNX VGG16 as a source: reading it against onnxruntime's session start, and running it against torchvision's.

    python tests/benchmarks/onnx_source.py

Floors: reading, with the comparison of logits, at most 2 times onnxruntime's session start; a forward of the network
that is read at most 1.02 times torchvision's. Ratios of medians; the runs alternate.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
import torchvision

from camify.sources import resolve


def timed(function, *args):
    start = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - start, result


def session(path):
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@torch.no_grad()
def main(repeats=7, forwards=15):
    network = torchvision.models.vgg16(weights=None).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vgg16.onnx")
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(network, torch.randn(1, 3, 224, 224), path, dynamo=False, opset_version=13)
        session(path), resolve(str(path))  # imports, the file in memory
        starts, reads = [], []
        for _ in range(repeats):
            starts.append(timed(session, path)[0])
            took, source = timed(resolve, str(path))
            reads.append(took)
        images = torch.randn(1, 3, 224, 224)
        own, theirs = [], []
        for _ in range(forwards):
            own.append(timed(source.model, images)[0])
            theirs.append(timed(network, images)[0])
    start, read = statistics.median(starts), statistics.median(reads)
    print(f"session start {start:.2f} s, reading and comparing {read:.2f} s: ratio {read / start:.2f} (floor 2)")
    mine, other = statistics.median(own), statistics.median(theirs)
    print(f"forward {mine * 1e3:.0f} ms, torchvision {other * 1e3:.0f} ms: ratio {mine / other:.3f} (floor 1.02)")


if __name__ == "__main__":
    main()
