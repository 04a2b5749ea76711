"""Robustness of models and embeddings: attacks, and whether gradients can be trusted.

Imports torch; `import nec` does not import this.
"""

from nec.robustness.attacks import (
    APGD,
    FGSM,
    PGD,
    Admix,
    Attack,
    Jitter,
    Mixup,
    Square,
    Transfer,
)
from nec.robustness.boundary import (
    Boundary,
    DeepFool,
    MinimalPerturbation,
    minimal_perturbation,
)
from nec.robustness.embedding_shift import EmbeddingShift, embedding_shift, scene_embedding
from nec.robustness.evaluation import Outcome, evaluate
from nec.robustness.masking import (
    fgsm_pgd_cosine,
    gradient_information,
    gradient_norm,
    linearization_error,
    pgd_collinearity,
)
from nec.robustness.report import MaskingReport, masking_report, plot_reports

__all__ = [
    "APGD",
    "FGSM",
    "PGD",
    "Admix",
    "Attack",
    "Boundary",
    "DeepFool",
    "EmbeddingShift",
    "Jitter",
    "MaskingReport",
    "MinimalPerturbation",
    "Mixup",
    "Outcome",
    "Square",
    "Transfer",
    "embedding_shift",
    "evaluate",
    "fgsm_pgd_cosine",
    "gradient_information",
    "gradient_norm",
    "linearization_error",
    "masking_report",
    "minimal_perturbation",
    "pgd_collinearity",
    "plot_reports",
    "scene_embedding",
]
