"""A policy of another process, or of another machine, as one of ours: what is played, steered and proven like a checkpoint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from robopolicy.deploy.client import RemotePolicy
from robopolicy.spec import Array, Observation, PolicySpec

SCHEMES = "tcp://", "ipc://"
GREETING_MS, ANSWER_MS = 10_000, 60_000  # no robot waits for these answers


def is_served(path: str | Path) -> bool:
    """Whether `path` is the address of a policy server: tcp://HOST:PORT or ipc:///PATH."""
    return str(path).startswith(SCHEMES)


class ServedPolicy:
    """The Policy that the server at `address` has (`robopolicy deploy`, or deploy.server.serve around anybody's policy).

    Attributes:
        name: what the server calls it. identity: hex digest of its name and spec, which is all that is known of it.

    Raises:
        deploy.client.PolicyTimeout: nobody answers at `address`.
        deploy.client.RemoteError: the server asks for another token than that in ROBOPOLICY_TOKEN.
        SpecError: what it says of its policy is no spec.
    """

    def __init__(self, address: str) -> None:
        self._remote = RemotePolicy(address, timeout_ms=GREETING_MS)
        self._remote.timeout_ms = ANSWER_MS
        self.name, self.spec = self._remote.name, PolicySpec.from_dict(self._remote.spec.to_dict())
        facts = json.dumps([self.name, self.spec.to_dict()], sort_keys=True)
        self.identity = hashlib.sha256(facts.encode()).hexdigest()

    def reset(self) -> None:
        """Forget the current episode."""
        self._remote.reset()

    def sample(self, observation: Observation, num_samples: int = 1, seed: int | None = None) -> Array:
        """Candidate chunks [B, N, H, A] (see spec.Policy). Raises as RemotePolicy.decide, with a name that changed included."""
        return self._remote.sample(observation, num_samples, seed)

    def close(self) -> None:
        """Close the socket."""
        self._remote.close()
