"""Networks and their maps measured on images, compared, and drawn for many files; one engine gives the figures.

The figures themselves are defined in ``metrics/functional``. Training logs the means of the same rows.
A new figure is a row function in ``engine.py``.
"""

from .evaluation import evaluate
from .evaluation_report import Evaluation

__all__ = ["Evaluation", "evaluate"]
