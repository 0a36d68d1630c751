"""What detectors cost at scale: CPU seconds and peak memory of fit and score, on one thread.

    python tools/bench_detectors.py [--quick] [--rows 100000] [--width 512] [--seed 0] [--out FILE.json]

Every detector runs in a process of its own, on float32 features of 24 latent directions and noise. `memory` is the peak of its
resident memory less what the features and libraries took before it began. The target is the simulator, shifted a little: the
effect size shows that the detectors work at this size, not which one is best.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance, write_json

from robopolicy.ranking.detectors import DETECTORS, detect, evidence
from robopolicy.ranking.tables import check_features

LATENT, SHIFT = 24, 0.3
FULL, QUICK = (100_000, 512, 10_000, 1_000), (10_000, 128, 2_000, 300)  # fit rows, width, hold-out rows, target rows
EVERYTHING = "detect()"  # all detectors, guards and 2000 bootstrap replicates: what `rank` does for one checkpoint


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK[0]} x {QUICK[1]} features")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    rows, width, hold_out, target = QUICK if args.quick else FULL
    sizes = (args.rows or rows, args.width or width, hold_out, target)
    if args.only:
        print(json.dumps(measure(args.only, sizes, args.seed)))
        return
    print(f"fit {sizes[0]} x {sizes[1]} float32 ({sizes[0] * sizes[1] * 4 >> 20} MiB), hold-out {hold_out}, target {target}")
    print(f"{'detector':14} {'fit s':>8} {'score s':>8} {'memory MiB':>11} {'effect':>7}   (CPU seconds)")
    found = []
    command = [sys.executable, *sys.argv, "--only"]
    for name in (*DETECTORS, EVERYTHING):
        one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        done = subprocess.run([*command, name], env={**os.environ, **one}, capture_output=True, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        found.append({"detector": name, **row})
        print(
            f"{name:14} {row['fit_s']:8.2f} {row['score_s']:8.2f} {row['memory_mib']:11.0f} {row['effect_size']:7.2f}",
            flush=True,
        )
    if args.out:
        names = ("fit_rows", "width", "hold_out_rows", "target_rows")
        result = {**dict(zip(names, sizes, strict=True)), "rows": found, "seeds": 1, "seed": args.seed, "load": os.getloadavg()}
        write_json(args.out, {**result, **provenance("scipy", "scikit-learn")})


def measure(name: str, sizes: tuple[int, int, int, int], seed: int) -> dict[str, Any]:
    """CPU seconds and peak memory of one detector, in this process."""
    num, width, hold_out, num_target = sizes
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(LATENT, width)).astype(np.float32)
    fit, calibration, target = (features(rng, n, mix) for n in (num, hold_out, num_target))
    target += np.float32(SHIFT)
    before, start = memory("VmRSS"), time.process_time()
    if name == EVERYTHING:
        arrays = {"fit": fit, "calibration": calibration, "target": target, "target_episode": np.arange(num_target) // 20}
        detection = detect(check_features({"x": arrays}, ["x"])["x"], detector="mahalanobis", seed=seed, num_bootstrap=2000)
        fitted, size = time.process_time(), detection.effect_sizes["mahalanobis"]
    else:
        detector = DETECTORS[name]().fit(fit)
        fitted = time.process_time()
        size = evidence(*detector.pair(target, calibration, np.arange(num_target) // 20)).effect_size
    times = {"fit_s": fitted - start, "score_s": time.process_time() - fitted}
    return {**times, "memory_mib": memory("VmHWM") - before, "effect_size": size}


def features(rng: np.random.Generator, num: int, mix: np.ndarray) -> np.ndarray:
    """Float32 [num, width], made in blocks, so that making them is not the peak."""
    rows = np.empty((num, mix.shape[1]), np.float32)
    for start in range(0, num, 4096):
        block = rows[start : start + 4096]
        block[:] = rng.normal(size=(len(block), LATENT)) @ mix + rng.normal(size=block.shape)
    return rows


def memory(field: str) -> float:
    """MiB of resident memory now (VmRSS) or at its peak (VmHWM), as Linux counts it."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
