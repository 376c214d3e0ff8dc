"""Measuring networks and their maps on images, and explaining many files: figures, tables, pictures."""

from .evaluation import evaluate
from .evaluation_report import Evaluation

__all__ = ["Evaluation", "evaluate"]
