"""How tokens are drawn from logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Decoding:
    """How tokens are drawn: temperature of the coarsest scale and of the finer ones; 0 takes the most likely token.

    top_k: draw from the k most likely ones only; 0 = from all.
    """

    coarse: float = 0.0
    fine: float = 0.0
    top_k: int = 0

    def __post_init__(self) -> None:
        for name in ("coarse", "fine", "top_k"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")


def draw(logits: Tensor, temperature: float, generator: torch.Generator, top_k: int = 0) -> Tensor:
    """Indices [...] from logits [..., K] by the Gumbel trick; the most likely one at temperature 0."""
    if temperature <= 0:
        return logits.argmax(-1)
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    uniform = torch.rand(logits.shape, generator=generator, device=logits.device, dtype=logits.dtype)
    noise = -torch.log(-torch.log(uniform.clamp(1e-10, 1 - 1e-7)))
    return (logits / temperature + noise).argmax(-1)
