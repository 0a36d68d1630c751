"""Trials on the robot: kept with a ranking, joined with its scores into a posterior of every policy's real value."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from robopolicy.files import atomic_write, locked
from robopolicy.ranking.advice import next_real
from robopolicy.ranking.betting import betting_ci
from robopolicy.ranking.cokriging import fit_cokriging
from robopolicy.ranking.result import Ranking
from robopolicy.ranking.score_table import check_scores, read_table
from robopolicy.ranking.sequential import e_test_2x2
from robopolicy.ranking.tables import Array, RankingError
from robopolicy.spec import did_you_mean

TRIALS, POSTERIOR = "real_trials.jsonl", "posterior.json"


@dataclass(frozen=True)
class Known:
    """Cheap scores of C policies, larger = better: float64 [C, L], the simulated rate first."""

    policies: tuple[str, ...]
    scores: Array
    names: tuple[str, ...]


def known_scores(out: Path, table: str | Path | None) -> Known:
    """The scores of a score table, or of the ranking in `out`; scores that some policies lack are left out.

    Raises:
        RankingError: no ranking or table, policies of several domains, or simulated values that are no success rates.
    """
    if table:
        given = check_scores(read_table(table))
        columns = {name: -v if name == "ood" else v for name, v in given.scores.items()}
        policies: tuple[str, ...] = given.policies
    else:
        ranking = Ranking.read(out)
        policies = tuple(sorted(line.checkpoint for line in ranking.checkpoints))
        lines = [ranking.line(name) for name in policies]
        columns = {
            name: np.array([np.nan if line.scores[name] is None else line.scores[name] for line in lines], np.float64)
            for name in lines[0].scores
        }
    if len(set(policies)) < len(policies):
        raise RankingError("the table has policies of several domains: give the rows of one")
    usable = [name for name, values in columns.items() if name == "sim" or (np.isfinite(values).all() and np.ptp(values) > 0)]
    usable.sort(key=lambda name: name != "sim")
    rates = columns["sim"]
    if not ((rates >= 0) & (rates <= 1)).all():
        worst = int(np.argmax(np.abs(rates - 0.5)))
        raise RankingError(
            f"sim of {policies[worst]!r} is {rates[worst]:g}, and real trials are compared with it as a success rate: give a "
            "table (scores=) with sim as a fraction in [0, 1]; a return can be a further column"
        )
    return Known(policies, np.stack([columns[name] for name in usable], axis=1), tuple(usable))


def add_trials(out: Path, log: str | Path, policies: Sequence[str]) -> tuple[int, int]:
    """Add the trials of a CSV (policy, success[, trial]) of these policies to those in `out`: (added, there already).

    A trial is known by its policy and its `trial` (an id or time), or, where that is empty or missing, by its place among the
    policy's lines of this file: a log without ids is the whole log so far, and what is beyond the known lines is added.

    Raises:
        RankingError: a missing column, an unknown policy, an outcome outside 0..1, or one that contradicts another of the same
            trial, in this file or there already.
    """
    table = read_table(log)
    for column in ("policy", "success"):
        if column not in table.column_names:
            raise RankingError(f"{log}: no column {column!r}; needs policy, success (0 or 1, or progress in between)[, trial]")
    names = table["policy"].cast(pa.string()).to_pylist()
    ids = table["trial"].cast(pa.string()).to_pylist() if "trial" in table.column_names else None
    try:
        values = table["success"].cast(pa.float64()).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise RankingError(f"{log}: success holds no numbers ({error}): give 0 or 1, or progress in between") from error
    seen: dict[str, int] = {}
    fresh: dict[tuple[str, str], float] = {}
    for row, (name, value) in enumerate(zip(names, values, strict=True)):
        if name not in policies:
            raise RankingError(f"{log}, line {row + 2}: no score of a policy {name!r}; {did_you_mean(str(name), policies)}")
        if value is None or not 0 <= value <= 1:
            raise RankingError(f"{log}, line {row + 2}: success={value}: give 0 or 1, or progress in between")
        seen[name] = seen.get(name, 0) + 1
        key = name, (ids and ids[row]) or f"#{seen[name]}"
        if fresh.setdefault(key, float(value)) != value:
            raise RankingError(f"{log}, line {row + 2}: trial {key[1]} of {name} is {value:g} here and {fresh[key]:g} before")
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / f".{TRIALS}.lock"):
        kept = {(t["policy"], t["trial"]): t["success"] for t in trials_of(out)}
        for key, value in fresh.items():
            if kept.get(key, value) != value:
                raise RankingError(f"{log}: trial {key[1]} of {key[0]} is {value:g} here and {kept[key]:g} in {out / TRIALS}")
        new = {key: value for key, value in fresh.items() if key not in kept}
        lines = [{"policy": p, "trial": t, "success": v} for (p, t), v in {**kept, **new}.items()]
        atomic_write(out / TRIALS, "".join(json.dumps(line) + "\n" for line in lines).encode())
    return len(new), len(fresh) - len(new)


def trials_of(out: Path) -> list[dict[str, Any]]:
    """All trials that were added to `out`."""
    path = out / TRIALS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def trials(out: Path) -> dict[str, list[float]]:
    """{policy: outcomes}."""
    found: dict[str, list[float]] = {}
    for trial in trials_of(out):
        found.setdefault(trial["policy"], []).append(trial["success"])
    return found


def costs(path: str | Path | None, policies: Sequence[str]) -> Any:
    """Cost of a trial of each policy [C] of a CSV (policy, cost); 1 without one."""
    if not path:
        return 1.0
    table = read_table(path)
    for column in ("policy", "cost"):
        if column not in table.column_names:
            raise RankingError(f"{path}: no column {column!r}; needs policy and cost")
    found = dict(zip(table["policy"].cast(pa.string()).to_pylist(), table["cost"].to_pylist(), strict=True))
    missing = [name for name in policies if name not in found]
    if missing:
        raise RankingError(f"{path} has no cost of {missing[0]!r}" + (f" and {len(missing) - 1} more" if missing[1:] else ""))
    return np.array([found[name] for name in policies], np.float64)


def advise(known: Known, outcomes: Mapping[str, Sequence[float]], **options: Any) -> dict[str, Any]:
    """The posterior and what to do, as plain data; policies by expected real value, best first.

    "interval": of the observed mean by betting, valid whenever one looks. "comparison": the first two by an e-test over their
    first, second, ... trials, or why not. "notes": whose trials were left out, because they have no score.
    """
    others = sorted(set(outcomes) - set(known.policies))
    outcomes = {name: values for name, values in outcomes.items() if name in known.policies}
    posterior = fit_cokriging(known.policies, known.scores, outcomes)
    advice = next_real(posterior, **options)
    order = np.argsort(-posterior.mean, kind="stable")
    lines = [
        {
            "policy": known.policies[i],
            "trials": int(posterior.trials[i]),
            "observed": float(np.mean(outcomes[known.policies[i]])) if known.policies[i] in outcomes else None,
            "interval": list(betting_ci(outcomes[known.policies[i]])) if known.policies[i] in outcomes else None,
            "mean": float(posterior.mean[i]),
            "sd": float(posterior.sd[i]),
            "prob_best": float(advice.prob_best[i]),
        }
        for i in order
    ]
    done = f"Enough: {advice.reason}; deploy {advice.recommended}." if advice.stop else f"Next on the robot: {advice.policy}."
    return {
        "schema": 1,
        "next": None if advice.stop else advice.policy,
        "recommended": advice.recommended,
        "expected_regret": advice.expected_regret,
        "stop": advice.stop,
        "reason": advice.reason,
        "scores": list(known.names),
        "policies": lines,
        "notes": [f"the trials of {name!r} are left out: it has no score" for name in others],
        "comparison": _first_two([line["policy"] for line in lines[:2]], outcomes),
        "sentence": f"{done} If one stopped now: {advice.recommended}, with an expected loss of "
        f"{100 * advice.expected_regret:.1f} points against the best. Real trials and {', '.join(known.names)} joined by "
        "multi-fidelity co-kriging.",
    }


def _first_two(policies: Sequence[str], outcomes: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Is the first better than the second? Their i-th trials are a pair, whatever was tried between them."""
    if len(policies) < 2:
        return {"not_computed": "one policy"}
    other, base = (list(outcomes.get(name, ())) for name in policies)
    num = min(len(base), len(other))
    if not num or set(base[:num] + other[:num]) - {0.0, 1.0}:
        return {"not_computed": f"{policies[0]} and {policies[1]} need a trial each, with outcomes 0 or 1"}
    found = e_test_2x2(base[:num], other[:num])
    tested = {"better": policies[0], "than": policies[1], "num_pairs": num}
    return {**tested, "e_value": found.e_value, "p_anytime": found.p_value, "decided_after": found.stopped_at}


def lines(found: Mapping[str, Any], most: int = 8) -> list[str]:
    """The advice for people."""
    text = [found["sentence"], f"  {'policy':32}{'trials':>8}{'observed':>10}{'expected':>10}{'sd':>8}{'P(best)':>9}"]
    for line in found["policies"][:most]:
        observed = "-" if line["observed"] is None else f"{line['observed']:.2f}"
        text.append(
            f"  {line['policy'][:31]:32}{line['trials']:>8}{observed:>10}{line['mean']:>10.3f}{line['sd']:>8.3f}"
            f"{line['prob_best']:>9.2f}"
        )
    more = len(found["policies"]) - most
    return [*text, *([f"  and {more} more"] if more > 0 else []), *(f"Note: {note}" for note in found["notes"])]
