"""May the leader go on the robot? Rules of a gate.yaml, each passed, failed or inconclusive at the evidence there is."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from robopolicy.ranking.episode_table import conditions_of
from robopolicy.ranking.intervals import clopper_pearson, tango
from robopolicy.ranking.result import Ranking
from robopolicy.ranking.slices import find_slice, slices
from robopolicy.ranking.statistics import (
    bootstrap_means,
    bootstrap_weights,
    percentile_interval,
    stream,
)
from robopolicy.ranking.tables import IDENTITY_COLUMNS, Array, RankingError
from robopolicy.spec import did_you_mean

PASSED, FAILED, INCONCLUSIVE = "passed", "failed", "inconclusive"
EXIT_CODES = {PASSED: 0, FAILED: 1, INCONCLUSIVE: 3}
OPERATORS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}
CONFIDENCES = ("lower", "point", "upper")
LINE_METRICS = ("prob_best", "rank", "ood", "conformal", "vsdr")  # of the ranking; all others are columns of the episodes
ABSOLUTE, BASELINE = "abs", "baseline"
MIN_ALIKE = 60  # conditions below which values that are all alike bound nothing: one in 20 may differ and not have been met


@dataclass(frozen=True)
class Rule:
    """One line of a gate.

    metric: a column of the episode table (success, progress, return, unsafe, ...), of which the mean counts, or one of
        LINE_METRICS. slice: only the episodes of a part of the worlds, "parameter:low|middle|high". op, threshold: what must
        hold. confidence: of what it must hold: the 95 % interval's "lower" or "upper" end, or the "point" estimate.
    vs: "abs", or the checkpoint that the metric is compared with, paired by condition ("baseline" = the one given as such).
    min_n: episodes below which the rule is inconclusive.
    """

    metric: str
    op: str
    threshold: float
    confidence: str = "point"
    slice: str | None = None
    vs: str = ABSOLUTE
    min_n: int = 1

    @property
    def sentence(self) -> str:
        """The rule in words."""
        what = self.metric if self.slice is None else f"{self.metric} in {self.slice}"
        what += "" if self.vs == ABSOLUTE else f" minus that of {self.vs}"
        end = {"point": "", "lower": "lower 95 % end of ", "upper": "upper 95 % end of "}[self.confidence]
        return f"{end}{what} {self.op} {self.threshold:g}"


@dataclass(frozen=True)
class Finding:
    """What became of a rule. value, interval, n: what was measured; None where it could not be."""

    rule: str
    verdict: str
    why: str
    value: float | None
    interval: tuple[float, float] | None
    n: int | None


def read_rules(path: str | Path) -> list[Rule]:
    """The rules of a YAML file: a list of mappings. Raises RankingError for anything else, naming the entry."""
    path = Path(path)
    if not path.is_file():
        raise RankingError(f"no gate at {path}: give a YAML list of {{metric, op, threshold}}")
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RankingError(f"{path} is not YAML: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise RankingError(f"{path} holds no list of rules: write `- {{metric: success, op: '>=', threshold: 0.8}}`")
    return [_rule(entry, f"{path}, rule {i + 1}") for i, entry in enumerate(entries)]


def _rule(entry: Any, where: str) -> Rule:
    names = [f.name for f in fields(Rule)]
    if not isinstance(entry, Mapping):
        raise RankingError(f"{where} is {entry!r}: write {{metric: success, op: '>=', threshold: 0.8}}")
    entry = {key: value for key, value in entry.items() if value is not None}
    for key in entry:
        if key not in names:
            raise RankingError(f"{where} has {key!r}; {did_you_mean(str(key), names)}")
    missing = [name for name in ("metric", "op", "threshold") if name not in entry]
    if missing:
        raise RankingError(f"{where} lacks {', '.join(missing)}")
    for key in ("metric", "op", "confidence", "slice", "vs"):
        if not isinstance(entry.get(key, ""), str):
            raise RankingError(f"{where} has {key}={entry[key]!r}: give text, in quotes where YAML would read a number")
    if entry["op"] not in OPERATORS:
        raise RankingError(f"{where} has op={entry['op']!r}: give one of {', '.join(OPERATORS)}")
    if entry.get("confidence", "point") not in CONFIDENCES:
        raise RankingError(
            f"{where}: confidence={entry['confidence']!r}; {did_you_mean(str(entry['confidence']), CONFIDENCES)}"
        )
    threshold, least = entry["threshold"], entry.get("min_n", 1)
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not np.isfinite(threshold):
        raise RankingError(f"{where} has threshold={threshold!r}: give a number")
    if isinstance(least, bool) or not isinstance(least, int) or least < 1:
        raise RankingError(f"{where} has min_n={least!r}: give a whole number of at least 1")
    rule = Rule(**{**entry, "threshold": float(threshold)})
    if rule.metric in LINE_METRICS and (rule.slice is not None or rule.vs != ABSOLUTE):
        raise RankingError(f"{where}: {rule.metric} is a number of the whole ranking: leave out slice and vs")
    return rule


def check_rules(rules: Sequence[Rule], names: Collection[str], baseline: str | None) -> None:
    """Refuse rules that compare with a checkpoint that is none of `names`, or with a baseline that was not given."""
    for rule in rules:
        if rule.vs == BASELINE and baseline is None:
            raise RankingError("gate: a rule says vs: baseline, and no baseline was given: baseline=CHECKPOINT")
        if rule.vs not in (ABSOLUTE, BASELINE, *names):
            raise RankingError(f"gate: a rule says vs: {rule.vs}; {did_you_mean(rule.vs, [BASELINE, *names])}")


def judge(
    rules: Sequence[Rule], ranking: Ranking, episodes: pa.Table | None, baseline: str | None = None, seed: int = 0
) -> dict[str, Any]:
    """The gate of the leader of a ranking, as plain data: {"verdict", "checkpoint", "split", "findings": [...]}.

    episodes: the episodes that the headline comes from; None where there are only scores. Failed if any rule is, else
    inconclusive if any rule is, else passed.

    Raises:
        RankingError: a rule about something that was not measured.
    """
    leader = ranking.checkpoints[0].checkpoint
    findings = [_finding(rule, ranking, episodes, leader, baseline, seed) for rule in rules]
    verdicts = {finding.verdict for finding in findings}
    verdict = FAILED if FAILED in verdicts else INCONCLUSIVE if INCONCLUSIVE in verdicts else PASSED
    splits = sorted(set(episodes["split"].to_pylist())) if episodes is not None and episodes.num_rows else []
    return {"verdict": verdict, "checkpoint": leader, "splits": splits, "findings": [asdict(f) for f in findings]}


def _finding(rule: Rule, ranking: Ranking, episodes: pa.Table | None, leader: str, baseline: str | None, seed: int) -> Finding:
    if rule.metric in LINE_METRICS:
        value, interval, n = _of_line(rule, ranking)
    else:
        value, interval, n = _of_episodes(rule, ranking, episodes, leader, baseline, seed)
    verdict, why = _verdict(rule, value, interval, n)
    return Finding(rule.sentence, verdict, why, value, interval, n)


def _of_line(rule: Rule, ranking: Ranking) -> tuple[float | None, tuple[float, float] | None, int | None]:
    line = ranking.checkpoints[0]
    value = getattr(line, rule.metric)
    interval = {"ood": line.ood_interval, "rank": line.rank_intervals.get("vsdr")}.get(rule.metric)
    return None if value is None else float(value), interval, line.num_episodes


def _of_episodes(
    rule: Rule, ranking: Ranking, episodes: pa.Table | None, leader: str, baseline: str | None, seed: int
) -> tuple[float | None, tuple[float, float] | None, int]:
    if episodes is None:
        return _of_scores(rule, ranking)
    numeric = [f.name for f in episodes.schema if f.name not in IDENTITY_COLUMNS and _is_number(f.type)]
    if rule.metric not in numeric:
        raise RankingError(f"gate: no metric {rule.metric!r}; {did_you_mean(rule.metric, [*LINE_METRICS, *numeric])}")
    rows = np.ones(episodes.num_rows, bool) if rule.slice is None else find_slice(slices(episodes), rule.slice).rows
    owner = np.array(episodes["checkpoint"].to_pylist(), str)
    values = np.array([np.nan if v is None else float(v) for v in episodes[rule.metric].to_pylist()])
    conditions = conditions_of(episodes)
    sums, counts, names = _by_condition(values, conditions, rows & (owner == leader), rule.metric)
    if rule.vs == ABSOLUTE:
        total, n = float(sums.sum()), int(counts.sum())
        if not n:
            return None, None, 0
        if set(np.unique(values[rows & (owner == leader)])) <= {0.0, 1.0}:
            low, high = clopper_pearson(total, n)
            return total / n, (float(low), float(high)), n
        return *_bootstrap(sums[None], counts, seed), n
    check_rules([rule], set(owner), baseline)
    other = str(baseline if rule.vs == BASELINE else rule.vs)
    if other not in owner:
        raise RankingError(f"gate: no episodes of {other!r} among those of the headline; {did_you_mean(other, set(owner))}")
    their_sums, their_counts, their_names = _by_condition(values, conditions, rows & (owner == other), rule.metric)
    if names != their_names or (counts != their_counts).any():
        raise RankingError(f"gate: {leader!r} and {other!r} did not meet the same conditions, so they cannot be paired")
    n = int(counts.sum())
    if not n:
        return None, None, 0
    if (counts == 1).all() and set(sums) | set(their_sums) <= {0.0, 1.0}:
        low, high = tango(int((sums > their_sums).sum()), int((sums < their_sums).sum()), n)
        return float(sums.mean() - their_sums.mean()), (float(low), float(high)), n
    return *_bootstrap(np.stack([sums, -their_sums]), counts, seed), n


def _of_scores(rule: Rule, ranking: Ranking) -> tuple[float | None, tuple[float, float] | None, int]:
    """Without episodes only the simulated rate itself is known."""
    if rule.metric != "success" or rule.slice is not None or rule.vs != ABSOLUTE:
        raise RankingError(
            f"gate: {rule.sentence!r} needs episodes; a score table knows {', '.join(('success', *LINE_METRICS))} alone"
        )
    line = ranking.checkpoints[0]
    if line.success is None or not line.num_episodes:
        return line.success, None, line.num_episodes or 0
    low, high = clopper_pearson(round(line.success * line.num_episodes), line.num_episodes)
    return line.success, (float(low), float(high)), line.num_episodes


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _by_condition(values: Array, conditions: Array, rows: Array, metric: str) -> tuple[Array, Array, list[str]]:
    if np.isnan(values[rows]).any():
        raise RankingError(f"gate: {metric} is missing in some of the episodes")
    names, inverse = np.unique(conditions[rows], return_inverse=True)
    counts = np.bincount(inverse, minlength=len(names))
    return np.bincount(inverse, weights=values[rows], minlength=len(names)), counts, names.tolist()


def _bootstrap(sums: Array, counts: Array, seed: int) -> tuple[float, tuple[float, float] | None]:
    """Mean of the sum over the first axis [P, K] per episode, and its percentile interval over conditions, if there is one."""
    mean, each = float(sums.sum() / counts.sum()), sums.sum(axis=0) / counts
    if np.ptp(each) < 1e-9 and len(counts) < MIN_ALIKE:
        return mean, None
    weights = bootstrap_weights(len(counts), 2000, stream(seed, "gate", len(counts)))
    draws = bootstrap_means(sums, counts, weights).sum(axis=1)
    return mean, percentile_interval(draws)


def _verdict(rule: Rule, value: float | None, interval: tuple[float, float] | None, n: int | None) -> tuple[str, str]:
    if value is None:
        return INCONCLUSIVE, "it was not measured"
    if n is not None and n < rule.min_n:
        return INCONCLUSIVE, f"{n} episodes, {rule.min_n} are asked for"
    holds = OPERATORS[rule.op]
    if rule.confidence == "point":
        return (PASSED, f"{value:.4g}") if holds(value, rule.threshold) else (FAILED, f"{value:.4g}")
    if interval is None:
        return INCONCLUSIVE, f"{value:.4g}, and what there is gives no interval"
    text = f"{value:.4g}, 95 % interval {interval[0]:.4g} to {interval[1]:.4g}"
    ends = dict(zip(("lower", "upper"), interval, strict=True))
    if holds(ends[rule.confidence], rule.threshold):
        return PASSED, text
    other = ends["upper" if rule.confidence == "lower" else "lower"]
    return (INCONCLUSIVE, f"{text} straddles it") if holds(other, rule.threshold) else (FAILED, text)
