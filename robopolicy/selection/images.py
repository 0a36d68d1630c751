"""A folder of pictures, perhaps with a table of the robot's states, as target observations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from PIL import Image, UnidentifiedImageError

from robopolicy.ranking.tables import RankingError
from robopolicy.selection.target import RecordedTarget
from robopolicy.spec import STATE, Array, image_key

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
STATES, FILE, EPISODE = "state.csv", "file", "episode"
CAMERA = "front"  # whose pictures lie in the folder itself


def read_images(folder: Path) -> RecordedTarget | None:
    """The observations of a folder, None if it has no pictures.

    folder/*.png are of camera front; folder/CAMERA/*.png of several cameras, the i-th file by name of each at the same moment.
    folder/state.csv, optional: a line a moment in the same order (or a column `file` that names the front picture); a column
    `episode` says which moments belong together; all other columns, in order, are observation.state.

    Raises:
        RankingError: unequal numbers or sizes of pictures, or a table that does not fit.
    """
    cameras = {CAMERA: _pictures(folder)} if _pictures(folder) else {}
    cameras |= {sub.name: files for sub in sorted(folder.iterdir()) if sub.is_dir() and (files := _pictures(sub))}
    if not cameras:
        return None
    counts = {camera: len(files) for camera, files in cameras.items()}
    if len(set(counts.values())) > 1:
        raise RankingError(f"{folder} has {counts} pictures: every camera needs one of every moment")
    values: dict[str, Array] = {image_key(camera): _load(files) for camera, files in cameras.items()}
    count = next(iter(counts.values()))
    episode = np.arange(count)
    if (folder / STATES).is_file():
        names = [file.name for file in next(iter(cameras.values()))]
        state, episode = _states(folder / STATES, names)
        values[STATE] = state
    order = np.argsort(episode, kind="stable")
    return RecordedTarget({key: array[order] for key, array in values.items()}, episode[order])


def _pictures(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))


def _load(files: list[Path]) -> Array:
    """uint8 [N, H, W, 3]; all of the size of the first."""
    images = []
    for file in files:
        try:
            with Image.open(file) as image:
                images.append(np.asarray(image.convert("RGB")))
        except (UnidentifiedImageError, OSError) as error:
            raise RankingError(f"{file} is no picture that can be read ({error}): remove it") from error
        if images[-1].shape != images[0].shape:
            raise RankingError(
                f"{file} is {images[-1].shape[1]} x {images[-1].shape[0]} px and {files[0].name} "
                f"{images[0].shape[1]} x {images[0].shape[0]}: give pictures of one camera, of one size"
            )
    return np.stack(images)


def _states(path: Path, names: list[str]) -> tuple[Array, Array]:
    """State float32 [N, D] and episode int [N] in the order of the pictures."""
    table = pyarrow.csv.read_csv(path, read_options=pyarrow.csv.ReadOptions(use_threads=False))
    if table.num_rows != len(names):
        raise RankingError(f"{path} has {table.num_rows} lines and there are {len(names)} pictures: give one a picture")
    order = np.arange(len(names))
    if FILE in table.column_names:
        given = [str(name) for name in table[FILE].to_pylist()]
        if sorted(given) != sorted(names):
            odd = sorted(set(given) ^ set(names))[0]
            raise RankingError(f"{path}: {odd!r} is either named and not there or there and not named")
        order = np.array([given.index(name) for name in names])
    columns = [name for name in table.column_names if name not in (FILE, EPISODE)]
    if not columns:
        raise RankingError(f"{path} has no columns of the state beside {', '.join(table.column_names)}")
    try:
        state = np.stack([table[name].cast(pa.float64()).to_numpy() for name in columns], axis=1)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise RankingError(f"{path} holds values that are no numbers: {error}") from error
    if not np.isfinite(state).all():
        raise RankingError(f"{path} has an empty or non-finite value in line {2 + int(np.argwhere(~np.isfinite(state))[0, 0])}")
    episode = np.arange(len(names))
    if EPISODE in table.column_names:
        episode = np.unique(np.array(table[EPISODE].to_pylist(), str), return_inverse=True)[1][order]
    return state[order].astype(np.float32), episode
