"""Anatomy: what a classifier is made of, found by running it: its last spatial map and the head behind it."""

from .analysis import Anatomy, FeaturesCopy
from .analyze import examine
from .final_activation import task_of
from .layouts import Layout, find_layout
from .traced import TracedAnatomy
from .tracer import TracingError, between, extract
from .untraceable import UntracedFeatures

__all__ = [
    "Anatomy",
    "FeaturesCopy",
    "Layout",
    "TracedAnatomy",
    "TracingError",
    "UntracedFeatures",
    "between",
    "examine",
    "extract",
    "find_layout",
    "task_of",
]
