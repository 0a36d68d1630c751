"""ROS 1 and ROS 2 bags as episodes, for `data import`, `rank` and `replay`; needs no ROS, but pip install 'robopolicy[bags]'.

A bag of our own recorder says itself what its topics mean, and has a step for every action. Any other bag needs a mapping
file, as the node does, or keys that name topics; its steps are at a rate that is given, and show what was known by then.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.data.episode_file import DatasetError
from robopolicy.data.importers.run import find_bags
from robopolicy.data.importers.source import Episode, Layout, needs
from robopolicy.deploy.client import RemoteSpec
from robopolicy.deploy.ros_commands import ARRAY, POSE, TRAJECTORY, TWIST
from robopolicy.deploy.ros_config import CommandTopic, NodeConfig, Source, load_config
from robopolicy.deploy.ros_messages import CONVERTERS, first_point
from robopolicy.deploy.ros_output import ABOUT, ACTION, EPISODE, recorded
from robopolicy.deploy.ros_streams import Converter, Sample, Stream
from robopolicy.deploy.ros_transforms import header_seconds
from robopolicy.deploy.ros_transport import plain_type
from robopolicy.spec import ACTION as ACTION_KEY
from robopolicy.spec import STATE, TASK, Array, FeatureSpec, did_you_mean, image_key

logger = logging.getLogger(__name__)

_PICTURES = ("sensor_msgs/Image", "sensor_msgs/CompressedImage")
_WORDS = ("image_raw", "image", "compressed", "color", "camera", "rgb")  # of camera topics, that name no camera
SAME_TIME_S = 1e-3  # messages of one moment
MAX_AGE_S = 1.0  # a step whose newest message is older than this is warned about


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    needs("rosbags.highlevel", "bags")
    from rosbags.highlevel import AnyReader, AnyReaderError
    from rosbags.rosbag1 import ReaderError as Ros1Error
    from rosbags.rosbag2 import ReaderError as Ros2Error
    from rosbags.typesys import Stores, get_typestore

    paths = [path] if path.is_file() or (path / "metadata.yaml").is_file() else sorted(path.glob("*.mcap"))
    try:
        with AnyReader(paths, default_typestore=get_typestore(Stores.ROS2_JAZZY)) as reader:
            yield reader
    except (AnyReaderError, Ros1Error, Ros2Error) as error:
        raise DatasetError(
            f"{path} cannot be read as a bag: {error}; a bag that was not closed is mended by `ros2 bag reindex`"
            " or `rosbag reindex`"
        ) from error


def read_messages(path: Path, topics: Collection[str]) -> Iterator[tuple[str, float, Any]]:
    """(topic, log time (s), message) of some topics of one bag, by time; a message is deserialised when it is called."""
    with _open(path) as reader:
        connections = [c for c in reader.connections if c.topic in topics]
        if connections:
            for connection, nanoseconds, raw in reader.messages(connections=connections):
                yield connection.topic, nanoseconds * 1e-9, lambda r=raw, t=connection.msgtype: reader.deserialize(r, t)


def topic_types(path: Path) -> dict[str, str]:
    """{topic: type} of one bag."""
    with _open(path) as reader:
        return {topic: plain_type(str(info.msgtype)) for topic, info in reader.topics.items()}


@dataclass(frozen=True)
class Meaning:
    """What the topics of bags are.

    sources: {field: topics that make it}. config: the mapping that says so, if any. spec: of the policy that was run.
    """

    sources: dict[str, tuple[Source, ...]]
    config: NodeConfig | None = None
    spec: RemoteSpec | None = None

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a field at one step, as far as the policy's spec tells."""
        features = self.spec.observation if self.spec is not None else {}
        return features[name].shape if name in features else ()


