"""The two inputs of a ranking, checked once: the episode table and the features of every checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from robopolicy.spec import did_you_mean

Array = np.ndarray

COLUMNS = ("checkpoint", "run", "step", "suite", "split", "condition", "seed", "success", "return", "progress")
IDENTITY = ("checkpoint", "suite", "split", "condition", "seed")
FEATURE_SETS = ("fit", "calibration", "target")
EPISODES_OF = {"calibration": "calibration_episode", "target": "target_episode"}


class RankingError(ValueError):
    """Scores that cannot be ranked. The message names what was given and the remedy."""


@dataclass(frozen=True)
class Outcomes:
    """Episodes of C checkpoints on the same K conditions, in sorted order whatever the order of the rows.

    successes: int [C, K] per condition. counts: int [K] episodes per condition, the same for every checkpoint.
    progress, returns: means [C]. runs, steps: the training run and step of each checkpoint [C].
    """

    checkpoints: tuple[str, ...]
    runs: tuple[str, ...]
    steps: tuple[int, ...]
    conditions: tuple[str, ...]
    successes: Array
    counts: Array
    progress: Array
    returns: Array

    @property
    def num_episodes(self) -> int:
        """Episodes per checkpoint."""
        return int(self.counts.sum())

    @property
    def success(self) -> Array:
        """Success rate [C]."""
        return self.successes.sum(axis=1) / self.num_episodes

    def indices(self, checkpoints: Iterable[str]) -> list[int]:
        """Positions of checkpoints. Raises RankingError naming an unknown one."""
        names = list(checkpoints)
        for name in names:
            if name not in self.checkpoints:
                raise RankingError(f"no episodes of checkpoint {name!r}; {did_you_mean(name, self.checkpoints)}")
        return [self.checkpoints.index(name) for name in names]


def load_episodes(path: str | Path) -> pa.Table:
    """The episode table of a parquet file. Raises RankingError when there is none."""
    if not Path(path).is_file():
        raise RankingError(f"no episode table at {path}: give a parquet file with the columns {', '.join(COLUMNS)}")
    return pq.read_table(path, use_threads=False)  # reader threads may abort Python at exit


def _columns(table: pa.Table, name: str) -> dict[str, Array]:
    missing = [c for c in COLUMNS if c not in table.column_names]
    if missing:
        raise RankingError(
            f"{name}: no column {missing[0]!r} ({did_you_mean(missing[0], table.column_names)}); needs {', '.join(COLUMNS)}"
        )
    if not table.num_rows:
        raise RankingError(f"{name} has no rows: evaluate at least one checkpoint")
    nulls = [c for c in COLUMNS if table[c].null_count]
    if nulls:
        raise RankingError(f"{name}: column {nulls[0]!r} has {table[nulls[0]].null_count} nulls; drop or repair those episodes")
    columns = {c: table[c].to_numpy(zero_copy_only=False) for c in COLUMNS}
    for c in ("success", "return", "progress"):
        values = columns[c].astype(np.float64)
        bad = ~np.isfinite(values) if c == "return" else ~((values >= 0) & (values <= 1))
        if c == "success":
            bad |= (values != 0) & (values != 1)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            expected = {"success": "True or False", "return": "finite", "progress": "in [0, 1]"}[c]
            raise RankingError(f"{name}: {c}={columns[c][row]} in row {row}; must be {expected}: drop or repair that episode")
        columns[c] = values
    for c in ("checkpoint", "run", "suite", "split", "condition", "seed"):
        columns[c] = columns[c].astype(str)
    return columns


def _refuse_duplicates(columns: dict[str, Array], name: str) -> None:
    keys = np.stack([columns[c] for c in IDENTITY], axis=1)
    unique, counts = np.unique(keys, axis=0, return_counts=True)
    if (counts > 1).any():
        twice = dict(zip(IDENTITY, unique[np.argmax(counts > 1)].tolist(), strict=True))
        raise RankingError(f"{name}: {int((counts > 1).sum())} episodes appear twice, first {twice}; keep one row an episode")


def _one_each(columns: dict[str, Array], member: Array, checkpoints: Array, column: str, name: str) -> list[Any]:
    """The value of `column` of each checkpoint; it must be the same in all its rows."""
    values = [np.unique(columns[column][member == c]) for c in range(len(checkpoints))]
    for checkpoint, found in zip(checkpoints, values, strict=True):
        if len(found) != 1:
            raise RankingError(f"{name}: checkpoint {checkpoint!r} has {column} {found.tolist()}; give every checkpoint one id")
    return [found[0] for found in values]


def check_episodes(table: pa.Table, name: str = "episodes") -> Outcomes:
    """Outcomes of an episode table (one row an episode, columns `COLUMNS`, others ignored).

    Raises:
        RankingError: a missing column, a null or a value out of range, an episode twice, a checkpoint of two runs, or
            checkpoints that were not evaluated on the same conditions.
    """
    columns = _columns(table, name)
    _refuse_duplicates(columns, name)
    checkpoints, member = np.unique(columns["checkpoint"], return_inverse=True)
    where = np.stack([columns[c] for c in ("suite", "split", "condition")], axis=1)
    conditions, at = np.unique(where, axis=0, return_inverse=True)
    at = at.reshape(-1)
    shape = (len(checkpoints), len(conditions))
    flat = member * shape[1] + at
    counts = np.bincount(flat, minlength=len(checkpoints) * len(conditions)).reshape(shape)
    unequal = (counts != counts[0]).any(axis=1)
    if unequal.any():
        other = int(np.argmax(unequal))
        place = int(np.argmax(counts[other] != counts[0]))
        suite, split, condition = conditions[place]
        raise RankingError(
            f"{name}: condition {condition!r} of suite {suite!r}, split {split!r} has {counts[0, place]} episodes of "
            f"{str(checkpoints[0])!r} and {counts[other, place]} of {str(checkpoints[other])!r}; "
            "evaluate every checkpoint on the same conditions, or rank them separately"
        )

    def per_checkpoint(column: str) -> Array:
        # summed in a canonical order, so that the order of the rows cannot reach the last bit
        order = np.lexsort((columns["seed"], at, member))
        return np.bincount(member[order], weights=columns[column][order]) / counts.sum(axis=1)

    return Outcomes(
        checkpoints=tuple(map(str, checkpoints)),
        runs=tuple(str(v) for v in _one_each(columns, member, checkpoints, "run", name)),
        steps=tuple(int(v) for v in _one_each(columns, member, checkpoints, "step", name)),
        conditions=tuple("/".join(map(str, row)) for row in conditions),
        successes=np.bincount(flat, weights=columns["success"], minlength=counts.size).reshape(shape).astype(np.int64),
        counts=counts[0],
        progress=per_checkpoint("progress"),
        returns=per_checkpoint("return"),
    )


@dataclass(frozen=True)
class FeatureSet:
    """Features of one checkpoint's encoder, float64 [N, D] each, N differing and D shared.

    fit: simulator reference the detector learns. calibration: simulator hold-out, other episodes than fit.
    target: the small fixed set of real observations, the same for every checkpoint, in the same order.
    calibration_episode, target_episode: episode of each row, int [N]; rows are resampled by it (default: one each).
    """

    fit: Array
    calibration: Array
    target: Array
    calibration_episode: Array
    target_episode: Array


def _feature_set(checkpoint: str, data: Mapping[str, Any]) -> FeatureSet:
    arrays: dict[str, Array] = {}
    for key in FEATURE_SETS:
        if key not in data:
            given = ", ".join(map(str, data)) or "nothing"
            raise RankingError(f"features of {checkpoint!r} lack {key!r}: needs {', '.join(FEATURE_SETS)}; given {given}")
        array = np.asarray(data[key], dtype=np.float64)
        if array.ndim != 2 or not array.size:
            raise RankingError(f"features {key!r} of {checkpoint!r} have shape {list(array.shape)}, expected [N, D]")
        if not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array))[0, 0])
            raise RankingError(
                f"features {key!r} of {checkpoint!r} are not finite in row {row}: drop that observation everywhere"
            )
        arrays[key] = array
    widths = {key: array.shape[1] for key, array in arrays.items()}
    if len(set(widths.values())) > 1:
        raise RankingError(f"features of {checkpoint!r} have widths {widths}: all three must come from the same layer")
    for key, episode_key in EPISODES_OF.items():
        episodes = np.asarray(data.get(episode_key, np.arange(len(arrays[key]))))
        if episodes.shape != (len(arrays[key]),):
            raise RankingError(f"{episode_key!r} of {checkpoint!r} has shape {episodes.shape}, expected [{len(arrays[key])}]")
        arrays[episode_key] = np.unique(episodes, return_inverse=True)[1]
    return FeatureSet(**arrays)


def check_features(features: Mapping[str, Mapping[str, Any]], checkpoints: Iterable[str]) -> dict[str, FeatureSet]:
    """Feature sets of the checkpoints that have any: {checkpoint: {"fit", "calibration", "target": float [N, D]}}.

    Raises:
        RankingError: an unknown checkpoint, a missing set, a wrong shape, a value that is not finite, or target sets that
            differ between checkpoints (the fixed set of observations must be the same for all).
    """
    known = list(checkpoints)
    for name in features:
        if name not in known:
            raise RankingError(f"features of {name!r}, which has no episodes; {did_you_mean(name, known)}")
    sets = {name: _feature_set(name, features[name]) for name in known if name in features}
    first = next(iter(sets), None)
    for name, found in sets.items():
        reference = sets[str(first)]
        if not np.array_equal(found.target_episode, reference.target_episode):
            raise RankingError(
                f"target features of {name!r} ({len(found.target)} rows) and {first!r} ({len(reference.target)} rows) are not "
                "of the same observations: encode one fixed set with every checkpoint, in one order"
            )
    return sets


def load_features(path: str | Path) -> dict[str, Array]:
    """The arrays of one checkpoint's npz file (no pickled objects). Raises RankingError when there is none."""
    if not Path(path).is_file():
        raise RankingError(f"no features at {path}: write them with numpy.savez({', '.join(f'{k}=...' for k in FEATURE_SETS)})")
    with np.load(path, allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}
