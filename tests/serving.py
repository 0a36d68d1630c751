"""A small policy, and a real server for it in a thread."""

from __future__ import annotations

import queue
import threading
import time
from contextlib import contextmanager

import numpy as np

from robopolicy import spec
from robopolicy.deploy import server
from robopolicy.spec import FeatureSpec, PolicySpec

IMAGE = spec.image_key("front")
EE_NAMES = ("ee_x", "ee_y", "ee_z")


class ProportionalPolicy:
    """Moves the end effector a fraction of the way to a goal, plus noise for samples after the first."""

    def __init__(self, goal=(0.5, 0.0, 0.2), delay_s=0.0):
        self.goal, self.delay_s, self.resets = np.array(goal, np.float32), delay_s, 0
        self.spec = PolicySpec(
            observation={
                spec.STATE: FeatureSpec((3,), "float32", "m", "base", EE_NAMES),
                IMAGE: FeatureSpec((8, 6, 3), "uint8"),
            },
            action=FeatureSpec((7,), "float32", "m, rad, 0..1", "base", ("dx", "dy", "dz", "rx", "ry", "rz", "gripper")),
            obs_horizon=2,
            action_horizon=4,
            execute_horizon=3,
            control_hz=50.0,
        )

    def reset(self):
        self.resets += 1

    def sample(self, observation, num_samples=1, seed=None):
        batch = spec.check_observation(observation, self.spec)
        time.sleep(self.delay_s)
        chunks = np.zeros((batch, num_samples, 4, 7), np.float32)
        chunks[..., :3] = 0.1 * (self.goal - observation[spec.STATE][:, -1])[:, None, None]
        chunks[..., 6] = observation[IMAGE].mean(axis=(1, 2, 3, 4))[:, None, None] / 255
        chunks[:, 1:, :, :3] += np.random.default_rng(seed).normal(0, 0.01, chunks[:, 1:, :, :3].shape)
        return chunks


def observation(batch=2, seed=0):
    rng = np.random.default_rng(seed)
    return {
        spec.STATE: rng.normal(size=(batch, 2, 3)).astype(np.float32),
        IMAGE: rng.integers(0, 256, (batch, 2, 8, 6, 3), dtype=np.uint8),
    }


@contextmanager
def served(policy, address="tcp://127.0.0.1:*", **kwargs):
    """(address, stats box) of a real server in a thread."""
    bound, stats, stop = queue.Queue(), [], threading.Event()
    run = lambda: stats.append(server.serve(policy, address, ready=bound.put, stop=stop, **kwargs))  # noqa: E731
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield bound.get(timeout=5), stats
    finally:
        stop.set()
        thread.join(timeout=5)
        assert not thread.is_alive()
