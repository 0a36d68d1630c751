"""What the study varies and where it looks: randomisation of the training worlds, targets, and how much of everything.

The policies see proprioception and partial point clouds of the front camera, so that a run takes minutes on a CPU. Colours,
textures and light are in no point cloud and are left out; what a cloud depends on is where the camera is, what its depth
sensor does and what else lies there.
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
UNSEEN = ("light.", "background.", "sensor.image_", "table.rgb", "table.texture", "robot.rgb", "object.rgb", "object.texture")
UNSEEN += ("wrist.",)
VISUAL = ("sensor.depth_", "distractors.")
CAMERA = ("camera.", "sensor.calibration_")


def axis(parameter: str) -> str:
    """Which of AXES a parameter of a world belongs to, "" if no point cloud shows it. Shapes, sizes and delays are dynamics."""
    if parameter.startswith(UNSEEN):
        return ""
    if parameter.startswith(VISUAL):
        return "visual"
    return "camera" if parameter.startswith(CAMERA) else "dynamics"


def part(randomization: Mapping[str, Any], wanted: str) -> dict[str, Any]:
    """What of a randomisation preset belongs to one axis."""
    groups = {
        group: {name: node for name, node in members.items() if axis(f"{group}.{name}") == wanted}
        for group, members in randomization.items()
        if group != OPTIONAL
    }
    return {group: members for group, members in groups.items() if members}


_preset = lru_cache(preset)


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
        found: dict[str, Any] = {OPTIONAL: True}
        for name in AXES:
            for group, members in part(_preset(getattr(self, name)), name).items():
                found[group] = {**found.get(group, {}), **members}
        return found


def configurations() -> list[Configuration]:
    """All 27 combinations, in an order in which the first ones are as mixed as all."""
    found = [Configuration(*levels) for levels in product(LEVELS, repeat=len(AXES))]
    return sorted(found, key=lambda c: hashlib.sha256(c.name.encode()).hexdigest())


# A second target world, on which every choice is made; the others are looked at once, with what was chosen here.
DEVELOPMENT: dict[str, Any] = {
    "camera.position": [0.95, -0.07, 0.52],
    "camera.target": [0.48, -0.012, 0.115],
    "camera.fov": 46.0,
    "table.height": 0.005,
    "table.friction": 0.8,
    "robot.time_constant": 0.055,
    "robot.finger_friction": 0.95,
    "robot.action_delay": 0.01,
    "robot.rate": 1.03,
    "sensor.delay": 0.03,
    "sensor.depth_noise": 0.0015,
    "sensor.depth_dropout": 0.03,
    "sensor.calibration_position": [-0.004, 0.006, 0.003],
    "sensor.calibration_rotation": [-0.005, 0.003, 0.004],
    "object.mass": 0.08,
    "object.friction": 0.95,
}


def source(parameter: str) -> Any:
    """The nominal value in the training simulator."""
    return {**PARAMETERS, **make_task(TASK).parameters}[parameter].value


def only(values: Mapping[str, Any], *axes: str) -> dict[str, Any]:
    """A world that differs from the training simulator's in these axes alone (and in engine and renderer, being the twin)."""
    names = [name for name in {**TWIN, **values} if axis(name)]
    return {name: values[name] if name in values and axis(name) in axes else source(name) for name in names}


def targets() -> dict[str, dict[str, Any]]:
    """{target: nominal world of the twin}. T0 development; T1 what the camera sees and where it is, T2 dynamics, T3 both."""
    return {
        "T0": only(DEVELOPMENT, *AXES),
        "T1": only(TWIN, "visual", "camera"),
        "T2": only(TWIN, "dynamics"),
        "T3": only(TWIN, *AXES),
    }


@dataclass(frozen=True)
class Sizes:
    """How much of everything. own, held_out, target: episodes of one policy there. observed: episodes of a fixed set.

    moved, valued: targets for which the dynamics gap and off-policy values are computed, which takes long.
    """

    demonstrations: int = 160
    steps: int = 1600
    batch_size: int = 64
    num_points: int = 128
    limit: int = 80
    own: int = 50
    held_out: int = 200
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
    held_out=4,
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
        "configurations": {c.name: c.randomization for c in configurations()},
    }
    return {"hash": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16], **content}
