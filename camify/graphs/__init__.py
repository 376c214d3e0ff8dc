"""A network as steps, found by running it: its last spatial map, the head behind it, and what may be stored of both.

Nothing is converted here: that is ``conversion``. How maps follow from the steps is said in ``methods``.
A layer that may be stored goes to ``allowed_layers.py``.
"""

from .analysis import FeaturesCopy, NetworkAnalysis
from .analyze import analyze
from .final_activation import task_of
from .layouts import Layout, guess_layouts
from .place import PLACE_SHOWN, place_figures
from .traced import TracedAnalysis
from .tracer import TracingError, between, extract
from .untraceable import UntracedFeatures

__all__ = [
    "PLACE_SHOWN",
    "FeaturesCopy",
    "Layout",
    "NetworkAnalysis",
    "TracedAnalysis",
    "TracingError",
    "UntracedFeatures",
    "analyze",
    "between",
    "extract",
    "guess_layouts",
    "place_figures",
    "task_of",
]
