"""What varies between dressing episodes: arm pose regions, garments, start, and the parameters of the world around them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robopolicy.sim import world
from robopolicy.sim.arm import Arm
from robopolicy.sim.garments import GARMENTS, Garment
from robopolicy.sim.parameters import rgb, texture
from robopolicy.sim.randomize import Parameter, World
from robopolicy.sim.scene import Light, Scene
from robopolicy.spec import did_you_mean

BENDS = {"straight": (0.0, 35.0), "bent": (35.0, 70.0), "folded": (70.0, 105.0)}  # deg, of the elbow
ELEVATIONS = {"low": (-25.0, -8.0), "level": (-8.0, 8.0), "high": (8.0, 25.0)}  # deg, of the upper arm
ALL = "all"
START = [-0.11, 0.0, 0.05]  # m: the middle of the rim from the finger tips
UPPER = 5.0  # reward of a metre of upper arm over that of the forearm
JITTER = 0.06  # m, in each direction: some starts miss the hand unless that is corrected
_SHARED = ("camera.", "wrist.", "light.", "background.", "table.rgb", "table.texture", "robot.disturbance")
_SENSOR = ("sensor.calibration", "sensor.depth", "sensor.image")

PARAMETERS: dict[str, Parameter] = {
    **{name: parameter for name, parameter in world.PARAMETERS.items() if name.startswith((*_SHARED, *_SENSOR))},
    "camera.position": Parameter([0.26, -0.88, 1.38], "m", -3.0, 3.0, "the front camera, base frame"),
    "camera.target": Parameter([0.26, 0.10, 1.0], "m", -2.0, 2.0, "what it looks at"),
    "camera.fov": Parameter(58.0, "deg", 10.0, 120.0, "vertical"),
    "arm.bend": Parameter(math.radians(30.0), "rad", 0.0, math.radians(120.0), "of the elbow, 0 = straight"),
    "arm.elevation": Parameter(0.0, "rad", -1.0, 1.0, "of the upper arm"),
    "arm.forearm": Parameter(0.26, "m", 0.15, 0.4),
    "arm.upper": Parameter(0.30, "m", 0.15, 0.4),
    "arm.thickness": Parameter(1.0, "", 0.6, 1.4, "over the nominal radii"),
    "arm.rgb": rgb(0.9, 0.7, 0.6),
    "start.offset": Parameter(START, "m", -0.4, 0.4, "the middle of the rim from the finger tips"),
    "garment.kind": Parameter(1.0, "", 0, len(GARMENTS) - 1, "index into the garments", whole=True),
    "garment.mass": Parameter(1.0, "", 0.3, 3.0, "over the garment's own"),
    "garment.stiffness": Parameter(1.0, "", 0.3, 3.0, "over the garment's own"),
    "garment.friction": Parameter(1.0, "", 0.0, 3.0, "over the garment's own"),
    "garment.rgb": rgb(0.3, 0.5, 0.9),
    "garment.texture": texture(-1),
}


@dataclass(frozen=True)
class DressTask:
    """Names and initial states of the task; the counterpart of sim.tasks.Task, which is about tables."""

    name: str = "dress"
    parameters: Mapping[str, Parameter] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", PARAMETERS)


def regions() -> list[str]:
    """Names of the nine regions, "bend-elevation"."""
    return [f"{bend}-{elevation}" for bend in BENDS for elevation in ELEVATIONS]


def region_ranges(region: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """Ranges (rad) of bend and elevation of a region: "all", a bend, an elevation, or both as "bent-level".

    Raises:
        ValueError: no such region; the message names those that exist.
    """
    region, bends, elevations = str(region), dict(BENDS), dict(ELEVATIONS)
    for part in [] if region == ALL else region.split("-"):
        if part in BENDS and bends == BENDS:
            bends = {part: BENDS[part]}
        elif part in ELEVATIONS and elevations == ELEVATIONS:
            elevations = {part: ELEVATIONS[part]}
        else:
            raise ValueError(f"region={region!r}; {did_you_mean(region, [ALL, *BENDS, *ELEVATIONS, *regions()])}")
    ends = [(min(low for low, _ in some.values()), max(high for _, high in some.values())) for some in (bends, elevations)]
    (a, b), (c, d) = ends
    return (math.radians(a), math.radians(b)), (math.radians(c), math.radians(d))


def initial(region: str, garments: Sequence[str]) -> dict[str, Any]:
    """What every episode draws: pose, garment, its physics and the start.

    Raises:
        ValueError: an unknown region or garment, or none.
    """
    for name in garments:
        if name not in GARMENTS:
            raise ValueError(f"garments has {name!r}; {did_you_mean(name, GARMENTS)}")
    if not garments:
        raise ValueError(f"garments={list(garments)}: give at least one of {', '.join(GARMENTS)}")
    bend, elevation = region_ranges(region)
    return {
        "arm": {"bend": {"uniform": list(bend)}, "elevation": {"uniform": list(elevation)}},
        "start": {"offset": {"uniform": [-JITTER, JITTER], "op": "add"}},
        "garment": {
            "kind": {"choice": [list(GARMENTS).index(name) for name in garments]},
            "mass": {"log_uniform": [0.8, 1.25]},
            "stiffness": {"log_uniform": [0.8, 1.25]},
            "friction": {"log_uniform": [0.5, 2.0]},
        },
    }


def arm_of(drawn: World) -> Arm:
    """The arm of a drawn world."""
    return Arm.posed(*(drawn.scalar(f"arm.{name}") for name in ("bend", "elevation", "forearm", "upper", "thickness")))


def garment_of(drawn: World) -> Garment:
    """The garment of a drawn world."""
    chosen = list(GARMENTS.values())[int(drawn.scalar("garment.kind"))]
    return chosen.scaled(*(drawn.scalar(f"garment.{name}") for name in ("mass", "stiffness", "friction")))


def scene_of(drawn: World) -> Scene:
    """Floor, background and light of a drawn world."""
    return Scene(
        bodies=(),
        robot_joints=(),
        table_half=2.0,
        table_rgb=drawn.colour("table.rgb"),
        table_texture=int(drawn.scalar("table.texture")),
        background_rgb=drawn.colour("background.rgb"),
        background_texture=int(drawn.scalar("background.texture")),
        light=Light(
            direction=tuple(drawn.vector("light.direction").tolist()),
            rgb=drawn.colour("light.rgb"),
            **{name: drawn.scalar(f"light.{name}") for name in ("ambient", "diffuse", "specular", "shadow")},
        ),
    )


def reward(arm: Arm, ring: np.ndarray, at: float, force: float, clearance: float) -> float:
    """Absolute progress of the sleeve's opening `ring` [n, 3], which crosses the arm at arc length `at` (m, -1 = nowhere).

    After the paper's code: minus the distance to the finger before the hand is in, then metres of forearm plus UPPER times
    metres of upper arm, up to the shoulder; costs for a gripper close to the skin, for force (N), and for an opening off the
    upper arm's axis.
    """
    centre, first = ring.mean(0), float(arm.lengths[0])
    if at < 0:
        value = -float(np.linalg.norm(centre - arm.line[0]))
    else:
        value = min(at, first) + UPPER * max(min(at, float(arm.lengths.sum())) - first, 0.0)
    value -= 0.1 * (clearance < 0.02) + 0.02 * max(force - 8.0, 0.0)
    if at > first:
        off = float(np.linalg.norm(centre - (arm.line[1] + (at - first) * arm.upper_direction)))
        value += 0.02 * (off < 0.03) - 0.05 * (off > 0.075)
    return value
