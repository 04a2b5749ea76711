"""TerraTorch's backbones behind the `Encoder` protocol, with weights from a local file.

Every weight of the network has to be in the file: TerraTorch itself goes on with random ones.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from nec.encoders.families import statistics_file
from nec.encoders.terratorch_backbones import kind_of
from nec.errors import MissingLibraryError, ModelError


class TerraTorchEncoder:
    """A backbone of TerraTorch behind the `nec.encoders.Encoder` protocol.

    Parameters
    ----------
    backbone : str
        Its name in TerraTorch's registry, such as "prithvi_eo_v2_300".
    checkpoint : Path
        Its weights: a published file, or a state dict of the network.
    statistics : mapping of str to (float, float), optional
        Mean and standard deviation of each band, in reflectance times 10,000, where the weights
        are not of the published pretraining, or nobody publishes them (DOFA, Swin).
    precision : {"float32", "bfloat16"}
        Arithmetic of the forward pass.

    Raises
    ------
    ModelError
        If there is no such backbone, the file lacks a weight of it, or statistics are missing.
    """

    def __init__(
        self,
        backbone: str,
        checkpoint: Path,
        *,
        statistics: Mapping[str, Sequence[float]] | None = None,
        precision: str = "float32",
    ) -> None:
        self.kind = kind_of(backbone)
        self.name = backbone
        self.precision = precision
        self.network = self._made()
        known = {k: (float(m), float(s)) for k, (m, s) in (statistics or {}).items()}
        self._statistics = known or self.kind.statistics(backbone)
        if not self._statistics:
            raise ModelError(
                f"nobody publishes mean and deviation of {backbone}'s bands "
                f"{', '.join(self.kind.bands)}",
                f"write them to {statistics_file(checkpoint)}: "
                '{"blue": [mean, deviation], ...} in reflectance times 10,000',
            )
        self.bands = tuple(band for band in self.kind.bands if band in self._statistics)
        self._load(checkpoint)
        self.patch_size = self.kind.patch_of(self.network)
        with torch.no_grad():
            shown = self.kind.bands if self.kind.fills else self.bands
            blank = torch.zeros(1, len(shown), self.kind.edge, self.kind.edge)
            self.dim = self.kind.run(self.network, blank, list(shown), 10.0, None).shape[1]

    def _made(self) -> nn.Module:
        try:
            return self.kind.make(self.name).eval().requires_grad_(False)
        except MissingLibraryError:
            raise
        except Exception as error:  # its registry tries several libraries, each with errors
            raise ModelError(
                f"TerraTorch builds no {self.name} ({error})", "see its registry for the names"
            ) from error

    def _load(self, checkpoint: Path) -> None:
        try:
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)
            self.network.load_state_dict(self.kind.own_weights(state, self.network))
        except Exception as error:  # whatever a file that is none of this network's leads to
            told = " ".join(line.strip() for line in str(error).splitlines()[:3])
            raise ModelError(
                f"{checkpoint} does not hold the weights of {self.name} ({told})",
                "give its published checkpoint, or a state dict of the network",
            ) from error

    def embed(
        self, chips: Tensor, *, bands: tuple[str, ...], gsd: float, time: Tensor | None = None
    ) -> Tensor:
        """Embed chips; see `nec.encoders.Encoder.embed`.

        Raises
        ------
        ModelError
            If bands are not the backbone's, or chips are no squares that its patches fill.
        """
        bands = self._named(bands)
        self._check(chips, bands)
        order = [band for band in self.bands if band in bands]
        mean, deviation = torch.tensor(
            [self._statistics[band] for band in order], device=chips.device
        ).T[:, :, None, None]
        x = (1e4 * chips[:, [bands.index(band) for band in order]] - mean) / deviation
        if self.kind.fills and order != list(self.kind.bands):
            places = [self.kind.bands.index(band) for band in order]
            whole = x.new_zeros(len(x), len(self.kind.bands), *x.shape[2:])
            whole[:, places] = x
            x, order = whole, list(self.kind.bands)
        with (
            torch.no_grad(),
            torch.autocast(chips.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"),
        ):
            return self.kind.run(self.network, x, order, gsd, time).float()

    def _named(self, bands: tuple[str, ...]) -> tuple[str, ...]:
        """Return the bands by the backbone's names: nir and nir08 serve each other."""
        for given, own in (("nir", "nir08"), ("nir08", "nir")):
            if given not in self.bands and own in self.bands and own not in bands:
                bands = tuple(own if band == given else band for band in bands)
        return bands

    def _check(self, chips: Tensor, bands: tuple[str, ...]) -> None:
        if chips.ndim != 4 or len(bands) != chips.shape[1] or len(set(bands)) < len(bands):
            raise ModelError(
                f"bands {bands} do not name each band of chips of shape {tuple(chips.shape)} once",
                "pass (n, band, y, x) with one name for each band",
            )
        if not bands or not set(bands) <= set(self.bands):
            raise ModelError(
                f"bands {bands} are not all among those of {self.name}",
                f"choose among {', '.join(self.bands)}",
            )
        rows, columns = chips.shape[2:]
        several = self.kind.any_size
        fits = rows % self.patch_size == 0 if several else rows == self.kind.edge
        if rows != columns or not fits:
            raise ModelError(
                f"chips of {rows} x {columns} pixels do not suit {self.name}",
                f"it takes squares of {self.kind.edge} pixels"
                + (f", or of another multiple of {self.patch_size}" if several else ""),
            )
