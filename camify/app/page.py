"""The page itself: controls in, pieces of HTML out. The only file of camify that knows Gradio."""

from __future__ import annotations

import ipaddress
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib import colormaps

from ..boxes import OTSU
from ..console import shown
from ..errors import CamifyError, ConfigError
from ..evaluation.network import ExplainedNetwork
from ..files import slug
from .answers import Answer, Answers, MapView, agreement, rule_of
from .fragments import agreement_fragment, answer_fragment, heading_fragment, message_fragment, network_fragment

__all__ = ["Controls", "Page", "is_loopback", "serve", "wait_until_stopped"]

_HERE = Path(__file__).parent
DEFAULT_PORT = 7860
_LEAST_GRADIO = (6, 31)
_PORTS = 100  # that are tried from the default one on
_MOST_BYTES = "64mb"  # of an image file
_KEPT_SECONDS = 3600  # for which an uploaded file stays
COLORMAPS = ("inferno", "viridis", "jet", "turbo", "magma", "gray")
MOST_PROBABLE = -1
"""In place of a class: the one that the first network finds most probable."""
_NO_MEMORY = "There is not enough memory for this picture. Give a smaller one."
_EMPTY = "Give a picture to see what the network says of it."


# ---------------------------------------------------------------- what the page does


@dataclass(frozen=True)
class Controls:
    """What is set for one network.

    Attributes:
        map: label of a map that the network offers.
        threshold: of the slider.
        otsu: whether Otsu's threshold is used instead.
    """

    map: str
    threshold: float
    otsu: bool


class Page:
    """What the page answers to its controls: for each network a piece of HTML and where its threshold stands.

    Args:
        networks: one or two, of the same classes.
    """

    def __init__(self, networks: Sequence[ExplainedNetwork]) -> None:
        self.networks = list(networks)
        self.answers = [Answers(network) for network in networks]

    def first_controls(self, index: int) -> Controls:
        """What is set before anything was touched: the map that the network's rule cuts, and its threshold."""
        answers = self.answers[index]
        label = next(iter(answers.choices))
        threshold = rule_of(self.networks[index], answers.choices[label]).threshold
        return Controls(label, 0.5, otsu=True) if isinstance(threshold, str) else Controls(label, threshold, otsu=False)

    def show(
        self, path: str | None, target: int, colormap: str, controls: Sequence[Controls], restart: int | None = None
    ) -> tuple[list[str], list[Controls], str]:
        """The pieces of the networks, their controls as they stand then, and the piece about both.

        Args:
            path: of the picture; None: there is none.
            target: number of a class, or ``MOST_PROBABLE``.
            colormap: of matplotlib.
            controls: of each network.
            restart: number of the network whose threshold goes back to its rule's.
        """
        if path is None:
            empty = message_fragment("empty", [_EMPTY], "status")
            return [empty] * len(controls), list(controls), ""
        chosen, pieces, settled, seen = target, list[str](), list[Controls](), list[tuple[Answer, MapView]]()
        for index, control in enumerate(controls):
            try:
                answer, view = self._view(index, path, chosen, colormap, control, restart=index == restart)
            except (CamifyError, MemoryError, torch.OutOfMemoryError) as error:
                reason = str(error) if isinstance(error, CamifyError) else _NO_MEMORY
                pieces.append(message_fragment("refusal", [reason], "alert"))
                settled.append(control)
                continue
            chosen = view.target
            pieces.append(answer_fragment(answer, view))
            settled.append(Controls(control.map, round(view.threshold, 2), isinstance(view.rule.threshold, str)))
            seen.append((answer, view))
        if len(seen) < 2:
            return pieces, settled, ""
        answers_2, views_2 = zip(*seen, strict=True)
        return pieces, settled, agreement_fragment(self.networks, answers_2, agreement(answers_2, views_2))

    def _view(
        self, index: int, path: str, target: int, colormap: str, control: Controls, *, restart: bool
    ) -> tuple[Answer, MapView]:
        answer = self.answers[index].of(path)
        threshold = None if restart else OTSU if control.otsu else control.threshold
        choice = self.answers[index].choices[control.map]
        return answer, answer.view(choice, None if target == MOST_PROBABLE else target, threshold, colormap)


