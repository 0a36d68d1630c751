"""What a task is: bodies, where they start, success, privileged state, an expert. Tasks speak to an Engine, to no simulator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from robopolicy.geometry import pose, rotation_6d, yaw_quaternion
from robopolicy.sim.engine import Engine
from robopolicy.sim.experts import Expert
from robopolicy.sim.parameters import rgb as colour
from robopolicy.sim.parameters import texture
from robopolicy.sim.randomize import Parameter, World
from robopolicy.sim.scene import Body, Shape

RELEASED = 0.1  # N: a finger that presses with less does not hold
AT_REST = 0.05  # m/s
OBJECT_SHAPES = ("box", "cylinder")
INITIAL = {"x": {"uniform": [0.40, 0.60]}, "y": {"uniform": [-0.15, 0.15]}, "yaw": {"uniform": [-np.pi / 4, np.pi / 4]}}


@dataclass(frozen=True)
class Outcome:
    """How an episode stands: success, and progress in [0, 1], 1 exactly at success."""

    success: bool
    progress: float


class Task(ABC):
    """What an environment needs to know of a task. A subclass sets the class variables and the abstract methods.

    name: as in conf/task. observation: what the environment shows unless asked for something else. parameters: the task's
    part of the nominal world, {"object.mass": Parameter(...)}. initial: where things start, a distribution a parameter; it
    is the task's own and varies under every randomisation. tracked: bodies in the privileged state. expert_class: its expert.
    """

    name: ClassVar[str]
    observation: ClassVar[tuple[str, ...]] = ("state", "images.front", "points")
    parameters: ClassVar[Mapping[str, Parameter]]
    initial: ClassVar[Mapping[str, Any]]
    tracked: ClassVar[tuple[str, ...]]
    further_names: ClassVar[tuple[str, ...]] = ()
    expert_class: ClassVar[type[Expert]]
    _layout: tuple[World, dict[str, Body]] | None = None

    @abstractmethod
    def bodies(self, world: World) -> tuple[Body, ...]:
        """The task's bodies in a drawn world."""

    @abstractmethod
    def evaluate(self, engine: Engine, T_base_ee: np.ndarray, world: World) -> Outcome:
        """How the episode stands, with the end effector at T_base_ee [4, 4]."""

    def feasible(self, world: World) -> bool:
        """Whether an episode can start there; if not, the initial parameters are drawn again."""
        return True

    def further_state(self, engine: Engine, world: World) -> list[float]:
        """Values of further_names: what the privileged state holds beside the tracked bodies."""
        return []

    @property
    def environment_names(self) -> tuple[str, ...]:
        """Names of the privileged state's entries."""
        entries = ("x", "y", "z", *(f"r{i}" for i in range(6)), "half_x", "half_y", "half_z", "vx", "vy", "vz")
        return (*(f"{name}_{entry}" for name in self.tracked for entry in entries), *self.further_names)

    def environment_state(self, engine: Engine, world: World) -> np.ndarray:
        """Privileged state float32 [len(environment_names)], for experts and teachers only.

        For each tracked body: position (m), 6-D rotation, half extents (m) of its first shape, velocity (m/s).
        """
        parts: list[Any] = []
        for name in self.tracked:
            position, quaternion = engine.pose(name)
            parts += [position, rotation_6d(pose(position, quaternion)), self.half(name, world), engine.velocity(name)]
        return np.concatenate([*parts, self.further_state(engine, world)]).astype(np.float32)

    def layout(self, world: World) -> dict[str, Body]:
        """bodies() by name; the last world's are remembered."""
        if self._layout is None or self._layout[0] is not world:
            self._layout = (world, {body.name: body for body in self.bodies(world)})
        return self._layout[1]

    def start(self, name: str, world: World) -> np.ndarray:
        """Position [3] (m) in which the body `name` starts."""
        return np.array(self.layout(world)[name].position)

    def half(self, name: str, world: World) -> tuple[float, float, float]:
        """Half extents (m) of the first shape of the body `name`."""
        return self.layout(world)[name].shapes[0].size

    def expert(self, rng: np.random.Generator | None = None) -> Expert:
        """The scripted expert, or with a generator one that misjudges where things are; about half of those fail."""
        return self.expert_class() if rng is None else self.expert_class.imperfect(rng)


