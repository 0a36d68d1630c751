"""Replay buffers of diffusion_policy: a zarr group (v2, or v3), in a folder or a .zarr.zip.

    meta/episode_ends   [E] step after the last of each episode
    data/<name>         [sum of T, ...] action, img, state, keypoint, ..., all episodes in a row

(github.com/real-stanford/diffusion_policy, diffusion_policy/common/replay_buffer.py.)
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.data.episode_file import DatasetError
from robopolicy.data.importers.source import Episode, Layout, camera_defaults, needs, object_state, proprioception
from robopolicy.spec import ACTION, POINTS, REWARD, STATE

logger = logging.getLogger(__name__)


class ReplayBufferSource:
    """A replay buffer. Fields are the names of the arrays in data/.

    Raises:
        DatasetError: no replay buffer, arrays that do not fit its episode_ends, or a chunk that cannot be decoded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        zarr = needs("zarr", "zarr")
        with self._readable("meta/episode_ends"):
            store = zarr.storage.ZipStore(path, mode="r") if path.is_file() else str(path)
            self._root = zarr.open_group(store, mode="r")
            ends = np.asarray(self._root["meta/episode_ends"][:]).reshape(-1).astype(np.int64)
            group = self._root["data"]
        if not len(ends):
            raise DatasetError(f"{path} holds no episodes: meta/episode_ends is empty")
        self.starts, self.ends = np.concatenate([[0], ends[:-1]]), ends
        if (falls := np.flatnonzero(self.ends <= self.starts)).size:
            number = int(falls[0])
            raise DatasetError(
                f"{path}: meta/episode_ends must rise, and episode {number} goes from {self.starts[number]} to {ends[number]}"
            )
        self._arrays: dict[str, Any] = {}
        left_out: dict[str, str] = {}
        with self._readable("data"):
            names = sorted(_names(path))
        for name in names:
            try:
                array = group[name]
            except Exception as error:  # zarr raises what its codecs raise: an unknown codec concerns this array only
                left_out[name] = f"cannot be opened ({error})"
                continue
            if not hasattr(array, "shape") or not array.ndim or array.dtype.kind not in "buif":
                left_out[name] = "is no array of numbers"
            elif array.shape[0] < ends[-1]:
                raise DatasetError(f"{path}: data/{name} has {array.shape[0]} steps, and meta/episode_ends ends at {ends[-1]}")
            else:
                self._arrays[name] = array
        self.layout = Layout(tuple(self._arrays), self._defaults(), len(ends), left_out=left_out)

    def episodes(self, fields: Collection[str]) -> Iterator[Episode]:
        """Episodes in order; only the chunks that an episode lies in are decoded."""
        for field in fields:
            array = self._arrays[field]
            if lost := array.nchunks - array.nchunks_initialized:
                value = array.fill_value
                logger.warning(
                    "%s: %d of %d chunks of data/%s are not stored and read as %s", self.path, lost, array.nchunks, field, value
                )
        for number, (start, end) in enumerate(zip(self.starts, self.ends, strict=True)):
            arrays = {}
            for field in fields:
                with self._readable(f"data/{field}"):
                    arrays[field] = np.asarray(self._arrays[field][int(start) : int(end)])
            yield Episode(arrays, {}, f"episode {number}", f"episode_{number:06d}")

    def _defaults(self) -> dict[str, tuple[str, ...]]:
        shapes = {name: array.shape for name, array in self._arrays.items()}
        vectors = [name for name, shape in shapes.items() if len(shape) <= 2]
        pictures = [name for name, shape in shapes.items() if len(shape) in (3, 4)]
        images = [name for name in pictures if len(shapes[name]) == 4 and 3 in (shapes[name][1], shapes[name][3])]
        depths = [name for name in pictures if name.endswith("depth") and name not in images]
        state = next(((name,) for name in ("state", "agent_pos") if name in vectors), None) or proprioception(vectors)
        defaults = {STATE: state, **object_state(vectors), **camera_defaults(images, depths)}
        usual = {ACTION: "action", REWARD: "reward", POINTS: "point_cloud"}
        return defaults | {key: (name,) for key, name in usual.items() if name in shapes}

    @contextmanager
    def _readable(self, what: str) -> Iterator[None]:
        try:
            yield
        except (MemoryError, PermissionError):
            raise
        except Exception as error:  # zarr raises what its codecs raise
            raise DatasetError(
                f"{self.path}: {what} cannot be read ({type(error).__name__}: {error}); is it complete, and a replay buffer?"
            ) from error


def _names(path: Path) -> set[str]:
    """Names of what is in data/, told without opening it: an array that cannot be opened is one of them."""
    if path.is_dir():
        return {child.name for child in (path / "data").iterdir() if child.is_dir()}
    with zipfile.ZipFile(path) as archive:
        parts = (name.split("/") for name in archive.namelist() if name.startswith("data/"))
        return {part[1] for part in parts if len(part) > 2}
