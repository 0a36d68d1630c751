"""How episodes are spent on a pool: all checkpoints equally, or by sequential halving over rounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robopolicy.ranking.tables import RankingError
from robopolicy.spec import did_you_mean

ALLOCATIONS = ("uniform", "halving")


@dataclass(frozen=True)
class Round:
    """A round: so many checkpoints go through the conditions up to `stop` (those of earlier rounds included)."""

    num_arms: int
    start: int
    stop: int


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

    uniform: one round. halving (Karnin et al. 2013): log2(num_arms / finalists) rounds and one of the finalists, each with an
    equal part of the budget, after each of which the better half stays.

    Raises:
        RankingError: a budget that gives no episode to everyone.
    """
    if alloc == "uniform":
        stop = num_conditions if budget is None else min(num_conditions, budget // num_arms)
        if not stop:
            raise RankingError(f"budget={budget} is less than an episode for each of {num_arms} checkpoints")
        return [Round(num_arms, 0, stop)]
    sizes = [num_arms]
    while sizes[-1] > finalists:
        sizes.append(max(finalists, math.ceil(sizes[-1] / 2)))
    total = budget if budget is not None else _full_budget(sizes, num_conditions)
    share, stop = total / len(sizes), 0
    planned = []
    for size in sizes:
        start, stop = stop, min(num_conditions, stop + int(share // size))
        if not stop:
            raise RankingError(f"budget={budget} over {len(sizes)} rounds is less than an episode for each of {num_arms}")
        planned.append(Round(size, start, stop))
    return planned


def _full_budget(sizes: Sequence[int], num_conditions: int) -> int:
    """The smallest budget with which the last round ends at the last condition."""
    return math.ceil(num_conditions / sum(1 / size for size in sizes)) * len(sizes)


def play(
    names: Sequence[str],
    planned: Sequence[Round],
    play_round: Callable[[Sequence[str], Round, int], None],
    score: Callable[[Mapping[str, int]], Mapping[str, float]],
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Go through the rounds: ({checkpoint: round after which it was dropped, from 1}, a log line a round).

    play_round(names, round, its number) plays; score(dropped so far) then gives every checkpoint's score, larger = better.
    Ties are broken by name, so that nothing depends on the order of results.
    """
    staying, dropped, log = sorted(names), dict[str, int](), []
    for number, this in enumerate(planned, start=1):
        play_round(staying, this, number)
        keep = planned[number].num_arms if number < len(planned) else len(staying)
        out: list[str] = []
        if keep < len(staying):
            found = score(dropped)
            ordered = sorted(staying, key=lambda name: (-found[name], name))
            staying, out = sorted(ordered[:keep]), ordered[keep:]
            dropped |= dict.fromkeys(out, number)
        log.append({"round": number, "conditions": this.stop, "checkpoints": this.num_arms, "dropped": sorted(out)})
    return dropped, log
