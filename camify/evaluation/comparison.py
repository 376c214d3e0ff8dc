"""camify compare: methods and networks side by side, as figures and in numbers, into a folder that is whole."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..console import console
from ..data.own_boxes import label_guesses
from ..drawing.grid import Row
from ..errors import ConfigError
from ..files import COMPARISON, free_folder, whole_folder
from ..methods import METHODS, ForwardPass, find_method
from ..preprocessing import Preprocessing
from ..progress import tracked
from ..task import Task, class_index
from .comparison_figures import (
    Column,
    Comparison,
    ImageFigures,
    compare_batch,
    image_figures,
    localization_rows,
)
from .comparison_report import (
    AT_A_GLANCE,
    Drawing,
    Page,
    comparison_tables,
    drawings,
    overview,
    overview_row,
    to_html,
    to_json,
    to_markdown,
)
from .demo import DEMO_METHODS, demo_images, demo_networks
from .images import EvaluationImage, boxes_of_class, find_files, images_with_notes
from .network import ExplainedNetwork, find_networks, shared_titles
from .scenarios import SCENARIOS, absent_classes
from .timing import method_costs

__all__ = ["compare", "compare_files"]

OWN_FILES = ("compare.html", "compare.md", COMPARISON, "figures", "figures/*.png")
_CHUNK = 8  # pictures looked at together


def compare_files(
    images: Sequence[str],
    models: Sequence[str],
    methods: Sequence[str] | None = None,
    *,
    out: str,
    target: str | None = None,
    demo: bool = False,
    figures: int = 24,
    overwrite: bool = False,
    task: str | Task | None = None,
    check_images: bool = True,
    bits: int | None = None,
    preprocessing: str | Mapping[str, Any] | Preprocessing | None = None,
    augmentations: str | Sequence[str] | None = None,
    class_names: str | Path | None = None,
) -> Path:
    """Compare methods on networks for image files, or in the demo; the folder that was written.

    Args:
        images: files and folders; boxes come from a ``boxes.csv`` in their folder or one of the three above.
        models: source strings, as ``camify.conversion.resolve`` takes them; of the same classes.
        methods: names; None takes those that need one forward.
        out: folder to write.
        target: the class to compare, by name or number; None takes the first network's top-1 of every picture.
        demo: generated scenes and the embedded legacy network against its conversion, instead of images and models.
        figures: number of pictures that get figures of their own; all of them get into the tables.
        overwrite: replace the folder where it holds a comparison.
        task: what the logits mean; None takes what each network says.
        check_images: decode every image before the work starts.
        bits: how many bits gray files of 16 or 32 bits use (see ``Preprocessing``); None takes what each network says.
        preprocessing: of the networks that do not say what they expect (see ``camify.evaluate``).
        augmentations: of the methods, see ``camify.explain``.
        class_names: file of names, see ``read_class_names``; None takes those of the networks.

    Raises:
        CamifyError: something given cannot be used; nothing is written then.
    """
    folder = free_folder(Path(out), COMPARISON, OWN_FILES, "--out", overwrite=overwrite)
    names, notes = list(methods or DEMO_METHODS), list[str]()
    for name in names:
        find_method(name)
    if demo:
        if images or models or target is not None or class_names is not None:
            raise ConfigError(
                "--demo: brings its own images, models and classes. Leave out IMAGES, --model, --target and"
                " --class_names."
            )
        networks, pictures = demo_networks(names, augmentations=augmentations), demo_images()
        title = "Comparison of methods: camify's demo"
    else:
        if not images or not models:
            raise ConfigError("compare: give IMAGES and --model, or --demo.")
        search = find_files(images, outside=folder)
        networks = find_networks(
            models, names, task=task, bits=bits, preprocessing=preprocessing, augmentations=augmentations
        )
        for network in networks:
            network.name_classes(class_names)
        stated = {network.preprocessing.bits for network in networks}
        pictures, notes = images_with_notes(search.paths, check_images=check_images, bits=_common_bits(stated))
        notes = [*search.left_out.notes(), *notes]
        title = "Comparison of methods"
    return compare(networks, pictures, folder, title=title, target=target, figures=figures, notes=notes)


def _common_bits(stated: Collection[int | None]) -> int | None:
    """What several networks say of gray files; the most, so that no file is refused that one of them can read."""
    return max((bits for bits in stated if bits is not None), default=None)


def compare(
    networks: Sequence[ExplainedNetwork],
    images: Sequence[EvaluationImage],
    folder: Path,
    *,
    title: str,
    target: str | None = None,
    figures: int = 24,
    notes: Sequence[str] = (),
) -> Path:
    """Explain, measure, draw and write the folder, aside first and renamed when it is whole; print what has to be said.

    Args:
        networks: of the same classes.
        images: the pictures.
        folder: to write.
        title: of the page.
        target: the class to compare.
        figures: number of pictures that are drawn.
        notes: what has to be said about the pictures.
    """
    start = time.perf_counter()
    names = shared_titles(networks)
    notes = [*notes, *_label_notes(images, names)]
    for note in notes:
        console(soft_wrap=True).print(f"Images: {note}.")
    choice = _Choice(names, None if target is None else class_index(target, names, "--target"))
    columns: list[Column] = []
    measured: list[ImageFigures] = []
    drawn: list[Drawing] = []
    rows: list[Row] = []
    with_figure, at_a_glance = _spread(len(images), figures), _spread(len(images), AT_A_GLANCE)
    offsets = range(0, len(images), _CHUNK)
    for offset in tracked(offsets, "comparing, batch", len(offsets)):
        chunk = images[offset : offset + _CHUNK]
        batch = compare_batch(networks, chunk, choice)
        columns, targets = batch.columns, batch.targets.tolist()
        boxed = [boxes_of_class(image, names[target]) for image, target in zip(chunk, targets, strict=True)]
        for index, figures_of_image in enumerate(image_figures(batch, boxed)):
            number = len(measured)
            if number in with_figure:
                drawn += drawings(number + 1, batch, index, figures_of_image, networks, names)
            if number in at_a_glance:
                rows.append(overview_row(batch, index, figures_of_image, names))
            measured.append(figures_of_image)
    drawn.append(overview(rows, [(column.model, column.method) for column in columns]))
    first = torch.tensor([figures_of_image.target for figures_of_image in measured[:_CHUNK]])
    costs = {}
    for network in networks:
        inputs = torch.stack([image.input(network.preprocessing) for image in images[:_CHUNK]])
        costs[network.name] = method_costs(network, inputs, first)
    comparison = Comparison(networks, columns, names, measured, localization_rows(measured), costs)
    facts = _facts(comparison, choice.given, time.perf_counter() - start)
    facts += [("images", "; ".join(notes))] if notes else []
    numbers = {"image": len(measured), "network": len(networks), "method": len(networks[0].methods)}
    counts = ", ".join(f"{number} {name}{'s' if number != 1 else ''}" for name, number in numbers.items())
    page = Page(title, counts, drawn, len(measured) - len(with_figure), comparison_tables(comparison), facts)
    _write(folder, page, to_json(comparison, facts))
    return folder


@dataclass(frozen=True)
class _Choice:
    """The classes that are compared: the given one, the image's own, or the first network's top-1."""

    names: Sequence[str]
    given: int | None

    def __call__(self, forward: ForwardPass, images: Sequence[EvaluationImage]) -> tuple[Tensor, Tensor]:
        best = forward.classes.predicted(forward.logits).tolist()
        chosen = [
            self.given if self.given is not None else top if image.target is None else image.target
            for top, image in zip(best, images, strict=True)
        ]
        present = [{self.names.index(label) for label in image.labels if label in self.names} for image in images]
        return torch.tensor(chosen), absent_classes(forward.logits, chosen, present)


def _label_notes(images: Sequence[EvaluationImage], names: Sequence[str]) -> list[str]:
    """What has to be said of boxes whose label is no class of the networks."""
    labels = Counter(label for image in images for label in image.labels if label not in names)
    if not labels:
        return []
    return [f"{labels.total()} boxes have labels that are no class of the networks: {label_guesses(labels, names)}"]


def _spread(count: int, most: int) -> set[int]:
    """At most so many of the numbers below ``count``, evenly spread."""
    return set(range(count)) if count <= most else {index * count // most for index in range(most)}


def _facts(comparison: Comparison, given: int | None, seconds: float) -> list[tuple[str, str]]:
    facts = []
    for network in comparison.networks:
        notes = [network.source, *network.notes]
        notes += [f"{method}: {reason}" for method, reason in network.unserved.items()]
        facts.append((network.name, "; ".join(notes)))
    kinds = [image.scenario for image in comparison.images]
    compared = "the first network's top-1 of every image, or the class of a generated one"
    return [
        *facts,
        ("methods", ", ".join(comparison.networks[0].methods) + f"; known: {', '.join(METHODS)}"),
        ("compared class", compared if given is None else comparison.class_names[given]),
        ("task", ", ".join(f"{network.name}: {network.classes.task}" for network in comparison.networks)),
        ("class not present", "the first network's least probable class that no box of the image has"),
        ("pictures", ", ".join(f"{kinds.count(kind)} {kind}" for kind in SCENARIOS if kind in kinds)),
        ("boxes", "those of the compared class where the image's boxes have that label, else all of the image"),
        ("heat", "raw map, ReLU where the method has one, upsampled (bilinear, half-pixel), min-max of each map"),
        ("size", f"all heat maps at the input size of {comparison.networks[0].name}"),
        ("time", f"{seconds:.0f} s"),
    ]


def _write(folder: Path, page: Page, figures: str) -> None:
    with whole_folder(folder) as aside:
        (aside / "figures").mkdir()
        for drawing in page.drawings:
            (aside / "figures" / f"{drawing.name}.png").write_bytes(drawing.png)
        (aside / "compare.html").write_text(to_html(page), encoding="utf-8")
        (aside / "compare.md").write_text(to_markdown(page), encoding="utf-8")
        (aside / COMPARISON).write_text(figures, encoding="utf-8")
