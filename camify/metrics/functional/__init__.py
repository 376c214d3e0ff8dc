"""Pure functions behind the metrics."""

from ...normalizers import NORMALIZERS, Normalizer, normalize_maps
from .baselines import (
    bootstrap_interval,
    bootstrap_means,
    centre_gaussian,
    hard_subset,
    percentiles,
    random_maps,
)
from .box import (
    best_iou_at_threshold,
    best_iou_by_threshold,
    centre_boxes,
    iou_with_best_box,
    resize_boxes,
    thresholds,
)
from .calibration import Calibration, calibrate, calibrated_accuracy
from .faithfulness import (
    adcc,
    area_under_curve,
    average_drop,
    black,
    blurred,
    coherency,
    complexity,
    deletion_curves,
    insertion_curves,
    masked_images,
)
from .level_sets import LevelBoxes, level_set_boxes
from .pixel import average_precision, pixel_histograms, precision_recall
from .pointing import box_masks, cell_masks, energy_share, mosaic_plan, mosaics, peak, pointing_distance, tiled
from .stability import area, correlation, drift, entropy, flip_equivariance, shift_equivariance

__all__ = [
    "NORMALIZERS",
    "Calibration",
    "LevelBoxes",
    "Normalizer",
    "adcc",
    "area",
    "area_under_curve",
    "average_drop",
    "average_precision",
    "best_iou_at_threshold",
    "best_iou_by_threshold",
    "black",
    "blurred",
    "bootstrap_interval",
    "bootstrap_means",
    "box_masks",
    "calibrate",
    "calibrated_accuracy",
    "cell_masks",
    "centre_boxes",
    "centre_gaussian",
    "coherency",
    "complexity",
    "correlation",
    "deletion_curves",
    "drift",
    "energy_share",
    "entropy",
    "flip_equivariance",
    "hard_subset",
    "insertion_curves",
    "iou_with_best_box",
    "level_set_boxes",
    "masked_images",
    "mosaic_plan",
    "mosaics",
    "normalize_maps",
    "peak",
    "percentiles",
    "pixel_histograms",
    "pointing_distance",
    "precision_recall",
    "random_maps",
    "resize_boxes",
    "shift_equivariance",
    "thresholds",
    "tiled",
]
