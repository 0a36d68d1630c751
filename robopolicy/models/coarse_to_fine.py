"""Coarse-to-fine transformer: all tokens of a scale at once, scale after scale (CARP, arXiv 2412.06782, sec. 3.2).

Tokens of a scale see each other and every coarser scale. Two departures from the paper, both for small data: tokens of
the coarsest scale, which choose between modes, are a plain categorical; those of finer scales, which are numbers, are
predicted digit by digit with targets smoothed over neighbouring levels. And the coarser scales that it is trained on
are disturbed, so that finer ones learn to correct mistakes (arXiv 2412.04431, sec. 3.4).

Suffixes as in robopolicy/batch.py and models/tokenizer.py; here L counts tokens of the sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.models.layers import Cache, ConditionedBlock
from robopolicy.models.tokenizer import MultiScaleTokenizer, Residual, from_code, to_code

SMOOTHING = 0.6  # standard deviation, in levels, of the target of a fine digit


@dataclass(frozen=True)
class Decoding:
    """How tokens are drawn: temperature of the coarsest scale and of the finer ones; 0 takes the most likely token."""

    coarse: float = 0.0
    fine: float = 0.0


def block_causal_mask(lengths: list[int]) -> Tensor:
    """bool [L, L], True where the row's token may look at the column's: same or earlier scale."""
    scale = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return scale[:, None] >= scale[None, :]


def ordinal_targets(count: int) -> Tensor:
    """Smoothed target distributions [count, count], one row per true level."""
    level = torch.arange(count, dtype=torch.float32)
    return torch.softmax(-((level[:, None] - level) ** 2) / (2 * SMOOTHING**2), -1)


def draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Indices [...] from logits [..., K] by the Gumbel trick; the most likely one at temperature 0."""
    if temperature <= 0:
        return logits.argmax(-1)
    uniform = torch.rand(logits.shape, generator=generator, device=logits.device, dtype=logits.dtype)
    noise = -torch.log(-torch.log(uniform.clamp(1e-10, 1 - 1e-7)))
    return (logits / temperature + noise).argmax(-1)


