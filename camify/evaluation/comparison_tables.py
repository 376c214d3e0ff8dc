"""The tables with one row per method and network: localisation, faithfulness, changed inputs, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..metrics.functional import centre_gaussian
from ..report.tables import MISSING, Table, count, number, percent, percents
from .comparison_results import Comparison, refusal
from .comparison_summary import groups, mean_value, nan_mean
from .image_figures import Finding
from .scenarios import UNCHANGED
from .timing import ALL

__all__ = ["changes", "cost_table", "drop_by_scenario", "faithfulness", "localisation", "pointing_by_scenario"]


def localisation(found: Comparison) -> Table:
    """MaxBoxAcc and the pointing game beside the centre."""
    hits = mean_value(found.findings, "pointing")
    middle = nan_mean([finding.centre["pointing"] for finding in found.findings])
    rows = [
        [*percents([row.accuracies[index] for row in found.localisation]), f"{threshold:.2f}"]
        for index, threshold in enumerate(found.localisation[0].thresholds if found.localisation else [])
    ]
    rows = [[*row, percent(hits.mean[index]), count(hits.count[index])] for index, row in enumerate(rows)]
    centre = [*percents([row.centre_accuracy for row in found.localisation]), MISSING]
    return Table(
        "Localisation",
        "Do the maps find the object?",
        ["", *(f"MaxBoxAcc, {row.group} (N {row.count})" for row in found.localisation), "threshold", "pointing", "N"],
        [*_labelled(found, rows), ["centre, no network", *centre, percent(middle.mean[0]), count(middle.count[0])]]
        if rows
        else [],
        "MaxBoxAcc (Choe et al. 2020): the share of pictures on which the box of the largest region above one threshold"
        " has IoU >= 0.5 with a true box. The threshold is the best one for these very pictures, which flatters every"
        " method, more so on few; the centre box is chosen likewise. Pointing: the hottest pixel lies in a box.",
    )


def pointing_by_scenario(found: Comparison) -> Table:
    """The pointing game, scenario by scenario."""
    split, rows, centre = _by_scenario(found, "pointing")
    return Table(
        "Localisation",
        "Pointing game by scenario",
        ["", *_heads(split)],
        [*rows, ["centre, no network", *percents([mean[0] for mean in centre])]] if found.localisation else [],
        "The share of pictures whose hottest pixel lies in a box. `centre` is the middle pixel, whatever is in the"
        " picture; of several instances one is enough, which makes them the easier ones.",
    )


def faithfulness(found: Comparison) -> Table:
    """Average drop and increase."""
    means = [mean_value(found.findings, name).mean for name in ("drop", "increase", "mean_heat")]
    rows = [[*percents([means[0][i], means[1][i]]), number(means[2][i])] for i in range(len(found.columns))]
    centre = [nan_mean([finding.centre[name] for finding in found.findings]).mean for name in ("drop", "increase")]
    covered = centre_gaussian(100, 100).mean()
    blobs = [
        [f"{contender.name}: centre blob", *percents([mean[index] for mean in centre]), number(covered)]
        for index, contender in enumerate(found.contenders)
    ]
    return Table(
        "Faithfulness",
        f"What is left of the class when only the hot parts are seen, N = {len(found.findings)}",
        ["", "average drop", "increase", "mean heat"],
        [*_labelled(found, rows), *blobs],
        "Chattopadhay et al. 2018: the normalised picture is multiplied by the heat, so that what is cold fades to the"
        " mean colour. Average drop: the share of the class's probability that is lost, less is better; increase: how"
        " often it grows, more is better. Both reward heat that covers much, and networks never saw such pictures; a"
        " method that does not beat the blob in the middle shows nothing by these figures.",
    )


def drop_by_scenario(found: Comparison) -> Table:
    """Average drop, scenario by scenario."""
    split, rows, centre = _by_scenario(found, "drop")
    blobs = [
        [f"{contender.name}: centre blob", *percents([mean[index] for mean in centre])]
        for index, contender in enumerate(found.contenders)
    ]
    return Table(
        "Faithfulness",
        "Average drop by scenario",
        ["", *_heads(split)],
        [*rows, *blobs] if len(split) > 2 else [],
        "Less is better, but heat that covers more of the picture loses less: compare with the mean heat.",
    )


def changes(found: Comparison) -> Table:
    """What mirroring, shifting and asking for another class do to the heat."""
    names = ("mirrored", "shifted", "absent")
    means = [mean_value(found.findings, name).mean for name in names]
    empty = mean_value(found.findings, "absent_empty").mean
    rows = [[*(number(mean[i]) for mean in means), percent(empty[i])] for i in range(len(found.columns))]
    return Table(
        "Changed inputs, changed question",
        f"Correlation with the heat of the unchanged picture and the compared class, N = {len(found.findings)}",
        ["", "mirrored input", "shifted input", "class not present", "of it without heat"],
        _labelled(found, rows),
        "Mirrored and shifted (by an eighth of the sides; what leaves the picture is lost): 1 is heat that moves along"
        " with the picture; what is missing is the network's and its grid's doing as much as the method's. Class not"
        " present: near 1 is a method that shows the same place for a class that is not there: what is salient, and not"
        " why it is this class. Near 0 or below is evidence that differs from class to class. Where all classes of a"
        " network are in a picture, the least probable one stands in.",
    )


def cost_table(costs: Mapping[str, dict[str, Any]]) -> Table:
    """Time as a ratio to a plain forward, by network as ``method_costs`` gives it."""
    rows = []
    for model, measured in costs.items():
        plain = 1000 * measured["forward_seconds"] / measured["batch"]
        rows += [[f"{model}: plain forward", "1", f"{plain:.1f}"]]
        rows += [
            [f"{model}: {name}", number(ratio), f"{plain * ratio:.1f}"] for name, ratio in measured["ratios"].items()
        ]
    first = next(iter(costs.values()))
    return Table(
        "Cost",
        "Time of finished heats as a ratio to a plain forward of the same network",
        ["", "ratio", "ms per picture"],
        rows,
        f"Medians of runs in turns, warm, on this machine ({_conditions(first)}), upsampled and normalised;"
        f" `{ALL}`: one forward for every method. On a small network the fixed work of finding the layer counts much,"
        " on a large one it vanishes; a busy machine makes these figures noisy.",
    )


def _conditions(measured: dict[str, Any]) -> str:
    threads = "1 thread" if measured["threads"] == 1 else f"{measured['threads']} threads"
    return f"batch {measured['batch']}, {threads}, up to {measured['repeats']} repeats"


def _labelled(found: Comparison, rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """The columns' rows with their labels; methods that a network cannot serve say so, in their place."""
    by_column = {(column.model, column.method): row for column, row in zip(found.columns, rows, strict=True)}
    labelled = []
    for contender in found.contenders:
        for method in contender.methods:
            row = by_column.get((contender.name, method))
            blank = [refusal(contender, method), *[MISSING] * (len(rows[0]) - 1)]
            labelled.append([f"{contender.name}: {method}", *(blank if row is None else row)])
    return labelled


def _by_scenario(found: Comparison, value: str) -> tuple[dict[str, list[Finding]], list[list[str]], list[Tensor]]:
    """A value in every scenario: the scenarios, the columns' rows in percent, and the centre's means."""
    split = _scenarios(found)
    means = [mean_value(those, value).mean for those in split.values()]
    centre = [nan_mean([finding.centre[value] for finding in those]).mean for those in split.values()]
    rows = [percents([mean[index] for mean in means]) for index in range(len(found.columns))]
    return split, _labelled(found, rows), centre


def _scenarios(found: Comparison) -> dict[str, list[Finding]]:
    return {name: those for name, (view, those) in groups(found.findings).items() if view == UNCHANGED}


def _heads(split: dict[str, list[Finding]]) -> list[str]:
    return [f"{name} (N {len(those)})" for name, those in split.items()]
