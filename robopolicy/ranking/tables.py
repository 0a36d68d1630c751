"""What a ranking is made of, in checked form: outcomes of episodes, and the features of every checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.spec import did_you_mean

Array = np.ndarray

COLUMNS = ("checkpoint", "run", "step", "suite", "split", "condition", "seed", "success", "return", "progress")
IDENTITY_COLUMNS = ("checkpoint", "checkpoint_sha", "run", "step", "config", "suite", "split", "condition", "seed")
DEFINITION = ("discount", "horizon")  # optional columns: what a return is; the same in every row of a ranking
CONFIG = "config"  # optional column: training configuration; runs that share it are seeds of it
FEATURE_SETS = ("fit", "calibration", "target")
EPISODES_OF = {"calibration": "calibration_episode", "target": "target_episode"}


class RankingError(ValueError):
    """Scores that cannot be ranked. The message names what was given and the remedy."""


class IntegrityError(RankingError):
    """Inputs that would make the ranking meaningless: leaked data, a file that is not what its hash says."""

    exit_code = 4


@dataclass(frozen=True)
class Outcomes:
    """Episodes of C checkpoints on K conditions, in sorted order whatever the order of the rows.

    successes, trials: int [C, K] per condition; trials are the same for every checkpoint unless some were dropped early
        (`nested`), each then having met the first conditions of those that stayed.
    progress, returns: means [C]. runs, steps: the training run and step of each checkpoint [C]; configs: its training
        configuration [C], its run where the table does not say.
    conditions: (suite, split, condition) [K].
    """

    checkpoints: tuple[str, ...]
    runs: tuple[str, ...]
    steps: tuple[int, ...]
    configs: tuple[str, ...]
    conditions: tuple[tuple[str, str, str], ...]
    successes: Array
    trials: Array
    progress: Array
    returns: Array

    @property
    def nested(self) -> bool:
        """Whether some checkpoints met fewer conditions than others."""
        return bool((self.trials != self.trials[:1]).any())

    @property
    def counts(self) -> Array:
        """Episodes per condition [K], of the checkpoint that met most."""
        return self.trials[int(np.argmax(self.episodes))]

    @property
    def episodes(self) -> Array:
        """Episodes of each checkpoint [C]."""
        return self.trials.sum(axis=1, dtype=np.int64)

    @property
    def num_episodes(self) -> int:
        """Episodes per checkpoint, of the one that has most."""
        return int(self.episodes.max())

    @property
    def num_successes(self) -> Array:
        """Successes of each checkpoint [C]."""
        return self.successes.sum(axis=1, dtype=np.int64)

    @property
    def success(self) -> Array:
        """Success rate [C]."""
        return self.num_successes / self.episodes

    def indices(self, checkpoints: Iterable[str]) -> list[int]:
        """Positions of checkpoints. Raises RankingError naming an unknown one."""
        names = list(checkpoints)
        for name in names:
            if name not in self.checkpoints:
                raise RankingError(f"no episodes of checkpoint {name!r}; {did_you_mean(name, self.checkpoints)}")
        return [self.checkpoints.index(name) for name in names]


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
