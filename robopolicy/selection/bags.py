"""A ROS 1 or ROS 2 bag (sqlite or MCAP) as target observations; needs no ROS, but `pip install 'robopolicy[bags]'`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from robopolicy.deploy.ros_bag import BagSource, Meaning, rows_at
from robopolicy.deploy.ros_config import Source
from robopolicy.deploy.ros_output import ACTION as ACTION_TOPIC
from robopolicy.deploy.ros_output import recorded
from robopolicy.ranking.tables import RankingError
from robopolicy.selection.target import RecordedTarget
from robopolicy.spec import IMAGES, did_you_mean


def read_bag(path: Path, keys: Mapping[str, str] | None = None) -> RecordedTarget:
    """The observations of a bag, with what every topic said last before: at each action of a bag of our own recorder, else
    at each picture of its first camera.

    keys: {our key: topic}, e.g. {"observation.images.front": "/camera/image_raw", "observation.state": "/joint_states"};
    None = what the bag says itself, else every camera by its name, and the only topic of joint states.

    Raises:
        RankingError: rosbags is not installed, a topic is missing or of a type that cannot be read, or nothing was recorded.
    """
    try:
        source = BagSource(path)
        meaning, trigger = _meaning(source, keys)
        found = [list(rows_at(bag, meaning, trigger)) for bag in source.bags]
    except ValueError as error:
        raise RankingError(str(error)) from error
    rows = [row for episode in found for row in episode]
    if not rows:
        raise RankingError(f"{path} has no moment at which all of {', '.join(meaning.sources)} had been published")
    values = {key: np.stack([row[key] for row in rows]) for key in meaning.sources}
    return RecordedTarget(values, np.repeat(np.arange(len(found)), [len(episode) for episode in found]))


def _meaning(source: BagSource, keys: Mapping[str, str] | None) -> tuple[Meaning, str]:
    """What the topics are, pictures first, and the topic whose messages make the rows."""
    types = source.types
    wanted: dict[str, tuple[Source, ...]]
    if keys:
        for key, topic in keys.items():
            if topic not in types:
                raise RankingError(f"{source.path} has no topic {topic!r} for {key}; {did_you_mean(str(topic), types)}")
        wanted = {key: (Source(topic, types[topic]),) for key, topic in keys.items()}  # ValueError: of a type not read
    elif source.meaning.config is not None:
        wanted = dict(source.meaning.sources)
    else:
        wanted = {key: (Source(topics[0], types[topics[0]]),) for key, topics in source.layout.defaults.items()}
    pictures = [key for key in wanted if key.startswith(IMAGES)]
    if source.stepped and not keys:
        trigger = recorded(ACTION_TOPIC)
    elif pictures:
        trigger = wanted[pictures[0]][0].topic
    else:
        listed = ", ".join(f"{topic} ({kind})" for topic, kind in sorted(types.items())) or "none"
        raise RankingError(f"{source.path} has no pictures; its topics: {listed}. Name one with target_keys='{{KEY: TOPIC}}'")
    ordered = {key: wanted[key] for key in [*pictures, *(key for key in wanted if key not in pictures)]}
    return Meaning(ordered, source.meaning.config, source.meaning.spec), trigger
