"""State dicts as people have them: nested, prefixed, in half precision, under other names; never run as code."""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..checkpoint.folder import read_tensors
from ..errors import CheckpointError
from .foreign_formats import foreign_error

__all__ = ["State", "count_classes", "fits", "match_keys", "misfits", "read_plain", "read_state"]

State = dict[str, Tensor]

_NESTS = (
    "state_dict", "model_state_dict", "model", "net", "weights", "model_state", "net_state_dict", "network", "module",
    "params", "backbone", "encoder", "student", "teacher", "target_encoder", "state_dict_ema", "model_ema", "ema",
    "ema_state_dict", "params_ema",
)  # fmt: skip
"""Where checkpoints have their weights: those that were trained before averages of them."""
_CLASS_FIELDS = ("class_to_idx", "idx_to_class", "class_names", "classes")
_HYPER = "hyper_parameters"  # of Lightning
_WRAPPERS = ("module", "_orig_mod", "model", "net", "backbone", "network")
_INNER_WRAPPERS = re.compile(
    r"(?<=\.)_orig_mod\.|(?:(?<=\.)|^)(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
"""Names that torch and Lightning put around layers anywhere in a network, and no network has itself."""
_PROJECTING = ("encoder_q", "encoder_k", "base_encoder", "momentum_encoder", "online_encoder", "target_encoder")
"""Of self-supervised training: what stands there in the place of a head is none."""
_DENSE = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")  # as torchvision's own files still have it
_COUNTER = "num_batches_tracked"
_SAVE = "Save the tensors alone: torch.save(model.state_dict(), FILE)."


def read_state(path: str | Path, notes: list[str] | None = None) -> tuple[State, list[str] | None]:
    """The state dict in a file and, where the file names them, its classes in order; nothing in the file is run.

    Classes are read from ``class_to_idx``, ``idx_to_class``, ``class_names`` or ``classes`` beside the weights or among
    them, at any depth, in Lightning's ``hyper_parameters``, or as JSON from the metadata of a safetensors file.

    Args:
        path: of ``torch.save`` or safetensors.
        notes: are told what was chosen, read and left out.

    Raises:
        CheckpointError: the file is missing, damaged, needs code to be read, holds no state dict, or a field of
            classes contradicts itself or another.
    """
    path, notes = Path(path), [] if notes is None else notes
    if path.suffix == ".safetensors":
        return read_tensors(path), _names_in([_metadata(path)], path, notes)
    content = read_plain(path)
    unnested = _unnest(content)
    if unnested is None:
        items = content.items() if isinstance(content, Mapping) else ()
        odd = [f"{key[:40]!r}: {type(value).__name__}" for key, value in items if isinstance(key, str)]
        description = f"{type(content).__name__} with {', '.join(odd[:6]) or 'no names'}"
        raise CheckpointError(f"{path}: is not a state dict (names -> tensors) but a {description}. {_SAVE}")
    state, where, others = unnested
    if others or "ema" in where:
        notes.append(f"weights taken from {where}{'; the file also holds ' if others else ''}{', '.join(others)}")
    levels = [content]
    for key in where.split(".") if where else ():
        levels.append(levels[-1][key])
    hyper = [level[_HYPER] for level in levels if isinstance(level.get(_HYPER), Mapping)]
    return state, _names_in([*hyper, *levels], path, notes)


def read_plain(path: Path) -> Any:
    """What ``torch.save`` wrote, as far as it is plain: tensors, containers, numbers, text.

    Raises:
        CheckpointError: the file is missing, damaged, or needs code to be read; names what it asks for.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file.")
    damaged = _damaged_entry(path)
    if damaged is not None:
        raise CheckpointError(
            f"{path}: is damaged: {damaged} does not match its checksum. Copy or save the file again."
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever a damaged file makes it raise
        foreign = foreign_error(path, str(error))
        if foreign is not None:
            raise foreign from error
        raise CheckpointError(f"{path}: cannot be read as plain weights: {_reason(error)}") from error


def _damaged_entry(path: Path) -> str | None:
    """The first entry of a zip archive whose CRC is another one, which ``torch.load`` does not look at; or None."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip()
    except zipfile.BadZipFile:  # torch's older format, or no archive at all: torch.load says which
        return None
    except (OSError, EOFError, NotImplementedError, RuntimeError, ValueError, zlib.error) as error:
        return f"the archive ({type(error).__name__}: {error})"


def _metadata(path: Path) -> dict[str, Any]:
    """The fields of classes in the metadata of a safetensors file, read as JSON."""
    with safe_open(path, framework="pt") as file:
        texts = {key: text for key, text in (file.metadata() or {}).items() if key in _CLASS_FIELDS}
    try:
        return {key: json.loads(text) for key, text in texts.items()}
    except (ValueError, RecursionError) as error:
        fields = ", ".join(texts)
        raise CheckpointError(f"{path}: {fields} of the metadata: not valid JSON ({error}).") from error


def _names_in(levels: Sequence[Mapping[Any, Any]], path: Path, notes: list[str]) -> list[str] | None:
    """The names of the classes in order, from the fields on these levels of a file; the innermost come first."""
    named = {}
    for level in reversed(levels):
        for field in _CLASS_FIELDS:
            value = level.get(field)  # a tensor of that name is one of the weights
            if value is not None and not isinstance(value, Tensor) and field not in named:
                names = _ordered_names(value, field, path)
                if names is None:
                    notes.append(f"field {field} of the file is no list of names: left out")
                else:
                    named[field] = names
    if not named:
        return None
    field, names = next(iter(named.items()))
    other = next((other for other, other_names in named.items() if other_names != names), None)
    if other is not None:
        raise CheckpointError(f"{path}: its fields {field} and {other} name other classes. Leave the wrong one out.")
    notes.append(f"class names read from {field} of the file")
    return names


def _ordered_names(value: Any, field: str, path: Path) -> list[str] | None:
    """The names that a field gives, in the order of the logits; None of ``classes`` that is something else.

    Raises:
        CheckpointError: ``class_names`` is no list of names, or ``class_to_idx`` or ``idx_to_class`` does not give
            every index from 0 on one name.
    """
    if field in ("classes", "class_names"):
        if isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value):
            return list(value)
        if field == "classes":  # often their number
            return None
        raise CheckpointError(f"{path}: field class_names is no list of names. Save the weights without it.")
    pairs = list(value.items()) if isinstance(value, Mapping) else []
    if field == "idx_to_class":  # JSON has its keys as text
        pairs = [(name, int(key) if str(key).isdecimal() else key) for key, name in pairs]
    order = {index: name for name, index in pairs if type(index) is int and isinstance(name, str)}
    if not pairs or len(order) != len(pairs) or order.keys() != set(range(len(pairs))):
        raise CheckpointError(
            f"{path}: field {field} does not give every index from 0 to {max(len(pairs) - 1, 0)} one name."
            " Correct the field, or save the weights without it."
        )
    return [order[index] for index in range(len(order))]


