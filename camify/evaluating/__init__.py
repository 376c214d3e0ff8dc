"""Measuring a network and its maps on labelled images: figures with baselines and intervals."""

from .evaluation import evaluate
from .pages import free_output, save_evaluation
from .results import Evaluation
from .tables import all_tables

__all__ = ["Evaluation", "all_tables", "evaluate", "free_output", "save_evaluation"]
