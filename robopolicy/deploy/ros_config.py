"""The mapping file of the node: which topics make which observation, where commands go, what they may do.

Part of the robot-side island: numpy only, and pyyaml when the file is YAML.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from .limits import SafetyLimits
    from .ros_commands import COMMANDS, TWIST
    from .ros_messages import CONVERTERS
    from .runtime import RuntimeSettings
else:  # this folder itself is on the path
    from limits import SafetyLimits
    from ros_commands import COMMANDS, TWIST
    from ros_messages import CONVERTERS
    from runtime import RuntimeSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

RELIABILITIES = ("best_effort", "reliable")
TIMER, OBSERVATION = "timer", "observation"


def _make(cls: Any, data: Any, where: str) -> Any:
    """cls(**data), with an error that says which entry of the mapping file is wrong."""
    known = [f.name for f in fields(cls)]
    if not isinstance(data, dict):
        raise ValueError(f"{where} is {data!r}, expected a mapping of {', '.join(known)}")
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

    joints: of a JointState or a JointTrajectory, in the order of training. fields: of a PointCloud2. scale: multiplies the
    value, e.g. 2 for the opening of a gripper that reports one finger. camera_info: topic of a depth image's CameraInfo; the
    image then becomes points. T_base_sensor: pose [4][4] of the sensor's frame in the base frame, for clouds, depth and poses;
    where it is not given and the mapping has a base_frame, /tf is asked. crop_low, crop_high: corners [3] (m, base frame) of
    the box whose points are kept. size: [H, W] of an image or [P] of a cloud, needed only where no policy says it (`data
    import`). reliability: "best_effort" or "reliable", for ROS 2.
    """

    topic: str
    type: str
    joints: tuple[str, ...] = ()
    fields: tuple[str, ...] = ("x", "y", "z")
    scale: float = 1.0
    camera_info: str = ""
    T_base_sensor: tuple[Any, ...] | None = None
    crop_low: tuple[float, ...] | None = None
    crop_high: tuple[float, ...] | None = None
    size: tuple[int, ...] = ()
    reliability: str = "best_effort"

    def __post_init__(self) -> None:
        if self.type not in CONVERTERS:
            raise ValueError(f"type {self.type!r}; known: {', '.join(CONVERTERS)}")
        if self.camera_info and self.type != "sensor_msgs/Image":
            raise ValueError(f"camera_info belongs to a depth sensor_msgs/Image, not to a {self.type}")
        _check_choice("reliability", self.reliability, RELIABILITIES)
        for name in ("crop_low", "crop_high"):
            value = getattr(self, name)
            if value is not None and len(value) != 3:
                raise ValueError(f"{name}={list(value)}: give three numbers")
        if self.T_base_sensor is not None and not (
            len(self.T_base_sensor) == 4 and all(isinstance(row, (list, tuple)) and len(row) == 4 for row in self.T_base_sensor)
        ):
            raise ValueError(f"T_base_sensor={self.T_base_sensor}: give four rows of four numbers")

    @property
    def has_frame(self) -> bool:
        """Whether its values depend on the frame that they are measured in."""
        return self.type in ("sensor_msgs/PointCloud2", "geometry_msgs/PoseStamped") or bool(self.camera_info)


@dataclass(frozen=True)
class CommandTopic:
    """Where commands go (see ros_commands.COMMANDS). frame_id: of their header, and the frame they are meant in.

    gripper_topic: std_msgs/Float64 of the opening, for commands that have no place for it. joints: of a JointTrajectory, in
    the order of the action's absolute entries. reliability: "best_effort" or "reliable", for ROS 2.
    """

    topic: str
    type: str = TWIST
    frame_id: str = "base"
    gripper_topic: str = ""
    joints: tuple[str, ...] = ()
    reliability: str = "reliable"

    def __post_init__(self) -> None:
        _check_choice("type", self.type, COMMANDS)
        _check_choice("reliability", self.reliability, RELIABILITIES)


def _check_choice(name: str, value: str, known: Any) -> None:
    if value not in known:
        raise ValueError(f"{name} {value!r}; known: {', '.join(known)}")


