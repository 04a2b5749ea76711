"""Evaluation of heads: splits by place, label curves, transfer between regions."""

from nec.evaluate.curves import label_curve, transfer_curve
from nec.evaluate.splits import spatial_blocks, spatial_split

__all__ = ["label_curve", "spatial_blocks", "spatial_split", "transfer_curve"]