def movable_parameters(
    prefix: str, size: list[float], mass: float, rgb: tuple[float, float, float], shape: int = 0
) -> dict[str, Parameter]:
    """Parameters of an object that is handled, with nominal half extents `size` (m), mass (kg), colour and OBJECT_SHAPES."""
    return {
        f"{prefix}.shape": Parameter(float(shape), "", 0, len(OBJECT_SHAPES) - 1, "0 box, 1 cylinder", whole=True),
        f"{prefix}.size": Parameter(size, "m", 0.004, 0.2, "half extents; a cylinder's radius is the smaller of the first two"),
        f"{prefix}.mass": Parameter(mass, "kg", 0.005, 5.0),
        f"{prefix}.friction": Parameter(1.0, "", 0.0, 3.0, "lateral; multiplied with that of the other body"),
        f"{prefix}.spinning_friction": Parameter(0.002, "m", 0.0, 0.1),
        f"{prefix}.rolling_friction": Parameter(0.0, "m", 0.0, 0.1),
        f"{prefix}.restitution": Parameter(0.0, "", 0.0, 0.95),
        f"{prefix}.linear_damping": Parameter(0.04, "1/s", 0.0, 10.0),
        f"{prefix}.angular_damping": Parameter(0.04, "1/s", 0.0, 10.0),
        f"{prefix}.rgb": colour(*rgb),
        f"{prefix}.texture": texture(-1),
        f"{prefix}.x": Parameter(0.5, "m", 0.25, 0.8),
        f"{prefix}.y": Parameter(0.0, "m", -0.45, 0.45),
        f"{prefix}.yaw": Parameter(0.0, "rad", -np.pi, np.pi),
    }


def movable(prefix: str, world: World, max_half: float = 0.033) -> Body:
    """The body that movable_parameters(prefix) describes, standing on the table.

    max_half (m): its half width is cut to this, to what fits between the fingers.
    """
    half = np.maximum(world.vector(f"{prefix}.size"), 0.008)
    half[:2] = np.minimum(half[:2], max_half)
    kind = OBJECT_SHAPES[int(world.scalar(f"{prefix}.shape"))]
    if kind == "cylinder":
        half[:2] = half[:2].min()
    size = (float(half[0]), float(half[1]), float(half[2]))
    shape = Shape(kind, size, **looks(prefix, world))
    physics = ("mass", "friction", "spinning_friction", "rolling_friction", "restitution", "linear_damping", "angular_damping")
    values: dict[str, Any] = {name: world.scalar(f"{prefix}.{name}") for name in physics}
    return Body(
        name=prefix,
        shapes=(shape,),
        position=(world.scalar(f"{prefix}.x"), world.scalar(f"{prefix}.y"), world.scalar("table.height") + size[2]),
        quaternion=yaw_quaternion(world.scalar(f"{prefix}.yaw")),
        **values,
    )


def looks(prefix: str, world: World) -> dict[str, Any]:
    """Colour and texture of the shapes of `prefix`, as arguments of Shape."""
    return {"rgb": world.colour(f"{prefix}.rgb"), "texture": int(world.scalar(f"{prefix}.texture"))}


class GoalTask(Task):
    """A task whose object has to get to a place on the table that a disc marks. Subclasses add to its parameters."""

    APART: ClassVar[float] = 0.10  # m, least distance of the place from where the object starts

    further_names = ("goal_x", "goal_y", "goal_z")

    def feasible(self, world: World) -> bool:
        """See Task.feasible."""
        return self.distance(self.start("object", world), world) > self.APART

    def goal(self, world: World) -> np.ndarray:
        """The marked place [3] (m) on the table."""
        return np.array([world.scalar("goal.x"), world.scalar("goal.y"), world.scalar("table.height")])

    def distance(self, position: np.ndarray, world: World) -> float:
        """Distance (m) of a position [3] from the place, in the plane."""
        return float(np.linalg.norm(position[:2] - self.goal(world)[:2]))

    def further_state(self, engine: Engine, world: World) -> list[float]:
        """See Task.further_state."""
        return self.goal(world).tolist()

    def marker(self, world: World) -> Body:
        """The disc that marks the place: seen, not felt."""
        radius, (x, y, z) = world.scalar("goal.radius"), self.goal(world).tolist()
        disc = Shape("cylinder", (radius, radius, 0.001), rgb=world.colour("goal.rgb"))
        return Body("goal", (disc,), 0.0, (x, y, z + 0.001), collides=False)


def goal_parameters(radius: float) -> dict[str, Parameter]:
    """Parameters of the place of a GoalTask, its disc of `radius` m."""
    return {
        "goal.radius": Parameter(radius, "m", 0.01, 0.2),
        "goal.rgb": colour(0.1, 0.55, 0.25),
        "goal.x": Parameter(0.5, "m", 0.25, 0.8),
        "goal.y": Parameter(0.12, "m", -0.45, 0.45),
    }


def reaching(T_base_ee: np.ndarray, point: np.ndarray) -> float:
    """1 with the end effector at `point` [3], falling towards 0 with the distance."""
    return float(1.0 - np.tanh(8.0 * np.linalg.norm(point - T_base_ee[:3, 3])))


def nearness(distance: float, start: float) -> float:
    """1 at distance 0, 0 at the distance (m) of the start and beyond."""
    return float(np.clip(1.0 - distance / max(start, 1e-6), 0.0, 1.0))


def holding(engine: Engine) -> bool:
    """Whether both fingers press against something."""
    return bool((engine.grip_forces() > RELEASED).all())


def resting(engine: Engine, name: str) -> bool:
    """Whether the body `name` lies still and no finger touches anything."""
    return bool((engine.grip_forces() < RELEASED).all()) and float(np.linalg.norm(engine.velocity(name))) < AT_REST
