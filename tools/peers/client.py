"""The measuring side of a worker process."""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from peers.environments import ROOT

# One thread each: what is compared is work per core. llvmpipe without threads draws in the calling one.
_LIBRARIES = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "NUMBA")
_THREADS = {f"{library}_NUM_THREADS": "1" for library in _LIBRARIES} | {"LP_NUM_THREADS": "0"}
_ANSWER_SECONDS = 300.0  # beyond the time that was asked for


class WorkerError(RuntimeError):
    """A worker that failed, with its reason."""


class Remote:
    """A worker process on one core.

    Args:
        python: the interpreter. core: where it runs once it is made. gl: "egl" or "osmesa".
        repository: whether the repository's own package is importable there.
    """

    def __init__(self, python: Path, core: int, gl: str, repository: bool = False) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment |= {**_THREADS, "MUJOCO_GL": gl, "PYOPENGL_PLATFORM": gl}
        if repository:
            environment["PYTHONPATH"] = str(ROOT)
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  lives as long as the process
        self._process = subprocess.Popen(
            [str(python), "-m", "peers.worker", str(core)],
            cwd=ROOT / "tools",
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout.fileno()
        self._unread = b""

    def send(self, do: str, **arguments: Any) -> None:
        """Ask for something; receive() gets the answer."""
        try:
            self._input.write((json.dumps({"do": do, **arguments}) + "\n").encode())
            self._input.flush()
        except OSError as error:
            raise WorkerError(self._last_words()) from error

    def receive(self, patience: float = 0.0) -> dict[str, Any]:
        """The answer. Raises WorkerError: it failed, died or did not come within five minutes and `patience` s."""
        deadline = time.monotonic() + patience + _ANSWER_SECONDS
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._output], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self.close()
                raise WorkerError(f"no answer within {patience + _ANSWER_SECONDS:.0f} s")
            part = os.read(self._output, 2**16)
            if not part:
                raise WorkerError(self._last_words())
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def ask(self, do: str, patience: float = 0.0, **arguments: Any) -> dict[str, Any]:
        """send() and receive()."""
        self.send(do, **arguments)
        return self.receive(patience)

    def picture(self, key: str, steps: int) -> np.ndarray:
        """The frame uint8 [H, W, 3] of a contender after some steps."""
        answer = self.ask("picture", key=key, steps=steps)
        return np.frombuffer(base64.b64decode(answer["picture"]), np.uint8).reshape(answer["shape"])

    def _last_words(self) -> str:
        self._process.wait(10)
        self._log.seek(0)
        lines = self._log.read().strip().splitlines() or ["nothing on stderr"]
        return f"worker ended with status {self._process.returncode}: {lines[-1][-400:]}"

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._log.close()
