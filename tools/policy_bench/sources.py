"""A fingerprint of the code that decides what a training gives, so that cells are run anew when it changes."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

# Modules that can change a trained policy or its chunks; files, logging and the command line cannot.
PACKAGE = "robopolicy"
_DECIDING = (
    *("robopolicy.models", "robopolicy.policies", "robopolicy.train"),
    *("robopolicy.data.transforms", "robopolicy.data.windows", "robopolicy.batch"),
)
_INDIFFERENT = ("robopolicy.train.logging", "robopolicy.train.run_folder", "robopolicy.policies.load")


def fingerprint(roots: Iterable[str]) -> str:
    """sha256 (hex) of the deciding modules that `roots` import, directly or not, without comments and docstrings."""
    seen: dict[str, str] = {}
    waiting = sorted(set(roots))
    while waiting:
        name = waiting.pop()
        if name in seen or not name.startswith(_DECIDING) or name in _INDIFFERENT:
            continue
        text, imported = module(name)
        seen[name] = text
        waiting += imported
    return hashlib.sha256(repr(sorted(seen.items())).encode()).hexdigest()


def targets(node: Any) -> Iterator[str]:
    """The modules of all `_target_` in a plain configuration."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"].rpartition(".")[0]
        node = list(node.values())
    for child in node if isinstance(node, list) else ():
        yield from targets(child)


@cache
def module(name: str) -> tuple[str, tuple[str, ...]]:
    """A module's code and the names of the modules that it may import."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return "", ()
    tree = ast.parse(Path(spec.origin).read_text())
    imported = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            imported += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and body and ast.get_docstring(node, clean=False):
            node.body = body[1:]
    known = [found for found in imported if found.startswith(PACKAGE + ".") and _exists(found)]
    return ast.dump(tree), tuple(known)


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
