"""What deployment adds to a policy: the latency of the socket, the cost of the node, jitter and missed deadlines of its loop.

    python tools/bench_deploy.py [--quick] [--seed 0] [--peers openpi lerobot-async] [--out FILE.json]

The policy costs nothing and sees one 640 x 480 picture. "Round trip" is a call through RemotePolicy to a server process minus a
call of the policy here, taken in turns. "Node" is what Controller.receive and step take in a control step, in time and in the
thread's own CPU time, with new pictures at 30 Hz; what ROS adds (copying and converting messages) is not in it. A deadline is
missed when a command is not ready within its period. Full: 10 000 control steps at 20 and
at 50 Hz, a quarter of an hour. Ours and the peers take turns, in three rounds; figures are medians of the rounds'.
"""

from __future__ import annotations

import argparse
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from deploy_bench.peers import PEERS, measure_peer
from deploy_bench.process import ServerProcess
from deploy_bench.robot import LIMITS, STREAMS
from deploy_bench.toy import EE_NAMES, IMAGE, VGA, Toward
from provenance import provenance, write_json

from robopolicy.deploy.client import RemotePolicy
from robopolicy.deploy.controller import Controller
from robopolicy.deploy.runtime import HOLD, RuntimeSettings
from robopolicy.spec import STATE, Observation

RATES = {20.0: 10_000, 50.0: 10_000}  # control steps of a full run
QUICK_STEPS = 200
CAMERA_HZ = 30.0
WARM_UP = 20
GOALS = {"round trip p50 ms": 3.0, "node p95 ms": 5.0, "missed deadlines at 20 Hz": 0.001}


def percentiles(values: Any) -> dict[str, float]:
    """p50, p95, p99, max."""
    return {name: float(np.percentile(values, q)) for name, q in (("p50", 50), ("p95", 95), ("p99", 99), ("max", 100))}


