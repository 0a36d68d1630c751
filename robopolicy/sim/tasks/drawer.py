"""Drawer: pull the drawer of a small cabinet open by its handle."""

from __future__ import annotations

import numpy as np

from robopolicy.geometry import pose, transform, yaw_quaternion
from robopolicy.sim.engine import Engine
from robopolicy.sim.experts import Expert, pick, step_towards
from robopolicy.sim.parameters import rgb, texture
from robopolicy.sim.randomize import Parameter, World
from robopolicy.sim.scene import Body, Joint, Shape
from robopolicy.sim.tasks.base import Outcome, Task, holding, looks, reaching

DEPTH, WIDTH, HEIGHT, WALL = 0.15, 0.16, 0.09, 0.004  # m, of the cabinet; WALL is half a wall
HANDLE = (0.058, 0.0, 0.062)  # m: middle of the bar from the middle of the drawer's front at the table
BAR = (0.006, 0.035, 0.007)  # m, half extents
ANCHOR = 0.05  # m: height of the drawer's frame over the table


class DrawerExpert(Expert):
    """Half opens the gripper, comes down over the handle, closes, pulls along the drawer's axis."""

    half_turns = 1
    opening = 0.55  # of the gripper: fully open, a finger would meet the drawer's front

    def act(self, env) -> np.ndarray:
        """See Expert.act."""
        action = pick(self, env, "drawer", point=(HANDLE[0], HANDLE[1], HANDLE[2] - ANCHOR), width=2 * BAR[0], turned=np.pi / 2)
        if action is not None:
            return action
        return step_towards(env, 0.1 * env.task.axis(env.world), grip=0.0, speed=0.6 * self.speed)


class Drawer(Task):
    """Success: the drawer is OPEN metres out."""

    OPEN = 0.10  # m

    name = "drawer"
    parameters = {  # noqa: RUF012
        "drawer.mass": Parameter(0.3, "kg", 0.02, 5.0),
        "drawer.friction": Parameter(2.0, "N", 0.0, 20.0, "dry friction of the rail"),
        "drawer.damping": Parameter(5.0, "N s/m", 0.0, 100.0),
        "drawer.grip": Parameter(1.0, "", 0.0, 3.0, "lateral friction of the handle"),
        "drawer.rgb": rgb(0.75, 0.35, 0.2),
        "drawer.texture": texture(-1),
        "cabinet.rgb": rgb(0.55, 0.42, 0.3),
        "cabinet.texture": texture(1),
        "cabinet.x": Parameter(0.5, "m", 0.25, 0.8),
        "cabinet.y": Parameter(0.25, "m", -0.45, 0.45, "of the drawer's closed front"),
        "cabinet.yaw": Parameter(-np.pi / 2, "rad", -np.pi, np.pi, "direction in which the drawer opens"),
    }
    initial = {  # noqa: RUF012
        "cabinet": {
            "x": {"uniform": [0.42, 0.58]},
            "y": {"uniform": [0.19, 0.24]},
            "yaw": {"uniform": [-np.pi / 2 - 0.25, -np.pi / 2 + 0.25]},
        }
    }
    tracked = ("drawer",)
    further_names = ("drawer_open", "handle_x", "handle_y", "handle_z", "axis_x", "axis_y")
    expert_class = DrawerExpert

    def bodies(self, world: World) -> tuple[Body, ...]:
        """See Task.bodies. In the cabinet's frame the drawer opens along x and its closed front is at x = 0."""
        wood, front = looks("cabinet", world), looks("drawer", world)
        middle, side, top = -DEPTH / 2, WIDTH / 2 - WALL, HEIGHT - WALL
        panels = [((DEPTH / 2, WIDTH / 2, WALL), (middle, 0.0, z)) for z in (WALL, top)]
        panels += [((DEPTH / 2, WALL, HEIGHT / 2), (middle, y, HEIGHT / 2)) for y in (-side, side)]
        panels += [((WALL, WIDTH / 2, HEIGHT / 2), (-DEPTH + WALL, 0.0, HEIGHT / 2))]
        inner, low, high = side - 2 * WALL, 2 * WALL + 0.002, HEIGHT - 2 * WALL - 0.004
        length, level = DEPTH - 0.02, (low + high) / 2 - ANCHOR
        tray = [((WALL, inner, (high - low) / 2), (-WALL, 0.0, level))]
        tray += [((length / 2, inner, 0.002), (-length / 2, 0.0, low + 0.002 - ANCHOR))]
        tray += [((length / 2, 0.002, 0.02), (-length / 2, y, low + 0.02 - ANCHOR)) for y in (-inner, inner)]
        bar_height, metal = HANDLE[2] - ANCHOR, (0.75, 0.76, 0.78)
        handle = [(BAR, (HANDLE[0], 0.0, bar_height))]
        handle += [((HANDLE[0] / 2, 0.004, 0.004), (HANDLE[0] / 2, y, bar_height)) for y in (-0.03, 0.03)]
        shapes = [Shape("box", size, at, **front) for size, at in tray] + [Shape("box", s, at, rgb=metal) for s, at in handle]
        x, y, table = world.scalar("cabinet.x"), world.scalar("cabinet.y"), world.scalar("table.height")
        turn = yaw_quaternion(world.scalar("cabinet.yaw"))
        rail = Joint("slide", (1.0, 0.0, 0.0), 0.0, 0.13, world.scalar("drawer.damping"), world.scalar("drawer.friction"))
        return (
            Body(
                "drawer",
                tuple(shapes),
                world.scalar("drawer.mass"),
                (x, y, table + ANCHOR),
                turn,
                friction=world.scalar("drawer.grip"),
                joint=rail,
            ),
            Body("cabinet", tuple(Shape("box", size, at, **wood) for size, at in panels), 0.0, (x, y, table), turn),
        )

    def axis(self, world: World) -> np.ndarray:
        """Unit vector [3] (base frame) along which the drawer opens."""
        yaw = world.scalar("cabinet.yaw")
        return np.array([np.cos(yaw), np.sin(yaw), 0.0])

    def handle(self, engine: Engine) -> np.ndarray:
        """Middle of the handle's bar [3] (m)."""
        return transform(pose(*engine.pose("drawer")), np.array(HANDLE) - [0.0, 0.0, ANCHOR])

    def further_state(self, engine: Engine, world: World) -> list[float]:
        """See Task.further_state."""
        return [engine.joint_position("drawer"), *self.handle(engine).tolist(), *self.axis(world)[:2].tolist()]

    def evaluate(self, engine: Engine, T_base_ee: np.ndarray, world: World) -> Outcome:
        """See Task.evaluate. Progress: 0.3 for reaching the handle, 0.1 for holding it, 0.6 for opening."""
        opened = engine.joint_position("drawer") / self.OPEN
        if opened >= 1.0:
            return Outcome(True, 1.0)
        reach = reaching(T_base_ee, self.handle(engine))
        progress = 0.3 * reach + 0.1 * (holding(engine) and reach > 0.7) + 0.6 * max(opened, 0.0)
        return Outcome(False, min(progress, 0.99))