def _reason(error: Exception) -> str:
    """Why torch refused a file, without its advice to read the file unsafely."""
    text = str(error)
    if refused := re.search(r"GLOBAL ([\w.]{1,200})", text):
        name = refused.group(1).rstrip(".")
        return f"it needs {name}, in or beside the weights, and reading such objects can run code. {_SAVE}"
    first = "" if "weights_only" in text or not text.strip() else f": {text.strip().splitlines()[0][:200]}"
    return f"the file is empty, damaged or not from torch.save ({type(error).__name__}{first})."


def _unnest(content: Any, depth: int = 4) -> tuple[State, str, list[str]] | None:
    """The state dict, the keys that lead to it and the state dicts beside it; plain weights come before EMA."""
    if not isinstance(content, Mapping):
        return None
    tensors = {key: value for key, value in content.items() if key not in _CLASS_FIELDS or isinstance(value, Tensor)}
    if tensors and all(isinstance(key, str) and _is_plain(value) for key, value in tensors.items()):
        return tensors, "", []
    nests = [key for key in _NESTS if isinstance(content.get(key), Mapping)] if depth else []
    for key in nests:
        if inner := _unnest(content[key], depth - 1):
            state, where, others = inner
            return state, f"{key}.{where}" if where else key, others + [other for other in nests if other != key]
    return None


def _is_plain(value: Any) -> bool:
    is_dense_on_cpu = isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu"
    return is_dense_on_cpu and not value.is_quantized