@dataclass(frozen=True)
class NodeConfig:
    """A mapping file, checked. observation: {policy key: its sources, joined along the last axis}.

    ee_position: names of the three observation entries that are the end effector's position; () = unknown.
    ee_rotation: names of the six that are its 6-D rotation, for commands that are poses.
    base_frame: of the observations, asked of /tf where a source has no T_base_sensor; "" = messages are in it already.
    joints: names of the entries that are measured joints, for limits on joints.
    runtime: when the policy is asked, and what is too old (runtime.RuntimeSettings).
    stop_topic: std_msgs/Bool; true stops until reset. task: what to do, for a policy that can do several things.
    step_on: "timer" = at the policy's rate by ROS's clock; "observation" = once for every complete set of observations,
    waiting for the policy: for a simulator that waits for its command.
    wait_s: how long the first messages may take. diagnostics_hz: of /diagnostics, 0 = none.
    """

    observation: dict[str, tuple[Source, ...]]
    command: CommandTopic
    limits: SafetyLimits
    ee_position: tuple[str, ...] = ()
    ee_rotation: tuple[str, ...] = ()
    base_frame: str = ""
    joints: tuple[str, ...] = ()
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    stop_topic: str = ""
    task: str = ""
    step_on: str = TIMER
    wait_s: float = 5.0
    diagnostics_hz: float = 1.0

    def __post_init__(self) -> None:
        _check_choice("step_on", self.step_on, (TIMER, OBSERVATION))

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
        runtime = _make(RuntimeSettings, data.get("runtime", {}), "runtime")
        rest = {**data, "observation": observation, "command": command, "limits": limits, "runtime": runtime}
        return _make(cls, rest, "the mapping file")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; from_dict() of it gives an equal config."""
        return json.loads(json.dumps(asdict(self)))


def parse_config(text: str, where: str) -> dict[str, Any]:
    """The mapping in JSON or YAML text. Raises ValueError: it is none. ImportError: YAML without pyyaml."""
    if text.lstrip().startswith("{"):
        data = json.loads(text)
    else:
        import yaml

        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{where} is not YAML: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{where} holds {type(data).__name__}, not a mapping")
    return data


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> NodeConfig:
    """Read a mapping file, JSON or YAML, and change entries of it: see `override`.

    Raises:
        ValueError: it is not one. ImportError: YAML without pyyaml.
    """
    data = parse_config(Path(path).read_text(encoding="utf-8"), str(path))
    return NodeConfig.from_dict(override(NodeConfig.from_dict(data).to_dict(), overrides or {}))


def parameters(data: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every entry of a mapping; members of lists of mappings are numbered.

    The section `observation` is left out of names, since its keys start with that word: observation.state.0.topic.
    """
    children = _children(data, prefix)
    if children is None:
        yield prefix[:-1], data
        return
    for name, _, value in children:
        yield from parameters(value, name)


def override(data: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`data` with entries replaced by {dotted name: value} (the names of `parameters`).

    Raises:
        ValueError: a name that the mapping does not have.
    """
    known = dict(parameters(data))
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"the mapping has no parameter {', '.join(unknown)}; it has {', '.join(known)}")
    return _replaced(data, {name: _typed(name, value, known[name]) for name, value in values.items()}, "")


def _typed(name: str, value: Any, present: Any) -> Any:
    """`value` as a number or list where the mapping has one: ROS 1 gives text in some of its ways to set parameters."""
    if isinstance(value, str) and present is not None and not isinstance(present, str):
        try:
            return json.loads(value.lower() if isinstance(present, bool) else value)
        except ValueError:
            raise ValueError(f"parameter {name}={value!r} must be like {present!r}") from None
    return value


def _replaced(data: Any, values: Mapping[str, Any], prefix: str) -> Any:
    children = _children(data, prefix)
    if children is None:
        return values.get(prefix[:-1], data)
    if isinstance(data, list):
        return [_replaced(value, values, name) for name, _, value in children]
    return {key: _replaced(value, values, name) for name, key, value in children}


def _children(data: Any, prefix: str) -> list[tuple[str, Any, Any]] | None:
    """(name with a dot at its end, key, value) of what is in a mapping or a list of mappings; None of anything else."""
    if isinstance(data, dict):
        return [("" if not prefix and key == "observation" else f"{prefix}{key}.", key, value) for key, value in data.items()]
    if isinstance(data, list) and data and isinstance(data[0], dict):
        return [(f"{prefix}{number}.", number, value) for number, value in enumerate(data)]
    return None
