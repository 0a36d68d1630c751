"""Where LeRobotDataset v3.0, and v2.1 before it, keeps what, and how arrays become its parquet columns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robopolicy.data.episode_file import DatasetError
from robopolicy.spec import IMAGES, Array, FeatureSpec

if TYPE_CHECKING:
    import pyarrow

VERSION = "v3.0"
CHUNK_FILES = 1000  # files per chunk folder
_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA_PATH, VIDEO_PATH = f"data/{_FILE}.parquet", f"videos/{{video_key}}/{_FILE}.mp4"
EPISODES_PATH = f"meta/episodes/{_FILE}.parquet"
INFO, TASKS, STATS = "meta/info.json", "meta/tasks.parquet", "meta/stats.json"
V2_DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
V2_VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
V2_EPISODES, V2_TASKS = "meta/episodes.jsonl", "meta/tasks.jsonl"
SIDECAR = "meta/robopolicy.json"
OURS = "robopolicy/"  # prefix of our columns of meta/episodes
_INDEX = "__index_level_0__"
COUNTERS = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64", "task_index": "int64"}


@dataclass(frozen=True)
class Place:
    """One of a row of files."""

    chunk_index: int
    file_index: int

    def after(self) -> Place:
        """The next one."""
        at = self.chunk_index * CHUNK_FILES + self.file_index + 1
        return Place(at // CHUNK_FILES, at % CHUNK_FILES)

    def file(self, folder: Path, pattern: str, **keys: str) -> Path:
        """Its path."""
        return folder / pattern.format(chunk_index=self.chunk_index, file_index=self.file_index, **keys)


def is_image(key: str, feature: FeatureSpec) -> bool:
    """Whether a key becomes video or PNG."""
    return key.startswith(IMAGES) and feature.dtype == "uint8" and len(feature.shape) == 3 and feature.shape[-1] == 3


def to_arrow(array: Array, dtype: str | None) -> pyarrow.Array:
    """Values [T], fixed lists for [T, D], nested lists beyond; images [T, H, W, 3] as PNG."""
    import pyarrow as pa

    if dtype == "image":
        rows = [{"bytes": _encode_png(image), "path": None} for image in array]
        return pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    flat = pa.array(np.ascontiguousarray(array).reshape(-1))
    if array.ndim == 1 or array.shape[1:] == (1,):
        return flat
    if array.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(flat, array.shape[1])
    for size in reversed(array.shape[1:]):
        flat = pa.ListArray.from_arrays(pa.array(np.arange(0, len(flat) + 1, size), pa.int32()), flat)
    return flat


def from_arrow(column: pyarrow.ChunkedArray) -> Array:
    """All numbers in a column of (nested) lists, in order."""
    import pyarrow as pa

    array = column.combine_chunks()
    while pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        array = array.flatten()
    return array.to_numpy(zero_copy_only=False)


def _encode_png(image: Array) -> bytes:
    import cv2

    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def decode_png(data: bytes) -> Array:
    """The image uint8 [H, W, 3] in a PNG."""
    import cv2

    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise DatasetError("an image is no PNG that can be decoded; restore the dataset from a copy")
    return np.ascontiguousarray(image[..., ::-1])


def tasks_table(tasks: Mapping[str, int]) -> pyarrow.Table:
    """The tasks as pandas stores a frame with the texts as its index."""
    import pyarrow as pa

    column = {"metadata": None}
    numbers = {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64", **column}
    texts = {"name": None, "field_name": _INDEX, "pandas_type": "unicode", "numpy_type": "object", **column}
    pandas = {"index_columns": [_INDEX], "column_indexes": [], "columns": [numbers, texts], "pandas_version": "2.0.0"}
    table = pa.table({"task_index": pa.array(list(tasks.values()), pa.int64()), _INDEX: pa.array(list(tasks), pa.string())})
    return table.replace_schema_metadata({b"pandas": json.dumps(pandas).encode()})


def read_tasks(file: Path) -> dict[str, int]:
    """{text: number} of the tasks."""
    table = read_parquet(file)
    texts = next(name for name in table.column_names if name != "task_index")
    return dict(zip(table[texts].to_pylist(), table["task_index"].to_pylist(), strict=True))


def read_parquet(file: Path) -> pyarrow.Table:
    """The whole table. Raises DatasetError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file).read()
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{file} cannot be read ({error}); restore it from a copy") from error


def read_jsonl(file: Path) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines. Raises DatasetError."""
    try:
        return [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file} cannot be read ({error}); restore it from a copy") from error


def write_json(file: Path, value: Any) -> None:
    """As LeRobot writes it."""
    file.write_text(json.dumps(value, indent=4, ensure_ascii=False))
