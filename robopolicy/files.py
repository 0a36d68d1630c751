"""Files that survive a kill: durable atomic writes, an advisory lock, and values reduced to plain JSON."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_TEMPORARY = re.compile(r"\..+\.\d+\.\d+\.tmp")


def plain(value: Any, *, where: str, error: type[ValueError] = ValueError, nonfinite: str = "keep") -> Any:
    """`value` as nested dict, list, str, bool, int, float and None, which JSON and YAML hold without tags.

    Numpy scalars and arrays, tuples and paths are converted; keys become str.

    Args:
        value: what to convert.
        where: its name in error messages; nested names are joined with dots.
        error: the ValueError to raise.
        nonfinite: what happens to a NaN or infinity: "keep" it, make it None ("null"), or "refuse" it.
    """
    if isinstance(value, Mapping):
        options: dict[str, Any] = {"error": error, "nonfinite": nonfinite}
        return {str(key): plain(item, where=f"{where}.{key}", **options) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item, where=f"{where}.{i}", error=error, nonfinite=nonfinite) for i, item in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value) and nonfinite != "keep":
        if nonfinite == "refuse":
            raise error(f"{where} is {value}, which JSON cannot hold; leave it out or give a finite number")
        return None
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise error(f"{where} is a {type(value).__name__}; give a number, text, list or mapping (what JSON holds)")


def file_stem(name: str) -> str:
    """A name as one part of a path; other names give other parts: "/" becomes "%2F" and "%" becomes "%25"."""
    return name.replace("%", "%25").replace("/", "%2F")


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durable(path: Path, data: bytes) -> None:
    """Write `data` to `path` and wait until it is on the disk. Not atomic: for files in a folder that is renamed later."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def is_temporary(name: str) -> bool:
    """Whether `name` is that of a file which `atomic_write` was killed on."""
    return _TEMPORARY.fullmatch(name) is not None


def atomic_write(path: Path, write: bytes | Callable[[Path], Any]) -> None:
    """Create or replace `path` in one step: a reader, or a kill at any moment, sees the old content or the new.

    Args:
        path: the file; its folder exists.
        write: the content, or a function that writes it to the path it is given.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        if isinstance(write, bytes):
            write_durable(temporary, write)
        else:
            write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` (created when missing). A killed holder frees it."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
