"""Anatomy: what a classifier is made of, found by running it: its last spatial map and the head behind it."""

from .anatomy import Anatomy, FeaturesCopy
from .examination import examine
from .final_activation import task_of
from .hooked import UntracedFeatures
from .layout import Layout, find_layout
from .split import LogitsOf, Split, TracedSplit, split
from .traced import TracedAnatomy
from .tracing import TracingError, between, extract

__all__ = [
    "Anatomy",
    "FeaturesCopy",
    "Layout",
    "LogitsOf",
    "Split",
    "TracedAnatomy",
    "TracedSplit",
    "TracingError",
    "UntracedFeatures",
    "between",
    "examine",
    "extract",
    "find_layout",
    "split",
    "task_of",
]
