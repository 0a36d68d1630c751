"""Bags of what a node hears and says, in pure Python: MCAP for ROS 2, a .bag for ROS 1. Never in the robot's way.

A thread of its own writes; where the disk is slower than the topics, messages are left out and counted. When it is full,
the bag is closed so that it can be read up to there, and the robot goes on. Part of the robot-side island: rosbags only.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

RESERVE_BYTES = 32 * 2**20  # kept free for the end of a bag: its last chunk and its index
QUEUE = 256  # messages that wait for the disk
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Recorder:
    """Writes messages to the bag at `path`.

    Args:
        path: of the bag, which must not exist yet.
        version: "1" or "2".
        serialize: message -> bytes.
        reserve_bytes: of disk space kept for closing the bag.

    Attributes:
        num_written, num_dropped: messages in the bag, and those that are not: the disk was too slow, or full.
        problem: why no more is written, "" while all is well.

    Raises:
        OSError: the bag exists or cannot be made. ImportError: rosbags is not installed.
    """

    def __init__(
        self, path: str | Path, version: str, serialize: Callable[[Any], bytes], *, reserve_bytes: int = RESERVE_BYTES
    ) -> None:
        self.path, self._serialize, self.num_written, self.num_dropped, self.problem = Path(path), serialize, 0, 0, ""
        self._bag = (_Ros1Bag if version == "1" else _Ros2Bag)(self.path)
        self._reserve = _Reserve(self.path, reserve_bytes)
        self._queue: queue.Queue[tuple[str, str, Any, float] | None] = queue.Queue(QUEUE)
        self._last_ns = 0
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def write(self, topic: str, type_name: str, message: Any, seconds: float) -> None:
        """Take a message that passed at `seconds` (ROS time) down; returns at once."""
        if self.problem:
            self.num_dropped += 1
            return
        try:
            self._queue.put_nowait((topic, type_name, message, seconds))
        except queue.Full:
            self.num_dropped += 1

    def close(self) -> None:
        """Write what waits, and the end of the bag."""
        self._queue.put(None)
        self._thread.join()

    def __str__(self) -> str:
        return f"{self.num_written} messages, {self.num_dropped} dropped{': ' + self.problem if self.problem else ''}"

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self.problem:
                self.num_dropped += 1
                continue
            topic, type_name, message, seconds = item
            # later than the message before, so that the order of a bag read by time is the order of recording
            self._last_ns = max(round(seconds * 1e9), self._last_ns + 1)
            try:
                data = self._serialize(message)
                self._bag.write(topic, type_name, message, self._last_ns, data)
                self.num_written += 1
            except OSError as error:
                self._give_up(error)
            except Exception as error:  # a message that cannot be written is no reason to stop a robot, or the recording
                log.error("%s is not recorded: %s", topic, error)
                self.num_dropped += 1
        self._finish()

    def _give_up(self, error: OSError) -> None:
        full = error.errno in DISK_FULL
        self.problem = "the disk is full" if full else str(error)
        log.error("recording to %s ends: %s", self.path, self.problem)
        self._reserve.free()
        with suppress(OSError):
            self._bag.rewind()
            self.num_written += 1  # the message that did not fit is in the last chunk, which is written with the end
        self._close_bag()

    def _finish(self) -> None:
        self._reserve.free()
        if not self.problem:
            self._close_bag()

    def _close_bag(self) -> None:
        try:
            self._bag.close()
        except OSError as error:
            self.problem = f"{self.problem or error}; the bag has no index: {error}"
            log.error("%s: %s", self.path, self.problem)


class _Reserve:
    """Disk space taken now and given back when it is needed."""

    def __init__(self, bag: Path, num_bytes: int) -> None:
        self._path = bag.with_name(f".{bag.name}.reserve")
        with self._path.open("wb") as file:
            if num_bytes:
                os.posix_fallocate(file.fileno(), 0, num_bytes)

    def free(self) -> None:
        self._path.unlink(missing_ok=True)


class _Ros2Bag:
    """A rosbag2 folder with an MCAP file. `rewind` undoes a write that failed half way; `close` can go on from there."""

    def __init__(self, path: Path) -> None:
        from rosbags.rosbag2 import StoragePlugin, Writer
        from rosbags.typesys import Stores, get_typestore

        self._types = get_typestore(Stores.ROS2_JAZZY)
        self._writer = Writer(path, version=9, storage_plugin=StoragePlugin.MCAP)
        self._writer.open()
        self._connections: dict[str, Any] = {}
        self._end = self._file.tell()

    @property
    def _file(self) -> Any:
        return self._writer.storage.bio  # type: ignore[union-attr]

    def write(self, topic: str, type_name: str, message: Any, stamp_ns: int, data: bytes) -> None:
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(topic, _full(type_name), typestore=self._types)
        self._end = self._file.tell()
        self._writer.write(self._connections[topic], stamp_ns, self._trimmed(data, _full(type_name)))

    def _trimmed(self, data: bytes, type_name: str) -> bytes:
        """Without what rclpy's serialize_message may leave at the end, of which readers complain."""
        definition = self._types.get_msgdef(type_name)
        read = definition.deserialize_cdr_le if data[1] else definition.deserialize_cdr_be
        return data[: 4 + read(data[4:], 0, definition.cls, self._types)[1]]

    def rewind(self) -> None:
        _truncate(self._file, self._end)

    def close(self) -> None:
        self._writer.close()


class _Ros1Bag:
    """A .bag file."""

    def __init__(self, path: Path) -> None:
        from rosbags.rosbag1 import Writer

        self._writer = Writer(path)
        self._writer.open()
        self._connections: dict[str, Any] = {}
        self._end = self._writer.bio.tell()  # type: ignore[union-attr]

    def write(self, topic: str, type_name: str, message: Any, stamp_ns: int, data: bytes) -> None:
        if topic not in self._connections:
            text, digest = message._full_text, message._md5sum
            self._connections[topic] = self._writer.add_connection(topic, _full(type_name), msgdef=text, md5sum=digest)
        self._end = self._writer.bio.tell()  # type: ignore[union-attr]
        self._writer.write(self._connections[topic], stamp_ns, data)

    def rewind(self) -> None:
        _truncate(self._writer.bio, self._end)
        self._writer.chunks[-1].pos = -1  # it is not in the file

    def close(self) -> None:
        self._writer.close()


def _full(type_name: str) -> str:
    """sensor_msgs/Image as sensor_msgs/msg/Image."""
    return type_name if "/msg/" in type_name else type_name.replace("/", "/msg/")


def _truncate(file: Any, end: int) -> None:
    with suppress(OSError):
        file.flush()  # what its buffer still holds goes where it is cut off
    file.seek(end)
    file.truncate()


def open_recorder(path: str | Path, version: str, serialize: Callable[[Any], bytes]) -> Recorder:
    """A Recorder. Raises ValueError where the bag exists already or rosbags is missing, with what to do."""
    if Path(path).exists():
        raise ValueError(f"{path} exists already: give --record another name")
    try:
        return Recorder(path, version, serialize)
    except ImportError as error:
        raise ValueError(f"recording needs rosbags (pip install 'rosbags>=0.11,<0.12'): {error}") from error
