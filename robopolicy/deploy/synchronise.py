"""From streams of stamped arrays to one observation: what was measured at (nearly) the same time, and is not old.

Times come in as numbers (s, any one clock). Part of the robot-side island: numpy only.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    Value = np.ndarray | Callable[[], np.ndarray]  # what was measured, or how to make it when it is needed


class BadMessage(ValueError):  # noqa: N818
    """The message of `stream` cannot be used; `why` is a word or a sentence."""

    def __init__(self, stream: str, why: str) -> None:
        super().__init__(f"{stream}: {why}")
        self.stream, self.why = stream, why


def reason(error: Exception) -> str:
    """What went wrong, for people: a ValueError is written for them, of another the type is said too."""
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


class Frame:
    """A message of a stream: its stamp (s) and its array, or how to make it when somebody looks."""

    def __init__(self, stream: str, stamp: float, value: Value) -> None:
        self.stream, self.stamp = stream, stamp
        self._value = value

    def array(self) -> np.ndarray:
        """The array, made once. Raises BadMessage where that fails or a number is not finite."""
        if callable(self._value):
            try:
                self._value = np.asarray(self._value())
            except Exception as error:  # a message may be anything, and its decoder raise anything
                raise BadMessage(self.stream, reason(error)) from error
            self.check()
        return self._value

    def check(self) -> None:
        """Raises BadMessage if a number is not finite."""
        if isinstance(self._value, np.ndarray) and self._value.dtype.kind == "f" and not np.isfinite(self._value).all():
            raise BadMessage(self.stream, "not_finite")


class Watchdog:
    """Which of the streams in `keys` are older than `max_age_s` (one number, or {stream: s}). One that never came is stale."""

    def __init__(self, keys: Iterable[str], max_age_s: float | Mapping[str, float]) -> None:
        self._stamps = dict.fromkeys(keys, -np.inf)
        ages = dict.fromkeys(self._stamps, max_age_s) if isinstance(max_age_s, (int, float)) else dict(max_age_s)
        if set(ages) != set(self._stamps) or not all(0 < age < np.inf for age in ages.values()):
            raise ValueError(f"max_age_s={max_age_s} must be positive, one number or one for each of {list(self._stamps)}")
        self.max_age_s = ages

    def feed(self, key: str, stamp: float) -> None:
        """The newest message of stream `key` was measured at `stamp` (s)."""
        if key not in self._stamps:
            raise KeyError(f"no stream {key!r}; watched: {', '.join(self._stamps)}")
        self._stamps[key] = stamp

    def ages(self, now: float) -> dict[str, float]:
        """{stream: s since its newest message was measured}, inf where none came."""
        return {key: now - stamp for key, stamp in self._stamps.items()}

    def stale(self, now: float) -> tuple[str, ...]:
        """Streams older than allowed at `now`, or that far in the future (then a clock is wrong)."""
        return tuple(key for key, age in self.ages(now).items() if not abs(age) <= self.max_age_s[key])

    def forget(self) -> None:
        """Nothing has come yet."""
        self._stamps = dict.fromkeys(self._stamps, -np.inf)


class Snapshot:
    """What the streams said at about `stamp` (s) and before: {stream: To frames, oldest first}."""

    def __init__(self, stamp: float, frames: Mapping[str, list[Frame]]) -> None:
        self.stamp, self.frames = stamp, frames

    def history(self, stream: str) -> np.ndarray:
        """[To, ...]. Raises BadMessage."""
        arrays = [frame.array() for frame in self.frames[stream]]
        if len({array.shape for array in arrays}) > 1:
            raise BadMessage(stream, f"its shape changed: {arrays[0].shape}, {arrays[-1].shape}")
        return np.stack(arrays)


class Synchronizer:
    """Keeps the last messages of each of `streams` and picks those that belong together.

    The reference time is the newest stamp of the slowest stream; every other stream gives its message nearest to it. History
    is picked the same way, at one policy step before, two steps before, and so on; where the streams do not reach so far back
    the first message is repeated. After a stream went stale, or the clock jumped, history starts anew: one with a hole in it
    is none.

    obs_horizon: To, frames of history. step_s: a step of the policy (s). max_age_s: age (s) from which a message is stale, one
    number or {stream: s}. tolerance_s: how far (s) from the reference a stream's message may lie.
    """

    def __init__(
        self,
        streams: Iterable[str],
        *,
        obs_horizon: int,
        step_s: float,
        max_age_s: float | Mapping[str, float],
        tolerance_s: float = 0.05,
    ) -> None:
        self._frames: dict[str, deque[Frame]] = {name: deque() for name in streams}
        self.watchdog = Watchdog(self._frames, max_age_s)
        if not 0 < tolerance_s < np.inf or not step_s > 0 or obs_horizon < 1:
            raise ValueError(f"tolerance_s={tolerance_s}, step_s={step_s} must be positive, obs_horizon={obs_horizon} from 1")
        self.tolerance_s, self.step_s, self.obs_horizon = tolerance_s, step_s, obs_horizon
        self._keep_s = (obs_horizon - 1) * step_s + max(self.watchdog.max_age_s.values(), default=0.0) + 2 * tolerance_s

    def feed(self, stream: str, stamp: float, value: Value) -> str:
        """Take a message that was measured at `stamp`: an array, or a function that makes it when it is needed.

        Returns "" or why it was refused: "bad_stamp", "out_of_order" (also a stamp that was there before), "not_finite".
        """
        if stream not in self._frames:
            raise KeyError(f"no stream {stream!r}; there are {', '.join(self._frames)}")
        if not np.isfinite(stamp):
            return "bad_stamp"
        frames, frame = self._frames[stream], Frame(stream, float(stamp), value)
        if frames and stamp <= frames[-1].stamp:
            return "out_of_order"
        try:
            frame.check()
        except BadMessage as error:
            return error.why
        frames.append(frame)
        while frames[0].stamp < stamp - self._keep_s:
            frames.popleft()
        self.watchdog.feed(stream, stamp)
        return ""

    def newest(self, stream: str) -> Frame:
        """The newest message of `stream`, whatever the others say. Raises IndexError before the first."""
        return self._frames[stream][-1]

    def drop(self, stream: str) -> None:
        """Forget all messages of one stream: it is stale until its next one."""
        self._frames[stream].clear()
        self.watchdog.feed(stream, -np.inf)

    def forget(self) -> None:
        """Forget all messages."""
        for stream in self._frames:
            self.drop(stream)

    def forget_future(self, now: float) -> list[str]:
        """Forget messages more than max_age_s ahead of `now`, after which no other would be in order; the stream of each."""
        found = []
        for stream, frames in self._frames.items():
            while frames and frames[-1].stamp > now + self.watchdog.max_age_s[stream]:
                frames.pop()
                found.append(stream)
                self.watchdog.feed(stream, frames[-1].stamp if frames else -np.inf)
        return found

    def observe(self, now: float) -> tuple[Snapshot | None, tuple[str, ...]]:
        """(snapshot, ()) or (None, reasons): "stale:<stream>" (then its history is dropped) or "unsynced:<stream>"."""
        stale = self.watchdog.stale(now)
        if stale:
            for stream, frames in self._frames.items():
                self._frames[stream] = deque(list(frames)[-1:])
            return None, tuple(f"stale:{stream}" for stream in stale)
        stamp = min(frames[-1].stamp for frames in self._frames.values())
        apart = [s for s, frames in self._frames.items() if abs(_nearest(frames, stamp).stamp - stamp) > self.tolerance_s]
        if apart:
            return None, tuple(f"unsynced:{stream}" for stream in apart)
        times = [stamp - back * self.step_s for back in range(self.obs_horizon - 1, -1, -1)]
        return Snapshot(stamp, {s: [_nearest(frames, t) for t in times] for s, frames in self._frames.items()}), ()


def _nearest(frames: deque[Frame], stamp: float) -> Frame:
    """The frame nearest to `stamp`; they are in order of time, and what is looked for is near their end."""
    best = frames[-1]
    for frame in reversed(frames):
        if abs(frame.stamp - stamp) > abs(best.stamp - stamp):
            break
        best = frame
    return best
