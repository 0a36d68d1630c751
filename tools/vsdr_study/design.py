"""What the study varies and where it looks: randomisation of the training worlds, targets, and how much of everything.

The policies see proprioception and small pictures of the front camera, so that a run takes minutes on a CPU. For the same
reason the camera looks closer, objects lie in a smaller region, and the widest level varies looks and camera less than that of
the product: worlds in which every policy fails tell none apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import product
from typing import Any

from robopolicy.sim.parameters import PARAMETERS, TWIN
from robopolicy.sim.randomize import OPTIONAL, preset
from robopolicy.sim.tasks import make_task

TASK = "lift"
LEVELS = ("none", "narrow", "wide")
AXES = ("visual", "dynamics", "camera")
LEFT_OUT = ("sensor.depth_", "sensor.calibration_", "wrist.", "distractors.", "object.texture", "background.texture")
IMAGE = ("brightness", "gains", "noise")  # of the sensor.image_*; further ones are left out
VISUAL = ("light.", "background.rgb", "table.rgb", "table.texture", "robot.rgb", "object.rgb")
VISUAL += tuple(f"sensor.image_{name}" for name in IMAGE)
VIEW: dict[str, Any] = {"camera.target": [0.49, 0.0, 0.08], "camera.fov": 32.0}  # nominal
REGION = {"x": {"uniform": [0.44, 0.56]}, "y": {"uniform": [-0.08, 0.08]}}  # where objects lie, m
# What the widest level has in place of the preset's.
MILDER: dict[str, dict[str, Any]] = {
    "camera": {
        "position": {"uniform": [-0.06, 0.06], "op": "add"},
        "target": {"uniform": [-0.02, 0.02], "op": "add"},
        "fov": {"uniform": [-2.0, 2.0], "op": "add"},
        "roll": {"uniform": [-0.03, 0.03]},
        "center": {"uniform": [-0.01, 0.01], "op": "add"},
    },
    "light": {
        "direction": {"uniform": [-0.9, 0.9], "op": "add"},
        "rgb": {"uniform": [0.8, 1.0]},
        "ambient": {"uniform": [0.3, 0.55]},
        "diffuse": {"uniform": [0.45, 0.85]},
        "shadow": {"uniform": [0.4, 0.95]},
    },
    "table": {"texture": {"choice": [-1, 0]}, "rgb": {"uniform": [0.45, 1.0]}},
    "background": {"rgb": {"uniform": [0.35, 1.0]}},
    "object": {"rgb": {"uniform": [-0.15, 0.15], "op": "add", "clip": True}},
    "sensor": {
        "image_brightness": {"uniform": [0.85, 1.15]},
        "image_gains": {"uniform": [0.93, 1.07], "op": "scale"},
        "image_noise": {"uniform": [0.0, 0.03]},
    },
}


def axis(parameter: str) -> str:
    """Which of AXES a parameter of a world belongs to, "" if it is left out. Shapes, sizes and delays are dynamics."""
    if parameter.startswith(VISUAL):
        return "visual"
    if parameter.startswith((*LEFT_OUT, "sensor.image_")):
        return ""
    return "camera" if parameter.startswith("camera.") else "dynamics"


def part(level: str, wanted: str) -> dict[str, Any]:
    """What of a randomisation preset belongs to one axis."""
    found: dict[str, Any] = {}
    for group, members in _preset(level).items():
        milder = MILDER.get(group, {}) if level == LEVELS[-1] else {}
        taken = {name: node for name, node in {**members, **milder}.items() if axis(f"{group}.{name}") == wanted}
        if taken:
            found[group] = taken
    return found


@lru_cache
def _preset(level: str) -> dict[str, Any]:
    return {group: members for group, members in preset(level).items() if group != OPTIONAL}


def randomization(levels: Mapping[str, str]) -> dict[str, Any]:
    """What an environment is given: a level of each axis, or any preset's name, and the region of the objects."""
    found: dict[str, Any] = {OPTIONAL: True, "object": REGION}
    for name, level in levels.items():
        for group, members in part(level, name).items():
            found[group] = {**found.get(group, {}), **members}
    return found


@dataclass(frozen=True)
class Configuration:
    """A randomisation of the training worlds: a level of each axis."""

    visual: str
    dynamics: str
    camera: str

    @property
    def name(self) -> str:
        """Such as "wide-none-narrow": visual, dynamics, camera."""
        return f"{self.visual}-{self.dynamics}-{self.camera}"

    @property
    def width(self) -> int:
        """How wide it is: the sum of the levels, 0 .. 6."""
        return sum(LEVELS.index(getattr(self, name)) for name in AXES)

    @property
    def randomization(self) -> dict[str, Any]:
        """What the environment is given."""
        return randomization(asdict(self))


