"""Random convolutional features: what a patch dictionary does without any training."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

EDGE = 6
COUNT = 512
PATCHES = 50_000
# Contrast, in display units squared, under which a patch is noise.
FLOOR = 1e-3
WHITENING = 0.03
SEED = 5


class RandomFilters:
    """Whitened patches of training images as filters, rectified and pooled.

    After A. Coates and A. Ng, Learning Feature Representations with K-means (2012), with
    patches drawn at random in place of centroids.

    Parameters
    ----------
    images : ndarray of shape (n, band, y, x), float32
        Training images, display values between 0 and 1.
    threshold : float
        Response, in its standard deviations, below which a filter is silent.
    """

    def __init__(self, images: NDArray[np.float32], *, threshold: float = 0.5) -> None:
        rng = np.random.default_rng(SEED)
        windows = np.lib.stride_tricks.sliding_window_view(images, (EDGE, EDGE), axis=(2, 3))
        n, bands, height, width = windows.shape[:4]
        picked = windows[
            rng.integers(0, n, PATCHES),
            :,
            rng.integers(0, height, PATCHES),
            rng.integers(0, width, PATCHES),
        ].reshape(PATCHES, -1)
        normal = _normalised(picked)
        centre = normal.mean(0)
        values, vectors = np.linalg.eigh(np.cov(normal.T))
        whitening = (vectors / np.sqrt(np.maximum(values, 0) + WHITENING)) @ vectors.T
        white = (normal[rng.choice(PATCHES, COUNT, replace=False)] - centre) @ whitening
        filters = white / np.linalg.norm(white, axis=1, keepdims=True)
        folded = whitening @ filters.T
        # Whitened patches have unit variance along every direction, so responses do.
        self.weight = torch.from_numpy(folded.T.reshape(COUNT, bands, EDGE, EDGE)).float()
        self.bias = torch.from_numpy(-centre @ folded).float()
        self.threshold = threshold

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the mean rectified response of each filter, (n, COUNT), float32."""
        out = []
        size = self.weight[0].numel()
        ones = torch.ones(1, self.weight.shape[1], EDGE, EDGE) / size
        # As many pixels at a time as 64 small images hold: responses take 2 kB a pixel, thrice.
        count = max(1, 64**3 // (images.shape[2] * images.shape[3]))
        for at in range(0, len(images), count):
            batch = torch.from_numpy(images[at : at + count])
            mean = F.conv2d(batch, ones)
            variance = (F.conv2d(batch.square(), ones) - mean.square()).clamp(min=0)
            # A filter of a patch without its mean is the filter without its own.
            plain = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            response = F.conv2d(batch, plain) / (variance + FLOOR).sqrt()
            response += self.bias[:, None, None]
            out.append(F.relu(response - self.threshold).mean((2, 3)))
        return torch.cat(out).numpy()


def _normalised(patches: NDArray[np.float32]) -> NDArray[np.float64]:
    centred = patches - patches.mean(1, keepdims=True)
    return (centred / np.sqrt(centred.var(1, keepdims=True) + FLOOR)).astype(np.float64)
