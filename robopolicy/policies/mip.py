"""Minimal iterative policy (MIP, arXiv 2512.01809): a regression, and a second one that corrects the first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor

from robopolicy.batch import Batch
from robopolicy.models.chunk_transformer import TimedChunkTransformer
from robopolicy.models.trainable import Metrics
from robopolicy.policies.base import PolicyOptions
from robopolicy.policies.candidates import around
from robopolicy.policies.single_phase import SinglePhasePolicy
from robopolicy.spec import Features, FeatureSpec


class MipPolicy(SinglePhasePolicy):
    """Two passes of one network f(chunk, observation, time): a0 = f(0, o, 0), then f(a0, o, t*).

    The second is trained on demonstrated chunks with noise of standard deviation 1 - t* added. Both errors weigh the
    same here (the authors' code divides them by t*^2 and (1 - t*)^2). Candidate 0 is the prediction; the others add
    smooth Gaussian noise, so that there is something to choose from.

    Args:
        observation, action, control_hz, options: see TrainablePolicy.
        transformer: makes the TimedChunkTransformer; a functools.partial of it carries further arguments.
        second_time: t*.
        proposal_std: standard deviation of the candidates' noise, in normalised units.
        learning_rate: peak of the only phase.
    """

    def __init__(
        self,
        observation: Features,
        action: FeatureSpec,
        control_hz: float,
        *,
        transformer: Callable[..., TimedChunkTransformer] = TimedChunkTransformer,
        second_time: float = 0.9,
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
        if not 0 < second_time < 1:
            raise ValueError(f"second_time={second_time} must be in (0, 1)")
        self.second_time, self.proposal_std = second_time, proposal_std
        self.transformer = transformer(
            context_width=self.encoder.width, action_horizon=self.spec.action_horizon, action_dim=self.spec.action_dim
        )

    def loss(self, phase: str, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Sum of the squared errors of both passes, and the first one's mean absolute error in physical units."""
        context, actions = self._inputs(phase, batch, generator)
        noise = torch.randn(actions.shape, generator=generator, device=actions.device)
        chunks = torch.cat([torch.zeros_like(actions), actions + (1 - self.second_time) * noise])
        time = torch.tensor([0.0, self.second_time], device=actions.device).repeat_interleave(len(actions))
        first, second = self.transformer.at(chunks, context.repeat(2, 1), time).chunk(2)
        losses = [(predicted - actions).square().mean() for predicted in (first, second)]
        metrics = {"first_loss": losses[0].detach(), "second_loss": losses[1].detach()}
        return losses[0] + losses[1], {**metrics, **self._errors(first, actions)}

    def propose(self, context_BD: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
        """Normalised chunks [B, N, H, A]."""
        chunks = torch.zeros((len(context_BD), self.spec.action_horizon, self.spec.action_dim), device=context_BD.device)
        for modulations in self.transformer.passes(context_BD, [0.0, self.second_time]):
            chunks, _ = self.transformer.run(chunks, modulations)
        return around(chunks, num_samples, self.proposal_std, generator)
