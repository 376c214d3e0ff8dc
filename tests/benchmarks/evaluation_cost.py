"""What ``camify evaluate`` costs beside the forwards that it needs: ``python tests/benchmarks/evaluation_cost.py``.

MobileNetV2 with random weights at 224 px, generated pictures with boxes, three methods from one forward. Each pass
is timed in turns with plain forwards of as many images as it must run; the intervals by number of images. Processor
time of one thread, so that others on the machine matter less.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import torch
import torchvision
from PIL import Image

import camify
from camify.conversion import Source
from camify.data.shape_renderer import CLASS_NAMES, render_scene
from camify.evaluation.engine import STEPS, THRESHOLDS
from camify.evaluation.intervals import localization_figures
from camify.evaluation.labeled_data import find_labeled
from camify.evaluation.network import explained_network
from camify.evaluation.passes import GRID, Run, measure_all, measure_mosaics, measure_sample
from camify.metrics.functional import center_boxes, mosaic_plan

METHODS = ("cam", "gradcam", "reciprocam")
COUNT, SAMPLE, BATCH = 24, 1, 8


def write_pictures(root: Path) -> None:
    """Scenes of the generated shapes, as many of each class."""
    lines = ["image,x0,y0,x1,y1,label"]
    for number in range(COUNT):
        name = CLASS_NAMES[number % len(CLASS_NAMES)]
        scene = render_scene(number % len(CLASS_NAMES), (1, number), 224)
        path = root / "val" / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.image).save(path)
        lines.append(f"val/{name}/{path.name},{','.join(map(str, scene.box))},{name}")
    (root / "boxes.csv").write_text("\n".join(lines))


def seconds(*tasks: Callable[[], object], rounds: int = 2) -> list[float]:
    """Medians of tasks taken in turns."""
    taken: list[list[float]] = [[] for _ in tasks]
    for _ in range(rounds):
        for task, own in zip(tasks, taken, strict=True):
            start = time.process_time()
            task()
            own.append(time.process_time() - start)
    return [statistics.median(own) for own in taken]


def passes() -> None:
    """Each pass as a ratio to the forwards that it needs."""
    model = camify.convert(torchvision.models.mobilenet_v2(), head="direct", num_classes=len(CLASS_NAMES)).eval()
    measured = explained_network(Source(model, "mobilenet_v2", list(CLASS_NAMES)), "mobilenet_v2", METHODS)
    plain = torch.rand(BATCH, 3, 224, 224)

    def forwards(images: int) -> Callable[[], None]:
        @torch.inference_mode()
        def run() -> None:
            for _ in range(images // BATCH):
                model(plain)

        return run

    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder))
        found = find_labeled(Path(folder), None, measured.preprocessing, measured.classes, measured.class_count, seed=0)
        run = Run(found.images, BATCH, 0, 0, None)
        plan = mosaic_plan(torch.tensor(found.images.labels), GRID, 0)
        # A mosaic has as many pixels as its images. Closely: image, mirrored, moved; of each map a mask and two curves.
        close = SAMPLE * (3 + (len(METHODS) + 2) * (1 + 2 * (STEPS + 1)))
        measure_all(measured, run)
        for label, task, images in (
            (f"every image, {len(METHODS)} methods, boxes", lambda: measure_all(measured, run), COUNT),
            (f"{len(plan)} mosaics", lambda: measure_mosaics(measured, run, plan), plan.numel()),
            (f"{SAMPLE} images closely", lambda: measure_sample(measured, run, range(SAMPLE)), close),
        ):
            needed, whole = seconds(forwards(-(-images // BATCH) * BATCH), task)
            print(f"{label:45} {images:5} forwards needed, {whole:6.1f} s: {whole / needed:.2f} of them", flush=True)


def intervals() -> None:
    """The figures of one method with their intervals, by number of images."""
    for count in (1_000, 4_000, 16_000):
        rows = [
            {
                "all": torch.randint(0, 4, (count, width), dtype=torch.uint8),
                "largest": torch.randint(0, 4, (count, width), dtype=torch.uint8),
                "pointing_15px": torch.rand(count),
                "energy": torch.rand(count),
            }
            for width in (THRESHOLDS, len(center_boxes(1, 1)))
        ]
        start = time.process_time()
        localization_figures(*rows, torch.zeros(count), torch.ones(count, dtype=torch.bool))
        print(
            f"intervals of a method's {count:6} images: {1e3 * (time.process_time() - start) / count:.2f} ms an image"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    passes()
    intervals()