class BagSource:
    """One bag or a folder of bags (see data.importers.source.Source). Fields are our keys where the meaning of the topics is
    known, else topics.

    Args:
        path: of them; the topics of the first speak for all.
        mapping: a mapping file; None = what the bag says itself, or that fields are topics.
        fps: rate of the steps (Hz), for bags that have no actions of ours.
        spec: of a policy, whose shapes images and clouds get; None = of the policy that was run, if known.

    Raises:
        DatasetError: no bag, or one that cannot be read. ValueError: a mapping that does not fit, rosbags is not installed.
    """

    def __init__(
        self, path: Path, mapping: str | Path | None = None, fps: float | None = None, spec: RemoteSpec | None = None
    ) -> None:
        self.path, self.bags = path, find_bags(path)
        if not self.bags:
            raise DatasetError(f"{path} is no ROS bag: give a .bag, .mcap or .db3 file, a bag's folder, or a folder of bags")
        self.types = types = topic_types(self.bags[0])
        about = _about(self.bags[0]) if recorded(ABOUT) in types else None
        self.meaning = _meaning(types, mapping, about, spec)
        self.stepped = recorded(ACTION) in types
        own_hz = about["control_hz"] if about else None
        self.fps = own_hz if self.stepped and own_hz else fps
        self.layout = self._layout(types)

    def _layout(self, types: Mapping[str, str]) -> Layout:
        fields = dict.fromkeys(self.meaning.sources)
        if self.stepped or (self.meaning.config is not None and self._command_refusal(types) == ""):
            fields[ACTION_KEY] = None
        known = self.meaning.config is not None or self.meaning.spec is not None
        defaults: dict[str, tuple[str, ...]] = {name: (name,) for name in fields} if known else _defaults(types, fields)
        spec, specs = self.meaning.spec, {}
        if spec is not None:
            features = {**spec.observation, ACTION_KEY: spec.action}
            specs = {name: FeatureSpec(**features[name].to_dict()) for name in fields if name in features}
        left_out = {topic: f"is a {kind}, which is not read" for topic, kind in types.items() if kind not in CONVERTERS}
        hidden = {recorded(name) for name in (ABOUT, EPISODE, ACTION)} | {"/tf", "/tf_static", "/diagnostics", "/clock"}
        left_out = {topic: why for topic, why in left_out.items() if topic not in hidden and not known}
        return Layout(tuple(fields), defaults, len(self.bags), self.fps, specs, left_out=left_out)

    def _command_refusal(self, types: Mapping[str, str]) -> str:
        """Why the mapping's command topic says no action; "" if it does."""
        assert self.meaning.config is not None
        command = self.meaning.config.command
        if types.get(command.topic) != command.type:
            return f"{command.topic} ({command.type}) is not in the bag"
        return "a pose is no motion from where the robot was" if command.type == POSE else ""

    def episodes(self, fields: Collection[str]) -> Iterator[Episode]:
        """See Source. A bag of ours has an episode for every time that its node was active, another is one episode."""
        if not self.stepped and not self.fps:
            raise DatasetError(f"{self.path} does not say at which rate its steps are: give fps=RATE (Hz)")
        for bag in self.bags:
            found = 0
            for rows in _episodes(bag, self.meaning, list(fields), None if self.stepped else self.fps):
                arrays = {name: np.stack([row[name] for row in rows]) for name in fields}
                label = bag.name if not found else f"{bag.name} episode {found}"
                task = self.meaning.config.task if self.meaning.config is not None else ""
                yield Episode(arrays, {TASK: task, "bag": bag.name}, label)
                found += 1
            if not found:
                raise DatasetError(f"{bag} has no moment at which all of {', '.join(fields)} were known")


def _about(bag: Path) -> dict[str, Any]:
    for _, _, message in read_messages(bag, [recorded(ABOUT)]):
        try:
            about: dict[str, Any] = json.loads(message().data)
            RemoteSpec.from_dict(about["spec"]), float(about["control_hz"]), NodeConfig.from_dict(about["mapping"])
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"{bag}: {recorded(ABOUT)} does not say what the topics are ({error!r})") from error
        return about
    raise DatasetError(f"{bag} has no message on {recorded(ABOUT)}")


