"""The leader against the other finalists on fresh conditions, met in the same order: fixed-size and sequential tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from robopolicy.ranking.betting import betting_ci
from robopolicy.ranking.episode_table import conditions_of
from robopolicy.ranking.sequential import e_test_2x2
from robopolicy.ranking.statistics import holm, paired_comparison, stream
from robopolicy.ranking.tables import Array


def compare_finalists(episodes: pa.Table, names: Sequence[str], *, seed: int, num_bootstrap: int) -> dict[str, Any]:
    """What one fresh split says between finalists, the leader first in `names`; plain data.

    {"num_pairs", "progress": {checkpoint: [mean, low, high]} with a betting interval, valid at any number of episodes,
    "comparisons": [{"checkpoint", "difference" (leader's success less its own) with the "interval" of Tango, "p_value" (exact
    McNemar), "e_value" and "p_anytime" (`e_test_2x2`: the leader is better; one may look after every pair), "decided_after"
    (pairs; None = not at 5 %), and p_holm, p_anytime_holm over all comparisons}]};
    {"not_computed": why} where there are no pairs.
    """
    if len(names) < 2:
        return {"not_computed": "one finalist: nothing to compare it with"}
    values = _by_condition(episodes, names)
    if values is None:
        return {"not_computed": "the finalists did not meet the same conditions, one episode each"}
    success, progress = values
    lines = []
    for i, name in enumerate(names[1:], start=1):
        generator = stream(seed, "finalists", success.shape[1])
        paired = paired_comparison(success[i], success[0], np.ones(success.shape[1], int), generator, num_bootstrap)
        tested = e_test_2x2(success[i], success[0])
        lines.append(
            {
                "checkpoint": name,
                "difference": paired.difference,
                "interval": list(paired.difference_interval),
                "p_value": paired.p_value,
                "e_value": tested.e_value,
                "p_anytime": tested.p_value,
                "decided_after": tested.stopped_at,
            }
        )
    for key, adjusted in (("p_value", "p_holm"), ("p_anytime", "p_anytime_holm")):
        for line, p in zip(lines, holm([line[key] for line in lines]), strict=True):
            line[adjusted] = float(p)
    bounds = {name: [float(x.mean()), *betting_ci(x)] for name, x in zip(names, progress, strict=True)}
    return {"num_pairs": int(success.shape[1]), "progress": bounds, "comparisons": lines}


def _by_condition(episodes: pa.Table, names: Sequence[str]) -> tuple[Array, Array] | None:
    """Success int and progress float [F, K] of the finalists, conditions in the order in which the leader met them."""
    seen: dict[str, dict[str, Mapping[str, Any]]] = {name: {} for name in names}
    rows = episodes.select(["checkpoint", "success", "progress"]).to_pylist()
    for condition, row in zip(conditions_of(episodes), rows, strict=True):
        own = seen.get(row["checkpoint"])
        if own is None:
            continue
        if condition in own:
            return None
        own[condition] = row
    order = list(seen[names[0]])
    if not order or any(own.keys() != seen[names[0]].keys() for own in seen.values()):
        return None
    success = np.array([[int(own[key]["success"]) for key in order] for own in seen.values()])
    return success, np.array([[float(own[key]["progress"]) for key in order] for own in seen.values()])
