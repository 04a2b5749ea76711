"""Evaluation: splits, label curves, transfer between regions, bytes at equal accuracy, plots."""

from nec.evaluate.curves import label_curve, transfer_curve
from nec.evaluate.plots import (
    draw_confusion,
    draw_label_curve,
    draw_map,
    draw_measured_against_predicted,
)
from nec.evaluate.rates import RateCurve, bytes_at_levels, compare_rates
from nec.evaluate.splits import spatial_blocks, spatial_folds, spatial_split

__all__ = [
    "RateCurve",
    "bytes_at_levels",
    "compare_rates",
    "draw_confusion",
    "draw_label_curve",
    "draw_map",
    "draw_measured_against_predicted",
    "label_curve",
    "spatial_blocks",
    "spatial_folds",
    "spatial_split",
    "transfer_curve",
]
