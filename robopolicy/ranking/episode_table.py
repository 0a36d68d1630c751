"""Episode tables (one row an episode) into outcomes per checkpoint and condition, a batch of rows at a time.

Memory is that of the result, two small integers per checkpoint and condition, however many rows the file has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from robopolicy.ranking.tables import COLUMNS, CONFIG, DEFINITION, Array, Outcomes, RankingError
from robopolicy.spec import did_you_mean

Splits = Sequence[str] | None
WHERE = ("suite", "split", "condition")  # what tells a condition
BATCH = 1 << 18  # rows
MOST = np.iinfo(np.uint16).max  # episodes of a checkpoint on one condition
EXPECTED = {"success": "True or False", "return": "finite", "progress": "in [0, 1]"}


def open_parquet(path: str | Path) -> pq.ParquetFile:
    """A parquet file. Raises RankingError where it is none."""
    try:
        return pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise RankingError(f"{path} is no parquet file, or a damaged one ({error}): write it again") from error


def load_episodes(path: str | Path) -> pa.Table:
    """The episode table of a parquet file. Raises RankingError when there is none."""
    _require(path)
    return open_parquet(path).read(use_threads=False)  # reader threads may abort Python at exit


def conditions_of(rows: pa.Table) -> Array:
    """The condition of every row as one text, [N]: a name tells it within its suite and split alone."""
    columns = [rows[name].cast(pa.string()).to_pylist() for name in WHERE if name in rows.column_names]
    return np.array(["\x1f".join(words) for words in zip(*columns, strict=True)], str)


def rows_of(source: pa.Table | str | Path, checkpoints: Sequence[str], splits: Splits = None) -> pa.Table:
    """All columns of the episodes of some checkpoints, read in batches. splits: of these only; None = all."""
    if isinstance(source, pa.Table):
        batches = source.to_batches(max_chunksize=BATCH)
    else:
        batches = open_parquet(source).iter_batches(batch_size=BATCH, use_threads=False)
    kept = []
    for batch in batches:
        rows = pa.Table.from_batches([batch])
        rows = rows.filter(pc.is_in(rows["checkpoint"].cast(pa.string()), pa.array(list(checkpoints))))
        kept.append(rows if splits is None else _of_splits(rows, splits))
    return pa.concat_tables(kept)


def _of_splits(rows: pa.Table, splits: Sequence[str]) -> pa.Table:
    return rows.filter(pc.is_in(rows["split"].cast(pa.string()), pa.array(splits)))


def no_episodes(path: str | Path) -> RankingError:
    """The error that says so."""
    return RankingError(f"no episode table at {path}: give a parquet file with the columns {', '.join(COLUMNS)}")


def _require(path: str | Path) -> None:
    if not Path(path).is_file():
        raise no_episodes(path)


def check_columns(columns: Sequence[str], name: str) -> None:
    """Raise RankingError where columns of an episode table are missing or given twice."""
    missing = [c for c in COLUMNS if c not in columns]
    if missing:
        close = did_you_mean(missing[0], columns)
        raise RankingError(f"{name}: no column {missing[0]!r} ({close}); needs {', '.join(COLUMNS)}")
    twice = [c for c in COLUMNS if list(columns).count(c) > 1]
    if twice:
        raise RankingError(f"{name}: column {twice[0]!r} is there twice: keep one")


def is_episode_table(columns: list[str]) -> bool:
    """Whether these are columns of one row an episode, rather than of one row a policy."""
    return {"checkpoint", "condition", "success"} <= set(columns)


class _Codes:
    """Values seen so far and their numbers, in order of appearance."""

    def __init__(self) -> None:
        self.known: dict[Any, int] = {}

    def encode(self, column: pa.ChunkedArray | pa.Array) -> Array:
        """The number int64 [N] of every value; new values get the next ones."""
        dictionary = pc.dictionary_encode(column.cast(pa.string()))
        if isinstance(dictionary, pa.ChunkedArray):
            dictionary = dictionary.combine_chunks()
        values = dictionary.dictionary.to_pylist()
        numbers = np.array([self.known.setdefault(value, len(self.known)) for value in values], np.int64)
        return numbers[dictionary.indices.to_numpy(zero_copy_only=False).astype(np.int64)]


def _grown(array: Array, shape: tuple[int, ...]) -> Array:
    """`array` with every axis at least as long as in `shape`, doubled where it is too short, zeros in what is new."""
    wanted = tuple(old if new <= old else max(new, 2 * old) for old, new in zip(array.shape, shape, strict=True))
    if wanted == array.shape:
        return array
    larger = np.zeros(wanted, array.dtype)
    larger[tuple(slice(length) for length in array.shape)] = array
    return larger


class _Tally:
    """Sums over the rows that have been added."""

    def __init__(self, name: str) -> None:
        self.name, self.num_rows = name, 0
        self.checkpoints, self.suites, self.splits = _Codes(), _Codes(), _Codes()
        self.conditions, self.triples = _Codes(), _Codes()
        self.successes, self.trials = np.zeros((1, 1), np.uint16), np.zeros((1, 1), np.uint16)
        self.sums = {key: np.zeros(1, np.longdouble) for key in ("progress", "return")}  # wide: the order of rows is lost in it
        self.facts: dict[str, dict[int, Any]] = {"run": {}, "step": {}, CONFIG: {}}
        self.definition: dict[str, Any] = {}

    def cells(self, rows: pa.Table) -> tuple[Array, Array]:
        """Number of the checkpoint and of the condition of every row [N]."""
        codes = [c.encode(rows[n]) for c, n in zip((self.suites, self.splits, self.conditions), WHERE, strict=True)]
        packed = (codes[0] << 48) | (codes[1] << 40) | codes[2]
        unique, inverse = np.unique(packed, return_inverse=True)
        numbers = np.array([self.triples.known.setdefault(int(v), len(self.triples.known)) for v in unique], np.int64)
        return self.checkpoints.encode(rows["checkpoint"]), numbers[inverse]

    def add(self, rows: pa.Table) -> None:
        """Add rows. Raises RankingError for values that make no sense."""
        values = _values(rows, self.name, self.num_rows)
        member, at = self.cells(rows)
        shape = (len(self.checkpoints.known), len(self.triples.known))
        self.successes, self.trials = _grown(self.successes, shape), _grown(self.trials, shape)
        flat, where = np.unique(member * shape[1] + at, return_inverse=True)
        here, there = np.divmod(flat, shape[1])
        added = np.bincount(where)
        if (self.trials[here, there] + added.astype(np.int64)).max(initial=0) > MOST:
            raise RankingError(f"{self.name}: more than {MOST} episodes of a checkpoint on one condition")
        self.trials[here, there] += added.astype(np.uint16)
        self.successes[here, there] += np.bincount(where, weights=values["success"]).astype(np.uint16)
        for key, total in self.sums.items():
            self.sums[key] = total = _grown(total, shape[:1])
            np.add.at(total, member, values[key].astype(np.longdouble))
        for column in self.facts:
            if column in rows.column_names:
                told = rows[column].is_valid()
                self._one_each(column, member[told.to_numpy()], rows[column].filter(told))
        self._defined(rows)
        self.num_rows += rows.num_rows

    def _one_each(self, column: str, member: Array, values: pa.ChunkedArray) -> None:
        """Remember the value of `column` of each checkpoint; it must be the same in all its rows."""
        codes = _Codes()
        pairs = np.unique(np.stack([member, codes.encode(values)], axis=1), axis=0)
        names = list(codes.known)
        for checkpoint, code in pairs.tolist():
            known = self.facts[column].setdefault(checkpoint, names[code])
            if known != names[code]:
                name = list(self.checkpoints.known)[checkpoint]
                given = sorted([known, names[code]])
                raise RankingError(f"{self.name}: checkpoint {name!r} has {column} {given}; give every checkpoint one id")

    def _defined(self, rows: pa.Table) -> None:
        for column in DEFINITION:
            if column not in rows.column_names:
                continue
            for value in pc.unique(rows[column]).to_pylist():
                if self.definition.setdefault(column, value) != value:
                    raise RankingError(
                        f"{self.name}: returns of {column} {self.definition[column]} and {value} are in one table; they are "
                        "different quantities: evaluate every checkpoint with the same one, or rank them apart"
                    )

    def outcomes(self, nested: bool) -> Outcomes:
        """What was added, in sorted order. Raises RankingError where the conditions differ, unless they are nested."""
        if not self.num_rows:
            raise RankingError(f"{self.name} has no rows: evaluate at least one checkpoint")
        names, shape = list(self.checkpoints.known), (len(self.checkpoints.known), len(self.triples.known))
        words = [list(c.known) for c in (self.suites, self.splits, self.conditions)]
        triples = [
            tuple(w[c] for w, c in zip(words, (v >> 48, (v >> 40) & 0xFF, v & 0xFFFFFFFFFF), strict=True))
            for v in self.triples.known
        ]
        by_name = np.argsort(names, kind="stable")
        by_condition = np.array(sorted(range(shape[1]), key=triples.__getitem__))
        trials = self.trials[: shape[0], : shape[1]][np.ix_(by_name, by_condition)]
        conditions = [triples[i] for i in by_condition]
        checkpoints = tuple(names[i] for i in by_name)
        runs = tuple(str(self.facts["run"][i]) for i in by_name)
        _check_conditions(trials, checkpoints, conditions, self.name, nested)
        episodes = trials.sum(axis=1, dtype=np.int64)
        means = {key: (total[: shape[0]][by_name] / episodes).astype(np.float64) for key, total in self.sums.items()}
        return Outcomes(
            checkpoints=checkpoints,
            runs=runs,
            steps=tuple(int(self.facts["step"][i]) for i in by_name),
            configs=tuple(str(self.facts[CONFIG].get(i, run)) for i, run in zip(by_name, runs, strict=True)),
            conditions=tuple(conditions),
            successes=self.successes[: shape[0], : shape[1]][np.ix_(by_name, by_condition)],
            trials=trials,
            progress=means["progress"],
            returns=means["return"],
        )


def _values(rows: pa.Table, name: str, before: int) -> dict[str, Array]:
    """Checked numbers float64 [N] of success, return and progress. before: rows of earlier batches."""
    nulls = [c for c in COLUMNS if rows[c].null_count]
    if nulls:
        raise RankingError(f"{name}: column {nulls[0]!r} has {rows[nulls[0]].null_count} nulls; drop or repair those episodes")
    values = {}
    for column, expected in EXPECTED.items():
        try:
            numbers = rows[column].cast(pa.float64()).to_numpy()
        except pa.ArrowInvalid as error:
            raise RankingError(f"{name}: column {column!r} holds no numbers ({error}); must be {expected}") from error
        bad = ~np.isfinite(numbers) if column == "return" else ~((numbers >= 0) & (numbers <= 1))
        if column == "success":
            bad |= (numbers != 0) & (numbers != 1)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            given = numbers[row]
            raise RankingError(
                f"{name}: {column}={given} in row {before + row}; must be {expected}: drop or repair that episode"
            )
        values[column] = numbers
    return values


def _check_conditions(
    trials: Array, checkpoints: tuple[str, ...], conditions: list[tuple[str, ...]], name: str, nested: bool
) -> None:
    most = trials[int(np.argmax(trials.sum(axis=1, dtype=np.int64)))]
    unequal = (((trials != most) & (trials > 0)) if nested else (trials != trials[0])).any(axis=1)
    if not unequal.any():
        return
    other, reference = int(np.argmax(unequal)), int(np.argmax(trials.sum(axis=1, dtype=np.int64))) if nested else 0
    place = int(np.argmax(trials[other] != trials[reference]))
    suite, split, condition = conditions[place]
    raise RankingError(
        f"{name}: condition {condition!r} of suite {suite!r}, split {split!r} has {trials[reference, place]} episodes of "
        f"{checkpoints[reference]!r} and {trials[other, place]} of {checkpoints[other]!r}; "
        "evaluate every checkpoint on the same conditions, or rank them separately"
    )


def _batches(source: pa.Table | str | Path, name: str, splits: Splits) -> Iterator[pa.Table]:
    file = None if isinstance(source, pa.Table) else open_parquet(source)
    schema = source.schema if isinstance(source, pa.Table) else file.schema_arrow  # type: ignore[union-attr]
    check_columns(schema.names, name)
    wanted = [*COLUMNS, *(c for c in (*DEFINITION, CONFIG) if c in schema.names)]
    if isinstance(source, pa.Table):
        batches = iter(source.select(wanted).to_batches(max_chunksize=BATCH))
    else:
        batches = file.iter_batches(batch_size=BATCH, columns=wanted, use_threads=False)  # type: ignore[union-attr]
    for batch in batches:
        rows = pa.Table.from_batches([batch])
        yield rows if splits is None else _of_splits(rows, splits)


def _refuse_duplicates(source: pa.Table | str | Path, tally: _Tally, splits: Splits) -> None:
    """An episode twice can hide only where a checkpoint has several on one condition: 8 bytes a row of those."""
    if int(tally.trials.max()) < 2:
        return
    seeds, keys = _Codes(), []
    width = len(tally.triples.known)
    for rows in _batches(source, tally.name, splits):
        member, at = tally.cells(rows)
        several = tally.trials[member, at] > 1
        code = seeds.encode(rows["seed"])
        keys.append(((member * width + at) * (1 << 32) + code)[several])
    found = np.sort(np.concatenate(keys))
    twice = found[1:][found[1:] == found[:-1]]
    if twice.size:
        cell, seed = divmod(int(twice[0]), 1 << 32)
        where = {"checkpoint": list(tally.checkpoints.known)[cell // width], "seed": list(seeds.known)[seed]}
        count = len(np.unique(twice))
        raise RankingError(f"{tally.name}: {count} episodes appear twice, first {where}; keep one row an episode")


def check_episodes(
    source: pa.Table | str | Path, name: str = "episodes", nested: bool = False, splits: Splits = None
) -> Outcomes:
    """Outcomes of an episode table or of a parquet file with one (columns `COLUMNS`, others ignored).

    nested: checkpoints may lack conditions that others have met, as after sequential halving.
    splits: rows of these splits only; None = all.

    Raises:
        RankingError: a missing column, a null or a value out of range, an episode twice, a checkpoint of two runs, returns of
            different discounts or horizons, or checkpoints that were not evaluated on the same conditions.
    """
    if not isinstance(source, pa.Table):
        _require(source)
    tally = _Tally(name)
    for rows in _batches(source, name, splits):
        if rows.num_rows:
            tally.add(rows)
    if tally.num_rows:
        _refuse_duplicates(source, tally, splits)
    return tally.outcomes(nested)
