"""Robust dynamical low-rank training: `convert`, `LowRankTrainer`, `merge` or `deploy`."""

from nec.lowrank.compression import Compression, compression
from nec.lowrank.conversion import (
    Conversion,
    ConvertedLayer,
    convert,
    deploy,
    is_lowrank,
    load_lowrank,
    lowrank_layers,
    merge,
)
from nec.lowrank.layers import LowRankConv2d, LowRankLayer, LowRankLinear
from nec.lowrank.regulariser import (
    condition_bound,
    condition_number,
    condition_numbers,
    penalty,
    spectral_penalty,
)
from nec.lowrank.trainer import LowRankTrainer

__all__ = [
    "Compression",
    "Conversion",
    "ConvertedLayer",
    "LowRankConv2d",
    "LowRankLayer",
    "LowRankLinear",
    "LowRankTrainer",
    "compression",
    "condition_bound",
    "condition_number",
    "condition_numbers",
    "convert",
    "deploy",
    "is_lowrank",
    "load_lowrank",
    "lowrank_layers",
    "merge",
    "penalty",
    "spectral_penalty",
]
