"""Which checkpoint gets the next episodes in simulation: sequential halving, with sound early stopping. Pure and deterministic.

Sequential halving (Karnin, Koren and Somekh 2013): all policies share a round's budget equally, the better part goes on. Every
policy of a round plays the same conditions, and what was played before counts on: successes and trials are running totals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robopolicy.ranking import checks
from robopolicy.ranking.intervals import anytime_binomial

Array = np.ndarray


@dataclass(frozen=True)
class Round:
    """num_policies play conditions start..stop - 1 each; num_survivors of them go on."""

    number: int
    num_policies: int
    start: int
    stop: int
    num_survivors: int

    @property
    def episodes(self) -> int:
        """Episodes of the round, all policies together."""
        return self.num_policies * (self.stop - self.start)


def halving_plan(
    num_policies: int, budget: int, *, num_final: int = 1, eta: float = 2.0, num_conditions: int | None = None
) -> list[Round]:
    """Rounds from num_policies down to num_final, an equal share of `budget` episodes each.

    What a round cannot spend, because the shares do not divide or num_conditions are played out, goes to the rounds after
    it. num_conditions: size of the suite, None = endless.

    Raises:
        ValueError: a budget below one episode per policy, num_final outside 1..num_policies, eta <= 1 or no conditions.
    """
    if not 1 <= num_final <= num_policies:
        raise ValueError(f"num_final={num_final} of {num_policies} policies: use 1 <= num_final <= {num_policies}")
    if not eta > 1:
        raise ValueError(f"eta={eta}: the factor by which the pool shrinks must exceed 1")
    if num_conditions is not None and num_conditions < 1:
        raise ValueError(f"num_conditions={num_conditions}: the suite is empty")
    if budget < num_policies:
        raise ValueError(f"budget={budget} for {num_policies} policies: needs at least one episode each")
    sizes = [num_policies]
    while sizes[-1] > num_final:
        sizes.append(max(min(math.ceil(sizes[-1] / eta), sizes[-1] - 1), num_final))
    playing = sizes[:-1] or sizes
    rounds, start, left = [], 0, budget
    for number, size in enumerate(playing):
        share = left // (len(playing) - number)
        stop = start + (max(share // size, 1) if left >= size else 0)
        stop = min(stop, num_conditions) if num_conditions else stop
        rounds.append(Round(number, size, start, stop, sizes[min(number + 1, len(sizes) - 1)]))
        left -= rounds[-1].episodes
        start = stop
    return rounds


def survivors(scores: Any, num_survivors: int, policies: Sequence[int] | None = None) -> list[int]:
    """The num_survivors best of `scores` [A], in the order of `policies` [A] (default 0..A-1); ties go to the lower number.

    Raises:
        ValueError: NaN, or num_survivors outside 1..A.
    """
    s = checks.vector(scores, "scores")
    names = np.arange(s.size) if policies is None else np.asarray(policies)
    if names.shape != s.shape:
        raise ValueError(f"{s.size} scores and {names.size} policies: give one of each")
    if not 1 <= num_survivors <= s.size:
        raise ValueError(f"num_survivors={num_survivors} of {s.size}: use 1 <= num_survivors <= {s.size}")
    kept = np.lexsort((names, -s))[:num_survivors]
    return [int(names[i]) for i in np.sort(kept)]


def hopeless(
    successes: Any, trials: Any, num_final: int, *, confidence: float = 0.95, num_policies: int | None = None
) -> Array:
    """Which policies need no further episode: bool [A], where the upper bound lies below the num_final-th best lower bound.

    Bounds hold at all times and, by Bonferroni, for all num_policies (default A) of the pool at once: with probability at
    least `confidence`, no policy of the true best num_final is ever dropped, however often one looks.

    Raises:
        ValueError: bad counts or num_final outside 1..A.
    """
    k, n = checks.counts(successes, trials)
    if k.ndim != 1 or not 1 <= num_final <= k.size:
        raise ValueError(f"num_final={num_final} of {k.size} policies: use 1 <= num_final <= {k.size}")
    alpha = (1 - checks.fraction(confidence, "confidence")) / max(num_policies or 0, k.size)
    low, high = anytime_binomial(k, n, 1 - alpha)
    return np.asarray(high < np.sort(low)[-num_final])


@dataclass(frozen=True)
class Halving:
    """best: those that stayed to the end, the highest success rate first. successes, trials: [C] of the whole pool.

    dropped: {policy: number of the round, from 1, in or after which it was dropped}. log: one line a decision: {"round" (from
    1), "conditions" played so far, "policies" playing, "dropped": [policies], "why"}.
    """

    best: list[int]
    successes: Array
    trials: Array
    dropped: dict[int, int]
    log: list[dict[str, Any]]


def sequential_halving(
    play: Callable[[Sequence[int], int, int], Any],
    plan: Sequence[Round],
    *,
    score: Callable[[Sequence[int], Mapping[int, int]], Any] | None = None,
    look_every: int = 0,
    confidence: float = 0.95,
) -> Halving:
    """Carries out a plan. play(policies, start, stop) gives outcomes 0 or 1 [len(policies), stop - start] on those conditions.

    score: gives the scores [A] by which the policies [A] are halved, larger = better, from what was played, and who was dropped
        so far; None = success rates. Ties go to the lower number.
    look_every: conditions between looks at which `hopeless` policies leave a round early; 0 = only between rounds. Their
        episodes are saved, not given to others, so that the conditions stay the same for all. Looks are at success alone.

    Raises:
        ValueError: an empty plan, or outcomes of another shape or value.
    """
    if not plan:
        raise ValueError("the plan has no rounds")
    num_policies, num_final = plan[0].num_policies, plan[-1].num_survivors
    successes, trials = np.zeros(num_policies), np.zeros(num_policies)
    alive, dropped, log = list(range(num_policies)), dict[int, int](), list[dict[str, Any]]()

    def drop(gone: Sequence[int], step: Round, conditions: int, num_playing: int, why: str) -> None:
        dropped.update(dict.fromkeys(gone, step.number + 1))
        line = {"round": step.number + 1, "conditions": conditions, "policies": num_playing}
        log.append({**line, "dropped": list(gone), "why": why})

    for step in plan:
        for start in range(step.start, step.stop, look_every or max(step.stop - step.start, 1)):
            stop = min(start + (look_every or step.stop), step.stop)
            outcomes = np.asarray(play(alive, start, stop), dtype=np.float64)
            if outcomes.shape != (len(alive), stop - start):
                raise ValueError(f"outcomes of shape {outcomes.shape}: expected {(len(alive), stop - start)}")
            checks.outcomes(outcomes.ravel(), "outcomes")
            successes[alive] += outcomes.sum(axis=1)
            trials[alive] += stop - start
            if look_every and len(alive) > num_final:
                out = hopeless(successes[alive], trials[alive], num_final, confidence=confidence, num_policies=num_policies)
                gone = [p for p, without_hope in zip(alive, out, strict=True) if without_hope]
                if gone:
                    drop(gone, step, stop, len(alive), "hopeless")
                    alive = [p for p in alive if p not in gone]
        num_playing, kept = len(alive), alive
        if step.num_survivors < num_playing:
            found = successes[alive] / np.maximum(trials[alive], 1) if score is None else score(alive, dropped)
            kept = survivors(found, step.num_survivors, alive)
        drop(sorted(set(alive) - set(kept)), step, step.stop, num_playing, "halved")
        alive = kept
    final = np.array(alive)
    order = np.lexsort((final, -successes[final] / np.maximum(trials[final], 1)))
    return Halving([int(i) for i in final[order]], successes, trials, dropped, log)
