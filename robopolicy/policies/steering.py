"""Value-guided steering: draw candidate chunks from a policy, execute the one a critic prefers (V-GPS, arXiv 2410.13816).

Unlike the paper it scores the whole executed prefix, encodes the observation once for all candidates, discounts values
that the critic's heads disagree on, and leaves candidate 0 only when the heads agree that another one is better. The chunk
that was scored is the chunk that is returned.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from robopolicy.policies.fit import check_fit, check_observations, check_role, policy_spec
from robopolicy.policies.selection import Selection, select
from robopolicy.spec import RISK, TASK, VALUE, Array, Critic, Features, Observation, Policy, PolicySpec, SpecError, did_you_mean

logger = logging.getLogger(__name__)

BLOCK = 8  # candidates drawn and scored at a time, where a budget may end in between
SLACK = 1.25  # a block may take so much longer than the one before


@runtime_checkable
class Supported(Protocol):
    """A critic that says how far chunks are from its data."""

    def distance(self, context: Any, actions: Array) -> Array:
        """Distance [B, N] of actions [B, N, h, A]; up to 1 is usual within the data."""


@dataclass(frozen=True)
class Decision:
    """What steering did: candidates [B, N, H, A], their scores [E, B, N] and the chosen index [B] (0 = left alone).

    scores: penalties for what lies outside the data included; scores and allowed are those of drawn candidates alone.
    allowed: bool [B, N], False where the safety critic vetoes. seconds: from the question to the choice.
    """

    candidates: Array
    scores: Array
    index: Array
    allowed: Array
    seconds: float


class SteeredPolicy:
    """A Policy that executes the candidate which `critic` prefers among `num_samples` of `policy`.

    Its observation holds the keys of all, with the longest of the histories. `policy` needs nothing but `sample`, so it may
    be at the other end of a socket. Candidates of one that computes its chunk are all alike: wrap it in Perturbed.

    Args:
        policy, critic: what is steered by what.
        num_samples: candidates of a decision.
        safety: a critic of risk in [0, 1]; candidates above `veto` are not chosen. Where all are, the least risky is.
        support: penalty, in the critic's units, per unit of distance from its data beyond what is usual there; 0 = none.
        budget_ms: time for a decision. Candidates come in blocks of 8, and no further block is begun that would end late, to
            judge by the last. Without time for one block candidate 0 is executed unscored, but where there is a safety
            critic: a veto is worth being late for. None = all candidates at once.
        watch: called with every Decision.
        clock: seconds, for `budget_ms`.
        rule and further options: see Selection.

    Raises:
        SpecError: a critic whose actions, prefix, statistics or observations do not fit the policy, one of risk for one of
            value, or the other way round.
        ValueError: options out of range, or a support penalty by a critic that remembers no data.
    """

    def __init__(
        self,
        policy: Policy,
        critic: Critic,
        *,
        num_samples: int = 16,
        safety: Critic | None = None,
        veto: float = 0.5,
        support: float = 0.0,
        budget_ms: float | None = None,
        watch: Callable[[Decision], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
        **options: Any,
    ) -> None:
        if num_samples < 1:
            raise SpecError(f"num_samples={num_samples} must be at least 1")
        if not 0 < veto <= 1 or support < 0 or (budget_ms is not None and budget_ms <= 0):
            raise ValueError(f"veto={veto} must be in (0, 1], support={support} at least 0, budget_ms={budget_ms} positive")
        if support and not (isinstance(critic, Supported) and getattr(critic, "remembers", True)):
            raise ValueError(
                f"support={support}: this {type(critic).__name__} does not say how far chunks are from its data; train it with "
                "critic.support_size=N"
            )
        known = [field.name for field in fields(Selection)]
        for name in options:
            if name not in known:
                raise ValueError(f"steering has no option {name!r}; {did_you_mean(name, known)}")
        self.selection = Selection(**options)
        self.policy, self.critic, self.safety, self.num_samples = policy, critic, safety, num_samples
        self.veto, self.support, self.budget_ms = veto, support, budget_ms
        self._watch, self._clock = watch, clock
        self._first_block = 0.0  # seconds that the last one took
        self._told_late = False
        self._asked = policy_spec(policy)
        critics = [critic] if safety is None else [critic, safety]
        for each, role in zip(critics, (VALUE, RISK), strict=False):
            check_role(each, role)
            check_fit(policy, each)
        observation: Features = {}
        if safety is not None:
            check_observations(critic.spec.observation, safety.spec.observation, "critic", "safety critic")
        for features in (*(c.spec.observation for c in critics), self._asked.observation):
            observation |= features
        obs_horizon = max(self._asked.obs_horizon, *(c.spec.obs_horizon for c in critics))
        self.spec: PolicySpec = replace(self._asked, observation=observation, obs_horizon=obs_horizon, capabilities=())

    def reset(self) -> None:
        """Forget the current episode."""
        self.policy.reset()

    def decide(self, observation: Observation, seed: int | None = None, num_samples: int = 1) -> Decision:
        """Candidates (at least `num_samples`, more as far as the settings and the budget allow), their scores and the choice.

        Raises:
            SpecError: a critic's values are not finite.
        """
        started = self._clock()
        candidates, scores, risk = self._scored(observation, num_samples, seed, started)
        allowed = np.ones(scores.shape[1:], bool)
        if risk is not None:
            allowed = risk <= np.maximum(self.veto, risk.min(1, keepdims=True))
        prefixes = candidates[:, :, : self._asked.execute_horizon]
        index = select(scores, self.selection, np.random.default_rng(seed), allowed, prefixes)
        decision = Decision(candidates, scores, index, allowed, self._clock() - started)
        if self._watch is not None:
            self._watch(decision)
        return decision

    def _scored(
        self, observation: Observation, least: int, seed: int | None, started: float
    ) -> tuple[Array, Array, Array | None]:
        """Candidates, their scores and risks, as many as the budget allows."""
        num = max(least, self.num_samples)
        asked = last_frames(observation, self._asked.observation, self._asked.obs_horizon)
        if self.budget_ms is None:
            candidates = self.policy.sample(asked, num, seed)
            return candidates, *self._judge(self._contexts(observation), candidates)
        budget = self.budget_ms / 1000
        if self._first_block * SLACK > budget and self.safety is None:
            self._first_block *= 0.9  # so that it tries again some time
            candidates = self.policy.sample(asked, least, seed)
            logger.debug("no time to steer: a block takes %.1f ms", 1000 * self._first_block)
            return candidates, np.zeros((1, *candidates.shape[:2]), np.float32), None
        blocks: list[tuple[Array, Array, Array | None]] = []
        contexts: list[Any] | None = None
        last = 0.0
        while (drawn := sum(block[0].shape[1] for block in blocks)) < num:
            began = self._clock()
            if drawn >= least and began - started + last * SLACK > budget:
                break
            first, count = not blocks, min(BLOCK, num - drawn)
            own = seed if first or seed is None else int(np.random.SeedSequence([seed, drawn]).generate_state(1)[0])
            # candidate 0 of a later block is the policy's best guess once more
            candidates = self.policy.sample(asked, count + (not first), own)[:, (0 if first else 1) :]
            contexts = self._contexts(observation) if contexts is None else contexts
            blocks.append((candidates, *self._judge(contexts, candidates)))
            last = self._clock() - began
            if first:
                self._first_block = last
                self._warn_late(last, budget)
        risks = [risk for *_, risk in blocks if risk is not None]
        joined = np.concatenate([block[0] for block in blocks], 1), np.concatenate([block[1] for block in blocks], 2)
        return *joined, np.concatenate(risks, 1) if risks else None

    def _warn_late(self, block: float, budget: float) -> None:
        if self.safety is not None and block > budget and not self._told_late:
            self._told_late = True
            logger.warning(
                "budget_ms=%g is less than judging %d candidates takes (%.1f ms): decisions are late, since a veto needs that",
                1000 * budget,
                BLOCK,
                1000 * block,
            )

    def _contexts(self, observation: Observation) -> list[Any]:
        critics = [self.critic] if self.safety is None else [self.critic, self.safety]
        return [c.encode(last_frames(observation, c.spec.observation, c.spec.obs_horizon)) for c in critics]

    def _judge(self, contexts: list[Any], candidates: Array) -> tuple[Array, Array | None]:
        """Scores [E, B, N], less the penalty, and risks [B, N]."""
        prefix = candidates[:, :, : self.critic.spec.execute_horizon]
        scores = _finite(self.critic.score(contexts[0], prefix), self.critic)
        if self.support and isinstance(self.critic, Supported):
            scores = scores - self.support * np.maximum(self.critic.distance(contexts[0], prefix) - 1, 0)
        if self.safety is None:
            return scores, None
        risk = self.safety.score(contexts[1], candidates[:, :, : self.safety.spec.execute_horizon])
        return scores, _finite(risk, self.safety).mean(0)

    def sample(self, observation: Observation, num_samples: int = 1, seed: int | None = None) -> Array:
        """Chunks [B, N, H, A] (see spec.Policy): the chosen candidate first, then the others in their order.

        Raises:
            SpecError: see spec.Policy and decide.
        """
        if num_samples < 1:
            raise SpecError(f"num_samples={num_samples} must be at least 1")
        decision = self.decide(observation, seed, num_samples)
        order = np.argsort(np.arange(decision.candidates.shape[1])[None] != decision.index[:, None], axis=1, kind="stable")
        return np.take_along_axis(decision.candidates, order[:, :num_samples, None, None], axis=1)


def _finite(values: Array, critic: Critic) -> Array:
    if not np.isfinite(values).all():
        raise SpecError(f"{type(critic).__name__} gave values that are not finite: it cannot choose")
    return values


def last_frames(observation: Observation, features: Features, obs_horizon: int) -> Observation:
    """The keys of `features` that are there, each cut to its last `obs_horizon` frames; a TASK without them stays as it is."""
    arrays = {key: np.asarray(observation[key]) for key in features if key in observation}
    return {key: array if key == TASK and array.ndim == 1 else array[:, -obs_horizon:] for key, array in arrays.items()}
