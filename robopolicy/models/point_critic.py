"""A critic on point clouds: the action is attached to the cloud's points before they are looked at. Suffixes: batch.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from robopolicy.batch import Batch, Phase
from robopolicy.models.cloud_encoder import CloudEncoder
from robopolicy.models.critic import CRITIC, discounted_outcome
from robopolicy.models.dense_points import Cloud
from robopolicy.models.layers import BatchedLinear
from robopolicy.models.trainable import Metrics, Trainable
from robopolicy.spec import (
    ACTION,
    EPISODE_LENGTH,
    OUTCOME,
    POINTS,
    STATE,
    STEP,
    SUCCESS,
    VALUE,
    Array,
    CriticSpec,
    Features,
    FeatureSpec,
    Observation,
    SpecError,
    check_observation,
    did_you_mean,
)

ATTACH = ("points", "latent", "both")


class PointCritic(Trainable):
    """Values of (cloud, action): a network over the points, then an ensemble of heads that share it.

    Reinforcement learning (train/learners.py) trains it by temporal differences; then a value is an expected return. Trained
    alone it regresses the discounted outcome of the episode, as SuccessCritic does.

    Args:
        observation, action, control_hz: see TrainablePolicy.
        attach: where the action enters. "points": it is a feature of every point ("dense Q"). "latent": it is appended to
            the features of the whole cloud, the baseline of the paper. "both": at both places.
        num_heads: E. hidden: widths of a head. layer_norm: whether it normalises them, which keeps values of actions that
            nobody has tried from growing (RLPD, arXiv 2302.02948).
        net, options, dense, center, extras, unit, noise: see CloudEncoder.
        execute_horizon: h, steps of a chunk that count. gamma: discount per step, when trained alone.
        learning_rate: peak when trained alone.
    """

    batch_keys = (SUCCESS,)
    role = VALUE

    def __init__(
        self,
        observation: Features,
        action: FeatureSpec,
        control_hz: float,
        *,
        observation_keys: Sequence[str] | None = None,
        attach: str = "points",
        num_heads: int = 2,
        hidden: Sequence[int] = (128, 128),
        layer_norm: bool = False,
        net: str = "balls",
        options: Mapping[str, Any] | None = None,
        dense: bool = True,
        center: Sequence[str] = ("ee_x", "ee_y", "ee_z"),
        extras: Sequence[str] = (),
        unit: float = 0.2,
        noise: dict[str, Any] | None = None,
        execute_horizon: int = 1,
        gamma: float = 0.99,
        learning_rate: float = 1e-3,
    ) -> None:
        if attach not in ATTACH:
            raise ValueError(f"attach={attach!r}; {did_you_mean(attach, ATTACH)}")
        if num_heads < 1:
            raise ValueError(f"num_heads={num_heads} must be at least 1")
        size = execute_horizon * action.shape[0]
        early, late = (size if attach in (where, "both") else 0 for where in ("points", "latent"))
        cloud: dict[str, Any] = {"net": net, "options": options, "dense": dense, "action_dim": early}
        encoder = partial(CloudEncoder, **cloud, center=center, extras=extras, unit=unit, noise=noise)
        super().__init__(observation, action, observation_keys or (STATE, POINTS), 1, encoder)  # type: ignore[arg-type]
        self.attach, self.num_heads, self.control_hz = attach, num_heads, control_hz
        self.execute_horizon, self.gamma, self.action = execute_horizon, gamma, action
        self.phases = (Phase(CRITIC, 1.0, learning_rate),)
        widths = [self.encoder.width + late, *hidden, 1]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [BatchedLinear(num_heads, before, after), *([nn.LayerNorm(after)] if layer_norm else []), nn.ReLU()]
        self.heads = nn.Sequential(*layers[: -2 if layer_norm else -1])

    @property
    def spec(self) -> CriticSpec:  # type: ignore[override]
        """What it eats, with the fingerprint of the statistics inside it now."""
        return CriticSpec(
            observation=self.observation,
            action=self.action,
            obs_horizon=1,
            execute_horizon=self.execute_horizon,
            num_heads=self.num_heads,
            control_hz=self.control_hz,
            normalizer_hash=self.normalizer.fingerprint(),
        )

    def phase_parameters(self, name: str) -> list[nn.Parameter]:
        """All parameters: there is one phase."""
        self.check_phase(name)
        return list(self.parameters())

    def cloud(self, batch: Mapping[str, Tensor], generator: torch.Generator | None = None) -> Cloud:
        """The clouds of a batch of observations; a generator spoils them as in training."""
        return self.encoder.cloud(dict(batch), generator, self.normalizer)  # type: ignore[operator]

    def values(self, cloud: Cloud, action_BHA: Tensor) -> Tensor:
        """Values [E, B] of normalised prefixes [B, h, A]."""
        flat = action_BHA.flatten(1)
        features = self.encoder.net(cloud, None if self.attach == "latent" else flat)  # type: ignore[operator]
        if self.attach != "points":
            features = torch.cat([features, flat], -1)
        return self.heads(features.expand(self.num_heads, -1, -1)).squeeze(-1)

    def loss(self, phase: str, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Squared error to the discounted outcome. The batch needs OUTCOME, STEP and EPISODE_LENGTH."""
        self.check_phase(phase)
        prefix = self.normalizer.normalize(ACTION, batch[ACTION][:, : self.execute_horizon])
        values = self.values(self.cloud(batch, generator), prefix)
        target = discounted_outcome(batch[OUTCOME], batch[EPISODE_LENGTH] - 1 - batch[STEP], self.gamma)
        loss = ((values - target) ** 2).mean()
        return loss, {"value": values.detach().mean(), "target": target.mean()}

    @torch.no_grad()
    def encode(self, observation: Observation) -> Cloud:
        """The clouds of a batched observation {key: [B, 1, ...]}, made once per decision.

        Raises:
            SpecError: the observation does not fit the spec.
        """
        check_observation(observation, self.spec)
        return self.cloud(self.encoder.tensors(observation, self.device))

    @torch.no_grad()
    def score(self, context: Cloud, actions: Array) -> Array:
        """Values float32 [E, B, N] of prefixes [B, N, h, A] in physical units.

        Raises:
            SpecError: the actions do not fit.
        """
        prefixes = self.chunks(actions, len(context.points), self.execute_horizon)
        if not prefixes.shape[1]:
            raise SpecError("no candidates to score: give at least one")
        num = prefixes.shape[1]
        return self.values(context.repeated(num), prefixes.flatten(0, 1)).unflatten(1, (-1, num)).cpu().numpy()
