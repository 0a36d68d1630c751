"""From single observations to single actions: history, chunk execution and one seed per decision."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from robopolicy.spec import ACTION, Array, Features, Observation, Policy, PolicySpec, SpecError, did_you_mean


class Exploring:
    """A Policy that executes any candidate of another one instead of its best guess: experience for critics.

    It draws evenly among `num_candidates`, which should be as many as steering will choose from.
    """

    def __init__(self, policy: Policy, num_candidates: int = 16) -> None:
        self.policy, self.spec, self.num_candidates = policy, policy.spec, num_candidates

    def reset(self) -> None:
        """Forget the current episode."""
        self.policy.reset()

    def sample(self, observation: Observation, num_samples: int = 1, seed: int | None = None) -> Array:
        """Chunks [B, N, H, A] (see spec.Policy): different candidates of the policy, in an order of chance."""
        if num_samples < 1:
            raise SpecError(f"num_samples={num_samples} must be at least 1")
        chunks = self.policy.sample(observation, max(num_samples, self.num_candidates), seed)
        rng = np.random.default_rng(None if seed is None else [seed, 1])
        order = rng.random(chunks.shape[:2]).argsort(1)[:, :num_samples]
        return np.take_along_axis(chunks, order[:, :, None, None], axis=1)


class Perturbed:
    """A Policy whose candidates differ more: some of them get smooth noise. For policies whose own draws are all alike.

    Candidate 0 stays the policy's own. The noise hardly changes over a chunk, so that it leads somewhere, and its size is drawn
    evenly up to `std` for each candidate: some try something else, some are near what the policy wants.

    Args:
        policy: any Policy, also one that computes its chunk.
        std: of the largest noise, as a share of `scale`.
        share: of the candidates that are perturbed; 1 draws nothing but candidate 0 from the policy.
        scale: of each action entry [A], physical units a step; None = the half range in the policy's training data.
        fixed: names of entries that get no noise; None = the gripper, if there is one: it has no small step between open
            and closed.
        delay: {name of an entry: steps}; a perturbed candidate does what it does with this entry up to so many steps later or
            earlier, drawn evenly: a gripper that closes too soon misses as surely as one in the wrong place.

    Raises:
        SpecError: no scale is known or one of another size, or an entry that an action does not have.
    """

    def __init__(
        self,
        policy: Policy,
        std: float = 0.1,
        share: float = 0.5,
        scale: Array | None = None,
        fixed: Sequence[str] | None = None,
        delay: Mapping[str, int] | None = None,
    ) -> None:
        if std < 0 or not 0 <= share <= 1:
            raise SpecError(f"std={std} must not be negative, and share={share} must be in [0, 1]")
        self.policy, self.spec, self.std, self.share = policy, policy.spec, std, share
        found = action_scale(policy) if scale is None else np.asarray(scale, np.float32)
        if found is None:
            raise SpecError(f"the range of the actions of {type(policy).__name__} is not known: give scale=[...]")
        if found.shape != policy.spec.action.shape:
            raise SpecError(f"scale has shape {list(found.shape)}, an action {list(policy.spec.action.shape)}")
        names, delay = policy.spec.action.names, dict(delay or {})
        for name in fixed or ():
            if name not in names:
                raise SpecError(f"fixed has {name!r}; {did_you_mean(name, names)}")
        for name, steps in delay.items():
            if name not in names:
                raise SpecError(f"delay has {name!r}; {did_you_mean(name, names)}")
            if steps != int(steps) or steps < 0:
                raise SpecError(f"delay.{name}={steps} must be a whole number of steps from 0: entries are moved both ways")
        held = ("gripper",) if fixed is None else fixed
        self._scale = np.where([name in held for name in names] or [False], 0.0, found * std)
        self._delay = np.array([int(delay.get(name, 0)) for name in names])

    def reset(self) -> None:
        """Forget the current episode."""
        self.policy.reset()

    def sample(self, observation: Observation, num_samples: int = 1, seed: int | None = None) -> Array:
        """Chunks [B, N, H, A] (see spec.Policy): the policy's own first, then perturbed ones of these in turn."""
        num_own = max(1, num_samples - round(self.share * num_samples))
        own = self.policy.sample(observation, num_own if num_samples > 0 else num_samples, seed)
        if num_samples == num_own:
            return own
        chosen = np.arange(num_samples - num_own) % num_own
        rng = np.random.default_rng(seed)
        noise = smooth_noise((len(own), len(chosen), *own.shape[2:]), own.shape[2], rng)
        noise *= rng.random((*noise.shape[:2], 1, 1))
        moved = own[:, chosen]
        if self._delay.any():
            moved = shifted(moved, rng.integers(-self._delay, self._delay + 1, (*noise.shape[:2], len(self._delay))))
        return np.concatenate([own, moved + (noise * self._scale).astype(np.float32)], 1)


def shifted(chunks: Array, steps: Array) -> Array:
    """Chunks [B, N, H, A] of which every entry happens steps [B, N, A] later (negative: earlier); the ends are held."""
    horizon = chunks.shape[2]
    source = np.clip(np.arange(horizon)[:, None] - steps[:, :, None, :], 0, horizon - 1)
    return np.take_along_axis(chunks, source, axis=2)


