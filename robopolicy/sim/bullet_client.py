"""PyBullet, imported without its greetings, and its functions bound to one physics server."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Bullet greets on C's output streams when it is imported and connected to; nobody asked."""
    null, streams = os.open(os.devnull, os.O_WRONLY), (1, 2)
    saved = [os.dup(fd) for fd in streams]
    for fd in streams:
        os.dup2(null, fd)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what it printed waits in C's buffer
        for fd, copy in zip(streams, saved, strict=True):
            os.dup2(copy, fd)
            os.close(copy)
        os.close(null)


with quiet():
    import pybullet as p


class BulletClient:
    """PyBullet's functions bound to one physics server, each once (pybullet_utils' client binds anew at every call)."""

    def __init__(self) -> None:
        self._id = p.connect(p.DIRECT)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        bound = partial(getattr(p, name), physicsClientId=self._id)
        setattr(self, name, bound)
        return bound
