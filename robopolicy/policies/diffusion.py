"""Diffusion policy (arXiv 2303.04137): a chunk is denoised from Gaussian noise; predicts the noise, DDPM or DDIM sampler."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
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
from robopolicy.spec import Features, FeatureSpec, did_you_mean

DEFAULT_STEPS = {"ddpm": None, "ddim": 16}  # None = all training steps


def cosine_alphas(num_steps: int) -> Tensor:
    """Products of (1 - beta) [num_steps], float64, of the squared-cosine schedule (arXiv 2102.09672, eq. 17), beta <= 0.999."""
    angle = (torch.arange(num_steps + 1, dtype=torch.float64) / num_steps + 0.008) / 1.008 * math.pi / 2
    level = angle.cos() ** 2
    return torch.cumprod(1 - (1 - level[1:] / level[:-1]).clamp(max=0.999), 0)


def spaced_steps(num_training_steps: int, num_steps: int) -> list[int]:
    """Training steps to visit, evenly spaced from the noisiest down ("trailing", arXiv 2305.08891, table 2)."""
    return [round(num_training_steps * (num_steps - i) / num_steps) - 1 for i in range(num_steps)]


def ddpm_coefficients(alphas: Sequence[float], steps: Sequence[int]) -> list[tuple[float, float, float]]:
    """Factors of the clean estimate, the chunk and fresh noise in each update (arXiv 2006.11239, eq. 6 and 7)."""
    result = []
    for now, then in _pairs(alphas, steps):
        alpha = now / then
        result.append(
            (
                math.sqrt(then) * (1 - alpha) / (1 - now),
                math.sqrt(alpha) * (1 - then) / (1 - now),
                math.sqrt((1 - then) / (1 - now) * (1 - alpha)),
            )
        )
    return result


def ddim_coefficients(alphas: Sequence[float], steps: Sequence[int]) -> list[tuple[float, float]]:
    """Factors of the clean estimate and the predicted noise in each update (arXiv 2010.02502, eq. 12 with eta = 0)."""
    return [(math.sqrt(then), math.sqrt(1 - then)) for _, then in _pairs(alphas, steps)]


def _pairs(alphas: Sequence[float], steps: Sequence[int]) -> list[tuple[float, float]]:
    """Alpha products at each step and after it; 1, no noise, after the last."""
    levels = [*(alphas[step] for step in steps), 1.0]
    return list(pairwise(levels))


class DiffusionPolicy(SinglePhasePolicy):
    """Denoising diffusion over chunks. The same weights serve both samplers and any number of steps.

    Candidate 0 starts, like all others, from noise: it is a draw too, fixed by the seed.

    Args:
        observation, action, control_hz, options: see TrainablePolicy.
        transformer: makes the TimedChunkTransformer; a functools.partial of it carries further arguments.
        num_training_steps: noise levels.
        sampler: "ddpm" (fresh noise at each step) or "ddim" (none, so far fewer steps do).
        num_inference_steps: passes per chunk; None = all training steps for DDPM, 16 for DDIM.
        sample_clip: estimates of the clean chunk are clipped to +- this, in normalised units. The 1-99 % range of the
            data is [-1, 1]; None does not clip.
        learning_rate: peak of the only phase.
    """

    def __init__(
        self,
        observation: Features,
        action: FeatureSpec,
        control_hz: float,
        *,
        transformer: Callable[..., TimedChunkTransformer] = TimedChunkTransformer,
        num_training_steps: int = 100,
        sampler: str = "ddpm",
        num_inference_steps: int | None = None,
        sample_clip: float | None = 1.5,
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
        if num_training_steps < 1:
            raise ValueError(f"num_training_steps={num_training_steps} must be at least 1")
        if sample_clip is not None and not sample_clip > 0:
            raise ValueError(f"sample_clip={sample_clip} must be above 0, such as 1.5; null does not clip")
        self.transformer = transformer(
            context_width=self.encoder.width, action_horizon=self.spec.action_horizon, action_dim=self.spec.action_dim
        )
        self.alphas: list[float] = cosine_alphas(num_training_steps).tolist()
        self.sample_clip = sample_clip
        self.set_sampler(sampler, num_inference_steps)

    def set_sampler(self, sampler: str, num_inference_steps: int | None = None) -> None:
        """Sample with `sampler` from now on; see the class.

        Raises:
            ValueError: no such sampler, or more steps than it was trained with.
        """
        most = len(self.alphas)
        if sampler not in DEFAULT_STEPS:
            raise ValueError(f"sampler={sampler!r} does not exist; {did_you_mean(sampler, DEFAULT_STEPS)}")
        num = min(DEFAULT_STEPS[sampler] or most, most) if num_inference_steps is None else num_inference_steps
        if not 1 <= num <= most:
            raise ValueError(f"num_inference_steps={num} must be in 1..num_training_steps={most}")
        self.sampler = sampler
        self._steps = spaced_steps(most, num)
        self._ddpm = ddpm_coefficients(self.alphas, self._steps)
        self._ddim = ddim_coefficients(self.alphas, self._steps)

    def loss(self, phase: str, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Squared error of the predicted noise at a random step."""
        context, actions = self._inputs(phase, batch, generator)
        noise = torch.randn(actions.shape, generator=generator, device=actions.device)
        step = torch.randint(len(self.alphas), (len(actions),), generator=generator, device=actions.device)
        alpha = torch.tensor(self.alphas, device=actions.device)[step].view(-1, 1, 1)
        noisy = alpha.sqrt() * actions + (1 - alpha).sqrt() * noise
        predicted = self.transformer.at(noisy, context, step / len(self.alphas))
        return functional.mse_loss(predicted, noise), {}

    def propose(self, context_BD: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
        """Normalised chunks [B, N, H, A]."""
        shape = (len(context_BD), num_samples, self.spec.action_horizon, self.spec.action_dim)
        draw = noise_source(shape, generator, context_BD.device)
        times = [step / len(self.alphas) for step in self._steps]
        chunks = draw()
        for i, modulations in enumerate(self.transformer.passes(context_BD, times, num_samples)):
            noise, _ = self.transformer.run(chunks, modulations)
            chunks = self._update(chunks, noise, i, draw)
        return chunks.unflatten(0, shape[:2])

    def _update(self, chunks: Tensor, noise: Tensor, i: int, draw: Callable[[], Tensor]) -> Tensor:
        """Chunks after visit i of the steps, from those before it and the noise predicted in them."""
        alpha = self.alphas[self._steps[i]]
        clean = torch.sub(chunks, noise, alpha=math.sqrt(1 - alpha)).mul_(1 / math.sqrt(alpha))
        if self.sample_clip is not None:
            clean.clamp_(-self.sample_clip, self.sample_clip)
        if self.sampler == "ddim":
            of_clean, of_noise = self._ddim[i]
            return (of_clean * clean).add_(noise, alpha=of_noise)
        of_clean, of_chunk, of_fresh = self._ddpm[i]
        mean = (of_clean * clean).add_(chunks, alpha=of_chunk)
        return mean.add_(draw(), alpha=of_fresh) if of_fresh > 0 else mean
