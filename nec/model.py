"""`Model`: an encoder, the basis that its embeddings are stored in, and a compressor a rate."""

import json
import logging
from dataclasses import dataclass
from functools import cached_property
from hashlib import file_digest, sha256
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nec.compressor import Compressor
from nec.encoders.families import FAMILIES, family_of
from nec.errors import ModelError

if TYPE_CHECKING:
    from nec.encoders import Encoder
    from nec.encoders.tiling import Tiling

log = logging.getLogger(__name__)

WEIGHTS = Path(__file__).parent / "weights"
RATES = ("low", "medium", "high")
BACKENDS = ("torch", "openvino", "cuda")
CARD = "model.json"
ENCODER = "encoder.safetensors"


@dataclass(frozen=True, eq=False)
class Model:
    """An encoder with its compressors.

    Attributes
    ----------
    name : str
        Name of the model.
    folder : Path
        Where its files lie.
    card : dict
        The model card: configuration, data, licence, command, metrics.
    compressors : dict of str to Compressor
        By rate: low, medium, high.
    precision : {"float32", "bfloat16"}
        Arithmetic of the encoder.
    backend : {"torch", "openvino", "cuda"}
        What runs the encoder: torch on the processor, OpenVINO, or torch on an NVIDIA GPU.
    """

    name: str
    folder: Path
    card: dict[str, Any]
    compressors: dict[str, Compressor]
    precision: str
    backend: str = "torch"

    def __reduce__(self) -> tuple[Any, ...]:
        # By name: another process loads it once, whatever number of tasks it is sent with.
        return _load_once, (self.reference, self.precision, self.backend, self.weights_sha256)

    @property
    def reference(self) -> str:
        """What `load_model` takes to load this model again."""
        return str(self.card.get("reference", self.folder.absolute()))

    @property
    def tiling(self) -> "Tiling":
        """How images are cut into chips for this model where the caller does not say."""
        from nec.encoders.tiling import Tiling

        return Tiling(**self.card.get("tiling", {}))

    @property
    def basis(self) -> NDArray[np.float32]:
        """Orthonormal rotation (feature, component), shared by all rates.

        Raises
        ------
        ModelError
            If the model has no compressors.
        """
        return self._any_compressor().basis

    @property
    def basis_hash(self) -> str:
        """Name of the basis; raises as `basis` does."""
        return self._any_compressor().basis_hash

    def _any_compressor(self) -> Compressor:
        if not self.compressors:
            raise ModelError(
                f"{self.name} comes without compressors, so without a basis",
                "fit them: nec fit --model",
            )
        return next(iter(self.compressors.values()))

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights file, hexadecimal; checked when the model was loaded."""
        return str(self.card["weights_sha256"])

    @cached_property
    def encoder(self) -> "Encoder":
        """The encoder; torch is imported here.

        Raises
        ------
        ModelError
            If torch or the backend is not installed, or the weights do not fit the configuration.
        """
        family = FAMILIES.get(self.card.get("architecture", ""))
        try:
            if family is not None:
                return family.make(self.card, self.folder, self.precision)
            return self._transformer()
        except ModuleNotFoundError as error:
            if error.name == "openvino":
                raise ModelError(
                    "backend openvino is not installed",
                    "pip install 'nec[openvino]', or take backend torch",
                ) from error
            raise ModelError(
                f"encoding needs {error.name}, which is not installed",
                "pip install 'nec[encode]' (reading stores needs only the core)",
            ) from error

    def _transformer(self) -> "Encoder":
        from safetensors.torch import load_file

        from nec.encoders.vit import (
            VisionTransformer,
            VisionTransformerConfig,
            VisionTransformerEncoder,
        )
        from nec.lowrank import deploy, is_lowrank, load_lowrank

        config = dict(self.card["encoder"])
        network = VisionTransformer(
            VisionTransformerConfig(**config | {"bands": tuple(config["bands"])})
        )
        weights = {k: v.float() for k, v in load_file(self.folder / ENCODER).items()}
        try:
            load_lowrank(network, weights)
        except RuntimeError as error:
            raise ModelError(
                f"the weights of {self.name} do not fit its configuration", "fetch the model again"
            ) from error
        if is_lowrank(network):
            deploy(network)
        if self.backend == "openvino":
            from nec.encoders.openvino import OpenvinoEncoder

            return OpenvinoEncoder(self.name, network, precision=self.precision)
        if self.backend == "cuda":
            import torch

            if not torch.cuda.is_available():
                raise ModelError(
                    "backend cuda finds no NVIDIA GPU, or a torch that was built without CUDA",
                    "take backend torch",
                )
            network.cuda()
        return VisionTransformerEncoder(self.name, network, precision=self.precision)

    def compressor(self, rate: str | float | Path) -> Compressor:
        """Return the compressor of a rate: its name, the nearest in bytes a vector, or of a file.

        Raises
        ------
        ModelError
            If the model has no such rate, or the file is of features of another length.
        CompressorError
            If the file is no compressor.
        """
        rate = str(rate) if isinstance(rate, Path) else rate
        if isinstance(rate, str) and rate.endswith(".json"):
            fitted = Compressor.load(rate)
            if len(fitted.basis) != self.encoder.dim:
                raise ModelError(
                    f"{rate} compresses {len(fitted.basis)} features, {self.name} has "
                    f"{self.encoder.dim}",
                    f"fit one to it: nec fit SCENE FILE.json --model {self.reference} --bytes 2",
                )
            return fitted
        if not self.compressors:
            raise ModelError(
                f"{self.name} comes without compressors",
                f"fit one: nec fit SCENE FILE.json --model {self.reference} --bytes 2; then pass "
                "it as rate (--rate FILE.json)",
            )
        if isinstance(rate, str):
            if rate not in self.compressors:
                raise ModelError(
                    f"{self.name} has no rate {rate!r}",
                    f"choose among {', '.join(self.compressors)}, or give bytes per vector",
                )
            return self.compressors[rate]
        if not np.isfinite(rate) or rate <= 0:
            raise ModelError(
                f"{rate} bytes per vector is no rate", f"choose among {', '.join(self.compressors)}"
            )
        sizes = {r: c.fidelity.bytes_per_vector for r, c in self.compressors.items()}
        nearest = min(sizes, key=lambda r: abs(np.log(sizes[r] / rate)))
        if abs(np.log(sizes[nearest] / rate)) > np.log(1.25):
            log.warning(
                "%s has no rate of %g bytes per vector: taking %s, about %.2f",
                self.name,
                rate,
                nearest,
                sizes[nearest],
            )
        return self.compressors[nearest]


def list_models() -> list[str]:
    """Return the names of the built-in models."""
    return sorted(p.parent.name for p in WEIGHTS.glob(f"*/{CARD}"))


def load_model(name: str | Path, *, precision: str = "auto", backend: str = "torch") -> Model:
    """Load a model by name, or from a folder.

    Parameters
    ----------
    name : str or Path
        A built-in model (`list_models`), a folder with `model.json`; ``galileo:FOLDER``, the
        published files of Galileo (config.json, encoder.pt); ``terratorch:BACKBONE@CHECKPOINT``,
        a backbone of TerraTorch with a file of its weights. Compressors that lie beside published
        files as low.json, medium.json or high.json come along.
    precision : {"auto", "float32", "bfloat16"}
        Arithmetic of the encoder; "auto" takes bfloat16 where the processor has it.
    backend : {"torch", "openvino", "cuda"}
        What runs the encoder: torch on the processor; of the built-in architecture alone OpenVINO
        (``pip install 'nec[openvino]'``), or torch on the first NVIDIA GPU. Embeddings agree within
        the precision, not bit by bit: a store is finished by the backend that began it, so a GPU
        is taken where it is asked for, not wherever there is one.

    Raises
    ------
    ModelError
        If there is no such model or backend, a file is damaged, or the compressors disagree on the
        basis.
    """
    if backend not in BACKENDS:
        raise ModelError(f"backend {backend!r} is unknown", f"choose among {', '.join(BACKENDS)}")
    if (family := family_of(str(name))) is not None:
        if backend != "torch":
            raise ModelError(
                f"backend {backend} does not run {name}",
                "take backend torch for published encoders",
            )
        found = family.find(str(name).partition(":")[2])
        digests = [sha256_of(file) for file in found.files]
        # One file is named by its own digest, several by that of their digests.
        digest = digests[0] if len(digests) == 1 else sha256("".join(digests).encode()).hexdigest()
        card = found.card | {"weights_sha256": digest}
        compressors = _compressors(found.folder)
        if compressors:
            _check_basis(card["name"], compressors)
        return Model(card["name"], found.folder, card, compressors, _resolve(precision, backend))
    folder = WEIGHTS / str(name) if str(name) in list_models() else Path(name)
    try:
        card = json.loads((folder / CARD).read_text())
    except (OSError, ValueError) as error:
        raise ModelError(
            f"there is no model {str(name)!r}",
            f"choose among {', '.join(list_models())}, or give a folder with {CARD}",
        ) from error
    compressors = _compressors(folder)
    _check_basis(card["name"], compressors)
    digest = sha256_of(folder / ENCODER)
    if digest != card.get("weights_sha256"):
        raise ModelError(
            f"{folder / ENCODER} has SHA-256 {digest[:16]}..., the card says "
            f"{str(card.get('weights_sha256'))[:16]}...",
            "the weights are damaged: fetch the model again",
        )
    return Model(card["name"], folder, card, compressors, _resolve(precision, backend), backend)


def _check_basis(name: str, compressors: dict[str, Compressor]) -> None:
    if len({c.basis_hash for c in compressors.values()}) != 1:
        raise ModelError(
            f"the compressors of {name} are missing or of different bases",
            "fit them together: nec fit --model, or pipelines/fit_compressors.py",
        )


def _compressors(folder: Path) -> dict[str, Compressor]:
    files = {rate: folder / f"{rate}.json" for rate in RATES}
    return {rate: Compressor.load(file) for rate, file in files.items() if file.exists()}


_LOADED: dict[tuple[str, str, str], Model] = {}
_LOADING = Lock()


def _load_once(reference: str, precision: str, backend: str, weights_sha256: str) -> Model:
    """Load a model that was pickled in another process, once here; it has to be the same."""
    with _LOADING:
        key = (reference, precision, backend)
        if key not in _LOADED:
            _LOADED[key] = load_model(reference, precision=precision, backend=backend)
        model = _LOADED[key]
        if model.weights_sha256 != weights_sha256:
            raise ModelError(
                f"{reference} has other weights here ({model.weights_sha256[:16]}...) than where "
                f"the run was started ({weights_sha256[:16]}...)",
                "install the same release and model on all machines",
            )
        _ = model.encoder  # threads of this process share it
        return model


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal.

    Raises
    ------
    ModelError
        If it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error})", "fetch the model again") from error


def _resolve(precision: str, backend: str) -> str:
    if precision not in ("auto", "float32", "bfloat16"):
        raise ModelError(f"precision {precision!r} is unknown", "auto, float32 or bfloat16")
    if precision != "auto":
        return precision
    if backend == "cuda":
        return "bfloat16"
    try:
        import torch
    except ImportError:
        return "float32"
    # The operator is there where oneDNN is.
    fast = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if fast else "float32"
