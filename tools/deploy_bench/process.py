"""A policy server in a process of its own, to be killed."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parent.parent


class ServerProcess:
    """Serves Toward(...) under `name`; start() after kill() comes back at the same address."""

    def __init__(self, name: str = "toy", *, delay_ms: float = 0.0, vga: bool = False, hz: float = 20.0) -> None:
        self.options = ["--delay-ms", str(delay_ms), "--hz", str(hz), *(["--vga"] if vga else [])]
        self.address, self.name = "tcp://127.0.0.1:*", name
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> str:
        """The address, as soon as it is served."""
        command = [sys.executable, "-m", "deploy_bench.process", "--address", self.address, "--name", self.name, *self.options]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TOOLS), str(TOOLS.parent), *sys.path])}
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("READY"):
            raise RuntimeError(f"the server did not start: {line!r}")
        self.address = line.split()[1]
        return self.address

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL: no goodbye."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()

    def __enter__(self) -> ServerProcess:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()


def main() -> None:
    """Serve until killed."""
    from deploy_bench.toy import SMALL, VGA, Toward
    from robopolicy.deploy.server import serve

    parser = argparse.ArgumentParser()
    parser.add_argument("--address", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--hz", type=float, default=20.0)
    parser.add_argument("--vga", action="store_true")
    args = parser.parse_args()
    logging.disable(logging.ERROR)  # of what it refuses, which is the point of a drill
    policy = Toward(image=VGA if args.vga else SMALL, delay_s=args.delay_ms / 1000, control_hz=args.hz)
    serve(policy, args.address, name=args.name, ready=lambda address: print("READY", address, flush=True))


if __name__ == "__main__":
    main()
