"""What goes over the wire between a policy server and its clients: versioned msgpack maps that carry numpy arrays.

One message is one frame: {"protocol", "kind", "request", **fields}; before it a client sends a frame with its token, so that
a server reads nothing of a stranger's message. `request` numbers a client's calls from 1; a reply repeats the number of what it
answers, 0 where that could not be read. `client` names the sender of a sample call, so that a server can tell a call that was
given up and made again from another client's. An array is {"__nd__": dtype, "shape", "data"}.

Part of the robot-side island (all of this folder but server, answering, ros_bag, ros_replay): numpy, msgpack and pyzmq only,
nothing else of this package, so the folder runs copied into a robot's workspace.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION = 2  # 2: a token, the monitor's scores and band
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
    try:
        frame = msgpack.packb(envelope, default=_pack_array)
    except ProtocolError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"cannot encode a {message.kind!r} message: {error}", message.request) from error
    if len(frame) > max_bytes:
        raise ProtocolError(
            f"a {message.kind!r} message of {len(frame)} bytes exceeds the limit of {max_bytes}: "
            "send fewer or smaller observations, or compress the images before",
            message.request,
        )
    return frame


def decode(frame: bytes, max_bytes: int = MAX_BYTES) -> Message:
    """The message in `frame`. Arrays come out writable and own their memory.

    Raises:
        ProtocolError: anything else than a well-formed message of this version; the message says what was wrong.
    """
    if len(frame) > max_bytes:
        raise ProtocolError(f"a frame of {len(frame)} bytes exceeds the limit of {max_bytes}")
    try:
        envelope = msgpack.unpackb(frame, object_hook=_unpack_array)
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


def _pack_array(value: Any) -> Any:
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
    data = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data  # its own memory: bytes would be one copy more
    return {"__nd__": value.dtype.str, "shape": list(value.shape), "data": data}


def _unpack_array(value: dict[str, Any]) -> Any:
    if "__nd__" not in value:
        return value
    name, shape, data = value["__nd__"], value.get("shape"), value.get("data")
    try:
        dtype = np.dtype(name) if isinstance(name, str) else None
    except (TypeError, ValueError, SyntaxError):
        dtype = None
    if dtype is None or dtype.kind not in _DTYPE_KINDS or dtype.itemsize == 0:
        raise ProtocolError(f"array of dtype {name!r}: only numbers, booleans and fixed-width text are accepted")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape) or not isinstance(data, bytes):
        raise ProtocolError("an array needs a 'shape' of integers from 0 and 'data' as bytes")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ProtocolError(f"an array of shape {shape} and dtype {name} does not have {len(data)} bytes")
    try:
        return np.ndarray(tuple(shape), dtype, buffer=data).copy()
    except (ValueError, TypeError) as error:
        raise ProtocolError(f"an array of shape {shape} and dtype {name} cannot be made: {error}") from error
