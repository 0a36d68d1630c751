"""Randomness of candidate chunks, drawn so that candidate 0 does not depend on how many there are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def smooth_noise(shape: tuple[int, int, int, int], steps: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Gaussian noise [B, N, H, A] of unit variance that changes over about `steps` steps of H (a moving average)."""
    batch, num, horizon, dim = shape
    white = torch.randn((batch, num, horizon + steps - 1, dim), generator=generator, device=device)
    return white.unfold(2, steps, 1).sum(-1) / steps**0.5


def around(chunks_BHA: Tensor, num_samples: int, std: float, generator: torch.Generator) -> Tensor:
    """Candidates [B, N, H, A] of a regression: its prediction, then the prediction with smooth noise added."""
    chunks = chunks_BHA.unsqueeze(1)
    if num_samples == 1:
        return chunks
    batch, horizon, dim = chunks_BHA.shape
    noise = smooth_noise((batch, num_samples - 1, horizon, dim), max(horizon // 4, 1), generator, chunks_BHA.device)
    return torch.cat([chunks, chunks + std * noise], 1)


def noise_source(shape: tuple[int, int, int, int], generator: torch.Generator, device: torch.device) -> Callable[[], Tensor]:
    """Draws standard normal noise [B N, H, A] at each call; that of candidate 0 is the same for any N of [B, N, H, A]."""
    batch, num, horizon, dim = shape
    seeds = torch.randint(2**62, (2,), generator=generator, device=device).tolist()
    first, others = (torch.Generator(device).manual_seed(seed) for seed in seeds)

    def draw() -> Tensor:
        noise = torch.randn((batch, 1, horizon, dim), generator=first, device=device)
        if num > 1:
            noise = torch.cat([noise, torch.randn((batch, num - 1, horizon, dim), generator=others, device=device)], 1)
        return noise.flatten(0, 1)

    return draw
