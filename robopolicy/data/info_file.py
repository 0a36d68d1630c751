"""A dataset's info.json: what format it has, the spec of its arrays, and where merged and split datasets come from."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.data.episode_file import DatasetError
from robopolicy.data.seal import BLANK, is_intact, seal
from robopolicy.files import plain
from robopolicy.spec import ACTION, Array, DatasetSpec, FeatureSpec, SpecError

FORMAT, VERSION = "robopolicy-dataset", 1
INFO = "info.json"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")  # of keys and episodes
_DTYPES = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64")


def infer_spec(arrays: Mapping[str, Array], fps: float) -> DatasetSpec:
    """Spec of {key: array [T, ...]}: per-step shapes, dtypes kept but float64, which becomes float32."""
    features = {}
    for key, array in arrays.items():
        if array.dtype.name not in _DTYPES:
            raise SpecError(f"{key!r} has dtype {array.dtype}; give numbers of equal shape at every step")
        dtype = "float32" if array.dtype == np.float64 else array.dtype.name
        features[key] = FeatureSpec(shape=array.shape[1:], dtype=dtype)
    return DatasetSpec(features=features, fps=float(fps))


def check_spec(spec: DatasetSpec) -> dict[str, Any]:
    """JSON form of a spec that a dataset can have.

    Raises:
        SpecError: no action, no observation, a rate, key or dtype that cannot be stored.
    """
    if ACTION not in spec.features:
        raise SpecError(f"no {ACTION!r} among the keys {sorted(spec.features)}")
    if not spec.observation:
        raise SpecError(f"no key that starts with 'observation.' among {sorted(spec.features)}")
    if not (math.isfinite(spec.fps) and spec.fps > 0):
        raise SpecError(f"fps={spec.fps} must be a positive rate in Hz")
    for key, feature in spec.features.items():
        if not NAME.fullmatch(key):
            raise SpecError(f"key {key!r} holds a character that a key cannot; use letters, digits, '.', '_' and '-'")
        if np.dtype(feature.dtype).name not in _DTYPES:
            raise SpecError(
                f"{key!r} holds {feature.dtype} values; give numbers of equal shape per step ({', '.join(_DTYPES)})"
            )
    return plain(spec.to_dict(), where="spec", error=SpecError, nonfinite="refuse")


def read_spec(path: str | Path) -> DatasetSpec:
    """Spec of an existing dataset.

    Raises:
        DatasetError: no such folder, not a dataset, or one of a newer version.
    """
    return DatasetSpec.from_dict(read_info(path)["spec"])


def read_info(path: str | Path) -> dict[str, Any]:
    """Content of a dataset's info.json: format, version, spec and, of merged and split datasets, sources.

    Raises:
        DatasetError: as `read_spec`.
    """
    path = Path(path)
    if not path.is_dir():
        raise DatasetError(f"no dataset at {path}: the folder does not exist")
    try:
        data = (path / INFO).read_bytes()
        if is_intact(data) is False:
            raise ValueError("its checksum differs; where you changed it on purpose, remove the line 'seal'")
        content = json.loads(data)
        kind = content.get("format") if isinstance(content, dict) else None
        if kind != FORMAT:
            held = f"a {kind!r}, expected a {FORMAT!r}" if kind else f"not a dataset: its {INFO} is of another program"
            raise DatasetError(f"{path} is {held}")
        if (version := int(content["version"])) > VERSION:
            raise DatasetError(f"{path} has version {version}, this robopolicy reads up to {VERSION}: update robopolicy")
        DatasetSpec.from_dict(content["spec"])
        return content
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is not a dataset: it holds no {INFO}") from error
    except DatasetError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{path / INFO} is damaged ({error}); restore it from a copy, the episodes are intact") from error


def info_content(spec: Mapping[str, Any], **further: Any) -> bytes:
    """Content of an info.json: the JSON form of a spec and further JSON values, sealed."""
    content = {"format": FORMAT, "version": VERSION, "spec": spec, **further, "seal": BLANK}
    return seal(json.dumps(content, indent=2).encode())


def verify_info(path: Path) -> None:
    """Check every byte of a dataset's info.json. Raises DatasetError when it is not what was written."""
    content, data = read_info(path), (path / INFO).read_bytes()
    if is_intact(data) is None and (
        set(content) != {"format", "version", "spec"} or json.dumps(content, indent=2).encode() != data
    ):
        raise DatasetError(f"{path / INFO} is damaged (no writer makes such a file); restore it from a copy")


def spec_difference(given: DatasetSpec, found: DatasetSpec) -> str:
    """The first difference between two specs, in words; "" where they are equal."""
    a, b = check_spec(given), check_spec(found)
    return "" if a == b else _difference(a, b)


def _difference(given: Any, found: Any, where: str = "") -> str:
    """The first place where two JSON values differ, in words."""
    if isinstance(given, dict) and isinstance(found, dict):
        for key in [*given, *(key for key in found if key not in given)]:
            name = f"{where}.{key}" if where else key
            if key not in found or key not in given:
                return f"{name} is only in the {'one given' if key in given else 'dataset'}"
            if given[key] != found[key]:
                return _difference(given[key], found[key], name)
    return f"{where} is {given!r} in the one given and {found!r} in the dataset"
