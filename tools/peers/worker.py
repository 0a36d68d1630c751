"""The process that runs one contender: python -m peers.worker CORE, from tools/.

Requests come as lines of JSON on stdin, answers go as lines of JSON to stdout; whatever a simulator prints goes to stderr.
    {"do": "make", "key": ..., "name": ..., "options": {...}} -> {"settings": ..., "versions": ...}
    {"do": "run", "key": ..., "seconds": S, "seed": N} -> steps for S s of CPU time: number, CPU and wall time; resets likewise
    {"do": "picture", "key": ..., "steps": K} -> {"picture": [H, W, 3] as base64, "shape": ...}
    {"do": "profile" | "stability", ...} -> see peers.step_profile, peers.stability
A failure is answered as {"error": ...}.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
import traceback
from importlib import metadata
from typing import Any

PACKAGES = (
    *("robopolicy", "numpy", "numba", "gymnasium", "pybullet", "mujoco", "pyopengl"),
    *("panda-gym", "gymnasium-robotics", "metaworld", "robosuite"),
)


class Worker:
    """Answers requests. It may hold several contenders of one simulator, such as one with pictures and one without."""

    def __init__(self, core: int) -> None:
        self._core = core
        self._contenders: dict[str, Any] = {}
        self._episodes: dict[str, int] = {}  # so many have begun
        self._left: dict[str, int] = {}  # steps of the one that runs

    def make(self, key: str, name: str, options: dict[str, Any]) -> dict[str, Any]:
        """Build a contender, let it compile, load and cache what it will, and stay on one core from then on."""
        from peers import contenders

        contender = contenders.make(name, options)
        contender.reset(0)
        for _ in range(3):
            frame = contender.step()
        if frame is not None and (frame.shape[-1] != 3 or frame.std() < 1):
            raise RuntimeError(f"{name} returns no picture: shape {frame.shape}, std {frame.std():.2f}")
        self._contenders[key], self._episodes[key], self._left[key] = contender, 0, 0
        versions = {}
        for package in PACKAGES:
            try:
                versions[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                continue
        os.sched_setaffinity(0, {self._core})
        return {"settings": contender.settings(), "versions": versions}

    def run(self, key: str, seconds: float, seed: int) -> dict[str, Any]:
        """Steps for `seconds` of CPU time, at least five; every EPISODE steps a new episode with the next seed."""
        from peers.contenders import EPISODE

        contender = self._contenders[key]
        steps = resets = 0
        cpu = wall = reset_cpu = 0.0
        while cpu < seconds or steps < 5:
            if self._left[key] == 0:
                start = time.process_time()
                contender.reset(seed + self._episodes[key])
                reset_cpu += time.process_time() - start
                resets, self._left[key], self._episodes[key] = resets + 1, EPISODE, self._episodes[key] + 1
            start, start_wall = time.process_time(), time.perf_counter()
            for _ in range(5):  # divides EPISODE
                contender.step()
            cpu, wall = cpu + time.process_time() - start, wall + time.perf_counter() - start_wall
            steps, self._left[key] = steps + 5, self._left[key] - 5
        return {"steps": steps, "cpu": cpu, "wall": wall, "resets": resets, "reset_cpu": reset_cpu}

    def picture(self, key: str, steps: int) -> dict[str, Any]:
        """The frame after some steps."""
        self._contenders[key].reset(0)
        for _ in range(steps):
            frame = self._contenders[key].step()
        self._left[key] = 0
        return {"shape": frame.shape, "picture": base64.b64encode(frame.tobytes()).decode()}

    def profile(self, **options: Any) -> dict[str, Any]:
        """See step_profile.profile."""
        from peers import step_profile

        os.sched_setaffinity(0, {self._core})
        return step_profile.profile_lift(**options)

    def stability(self, **options: Any) -> dict[str, Any]:
        """See stability.shaken_lifts."""
        from peers import stability

        return stability.shaken_lifts(**options)


def main() -> None:
    """Serve until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker(int(sys.argv[1]))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:  # whatever a simulator raises is its result
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".strip()[:500]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
