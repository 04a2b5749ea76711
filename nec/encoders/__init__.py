"""Encoders: image chips in, a grid of embeddings out."""

from nec.encoders.protocol import Encoder

__all__ = ["Encoder"]
