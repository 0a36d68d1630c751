"""A critic that predicts success: the value of executing a chunk's prefix in an observation. Suffixes as in batch.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.batch import Batch, Phase
from robopolicy.models.encoders import ObservationEncoder
from robopolicy.models.layers import BatchedLinear
from robopolicy.models.trainable import Metrics, Trainable
from robopolicy.spec import (
    ACTION,
    EPISODE_LENGTH,
    OUTCOME,
    STEP,
    SUCCESS,
    Array,
    CriticSpec,
    Features,
    FeatureSpec,
    Observation,
)

CRITIC = "critic"


def discounted_outcome(outcome_B: Tensor, steps_left_B: Tensor, gamma: float) -> Tensor:
    """Monte-Carlo value [B] in [0, 1]: gamma to the steps left when the episode succeeds, else 0."""
    return outcome_B * gamma ** steps_left_B.to(outcome_B.dtype)


class SuccessCritic(Trainable):
    """An ensemble of heads that regress the discounted outcome of the episode from (observation, h executed actions).

    Monte-Carlo targets: they rank the actions of whoever collected the data, and need failures in it. Each head sees
    its own random part of each batch, so heads disagree where data is scarce.

    Args:
        observation, action, control_hz, observation_keys, obs_horizon, encoder: see TrainablePolicy.
        execute_horizon: h, steps of a chunk that count.
        num_heads: E.
        hidden: width of the heads.
        gamma: discount per step; below 1 it prefers faster successes.
        bootstrap: share of a batch that a head sees.
        learning_rate: peak of the only phase.
    """

    batch_keys = (SUCCESS,)

    def __init__(
        self,
        observation: Features,
        action: FeatureSpec,
        control_hz: float,
        *,
        observation_keys: Sequence[str] | None = None,
        obs_horizon: int = 1,
        execute_horizon: int = 8,
        encoder: Callable[..., ObservationEncoder] = ObservationEncoder,
        num_heads: int = 5,
        hidden: int = 128,
        gamma: float = 0.99,
        bootstrap: float = 0.8,
        learning_rate: float = 1e-3,
    ) -> None:
        super().__init__(observation, action, observation_keys, obs_horizon, encoder)
        if not 0 < gamma <= 1 or not 0 < bootstrap <= 1:
            raise ValueError(f"gamma={gamma} and bootstrap={bootstrap} must be in (0, 1]")
        self.control_hz, self.gamma, self.bootstrap = control_hz, gamma, bootstrap
        self.obs_horizon, self.execute_horizon, self.num_heads = obs_horizon, execute_horizon, num_heads
        self.action = action
        self.phases = (Phase(CRITIC, 1.0, learning_rate),)
        self.from_context = BatchedLinear(num_heads, self.encoder.width, hidden)
        self.from_actions = BatchedLinear(num_heads, execute_horizon * action.shape[0], hidden)
        self.norm = nn.LayerNorm(hidden)
        self.inner = BatchedLinear(num_heads, hidden, hidden)
        self.outer = BatchedLinear(num_heads, hidden, 1)

    @property
    def spec(self) -> CriticSpec:  # type: ignore[override]
        """What it eats, with the fingerprint of the statistics inside it now."""
        return CriticSpec(
            observation=self.observation,
            action=self.action,
            obs_horizon=self.obs_horizon,
            execute_horizon=self.execute_horizon,
            num_heads=self.num_heads,
            control_hz=self.control_hz,
            normalizer_hash=self.normalizer.fingerprint(),
        )

    def phase_parameters(self, name: str) -> list[nn.Parameter]:
        """All parameters: there is one phase."""
        self.check_phase(name)
        return list(self.parameters())

    def logits(self, context_BD: Tensor, actions_BNHA: Tensor) -> Tensor:
        """Logits [E, B, N] of normalised prefixes [B, N, h, A]; the context's share is computed once for all N."""
        batch, num = actions_BNHA.shape[:2]
        heads = self.num_heads
        context = self.from_context(context_BD.expand(heads, -1, -1)).unsqueeze(2)  # [E, B, 1, hidden]
        actions = self.from_actions(actions_BNHA.flatten(0, 1).flatten(1).expand(heads, -1, -1))
        x = functional.silu(self.norm(context + actions.unflatten(1, (batch, num)))).flatten(1, 2)
        x = self.outer(functional.silu(self.inner(x)))
        return x.view(heads, batch, num)

    def loss(self, phase: str, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Binary cross-entropy to the discounted outcome. The batch needs OUTCOME, STEP and EPISODE_LENGTH."""
        self.check_phase(phase)
        context = self.encoder(batch, generator)
        prefix = self.normalizer.normalize(ACTION, batch[ACTION][:, None, : self.execute_horizon])
        logits = self.logits(context, prefix).squeeze(-1)  # [E, B]
        target = discounted_outcome(batch[OUTCOME], batch[EPISODE_LENGTH] - 1 - batch[STEP], self.gamma)
        seen = (torch.rand(logits.shape, generator=generator, device=logits.device) < self.bootstrap).to(logits.dtype)
        errors = functional.binary_cross_entropy_with_logits(logits, target.expand_as(logits), reduction="none")
        loss = (errors * seen).sum() / seen.sum().clamp(min=1)
        values = logits.detach().sigmoid()
        metrics: Metrics = {
            "value": values.mean(),
            "target": target.mean(),
            "absolute_error": (values.mean(0) - target).abs().mean(),
            "disagreement": values.std(0).mean() if len(values) > 1 else 0.0,
        }
        return loss, metrics

    @torch.no_grad()
    def encode(self, observation: Observation) -> Tensor:
        """Context [B, D] of a batched observation {key: [B, T, ...]}, computed once per decision.

        Raises:
            SpecError: the observation does not fit the spec.
        """
        return self.context(observation)

    @torch.no_grad()
    def score(self, context: Tensor, actions: Array) -> Array:
        """Predicted discounted success float32 [E, B, N] in (0, 1) of prefixes [B, N, h, A] in physical units.

        Raises:
            SpecError: the actions do not fit.
        """
        return self.logits(context, self.chunks(actions, len(context), self.execute_horizon)).sigmoid().cpu().numpy()
