"""Writing a LeRobotDataset v3.0 folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from robopolicy.data.episode_file import SUFFIX
from robopolicy.data.episodes import EpisodeStore
from robopolicy.data.info_file import check_spec
from robopolicy.data.lerobot.layout import (
    CHUNK_FILES,
    COUNTERS,
    DATA_PATH,
    EPISODES_PATH,
    INFO,
    OURS,
    SIDECAR,
    STATS,
    TASKS,
    VERSION,
    VIDEO_PATH,
    Place,
    is_image,
    tasks_table,
    to_arrow,
    write_json,
)
from robopolicy.data.lerobot.stats import Stats, aggregate, image_stats, vector_stats
from robopolicy.data.lerobot.video import ENCODINGS, VideoWriter
from robopolicy.data.manage import building, select_episodes
from robopolicy.data.table import OWN_COLUMNS
from robopolicy.spec import ACTION, TASK, Array, DatasetSpec, FeatureSpec, SpecError, did_you_mean

if TYPE_CHECKING:
    import pyarrow

PNG = "png"
DATA_FILE_MB, VIDEO_FILE_MB = 100, 200  # a file that has grown beyond is followed by another


def export_dataset(
    path: str | Path, out: str | Path, images: str = "h264", where: Mapping[str, Any] | None = None
) -> list[str]:
    """Write a dataset as the LeRobotDataset v3.0 folder `out`, which appears in one step; what was done, for people.

    Args:
        path: the dataset. out: a folder that does not exist yet.
        images: "h264" (4:4:4, crf 18), "av1" (4:2:0, crf 30), "h264_lossless" or "png": the last two are exact.
        where: {table column: allowed values, or the one} of the episodes to export; None for all.

    Raises:
        SpecError: an unknown `images`, or arrays with more axes than the format has. DatasetError: a damaged file.
    """
    if images not in (*ENCODINGS, PNG):
        raise SpecError(f"images={images!r} does not work; {did_you_mean(images, [*ENCODINGS, PNG])}")
    store = EpisodeStore(path)
    rows = select_episodes(store, where or {})
    if not rows:
        raise SpecError(f"{path} holds no episodes to export")
    with building(Path(out), resume=False) as folder:
        export = _Export(folder, store.spec, images)
        for row in tqdm(rows, desc="export", unit="episode", leave=False):
            columns = {name: store.table[name][row].as_py() for name in store.table.column_names if name not in OWN_COLUMNS}
            export.add(store.read(row), store.info(row), columns, store.files[row].name.removesuffix(SUFFIX))
        export.close()
    size = sum(file.stat().st_size for file in Path(out).rglob("*") if file.is_file())
    return [f"{out}: {len(rows)} episodes, {export.num_frames} frames, {size / 1e6:.1f} MB, images as {images}"]


@dataclass
class _Export:
    folder: Path
    spec: DatasetSpec
    images: str
    num_frames: int = 0
    tasks: dict[str, int] = field(default_factory=dict)
    episodes: list[dict[str, Any]] = field(default_factory=list)
    stats: list[dict[str, Stats]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.features = {key: _feature(key, feature, self.images, self.spec.fps) for key, feature in self.spec.features.items()}
        keys = [key for key, feature in self.features.items() if feature["dtype"] == "video"]
        self.videos: dict[str, tuple[Place, VideoWriter] | None] = dict.fromkeys(keys)
        self.data: tuple[Place, pyarrow.parquet.ParquetWriter] | None = None
        self.data_bytes = 0

    def add(self, arrays: Mapping[str, Array], info: Mapping[str, Any], columns: Mapping[str, Any], name: str) -> None:
        """Append one episode: its arrays, its info, the info as table columns and its name."""
        index, length = len(self.episodes), len(arrays[ACTION])
        task = str(info.get(TASK, ""))
        task_index = self.tasks.setdefault(task, len(self.tasks))
        steps = np.arange(length)
        arrays = dict(arrays)
        counters = {
            "timestamp": steps / self.spec.fps,
            "frame_index": steps,
            "episode_index": np.full(length, index),
            "index": self.num_frames + steps,
            "task_index": np.full(length, task_index),
        }
        counters = {key: value.astype(COUNTERS[key]) for key, value in counters.items()}
        stats = {
            key: image_stats(a) if is_image(key, self.spec.features[key]) else vector_stats(a) for key, a in arrays.items()
        }
        stats |= {key: vector_stats(value) for key, value in counters.items()}
        row: dict[str, Any] = {
            "episode_index": index,
            "tasks": [task],
            "length": length,
            "dataset_from_index": self.num_frames,
            "dataset_to_index": self.num_frames + length,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        row |= self._add_data({key: value for key, value in {**arrays, **counters}.items() if key not in self.videos})
        for key in self.videos:
            row |= self._add_video(key, arrays[key])
        row |= {f"stats/{key}/{stat}": value.tolist() for key, s in stats.items() for stat, value in s.items()}
        row |= {f"{OURS}{column}": value for column, value in columns.items()}
        row |= {f"{OURS}name": name, f"{OURS}info": json.dumps(info)}
        self.episodes.append(row)
        self.stats.append(stats)
        self.num_frames += length

    def close(self) -> None:
        """Finish all files and write the metadata."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        for open_file in (self.data, *self.videos.values()):
            if open_file is not None:
                open_file[1].close()
        names = dict.fromkeys(name for row in self.episodes for name in row)
        columns = {name: _column([row.get(name) for row in self.episodes]) for name in names}
        table = pa.table({name: column for name, column in columns.items() if not pa.types.is_null(column.type)})
        pq.write_table(table, _prepared(Place(0, 0).file(self.folder, EPISODES_PATH)))
        pq.write_table(tasks_table(self.tasks), self.folder / TASKS)
        stats = {key: aggregate([stats[key] for stats in self.stats]) for key in self.stats[0]}
        write_json(self.folder / STATS, {k: {n: v.tolist() for n, v in s.items()} for k, s in stats.items()})
        write_json(self.folder / SIDECAR, {"spec": check_spec(self.spec)})
        fps = self.spec.fps
        info = {
            "codebase_version": VERSION,
            "robot_type": None,
            "total_episodes": len(self.episodes),
            "total_frames": self.num_frames,
            "total_tasks": len(self.tasks),
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": DATA_FILE_MB,
            "video_files_size_in_mb": VIDEO_FILE_MB,
            "fps": int(fps) if fps == int(fps) else fps,
            "splits": {"train": f"0:{len(self.episodes)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self.videos else None,
            "features": {**self.features, **{k: {"dtype": d, "shape": [1], "names": None} for k, d in COUNTERS.items()}},
        }
        write_json(self.folder / INFO, info)

    def _add_data(self, arrays: Mapping[str, Array]) -> dict[str, int]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({key: to_arrow(array, self.features.get(key, {}).get("dtype")) for key, array in arrays.items()})
        if self.data is None or self.data_bytes + table.nbytes > DATA_FILE_MB * 2**20:
            if self.data is not None:
                self.data[1].close()
            place = self.data[0].after() if self.data is not None else Place(0, 0)
            self.data = place, pq.ParquetWriter(_prepared(place.file(self.folder, DATA_PATH)), table.schema)
            self.data_bytes = 0
        place, writer = self.data
        writer.write_table(table)
        self.data_bytes += table.nbytes
        return {"data/chunk_index": place.chunk_index, "data/file_index": place.file_index}

    def _add_video(self, key: str, frames: Array) -> dict[str, Any]:
        opened = self.videos[key]
        if opened is None or opened[1].num_bytes > VIDEO_FILE_MB * 2**20:
            if opened is not None:
                opened[1].close()
            place = opened[0].after() if opened is not None else Place(0, 0)
            file, size = _prepared(place.file(self.folder, VIDEO_PATH, video_key=key)), frames.shape[1:3]
            self.videos[key] = opened = place, VideoWriter(file, size, self.spec.fps, ENCODINGS[self.images])
        place, writer = opened
        first = writer.num_frames
        writer.add(frames)
        return {
            f"videos/{key}/chunk_index": place.chunk_index,
            f"videos/{key}/file_index": place.file_index,
            f"videos/{key}/from_timestamp": first / self.spec.fps,
            f"videos/{key}/to_timestamp": writer.num_frames / self.spec.fps,
        }


def _prepared(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def _feature(key: str, feature: FeatureSpec, images: str, fps: float) -> dict[str, Any]:
    """LeRobot's description of one key."""
    if not is_image(key, feature):
        if len(feature.shape) > 5:
            raise SpecError(f"{key!r} has {len(feature.shape)} axes; a LeRobotDataset holds up to 5")
        return {"dtype": feature.dtype, "shape": list(feature.shape) or [1], "names": list(feature.names) or None}
    height, width, channels = feature.shape
    described: dict[str, Any] = {"dtype": "image", "shape": [height, width, channels], "names": ["height", "width", "channels"]}
    if images == PNG:
        return described
    details = {"height": height, "width": width, "codec": ENCODINGS[images].codec, "pix_fmt": ENCODINGS[images].pix_fmt}
    details |= {"is_depth_map": False, "fps": fps, "channels": channels}
    return {**described, "dtype": "video", "info": {**{f"video.{k}": v for k, v in details.items()}, "has_audio": False}}


def _column(values: list[Any]) -> pyarrow.Array:
    import pyarrow as pa

    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        return pa.array([None if value is None else json.dumps(value) for value in values])
