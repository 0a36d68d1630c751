"""What policies and critics share: an observation encoder with its normaliser, phases of training, the numpy border."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from robopolicy.batch import Batch, Phase
from robopolicy.data.transforms import Normalizer, Statistics
from robopolicy.models.encoders import ObservationEncoder, select_observation
from robopolicy.spec import (
    ACTION,
    Array,
    CriticSpec,
    Features,
    FeatureSpec,
    Observation,
    PolicySpec,
    SpecError,
    check_observation,
)

Metrics = dict[str, float | Tensor]


class Trainable(nn.Module, ABC):
    """A network with a spec that the training loop can train.

    Attributes:
        spec: what it eats (and returns).
        phases: stretches of its training, in order; their fractions add up to one.
        batch_keys: per-step dataset keys it needs in a batch besides observations and actions.
        extra_keys: per-step arrays from outside the dataset that it needs, see Windows.
        successor_horizon: steps after which it needs the observation again; 0 = it does not.
    """

    spec: PolicySpec | CriticSpec
    phases: tuple[Phase, ...]
    batch_keys: tuple[str, ...] = ()
    extra_keys: tuple[str, ...] = ()
    successor_horizon: int = 0

    def __init__(
        self,
        observation: Features,
        action: FeatureSpec,
        observation_keys: Sequence[str] | None,
        obs_horizon: int,
        encoder: Callable[..., ObservationEncoder],
    ) -> None:
        super().__init__()
        if len(action.shape) != 1:
            hint = "" if action.shape else ": write it as [T, 1]"
            raise SpecError(f"{ACTION!r} has shape {list(action.shape)} a step, expected one axis, [A]{hint}")
        if action.dtype != "float32":
            raise SpecError(f"{ACTION!r} is {action.dtype}, expected float32: write or import the dataset with float32 actions")
        self.observation = select_observation(observation, observation_keys)
        normalizer = Normalizer({**self.observation, ACTION: action})
        self.encoder = encoder(observation=self.observation, obs_horizon=obs_horizon, normalizer=normalizer)

    @property
    def normalizer(self) -> Normalizer:
        """Statistics of observations and actions. The encoder holds them; each tensor has one name in a checkpoint."""
        return self.encoder.normalizer

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def fit(self, stats: Statistics) -> None:
        """Set the normaliser from the statistics of a dataset (data.transforms.fit_statistics)."""
        self.normalizer.fit(stats)

    @abstractmethod
    def phase_parameters(self, name: str) -> list[nn.Parameter]:
        """Parameters that the phase `name` trains."""

    @abstractmethod
    def loss(self, phase: str, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Scalar loss of `phase` and metrics to log. generator: the only source of randomness."""

    def after_step(self) -> None:
        """What follows every optimiser step, such as moving target networks."""

    def review(self, phase: str, metrics: Mapping[str, float]) -> None:
        """Look at the last metrics of a finished phase, and warn of what is wrong."""

    def check_phase(self, name: str) -> None:
        """Raises ValueError for a phase that it does not have."""
        if name not in [phase.name for phase in self.phases]:
            raise ValueError(f"no phase {name!r}; available: {', '.join(phase.name for phase in self.phases)}")

    def chunks(self, actions: Array, batch: int, steps: int) -> Tensor:
        """Normalised actions [B, N, steps, A] of physical ones.

        Raises:
            SpecError: another shape or dtype, or not finite.
        """
        feature = self.normalizer.features[ACTION]
        array = feature.check(ACTION, actions, leading=3)
        if array.shape[0] != batch or array.shape[2] != steps:
            expected = f"[B={batch}, N, {steps}, {feature.shape[0]}]"
            raise SpecError(f"actions have shape {list(array.shape)}, expected {expected}")
        return self.normalizer.normalize(ACTION, torch.from_numpy(np.ascontiguousarray(array)).to(self.device))

    def context(self, observation: Mapping[str, object]) -> Tensor:
        """Context [B, D] of a checked numpy observation {key: [B, T, ...]}.

        Raises:
            SpecError: the observation does not fit the spec.
        """
        return self.encoder(self.checked(observation))

    def checked(self, observation: Mapping[str, object]) -> Batch:
        """What the encoder takes of a numpy observation {key: [B, T, ...]}.

        Raises:
            SpecError: the observation does not fit the spec.
        """
        check_observation(observation, self.spec)
        needed: Observation = {key: observation[key] for key in self.spec.observation}  # type: ignore[misc]
        return self.encoder.tensors(needed, self.device)
