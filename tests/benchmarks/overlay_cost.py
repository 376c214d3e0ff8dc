"""Share of an epoch that pictures, record and page, and CAM metrics take, timed inside one run.

``python tests/benchmarks/overlay_cost.py``: four epochs of the demo. ``--photos [COUNT]``: two epochs of MobileNetV2 at
224 px, with as many validation as training images, in memory: photographs with boxes and trained weights where they
are in ../shared/data, else noise and untrained ones, whose maps have more maxima. ``--page``: how large a page of 50
epochs of 32 images is, and how long chromium takes to open it.

What is drawn in the background costs training its thread's CPU time only where no core is idle, and what it takes from
Python's lock: the last line says how much longer the batches took that were trained meanwhile.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader, Dataset
from torchvision.models import mobilenet_v2

import camify
from camify.data import collate
from camify.reports.run_folder import read_run
from camify.reports.run_page import render_page
from camify.training import RunRecord

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


class Stopwatch(pl.Callback):
    """Wall time of the epochs, and of their batches: with nothing drawn meanwhile, and with something."""

    def __init__(self, is_drawing: Callable[[], bool]) -> None:
        self.is_drawing, self.batches = is_drawing, ([], [])

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 0:
            self.start = time.perf_counter()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        self.batch = (time.perf_counter(), self.is_drawing())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        start, drawing = self.batch
        if trainer.current_epoch > 0 and batch_idx > 0:  # frozen features, and warming up
            self.batches[drawing].append(time.perf_counter() - start)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.whole = time.perf_counter() - self.start
        self.threads = thread_times()


class Noise(Dataset):
    """Images of 224 px in ten classes, each with a box."""

    def __init__(self, count: int) -> None:
        self.labels = [index % 10 for index in range(count)]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        image = torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(index % 64))
        return {"image": image, "label": self.labels[index], "boxes": torch.tensor([[40.0, 60, 160, 200]])}


def timed(owner: object, *hooks: str) -> list[float]:
    """Durations of an object's methods, filled in as they run."""
    durations: list[float] = []

    def watched(inner: Callable) -> Callable:
        def outer(*arguments: object, **options: object) -> object:
            start = time.perf_counter()
            found = inner(*arguments, **options)
            durations.append(time.perf_counter() - start)
            return found

        return outer

    for hook in hooks:
        setattr(owner, hook, watched(getattr(owner, hook)))
    return durations


def thread_times() -> dict[str, float]:
    """CPU time of every thread that Python knows but the main one, by name."""
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    return {thread.name: time.clock_gettime(time.pthread_getcpuclockid(thread.ident)) for thread in others}


def demo() -> tuple[camify.CAMFineTuner, object, dict]:
    """The demo's network, data and number of epochs."""
    data = camify.data.ShapesDataModule()
    module = camify.CAMFineTuner(
        "camify/tiny_vgg@demo",
        class_names=data.class_names, head_channels=128, input_size=96, lr=0.005, freeze_epochs=1,
    )  # fmt: skip
    return module, {"datamodule": data}, {"max_epochs": 4}


