"""Behaviour cloning by regression: observation -> one chunk. The simplest policy, and hard to beat on one-mode data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.batch import Batch, Phase
from robopolicy.models.encoders import ObservationEncoder
from robopolicy.models.layers import ResidualBlock
from robopolicy.models.trainable import Metrics
from robopolicy.policies.base import TrainablePolicy
from robopolicy.spec import ACTION, ACTION_IS_PAD, Features, FeatureSpec

POLICY = "policy"


def smooth_noise(shape: tuple[int, int, int, int], steps: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Gaussian noise [B, N, H, A] of unit variance that changes over about `steps` steps of H (a moving average)."""
    batch, num, horizon, dim = shape
    white = torch.randn((batch, num, horizon + steps - 1, dim), generator=generator, device=device)
    return white.unfold(2, steps, 1).sum(-1) / steps**0.5


class BehaviourCloningPolicy(TrainablePolicy):
    """Encoder, residual MLP, Huber loss on the steps inside the episode.

    Sample 0 is the prediction; the others add smooth Gaussian noise, so that there is something to choose from.

    Args:
        observation, action, control_hz, observation_keys, obs_horizon, action_horizon, execute_horizon, encoder:
            see TrainablePolicy.
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
        observation_keys: Sequence[str] | None = None,
        obs_horizon: int = 1,
        action_horizon: int = 16,
        execute_horizon: int = 8,
        encoder: Callable[..., ObservationEncoder] = ObservationEncoder,
        width: int = 256,
        depth: int = 2,
        proposal_std: float = 0.1,
        learning_rate: float = 1e-3,
    ) -> None:
        super().__init__(
            observation,
            action,
            control_hz,
            observation_keys=observation_keys,
            obs_horizon=obs_horizon,
            action_horizon=action_horizon,
            execute_horizon=execute_horizon,
            encoder=encoder,
            capabilities=("features",),
        )
        self.proposal_std = proposal_std
        self.phases = (Phase(POLICY, 1.0, learning_rate),)
        blocks = [ResidualBlock(width) for _ in range(depth)]
        last = nn.Linear(width, action_horizon * self.spec.action_dim)
        self.head = nn.Sequential(nn.Linear(self.encoder.width, width), *blocks, nn.LayerNorm(width), last)

    def phase_parameters(self, name: str) -> list[nn.Parameter]:
        """All parameters: there is one phase."""
        self.check_phase(name)
        return list(self.parameters())

    def loss(self, phase: str, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Huber loss in normalised units, and the mean absolute error per action entry in physical units."""
        self.check_phase(phase)
        predicted = self._predict(self.encoder(batch, generator))
        inside = (~batch[ACTION_IS_PAD]).unsqueeze(-1)
        target = self.normalizer.normalize(ACTION, batch[ACTION])
        errors = functional.smooth_l1_loss(predicted, target, reduction="none", beta=0.1) * inside
        loss = errors.sum() / (inside.sum() * self.spec.action_dim)
        error = (self.normalizer.denormalize(ACTION, predicted.detach()) - batch[ACTION]).abs() * inside
        means = error.sum((0, 1)) / inside.sum()
        return loss, {f"error/{name}": mean for name, mean in zip(self.action_names, means, strict=True)}

    def propose(self, context_BD: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
        """Normalised chunks [B, N, H, A]."""
        chunks = self._predict(context_BD).unsqueeze(1)
        if num_samples == 1:
            return chunks
        horizon = self.spec.action_horizon
        shape = (len(context_BD), num_samples - 1, horizon, self.spec.action_dim)
        noise = smooth_noise(shape, max(horizon // 4, 1), generator, context_BD.device)
        return torch.cat([chunks, chunks + self.proposal_std * noise], 1)

    def _predict(self, context_BD: Tensor) -> Tensor:
        return self.head(context_BD).unflatten(-1, (self.spec.action_horizon, self.spec.action_dim))
