"""The pretraining objective: masked autoencoding, agreement of views, statistics, a teacher.

All act through the embedding head, because the head's output is what is shipped.

References
----------
.. [1] He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022.
.. [2] Chen et al., A Simple Framework for Contrastive Learning, ICML 2020.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nec.encoders.vit import (
    Block,
    VisionTransformer,
    compand,
    rotary_angles,
    token_positions,
)
from nec.errors import ModelError

# Contrast below this (in companded units) is sensor noise, not texture.
CONTRAST_FLOOR = 0.05


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Pick tokens (n, token, c) by index (n, k)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def patch_targets(patches: Tensor) -> Tensor:
    """Return what the decoder predicts for each patch and band.

    Parameters
    ----------
    patches : Tensor of shape (n, token, band, pixel)
        Companded values.

    Returns
    -------
    Tensor of shape (n, token, band, pixel + 2)
        Pixels with their level, half of what a land-cover class is, then the patch's mean
        and log contrast.
    """
    mean = patches.mean(-1, keepdim=True)
    contrast = patches.std(-1, keepdim=True) + CONTRAST_FLOOR
    return torch.cat((patches, mean, contrast.log()), dim=-1)


# Level, its square, log contrast, and log gradient energy in four orientations.
STATISTICS = 7


def patch_statistics(patches: Tensor) -> Tensor:
    """Return what the embedding of a token shall tell of its patch by a linear map.

    The mean over an image of these is a description of its colour, spread and texture, which
    pooled embeddings then hold as well.

    Parameters
    ----------
    patches : Tensor of shape (n, token, band, pixel)
        Companded values.

    Returns
    -------
    Tensor of shape (n, token, band, STATISTICS)
    """
    edge = round(patches.shape[-1] ** 0.5)
    square = patches.unflatten(-1, (edge, edge))
    mean = patches.mean(-1)
    contrast = patches.std(-1) + CONTRAST_FLOOR
    across = square[..., :, 1:] - square[..., :, :-1]
    down = square[..., 1:, :] - square[..., :-1, :]
    falling = square[..., 1:, 1:] - square[..., :-1, :-1]
    rising = square[..., 1:, :-1] - square[..., :-1, 1:]
    energy = [
        (g.square().mean((-2, -1)).sqrt() + CONTRAST_FLOOR).log()
        for g in (across, down, falling, rising)
    ]
    return torch.stack((mean, mean.square() / 2, contrast.log(), *energy), dim=-1)


def moments(tokens: Tensor) -> Tensor:
    """Return mean and deviation over the tokens (n, token, dim), shape (n, 2 dim)."""
    # The floor keeps the gradient of a flat image finite.
    return torch.cat((tokens.mean(1), (tokens.float().var(1) + 1e-4).sqrt()), dim=-1)


class MaskedContrast(nn.Module):
    """Masked autoencoding and InfoNCE over two augmented views of the same chips.

    Parameters
    ----------
    network : VisionTransformer
        The encoder in training.
    keep : float
        Fraction of tokens that the encoder sees.
    predict : float
        Fraction of the hidden tokens that the decoder predicts.
    contrast_weight : float
        Weight of InfoNCE beside the reconstruction.
    temperature : float
        Of InfoNCE.
    reconstruction_weight : float
        Weight of the decoder's prediction of hidden tokens.
    statistics_weight : float
        Weight of the linear prediction of each seen token's `patch_statistics` from its
        embedding; bands that the encoder does not see are predicted too.
    teacher_dim : int
        Bands of the teacher's tokens; 0 for no teacher.
    teacher_weight : float
        Weight of the linear prediction of the teacher's tokens: those of seen places from the
        embedding, those of hidden places from the decoder.
    pooling : {"mean", "moments"}
        What of a view's embeddings InfoNCE compares: their mean, or mean and deviation.

    Raises
    ------
    ModelError
        The pooling is unknown.
    """

    def __init__(
        self,
        network: VisionTransformer,
        *,
        keep: float = 0.25,
        predict: float = 0.25,
        contrast_weight: float = 0.2,
        temperature: float = 0.2,
        reconstruction_weight: float = 1.0,
        statistics_weight: float = 1.0,
        teacher_dim: int = 0,
        teacher_weight: float = 1.0,
        pooling: str = "moments",
        decoder_width: int = 128,
        decoder_depth: int = 1,
    ) -> None:
        super().__init__()
        if pooling not in ("mean", "moments"):
            raise ModelError(f"pooling={pooling!r} is unknown", 'use "mean" or "moments"')
        self.network = network
        self.keep, self.predict = keep, predict
        self.contrast_weight, self.temperature = contrast_weight, temperature
        self.reconstruction_weight = reconstruction_weight
        self.statistics_weight = statistics_weight
        self.teacher_dim, self.teacher_weight = teacher_dim, teacher_weight
        self.pooling = pooling
        config = network.config
        self.decoder_heads = decoder_width // 32
        self.into_decoder = nn.Linear(config.dim, decoder_width)
        self.mask_token = nn.Parameter(torch.randn(decoder_width) * 0.02)
        self.decoder = nn.ModuleList(
            Block(decoder_width, self.decoder_heads) for _ in range(decoder_depth)
        )
        outputs = len(config.bands) * (config.patch_size**2 + 2) + teacher_dim
        self.predictor = nn.Sequential(
            nn.LayerNorm(decoder_width), nn.Linear(decoder_width, outputs)
        )
        self.describe = nn.Linear(config.dim, len(config.bands) * STATISTICS + teacher_dim)
        self.projector = nn.Sequential(
            nn.Linear(config.dim * (1 if pooling == "mean" else 2), 256),
            nn.BatchNorm1d(256),
            nn.GELU(),
            nn.Linear(256, 128),
        )

    def forward(
        self,
        views: tuple[Tensor, Tensor],
        inputs: tuple[list[int], list[int]],
        gsd: Tensor,
        *,
        teacher: tuple[Tensor | None, Tensor | None] = (None, None),
        noise: float = 0.0,
    ) -> dict[str, Tensor]:
        """Return the losses of a batch.

        Parameters
        ----------
        views : two Tensors of shape (n, 6, y, x)
            Two augmentations of the same chips, reflectance; NaN bands are not there.
        inputs : two lists of int
            Projections of the bands that the encoder sees, for each view.
        gsd : Tensor of shape (2, n)
            Ground sampling distance of each view, metres.
        teacher : two Tensors of shape (n, teacher_dim, y / patch, x / patch), optional
            The teacher's tokens of each view.
        noise : float
            Variance of the uniform noise that a codec's rounding is taken for, as a fraction
            of the mean variance of the embedding's bands; all losses act through it.
        """
        missing = views[0].isnan()
        present = [i for i in range(views[0].shape[1]) if not missing[0, i, 0, 0]]
        if missing[:, present].any():
            raise ModelError(
                "chips of a batch have different bands, or pixels that are missing",
                "sort chips by their bands, and fill missing pixels",
            )
        reconstruction: list[Tensor] = []
        pooled: list[Tensor] = []
        for view, index, scale, lead in zip(views, inputs, gsd, teacher, strict=True):
            embedding, loss = self._masked(view, index, scale, present, lead, noise)
            reconstruction.append(loss)
            pooled.append(F.normalize(self.projector(self._pool(embedding)).float(), dim=-1))
        similarity = pooled[0] @ pooled[1].T / self.temperature
        same = torch.arange(len(similarity), device=similarity.device)
        contrast = (F.cross_entropy(similarity, same) + F.cross_entropy(similarity.T, same)) / 2
        pixels = torch.stack(reconstruction).mean(0)
        total = pixels.sum() + self.contrast_weight * contrast
        with torch.no_grad():
            agree = (similarity.argmax(1) == same).float().mean()
        return {
            "loss": total,
            "pixels": pixels[0],
            "level": pixels[1],
            "texture": pixels[2],
            "statistics": pixels[3],
            "teacher": pixels[4],
            "contrast": contrast,
            "agree": agree,
        }

    def _pool(self, embedding: Tensor) -> Tensor:
        return embedding.mean(1) if self.pooling == "mean" else moments(embedding)

    def _masked(
        self,
        view: Tensor,
        index: list[int],
        gsd: Tensor,
        present: list[int],
        teacher: Tensor | None,
        noise: float,
    ) -> tuple[Tensor, Tensor]:
        n, _, h, w = view.shape
        p = self.network.config.patch_size
        patches = self.network.patches(compand(view[:, present]))
        tokens = patches.shape[2]
        kept = round(tokens * self.keep)
        asked = round((tokens - kept) * self.predict)
        # Deviation wants two tokens that are seen, and reconstruction one that is not.
        if kept < 2 or asked < 1:
            raise ModelError(
                f"of {tokens} tokens {kept} are seen and {asked} predicted (keep={self.keep}, "
                f"predict={self.predict})",
                "see two at least and predict one: take larger chips, or other shares",
            )
        order = torch.rand(n, tokens, device=view.device).argsort(1)
        seen, hidden = order[:, :kept], order[:, kept : kept + asked]
        positions = token_positions(h // p, w // p, view.device).expand(n, -1, -1)

        slot = [present.index(i) for i in index]
        chosen = patches[:, slot].gather(2, seen[:, None, :, None].expand(-1, len(slot), -1, p * p))
        x = self.network.tokens(chosen, index, gsd)
        embedding = self.network.head(self.network.encode_tokens(x, gather_tokens(positions, seen)))
        if noise:
            variance = embedding.detach().float().flatten(0, 1).var(0).mean()
            width = (12 * noise * variance).sqrt()
            embedding = embedding + (torch.rand_like(embedding) - 0.5) * width

        width = self.mask_token.shape[0]
        x = torch.cat((self.into_decoder(embedding), self.mask_token.expand(n, asked, width)), 1)
        where = gather_tokens(positions, torch.cat((seen, hidden), 1))
        cos, sin = rotary_angles(where, width // self.decoder_heads)
        for block in self.decoder:
            x = block(x, cos, sin)
        decoded = self.predictor(x[:, kept:]).float()
        described = self.describe(embedding).float()
        led = torch.zeros((), device=view.device)
        if self.teacher_dim:
            decoded, guessed = decoded.tensor_split((-self.teacher_dim,), -1)
            described, told = described.tensor_split((-self.teacher_dim,), -1)
            if teacher is not None:
                goal = teacher.flatten(2).transpose(1, 2).float()
                led = (told - gather_tokens(goal, seen)).square().mean()
                led = (led + (guessed - gather_tokens(goal, hidden)).square().mean()) / 2
        predicted = decoded.view(n, asked, -1, p * p + 2)[:, :, present]
        target = patch_targets(
            gather_tokens(patches.permute(0, 2, 1, 3).flatten(2), hidden).view(
                n, asked, len(present), p * p
            )
        )
        error = (predicted - target).square()
        own = patches.gather(2, seen[:, None, :, None].expand(-1, len(present), -1, p * p))
        misfit = described.view(n, kept, -1, STATISTICS)[:, :, present] - patch_statistics(
            own.permute(0, 2, 1, 3)
        )
        parts = torch.stack(
            (
                self.reconstruction_weight * error[..., :-2].mean(),
                self.reconstruction_weight * error[..., -2].mean(),
                self.reconstruction_weight * error[..., -1].mean(),
                self.statistics_weight * misfit.square().mean(),
                self.teacher_weight * led,
            )
        )
        return embedding, parts