def timed(call: Callable[[], Any]) -> float:
    """Milliseconds."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000


def vga_observation(rng: np.random.Generator) -> Observation:
    """One 640 x 480 picture and a position."""
    picture = rng.integers(0, 256, (1, 1, *VGA, 3), dtype=np.uint8)
    return {STATE: rng.normal(size=(1, 1, 3)).astype(np.float32), IMAGE: picture}


def round_trips(address: str, turns: int, seed: int) -> dict[str, Any]:
    """Added by the socket, and this process's CPU time per call."""
    rng, here = np.random.default_rng(seed), Toward(image=VGA)
    observations = [vga_observation(rng) for _ in range(8)]
    added, direct = [], []
    with RemotePolicy(address, timeout_ms=10_000) as remote:
        for turn in range(turns + WARM_UP):
            seen = observations[turn % len(observations)]
            there, local = timed(lambda: remote.sample(seen)), timed(lambda: here.sample(seen))  # noqa: B023
            if turn >= WARM_UP:
                added.append(there - local)
                direct.append(local)
        cpu = time.process_time()
        for turn in range(turns // 4):
            remote.sample(observations[turn % len(observations)])
        cpu_ms = (time.process_time() - cpu) * 1000 / (turns // 4)
    return {**percentiles(added), "direct_p50": float(np.median(direct)), "client_cpu_mean": cpu_ms, "calls": turns}


class Camera:
    """A picture at CAMERA_HZ, from a thread of its own, as a subscriber's callback would."""

    def __init__(self, controller: Controller, seed: int) -> None:
        self._pictures = np.random.default_rng(seed).integers(0, 256, (4, *VGA, 3), dtype=np.uint8)
        self._controller, self._stop = controller, threading.Event()
        self.seconds = 0.0
        self._thread = threading.Thread(target=self._work, daemon=True)

    def _work(self) -> None:
        count, started = 0, time.monotonic()
        while not self._stop.is_set():
            now, cpu = time.monotonic(), time.thread_time()
            self._controller.receive("camera", now, self._pictures[count % 4])
            self.seconds += time.thread_time() - cpu
            count += 1
            self._stop.wait(max(0.0, started + count / CAMERA_HZ - time.monotonic()))

    def __enter__(self) -> Camera:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()


def control_loop(address: str, hz: float, steps: int, seed: int) -> dict[str, Any]:
    """A loop at `hz` with the policy at 20 Hz in another process: cost, jitter, deadlines."""
    with RemotePolicy(address, timeout_ms=2000) as remote:
        settings = RuntimeSettings(control_hz=hz, mode="real_time", lead_steps=None, stop_after_s=None)
        controller = Controller(remote, STREAMS, limits=LIMITS, settings=settings, ee_position=EE_NAMES, enabled=True)
        node, cpu_ms, late, states = [], [], [], []
        period, position = 1 / hz, np.array([0.4, 0.2, 0.1])
        goal_turns = np.array([[0.5, 0.0, 0.2], [0.4, 0.2, 0.1]])
        with Camera(controller, seed):
            time.sleep(0.2)
            started = time.monotonic() + period
            for step in range(steps):
                time.sleep(max(0.0, started + step * period - time.monotonic()))
                woke, cpu = time.monotonic(), time.thread_time()
                if step % round(4 * hz) == 0:  # somewhere else, so that there is something to do
                    position = goal_turns[step // round(4 * hz) % 2]
                controller.receive("ee", woke, position.astype(np.float32))
                command = controller.step(time.monotonic())
                if command.publish and command.action is not None:
                    position = position + command.action[:3]
                ready = time.monotonic()
                node.append((ready - woke) * 1000)
                cpu_ms.append((time.thread_time() - cpu) * 1000)
                late.append((ready - (started + step * period)) * 1000)
                states.append(command.state)
        counters = controller.counters
        controller.close()
    late_ms = np.array(late[WARM_UP:])
    return {
        "node_ms": percentiles(node[WARM_UP:]),
        "node_cpu_ms": percentiles(cpu_ms[WARM_UP:]),
        "ready_after_due_ms": percentiles(late_ms),
        "jitter_ms": float(np.std(late_ms)),
        "missed_deadlines": float((late_ms > period * 1000).mean()),
        "steps": steps,
        "held": float(np.mean([state == HOLD for state in states[WARM_UP:]])),
        "counters": counters,
    }


def over_rounds(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure; of what was not measured, why."""
    failed = [one for one in found if "not_measured" in one]
    if failed:
        return failed[0]
    numbers = [key for key, value in found[0].items() if isinstance(value, float)]
    return {**found[0], **{key: float(np.median([one[key] for one in found])) for key in numbers}}


def batching(seed: int, quick: bool) -> dict[str, Any]:
    """Is it worth computing several clients' calls in one pass? CPU ms of a batch of four over four calls."""
    import torch

    from robopolicy.config import build, compose, to_plain
    from robopolicy.policies.exported import random_observations
    from robopolicy.spec import FeatureSpec

    torch.set_num_threads(1)
    observation = {STATE: FeatureSpec((10,), names=("ee_x", "ee_y", "ee_z", *(f"entry_{n}" for n in range(7))))}
    found = {}
    for name in ("bc", "carp", "flow"):
        config = to_plain(compose("train", [f"policy={name}", "inputs=auto", "data.path=-"]))
        policy = build(config["policy"], observation=observation, action=FeatureSpec((7,)), control_hz=20.0).eval()
        one = [next(random_observations(policy, 1, seed + n)) for n in range(4)]
        four = {key: np.concatenate([o[key] for o in one]) for key in one[0]}
        alone, together = [], []
        for turn in range(15 if quick else 100):
            cpu = time.process_time()
            for seen in one:
                policy.sample(seen, 1, None)
            middle = time.process_time()
            policy.sample(four, 1, None)
            if turn >= 3:
                alone.append((middle - cpu) * 1000)
                together.append((time.process_time() - middle) * 1000)
        found[name] = {"four_alone_ms": float(np.median(alone)), "together_ms": float(np.median(together))}
        found[name]["ratio"] = found[name]["together_ms"] / found[name]["four_alone_ms"]
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer calls, 10 s at 20 Hz")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peers", nargs="*", default=[], choices=PEERS, help="other servers, each in .venv-peer-NAME")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    rounds, turns = (1, 200) if args.quick else (3, 1000)
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in ("ours", *args.peers)}
    with ServerProcess("vga", vga=True) as server:
        for n in range(rounds):
            measured["ours"].append(round_trips(server.address, turns, args.seed + n))
            for name in args.peers:
                measured[name].append(measure_peer(name, turns, args.seed + n))
        medians = {name: over_rounds(found) for name, found in measured.items()}
        for name, found in medians.items():
            print(f"round trip, {name}: " + (found["not_measured"] if "not_measured" in found else
                  f"p50 {found['p50']:.2f}, p95 {found['p95']:.2f}, p99 {found['p99']:.2f} ms, "
                  f"{found['client_cpu_mean']:.2f} ms CPU in the client"))  # fmt: skip
        trips = medians["ours"]
        rates = {20.0: QUICK_STEPS} if args.quick else RATES
        loops = {}
        for hz, steps in rates.items():
            loops[f"{hz:g}"] = loop = control_loop(server.address, hz, steps, args.seed)
            node, cpu, late = loop["node_ms"], loop["node_cpu_ms"], loop["ready_after_due_ms"]
            print(f"{hz:g} Hz, {steps} steps: node ms p50 {node['p50']:.2f}, p95 {node['p95']:.2f}, p99 {node['p99']:.2f} "
                  f"(CPU p50 {cpu['p50']:.2f}, p95 {cpu['p95']:.2f}); ready after due p50 {late['p50']:.2f}, "
                  f"p99 {late['p99']:.2f}, jitter {loop['jitter_ms']:.2f}; missed {loop['missed_deadlines']:.4f}")  # fmt: skip
    together = batching(args.seed, args.quick)
    for name, found in together.items():
        print(f"four calls of {name} in one pass: {found['ratio']:.2f} of the CPU time of four passes")
    first = next(iter(loops.values()))
    reached = dict(zip(GOALS, (trips["p50"], first["node_ms"]["p95"], first["missed_deadlines"]), strict=True))
    for goal, value in reached.items():
        print(f"goal {goal} <= {GOALS[goal]:g}: {value:.4g} {'reached' if value <= GOALS[goal] else 'MISSED'}")
    if args.out:
        result = {"round_trip_ms": trips, "node_ms": first["node_ms"], "missed_deadlines": first["missed_deadlines"]}
        more = {
            "loops": loops,
            "batching": together,
            "peers": {name: medians[name] for name in args.peers},
            "rounds": measured,
            "load": os.getloadavg(),
            "seeds": 1,
            "seed": args.seed,
        }
        write_json(args.out, {**result, **more, **provenance("pyzmq", "msgpack", "torch")})


if __name__ == "__main__":
    main()