class Repeated(Dataset):
    """Samples of another data set, as many as asked for, decoded once."""

    def __init__(self, inner: Dataset, count: int) -> None:
        size = len(inner)  # type: ignore[arg-type]
        self.samples = [inner[index * size // min(size, count)] for index in range(min(size, count))]
        self.labels = [int(self.samples[index % len(self.samples)]["label"]) for index in range(count)]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return self.samples[index % len(self.samples)]


def photos(count: int) -> tuple[camify.CAMFineTuner, object, dict]:
    """MobileNetV2 on photographs, or on noise."""
    if (DATA / "photos").is_dir():
        legacy, data = mobilenet_v2(), camify.data.ImageFolderDataModule(DATA / "photos", augment="none")
        weights = torch.load(DATA / "weights" / "mobilenet_v2-coral-ptq-mirrored.pth", weights_only=True)
        legacy.load_state_dict(weights)
        data.setup("fit")
        sets = [Repeated(data.val_dataloader().dataset, count)] * 2
        names = {"class_names": data.class_names}
    else:
        legacy, sets, names = mobilenet_v2(num_classes=10), [Noise(count)] * 2, {}
    module = camify.CAMFineTuner(legacy, head="direct", freeze_epochs=0, **names)
    loaders = [DataLoader(one, 32, collate_fn=collate) for one in sets]
    return module, {"train_dataloaders": loaders[0], "val_dataloaders": loaders[1]}, {"max_epochs": 2}


def cost(module: camify.CAMFineTuner, data: dict, options: dict) -> None:
    """Print the shares."""
    overlays, record = camify.CAMOverlayLogger(), RunRecord(quiet=True)
    watch = Stopwatch(lambda: any(job is not None and not job.done() for job in (overlays._drawing, record._page)))
    parts = {
        "looking, and handing over to be drawn": timed(
            overlays, "on_validation_batch_start", "on_validation_batch_end", "on_validation_end", "on_train_batch_end"
        ),
        "results, and handing over the page": timed(record, "on_train_epoch_end"),
        "CAM metrics": timed(module.quality, "update", "compute", "grid_pointing"),
    }
    forwards = timed(module, "_validated")
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            logger=[TensorBoardLogger(folder, name="", version=""), CSVLogger(folder, name="", version="")],
            enable_checkpointing=False, default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False,
            num_sanity_val_steps=0, callbacks=[watch, overlays, record], **options,
        )  # fmt: skip
        trainer.fit(module, **data)
    for name, durations in parts.items():
        print(f"{name}: {sum(durations):.2f} s, {100 * sum(durations) / watch.whole:.1f} % of the epochs")
    together = sum(map(sum, parts.values()))
    print(f"together on the training path {100 * together / watch.whole:.1f} % of {watch.whole:.1f} s")
    for name, spent in watch.threads.items():
        print(f"CPU time of thread {name}: {spent:.2f} s, {100 * spent / watch.whole:.1f} % of the epochs")
    metrics = sum(parts["CAM metrics"])
    print(f"CAM metrics: {100 * metrics / sum(forwards):.1f} % of the validation's forwards ({sum(forwards):.1f} s)")
    alone, beside = watch.batches
    if alone and beside:
        longer = sum(beside) - len(beside) * statistics.median(alone)
        print(f"{len(beside)} batches while something was drawn: {longer:.2f} s longer than as many others")


def page() -> None:
    """Print size and opening time of a long run's page."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_run(folder, rng)
        for _ in range(2):  # the second time most pictures are known
            start = time.perf_counter()
            html = render_page(read_run(folder))
            print(f"made in {time.perf_counter() - start:.2f} s")
        file = folder / "report.html"
        file.write_text(html, encoding="utf-8")
        print(f"{len(html.encode()) / 1e6:.1f} MB")
        from playwright.sync_api import sync_playwright

        chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            for width in (1200, 390):
                opened = browser.new_page(viewport={"width": width, "height": 800})
                start = time.perf_counter()
                opened.goto(file.as_uri())
                opened.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
                print(f"opened at {width} px in {time.perf_counter() - start:.2f} s")
                start = time.perf_counter()
                opened.focus("#epoch")
                opened.keyboard.press("ArrowLeft")
                opened.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
                print(f"  the epoch before in {time.perf_counter() - start:.2f} s")
            browser.close()


def write_run(folder: Path, rng: np.random.Generator, *, epochs: int = 50, images: int = 32) -> None:
    """A run's folder with pictures as detailed as those of photographs, all different."""
    from camify.drawing.overlay import ClassMap, overlay_picture, strip_picture

    def drawn(index: int, epoch: int) -> Image.Image:
        maps = ClassMap("cat", torch.from_numpy(rng.normal(size=(7, 7)).astype(np.float32)), 1.0, 0.5)
        return overlay_picture(photos[index], maps, maps, scale=2.0, title=f"{index} · epoch {epoch}")

    # Power falls with the square of the frequency, as in photographs.
    frequency = torch.hypot(torch.fft.fftfreq(224)[:, None], torch.fft.rfftfreq(224)[None]).clamp_min(1 / 224)
    noise = torch.randn(images, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    photos = torch.fft.irfft2(torch.fft.rfft2(noise) / frequency, s=(224, 224))
    photos = (0.5 + 0.2 * photos / photos.std((1, 2, 3), keepdim=True)).clamp(0, 1)
    (folder / "overlays").mkdir()
    watched = []
    for index in range(images):
        frames = []
        for epoch in range(epochs):
            file = f"{epoch}_{index}.png"
            drawn(index, epoch).save(folder / "overlays" / file, compress_level=1)
            frames.append({"epoch": epoch, "method": "cam", "file": file, "caption": "predicted cat, p 0.50"})
        maps = [torch.from_numpy(rng.normal(size=(7, 7)).astype(np.float32)) for _ in range(epochs)]
        strip_picture(photos[index], maps, [""] * epochs, scale=2.0).save(folder / "overlays" / f"{index}.png")
        watched.append({"name": str(index), "true": "cat", "strips": {"cam": f"{index}.png"}, "frames": frames})
    (folder / "overlays" / "index.json").write_text(json.dumps({"methods": ["cam"], "watched": watched, "finds": []}))
    history = [{"epoch": epoch, "val/acc": 0.5, "val/max_box_acc": 0.5} for epoch in range(epochs)]
    results = {"finished": True, "source": "noise", "classes": ["cat"], "history": history}
    (folder / "results.json").write_text(json.dumps(results))


def main() -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=int, nargs="?", const=1000, default=None)
    parser.add_argument("--page", action="store_true")
    given = parser.parse_args()
    if given.page:
        page()
    else:
        cost(*(demo() if given.photos is None else photos(given.photos)))


if __name__ == "__main__":
    main()
