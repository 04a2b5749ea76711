"""Learned compression: a quantiser and its entropy model, trained with the end of an encoder.

After [1]_: between encoder and decoder stands a bottleneck, and only the last block of the
encoder, a light predictor and the bottleneck train, for little distortion and few bits. What is
learned leaves as a `nec.Compressor` of the frozen format: a basis, steps and integer tables, so
reading needs neither torch nor a network, and no float decides anything.

Torch is imported here; CompressAI (``pip install 'nec[train]'``) by the two priors that are its
models, factorised and hyperprior.

References
----------
.. [1] Gomes et al., Neural Embedding Compression For Efficient Multi-Task Earth Observation
   Modelling, IGARSS 2024 (arXiv 2403.17886).
"""

from nec.bottleneck.bottleneck import Bottleneck, Coded
from nec.bottleneck.encoder_end import EncoderEnd
from nec.bottleneck.export import export
from nec.bottleneck.prediction import TargetPrediction
from nec.bottleneck.training import Trainer, warm_up

__all__ = [
    "Bottleneck",
    "Coded",
    "EncoderEnd",
    "TargetPrediction",
    "Trainer",
    "export",
    "warm_up",
]
