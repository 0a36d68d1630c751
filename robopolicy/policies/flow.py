"""Flow matching (rectified flow, arXiv 2209.03003): a chunk is carried from noise to data along a learned velocity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor
from torch.nn import functional

from robopolicy.batch import Batch
from robopolicy.models.chunk_transformer import TimedChunkTransformer
from robopolicy.models.trainable import Metrics
from robopolicy.policies.base import PolicyOptions
from robopolicy.policies.candidates import noise_source
from robopolicy.policies.single_phase import SinglePhasePolicy
from robopolicy.spec import Features, FeatureSpec


class FlowPolicy(SinglePhasePolicy):
    """Straight paths from noise (time 0) to data (time 1), Euler steps.

    Candidate 0 starts, like all others, from noise: it is a draw too, fixed by the seed.

    Args:
        observation, action, control_hz, options: see TrainablePolicy.
        transformer: makes the TimedChunkTransformer; a functools.partial of it carries further arguments.
        num_inference_steps: Euler steps per chunk; not a matter of the weights.
        learning_rate: peak of the only phase.
    """

    def __init__(
        self,
        observation: Features,
        action: FeatureSpec,
        control_hz: float,
        *,
        transformer: Callable[..., TimedChunkTransformer] = TimedChunkTransformer,
        num_inference_steps: int = 4,
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
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps={num_inference_steps} must be at least 1")
        self.num_inference_steps = num_inference_steps
        self.transformer = transformer(
            context_width=self.encoder.width, action_horizon=self.spec.action_horizon, action_dim=self.spec.action_dim
        )

    def loss(self, phase: str, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Squared error of the velocity at a uniformly random time."""
        context, actions = self._inputs(phase, batch, generator)
        noise = torch.randn(actions.shape, generator=generator, device=actions.device)
        time = torch.rand(len(actions), generator=generator, device=actions.device)
        predicted = self.transformer.at(torch.lerp(noise, actions, time.view(-1, 1, 1)), context, time)
        return functional.mse_loss(predicted, actions - noise), {}

    def propose(self, context_BD: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
        """Normalised chunks [B, N, H, A]."""
        shape = (len(context_BD), num_samples, self.spec.action_horizon, self.spec.action_dim)
        chunks = noise_source(shape, generator, context_BD.device)()
        steps = self.num_inference_steps
        for modulations in self.transformer.passes(context_BD, [i / steps for i in range(steps)], num_samples):
            velocity, _ = self.transformer.run(chunks, modulations)
            chunks = torch.add(chunks, velocity, alpha=1 / steps)
        return chunks.unflatten(0, shape[:2])
