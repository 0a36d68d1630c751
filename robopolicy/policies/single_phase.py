"""Base of the policies that train everything they have in one phase."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn

from robopolicy.batch import Batch, Phase
from robopolicy.models.trainable import Metrics
from robopolicy.policies.base import PolicyOptions, TrainablePolicy
from robopolicy.spec import ACTION, Features, FeatureSpec

POLICY = "policy"


class SinglePhasePolicy(TrainablePolicy):
    """A TrainablePolicy with one phase, "policy".

    Losses of all subclasses but BehaviourCloningPolicy count steps past the end of an episode as they are (the last
    action, held), as CarpPolicy's tokens do: a chunk is one thing, and holding still at the end is a part of the demonstration.

    Args:
        observation, action, control_hz, capabilities, options: see TrainablePolicy.
        learning_rate: peak of the phase.
    """

    def __init__(
        self,
        observation: Features,
        action: FeatureSpec,
        control_hz: float,
        *,
        learning_rate: float,
        capabilities: tuple[str, ...] = ("features",),
        **options: Unpack[PolicyOptions],
    ) -> None:
        super().__init__(
            observation,
            action,
            control_hz,
            capabilities=capabilities,
            **options,
        )
        self.phases = (Phase(POLICY, 1.0, learning_rate),)

    def phase_parameters(self, name: str) -> list[nn.Parameter]:
        """All parameters: there is one phase."""
        self.check_phase(name)
        return list(self.parameters())

    def _inputs(self, phase: str, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Context [B, D] and normalised actions [B, H, A] of a batch of a phase that exists."""
        self.check_phase(phase)
        return self.encoder(batch, generator), self.normalizer.normalize(ACTION, batch[ACTION])

    @torch.no_grad()
    def _errors(self, predicted_BHA: Tensor, actions_BHA: Tensor) -> Metrics:
        """Mean absolute error per action entry in physical units, of normalised predictions and targets."""
        first, second = (self.normalizer.denormalize(ACTION, chunk) for chunk in (predicted_BHA, actions_BHA))
        means = (first - second).abs().mean((0, 1))
        return {f"error/{name}": mean for name, mean in zip(self.action_names, means, strict=True)}
