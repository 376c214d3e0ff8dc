"""What the page says of answers and maps, as pieces of HTML: every text is escaped, pictures stand inside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ..console import fixed
from ..drawing.encoding import encoded
from ..evaluation.network import ExplainedNetwork
from ..methods.forward_pass import unwrapped
from ..model import CAMNet
from ..reports.html import render
from .answers import Agreement, Answer, Identity, MapView

__all__ = ["agreement_fragment", "answer_fragment", "heading_fragment", "message_fragment", "network_fragment"]

_HERE = Path(__file__).parent


def answer_fragment(answer: Answer, view: MapView) -> str:
    """The picture with the map and its boxes, the most probable classes, and the figures of both."""
    titles, probabilities = answer.network.titles, answer.probabilities
    shown = answer.top()
    rows = [
        {
            "title": titles[k],
            "share": f"{probabilities[k]:.4f}",
            "text": _share(float(probabilities[k])),
            "is_shown": k == view.target,
        }
        for k in (shown if view.target in shown else [*shown, view.target])
    ]
    title = titles[view.target]
    boxes = _box_sentence(view, answer.size)
    return render(
        _HERE / "answer.html.j2",
        picture=encoded(view.picture, "webp"),
        width=view.picture.width,
        height=view.picture.height,
        alternative=f"{view.choice.label}: map of {title} over the picture. {boxes}",
        title=title,
        probability=_share(float(probabilities[view.target])),
        logit=fixed(float(answer.logits[view.target]), 3),
        choice=view.choice.label,
        note=view.note,
        boxes=boxes,
        rule=_rule_sentence(view),
        identity=None if view.identity is None else _identity_sentence(view.identity, view.choice.kind),
        rows=rows,
        is_exclusive=answer.network.classes.task.exclusive,
        notes=answer.notes,
        milliseconds=(f"{answer.milliseconds:.0f}", f"{view.milliseconds:.0f}"),
    )


def heading_fragment(network: ExplainedNetwork) -> str:
    """The name of a network, and which of its weights were never trained."""
    model = unwrapped(network.model)
    untrained = model.untrained if isinstance(model, CAMNet) else ()
    return render(_HERE / "heading.html.j2", name=network.name, untrained=untrained)


def network_fragment(network: ExplainedNetwork) -> str:
    """What a network is, and what had to be assumed of it."""
    facts = f"{network.class_count} classes, {network.classes.task}; takes {network.preprocessing.describe()}"
    return render(_HERE / "network.html.j2", name=network.name, source=network.source, facts=facts, notes=network.notes)


def agreement_fragment(networks: Sequence[ExplainedNetwork], answers: Sequence[Answer], figures: Agreement) -> str:
    """Whether two networks say the same of a picture, and how alike their maps are."""
    titles = networks[0].titles
    if figures.same_class:
        classes = f"Both networks say {titles[answers[0].predicted]}."
    else:
        said = [f"{one.name} says {titles[answer.predicted]}" for one, answer in zip(networks, answers, strict=True)]
        classes = f"{said[0]}, {said[1]}."
    correlation = _figure(figures.correlation, "the same everywhere in one of them")
    iou = _figure(figures.box_iou, "one map makes no box")
    maps = f"Rank correlation of the two maps: {correlation}. Overlap of their boxes (IoU): {iou}."
    return message_fragment("agreement", [classes, maps], "status")


def message_fragment(kind: str, lines: Sequence[str], role: str) -> str:
    """Lines of a ``kind`` (``"agreement"``, ``"empty"``, ``"refusal"``), which screen readers read aloud."""
    return render(_HERE / "message.html.j2", kind=kind, lines=lines, role=role)


def _share(value: float) -> str:
    return "< 0.001" if 0 < value < 0.0005 else f"{value:.3f}"


def _figure(value: float, otherwise: str) -> str:
    return f"none, {otherwise}" if math.isnan(value) else f"{value:.2f}"


def _box_sentence(view: MapView, size: tuple[int, int]) -> str:
    """Where the boxes lie and how much of the picture they take.

    Coordinates are pixels of the file, from its upper left corner.
    """
    if not len(view.boxes):
        return "No box: the map shows nothing."
    whole, parts = size[0] * size[1], list[str]()
    for x0, y0, x1, y1 in view.boxes.tolist():
        share = (x1 - x0) * (y1 - y0) / whole
        parts.append(f"x {x0:.0f} to {x1:.0f}, y {y0:.0f} to {y1:.0f} ({share:.0%} of the picture)")
    many = "Box" if len(parts) == 1 else f"{len(parts)} boxes"
    return f"{many}: {'; '.join(parts)}, in pixels of {size[1]} by {size[0]}."


def _rule_sentence(view: MapView) -> str:
    """Which pixels belong to a box, and who said so."""
    reached = f"{view.region_share:.0%} of the picture reaches the threshold {view.threshold:.2f}"
    if view.as_the_rule_says:
        return f"{reached}. Rule: {view.rule}."
    by_otsu = " (Otsu's, of this map)" if isinstance(view.rule.threshold, str) else " (by hand)"
    share = "" if view.rule.percentile is None else f" {view.rule.percentile:g}"
    return f"{reached}{by_otsu} of the {view.rule.normalizer}{share} normalized map."


def _identity_sentence(identity: Identity, kind: str) -> str:
    """The sum that ties the map to the logit, with its numbers."""
    total = identity.mean + identity.bias
    sign = "+" if identity.bias >= 0 else "-"
    numbers = f"mean(map) + bias = {identity.mean:.4f} {sign} {abs(identity.bias):.4f} = {total:.4f}"
    if kind == "plain":
        return f"{numbers}; logit {identity.logit:.4f}"
    shared = f"{'less' if identity.rest > 0 else 'plus'} {abs(identity.rest):.4f}, which all classes share"
    return f"{numbers}; logit {identity.logit:.4f} {shared}: the probabilities are the same"
