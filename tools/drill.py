"""The fault drill: what a robot receives when things break. Exits 1 if anything is not as it must be.

    python tools/drill.py [--quick] [--seed 0] [--only camera_stops ...] [--out FILE.json]

A point robot that does exactly what it is told, behind the deployed pipeline: Controller, and for faults of processes also
RemotePolicy and a server in a process of its own, killed with SIGKILL. Sensor faults run in a time of their own, process faults
in real time. The full drill sends 100 000 fuzzed frames and filters a million random policy outputs; --quick a tenth of them.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from deploy_bench.process import TOOLS, ServerProcess
from deploy_bench.robot import Messages, Robot
from deploy_bench.toy import IMAGE, SMALL, Toward
from provenance import provenance, write_json

from robopolicy.deploy import protocol
from robopolicy.deploy.client import RemotePolicy
from robopolicy.deploy.runtime import HOLD, RUN, STOPPED
from robopolicy.deploy.safety import limit_velocity, make_bounds
from robopolicy.spec import STATE

Outcome = tuple[dict[str, Any], dict[str, bool]]  # what happened, and what had to be true of it

FAULT_S = 2.0
AGE_S, STOP_S = 0.25, 1.0  # max_age_s, stop_after_s of these robots
CONFIGURATIONS = [  # speed, acceleration, jerk, step (s), entries
    (0.4, 2.0, 20.0, 0.05, 3),
    (0.4, 4.0, 80.0, 0.05, 3),
    (0.4, 4.0, None, 0.02, 3),
    (0.4, None, None, 0.05, 3),
    (2.0, 20.0, 400.0, 0.05, 3),
    (1.0, 5.0, 30.0, 0.05, 1),
]


def sensor_robot(**settings: Any) -> Robot:
    """A robot in a time of its own, far enough from its goal to be on its way when the fault comes."""
    policy = Toward(goal=(0.65, -0.35, 0.45))
    return Robot(policy, lead_steps=1, max_age_s=AGE_S, stop_after_s=STOP_S, **settings)


def held_then_stopped(robot: Robot, fault_s: float, age_s: float = AGE_S) -> Outcome:
    """What every loss of a sensor must come to."""
    found = robot.summary(fault_s)
    braking_m = 0.05
    return found, {
        "held in time": found["hold_after_s"] is not None and found["hold_after_s"] <= age_s + 0.051,
        "stopped in time": found["stop_after_s"] is not None and found["stop_after_s"] <= age_s + STOP_S + 0.15,
        "moved no further than old data and braking allow": found["moved_after_fault_m"] <= 0.4 * age_s + braking_m,
        "at a standstill in the end": not robot.log.commands[-1].action[:6].any(),
        "nothing beyond limits": found["beyond_limits"] == 0,
    }


def camera_stops(quick: bool, seed: int) -> Outcome:
    """The camera goes silent while the arm moves."""

    def fault(elapsed: float, now: float, messages: Messages) -> tuple[float, Messages]:
        return now, [m for m in messages if m[0] != "camera" or elapsed < 0.3]

    return held_then_stopped(sensor_robot().run(3.0, fault), 0.3)


def frames_out_of_order(quick: bool, seed: int) -> Outcome:
    """Every second pair of pictures is swapped, and every fifth picture comes twice."""
    kept: Messages = []
    count = 0

    def fault(elapsed: float, now: float, messages: Messages) -> tuple[float, Messages]:
        nonlocal count
        count += 1
        camera, rest = [m for m in messages if m[0] == "camera"], [m for m in messages if m[0] != "camera"]
        if count % 4 == 1:
            kept[:] = camera
            return now, rest
        swapped = [*camera, *kept]
        kept.clear()
        return now, [*swapped, *(camera if count % 5 == 0 else []), *rest]

    robot = sensor_robot(tolerance_s=0.06).run(4.0, fault)
    found = robot.summary(0.0)
    refused = robot.controller.counters.get("refused:camera:out_of_order", 0)
    return {**found, "refused": refused}, {
        "old frames refused": refused > 20,
        "went on": found["states"].get(RUN, 0) > 0.9 * len(robot.log.commands) and found["stop_after_s"] is None,
        "nothing beyond limits": found["beyond_limits"] == 0,
    }


def nan_joints(quick: bool, seed: int) -> Outcome:
    """The measured state becomes NaN, then infinite."""

    def fault(elapsed: float, now: float, messages: Messages) -> tuple[float, Messages]:
        bad = np.nan if elapsed < 0.8 else np.inf
        if elapsed < 0.3:
            return now, messages
        return now, [(s, stamp, np.full_like(v, bad) if s == "ee" else v) for s, stamp, v in messages]

    robot = sensor_robot().run(3.0, fault)
    found, must = held_then_stopped(robot, 0.3)
    refused = robot.controller.counters.get("refused:ee:not_finite", 0)
    return {**found, "refused": refused}, {**must, "every one refused": refused == round(2.7 * 20)}


def clock_jumps_back(quick: bool, seed: int) -> Outcome:
    """The clock goes back by 50 s (a bag that loops, a simulation that starts again), stamps with it."""

    def fault(elapsed: float, now: float, messages: Messages) -> tuple[float, Messages]:
        jump = 50.0 if elapsed >= 0.5 else 0.0
        return now - jump, [(stream, stamp - jump, value) for stream, stamp, value in messages]

    robot = sensor_robot().run(6.0, fault)
    found = robot.summary(0.5)
    return found, {
        "held at once": found["hold_after_s"] is not None and found["hold_after_s"] < 0.06,
        "said so": "clock_jumped_back" in found["reasons"],
        "went on with new data": robot.log.commands[-1].state == RUN,
        "arrived": float(np.abs(robot.position - robot.policy.goal).max()) < 5e-3,
        "nothing beyond limits": found["beyond_limits"] == 0,
    }


def stamps_go_wrong(quick: bool, seed: int) -> Outcome:
    """The camera's clock jumps 10 s ahead, alone."""

    def fault(elapsed: float, now: float, messages: Messages) -> tuple[float, Messages]:
        ahead = 10.0 if elapsed >= 0.3 else 0.0
        return now, [(s, stamp + (ahead if s == "camera" else 0.0), v) for s, stamp, v in messages]

    return held_then_stopped(sensor_robot().run(3.0, fault), 0.3)


