"""Plain autoregressive tokens: uniform bins per action entry, one step of the chunk per pass (as RT-1, arXiv 2212.06817)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor
from torch.nn import functional

from robopolicy.batch import Batch
from robopolicy.models.chunk_transformer import ChunkTransformer
from robopolicy.models.layers import Cache
from robopolicy.models.sampling import draw
from robopolicy.models.trainable import Metrics
from robopolicy.policies.base import PolicyOptions
from robopolicy.policies.single_phase import SinglePhasePolicy
from robopolicy.spec import Array, Features, FeatureSpec, Observation


class AutoregressivePolicy(SinglePhasePolicy):
    """Each step of the chunk given those before it; the entries of a step are drawn independently of each other.

    Where two modes differ in several entries of a step, candidates can therefore mix them.

    Bins are `num_bins` levels from -1 to 1 in normalised units, the 1-99 % range of the data: rarer actions count as the
    nearest level. Candidate 0 takes the most likely tokens; the others are drawn.

    Args:
        observation, action, control_hz, options: see TrainablePolicy.
        transformer: makes the ChunkTransformer; a functools.partial of it carries further arguments.
        num_bins: levels per entry.
        temperature: of candidates 1 and up.
        top_k: they are drawn from the most likely `top_k` levels; 0 = from all.
        learning_rate: peak of the only phase.
    """

    causal: Tensor

    def __init__(
        self,
        observation: Features,
        action: FeatureSpec,
        control_hz: float,
        *,
        transformer: Callable[..., ChunkTransformer] = ChunkTransformer,
        num_bins: int = 256,
        temperature: float = 1.0,
        top_k: int = 0,
        learning_rate: float = 1e-3,
        **options: Unpack[PolicyOptions],
    ) -> None:
        super().__init__(
            observation,
            action,
            control_hz,
            **options,
            learning_rate=learning_rate,
            capabilities=("features", "log_prob"),
        )
        if num_bins < 2:
            raise ValueError(f"num_bins={num_bins} must be at least 2")
        if not 0 <= top_k <= num_bins:
            raise ValueError(f"top_k={top_k} must be in 0..num_bins={num_bins}; 0 draws from all")
        self.num_bins, self.temperature, self.top_k = num_bins, temperature, top_k
        horizon, dim = self.spec.action_horizon, self.spec.action_dim
        self.transformer = transformer(
            context_width=self.encoder.width, action_horizon=horizon, inputs=dim, outputs=dim * num_bins
        )
        self.register_buffer("causal", torch.ones(horizon, horizon, dtype=torch.bool).tril(), persistent=False)

    def loss(self, phase: str, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Cross-entropy per token, the share of tokens and the mean distance in bins that the most likely ones get right."""
        context, actions = self._inputs(phase, batch, generator)
        tokens = self._tokens(actions)
        logits = self._logits(context, tokens)
        guess = logits.detach().argmax(-1)
        metrics: Metrics = {"accuracy": (guess == tokens).float().mean(), "bins_off": (guess - tokens).abs().float().mean()}
        return functional.cross_entropy(logits.flatten(0, 2), tokens.flatten()), metrics

    def propose(self, context_BD: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
        """Normalised chunks [B, N, H, A]. Candidate 0 is decoded by itself: not a bit of it depends on num_samples."""
        chunks = self.decode(context_BD, 0.0, generator).unsqueeze(1)
        if num_samples == 1:
            return chunks
        others = self.decode(context_BD.repeat_interleave(num_samples - 1, 0), self.temperature, generator)
        return torch.cat([chunks, others.unflatten(0, (-1, num_samples - 1))], 1)

    def decode(self, context_BD: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
        """Normalised chunks [B, H, A] of tokens drawn with a temperature; 0 takes the most likely ones."""
        modulations, caches = self.transformer.modulate(context_BD), list[Cache]()
        levels = [torch.zeros((len(context_BD), 1, self.spec.action_dim), device=context_BD.device)]
        for _ in range(self.spec.action_horizon):
            flat, caches = self.transformer.run(levels[-1], modulations, None, caches)
            logits = flat.unflatten(-1, (self.spec.action_dim, self.num_bins))
            levels.append(self._levels(draw(logits, temperature, generator, self.top_k)))
        return torch.cat(levels[1:], 1)

    def log_prob(self, observation: Observation, actions: Array) -> Array:
        """Log-probability float32 [B, N] (nats) of the tokens of chunks float32 [B, N, H, A] in physical units.

        Raises:
            SpecError: the observation or the actions do not fit the spec.
        """
        return self._of_chunks(observation, actions, self._log_prob)

    def _log_prob(self, context_BD: Tensor, actions_BHA: Tensor) -> Tensor:
        tokens = self._tokens(actions_BHA)
        return self._logits(context_BD, tokens).log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).flatten(1).sum(1)

    def _logits(self, context_BD: Tensor, tokens_BHA: Tensor) -> Tensor:
        """Logits [B, H, A, num_bins] of all steps, each given the true ones before it."""
        earlier = functional.pad(self._levels(tokens_BHA[:, :-1]), (0, 0, 1, 0))
        return self.transformer(earlier, context_BD, self.causal).unflatten(-1, (self.spec.action_dim, self.num_bins))

    def _tokens(self, actions: Tensor) -> Tensor:
        return ((actions + 1) * ((self.num_bins - 1) / 2)).round().clamp(0, self.num_bins - 1).long()

    def _levels(self, tokens: Tensor) -> Tensor:
        return tokens * (2 / (self.num_bins - 1)) - 1
