"""Other policy servers on the same errand: a 640 x 480 picture and a state there, a chunk of 16 actions back.

Each runs in an environment of its own, server and client in two processes, with a policy that costs nothing in place of theirs.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PEERS = {  # name: what its environment .venv-peer-NAME needs
    "openpi": "openpi-client openpi-server typing-extensions 'numpy<2'",
    "lerobot-async": "'lerobot[async]==0.4.4' (or lerobot and grpcio)",
}


def measure_peer(name: str, turns: int, seed: int) -> dict[str, Any]:
    """Round trips {"p50", ...} in ms, or {"not_measured": why}."""
    python = ROOT / f".venv-peer-{name}" / "bin" / "python"
    if not python.exists():
        return {
            "not_measured": f"no {python.relative_to(ROOT)}: python -m venv .venv-peer-{name}, then pip install {PEERS[name]}"
        }
    worker = Path(__file__).with_name("peer_worker.py")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(python), str(worker), name, str(turns), str(seed)]
    with tempfile.TemporaryDirectory() as folder:  # some write logs where they stand
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    if done.returncode:
        return {"not_measured": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}"}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
