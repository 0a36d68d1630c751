"""Base of the policies that this package trains: numpy in, numpy out, physical units outside, normalised inside."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TypedDict

import torch
from torch import Tensor

from robopolicy.models.encoders import ObservationEncoder
from robopolicy.models.trainable import Trainable
from robopolicy.spec import ACTION, Array, Features, FeatureSpec, Observation, PolicySpec, SpecError

MAX_ROWS = 4096  # chunks scored in one forward pass


class PolicyOptions(TypedDict, total=False):
    """Arguments that every policy takes and hands on; their meaning and defaults are those of TrainablePolicy."""

    observation_keys: Sequence[str] | None
    obs_horizon: int
    action_horizon: int
    execute_horizon: int
    encoder: Callable[..., ObservationEncoder]


class TrainablePolicy(Trainable):
    """A spec.Policy with weights. Subclasses say how a context becomes normalised chunks, and how they are trained.

    Args:
        observation: features of the dataset.
        action: spec of one action, [A].
        control_hz: rate of the steps of a chunk.
        capabilities: optional methods of spec.Policy that the subclass has.
        observation_keys: features it uses; None = all but the privileged state and depth images.
        obs_horizon: T, frames it looks at.
        action_horizon: H, steps of a chunk.
        execute_horizon: steps that are executed before the next decision.
        encoder: makes the ObservationEncoder; a functools.partial of it carries further arguments.
    """

    spec: PolicySpec

    def __init__(
        self,
        observation: Features,
        action: FeatureSpec,
        control_hz: float,
        *,
        capabilities: tuple[str, ...],
        observation_keys: Sequence[str] | None = None,
        obs_horizon: int = 1,
        action_horizon: int = 16,
        execute_horizon: int = 8,
        encoder: Callable[..., ObservationEncoder] = ObservationEncoder,
    ) -> None:
        super().__init__(observation, action, observation_keys, obs_horizon, encoder)
        self.spec = PolicySpec(
            observation=self.observation,
            action=action,
            obs_horizon=obs_horizon,
            action_horizon=action_horizon,
            execute_horizon=execute_horizon,
            control_hz=control_hz,
            capabilities=capabilities,
        )

    @property
    def action_names(self) -> tuple[str, ...]:
        """A name per action entry, numbers where the spec has none."""
        return self.spec.action.names or tuple(map(str, range(self.spec.action_dim)))

    def reset(self) -> None:
        """Nothing to forget: it is stateless."""

    @abstractmethod
    def propose(self, context_BD: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
        """Normalised chunks [B, N, H, A]. Sample 0 is the same for any num_samples, given the generator's state."""

    @torch.no_grad()
    def sample(self, observation: Observation, num_samples: int = 1, seed: int | None = None) -> Array:
        """Chunks float32 [B, N, H, A] in physical units (see spec.Policy). Equal seeds give equal chunks; None draws one."""
        if num_samples != int(num_samples) or num_samples < 1:
            raise SpecError(f"num_samples={num_samples} must be a whole number of at least 1")
        context = self.context(observation)
        generator = torch.Generator(self.device)
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        chunks = self.normalizer.denormalize(ACTION, self.propose(context, num_samples, generator))
        return chunks.float().cpu().numpy()

    @torch.no_grad()
    def _of_chunks(self, observation: Observation, actions: Array, log_prob: Callable[[Tensor, Tensor], Tensor]) -> Array:
        """Of chunks float32 [B, N, H, A] in physical units: `log_prob(context [R, D], normalised chunks [R, H, A])` -> [R],
        some rows at a time, as float32 [B, N].

        Raises:
            SpecError: the observation or the actions do not fit the spec.
        """
        context = self.context(observation)
        chunks = self.chunks(actions, len(context), self.spec.action_horizon)
        repeated = context.repeat_interleave(chunks.shape[1], 0)
        parts = zip(repeated.split(MAX_ROWS), chunks.flatten(0, 1).split(MAX_ROWS), strict=True)
        return torch.cat([log_prob(*part) for part in parts]).view(chunks.shape[:2]).cpu().numpy()

    @torch.no_grad()
    def features(self, observation: Observation) -> Array:
        """The encoder's context float32 [B, D] of a batched observation."""
        return self.context(observation).float().cpu().numpy()

    @torch.no_grad()
    def sensed(self, observation: Observation) -> Array:
        """What the encoder makes of pictures, depth and clouds alone, float32 [B, n D] (ObservationEncoder.sensed).

        Raises:
            SpecError: the policy reads none of them, or has an encoder of another kind.
        """
        if not isinstance(self.encoder, ObservationEncoder):
            raise SpecError(f"{type(self.encoder).__name__} encodes the cloud and the robot's state together")
        return self.encoder.sensed(self.checked(observation)).float().cpu().numpy()
