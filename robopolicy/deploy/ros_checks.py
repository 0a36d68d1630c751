"""What is missing before a node may start: every problem at once, each with what would mend it.

Part of the robot-side island: numpy only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from .controller import find_entries, limit_problems
    from .ros_commands import POSE, TRAJECTORY, refusal
    from .ros_streams import joined
    from .ros_transport import message_class
else:  # this folder itself is on the path
    from controller import find_entries, limit_problems
    from ros_commands import POSE, TRAJECTORY, refusal
    from ros_streams import joined
    from ros_transport import message_class

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .client import RemoteSpec
    from .ros_config import NodeConfig
    from .ros_streams import Stream

TASK = "task"  # robopolicy.spec.TASK
STOP_TYPE = "std_msgs/Bool"


class NotReadyError(ValueError):
    """What is missing, a line each."""

    def __init__(self, what: str, problems: list[str]) -> None:
        super().__init__("\n  - ".join([what, *problems]))
        self.problems = problems


def mapping_problems(config: NodeConfig, spec: RemoteSpec) -> list[str]:
    """Why this mapping cannot serve this policy, told without ROS."""
    problems = [
        f"the policy needs {key} ({feature.dtype} {list(feature.shape)}); the mapping gives {', '.join(config.observation)}"
        for key, feature in spec.observation.items()
        if key != TASK and key not in config.observation
    ]
    known = list(spec.observation[TASK].values) if TASK in spec.observation else []
    if TASK in spec.observation and config.task not in known:
        problems.append(f"the mapping's task is {config.task!r}; the policy knows {known}")
    problems += limit_problems(spec, config.limits, config.ee_position, config.joints)
    has_pose = len(config.ee_position) == 3 and len(config.ee_rotation) == 6
    why = refusal(config.command.type, config.limits, config.command.joints, has_pose=has_pose)
    problems += [why] if why else []
    if config.command.type == TRAJECTORY and len(config.joints) < len(config.command.joints):
        problems.append(
            f"a {TRAJECTORY} of {list(config.command.joints)} starts where these joints are: `joints` must name the "
            f"observation's entries with their positions, in that order; given {list(config.joints)}"
        )
    for names in (config.ee_position, config.ee_rotation if config.command.type == POSE else (), config.joints):
        try:
            find_entries(spec, names)
        except ValueError as error:
            problems.append(str(error))
    return problems


def type_problems(config: NodeConfig) -> list[str]:
    """Message types that the ROS at hand does not have."""
    sources = [source for group in config.observation.values() for source in group]
    wanted = {**{source.type: source.topic for source in sources}, config.command.type: config.command.topic}
    if any(source.camera_info for source in sources):
        wanted["sensor_msgs/CameraInfo"] = "camera_info"
    if needs_tf(config):
        wanted["tf2_msgs/TFMessage"] = "/tf; or give each source a T_base_sensor and leave base_frame out"
    problems = []
    for name, topic in wanted.items():
        try:
            message_class(name)
        except ValueError as error:
            problems.append(f"{error} (for {topic})")
    return problems


def needs_tf(config: NodeConfig) -> bool:
    """Whether /tf is asked for anything."""
    sources = [source for group in config.observation.values() for source in group]
    return bool(config.base_frame) and any(source.has_frame and source.T_base_sensor is None for source in sources)


def stream_problems(
    streams: Mapping[str, list[Stream]], features: Mapping[str, Any], published: Mapping[str, str], stop_topic: str
) -> list[str]:
    """What is wrong with what came so far: silent topics, other types, encodings, joints, transforms, shapes."""
    problems = []
    for key, group in streams.items():
        for stream in group:
            topic, kind = stream.source.topic, stream.source.type
            offered = published.get(topic)
            if offered is not None and offered != kind:
                problems.append(f"{topic} is published as {offered}, the mapping says {kind} (for {key})")
            elif stream.latest is None:
                others = sorted(name for name, t in published.items() if t == kind and name != topic)
                hint = f"; topics of that type: {', '.join(others)}" if others else ""
                silent = "is published, but nothing came" if offered else "is published by nobody"
                problems.append(f"{topic} ({kind}, for {key}) {silent}{hint}")
            else:
                try:
                    stream.latest.value()
                except ValueError as error:
                    problems.append(f"{topic} (for {key}): {error}")
        if not problems:
            try:
                joined(key, [stream.latest for stream in group if stream.latest is not None], features[key])
            except ValueError as error:
                problems.append(str(error))
    if stop_topic and published.get(stop_topic) != STOP_TYPE:
        found = f"is published as {published[stop_topic]}" if stop_topic in published else "is published by nobody"
        problems.append(f"{stop_topic} (stop_topic, {STOP_TYPE}) {found}: the robot could not be stopped")
    return problems
