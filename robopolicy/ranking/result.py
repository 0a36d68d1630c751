"""A ranking as plain data: what `rank` returns, what is written to disk and what the report draws."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from robopolicy.ranking.statistics import Interval
from robopolicy.ranking.tables import RankingError

SCHEMA = 1
SHORTLIST_PROBABILITY = 0.9


@dataclass(frozen=True)
class CheckpointScore:
    """One line of the ranking. Rates are fractions in [0, 1]; intervals are at 95 %; None where not computed.

    rank: place by VSDR, ties share the best one. ranks, rank_intervals: by "vsdr", "sim" and "ood".
    ood: effect size of the chosen detector (0 = looks like simulation, larger = further out); effect_sizes: of all.
    prob_best, prob_top: share of bootstrap replicates in which it takes the first place, one of the first k.
    behind_leader: paired difference in simulated success, this minus the leader; p_holm adjusts over all of them.
    """

    checkpoint: str
    run: str
    step: int
    rank: int
    vsdr: float
    success: float
    success_interval: Interval
    progress: float
    mean_return: float
    ood: float | None
    ood_interval: Interval | None
    effect_sizes: dict[str, float | None]
    conformal: float | None
    encoder: dict[str, float]
    ranks: dict[str, float]
    rank_intervals: dict[str, Interval]
    prob_best: float
    prob_top: dict[str, float]
    behind_leader: dict[str, Any] | None
    target_success: float | None
    target_interval: Interval | None
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Ranking:
    """A ranking as plain data, best checkpoint first.

    orders: checkpoint ids by "vsdr", "sim" and (with features) "ood". check: agreement with target outcomes, or None.
    warnings: what holds for the whole pool.
    """

    schema: int
    settings: dict[str, Any]
    num_conditions: int
    num_episodes: int
    num_target_observations: int
    checkpoints: tuple[CheckpointScore, ...]
    orders: dict[str, list[str]]
    check: dict[str, Any] | None
    warnings: tuple[str, ...]

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
        return pa.Table.from_pylist([_flat(score) for score in self.checkpoints])

    def write(self, folder: str | Path) -> Path:
        """Writes ranking.json and ranking.csv into `folder` and returns it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ranking.json").write_text(self.to_json(), encoding="utf-8")
        pyarrow.csv.write_csv(self.table(), folder / "ranking.csv")
        return folder

    def shortlist(self, probability: float = SHORTLIST_PROBABILITY) -> list[str]:
        """The fewest checkpoints that together take the first place in at least `probability` of the replicates."""
        likely = sorted(self.checkpoints, key=lambda c: (-c.prob_best, c.rank, c.checkpoint))
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
        if f.name in ("encoder", "behind_leader"):
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
    return row
