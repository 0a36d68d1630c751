"""Reading a LeRobotDataset v3.0 folder, ours or another's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from robopolicy.data.episode_file import DatasetError
from robopolicy.data.episodes import EpisodeStore, EpisodeWriter
from robopolicy.data.lerobot.layout import (
    COUNTERS,
    DATA_PATH,
    INFO,
    OURS,
    SIDECAR,
    TASKS,
    VERSION,
    VIDEO_PATH,
    Place,
    decode_png,
    from_arrow,
    read_parquet,
    read_tasks,
)
from robopolicy.data.lerobot.video import VideoReader
from robopolicy.data.manage import building
from robopolicy.spec import ACTION, TASK, Array, DatasetSpec, Features, FeatureSpec

if TYPE_CHECKING:
    import pyarrow

_OBSERVATION = "observation."


def import_dataset(path: str | Path, out: str | Path) -> list[str]:
    """Make the dataset `out`, which appears in one step, of a LeRobotDataset v3.0 folder; what was done, for people.

    Raises:
        DatasetError: no such dataset, another version, or a damaged file. SpecError: no action or observation in it.
    """
    path = Path(path)
    source = _Import(path)
    with _complete(path), building(Path(out), resume=False) as folder:
        writer = EpisodeWriter(folder, source.spec)
        for arrays, info, name in tqdm(
            source.episodes(), desc="import", total=source.num_episodes, unit="episode", leave=False
        ):
            writer.add(arrays, info, name)
        store = EpisodeStore(folder)
    lines = [f"{out}: {len(store)} episodes, {int(store.lengths.sum())} steps"]
    return [*lines, *(f"  {key} is left out: a dataset holds no {kind} at every step" for key, kind in source.left_out.items())]


@contextmanager
def _complete(path: Path) -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise DatasetError(f"{path} lacks {error} in its metadata or data: it is no LeRobotDataset {VERSION}") from error


class _Import:
    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            info = json.loads((path / INFO).read_text())
            version = str(info["codebase_version"])
            described, self.fps = info["features"], float(info["fps"])
        except FileNotFoundError as error:
            raise DatasetError(f"{path} is no LeRobotDataset: it holds no meta/info.json") from error
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"{path / 'meta/info.json'} is damaged ({error}); restore it from a copy") from error
        if not version.startswith("v3."):
            raise DatasetError(f"{path} has version {version}; LeRobot converts it to {VERSION}, the version read here")
        if info.get("data_path", DATA_PATH) != DATA_PATH or info.get("video_path") not in (None, VIDEO_PATH):
            raise DatasetError(f"{path} keeps its files at {info['data_path']} and {info['video_path']}, not at {DATA_PATH}")
        self.num_episodes = int(info["total_episodes"])
        kept = {key: value for key, value in described.items() if key not in COUNTERS}
        self.left_out = {key: value["dtype"] for key, value in kept.items() if value["dtype"] in ("string", "audio")}
        self.described = {key: value for key, value in kept.items() if key not in self.left_out}
        self.spec = self._read_spec()
        self._videos: dict[str, VideoReader] = {}

    def episodes(self) -> Iterator[tuple[dict[str, Array], dict[str, Any], str]]:
        """Arrays, info and name of each episode."""
        tasks = {number: text for text, number in read_tasks(self.path / TASKS).items()}
        loaded, table = (-1, -1), None
        for row in self._rows():
            place = int(row["data/chunk_index"]), int(row["data/file_index"])
            if place != loaded:
                loaded, table = place, read_parquet(Place(*place).file(self.path, DATA_PATH))
                owner = np.asarray(table["episode_index"])
            at = np.flatnonzero(owner == row["episode_index"])
            if table is None or len(at) != row["length"]:
                raise DatasetError(f"{self.path}: episode {row['episode_index']} has {len(at)} of {row['length']} rows")
            steps = table.slice(int(at[0]), len(at))
            arrays = {key: self._array(key, steps, row) for key in self.described}
            stored = row.get(f"{OURS}info")
            info = json.loads(stored) if stored else {TASK: tasks.get(int(steps["task_index"][0].as_py()), "")}
            yield arrays, info, row.get(f"{OURS}name") or f"episode_{row['episode_index']:06d}"

    def _array(self, key: str, steps: pyarrow.Table, row: Mapping[str, Any]) -> Array:
        feature, kind = self.spec.features[key], self.described[key]["dtype"]
        if kind == "video":
            place = Place(int(row[f"videos/{key}/chunk_index"]), int(row[f"videos/{key}/file_index"]))
            file = place.file(self.path, VIDEO_PATH, video_key=key)
            if key not in self._videos or self._videos[key].path != file:
                self._videos[key] = VideoReader(file, self.fps)
            array = self._videos[key].read(round(row[f"videos/{key}/from_timestamp"] * self.fps), len(steps))
        elif kind == "image":
            array = np.stack([decode_png(image.as_py()["bytes"]) for image in steps[key]])
        else:
            array = from_arrow(steps[key]).astype(feature.dtype, copy=False).reshape(len(steps), *feature.shape)
        return array

    def _rows(self) -> Iterator[dict[str, Any]]:
        for file in sorted((self.path / "meta/episodes").glob("*/*.parquet")):
            table = read_parquet(file)
            yield from table.select([name for name in table.column_names if not name.startswith("stats/")]).to_pylist()

    def _read_spec(self) -> DatasetSpec:
        if (self.path / SIDECAR).exists():
            ours = DatasetSpec.from_dict(json.loads((self.path / SIDECAR).read_text())["spec"])
            if set(ours.features) == set(self.described):  # LeRobot's tools add and remove keys
                return ours
        features: Features = {}
        for key, described in self.described.items():
            shape, dtype = tuple(described["shape"]), described["dtype"]
            names = described.get("names")
            if dtype in ("video", "image"):
                if shape[0] == 3 and shape[-1] != 3:
                    shape = (*shape[1:], 3)
                features[key] = FeatureSpec(shape, "uint8")
                continue
            if shape == (1,) and key != ACTION and not key.startswith(_OBSERVATION):
                shape = ()
            if isinstance(names, Mapping) and len(names) == 1:  # {"motors": [...]}
                names = next(iter(names.values()))
            fits = isinstance(names, list) and len(shape) == 1 and len(names) == shape[0]
            features[key] = FeatureSpec(shape, dtype, names=tuple(map(str, names)) if fits else ())
        return DatasetSpec(features, self.fps)
