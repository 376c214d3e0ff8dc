"""What every loader gives: a network, and what is known about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..console import shell_quoted, shown
from ..errors import CheckpointError, ConfigError, ConversionError
from ..model import CAMNet
from ..preprocessing import Preprocessing
from ..task import Task

__all__ = ["Source", "require_network"]


def require_network(model: object) -> None:
    """Refuse what is no network.

    Raises:
        ConfigError: says what it is.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(
            "A network is needed (torch.nn.Module), or the name of a source such as 'torchvision/vgg16', not"
            f" {shown(repr(model))[:80]} ({type(model).__name__})."
        )


@dataclass(frozen=True)
class Source:
    """A network and what is known about it.

    Attributes:
        model: a ``CAMNet`` where the source is CAM-ready, else the legacy network.
        name: what it was named as, weights included.
        class_names: in the order of the logits, or None.
        notes: what was done to weights that did not fit as they were, and what was assumed or left out.
        preprocessing: what the weights expect, or None.
        license: of the weights, as far as their library says.
        task: what the logits mean, where the source says so.
        missing_head: names of the head's tensors that a file of features alone lacks; they are random.
        only_maps: an exported file: it gives class maps, and has no layers.
        input_size: height and width that a file's network takes, pixels, where ``preprocessing`` is not known.
        channels: that it takes, likewise.
        no_gradients: why the network runs forward only and cannot be trained or converted; empty where it can.
    """

    model: nn.Module
    name: str
    class_names: list[str] | None = None
    notes: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    license: str | None = None
    task: Task | None = None
    missing_head: tuple[str, ...] = ()
    only_maps: bool = False
    input_size: tuple[int, int] | None = None
    channels: int = 3
    no_gradients: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "preprocessing", Preprocessing.of(self.preprocessing))

    @classmethod
    def of(cls, model: nn.Module, name: str | None = None, notes: tuple[str, ...] = ()) -> Source:
        """A network that is there, with what it carries where it is a ``CAMNet``; its name is that of its class."""
        require_network(model)
        name = name or type(model).__name__
        if not isinstance(model, CAMNet):
            return cls(model, name, notes=notes)
        task = model.task if model.task_is_known else None
        return cls(model, name, model.class_names, notes, model.preprocessing, model.license, task)

    @property
    def cam_ready(self) -> bool:
        """Whether the network is a ``CAMNet``."""
        return isinstance(self.model, CAMNet)

    @property
    def headless(self) -> bool:
        """Whether the weights are those of the features alone, and the head is random."""
        return bool(self.missing_head)

    @property
    def size(self) -> int | tuple[int, int]:
        """Side of the input, or height and width, pixels: what the weights expect, else what the file takes, or 224."""
        if self.preprocessing is not None:
            return self.preprocessing.size
        height, width = self.input_size or (224, 224)
        return height if height == width else (height, width)

    @property
    def assumed_preprocessing(self) -> Preprocessing:
        """What the weights expect, else what is assumed where nothing is known."""
        return self.preprocessing or Preprocessing.assumed(self.size, self.channels)

    def prepared(self, stated: str | Mapping[str, Any] | Preprocessing | None) -> Source:
        """The source with a preprocessing as a user states it, which goes before what is known; None leaves it.

        Raises:
            ConfigError: it cannot work.
        """
        if stated is None:
            return self
        preprocessing = Preprocessing.stated(stated, self.assumed_preprocessing)
        differences = [] if self.preprocessing is None else preprocessing.differences(self.preprocessing)
        notes = [f"preprocessing as given, {'; '.join(differences)} (known of the source)"] if differences else []
        return replace(self, preprocessing=preprocessing, notes=(*self.notes, *notes))

    @property
    def cam_net(self) -> CAMNet:
        """The network, where it is CAM-ready.

        Raises:
            CheckpointError: it is a legacy network.
        """
        if not isinstance(self.model, CAMNet):
            raise CheckpointError(
                f"{self.name}: is a legacy network, not a CAM-ready one. Convert it first: camify convert"
                f" {shell_quoted(self.name)}"
                " FOLDER"
            )
        return self.model

    def require_head(self, purpose: str) -> None:
        """Refuse what would use a head that is random; ``purpose`` begins the message.

        Raises:
            ConversionError: the weights hold no head.
        """
        if self.headless:
            raise ConversionError(
                f"{self.name}: {purpose} needs the head, and these weights hold the features alone. Give weights"
                f" with their head, or make a new one and train it: camify convert {shell_quoted(self.name)} FOLDER"
                " --head gap"
            )

    def require_layers(self, purpose: str) -> None:
        """Refuse what would use layers that an exported file has not.

        Raises:
            ConfigError: it is an exported file.
        """
        if self.only_maps:
            raise ConfigError(f"{self.name}: {purpose}: an exported file holds class maps and no layers.")

    def require_gradients(self, purpose: str) -> None:
        """Refuse what would need layers of a network that is run by another engine.

        Raises:
            ConversionError: it is; says why.
        """
        if self.no_gradients:
            raise ConversionError(
                f"{self.name}: {purpose}: {self.no_gradients}. It runs forward only; methods without"
                " gradients, such as --method scorecam and reciprocam, can explain it as it is."
            )

    def explained_by(self, methods: Sequence[str]) -> Source:
        """This source, where the methods can explain it.

        Raises:
            ConversionError: its head is random.
            ConfigError: it is an exported file, and another method than ``"cam"`` is wanted.
        """
        self.require_head("explaining it")
        if list(methods) != ["cam"]:
            self.require_layers(f"{', '.join(methods)} cannot be used, cam is what it can show")
        return self