def slow_inference(quick: bool, seed: int) -> Outcome:
    """The policy takes 3 s from one moment on. Real time, in its thread."""
    policy = Toward(goal=(0.65, -0.35, 0.45))
    robot = Robot(policy, real_time=True, lead_steps=2, stop_after_s=STOP_S, timeout_s=0.5)
    robot.run(0.6)
    policy.delay_s = 3.0
    started = robot.log.times[-1]
    robot.run(2.5)
    found = robot.summary(started)
    gaps = np.diff(robot.log.times)
    chunk_s = 0.45
    return {**found, "longest_gap_s": float(gaps.max())}, {
        "the loop never waited": float(np.median(gaps)) < 0.06 and float(gaps.max()) < 1.0,
        "held when the chunk was used up": found["hold_after_s"] is not None and found["hold_after_s"] < chunk_s + 0.3,
        "stopped in time": found["stop_after_s"] is not None and found["stop_after_s"] < chunk_s + STOP_S + 0.6,
        "nothing beyond limits": found["beyond_limits"] == 0,
    }


def server_restarts(quick: bool, seed: int) -> Outcome:
    """SIGKILL of the server while the arm moves; it comes back at the same address."""
    with ServerProcess("toy") as server, RemotePolicy(server.address, timeout_ms=300) as remote:
        robot = Robot(remote, real_time=True, lead_steps=2, stop_after_s=60.0, timeout_s=0.5)
        robot.run(0.5)
        server.kill()
        killed = robot.log.times[-1]
        restart = threading.Timer(1.0, server.start)
        restart.start()
        robot.run(4.0 if quick else 8.0)
        deadline = time.monotonic() + 60
        while robot.log.commands[-1].state != RUN and time.monotonic() < deadline:  # a busy machine starts it late
            robot.run(0.5)
        restart.join()
        found = robot.summary(killed)
        held = [t for t, c in zip(robot.log.times, robot.log.commands, strict=True) if c.state == HOLD and t > killed]
        robot.controller.close()
    outage_s = held[-1] - held[0] if held else 0.0
    return {**found, "outage_s": outage_s}, {
        "held when the chunk was used up": bool(held) and held[0] - killed < 1.5,
        "went on without anybody's help": robot.log.commands[-1].state == RUN,
        "nothing beyond limits": found["beyond_limits"] == 0,
    }


