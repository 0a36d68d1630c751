"""Normalisation: statistics of a dataset, and a module that carries them as buffers so that they travel with the weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from robopolicy.spec import ACTION, POINTS, Array, Features, FeatureSpec, SpecError, did_you_mean

if TYPE_CHECKING:
    from robopolicy.data.windows import TrainingWindows

Statistics = dict[str, dict[str, Array]]  # {key: {"mean", "std", "min", "max", "q01", "q99", "num_distinct": [D], "distinct"}}

STD_FLOOR = 1e-4  # an entry that varies less is constant: unit scale, so that a deviation at deployment does not explode
CONSTANT = 1e-6  # half range of an action entry, relative to its size where that is above 1, below which it is constant
QUANTILE_FLOOR = 0.02  # a 1-99 % range below this share of min-max holds almost none of the motion: min-max is used
MAX_DISTINCT = 8  # an entry with no more distinct values is a switch (a gripper command): min-max is used


def is_normalized(key: str, feature: FeatureSpec) -> bool:
    """Whether `key` is scaled: float vectors [D] are; images, depth, point clouds, scalars, integers and booleans are not."""
    return np.dtype(feature.dtype).kind == "f" and len(feature.shape) == 1 and key != POINTS


def fit_statistics(windows: TrainingWindows, keys: Iterable[str]) -> Statistics:
    """Statistics per entry of those `keys` that are scaled (see is_normalized), in float64, every recorded frame once.

    Raises:
        SpecError: the dataset lacks a key.
    """
    stats: Statistics = {}
    for key in keys:
        if key not in windows.spec.features:
            raise SpecError(f"no statistics for {key!r}; {did_you_mean(key, windows.spec.features)}")
        if is_normalized(key, windows.spec.features[key]):
            stats[key] = vector_statistics(windows.values(key))
    return stats


def vector_statistics(values: Array) -> dict[str, Array]:
    """Statistics [D] (float64) of values [N, D]: mean, std, min, max, q01, q99, num_distinct (up to MAX_DISTINCT + 1),
    and distinct [D, MAX_DISTINCT], the first different values, the last of them repeated to fill up.

    q01 and q99 are quantiles that occur in the data (no interpolation), so a switch keeps its own values.
    """
    data = np.sort(np.asarray(values, np.float64), axis=0)
    is_new = np.concatenate([np.ones((1, data.shape[1]), bool), np.diff(data, axis=0) > 0])
    num_distinct = np.minimum(is_new.sum(axis=0), MAX_DISTINCT + 1)
    distinct = [column[new][:MAX_DISTINCT] for column, new in zip(data.T, is_new.T, strict=True)]
    last = len(data) - 1
    return {
        "mean": data.mean(axis=0),
        "std": data.std(axis=0),
        "min": data[0],
        "max": data[-1],
        "q01": data[int(np.floor(0.01 * last))],
        "q99": data[int(np.ceil(0.99 * last))],
        "num_distinct": num_distinct.astype(np.int64),
        "distinct": np.stack([np.pad(values, (0, MAX_DISTINCT - len(values)), mode="edge") for values in distinct]),
    }


def standardization(stats: Mapping[str, Array]) -> tuple[Array, Array]:
    """Offset and scale [D] that give zero mean and unit variance; constant entries are only centred."""
    std = np.asarray(stats["std"], np.float64)
    return np.asarray(stats["mean"], np.float64), np.where(std < STD_FLOOR, 1.0, std)


def range_scaling(stats: Mapping[str, Array]) -> tuple[Array, Array]:
    """Offset and scale [D] that take the 1-99 % quantiles to [-1, 1]. Nothing is clipped: rarer values land outside.

    Min and max take the quantiles' place in entries that are switches or that hardly ever move. Constant entries have a scale
    of about float32's rounding: whatever a network says, or noise of its size adds, they stay where they were.
    """
    low, high, least, most = (np.asarray(stats[name], np.float64) for name in ("q01", "q99", "min", "max"))
    rare = (high - low) < QUANTILE_FLOOR * (most - least)
    widen = rare | (np.asarray(stats["num_distinct"]) <= MAX_DISTINCT)
    low, high = np.where(widen, least, low), np.where(widen, most, high)
    half = (high - low) / 2
    return (low + high) / 2, np.maximum(half, CONSTANT * np.maximum(1.0, np.abs(low)))


class Normalizer(nn.Module):
    """x -> (x - offset) / scale per entry of each float vector; every other key passes unchanged (see is_normalized).

    Actions are scaled by range, other vectors to zero mean and unit variance. It starts as the identity; offsets and
    scales are buffers, set by `fit` or by loading a state dict.

    Args:
        features: {key: FeatureSpec} of all keys it will see, ACTION included where actions are normalised.
    """

    def __init__(self, features: Features) -> None:
        super().__init__()
        self.features = dict(features)
        self._names: dict[str, str] = {}
        for key, feature in features.items():
            if not is_normalized(key, feature):
                continue
            name = key.replace(".", "_")
            if name in self._names.values():
                raise SpecError(f"{key!r} and another key are both called {name!r} without dots: rename one")
            self._names[key] = name
            self.register_buffer(f"{name}_offset", torch.zeros(feature.shape))
            self.register_buffer(f"{name}_scale", torch.ones(feature.shape))

    def fit(self, stats: Mapping[str, Mapping[str, Array]]) -> None:
        """Set offsets and scales from `fit_statistics`; keys it does not scale are ignored.

        Raises:
            SpecError: no statistics for a key, or of another size.
        """
        for key, name in self._names.items():
            if key not in stats:
                raise SpecError(f"no statistics for {key!r}; {did_you_mean(key, stats)}")
            offset, scale = range_scaling(stats[key]) if key == ACTION else standardization(stats[key])
            if offset.shape != self.features[key].shape:
                raise SpecError(
                    f"statistics of {key!r} have shape {list(offset.shape)}, expected {list(self.features[key].shape)}"
                )
            self.get_buffer(f"{name}_offset").copy_(torch.from_numpy(offset))
            self.get_buffer(f"{name}_scale").copy_(torch.from_numpy(scale))

    def normalize(self, key: str, x: Tensor) -> Tensor:
        """`x` [..., D] in physical units to network units; keys that are not scaled pass unchanged.

        Raises:
            SpecError: a key that was not among the features.
        """
        name = self._name(key)
        return x if name is None else (x - self.get_buffer(f"{name}_offset")) / self.get_buffer(f"{name}_scale")

    def denormalize(self, key: str, x: Tensor) -> Tensor:
        """Inverse of normalize."""
        name = self._name(key)
        return x if name is None else x * self.get_buffer(f"{name}_scale") + self.get_buffer(f"{name}_offset")

    def scale(self, key: str) -> Array | None:
        """What one network unit of `key` is in physical units, [D]; None for keys that are not scaled."""
        name = self._name(key)
        return None if name is None else self.get_buffer(f"{name}_scale").cpu().numpy()

    def offset(self, key: str) -> Array | None:
        """Where 0 in network units of `key` is in physical units, [D]; None for keys that are not scaled."""
        name = self._name(key)
        return None if name is None else self.get_buffer(f"{name}_offset").cpu().numpy()

    def fingerprint(self) -> str:
        """16 hex digits that tell which statistics are inside."""
        digest = hashlib.sha256()
        for name, buffer in sorted(self.named_buffers()):
            digest.update(name.encode() + buffer.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def _name(self, key: str) -> str | None:
        if key not in self.features:
            raise SpecError(f"the normaliser does not know {key!r}; {did_you_mean(key, self.features)}")
        return self._names.get(key)
