"""Unsafe events that an environment is watched for, and from when on something counts as one."""

from __future__ import annotations

from dataclasses import dataclass

EVENTS = ("collision", "drop", "force")
HELD = 0.1  # N: a finger that presses with less does not hold


@dataclass(frozen=True)
class Limits:
    """When something counts as unsafe. Looked at after every control step: what is over within one can be missed.

    collision: contact force on the arm and the hand (N). force: contact force on a finger, when dressing the pull at the
    gripper (N). drop: speed (m/s) at which a tracked body falls while no finger touches anything, that of 2 cm of free fall
    by default; setting down is slower. An environment that knows nothing of an event never reports it.
    """

    collision: float = 1.0
    force: float = 60.0
    drop: float = 0.6
