"""Where the time of one environment step goes: every stage's own CPU time, nested stages taken out of the one around them."""

from __future__ import annotations

import cProfile
import importlib
import pstats
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

# Stage: what belongs to it, as "module:attribute" or "env:attribute" (from the environment on). Those that do not exist are
# named in the result, so that no part goes missing in silence: what is in no stage is booked under the one that called it.
STAGES: dict[str, tuple[str, ...]] = {
    "physics": ("env:engine.advance",),
    "physics: commands": ("env:engine.command",),
    "physics: reading joints": ("env:engine.joints",),
    "kinematics and IK": (
        "env:robot.act",
        "robopolicy.sim.robot:forward",
        "robopolicy.sim.robot:inverse",
        "robopolicy.sim.robot:proprioception",
    ),
    "task evaluation": ("env:_info", "env:task.evaluate", "env:task.bodies"),
    "task: reading bodies": ("env:engine.pose", "env:engine.velocity", "env:engine.grip_forces"),
    "poses of things to draw": ("env:engine.snapshot",),
    "camera pose": ("robopolicy.sim.world:camera",),
    "sensor noise: image": ("robopolicy.sim.sensors:noisy_image",),
    "sensor noise: depth": ("robopolicy.sim.sensors:noisy_depth",),
    "render: Python around kernels": ("env:engine.render", "env:engine._raster.render"),
    "rest of observe": ("env:observe", "env:sensors.observe", "env:sensors.record"),
    "rest of step": ("env:step",),
}
KERNELS = ("robopolicy.sim.kernels", "robopolicy.sim.shading")  # each function they compile is a stage, where Python calls it
OUTSIDE = "gymnasium's wrappers"


