"""What a policy server answers: frames in, frames out, no socket. Whatever is wrong with a call becomes an error message."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robopolicy.deploy import protocol
from robopolicy.deploy.monitor import Monitor
from robopolicy.deploy.protocol import Message, ProtocolError
from robopolicy.spec import Array, Observation, Policy, SpecError, check_observation

log = logging.getLogger(__name__)

_LOGGED = 100  # refusals that are logged one by one


@dataclass
class ServerStats:
    """What a server did: calls of sample() answered, calls of the policy that took, calls refused, and the newest latencies (s)
    of the policy.
    """

    num_samples: int = 0
    num_batches: int = 0
    num_errors: int = 0
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=10_000))

    def latency_ms(self, percentile: float) -> float:
        """A percentile of the latency (ms) over the last 10 000 calls of the policy, NaN before the first."""
        return float(np.percentile(self.seconds, percentile)) * 1000 if self.seconds else float("nan")

    def __str__(self) -> str:
        p50, p95 = self.latency_ms(50), self.latency_ms(95)
        together = f" in {self.num_batches} batches" if self.num_batches < self.num_samples else ""
        return f"{self.num_samples} samples{together}, {self.num_errors} errors, p50 {p50:.1f} ms, p95 {p95:.1f} ms"


@dataclass(frozen=True)
class _Call:
    """A sample call that may be computed. place: where its answer goes."""

    place: int
    request: int
    observation: Mapping[str, Any]
    num_samples: int
    seed: int | None
    size: int


class Answerer:
    """Answers the calls of clients with `policy`.

    Calls without a seed that wait together are computed in one pass, up to `max_batch` observations. Calls with a seed are
    computed alone: a batch shares its generator, and a matrix product of more rows may round differently, so only then are the
    bits those of the policy.

    Args:
        policy: what to serve.
        name: how it is called in replies.
        max_samples: most candidates that a call may ask for, over all of its observations.
        max_batch: most observations of several calls in one pass; 1 = never together.
        monitor: scores the features of each observation; None = no scores.
        features: observation -> [B, D], what the monitor was fitted on; None = the policy's own.

    Raises:
        SpecError: the policy does not return what its spec promises, or has no features for the monitor.
        ValueError: the monitor has too few calibration episodes, or was fitted on features of another width.
    """

    def __init__(
        self,
        policy: Policy,
        name: str,
        *,
        max_samples: int = 1024,
        max_batch: int = 16,
        monitor: Monitor | None = None,
        features: Callable[[Observation], Array] | None = None,
    ) -> None:
        if max_samples < 1 or max_batch < 1:
            raise ValueError(f"max_samples={max_samples} and max_batch={max_batch} must be at least 1")
        self._features = features or getattr(policy, "features", None)
        if monitor is not None and self._features is None:
            raise SpecError(f"a monitor looks at the policy's features, and {type(policy).__name__} has none")
        self.policy, self.name, self.monitor = policy, name, monitor
        self.max_samples, self.max_batch = max_samples, max_batch
        self.stats = ServerStats()
        self._band = {} if monitor is None else monitor.band()
        started = time.perf_counter()
        zeros = {key: feature.zeros((1, policy.spec.obs_horizon)) for key, feature in policy.spec.observation.items()}
        self._compute(zeros, 1, 0)
        policy.reset()
        log.info("first sample took %.0f ms", (time.perf_counter() - started) * 1000)

    def answers(self, frames: Sequence[bytes | memoryview]) -> list[bytes | None]:
        """The reply to each frame; None for a sample call that its client has given up: it has made a later one."""
        replies: list[bytes | None] = [None] * len(frames)
        calls: list[_Call] = []
        messages: list[tuple[int, Message]] = []
        for place, frame in enumerate(frames):
            try:
                messages.append((place, protocol.decode(frame)))
            except ProtocolError as error:
                replies[place] = self._refusal(error.request, "protocol", str(error))
        newest: dict[str, int] = {}
        for _, message in messages:
            client = message.fields.get("client", "")
            newest[client] = max(message.request, newest.get(client, 0))
        for place, message in messages:
            if message.kind == protocol.SAMPLE and message.request < newest[message["client"]]:
                continue
            try:
                call = self._admit(place, message)
            except ProtocolError as error:
                replies[place] = self._refusal(message.request, "protocol", str(error))
            except ValueError as error:
                replies[place] = self._refusal(message.request, "observation", str(error))
            else:
                if call is None:
                    replies[place] = self._simple(message)
                else:
                    calls.append(call)
        for group in self._groups(calls):
            for call, reply in zip(group, self._sample(group), strict=True):
                replies[call.place] = reply
        return replies

    def refuse(self, code: str, text: str) -> bytes:
        """The reply to a message that is not read."""
        return self._refusal(0, code, text)

    def _admit(self, place: int, message: Message) -> _Call | None:
        """The sample call in `message`; None for the other calls. Raises ProtocolError or SpecError."""
        if message.kind in (protocol.HELLO, protocol.RESET):
            return None
        if message.kind != protocol.SAMPLE:
            raise ProtocolError(f"a client does not send {message.kind!r}; known calls: hello, sample, reset")
        num_samples, seed = message["num_samples"], message["seed"]
        size = check_observation(message["observation"], self.policy.spec)
        if num_samples < 1 or size * num_samples > self.max_samples:
            most = self.max_samples // max(size, 1)
            raise SpecError(f"num_samples={num_samples} must be in 1..{most} for {size} observations in a call")
        observation = {key: np.asarray(message["observation"][key]) for key in self.policy.spec.observation}
        return _Call(place, message.request, observation, num_samples, seed, size)

    def _simple(self, message: Message) -> bytes:
        if message.kind == protocol.HELLO:
            patience = 1 if self.monitor is None else self.monitor.patience
            fields = {"spec": self.policy.spec.to_dict(), "name": self.name, "band": self._band, "patience": patience}
            return protocol.encode(Message(protocol.SPEC, message.request, fields))
        try:
            self.policy.reset()
        except Exception as error:
            log.exception("reset failed")
            return self._refusal(message.request, "policy", f"{type(error).__name__}: {error}")
        return protocol.encode(Message(protocol.DONE, message.request))

    def _groups(self, calls: Sequence[_Call]) -> list[list[_Call]]:
        """The calls that are computed together."""
        groups: list[list[_Call]] = []
        open_groups: dict[tuple[Any, ...], list[_Call]] = {}
        for call in calls:
            kind = (call.num_samples, *(array.ndim for array in call.observation.values()))
            group = open_groups.get(kind)
            fits = group is not None and sum(other.size for other in group) + call.size <= self.max_batch
            if call.seed is None and group is not None and fits:
                group.append(call)
                continue
            groups.append([call])
            if call.seed is None:
                open_groups[kind] = groups[-1]
        return groups

    def _sample(self, group: list[_Call]) -> list[bytes]:
        """The replies to calls that are computed together; one that fails together is tried again alone."""
        joined = group[0].observation
        if len(group) > 1:
            joined = {key: np.concatenate([call.observation[key] for call in group]) for key in joined}
        started = time.perf_counter()
        try:
            actions, scores = self._compute(joined, group[0].num_samples, group[0].seed)
            seconds = time.perf_counter() - started
            ends = np.cumsum([call.size for call in group])[:-1]
            parts = np.split(actions, ends), [None] * len(group) if scores is None else np.split(scores, ends)
            replies = []
            for call, action, score in zip(group, *parts, strict=True):
                fields = {"actions": action, "scores": score, "seconds": seconds, "name": self.name}
                replies.append(protocol.encode(Message(protocol.ACTIONS, call.request, fields)))
        except Exception as error:  # a policy may raise anything; the next call may still be answered
            if len(group) > 1:
                return [self._sample([call])[0] for call in group]
            if not isinstance(error, ValueError):
                log.exception("request %d failed", group[0].request)
            text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            return [self._refusal(group[0].request, "policy", text)]
        self.stats.num_samples += len(group)
        self.stats.num_batches += 1
        self.stats.seconds.append(seconds)
        return replies

    def _compute(self, observation: Mapping[str, Any], num_samples: int, seed: int | None) -> tuple[Array, Array | None]:
        """Chunks [B, N, H, A], checked, and scores [B]."""
        spec = self.policy.spec
        actions = np.asarray(self.policy.sample(dict(observation), num_samples=num_samples, seed=seed))
        expected = (num_samples, spec.action_horizon, spec.action_dim)
        if actions.ndim != 4 or actions.shape[1:] != expected:
            raise SpecError(f"the policy returned shape {list(actions.shape)}, its spec promises {['B', *expected]}")
        if not np.isfinite(actions).all():
            raise SpecError(f"the policy returned {np.count_nonzero(~np.isfinite(actions))} action entries that are not finite")
        if self.monitor is None or self._features is None:
            return actions, None
        return actions, self.monitor.score(self._features(dict(observation)))

    def _refusal(self, request: int, code: str, text: str) -> bytes:
        self.stats.num_errors += 1
        if self.stats.num_errors <= _LOGGED or self.stats.num_errors % 1000 == 0:  # a stranger is not to fill the disk
            log.warning("refused request %d (%s): %.500s (%d so far)", request, code, text, self.stats.num_errors)
        return protocol.encode(Message(protocol.ERROR, request, {"code": code, "message": text[:2000]}))
