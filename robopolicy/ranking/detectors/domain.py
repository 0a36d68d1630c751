"""A classifier that tells the target's features from the simulator's, as far as it can: cross-validated, with its null."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from robopolicy.ope.estimate import auroc
from robopolicy.ranking.detectors.base import Array, Detector, check_features
from robopolicy.ranking.statistics import stream

MAX_LOGIT = 50.0


@dataclass(frozen=True)
class DomainGap:
    """How well held-out episodes of the target are told from the simulator's hold-out.

    auroc: 0.5 = not at all. accuracy: balanced, at even odds. null: AUROC [R] of the same procedure where the target is a
    part of the simulator's hold-out. p_value: (1 + #{null >= auroc}) / (1 + R).
    """

    auroc: float
    accuracy: float
    null: Array
    p_value: float


class DomainClassifier(Detector):
    """Logistic regression, simulator against target; a row's score is the odds that it is of the target, 1 = no telling.

    Unlike the other detectors it learns from what it scores, in folds that hold whole episodes: nothing is scored by a
    classifier that saw its episode. Saturates where the two are separable, as raw images of a simulator mostly are.

    Args:
        num_folds: of cross-validation.
        inverse_penalty: scikit-learn's C, on standardised features and balanced classes.
        max_rows: most simulator rows to learn from, drawn at random.
        seed: of the draw and of the folds.
    """

    def __init__(self, num_folds: int = 5, inverse_penalty: float = 0.01, max_rows: int = 4000, seed: int = 0) -> None:
        if num_folds < 2 or inverse_penalty <= 0 or max_rows < 2:
            raise ValueError("num_folds and max_rows must be at least 2, inverse_penalty above 0")
        self.num_folds, self.inverse_penalty, self.max_rows, self.seed = num_folds, inverse_penalty, max_rows, seed

    def _fit(self, features: Array) -> None:
        chosen = stream(self.seed, "domain rows", len(features)).permutation(len(features))[: self.max_rows]
        self.simulator = self.standard(features[np.sort(chosen)])

    def score(self, features: Any, episode: Any = None) -> Array:
        """Odds [M] of features [M, D], by classifiers that did not see their episode (int [M]; default: one each).

        NaN where there are fewer than 2 episodes.
        """
        if not hasattr(self, "standard"):
            raise RuntimeError("DomainClassifier scores after fit(simulator features)")
        array = check_features(features, len(self.standard.alive))
        x = self.standard(array)
        return self._score(x) if episode is None else self._odds(x, None, np.asarray(episode))[0]

    def pair(self, target: Array, calibration: Array, target_episode: Array) -> tuple[Array, Array]:
        """Odds of the target [M] and, by the mean logit of the folds' classifiers, of the simulator's hold-out [N]."""
        return self._odds(self.standard(target), self.standard(calibration), np.asarray(target_episode))

    def gap(
        self, target: Any, calibration: Any, target_episode: Any, calibration_episode: Any, num_null: int = 20
    ) -> DomainGap:
        """AUROC and accuracy of held-out target rows against the simulator's hold-out, and what they are without a gap.

        A null replicate takes random episodes of the hold-out, as many as the target has but at most half, for the target.

        Raises:
            ValueError: fewer than 2 episodes of the target, or fewer than 4 of the hold-out.
        """
        width = len(self.standard.alive)
        known, seen = self.standard(check_features(calibration, width)), self.standard(check_features(target, width))
        own = np.unique(np.asarray(target_episode), return_inverse=True)[1]
        held = np.unique(np.asarray(calibration_episode), return_inverse=True)[1]
        num, available = int(own.max()) + 1, int(held.max()) + 1
        if num < 2 or available < 4:
            raise ValueError(f"{num} target and {available} hold-out episodes: needs at least 2 and 4")
        positive, negative = self._odds(seen, known, own)
        value = auroc(positive, negative)
        null = np.empty(num_null)
        for r in range(num_null):
            drawn = stream(self.seed, "domain null", r).permutation(available)[: min(num, available // 2)]
            member = np.isin(held, drawn)
            null[r] = auroc(*self._odds(known[member], known[~member], held[member]))
        accuracy = (np.mean(positive > 1) + np.mean(negative <= 1)) / 2
        return DomainGap(value, float(accuracy), null, float((1 + (null >= value).sum()) / (1 + num_null)))

    def _score(self, x: Array) -> Array:
        return self._odds(x, None, np.arange(len(x)))[0]

    def _odds(self, target: Array, calibration: Array | None, episode: Array) -> tuple[Array, Array]:
        units = np.unique(episode)
        held_out = np.full(len(target), np.nan)
        known = np.zeros((0, target.shape[1])) if calibration is None else calibration
        logit = np.full(len(known), np.nan)
        if len(units) >= 2:
            logit[:] = 0.0
            order = stream(self.seed, "domain folds", len(units)).permutation(units)
            folds = np.array_split(order, min(self.num_folds, len(units)))
            for fold in folds:
                out = np.isin(episode, fold)
                x = np.concatenate([self.simulator, target[~out]])
                y = np.repeat([0, 1], [len(self.simulator), len(x) - len(self.simulator)])
                model = LogisticRegression(C=self.inverse_penalty, class_weight="balanced", max_iter=200).fit(x, y)
                held_out[out] = model.decision_function(target[out])
                if len(known):
                    logit += model.decision_function(known) / len(folds)
        return tuple(np.exp(np.clip(v, -MAX_LOGIT, MAX_LOGIT)) for v in (held_out, logit))  # type: ignore[return-value]
