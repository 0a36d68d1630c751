"""How episodes are spent on a pool: all checkpoints equally, or by sequential halving over rounds."""

from __future__ import annotations

import math

from robopolicy.ranking.allocation import Round, halving_plan
from robopolicy.ranking.tables import RankingError
from robopolicy.spec import did_you_mean

ALLOCATIONS = ("uniform", "halving")


def check(alloc: str, budget: int | None, finalists: int) -> None:
    """Refuse settings that do not work."""
    if alloc not in ALLOCATIONS:
        raise RankingError(f"alloc={alloc!r}; {did_you_mean(alloc, ALLOCATIONS)}")
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int) or budget < 1):
        raise RankingError(f"budget={budget!r}: give the episodes to play on split select in all, e.g. budget=5000")
    if finalists < 1:
        raise RankingError(f"finalists={finalists}: give at least 1")


def rounds(num_arms: int, num_conditions: int, alloc: str, budget: int | None, finalists: int) -> list[Round]:
    """The rounds of an allocation of `budget` episodes (None = all conditions for those that stay to the end).

    Raises:
        RankingError: a budget that gives no episode to everyone.
    """
    finalists = min(finalists, num_arms)
    if alloc == "halving" and budget is None:
        sizes = [r.num_policies for r in halving_plan(num_arms, num_arms * num_conditions, num_final=finalists)]
        budget = max(num_arms, math.ceil(num_conditions / sum(1 / size for size in sizes)) * len(sizes))
    elif budget is None:
        budget = num_arms * num_conditions
    if budget < num_arms:
        raise RankingError(f"budget={budget} is less than an episode for each of {num_arms} checkpoints")
    if alloc == "halving":
        return halving_plan(num_arms, budget, num_final=finalists, num_conditions=num_conditions)
    return [Round(0, num_arms, 0, min(num_conditions, budget // num_arms), num_arms)]
