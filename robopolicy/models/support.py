"""How far a chunk is from what was done in similar situations: distance to the nearest of remembered pairs (PRDC, ICML 2023).

Critics err upwards where there was no data; the distance says where that is. Suffixes as in robopolicy/batch.py.
"""

from __future__ import annotations

from dataclasses import dataclass

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
        self._bank: tuple[tuple[object, ...], _Bank] | None = None
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
        bank = self._bank_now()
        num = actions_BNHA.shape[1]
        asked = bank.join(context_BD.unsqueeze(1).expand(-1, num, -1), actions_BNHA.flatten(2))
        return torch.cdist(asked.flatten(0, 1), bank.pairs).amin(1).view(asked.shape[:2]) / bank.unit

    @property
    def filled(self) -> int:
        """How many pairs are remembered."""
        return int(self._used().sum())

    def _used(self) -> Tensor:
        return self.get_buffer("chunks")[:, 0] < EMPTY if self.size else torch.zeros(0, dtype=torch.bool)

    def _bank_now(self) -> _Bank:
        """The remembered pairs, made ready; again only after some were added or loaded."""
        seen = (int(self.get_buffer("place")), self.get_buffer("place")._version, self.get_buffer("chunks").device)
        if self._bank is None or self._bank[0] != seen:
            used = self._used()
            if used.sum() < 2:
                raise ValueError("this critic remembers no pairs: train it with support_size=2048 to use steer.support")
            self._bank = seen, _Bank.of(self.get_buffer("contexts")[used], self.get_buffer("chunks")[used], self.beta)
        return self._bank[1]


@dataclass(frozen=True)
class _Bank:
    """Pairs [n, D + h A] with each entry scaled, the scales, and what counts as a distance of 1."""

    pairs: Tensor
    scales: tuple[Tensor, Tensor]
    unit: Tensor

    @classmethod
    def of(cls, contexts: Tensor, chunks: Tensor, beta: float) -> _Bank:
        weights = (beta / contexts.shape[1] ** 0.5, 1 / chunks.shape[1] ** 0.5)
        scales = [weight / x.std(0).clamp(min=1e-3) for weight, x in zip(weights, (contexts, chunks), strict=True)]
        pairs = torch.cat([contexts * scales[0], chunks * scales[1]], -1)
        own = torch.cdist(pairs, pairs).fill_diagonal_(float("inf")).amin(1)
        return cls(pairs, (scales[0], scales[1]), own.quantile(TYPICAL).clamp(min=1e-6))

    def join(self, context: Tensor, chunk: Tensor) -> Tensor:
        return torch.cat([context * self.scales[0], chunk * self.scales[1]], -1)