# ---------------------------------------------------------------- where it is served


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0"), is_loopback("example.org")
        (True, True, False, False)
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def serve(
    networks: Sequence[ExplainedNetwork], examples: Sequence[Path] = (), *, host: str = "127.0.0.1",
    port: int | None = None, colormap: str = "inferno", open_browser: bool = False, title: str = "camify",
) -> Iterator[str]:  # fmt: skip
    """Serve the page within the context; gives its address.

    Uploaded files lie in a folder that goes with it, and none for longer than an hour. Nothing is sent anywhere: no
    telemetry, no share link, no fonts or scripts of other hosts.

    Args:
        networks: one or two, of the same classes, each with the methods that it offers.
        examples: image files to begin with.
        host: address to listen at.
        port: None: the first free one from 7860 on.
        colormap: of matplotlib.
        open_browser: show the page in the browser of this machine.
        title: of the page.

    Raises:
        ConfigError: Gradio is not installed, or the address cannot be had.
    """
    if colormap not in colormaps:
        raise ConfigError(f"colormap {colormap!r}: matplotlib has none of that name. Try inferno, viridis or jet.")
    with tempfile.TemporaryDirectory(prefix="camify-app-") as folder, _environment(folder):
        gradio = _gradio()
        blocks = _blocks(gradio, Page(networks), _copied(examples, Path(folder, "examples")), colormap, title)
        try:
            _, address, _ = blocks.launch(
                server_name=host, server_port=port, inbrowser=open_browser, share=False, quiet=True,
                prevent_thread_lock=True, max_file_size=_MOST_BYTES, footer_links=[], run_history=False, pwa=False,
                mcp_server=False, ssr_mode=False, enable_monitoring=False, theme=_theme(gradio),
                css_paths=_HERE / "page.css", js=(_HERE / "page.js").read_text(encoding="utf-8"),
            )  # fmt: skip
        except OSError as error:
            where = (
                f"port {port}" if port is not None else f"any port from {DEFAULT_PORT} to {DEFAULT_PORT + _PORTS - 1}"
            )
            raise ConfigError(
                f"{host}, {where}: the page cannot be served there ({' '.join(str(error).split())[:160]}). Choose"
                " another --host or --port."
            ) from error
        try:
            yield str(address)
        finally:
            blocks.close(verbose=False)


def _copied(files: Sequence[Path], folder: Path) -> list[Path]:
    """Copies of files under plain names: the page shows neither where they lie nor a name that is no text."""
    folder.mkdir()
    copies = [folder / f"{number:02d}_{slug(file.stem)}.{slug(file.suffix)}" for number, file in enumerate(files, 1)]
    for file, copy in zip(files, copies, strict=True):
        shutil.copyfile(file, copy)
    return copies


def wait_until_stopped() -> None:
    """Wait for Ctrl-C, or for whoever ends the process politely (SIGTERM): the uploaded files go in either case."""
    stopped = threading.Event()
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not stopped.wait(timeout=1):  # a wait without end would hold back the signal on some systems
            pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_SETTINGS = {
    "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1",
}  # fmt: skip


@contextmanager
def _environment(folder: str) -> Iterator[None]:
    """What Gradio reads from the environment: no telemetry, and where uploaded files lie."""
    settings = {**_SETTINGS, "GRADIO_TEMP_DIR": folder}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _gradio() -> Any:
    """Gradio, which takes seconds to import.

    Raises:
        ConfigError: it is not installed, or too old.
    """
    try:
        import gradio
    except ImportError as error:
        raise ConfigError("The page needs gradio. Install it: pip install 'camify[app]'") from error
    parts = tuple(int(part) for part in gradio.__version__.split(".")[:2])
    if parts < _LEAST_GRADIO:
        least = ".".join(map(str, _LEAST_GRADIO))
        raise ConfigError(f"The page needs gradio {least}, here is {gradio.__version__}: pip install -U 'camify[app]'")
    return gradio


