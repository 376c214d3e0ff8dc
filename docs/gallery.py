"""Make the pictures of gallery.md: `python docs/gallery.py`.

It runs camify on generated shapes with the embedded network, without a download, opens the pages that come out in the
installed Chromium, and writes docs/gallery/*.webp. It takes about five minutes on two cores.

What the pages show of time (a plain forward, the duration of an evaluation) differs from machine to machine; all else
is seeded. The page of `camify export --to web` needs the files of onnxruntime-web, which camify does not bring along:
give their folder with --runtime, or that picture stays as it is.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
GALLERY = ROOT / "docs" / "gallery"
DEMO = ROOT / "configs" / "demo.yaml"
MODES = {  # width and height of the window in CSS pixels, color scheme, device pixels of each of them
    "light": ((1280, 860), "light", 1),
    "dark": ((1280, 860), "dark", 1),
    "phone": ((390, 800), "light", 2),
    "dark phone": ((390, 800), "dark", 2),
}
SEED = 11
PER_CLASS = 12  # images in the labeled folder


@dataclass(frozen=True)
class Picture:
    """A picture of the gallery.

    Attributes:
        name: of its file, without the ending.
        made_by: key of `MAKERS`.
        file: a page or a picture below the folder of work; of a page that must be served, its folder or nothing.
        mode: key of `MODES`; empty for a picture.
        at: CSS selector of what stands at the top of the window; the beginning of the page where empty.
        show: drops a picture into the page first.
    """

    name: str
    made_by: str
    file: str
    mode: str = ""
    at: str = ""
    show: str = ""


PICTURES = (
    Picture("report", "run", "demo/report.html", "light"),
    Picture("report-maps", "run", "demo/report.html", "dark", "section:has(#epoch)"),
    Picture("report-classes", "run", "demo/report.html", "light", "#classes"),
    Picture("report-phone", "run", "demo/report.html", "phone", "section:has(#epoch)"),
    Picture("report-phone-dark", "run", "demo/report.html", "dark phone"),
    Picture("overlay", "run", "demo/overlays/epoch_*/0*.png"),
    Picture("strip", "run", "demo/overlays/strips/0*.png"),
    Picture("runs", "runs", "comparison.html", "dark"),
    Picture("evaluation", "evaluation", "evaluation/evaluation.html", "light"),
    Picture("evaluation-phone", "evaluation", "evaluation/evaluation.html", "dark phone", "#classes"),
    Picture("compare", "comparison", "comparison/compare.html", "dark"),
    Picture("compare-phone", "comparison", "comparison/compare.html", "phone"),
    Picture("explain", "explained", "explained/*_cam.png"),
    Picture("explain-grid", "explained", "grids/*.png"),
    Picture("app", "app", "", "light", show="shapes/val/star/star_3.png"),
    Picture("app-phone", "app", "", "dark phone", "#answer-0", show="shapes/val/star/star_3.png"),
    Picture("web", "web", "web", "dark", show="shapes/val/cross/cross_3.png"),
)
"""All pictures, in the order of the page."""


class GalleryError(Exception):
    """Why there is no gallery, in one sentence."""


# ---------------------------------------------------------------- what is made


def camify(work: Path, *words: str | Path) -> None:
    """Runs a command of camify in the folder of work, so that pages show no other folder."""
    command = [str(word) for word in words]
    print("camify", " ".join(command), flush=True)
    done = subprocess.run(  # noqa: S603 - camify itself, with words that stand in this file
        [sys.executable, "-m", "camify", *command], cwd=work, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise GalleryError(f"camify {command[0]} ended with {done.returncode}: {said[-1]}")


def fit(work: Path, folder: str, train_count: int, epochs: int, *more: str) -> None:
    """A short training run on generated shapes."""
    options = {
        "trainer.default_root_dir": folder, "trainer.max_epochs": epochs, "data.init_args.train_count": train_count,
        "data.init_args.val_count": 120, "overlays.num_images": 6,
    }  # fmt: skip
    camify(
        work,
        "fit",
        "--config",
        DEMO,
        *(word for key, value in options.items() for word in (f"--{key}", str(value))),
        *more,
    )


def write_shapes(folder: Path) -> None:
    """A labeled folder of generated shapes with their boxes."""
    from camify.data.shape_renderer import CLASS_NAMES, render_scene

    rows = [["image", "x0", "y0", "x1", "y1", "label"]]
    for label, name in enumerate(CLASS_NAMES):
        (folder / "val" / name).mkdir(parents=True)
        for number in range(PER_CLASS):
            scene = render_scene(label, (SEED, label, number), 192)
            Image.fromarray(scene.image).save(folder / "val" / name / f"{name}_{number}.png")
            rows.append([f"val/{name}/{name}_{number}.png", *map(str, scene.box), name])
    with (folder / "boxes.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def make_run(work: Path) -> None:
    fit(work, "demo", 720, 3)


def make_runs(work: Path) -> None:
    fit(work, "narrow", 360, 2, "--model.head_channels", "32")
    camify(work, "report", "demo", "narrow", "--out", "comparison.html")


def make_evaluation(work: Path) -> None:
    camify(
        work, "evaluate", "--model", "demo/export", "--legacy", "camify/tiny_vgg@demo", "--data", "shapes",
        "--method", "cam", "gradcam", "--faithfulness", "8", "--mosaics", "16", "--out", "evaluation",
    )  # fmt: skip


def make_comparison(work: Path) -> None:
    camify(work, "compare", "--demo", "--figures", "6", "--out", "comparison")


def make_explained(work: Path) -> None:
    picture = "shapes/val/crescent/crescent_5.png"
    camify(work, "explain", picture, "--model", "demo/export", "--out", "explained")
    camify(
        work, "explain", picture, "--model", "demo/export", "--out", "grids", "--topk", "3",
        "--method", "cam", "gradcam", "layercam", "reciprocam",
    )  # fmt: skip


def make_web(work: Path, runtime: str) -> None:
    camify(work, "export", "demo/export", "--to", "web", "--out", "web", "--runtime", runtime)


MAKERS: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "run": (make_run, ()),
    "runs": (make_runs, ("run",)),
    "shapes": (lambda work: write_shapes(work / "shapes"), ()),
    "evaluation": (make_evaluation, ("run", "shapes")),
    "comparison": (make_comparison, ()),
    "explained": (make_explained, ("run", "shapes")),
    "app": (lambda _: None, ("run", "shapes")),
    "web": (make_web, ("run", "shapes")),
}
"""How each thing is made, and what must be there before."""


def make(names: Sequence[str], work: Path, runtime: str) -> None:
    """Makes things and what they need, each once."""
    made: set[str] = set()

    def one(name: str) -> None:
        maker, before = MAKERS[name]
        for other in before:
            one(other)
        if name not in made:
            made.add(name)
            maker(work, **({"runtime": runtime} if name == "web" else {}))

    for name in names:
        one(name)


# ---------------------------------------------------------------- pictures of it


@contextmanager
def opened_browser() -> Iterator:
    """The installed Chromium, driven by Playwright."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        raise GalleryError(
            "Playwright is not installed: pip install playwright (its browsers are not needed)."
        ) from None
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        raise GalleryError("No Chromium is installed: install the package chromium of your system, or google-chrome.")
    with sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        except Error as error:
            raise GalleryError(f"{program} does not start: {error.message.splitlines()[0]}") from None
        yield browser
        browser.close()


