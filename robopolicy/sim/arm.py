"""A posed human arm beside its torso: capsules, distances to them, and how far along the arm the opening of a sleeve is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

FINGER = np.array([0.0, 0.0, 1.0])  # m, base frame: where the arm begins
HAND = 0.10  # m from the finger tips to the wrist
HAND_RADIUS, FOREARM_RADIUS, UPPER_RADIUS = 0.030, 0.035, 0.045  # m
TORSO_RADIUS = 0.14
TORSO_GAP = 0.02  # m between the shoulder joint and the torso's surface
TORSO_BELOW, TORSO_ABOVE = 0.45, 0.15  # m of its axis below and above the shoulder; with the head, so that nothing passes over
SHARES = (1.0, 0.5, 0.25, 0.125)  # of a step that are tried where the torso is in the way
BEYOND = 0.04  # m past the shoulder, in the torso, where a crossing still counts as the shoulder


@dataclass(frozen=True)
class Capsule:
    """All points within `radius` (m) of the segment from `start` to `end`, both [3] (m)."""

    name: str
    start: np.ndarray
    end: np.ndarray
    radius: float


@dataclass(frozen=True)
class Arm:
    """A static right arm held out along +x, its elbow bent about the vertical, its upper arm raised by an elevation.

    capsules: hand, forearm, upper arm, torso. line: finger, elbow, shoulder [3, 3] (m). lengths: of its two parts (m).
    """

    capsules: tuple[Capsule, ...]
    line: np.ndarray
    lengths: np.ndarray

    @classmethod
    def posed(cls, bend: float, elevation: float, forearm: float = 0.26, upper: float = 0.30, thickness: float = 1.0) -> Arm:
        """bend (rad): of the elbow, 0 = straight. elevation (rad): of the upper arm. thickness: over the nominal radii."""
        wrist = FINGER + [HAND, 0.0, 0.0]
        elbow = wrist + [forearm, 0.0, 0.0]
        level = np.array([np.cos(bend), np.sin(bend), 0.0])
        shoulder = elbow + upper * (np.cos(elevation) * level + [0.0, 0.0, np.sin(elevation)])
        middle = shoulder + (TORSO_RADIUS + TORSO_GAP) * level
        capsules = (
            Capsule("hand", FINGER + [HAND_RADIUS, 0.0, 0.0], wrist, HAND_RADIUS * thickness),
            Capsule("forearm", wrist, elbow, FOREARM_RADIUS * thickness),
            Capsule("upper arm", elbow, shoulder, UPPER_RADIUS * thickness),
            Capsule("torso", middle - [0.0, 0.0, TORSO_BELOW], middle + [0.0, 0.0, TORSO_ABOVE], TORSO_RADIUS),
        )
        line = np.array([FINGER, elbow, shoulder])
        return cls(capsules, line, np.linalg.norm(np.diff(line, axis=0), axis=1))

    @property
    def upper_direction(self) -> np.ndarray:
        """Unit vector [3] from the elbow to the shoulder."""
        return (self.line[2] - self.line[1]) / self.lengths[1]

    def nearest(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distance [n] (m, negative inside) of points [n, 3] to the surface, and the outward unit normal [n, 3] there."""
        distance, normal = np.full(len(points), np.inf), np.zeros((len(points), 3))
        for capsule in self.capsules:
            axis = capsule.end - capsule.start
            along = np.clip((points - capsule.start) @ axis / (axis @ axis), 0.0, 1.0)
            away = points - (capsule.start + along[:, None] * axis)
            norm = np.linalg.norm(away, axis=1)
            closer = norm - capsule.radius < distance
            distance[closer] = norm[closer] - capsule.radius
            normal[closer] = away[closer] / np.maximum(norm[closer], 1e-9)[:, None]
        return distance, normal

    def within_reach(self, start: np.ndarray, goal: np.ndarray, clearance: float) -> np.ndarray:
        """Where a gripper [3] gets from `start` towards `goal`, both [3]: it slides along the arm, but the torso stops it.

        It keeps `clearance` (m) from both. To slide along the torso too would let it pull the sleeve around the person.
        """
        torso = replace(self, capsules=self.capsules[-1:])
        for share in SHARES:
            out = self.kept_out(start + share * (goal - start), clearance)
            if torso.nearest(out[None])[0][0] >= clearance:
                return out
        return start

    def kept_out(self, point: np.ndarray, clearance: float) -> np.ndarray:
        """`point` [3], moved out along the surface normal to where it is `clearance` (m) away from the arm."""
        limbs, out = replace(self, capsules=self.capsules[:-1]), np.array(point, float)
        for _ in range(8):  # out of one capsule may be into the next
            distance, normal = limbs.nearest(out[None])
            if distance[0] >= clearance:
                break
            out += (clearance - distance[0]) * normal[0]
        return out

    @property
    def reach(self) -> np.ndarray:
        """The polyline [4, 3] (m) along which crossing() measures: finger, elbow, shoulder, and BEYOND into the torso."""
        return np.vstack([self.line, self.line[2] + BEYOND * self.upper_direction])

    def dressed(self, at: float) -> tuple[float, float]:
        """The shares of the upper arm and of the whole arm that lie behind an opening at arc length `at` (m): in [0, 1]."""
        first, second = self.lengths
        return float(np.clip((at - first) / second, 0.0, 1.0)), float(np.clip(at / (first + second), 0.0, 1.0))


def crossing(ring: np.ndarray, points: np.ndarray) -> float:
    """Arc length (m) at which the polyline `points` [m, 3] crosses the disc that the closed `ring` [n, 3] spans, -1 if nowhere.

    The disc is the fan of triangles around the ring's centre, met by Moeller and Trumbore's test. Of the last segment that
    is crossed the crossing nearest to its start counts (line-triangle intersection as in "One Policy to Dress Them All",
    arXiv 2306.12372).
    """
    centre = ring.mean(0)
    first, second = ring - centre, np.roll(ring, -1, axis=0) - centre
    best, begin = -1.0, 0.0
    for start, end in pairwise(points):
        length = float(np.linalg.norm(end - start))
        direction = (end - start) / length
        across = np.cross(direction, second)
        det = (first * across).sum(1)
        inverse = np.where(np.abs(det) > 1e-12, 1.0 / np.where(det == 0, 1.0, det), 0.0)
        offset = start - centre
        u = inverse * (across @ offset)
        turned = np.cross(offset, first)
        v, t = inverse * (turned @ direction), inverse * (turned * second).sum(1)
        inside = (inverse != 0) & (u >= -1e-9) & (v >= -1e-9) & (u + v <= 1 + 1e-9) & (t >= 0) & (t <= length)
        if inside.any():
            best = begin + float(t[inside].min())
        begin += length
    return best
