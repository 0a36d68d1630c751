"""Where figures come from: written into the JSON of every benchmark and check."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from robopolicy.checkpoint import git_commit
from robopolicy.files import atomic_write, plain


def provenance(*packages: str) -> dict[str, Any]:
    """Command, commit ("-dirty" when tracked files differ from it) and the versions of Python and of `packages`."""
    versions = {name: version(name) for name in ("robopolicy", "numpy", *packages)}
    return {
        "command": " ".join(["python", *sys.argv]),
        "commit": git_commit(),
        "versions": {"python": sys.version.split()[0], **versions},
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content`, in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, (json.dumps(plain(content, where="result", nonfinite="null"), indent=1) + "\n").encode())
