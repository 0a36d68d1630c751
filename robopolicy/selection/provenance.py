"""Where a ranking comes from: command, code, versions, machine, hashes, time."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from robopolicy.checkpoint import git_commit
from robopolicy.files import plain

PACKAGES = ("robopolicy", "numpy", "scipy", "scikit-learn", "pyarrow", "torch", "pybullet", "mujoco", "ray")


def now() -> str:
    """The time, UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def provenance(settings: Mapping[str, Any], started: str, **facts: Any) -> dict[str, Any]:
    """All of it, as plain data. Versions are read without importing the packages."""
    return {
        "command": shlex.join(["robopolicy", *_words()]),
        "commit": git_commit() or "not in a git checkout",
        "started": started,
        "finished": now(),
        "versions": {"python": platform.python_version(), **{name: v for name in PACKAGES if (v := _version(name))}},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "settings": plain(settings, where="settings"),
        **plain(facts, where="provenance"),
    }


def _words() -> list[str]:
    """What was given on the command line; Hydra's main keeps the verb in argv[0]."""
    name, *rest = sys.argv
    return [*name.split()[1:], *rest]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
