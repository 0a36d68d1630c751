"""Which things of a scene can touch in MuJoCo, and how it feels: one explicit pair for every two shapes that may meet.

Of two geoms MuJoCo would take the greater coefficient, where Bullet multiplies; a pair says what it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import mujoco
import numpy as np

TIME_CONSTANT = 0.005  # s; MuJoCo's own 0.02 s lets a grasp sink millimetres into a box
IMPEDANCE = (0.95, 0.99, 0.001, 0.5, 2.0)
FIXED, JOINTED, MOBILE = "fixed", "jointed", "mobile"
_ANGLE = np.linspace(1e-6, np.pi / 2, 200)
_LEFT = np.exp(-2 * _ANGLE / np.tan(_ANGLE))  # of the speed, for a damping ratio of cos(angle)
_NEVER_TOUCH = ({FIXED}, {FIXED, JOINTED})  # a drawer is guided by its joint, not by contact with its cabinet


@dataclass(frozen=True)
class Surface:
    """Coefficients of friction (lateral; spinning and rolling in m) and of restitution, as in scene.Body."""

    friction: float
    spinning: float = 0.0
    rolling: float = 0.0
    restitution: float = 0.0


@dataclass(frozen=True)
class Thing:
    """What moves as one: the names of its geoms, FIXED, JOINTED (to the world) or MOBILE, its surface, part of the robot?"""

    geoms: Sequence[str]
    mobility: str
    surface: Surface
    robot: bool = False


def may_touch(a: Thing, b: Thing) -> bool:
    """Whether contact between two things means anything. The robot does not collide with itself."""
    return not (a.robot and b.robot) and {a.mobility, b.mobility} not in _NEVER_TOUCH


def combined(a: Surface, b: Surface) -> Surface:
    """The coefficients of a contact, as Bullet combines them: products, torsional ones each with the other's lateral one."""
    return Surface(
        friction=a.friction * b.friction,
        spinning=a.spinning * b.friction + b.spinning * a.friction,
        rolling=a.rolling * b.friction + b.rolling * a.friction,
        restitution=a.restitution * b.restitution,
    )


def damping_ratio(restitution: float) -> float:
    """Damping ratio of a contact that gives back the share `restitution` of the speed of approach.

    A spring and damper that only push let go where the force is back at zero, after which exp(-2 t / tan t) of the speed is
    left for a damping ratio of cos t. Critical damping leaves exp(-2) = 0.14: below, it is 1. Measured, less is left.
    """
    return float(np.interp(restitution, _LEFT, np.cos(_ANGLE)))


def add_contacts(spec: mujoco.MjSpec, things: Sequence[Thing]) -> None:
    """Let all things that may touch do so."""
    for a, b in itertools.combinations(things, 2):
        if may_touch(a, b):
            contact = _attributes(combined(a.surface, b.surface))
            for geom1, geom2 in itertools.product(a.geoms, b.geoms):
                spec.add_pair(geomname1=geom1, geomname2=geom2, **contact)


def _attributes(contact: Surface) -> dict[str, object]:
    """Of an MjsPair. Less damping at an equal stiffness takes a time constant that is longer by as much."""
    ratio = damping_ratio(contact.restitution)
    return {
        "condim": 6 if contact.rolling > 0 else 4 if contact.spinning > 0 else 3,
        "friction": [contact.friction, contact.friction, contact.spinning, contact.rolling, contact.rolling],
        "solref": (TIME_CONSTANT / ratio, ratio),
        "solimp": IMPEDANCE,
    }
