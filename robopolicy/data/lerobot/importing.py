"""Reading a LeRobotDataset folder, ours or another's: v3.0 (episodes in shared files) and v2.0/v2.1 (files of their own)."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from robopolicy.data.episode_file import DatasetError
from robopolicy.data.importers.mapping import VECTORS
from robopolicy.data.importers.source import Episode, Layout, camera_defaults
from robopolicy.data.lerobot.layout import (
    COUNTERS,
    DATA_PATH,
    INFO,
    OURS,
    SIDECAR,
    TASKS,
    V2_DATA_PATH,
    V2_EPISODES,
    V2_TASKS,
    V2_VIDEO_PATH,
    VERSION,
    VIDEO_PATH,
    Place,
    decode_png,
    from_arrow,
    read_jsonl,
    read_parquet,
    read_tasks,
)
from robopolicy.data.lerobot.video import VideoReader
from robopolicy.spec import ACTION, IMAGES, TASK, Array, DatasetSpec, Features, FeatureSpec, SpecError, image_key

if TYPE_CHECKING:
    import pyarrow

logger = logging.getLogger(__name__)

_OBSERVATION = "observation."
Row = Mapping[str, Any]


class LeRobotSource:
    """A LeRobotDataset folder.

    Raises:
        DatasetError: no such dataset, another version, or damaged metadata.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            info = json.loads((path / INFO).read_text())
            version = str(info["codebase_version"])
            described, self.fps = info["features"], float(info["fps"])
            num_episodes = int(info["total_episodes"])
            kept = {key: value for key, value in described.items() if key not in COUNTERS}
            text = {key: value["dtype"] for key, value in kept.items() if value["dtype"] in ("string", "audio")}
            self.described = {key: value for key, value in kept.items() if key not in text}
            self._files = _files(path, version, info)
            own = self._own_spec()
            spec = own or self._foreign_spec()
        except FileNotFoundError as error:
            raise DatasetError(f"{path} is no LeRobotDataset: it holds no {INFO}") from error
        except (DatasetError, SpecError):
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"{path / INFO} is damaged ({error}); restore it from a copy") from error
        self.layout = Layout(
            fields=tuple(self.described),
            defaults={key: (key,) for key in self.described} if own else _foreign_defaults(self.described),
            num_episodes=num_episodes,
            fps=spec.fps,
            specs=spec.features,
            extra=spec.extra,
            left_out={key: f"holds {kind}, which a dataset does not at every step" for key, kind in text.items()},
        )
        self._videos: dict[str, VideoReader] = {}
        self._told_tasks = False

    def episodes(self, fields: Collection[str]) -> Iterator[Episode]:
        """Episodes in order; the names and info that our export kept are restored."""
        with self._complete():
            tasks = self._files.tasks()
            for row in self._files.rows():
                number = int(row["episode_index"])
                steps = self._files.steps(row)
                if len(steps) != row["length"]:
                    raise DatasetError(f"{self.path}: episode {number} has {len(steps)} of {row['length']} rows")
                if not len(steps):
                    raise DatasetError(f"{self.path}: episode {number} has no steps")
                arrays = {key: self._array(key, steps, row) for key in fields}
                stored = row.get(f"{OURS}info")
                info = json.loads(stored) if stored else {TASK: self._task(number, steps, tasks)}
                yield Episode(arrays, info, f"episode {number}", row.get(f"{OURS}name") or f"episode_{number:06d}")

    def _task(self, number: int, steps: pyarrow.Table, tasks: Mapping[int, str]) -> str:
        """The first step's task: an episode has one here."""
        found = steps["task_index"].unique().to_pylist()
        if len(found) > 1 and not self._told_tasks:
            self._told_tasks = True
            logger.warning(
                "%s: episode %d (and perhaps others) has %d tasks, of which the first is kept: %s",
                self.path,
                number,
                len(found),
                ", ".join(repr(tasks.get(int(index), "")) for index in found),
            )
        return tasks.get(int(found[0]), "")

    @contextmanager
    def _complete(self) -> Iterator[None]:
        try:
            yield
        except KeyError as error:
            raise DatasetError(f"{self.path} lacks {error} in its metadata or data, a LeRobotDataset has it") from error

    def _array(self, key: str, steps: pyarrow.Table, row: Row) -> Array:
        feature, kind = self.layout.specs[key], self.described[key]["dtype"]
        if kind == "video":
            file, start = self._files.video(row, key)
            if key not in self._videos or self._videos[key].path != file:
                self._videos[key] = VideoReader(file, self.fps)
            return self._videos[key].read(round(start * self.fps), len(steps))
        if kind == "image":
            return np.stack([decode_png(self._image(image)) for image in steps[key].to_pylist()])
        values = from_arrow(steps[key])
        if values.size != len(steps) * int(np.prod(feature.shape)):
            label = f"{self.path}: episode {row['episode_index']}"
            raise DatasetError(f"{label}: {key!r} is not {list(feature.shape)} at every step")
        with np.errstate(over="ignore"):  # an overflow becomes inf, which the store refuses by name
            return values.astype(feature.dtype, copy=False).reshape(len(steps), *feature.shape)

    def _image(self, image: Mapping[str, Any]) -> bytes:
        """The encoded image of a parquet cell: inside it, or in a file of the dataset."""
        if image["bytes"] is not None:
            return image["bytes"]
        file = (self.path / str(image["path"])).resolve()
        if not file.is_relative_to(self.path.resolve()) or not file.is_file():
            raise DatasetError(f"{self.path} lacks the image {image['path']}; restore it from a copy")
        return file.read_bytes()

    def _own_spec(self) -> DatasetSpec | None:
        """What our export kept, where it still fits."""
        if not (self.path / SIDECAR).exists():
            return None
        ours = DatasetSpec.from_dict(json.loads((self.path / SIDECAR).read_text())["spec"])
        return ours if set(ours.features) == set(self.described) else None  # LeRobot's tools add and remove keys

    def _foreign_spec(self) -> DatasetSpec:
        features: Features = {}
        for key, described in self.described.items():
            shape, dtype = tuple(described["shape"]), described["dtype"]
            names = described.get("names")
            if dtype in ("video", "image"):
                if shape[0] == 3 and shape[-1] != 3:
                    shape = (*shape[1:], 3)
                features[key] = FeatureSpec(shape, "uint8")
                continue
            if key in VECTORS:
                shape, dtype = (int(np.prod(shape)),), "float32"
            elif dtype == "float64":
                dtype = "float32"
            if shape == (1,) and key != ACTION and not key.startswith(_OBSERVATION):
                shape = ()
            if isinstance(names, Mapping) and len(names) == 1:  # {"motors": [...]}
                names = next(iter(names.values()))
            fits = isinstance(names, list) and len(shape) == 1 and len(names) == shape[0]
            features[key] = FeatureSpec(shape, dtype, names=tuple(map(str, names)) if fits else ())
        return DatasetSpec(features, self.fps)


