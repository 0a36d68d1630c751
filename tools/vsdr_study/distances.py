"""How far a target lies from what a policy knows: every detector, of three layers, against two references.

A policy is trained on an expert's episodes, and whoever records the target moves otherwise: then all detectors see first of all
that, in the policy's own training worlds too. So beside the demonstrations there is a second reference, simulated episodes of
the behaviour that recorded the target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.evaluation.features import Frames, of_frames
from robopolicy.evaluation.rollout import Arm
from robopolicy.policies.base import TrainablePolicy
from robopolicy.policies.load import load_policy
from robopolicy.ranking.detectors import detect, evidence
from robopolicy.ranking.tables import check_features
from robopolicy.selection.features import compared, executed, with_reference
from robopolicy.selection.target import open_target
from robopolicy.spec import Observation

Array = np.ndarray
LOOKED_AT = ("features", "picture", "chunks")  # the encoder's output; what it makes of the picture; what the policy would do
REFERENCES = ("demonstrations", "matched")  # what the policy was trained on; also episodes of the target's behaviour
LAYERS = tuple("/".join(pair) for pair in product(LOOKED_AT, REFERENCES))
SPARSE = "mahalanobis"  # the detector of the smaller sets
SUBSETS = 5  # drawn sets of observations for each size


def distances(
    arm: Arm, observed: Mapping[str, Path], matched: Path, num_frames: int, subsets: tuple[int, ...]
) -> Iterator[dict[str, Any]]:
    """{"target", "layer", "score", "size", "draw", "value"}: effect sizes of every detector, of one on fewer observations too.

    observed: {target: dataset}. matched: simulated episodes of the same behaviour in the policy's own training worlds.
    """
    policy = load_policy(arm.checkpoint)
    layers = (policy.features, policy.sensed, partial(executed, policy, seed=0))
    for name, make in zip(LOOKED_AT, layers, strict=True):
        parts = compared(arm, policy, make, str(matched), num_frames, 0)
        also = with_reference(parts, parts["target"], parts["target_episode"])
        targets = {target: _of(policy, make, path, num_frames) for target, path in observed.items()}
        known = {
            "demonstrations": (parts["fit"], parts["calibration"]),
            "matched": (also["fit"], also["calibration"]),
        }
        for reference, pair in known.items():
            yield from ({"layer": f"{name}/{reference}", **row} for row in _detected(*pair, targets, subsets))


def _of(policy: TrainablePolicy, make: Callable[[Observation], Array], path: Path, num_frames: int) -> tuple[Array, Array]:
    frames: Frames = open_target(path).frames(policy.spec.observation, policy.spec.obs_horizon)
    return of_frames(policy, make, frames, num_frames, 0)


def _detected(
    fit: Array, calibration: Array, targets: Mapping[str, tuple[Array, Array]], subsets: tuple[int, ...]
) -> Iterator[dict[str, Any]]:
    for target, (seen, episode) in targets.items():
        arrays = {"fit": fit, "calibration": calibration, "target": seen, "target_episode": episode}
        found = detect(check_features({target: arrays}, [target])[target], detector=SPARSE, seed=0, num_bootstrap=1)
        for detector, size in found.effect_sizes.items():
            yield {"target": target, "score": detector, "size": len(seen), "draw": 0, "value": size}
        if found.scores is not None:
            yield from ({"target": target, "score": SPARSE, **row} for row in _smaller(*found.scores, subsets))


def _smaller(target: Array, calibration: Array, subsets: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """The detector on fewer observations, several draws of each number; the same ones for every policy."""
    for number, draw in product(subsets, range(1, 1 + SUBSETS)):
        rows = np.random.default_rng([number, draw]).permutation(len(target))[:number]
        yield {"size": number, "draw": draw, "value": evidence(target[rows], calibration).effect_size}
