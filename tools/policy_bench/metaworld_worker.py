"""The process that holds Meta-World's environments: python -m policy_bench.metaworld_worker, from tools/.

Runs in the peer's own Python (tools/peers/environments.py). Requests and answers are messages of policy_bench.frames on
stdin and stdout; whatever the simulator prints goes to stderr.
    {"do": "make", "task": ...}
    {"do": "reset", "lanes": [...], "seeds": [...]}   -> observations [n, 39]
    {"do": "advance", "lanes": [...]} + chunks [n, h, 4], budgets [n]
        -> observations [n, 39] after the last step, success [n], steps [n]; a lane stops at success or after its budget
    {"do": "demonstrate", "seed": S, "noise": s, "limit": L, "linger": K} -> observations [T, 39], actions [T, 4]; success
A failure is answered as {"error": ...}.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import numpy as np

from policy_bench import frames

PER_BENCHMARK = 50  # tasks that metaworld.MT1 draws from one seed


@lru_cache(maxsize=16)
def drawn_tasks(name: str, seed: int) -> Any:
    """The 50 initial states and goals that Meta-World draws from a seed."""
    import metaworld

    return metaworld.MT1(name, seed=seed)


class Worker:
    """Environments of one task. An episode is a function of its seed and the actions alone."""

    def make(self, task: str) -> Any:
        """Choose the task."""
        from metaworld.policies import ENV_POLICY_MAP

        self._task, self._envs, self._expert = task, {}, ENV_POLICY_MAP[task]
        self._reset(0, 0)
        return {"fps": 1.0 / self._envs[0].dt}, {}

    def _reset(self, lane: int, seed: int) -> np.ndarray:
        benchmark = drawn_tasks(self._task, seed // PER_BENCHMARK)
        if lane not in self._envs:
            self._envs[lane] = benchmark.train_classes[self._task]()
        self._envs[lane].set_task(benchmark.train_tasks[seed % PER_BENCHMARK])
        return self._envs[lane].reset()[0].astype(np.float32)

    def reset(self, lanes: list[int], seeds: list[int]) -> Any:
        """Begin the episodes of `seeds`."""
        return {}, {"observations": np.stack([self._reset(lane, seed) for lane, seed in zip(lanes, seeds, strict=True)])}

    def advance(self, lanes: list[int], chunks: np.ndarray, budgets: np.ndarray) -> Any:
        """Execute a chunk in each lane."""
        observations, success, steps = [], [], []
        for lane, chunk, budget in zip(lanes, chunks, budgets, strict=True):
            executed, done = 0, False
            while executed < min(len(chunk), budget) and not done:
                observation, _, _, _, info = self._envs[lane].step(np.clip(chunk[executed], -1.0, 1.0))
                executed, done = executed + 1, info["success"] > 0
            observations.append(observation)
            success.append(done)
            steps.append(executed)
        arrays = {"observations": np.stack(observations).astype(np.float32), "success": np.array(success)}
        return {}, {**arrays, "steps": np.array(steps)}

    def demonstrate(self, seed: int, noise: float, limit: int, linger: int) -> Any:
        """The scripted expert's episode; what is executed is its action plus noise on xyz, what is recorded is its action."""
        env, expert, rng = self._envs[0], self._expert(), np.random.default_rng(seed)
        observation, observations, actions = self._reset(0, seed).astype(np.float64), [], []
        succeeded_at = None
        for step in range(limit):
            action = np.clip(expert.get_action(observation), -1.0, 1.0).astype(np.float32)
            observations.append(observation.astype(np.float32))
            actions.append(action)
            executed = action.copy()
            executed[:3] = np.clip(executed[:3] + noise * rng.standard_normal(3), -1.0, 1.0)
            observation, _, _, _, info = env.step(executed)
            if info["success"] > 0 and succeeded_at is None:
                succeeded_at = step
            if succeeded_at is not None and step - succeeded_at >= linger:
                break
        arrays = {"observations": np.stack(observations), "actions": np.stack(actions)}
        return {"success": succeeded_at is not None}, arrays


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    frames.serve(Worker())
