"""Explanation methods: raw, signed maps of images, all from one shared forward. One file a method.

How maps become heat or boxes is in ``maps.py`` and ``boxes.py``; figures of maps are in ``metrics``.
A new method is a class with ``@register("name")``.
"""

from .augmentations import AUGMENTATIONS, View, check_augmentations, mean_map, views_of
from .base import METHODS, Method, check_targets, find_method, register
from .cam import CAM
from .explanation import explain, make_methods
from .factorization import FeatureFactors, factorize
from .forward_pass import PRECISIONS, ForwardPass, observe
from .gradcam import GradCAM
from .gradcam_plus_plus import GradCAMPlusPlus
from .layercam import LayerCAM
from .reciprocam import ReciproCAM
from .scorecam import ScoreCAM

# Methods are listed in the order in which they are registered: those above come first.
# isort: split
from .ablationcam import AblationCAM
from .eigencam import EigenCAM, EigenGradCAM
from .finercam import FinerCAM
from .fullgrad import FullGrad
from .hirescam import HiResCAM
from .iscam import ISCAM
from .lafam import LaFAM
from .rise import RISE
from .shapleycam import ShapleyCAM
from .smoothgradcam_plus_plus import SmoothGradCAMPlusPlus
from .sscam import SSCAM
from .xgradcam import XGradCAM

__all__ = [
    "AUGMENTATIONS",
    "CAM",
    "ISCAM",
    "METHODS",
    "PRECISIONS",
    "RISE",
    "SSCAM",
    "AblationCAM",
    "EigenCAM",
    "EigenGradCAM",
    "FeatureFactors",
    "FinerCAM",
    "ForwardPass",
    "FullGrad",
    "GradCAM",
    "GradCAMPlusPlus",
    "HiResCAM",
    "LaFAM",
    "LayerCAM",
    "Method",
    "ReciproCAM",
    "ScoreCAM",
    "ShapleyCAM",
    "SmoothGradCAMPlusPlus",
    "View",
    "XGradCAM",
    "check_augmentations",
    "check_targets",
    "explain",
    "factorize",
    "find_method",
    "make_methods",
    "mean_map",
    "observe",
    "register",
    "views_of",
]
