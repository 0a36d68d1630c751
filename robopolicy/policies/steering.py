"""Value-guided steering: draw candidate chunks from a policy, execute the one a critic prefers (V-GPS, arXiv 2410.13816).

Unlike the paper it scores the whole executed prefix, encodes the observation once for all candidates, discounts values
that the critic's heads disagree on, and leaves candidate 0 only when the heads agree that another one is better.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from robopolicy.spec import TASK, Array, Critic, Features, Observation, Policy, PolicySpec, SpecError

logger = logging.getLogger(__name__)

RULES = ("lcb", "argmax", "softmax")


@dataclass(frozen=True)
class Selection:
    """How a candidate is chosen from scores of E heads.

    rule: "lcb" takes the largest mean - lcb * standard deviation over heads, "argmax" the largest mean; both keep
        candidate 0 unless the gain over it, averaged over heads, exceeds `margin` standard deviations of that gain
        and `min_gain`, in the critic's units. Heads that share an encoder and data agree on their common errors, which
        `margin` cannot see: set `min_gain` to about the critic's error.
        "softmax" draws a candidate by its mean, standardised over candidates and divided by `temperature`.
    """

    rule: str = "lcb"
    lcb: float = 1.0
    margin: float = 1.0
    min_gain: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"rule={self.rule!r} must be one of {', '.join(RULES)}")
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be positive")
        for name in ("lcb", "margin", "min_gain"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")


def select(scores_EBN: Array, selection: Selection, rng: np.random.Generator) -> Array:
    """Index [B] of the chosen candidate, int64. Equal scores leave candidate 0 ("lcb", "argmax") or draw uniformly."""
    mean = scores_EBN.mean(0)
    if selection.rule == "softmax":
        spread = mean.std(1, keepdims=True)
        logits = (mean - mean.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1.0) / selection.temperature
        return (logits + rng.gumbel(size=logits.shape)).argmax(1)
    pessimism = selection.lcb if selection.rule == "lcb" else 0.0
    best = (mean - pessimism * scores_EBN.std(0)).argmax(1)
    gain = np.take_along_axis(scores_EBN, best[None, :, None], 2)[..., 0] - scores_EBN[..., 0]  # [E, B]
    return np.where(gain.mean(0) > np.maximum(selection.margin * gain.std(0), selection.min_gain), best, 0)


@dataclass(frozen=True)
class Decision:
    """What steering did: candidates [B, N, H, A], their scores [E, B, N] and the chosen index [B] (0 = left alone)."""

    candidates: Array
    scores: Array
    index: Array


class SteeredPolicy:
    """A Policy that executes the candidate which `critic` prefers among `num_samples` of `policy`.

    Its observation holds the keys of both, with the longer of the two histories.

    Raises:
        SpecError: the critic's actions, prefix or observations do not fit the policy.
    """

    def __init__(
        self,
        policy: Policy,
        critic: Critic,
        *,
        num_samples: int = 16,
        rule: str = "lcb",
        lcb: float = 1.0,
        margin: float = 1.0,
        min_gain: float = 0.0,
        temperature: float = 1.0,
    ) -> None:
        if num_samples < 1:
            raise SpecError(f"num_samples={num_samples} must be at least 1")
        check_fit(policy, critic)
        self.policy, self.critic, self.num_samples = policy, critic, num_samples
        self.selection = Selection(rule, lcb, margin, min_gain, temperature)
        self.spec: PolicySpec = replace(
            policy.spec,
            observation={**critic.spec.observation, **policy.spec.observation},
            obs_horizon=max(policy.spec.obs_horizon, critic.spec.obs_horizon),
            capabilities=(),
        )

    def reset(self) -> None:
        """Forget the current episode."""
        self.policy.reset()

    def decide(self, observation: Observation, seed: int | None = None, num_samples: int | None = None) -> Decision:
        """Candidates (`num_samples` of them, or the default number), their scores and the choice."""
        policy, critic = self.policy.spec, self.critic.spec
        num = self.num_samples if num_samples is None else num_samples
        candidates = self.policy.sample(last_frames(observation, policy.observation, policy.obs_horizon), num, seed)
        context = self.critic.encode(last_frames(observation, critic.observation, critic.obs_horizon))
        scores = self.critic.score(context, candidates[:, :, : critic.execute_horizon])
        return Decision(candidates, scores, select(scores, self.selection, np.random.default_rng(seed)))

    def sample(self, observation: Observation, num_samples: int = 1, seed: int | None = None) -> Array:
        """Chunks [B, N, H, A] (see spec.Policy): the chosen candidate first, then the others in their order."""
        if num_samples < 1:
            raise SpecError(f"num_samples={num_samples} must be at least 1")
        decision = self.decide(observation, seed, max(num_samples, self.num_samples))
        order = np.argsort(np.arange(decision.scores.shape[2])[None] != decision.index[:, None], axis=1, kind="stable")
        return np.take_along_axis(decision.candidates, order[:, :num_samples, None, None], axis=1)


def last_frames(observation: Observation, features: Features, obs_horizon: int) -> Observation:
    """The keys of `features` that are there, each cut to its last `obs_horizon` frames; a TASK without them stays as it is."""
    arrays = {key: np.asarray(observation[key]) for key in features if key in observation}
    return {key: array if key == TASK and array.ndim == 1 else array[:, -obs_horizon:] for key, array in arrays.items()}


def check_fit(policy: Policy, critic: Critic) -> None:
    """Raises SpecError unless the critic can score the policy's chunks from observations that both understand."""
    ours, theirs = policy.spec, critic.spec
    for field in ("shape", "unit", "frame", "names"):
        mine, its = getattr(ours.action, field), getattr(theirs.action, field)
        if mine != its:
            raise SpecError(
                f"the policy's actions have {field} {mine}, the critic scores {field} {its}: train both on the same data"
            )
    if theirs.control_hz != ours.control_hz:
        raise SpecError(f"the policy's steps are at {ours.control_hz} Hz, the critic scores steps at {theirs.control_hz} Hz")
    if theirs.execute_horizon > ours.action_horizon:
        raise SpecError(f"the critic scores {theirs.execute_horizon} steps, the policy's chunks have {ours.action_horizon}")
    if theirs.execute_horizon != ours.execute_horizon:
        logger.warning(
            "the critic was trained on %d executed steps, the policy executes %d", theirs.execute_horizon, ours.execute_horizon
        )
    for key in ours.observation.keys() & theirs.observation.keys():
        if replace(ours.observation[key], values=()) != replace(theirs.observation[key], values=()):
            raise SpecError(f"{key!r} is {ours.observation[key]} for the policy and {theirs.observation[key]} for the critic")
