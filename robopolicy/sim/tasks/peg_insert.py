"""PegInsert: put a square peg into a square hole with a few millimetres of play."""

from __future__ import annotations

import numpy as np

from robopolicy.geometry import pose, rotvec_between, yaw_quaternion
from robopolicy.sim.engine import Engine
from robopolicy.sim.experts import Expert, nearest_yaw, pick, place
from robopolicy.sim.parameters import rgb, texture
from robopolicy.sim.randomize import Parameter, World
from robopolicy.sim.scene import Body, Shape
from robopolicy.sim.tasks.base import Outcome, Task, holding, looks, movable, movable_parameters, nearness, reaching


class PegInsertExpert(Expert):
    """Grasps the peg near its top, carries it over the hole, turns it upright and into line, lowers it."""

    error = (0.004, 0.004, 0.004)
    goal_error = 0.006

    def act(self, env) -> np.ndarray:
        """See Expert.act."""
        task, world = env.task, env.world
        half = task.half("object", world)
        action = pick(self, env, "object", point=(0.0, 0.0, half[2] - 0.02))
        if action is not None:
            return action
        position, quaternion = env.engine.pose("object")
        R_peg = pose(position, quaternion)[:3, :3]
        yaw = nearest_yaw(world.scalar("hole.yaw"), np.arctan2(R_peg[1, 0], R_peg[0, 0]), np.pi / 2)
        upright = pose(np.zeros(3), np.array(yaw_quaternion(yaw)))[:3, :3]
        goal = task.hole(world) + [0.0, 0.0, half[2]] + self.goal_offset
        return place(
            self,
            env,
            "object",
            goal,
            clearance=task.block_height(world) + 0.012,
            turn=rotvec_between(R_peg, upright),
            tolerance=0.6 * world.scalar("hole.play"),
        )


class PegInsert(Task):
    """Success: the peg's lower end is within DEPTH_LEFT of the bottom of the hole."""

    DEPTH_LEFT = 0.012  # m
    APART = 0.12  # m, least distance of peg and block at the start

    name = "peg_insert"
    parameters = {  # noqa: RUF012
        **movable_parameters("object", [0.012, 0.012, 0.05], 0.08, (0.85, 0.1, 0.1)),
        "hole.play": Parameter(0.003, "m", 0.0005, 0.02, "gap on every side of the peg"),
        "hole.depth": Parameter(0.045, "m", 0.02, 0.08, "height of the block"),
        "hole.friction": Parameter(0.6, "", 0.0, 3.0),
        "hole.rgb": rgb(0.2, 0.3, 0.55),
        "hole.texture": texture(-1),
        "hole.x": Parameter(0.5, "m", 0.25, 0.8),
        "hole.y": Parameter(0.1, "m", -0.45, 0.45),
        "hole.yaw": Parameter(0.0, "rad", -np.pi, np.pi),
    }
    initial = {  # noqa: RUF012
        "object": {
            "x": {"uniform": [0.42, 0.58]},
            "y": {"uniform": [-0.16, 0.16]},
            "yaw": {"uniform": [-np.pi / 4, np.pi / 4]},
        },
        "hole": {"x": {"uniform": [0.44, 0.58]}, "y": {"uniform": [-0.14, 0.14]}, "yaw": {"uniform": [-0.5, 0.5]}},
    }
    tracked = ("object",)
    further_names = ("hole_x", "hole_y", "hole_z", "hole_cos", "hole_sin", "hole_play", "hole_depth")
    expert_class = PegInsertExpert

    def bodies(self, world: World) -> tuple[Body, ...]:
        """See Task.bodies. The block is four walls around the hole."""
        peg = movable("object", world, max_half=0.02)
        inner = max(peg.shapes[0].size[:2]) + world.scalar("hole.play")
        wall, height = 0.014, world.scalar("hole.depth") / 2
        long, out = inner + 2 * wall, inner + wall
        sides = [((wall, long, height), (sign * out, 0.0, 0.0)) for sign in (-1, 1)]
        sides += [((inner, wall, height), (0.0, sign * out, 0.0)) for sign in (-1, 1)]
        shapes = tuple(Shape("box", size, position, **looks("hole", world)) for size, position in sides)
        x, y, z = self.hole(world).tolist()
        friction = world.scalar("hole.friction")
        block = Body("block", shapes, 0.0, (x, y, z + height), yaw_quaternion(world.scalar("hole.yaw")), friction=friction)
        return (peg, block)

    def feasible(self, world: World) -> bool:
        """See Task.feasible."""
        return float(np.linalg.norm(self.start("object", world)[:2] - self.hole(world)[:2])) > self.APART

    def hole(self, world: World) -> np.ndarray:
        """Middle of the hole's bottom [3] (m)."""
        return np.array([world.scalar("hole.x"), world.scalar("hole.y"), world.scalar("table.height")])

    def block_height(self, world: World) -> float:
        """Height (m) of the block over the table."""
        return world.scalar("hole.depth")

    def further_state(self, engine: Engine, world: World) -> list[float]:
        """See Task.further_state."""
        yaw = world.scalar("hole.yaw")
        sizes = [world.scalar("hole.play"), world.scalar("hole.depth")]
        return [*self.hole(world).tolist(), float(np.cos(yaw)), float(np.sin(yaw)), *sizes]

    def evaluate(self, engine: Engine, T_base_ee: np.ndarray, world: World) -> Outcome:
        """See Task.evaluate. Progress: 0.2 for reaching, 0.2 for holding, 0.3 for coming over the hole, 0.3 for depth."""
        position, quaternion = engine.pose("object")
        half = self.half("object", world)
        tip = position - pose(position, quaternion)[:3, 2] * half[2]
        error = tip - self.hole(world)
        inside = float(np.linalg.norm(error[:2])) < 2 * world.scalar("hole.play") + 0.002
        if inside and error[2] < self.DEPTH_LEFT:
            return Outcome(True, 1.0)
        start = float(np.linalg.norm(self.start("object", world)[:2] - self.hole(world)[:2]))
        depth = nearness(float(error[2]), self.block_height(world)) if inside else 0.0
        held = holding(engine) and position[2] > self.start("object", world)[2] + 0.01
        over = nearness(float(np.linalg.norm(error[:2])), start)
        progress = 0.2 * reaching(T_base_ee, position) + 0.2 * (held or inside) + 0.3 * over + 0.3 * depth
        return Outcome(False, min(progress, 0.99))
