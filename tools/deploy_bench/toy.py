"""A policy that goes to a goal and costs nothing, so that what is measured is what stands around it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from robopolicy.spec import STATE, FeatureSpec, PolicySpec, check_observation, image_key

IMAGE = image_key("front")
EE_NAMES = ("ee_x", "ee_y", "ee_z")
SMALL, VGA = (24, 32), (480, 640)


class Toward:
    """Moves the end effector a tenth of the way to `goal` (m) in each step; the gripper follows the picture's brightness.

    image: height and width of its picture. control_hz: its rate. delay_s: how long it thinks.
    """

    def __init__(
        self,
        *,
        goal: tuple[float, float, float] = (0.5, 0.0, 0.2),
        image: tuple[int, int] = SMALL,
        control_hz: float = 20.0,
        delay_s: float = 0.0,
    ) -> None:
        self.goal, self.delay_s = np.array(goal, np.float32), delay_s
        self.spec = PolicySpec(
            observation={
                STATE: FeatureSpec((3,), "float32", "m", "base", EE_NAMES),
                IMAGE: FeatureSpec((*image, 3), "uint8"),
            },
            action=FeatureSpec((7,), "float32", "m, rad, 0..1", "base", ("dx", "dy", "dz", "rx", "ry", "rz", "gripper")),
            obs_horizon=1,
            action_horizon=16,
            execute_horizon=8,
            control_hz=control_hz,
        )

    def reset(self) -> None:
        """Nothing to forget."""

    def sample(self, observation: Mapping[str, Any], num_samples: int = 1, seed: int | None = None) -> np.ndarray:
        """Chunks [B, N, H, A]; every candidate is the same."""
        batch = check_observation(observation, self.spec)
        if self.delay_s:
            time.sleep(self.delay_s)
        chunks = np.zeros((batch, num_samples, self.spec.action_horizon, 7), np.float32)
        left = 0.9 ** np.arange(self.spec.action_horizon, dtype=np.float32)[:, None]
        chunks[..., :3] = 0.1 * left * (self.goal - observation[STATE][:, -1])[:, None, None]
        chunks[..., 6] = observation[IMAGE][:, -1, 0, 0, 0].astype(np.float32)[:, None, None] / 255
        return chunks