def server_replaced(quick: bool, seed: int) -> Outcome:
    """After the kill another checkpoint is served at the address."""
    with ServerProcess("one checkpoint") as server, RemotePolicy(server.address, timeout_ms=300) as remote:
        robot = Robot(remote, real_time=True, lead_steps=2, stop_after_s=60.0, timeout_s=0.5)
        robot.run(0.5)
        server.kill()
        killed = robot.log.times[-1]
        server.name = "another checkpoint"
        server.start()
        deadline = time.monotonic() + 60
        while robot.log.commands[-1].state != STOPPED and time.monotonic() < deadline:
            robot.run(0.5)
        found = robot.summary(killed)
        robot.controller.close()
    return found, {
        "stopped": robot.log.commands[-1].state == STOPPED,
        "said why": "policy_replaced" in found["reasons"],
        "nothing beyond limits": found["beyond_limits"] == 0,
    }


_HAMMER = """
import sys, numpy as np
from robopolicy.deploy.client import RemotePolicy
remote = RemotePolicy(sys.argv[1], 5000)
zeros = {key: feature.zeros((1, 1)) for key, feature in remote.spec.observation.items()}
print("READY", flush=True)
while True:
    remote.sample(zeros)
"""


def client_killed(quick: bool, seed: int) -> Outcome:
    """SIGKILL of a node in the middle of its calls; another robot on the same server."""
    with ServerProcess("toy") as server, RemotePolicy(server.address, timeout_ms=2000) as remote:
        robot = Robot(remote, real_time=True, lead_steps=2, stop_after_s=60.0)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TOOLS.parent), *sys.path])}
        for _ in range(2 if quick else 5):
            with subprocess.Popen(
                [sys.executable, "-c", _HAMMER, server.address], stdout=subprocess.PIPE, text=True, env=environment
            ) as victim:
                assert victim.stdout is not None
                victim.stdout.readline()
                robot.run(0.5)
                victim.send_signal(signal.SIGKILL)
            robot.run(0.5)
        found, alive = robot.summary(0.0), server.alive
        robot.controller.close()
    return found, {
        "server lives": alive,
        "the other robot went on": found["stop_after_s"] is None and robot.log.commands[-1].state == RUN,
        "nothing beyond limits": found["beyond_limits"] == 0,
    }


def fuzzed(rng: np.random.Generator, good: list[bytes]) -> bytes:
    """Noise, or a good frame cut, spliced or with flipped bytes."""
    kind, frame = rng.integers(5), bytearray(good[rng.integers(len(good))])
    if kind == 0:
        return rng.bytes(int(rng.integers(0, 300)))
    if kind == 1:
        return bytes(frame[: rng.integers(len(frame))])
    if kind == 2:
        return bytes(frame[: rng.integers(len(frame))]) + rng.bytes(int(rng.integers(1, 60)))
    head = len(frame) if kind == 3 else min(len(frame), 120)  # the head is what gets parsed
    for at in rng.integers(0, head, int(rng.integers(1, 8))):
        frame[at] = rng.integers(256)
    return bytes(frame)


