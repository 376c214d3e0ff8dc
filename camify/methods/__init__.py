"""Explanation methods: raw, signed maps of images, all from one shared forward. One file a method.

How maps become heat or boxes is in ``maps.py`` and ``boxes.py``; figures of maps are in ``metrics``.
A new method is a class with ``@register("name")``.
"""

from .base import METHODS, Method, check_targets, find_method, register
from .cam import CAM
from .explanation import explain, make_methods
from .forward_pass import PRECISIONS, ForwardPass, observe
from .gradcam import GradCAM
from .gradcam_plus_plus import GradCAMPlusPlus
from .layercam import LayerCAM
from .reciprocam import ReciproCAM
from .scorecam import ScoreCAM

__all__ = [
    "CAM",
    "METHODS",
    "PRECISIONS",
    "ForwardPass",
    "GradCAM",
    "GradCAMPlusPlus",
    "LayerCAM",
    "Method",
    "ReciproCAM",
    "ScoreCAM",
    "check_targets",
    "explain",
    "find_method",
    "make_methods",
    "observe",
    "register",
]
