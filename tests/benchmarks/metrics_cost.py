"""What the metrics cost, beside the reference's way in the same run: ``python tests/benchmarks/metrics_cost.py``.

The reference's algorithms are written down again here: clovaai/wsolevaluation itself cannot run on today's NumPy.
Times are the least of interleaved runs in milliseconds an image of 224 x 224.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import cv2
import numpy as np
import torch
import torchvision

from camify.metrics import MaxBoxAccuracy, PixelAveragePrecision
from camify.metrics.functional import (
    best_iou_by_threshold,
    deletion_curves,
    insertion_curves,
    pixel_histograms,
)

SIZE = 224
TRUTH = np.array([[30, 40, 150, 170], [5, 5, 60, 60]])


def made(kind: str, seed: int) -> np.ndarray:
    """A map: noise of some cells, or three blobs as a network's map has, upsampled and normalized."""
    rng = np.random.default_rng(seed)
    cells = SIZE if kind == "noise" else int(kind.split()[0])
    heat = rng.random((cells, cells))
    if "CAM" in kind:
        y, x = np.mgrid[:cells, :cells]
        heat = 0.05 * rng.standard_normal((cells, cells))
        for _ in range(3):
            row, column, spread = *rng.uniform(0, cells, 2), rng.uniform(1, 3)
            heat += rng.uniform(0.3, 1) * np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * spread**2))
        heat = np.maximum(heat, 0)
    way = cv2.INTER_LINEAR if "bilinear" in kind else cv2.INTER_CUBIC
    heat = cv2.resize(heat.astype(np.float32), (SIZE, SIZE), interpolation=way)
    heat -= heat.min()
    return (heat / heat.max()).clip(0, 1)


