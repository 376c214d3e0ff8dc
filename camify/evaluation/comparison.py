"""camify compare: methods and networks side by side, as figures and in numbers, into a folder that is whole."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from ..errors import ConfigError
from ..files import free_folder, whole_folder
from ..methods import METHODS, find_method
from ..report.grid import Row
from .class_names import class_index, count_classes
from .comparison_agreement import all_tables
from .comparison_drawings import AT_A_GLANCE, Drawing, drawings, overview, overview_row
from .comparison_report import Page, to_html, to_json, to_markdown
from .comparison_results import Comparison
from .comparison_summary import Localisation
from .demo import DEMO_METHODS, demo_contenders, demo_subjects
from .image_batches import image_files
from .image_figures import Finding, findings
from .images import Subject, boxes_of_class, find_subjects
from .network import Contender, class_names_of, find_contenders
from .scenarios import SCENARIOS, absent_classes
from .timing import method_costs
from .views import Column, Looks, look

__all__ = ["compare", "compare_files"]

MANIFEST = "compare.json"
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
) -> Path:
    """Compare methods on networks for image files, or in the demo; the folder that was written.

    Args:
        images: files and folders; boxes come from a ``boxes.csv`` in their folder or one of the three above.
        models: source strings, as ``camify.surgery.resolve`` takes them; of the same classes.
        methods: names; None takes those that need one forward.
        out: folder to write.
        target: the class to compare, by name or number; None takes the first network's top-1 of every picture.
        demo: generated scenes and the embedded legacy network against its conversion, instead of images and models.
        figures: number of pictures that get figures of their own; all of them get into the tables.
        overwrite: replace the folder where it holds a comparison.

    Raises:
        CamifyError: something given cannot be used; nothing is written then.
    """
    folder = free_folder(Path(out), MANIFEST, "--out", overwrite=overwrite)
    names = list(methods or DEMO_METHODS)
    for name in names:
        find_method(name)
    if demo:
        if images or models or target is not None:
            raise ConfigError(
                "--demo: brings its own images, models and classes. Leave out IMAGES, --model and --target."
            )
        contenders, subjects = demo_contenders(names), demo_subjects()
        title = "Comparison of methods: camify's demo"
    else:
        if not images or not models:
            raise ConfigError("compare: give IMAGES and --model, or --demo.")
        subjects = find_subjects(image_files(images))
        contenders = find_contenders(models, names)
        title = "Comparison of methods"
    return compare(contenders, subjects, folder, title=title, target=target, figures=figures)


def compare(
    contenders: Sequence[Contender],
    subjects: Sequence[Subject],
    folder: Path,
    *,
    title: str,
    target: str | None = None,
    figures: int = 24,
) -> Path:
    """Look, measure, draw and write the folder, aside first and renamed when it is whole."""
    start = time.perf_counter()
    names = class_names_of(contenders, [count_classes(c.model, c.preprocessing) for c in contenders])
    choice = _Choice(names, None if target is None else class_index(target, names, "--target"))
    columns: list[Column] = []
    found: list[Finding] = []
    drawn: list[Drawing] = []
    rows: list[Row] = []
    localisation: Localisation | None = None
    shown = _spread(len(subjects), figures)
    for looks, those, offset in _look_at_all(contenders, subjects, choice):
        columns = looks.columns
        localisation = localisation or Localisation(columns)
        chunk = findings(looks, those)
        localisation.update(looks, chunk)
        for index, finding in enumerate(chunk):
            number = offset + index
            if number in shown:
                drawn += drawings(number + 1, looks, index, finding, contenders, names)
            if len(rows) < AT_A_GLANCE and number in _spread(len(subjects), AT_A_GLANCE):
                rows.append(overview_row(looks, index, finding, names))
        found += chunk
    drawn.append(overview(rows, [(column.model, column.method) for column in columns]))
    batch = subjects[:_CHUNK]
    targets = torch.tensor([finding.target for finding in found[:_CHUNK]])
    costs = {c.name: method_costs(c, _inputs(c, batch), targets) for c in contenders}
    measured = localisation.compute() if localisation is not None else []
    comparison = Comparison(contenders, columns, names, found, measured, costs)
    facts = _facts(comparison, choice.given, time.perf_counter() - start)
    counts = f"{len(found)} pictures, {len(contenders)} networks, {len(contenders[0].methods)} methods"
    page = Page(title, counts, drawn, len(found) - len(shown), all_tables(comparison), facts)
    _write(folder, page, to_json(comparison, facts))
    return folder


@dataclass(frozen=True)
class _Choice:
    """The classes that are looked at: the given one, the subject's own, or the first network's top-1."""

    names: Sequence[str]
    given: int | None

    def __call__(self, logits_NK: Tensor, subjects: Sequence[Subject]) -> tuple[Tensor, Tensor]:
        best = logits_NK.argmax(1).tolist()
        chosen = [
            self.given if self.given is not None else top if subject.target is None else subject.target
            for top, subject in zip(best, subjects, strict=True)
        ]
        present = [{self.names.index(label) for label in s.labels if label in self.names} for s in subjects]
        return torch.tensor(chosen), absent_classes(logits_NK, chosen, present)


def _look_at_all(
    contenders: Sequence[Contender], subjects: Sequence[Subject], choice: _Choice
) -> Iterator[tuple[Looks, list[Subject], int]]:
    """What the pictures gave, in chunks of constant memory, with the boxes of the compared class."""
    starts = range(0, len(subjects), _CHUNK)
    for offset in track(starts, "comparing", disable=not sys.stderr.isatty()):
        chunk = subjects[offset : offset + _CHUNK]
        looks = look(contenders, chunk, choice)
        those = [boxes_of_class(subject, choice.names[int(t)]) for subject, t in zip(chunk, looks.targets, strict=True)]
        yield looks, those, offset


def _inputs(contender: Contender, subjects: Sequence[Subject]) -> Tensor:
    return torch.stack([subject.input(contender.preprocessing) for subject in subjects])


def _spread(count: int, most: int) -> set[int]:
    """At most so many of the numbers below ``count``, evenly spread."""
    return set(range(count)) if count <= most else {index * count // most for index in range(most)}


def _facts(comparison: Comparison, given: int | None, seconds: float) -> list[tuple[str, str]]:
    facts = []
    for contender in comparison.contenders:
        notes = [contender.source, *contender.notes]
        notes += [f"{method}: {reason}" for method, reason in contender.unserved.items()]
        facts.append((contender.name, "; ".join(notes)))
    kinds = [finding.scenario for finding in comparison.findings]
    compared = "the first network's top-1 of every picture, or the class of a generated one"
    return [
        *facts,
        ("methods", ", ".join(comparison.contenders[0].methods) + f"; known: {', '.join(METHODS)}"),
        ("compared class", compared if given is None else comparison.class_names[given]),
        ("class not present", "the first network's least probable class that no box of the picture has"),
        ("pictures", ", ".join(f"{kinds.count(kind)} {kind}" for kind in SCENARIOS if kind in kinds)),
        ("boxes", "those of the compared class where the picture's boxes have that label, else all of the picture"),
        ("heat", "raw map, ReLU where the method has one, upsampled (bilinear, half-pixel), min-max of each map"),
        ("size", f"all heats at the input size of {comparison.contenders[0].name}"),
        ("time", f"{seconds:.0f} s"),
    ]


def _write(folder: Path, page: Page, figures: str) -> None:
    with whole_folder(folder) as aside:
        (aside / "figures").mkdir()
        for drawing in page.drawings:
            (aside / "figures" / f"{drawing.name}.png").write_bytes(drawing.png)
        (aside / "compare.html").write_text(to_html(page), encoding="utf-8")
        (aside / "compare.md").write_text(to_markdown(page), encoding="utf-8")
        (aside / MANIFEST).write_text(figures, encoding="utf-8")
