"""What is perceived of a dressing scene: the gripper's pose, noisy images and depth, a partial, segmented point cloud."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from robopolicy import spec
from robopolicy.geometry import rotation_6d
from robopolicy.sim import clouds, world
from robopolicy.sim.arm import Arm
from robopolicy.sim.camera import noisy_depth
from robopolicy.sim.dress_view import ARM, GARMENT
from robopolicy.sim.photometry import noisy_image
from robopolicy.sim.randomize import World, stream
from robopolicy.sim.scene import Camera, Frame

CROP = 0.35  # m around the arm's box that clouds show
STATE_NAMES = ("ee_x", "ee_y", "ee_z", *(f"ee_r{i}" for i in range(6)))
PRIVILEGED = (
    *(f"{part}_{axis}" for part in ("finger", "elbow", "shoulder", "rim") for axis in "xyz"),
    *("upper_ratio", "whole_ratio"),
)
EMPTY_CLOUD, BAD_DEPTH = "empty_cloud", "bad_depth"
Look = Callable[[Camera, bool], Frame]  # (camera, whether in colour) -> what it sees now, without noise


@dataclass(frozen=True)
class Moment:
    """The world now: the gripper's pose [4, 4], the middle of the rim [3] (m), the dressed shares, and how to look at it."""

    T_base_ee: np.ndarray
    rim: np.ndarray
    ratios: tuple[float, float]
    look: Look


class DressSensors:
    """The chosen observation keys. `fault` says why nothing can be made of what is seen, "" while all is well.

    Args:
        selected: short names, see features(). image_size: px. num_points: rows of a cloud. voxel: side (m) of its cubes.
    """

    def __init__(self, selected: Sequence[str], image_size: int, num_points: int, voxel: float) -> None:
        self.selected, self.image_size, self.num_points, self.voxel = tuple(selected), image_size, num_points, voxel
        self.features = features(self.selected, image_size, num_points)
        self.fault = ""

    def start(self, drawn: World, seed: int, arm: Arm, look_bare: Look) -> None:
        """Begin an episode. look_bare: of the arm before the garment came, from which its cloud is kept."""
        self._world, self._arm, self.fault = drawn, arm, ""
        self._rngs = {name: stream(seed, f"sensor.{name}") for name in ("depth", "images")}
        self._front = world.camera("front", drawn, np.eye(4), self.image_size)
        self._arm_cloud = self._cloud(self._measured(look_bare(self._front, False)), ARM)

    def observe(self, now: Moment) -> dict[str, np.ndarray]:
        """The observation; draws fresh noise."""
        out: dict[str, np.ndarray] = {}
        frames: dict[str, Frame] = {}
        for short, key in zip(self.selected, self.features, strict=True):
            kind, _, name = short.partition(".")
            if kind == "state":
                out[key] = np.concatenate([now.T_base_ee[:3, 3], rotation_6d(now.T_base_ee[:3, :3])]).astype(np.float32)
                continue
            if kind == "environment_state":
                state = np.concatenate([self._arm.line.ravel(), now.rim, now.ratios]).astype(np.float32)
                out[key] = np.nan_to_num(state, posinf=0.0, neginf=0.0)
                continue
            name = name or "front"
            if name not in frames:
                frames[name] = self._frame(name, now)
            frame = frames[name]
            known = {"images": frame.rgb, "depth": frame.depth, "segmentation": frame.segmentation}
            out[key] = self._points(frame) if kind == "points" else known[kind]
        return out

    def _frame(self, name: str, now: Moment) -> Frame:
        """A camera's frame with the sensor's noise."""
        camera = self._front if name == "front" else world.camera(name, self._world, now.T_base_ee, self.image_size)
        coloured = f"images.{name}" in self.selected
        frame = now.look(camera, coloured)
        rgb = noisy_image(frame.rgb, self._world, self._rngs["images"]) if coloured else frame.rgb
        return replace(self._measured(frame), rgb=rgb)

    def _measured(self, frame: Frame) -> Frame:
        """A frame with the depth sensor's noise; without any depth where that is not finite."""
        depth = noisy_depth(frame.depth, self._world, self._rngs["depth"])
        if not np.isfinite(depth).all():
            self.fault, depth = BAD_DEPTH, np.zeros_like(depth)
        return replace(frame, depth=depth)

    def _cloud(self, frame: Frame, label: int) -> np.ndarray:
        points = clouds.segment_points(frame.depth, frame.segmentation, self._front, label)
        low, high = self._arm.line.min(0) - CROP, self._arm.line.max(0) + CROP
        return clouds.voxels(clouds.cropped(points, low, high), self.voxel)

    def _points(self, frame: Frame) -> np.ndarray:
        garment = self._cloud(frame, GARMENT)
        if not (len(garment) and len(self._arm_cloud)):
            self.fault = self.fault or EMPTY_CLOUD
        return clouds.classed(self._arm_cloud, garment, self.num_points)

    def save(self) -> tuple[str, dict[str, Any]]:
        """A token for restore()."""
        return self.fault, {name: rng.bit_generator.state for name, rng in self._rngs.items()}

    def restore(self, token: tuple[str, dict[str, Any]]) -> None:
        """Return to what save() saw, within the same episode."""
        self.fault, states = token
        for name, state in states.items():
            self._rngs[name].bit_generator.state = state


def features(selected: Sequence[str], size: int, num_points: int) -> spec.Features:
    """The features of the chosen short names. Raises ValueError for one that does not exist."""
    columns = ("x", "y", "z", *clouds.CLASSES)
    known = {
        "state": (spec.STATE, spec.FeatureSpec((len(STATE_NAMES),), "float32", "m", "base", STATE_NAMES)),
        "points": (spec.POINTS, spec.FeatureSpec((num_points, len(columns)), "float32", "m", "base", columns)),
        "environment_state": (
            spec.ENVIRONMENT_STATE,
            spec.FeatureSpec((len(PRIVILEGED),), "float32", "m", "base", PRIVILEGED),
        ),
    }
    for name in world.CAMERAS:
        known[f"images.{name}"] = (spec.image_key(name), spec.FeatureSpec((size, size, 3), "uint8", "", name))
        known[f"depth.{name}"] = (spec.depth_key(name), spec.FeatureSpec((size, size), "float32", "m", name))
        known[f"segmentation.{name}"] = (spec.segmentation_key(name), spec.FeatureSpec((size, size), "uint8", "", name))
    for short in selected:
        if short not in known:
            raise ValueError(f"observation has {short!r}; {spec.did_you_mean(short, known)}")
    return dict(known[short] for short in selected)
