"""Surgery: what a classifier is made of, and how it becomes CAM-ready."""

from .conversion import HEADS, convert
from .fitting import FitReport, fit_head
from .input_format import INPUT_FORMATS, adapt_input
from .inspection import Inspection, inspect
from .recipes import RECIPES, Recipe
from .sources import Source, resolve

__all__ = [
    "HEADS",
    "INPUT_FORMATS",
    "RECIPES",
    "FitReport",
    "Inspection",
    "Recipe",
    "Source",
    "adapt_input",
    "convert",
    "fit_head",
    "inspect",
    "resolve",
]
