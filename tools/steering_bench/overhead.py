"""What steering costs: CPU time of a decision with K candidates beside the policy alone, interleaved, one thread."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from robopolicy.config import build, compose, to_plain
from robopolicy.models.critic import ChunkCritic
from robopolicy.policies.base import TrainablePolicy
from robopolicy.policies.steering import SteeredPolicy
from robopolicy.policies.wrappers import Perturbed
from robopolicy.spec import ACTION, POINTS, STATE, FeatureSpec, Observation, Policy, image_key

HAND = FeatureSpec((17,), names=("ee_x", "ee_y", "ee_z", *(f"other_{n}" for n in range(14))))
ROBOT = FeatureSpec((7,), names=("dx", "dy", "dz", "rx", "ry", "rz", "gripper"))
INPUTS = {
    "state": ("[observation.state]", {STATE: FeatureSpec((30,))}),
    "images": (
        "[observation.state,observation.images.front]",
        {STATE: HAND, image_key("front"): FeatureSpec((84, 84, 3), "uint8")},
    ),
    "points": ("[observation.state,observation.points]", {STATE: HAND, POINTS: FeatureSpec((64, 3))}),
}
FAMILIES = {
    "carp": ["policy=carp"],
    "diffusion": ["policy=diffusion", "policy.sampler=ddim", "policy.num_inference_steps=16"],
}
NUMBERS = (10, 50)


def networks(inputs: str, family: str) -> tuple[TrainablePolicy, ChunkCritic]:
    """An untrained policy and critic of the defaults: what they compute does not depend on training."""
    keys, observation = INPUTS[inputs]
    encoder = [f"inputs={inputs}"] if inputs != "state" else []
    spec = {"observation": observation, "action": ROBOT, "control_hz": 20.0}
    made: list[Any] = []
    for kind, overrides in (("policy", FAMILIES[family]), ("critic", ["critic=success"])):
        given = [*overrides, *encoder, f"inputs.observation_keys={keys}", "data.path=x"]
        made.append(build(to_plain(compose("train", given))[kind], **spec).eval().requires_grad_(False))
    return made[0], made[1]


def measure(rounds: int, numbers: Sequence[int] = NUMBERS) -> list[dict[str, Any]]:
    """Rows: inputs, family, proposals, K, ms of the policy alone and steered, the ratio, ms of the critic (encode and score).

    proposals: "own" draws all K from the policy; "perturbed" draws one and adds noise to it.

    Figures are medians of CPU time over rounds in which all take turns; a ratio is the median of the rounds' ratios.
    """
    torch.set_num_threads(1)
    rows = []
    for inputs, (_, features) in INPUTS.items():
        rng = np.random.default_rng(0)
        observation = {key: _some(feature, rng) for key, feature in features.items()}
        for family in FAMILIES:
            policy, critic = networks(inputs, family)
            near = Perturbed(policy, share=1.0, scale=np.ones(7))
            proposals = {"own": policy, "perturbed": near}
            steered = {(p, n): SteeredPolicy(each, critic, num_samples=n) for p, each in proposals.items() for n in numbers}
            times: dict[str, list[float]] = {}
            for n in range(rounds + 2):
                row = _round(policy, critic, steered, observation, n)
                for key, value in row.items() if n >= 2 else ():
                    times.setdefault(key, []).append(1000 * value)
            base = np.array(times["base"])
            rows += [
                {
                    **{"inputs": inputs, "family": family, "proposals": proposal, "num_samples": number},
                    "base_ms": float(np.median(base)),
                    "steered_ms": float(np.median(times[f"{proposal}{number}"])),
                    "ratio": float(np.median(np.array(times[f"{proposal}{number}"]) / base)),
                    "critic_ms": float(np.median(times[f"critic{number}"])),
                }
                for proposal, number in steered
            ]
    return rows


def _some(feature: FeatureSpec, rng: np.random.Generator) -> Any:
    shape = (1, 1, *feature.shape)
    if feature.dtype == "uint8":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    return rng.normal(size=shape).astype(np.float32)


def _round(
    policy: TrainablePolicy,
    critic: ChunkCritic,
    steered: Mapping[tuple[str, int], Policy],
    observation: Observation,
    seed: int,
) -> dict[str, float]:
    found = {}
    start = time.process_time()
    policy.sample(observation, 1, seed)
    found["base"] = time.process_time() - start
    for (proposal, number), each in steered.items():
        start = time.process_time()
        each.sample(observation, 1, seed)
        found[f"{proposal}{number}"] = time.process_time() - start
        if proposal != "own":
            continue
        chunks = np.random.default_rng(seed).normal(size=(1, number, critic.spec.execute_horizon, 7)).astype(np.float32)
        assert chunks.shape[3] == critic.normalizer.features[ACTION].shape[0]
        start = time.process_time()
        critic.score(critic.encode(observation), chunks)
        found[f"critic{number}"] = time.process_time() - start
    return found
