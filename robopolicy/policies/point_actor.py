"""A Gaussian actor on point clouds: the action is what a dense network says at the gripper's point."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.batch import Batch, Phase
from robopolicy.models.cloud_encoder import CloudEncoder
from robopolicy.models.trainable import Metrics
from robopolicy.policies.base import TrainablePolicy
from robopolicy.spec import ACTION, ACTION_IS_PAD, POINTS, STATE, Array, Features, FeatureSpec, Observation

POLICY = "policy"
LOG_STD = (-5.0, 1.0)  # range of the logarithm of the Gaussian's standard deviation
EDGE = 0.999  # squashed actions are kept this far inside of -1 .. 1


class _Options(TypedDict, total=False):
    """Those of PolicyOptions that are handed on."""

    observation_keys: Sequence[str] | None
    obs_horizon: int
    action_horizon: int
    execute_horizon: int


class PointActor(TrainablePolicy):
    """A tanh-squashed Gaussian over normalised actions, from features at the gripper's point.

    Sample 0 is the squashed mean; the others are drawn. Trained alone it imitates: squared error of the squashed mean and
    likelihood of the spread. Reinforcement learning (train/learners.py) trains it through `distribution`.

    Args:
        observation, action, control_hz, options: see TrainablePolicy. observation_keys: default state and points.
        encoder: makes the CloudEncoder.
        hidden: widths of the layers after it.
        learning_rate: peak when trained alone.
    """

    def __init__(
        self,
        observation: Features,
        action: FeatureSpec,
        control_hz: float,
        *,
        encoder: Callable[..., Any] = CloudEncoder,
        hidden: Sequence[int] = (128, 128),
        learning_rate: float = 1e-3,
        **options: Unpack[_Options],
    ) -> None:
        defaults: dict[str, Any] = {"action_horizon": 1, "execute_horizon": 1, "observation_keys": (STATE, POINTS)}
        given = {key: value for key, value in options.items() if value is not None}
        super().__init__(
            observation, action, control_hz, capabilities=("features", "log_prob"), encoder=encoder, **{**defaults, **given}
        )
        self.phases = (Phase(POLICY, 1.0, learning_rate),)
        widths = [self.encoder.width, *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.head = nn.Sequential(*layers, nn.Linear(widths[-1], 2 * self.spec.action_horizon * self.spec.action_dim))

    def phase_parameters(self, name: str) -> list[nn.Parameter]:
        """All parameters: there is one phase."""
        self.check_phase(name)
        return list(self.parameters())

    def gaussian(self, context_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, both [B, H, A], before squashing."""
        both = self.head(context_BD).unflatten(-1, (2, self.spec.action_horizon, self.spec.action_dim))
        return both[:, 0], both[:, 1].clamp(*LOG_STD).exp()

    def distribution(self, batch: Batch, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """`gaussian` of a batch of observations; a generator spoils the clouds as in training."""
        return self.gaussian(self.encoder(batch, generator))

    def propose(self, context_BD: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
        """Normalised chunks [B, N, H, A]."""
        mean, std = (x.unsqueeze(1) for x in self.gaussian(context_BD))
        if num_samples == 1:  # a graph cannot draw nothing
            return torch.tanh(mean)
        shape = (len(mean), num_samples - 1, *mean.shape[2:])
        drawn = mean + std * torch.randn(shape, generator=generator, device=mean.device)
        return torch.tanh(torch.cat([mean, drawn], 1))

    def loss(self, phase: str, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Imitation of the batch's actions within the episode, and the mean absolute error per entry in physical units."""
        self.check_phase(phase)
        mean, std = self.distribution(batch, generator)
        target = self.normalizer.normalize(ACTION, batch[ACTION])
        inside = (~batch[ACTION_IS_PAD]).unsqueeze(-1)
        loss = (imitation(mean, std, target) * inside).sum() / (inside.sum() * self.spec.action_dim)
        error = (self.normalizer.denormalize(ACTION, torch.tanh(mean.detach())) - batch[ACTION]).abs() * inside
        means = error.sum((0, 1)) / inside.sum()
        return loss, {f"error/{name}": value for name, value in zip(self.action_names, means, strict=True)}

    def log_prob(self, observation: Observation, actions: Array) -> Array:
        """Log density float32 [B, N] of chunks [B, N, H, A] in physical units, of normalised units."""

        def of(context: Tensor, chunks: Tensor) -> Tensor:
            mean, std = self.gaussian(context)
            return squashed_log_prob(mean, std, unsquashed(chunks)).sum((1, 2))

        return self._of_chunks(observation, actions, of)


def unsquashed(action: Tensor) -> Tensor:
    """The inverse of tanh, of values kept inside EDGE."""
    return torch.atanh(action.clamp(-EDGE, EDGE))


def squashed_log_prob(mean: Tensor, std: Tensor, before: Tensor) -> Tensor:
    """Log density of tanh(before), entry by entry, of a Gaussian that is squashed (Haarnoja et al. 2018, appendix C)."""
    normal = -0.5 * ((before - mean) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)
    return normal - 2 * (math.log(2) - before - functional.softplus(-2 * before))


def imitation(mean: Tensor, std: Tensor, target: Tensor) -> Tensor:
    """Loss per entry: squared error of the squashed mean, and a tenth of the negative log-likelihood of the spread alone.

    The likelihood trains no mean: near the ends of the range, where scripted actions lie, it would ask for ever larger ones.
    """
    return (torch.tanh(mean) - target.clamp(-EDGE, EDGE)) ** 2 + spread_loss(mean, std, target)


def spread_loss(mean: Tensor, std: Tensor, target: Tensor) -> Tensor:
    """A tenth of the negative log-likelihood per entry, which trains the spread around the mean and not the mean."""
    return -0.1 * squashed_log_prob(mean.detach(), std, unsquashed(target))
