"""The mapping file of the node: which topics make which observation, where commands go, what they may do.

Part of the robot-side island: numpy only, and pyyaml when the file is YAML.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING or __package__:
    from .ros_messages import CONVERTERS, resample_points, resize_image
    from .runtime import SafetyLimits
else:  # this folder itself is on the path
    from ros_messages import CONVERTERS, resample_points, resize_image
    from runtime import SafetyLimits

if TYPE_CHECKING:
    from collections.abc import Mapping

TWIST, ARRAY = "geometry_msgs/TwistStamped", "std_msgs/Float64MultiArray"


def _make(cls: Any, data: Any, where: str) -> Any:
    """cls(**data), with an error that says which entry of the mapping file is wrong."""
    if not isinstance(data, dict):
        raise ValueError(f"{where} is {data!r}, expected a mapping of {', '.join(f.name for f in fields(cls))}")
    known = [f.name for f in fields(cls)]
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ValueError(f"{where} has {', '.join(unknown)}; known: {', '.join(known)}")
    try:
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in data.items()})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


@dataclass(frozen=True)
class Source:
    """One topic that an observation key is made of.

    joints: of a JointState, in the order of training. fields: of a PointCloud2. scale: multiplies the value, e.g. 2 for the
    opening of a gripper that reports one finger. T_base_sensor: pose [4][4] of a cloud's frame in the base frame.
    """

    topic: str
    type: str
    joints: tuple[str, ...] = ()
    fields: tuple[str, ...] = ("x", "y", "z")
    scale: float = 1.0
    T_base_sensor: tuple[Any, ...] | None = None

    def __post_init__(self) -> None:
        if self.type not in CONVERTERS:
            raise ValueError(f"type {self.type!r}; known: {', '.join(CONVERTERS)}")

    def convert(self, message: Any, shape: tuple[int, ...]) -> np.ndarray:
        """The array of `message`; images and clouds in the per-step `shape` that the policy asks for."""
        convert = CONVERTERS[self.type]
        if self.type == "sensor_msgs/JointState":
            return convert(message, self.joints) * np.float32(self.scale)
        if self.type == "sensor_msgs/PointCloud2":
            points = resample_points(convert(message, self.fields), shape[0])
            if self.T_base_sensor is not None:
                T = np.asarray(self.T_base_sensor, np.float32)
                points[:, :3] = points[:, :3] @ T[:3, :3].T + T[:3, 3]
            return points
        value = convert(message)
        return value if value.ndim == 1 else resize_image(value, shape[0], shape[1])


@dataclass(frozen=True)
class CommandTopic:
    """Where commands go. type TwistStamped: velocities (step times control rate) in frame_id, the gripper's opening as
    std_msgs/Float64 on gripper_topic. type Float64MultiArray: the action as it is.
    """

    topic: str
    type: str = TWIST
    frame_id: str = "base"
    gripper_topic: str = ""

    def __post_init__(self) -> None:
        if self.type not in (TWIST, ARRAY):
            raise ValueError(f"type {self.type!r}; known: {TWIST}, {ARRAY}")


@dataclass(frozen=True)
class NodeConfig:
    """A mapping file, checked. observation: {policy key: its sources, joined along the last axis}.

    ee_position: names of the three observation entries that are the end effector's position; () = unknown.
    max_age_s: a stream older than this stops the robot. lead_steps: see ChunkScheduler. stop_topic: std_msgs/Bool; true
    stops for good. task: what to do, for a policy that can do several things.
    """

    observation: dict[str, tuple[Source, ...]]
    command: CommandTopic
    limits: SafetyLimits
    ee_position: tuple[str, ...] = ()
    max_age_s: float = 0.25
    lead_steps: int = 0
    stop_topic: str = ""
    task: str = ""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NodeConfig:
        """From a parsed mapping file. Raises ValueError naming the entry that is wrong."""
        for name in ("observation", "command", "limits"):
            if not isinstance(data.get(name), dict):
                raise ValueError(f"the mapping file needs a mapping {name!r}")
        observation = {
            key: tuple(_make(Source, s, f"observation {key}") for s in (value if isinstance(value, list) else [value]))
            for key, value in data["observation"].items()
        }
        command = _make(CommandTopic, data["command"], "command")
        limits = _make(SafetyLimits, data["limits"], "limits")
        rest = {**data, "observation": observation, "command": command, "limits": limits}
        return _make(cls, rest, "the mapping file")


def load_config(path: str | Path) -> NodeConfig:
    """Read a mapping file, JSON or YAML.

    Raises:
        ValueError: it is not one. ImportError: YAML without pyyaml.
    """
    text = Path(path).read_text(encoding="utf-8")
    if Path(path).suffix == ".json":
        return NodeConfig.from_dict(json.loads(text))
    import yaml

    try:
        return NodeConfig.from_dict(yaml.safe_load(text) or {})
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
