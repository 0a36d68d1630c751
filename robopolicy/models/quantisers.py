"""Quantisers of residual signals: finite scalar (FSQ, arXiv 2309.15505) and vector (VQ) with a codebook per group.

Both map vectors x [B, L, G, C] of a scale to codes int64 [B, L, G] and to their values [B, L, G, C]. Suffixes as in
models/tokenizer.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Quantiser(nn.Module, ABC):
    """num_codes: size K of the vocabulary. width: C, entries of a vector. levels: of a code's digits, () without them."""

    num_codes: int
    width: int
    levels: tuple[int, ...] = ()

    @abstractmethod
    def forward(self, x_BLGC: Tensor, scale: int, learn: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Values (straight-through gradient), codes and an auxiliary loss (0 where there is none).

        learn: whether a codebook may move with this batch.
        """

    @abstractmethod
    def values(self, codes_BLG: Tensor, scale: int) -> Tensor:
        """Values [B, L, G, C] of codes."""

    @abstractmethod
    def neighbours(self, codes_BLG: Tensor, generator: torch.Generator) -> Tensor:
        """A random code near each code."""


def to_code(digits: Tensor, levels: Sequence[int]) -> Tensor:
    """Digits [..., C] as one integer per token, the first digit varying fastest."""
    code = torch.zeros_like(digits[..., 0])
    for i in reversed(range(len(levels))):
        code = code * levels[i] + digits[..., i]
    return code


def to_digits(code: Tensor, levels: Sequence[int]) -> Tensor:
    """Inverse of to_code."""
    digits = []
    for count in levels:
        digits.append(code % count)
        code = code // count
    return torch.stack(digits, -1)


class FiniteScalarQuantiser(Quantiser):
    """A code is a tuple of small integers: tanh(x / gain) rounded to `levels` values in [-1, 1] per entry. No code can die.

    The gain is learned per scale and group and starts at 1, 1/2, 1/4, ...: later scales describe smaller residuals.
    """

    counts: Tensor

    def __init__(self, levels: Sequence[int], num_scales: int, num_groups: int) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"levels={list(levels)} must all be at least 2, such as [8, 5, 5, 5]")
        self.levels, self.width = tuple(levels), len(levels)
        self.num_codes = int(torch.tensor(levels).prod())
        self.register_buffer("counts", torch.tensor(levels, dtype=torch.float32), persistent=False)
        self.log_gain = nn.Parameter(
            torch.tensor([0.5**k for k in range(num_scales)]).log()[:, None, None].repeat(1, num_groups, 1)
        )

    def forward(self, x_BLGC: Tensor, scale: int, learn: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """See Quantiser.forward."""
        gain, half = self.log_gain[scale].exp(), (self.counts - 1) / 2
        bounded = torch.tanh(x_BLGC / gain)
        digits = torch.round((bounded + 1) * half)
        values = bounded + (digits / half - 1 - bounded).detach()
        return values * gain, to_code(digits.long(), self.levels), x_BLGC.new_zeros(())

    def values(self, codes_BLG: Tensor, scale: int) -> Tensor:
        """See Quantiser.values."""
        return self.digit_values(to_digits(codes_BLG, self.levels), scale)

    def digit_values(self, digits_BLGC: Tensor, scale: int) -> Tensor:
        """Values of digits, which may be fractional, as expectations are."""
        return (digits_BLGC / ((self.counts - 1) / 2) - 1) * self.log_gain[scale].exp()

    def neighbours(self, codes_BLG: Tensor, generator: torch.Generator) -> Tensor:
        """Each digit moved by at most one level."""
        digits = to_digits(codes_BLG, self.levels)
        step = torch.randint(-1, 2, digits.shape, generator=generator, device=digits.device)
        return to_code(torch.minimum((digits + step).clamp(min=0), self.counts.long() - 1), self.levels)


class VectorQuantiser(Quantiser):
    """The nearest of `num_codes` learned vectors per group, shared by the scales (CARP, sec. 3.1).

    Codebooks are those of vector-quantize-pytorch: k-means start, moving averages, squared distance, codes that nothing
    chooses are replaced.
    """

    def __init__(self, num_codes: int, width: int, num_groups: int) -> None:
        super().__init__()
        from vector_quantize_pytorch import VectorQuantize  # here: importing it takes a second

        if num_codes < 2 or width < 1:
            raise ValueError(f"codebook_size={num_codes} must be at least 2 and code_width={width} at least 1")
        self.num_codes, self.width, self.num_groups = num_codes, width, num_groups
        self.books = VectorQuantize(
            dim=width * num_groups,
            codebook_dim=width,
            codebook_size=num_codes,
            heads=num_groups,
            separate_codebook_per_head=True,
            kmeans_init=True,
            kmeans_iters=10,
            threshold_ema_dead_code=1,
            decay=0.95,
            commitment_weight=0.25,
        )
        self.books.project_in = self.books.project_out = nn.Identity()

    def forward(self, x_BLGC: Tensor, scale: int, learn: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """See Quantiser.forward."""
        self.books.train(learn)
        values, codes, loss = self.books(x_BLGC.flatten(2), freeze_codebook=not learn)
        return values.view_as(x_BLGC), codes.view(x_BLGC.shape[:3]), loss.sum()

    def values(self, codes_BLG: Tensor, scale: int) -> Tensor:
        """See Quantiser.values."""
        return self._table()[torch.arange(self.num_groups, device=codes_BLG.device), codes_BLG]

    def neighbours(self, codes_BLG: Tensor, generator: torch.Generator) -> Tensor:
        """One of the four nearest other codes, or of all others where there are fewer."""
        near = torch.cdist(self._table(), self._table()).topk(min(5, self.num_codes), largest=False).indices[..., 1:]
        pick = torch.randint(0, near.shape[-1], codes_BLG.shape, generator=generator, device=codes_BLG.device)
        return near[torch.arange(self.num_groups, device=codes_BLG.device), codes_BLG, pick]

    def _table(self) -> Tensor:
        book = self.books.codebook
        return book if book.ndim == 3 else book.unsqueeze(0)
