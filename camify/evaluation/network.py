"""The networks that are compared, each with the methods that are asked of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import ConfigError
from ..exporting import resolve_any
from ..methods import Method, make_methods
from ..preprocessing import Preprocessing
from ..surgery import Source
from .class_names import numbered

__all__ = ["Contender", "class_names_of", "find_contenders", "short_names"]


@dataclass
class Contender:
    """A network in the comparison.

    Attributes:
        name: short, and no other has it.
        source: what it was named as.
        model: the network.
        preprocessing: how a picture becomes its input.
        methods: by name, those asked of it.
        class_names: in order, or None.
        notes: what has to be said about it.
        unserved: methods that it cannot serve, and why; found when they are tried.
    """

    name: str
    source: str
    model: nn.Module
    preprocessing: Preprocessing
    methods: dict[str, Method]
    class_names: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    unserved: dict[str, str] = field(default_factory=dict)

    @property
    def served(self) -> dict[str, Method]:
        """The methods that it has not refused."""
        return {name: method for name, method in self.methods.items() if name not in self.unserved}

    @property
    def uses_gradients(self) -> bool:
        """Whether one of its methods asks for them."""
        return any(method.uses_gradients for method in self.served.values())


def find_contenders(sources: Sequence[str], methods: Sequence[str]) -> list[Contender]:
    """The networks of source strings.

    Raises:
        CamifyError: a source or method is unknown, or a source cannot be loaded.
    """
    if len(set(methods)) < len(methods):
        raise ConfigError(f"--method: {', '.join(methods)}: each one once.")
    return [
        contender(resolve_any(text, methods), name, methods)
        for text, name in zip(sources, short_names(sources), strict=True)
    ]


def contender(source: Source, name: str, methods: Sequence[str], options: Mapping[str, Any] | None = None) -> Contender:
    """A network with its methods; where nothing says what it expects, ImageNet's preprocessing, and a note."""
    notes = list(source.notes)
    if source.preprocessing is None:
        notes.append("preprocessing assumed: ImageNet's, 224 px, as the source does not say what it expects")
        preprocessing = Preprocessing()
    else:
        preprocessing = source.preprocessing
    made = make_methods(source.model, methods, options=options)
    return Contender(name, source.name, source.model, preprocessing, made, source.class_names, notes)


def short_names(sources: Sequence[str]) -> list[str]:
    """Short names: of a folder its own, of a source what stands before the weights; equal ones are numbered."""
    short = []
    for source in sources:
        head = source.partition("@")[0]
        library = head.split("/")[0] in ("torchvision", "timm", "camify") and not Path(source).exists()
        short.append(head.split("/", 1)[1] if library and "/" in head else Path(head).stem or head)
    return [
        name if short.count(name) == 1 else f"{name} ({short[: index + 1].count(name)})"
        for index, name in enumerate(short)
    ]


def class_names_of(contenders: Sequence[Contender], counts: Sequence[int]) -> list[str]:
    """The classes that all networks share, in order; numbers where no network names them.

    Raises:
        ConfigError: two networks differ in number, names or order of their classes.
    """
    first, named = contenders[0], None
    for other, count in zip(contenders, counts, strict=True):
        if count != counts[0]:
            raise ConfigError(
                f"{other.source}: has {count} classes, {first.source} has {counts[0]}."
                " Compare networks of the same classes."
            )
        if other.class_names is None:
            continue
        if named is not None and other.class_names != named.class_names:
            pairs = zip(named.class_names or [], other.class_names, strict=True)
            index, (ours, theirs) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
            raise ConfigError(
                f"{other.source}: class {index} is {theirs!r}, that of {named.source} {ours!r}."
                " Compare networks of the same classes in the same order."
            )
        named = named or other
    return list((named and named.class_names) or numbered(counts[0]))
