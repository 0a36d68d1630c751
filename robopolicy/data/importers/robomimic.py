"""robomimic HDF5 files (https://robomimic.github.io/docs/datasets/overview.html).

    data.attrs["env_args"]              JSON: env_name, env_kwargs (control_freq, ...)
    data/demo_<k>/actions, rewards, dones, states                     [T, ...]; attrs num_samples, ep_meta (JSON: lang)
    data/demo_<k>/obs/<name>, next_obs/<name>                         [T, ...]; next_obs is not read
    mask/<name>                         names of the demos of a subset (train, valid, ...)

Step t has the observation before, and the reward and done after action t, as in our datasets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.data.episode_file import DatasetError
from robopolicy.data.importers.source import Episode, Layout, camera_defaults, needs, object_state, proprioception
from robopolicy.spec import ACTION, REWARD, STATE, SUCCESS, TASK, TERMINATED

_OF_STEP = ("actions", "actions_abs", "rewards", "dones", "states")  # the rest of a demo's fields are observations


class RobomimicSource:
    """A robomimic file. Fields are the names of observations, and actions, rewards, dones, states.

    Success is taken from the rewards where these are 0 and 1 in the whole file, as robosuite's sparse rewards are.

    Raises:
        DatasetError: no such file, one that is cut short, or one without demonstrations or observations.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._h5 = needs("h5py", "hdf5")
        with self._open() as file:
            names = [name for name in file.get("data", {}) if name.startswith("demo")]
            self.demos = sorted(names, key=_order)
            if not self.demos:
                raise DatasetError(f"{path} is no robomimic dataset: it holds no group data/demo_<k>")
            self.masks = {
                name: {demo.decode() if isinstance(demo, bytes) else str(demo) for demo in file["mask"][name][:]}
                for name in file.get("mask", {})
            }
            self.env = _json(file["data"].attrs.get("env_args", "{}"))
            self.layout = self._layout(file)

    def episodes(self, fields: Collection[str]) -> Iterator[Episode]:
        """The demos in numeric order; mask/<name> becomes the table's column mask.<name>."""
        with self._open() as file:
            for number, demo in enumerate(self.demos):
                group = file["data"][demo]
                arrays = {}
                for field in fields:
                    place = _place(field)
                    if place not in group:
                        raise DatasetError(f"{self.path}: {demo} lacks {place}, which other demos have")
                    arrays[field] = group[place][:]
                    stated = int(group.attrs.get("num_samples", len(arrays[field])))
                    if len(arrays[field]) != stated:
                        raise DatasetError(
                            f"{self.path}: {demo}/{place} has {len(arrays[field])} steps, and num_samples says {stated}"
                        )
                info: dict[str, Any] = {
                    TASK: str(_json(group.attrs.get("ep_meta", "{}")).get("lang") or self.env.get("env_name", "")),
                    "demo": demo,
                }
                if self.masks:
                    info["mask"] = {name: demo in members for name, members in self.masks.items()}
                yield Episode(arrays, info, demo, f"episode_{number:06d}")

    def _layout(self, file: Any) -> Layout:
        first = file["data"][self.demos[0]]
        if not first.get("obs"):
            raise DatasetError(
                f"{self.path} holds no observations (data/{self.demos[0]}/obs); robomimic's dataset_states_to_obs.py makes them"
            )
        observations = {name: data for name, data in first["obs"].items() if isinstance(data, self._h5.Dataset)}
        found = {**observations, **{name: first[name] for name in _OF_STEP if name in first}}
        fields = {name: data for name, data in found.items() if data.dtype.kind in "buif" and data.ndim}
        vectors = [name for name in observations if name in fields and fields[name].ndim <= 2]
        pictures = [name for name in observations if name in fields and fields[name].ndim == 4]
        images = [name for name in pictures if fields[name].shape[-1] == 3]
        depths = [name for name in pictures if fields[name].shape[-1] == 1 and name.endswith("_depth")]
        defaults = {STATE: proprioception(vectors), **object_state(vectors), **camera_defaults(images, depths)}
        usual = {ACTION: "actions", REWARD: "rewards", TERMINATED: "dones"}
        defaults |= {key: (name,) for key, name in usual.items() if name in fields}
        if "rewards" in fields and self._is_sparse(file):
            defaults[SUCCESS] = ("rewards",)
        rate = self.env.get("env_kwargs", {}).get("control_freq")
        left_out = {name: f"holds {data.dtype} values" for name, data in found.items() if name not in fields}
        return Layout(tuple(fields), defaults, len(self.demos), float(rate) if rate else None, left_out=left_out)

    def _is_sparse(self, file: Any) -> bool:
        rewards = (file["data"][demo]["rewards"] for demo in self.demos if "rewards" in file["data"][demo])
        return all(np.isin(values[:], (0, 1)).all() for values in rewards)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            with self._h5.File(self.path, "r") as file:
                yield file
        except (OSError, KeyError, RuntimeError) as error:
            raise DatasetError(f"{self.path} is cut short or damaged ({error}); restore it from a copy") from error


def _place(field: str) -> str:
    return field if field in _OF_STEP else f"obs/{field}"


def _order(name: str) -> tuple[int, str]:
    number = re.search(r"\d+$", name)
    return int(number[0]) if number else -1, name


def _json(text: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