class CoarseToFineTransformer(nn.Module):
    """Predicts the tokens of a tokenizer from a context [B, D].

    Args:
        tokenizer: gives scales, groups and levels; it is not a part of this module.
        context_width: D of the context.
        width, depth, num_heads: of the transformer.
        self_correction: largest share of disturbed tokens in training.
    """

    mask: Tensor

    def __init__(
        self,
        *,
        tokenizer: MultiScaleTokenizer,
        context_width: int,
        width: int = 128,
        depth: int = 3,
        num_heads: int = 4,
        self_correction: float = 0.3,
    ) -> None:
        super().__init__()
        if not 0 <= self_correction <= 1:
            raise ValueError(f"self_correction={self_correction} must be in [0, 1]")
        self.levels, self.self_correction = tokenizer.level_counts, self_correction
        self.groups, self.scales = tokenizer.num_groups, tokenizer.scales
        self.lengths = [length * self.groups for length in self.scales]
        self.start = nn.Linear(context_width, width)
        self.embed = nn.Linear(tokenizer.num_digits, width)
        self.position = nn.Parameter(0.02 * torch.randn(sum(self.lengths), width))
        self.blocks = nn.ModuleList(ConditionedBlock(width, num_heads, context_width, depth) for _ in range(depth))
        self.norm = nn.Linear(context_width, 2 * width)
        self.coarse_head = nn.Linear(width, tokenizer.vocabulary)
        self.fine_head = nn.Linear(width, sum(self.levels))
        for layer in (self.norm, self.coarse_head, self.fine_head):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.register_buffer("mask", block_causal_mask(self.lengths), persistent=False)
        for i, count in enumerate(self.levels):
            self.register_buffer(f"target_{i}", ordinal_targets(count), persistent=False)

    def forward(self, context_BD: Tensor, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits of the coarsest tokens [B, G, K] and of the digits of all finer ones [B, L - G, sum(levels)].

        inputs: per scale but the first, the reconstruction that the scale starts from, [B, l, G, C] (teacher forcing).
        """
        starts = [None, *inputs]
        tokens = torch.cat([self._tokens(context_BD, start, k) for k, start in enumerate(starts)], 1)
        x, _ = self._trunk(tokens, context_BD, self.mask, None)
        return self.coarse_head(x[:, : self.groups]), self.fine_head(x[:, self.groups :])

    def loss(
        self, context_BD: Tensor, latent_BLGC: Tensor, tokenizer: MultiScaleTokenizer, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Cross-entropy, half of it on the coarsest tokens, and the accuracy of tokens (coarsest) and digits (finer)."""
        with torch.no_grad():  # the tokenizer is given, gains included
            residual = tokenizer.quantise(latent_BLGC, self.self_correction, generator)
            inputs = self._teacher(residual, tokenizer)
        coarse, fine = self(context_BD, inputs)
        code = to_code(residual.digits[0][:, 0], self.levels)
        digits = _sequence(residual.digits[1:])
        coarse_loss = functional.cross_entropy(coarse.flatten(0, 1), code.flatten())
        fine_loss, hits = torch.zeros_like(coarse_loss), torch.zeros_like(coarse_loss)
        for i, logits in enumerate(fine.split(self.levels, -1)):
            target = self.get_buffer(f"target_{i}")[digits[..., i]]
            fine_loss = fine_loss - (target * logits.log_softmax(-1)).sum(-1).mean() / len(self.levels)
            hits = hits + (logits.argmax(-1) == digits[..., i]).float().mean() / len(self.levels)
        accuracy = (coarse.argmax(-1) == code).float().mean()
        metrics = {"coarse_loss": coarse_loss.detach(), "fine_loss": fine_loss.detach()}
        return (coarse_loss + fine_loss) / 2, {**metrics, "coarse_accuracy": accuracy, "fine_accuracy": hits}

    def log_prob(self, context_BD: Tensor, latent_BLGC: Tensor, tokenizer: MultiScaleTokenizer) -> Tensor:
        """Log-probability [B] of the tokens of each latent signal."""
        residual = tokenizer.quantise(latent_BLGC)
        coarse, fine = self(context_BD, self._teacher(residual, tokenizer))
        code = to_code(residual.digits[0][:, 0], self.levels)
        total = coarse.log_softmax(-1).gather(-1, code.unsqueeze(-1)).flatten(1).sum(1)
        digits = _sequence(residual.digits[1:])
        for i, logits in enumerate(fine.split(self.levels, -1)):
            total = total + logits.log_softmax(-1).gather(-1, digits[..., i : i + 1]).flatten(1).sum(1)
        return total

    def sample(
        self,
        context_BD: Tensor,
        tokenizer: MultiScaleTokenizer,
        decoding: Decoding,
        generator: torch.Generator,
        use_cache: bool = True,
    ) -> Tensor:
        """Latent signals [B, L, G, C] of drawn tokens.

        At fine temperature 0 the finest digits are their expected value, not their mode: between two levels, that is
        where the smoothed target puts the action. use_cache=False recomputes coarser tokens at every scale (slower).
        """
        caches: list[Cache] | None = None
        x = seen = self._tokens(context_BD, None, 0)
        total = torch.zeros((), device=context_BD.device)
        for k, length in enumerate(self.scales):
            if use_cache:
                hidden, caches = self._trunk(x, context_BD, None, caches)
            else:
                hidden, _ = self._trunk(seen, context_BD, self.mask[: seen.shape[1], : seen.shape[1]], None)
            digits = self._draw(hidden[:, -x.shape[1] :], k, decoding, generator)
            total = total + tokenizer.contribution(digits.unflatten(1, (length, self.groups)), k)
            if k + 1 < len(self.scales):
                x = self._tokens(context_BD, tokenizer.next_input(total, k + 1), k + 1)
                seen = torch.cat([seen, x], 1)
        return total

    def _draw(self, hidden_BLD: Tensor, scale: int, decoding: Decoding, generator: torch.Generator) -> Tensor:
        """Digits [B, L, C], fractional where they are expectations."""
        if scale == 0:
            return from_code(draw(self.coarse_head(hidden_BLD), decoding.coarse, generator), self.levels).to(hidden_BLD.dtype)
        parts = self.fine_head(hidden_BLD).split(self.levels, -1)
        if scale == len(self.scales) - 1 and decoding.fine <= 0:
            return torch.stack([p.softmax(-1) @ torch.arange(p.shape[-1], device=p.device, dtype=p.dtype) for p in parts], -1)
        return torch.stack([draw(part, decoding.fine, generator) for part in parts], -1).to(hidden_BLD.dtype)

    def _tokens(self, context_BD: Tensor, running: Tensor | None, scale: int) -> Tensor:
        """Input tokens [B, l G, width] of a scale: from the context for the first, from the reconstruction for others."""
        first = sum(self.lengths[:scale])
        position = self.position[first : first + self.lengths[scale]]
        if running is None:
            return self.start(context_BD).unsqueeze(1) + position
        return self.embed(running.flatten(1, 2)) + position

    def _teacher(self, residual: Residual, tokenizer: MultiScaleTokenizer) -> list[Tensor]:
        return [tokenizer.next_input(running, k + 1) for k, running in enumerate(residual.running[:-1])]

    def _trunk(
        self, x_BLD: Tensor, context_BD: Tensor, mask_LL: Tensor | None, caches: list[Cache] | None
    ) -> tuple[Tensor, list[Cache]]:
        kept = []
        for i, block in enumerate(self.blocks):
            x_BLD, cache = block(x_BLD, context_BD, mask_LL, caches[i] if caches else None)
            kept.append(cache)
        shift, scale = self.norm(functional.silu(context_BD)).unsqueeze(1).chunk(2, -1)
        return torch.addcmul(shift, functional.layer_norm(x_BLD, x_BLD.shape[-1:]), 1 + scale), kept


def _sequence(digits: list[Tensor]) -> Tensor:
    """Digits per scale [B, l, G, C] as one sequence [B, L, C]."""
    return torch.cat([part.flatten(1, 2) for part in digits], 1)
