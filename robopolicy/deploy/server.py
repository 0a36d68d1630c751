"""Serve any Policy on a socket: one thread, one call at a time, no way for a bad request to end it."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import zmq

from robopolicy.deploy import protocol
from robopolicy.deploy.protocol import Message, ProtocolError
from robopolicy.spec import Policy, SpecError

log = logging.getLogger(__name__)

_POLL_MS = 100
_MAX_WAITING = 64  # messages looked at together


@dataclass
class ServerStats:
    """What a server did: calls of sample() answered, calls refused, and the newest latencies (s) of sample()."""

    num_samples: int = 0
    num_errors: int = 0
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=10_000))

    def latency_ms(self, percentile: float) -> float:
        """A percentile of the latency (ms) over the last 10 000 calls, NaN before the first."""
        return float(np.percentile(self.seconds, percentile)) * 1000 if self.seconds else float("nan")

    def __str__(self) -> str:
        p50, p95 = self.latency_ms(50), self.latency_ms(95)
        return f"{self.num_samples} samples, {self.num_errors} errors, p50 {p50:.1f} ms, p95 {p95:.1f} ms"


def serve(
    policy: Policy,
    address: str = "tcp://127.0.0.1:5555",
    *,
    name: str = "",
    max_samples: int = 1024,
    ready: Callable[[str], None] | None = None,
    stop: threading.Event | None = None,
) -> ServerStats:
    """Answer RemotePolicy clients until SIGINT, SIGTERM or `stop`; returns what was done.

    The policy is sampled once before the socket opens, so that a first call is no slower than the others and a policy that
    breaks its own spec is found here.

    Args:
        policy: what to serve.
        address: tcp://HOST:PORT (PORT may be * for a free one) or ipc:///PATH. Anyone who can reach it can use it: there is
            no authentication, so keep it on the loopback interface or inside an SSH tunnel.
        name: how the policy is called in replies, e.g. the checkpoint's path; its class's name if empty.
        max_samples: most candidates that one call may ask for.
        ready: called once with the address that is bound.
        stop: ends the server from another thread.

    Raises:
        ValueError: the address cannot be bound.
        SpecError: the policy does not return what its spec promises.
    """
    name = name or type(policy).__name__
    stop = stop or threading.Event()
    stats = ServerStats()
    _warm_up(policy)
    with _bound(address) as router, _stop_on_signals(stop):
        bound = router.getsockopt_string(zmq.LAST_ENDPOINT)
        if not is_local(bound):
            log.warning("%s can be reached from other machines and asks for no password: prefer 127.0.0.1 and a tunnel", bound)
        log.info("serving %s at %s", name, bound)
        if ready is not None:
            ready(bound)
        while not stop.is_set():
            if router.poll(_POLL_MS):
                for envelope, frame in _newest_per_client(_drain(router)):
                    reply = _answer(frame, policy=policy, name=name, max_samples=max_samples, stats=stats)
                    router.send_multipart([*envelope, reply])
    log.info("stopped: %s", stats)
    return stats


def is_local(address: str) -> bool:
    """Whether only this machine can reach a bound `address`."""
    if not address.startswith("tcp://"):
        return True
    host = address[len("tcp://") :].rsplit(":", 1)[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.")


def _answer(frame: bytes, *, policy: Policy, name: str, max_samples: int, stats: ServerStats) -> bytes:
    """The reply to one frame; whatever is wrong with it, and whatever the policy raises, becomes an error message."""
    request, code = 0, "protocol"
    try:
        message = protocol.decode(frame)
        request = message.request
        if message.kind == protocol.HELLO:
            return protocol.encode(Message(protocol.SPEC, request, {"spec": policy.spec.to_dict(), "name": name}))
        if message.kind == protocol.RESET:
            code = "policy"
            policy.reset()
            return protocol.encode(Message(protocol.DONE, request))
        if message.kind != protocol.SAMPLE:
            raise ProtocolError(f"a client does not send {message.kind!r}; known calls: hello, sample, reset", request)
        code = "observation"
        if not 1 <= message["num_samples"] <= max_samples:
            raise SpecError(f"num_samples={message['num_samples']} must be in 1..{max_samples}")
        started = time.perf_counter()
        actions = policy.sample(message["observation"], num_samples=message["num_samples"], seed=message["seed"])
        code = "policy"
        _check_actions(policy, actions, message["num_samples"])
        elapsed = time.perf_counter() - started
        reply = protocol.encode(Message(protocol.ACTIONS, request, {"actions": actions, "seconds": elapsed, "name": name}))
        stats.num_samples += 1
        stats.seconds.append(elapsed)
        return reply
    except ProtocolError as error:
        code, request, text = "protocol", error.request or request, str(error)
    except ValueError as error:
        text = str(error)
    except Exception as error:  # a policy may raise anything; the next request may still be served
        log.exception("request %d failed", request)
        code, text = "policy", f"{type(error).__name__}: {error}"
    stats.num_errors += 1
    log.warning("refused request %d (%s): %s", request, code, text)
    return protocol.encode(Message(protocol.ERROR, request, {"code": code, "message": text}))


def _check_actions(policy: Policy, actions: np.ndarray, num_samples: int) -> None:
    expected = (num_samples, policy.spec.action_horizon, policy.spec.action_dim)
    if actions.ndim != 4 or actions.shape[1:] != expected:
        raise SpecError(f"the policy returned shape {list(actions.shape)}, its spec promises {['B', *expected]}")
    if not np.isfinite(actions).all():
        raise SpecError(f"the policy returned {np.count_nonzero(~np.isfinite(actions))} action entries that are not finite")


def _warm_up(policy: Policy) -> None:
    started = time.perf_counter()
    zeros = {key: feature.zeros((1, policy.spec.obs_horizon)) for key, feature in policy.spec.observation.items()}
    _check_actions(policy, policy.sample(zeros, num_samples=1, seed=0), 1)
    policy.reset()
    log.info("first sample took %.0f ms", (time.perf_counter() - started) * 1000)


def _drain(router: zmq.Socket) -> list[list[bytes]]:
    messages: list[list[bytes]] = []
    while len(messages) < _MAX_WAITING and router.poll(0):  # polling, unlike receiving, also sees connections made meanwhile
        messages.append(router.recv_multipart())
    return messages


def _newest_per_client(messages: list[list[bytes]]) -> list[tuple[list[bytes], bytes]]:
    """(envelope, frame) of what is waiting, without sample calls whose sender has made a later call.

    A client calls again only when it gave up on the call before, so a policy slower than its client's timeout would
    otherwise fall ever further behind.
    """
    calls = [(envelope, frame) for *envelope, frame in messages if envelope]
    if len(calls) == 1:
        return calls
    senders = [_sender(frame) for _, frame in calls]
    newest: dict[str, int] = {}
    for client, request in senders:
        newest[client] = max(request, newest.get(client, 0))
    return [call for call, (client, request) in zip(calls, senders, strict=True) if not client or request == newest[client]]


def _sender(frame: bytes) -> tuple[str, int]:
    """(client, request) of a sample call; ("", 0) of anything else."""
    try:
        message = protocol.decode(frame)
    except ProtocolError:
        return "", 0
    return message.fields.get("client", ""), message.request


@contextmanager
def _bound(address: str) -> Iterator[zmq.Socket]:
    context = zmq.Context()  # of its own: ending it waits until the address is free again
    try:
        with context.socket(zmq.ROUTER) as router:
            router.setsockopt(zmq.LINGER, 200)
            router.setsockopt(zmq.MAXMSGSIZE, protocol.MAX_BYTES)
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
