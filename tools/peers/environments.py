"""The peers' own Python environments, `.venv-peer-NAME` in the repository root, made when they are missing or out of date."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MINIMUM_FREE = 20 * 2**30  # bytes that must remain on the disk
_INSTALL_SECONDS = 1800

# The newest release of each with what it was tested with: newer MuJoCo fails in the joint-type assertions of
# gymnasium-robotics and robosuite, panda-gym needs NumPy 1, metaworld does not name `packaging`, and EGL wants PyOpenGL 3.1.10.
REQUIREMENTS = {
    "panda_gym": ("panda-gym==3.0.7", "gymnasium==1.4.0", "numpy<2"),
    "gymnasium_robotics": ("gymnasium-robotics==1.4.2", "gymnasium==1.4.0", "mujoco==3.2.7", "pyopengl==3.1.10"),
    "metaworld": ("metaworld==3.1.1", "gymnasium==1.4.0", "mujoco==3.3.0", "pyopengl==3.1.10", "packaging"),
    "robosuite": ("robosuite==1.5.2", "mujoco==3.3.0", "pyopengl==3.1.10"),
    "lerobot": ("lerobot==0.4.4",),
}


def interpreter(peer: str) -> Path:
    """The Python of the peer's environment, which is made if need be.

    Raises:
        RuntimeError: it cannot be made; the message says why.
    """
    folder = ROOT / f".venv-peer-{peer.replace('_', '-')}"
    python, done = folder / "bin" / "python", folder / "installed.txt"
    wanted = "\n".join(REQUIREMENTS[peer])
    if done.exists() and done.read_text() == wanted and python.exists():
        return python
    if shutil.disk_usage(ROOT).free < MINIMUM_FREE + 2 * 2**30:
        raise RuntimeError(f"too little disk for {folder.name}: {MINIMUM_FREE // 2**30} GiB must remain")
    print(f"making {folder.name} ...", file=sys.stderr, flush=True)
    beside = Path(sys.executable).with_name("uv")
    uv = shutil.which("uv") or (str(beside) if beside.exists() else None)
    if uv:
        _run(uv, "venv", "-q", "--clear", "--python", sys.executable, str(folder))
        _run(uv, "pip", "install", "-q", "--python", str(python), *REQUIREMENTS[peer])
    else:
        _run(sys.executable, "-m", "venv", "--clear", str(folder))
        _run(str(python), "-m", "pip", "install", "-q", *REQUIREMENTS[peer])
    done.write_text(wanted)
    return python


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or error.stdout).strip().splitlines()
        raise RuntimeError(f"{Path(command[0]).name} {command[1]} failed: {' '.join(lines[-3:])}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(str(error)) from error
