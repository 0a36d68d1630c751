"""How episodes are spent on a pool: all checkpoints equally, or by sequential halving; a budget of episodes or of time."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robopolicy.ranking.allocation import Round, halving_plan
from robopolicy.ranking.tables import RankingError
from robopolicy.spec import did_you_mean

ALLOCATIONS = ("uniform", "halving")
UNITS = {"s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TIME = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join(UNITS)})")


@dataclass(frozen=True)
class Spending:
    """budget: episodes on split select in all; None = every condition for those that stay. seconds: of the whole evaluation.

    look_every: conditions between looks at which hopeless checkpoints leave a round (`sequential_halving`); 0 = none.
    finalists: play the fresh conditions. open_sealed: those of split "sealed" too. noisy: conditions are played with noise too.
    """

    alloc: str = "uniform"
    budget: int | None = None
    seconds: float | None = None
    look_every: int = 0
    finalists: int = 3
    open_sealed: bool = False
    noisy: bool = False

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Spending:
        """What the settings of the verb rank say.

        Raises:
            RankingError: settings that do not work.
        """
        alloc, finalists, look_every = settings["alloc"], settings["finalists"], settings["look_every"]
        if alloc not in ALLOCATIONS:
            raise RankingError(f"alloc={alloc!r}; {did_you_mean(alloc, ALLOCATIONS)}")
        if finalists < 1:
            raise RankingError(f"finalists={finalists}: give at least 1")
        if isinstance(look_every, bool) or not isinstance(look_every, int) or look_every < 0:
            raise RankingError(f"look_every={look_every!r}: give conditions between looks, e.g. 10, or 0 for none")
        if look_every and alloc != "halving":
            raise RankingError(f"look_every={look_every} drops checkpoints early: it needs alloc=halving")
        observed = settings["target"] or settings["features"]
        combined = settings["weights"] or settings["combine"] or (["sim", "ood"] if observed else ["sim"])
        if look_every and list(combined) != ["sim"]:
            raise RankingError(
                f"look_every={look_every} drops checkpoints by success alone, and the order is by more: give combine=[sim] or "
                "leave look_every out"
            )
        budget, seconds = _budget(settings["budget"])
        return cls(
            alloc, budget, seconds, look_every, finalists, settings["open_sealed"], "certified" in (settings["also"] or ())
        )


def _budget(given: Any) -> tuple[int | None, float | None]:
    """(episodes, seconds) of a budget such as 5000, "2h" or "30m"."""
    if given is None:
        return None, None
    if isinstance(given, int) and not isinstance(given, bool) and given > 0:
        return given, None
    found = _TIME.fullmatch(str(given).strip())
    seconds = float(found[1]) * UNITS[found[2]] if found else 0.0
    if not seconds:
        raise RankingError(
            f"budget={given!r}: give the episodes to play on split select in all, e.g. budget=5000, or the time of the whole "
            f"evaluation, e.g. budget=2h or 30m ({', '.join(UNITS)})"
        )
    return None, seconds


def rounds(num_arms: int, num_conditions: int, spending: Spending) -> list[Round]:
    """The rounds in which the episodes are spent.

    Raises:
        RankingError: a budget that gives no episode to everyone.
    """
    finalists, budget = min(spending.finalists, num_arms), spending.budget
    halving = spending.alloc == "halving"
    if halving and budget is None:
        sizes = [r.num_policies for r in halving_plan(num_arms, num_arms * num_conditions, num_final=finalists)]
        budget = max(num_arms, math.ceil(num_conditions / sum(1 / size for size in sizes)) * len(sizes))
    elif budget is None:
        budget = num_arms * num_conditions
    if budget < num_arms:
        raise RankingError(f"budget={budget} is less than an episode for each of {num_arms} checkpoints")
    if halving:
        return halving_plan(num_arms, budget, num_final=finalists, num_conditions=num_conditions)
    return [Round(0, num_arms, 0, min(num_conditions, budget // num_arms), num_arms)]