def garbage_bytes(quick: bool, seed: int) -> Outcome:
    """Fuzzed frames on the server's socket, and other protocols on its port, while a robot is driven by it."""
    rng, count = np.random.default_rng(seed), 10_000 if quick else 100_000
    policy = Toward()
    zeros = {key: feature.zeros((1, 1)) for key, feature in policy.spec.observation.items()}
    sample = {"client": "x", "observation": zeros, "num_samples": 1, "seed": None}
    messages = [("hello", {}), ("reset", {}), ("sample", sample), ("sample", {**sample, "seed": 3}), ("done", {})]
    good = [protocol.encode(protocol.Message(kind, 1, fields)) for kind, fields in messages]
    with ServerProcess("toy") as server, RemotePolicy(server.address, timeout_ms=5000) as remote:
        robot = Robot(remote, real_time=True, lead_steps=4, stop_after_s=60.0, timeout_s=5.0)
        done = threading.Event()

        def attack() -> None:
            socket = zmq.Context.instance().socket(zmq.DEALER)
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(server.address)
            for n in range(count):
                parts = [b""] * int(rng.integers(0, 4)) if n % 50 == 0 else [b""]
                socket.send_multipart([*parts, fuzzed(rng, good)])
                while socket.poll(0):
                    socket.recv_multipart()
            while socket.poll(2000):  # answered all the same
                socket.recv_multipart()
            socket.close()
            done.set()

        attacker = threading.Thread(target=attack)
        attacker.start()
        other_protocols(server.address)
        while not done.is_set():
            robot.run(0.5)
        robot.run(1.0)
        attacker.join()
        alive, found = server.alive, robot.summary(0.0)
        here = policy.sample(zeros)
        same = bool(np.array_equal(remote.sample(zeros), here))
        robot.controller.close()
    return {**found, "frames": count}, {
        "server lives": alive,
        "and answers as before": same,
        "the robot was never stopped": found["stop_after_s"] is None and robot.log.commands[-1].state == RUN,
        "nothing beyond limits": found["beyond_limits"] == 0,
    }


def other_protocols(address: str) -> None:
    """Bytes of other protocols on the port."""
    import socket

    host, port = address[len("tcp://") :].split(":")
    for junk in (b"GET / HTTP/1.1\r\n\r\n" * 50, b"\x16\x03\x01" + b"\0" * 500, b"\xff" * 65536, b"\xff\0\0\0\0\0\0\0\x01\x7f"):
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(junk)