def _foreign_defaults(described: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Our key -> its field: the same name, but cameras that are not called as ours ("observation.image" is camera front)."""
    names = {key.removeprefix(_OBSERVATION): key for key, value in described.items() if _is_other_camera(key, value["dtype"])}
    defaults: dict[str, tuple[str, ...]] = {key: (key,) for key in described}
    for key, (name,) in camera_defaults(names, ()).items():
        free = next((each for each in (key, image_key(name)) if each not in defaults), None)
        if free is not None:
            defaults[free] = defaults.pop(names[name])
    return defaults


def _is_other_camera(key: str, dtype: str) -> bool:
    return dtype in ("video", "image") and key.startswith(_OBSERVATION) and not key.startswith(IMAGES)


class _Files(Protocol):
    """Where a version of the format keeps what."""

    def tasks(self) -> dict[int, str]:
        """{number: text}."""

    def rows(self) -> Iterator[Row]:
        """What is known of each episode, in order."""

    def steps(self, row: Row) -> pyarrow.Table:
        """The steps of an episode."""

    def video(self, row: Row, key: str) -> tuple[Path, float]:
        """The video of an episode's camera, and the time (s) in it at which the episode starts."""


def _files(path: Path, version: str, info: Mapping[str, Any]) -> _Files:
    major = version[:3]
    if major not in ("v3.", "v2."):
        raise DatasetError(f"{path} has version {version}; {VERSION}, v2.1 and v2.0 are read here: LeRobot converts to them")
    data_path, video_path = (DATA_PATH, VIDEO_PATH) if major == "v3." else (V2_DATA_PATH, V2_VIDEO_PATH)
    if info.get("data_path", data_path) != data_path or info.get("video_path") not in (None, video_path):
        raise DatasetError(f"{path} keeps its files at {info['data_path']} and {info['video_path']}, not at {data_path}")
    return _SharedFiles(path) if major == "v3." else _OwnFiles(path, int(info["chunks_size"]))


class _SharedFiles:
    """v3.0: many episodes in a file, one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._loaded: tuple[tuple[int, int], pyarrow.Table, Array] | None = None

    def tasks(self) -> dict[int, str]:
        return {number: text for text, number in read_tasks(self.path / TASKS).items()}

    def rows(self) -> Iterator[Row]:
        for file in sorted((self.path / "meta/episodes").glob("*/*.parquet")):
            table = read_parquet(file)
            yield from table.select([name for name in table.column_names if not name.startswith("stats/")]).to_pylist()

    def steps(self, row: Row) -> pyarrow.Table:
        place = int(row["data/chunk_index"]), int(row["data/file_index"])
        if self._loaded is None or self._loaded[0] != place:
            table = read_parquet(Place(*place).file(self.path, DATA_PATH))
            self._loaded = place, table, np.asarray(table["episode_index"])
        at = np.flatnonzero(self._loaded[2] == row["episode_index"])
        return self._loaded[1].slice(int(at[0]) if len(at) else 0, len(at))

    def video(self, row: Row, key: str) -> tuple[Path, float]:
        place = Place(int(row[f"videos/{key}/chunk_index"]), int(row[f"videos/{key}/file_index"]))
        return place.file(self.path, VIDEO_PATH, video_key=key), float(row[f"videos/{key}/from_timestamp"])


class _OwnFiles:
    """v2.0 and v2.1: each episode in a file of its own, metadata in lines of JSON."""

    def __init__(self, path: Path, chunks_size: int) -> None:
        self.path, self._chunk = path, chunks_size

    def tasks(self) -> dict[int, str]:
        return {int(line["task_index"]): str(line["task"]) for line in read_jsonl(self.path / V2_TASKS)}

    def rows(self) -> Iterator[Row]:
        yield from sorted(read_jsonl(self.path / V2_EPISODES), key=lambda row: int(row["episode_index"]))

    def steps(self, row: Row) -> pyarrow.Table:
        return read_parquet(self._file(row, V2_DATA_PATH))

    def video(self, row: Row, key: str) -> tuple[Path, float]:
        return self._file(row, V2_VIDEO_PATH, video_key=key), 0.0

    def _file(self, row: Row, pattern: str, **keys: str) -> Path:
        number = int(row["episode_index"])
        return self.path / pattern.format(episode_chunk=number // self._chunk, episode_index=number, **keys)
