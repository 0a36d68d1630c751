"""Lift: grasp the object on the table and lift it by 10 cm."""

from __future__ import annotations

import numpy as np

from robopolicy.sim.engine import Engine
from robopolicy.sim.experts import Expert, pick, step_towards
from robopolicy.sim.randomize import World
from robopolicy.sim.scene import Body
from robopolicy.sim.tasks.base import INITIAL, Outcome, Task, holding, movable, movable_parameters, reaching


class LiftExpert(Expert):
    """Above the object, down, close, up."""

    def act(self, env) -> np.ndarray:
        """See Expert.act."""
        action = pick(self, env, "object")
        return step_towards(env, np.array([0.0, 0.0, 0.2]), grip=0.0, speed=self.speed) if action is None else action


class Lift(Task):
    """Success: the object's centre is LIFT_HEIGHT above where it rested, and within 5 cm of the grasp point."""

    LIFT_HEIGHT = 0.10  # m

    name = "lift"
    parameters = movable_parameters("object", [0.022, 0.022, 0.022], 0.08, (0.85, 0.1, 0.1))
    initial = {"object": INITIAL}  # noqa: RUF012
    tracked = ("object",)
    expert_class = LiftExpert

    def bodies(self, world: World) -> tuple[Body, ...]:
        """See Task.bodies."""
        return (movable("object", world),)

    def evaluate(self, engine: Engine, T_base_ee: np.ndarray, world: World) -> Outcome:
        """See Task.evaluate. Progress: 0.3 for reaching, 0.2 for contact of both fingers, 0.5 for height."""
        position, _ = engine.pose("object")
        height = position[2] - self.start("object", world)[2]
        if height > self.LIFT_HEIGHT and np.linalg.norm(position - T_base_ee[:3, 3]) < 0.05:
            return Outcome(True, 1.0)
        held = holding(engine)
        lifted = float(np.clip(height / self.LIFT_HEIGHT, 0.0, 1.0)) if held else 0.0
        return Outcome(False, min(0.3 * reaching(T_base_ee, position) + 0.2 * held + 0.5 * lifted, 0.99))
