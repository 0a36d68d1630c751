"""Who acts in an episode: the scripted expert and its flawed copies, and random actors. Policies: evaluation/rollout.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import gymnasium
import numpy as np

from robopolicy.spec import Array, did_you_mean


class Actor(Protocol):
    """Something that acts in an environment."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What is worth recording about the actor of this episode, JSON values."""

    @property
    def wants_observation(self) -> bool:
        """Whether act() will look at the next observation."""

    def reset(self, seed: int) -> None:
        """A new episode, with the seed of all the actor's randomness."""

    def act(self, env: gymnasium.Env, observation: dict[str, Array] | None) -> Array:
        """Action float32 [A]; the observation is None at steps at which the actor did not want one."""


def make_expert(env: gymnasium.Env, rng: np.random.Generator | None = None) -> Callable[[gymnasium.Env], Array]:
    """The scripted expert of the environment's task, env -> action; with a generator, a flawed copy drawn from it."""
    return env.unwrapped.expert(rng)  # type: ignore[attr-defined]


class ExpertActor:
    """The scripted expert; imperfect=True draws another flawed copy of it for every episode."""

    wants_observation = False

    def __init__(self, imperfect: bool = False) -> None:
        self.imperfect = imperfect
        self.facts: Mapping[str, Any] = {}

    def reset(self, seed: int) -> None:
        """See Actor.reset."""
        self._rng = np.random.default_rng([seed, 1])  # apart from the streams of the environment
        self._expert: Callable[[gymnasium.Env], Array] | None = None

    def act(self, env: gymnasium.Env, observation: dict[str, Array] | None) -> Array:
        """See Actor.act."""
        if self._expert is None:
            self._expert = make_expert(env, self._rng if self.imperfect else None)
        return self._expert(env)


class NoisyExpertActor:
    """The expert with action noise of a magnitude drawn anew for every episode, so that quality spreads continuously.

    magnitude m in [0, 1] is uniform and recorded as "noise". A step is uniformly random with probability
    `max_epsilon` * m; to the other steps comes Gaussian noise of std `max_std` * m, in half ranges of the action space.
    """

    wants_observation = False

    def __init__(self, max_epsilon: float = 0.25, max_std: float = 0.3) -> None:
        self.max_epsilon, self.max_std = max_epsilon, max_std
        self.facts: Mapping[str, Any] = {}

    def reset(self, seed: int) -> None:
        """See Actor.reset."""
        self._rng = np.random.default_rng([seed, 2])
        self._magnitude = float(self._rng.uniform())
        self._expert = ExpertActor()
        self._expert.reset(seed)
        self.facts = {"noise": self._magnitude}

    def act(self, env: gymnasium.Env, observation: dict[str, Array] | None) -> Array:
        """See Actor.act."""
        middle, half = _ranges(env)
        random = self._rng.random() < self.max_epsilon * self._magnitude
        uniform, normal = self._rng.uniform(-1.0, 1.0, len(half)), self._rng.normal(size=len(half))
        if random:
            return (middle + half * uniform).astype(np.float32)
        return (self._expert.act(env, observation) + self.max_std * self._magnitude * half * normal).astype(np.float32)


class RandomActor:
    """Random actions: in every second episode or so independent and uniform, in the others smooth.

    Smooth: a Gaussian AR(1) process with a correlation time of 0.2 to 2 s (log-uniform), which travels where independent
    actions only tremble. The time is recorded as "correlation_s", 0 for independent actions.
    """

    wants_observation = False

    def __init__(self) -> None:
        self.facts: Mapping[str, Any] = {}

    def reset(self, seed: int) -> None:
        """See Actor.reset."""
        self._rng = np.random.default_rng([seed, 3])
        smooth, time = self._rng.random() < 0.5, np.exp(self._rng.uniform(np.log(0.2), np.log(2.0)))
        self._time = float(smooth * time)
        self._value: Array | None = None
        self.facts = {"correlation_s": self._time}

    def act(self, env: gymnasium.Env, observation: dict[str, Array] | None) -> Array:
        """See Actor.act."""
        middle, half = _ranges(env)
        if not self._time:
            return (middle + half * self._rng.uniform(-1.0, 1.0, len(half))).astype(np.float32)
        keep = np.exp(-env.unwrapped.period / self._time)  # type: ignore[attr-defined]
        fresh = self._rng.normal(size=len(half))
        self._value = fresh if self._value is None else keep * self._value + np.sqrt(1 - keep**2) * fresh
        return (middle + half * np.clip(0.6 * self._value, -1.0, 1.0)).astype(np.float32)


def _ranges(env: gymnasium.Env) -> tuple[Array, Array]:
    """Middle and half width [A] of the action space."""
    space = env.action_space
    assert isinstance(space, gymnasium.spaces.Box)
    return (space.high + space.low) / 2, (space.high - space.low) / 2


SCRIPTED: Mapping[str, Callable[[], Actor]] = {
    "expert": ExpertActor,
    "imperfect": partial(ExpertActor, imperfect=True),
    "noisy": NoisyExpertActor,
    "random": RandomActor,
}


def scripted_actor(behaviour: str) -> Actor:
    """The actor of a behaviour that needs no policy. Raises ValueError for another one."""
    if behaviour not in SCRIPTED:
        raise ValueError(f"no behaviour {behaviour!r}; {did_you_mean(behaviour, SCRIPTED)}")
    return SCRIPTED[behaviour]()
