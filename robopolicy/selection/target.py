"""The small fixed set of target observations, from wherever it was recorded: what every checkpoint's encoder is shown.

A dataset of ours is used as it is; LeRobot, RLDS, robomimic and zarr datasets are imported; images and ROS bags become
observations without actions.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from robopolicy.data.episodes import EpisodeStore
from robopolicy.data.importers.run import detect, import_dataset
from robopolicy.data.info_file import INFO
from robopolicy.data.windows import Windows
from robopolicy.evaluation.features import Frames
from robopolicy.files import atomic_write
from robopolicy.ranking.tables import RankingError
from robopolicy.spec import EPISODE, IMAGES, TASK, Array, Features, SpecError, did_you_mean

RECORDED = "observations.npz"
EPISODES = "episode"
KINDS = (
    "a dataset of ours, LeRobot, RLDS, robomimic or zarr, a folder of images (folder/*.png or folder/CAMERA/*.png, with "
    "state.csv beside them), a ROS 2 bag or an .mcap or .bag file"
)


class Target(Protocol):
    """A set of observations."""

    @property
    def hash(self) -> str:
        """sha256 (hex) of the content."""

    @property
    def checksums(self) -> frozenset[str]:
        """Of its episodes; empty where it is no dataset."""

    def frames(self, features: Features, obs_horizon: int) -> Frames:
        """The frames in these features. Raises SpecError when it lacks one."""

    def pictures(self) -> Iterator[Array]:
        """Frame after frame, uint8 [H, W, 3], of the first camera; nothing where there is none."""


@dataclass(frozen=True)
class StoreTarget:
    """Observations of a dataset."""

    store: EpisodeStore

    @property
    def hash(self) -> str:
        """See Target."""
        return self.store.hash

    @property
    def checksums(self) -> frozenset[str]:
        """See Target."""
        return frozenset(self.store.table["checksum"].to_pylist())

    def frames(self, features: Features, obs_horizon: int) -> Frames:
        """See Target."""
        return Windows(self.store, tuple(features), obs_horizon, 1)

    def pictures(self) -> Iterator[Array]:
        """See Target."""
        yield from store_pictures(self.store)


def store_pictures(store: EpisodeStore) -> Iterator[Array]:
    """Frames uint8 [H, W, 3] of the first camera of a dataset, episode after episode."""
    key = next((key for key in sorted(store.spec.features) if key.startswith(IMAGES)), None)
    for index in range(len(store)) if key else ():
        yield from store.read(index, [str(key)])[str(key)]


@dataclass(frozen=True)
class RecordedTarget:
    """Observations without actions.

    values: {key: [N, ...]}, images uint8 [N, H, W, 3] of any size. episode: int [N], ascending; steps of one follow each other.
    """

    values: Mapping[str, Array]
    episode: Array
    checksums: frozenset[str] = field(default=frozenset())

    @property
    def hash(self) -> str:
        """See Target."""
        digest = hashlib.sha256(self.episode.astype("<i8").tobytes())
        for key in sorted(self.values):
            digest.update(f"{key} {self.values[key].shape} {self.values[key].dtype}".encode())
            digest.update(np.ascontiguousarray(self.values[key]).tobytes())
        return digest.hexdigest()

    def frames(self, features: Features, obs_horizon: int) -> Frames:
        """See Target. Images of another size than the policy's are resized."""
        values = {}
        for key, feature in features.items():
            if key == TASK:
                raise SpecError("the policy is told its task, which these observations do not say: give a dataset with tasks")
            if key not in self.values:
                raise SpecError(f"the target observations have no {key!r}; {did_you_mean(key, self.values)}")
            array = self.values[key]
            if key.startswith(IMAGES) and array.shape[1:] != tuple(feature.shape):
                array = _resized(array, feature.shape[0], feature.shape[1])
            if array.shape[1:] != tuple(feature.shape):
                raise SpecError(
                    f"the target's {key!r} has shape {list(array.shape[1:])} and the policy needs {list(feature.shape)}"
                )
            values[key] = array.astype(feature.dtype, copy=False)
        return _RecordedFrames(values, self.episode, obs_horizon)

    def pictures(self) -> Iterator[Array]:
        """See Target."""
        key = next((key for key in sorted(self.values) if key.startswith(IMAGES)), None)
        yield from self.values[key] if key else ()

    def save(self, folder: Path) -> None:
        """Write it into a folder."""
        folder.mkdir(parents=True, exist_ok=True)

        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **{EPISODES: self.episode}, **self.values)  # type: ignore[arg-type]

        atomic_write(folder / RECORDED, write)


@dataclass(frozen=True)
class _RecordedFrames:
    values: Mapping[str, Array]
    episode: Array
    obs_horizon: int

    def __len__(self) -> int:
        return len(self.episode)

    def batch(self, indices: Array) -> dict[str, Array]:
        rows = np.asarray(indices)
        start = np.searchsorted(self.episode, self.episode[rows])
        frames = np.maximum(rows[:, None] + np.arange(1 - self.obs_horizon, 1), start[:, None])
        return {**{key: array[frames] for key, array in self.values.items()}, EPISODE: self.episode[rows]}


def _resized(images: Array, height: int, width: int) -> Array:
    import cv2

    return np.stack([cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA) for image in images])


def open_target(path: str | Path) -> Target:
    """The observations at a path that `prepare` returned, or at a dataset of ours."""
    path = Path(path)
    if (path / RECORDED).is_file():
        with np.load(path / RECORDED, allow_pickle=False) as arrays:
            return RecordedTarget({key: arrays[key] for key in arrays.files if key != EPISODES}, arrays[EPISODES])
    return StoreTarget(EpisodeStore(path))


def prepare(path: str | Path, folder: Path, fps: float | None = None, keys: Mapping[str, Any] | None = None) -> Path:
    """Where open_target finds the observations at `path`; those that must be converted are put into `folder`.

    fps, keys: of data import, for datasets in other formats; for bags, keys are {our key: topic}.

    Raises:
        RankingError: nothing there that can be read, and what can.
    """
    path = Path(path)
    if not path.exists():
        raise RankingError(f"no target observations at {path}: give {KINDS}")
    if (path / INFO).is_file() or (path / RECORDED).is_file():
        return path.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    if detect(path) not in (None, "rosbag"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        import_dataset(path, folder, fps=fps, keys=keys)
        return folder.absolute()
    if detect(path) == "rosbag":
        from robopolicy.selection.bags import read_bag

        read_bag(path, keys).save(folder)
        return folder.absolute()
    from robopolicy.selection.images import read_images

    found = read_images(path) if path.is_dir() else None
    if found is None:
        raise RankingError(f"{path} holds no target observations that can be read: give {KINDS}")
    found.save(folder)
    return folder.absolute()


def frame_digests(pictures: Iterator[Array] | Sequence[Array]) -> Iterator[bytes]:
    """A short digest of every frame."""
    for picture in pictures:
        yield hashlib.blake2b(np.ascontiguousarray(picture).tobytes(), digest_size=12).digest()
