"""Action chunking with a transformer (ACT, arXiv 2304.13705): one pass from queries to a chunk, optionally as a CVAE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.batch import Batch
from robopolicy.models.chunk_transformer import ChunkTransformer
from robopolicy.models.trainable import Metrics
from robopolicy.policies.base import PolicyOptions
from robopolicy.policies.candidates import around
from robopolicy.policies.single_phase import SinglePhasePolicy
from robopolicy.spec import Features, FeatureSpec


class ActPolicy(SinglePhasePolicy):
    """One query per step, L1 loss. With a style variable z, a second transformer reads it off the demonstrated chunk.

    Candidate 0 is the prediction (at z = 0, the prior's mean); the others add smooth Gaussian noise, and draw z from its
    prior where there is one.

    Args:
        observation, action, control_hz, options: see TrainablePolicy.
        transformer: makes the ChunkTransformer; a functools.partial of it carries further arguments.
        latent_dim: size of z; 0 = none, plain regression (ACT's own: 32).
        kl_weight: of the divergence of z from its prior (ACT's own: 10).
        proposal_std: standard deviation of the candidates' noise, in normalised units.
        learning_rate: peak of the only phase.
    """

    def __init__(
        self,
        observation: Features,
        action: FeatureSpec,
        control_hz: float,
        *,
        transformer: Callable[..., ChunkTransformer] = ChunkTransformer,
        latent_dim: int = 0,
        kl_weight: float = 10.0,
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
        if latent_dim < 0:
            raise ValueError(f"latent_dim={latent_dim} must be at least 0")
        self.latent_dim, self.kl_weight, self.proposal_std = latent_dim, kl_weight, proposal_std
        width, dim = self.encoder.width, self.spec.action_dim
        self.transformer = transformer(context_width=width, action_horizon=self.spec.action_horizon, inputs=0, outputs=dim)
        if latent_dim:
            sizes = {"inputs": dim, "outputs": 2 * latent_dim}
            self.style_encoder = transformer(context_width=width, action_horizon=self.spec.action_horizon, **sizes)
            self.style = nn.Linear(latent_dim, width)

    def loss(self, phase: str, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """L1 loss, plus the weighted divergence of z, and the mean absolute error in physical units."""
        context, actions = self._inputs(phase, batch, generator)
        divergence = torch.zeros((), device=actions.device)
        if self.latent_dim:
            mean, log_variance = self.style_encoder(actions, context).mean(1).chunk(2, -1)
            noise = torch.randn(mean.shape, generator=generator, device=mean.device)
            context = context + self.style(mean + (0.5 * log_variance).exp() * noise)
            divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1).mean()
        predicted = self.transformer(None, context)
        loss = functional.l1_loss(predicted, actions) + self.kl_weight * divergence
        metrics = {"divergence": divergence.detach()} if self.latent_dim else {}
        return loss, {**metrics, **self._errors(predicted, actions)}

    def propose(self, context_BD: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
        """Normalised chunks [B, N, H, A]."""
        if not self.latent_dim:
            return around(self.transformer(None, context_BD), num_samples, self.proposal_std, generator)
        z = torch.randn((len(context_BD), num_samples, self.latent_dim), generator=generator, device=context_BD.device)
        z[:, 0] = 0
        chunks = self.transformer(None, (context_BD.unsqueeze(1) + self.style(z)).flatten(0, 1)).unflatten(0, z.shape[:2])
        return chunks + around(torch.zeros_like(chunks[:, 0]), num_samples, self.proposal_std, generator)