def reference_ious(heat: np.ndarray, thresholds: list[float], every: bool, lean: bool = False) -> list[float]:
    """Each threshold on its own: cut, contours, boxes; then all IoUs at once.

    The reference looks for the best ground truth of all boxes anew at every threshold; ``lean`` does so once.
    """
    bits = np.expand_dims((heat.astype(np.float64) * 255).astype(np.uint8), 2)
    height, width = heat.shape
    boxes, counts = [], []
    for threshold in thresholds:
        _, above = cv2.threshold(bits, int(threshold * np.max(bits)), 255, cv2.THRESH_BINARY)
        contours = cv2.findContours(above, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
        contours = contours if every else [max(contours, key=cv2.contourArea)]
        for contour in contours:
            x, y, wide, high = cv2.boundingRect(contour)
            boxes.append([x, y, min(x + wide, width - 1), min(y + high, height - 1)])
        counts.append(len(contours))
    a, b = np.array(boxes)[:, None], TRUTH[None]
    shared = np.maximum(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + 1, 0).prod(-1)
    areas = [(one[..., 2:] - one[..., :2] + 1).prod(-1) for one in (a, b)]
    ious = shared / (areas[0] + areas[1] - shared)
    best, found, first = ious.max(1), [], 0
    for count in counts:
        found.append(max((best if lean else ious.max(1))[first : first + count]))
        first += count
    return found


def fastest(*tasks: Callable[[], object], rounds: int = 7) -> list[float]:
    """Milliseconds of each task, taken in turns: the least of all rounds, which other programs delay least."""
    durations: list[list[float]] = [[] for _ in tasks]
    for _ in range(rounds):
        for task, own in zip(tasks, durations, strict=True):
            start = time.perf_counter()
            task()
            own.append(1e3 * (time.perf_counter() - start))
    return [min(own) for own in durations]


def boxes() -> None:
    """MaxBoxAccuracy: the reference and parity at 1,000 thresholds, the default at 100."""
    thresholds = list(np.arange(0, 1, 0.001))
    truth = torch.from_numpy(TRUTH)
    print("MaxBoxAccuracy, ms an image    contours  reference   (lean)   parity   ratio   same curve   default (100)")
    for kind in (
        "7 bicubic",
        "14 bicubic",
        "14 CAM-like bicubic",
        "14 CAM-like bilinear",
        "7 CAM-like bilinear",
        "noise",
    ):
        heats = [made(kind, seed) for seed in range(8 if kind != "noise" else 2)]
        maps, truths = torch.from_numpy(np.stack(heats)), [truth] * len(heats)
        for every in (True, False):

            def reference(every: bool = every, heats: list = heats) -> list:
                return [reference_ious(heat, thresholds, every) for heat in heats]

            def lean(every: bool = every, heats: list = heats) -> list:
                return [reference_ious(heat, thresholds, every, lean=True) for heat in heats]

            def parity(every: bool = every, maps: torch.Tensor = maps, truths: list = truths) -> torch.Tensor:
                return best_iou_by_threshold(maps, truths, 1000, largest=not every, parity="wsolevaluation")

            def default(every: bool = every, maps: torch.Tensor = maps, truths: list = truths) -> torch.Tensor:
                return best_iou_by_threshold(maps, truths, largest=not every)

            label = f"{kind:30} {'all' if every else 'largest':8}"
            if kind == "noise":  # the reference would take minutes
                ours, clean = (one / len(heats) for one in fastest(parity, default, rounds=3))
                print(f"{label} {'-':>10} {'-':>8} {ours:8.2f} {'-':>8} {'-':>12} {clean:8.2f}")
                continue
            theirs, best, ours, clean = (one / len(heats) for one in fastest(reference, lean, parity, default))
            same = all(np.array_equal(a, b.numpy()) for a, b in zip(reference(), parity(), strict=True))
            print(f"{label} {theirs:10.1f} {best:8.1f} {ours:8.2f} {theirs / ours:7.1f}x {same!s:>12} {clean:8.2f}")


def updates() -> None:
    """A whole update, baselines included."""
    heats = torch.from_numpy(np.stack([made("14 CAM-like bilinear", seed) for seed in range(16)]))
    truths, masks = [torch.from_numpy(TRUTH[:1])] * 16, torch.zeros(16, SIZE, SIZE, dtype=torch.bool)
    masks[:, 40:170, 30:150] = True
    box, one, pixel = MaxBoxAccuracy(), MaxBoxAccuracy(version=1), PixelAveragePrecision()
    tasks = (lambda: box.update(heats, truths), lambda: one.update(heats, truths), lambda: pixel.update(heats, masks))
    both = [ms / 16 for ms in fastest(*tasks)]
    print(
        f"\nupdate, ms an image: MaxBoxAccuracy V2 {both[0]:.2f}, V1 {both[1]:.2f}, PixelAveragePrecision {both[2]:.2f}"
    )


def pixels() -> None:
    """PxAP: histograms of one image; reading the masks, which the reference does anew each time, is left out."""
    edges = np.append(np.arange(0, 1, 0.001), (1.0, 2.0, 3.0))
    mask, ignore = np.zeros((2, SIZE, SIZE), bool)
    mask[40:120, 60:160], ignore[100:180, 100:180] = True, True
    heats = [made("14 CAM-like bilinear", seed) for seed in range(10)]
    tensors = [torch.from_numpy(heat) for heat in heats]

    def reference() -> list:
        return [
            [np.histogram(h.astype(np.float64)[where], edges)[0] for where in (~mask & ~ignore, mask)] for h in heats
        ]

    def ours() -> list:
        return [pixel_histograms(heat, torch.from_numpy(mask), torch.from_numpy(ignore)) for heat in tensors]

    theirs, own = (one / 10 for one in fastest(reference, ours, rounds=15))
    same = all(np.array_equal(np.stack(a)[:, :1001], b.numpy()) for a, b in zip(reference(), ours(), strict=True))
    print(
        f"\nPixelAveragePrecision, ms an image: reference {theirs:.2f}, camify {own:.2f}: "
        f"{theirs / own:.1f}x, same {same}"
    )


def curves() -> None:
    """Insertion and deletion beside the forwards that they need."""
    model = torchvision.models.resnet18().eval()
    images, maps, targets = torch.rand(2, 3, 112, 112), torch.rand(2, 112, 112), torch.tensor([1, 2])

    @torch.inference_mode()
    def forwards() -> None:
        for _ in range(4):
            model(torch.rand(16, 3, 112, 112))

    options = {"steps": 31, "batch_size": 16}
    plain, inserted, deleted = fastest(
        forwards,
        lambda: insertion_curves(model, images, maps, targets, **options),
        lambda: deletion_curves(model, images, maps, targets, **options),
        rounds=7,
    )
    print(
        f"\ncurves, ResNet-18, as a ratio to 64 forwards: insertion {inserted / plain:.2f}, "
        f"deletion {deleted / plain:.2f}"
    )


def share_of_a_forward() -> None:
    """The metrics' update beside MobileNetV2's forward at 224 px."""
    model = torchvision.models.mobilenet_v2().eval()
    images = torch.rand(16, 3, SIZE, SIZE)
    heats = torch.from_numpy(np.stack([made("7 CAM-like bilinear", seed) for seed in range(16)]))
    metric, truths = MaxBoxAccuracy(version=1), [torch.from_numpy(TRUTH[:1])] * 16

    @torch.inference_mode()
    def forward() -> None:
        model(images)

    plain, update = fastest(forward, lambda: metric.update(heats, truths))
    print(f"\nMobileNetV2 forward {plain / 16:.1f} ms an image; MaxBoxAccuracy V1 {100 * update / plain:.1f} % of it")


if __name__ == "__main__":
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    boxes()
    updates()
    pixels()
    curves()
    share_of_a_forward()
