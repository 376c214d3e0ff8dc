"""Classes by name: which row of an old classifier stands for which class of a new one."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..checkpoint.certificate import TOLERANCE, Part
from ..errors import ConversionError
from ..eval_mode import without_hooks
from ..model import CAMNet
from .new_layers import FILLERS

__all__ = ["check_names", "draw_classifier", "match_rows", "put_rows", "select_classes"]

Rows = list[int | None]


def check_names(names: Sequence[str], option: str) -> None:
    """Refuse lists that cannot name classes.

    Raises:
        ConversionError: a name occurs twice, or there is none; ``option`` says in which argument.
    """
    twice = [repr(name) for name, count in Counter(names).items() if count > 1]
    if twice or not names or isinstance(names, str):
        problem = f"{', '.join(twice[:5])} occurs more than once" if twice else "expected a list of names"
        raise ConversionError(f"{option}: {problem}. Give every class one name of its own.")


def match_rows(legacy: Sequence[str], wanted: Sequence[str]) -> Rows:
    """The legacy's row of every wanted class, or None.

    Names match exactly, or else without regard to case and with space, ``_`` and ``-`` taken for the same
    (``"Golden_Retriever"`` is ``"golden retriever"``). A reading that is not the only one is none: names that occur
    twice in the legacy (in some lists of ImageNet's, "crane") match nothing, and a row goes to one class only.
    """
    counts = Counter(legacy)
    exact = {name: row for row, name in enumerate(legacy) if counts[name] == 1}
    rows: Rows = [exact.get(name) for name in wanted]
    taken = {row for row in rows if row is not None}
    folded = _unique({row: _fold(name) for row, name in enumerate(legacy) if row not in taken})
    others = _unique({place: _fold(name) for place, name in enumerate(wanted) if rows[place] is None})
    for name, place in others.items():
        if wanted[place] not in counts:  # one that occurs twice stays without a row
            rows[place] = folded.get(name)
    return rows


def _unique(names: dict[int, str]) -> dict[str, int]:
    counts = Counter(names.values())
    return {name: key for key, name in names.items() if counts[name] == 1}


def _fold(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def draw_classifier(channels: int, classes: int, filler: str = "gaussian") -> nn.Linear:
    """A new linear layer without bias at the start; ``"gaussian"``, N(0, 0.01), is how wsolevaluation draws it."""
    classifier = nn.Linear(channels, classes)
    FILLERS[filler](classifier.weight)
    nn.init.zeros_(classifier.bias)
    return classifier


@torch.no_grad()
def put_rows(net: CAMNet, new: nn.Linear, rows: Rows, images: Tensor) -> None:
    """Put ``new`` in place of a proven classifier, with that one's rows where ``rows`` names them, bit for bit.

    The certificate keeps the comparison with the legacy's logits, measured on all its classes, and says what became
    of the rows; the identity is measured again.

    Args:
        net: a network with the legacy's classifier, and its certificate.
        new: the layer for the wanted classes.
        rows: of every wanted class the row of the old classifier, or None.
        images: (N, C, H, W) to prove the identity with.

    Raises:
        ConversionError: the maps do not add up to the logits.
    """
    old, certificate = net.classifier, net.certificate
    new.to(old.weight)
    new.training = old.training
    kept = [(place, row) for place, row in enumerate(rows) if row is not None]
    for place, row in kept:
        new.weight[place] = old.weight[row]
        new.bias[place] = 0.0 if old.bias is None else old.bias[row]
    net.classifier = new
    if len(kept) < len(rows):
        net.untrained = tuple(dict.fromkeys((*net.untrained, "classifier")))
    error = net.identity_error(images) if net.pool_name == "gap" else None  # other pools have none
    if error is not None and not error <= TOLERANCE:
        raise ConversionError(f"The maps do not add up to the logits: error {error:.1e}, allowed {TOLERANCE:.0e}.")
    if certificate is None:
        return
    *others, head = certificate.parts
    size = new.in_features + 1
    old_size = sum(p.numel() for p in old.parameters())
    parts = [*others, replace(head, parameters=head.parameters - old_size + size * len(kept))]
    fresh, lost = len(rows) - len(kept), old.out_features - len(kept)
    if lost:
        parts.append(Part("class rows", "dropped", f"{lost} of the legacy's {old.out_features} classes", size * lost))
    if fresh:
        parts.append(Part("class rows", "new", f"{fresh} of {len(rows)} classes", size * fresh))
    note = f"{len(kept)} of {len(rows)} class rows kept by name from the legacy's {old.out_features}, bit for bit."
    net.certificate = replace(
        certificate,
        num_classes=len(rows),
        identity_error=error,
        parts=tuple(parts),
        notes=(*certificate.notes, note),
    )


def select_classes(model: CAMNet, class_names: Sequence[str], *, seed: int | None = None) -> CAMNet:
    """A copy of a network for other classes: reordered, chosen or added by name. Only the last layer changes.

    Rows of classes that the network has are kept bit for bit, in the new order; rows of others are drawn, and then
    ``untrained`` names the classifier. Figures are forgotten; the box rule stays, as the maps do.

    Args:
        model: left as it is; its ``class_names`` must be known.
        class_names: the new classes in order.
        seed: for new rows; None draws from torch's global generator.

    Raises:
        ConversionError: the network's classes have no names, or a name occurs twice.
    """
    check_names(class_names, "class_names")
    if model.class_names is None:
        raise ConversionError("The network's classes have no names, so none can be chosen. Set model.class_names.")
    with without_hooks(model):
        net = copy.deepcopy(model)
    shape = (3, 224, 224) if net.certificate is None else net.certificate.input_shape
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(net.classifier.weight)
    with torch.random.fork_rng(enabled=seed is not None, devices=[]):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        new = draw_classifier(net.num_features, len(class_names))
    rows = match_rows(model.class_names, class_names)
    if rows != list(range(net.num_classes)):
        put_rows(net, new, rows, images)
        net.results = {}
    net.class_names = list(class_names)
    return net