def _theme(gradio: Any) -> Any:
    """A quiet theme whose fonts are those of the machine."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
    hues = {"primary_hue": "teal", "secondary_hue": "teal", "neutral_hue": "stone"}
    return gradio.themes.Default(**hues, font=fonts, font_mono=["ui-monospace", "Consolas", "monospace"])


# ---------------------------------------------------------------- how it looks


def _blocks(gr: Any, page: Page, examples: Sequence[Path], colormap: str, title: str) -> Any:
    """The blocks of the page, and what each control does."""
    titles = page.networks[0].titles
    offered = dict.fromkeys((colormap, *COLORMAPS))
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(_KEPT_SECONDS // 2, _KEPT_SECONDS)) as blocks:
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                picture = gr.Image(
                    type="filepath", sources=["upload", "webcam", "clipboard"], label="Picture", height=320,
                    buttons=["fullscreen"], elem_id="picture", alt_text="The picture as it was given",
                )  # fmt: skip
                _leave_closed(picture)
                target = gr.Dropdown(
                    [("the most probable one", MOST_PROBABLE), *((shown(name), k) for k, name in enumerate(titles))],
                    value=MOST_PROBABLE, label="Class whose map is shown", filterable=True, elem_id="class",
                )  # fmt: skip
                color = gr.Dropdown(list(offered), value=colormap, label="Colors of the map", elem_id="colors")
                given = _examples(gr, picture, examples)
            with gr.Column(scale=5, min_width=300):
                with gr.Row():
                    columns = [_column(gr, page, index) for index in range(len(page.networks))]
                both = gr.HTML("", elem_id="agreement", visible=len(columns) > 1)
        _connect(page, _Parts(picture, target, color, both, columns, given))
    return blocks


@dataclass(frozen=True)
class _Column:
    """The controls of one network, and where its answer stands."""

    map: Any
    threshold: Any
    otsu: Any
    answer: Any

    @property
    def controls(self) -> list[Any]:
        return [self.map, self.threshold, self.otsu]


@dataclass(frozen=True)
class _Parts:
    """The parts of the page that do something."""

    picture: Any
    target: Any
    color: Any
    both: Any
    columns: list[_Column]
    examples: tuple[Any, Sequence[str]] | None


def _column(gr: Any, page: Page, index: int) -> _Column:
    network, first = page.networks[index], page.first_controls(index)
    of = "" if len(page.networks) == 1 else f" of {shown(network.name)}"
    with gr.Column(min_width=300):
        gr.HTML(heading_fragment(network), elem_id=f"network-{index}")
        labels = list(page.answers[index].choices)
        column = _Column(
            gr.Dropdown(labels, value=first.map, label=f"Map{of}", filterable=False, elem_id=f"map-{index}"),
            gr.Slider(
                0, 1, value=first.threshold, step=0.01, label=f"Threshold of the box{of}", elem_id=f"threshold-{index}",
                buttons=[],
            ),
            gr.Checkbox(first.otsu, label=f"Otsu's threshold{of}", elem_id=f"otsu-{index}"),
            gr.HTML(message_fragment("empty", [_EMPTY], "status"), elem_id=f"answer-{index}"),
        )  # fmt: skip
        gr.HTML(network_fragment(network), elem_id=f"facts-{index}")
    return column


def _leave_closed(picture: Any) -> None:
    """Gradio gives the path of what was uploaded, and opens nothing: camify's one opener does."""
    own = Path(os.environ["GRADIO_TEMP_DIR"]).resolve()

    def path_of(payload: Any) -> str | None:
        given = None if payload is None or payload.path is None else Path(payload.path).resolve()
        return str(given) if given is not None and own in given.parents else None

    picture.preprocess = path_of


def _examples(gr: Any, picture: Any, files: Sequence[Path]) -> tuple[Any, Sequence[str]] | None:
    """Thumbnails of image files."""
    if not files:
        return None
    paths = [str(file) for file in files]
    names = [[path] for path in paths]
    thumbnails = gr.Dataset(
        components=[picture],
        samples=names,
        type="index",
        label="Examples",
        samples_per_page=len(paths),
        elem_id="examples",
    )
    return thumbnails, paths


def _connect(page: Page, parts: _Parts) -> None:
    """Say which control changes what."""
    columns = parts.columns
    inputs = [parts.picture, parts.target, parts.color, *(part for column in columns for part in column.controls)]
    pieces = [*(column.answer for column in columns), parts.both]
    thresholds = [part for column in columns for part in (column.threshold, column.otsu)]
    options: dict[str, Any] = {
        "show_progress": "minimal", "api_visibility": "private", "concurrency_id": "network",
        "trigger_mode": "always_last",
    }  # fmt: skip
    for event in (parts.picture.change, parts.target.input, parts.color.input):
        event(partial(_drawn, page, None), inputs, [*pieces, *thresholds], **options)
    for index, column in enumerate(columns):
        column.map.input(partial(_drawn, page, index), inputs, [*pieces, *thresholds], **options)
        column.otsu.input(partial(_drawn, page, None), inputs, [*pieces, *thresholds], **options)
        quiet = {**options, "show_progress": "hidden"}  # it is drawn while the hand moves
        column.threshold.input(partial(_moved, page, index), inputs, [*pieces, column.otsu], **quiet)
    if parts.examples is not None:
        thumbnails, paths = parts.examples
        thumbnails.click(paths.__getitem__, thumbnails, parts.picture, **options)


def _drawn(page: Page, restart: int | None, path: str | None, target: int, colormap: str, *values: Any) -> list[Any]:
    """The pieces, and where the thresholds stand; of the network ``restart`` it goes back to its rule's."""
    pieces, settled, both = page.show(path, target, colormap, _controls(values), restart)
    return [*pieces, both, *(value for control in settled for value in (control.threshold, control.otsu))]


def _moved(page: Page, index: int, path: str | None, target: int, colormap: str, *values: Any) -> list[Any]:
    """The pieces after the threshold of a network was moved by hand; sliders stay where the hand has them."""
    controls = _controls(values)
    controls[index] = replace(controls[index], otsu=False)
    pieces, _, both = page.show(path, target, colormap, controls)
    return [*pieces, both, False]


def _controls(values: Sequence[Any]) -> list[Controls]:
    """The values of three controls for each network."""
    return [Controls(str(values[i]), float(values[i + 1]), bool(values[i + 2])) for i in range(0, len(values), 3)]
