"""Production: sources to stores. The rooms to the left, put to work."""

from nec.production.encoding import embed, encode
from nec.production.measures import EncodeReport

__all__ = ["EncodeReport", "embed", "encode"]
