"""What a decision costs: CPU and wall milliseconds of a policy's sample(), by inputs, batch, candidates and backend.

    python tools/bench_inference.py [--quick] [--policies carp ...] [--compile] [--seed 0] [--out FILE.json]

Weights are random: they do not change the cost. One thread. The settings of an input take turns, with a new observation each
turn. "onnx" is policies/exported.py, which has a graph for one chunk of one observation; "compile" (--compile, needs a C++
compiler) is torch.compile of the same function. On a busy machine only the CPU times and their ratios mean something.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import provenance, write_json

from robopolicy.config import build, compose, to_plain
from robopolicy.policies.base import TrainablePolicy
from robopolicy.policies.exported import ExportedPolicy, SingleChunk, random_observations
from robopolicy.spec import POINTS, STATE, Array, FeatureSpec, Observation

SETTINGS = [(1, 1), (1, 32), (32, 1), (32, 32)]  # observations and candidates of a call
NAMES = ("ee_x", "ee_y", "ee_z", *(f"entry_{i}" for i in range(7)))
STATE_FEATURE, ACTION_FEATURE = FeatureSpec((10,), names=NAMES), FeatureSpec((7,))
INPUTS = {"state": {STATE: STATE_FEATURE}, "points": {STATE: STATE_FEATURE, POINTS: FeatureSpec((64, 6))}}
GROUPS = {"state": "auto", "points": "points"}  # conf/inputs
WARM_UP = 5

Call = Callable[[Observation], Array]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="state only, fewer turns")
    parser.add_argument("--policies", nargs="+", default=["carp"], help="names in conf/policy")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile as well")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    turns = 30 if args.quick else 300
    rows: list[dict[str, Any]] = []
    head = f"{'policy':15} {'inputs':7} {'batch':>5} {'N':>3} {'backend':8}"
    print(f"{head} {'CPU ms p50':>10} {'p95':>7} {'wall p50':>9} {'p95':>7}")
    for policy in args.policies:
        for inputs in ["state"] if args.quick else INPUTS:
            for row in compare(make(policy, inputs, args.seed), turns, args.compile, args.seed):
                rows.append({"policy": policy, "inputs": inputs, **row})
                show(rows[-1])
    if args.out:
        result = {"rows": rows, "turns": turns, "seeds": 1, "seed": args.seed, "load": os.getloadavg()}
        write_json(args.out, {**result, **provenance("torch", "onnx", "onnxscript", "onnxruntime")})


def make(name: str, inputs: str, seed: int) -> TrainablePolicy:
    """An untrained policy of conf/policy."""
    torch.manual_seed(seed)
    node = to_plain(compose("train", [f"policy={name}", f"inputs={GROUPS[inputs]}", "data.path=none"]))["policy"]
    policy = build(node, observation=INPUTS[inputs], action=ACTION_FEATURE, control_hz=20.0)
    return policy.eval().requires_grad_(False)


def compare(policy: TrainablePolicy, turns: int, compiled: bool, seed: int) -> list[dict[str, Any]]:
    """One row for each call."""
    calls: dict[tuple[int, int, str], Call] = {}
    for batch, num in SETTINGS:
        calls[batch, num, "torch"] = lambda observation, num=num: policy.sample(observation, num, 0)
    try:
        calls[1, 1, "onnx"] = ExportedPolicy(policy).sample
    except ValueError as error:
        print(f"no graph: {error}")
    if compiled:
        calls[1, 1, "compile"] = compile_single(policy)
    times: dict[tuple[int, int, str], list[tuple[float, float]]] = {key: [] for key in calls}
    sources = {batch: random_observations(policy, turns + WARM_UP, seed, batch) for batch, _ in SETTINGS}
    for _ in range(turns + WARM_UP):
        observations = {batch: next(source) for batch, source in sources.items()}
        for key, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call(observations[key[0]])
            times[key].append((time.process_time() - cpu, time.perf_counter() - wall))
    rows = []
    for (batch, num, backend), pairs in times.items():
        figures = 1e3 * np.quantile(pairs[WARM_UP:], [0.5, 0.95], axis=0)
        cpu_ms, wall_ms = ({"p50": float(p50), "p95": float(p95)} for p50, p95 in figures.T)
        rows.append({"batch": batch, "num_samples": num, "backend": backend, "cpu_ms": cpu_ms, "wall_ms": wall_ms})
    return rows


def compile_single(policy: TrainablePolicy) -> Call:
    """One chunk by torch.compile, with the checks and conversions of policy.sample."""
    graph = torch.compile(SingleChunk(policy))

    @torch.no_grad()
    def call(observation: Observation) -> Array:
        tensors = policy.encoder.tensors(observation, "cpu")
        return graph(*(tensors[key] for key in policy.encoder.keys)).numpy()

    return call


def show(row: dict[str, Any]) -> None:
    """One line of the table."""
    cpu, wall = row["cpu_ms"], row["wall_ms"]
    figures = f"{cpu['p50']:10.2f} {cpu['p95']:7.2f} {wall['p50']:9.2f} {wall['p95']:7.2f}"
    print(f"{row['policy']:15} {row['inputs']:7} {row['batch']:5} {row['num_samples']:3} {row['backend']:8} {figures}")


if __name__ == "__main__":
    main()
