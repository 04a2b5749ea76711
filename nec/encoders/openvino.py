"""The built-in encoder's blocks on OpenVINO, which runs them faster than torch on some processors.

Bands are projected to tokens by torch, in float32; from there on one graph serves every subset of
bands, any size of chips and of batches.
"""

import copy
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nec.encoders.vit import (
    VisionTransformer,
    VisionTransformerEncoder,
    compand,
    rotary_angles,
    token_positions,
)


class Blocks(nn.Module):
    """The network behind the projection of its bands: what another runtime is given.

    Parameters
    ----------
    network : VisionTransformer
    precision : {"float32", "bfloat16"}
        Arithmetic of linear layers and attention. Sums, norms and the embedding head stay float32.
    """

    def __init__(self, network: VisionTransformer, precision: str) -> None:
        super().__init__()
        self.mixed = precision == "bfloat16"
        self.blocks = copy.deepcopy(network.blocks)
        self.norm, self.head = network.norm, network.head
        if self.mixed:
            # Rounded to nearest here: OpenVINO was seen to cut off the bits that it drops.
            for layer in self.blocks.modules():
                if isinstance(layer, nn.Linear):
                    layer.to(torch.bfloat16)
        self.eval()

    def forward(self, tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map tokens (n, token, width) and their rotary angles to embeddings (n, token, dim)."""
        # Under autocast the types are written into a graph that is traced.
        with torch.autocast("cpu", torch.bfloat16, enabled=self.mixed, cache_enabled=False):
            for block in self.blocks:
                tokens = block(tokens, cos, sin)
        return self.head(self.norm(tokens))


def block_inputs(
    network: VisionTransformer, chips: Tensor, index: list[int], gsd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `Blocks` takes for chips (n, band, y, x): tokens, and cosines and sines."""
    config = network.config
    rows, columns = (size // config.patch_size for size in chips.shape[2:])
    tokens = network.tokens(network.patches(compand(chips)), index, gsd)
    angles = rotary_angles(token_positions(rows, columns), config.width // config.heads)
    return tokens, *angles


class OpenvinoEncoder(VisionTransformerEncoder):
    """A `VisionTransformer` whose blocks OpenVINO runs on the processor.

    A thread that embeds takes one core; several threads embed beside each other.

    Parameters
    ----------
    name : str
        Name of the model.
    network : VisionTransformer
        The trained network; put into evaluation mode.
    precision : {"float32", "bfloat16"}
        Arithmetic of linear layers and attention; what else there is is float32.
    """

    def __init__(
        self, name: str, network: VisionTransformer, *, precision: str = "float32"
    ) -> None:
        super().__init__(name, network, precision=precision)
        self._blocks = Blocks(self.network, precision)  # kept: the graph shares its memory
        chips = torch.zeros(2, 1, 2 * self.patch_size, 3 * self.patch_size)
        with torch.no_grad():
            example = block_inputs(self.network, chips, [0], torch.full((2,), 10.0))
        self._compiled = _compile(self._blocks, example)
        self._of_thread = threading.local()

    def _forward(self, chips: Tensor, index: list[int], gsd: Tensor) -> Tensor:
        inputs = block_inputs(self.network, chips.cpu(), index, gsd.cpu())
        if not hasattr(self._of_thread, "request"):
            self._of_thread.request = self._compiled.create_infer_request()
        found = self._of_thread.request.infer([tensor.numpy() for tensor in inputs])[0]
        # A copy: the next pass of this thread overwrites what it returned.
        embeddings = torch.tensor(found).transpose(1, 2)
        rows, columns = (size // self.patch_size for size in chips.shape[2:])
        return embeddings.reshape(len(chips), -1, rows, columns)


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Keep OpenVINO's telemetry out, which reports imports and conversions by default.

    Where it is missing OpenVINO takes a stub for it. A process that imported it before us has
    decided for itself.
    """
    name = "openvino_telemetry"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # an import then fails
    try:
        yield
    finally:
        del sys.modules[name]


def _compile(blocks: Blocks, example: tuple[Tensor, ...]) -> Any:
    """Trace the blocks for any number of chips and tokens, and compile them.

    One thread to a stream, and a stream to each core that this process may use.
    """
    with _without_telemetry(), torch.no_grad(), warnings.catch_warnings():
        import openvino

        # OpenVINO traces modules by what torch calls deprecated.
        warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
        model = openvino.convert_model(
            blocks,
            example_input=example,
            input=[openvino.PartialShape([-1, -1, tensor.shape[-1]]) for tensor in example],
        )
    affinity = getattr(os, "sched_getaffinity", None)  # of Linux alone
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    settings = {
        # The graph says where it wants bfloat16; this keeps the rest from being narrowed.
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": cores,
        "INFERENCE_NUM_THREADS": cores,
        "ENABLE_CPU_PINNING": False,
    }
    return openvino.Core().compile_model(model, "CPU", settings)
