"""Behaviour cloning by regression: observation -> one chunk. The simplest policy, and hard to beat on one-mode data."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor
from torch.nn import functional

from robopolicy.batch import Batch
from robopolicy.models.layers import residual_mlp
from robopolicy.models.trainable import Metrics
from robopolicy.policies.base import PolicyOptions
from robopolicy.policies.candidates import around
from robopolicy.policies.single_phase import SinglePhasePolicy
from robopolicy.spec import ACTION, ACTION_IS_PAD, Features, FeatureSpec


class BehaviourCloningPolicy(SinglePhasePolicy):
    """Encoder, residual MLP, Huber loss on the steps inside the episode.

    Sample 0 is the prediction; the others add smooth Gaussian noise, so that there is something to choose from.

    Args:
        observation, action, control_hz, options: see TrainablePolicy.
        width, depth: of the residual MLP.
        proposal_std: standard deviation of the noise, in normalised units (a dataset's actions span about [-1, 1]).
        learning_rate: peak of the only phase.
    """

    def __init__(
        self,
        observation: Features,
        action: FeatureSpec,
        control_hz: float,
        *,
        width: int = 256,
        depth: int = 2,
        proposal_std: float = 0.1,
        learning_rate: float = 1e-3,
        **options: Unpack[PolicyOptions],
    ) -> None:
        super().__init__(
            observation,
            action,
            control_hz,
            **options,
            learning_rate=learning_rate,
        )
        self.proposal_std = proposal_std
        self.head = residual_mlp(self.encoder.width, width, depth, self.spec.action_horizon * self.spec.action_dim)

    def loss(self, phase: str, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Huber loss in normalised units, and the mean absolute error per action entry in physical units."""
        self.check_phase(phase)
        predicted = self._predict(self.encoder(batch, generator))
        inside = (~batch[ACTION_IS_PAD]).unsqueeze(-1)
        target = self.normalizer.normalize(ACTION, batch[ACTION])
        errors = functional.smooth_l1_loss(predicted, target, reduction="none", beta=0.1) * inside
        loss = errors.mean()  # by all steps, those outside too: the parts of a batch then add up to the whole
        error = (self.normalizer.denormalize(ACTION, predicted.detach()) - batch[ACTION]).abs() * inside
        means = error.sum((0, 1)) / inside.sum().clamp(min=1)
        return loss, {f"error/{name}": mean for name, mean in zip(self.action_names, means, strict=True)}

    def propose(self, context_BD: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
        """Normalised chunks [B, N, H, A]."""
        return around(self._predict(context_BD), num_samples, self.proposal_std, generator)

    def _predict(self, context_BD: Tensor) -> Tensor:
        return self.head(context_BD).unflatten(-1, (self.spec.action_horizon, self.spec.action_dim))
