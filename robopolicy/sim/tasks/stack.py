"""Stack: put the object on top of the base block."""

from __future__ import annotations

import numpy as np

from robopolicy.sim.engine import Engine
from robopolicy.sim.experts import Expert, pick, place, retreat
from robopolicy.sim.randomize import World
from robopolicy.sim.scene import Body
from robopolicy.sim.tasks.base import (
    INITIAL,
    Outcome,
    Task,
    holding,
    movable,
    movable_parameters,
    nearness,
    reaching,
    resting,
)


class StackExpert(Expert):
    """Grasps, lifts, carries over the base, puts down, lets go."""

    def act(self, env) -> np.ndarray:
        """See Expert.act."""
        goal = env.task.place(env.engine, env.world) + self.goal_offset
        position, _ = env.engine.pose("object")
        if np.linalg.norm(position[:2] - goal[:2]) < 0.01 and abs(position[2] - goal[2]) < 0.004:
            return retreat(env)
        action = pick(self, env, "object")
        return place(self, env, "object", goal, clearance=0.05) if action is None else action


class Stack(Task):
    """Success: the object rests on the base, its centre within the base's half width, let go."""

    APART = 0.09  # m, least distance of the two at the start

    name = "stack"
    parameters = {  # noqa: RUF012
        **movable_parameters("object", [0.022, 0.022, 0.022], 0.08, (0.85, 0.1, 0.1)),
        **movable_parameters("base", [0.028, 0.028, 0.025], 0.15, (0.1, 0.35, 0.75)),
    }
    initial = {"object": INITIAL, "base": INITIAL}  # noqa: RUF012
    tracked = ("object", "base")
    expert_class = StackExpert

    def bodies(self, world: World) -> tuple[Body, ...]:
        """See Task.bodies."""
        return (movable("object", world), movable("base", world, max_half=0.06))

    def feasible(self, world: World) -> bool:
        """See Task.feasible."""
        return float(np.linalg.norm(self.start("object", world) - self.start("base", world))) > self.APART

    def place(self, engine: Engine, world: World) -> np.ndarray:
        """Where the object's centre has to come to rest [3] (m): on the base, wherever that is now."""
        upper, lower = self.half("object", world)[2], self.half("base", world)[2]
        return engine.pose("base")[0] + [0.0, 0.0, lower + upper]

    def evaluate(self, engine: Engine, T_base_ee: np.ndarray, world: World) -> Outcome:
        """See Task.evaluate. Progress: 0.2 for reaching, 0.2 for holding it off the table, 0.6 for coming nearer."""
        position, _ = engine.pose("object")
        error = position - self.place(engine, world)
        aside = float(np.linalg.norm(error[:2]))
        on_top = aside < min(self.half("base", world)[:2]) and abs(error[2]) < 0.008
        if on_top and resting(engine, "object"):
            return Outcome(True, 1.0)
        start = self.start("object", world)
        apart = float(np.linalg.norm(start - engine.pose("base")[0]))
        carried = on_top or (holding(engine) and position[2] > start[2] + 0.01)
        near = nearness(float(np.linalg.norm(error)), apart)
        progress = 0.2 * (on_top or reaching(T_base_ee, position)) + 0.2 * carried + 0.55 * near
        return Outcome(False, min(progress, 0.99))
