"""Orthonormal bases of a core: ranks, modes, and how coordinates change with the bases."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nec.errors import LowRankError

# A whole number, or a fraction in (0, 1] of the largest rank that the layer can have.
Rank = int | float


def resolve_rank(rank: Rank, full: int) -> int:
    """Return `rank` as a whole number from 1 to `full`; a float is a fraction of `full`.

    Raises
    ------
    LowRankError
        If the rank is below 1, or a fraction outside (0, 1].
    """
    if not isinstance(rank, int):
        rank = float(rank)
        if not 0 < rank <= 1:
            raise LowRankError(f"rank {rank} is no fraction", "give a float in (0, 1], or an int")
        return max(1, round(rank * full))
    if rank < 1:
        raise LowRankError(f"rank {rank} is below 1", "give an int from 1, or a float in (0, 1]")
    return min(rank, full)


def contract(core: Tensor, matrix: Tensor, mode: int) -> Tensor:
    """Multiply mode 0 or 1 of `core` by `matrix` of shape (new, old), also under autocast."""
    with torch.autocast(core.device.type, enabled=False):
        product: Tensor = torch.tensordot(matrix, core, dims=([1], [mode]))
    return product.movedim(0, mode)


def unfold(core: Tensor, mode: int) -> Tensor:
    """Matricise `core`: a row for each index of mode 0 or 1."""
    return core.movedim(mode, 0).flatten(1)


def working_dtype(x: Tensor) -> torch.dtype:
    """Return the precision that decompositions run in: float32 or better."""
    return torch.promote_types(x.dtype, torch.float32)


@dataclass(frozen=True)
class BasisChange:
    """How coordinates of a core change with its bases.

    Attributes
    ----------
    output, input : Tensor of shape (new rank, old rank)
        New basis, transposed, times old basis.
    """

    output: Tensor
    input: Tensor

    def of(self, core: Tensor) -> Tensor:
        """Take a core, or what is linear in its gradient, to the new bases."""
        output, inputs = self.output.to(core.dtype), self.input.to(core.dtype)
        return contract(contract(core, output, 0), inputs, 1)

    def of_squares(self, squares: Tensor) -> Tensor:
        """Take a running mean of squared gradients to the new bases.

        Squares follow squared rotations, as variances of independent entries do, and stay
        positive. Directions without a history get the mean: from zero, an optimiser that
        believes itself past its first steps would take a leap.
        """
        output = self.output.square().to(squares.dtype)
        inputs = self.input.square().to(squares.dtype)
        known = torch.outer(output.sum(1), inputs.sum(1)).clamp(max=1)
        known = known.reshape(known.shape + (1,) * (squares.ndim - 2))
        moved = contract(contract(squares, output, 0), inputs, 1)
        return moved + (1 - known) * squares.mean()


def widened_basis(basis: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormalise a basis with directions; also return the new basis, transposed, by the old."""
    dtype = working_dtype(basis)
    basis, direction = basis.to(dtype), direction.to(dtype)
    # Columns of unit length, so that no weak direction is lost in the rounding of a strong one.
    direction = direction / direction.norm(dim=0).clamp(min=torch.finfo(dtype).tiny)
    wide, _ = torch.linalg.qr(torch.cat((basis, direction), dim=1))
    return wide, wide.T @ basis


def rank_within(values: Tensor, tolerance: float) -> int:
    """Return the smallest rank that leaves out singular values of at most this norm."""
    tails = values.double().square().flip(0).cumsum(0).flip(0).sqrt()
    return int((tails > tolerance).sum())
