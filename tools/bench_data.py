"""What datasets cost: writing as a share of simulation, and a dataset of a million frames written, opened and sampled.

    python tools/bench_data.py [--quick] [--seed 0] [--frames 1000000] [--folder DIR] [--out FILE.json]

The large dataset recombines rendered episodes (joined in pairs, shifted, brightened), so that it compresses as rendered
frames do. It is written below --folder (about 20 GB for a million frames of noisy images) and deleted afterwards.
CPU times are of the process that does the work; memory is what the sampling process holds.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance, write_json

from robopolicy.data.actors import ExpertActor
from robopolicy.data.collect import dataset_spec, environment, episode_seed, play
from robopolicy.data.episode_file import pack
from robopolicy.data.episodes import EpisodeStore, EpisodeWriter
from robopolicy.data.manage import check
from robopolicy.data.windows import Windows
from robopolicy.executor import map_units
from robopolicy.spec import DatasetSpec, image_key

ROOT = Path(__file__).resolve().parents[1]
ENV = ("robopolicy/Lift-v0", {"observation": ["state", "images.front"], "image_size": 84, "randomization": "wide"})
STATE, FRONT = "observation.state", image_key("front")
EPISODE_STEPS, BLOCK = 80, 25
BATCH, OBS_HORIZON, ACTION_HORIZON = 64, 2, 16
RESIDENT = 0.05  # share of the images that may be held in memory
FREE_BYTES_PER_FRAME = 40_000


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20,000 frames, fewer repetitions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    frames = 20_000 if args.quick else args.frames
    free = shutil.disk_usage(args.folder).free
    if free < FREE_BYTES_PER_FRAME * frames:
        sys.exit(
            f"{args.folder} has {free / 1e9:.0f} GB free, {frames} frames ask for {FREE_BYTES_PER_FRAME * frames / 1e9:.0f}"
        )
    origin = provenance("pyarrow")
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="bench_data_") as work:
        result = {"writing": writing_share(Path(work), 20 if args.quick else 200, args.seed)}
        result["large"] = large_dataset(Path(work), frames, args.seed, 100 if args.quick else 1500)
    result |= {**origin, "seed": args.seed}
    report(result)
    if args.out:
        write_json(args.out, result)


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """The result of `work` and the seconds it took."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return result, {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}


def writing_share(work: Path, count: int, seed: int) -> dict[str, float]:
    """Simulate and write episodes in turn; medians. The episodes stay in work/source."""
    env = environment(*ENV)
    writer = EpisodeWriter(work / "source", dataset_spec(env))
    play(env, ExpertActor(), seed, record=True)
    rows = []
    for number in range(count):
        episode, simulated = timed(partial(play, env, ExpertActor(), episode_seed(seed, number), record=True))
        info = {"task": "lift", "seed": number, "success": episode.row["success"], "randomization": episode.randomization}
        file, written = timed(partial(writer.add, episode.arrays, info))
        _, packed = timed(partial(pack, episode.arrays, info))
        raw = sum(array.nbytes for array in episode.arrays.values())
        size = file.stat().st_size
        rows.append([simulated["cpu_s"], written["cpu_s"], packed["cpu_s"], simulated["wall_s"], written["wall_s"], raw, size])
    sim_cpu, add_cpu, pack_cpu, sim_wall, add_wall, raw, size = np.array(rows).T
    return {
        "episodes": count,
        "simulation_cpu_ms": 1e3 * float(np.median(sim_cpu)),
        "writing_cpu_ms": 1e3 * float(np.median(add_cpu)),
        "compression_cpu_ms": 1e3 * float(np.median(pack_cpu)),
        "writing_wall_ms": 1e3 * float(np.median(add_wall)),
        "share_cpu": float(np.median(add_cpu / sim_cpu)),
        "share_wall": float(np.median(add_wall / sim_wall)),
        "mb_per_episode": float(np.mean(size)) / 1e6,
        "raw_over_stored": float(raw.sum() / size.sum()),
    }