class Stopwatch:
    """Own CPU time (s) and number of calls of nested stages, while `running`."""

    def __init__(self) -> None:
        self.running = False
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: defaultdict[str, int] = defaultdict(int)
        self._inner: list[int] = []  # ns spent in stages within each open one

    def wrap(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time booked under `stage`."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if not self.running:
                return function(*args, **kwargs)
            self._inner.append(0)
            start = time.process_time_ns()
            try:
                return function(*args, **kwargs)
            finally:
                total = time.process_time_ns() - start
                self.seconds[stage] += (total - self._inner.pop()) * 1e-9
                self.calls[stage] += 1
                if self._inner:
                    self._inner[-1] += total

        return timed

    def patch(self, env: Any) -> list[str]:
        """Time every stage of an environment that was reset, for the rest of this process. Returns the targets not found."""
        missing = []
        for stage, targets in STAGES.items():
            for target in targets:
                where, _, path = target.partition(":")
                *parents, name = path.split(".")
                try:
                    owner: Any = env if where == "env" else importlib.import_module(where)
                    for parent in parents:
                        owner = getattr(owner, parent)
                    if where == "env":
                        owner = type(owner)  # controllers and rasterisers are made anew at every reset
                    setattr(owner, name, self.wrap(stage, getattr(owner, name)))
                except (AttributeError, ImportError):
                    missing.append(target)
        for kernels in map(importlib.import_module, KERNELS):
            for name, function in list(vars(kernels).items()):
                if hasattr(function, "py_func") and not name.startswith("_"):
                    setattr(kernels, name, self.wrap(f"render: {name}", function))
        return missing


def timed_steps(env: Any, expert: Callable | None, seed: int, steps: int, episode: int, watch: Stopwatch | None) -> float:
    """CPU seconds of `steps` steps; resets and the choice of actions are left out. The same arguments give the same steps."""
    total = 0.0
    for action in actions(env, expert, seed, steps, episode):
        if watch:
            watch.running = True
        start = time.process_time()
        env.step(action)
        total += time.process_time() - start
        if watch:
            watch.running = False
    return total


def actions(env: Any, expert: Callable | None, seed: int, steps: int, episode: int) -> Iterator[np.ndarray]:
    """The action of each step, by the expert or by chance; a reset every `episode` steps."""
    rng = np.random.default_rng(seed)
    for i in range(steps):
        if i % episode == 0:
            env.reset(seed=seed + i // episode)
        yield expert(env) if expert else rng.uniform(env.action_space.low, env.action_space.high).astype(np.float32)


def profile(env: Any, *, seed: int, steps: int, episode: int, expert: Callable | None = None) -> dict[str, Any]:
    """Microseconds of CPU time per step: of each stage, as a whole without any stopwatch, and the dearest functions.

    It patches the simulator: run it in a process of its own. Each measurement repeats the same steps.
    """
    timed_steps(env, expert, seed, 2 * episode, episode, None)  # compiles
    untouched = timed_steps(env, expert, seed, steps, episode, None)
    profiler = cProfile.Profile(time.process_time)
    for action in actions(env, expert, seed, steps, episode):
        profiler.enable()
        env.step(action)
        profiler.disable()
    watch = Stopwatch()
    missing = watch.patch(env.unwrapped)
    total = timed_steps(env, expert, seed, steps, episode, watch)
    watch.seconds[OUTSIDE] = total - sum(watch.seconds.values())
    per_step = 1e6 / steps
    return {
        "us_per_step": per_step * untouched,
        "us_per_step_with_stopwatch": per_step * total,
        "steps": steps,
        "stages": {
            name: {"us": per_step * s, "calls": watch.calls[name] / steps}
            for name, s in sorted(watch.seconds.items(), key=lambda item: -item[1])
        },
        "functions": _dearest(profiler, steps),
        "not_found": missing,
    }


def _dearest(profiler: cProfile.Profile, steps: int, num: int = 25) -> list[dict[str, Any]]:
    """The functions with the most own time, by cProfile, which about doubles the cost of a Python call."""
    rows = []
    for (file, line, name), (_, calls, own, cumulative, _) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        where = f"{Path(file).name}:{line} {name}" if line else name
        rows.append(
            {"function": where, "us": 1e6 * own / steps, "us_cumulative": 1e6 * cumulative / steps, "calls": calls / steps}
        )
    return sorted(rows, key=lambda row: -row["us"])[:num]


def table(title: str, result: dict[str, Any]) -> str:
    """The profile as text."""
    whole = result["us_per_step"]
    lines = [f"{title}: {whole:.0f} us of CPU a step, {1e6 / whole:.0f} steps/s ({result['steps']} steps)"]
    lines.append(f"  (with the stopwatch in: {result['us_per_step_with_stopwatch']:.0f} us)")
    lines.append(f"  {'us/step':>8} {'share':>6} {'calls':>6}  stage")
    for name, row in result["stages"].items():
        share = row["us"] / result["us_per_step_with_stopwatch"]
        lines.append(f"  {row['us']:8.1f} {share:6.1%} {row['calls']:6.1f}  {name}")
    lines.append(f"  {'us/step':>8} {'cumul.':>7} {'calls':>6}  function by its own time (cProfile: Python calls look dear)")
    lines += [f"  {r['us']:8.1f} {r['us_cumulative']:7.1f} {r['calls']:6.1f}  {r['function']}" for r in result["functions"]]
    if result["not_found"]:
        lines.append(f"  not found, so booked under their callers: {', '.join(result['not_found'])}")
    return "\n".join(lines)


def profile_lift(image: bool, size: int, randomization: str, expert: bool, seed: int, steps: int) -> dict[str, Any]:
    """The profile of robopolicy/Lift-v0, driven by its expert or by chance."""
    import gymnasium

    import robopolicy
    from peers.contenders import EPISODE

    observation = ("images.front",) if image else ("state",)
    env = gymnasium.make("robopolicy/Lift-v0", observation=observation, image_size=size, randomization=randomization)
    return profile(env, seed=seed, steps=steps, episode=EPISODE, expert=robopolicy.expert(env) if expert else None)
