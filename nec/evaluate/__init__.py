"""Evaluation of heads: splits by place, label curves, transfer between regions, plots."""

from nec.evaluate.curves import label_curve, transfer_curve
from nec.evaluate.plots import (
    draw_confusion,
    draw_label_curve,
    draw_map,
    draw_measured_against_predicted,
)
from nec.evaluate.splits import spatial_blocks, spatial_split

__all__ = [
    "draw_confusion",
    "draw_label_curve",
    "draw_map",
    "draw_measured_against_predicted",
    "label_curve",
    "spatial_blocks",
    "spatial_split",
    "transfer_curve",
]
