"""What every encoder offers: one method."""

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class Encoder(Protocol):
    """An encoder of image chips into a grid of embeddings.

    Attributes
    ----------
    name : str
        Name of the encoder.
    bands : tuple of str
        STAC common names of the bands that it can take; any subset is welcome.
    patch_size : int
        Edge of a token, in pixels.
    dim : int
        Length of an embedding.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def bands(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def patch_size(self) -> int: ...  # noqa: D102
    @property
    def dim(self) -> int: ...  # noqa: D102

    def embed(
        self, chips: "Tensor", *, bands: tuple[str, ...], gsd: float, time: "Tensor | None" = None
    ) -> "Tensor":
        """Embed chips.

        Parameters
        ----------
        chips : Tensor of shape (n, [t,] band, y, x), float32
            Scaled reflectance, no missing values; y and x are multiples of `patch_size`.
        bands : tuple of str
            Common name of each band of `chips`.
        gsd : float
            Ground sampling distance, metres.
        time : Tensor of shape (n,), int64, optional
            Acquisition times, seconds since 1970 UTC, for encoders that use them.

        Returns
        -------
        Tensor of shape (n, dim, y / patch_size, x / patch_size), float32
        """
        ...
