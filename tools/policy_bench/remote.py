"""A process in a peer's own Python environment that answers messages of policy_bench.frames."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from peers.environments import ROOT, interpreter

from policy_bench import frames

_THREADS = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}


class WorkerError(RuntimeError):
    """A worker that failed, with its reason."""


class Remote:
    """A worker process of one thread.

    Args:
        peer: key of peers.environments.REQUIREMENTS, whose environment is made if need be.
        module: what runs there, below tools/.
        environment: further environment variables.
    """

    def __init__(self, peer: str, module: str, environment: Mapping[str, str]) -> None:
        self._peer = peer
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  lives as long as the process
        self._process = subprocess.Popen(
            [str(interpreter(peer)), "-m", module],
            cwd=ROOT / "tools",
            env={"PATH": "/usr/bin:/bin", **_THREADS, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    def ask(self, do: str, arrays: dict[str, np.ndarray] | None = None, **head: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The answer to a request. Raises WorkerError when the worker fails."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            frames.write(self._process.stdin, {"do": do, **head}, **(arrays or {}))
            answer = frames.read(self._process.stdout)
        except (OSError, ValueError):
            answer = None
        if answer is None:
            status = self._process.wait(10)
            self._log.seek(0)
            lines = self._log.read().strip().splitlines() or ["nothing on stderr"]
            raise WorkerError(f"the {self._peer} worker ended with status {status}: {lines[-1][-400:]}")
        if "error" in answer[0]:
            raise WorkerError(answer[0]["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._log.close()