def large_dataset(work: Path, frames: int, seed: int, num_batches: int) -> dict[str, Any]:
    """Write, open, sample and check a dataset of about `frames` frames."""
    path, source = work / "large", EpisodeStore(work / "source")
    spec = source.spec
    count = frames // EPISODE_STEPS
    blocks = [range(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]
    write = partial(write_block, path=str(path), source=str(source.path), spec=spec.to_dict(), seed=seed)
    costs, writing = timed(lambda: map_units(write, blocks, title="write", weight=len))
    result: dict[str, Any] = {"episodes": count, "steps": count * EPISODE_STEPS, "write_wall_s": writing["wall_s"]}
    result["write_cpu_ms_per_episode"] = 1e3 * sum(costs) / count
    result["gb"] = sum(file.stat().st_size for file in (path / "episodes").iterdir()) / 1e9
    result["open_first"] = timed(partial(EpisodeStore, path))[1]
    result["open_again"] = timed(partial(EpisodeStore, path))[1]
    writer = EpisodeWriter(path, spec)
    for number in range(10):
        writer.add(source.read(number), source.info(number), name=f"late_{number}")
    store, result["open_grown_by_10"] = timed(partial(EpisodeStore, path))
    result["open_table_mb"] = (path / "episodes.parquet").stat().st_size / 1e6
    memory_gb = RESIDENT * result["steps"] * 84 * 84 * 3 / 1e9
    windows, result["load"] = timed(
        lambda: Windows(store, [STATE, FRONT], OBS_HORIZON, ACTION_HORIZON, memory_gb=memory_gb),
    )
    result["resident_steps"] = windows.num_resident
    result["sampling"] = sample(windows, num_batches, seed)
    (problems, _), result["check"] = timed(partial(check, path))
    assert not problems, problems
    return result


def write_block(numbers: range, path: str, source: str, spec: dict[str, Any], seed: int) -> float:
    """Write some recombined episodes; CPU seconds that the writer took."""
    store, writer = EpisodeStore(source), EpisodeWriter(path, DatasetSpec.from_dict(spec))
    cpu = 0.0
    for number in numbers:
        rng = np.random.default_rng([seed, number])
        arrays: dict[str, list[np.ndarray]] = {key: [] for key in store.spec.features}
        while sum(map(len, arrays[STATE])) < EPISODE_STEPS:
            index = int(rng.integers(len(store)))
            for key, array in store.read(index).items():
                arrays[key].append(array)
        joined = {key: np.concatenate(parts)[:EPISODE_STEPS] for key, parts in arrays.items()}
        shift, brightness = rng.integers(0, 84, 2), int(rng.integers(-40, 41))
        shifted = np.roll(joined[FRONT], shift, axis=(1, 2)).astype(np.int16) + brightness
        joined[FRONT] = shifted.clip(0, 255).astype(np.uint8)
        info = {**store.info(index), "seed": number}
        cpu += timed(partial(writer.add, joined, info, f"episode_{number:06d}", exist_ok=True))[1]["cpu_s"]
    return cpu


def sample(windows: Windows, num_batches: int, seed: int) -> dict[str, Any]:
    """Random batches of windows: their rate, and the memory of this process meanwhile."""
    rng = np.random.default_rng(seed)
    memory, seconds = [], []
    for _ in range(num_batches):
        rows = rng.integers(0, len(windows), BATCH)
        seconds.append(timed(partial(windows.batch, rows))[1]["cpu_s"])
        memory.append(resident_mb())
    marks = memory[:: max(1, num_batches // 10)]
    return {
        "batches": num_batches,
        "windows_per_cpu_s": BATCH / float(np.median(seconds)),
        "batch_cpu_ms": 1e3 * float(np.median(seconds)),
        "rss_mb": marks,
        "rss_growth_mb": max(memory[num_batches // 10 :]) - memory[num_batches // 10],
    }


def resident_mb() -> float:
    """Resident memory of this process (MB)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1e3


def report(result: dict[str, Any]) -> None:
    """The figures for people."""
    w, g = result["writing"], result["large"]
    s = g["sampling"]
    lines = [
        f"writing an episode     {w['writing_cpu_ms']:.1f} ms CPU ({w['compression_cpu_ms']:.1f} of it encoding), "
        f"{w['writing_wall_ms']:.1f} ms wall, beside {w['simulation_cpu_ms']:.0f} ms CPU of simulation",
        f"share of simulation    {w['share_cpu']:.1%} of CPU, {w['share_wall']:.1%} of wall time (medians of {w['episodes']})",
        f"size                   {w['mb_per_episode']:.2f} MB an episode, {w['raw_over_stored']:.2f} times smaller than raw",
        f"large dataset          {g['steps']} steps in {g['episodes']} episodes, {g['gb']:.1f} GB",
        f"  written              in {g['write_wall_s']:.0f} s, {g['write_cpu_ms_per_episode']:.1f} ms CPU an episode",
        *(
            f"  {name:20} {g[key]['cpu_s']:.2f} s CPU, {g[key]['wall_s']:.2f} s wall"
            for name, key in (
                ("opened first", "open_first"),
                ("opened again", "open_again"),
                ("opened 10 later", "open_grown_by_10"),
                ("windows made", "load"),
            )
        ),
        f"  every byte checked   in {g['check']['wall_s']:.0f} s",
        f"  sampled              {s['windows_per_cpu_s']:.0f} windows a CPU second ({s['batch_cpu_ms']:.0f} ms for {BATCH}), "
        f"images of {g['resident_steps']} steps in memory",
        f"  memory               {' '.join(f'{mb:.0f}' for mb in s['rss_mb'])} MB; growth {s['rss_growth_mb']:.0f} MB",
    ]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
