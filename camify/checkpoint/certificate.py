"""The certificate: the checked record of a conversion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from ..console import as_text, plain_text, shown
from ..errors import CheckpointError

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["TOLERANCE", "Certificate", "Part", "short_source"]

TOLERANCE = 1e-4
"""Largest relative identity error of a CAM-ready network in float32."""


LARGEST_PLACE = 1000.0
"""Above it ``place`` is not told apart."""

_COLORS = {"kept": "green", "dropped": "red", "new": "cyan"}


@dataclass(frozen=True)
class Part:
    """A group of layers and what the conversion did with it."""

    name: str
    status: str  # "kept", "dropped" or "new"
    layers: str
    parameters: int


@dataclass(frozen=True)
class Certificate:
    """What a conversion kept, dropped and added, and the proof that maps explain the logits.

    ``identity_error`` is the largest ``|mean(map) + bias - logit|`` over the probe images, relative to the
    largest logit. It is None where the pooling has no such identity (GMP, LSE). ``legacy_error`` is the
    largest difference to the legacy's logits, relative likewise, where the old classifier was kept.

    ``place`` is how many times as much the cells above a changed patch of the image change as cells above other
    patches: near 1 where the map does not follow the image. It is None where that was not measured: in certificates
    of earlier versions, and where the map does not change, or is one cell.
    """

    source: str
    head: str
    pool: str
    feature_layer: str
    input_shape: tuple[int, int, int]
    map_size: tuple[int, int]
    map_channels: int
    num_classes: int
    legacy_classes: int
    parts: tuple[Part, ...]
    identity_error: float | None
    legacy_error: float | None = None
    notes: tuple[str, ...] = ()
    place: float | None = None

    @property
    def cam_ready(self) -> bool:
        """Whether the maps prove to be what the logits are made of."""
        return self.identity_error is not None and self.identity_error <= TOLERANCE

    @property
    def facts(self) -> dict[str, str]:
        """The measured facts, by label."""
        (_, height, width), (map_h, map_w) = self.input_shape, self.map_size
        facts = {
            "cut after": self.feature_layer,
            "map": f"{map_h} x {map_w}, {self.map_channels} channels, at {height} x {width} px",
            "pooling": self.pool.upper(),
            "identity": f"mean(map) + bias = logit, largest error {self.identity_error:.1e}"
            if self.identity_error is not None
            else f"none: with {self.pool.upper()} pooling the maps do not add up to the logit",
        }
        if self.place is not None:
            above = f"more than {LARGEST_PLACE:,.0f}" if self.place >= LARGEST_PLACE else f"{self.place:.3g}"
            facts["place"] = f"cells above a changed patch of the image change {above} times as much as others"
        if self.legacy_error is not None:
            kept = "kept" if self.legacy_error <= TOLERANCE else "changed"
            facts["legacy logits"] = f"{kept}, largest difference {self.legacy_error:.1e} of the largest logit"
        return facts

    @property
    def map(self) -> dict[str, list[float]]:
        """Stride of the map, input pixels per cell, and its size in cells at ``input_shape``, each (height, width)."""
        sides = zip(self.input_shape[1:], self.map_size, strict=True)
        return {"stride": [side / cells for side, cells in sides], "size": list(self.map_size)}

    def named(self, source: str, notes: tuple[str, ...] = ()) -> Certificate:
        """The same certificate with the source by another name, and what is to be said of it."""
        return replace(self, source=source, notes=(*notes, *self.notes))

    def published(self) -> Certificate:
        """The same certificate, whose source names no folder of this machine: for files that others read."""
        return replace(self, source=short_source(self.source))

    def table(self) -> Table:
        """The certificate for a terminal."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        title = Text(shown(f"{self.source} -> {self.head} head"), "table.title")
        table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
        for column, justify in (("part", "left"), ("", "left"), ("layers", "left"), ("parameters", "right")):
            table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
        for part in self.parts:
            status = Text(part.status, _COLORS[part.status])
            table.add_row(plain_text(part.name), status, plain_text(part.layers), f"{part.parameters:,}")
        table.add_section()
        for label, fact in self.facts.items():
            table.add_row(label, "", plain_text(fact), "")
        for note in self.notes:
            table.add_row("note", "", plain_text(note), "")
        return table

    def __str__(self) -> str:
        return as_text(self.table())

    def to_dict(self) -> dict[str, Any]:
        """JSON values; ``from_dict`` gives the certificate back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Certificate:
        """A certificate from JSON values.

        Raises:
            CheckpointError: a field is missing, unknown or of the wrong kind.
        """
        try:
            values = dict(data)
            values["parts"] = tuple(Part(**part) for part in values["parts"])
            for key in ("input_shape", "map_size", "notes"):
                values[key] = tuple(values[key])
            certificate = cls(**values)
        except (TypeError, KeyError, ValueError) as error:
            raise CheckpointError(f"certificate: {error}. Was the file changed by hand?") from error
        wrong = _wrong_field(certificate)
        if wrong is not None:
            value = getattr(certificate, wrong)
            raise CheckpointError(f"certificate: field {wrong} is {value!r}. Was the file changed by hand?")
        return certificate


def short_source(source: str) -> str:
    """Where a network comes from, without the folders of the machine that it was made on.

    Example:
        >>> short_source("torchvision/vgg16@/home/me/weights.pth"), short_source("hf:user/name")
        ('torchvision/vgg16@weights.pth', 'hf:user/name')
    """
    name, at, weights = source.partition("@")
    if name.startswith(("/", ".", "~")) or "\\" in name or name[1:3] == ":/":
        name = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return name + at + weights.replace("\\", "/").rpartition("/")[2]


def _wrong_field(certificate: Certificate) -> str | None:
    """The first field whose value is not of its kind."""
    kinds: dict[str, Any] = dict.fromkeys(("source", "head", "pool", "feature_layer"), str)
    kinds |= dict.fromkeys(("map_channels", "num_classes", "legacy_classes"), int)
    kinds |= dict.fromkeys(("identity_error", "legacy_error", "place"), float | int | None)
    right = {name: isinstance(getattr(certificate, name), kind) for name, kind in kinds.items()}
    right |= {"input_shape": _sizes(certificate.input_shape, 3), "map_size": _sizes(certificate.map_size, 2)}
    right["notes"] = all(isinstance(note, str) for note in certificate.notes)
    right["parts"] = all(
        isinstance(part.name, str)
        and isinstance(part.layers, str)
        and part.status in _COLORS
        and isinstance(part.parameters, int)
        for part in certificate.parts
    )
    return next((name for name, is_right in right.items() if not is_right), None)


def _sizes(values: tuple[int, ...], count: int) -> bool:
    return len(values) == count and all(isinstance(value, int) and value > 0 for value in values)
