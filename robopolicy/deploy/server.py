"""Serve any Policy on a socket: one thread, any number of clients, no way for a bad message to end it."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import zmq

from robopolicy.deploy import protocol
from robopolicy.deploy.answering import Answerer, ServerStats
from robopolicy.deploy.monitor import Monitor
from robopolicy.spec import Array, Observation, Policy

log = logging.getLogger(__name__)

MIN_TOKEN = 16  # characters

_POLL_MS = 100
_MAX_WAITING = 64  # messages looked at together
_MAX_QUEUED = 16  # messages of one client that wait to be looked at


def serve(
    policy: Policy,
    address: str = "tcp://127.0.0.1:5555",
    *,
    name: str = "",
    token: str = "",
    monitor: Monitor | None = None,
    features: Callable[[Observation], Array] | None = None,
    max_samples: int = 1024,
    max_batch: int = 16,
    max_bytes: int = protocol.MAX_BYTES,
    ready: Callable[[str], None] | None = None,
    stop: threading.Event | None = None,
) -> ServerStats:
    """Answer RemotePolicy clients until SIGINT, SIGTERM or `stop`; returns what was done.

    The policy is sampled once before the socket opens, so that a first call is no slower than the others and a policy that
    breaks its own spec is found here.

    Args:
        policy: what to serve.
        address: tcp://HOST:PORT (PORT may be * for a free one) or ipc:///PATH.
        name: how the policy is called in replies, e.g. the checkpoint's path; its class's name if empty.
        token: what clients must know, at least MIN_TOKEN characters; "" = anyone who reaches the address, allowed on the
            loopback interface and ipc alone. It is sent in the clear: a tunnel is better.
        monitor, features, max_samples, max_batch: see Answerer.
        max_bytes: longest message that is taken.
        ready: called once with the address that is bound.
        stop: ends the server from another thread.

    Raises:
        ValueError: the address cannot be bound, a token is missing or short, or the monitor does not fit.
        SpecError: the policy does not return what its spec promises.
    """
    check_access(address, token)
    stop = stop or threading.Event()
    name = name or type(policy).__name__
    answerer = Answerer(policy, name, monitor=monitor, features=features, max_samples=max_samples, max_batch=max_batch)
    with _bound(address, max_bytes) as router, _stop_on_signals(stop):
        bound = router.getsockopt_string(zmq.LAST_ENDPOINT)
        if not is_local(bound):
            log.warning("%s can be reached from other machines, and what is sent is not encrypted: prefer a tunnel", bound)
        log.info("serving %s at %s", name, bound)
        if ready is not None:
            ready(bound)
        while not stop.is_set():
            if router.poll(_POLL_MS):
                _answer(router, _drain(router), answerer, token.encode())
    log.info("stopped: %s", answerer.stats)
    return answerer.stats


def is_local(address: str) -> bool:
    """Whether only this machine can reach a bound `address`."""
    if not address.startswith("tcp://"):
        return address.startswith("ipc://")
    host = address[len("tcp://") :].rsplit(":", 1)[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_access(address: str, token: str) -> None:
    """Raises ValueError unless `address` is one of ours and `token` good enough for it."""
    if not address.startswith(("tcp://", "ipc://")):
        raise ValueError(f"cannot serve at {address!r}: use tcp://127.0.0.1:PORT or ipc:///PATH")
    if not token and not is_local(address):
        raise ValueError(
            f"{address} can be reached from other machines: give token= (or set ROBOPOLICY_TOKEN), or serve at "
            "tcp://127.0.0.1:PORT and use a tunnel"
        )
    if token and len(token) < MIN_TOKEN:
        raise ValueError(
            f"the token has {len(token)} characters, at least {MIN_TOKEN} are needed, e.g. those of `openssl rand -hex 16`"
        )


def _answer(router: zmq.Socket, messages: list[list[zmq.Frame]], answerer: Answerer, token: bytes) -> None:
    """Reply to what waits. A message is [who, token, frame], or [who, frame] without a token."""
    asking, frames = [], []
    for sender, *parts in messages:
        who = sender.bytes
        if len(parts) not in (1, 2):
            router.send_multipart([who, answerer.refuse("protocol", f"a message has 1 or 2 parts, this one {len(parts)}")])
        elif not hmac.compare_digest(parts[0].bytes if len(parts) == 2 else b"", token):
            router.send_multipart([who, answerer.refuse("token", "this server asks for a token, and this is not it")])
        else:
            asking.append(who)
            frames.append(parts[-1].buffer)
    for who, reply in zip(asking, answerer.answers(frames), strict=True):
        if reply is not None:
            router.send_multipart([who, reply])


def _drain(router: zmq.Socket) -> list[list[zmq.Frame]]:
    messages: list[list[zmq.Frame]] = []
    while len(messages) < _MAX_WAITING and router.poll(0):  # polling, unlike receiving, also sees connections made meanwhile
        messages.append(router.recv_multipart(copy=False))
    return messages


@contextmanager
def _bound(address: str, max_bytes: int) -> Iterator[zmq.Socket]:
    context = zmq.Context()  # of its own: ending it waits until the address is free again
    try:
        with context.socket(zmq.ROUTER) as router:
            router.setsockopt(zmq.LINGER, 200)
            router.setsockopt(zmq.MAXMSGSIZE, max_bytes)
            router.setsockopt(zmq.RCVHWM, _MAX_QUEUED)
            try:
                router.bind(address)
            except zmq.ZMQError as error:
                hint = "use tcp://127.0.0.1:PORT or ipc:///PATH"
                raise ValueError(f"cannot serve at {address!r}: {error}; {hint}") from error
            yield router
    finally:
        context.term()


@contextmanager
def _stop_on_signals(stop: threading.Event) -> Iterator[None]:
    """SIGINT and SIGTERM set `stop`. Only the main thread may catch signals; elsewhere this does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
