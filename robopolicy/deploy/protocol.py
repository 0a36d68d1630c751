"""What goes over the wire between a policy server and its clients: versioned msgpack maps, and the bytes of numpy arrays.

One message is one frame: the length of its head (4 bytes, big-endian), the head, and the bytes of its arrays, one after the
other, so that a picture is copied once on each side. The head is the msgpack map {"protocol", "kind", "request", **fields}, in
which an array is {"__nd__": dtype, "shape"}; its bytes follow those of the arrays before it. Before the frame a client sends
one with its token, so that a server reads nothing of a stranger's message. `request` numbers a client's calls from 1; a reply
repeats the number of what it answers, 0 where that could not be read. `client` names the sender of a sample call, so that a
server can tell a call that was given up and made again from another client's.

Part of the robot-side island (all of this folder but server, answering, ros_bag, ros_replay): numpy, msgpack and pyzmq only,
nothing else of this package, so the folder runs copied into a robot's workspace.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION = 3  # 2: a token, the monitor's scores and band. 3: arrays behind the head
MAX_BYTES = 64 * 2**20

HELLO, SPEC, SAMPLE, ACTIONS, RESET, DONE, ERROR = "hello", "spec", "sample", "actions", "reset", "done", "error"

_NONE = type(None)
FIELDS: dict[str, dict[str, tuple]] = {
    HELLO: {},
    SPEC: {"spec": (dict,), "name": (str,), "band": (dict,), "patience": (int,)},
    SAMPLE: {"client": (str,), "observation": (dict,), "num_samples": (int,), "seed": (int, _NONE)},
    ACTIONS: {"actions": (np.ndarray,), "scores": (np.ndarray, _NONE), "seconds": (float,), "name": (str,)},
    RESET: {},
    DONE: {},
    ERROR: {"code": (str,), "message": (str,)},
}
_LENGTH = 4  # bytes that say how long the head is
_DTYPE_KINDS = "biufU"  # bool, int, unsigned, float, text


class ProtocolError(ValueError):
    """A frame that is no message of this protocol. `request` is the number of the call it belongs to, 0 if unreadable."""

    def __init__(self, message: str, request: int = 0) -> None:
        super().__init__(message)
        self.request = request


@dataclass(frozen=True)
class Message:
    """One message: its kind, the number of the call, and the fields that FIELDS[kind] lists."""

    kind: str
    request: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]


def encode(message: Message, max_bytes: int = MAX_BYTES) -> bytes:
    """The frame of `message`.

    Raises:
        ProtocolError: an unknown kind, a missing, unknown or mistyped field, an array of objects, a frame over `max_bytes`.
    """
    _check_fields(message.kind, message.fields, message.request)
    envelope = {"protocol": VERSION, "kind": message.kind, "request": message.request, **message.fields}
    arrays: list[np.ndarray] = []
    try:
        head = msgpack.packb(envelope, default=partial(_announce, arrays=arrays))
    except ProtocolError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"cannot encode a {message.kind!r} message: {error}", message.request) from error
    size = _LENGTH + len(head) + sum(array.nbytes for array in arrays)
    if size > max_bytes:
        raise ProtocolError(
            f"a {message.kind!r} message of {size} bytes exceeds the limit of {max_bytes}: "
            "send fewer or smaller observations, or compress the images before",
            message.request,
        )
    return b"".join([len(head).to_bytes(_LENGTH, "big"), head, *(array.data for array in arrays)])


def decode(frame: bytes | memoryview, max_bytes: int = MAX_BYTES) -> Message:
    """The message in `frame`. Arrays come out writable and own their memory.

    Raises:
        ProtocolError: anything else than a well-formed message of this version; the message says what was wrong.
    """
    if len(frame) > max_bytes:
        raise ProtocolError(f"a frame of {len(frame)} bytes exceeds the limit of {max_bytes}")
    view = memoryview(frame)
    start = _LENGTH + int.from_bytes(view[:_LENGTH], "big")
    if len(frame) < start:
        raise ProtocolError(f"not a message: a frame of {len(frame)} bytes that announces a head of {start - _LENGTH}")
    arrays = _Arrays(view[start:])
    try:
        envelope = msgpack.unpackb(view[_LENGTH:start], object_hook=arrays.take)
    except ProtocolError:
        raise
    except Exception as error:  # msgpack raises a dozen types; none of them may end a server
        raise ProtocolError(f"not a msgpack message: {type(error).__name__}: {error}") from error
    if not isinstance(envelope, dict) or not {"protocol", "kind", "request"} <= envelope.keys():
        raise ProtocolError("not a message: expected a map with 'protocol', 'kind' and 'request'")
    version, kind, request = envelope.pop("protocol"), envelope.pop("kind"), envelope.pop("request")
    if type(request) is not int or request < 0:
        raise ProtocolError(f"'request' is {request!r}, expected an integer from 0")
    if version != VERSION:
        raise ProtocolError(
            f"the peer speaks protocol {version!r}, this side speaks {VERSION}: install the same robopolicy on both", request
        )
    _check_fields(kind, envelope, request)
    if arrays.left:
        raise ProtocolError(f"{arrays.left} bytes follow the last array", request)
    return Message(kind=kind, request=request, fields=envelope)


def _check_fields(kind: Any, fields: Mapping[str, Any], request: int) -> None:
    if not isinstance(kind, str) or kind not in FIELDS:
        raise ProtocolError(f"unknown message kind {kind!r}; known: {', '.join(FIELDS)}", request)
    expected = FIELDS[kind]
    if set(fields) != set(expected):
        raise ProtocolError(f"a {kind!r} message has the fields {sorted(expected)}, given: {sorted(map(str, fields))}", request)
    for name, types in expected.items():
        if type(fields[name]) not in types:  # exact: True is no number of samples
            names = " or ".join(t.__name__ for t in types)
            raise ProtocolError(f"{name!r} of a {kind!r} message is a {type(fields[name]).__name__}, expected {names}", request)
    for key in fields.get("observation", ()):
        if not isinstance(key, str):
            raise ProtocolError(f"observation key {key!r} is not a string", request)


def _announce(value: Any, arrays: list[np.ndarray]) -> Any:
    """What stands for an array in the head; its bytes join `arrays`."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, int):  # msgpack asks for those it has no room for
        raise ProtocolError(f"cannot send the integer {value}: it has more than 64 bits")
    if not isinstance(value, np.ndarray):
        raise ProtocolError(f"cannot send a {type(value).__name__}: send numpy arrays, text, numbers, lists and maps")
    if value.dtype.kind not in _DTYPE_KINDS:
        raise ProtocolError(f"cannot send an array of dtype {value.dtype}: send numbers, booleans or fixed-width text")
    if not value.dtype.itemsize:
        raise ProtocolError("cannot send an array of text without any letters")
    arrays.append(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
    return {"__nd__": value.dtype.str, "shape": list(value.shape)}


class _Arrays:
    """The arrays behind a head, in the order in which it announces them, so that no byte is taken twice."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._start = data, 0

    @property
    def left(self) -> int:
        """Bytes that nothing has announced."""
        return len(self._data) - self._start

    def take(self, value: dict[str, Any]) -> Any:
        """The array that a map of the head announces; other maps as they are."""
        if "__nd__" not in value:
            return value
        name, shape = value["__nd__"], value.get("shape")
        try:
            dtype = np.dtype(name) if isinstance(name, str) else None
        except (TypeError, ValueError, SyntaxError):
            dtype = None
        if dtype is None or dtype.kind not in _DTYPE_KINDS or dtype.itemsize == 0:
            raise ProtocolError(f"array of dtype {name!r}: only numbers, booleans and fixed-width text are accepted")
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            raise ProtocolError("an array needs a 'shape' of integers from 0")
        size = math.prod(shape) * dtype.itemsize
        if size > self.left:
            raise ProtocolError(f"an array of shape {shape} and dtype {name} has {size} bytes, and {self.left} follow")
        try:
            array: np.ndarray = np.ndarray(tuple(shape), dtype, buffer=self._data, offset=self._start).copy()
        except (ValueError, TypeError) as error:
            raise ProtocolError(f"an array of shape {shape} and dtype {name} cannot be made: {error}") from error
        self._start += size
        return array
