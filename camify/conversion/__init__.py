"""How a classifier becomes CAM-ready: the heads, the old head recast, the closed-form fit, the proof, the recipes.

Where the last spatial map lies is found in ``graphs``; where networks come from is ``sources``.
A new head goes to ``pipeline.py``; a new recipe is a row in ``published_recipes.py``.
"""

from ..sources import Source, resolve
from .balance import balance_head
from .box_rule_choice import choose_box_rule
from .closed_form import FitReport, fit_head
from .input_format import INPUT_FORMATS, adapt_input
from .inspection import Inspection, inspect
from .object_map import ObjectMapReport, fit_object_map
from .pipeline import HEADS, convert
from .published_recipes import RECIPES, find_recipe
from .recipes import FINE_TUNING_OPTIONS, FineTuning, Recipe, settle_fine_tuning, settle_head

__all__ = [
    "FINE_TUNING_OPTIONS",
    "HEADS",
    "INPUT_FORMATS",
    "RECIPES",
    "FineTuning",
    "FitReport",
    "Inspection",
    "ObjectMapReport",
    "Recipe",
    "Source",
    "adapt_input",
    "balance_head",
    "choose_box_rule",
    "convert",
    "find_recipe",
    "fit_head",
    "fit_object_map",
    "inspect",
    "resolve",
    "settle_fine_tuning",
    "settle_head",
]
