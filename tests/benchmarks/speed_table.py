"""The table of speeds in docs/results.md: ``python tests/benchmarks/speed_table.py [ROW ...]``, on a quiet machine.

Each line is one ratio of times that were taken in turns in this run, beside what it should be. Rows: methods,
reciprocam, boxes, pixels, metrics, cache, explain, saving, starting, kept, scorecam, memory; without any it takes all
but the last two, which take longest (``all`` takes these too). Of another version of camify: ``PYTHONPATH=FOLDER``.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import methods_cost
import metrics_cost
import overlay_cost
import torch
from safetensors.torch import load_file

import camify
from camify import explain

ROOT = Path(__file__).parent
Row = tuple[str, str, str]  # what, what it should be, what it is


def ratio(ours: Callable[[], object], plain: Callable[[], object], rounds: int = 7) -> float:
    """The median over rounds of the time of one over that of the other, taken one after the other."""
    ours(), plain()
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        plain()
        middle = time.perf_counter()
        ours()
        found.append((time.perf_counter() - middle) / (middle - start))
    return statistics.median(found)


def network_and_images(name: str, count: int = 8) -> tuple[torch.nn.Module, str, torch.Tensor, Callable[[], None]]:
    model, layer, _ = methods_cost.build(name)
    images = torch.randn(count, 3, 224, 224)

    def forward() -> None:
        with torch.inference_mode():
            model(images)

    return model, layer, images, forward


def methods() -> Iterator[Row]:
    for name, floor in (("resnet18", 1.05), ("alexnet-gap", 1.10), ("vgg16-gap", 1.03)):
        model, _, images, forward = network_and_images(name)
        rounds = 5 if "vgg" in name else 15
        taken = ratio(lambda m=model, x=images: explain(m, x, method=methods_cost.FOUR), forward, rounds)
        cells = last_layer_of_cells(model, images, forward, rounds)
        yield f"four methods from one forward, {name}", f"<= {floor:.2f}", f"{taken:.2f} ({cells})"
        if name == "alexnet-gap":
            for method in ("cam", "gradcam"):
                taken = ratio(lambda m=model, x=images, k=method: explain(m, x, method=k), forward, rounds)
                yield f"{method}, {name}", "<= 1.03", f"{taken:.2f}"


def last_layer_of_cells(model: torch.nn.Module, images: torch.Tensor, forward: Callable[[], None], rounds: int) -> str:
    """What Recipro-CAM, one of the four, cannot do without: the logits of every cell."""
    with camify.methods.observe(model, images) as seen:
        (count, channels, height, width), weight = seen.activations.shape, seen.weight
    rows = torch.randn(count * height * width, channels)

    def logits() -> None:
        with torch.inference_mode():
            torch.nn.functional.linear(rows, weight)

    return f"of {height * width} cells the last layer: {1 + ratio(logits, forward, rounds):.2f}"


def reciprocam() -> Iterator[Row]:
    for name, floor in (("alexnet", 2.0), ("vgg16", 1.3)):
        model, _, images, forward = network_and_images(name)
        rounds = 3 if "vgg" in name else 7
        taken = ratio(lambda m=model, x=images: explain(m, x, method="reciprocam"), forward, rounds)
        with camify.methods.observe(model, images) as seen:
            cells = seen.activations.shape[-2:].numel()
        second = [place for place, part in enumerate(model.classifier) if isinstance(part, torch.nn.Linear)][1]
        rows, behind = torch.randn(cells * len(images), 4096), model.classifier[second:]

        def last_layers(rows: torch.Tensor = rows, behind: torch.nn.Module = behind) -> None:
            with torch.inference_mode():
                behind(rows)

        bound = 1 + ratio(last_layers, forward, rounds)
        yield (
            f"Recipro-CAM, legacy {name}",
            f"<= {floor}",
            f"{taken:.2f} (of {cells} cells the last layers: {bound:.2f})",
        )


def scorecam() -> Iterator[Row]:
    """ImageNet's convolutions on a photograph where they are in ../shared/data, else random ones on noise."""
    from torchcam.methods import ScoreCAM

    model, layer, image, _ = network_and_images("vgg16", 1)
    of, data = "random weights, noise", overlay_cost.DATA
    if (data / "photos").is_dir():
        weights = load_file(data / "weights" / "vgg16-imagenet-features-fp16.safetensors")
        model.load_state_dict({name: value.float() for name, value in weights.items()}, strict=False)
        loader = camify.data.ImageFolderDataModule(data / "photos", augment="none", batch_size=1)
        loader.setup("fit")
        image, of = next(iter(loader.val_dataloader()))["image"], "ImageNet's convolutions, a photograph"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, image = model.to(device), image.to(device)
    with camify.methods.observe(model, image, layer=layer) as seen:
        vary = int((seen.activations.amax((2, 3)) > seen.activations.amin((2, 3))).sum())

    def theirs() -> None:
        with ScoreCAM(model, layer, batch_size=32) as extractor, torch.inference_mode():
            extractor(model(image).argmax(1).tolist())

    def seconds(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for precision in ("fp32", "bf16")[: 1 if device == "cpu" else 2]:  # bf16 is slower on most CPUs
        rounds = range(1 if device == "cpu" else 5)
        shares = [
            seconds(lambda p=precision: explain(model, image, method="scorecam", precision=p)) / seconds(theirs)
            for _ in rounds
        ]
        what = f"Score-CAM, VGG16 on {device}, {precision} ({of}: {vary} of 512 channels vary), of torch-cam's time"
        yield what, "<= 0.5", f"{statistics.median(shares):.2f}"


def boxes() -> Iterator[Row]:
    rows = printed(metrics_cost.boxes).splitlines()[1:]
    parities = [float(value) for row in rows for value in re.findall(r"([\d.]+)x", row)]
    defaults = [float(row.split()[-1]) for row in rows if not row.startswith("noise")]
    noise = [float(row.split()[-1]) for row in rows if row.startswith("noise")]
    yield (
        "MaxBoxAcc, 1,000 thresholds: times the reference's speed",
        ">= 20",
        f"{min(parities):.0f} to {max(parities):.0f}",
    )
    yield "MaxBoxAcc, default, ms an image", "<= 1.5", f"{min(defaults):.2f} to {max(defaults):.2f}"
    yield "MaxBoxAcc, default, a map of noise, ms", "<= 20", f"{min(noise):.0f} (all), {max(noise):.0f} (largest)"


def pixels() -> Iterator[Row]:
    yield "PxAP: times the reference's speed", ">= 5", re.findall(r"([\d.]+)x", printed(metrics_cost.pixels))[0]


def metrics() -> Iterator[Row]:
    """Beside the forwards on all threads, as in training."""
    said = printed(lambda: overlay_cost.cost(*overlay_cost.photos(320)))
    yield (
        "CAM metrics of validation, of its forwards",
        "<= 3 %",
        re.findall(r"CAM metrics: ([\d.]+ %) of the val", said)[0],
    )
    yield "pictures, page and metrics, of an epoch", "<= 2 %", re.findall(r"path ([\d.]+ %)", said)[0]


def cache() -> Iterator[Row]:
    said = run("fine_tuning.py", "cache", "--seeds", "1", "--count", "240", "--epochs", "4")
    for head, memory, disk in re.findall(r"head=(\w+): .* takes ([\d.]+) times .* memory, ([\d.]+) with disk", said):
        yield f"cached epochs, demo, head {head}", ">= 20" * (head == "direct"), f"{memory} (memory), {disk} (disk)"


def explaining() -> Iterator[Row]:
    said = run("explain_throughput.py")
    yield "camify explain, 1,000 pictures: of a plain loop's speed", ">= 1.2", said.strip().splitlines()[-1]


def memory() -> Iterator[Row]:
    said = run("explain_throughput.py", "--memory", "--count", "10000")
    yield "camify explain, memory from 1,000 to 10,000 images", "constant", "; ".join(said.strip().splitlines()[-2:])


def saving() -> Iterator[Row]:
    import export_cost
    import safetensors.torch

    net = export_cost.network()
    plain = {name: value.contiguous() for name, value in net.state_dict().items()}
    with tempfile.TemporaryDirectory() as name:
        alone = Path(name, "alone.safetensors")

        def replaced() -> None:
            aside = Path(name, "aside.safetensors")
            safetensors.torch.save_file(plain, aside)
            with aside.open("rb") as file:
                os.fsync(file.fileno())
            aside.replace(alone)

        for against, label in (
            (lambda: safetensors.torch.save_file(plain, alone), ""),
            (replaced, " that waits for the disk and takes the former file's place"),
        ):
            taken = ratio(lambda: net.save_pretrained(Path(name, "model")), against)
            yield f"save_pretrained, of safetensors{label}", "<= 1.2" if not label else "", f"{taken:.2f}"


def starting() -> Iterator[Row]:
    def python(code: str) -> Callable[[], None]:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

    libraries = python("import torch, torchvision")
    taken = ratio(python("import camify; camify.convert, camify.explain"), libraries, 5)
    yield "import camify and its functions, of import torch, torchvision", "<= 1.1", f"{taken:.2f}"
    helped = python("import sys; sys.argv = ['camify', '--help']; from camify.cli import main; main()")
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        libraries()
        middle = time.perf_counter()
        helped()
        seconds.append(time.perf_counter() - middle - (middle - start))
    yield "camify --help, seconds more than these imports", "<= 1", f"{statistics.median(seconds):.2f}"


def kept() -> Iterator[Row]:
    """Each way in processes of its own, in turns."""
    code = (
        "import sys, time, camify, torch, torchvision; sys.argv[1:] and camify.keep_freed_memory();"
        " network, images = torchvision.models.mobilenet_v2().eval(), torch.rand(32, 3, 224, 224);"
        " forward = torch.inference_mode()(lambda: network(images)); [forward() for _ in range(3)];"
        " start = time.perf_counter(); [forward() for _ in range(5)]; print(time.perf_counter() - start)"
    )

    def seconds(*words: str) -> float:
        done = subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, text=True)
        return float(done.stdout)

    ratios = [seconds("kept") / seconds() for _ in range(5)]
    what = "forward of MobileNetV2, 32 images, where freed memory is kept, as in a command, of one in a script"
    yield what, "", f"{statistics.median(ratios):.2f}"


def printed(work: Callable[[], object]) -> str:
    """What work prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        work()
    return text.getvalue()


def run(script: str, *options: str) -> str:
    done = subprocess.run([sys.executable, ROOT / script, *options], capture_output=True, text=True, check=True)
    return done.stdout


ROWS = {
    "methods": methods, "reciprocam": reciprocam, "boxes": boxes, "pixels": pixels, "metrics": metrics, "cache": cache,
    "explain": explaining, "saving": saving, "starting": starting, "kept": kept, "scorecam": scorecam, "memory": memory,
}  # fmt: skip
LONG = ("scorecam", "memory")

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    wanted = sys.argv[1:] or [name for name in ROWS if name not in LONG]
    threads = torch.get_num_threads()
    print("| what | floor | measured |\n|---|---|---|", flush=True)
    for row in ROWS if wanted == ["all"] else wanted:
        metrics_only = row in ("boxes", "pixels")
        torch.set_num_threads(1 if metrics_only or row == "saving" else threads)
        for what, floor, measured in ROWS[row]():
            print(f"| {what} | {floor} | {measured} |", flush=True)
