"""The dataset folder: one zarr file per episode, a derived table of all episodes, and the spec.

    <dataset>/info.json                   format, version and DatasetSpec
    <dataset>/episodes/<name>.zarr.zip    zarr v3 group: one array [T, ...] per key; the info of the episode as attributes
    <dataset>/episodes.parquet            one row per episode; derived from the files, rebuilt when it does not match them

Each of these files holds its own checksum (see seal.py), which `robopolicy data check` verifies.

Append-only. An episode file appears by a rename, so a writer killed at any moment leaves every finished episode, and
several processes may write at once. Any zarr reader opens an episode: `zarr.open_group(zarr.storage.ZipStore(path))`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robopolicy.data.episode_file import SUFFIX, DatasetError, damaged, describe, label, pack, unpack
from robopolicy.data.info_file import INFO, NAME, check_spec, infer_spec, info_content, read_spec, spec_difference
from robopolicy.data.table import OWN_COLUMNS, read_table
from robopolicy.files import atomic_write, is_temporary, locked, plain
from robopolicy.spec import ACTION, FAULT, TASK, Array, DatasetSpec, FeatureSpec, SpecError, did_you_mean

if TYPE_CHECKING:
    import pyarrow

TABLE, LOCK, EPISODES = "episodes.parquet", ".lock", "episodes"


class EpisodeWriter:
    """Appends episodes to a dataset folder, created when missing. Safe beside other writers and readers.

    Raises:
        SpecError: a spec without actions or observations, or another one than the existing dataset has.
        DatasetError: the path holds something else, which is left as it was.
    """

    def __init__(self, path: str | Path, spec: DatasetSpec) -> None:
        given = check_spec(spec)
        self.path, self.spec = Path(path), spec
        _check_ours(self.path)
        (self.path / EPISODES).mkdir(parents=True, exist_ok=True)
        with locked(self.path / LOCK):
            for folder in (self.path, self.path / EPISODES):
                for name in filter(is_temporary, os.listdir(folder)):  # of a killed process: the living write under the lock
                    (folder / name).unlink()
            if (self.path / INFO).exists():
                if difference := spec_difference(spec, read_spec(self.path)):
                    raise SpecError(f"{self.path} has another spec: {difference}; write to a new folder")
            else:
                atomic_write(self.path / INFO, info_content(given))
        self._next = 0

    def has(self, name: str) -> bool:
        """Whether a finished episode of that name exists."""
        return self._file(name).exists()

    def add(
        self,
        arrays: Mapping[str, Array],
        info: Mapping[str, Any] | None = None,
        name: str | None = None,
        exist_ok: bool = False,
    ) -> Path:
        """Append one episode and return its file.

        Args:
            arrays: {key: array [T, ...]}, exactly the keys of the spec.
            info: JSON values that describe the episode: task, success, seed, randomization, source.
            name: file name without suffix, e.g. "seed_000123"; None takes the next free "episode_000000".
            exist_ok: keep an episode of that name as it is instead of raising.

        Raises:
            SpecError: a key is missing, unknown, of another shape, dtype or length, or not finite; the info holds what
                JSON does not; the name is taken. Nothing is written then.
            OSError: the disk is full, say; no part of the episode is left, and the dataset is as it was.
        """
        title = f"episode {name or '(unnamed)'}"
        if name is not None and not NAME.fullmatch(name):
            raise SpecError(f"{title}: a name holds letters, digits, '_', '-' and '.' and starts with neither '-' nor '.'")
        attributes = plain(info or {}, where=f"{title}: info", error=SpecError, nonfinite="refuse")
        for column in OWN_COLUMNS:
            if column in attributes:
                raise SpecError(f"{title}: info field {column!r} is a column of the store itself; call it 'source_{column}'")
        data = pack(check_episode(arrays, self.spec, title), attributes)
        with locked(self.path / LOCK):
            if name is None:
                self._next = next(n for n in itertools.count(self._next) if not self.has(f"episode_{n:06d}"))
                name = f"episode_{self._next:06d}"
            if not self.has(name):
                self._write(name, data)
            elif not exist_ok:
                raise SpecError(f"{title} exists in {self.path}: give another name, or exist_ok=True to keep what is there")
        return self._file(name)

    def _write(self, name: str, data: bytes) -> None:
        file = self._file(name)
        try:
            atomic_write(file, label(data, name))
        except OSError as error:
            text = f"{error.strerror}: no part of episode {name} is left and finished ones are intact; make room and go on"
            raise OSError(error.errno, text, str(file)) from error

    def _file(self, name: str) -> Path:
        return self.path / EPISODES / f"{name}{SUFFIX}"


class EpisodeStore:
    """Read access to the finished episodes of a dataset folder, sorted by file name, as they were at opening.

    Attributes:
        path: the folder. spec: its DatasetSpec. files: path of each episode [E].
        table: pyarrow.Table, a row per episode: file, length, checksum and the info, nested fields as "a.b".
        lengths: steps of each episode, int64 [E].

    Raises:
        DatasetError: no such folder, not a dataset, one of a newer version, or a damaged file, which it names.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.spec = read_spec(self.path)
        self.table: pyarrow.Table = read_table(self.path / TABLE, self.path / EPISODES, self.path / LOCK)
        self.files = [self.path / EPISODES / name for name in self.table["file"].to_pylist()]
        self.lengths: Array = np.asarray(self.table["length"].to_pylist(), np.int64)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def hash(self) -> str:
        """sha256 (hex) over the spec and the files' names and contents: equal data has an equal hash wherever it lies."""
        content = [check_spec(self.spec), self.table["file"].to_pylist(), self.table["checksum"].to_pylist()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def faults(self) -> list[str]:
        """Of each episode, why its last step teaches nothing: "" where all is well, or nobody recorded it."""
        known = FAULT in self.table.column_names
        return [str(fault or "") for fault in self.table[FAULT].to_pylist()] if known else [""] * len(self)

    def read(self, index: int, keys: Iterable[str] | None = None, start: int = 0, stop: int | None = None) -> dict[str, Array]:
        """Arrays {key: [T, ...]} of one episode, all keys or only `keys`, verified against their checksums.

        start, stop: the steps wanted, as of a slice; only the chunks they lie in are read.

        Raises:
            SpecError: the dataset has no such key.
            DatasetError: the file is damaged or does not fit the spec.
        """
        chosen = list(self.spec.features if keys is None else keys)
        for key in chosen:
            if key not in self.spec.features:
                raise SpecError(f"{self.path} has no key {key!r}; {did_you_mean(key, self.spec.features)}")
        return read_file(self.files[index], self.spec, int(self.lengths[index]), chosen, start, stop)

    def info(self, index: int) -> dict[str, Any]:
        """What describes one episode: task, success, seed, randomization, source, ..."""
        return describe(self.files[index])[1]


def write_episodes(
    path: str | Path, episodes: Iterable[Mapping[str, Any]], fps: float, spec: DatasetSpec | None = None
) -> list[Path]:
    """Append recorded episodes to a dataset, created when missing, for any state and action dimension.

    Args:
        path: the dataset folder.
        episodes: each {key: array [T, ...]} with ACTION and at least one observation key; float64 becomes float32. Text,
            single numbers, None and mappings (TASK, success, seed, randomization, ...) describe the episode as a whole.
        fps: rate of the steps (Hz).
        spec: what the arrays must fit; None takes the existing dataset's, or infers it from the first episode.

    Returns:
        The file of each episode.

    Raises:
        SpecError: an episode that does not fit, named by its position; those before it are written.
    """
    writer: EpisodeWriter | None = None
    files = []
    for index, episode in enumerate(episodes):
        if not isinstance(episode, Mapping):
            raise SpecError(f"episode {index} is a {type(episode).__name__}, expected {{key: array [T, ...]}}")
        arrays, info = _split(episode)
        if writer is None:
            if spec is None and (Path(path) / INFO).exists():
                spec = read_spec(Path(path))
            try:
                spec = spec or infer_spec(arrays, fps)
                if float(fps) != spec.fps:
                    raise SpecError(f"fps={fps} was given, the spec says fps={spec.fps}")
                writer = EpisodeWriter(path, spec)
            except SpecError as error:
                raise SpecError(f"episode {index}: {error}") from error
        try:
            files.append(writer.add({key: _adopt(array, writer.spec.features.get(key)) for key, array in arrays.items()}, info))
        except SpecError as error:
            raise SpecError(str(error).replace("episode (unnamed)", f"episode {index}", 1)) from error
    if writer is None:
        raise SpecError("no episodes were given")
    return files


def _check_ours(path: Path) -> None:
    """Raises DatasetError where `path` is neither a dataset nor a folder that may become one."""
    if not path.exists():
        return
    if not path.is_dir():
        raise DatasetError(f"{path} is a file; give the path of a dataset folder or of one to create")
    if (path / INFO).exists():
        read_spec(path)
        return
    found = [name for name in os.listdir(path) if name not in (INFO, TABLE, LOCK, EPISODES)]
    if (path / EPISODES).exists():
        found += [f"{EPISODES}/{name}" for name in os.listdir(path / EPISODES) if not name.endswith(SUFFIX)]
    if strange := sorted(name for name in found if not is_temporary(Path(name).name)):
        names = ", ".join(strange[:5]) + (", ..." if len(strange) > 5 else "")
        raise DatasetError(
            f"{path} is no dataset and holds other files ({names}); give a folder that is empty or to be created"
        )


def read_file(
    file: Path,
    spec: DatasetSpec,
    length: int,
    keys: Iterable[str] | None = None,
    start: int = 0,
    stop: int | None = None,
) -> dict[str, Array]:
    """Arrays of an episode file of `length` steps that fit `spec`, see EpisodeStore.read. Raises DatasetError otherwise."""
    arrays = unpack(file, spec.features if keys is None else keys, start, stop)
    steps = len(range(*slice(start, stop).indices(length)))
    for key, array in arrays.items():
        feature = spec.features[key]
        if array.shape != (steps, *feature.shape) or array.dtype != feature.dtype:
            raise damaged(file, f"{key!r} is {array.dtype} {list(array.shape)}, expected {feature.dtype} of {steps} steps")
    return arrays


def check_episode(arrays: Mapping[str, Array], spec: DatasetSpec, label: str) -> dict[str, Array]:
    """`arrays` as numpy arrays in the spec's order when they fit it.

    Raises:
        SpecError: starting with `label` and naming the key, what is wrong and what would fit.
    """
    for key in arrays:
        if key not in spec.features:
            raise SpecError(f"{label}: unknown key {key!r}; {did_you_mean(key, spec.features)}")
    checked: dict[str, Array] = {}
    for key, feature in spec.features.items():
        if key not in arrays:
            raise SpecError(f"{label}: {key!r} is missing; given: {sorted(arrays)}, expected: {sorted(spec.features)}")
        try:
            checked[key] = feature.check(key, arrays[key], leading=1)
        except SpecError as error:
            raise SpecError(f"{label}: {error}") from error
    lengths = {key: len(array) for key, array in checked.items()}
    if len(set(lengths.values())) > 1:
        raise SpecError(f"{label}: keys differ in their number of steps: {lengths}; record every key at every step")
    if not lengths[ACTION]:
        raise SpecError(f"{label}: it has no steps; leave it out")
    return checked


def _split(episode: Mapping[str, Any]) -> tuple[dict[str, Array], dict[str, Any]]:
    """Arrays with a time axis, and what describes the episode as a whole."""
    arrays: dict[str, Array] = {}
    info: dict[str, Any] = {TASK: ""}
    for key, value in episode.items():
        whole = value is None or isinstance(value, str | Mapping) or np.ndim(value) == 0
        if whole:
            info[key] = value
        else:
            arrays[key] = np.asarray(value)
    return arrays, info


def _adopt(array: Array, feature: FeatureSpec | None) -> Array:
    """`array` in the feature's precision and byte order where only those differ."""
    if feature is None or (array.dtype.name, feature.dtype) not in ((feature.dtype, feature.dtype), ("float64", "float32")):
        return array
    with np.errstate(over="ignore"):  # an overflow becomes inf, which the check refuses by name
        return array.astype(feature.dtype, copy=False)