EVERYWHERE = dict.fromkeys(AXES, LEVELS[-1])  # the common worlds in which all policies are compared in simulation


def trials() -> dict[str, Any]:
    """What differs from trial to trial on a target: what the twin's preset says, but the robot starts where it is told to.

    Otherwise its first pose would decide: a policy that has seen one alone fails, whatever it makes of the picture.
    """
    found = randomization(dict.fromkeys(AXES, "twin"))
    return {**found, "robot": {**found["robot"], "joints": {"uniform": [-0.01, 0.01], "op": "add"}}}


def configurations() -> list[Configuration]:
    """All 27 combinations, in an order in which the first ones are as mixed as all."""
    found = [Configuration(*levels) for levels in product(LEVELS, repeat=len(AXES))]
    return sorted(found, key=lambda c: hashlib.sha256(c.name.encode()).hexdigest())


# Two target worlds that nobody trains in: every choice is made on the first, the other is looked at once, with what was chosen.
DEVELOPMENT: dict[str, Any] = {
    "camera.position": [0.955, -0.045, 0.535],
    "camera.target": [0.50, -0.01, 0.09],
    "camera.fov": 31.0,
    "light.direction": [-0.1, -0.5, 1.0],
    "light.rgb": [0.9, 0.95, 1.0],
    "light.ambient": 0.5,
    "light.diffuse": 0.5,
    "background.rgb": [0.42, 0.45, 0.5],
    "table.rgb": [0.5, 0.52, 0.55],
    "table.texture": -1.0,
    "robot.rgb": [0.8, 0.8, 0.84],
    "sensor.image_noise": 0.015,
    "object.rgb": [0.75, 0.15, 0.18],
    "table.height": 0.005,
    "table.friction": 0.8,
    "robot.time_constant": 0.055,
    "robot.finger_friction": 0.95,
    "robot.action_delay": 0.01,
    "robot.rate": 1.03,
    "sensor.delay": 0.03,
    "object.mass": 0.08,
    "object.friction": 0.95,
}
TEST: dict[str, Any] = {
    **TWIN,
    "camera.position": [1.005, 0.05, 0.59],
    "camera.target": [0.48, 0.008, 0.07],
    "camera.fov": 33.5,
}


def source(parameter: str) -> Any:
    """The nominal value in the training simulator."""
    return VIEW.get(parameter, {**PARAMETERS, **make_task(TASK).parameters}[parameter].value)


def only(values: Mapping[str, Any], *axes: str) -> dict[str, Any]:
    """A world that differs from the training simulator's in these axes alone (and in engine and renderer, being the twin)."""
    names = [name for name in {**TWIN, **values} if axis(name)]
    return {name: values[name] if name in values and axis(name) in axes else source(name) for name in names}


def targets() -> dict[str, dict[str, Any]]:
    """{target: nominal world of the twin}. T0 development; T1 what the camera sees and where it is, T2 dynamics, T3 both."""
    return {
        "T0": only(DEVELOPMENT, *AXES),
        "T1": only(TEST, "visual", "camera"),
        "T2": only(TEST, "dynamics"),
        "T3": only(TEST, *AXES),
    }


@dataclass(frozen=True)
class Sizes:
    """How much of everything. own, common, target: episodes of one policy there. observed: episodes of a fixed set.

    moved, valued: targets for which the dynamics gap and off-policy values are computed, which takes long.
    """

    demonstrations: int = 500
    steps: int = 3000
    batch_size: int = 32
    image_size: int = 48
    limit: int = 64
    own: int = 50
    common: int = 200
    target: int = 200
    observed: int = 30
    frames: int = 1000
    decisions: int = 300
    subsets: tuple[int, ...] = (10, 30, 100, 300)
    moved: tuple[str, ...] = ("T0", "T1", "T2", "T3")
    valued: tuple[str, ...] = ("T0", "T3")


QUICK = Sizes(
    demonstrations=3,
    steps=20,
    batch_size=16,
    limit=40,
    own=2,
    common=4,
    target=4,
    observed=3,
    frames=120,
    decisions=20,
    subsets=(10, 30),
    moved=(),
    valued=(),
)


def runs(seeds: int) -> Iterator[tuple[Configuration, int]]:
    """Every training run: all configurations with the first seed, then all with the next."""
    return ((configuration, seed) for seed in range(seeds) for configuration in configurations())


def frozen(sizes: Sizes) -> dict[str, Any]:
    """All that determines the study's numbers but the code, and its hash: written down before any run."""
    content = {
        "task": TASK,
        "sizes": asdict(sizes),
        "targets": targets(),
        "trials": trials(),
        "common": randomization(EVERYWHERE),
        "configurations": {c.name: c.randomization for c in configurations()},
    }
    return {"hash": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16], **content}