def match_keys(state: State, target: State, notes: list[str] | None = None) -> State:
    """The state under the names and in the precision of the target; what does not fit stays as it is.

    Wrapper prefixes are removed where that fits better. Other names are accepted where the order of the tensors
    leaves one reading only. Batch counters may be missing. The notes are told what was done.
    """
    notes = [] if notes is None else notes
    matched, prefix = _strip(state, target)
    unwrapped = {_INNER_WRAPPERS.sub("", key): value for key, value in state.items()}
    if not _weights(target) - _head(target) <= matched.keys() and unwrapped.keys() != state.keys():
        notes.append("names of wrappers around layers removed")
        state = unwrapped
        matched, prefix = _strip(state, target)
    if prefix:
        notes.append(f"prefix {prefix} removed from the names")
    matched = _without_others(matched, state, target, prefix, notes)
    added = next((child for child in _children(target) if matched and _all_fit(matched, target, child)), None)
    if added is not None:
        notes.append(f"prefix {added} added to the names")
        matched = {added + key: value for key, value in matched.items()}
    if renamed := _by_order(matched, target) or _by_order(matched, _without_head(target, matched)):
        notes.append(f"names differ; {len(renamed)} tensors matched by order and shape")
        matched = renamed
    counters = [k for k in target if k not in matched and k.replace(_COUNTER, "running_mean") in matched]
    matched |= {key: target[key] for key in counters}
    cast = {k: v.to(target[k].dtype) for k, v in matched.items() if k in target and fits(v, target[k], k)}
    if types := {f"{matched[k].dtype} -> {v.dtype}" for k, v in cast.items() if v.dtype != matched[k].dtype}:
        notes.append(f"precision changed: {', '.join(sorted(types)).replace('torch.', '')}")
    return matched | cast


def _without_others(matched: State, state: State, target: State, prefix: str, notes: list[str]) -> State:
    """The tensors without those that stand beside the network, where it is whole without them, or lacks its head."""
    outside = {key for key in matched if key not in target and prefix + key not in state}
    if not prefix or not _weights(target) - _head(target) <= matched.keys():
        return matched
    projecting = any(part in _PROJECTING for part in prefix.split("."))
    has_head = _head(target) <= matched.keys() and not projecting
    name = next(reversed(target)).partition(".")[0]
    instead = set() if has_head else {key for key in matched if key.partition(".")[0] == name}
    if outside:
        notes.append(f"{len(outside)} tensors outside {prefix} left out: {', '.join(sorted(outside)[:4])[:200]}")
    if instead:
        notes.append(f"what the file has in the place of the head is left out: {', '.join(sorted(instead)[:4])[:200]}")
    return {key: value for key, value in matched.items() if key not in outside | instead}


def _head(target: State) -> set[str]:
    """Names of the tensors of a network's last child."""
    name = next(reversed(target)).partition(".")[0]
    return {key for key in target if key.partition(".")[0] == name}


def _without_head(target: State, state: State) -> State:
    """A network's tensors but its head's, where a state dict has none that could be the head's."""
    head = _head(target)
    held = {value.shape for value in state.values()}
    could_be = any(target[key].dim() > 1 and target[key].shape in held for key in head)
    return target if could_be else {key: value for key, value in target.items() if key not in head}


def _children(target: State) -> list[str]:
    """The prefixes of a network's children, but of the last, which is its head."""
    names = dict.fromkeys(f"{key.partition('.')[0]}." for key in target)
    return list(names)[:-1]


def _all_fit(state: State, target: State, prefix: str) -> bool:
    """Whether a state dict is all of one child of a network."""
    wanted = {key for key in _weights(target) if key.startswith(prefix)}
    given = {prefix + key: value for key, value in state.items()}
    return wanted <= given.keys() and all(
        key in target and fits(value, target[key], key) for key, value in given.items()
    )


def _weights(state: State) -> set[str]:
    return {key for key in state if not key.endswith(_COUNTER)}


def fits(ours: Tensor, theirs: Tensor, key: str) -> bool:
    """Whether a tensor can stand for another: one shape and one kind of number (of counters, any)."""
    same = ours.is_floating_point() == theirs.is_floating_point() and ours.is_complex() == theirs.is_complex()
    return ours.shape == theirs.shape and (same or key.endswith(_COUNTER))


