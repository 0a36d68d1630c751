"""Where files that are not code live: conf/, assets/ and the user's cache. The same in a checkout and in a wheel."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _shipped(name: str) -> Path:
    for folder in (_PACKAGE / f"_{name}", _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"no {name}/ beside the package nor _{name}/ inside it: reinstall robopolicy")


def conf_dir() -> Path:
    """Folder of the Hydra groups."""
    return _shipped("conf")


def assets_dir() -> Path:
    """Folder of the shipped assets."""
    return _shipped("assets")


def cache_dir() -> Path:
    """The user's cache folder for things built on first use: $ROBOPOLICY_CACHE, else $XDG_CACHE_HOME, else ~/.cache."""
    root = os.environ.get("ROBOPOLICY_CACHE")
    folder = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "robopolicy"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