def actions_beyond_limits(quick: bool, seed: int) -> Outcome:
    """Random policy outputs of every size through the limits, and, NaN among them, through the whole pipeline."""
    rng, total = np.random.default_rng(seed), 100_000 if quick else 1_000_000
    many, broken, count, wall = 2000, 0, 0, 0.2
    steps = -(-total // (many * len(CONFIGURATIONS)))
    for speed, acceleration, jerk, dt, size in CONFIGURATIONS:
        shape = (many, size)
        bounds = make_bounds(speed, acceleration, jerk, -wall, wall, shape)
        velocity, push, place = np.zeros(shape), np.zeros(shape), rng.uniform(-wall, wall, shape)
        for _ in range(steps):
            wanted = rng.normal(size=shape) * 10.0 ** rng.uniform(-3, 6, (many, 1))
            new = limit_velocity(wanted, velocity, push, place, bounds, dt).velocity
            change = (new - velocity) / dt
            place = place + new * dt
            bad = ~np.isfinite(new).all(axis=1) | (np.linalg.norm(new, axis=1) > speed)
            bad |= np.linalg.norm(change, axis=1) > (acceleration or np.inf)
            bad |= np.linalg.norm(change - push, axis=1) / dt > (jerk or np.inf)
            bad |= (np.abs(place) > wall + 1e-7).any(axis=1)
            broken, count = broken + int(bad.sum()), count + many
            velocity, push = new, change
    robots = [wild_robot(seed + n) for n in range(2 if quick else 6)]
    found = {"random_outputs": count, "beyond_limits": broken, "pipeline_commands": sum(len(r.log.commands) for r in robots)}
    found["pipeline_beyond_limits"] = sum(robot.beyond for robot in robots)
    return found, {
        "nothing beyond limits": broken == 0,
        "nothing through the whole pipeline": found["pipeline_beyond_limits"] == 0,
        "it moved": all(robot.log.moved_m(0.0) > 0.1 for robot in robots),
    }


def wild_robot(seed: int) -> Robot:
    """Driven by noise of every size, NaN included, in one of the scheduler's modes."""
    rng = np.random.default_rng(seed)

    class Wild(Toward):
        def sample(self, observation: Any, num_samples: int = 1, seed: int | None = None) -> np.ndarray:
            chunks = rng.normal(size=(1, num_samples, 16, 7)) * 10.0 ** rng.uniform(-4, 3)
            if rng.random() < 0.1:
                chunks[0, 0, rng.integers(16), rng.integers(7)] = rng.choice([np.nan, np.inf, 1e300])
            return chunks

    mode = ("replace", "ensemble", "real_time")[seed % 3]
    return Robot(Wild(), lead_steps=1, stop_after_s=None, mode=mode, num_candidates=2, control_hz=(20.0, 60.0)[seed % 2]).run(
        20.0
    )


def two_clients(quick: bool, seed: int) -> Outcome:
    """Two robots on one server at once; each must be told what it would be told alone."""
    with ServerProcess("toy") as server:
        remotes = [RemotePolicy(server.address, timeout_ms=3000) for _ in range(2)]
        robots = [Robot(remote, real_time=True, lead_steps=3, stop_after_s=60.0) for remote in remotes]
        robots[1].position = np.array([0.65, -0.3, 0.4])
        threads = [threading.Thread(target=robot.run, args=(3.0 if quick else 6.0,)) for robot in robots]
        for thread in threads:
            thread.start()
        mixed = crossed(remotes[0], seed, 50 if quick else 500)
        for thread in threads:
            thread.join()
        for robot in robots:
            robot.controller.close()
    goal, found = Toward().goal, [robot.summary(0.0) for robot in robots]
    return {"commands": [f["commands"] for f in found], "mixed_up": mixed, "beyond_limits": sum(r.beyond for r in robots)}, {
        "no answer went to the other": mixed == 0,
        "both went on": all(robot.log.commands[-1].state == RUN for robot in robots),
        "both arrived": all(float(np.abs(robot.position - goal).max()) < 0.02 for robot in robots),
        "nothing beyond limits": all(robot.beyond == 0 for robot in robots),
    }


def crossed(remote: RemotePolicy, seed: int, count: int) -> int:
    """Calls beside the robots', whose answer is not that of the policy here."""
    rng, here = np.random.default_rng(seed), Toward()
    wrong = 0
    with RemotePolicy(remote.address, timeout_ms=3000) as third:
        for _ in range(count):
            seen = {STATE: rng.normal(size=(1, 1, 3)).astype(np.float32), IMAGE: np.full((1, 1, *SMALL, 3), 7, np.uint8)}
            wrong += not np.array_equal(third.sample(seen), here.sample(seen))
    return wrong


def emergency_stop(quick: bool, seed: int) -> Outcome:
    """Pressed at full speed, released, resumed only when somebody says so."""
    robot = sensor_robot().run(0.5)
    speed = float(np.linalg.norm(robot.log.commands[-1].action[:3]) * 20)
    robot.controller.estop(True)
    pressed = robot.log.times[-1] + 0.01
    robot.run(1.0)
    refused = not robot.controller.resume()
    robot.controller.estop(False)
    robot.run(1.0)
    latched = robot.log.commands[-1].state == STOPPED
    found = robot.summary(pressed)
    resumed = robot.controller.resume()
    robot.run(4.0)
    return {**found, "speed_before": speed}, {
        "was fast": speed > 0.1,
        "a standstill at the next command": found["moved_after_fault_m"] == 0,
        "latched": refused and latched,
        "goes on when resumed": resumed and robot.log.commands[-1].state == RUN,
    }


DRILLS: dict[str, Callable[[bool, int], Outcome]] = {
    drill.__name__: drill
    for drill in (
        camera_stops,
        frames_out_of_order,
        nan_joints,
        clock_jumps_back,
        stamps_go_wrong,
        slow_inference,
        server_restarts,
        server_replaced,
        client_killed,
        garbage_bytes,
        actions_beyond_limits,
        two_clients,
        emergency_stop,
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
