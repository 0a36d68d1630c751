"""Episodes of one policy in many environments at once: a decision for all lanes, then a chunk in each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from policy_bench.tasks import Environments
from robopolicy.spec import Array, Observation, Policy, SpecError


@dataclass
class Outcome:
    """An episode: its success, steps, mean |jerk| of the executed actions (units of the action per step cubed), facts."""

    seed: int
    success: bool = False
    steps: int = 0
    jerk: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Running:
    index: int
    outcome: Outcome
    actions: list[Array] = field(default_factory=list)
    observation: Observation = field(default_factory=dict)


def play(
    policy: Policy, environments: Environments, seeds: Sequence[int], seed: int, drawn: bool = False
) -> tuple[list[Outcome], dict[str, float]]:
    """The outcomes of the episodes of `seeds`, in their order, and the CPU seconds of the policy's decisions.

    A lane whose episode is over takes the next seed at the next decision, so every decision is for all lanes.

    Args:
        policy: asked for a chunk for all lanes at once. It looks at one frame: those within a chunk are not kept.
        environments: of one task.
        seeds: of the episodes, repeated ones allowed.
        seed: of the policy's randomness; each decision has one of its own.
        drawn: execute sample 1, which is drawn, instead of sample 0, the policy's best guess.
    """
    if policy.spec.obs_horizon != 1:
        raise SpecError(f"obs_horizon={policy.spec.obs_horizon}: the benchmark runs policies of one frame, obs_horizon=1")
    waiting = list(reversed(list(enumerate(seeds))))
    running: dict[int, _Running] = {}
    outcomes: dict[int, Outcome] = {}
    execute, decisions, cpu = policy.spec.execute_horizon, 0, 0.0
    while waiting or running:
        free = [lane for lane in range(environments.lanes) if lane not in running][: len(waiting)]
        if free:
            begun = [waiting.pop() for _ in free]
            first = environments.reset(free, [number for _, number in begun])
            for row, (lane, (index, number)) in enumerate(zip(free, begun, strict=True)):
                observation = {key: array[row] for key, array in first.items()}
                running[lane] = _Running(index, Outcome(number), observation=observation)
        lanes = sorted(running)
        observation = {key: np.stack([[running[lane].observation[key]] for lane in lanes]) for key in policy.spec.observation}
        start = time.process_time()
        chunks = policy.sample(observation, 1 + drawn, int(np.random.SeedSequence((seed, decisions)).generate_state(1)[0]))
        cpu, decisions = cpu + time.process_time() - start, decisions + 1
        chunks = np.ascontiguousarray(chunks[:, int(drawn), :execute])
        budgets = np.array([environments.limit - running[lane].outcome.steps for lane in lanes])
        advanced = environments.advance(lanes, chunks, budgets)
        for row, lane in enumerate(lanes):
            state, steps = running[lane], int(advanced.steps[row])
            state.outcome.steps += steps
            state.actions += list(chunks[row, :steps])
            state.observation = {key: array[row] for key, array in advanced.observations.items()}
            if advanced.ended[row] or state.outcome.steps >= environments.limit:
                state.outcome.success = bool(advanced.success[row])
                state.outcome.jerk = mean_jerk(np.stack(state.actions))
                state.outcome.facts = advanced.facts[row]
                outcomes[state.index] = running.pop(lane).outcome
    return [outcomes[index] for index in range(len(seeds))], {"cpu_s": cpu, "decisions": decisions}


def mean_jerk(actions: Array) -> float:
    """Mean absolute second difference of actions [T, A], 0 for fewer than three.

    Actions here are commanded velocities, so their second difference is the jerk.
    """
    return float(np.abs(np.diff(actions, 2, axis=0)).mean()) if len(actions) > 2 else 0.0
