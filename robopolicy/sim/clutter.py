"""Distractors: things on the table that are no part of the task, clear of what is and of each other."""

from __future__ import annotations

import numpy as np

from robopolicy.geometry import yaw_quaternion
from robopolicy.sim.randomize import World, stream
from robopolicy.sim.scene import SHAPES, Body, Shape

REGION_X = (0.28, 0.68)  # m, base frame
REGION_Y = (0.20, 0.38)  # m: distance from the middle of the table, on either side
CLEARANCE = 0.05  # m between a distractor and anything else: room for a hand
MAX_TRIES = 60  # places tried for one distractor


def distractors(world: World, bodies: tuple[Body, ...], seed: int) -> tuple[Body, ...]:
    """As many distractors as distractors.count says, less those for which no free place was found.

    They stand on the table at its sides, at least CLEARANCE from the bounding circles of `bodies` and of one another. What one
    of them looks like does not depend on where there is room, nor on how many others there are.
    """
    taken = [(np.array(body.position[:2]), _radius(body)) for body in bodies]
    found: list[Body] = []
    for i in range(round(world.scalar("distractors.count"))):
        rng = stream(seed, f"distractors.{i}")
        shape = _shape(world, rng)
        reach = float(np.hypot(*shape.size[:2]) if shape.kind == "box" else shape.size[0])
        quaternion = yaw_quaternion(rng.uniform(-np.pi, np.pi))
        mass = rng.uniform(0.1, 0.4)
        for _ in range(MAX_TRIES):
            place = np.array([rng.uniform(*REGION_X), rng.choice((-1, 1)) * rng.uniform(*REGION_Y)])
            if all(np.linalg.norm(place - other) >= reach + radius + CLEARANCE for other, radius in taken):
                taken.append((place, reach))
                position = (*place.tolist(), world.scalar("table.height") + shape.size[2])
                rolling = 0.003 if shape.kind == "sphere" else 0.0  # it stays where it is put
                body = Body(f"distractor_{i}", (shape,), mass, position, quaternion, rolling_friction=rolling)
                found.append(body)
                break
    return tuple(found)


def _shape(world: World, rng: np.random.Generator) -> Shape:
    low, high = np.sort(world.vector("distractors.size"))
    weights = world.vector("distractors.shapes")
    weights = weights / weights.sum() if weights.sum() > 0 else np.array([1.0, 0.0, 0.0])
    kind = SHAPES[int(np.searchsorted(np.cumsum(weights), rng.random(), side="right").clip(0, 2))]
    x, y, z = rng.uniform(low, high, 3).tolist()
    size = {"box": (x, y, z), "cylinder": (x, x, z), "sphere": (x, x, x)}[kind]
    r, g, b = rng.uniform(0.05, 1.0, 3).tolist()
    first, last = np.sort(world.vector("distractors.textures")).astype(int)
    return Shape(kind, size, rgb=(r, g, b), texture=int(rng.integers(first, last, endpoint=True)))


def _radius(body: Body) -> float:
    """Of a circle around the body's origin that holds all of it, seen from above, however it is turned."""

    def reach(shape: Shape) -> float:
        return shape.size[0] if shape.kind == "sphere" else float(np.linalg.norm(shape.size))

    return max(float(np.linalg.norm(shape.position)) + reach(shape) for shape in body.shapes)
