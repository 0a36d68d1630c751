"""Round trips through one peer's own server and client, in that peer's environment: numpy and the peer, nothing of ours.

    python peer_worker.py NAME TURNS SEED

openpi: WebsocketPolicyServer and WebsocketClientPolicy. lerobot-async: PolicyServer over gRPC, with `_predict_action_chunk`
replaced, and RobotClient.send_observation; the answer is not unpickled, which is in its favour.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import socket
import sys
import time
from importlib.metadata import version

import numpy as np

WARM_UP = 20


def free_port() -> int:
    """A port of the loopback interface that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def observation(rng):
    """A picture and a state."""
    return {"image": rng.integers(0, 256, (480, 640, 3), dtype=np.uint8), "state": rng.normal(size=3).astype(np.float32)}


def openpi_server(port):
    """Until killed."""
    from openpi_client.base_policy import BasePolicy
    from openpi_server.websocket_policy_server import WebsocketPolicyServer

    class Free(BasePolicy):
        def infer(self, obs):
            return {"actions": np.zeros((16, 7), np.float32)}

        def reset(self):
            pass

    WebsocketPolicyServer(Free(), host="127.0.0.1", port=port).serve_forever()


def openpi_client(port):
    """A function observation -> chunk."""
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    client = WebsocketClientPolicy("127.0.0.1", port)
    return lambda seen: client.infer(seen)["actions"]


def lerobot_server(port):
    """Until killed."""
    import torch
    from lerobot.async_inference import policy_server
    from lerobot.async_inference.configs import PolicyServerConfig

    def free(self, seen):
        chunk = [torch.zeros(7) for _ in range(16)]
        return self._time_action_chunk(seen.get_timestamp(), chunk, seen.get_timestep())

    policy_server.PolicyServer._predict_action_chunk = free
    logging.disable(logging.CRITICAL)
    policy_server.serve.__wrapped__(PolicyServerConfig(host="127.0.0.1", port=port, fps=30, inference_latency=0.0))


def lerobot_client(port):
    """A function observation -> chunk, still pickled."""
    import threading

    import grpc
    from lerobot.async_inference.helpers import TimedObservation
    from lerobot.async_inference.robot_client import RobotClient
    from lerobot.transport import services_pb2, services_pb2_grpc
    from lerobot.transport.utils import grpc_channel_options

    logging.disable(logging.CRITICAL)
    client = RobotClient.__new__(RobotClient)  # without a robot
    client.shutdown_event = threading.Event()
    client.stub = services_pb2_grpc.AsyncInferenceStub(
        grpc.insecure_channel(f"127.0.0.1:{port}", grpc_channel_options(initial_backoff="0.03s"))
    )
    client.stub.Ready(services_pb2.Empty())
    steps = iter(range(10**9))

    def call(seen):
        now = time.time()
        client.send_observation(TimedObservation(timestamp=now, timestep=next(steps), observation=seen, must_go=True))
        return client.stub.GetActions(services_pb2.Empty()).data

    return call


SIDES = {"openpi": (openpi_server, openpi_client), "lerobot-async": (lerobot_server, lerobot_client)}
PACKAGES = {"openpi": ("openpi-client", "openpi-server", "websockets"), "lerobot-async": ("lerobot", "grpcio")}


def main():
    """Print one line of JSON."""
    name, turns, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    serve, connect = SIDES[name]
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(port,), daemon=True)
    process.start()
    deadline = time.monotonic() + 180
    while True:
        try:
            call = connect(port)
            break
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
    rng = np.random.default_rng(seed)
    seen = [observation(rng) for _ in range(8)]
    taken = []
    for turn in range(turns + WARM_UP):
        started = time.perf_counter()
        answer = call(seen[turn % len(seen)])
        if turn >= WARM_UP:
            taken.append((time.perf_counter() - started) * 1000)
        assert len(answer)
    cpu = time.process_time()
    for turn in range(turns // 4):
        call(seen[turn % len(seen)])
    cpu_ms = (time.process_time() - cpu) * 1000 / (turns // 4)
    process.kill()
    found = {label: float(np.percentile(taken, q)) for label, q in (("p50", 50), ("p95", 95), ("p99", 99))}
    versions = {package: version(package) for package in PACKAGES[name]}
    print(json.dumps({**found, "client_cpu_mean": cpu_ms, "calls": turns, "versions": versions}))


if __name__ == "__main__":
    main()
