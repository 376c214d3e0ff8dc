"""The analysis of a classifier: its last spatial map and the head behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor, nn

from ..logits import Spread
from ..task import Task
from .final_activation import task_of
from .layouts import Layout

__all__ = ["FeaturesCopy", "NetworkAnalysis"]


@dataclass(frozen=True)
class FeaturesCopy:
    """A copy of everything up to the last spatial map, the modes of its layers and their legacy names."""

    features: nn.Module
    modes: dict[nn.Module, bool]
    layers: list[str]


@dataclass
class NetworkAnalysis(ABC):
    """A classifier, cut at its last spatial map; found by running it.

    ``model`` is the user's own (nothing of it is copied), or a float32 copy of one in half precision.
    """

    model: nn.Module
    images: Tensor
    logits: Tensor
    layout: Layout
    feature_layer: str
    feature_shape: tuple[int, int, int]
    """Channels, height and width of the last spatial map, with the left-out pools left out."""
    linear: nn.Linear | None
    """The head as one linear layer after global average pooling, where it is one."""
    reads_token: bool
    """Whether that linear layer reads a class token, not the mean of the map."""
    single_layer: bool
    activation: str | None = field(default=None, kw_only=True)
    """What the network has behind its logits, ``"softmax"`` for instance; ``logits`` come before it."""
    place: float | None = field(default=None, kw_only=True)
    """How much more the cells above a changed patch of the image change than others, see ``place_figures``."""
    spread: Spread = field(default=Spread(), kw_only=True)
    """Whether the network gives the same logits for the same image, whenever and beside whatever others."""
    notes: list[str] = field(default_factory=list, kw_only=True)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def task(self) -> Task | None:
        """The task that the last activation implies; None where the network ends in logits."""
        return task_of(self.activation, self.logits.shape[1])

    @property
    def kept_linear(self) -> nn.Linear | None:
        """The head as a linear layer after pooling, where that gives the legacy's logits."""
        return None if self.reads_token else self.linear

    @property
    @abstractmethod
    def head_layers(self) -> list[str]:
        """Names of the layers behind the last spatial map, in the order in which they run."""

    @property
    def left_out(self) -> list[str]:
        """Names of pools at the end of the features that a larger map does without."""
        return []

    @abstractmethod
    def copy_features(self) -> FeaturesCopy:
        """A copy of everything up to the last spatial map (N, C, h, w); hooks and gradients stay behind."""
