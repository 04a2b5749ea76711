"""The catalog: a STAC collection over a folder of stores, built and checked."""

from nec.catalog.building import Catalog, Description, build
from nec.catalog.checking import check

__all__ = ["Catalog", "Description", "build", "check"]
