"""Several runs of bench_steering.py together: other training seeds of the same bases, other tasks, other inputs.

    python tools/join_steering.py A.json B.json ... [--methods default] [--out runs/joined.json]

Prints, and writes with a picture beside it, each base and method over all its seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from provenance import provenance, write_json
from steering_bench import picture, summary

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Read, join, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--methods", nargs="+", help="only these")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "joined.json")
    args = parser.parse_args()
    try:
        results = [_read(file) for file in args.results]
        rows = [row for row in summary.joined(results) if not args.methods or row["method"] in args.methods]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if not rows:
        known = sorted({name for result in results for methods in result["episodes"].values() for name in methods} - {"base"})
        parser.error(f"--methods {' '.join(args.methods or ())}: none was played; available: {', '.join(known)}")
    print(f"{'base and method':42} {'n':>5} {'base':>6} {'this':>6} {'gain':>7}  {'95 % interval':18} gains of seeds")
    for row in rows:
        low, high = row["difference_interval"]
        gains = " ".join(f"{other - base:+.3f}" for base, other in row["by_seed"])
        print(
            f"{row['key']:42} {row['num_conditions']:5} {row['base']:6.3f} {row['other']:6.3f} {row['difference']:+7.3f}  "
            f"[{low:+.3f}, {high:+.3f}]   {gains}"
        )
    write_json(args.out, {"rows": rows, "of": [file.name for file in args.results], **provenance()})
    print(f"wrote {args.out} and {picture.gains(args.out.with_suffix('.png'), rows)}")


def _read(file: Path) -> dict[str, Any]:
    """What the benchmark wrote. Raises ValueError where it is anything else, OSError where it is not there."""
    try:
        found = json.loads(file.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict) or "episodes" not in found:
        raise ValueError(f"{file}: this is no result of bench_steering.py with played episodes")
    return found


if __name__ == "__main__":
    main()
