"""How far a chunk is from what was done in similar situations: distance to the nearest of remembered pairs (PRDC, ICML 2023).

Critics err upwards where there was no data; the distance says where that is. Suffixes as in robopolicy/batch.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EMPTY = 1e6  # what an unused place holds: far from everything
TYPICAL = 0.95  # quantile of the remembered pairs' own distances that counts as 1


class Support(nn.Module):
    """The last `size` pairs of context and chunk that were trained on, in buffers, so that they travel with the weights.

    Contexts move while an encoder learns; the last few steps of a run, under a vanishing learning rate, replace them all.

    Args:
        size: pairs. context_width: D. action_width: h A, of normalised chunks.
        beta: weight of contexts beside chunks, both scaled to unit variance per entry.
    """

    def __init__(self, size: int, context_width: int, action_width: int, beta: float = 2.0) -> None:
        super().__init__()
        self.size, self.beta = size, beta
        self.register_buffer("contexts", torch.full((size, context_width), EMPTY))
        self.register_buffer("chunks", torch.full((size, action_width), EMPTY))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def remember(self, context_BD: Tensor, chunks_BHA: Tensor) -> None:
        """Put pairs into the places of the oldest ones."""
        if not self.size:
            return
        count = min(len(context_BD), self.size)
        places = (self.get_buffer("place") + torch.arange(count, device=context_BD.device)) % self.size
        self.get_buffer("contexts")[places] = context_BD[:count].float()
        self.get_buffer("chunks")[places] = chunks_BHA[:count].flatten(1).float()
        self.get_buffer("place").add_(count)

    def distance(self, context_BD: Tensor, actions_BNHA: Tensor) -> Tensor:
        """Distance [B, N] to the nearest remembered pair; 1 is usual among these themselves (the 95 % quantile).

        Raises:
            ValueError: nothing is remembered.
        """
        used = self.get_buffer("chunks")[:, 0] < EMPTY
        if not self.size or not bool(used.any()):
            raise ValueError("this critic remembers no pairs: train it with support_size=2048 to use steer.support")
        contexts, chunks = self.get_buffer("contexts")[used], self.get_buffer("chunks")[used]
        scales = [x.std(0).clamp(min=1e-3) for x in (contexts, chunks)]
        weights = (self.beta / contexts.shape[1] ** 0.5, 1 / chunks.shape[1] ** 0.5)

        def join(context: Tensor, chunk: Tensor) -> Tensor:
            return torch.cat([weights[0] * context / scales[0], weights[1] * chunk / scales[1]], -1)

        bank = join(contexts, chunks)
        own = torch.cdist(bank, bank).fill_diagonal_(float("inf")).amin(1)
        num = actions_BNHA.shape[1]
        asked = join(context_BD.unsqueeze(1).expand(-1, num, -1), actions_BNHA.flatten(2))
        nearest = torch.cdist(asked.flatten(0, 1), bank).amin(1).view(asked.shape[:2])
        return nearest / own.quantile(TYPICAL).clamp(min=1e-6)
