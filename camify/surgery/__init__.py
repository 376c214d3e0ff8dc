"""Surgery: what a classifier is made of, and how it becomes CAM-ready."""

from .conversion import HEADS, convert
from .inspection import Inspection, inspect
from .recipes import RECIPES, Recipe
from .sources import Source, resolve

__all__ = ["HEADS", "RECIPES", "Inspection", "Recipe", "Source", "convert", "inspect", "resolve"]
