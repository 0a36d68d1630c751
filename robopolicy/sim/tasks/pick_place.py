"""PickPlace: put the object down on the marked place."""

from __future__ import annotations

import numpy as np

from robopolicy.sim.engine import Engine
from robopolicy.sim.experts import Expert, pick, place, retreat
from robopolicy.sim.randomize import World
from robopolicy.sim.scene import Body
from robopolicy.sim.tasks.base import (
    INITIAL,
    GoalTask,
    Outcome,
    goal_parameters,
    holding,
    movable,
    movable_parameters,
    nearness,
    reaching,
    resting,
)


class PickPlaceExpert(Expert):
    """Grasps, carries, puts down, lets go."""

    def act(self, env) -> np.ndarray:
        """See Expert.act."""
        goal = env.task.place(env.world) + self.goal_offset
        position, _ = env.engine.pose("object")
        if np.linalg.norm(position[:2] - goal[:2]) < 0.012 and position[2] < goal[2] + 0.006:
            return retreat(env)
        action = pick(self, env, "object")
        return place(self, env, "object", goal) if action is None else action


class PickPlace(GoalTask):
    """Success: the object rests within TOLERANCE of the marked place, let go."""

    TOLERANCE = 0.03  # m

    name = "pick_place"
    parameters = {  # noqa: RUF012
        **movable_parameters("object", [0.022, 0.022, 0.022], 0.08, (0.85, 0.1, 0.1)),
        **goal_parameters(0.04),
    }
    initial = {"object": INITIAL, "goal": {"x": {"uniform": [0.40, 0.60]}, "y": {"uniform": [-0.18, 0.18]}}}  # noqa: RUF012
    tracked = ("object",)
    expert_class = PickPlaceExpert

    def bodies(self, world: World) -> tuple[Body, ...]:
        """See Task.bodies."""
        return (movable("object", world), self.marker(world))

    def place(self, world: World) -> np.ndarray:
        """Where the object's centre has to come to rest [3] (m)."""
        return self.goal(world) + [0.0, 0.0, self.half("object", world)[2]]

    def evaluate(self, engine: Engine, T_base_ee: np.ndarray, world: World) -> Outcome:
        """See Task.evaluate. Progress: 0.2 for reaching, 0.2 for holding it off the table, 0.6 for coming nearer."""
        position, _ = engine.pose("object")
        distance, height = self.distance(position, world), position[2] - self.place(world)[2]
        if distance < self.TOLERANCE and abs(height) < 0.01 and resting(engine, "object"):
            return Outcome(True, 1.0)
        start = self.distance(self.start("object", world), world)
        there = distance < self.TOLERANCE
        carried = there or (holding(engine) and height > 0.01)
        progress = 0.2 * (there or reaching(T_base_ee, position)) + 0.2 * carried + 0.55 * nearness(distance, start)
        return Outcome(False, min(progress, 0.99))
