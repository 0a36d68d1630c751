"""RGB frames to and from mp4 files with PyAV (an optional dependency: `pip install robopolicy[lerobot]`)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from robopolicy.data.episode_file import DatasetError
from robopolicy.spec import Array


@dataclass(frozen=True)
class Encoding:
    """How frames become video. Every second frame is a key frame, so that single frames decode fast."""

    encoder: str
    codec: str
    pix_fmt: str
    options: dict[str, str]


_COMMON = {"g": "2", "bf": "0"}
ENCODINGS = {
    "h264": Encoding("libx264", "h264", "yuv444p", {**_COMMON, "crf": "18"}),
    "av1": Encoding("libsvtav1", "av1", "yuv420p", {"g": "2", "crf": "30", "preset": "8"}),
    "h264_lossless": Encoding("libx264rgb", "h264", "rgb24", {**_COMMON, "qp": "0"}),
}


def _av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise ValueError("videos need PyAV: pip install 'robopolicy[lerobot]' (images=png exports without it)") from error
    av.logging.set_level(av.logging.ERROR)
    os.environ.setdefault("SVT_LOG", "1")  # errors only
    return av


class VideoWriter:
    """Appends frames to one mp4 file.

    Attributes:
        num_frames: written so far. num_bytes: of the packets so far.
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: float, encoding: Encoding) -> None:
        av = _av()
        self.num_frames, self.num_bytes = 0, 0
        rate = Fraction(fps).limit_denominator(1001)
        height, width = size
        if encoding.pix_fmt == "yuv420p" and (height % 2 or width % 2):
            raise ValueError(f"{encoding.codec} video needs even sizes, the images are {height} x {width}: use images=h264")
        self._container = av.open(str(path), "w")
        self._stream = self._container.add_stream(encoding.encoder, rate=rate, options=encoding.options)
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, encoding.pix_fmt
        self._time_base = self._stream.codec_context.time_base = 1 / rate  # the stream's own changes with the first packet

    def add(self, frames: Array) -> None:
        """Append frames, uint8 [T, H, W, 3]."""
        av = _av()
        for image in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = self.num_frames, self._time_base
            self._mux(frame)
            self.num_frames += 1

    def close(self) -> None:
        """Finish the file."""
        self._mux(None)
        self._container.close()

    def _mux(self, frame: Any) -> None:
        before = _scheduling() if self.num_frames == 0 else {}  # the encoder opens with its first frame
        packets = self._stream.encode(frame)
        if before:
            _restore(before)
        for packet in packets:
            self.num_bytes += packet.size
            self._container.mux(packet)


def _scheduling() -> dict[int, int]:
    """Scheduling policy of every thread of this process; {} where the system does not say."""
    tasks, found = Path("/proc/self/task"), {}
    for thread in [int(task.name) for task in tasks.iterdir()] if tasks.is_dir() else []:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            found[thread] = os.sched_getscheduler(thread)
    return found


def _restore(before: dict[int, int]) -> None:
    """Undo what SVT-AV1 does as root: its caller and its threads become real-time threads of the highest priority, for good.

    Whatever the process did afterwards would starve everything else on the machine.
    """
    for thread, policy in _scheduling().items():
        if policy != before.get(thread, os.SCHED_OTHER):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


class VideoReader:
    """Reads stretches of one video file; cheap when they come in ascending order."""

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps = path, fps
        self._position = 0  # index of the frame that _frames yields next
        self._frames: Iterator[tuple[int, Array]] = iter(())

    def read(self, first: int, count: int) -> Array:
        """Frames `first` to `first + count`, uint8 [count, H, W, 3]. Raises DatasetError when there are not as many."""
        if first < self._position or self._position == 0:
            self._frames = self._decode()
        frames: list[Array] = []
        for index, image in self._frames:
            self._position = index + 1
            if index >= first:
                if index != first + len(frames):
                    raise DatasetError(
                        f"{self.path} lacks frame {first + len(frames)}: by its time the next one is {index}, at {self.fps:g} "
                        "frames a second; restore the file, or leave its key out"
                    )
                frames.append(image)
            if len(frames) == count:
                return np.stack(frames)
        raise DatasetError(
            f"{self.path} is cut short or damaged: it lacks frames {first} to {first + count}; restore it from a copy"
        )

    def _decode(self) -> Iterator[tuple[int, Array]]:
        """(index, frame): of all frames that belong to a step of the dataset, the one that is nearest to it in time."""
        best: tuple[int, float, Any] | None = None
        for time, frame in self._timed():
            index = round(time * self.fps)
            off = abs(time * self.fps - index)
            if best is not None and best[0] != index:
                yield best[0], best[2].to_ndarray(format="rgb24")
                best = None
            if best is None or off < best[1]:
                best = index, off, frame
        if best is not None:
            yield best[0], best[2].to_ndarray(format="rgb24")

    def _timed(self) -> Iterator[tuple[float, Any]]:
        av = _av()
        try:
            with av.open(str(self.path)) as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                for frame in container.decode(stream):
                    yield float(frame.pts * frame.time_base), frame
        except (av.error.FFmpegError, IndexError) as error:
            raise DatasetError(f"{self.path} cannot be decoded ({error}); restore it from a copy") from error
