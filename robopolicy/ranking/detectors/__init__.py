"""How far the target's observations lie from the simulator's, seen through one checkpoint's encoder.

A detector is fitted on simulator features and scores others, larger = further out:

    Mahalanobis().fit(simulator).score(target)  # [N, D], [M, D] -> [M]

Raw scores live in the feature space of their own checkpoint; only what `evidence` makes of them, against a hold-out of the
simulator, compares between checkpoints. `detect` does all of it for a checkpoint, with guards.
"""

from robopolicy.ranking.detectors.base import Detector, dead_units, effective_rank
from robopolicy.ranking.detectors.detect import DETECTORS, Detection, detect
from robopolicy.ranking.detectors.disagreement import Disagreement
from robopolicy.ranking.detectors.distances import KNN, Mahalanobis, PCAResidual
from robopolicy.ranking.detectors.domain import DomainClassifier, DomainGap
from robopolicy.ranking.detectors.evidence import Evidence, conformal_p, conformal_score, effect_size, evidence
from robopolicy.ranking.detectors.novelty import RandomNetworkDistillation

__all__ = [
    "DETECTORS",
    "KNN",
    "Detection",
    "Detector",
    "Disagreement",
    "DomainClassifier",
    "DomainGap",
    "Evidence",
    "Mahalanobis",
    "PCAResidual",
    "RandomNetworkDistillation",
    "conformal_p",
    "conformal_score",
    "dead_units",
    "detect",
    "effect_size",
    "effective_rank",
    "evidence",
]
