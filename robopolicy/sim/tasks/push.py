"""Push: slide a puck that is too wide to grasp to the marked place."""

from __future__ import annotations

import numpy as np

from robopolicy.sim.engine import Engine
from robopolicy.sim.experts import Expert, gripper_down, step_towards, turn_to
from robopolicy.sim.randomize import World
from robopolicy.sim.scene import Body
from robopolicy.sim.tasks.base import (
    INITIAL,
    GoalTask,
    Outcome,
    goal_parameters,
    movable,
    movable_parameters,
    nearness,
    reaching,
)


class PushExpert(Expert):
    """Gets behind the puck, seen from the goal, and pushes through its middle; gets behind it anew when it slips aside."""

    PUSHING = 0.16  # m/s
    FINGER = 0.012  # m from the end effector to the side of the closed fingers
    ALIGNED = 0.012  # m

    goal_error = 0.012

    def act(self, env) -> np.ndarray:
        """See Expert.act."""
        position, _ = env.engine.pose("object")
        position = position + self.grasp_offset
        size = env.task.half("object", env.world)
        to_goal = (env.task.goal(env.world) + self.goal_offset - position)[:2]
        along = to_goal / max(float(np.linalg.norm(to_goal)), 1e-6)
        contact = (
            max(size[:2]) * (1.0 if env.task.layout(env.world)["object"].shapes[0].kind == "cylinder" else 1.2) + self.FINGER
        )
        ee = env.T_base_ee[:3, 3]
        hand = ee[:2] - position[:2]
        behind, aside = -hand @ along, float(hand @ [-along[1], along[0]])
        low = env.world.scalar("table.height") + min(size[2], 0.02)
        turn = turn_to(env, gripper_down(np.arctan2(along[1], along[0]), env.T_base_ee, np.pi))
        lowered = ee[2] < low + 0.012
        if abs(aside) < self.ALIGNED and lowered and 0.5 * contact < behind < contact + 0.05:
            ahead = min(float(np.linalg.norm(to_goal)), 0.03)
            delta = np.array([*(along * (ahead + behind - contact)), low - ee[2]])
            delta[:2] -= aside * np.array([-along[1], along[0]])
            return step_towards(env, delta, turn, grip=0.0, speed=self.PUSHING, measured=True)
        if abs(aside) < self.ALIGNED and not lowered and contact + 0.012 < behind < contact + 0.05:
            return step_towards(env, np.array([0.0, 0.0, low - ee[2]]), turn, grip=0.0, speed=self.speed, measured=True)
        start = np.array([*(position[:2] - along * (contact + 0.025)), low + 0.09])
        delta = start - ee
        if delta[2] > 0.03:  # up first, clear of the puck
            delta[:2] = -along * 0.01 * (behind > 0.5 * contact)
        return step_towards(env, delta, turn, grip=0.0, speed=self.speed, measured=True)


class Push(GoalTask):
    """Success: the puck's centre is within TOLERANCE of the marked place."""

    TOLERANCE = 0.03  # m

    name = "push"
    parameters = {  # noqa: RUF012
        **movable_parameters("object", [0.045, 0.045, 0.02], 0.15, (0.85, 0.1, 0.1), shape=1),
        **goal_parameters(0.05),
    }
    initial = {  # noqa: RUF012
        "object": {**INITIAL, "x": {"uniform": [0.42, 0.58]}},
        "goal": {"x": {"uniform": [0.42, 0.58]}, "y": {"uniform": [-0.18, 0.18]}},
    }
    tracked = ("object",)
    expert_class = PushExpert

    def bodies(self, world: World) -> tuple[Body, ...]:
        """See Task.bodies."""
        return (movable("object", world, max_half=0.06), self.marker(world))

    def evaluate(self, engine: Engine, T_base_ee: np.ndarray, world: World) -> Outcome:
        """See Task.evaluate. Progress: 0.2 for reaching, 0.8 for the way to the place."""
        position, _ = engine.pose("object")
        distance, start = self.distance(position, world), self.distance(self.start("object", world), world)
        if distance < self.TOLERANCE:
            return Outcome(True, 1.0)
        return Outcome(False, min(0.2 * reaching(T_base_ee, position) + 0.8 * nearness(distance, start), 0.99))
