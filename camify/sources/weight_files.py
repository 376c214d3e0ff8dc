"""Weights put into an architecture: whole ones, and those of the features alone."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice, zip_longest

from torch import Tensor, nn

from ..errors import CheckpointError
from ..preprocessing import Preprocessing
from .source import Source
from .state_dicts import State, count_classes, match_keys, misfits, read_state

__all__ = ["is_file_name", "load_state", "misfit_error", "missing_head", "network_of_file", "network_with_weights"]

_SHOWN = 4  # names of tensors in a note


def is_file_name(which: str) -> bool:
    """Whether what stands behind the @ is a file, not the name of weights."""
    return "." in which or "/" in which


def network_of_file(
    source: str,
    build: Callable[..., nn.Module],
    file: str,
    *,
    preprocessing: Preprocessing | None = None,
    class_names: list[str] | None = None,
) -> Source:
    """A named architecture with the weights of a file.

    Args:
        source: how the source is named.
        build: the architecture with random weights; takes ``num_classes``.
        file: of weights.
        preprocessing: what they are known to expect.
        class_names: what the classes are known to be; taken where the file names none and their number fits.

    Raises:
        CheckpointError: the file is missing, damaged or does not fit.
    """
    notes: list[str] = []
    state, names = read_state(file, notes)
    loaded = network_with_weights(source, build, state, names, notes)
    named = loaded.class_names is not None or loaded.headless
    if not named and class_names is not None and len(class_names) == _count_logits(loaded.model):
        loaded = replace(loaded, class_names=class_names)
    return replace(loaded, preprocessing=preprocessing)


def network_with_weights(
    source: str, build: Callable[..., nn.Module], state: State, names: list[str] | None, notes: list[str]
) -> Source:
    """An architecture with a state dict, and as many classes as that has; in eval mode.

    Of a state dict of the features alone the head stays random, and the source says so.

    Raises:
        CheckpointError: it does not fit; a table says where.
    """
    model = build()
    classes = count_classes(state, model.state_dict())
    if classes is not None:
        model = build(num_classes=classes)
    missing = load_state(model, state, source, notes)
    if names is not None and (missing or not _names_fit(names, _count_logits(model))):
        reason = "it holds no head" if missing else f"the network has {_count_logits(model)} logits"
        notes.append(f"the file's {len(names)} class names are left out: {reason}")
        names = None
    return Source(model.eval(), source, names, tuple(notes), missing_head=missing)


def _names_fit(names: Sequence[str], logits: int) -> bool:
    return len(names) in ((1, 2) if logits == 1 else (logits,))  # one logit speaks of two classes


def _count_logits(model: nn.Module) -> int:
    count = getattr(model, "num_classes", None)
    return count if isinstance(count, int) else len(next(reversed(model.state_dict().values())))


def missing_head(state: State, target: State, model: nn.Module | None = None) -> tuple[str, ...]:
    """Names of the head's tensors, where a state dict holds all the others of a network and none of these; else none.

    The head is the network's last child, the classifier that it names itself by ``get_classifier`` (timm's protocol),
    or all behind a child ``features``.

    Args:
        state: names -> tensors, after ``match_keys``.
        target: the network's state dict.
        model: the network, where there is more of it than its state dict.
    """
    missing, unknown, misshapen = misfits(state, target)
    if not missing or unknown or misshapen:
        return ()
    heads = [next(reversed(target)).partition(".")[0], *_classifiers(model)]
    choices = [[key for key in target if key.startswith(f"{head}.")] for head in heads]
    choices.append([key for key in target if not key.startswith("features.")])
    return tuple(missing) if missing in choices and state else ()


def _classifiers(model: nn.Module | None) -> list[str]:
    """Names of the classifier that a network gives by timm's protocol."""
    if model is None or not hasattr(model, "get_classifier"):
        return []
    classifier = model.get_classifier()  # type: ignore[operator]
    return [name for name, module in model.named_modules() if name and module is classifier]


def load_state(model: nn.Module, state: State, source: str, notes: list[str]) -> tuple[str, ...]:
    """Put a state dict into a network; names of the head's tensors where it holds the features alone.

    Raises:
        CheckpointError: it does not fit; a table says where.
    """
    target = model.state_dict()
    state = match_keys(state, target, notes)
    missing, unknown, misshapen = misfits(state, target)
    if not (missing or unknown or misshapen):
        model.load_state_dict(state, strict=True)
        return ()
    if head := missing_head(state, target, model):
        model.load_state_dict(target | state, strict=True)
        more = "" if len(head) <= _SHOWN else f" and {len(head) - _SHOWN} more"
        notes.append(
            f"the file holds the features alone; of the head {', '.join(head[:_SHOWN])}{more} are missing and random"
        )
        return head
    raise misfit_error(source, state, target, notes)


def misfit_error(
    source: str, state: State, target: State, notes: Sequence[str], wrong: tuple[list[str], ...] | None = None
) -> CheckpointError:
    """The error of weights that do not fit a network, with a table of what does not.

    Args:
        source: how the weights are named.
        state: names -> tensors of the file.
        target: the network's state dict.
        notes: what was done to the names.
        wrong: names that are missing, unknown and of another shape, as ``misfits`` finds them.
    """
    missing, unknown, misshapen = misfits(state, target) if wrong is None else wrong
    rows = [("key", "in the file", "in the network", "nearest key")]
    mixed = (key for keys in zip_longest(misshapen, missing, unknown) for key in keys if key is not None)
    for key in islice(mixed, 10):
        pool = [] if key in misshapen else missing if key in unknown else unknown
        nearest = difflib.get_close_matches(key[:200], pool[:2000], n=1) or ["-"]
        rows.append((_shown(key), _kind(state.get(key)), _kind(target.get(key)), _shown(nearest[0])))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = "\n".join(" | ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    counts = f"{len(missing)} missing, {len(unknown)} unknown, {len(misshapen)} of another shape or kind"
    more_rows = len(missing) + len(unknown) + len(misshapen) - (len(rows) - 1)
    return CheckpointError(
        f"{source}: the weights do not fit the network: {counts}{''.join(f'; {note}' for note in notes)}."
        f" Is the file from another architecture?\n{table}" + (f"\n... and {more_rows} more" if more_rows else "")
    )


def _shown(key: str) -> str:
    text = key if len(key) <= 80 else f"{key[:77]}..."
    return text if text.isprintable() else ascii(text)


def _kind(tensor: Tensor | None) -> str:
    if tensor is None:
        return "-"
    return f"{tuple(tensor.shape)}{'' if tensor.is_floating_point() else f' {tensor.dtype}'.replace('torch.', '')}"
