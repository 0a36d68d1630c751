"""A ranking as plain data: what `rank` returns, what is written to disk and what the report draws."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from robopolicy.files import atomic_write
from robopolicy.ranking.statistics import Interval
from robopolicy.ranking.tables import RankingError
from robopolicy.spec import did_you_mean

SCHEMA = 3
SHORTLIST_PROBABILITY = 0.9


@dataclass(frozen=True)
class CheckpointScore:
    """One line of the ranking. Rates are fractions in [0, 1]; intervals are at 95 %; None or empty where not computed.

    rank: place by VSDR, ties share the best one. group: policies of different groups are told apart (`separation.tie_groups`).
    scores: by "sim", "ood" and every further term, all larger = better ("ood" is minus the distance). ranks,
    rank_intervals: places by "vsdr" and each of them.
    success: simulated success rate, of `num_episodes`; None where "sim" is another kind of score. shrunk: what the pool makes
        of it (`winners.shrink`), with its interval.
    dropped: round of sequential halving after which it was evaluated no further.
    ood: effect size of the chosen detector (0 = looks like simulation, larger = further out); effect_sizes: of all.
    prob_best, prob_top: share of replicates in which it takes the first place, one of the first k.
    behind_leader: paired difference in simulated success, this minus the leader; p_holm adjusts over all of them.
    fresh: {split: {"success", "interval" (exact, for all "num_finalists" at once), "optimism" (selected - fresh), "progress",
        "num_episodes"}} on conditions that chose nothing.
    """

    checkpoint: str
    run: str
    step: int
    rank: int
    group: int | None
    vsdr: float
    scores: dict[str, float | None]
    success: float | None
    success_interval: Interval | None
    num_episodes: int | None
    dropped: int | None
    progress: float | None
    mean_return: float | None
    ood: float | None
    ood_interval: Interval | None
    effect_sizes: dict[str, float | None]
    conformal: float | None
    encoder: dict[str, float]
    ranks: dict[str, float]
    rank_intervals: dict[str, Interval]
    prob_best: float | None
    prob_top: dict[str, float]
    behind_leader: dict[str, Any] | None
    target_success: float | None
    target_interval: Interval | None
    flags: tuple[str, ...]
    shrunk: float | None = None
    shrunk_interval: Interval | None = None
    sha: str = ""
    fresh: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Ranking:
    """A ranking as plain data, best checkpoint first.

    orders: checkpoint ids by "vsdr", "sim" and every further term. check: agreement with target outcomes, or None.
    warnings: what holds for the whole pool. num_draws: replicates behind intervals and probabilities (0 = none could be made).
    inputs: {"suite", "target", "scores", ...: hash} of what was read.
    statistics: what else was computed, by name, each plain data or {"not_computed": why}: "separation" (how groups were told
        apart), "shrinkage", "training_seeds", "real_means" (with twins), "finalists" {split: ...}, "estimates" {score:
        {checkpoint: Estimate}}, and what scores say beside their value.
    """

    schema: int
    settings: dict[str, Any]
    num_conditions: int
    num_episodes: int
    num_target_observations: int
    num_draws: int
    checkpoints: tuple[CheckpointScore, ...]
    orders: dict[str, list[str]]
    check: dict[str, Any] | None
    warnings: tuple[str, ...]
    inputs: dict[str, str] = field(default_factory=dict)
    statistics: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Text that is byte-identical for equal inputs; undefined values are null."""
        return json.dumps(_plain(asdict(self)), indent=1, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Ranking:
        """Inverse of to_json. Raises RankingError for another schema version."""
        data = json.loads(text)
        if data.get("schema") != SCHEMA:
            raise RankingError(f"ranking has schema {data.get('schema')!r}, this version reads {SCHEMA}: rank the tables again")
        return cls(**{**data, "checkpoints": tuple(CheckpointScore(**c) for c in data["checkpoints"])})

    def table(self) -> pa.Table:
        """One flat row a checkpoint, in ranking order."""
        rows = [_flat(score) for score in self.checkpoints]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        return pa.table({name: [row.get(name) for row in rows] for name in columns})

    def write(self, folder: str | Path) -> Path:
        """Writes ranking.json and ranking.csv into `folder` and returns it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / "ranking.json", self.to_json().encode())
        atomic_write(folder / "ranking.csv", partial(pyarrow.csv.write_csv, self.table()))
        return folder

    @classmethod
    def read(cls, folder: str | Path) -> Ranking:
        """The ranking in a folder that `write` wrote. Raises RankingError when there is none."""
        path = Path(folder) / "ranking.json"
        if not path.is_file():
            raise RankingError(f"no ranking at {folder}: give the folder that `robopolicy rank` wrote with out=")
        return cls.from_json(path.read_text(encoding="utf-8"))

    def line(self, checkpoint: str) -> CheckpointScore:
        """The line of a checkpoint. Raises RankingError naming the closest when there is none."""
        found = next((c for c in self.checkpoints if c.checkpoint == checkpoint), None)
        if found is None:
            raise RankingError(f"no {checkpoint!r} in this ranking; {did_you_mean(checkpoint, self.orders['vsdr'])}")
        return found

    def shortlist(self, probability: float = SHORTLIST_PROBABILITY) -> list[str]:
        """The fewest checkpoints that together take the first place in at least `probability` of the replicates."""
        if not self.num_draws:
            return [self.checkpoints[0].checkpoint]
        likely = sorted(self.checkpoints, key=lambda c: (-(c.prob_best or 0.0), c.rank, c.checkpoint))
        reached = np.cumsum([c.prob_best for c in likely])
        return [c.checkpoint for c in likely[: int(np.searchsorted(reached, probability - 1e-9)) + 1]]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.9g}") if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def _flat(score: CheckpointScore) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for f in fields(score):
        value = _plain(getattr(score, f.name))
        if f.name in ("encoder", "behind_leader", "fresh"):
            continue
        if f.name == "flags":
            row[f.name] = "; ".join(value)
        elif f.name.endswith("interval"):
            row[f"{f.name}_low"], row[f"{f.name}_high"] = value or (None, None)
        elif isinstance(value, dict):
            for key, entry in value.items():
                if isinstance(entry, list):
                    row[f"{f.name}.{key}_low"], row[f"{f.name}.{key}_high"] = entry
                else:
                    row[f"{f.name}.{key}"] = entry
        else:
            row[f.name] = value
    for split, found in score.fresh.items():
        row[f"{split}.success"] = _plain(found["success"])
        row[f"{split}.success_low"], row[f"{split}.success_high"] = _plain(found["interval"])
    return row
