"""Looking at pictures: for every network one forward that all methods share, and one for every changed input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ConversionError
from ..maps import upsample
from ..methods import ForwardPass, check_targets, observe
from ..metrics.functional import centre_gaussian, masked_images, shifted
from .images import Subject
from .network import Contender
from .scenarios import ABSENT, MIRRORED, SHIFTED, UNCHANGED, mirrored

__all__ = ["Choose", "Column", "Looks", "look", "raw_maps"]

Choose = Callable[[Tensor, Sequence[Subject]], tuple[Tensor, Tensor]]
"""The compared and the absent class (N,) of subjects, from the first network's logits (N, K)."""


class Column(NamedTuple):
    """A method on a network."""

    model: str
    method: str

    def __str__(self) -> str:
        return f"{self.model}: {self.method}"


@dataclass(frozen=True)
class Looks:
    """What N pictures gave on M columns of P networks; heats all at the input size of the first network.

    Attributes:
        columns: the M columns.
        pictures: (N, 3, H, W) in [0, 1].
        targets: (N,) the compared class.
        absent: (N,) a class that is not there.
        logits: (P, N, 2) of both classes.
        probabilities: (P, N, 2).
        heats: by view (M, N, H, W) in [0, 1]; those of the mirrored input are flipped back.
        raw: (M, N, H, W) of the compared class: signed, without ReLU, upsampled.
        ranges: by view (M, N, 2), the least and largest value of the raw maps.
        masked: (M, N) probability of the compared class where only what the heat shows is left of the picture.
        centred: (P, N) the same with a blob in the middle.
    """

    columns: list[Column]
    pictures: Tensor
    targets: Tensor
    absent: Tensor
    logits: Tensor
    probabilities: Tensor
    heats: dict[str, Tensor]
    raw: Tensor
    ranges: dict[str, Tensor]
    masked: Tensor
    centred: Tensor


def look(contenders: Sequence[Contender], subjects: Sequence[Subject], choose: Choose) -> Looks:
    """All networks and methods on some pictures; the classes are chosen by the first network.

    A method that a network cannot serve is noted in its ``unserved`` and has no column.

    Raises:
        ConversionError: a network cannot be run, or no method can be served by any.
        DataError: a picture cannot be read, or a map is not finite.
    """
    size = (contenders[0].preprocessing.height, contenders[0].preprocessing.width)
    pictures = torch.stack([subject.input(contenders[0].preprocessing) for subject in subjects])
    classes: tuple[Tensor, Tensor] | None = None
    logits, probabilities, centred, columns = [], [], [], list[Column]()
    masked, raws = list[Tensor](), {view: list[Tensor]() for view in (UNCHANGED, ABSENT, MIRRORED, SHIFTED)}
    heats: dict[str, list[Tensor]] = {view: [] for view in raws}
    for contender in contenders:
        images = torch.stack([subject.input(contender.preprocessing) for subject in subjects])
        with observe(contender.model, images, gradients=contender.uses_gradients) as forward:
            classes = classes or choose(forward.logits, subjects)
            targets, absent = (check_targets(chosen, forward.logits) for chosen in classes)
            maps = {UNCHANGED: raw_maps(contender, forward, targets)}
            maps[ABSENT] = raw_maps(contender, forward, absent)
            both = torch.stack([targets, absent], 1)
            logits.append(forward.logits.gather(1, both))
            probabilities.append(forward.logits.softmax(1).gather(1, both))
            masked += _masked(contender, forward, maps[UNCHANGED], targets)
            blob = centre_gaussian(images.shape[-2], images.shape[-1]).expand(len(images), -1, -1)
            centred.append(_probability(forward, masked_images(images, blob), targets))
        for view, change in ((MIRRORED, mirrored), (SHIFTED, shifted)):
            with observe(contender.model, change(images), gradients=contender.uses_gradients) as forward:
                maps[view] = raw_maps(contender, forward, targets)
        columns += [Column(contender.name, method) for method in maps[UNCHANGED]]
        for view, found in maps.items():
            raws[view] += [mirrored(raw) if view == MIRRORED else raw for raw in found.values()]
            for name, raw in found.items():
                heat = contender.methods[name].heat(raw, size)
                heats[view].append(mirrored(heat) if view == MIRRORED else heat)
    if not columns or classes is None:
        reasons = {reason for contender in contenders for reason in contender.unserved.values()}
        raise ConversionError(f"--method: no network can serve one. {' '.join(sorted(reasons))}")
    return Looks(
        columns,
        contenders[0].preprocessing.restore(pictures),
        *classes,
        torch.stack(logits),
        torch.stack(probabilities),
        {view: torch.stack(found) for view, found in heats.items()},
        torch.stack([upsample(raw, size) for raw in raws[UNCHANGED]]),
        {view: torch.stack([_range(raw) for raw in found]) for view, found in raws.items()},
        torch.stack(masked),
        torch.stack(centred),
    )


def raw_maps(contender: Contender, forward: ForwardPass, targets: Tensor) -> Mapping[str, Tensor]:
    """Raw maps (N, h, w), or (N, T, h, w), by method; one after the other: gradients of one class are taken once.

    A method that the network cannot serve is noted in the contender's ``unserved`` and is left out.
    """
    found = {name: _served(contender, name, forward, targets) for name in contender.served}
    return {name: raw for name, raw in found.items() if raw is not None}


def _served(contender: Contender, name: str, forward: ForwardPass, targets: Tensor) -> Tensor | None:
    try:
        return contender.methods[name].look(forward, targets)
    except ConversionError as error:
        contender.unserved[name] = str(error)
        return None


def _masked(contender: Contender, forward: ForwardPass, maps: Mapping[str, Tensor], targets: Tensor) -> list[Tensor]:
    """Per method the probability (N,) of the images times the heat, in normalised space: zero is the mean colour."""
    size = (forward.images.shape[-2], forward.images.shape[-1])
    heats = [contender.methods[name].heat(raw, size) for name, raw in maps.items()]
    return [_probability(forward, masked_images(forward.images, heat), targets) for heat in heats]


def _probability(forward: ForwardPass, images: Tensor, targets: Tensor) -> Tensor:
    return forward.network(images).softmax(1).gather(1, targets[:, None])[:, 0]


def _range(raw: Tensor) -> Tensor:
    """(N, 2): the least and the largest value of maps (N, h, w)."""
    return torch.stack([raw.amin((1, 2)), raw.amax((1, 2))], dim=1)