@contextmanager
def address_of(picture: Picture, work: Path) -> Iterator[str]:
    """Where the page of a picture is seen: as a file, or served as long as it is looked at."""
    if picture.made_by == "app":
        from camify.app.networks import open_networks
        from camify.app.page import serve

        examples = sorted((work / "shapes" / "val").glob("*/*_0.png"))
        with working_in(work):  # so that the page shows no other folder
            networks = open_networks(["demo/export"])
        with serve(networks, examples) as address:
            yield address
    elif picture.made_by == "web":
        handler = partial(_QuietHandler, directory=str(work / picture.file))
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}/"
            server.shutdown()
    else:
        yield (work / picture.file).as_uri()


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def screenshot(browser, picture: Picture, address: str, work: Path) -> Image.Image:
    """What the window shows of the page."""
    (width, height), scheme, scale = MODES[picture.mode]
    page = browser.new_page(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        device_scale_factor=scale,
        reduced_motion="reduce",
    )
    page.goto(address)
    if picture.show:
        inputs = {"app": "#picture input[type=file]", "web": "html[data-state=ready] #file"}[picture.made_by]
        answered = {"app": "#answer-0 img", "web": "#answer:not([hidden]) #classes button"}[picture.made_by]
        page.wait_for_selector(inputs, state="attached", timeout=60_000)
        page.set_input_files(inputs, work / picture.show)
        page.wait_for_selector(answered, timeout=60_000)
        page.wait_for_timeout(1500)  # what Gradio fades in
    if picture.at:
        page.eval_on_selector(
            picture.at, "place => scrollTo({ top: place.getBoundingClientRect().top + scrollY - 16 })"
        )
    page.wait_for_timeout(300)  # pictures that are loaded when they are seen
    shot = Image.open(io.BytesIO(page.screenshot()))
    page.close()
    return shot


def drawn(picture: Picture, work: Path) -> Image.Image:
    """A picture that camify has drawn: of several the last."""
    files = sorted(work.glob(picture.file))
    if not files:
        raise GalleryError(f"{picture.name}: {picture.file} was not written.")
    return Image.open(files[-1])


def write(pictures: Sequence[Picture], work: Path, out: Path) -> None:
    """Writes the pictures as WebP."""
    out.mkdir(parents=True, exist_ok=True)
    with opened_browser() as browser:
        for picture in pictures:
            if picture.mode:
                with address_of(picture, work) as address:
                    image = screenshot(browser, picture, address, work)
            else:
                image = drawn(picture, work)
            file = out / f"{picture.name}.webp"
            image.convert("RGB").save(file, "WEBP", quality=78, method=6)
            print(f"{file}: {image.width} by {image.height}, {file.stat().st_size // 1024} KiB", flush=True)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", help="of the pictures to make anew; default: all")
    parser.add_argument("--out", type=Path, default=GALLERY, help="folder of the pictures; default: docs/gallery")
    parser.add_argument("--runtime", default="", help="folder of npm's onnxruntime-web, for the page in the browser")
    given = parser.parse_args(words)
    unknown = set(given.names) - {picture.name for picture in PICTURES}
    if unknown:
        parser.error(f"no such picture: {', '.join(sorted(unknown))}. There are {', '.join(p.name for p in PICTURES)}")
    chosen = [picture for picture in PICTURES if not given.names or picture.name in given.names]
    if not given.runtime:
        chosen, left = [p for p in chosen if p.made_by != "web"], [p.name for p in chosen if p.made_by == "web"]
        for name in left:
            print(f"{name}: left as it is; it needs --runtime, the folder of npm's onnxruntime-web.")
    try:
        with opened_browser():
            pass  # what is missing is said before the work
        with tempfile.TemporaryDirectory(prefix="camify-gallery-") as work:
            runtime = str(Path(given.runtime).resolve()) if given.runtime else ""
            make(list(dict.fromkeys(picture.made_by for picture in chosen)), Path(work), runtime)
            write(chosen, Path(work), given.out)
    except GalleryError as error:
        sys.exit(f"gallery: {error}")


if __name__ == "__main__":
    main()