def action_scale(of: object) -> Array | None:
    """Half ranges [A] (physical units) of the actions that a policy or critic was trained on; None where it does not say."""
    normalizer = getattr(of, "normalizer", None)
    return None if normalizer is None else normalizer.scale(ACTION)


def smooth_noise(shape: tuple[int, int, int, int], steps: int, rng: np.random.Generator) -> Array:
    """Gaussian noise [B, N, H, A] of unit variance that changes over about `steps` steps of H (a moving average)."""
    batch, num, horizon, dim = shape
    white = rng.standard_normal((batch, num, horizon + steps - 1, dim))
    return np.lib.stride_tricks.sliding_window_view(white, steps, axis=2).sum(-1) / steps**0.5


class Watching:
    """A Policy that asks for further observations, which it does not look at: to have them recorded.

    features: {key: FeatureSpec} of all that the environment shows.
    """

    def __init__(self, policy: Policy, features: Features) -> None:
        self.policy = policy
        self.spec: PolicySpec = replace(policy.spec, observation={**features, **policy.spec.observation})

    def reset(self) -> None:
        """Forget the current episode."""
        self.policy.reset()

    def sample(self, observation: Observation, num_samples: int = 1, seed: int | None = None) -> Array:
        """Chunks [B, N, H, A] (see spec.Policy) of the policy."""
        needed = {key: observation[key] for key in self.policy.spec.observation if key in observation}
        return self.policy.sample(needed, num_samples, seed)


class ChunkExecutor:
    """Runs a policy step by step: keeps the last frames, asks for a chunk when the previous one is used up.

    Batch of one. At the start of an episode the first frame stands for those before it.

    Args:
        policy: any Policy.
        execute_horizon: steps of a chunk to execute; None = what its spec says.
        seed: of the first episode; each decision of an episode has a seed of its own. None = a fresh one every time.
    """

    def __init__(self, policy: Policy, execute_horizon: int | None = None, seed: int | None = None) -> None:
        horizon = policy.spec.execute_horizon if execute_horizon is None else execute_horizon
        if not 1 <= horizon <= policy.spec.action_horizon:
            raise SpecError(f"execute_horizon={horizon} must be in 1..action_horizon={policy.spec.action_horizon}")
        self.policy, self.execute_horizon = policy, horizon
        self._frames: deque[Observation] = deque(maxlen=policy.spec.obs_horizon)
        self._queue: deque[Array] = deque()
        self.reset(seed)

    def reset(self, seed: int | None = None) -> None:
        """Start an episode: forget frames and queued actions. `seed` makes its samples repeatable."""
        self._frames.clear()
        self._queue.clear()
        self._rng = None if seed is None else np.random.default_rng(seed)
        self.policy.reset()

    def fork(self, chunk: Array, policy: Policy | None = None, seed: int | None = None) -> ChunkExecutor:
        """Another executor at this point of the episode, with the steps of `chunk` [n, A] to execute next.

        policy: what decides afterwards; None = the same. seed: of its decisions; None = those that this one would make.
        """
        other = ChunkExecutor(self.policy if policy is None else policy, self.execute_horizon)
        other._frames.extend(self._frames)
        other._queue.extend(chunk)
        other._rng = copy.deepcopy(self._rng) if seed is None else np.random.default_rng(seed)
        return other

    def next(self) -> Array:
        """The next action float32 [A] of a chunk under way, without a look at anything. IndexError when it is used up."""
        return self._queue.popleft()

    def give(self, chunk: Array) -> None:
        """Queue the steps of a chunk [n, A] that was decided elsewhere."""
        self._queue.extend(chunk)

    def see(self, observation: Observation | None) -> bool:
        """Take in a frame where one is wanted (see `act`). Whether a decision comes next."""
        if self.wants_observation:
            self._push(observation)
        return not self._queue

    def question(self) -> tuple[Observation, int | None]:
        """What the policy is asked at the next decision: the batched observation [1, To, ...], and a seed, drawn now."""
        batched = {key: np.stack([frame[key] for frame in self._frames])[None] for key in self.policy.spec.observation}
        return batched, None if self._rng is None else int(self._rng.integers(2**31))

    @property
    def wants_observation(self) -> bool:
        """Whether the next call of `act` looks at its observation. When not, None will do: no need to render."""
        return not self._frames or len(self._queue) < self.policy.spec.obs_horizon

    def act(self, observation: Observation | None) -> Array:
        """The next action float32 [A] in physical units, for an observation {key: [...]} without batch and time axes.

        Raises:
            SpecError: the observation is needed and missing, or does not fit the policy's spec.
        """
        if self.see(observation):
            batched, seed = self.question()
            self.give(self.policy.sample(batched, 1, seed)[0, 0, : self.execute_horizon])
        return self.next()

    def _push(self, observation: Observation | None) -> None:
        features = self.policy.spec.observation
        given = {} if observation is None else observation
        for key in features:
            if key not in given:
                raise SpecError(f"observation lacks {key!r}; the policy needs {sorted(features)}, given: {sorted(given)}")
        frame = {key: feature.check(key, given[key]).copy() for key, feature in features.items()}
        self._frames.extend([frame] if self._frames else [frame] * self.policy.spec.obs_horizon)
