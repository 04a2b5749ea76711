"""The codec: transform, quantiser, contexts, rANS, and the Zarr codec over them.

numpy and numba only, and numba only when something is coded or decoded.
"""

from nec.codec.coding import Coding
from nec.codec.container import FORMAT_VERSION, VERSIONS
from nec.codec.zarr_codec import NecCodec

__all__ = ["FORMAT_VERSION", "VERSIONS", "Coding", "NecCodec"]