def misfits(state: State, target: State) -> tuple[list[str], list[str], list[str]]:
    """Keys that the target has and the state lacks, that it does not know, and of another shape or kind of number."""
    missing = [key for key in target if key not in state]
    unknown = [key for key in state if key not in target]
    misshapen = [key for key in target if key in state and not fits(state[key], target[key], key)]
    return missing, unknown, misshapen


def count_classes(state: State, target: State) -> int | None:
    """The length of the file's last classifier tensor where it is another one than the network's, or None."""
    last, matched = next(reversed(target)), match_keys(state, target)
    classifier = matched.get(last)
    lengths = [sum(not key.endswith(_COUNTER) for key in keys) for keys in (matched, target)]
    if classifier is None and lengths[0] == lengths[1]:
        classifier = next(reversed(state.values()))  # other names: its place tells
    if classifier is None or not classifier.is_contiguous() or not classifier.dim() == target[last].dim() > 0:
        return None
    return len(classifier) if len(classifier) not in (0, len(target[last])) else None


def _strip(state: State, target: State) -> tuple[State, str]:
    """The state without the wrapper prefix whose removal makes the most tensors fit, and that prefix."""
    state = {_DENSE.sub(r"\1\2", key): value for key, value in state.items()}
    heads = dict.fromkeys(tuple(takewhile(_WRAPPERS.__contains__, key.split(".")[:4])) for key in state)
    wrappers = dict.fromkeys(prefix for head in heads for prefix in accumulate(f"{part}." for part in head))
    others = dict.fromkeys(
        prefix for key in state for prefix in _prefixes_before(key, target) if prefix not in wrappers
    )
    features = _weights(target) - _head(target)
    best, chosen, most = state, "", -1
    for prefix in sorted(["", *wrappers, *others], key=len):  # of equal ones the first
        names = {k.removeprefix(prefix): k for k in state if k.startswith(prefix) or prefix + k not in state}
        if prefix in others and not features <= names.keys():
            continue
        count = sum(key in target and fits(state[old], target[key], key) for key, old in names.items())
        if count > most:
            best, chosen, most = {key: state[old] for key, old in names.items()}, prefix, count
    return best, chosen


def _prefixes_before(key: str, target: State) -> list[str]:
    """The beginnings of a name behind which one of the target's names stands."""
    parts = key.split(".")[:8]
    cuts = (sum(len(part) + 1 for part in parts[:count]) for count in range(1, len(parts)))
    return [key[:cut] for cut in cuts if key[cut:] in target]


def _by_order(state: State, target: State) -> State | None:
    """The state under the target's names, or None where order and shape leave another reading."""
    if _weights(state) == _weights(target):
        return None
    has_counters = any(key.endswith(_COUNTER) for key in state)
    target_keys = [key for key in target if has_counters or not key.endswith(_COUNTER)]
    if len(target_keys) != len(state):
        return None
    for new, old in zip(target_keys, state, strict=True):
        means_itself = new != old and old in target and fits(state[old], target[old], old)
        if means_itself or new.split(".")[-1] != old.split(".")[-1] or not fits(state[old], target[new], new):
            return None
    if _is_ambiguous(state) or _is_ambiguous({key: target[key] for key in target_keys}):
        return None
    return dict(zip(target_keys, state.values(), strict=True))


def _is_ambiguous(state: State) -> bool:
    """Whether two tensors of one shape could trade places: names that do not count up, two scales of one layer."""
    before: dict[torch.Size, tuple[str, list[int]]] = {}
    scales: set[torch.Size] = set()  # of the layers since the last matrix or kernel
    for key, shape in ((key, value.shape) for key, value in state.items()):
        if len(shape) > 1:
            pattern, numbers = re.sub(r"\d+", "#", key), [int(number) for number in re.findall(r"\d{1,9}", key)]
            if shape in before and (before[shape][0] != pattern or before[shape][1] >= numbers):
                return True
            before[shape], scales = (pattern, numbers), set()
        elif key.endswith("weight"):
            if shape in scales:
                return True
            scales.add(shape)
    return False
