"""The fault drill: what a robot receives when things break. Exits 1 if anything is not as it must be.

    python tools/drill.py [--quick] [--seed 0] [--only camera_stops ...] [--out FILE.json]

A point robot that does exactly what it is told, behind the deployed pipeline: Controller, and for faults of processes also
RemotePolicy and a server in a process of its own, killed with SIGKILL. Sensor faults run in a time of their own, process faults
in real time. The full drill sends 100 000 fuzzed frames and filters a million random policy outputs; --quick a tenth of them.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy_bench import process_faults, sensor_faults
from deploy_bench.sensor_faults import Outcome
from provenance import provenance, write_json

DRILLS: dict[str, Callable[[bool, int], Outcome]] = {
    drill.__name__: drill
    for drill in (
        sensor_faults.camera_stops,
        sensor_faults.frames_out_of_order,
        sensor_faults.nan_joints,
        sensor_faults.clock_jumps_back,
        sensor_faults.stamps_go_wrong,
        sensor_faults.late_camera,
        process_faults.slow_inference,
        process_faults.server_restarts,
        process_faults.server_replaced,
        process_faults.client_killed,
        process_faults.garbage_bytes,
        sensor_faults.actions_beyond_limits,
        process_faults.two_clients,
        sensor_faults.emergency_stop,
    )
}


def show(name: str, found: dict[str, Any], must: dict[str, bool]) -> None:
    """One fault, for people."""
    print(f"\n{name}: {(DRILLS[name].__doc__ or '').splitlines()[0]}")
    for key, value in found.items():
        print(f"    {key}: {round(value, 4) if isinstance(value, float) else value}")
    for condition, is_so in must.items():
        print(f"    {'ok  ' if is_so else 'FAIL'} {condition}")


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer fuzzed frames and random outputs, shorter runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=DRILLS, help="these faults only")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    logging.disable(logging.ERROR)  # every fault would be reported, as it should
    results, failed = {}, []
    for name in args.only or DRILLS:
        started = time.monotonic()
        found, must = DRILLS[name](args.quick, args.seed)
        show(name, found, must)
        results[name] = {"found": found, "must": must, "seconds": time.monotonic() - started}
        failed += [f"{name}: {condition}" for condition, is_so in must.items() if not is_so]
    print(f"\n{len(results)} faults, {len(failed)} conditions failed" + "".join(f"\n  {f}" for f in failed))
    if args.out:
        write_json(
            args.out, {"faults": results, "failed": failed, "seeds": 1, "seed": args.seed, **provenance("pyzmq", "msgpack")}
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
