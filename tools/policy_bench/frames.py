"""Messages between two processes: a line of JSON that names arrays, then their bytes. Needs NumPy alone."""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any, BinaryIO

import numpy as np


def write(stream: BinaryIO, head: dict[str, Any], **arrays: np.ndarray) -> None:
    """Send `head` (what JSON holds) and arrays."""
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    shapes = [[name, array.dtype.str, array.shape] for name, array in arrays.items()]
    stream.write(json.dumps([head, shapes]).encode() + b"\n")
    for array in arrays.values():
        stream.write(array.tobytes())
    stream.flush()


def read(stream: BinaryIO) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """The next message, or None at the end of the stream."""
    line = stream.readline()
    if not line:
        return None
    head, shapes = json.loads(line)
    arrays = {}
    for name, dtype, shape in shapes:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        arrays[name] = np.frombuffer(stream.read(size), dtype).reshape(shape)
    return head, arrays


def serve(worker: Any) -> None:
    """answer() what comes on stdin, to stdout; what is printed meanwhile goes to stderr."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    answer(worker, sys.stdin.buffer, answers)


def answer(worker: Any, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer every request {"do": method, ...} with what that method of `worker` returns, (head, arrays), until the end.

    A failure is answered as {"error": ...}.
    """
    while (message := read(requests)) is not None:
        head, arrays = message
        try:
            facts, found = getattr(worker, head.pop("do"))(**head, **arrays)
        except Exception as error:  # whatever the peer raises is the answer
            traceback.print_exc()
            facts, found = {"error": f"{type(error).__name__}: {error}".strip()[:500]}, {}
        write(answers, facts, **found)
