"""A network as steps, found by running it: its last spatial map, the head behind it, and what may be stored of both.

Nothing is converted here: that is ``conversion``. How maps follow from the steps is said in ``methods``.
A layer that may be stored goes to ``allowed_layers.py``.
"""

from .analysis import FeaturesCopy, NetworkAnalysis
from .analyze import analyze
from .final_activation import task_of
from .layouts import Layout, find_layout
from .traced import TracedAnalysis
from .tracer import TracingError, between, extract
from .untraceable import UntracedFeatures

__all__ = [
    "FeaturesCopy",
    "Layout",
    "NetworkAnalysis",
    "TracedAnalysis",
    "TracingError",
    "UntracedFeatures",
    "analyze",
    "between",
    "extract",
    "find_layout",
    "task_of",
]
