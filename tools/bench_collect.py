"""What collection yields: episodes and frames per second with 1, 2, ... workers, and where an episode's time goes.

    python tools/bench_collect.py [--quick] [--seed 0] [--workers 1 2] [--out FILE.json]

Expert episodes of Lift under the randomisation `wide`, state, one 84 px image and a point cloud a step. The numbers of
workers take turns; medians over the rounds. On a machine that others use, wall times say little: the factor of the second
core is therefore also given per CPU-second of the workers (their whole CPU time, waiting for locks and the parent's excluded).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from provenance import provenance, write_json

from robopolicy import executor
from robopolicy.data import collect as collection
from robopolicy.data.episodes import EpisodeWriter

ROOT = Path(__file__).resolve().parents[1]
ENV_ID = "robopolicy/Lift-v0"
KWARGS = {"observation": ["state", "images.front", "points"], "image_size": 84, "num_points": 128, "randomization": "wide"}
SHORT = {"observation": ["state"], "randomization": "none", "max_episode_steps": 5}
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few episodes and rounds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    episodes, rounds = (16, 2) if args.quick else (60, 5)
    with tempfile.TemporaryDirectory(prefix="bench_collect_") as folder:
        work = Path(folder)
        result = {
            "throughput": throughput(work, args.workers, episodes, rounds, args.seed),
            "parts_ms": {
                "episode": parts(work / "parts", KWARGS, "expert", 20 if args.quick else 60, args.seed),
                "episode of 5 steps": parts(work / "short", SHORT, "random", 100 if args.quick else 500, args.seed),
            },
        }
    print(f"{'workers':>8}{'episodes/s':>12}{'frames/s':>10}{'frames/CPU-s':>14}{'factor':>8}{'CPU factor':>12}{'parent':>10}")
    for count, row in result["throughput"].items():
        print(
            f"{count:>8}{row['episodes_per_s']:>12.2f}{row['frames_per_s']:>10.0f}{row['frames_per_cpu_s']:>14.0f}"
            f"{row['factor']:>8.2f}{row['cpu_factor']:>12.2f}{row['parent_ms']:>7.2f} ms"
        )
    for name, row in result["parts_ms"].items():
        print(f"{name}: " + ", ".join(f"{part} {value:.2f} ms" for part, value in row.items()))
    if args.out:
        write_json(args.out, {**result, **provenance("numba", "pybullet", "gymnasium"), "seeds": rounds})


def throughput(folder: Path, workers: list[int], episodes: int, rounds: int, seed: int) -> dict[str, dict[str, float]]:
    """{number of workers: medians over the rounds}; factors are relative to the first number of workers."""
    seen: dict[int, list[dict[str, float]]] = {count: [] for count in workers}
    for index in range(-1, rounds):  # the first round starts and warms the workers
        for count in workers if index >= 0 else [max(workers)]:
            path = folder / f"{index}_{count}"
            started, before, own = time.perf_counter(), workers_cpu(), time.process_time()
            store = collection.collect(
                path, ENV_ID, KWARGS, {"expert": episodes}, seed * 1000 + index + 1, num_workers=count, title=path.name
            )
            wall, cpu, own = time.perf_counter() - started, workers_cpu() - before, time.process_time() - own
            frames = int(store.lengths.sum())
            row = {"episodes_per_s": episodes / wall, "frames_per_s": frames / wall, "frames_per_cpu_s": frames / cpu}
            if index >= 0:
                seen[count].append(row | {"parent_ms": own / episodes * 1000})
    table = {n: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for n, rows in seen.items()}
    first = workers[0]
    for count, row in table.items():
        row["factor"] = statistics.median(
            a["frames_per_s"] / b["frames_per_s"] for a, b in zip(seen[count], seen[first], strict=True)
        )
        ratios = [a["frames_per_cpu_s"] / b["frames_per_cpu_s"] for a, b in zip(seen[count], seen[first], strict=True)]
        row["cpu_factor"] = count / first * statistics.median(ratios)
    return {str(count): row for count, row in table.items()}


def workers_cpu() -> float:
    """CPU seconds that the waiting workers have used so far."""
    fields = [Path(f"/proc/{w.process.pid}/stat").read_text().rpartition(")")[2].split() for w in executor._free]
    return sum(int(field[11]) + int(field[12]) for field in fields) / TICKS


def parts(path: Path, kwargs: dict[str, Any], behaviour: str, episodes: int, seed: int) -> dict[str, float]:
    """CPU milliseconds per episode in this process: playing it, packing and writing it, and everything else."""
    collection.collect(path, ENV_ID, kwargs, {behaviour: 2}, seed + 1, num_workers=0, title="warm")
    spent = dict.fromkeys(("play", "write"), 0.0)

    def clocked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent[name] += time.process_time() - started

        return call

    play, add = collection.play, EpisodeWriter.add
    collection.play, EpisodeWriter.add = clocked("play", play), clocked("write", add)  # type: ignore[method-assign]
    try:
        started = time.process_time()
        collection.collect(path, ENV_ID, kwargs, {behaviour: episodes}, seed, num_workers=0, title=path.name)
        total = time.process_time() - started
    finally:
        collection.play, EpisodeWriter.add = play, add  # type: ignore[method-assign]
    row = {name: value / episodes * 1000 for name, value in spent.items()}
    return row | {"else": total / episodes * 1000 - sum(row.values())}


if __name__ == "__main__":
    main()
