#!/usr/bin/env python
"""Run a served policy on a robot that speaks ROS 1 or ROS 2, or try the connection without any ROS.

    robopolicy deploy checkpoint=runs/lift/checkpoints/step_002000          # on the machine with the policy
    python tools/ros_infer.py --dry-run                                     # is it there, how fast, what would it do?
    python tools/ros_infer.py --config assets/ros/lift.yaml                 # waits for ~/start, then runs but moves nothing
    python tools/ros_infer.py --config assets/ros/lift.yaml --enable        # moves the robot after ~/start
    python tools/ros_infer.py --config robot.yaml --record bag --ros-args -p runtime.max_age_s:=0.5

Entries of the mapping file are parameters of the node (docs/ros.md). Needs numpy, msgpack, pyzmq and robopolicy/deploy, not
the rest of the package, so ROS's own python can run it.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parent.parent / "robopolicy"))  # for the folder deploy/ alone

from deploy.client import PolicyTimeout, RemotePolicy
from deploy.limits import SafetyLimits
from deploy.ros_config import NodeConfig, load_config, parameters
from deploy.ros_node import InferenceNode
from deploy.ros_recorder import open_recorder
from deploy.ros_transport import NoRosError, find_ros, open_transport, without_ros_arguments
from deploy.runtime import Runtime


def dry_run(policy: RemotePolicy, config: NodeConfig | None, seconds: float) -> None:
    """Ask for a chunk at every control step with an observation of zeros, through the runtime; print what happened."""
    spec = policy.spec
    limits = config.limits if config else SafetyLimits()
    if limits.action_dim != spec.action_dim:
        raise ValueError(
            f"the limits describe {limits.action_dim} action entries, the policy has {spec.action_dim}: use --config"
        )
    zeros = {key: feature.zeros((1, spec.obs_horizon)) for key, feature in spec.observation.items()}
    if config and config.task and "task" in zeros:
        zeros["task"] = np.array([config.task])
    centre = None
    if limits.workspace_low is not None and limits.workspace_high is not None:
        centre = (np.array(limits.workspace_low) + np.array(limits.workspace_high)) / 2
    runtime = Runtime(limits=limits, execute_horizon=1, policy_hz=spec.control_hz)
    period, start = 1 / spec.control_hz, time.monotonic()
    commands, latencies_ms, late = [], [], 0
    for step in range(max(1, round(seconds * spec.control_hz))):
        now = time.monotonic()
        request = runtime.ask(now)
        chunks = policy.sample(zeros)[0]
        latencies_ms.append((time.monotonic() - now) * 1000)
        if request is not None:
            runtime.offer(chunks, request, now)
        commands.append(runtime.tick(time.monotonic(), centre))
        rest = start + (step + 1) * period - time.monotonic()
        late += rest < 0
        time.sleep(max(0.0, rest))
    p50, p95, p99 = np.percentile(latencies_ms, [50, 95, 99])
    print(f"policy {policy.name} at {policy.address}")
    for key, feature in spec.observation.items():
        print(f"  {key}: {feature.dtype} {[spec.obs_horizon, *feature.shape]}")
    print(f"  action: {spec.action_dim} entries, chunks of {spec.action_horizon}, {spec.control_hz:g} Hz")
    print(f"latency ms: p50 {p50:.2f}, p95 {p95:.2f}, p99 {p99:.2f} of {len(latencies_ms)} calls, {late} steps late")
    first = commands[0]
    if first.action is not None:
        print(f"first action: {np.array2string(first.action, precision=4, separator=', ')}")
    print(f"state: {first.state}, limited by: {', '.join(first.reasons) or 'nothing'}")


def run_node(policy: RemotePolicy, args: argparse.Namespace, version: str) -> None:
    """Run the node until SIGINT or SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    transport = open_transport(version)
    recorder = None
    try:
        given = transport.overrides()
        if given:
            print(f"parameters: {given}", flush=True)
        config = load_config(args.config, given)
        transport.declare(dict(parameters(config.to_dict())))
        if args.record:
            recorder = open_recorder(args.record, version, transport.serialize)
        node = InferenceNode(transport, policy, config, enabled=args.enable, recorder=recorder)
        moves = "commanding the robot" if args.enable else "commanding nothing (--enable)"
        print(f"{policy.name} at {node.controller.control_hz:g} Hz, {moves}", flush=True)
        node.run(stop, start=args.start)
        print(f"control steps: {node.controller.counters}")
    finally:
        if recorder is not None:
            recorder.close()
            print(f"{args.record}: {recorder}")
        transport.close()


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, or 2 with one line on stderr for anything that the user can mend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="tcp://127.0.0.1:5555", help="where the policy is served")
    parser.add_argument("--config", help="mapping file, YAML or JSON (see assets/ros/lift.yaml)")
    parser.add_argument("--ros", choices=["auto", "1", "2"], default="auto", help="which ROS")
    parser.add_argument("--timeout-ms", type=int, default=1000, help="longest wait for one answer of the policy")
    parser.add_argument("--start", action="store_true", help="become active at once instead of waiting for ~/start")
    parser.add_argument("--record", help="bag to write: all that comes in and goes out (needs rosbags)")
    parser.add_argument("--enable", action="store_true", help="publish commands; without it the robot does not move")
    parser.add_argument("--dry-run", action="store_true", help="no ROS: zero observations, prints latency and the first action")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of the dry run")
    args = parser.parse_args(without_ros_arguments(sys.argv[1:] if argv is None else argv))
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        version = None if args.dry_run else find_ros(args.ros)
        with RemotePolicy(args.address, timeout_ms=args.timeout_ms) as policy:
            if version is None:
                dry_run(policy, load_config(args.config) if args.config else None, args.seconds)
            elif not args.config:
                raise ValueError("give --config FILE, the topics of the robot (see assets/ros/lift.yaml), or --dry-run")
            else:
                run_node(policy, args, version)
    except (NoRosError, PolicyTimeout, ValueError, OSError, ImportError) as error:
        print(f"ros_infer: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
