"""What the robot perceives of a world: noisy, perhaps late proprioception, images, depth, segmentation, point clouds."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from robopolicy import spec
from robopolicy.sim import robot, world
from robopolicy.sim.camera import noisy_depth, point_cloud
from robopolicy.sim.engine import Engine
from robopolicy.sim.photometry import noisy_image
from robopolicy.sim.randomize import World, stream
from robopolicy.sim.scene import Camera, Frame

# Each sensor has a random stream of its own, so that what one measures does not depend on which others there are.
_STREAMS = ("state", "points", *(f"{kind}.{name}" for name in world.CAMERAS for kind in ("images", "depth")))


@dataclass(frozen=True)
class Moment:
    """The world at one time: physics steps since the episode began, joints (rad), opening (m), Engine.snapshot()."""

    clock: int
    q: np.ndarray
    opening: float
    view: Any


class Sensors:
    """The chosen observation keys of one environment.

    Args:
        selected: subset of state, images.<camera>, depth.<camera>, segmentation.<camera>, points, environment_state.
        environment_names: entries of the privileged state.
        image_size: side of the square images, pixels. num_points: of a point cloud.

    Raises:
        ValueError: an unknown key; the message names what exists.
    """

    def __init__(self, selected: tuple[str, ...], environment_names: tuple[str, ...], image_size: int, num_points: int) -> None:
        self.selected, self.image_size, self.num_points = selected, image_size, num_points
        known = _known_features(environment_names, image_size, num_points)
        for short in selected:
            if short not in known:
                raise ValueError(f"observation has {short!r}; {spec.did_you_mean(short, known)}")
        self.features: spec.Features = dict(known[short] for short in selected)
        self._drawn = any(short.partition(".")[0] not in ("state", "environment_state") for short in selected)

    def start(self, drawn: World, seed: int, engine: Engine) -> None:
        """Begin an episode in a drawn world."""
        self._world, self._engine = drawn, engine
        self._rngs = {name: stream(seed, f"sensor.{name}") for name in _STREAMS}
        self._delay = round(drawn.scalar("sensor.delay") / engine.time_step)
        self._fixed = {name: world.camera(name, drawn, np.eye(4), self.image_size) for name in world.CAMERAS if name != "wrist"}
        self._history: deque[Moment] = deque()

    def seen(self, start: int, end: int) -> int:
        """The physics step in (start, end], a control period, that is recorded for late observations; 0 if they are prompt.

        A delay is whole periods and a part of one: were periods all as long as this one, what is seen would be exactly as
        old as the delay.
        """
        return end - self._delay % (end - start) if self._delay else 0

    def record(self, clock: int) -> None:
        """Remember the present, for observations that are late."""
        self._history.append(self._now(clock, self._engine.snapshot() if self._drawn else None))
        while len(self._history) > 1 and clock - self._history[1].clock >= self._delay:
            self._history.popleft()

    def _now(self, clock: int, view: Any) -> Moment:
        q, opening = self._engine.joints()
        return Moment(clock, q, opening, view)

    def moment(self, clock: int) -> Moment:
        """What is seen at `clock`: the present, or the recorded moment whose age is nearest to the delay."""
        if not self._delay:
            return self._now(clock, None)
        return min(self._history, key=lambda moment: abs(clock - moment.clock - self._delay))

    def observe(self, clock: int, privileged: Any) -> dict[str, np.ndarray]:
        """The observation; draws fresh noise. privileged: () -> the privileged state, which is never late."""
        moment = self.moment(clock)
        out: dict[str, np.ndarray] = {}
        frames: dict[str, tuple[Camera, Frame, np.ndarray]] = {}
        for short, key in zip(self.selected, self.features, strict=True):
            kind, _, name = short.partition(".")
            if kind == "state":
                noise = self._rngs["state"].normal(0.0, 1.0, len(moment.q)) * self._world.scalar("sensor.state_noise")
                out[key] = robot.proprioception(moment.q + noise, moment.opening)
            elif kind == "environment_state":
                out[key] = privileged()
            else:
                name = name or "front"
                if name not in frames:
                    frames[name] = self._frame(name, moment)
                out[key] = self._measure(kind, short, *frames[name])
        return out

    def _measure(self, kind: str, short: str, camera: Camera, frame: Frame, depth: np.ndarray) -> np.ndarray:
        if kind == "images":
            return noisy_image(frame.rgb, self._world, self._rngs[short])
        if kind == "depth":
            return depth
        if kind == "segmentation":
            return frame.segmentation
        return point_cloud(depth, frame, camera, self.num_points, self._rngs["points"])

    def _frame(self, name: str, moment: Moment) -> tuple[Camera, Frame, np.ndarray]:
        camera = self._fixed.get(name) or self._wrist(name, moment)
        frame = self._engine.render(camera, rgb=f"images.{name}" in self.selected, snapshot=moment.view)
        measured = f"depth.{name}" in self.selected or (name == "front" and "points" in self.selected)
        depth = noisy_depth(frame.depth, self._world, self._rngs[f"depth.{name}"]) if measured else frame.depth
        return camera, frame, depth

    def _wrist(self, name: str, moment: Moment) -> Camera:
        return world.camera(name, self._world, robot.forward(moment.q), self.image_size)

    def save(self) -> tuple[Any, ...]:
        """A token for restore()."""
        return (tuple(self._history), {name: rng.bit_generator.state for name, rng in self._rngs.items()})

    def restore(self, token: tuple[Any, ...]) -> None:
        """Return to what save() saw, within the same episode."""
        history, states = token
        self._history = deque(history)
        for name, state in states.items():
            self._rngs[name].bit_generator.state = state


def _known_features(environment_names: tuple[str, ...], size: int, num_points: int) -> dict[str, tuple[str, spec.FeatureSpec]]:
    names = robot.STATE_NAMES
    known = {
        "state": (spec.STATE, spec.FeatureSpec((len(names),), "float32", "rad, m", "base", names)),
        "points": (spec.POINTS, spec.FeatureSpec((num_points, 3), "float32", "m", "base", ("x", "y", "z"))),
        "environment_state": (
            spec.ENVIRONMENT_STATE,
            spec.FeatureSpec((len(environment_names),), "float32", "m, m/s", "base", environment_names),
        ),
    }
    for name in world.CAMERAS:
        known[f"images.{name}"] = (spec.image_key(name), spec.FeatureSpec((size, size, 3), "uint8", "", name))
        known[f"depth.{name}"] = (spec.depth_key(name), spec.FeatureSpec((size, size), "float32", "m", name))
        known[f"segmentation.{name}"] = (spec.segmentation_key(name), spec.FeatureSpec((size, size), "uint8", "", name))
    return known
