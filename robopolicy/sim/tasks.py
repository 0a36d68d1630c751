"""Tasks: which bodies there are, where they start, what counts as success. They speak to an Engine, to no simulator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from robopolicy.geometry import pose, rotation_6d, yaw_quaternion
from robopolicy.sim.engine import Engine
from robopolicy.sim.randomize import Parameter, World
from robopolicy.sim.scene import Body
from robopolicy.sim.textures import NUM_TEXTURES

CONTACT = ("friction", "spinning_friction", "rolling_friction", "restitution", "linear_damping", "angular_damping")


@dataclass(frozen=True)
class Outcome:
    """How an episode stands: success, and progress in [0, 1], 1 exactly at success."""

    success: bool
    progress: float


class Task(Protocol):
    """What an environment needs to know of a task."""

    name: str
    observation: tuple[str, ...]
    nominal: Mapping[str, Parameter]
    initial: Mapping[str, Any]
    environment_names: tuple[str, ...]

    def bodies(self, world: World) -> tuple[Body, ...]:
        """The task's bodies in a drawn world."""

    def environment_state(self, engine: Engine, world: World) -> np.ndarray:
        """Privileged state float32 [len(environment_names)], for experts and teachers only."""

    def evaluate(self, engine: Engine, T_base_ee: np.ndarray, world: World) -> Outcome:
        """How the episode stands, with the end effector at T_base_ee [4, 4]."""


class Lift:
    """Grasp the box on the table and lift it by LIFT_HEIGHT.

    Success: the box's centre is LIFT_HEIGHT above where it rested, and within 5 cm of the grasp point.
    """

    LIFT_HEIGHT = 0.10  # m

    name = "lift"
    observation = ("state", "images.front", "points")
    nominal: Mapping[str, Parameter] = {
        "object.size": Parameter([0.022, 0.022, 0.022], "m", 0.008, 0.033, "half extents; it must fit between the fingers"),
        "object.mass": Parameter(0.08, "kg", 0.001, 3.0),
        "object.friction": Parameter(1.0, low=0.0, high=5.0),
        "object.spinning_friction": Parameter(0.002, "m", 0.0, 0.1),
        "object.rolling_friction": Parameter(0.0, "m", 0.0, 0.1),
        "object.restitution": Parameter(0.0, low=0.0, high=1.0),
        "object.linear_damping": Parameter(0.04, low=0.0, high=1.0, about="share of the velocity lost per second"),
        "object.angular_damping": Parameter(0.04, low=0.0, high=1.0, about="share of the velocity lost per second"),
        "object.rgb": Parameter([0.85, 0.1, 0.1], low=0.0, high=1.0),
        "object.texture": Parameter(-1.0, low=-1, high=NUM_TEXTURES - 1, whole=True),
        "object.x": Parameter(0.5, "m", 0.25, 0.8),
        "object.y": Parameter(0.0, "m", -0.45, 0.45),
        "object.yaw": Parameter(0.0, "rad", -np.pi, np.pi),
    }
    # Where objects start is the task's own distribution, not domain randomisation: it varies under every preset.
    initial: Mapping[str, Any] = {
        "object": {
            "x": {"uniform": [0.40, 0.60], "unit": "m"},
            "y": {"uniform": [-0.15, 0.15], "unit": "m"},
            "yaw": {"uniform": [-np.pi / 4, np.pi / 4], "unit": "rad"},
        }
    }
    environment_names = (
        *("object_x", "object_y", "object_z"),
        *(f"object_r{i}" for i in range(6)),
        *("object_half_x", "object_half_y", "object_half_z"),
        *("object_vx", "object_vy", "object_vz"),
    )

    def bodies(self, world: World) -> tuple[Body, ...]:
        """See Task.bodies."""
        half = np.maximum(world.vector("object.size"), 0.008)
        half[:2] = np.minimum(half[:2], 0.033)  # it must fit between the fingers
        position = (world.scalar("object.x"), world.scalar("object.y"), world.scalar("table.height") + half[2])
        return (
            Body.box(
                name="object",
                half_extents=tuple(half.tolist()),
                mass=world.scalar("object.mass"),
                position=position,
                quaternion=yaw_quaternion(world.scalar("object.yaw")),
                **{key: world.scalar(f"object.{key}") for key in CONTACT},
                rgb=world.colour("object.rgb"),
                texture=int(world.scalar("object.texture")),
            ),
        )

    def environment_state(self, engine: Engine, world: World) -> np.ndarray:
        """See Task.environment_state."""
        position, quaternion = engine.pose("object")
        half = self.bodies(world)[0].shapes[0].size
        parts: list[Any] = [position, rotation_6d(pose(position, quaternion)), half, engine.velocity("object")]
        return np.concatenate(parts).astype(np.float32)

    def evaluate(self, engine: Engine, T_base_ee: np.ndarray, world: World) -> Outcome:
        """See Task.evaluate. Progress: 0.3 for reaching, 0.2 for contact of both fingers, 0.5 for height."""
        position, _ = engine.pose("object")
        height = position[2] - self.bodies(world)[0].position[2]
        distance = float(np.linalg.norm(position - T_base_ee[:3, 3]))
        if height > self.LIFT_HEIGHT and distance < 0.05:
            return Outcome(True, 1.0)
        held = bool((engine.grip_forces() > 0.1).all())
        lifted = float(np.clip(height / self.LIFT_HEIGHT, 0.0, 1.0)) if held else 0.0
        return Outcome(False, min(0.3 * (1.0 - np.tanh(8.0 * distance)) + 0.2 * held + 0.5 * lifted, 0.99))


TASKS: dict[str, type[Lift]] = {"lift": Lift}
