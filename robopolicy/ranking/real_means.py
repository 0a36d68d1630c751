"""The mean on the target of every policy that was tried there, sharpened by its simulated twins (`ppi_mean`)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from robopolicy.ranking.betting import betting_ci
from robopolicy.ranking.ppi import ppi_mean
from robopolicy.ranking.tables import Outcomes

MIN_PAIRS = 2


def real_means(simulated: Outcomes, real: Outcomes) -> dict[str, Any]:
    """{"checkpoints": {name: {"mean", "low", "high", ...}}} of `PpiResult`, plain data, or {"not_computed": why}.

    A twin of a real condition is the simulated one of the same name, whatever suite and split they are of. A condition counts
    once, with its rate. "alone": the betting interval of the real trials without their twins, to see what the twins bring.
    """
    names = [condition for _, _, condition in simulated.conditions]
    if len(set(names)) < len(names):
        return {"not_computed": "simulated conditions of different suites share their names, so twins cannot be told"}
    at = {name: k for k, name in enumerate(names)}
    found = {name: _one(simulated, simulated.checkpoints.index(name), real, c, at) for c, name in enumerate(real.checkpoints)}
    if not any(found.values()):
        return {
            "not_computed": f"no checkpoint has {MIN_PAIRS} real trials on conditions of the suite and as many simulated ones "
            "beside them: try it on the robot where the simulator placed things, and give those conditions their names"
        }
    return {"checkpoints": {name: line for name, line in found.items() if line}}


def _one(simulated: Outcomes, s: int, real: Outcomes, r: int, at: dict[str, int]) -> dict[str, Any] | None:
    rows = [(k, at[name]) for k, (_, _, name) in enumerate(real.conditions) if real.trials[r, k] and name in at]
    rows = [(k, j) for k, j in rows if simulated.trials[s, j]]
    twins = {j for _, j in rows}
    others = [j for j in np.flatnonzero(simulated.trials[s]) if j not in twins]
    if len(rows) < MIN_PAIRS or len(others) < MIN_PAIRS:
        return None
    outcomes = [float(real.successes[r, k] / real.trials[r, k]) for k, _ in rows]
    rate = simulated.successes[s] / np.maximum(simulated.trials[s], 1)
    low, high = betting_ci(outcomes)
    result = asdict(ppi_mean(outcomes, rate[[j for _, j in rows]], rate[others]))
    return {**result, "alone": {"mean": float(np.mean(outcomes)), "low": low, "high": high}}
