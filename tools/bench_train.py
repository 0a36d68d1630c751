"""What training costs: windows a second for state, image and point inputs, by feeding, slicing and number of processes.

    python tools/bench_train.py [--quick] [--seed 0] [--out FILE.json]

Every setting trains the same steps; the settings of an input and policy take turns, and medians over the turns are shown.
Images lie on disk beyond memory_gb, so that reading them counts. Rates are from the times in metrics.jsonl, after the first
line; CPU seconds (single processes) are of the whole process, start apart. Wall-clock rates of a busy machine mean little.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from provenance import provenance, write_json

from robopolicy.data.episodes import write_episodes
from robopolicy.spec import ACTION, POINTS, STATE, image_key
from robopolicy.train.logging import read_metrics

INPUTS = {"state": [STATE], "images": [STATE, image_key("front")], "points": [STATE, POINTS]}
POLICIES = ("bc", "carp")
SETTINGS = {
    "plain": {"num_prefetch": 0},
    "prefetch": {"num_prefetch": 2},
    "accumulate 2": {"num_prefetch": 2, "accumulate": 2},
    "torchrun 2": {"num_prefetch": 2},
}
BATCH, EPISODES, LENGTH, SIZE, POINT_COUNT = 64, 40, 80, 84, 256


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="images and one policy, fewer steps, one turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(**args.worker)
        return
    steps, turns = (8, 1) if args.quick else (100, 5)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bench_train_") as name:
        folder = Path(name)
        write_dataset(folder / "data", args.seed)
        for inputs in ["images"] if args.quick else INPUTS:
            for policy in POLICIES[: 1 if args.quick else None]:
                rows += compare(folder, inputs, policy, steps, turns, args.seed)
    result = {"rows": rows, "steps": steps, "turns": turns, "batch_size": BATCH, "load": os.getloadavg()}
    print(f"{'inputs':8} {'policy':6} {'setting':14} {'windows/s':>10} {'CPU ms/step':>12}")
    for row in rows:
        cpu = f"{row['cpu_ms_per_step']:12.1f}" if row["cpu_ms_per_step"] else f"{'':12}"
        print(f"{row['inputs']:8} {row['policy']:6} {row['setting']:14} {row['windows_per_s']:10.0f} {cpu}")
    if args.out:
        write_json(args.out, {**result, **provenance("torch"), "seed": args.seed})


def compare(folder: Path, inputs: str, policy: str, steps: int, turns: int, seed: int) -> list[dict[str, Any]]:
    """One row for each of SETTINGS."""
    found: dict[str, list[tuple[float, float]]] = {setting: [] for setting in SETTINGS}
    for turn in range(turns):
        for setting, options in SETTINGS.items():
            run_dir = folder / f"{inputs}_{policy}_{setting.replace(' ', '_')}_{turn}"
            train = {"steps": steps, "num_checkpoints": 1, "log_every": max(2, steps // 10), "seed": seed, **options}
            job = {"data": str(folder / "data"), "run_dir": str(run_dir), "inputs": inputs, "policy": policy, "train": train}
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if "torchrun" in setting else []
            command = [sys.executable, *launcher, __file__, "--worker", json.dumps(job)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            printed = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, env=environment).stdout
            rows = read_metrics(run_dir)
            seconds = (rows[-1]["seconds"] - rows[0]["seconds"]) / (rows[-1]["step"] - rows[0]["step"])
            found[setting].append((seconds, 0.0 if launcher else json.loads(printed.splitlines()[-1]) / steps))
    return [
        {
            "inputs": inputs,
            "policy": policy,
            "setting": setting,
            "windows_per_s": BATCH / median(seconds for seconds, _ in pairs),
            "cpu_ms_per_step": 1e3 * median(cpu for _, cpu in pairs),
        }
        for setting, pairs in found.items()
    ]


def work(data: str, run_dir: str, inputs: str, policy: str, train: dict[str, Any]) -> None:
    """Train one policy in this process (or in all that torchrun started) and print its CPU seconds."""
    from robopolicy.config import compose, to_plain
    from robopolicy.pipeline import train_run

    settings = to_plain(compose("train", [f"policy={policy}", f"data.path={data}", "data.memory_gb=0.01"]))
    settings["policy"]["observation_keys"] = INPUTS[inputs]
    settings["policy"]["encoder"]["width"] = 128
    settings["train"] |= {"batch_size": BATCH, "progress": False, **train}
    cpu = time.process_time()
    train_run(settings, run_dir)
    print(f"\n{time.process_time() - cpu}")


def write_dataset(path: Path, seed: int) -> None:
    """Smooth motions seen by everything: a state, an image and a cloud that follow them."""
    rng = np.random.default_rng(seed)
    grid = np.arange(SIZE, dtype=np.float32)
    for _ in range(EPISODES):
        state = np.cumsum(rng.normal(size=(LENGTH, 7)), 0).astype(np.float32)
        center = SIZE / 2 + 4 * state[:, :2]
        blob = np.exp(-((grid - center[:, :1]) ** 2)[:, :, None] / 200) * np.exp(-((grid - center[:, 1:]) ** 2)[:, None] / 200)
        noise = rng.integers(0, 16, (LENGTH, SIZE, SIZE, 3), dtype=np.uint8)
        cloud = state[:, None, :3] + rng.normal(size=(LENGTH, POINT_COUNT, 3)).astype(np.float32)
        image = noise + (230 * blob[..., None]).astype(np.uint8)
        episode = {STATE: state, image_key("front"): image, POINTS: cloud, ACTION: np.tanh(np.diff(state, axis=0, append=0))}
        write_episodes(path, [episode], fps=10)


if __name__ == "__main__":
    main()
