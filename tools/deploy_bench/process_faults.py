"""Faults of processes and of what comes over the socket, in real time, with servers that are really killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import zmq

from deploy_bench.process import TOOLS, ServerProcess
from deploy_bench.robot import Robot
from deploy_bench.sensor_faults import Outcome
from deploy_bench.toy import IMAGE, SMALL, Toward
from robopolicy.deploy import protocol
from robopolicy.deploy.client import RemotePolicy
from robopolicy.deploy.runtime import HOLD, RUN, STOPPED
from robopolicy.spec import STATE

STOP_S = 1.0  # stop_after_s of the robot with the slow policy

_HAMMER = """
import sys, numpy as np
from robopolicy.deploy.client import RemotePolicy
remote = RemotePolicy(sys.argv[1], 5000)
zeros = {key: feature.zeros((1, 1)) for key, feature in remote.spec.observation.items()}
print("READY", flush=True)
while True:
    remote.sample(zeros)
"""


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
            dealer = zmq.Context.instance().socket(zmq.DEALER)
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.connect(server.address)
            for n in range(count):
                parts = [b""] * int(rng.integers(0, 4)) if n % 50 == 0 else [b""]
                dealer.send_multipart([*parts, fuzzed(rng, good)])
                while dealer.poll(0):
                    dealer.recv_multipart()
            while dealer.poll(2000):  # answered all the same
                dealer.recv_multipart()
            dealer.close()
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
    host, port = address[len("tcp://") :].split(":")
    for junk in (b"GET / HTTP/1.1\r\n\r\n" * 50, b"\x16\x03\x01" + b"\0" * 500, b"\xff" * 65536, b"\xff\0\0\0\0\0\0\0\x01\x7f"):
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(junk)


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
