"""The study's tables: one row an episode, one a score, one a run. All that its statistics need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vsdr_study.runs import write

Array = np.ndarray
KINDS = ("episodes", "scores", "facts")
ORDER = ("policy", "suite", "condition", "target", "layer", "score", "size", "draw")
WHOLE = 0  # the draw that is the whole set of observations


@dataclass(frozen=True)
class Tables:
    """episodes: policy, config, suite, condition, success, progress, length. scores: policy, target, layer, score, size, draw,
    value. facts: policy, config, width, hashes, seconds. outcome: the column that says how an episode went.
    """

    episodes: pa.Table
    scores: pa.Table
    facts: pa.Table
    outcome: str = "success"

    @classmethod
    def read(cls, folder: Path, outcome: str = "success") -> Tables:
        """From the files in a folder."""
        return cls(*(pq.read_table(folder / f"{kind}.parquet") for kind in KINDS), outcome)

    @cached_property
    def policies(self) -> list[str]:
        """Names, in order."""
        return sorted(self.facts["policy"].to_pylist())

    @cached_property
    def configs(self) -> list[str]:
        """The training configuration of every policy."""
        return self._fact("config")

    @cached_property
    def width(self) -> Array:
        """How wide the training worlds of every policy were [C]."""
        return np.array(self._fact("width"), float)

    def _fact(self, column: str) -> list:
        known = dict(zip(self.facts["policy"].to_pylist(), self.facts[column].to_pylist(), strict=True))
        return [known[policy] for policy in self.policies]

    @cached_property
    def _episodes(self) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
        found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
        for row in self.episodes.select(["suite", "policy", "condition", "success", "progress"]).to_pylist():
            found.setdefault(row["suite"], {}).setdefault(row["policy"], {})[row["condition"]] = row
        return found

    @cached_property
    def seeds(self) -> list[str]:
        """The training seeds: what a policy's name ends with."""
        return sorted({policy.rpartition("/")[2] for policy in self.policies})

    def of_seed(self, seed: str) -> Tables:
        """The policies of one training seed alone."""
        return self.only([policy for policy in self.policies if policy.endswith(f"/{seed}")])

    def only(self, policies: Sequence[str]) -> Tables:
        """Some policies alone."""
        tables = (self.episodes, self.scores, self.facts)
        return Tables(*(table.filter(pc.is_in(table["policy"], pa.array(policies))) for table in tables), self.outcome)

    def together(self, other: Tables) -> Tables:
        """Both pools as one."""
        pairs = [(getattr(self, kind), getattr(other, kind)) for kind in KINDS]
        return Tables(*(pa.concat_tables(pair, promote_options="default") for pair in pairs), self.outcome)

    def outcomes(self, suite: str) -> Array:
        """Outcomes in [0, 1], float64 [C, K], of every policy on the conditions of a suite, in one order for all."""
        return self._column(suite, self.outcome)

    def progress(self, suite: str) -> Array:
        """How far every policy got, in [0, 1], float64 [C, K]; see outcomes."""
        return self._column(suite, "progress")

    def _column(self, suite: str, name: str) -> Array:
        rows = self._episodes[suite]
        return np.array([[rows[policy][c][name] for c in sorted(rows[policy])] for policy in self.policies], float)

    @cached_property
    def _values(self) -> dict[tuple[str, str, str, int, int], dict[str, float]]:
        found: dict[tuple[str, str, str, int, int], dict[str, float]] = {}
        columns = ("target", "layer", "score", "size", "draw", "policy", "value")
        for *key, policy, value in zip(*(self.scores[name].to_pylist() for name in columns), strict=True):
            key[3] = key[3] if key[4] != WHOLE else 0
            found.setdefault(tuple(key), {})[policy] = value
        return found

    def score(self, target: str, score: str, layer: str = "", size: int = 0, draw: int = WHOLE) -> Array:
        """A score of every policy [C], NaN where it has none. size: of a smaller set of observations, `draw` of it."""
        rows = self._values.get((target, layer, score, size, draw), {})
        return np.array([np.nan if (v := rows.get(policy)) is None else v for policy in self.policies], float)

    def smaller(self, target: str) -> dict[int, list[int]]:
        """{size: draws} of smaller sets of a target's observations."""
        found: dict[int, set[int]] = {}
        for of, _, _, size, draw in self._values:
            if of == target and draw != WHOLE:
                found.setdefault(size, set()).add(draw)
        return {size: sorted(found[size]) for size in sorted(found)}


def gather(root: Path, folder: Path) -> Tables:
    """Merge the tables of finished runs under `root` into those in `folder`; what is in both stays as it was."""
    for kind in KINDS:
        file = folder / f"{kind}.parquet"
        parts = [pq.read_table(file)] if file.is_file() else []
        known = set(parts[0]["policy"].to_pylist()) if parts else set()
        for found in sorted((root / "tables").glob(f"*.{kind}.parquet")):
            table = pq.read_table(found)
            parts += [] if table["policy"][0].as_py() in known else [table]
        if parts:
            whole = pa.concat_tables(parts, promote_options="default")
            write(file, whole.sort_by([(name, "ascending") for name in ORDER if name in whole.column_names]))
    return Tables.read(folder)
