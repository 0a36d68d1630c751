"""Which of a source's fields become which of our keys, and the conversions on the way. Pure functions on arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from robopolicy.data.importers.source import Layout
from robopolicy.data.info_file import infer_spec
from robopolicy.spec import (
    ACTION,
    DEPTH,
    ENVIRONMENT_STATE,
    IMAGES,
    REWARD,
    STATE,
    SUCCESS,
    TERMINATED,
    TRUNCATED,
    Array,
    DatasetSpec,
    SpecError,
    did_you_mean,
)

Mapped = dict[str, tuple[str, ...]]

VECTORS, _FLAGS = (STATE, ENVIRONMENT_STATE, ACTION), (SUCCESS, TERMINATED, TRUNCATED)


def resolve(layout: Layout, keys: Mapping[str, Any] | None) -> Mapped:
    """Our key -> the fields it is made of: the source's defaults, changed by `keys`.

    Args:
        layout: of the source.
        keys: {our key: field, list of fields in the order wanted, or None to leave the key out}.

    Raises:
        SpecError: an unknown field, no action or no observation, a mapping that cannot be meant.
    """
    mapped = dict(layout.defaults)
    for key, given in (keys or {}).items():
        names = [given] if isinstance(given, str) else given
        if names is not None and not (isinstance(names, list | tuple) and names and all(isinstance(n, str) for n in names)):
            raise SpecError(f"keys: {key}={given!r} does not work; give a field, a list of fields or, to leave it out, null")
        names = names or ()
        for name in names:
            if name in layout.left_out:
                raise SpecError(f"keys: {key} cannot be made of {name!r}, which {layout.left_out[name]}")
            if name not in layout.fields:
                raise SpecError(f"keys: the source has no field {name!r}; {did_you_mean(name, layout.fields)}")
        mapped[key] = tuple(names)
    mapped = {key: names for key, names in mapped.items() if names}
    for wanted, found in ((ACTION, ACTION in mapped), ("observation.", any(key.startswith("observation.") for key in mapped))):
        if not found:
            example = f"keys='{{{wanted}{'state' if wanted.endswith('.') else ''}: [FIELD, ...]}}'"
            available = ", ".join(layout.fields) or "none"
            raise SpecError(f"nothing says which fields are {wanted!r}: give {example}; the source's fields: {available}")
    return mapped


def convert(mapped: Mapped, arrays: Mapping[str, Array], layout: Layout, scales: dict[str, float]) -> dict[str, Array]:
    """Our arrays {key: [T, ...]} of one episode's fields.

    Args:
        mapped: our key -> fields. arrays: {field: [T, ...]}. layout: of the source.
        scales: what float images are multiplied with, by field; filled by the first episode and then adhered to.

    Raises:
        SpecError: fields of different lengths, or values that the key cannot hold.
    """
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise SpecError(f"the fields differ in their number of steps: {lengths}")
    return {key: _convert(key, names, arrays, layout, scales) for key, names in mapped.items()}


def _convert(key: str, names: Sequence[str], arrays: Mapping[str, Array], layout: Layout, scales: dict[str, float]) -> Array:
    first = arrays[names[0]]
    if names == (key,) and key in layout.specs:  # the source's vocabulary is ours
        return first
    if key in VECTORS or len(names) > 1:
        return np.concatenate([_vector(name, arrays[name]) for name in names], axis=1)
    if key.startswith(IMAGES):
        return _image(names[0], first, scales)
    if key.startswith(DEPTH):
        return _depth(names[0], first)
    if key == REWARD:
        return _scalar(key, names[0], first).astype(np.float32)
    if key in _FLAGS:
        flags = _scalar(key, names[0], first)
        if not np.isin(flags, (0, 1)).all():
            odd = flags[~np.isin(flags, (0, 1))][0]
            raise SpecError(f"{key} must be 0 or 1 and {names[0]!r} holds {odd:g}; leave it out with keys='{{{key}: null}}'")
        return flags.astype(bool)
    return first


def dataset_spec(
    mapped: Mapped, arrays: Mapping[str, Array], converted: Mapping[str, Array], layout: Layout, fps: float
) -> DatasetSpec:
    """Spec of what `convert` made of `arrays`, with the names of a vector's entries where they are known."""
    features = dict(infer_spec(converted, fps).features)
    for key, names in mapped.items():
        if names == (key,) and key in layout.specs:
            features[key] = layout.specs[key]
        elif key in VECTORS or len(names) > 1:
            entries = [entry for name in names for entry in _entries(name, arrays[name], layout, alone=len(names) == 1)]
            features[key] = replace(features[key], names=tuple(entries))
    return DatasetSpec(features, fps, layout.extra)


def _entries(name: str, array: Array, layout: Layout, alone: bool) -> list[str]:
    """Names of the entries of a field: the source's, else numbered, or none for a field that is a vector by itself."""
    count = int(np.prod(array.shape[1:]))
    known = layout.specs[name].names if name in layout.specs else ()
    if len(known) == count:
        return list(known)
    if alone:
        return []
    return [name] if count == 1 else [f"{name}.{i}" for i in range(count)]


def _vector(name: str, array: Array) -> Array:
    if array.dtype.kind not in "buif":
        raise SpecError(f"{name!r} holds {array.dtype} values, which make no vector of numbers")
    with np.errstate(over="ignore"):  # an overflow becomes inf, which the store refuses by name
        return array.reshape(len(array), int(np.prod(array.shape[1:]))).astype(np.float32)


def _scalar(key: str, name: str, array: Array) -> Array:
    if array.shape[1:] not in ((), (1,)):
        raise SpecError(f"{key} is one number a step and {name!r} has shape {list(array.shape)}")
    return array.reshape(-1)


def _image(name: str, array: Array, scales: dict[str, float]) -> Array:
    """uint8 [T, H, W, 3] of uint8 or of floats in 0..1 or 0..255, channels last or first."""
    if array.ndim == 4 and array.shape[1] == 3 and array.shape[3] != 3:
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[3] != 3:
        raise SpecError(f"{name!r} has shape {list(array.shape)}; a color image is [T, H, W, 3] or [T, 3, H, W]")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype.kind != "f":
        raise SpecError(f"{name!r} is {array.dtype}; a color image is uint8, or float in 0..1 or 0..255")
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    scale = scales.setdefault(name, 1.0 if high > 1 else 255.0)
    if not (low >= 0 and high * scale <= 255):
        raise SpecError(f"{name!r} has values from {low:g} to {high:g}, and the first episode's are in 0..{255 / scale:g}")
    return np.round(array * scale).astype(np.uint8)


def _depth(name: str, array: Array) -> Array:
    """float32 [T, H, W] of floats with or without a channel axis."""
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    if array.ndim != 3:
        raise SpecError(f"{name!r} has shape {list(array.shape)}; a depth image is [T, H, W] or [T, H, W, 1]")
    if array.dtype.kind != "f":
        raise SpecError(f"{name!r} is {array.dtype}, whose unit is not known; depth is float in metres")
    return array.astype(np.float32)