def _meaning(
    types: Mapping[str, str], mapping: str | Path | None, about: Mapping[str, Any] | None, spec: RemoteSpec | None
) -> Meaning:
    if about is not None:
        spec = spec or RemoteSpec.from_dict(about["spec"])
    if mapping is None and about is None:
        return Meaning({topic: (Source(topic, kind),) for topic, kind in sorted(types.items()) if kind in CONVERTERS})
    config = load_config(mapping) if mapping is not None else NodeConfig.from_dict((about or {})["mapping"])
    for key, sources in config.observation.items():
        for source in sources:
            if source.topic not in types:
                raise DatasetError(f"the bag has no topic {source.topic!r} for {key}; {did_you_mean(source.topic, types)}")
            if types[source.topic] != source.type:
                raise DatasetError(f"{source.topic} holds {types[source.topic]} in the bag, {source.type} in the mapping")
    return Meaning(dict(config.observation), config, spec)


def _defaults(types: Mapping[str, str], fields: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Cameras by their names, the only joint states as the state, our own actions."""
    cameras = [topic for topic, kind in sorted(types.items()) if kind in _PICTURES]
    found: dict[str, tuple[str, ...]] = {
        image_key("front" if len(cameras) == 1 else camera_name(topic)): (topic,) for topic in cameras
    }
    joints = [topic for topic, kind in types.items() if kind == "sensor_msgs/JointState"]
    if len(joints) == 1:
        found[STATE] = (joints[0],)
    return found | ({ACTION_KEY: (ACTION_KEY,)} if ACTION_KEY in fields else {})


def camera_name(topic: str) -> str:
    """ "/camera/wrist/image_raw" -> "wrist"."""
    words = [word for word in topic.split("/") if word and word not in _WORDS]
    return words[-1] if words else "front"


@dataclass
class _Reader:
    """What a bag has said up to a moment."""

    meaning: Meaning
    names: list[str]
    converter: Converter = field(default_factory=Converter)
    others: dict[str, Any] = field(default_factory=dict)  # newest command messages by topic

    def __post_init__(self) -> None:
        config = self.meaning.config
        if config is not None:
            self.converter = Converter(config.base_frame)
        self.streams = {
            name: [Stream(name, source, self.meaning.shape(name), self.converter) for source in self.meaning.sources[name]]
            for name in self.names
            if name != ACTION_KEY
        }
        self.by_topic: dict[str, list[Stream]] = {}
        for group in self.streams.values():
            for stream in group:
                self.by_topic.setdefault(stream.source.topic, []).append(stream)
        self.camera_infos = {stream.source.camera_info for group in self.streams.values() for stream in group} - {""}
        self.commands: set[str] = set()
        if config is not None and ACTION_KEY in self.names:
            self.commands = {config.command.topic, config.command.gripper_topic} - {""}

    @property
    def topics(self) -> set[str]:
        return {*self.by_topic, *self.camera_infos, *self.commands, "/tf", "/tf_static"}

    def take(self, topic: str, seconds: float, message: Any) -> None:
        """message: () -> message, called for what is needed at once; what may be passed over waits."""
        for stream in self.by_topic.get(topic, ()):
            stream.latest = Sample(stream, message, seconds)
        if topic in self.camera_infos:
            self.converter.camera_infos[topic] = message()
        if topic in ("/tf", "/tf_static"):
            self.converter.transforms.add(message().transforms, static=topic == "/tf_static")
        if topic in self.commands:
            self.others[topic] = message()

    def complete(self) -> bool:
        return all(stream.latest is not None for group in self.streams.values() for stream in group)

    def oldest(self) -> float:
        return min((s.latest.stamp for group in self.streams.values() for s in group if s.latest is not None), default=np.inf)

    def row(self) -> dict[str, Array]:
        """The observation, as arrays."""
        return {name: self._joined(name, group) for name, group in self.streams.items()}

    def _joined(self, name: str, group: list[Stream]) -> Array:
        parts = []
        for stream in group:
            sample = stream.latest
            assert sample is not None
            if callable(sample.message):  # several steps may look at one sample
                sample.message = sample.message()
                sample.stamp = header_seconds(sample.message) or sample.stamp
            try:
                parts.append(sample.value())
            except ValueError as error:
                raise DatasetError(f"{stream.source.topic}: {error}") from error
        value = np.concatenate(parts, axis=-1)
        spec = self.meaning.spec
        return value.astype(spec.observation[name].dtype, copy=False) if spec and name in spec.observation else value

    def commanded(self, hz: float) -> dict[str, Array]:
        """{ACTION: what the newest commands ask for}; {} before the first, and where nobody wants to know."""
        config = self.meaning.config
        if config is None or not self.commands <= self.others.keys() or not self.commands:
            return {}
        command, limits = config.command, config.limits
        message = self.others[command.topic]
        try:
            value = _targets(message, command) if command.type == TRAJECTORY else CONVERTERS[command.type](message)
        except ValueError as error:
            raise DatasetError(f"{command.topic}: {error}") from error
        if command.type == ARRAY:
            return {ACTION_KEY: value}
        action = np.zeros(limits.action_dim, np.float32)
        opening = list(limits.absolute)
        if command.type == TWIST:
            action[list(limits.translation)], action[list(limits.rotation)] = value[:3] / hz, value[3:] / hz
        elif command.type == TRAJECTORY:
            if len(value) > len(opening):
                raise DatasetError(f"{command.topic} is of {len(value)} joints, the limits of {len(opening)} absolute entries")
            action[opening[: len(value)]] = value
            opening = opening[len(value) :]
        if command.gripper_topic and opening:
            action[opening[0]] = self.others[command.gripper_topic].data
        return {ACTION_KEY: action}


def _targets(message: Any, command: CommandTopic) -> Array:
    """The joint targets of a JointTrajectory, in the mapping's order. Raises ValueError where it is of other joints."""
    others = sorted(set(message.joint_names) - set(command.joints))
    if command.joints and others:
        raise ValueError(f"the JointTrajectory commands {others} too, the mapping's command has {list(command.joints)}")
    return first_point(message, command.joints)


def _episodes(bag: Path, meaning: Meaning, names: list[str], fps: float | None) -> Iterator[list[dict[str, Array]]]:
    """Rows {field: [...]} of each episode of a bag: at our own actions (fps None), or every 1 / fps s."""
    if fps is None:
        yield from _by_actions(bag, meaning, names)
    else:
        rows = list(_by_time(bag, meaning, names, fps))
        if rows:
            yield rows


def _by_actions(bag: Path, meaning: Meaning, names: list[str]) -> Iterator[list[dict[str, Array]]]:
    reader = _Reader(meaning, names)
    rows: list[dict[str, Array]] = []
    for topic, seconds, message in read_messages(bag, {*reader.topics, recorded(ACTION), recorded(EPISODE)}):
        if topic == recorded(EPISODE):
            if rows:
                yield rows
            rows = []
        elif topic == recorded(ACTION):
            if reader.complete():
                action = {ACTION_KEY: np.asarray(message().data, np.float32)} if ACTION_KEY in names else {}
                rows.append({**reader.row(), **action})
        else:
            reader.take(topic, seconds, message)
    if rows:
        yield rows


def rows_at(bag: Path, meaning: Meaning, trigger: str) -> Iterator[dict[str, Array]]:
    """The observation {field: [...]} at every message of the topic `trigger`, itself included."""
    reader = _Reader(meaning, list(meaning.sources))
    for topic, seconds, message in read_messages(bag, {*reader.topics, trigger}):
        reader.take(topic, seconds, message)
        if topic == trigger and reader.complete():
            yield reader.row()


def _by_time(bag: Path, meaning: Meaning, names: list[str], fps: float) -> Iterator[dict[str, Array]]:
    """Steps from the moment at which all is observed; the action of a step is what was commanded by its end.

    Steps before the first command are left out.
    """
    reader = _Reader(meaning, names)
    due, late = np.inf, 0
    pending: dict[str, Array] | None = None
    for topic, seconds, message in read_messages(bag, reader.topics):
        while seconds > due + SAME_TIME_S:
            if pending is not None and (ACTION_KEY not in names or reader.commands <= reader.others.keys()):
                yield pending | reader.commanded(fps)
            late += due - reader.oldest() > MAX_AGE_S
            pending, due = reader.row(), due + 1.0 / fps
        reader.take(topic, seconds, message)
        if due == np.inf and reader.complete():
            due = seconds
    if pending is not None and (ACTION_KEY not in names or reader.commands <= reader.others.keys()):
        yield pending | reader.commanded(fps)
    if late:
        logger.warning("%s: at %d steps a topic had been silent for more than %g s", bag, late, MAX_AGE_S)
