"""Seconds and memory of ranking large episode tables: `robopolicy rank scores=episodes.parquet`.

python tools/bench_rank.py                     # 1,000 checkpoints, 1e7 and 1e8 rows
python tools/bench_rank.py --quick --out FILE.json

The table is written here, row group by row group; the ranking runs in a process of its own, whose peak memory is reported.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from provenance import provenance, write_json

SIZES = ((1000, 10_000), (1000, 100_000))  # checkpoints, conditions
QUICK = ((100, 1000), (1000, 200))
GIB = 2**30
PROGRAM = """
import json, resource, sys, time
from robopolicy.config import compose, to_plain
from robopolicy.selection.run import rank_verb
began, cpu = time.perf_counter(), time.process_time()
rank_verb(to_plain(compose("rank", [f"scores={sys.argv[1]}", f"out={sys.argv[2]}", f"num_bootstrap={sys.argv[3]}"])))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu, "peak_bytes": peak}))
"""


def write_table(path: Path, num_checkpoints: int, num_conditions: int, seed: int) -> None:
    """An episode table, a row group a checkpoint: success rates from 0.2 to 0.9, conditions of differing difficulty."""
    rng = np.random.default_rng(seed)
    ease = rng.normal(size=num_conditions)
    condition = pa.array(np.arange(num_conditions)).cast(pa.string()).dictionary_encode()
    zero = pa.array(np.zeros(num_conditions, np.int32))

    def constant(value: str) -> pa.Array:
        return pa.DictionaryArray.from_arrays(zero, pa.array([value]))

    writer = None
    for c in range(num_checkpoints):
        skill = np.log(9) * (c / max(num_checkpoints - 1, 1)) - 1.0
        success = rng.uniform(size=num_conditions) < 1 / (1 + np.exp(-skill - ease))
        columns = {
            "checkpoint": constant(f"run{c // 10:04d}@{1000 * (1 + c % 10)}"),
            "run": constant(f"run{c // 10:04d}"),
            "step": pa.array(np.full(num_conditions, 1000 * (1 + c % 10))),
            "suite": constant("bench"),
            "split": constant("select"),
            "condition": condition,
            "seed": pa.array(np.arange(num_conditions)),
            "success": pa.array(success),
            "return": pa.array(success.astype(np.float64)),
            "progress": pa.array(success.astype(np.float64)),
        }
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def measure(num_checkpoints: int, num_conditions: int, num_bootstrap: int, seed: int) -> dict[str, float]:
    """Write a table, rank it in a fresh process, and remove it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "episodes.parquet"
        write_table(path, num_checkpoints, num_conditions, seed)
        size = path.stat().st_size
        arguments = [str(path), str(Path(folder) / "out"), str(num_bootstrap)]
        done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
    rows = num_checkpoints * num_conditions
    facts = {"checkpoints": num_checkpoints, "conditions": num_conditions, "rows": rows, "file_bytes": size}
    return {**facts, "num_bootstrap": num_bootstrap, **found}


def main() -> None:
    """Measure every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-bootstrap", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    began, sizes = time.perf_counter(), []
    print(f"{'checkpoints':>12}{'conditions':>12}{'rows':>14}{'seconds':>10}{'CPU s':>10}{'peak GiB':>10}")
    for num_checkpoints, num_conditions in QUICK if args.quick else SIZES:
        found = measure(num_checkpoints, num_conditions, 200 if args.quick else args.num_bootstrap, args.seed)
        sizes.append(found)
        print(
            f"{num_checkpoints:>12}{num_conditions:>12}{found['rows']:>14}{found['seconds']:>10.1f}"
            f"{found['cpu_seconds']:>10.1f}{found['peak_bytes'] / GIB:>10.2f}",
            flush=True,
        )
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if args.out:
        facts = {"seed": args.seed, "quick": args.quick, "writer_peak_bytes": own, "seconds": time.perf_counter() - began}
        write_json(args.out, {"sizes": sizes, **facts, **provenance("pyarrow", "scipy")})


if __name__ == "__main__":
    main()
