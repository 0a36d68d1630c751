"""Certified success: the episodes of the suite once more, with noise on what the policy sees (`ranking.certificate`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from robopolicy import checkpoint
from robopolicy.evaluation.rollout import Arm
from robopolicy.ope.estimate import Estimate
from robopolicy.ranking.certificate import certify_success
from robopolicy.ranking.tables import RankingError
from robopolicy.selection import units
from robopolicy.selection.pool import Pool, Work
from robopolicy.selection.suite import SELECT, FrozenSuite

LEVEL = 0.5  # success that the largest budget leaves


def check_noise(noise: Mapping[str, float] | None, budget: float) -> None:
    """Refuse a certificate without noise."""
    if not noise:
        raise RankingError(
            "also=[certified] plays episodes with noise on observations: give noise='{observation.state: 0.02}', standard "
            "deviations in the unit of each key (of images, as a fraction of their range)"
        )
    for key, sd in noise.items():
        if not isinstance(sd, int | float) or isinstance(sd, bool) or not sd > 0:
            raise RankingError(f"noise={dict(noise)}: the standard deviation of {key!r} must be a number above 0")
    if not budget >= 0:
        raise RankingError(f"noise_budget={budget}: give a norm of at least 0, in units of the noise")


def certified(
    pool: Pool, staying: Sequence[str], suite: FrozenSuite, work: Work, noise: Mapping[str, float], budget: float
) -> tuple[dict[str, Estimate], list[dict[str, Any]]]:
    """({checkpoint: success that no attack of the budget takes}, a line each: with noise, certified, largest budget at LEVEL).

    staying: who is played; those that were dropped early are not. Budgets are total l2 norms over an episode of what is added
    to observations, in units of the noise. Bounds hold for all of them at once.
    """
    refused = {arm.name: "it was dropped early" for arm in pool.arms if arm.name not in staying}
    for name in staying:
        seen = checkpoint.describe(pool.arm(name).checkpoint)[1]["spec"]["observation"]
        if not set(noise) & set(seen):
            refused[name] = f"it looks at none of {', '.join(noise)}, but at {', '.join(seen)}"
    found = {name: Estimate.refuse(why) for name, why in refused.items()}
    arms: list[Arm] = [replace(arm, noise=dict(noise)) for arm in pool.arms if arm.name not in refused]
    if not arms:
        return found, []
    blocks = units.plan(arms, pool.shas, suite, SELECT, 0, suite.size(SELECT), work.folder)
    table = units.run(blocks, work.num_workers, "with noise", work.executor)
    won = np.array(table["success"].to_pylist(), bool).reshape(len(arms), -1)
    lines = []
    for arm, outcomes in zip(arms, won, strict=True):
        bound = certify_success(int(outcomes.sum()), len(outcomes), 1.0, [budget], num_policies=len(arms))
        found[arm.name] = Estimate(float(bound.certified[0]), float("nan"), float(len(outcomes)))
        line = {"checkpoint": arm.name, "noisy_success": bound.clean, "certified": float(bound.certified[0])}
        lines.append({**line, "largest_budget": bound.largest_budget(LEVEL), "num_episodes": len(outcomes)})
    return found, lines
