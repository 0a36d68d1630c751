"""A policy at the other end of a socket. Part of the robot-side island: numpy, msgpack, pyzmq and the protocol only."""

from __future__ import annotations

import math
import os
import threading
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import zmq

if TYPE_CHECKING or __package__:
    from . import protocol
else:  # this folder itself is on the path
    import protocol

if TYPE_CHECKING:
    from collections.abc import Mapping


class PolicyTimeout(TimeoutError):  # noqa: N818
    """The server did not answer in time. A later call tries again."""


class RemoteError(ValueError):
    """The server refused the call. `code`: "observation", "policy", "protocol", "token" or "replaced"."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class RemoteFeature:
    """What robopolicy.spec.FeatureSpec says of one key, without the checks (the server makes them)."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    unit: str = ""
    frame: str = ""
    names: tuple[str, ...] = ()
    values: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RemoteFeature:
        """Inverse of FeatureSpec.to_dict()."""
        lists = {name: tuple(data.get(name, ())) for name in ("shape", "names", "values")}
        return cls(**{**data, **lists})

    def zeros(self, leading: tuple[int, ...] = ()) -> np.ndarray:
        """An array [*leading, *shape] that fits: zeros, or the first known string."""
        if self.dtype == "str":
            return np.full((*leading, *self.shape), next(iter(self.values), ""))
        return np.zeros((*leading, *self.shape), self.dtype)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, the same as FeatureSpec.to_dict()."""
        return {name: value for name, value in self.__dict__.items() if name != "values" or value}


@dataclass(frozen=True)
class RemoteSpec:
    """The attributes of robopolicy.spec.PolicySpec; PolicySpec.from_dict(spec.to_dict()) gives the whole thing."""

    observation: dict[str, RemoteFeature]
    action: RemoteFeature
    obs_horizon: int
    action_horizon: int
    execute_horizon: int
    control_hz: float
    capabilities: tuple[str, ...] = ()

    @property
    def action_dim(self) -> int:
        """A, entries of one action."""
        return self.action.shape[-1]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, the same as PolicySpec.to_dict()."""
        observation = {key: feature.to_dict() for key, feature in self.observation.items()}
        return {**self.__dict__, "observation": observation, "action": self.action.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RemoteSpec:
        """Inverse of PolicySpec.to_dict()."""
        return cls(
            observation={key: RemoteFeature.from_dict(value) for key, value in data["observation"].items()},
            action=RemoteFeature.from_dict(data["action"]),
            obs_horizon=int(data["obs_horizon"]),
            action_horizon=int(data["action_horizon"]),
            execute_horizon=int(data["execute_horizon"]),
            control_hz=float(data["control_hz"]),
        )


TOKEN_VARIABLE = "ROBOPOLICY_TOKEN"


@dataclass(frozen=True)
class Reply:
    """Candidate chunks float32 [B, N, H, A]; the monitor's scores float64 [B], None without one; seconds in the policy."""

    actions: np.ndarray
    scores: np.ndarray | None
    seconds: float


class RemotePolicy:
    """A Policy whose sample() runs in the server at `address`. Thread-safe; one call at a time.

    The optional capabilities of the served policy stay behind the socket: `spec.capabilities` is empty.

    token: the server's, where it asks for one; None = the environment variable ROBOPOLICY_TOKEN.

    Attributes:
        spec: RemoteSpec of the served policy, fetched when this object is made.
        name: what the server calls its policy (a checkpoint's path, say).
        band, patience: thresholds {level: score} of the server's monitor, and for how many decisions in a row (see Gate).

    Raises:
        PolicyTimeout: nobody answers at `address` within `timeout_ms`.
        RemoteError: the token is wrong.
    """

    def __init__(self, address: str = "tcp://127.0.0.1:5555", timeout_ms: int = 1000, token: str | None = None) -> None:
        self.address, self.timeout_ms = address, timeout_ms
        self._token = (os.environ.get(TOKEN_VARIABLE, "") if token is None else token).encode()
        self._client = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._request = 0
        self._socket: zmq.Socket | None = None
        hello = self._call(protocol.HELLO, {}, protocol.SPEC)
        self.name: str = hello["name"]
        try:
            self.spec = RemoteSpec.from_dict(hello["spec"])
            self.band: dict[str, float] = {str(level): float(score) for level, score in hello["band"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise protocol.ProtocolError(f"{self.address} describes no policy: {type(error).__name__}: {error}") from error
        self.patience: int = hello["patience"]

    def reset(self) -> None:
        """Forget the current episode, here and in the server."""
        self._call(protocol.RESET, {}, protocol.DONE)

    def sample(self, observation: Mapping[str, Any], num_samples: int = 1, seed: int | None = None) -> np.ndarray:
        """Candidate chunks float32 [B, N, H, A] in physical units for observation {key: [B, To, ...]}. Raises as decide()."""
        return self.decide(observation, num_samples, seed).actions

    def decide(self, observation: Mapping[str, Any], num_samples: int = 1, seed: int | None = None) -> Reply:
        """What sample() returns, and what the server's monitor says of the observation.

        Without a seed a server may compute several clients' calls together; with one the answer has the bits of the policy's.

        Raises:
            RemoteError: the server refused, for instance since the observation does not fit `spec`; its text says why.
                Also when the server at `address` was restarted with another policy: make a new RemotePolicy then.
            PolicyTimeout: no answer within `timeout_ms`.
            ProtocolError: the observation cannot be sent.
        """
        fields = {
            "client": self._client,
            "observation": dict(observation),
            "num_samples": int(num_samples),
            "seed": None if seed is None else int(seed),
        }
        reply = self._call(protocol.SAMPLE, fields, protocol.ACTIONS)
        if reply["name"] != self.name:
            raise RemoteError(
                "replaced", f"{self.address} now serves {reply['name']!r}, not {self.name!r}: make a new RemotePolicy for it"
            )
        return Reply(reply["actions"], reply["scores"], reply["seconds"])

    def close(self) -> None:
        """Close the socket. A later call opens it again."""
        with self._lock:
            self._drop_socket()

    def __enter__(self) -> RemotePolicy:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _call(self, kind: str, fields: Mapping[str, Any], expected: str) -> protocol.Message:
        with self._lock:
            self._request += 1
            frame = protocol.encode(protocol.Message(kind=kind, request=self._request, fields=fields))
            reply = self._exchange(frame)
        if reply.kind == protocol.ERROR:
            raise RemoteError(reply["code"], reply["message"])
        if reply.kind != expected:
            raise protocol.ProtocolError(f"{self.address} answered {kind!r} with {reply.kind!r}, expected {expected!r}")
        return reply

    def _exchange(self, frame: bytes) -> protocol.Message:
        """Send, then wait for the reply to this very request; replies to calls that timed out before are thrown away."""
        deadline = time.monotonic() + self.timeout_ms / 1000
        if self._socket is None:
            self._socket = self._open_socket()
        try:
            self._socket.send_multipart([self._token, frame], zmq.NOBLOCK, copy=False)  # a copy of a picture costs most
            while self._socket.poll(max(0, math.ceil((deadline - time.monotonic()) * 1000))):
                reply = protocol.decode(self._socket.recv())
                if reply.request in (self._request, 0):
                    return reply
        except zmq.Again:
            pass  # nobody to send to
        except BaseException:
            self._drop_socket()  # its state is unknown
            raise
        self._drop_socket()  # with the request that nobody took, so that it is not served later
        raise PolicyTimeout(
            f"no answer from the policy server at {self.address} within {self.timeout_ms} ms: is it running "
            "(robopolicy deploy checkpoint=...), and is one inference shorter than that?"
        )

    def _open_socket(self) -> zmq.Socket:
        new: zmq.Socket = zmq.Context.instance().socket(zmq.DEALER)
        new.setsockopt(zmq.LINGER, 0)
        new.setsockopt(zmq.MAXMSGSIZE, protocol.MAX_BYTES)
        try:
            new.connect(self.address)
        except zmq.ZMQError as error:
            new.close()
            raise ValueError(f"cannot connect to {self.address!r}: {error}; use tcp://HOST:PORT or ipc:///PATH") from error
        return new

    def _drop_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
