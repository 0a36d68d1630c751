"""`robopolicy data import`: recognise a format, read it, write a dataset of ours."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from robopolicy.data.episode_file import DatasetError
from robopolicy.data.episodes import EpisodeStore, EpisodeWriter
from robopolicy.data.importers.mapping import Mapped, convert, dataset_spec, resolve
from robopolicy.data.importers.source import Episode, Layout, Source
from robopolicy.data.info_file import INFO
from robopolicy.data.manage import building
from robopolicy.spec import SUCCESS, TASK, SpecError, did_you_mean

AUTO = "auto"
FORMATS = {
    "lerobot": "a LeRobotDataset folder, v2.0, v2.1 or v3.0 (meta/info.json)",
    "robomimic": "a robomimic HDF5 file",
    "zarr": "a diffusion_policy replay buffer: a zarr folder or .zarr.zip (meta/episode_ends)",
    "rlds": "an RLDS folder of TFDS (features.json and *.tfrecord-*)",
    "rosbag": "a ROS bag or a folder of bags (.bag, .mcap, .db3)",
}


def import_dataset(
    path: str | Path,
    out: str | Path,
    format: str = AUTO,
    fps: float | None = None,
    instruction: str | None = None,
    episodes: int | None = None,
    keys: Mapping[str, Any] | None = None,
    bags: Callable[[Path], Source] | None = None,
) -> list[str]:
    """Make the dataset `out`, which appears in one step, of one in another format; what was done, in lines for people.

    Args:
        path: the file or folder. out: a folder that does not exist yet.
        format: one of FORMATS, or "auto" to tell by the content.
        fps: rate of the steps (Hz); needed where the source does not say, refused where it says otherwise.
        instruction: the task in words, for every episode, instead of the source's own.
        episodes: how many to import at most, from the first on.
        keys: {our key: field of the source, list of fields that are concatenated, or None}, on top of the defaults.
        bags: reads ROS bags (deploy.ros_bag.BagSource, which is not known here).

    Raises:
        DatasetError: no such dataset, another format, or a damaged file. SpecError: options or data that do not fit.
    """
    source = open_source(Path(path), format, bags)
    layout = source.layout
    if episodes is not None and episodes < 1:
        raise SpecError(f"episodes={episodes} must be at least 1; null imports all")
    rate = _rate(layout, fps, path)
    mapped = resolve(layout, keys)
    fields = list(dict.fromkeys(name for names in mapped.values() for name in names))
    total = min(layout.num_episodes, episodes or layout.num_episodes)
    writer: EpisodeWriter | None = None
    scales: dict[str, float] = {}
    with building(Path(out), resume=False) as folder:
        for episode in tqdm(islice(source.episodes(fields), episodes), desc="import", total=total, unit="episode", leave=False):
            try:
                arrays = convert(mapped, episode.arrays, layout, scales)
                if writer is None:
                    writer = EpisodeWriter(folder, dataset_spec(mapped, episode.arrays, arrays, layout, rate))
                arrays = {key: _adopt(array, writer.spec.features[key].dtype) for key, array in arrays.items()}
                writer.add(arrays, _info(episode, arrays, instruction), episode.name)
            except SpecError as error:
                raise SpecError(f"{path}, {episode.label}: {error}") from error
        if writer is None:
            raise DatasetError(f"{path} holds no episodes")
        store = EpisodeStore(folder)
    return [f"{out}: {len(store)} episodes, {int(store.lengths.sum())} steps at {rate:g} Hz", *_report(mapped, layout)]


def open_source(path: Path, format: str = AUTO, bags: Callable[[Path], Source] | None = None) -> Source:
    """The dataset at `path`, its metadata read. Raises as import_dataset does."""
    if format not in (AUTO, *FORMATS):
        raise SpecError(f"format={format!r} does not work; {did_you_mean(format, [AUTO, *FORMATS])}")
    if not path.exists():
        raise DatasetError(f"there is no {path}")
    found = detect(path)
    if format != AUTO and found not in (None, format):
        raise DatasetError(f"{path} is not {FORMATS[format]}; it looks like {FORMATS[found]}: give format={found}")
    if format == AUTO and found is None:
        hint = _hint(path) or "; ".join(FORMATS.values())
        raise DatasetError(f"{path} looks like none of the formats that can be read: {hint}")
    return _make(found or format, path, bags)


def _make(format: str, path: Path, bags: Callable[[Path], Source] | None) -> Source:
    if format == "rosbag":
        if bags is None:
            raise DatasetError(f"{path} is {FORMATS[format]}: import it with `robopolicy data import`")
        return bags(path)
    if format == "lerobot":
        from robopolicy.data.lerobot.importing import LeRobotSource

        return LeRobotSource(path)
    if format == "robomimic":
        from robopolicy.data.importers.robomimic import RobomimicSource

        return RobomimicSource(path)
    if format == "zarr":
        from robopolicy.data.importers.replay_buffer import ReplayBufferSource

        return ReplayBufferSource(path)
    from robopolicy.data.importers.rlds import RldsSource

    return RldsSource(path)


def detect(path: Path) -> str | None:
    """The format of what is at `path`, told by its content; None for none of FORMATS."""
    if path.is_dir():
        marks = {"lerobot": "meta/info.json", "zarr": "meta/episode_ends", "rlds": "features.json"}
        found = next((name for name, mark in marks.items() if (path / mark).exists()), None)
        return found or ("rosbag" if find_bags(path) else None)
    if is_bag(path):
        return "rosbag"
    with suppress(OSError, zipfile.BadZipFile):
        with path.open("rb") as file:
            if file.read(8) == b"\x89HDF\r\n\x1a\n":
                return "robomimic"
        with zipfile.ZipFile(path) as archive:
            if any(name.startswith("meta/episode_ends/") for name in archive.namelist()):
                return "zarr"
    return None


def is_bag(path: Path) -> bool:
    """Whether this is one ROS bag: an .mcap, .bag or .db3 file, or a folder with metadata.yaml or .mcap files."""
    if path.is_dir():
        return (path / "metadata.yaml").is_file() or any(path.glob("*.mcap"))
    return path.suffix in (".mcap", ".bag", ".db3")


def find_bags(path: Path) -> list[Path]:
    """The ROS bag at `path`, or those in a folder, by name."""
    if is_bag(path):
        return [path]
    return sorted(child for child in path.iterdir() if is_bag(child)) if path.is_dir() else []


def _hint(path: Path) -> str:
    """What to give instead of `path`, if that can be seen."""
    if not path.is_dir():
        return ""
    if (path / INFO).exists() and (path / "episodes").is_dir():
        return "it is a robopolicy dataset already"
    inside = sorted(child for child in path.iterdir() if not child.name.startswith("."))
    found = next(((child, name) for child in inside[:100] if (name := detect(child))), None)
    return f"give path={found[0]}, which looks like {FORMATS[found[1]]}" if found else ""


def _rate(layout: Layout, fps: float | None, path: str | Path) -> float:
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise SpecError(f"fps={fps} must be a positive rate in Hz")
    if layout.fps is None and fps is None:
        raise SpecError(f"{path} does not say at which rate it was recorded: give fps=RATE (Hz, steps per second)")
    if layout.fps is not None and fps is not None and layout.fps != fps:
        raise SpecError(f"fps={fps:g} was given and {path} says {layout.fps:g} Hz; leave fps out")
    return float(fps if layout.fps is None else layout.fps)  # type: ignore[arg-type]


def _adopt(array: np.ndarray, dtype: str) -> np.ndarray:
    """`array`, double or half precision made the spec's; nothing else changes."""
    if array.dtype.kind == "f" and np.dtype(dtype).kind == "f":
        with np.errstate(over="ignore"):
            return array.astype(dtype, copy=False)
    return array


def _info(episode: Episode, arrays: Mapping[str, np.ndarray], instruction: str | None) -> dict[str, Any]:
    info = {TASK: "", **episode.info}
    if SUCCESS in arrays:
        info.setdefault("success", bool(arrays[SUCCESS].any()))
    return info if instruction is None else {**info, TASK: instruction}


def _report(mapped: Mapped, layout: Layout) -> list[str]:
    lines = [f"  {key} = {', '.join(names)}" for key, names in mapped.items() if names != (key,)]
    used = {name for names in mapped.values() for name in names}
    unused = [name for name in layout.fields if name not in used]
    lines += [f"  {name} is left out: it {reason}" for name, reason in layout.left_out.items()]
    return [*lines, *([f"  not used: {', '.join(unused)} (keys='{{KEY: FIELD}}' takes them in)"] if unused else [])]
