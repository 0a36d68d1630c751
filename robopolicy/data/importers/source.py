"""What a dataset in another format gives to an import."""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Protocol

from robopolicy.spec import ENVIRONMENT_STATE, Array, FeatureSpec, depth_key, image_key

_SUFFIX = re.compile(r"(?<=.)[_-](image|img|rgb|depth)$")
_ROBOT = re.compile(r"robot\d+_(.+)")
_PROPRIOCEPTION = ("eef_pos", "eef_quat", "eef_rot_axis_angle", "gripper_qpos", "gripper_width")


@dataclass(frozen=True)
class Episode:
    """Arrays {field: [T, ...]} of one episode, what describes it, its name in the source and the one it gets here."""

    arrays: dict[str, Array]
    info: dict[str, Any]
    label: str
    name: str | None = None


@dataclass
class Layout:
    """What a source holds.

    fields: names of the arrays that can be mapped to our keys.
    defaults: our key -> the fields it is made of, one after the other, unless told otherwise.
    num_episodes: of the source. fps: rate (Hz), if the source knows it.
    specs: specs of fields that the source describes. extra: of the DatasetSpec.
    left_out: {field: reason} of what cannot be mapped.
    """

    fields: tuple[str, ...]
    defaults: dict[str, tuple[str, ...]]
    num_episodes: int
    fps: float | None = None
    specs: Mapping[str, FeatureSpec] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


class Source(Protocol):
    """A dataset in another format. Made from its path, it has read the metadata; DatasetError when that fails."""

    layout: Layout

    def episodes(self, fields: Collection[str]) -> Iterator[Episode]:
        """Episodes in order with these fields, one in memory at a time. Raises DatasetError when one cannot be read."""


def camera_defaults(images: Iterable[str], depths: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Keys of camera fields: "wrist_image" is of camera wrist, a plain "image", "img" or "rgb" of camera front."""
    found: dict[str, tuple[str, ...]] = {}
    for key_of, fields in ((image_key, images), (depth_key, depths)):
        for name in fields:
            last = name.rpartition("/")[2]
            camera = "front" if last in ("image", "img", "rgb", "depth") else _SUFFIX.sub("", last)
            found[key_of(camera if key_of(camera) not in found else last)] = (name,)
    return found


def proprioception(vectors: Iterable[str]) -> tuple[str, ...]:
    """The fields of robot0_, robot1_, ... that robomimic trains on (end-effector pose, gripper), else all of the robots."""
    robots = [name for name in vectors if _ROBOT.fullmatch(name)]
    prefixes = dict.fromkeys(name.partition("_")[0] for name in robots)
    usual = [f"{prefix}_{part}" for prefix in prefixes for part in _PROPRIOCEPTION if f"{prefix}_{part}" in robots]
    return tuple(usual or robots)


def object_state(vectors: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """What a simulator tells about the objects, if it does: privileged."""
    return {ENVIRONMENT_STATE: ("object",)} if "object" in vectors else {}


def needs(module: str, extra: str) -> ModuleType:
    """An optional module. Raises ValueError that names the extra to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"this format needs {module.partition('.')[0]}: pip install 'robopolicy[{extra}]'") from error
