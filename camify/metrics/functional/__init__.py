"""Pure functions behind the metrics."""

from .box import (
    best_iou_at_threshold,
    best_iou_by_threshold,
    centre_boxes,
    iou_with_best_box,
    resize_boxes,
    thresholds,
)

__all__ = [
    "best_iou_at_threshold",
    "best_iou_by_threshold",
    "centre_boxes",
    "iou_with_best_box",
    "resize_boxes",
    "thresholds",
]
