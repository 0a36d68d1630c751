"""Scores made elsewhere, one row a policy: policy, sim[, ood][, real] and whatever further scores there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from robopolicy.ranking.episode_table import open_parquet
from robopolicy.ranking.tables import CONFIG, DEFINITION, Array, Outcomes, RankingError
from robopolicy.spec import did_you_mean

TEXT = ("policy", "run", CONFIG, "domain")
COUNTS = {"episodes": "sim", "real_episodes": "real"}  # column: the rate that so many episodes gave
RESERVED = ("vsdr", "plackett_luce")  # what the scores are combined into
KNOWN = (*TEXT, "step", "sim", "ood", "real", *COUNTS, *DEFINITION)


@dataclass(frozen=True)
class _Given(Outcomes):
    """Outcomes of which only the rates are known."""

    rates: Array

    @property
    def success(self) -> Array:
        """See Outcomes; any scale."""
        return self.rates

    @property
    def num_episodes(self) -> int:
        """Not known."""
        return 0


@dataclass(frozen=True)
class ScoreTable:
    """Scores of C policies.

    scores: {"sim", "ood", further: float64 [C]}, NaN where a cell is empty. "ood" grows with the distance of the target; all
        others are better when larger. real: what was really obtained, NaN where unknown.
    episodes: {"sim", "real": int [C]} where the table says how many episodes a rate comes from.
    """

    policies: tuple[str, ...]
    runs: tuple[str, ...]
    steps: tuple[int, ...]
    configs: tuple[str, ...]
    domains: tuple[str, ...]
    scores: Mapping[str, Array]
    real: Array
    episodes: Mapping[str, Array]

    def __len__(self) -> int:
        return len(self.policies)

    @property
    def obtained(self) -> Outcomes:
        """What the policies obtained, without the episodes behind it."""
        none, means = np.zeros((len(self), 0), np.int64), np.full(len(self), np.nan)
        facts = (self.policies, self.runs, self.steps, self.configs, ())
        return _Given(*facts, none, none, means, means, rates=self.real)

    def take(self, at: Sequence[int]) -> ScoreTable:
        """The policies at these positions."""
        rows = list(at)
        return ScoreTable(
            policies=tuple(self.policies[i] for i in rows),
            runs=tuple(self.runs[i] for i in rows),
            steps=tuple(self.steps[i] for i in rows),
            configs=tuple(self.configs[i] for i in rows),
            domains=tuple(self.domains[i] for i in rows),
            scores={name: values[rows] for name, values in self.scores.items()},
            real=self.real[rows],
            episodes={name: values[rows] for name, values in self.episodes.items()},
        )


def read_table(path: str | Path) -> pa.Table:
    """A CSV or parquet file. Raises RankingError when there is none or it cannot be read."""
    path = Path(path)
    if not path.is_file():
        raise RankingError(f"no score table at {path}: give a CSV or parquet file with the columns policy, sim[, ood][, real]")
    table = open_parquet(path).read(use_threads=False) if path.suffix == ".parquet" else _read_csv(path)
    twice = [name for name in table.column_names if table.column_names.count(name) > 1]
    if twice:
        raise RankingError(f"{path}: column {twice[0]!r} is there twice: keep one")
    return table


def _read_csv(path: Path) -> pa.Table:
    try:
        return pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(use_threads=False),
            convert_options=pyarrow.csv.ConvertOptions(column_types={name: pa.string() for name in TEXT}, null_values=[""]),
        )
    except pa.ArrowInvalid as error:
        raise RankingError(f"{path} is not a CSV table with a header line: {error}") from error


def check_scores(table: pa.Table, name: str = "scores") -> ScoreTable:
    """The scores of a table, in order of the policies' names.

    Columns: policy and sim, of which every cell is filled; ood, real and any number of further scores, whose cells may be
    empty where a score was not computed; run (cluster in the statistics), step, config (training configuration: runs that share
    it are seeds of it), domain (pseudo-real domain of `real`: then a
    policy has a row for each), episodes and real_episodes (how many a rate comes from), discount and horizon (what a return
    is; one value for the table).

    Raises:
        RankingError: a missing column, one with the name of a combined score, an empty table, text or NaN in a score, a policy
            twice, mixed definitions of return.
    """
    columns = table.column_names
    for column in ("policy", "sim"):
        if column not in columns:
            raise RankingError(
                f"{name}: no column {column!r} ({did_you_mean(column, columns)}); needs policy and sim, "
                "and may have ood, real and further scores"
            )
    if not table.num_rows:
        raise RankingError(f"{name} has no rows: give one row a policy")
    policies = _text(table, "policy", name)
    domains = _text(table, "domain", name) if "domain" in columns else [""] * len(policies)
    keys = list(zip(policies, domains, strict=True))
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        where = f" in domain {twice[1]!r}" if twice[1] else ""
        raise RankingError(f"{name}: policy {twice[0]!r} appears twice{where}; keep one row a policy")
    for column in columns:
        if column.partition(":")[0] in RESERVED:
            raise RankingError(f"{name}: the column {column!r} has the name of the combined score: rename it")
    for column in DEFINITION:
        if column in columns and len(given := set(table[column].to_pylist())) > 1:
            raise RankingError(
                f"{name}: returns of {column} {' and '.join(map(str, sorted(given, key=str)))} are in one table; they are "
                "different quantities: score every policy with the same one, or rank them apart"
            )
    order = sorted(range(len(keys)), key=keys.__getitem__)
    scores = {"sim": _numbers(table, "sim", name, policies, required=True)}
    further = [column for column in columns if column not in KNOWN]
    scores |= {column: _numbers(table, column, name, policies) for column in (*("ood",) * ("ood" in columns), *further)}
    real = _numbers(table, "real", name, policies) if "real" in columns else np.full(len(policies), np.nan)
    episodes = {rate: _trials(table, column, name, policies) for column, rate in COUNTS.items() if column in columns}
    for rate in episodes:
        values = scores["sim"] if rate == "sim" else real
        outside = ~np.isnan(values) & ((values < 0) | (values > 1))
        if outside.any():
            row = int(np.flatnonzero(outside)[0])
            raise RankingError(
                f"{name}: {rate}={values[row]:g} of {policies[row]!r} is no success rate, and the table says how many episodes "
                "it comes from: give a fraction in [0, 1], or leave that column out"
            )
    runs = _text(table, "run", name) if "run" in columns else policies
    found = ScoreTable(
        policies=tuple(policies),
        runs=tuple(runs),
        steps=_steps(table, name, policies) if "step" in columns else (0,) * len(policies),
        configs=tuple(_text(table, CONFIG, name) if CONFIG in columns else runs),
        domains=tuple(domains),
        scores=scores,
        real=real,
        episodes=episodes,
    )
    return found.take(order)


def _text(table: pa.Table, column: str, name: str) -> list[str]:
    values = table[column].cast(pa.string()).to_pylist()
    if None in values or "" in values:
        raise RankingError(f"{name}: {column} is empty in row {[v or None for v in values].index(None)}")
    return values


def _numbers(table: pa.Table, column: str, name: str, policies: Sequence[str], required: bool = False) -> Array:
    """Values float64 [C], NaN where the cell is empty."""
    try:
        cells = table[column].cast(pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise RankingError(f"{name}: column {column!r} holds no numbers ({error}): leave it out") from error
    empty = np.array(cells.is_null().to_pylist(), bool)
    values = np.array([0.0 if v is None else v for v in cells.to_pylist()])
    bad = ~np.isfinite(values) | (empty if required else False)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        given: Any = "empty" if empty[row] else values[row]
        remedy = "every policy needs one" if required else "leave the cell empty where it was not computed"
        raise RankingError(f"{name}: {column} of {policies[row]!r} is {given}: {remedy}")
    return np.where(empty, np.nan, values)


def _steps(table: pa.Table, name: str, policies: Sequence[str]) -> tuple[int, ...]:
    values = _numbers(table, "step", name, policies, required=True)
    for policy, value in zip(policies, values, strict=True):
        if value != int(value):
            raise RankingError(f"{name}: step of {policy!r} is {value:g}: give a whole number")
    return tuple(map(int, values))


def _trials(table: pa.Table, column: str, name: str, policies: Sequence[str]) -> Array:
    values = _numbers(table, column, name, policies)
    bad = ~np.isnan(values) & ((values < 1) | (values != np.round(values)))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise RankingError(f"{name}: {column}={values[row]:g} of {policies[row]!r}: give a whole number of at least 1")
    return np.nan_to_num(values, nan=0.0).astype(np.int64)
