"""Coarse-to-fine transformer: all tokens of a scale at once, scale after scale (CARP, arXiv 2412.06782, sec. 3.2).

Tokens of a scale see each other and every coarser scale. What the paper's policy lacks, each with a switch:

- `num_categorical`: only the coarsest scales, which choose between modes, predict a plain category. Finer ones are numbers:
  they predict the digits of an FSQ code, with targets smoothed over neighbouring levels.
- `refine`: a last, continuous scale says what tokens cannot. It is a regression of the chunk from the context and the decoded
  tokens, which have chosen the mode: precise, and it has nothing left to average over. It is a plain MLP beside the
  transformer: as a further scale inside it, it fitted the demonstrations better and did worse in new episodes.
- `own_tokens`: finer scales are trained after tokens that the policy itself would draw, as far as they decode to something
  like the chunk of the demonstration. So they rely on a coarse token no more than it deserves, and still follow it where it
  chooses between modes. (It is the expectation step of a mixture of experts: p(token | observation) times the fit.)
- `self_correction`: the finer tokens that it is trained on are disturbed, so that what follows learns to correct mistakes
  (arXiv 2412.04431, sec. 3.4).

Suffixes as in robopolicy/batch.py and models/tokenizer.py; here L counts tokens of the sequence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.models.layers import Cache, ConditionedBlock, Modulation, residual_mlp
from robopolicy.models.quantisers import FiniteScalarQuantiser, to_digits
from robopolicy.models.sampling import Decoding, draw
from robopolicy.models.tokenizer import MultiScaleTokenizer, Residual

LOG_SPREAD = (math.log(1e-3), math.log(1.0))  # of what a refined chunk still misses, normalised units


def block_causal_mask(lengths: Sequence[int]) -> Tensor:
    """bool [L, L], True where the row's token may look at the column's: same or earlier scale."""
    scale = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return scale[:, None] >= scale[None, :]


def ordinal_targets(count: int, smoothing: float) -> Tensor:
    """Target distributions [count, count], one row per true level; smoothing: their standard deviation in levels."""
    if smoothing == 0:
        return torch.eye(count)
    level = torch.arange(count, dtype=torch.float32)
    return torch.softmax(-((level[:, None] - level) ** 2) / (2 * smoothing**2), -1)


class Refiner(nn.Module):
    """The continuous scale: a chunk from the context and the chunk that the tokens decode to."""

    def __init__(self, tokenizer: MultiScaleTokenizer, context_width: int, width: int, depth: int) -> None:
        super().__init__()
        size = tokenizer.action_horizon * tokenizer.action_dim
        self.network = residual_mlp(context_width + size, width, depth, size)
        self.log_spread = nn.Parameter(torch.full((tokenizer.action_dim,), math.log(0.1)))

    def forward(self, context_BD: Tensor, chunk_BHA: Tensor) -> Tensor:
        """The refined chunk [B, H, A]."""
        return self.network(torch.cat([context_BD, chunk_BHA.flatten(1)], -1)).float().view_as(chunk_BHA)

    def log_density(self, error_BHA: Tensor) -> Tensor:
        """Laplace log-density [B, H, A] of the absolute errors of refined chunks."""
        spread = self.log_spread.clamp(*LOG_SPREAD)
        return -(error_BHA / spread.exp() + spread + math.log(2))


class CoarseToFineTransformer(nn.Module):
    """Predicts the tokens of a tokenizer, and what they leave of a chunk, from a context [B, D].

    Args:
        tokenizer: frozen; gives scales, groups and codes. It is not a part of this module.
        context_width: D of the context.
        width, depth, num_heads: of the transformer.
        num_categorical: how many of the coarsest scales predict a category; None = all of them.
        smoothing: standard deviation, in levels, of the targets of digits.
        soft: digits of the finest scale are their expected value, not the most likely one (when not drawn).
        refine: whether there is the continuous scale.
        refine_width, refine_depth: of its residual MLP.
        own_tokens: share of the training samples whose coarsest tokens are the policy's own; needs one token a group there.
        self_correction: largest share of disturbed tokens in training.
        coarse_weight: share of the categorical scales in the loss of tokens.
        refine_weight: weight of its error beside the loss of tokens.
        refine_beta: that error is Huber's, squared below this (normalised units); 0 = L1.
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
        num_categorical: int | None = 1,
        smoothing: float = 0.6,
        soft: bool = True,
        refine: bool = True,
        refine_width: int = 256,
        refine_depth: int = 2,
        own_tokens: float = 1.0,
        self_correction: float = 0.3,
        coarse_weight: float = 0.5,
        refine_weight: float = 40.0,
        refine_beta: float = 0.1,
    ) -> None:
        super().__init__()
        self.scales, self.groups = tokenizer.scales, tokenizer.num_groups
        self.num_categorical = len(self.scales) if num_categorical is None else num_categorical
        shares = {"own_tokens": own_tokens, "self_correction": self_correction, "coarse_weight": coarse_weight}
        self._check(tokenizer, shares)
        self.own_tokens, self.self_correction, self.soft = own_tokens, self_correction, soft
        self.coarse_weight, self.refine_weight, self.refine_beta = coarse_weight, refine_weight, refine_beta
        self.levels = tokenizer.quantiser.levels
        self.lengths = [length * self.groups for length in self.scales]
        self._make_layers(tokenizer, context_width, width, depth, num_heads)
        self.refiner = Refiner(tokenizer, context_width, refine_width, refine_depth) if refine else None
        self.register_buffer("mask", block_causal_mask(self.lengths), persistent=False)
        for i, count in enumerate(self.levels):
            self.register_buffer(f"target_{i}", ordinal_targets(count, smoothing), persistent=False)

    def _check(self, tokenizer: MultiScaleTokenizer, shares: Mapping[str, float]) -> None:
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value} must be in [0, 1]")
        if not 0 <= self.num_categorical <= len(self.scales):
            raise ValueError(f"num_categorical={self.num_categorical} must be in 0..{len(self.scales)}, the number of scales")
        if shares["own_tokens"] and (self.scales[0] != 1 or not self.num_categorical):
            raise ValueError("own_tokens needs scales that start with 1 and a categorical one: set own_tokens=0")
        if self.num_categorical < len(self.scales) and not isinstance(tokenizer.quantiser, FiniteScalarQuantiser):
            raise ValueError("codes of a vq tokenizer have no digits: set num_categorical=null or quantiser=fsq")

    def _make_layers(self, tokenizer: MultiScaleTokenizer, context_width: int, width: int, depth: int, num_heads: int) -> None:
        self.start = nn.Linear(context_width, width)
        self.embed = nn.Linear(tokenizer.code_width, width) if len(self.scales) > 1 else None
        self.position = nn.Parameter(0.02 * torch.randn(sum(self.lengths), width))
        blocks = [ConditionedBlock(width, num_heads, context_width, depth) for _ in range(depth)]
        self.blocks: Sequence[ConditionedBlock] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.norm = nn.Linear(context_width, 2 * width)
        heads = [self.norm]
        if self.num_categorical:
            self.code_head = nn.Linear(width, tokenizer.vocabulary)
            heads.append(self.code_head)
        if self.num_categorical < len(self.scales):
            self.digit_head = nn.Linear(width, sum(self.levels))
            heads.append(self.digit_head)
        for layer in heads:
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(
        self, context_BD: Tensor, residual: Residual, tokenizer: MultiScaleTokenizer
    ) -> tuple[list[Tensor], Tensor | None]:
        """Teacher forcing: logits of each scale [B, l G, K or sum(levels)], and the refined chunks [B, H, A] (None without a
        continuous scale)."""
        parts = [self._tokens(context_BD, None, 0)]
        parts += [self._tokens(context_BD, tokenizer.next_input(x, k + 1), k + 1) for k, x in enumerate(residual.running[:-1])]
        x, _ = self._trunk(torch.cat(parts, 1), self._modulate(context_BD), self.mask, None)
        logits = [self._logits(part, k).float() for k, part in enumerate(x.split(self.lengths, 1))]
        if self.refiner is None:
            return logits, None
        return logits, self.refiner(context_BD, tokenizer.reconstruct(residual.running[-1]).detach())

    def loss(
        self,
        context_BD: Tensor,
        actions_BHA: Tensor,
        tokenizer: MultiScaleTokenizer,
        generator: torch.Generator,
        inside_BH: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Cross-entropies of tokens and the error of refined chunks; also the accuracy of categories and of digits.

        inside_BH: bool, False for steps past the end of the episode, which do not count in the error of refined chunks.
        """
        with torch.no_grad():  # the tokenizer is given, gains included
            own = self._own_codes(context_BD, actions_BHA, tokenizer, generator) if self.own_tokens else None
            latent = tokenizer.latent(actions_BHA)
            residual = tokenizer.quantise(latent, self.self_correction, generator, given_B1G=own)
        logits, refined = self(context_BD, residual, tokenizer)
        metrics: dict[str, float | Tensor] = {}
        n, losses = self.num_categorical, []
        if n:
            coarse, codes = torch.cat(logits[:n], 1), _sequence(residual.codes[:n])
            losses.append(functional.cross_entropy(coarse.flatten(0, 1), codes.flatten()))
            metrics |= {"coarse_loss": losses[-1].detach(), "coarse_accuracy": (coarse.argmax(-1) == codes).float().mean()}
        if n < len(self.scales):
            loss, hits = self._digit_loss(torch.cat(logits[n:], 1), to_digits(_sequence(residual.codes[n:]), self.levels))
            losses.append(loss)
            metrics |= {"fine_loss": loss.detach(), "fine_accuracy": hits}
        share = self.coarse_weight
        total = losses[0] if len(losses) == 1 else share * losses[0] + (1 - share) * losses[1]
        if self.refiner is not None and refined is not None:
            error = (refined - actions_BHA).abs()
            weight = torch.ones_like(error) if inside_BH is None else inside_BH.unsqueeze(-1).expand_as(error).float()
            huber = functional.smooth_l1_loss(refined, actions_BHA, reduction="none", beta=self.refine_beta)
            each = self.refine_weight * huber - self.refiner.log_density(error.detach())  # the latter fits the spread alone
            total = total + (each * weight).mean()  # by all steps: the parts of a batch then add up to the whole
            metrics |= {"refined_error": (error.detach() * weight).sum() / weight.sum()}
        return total, metrics

    def _own_codes(
        self, context_BD: Tensor, actions_BHA: Tensor, tokenizer: MultiScaleTokenizer, generator: torch.Generator
    ) -> Tensor:
        """Coarsest codes int64 [B, 1, G] as the policy would draw them; -1 where the sample keeps its own.

        A code's probability is multiplied by exp(-excess): by how much it fits the chunk worse than the best code does, in
        terms of how badly best codes fit. What a coarse code leaves to finer scales anyway counts little, another mode is
        out of the question.
        """
        hidden, _ = self._trunk(self._tokens(context_BD, None, 0), self._modulate(context_BD), None, None)
        log_prob = self._logits(hidden, 0).float().log_softmax(-1)  # [B, G, K]
        error = tokenizer.coarse_errors(actions_BHA)
        least = error.amin(-1, keepdim=True)
        codes = draw(log_prob - (error - least) / least.mean(0, keepdim=True).clamp(min=1e-8), 1.0, generator)
        use = torch.rand((len(codes), 1), generator=generator, device=codes.device) < self.own_tokens
        return torch.where(use, codes, -1).unsqueeze(1)

    def _digit_loss(self, logits: Tensor, digits_BLC: Tensor) -> tuple[Tensor, Tensor]:
        loss, hits = logits.new_zeros(()), logits.new_zeros(())
        for i, part in enumerate(logits.split(self.levels, -1)):
            target = self.get_buffer(f"target_{i}")[digits_BLC[..., i]]
            loss = loss - (target * part.log_softmax(-1)).sum(-1).mean() / len(self.levels)
            hits = hits + (part.argmax(-1) == digits_BLC[..., i]).float().mean() / len(self.levels)
        return loss, hits

    def log_prob(self, context_BD: Tensor, actions_BHA: Tensor, tokenizer: MultiScaleTokenizer) -> Tensor:
        """Log-probability [B] of each chunk's tokens plus, with a continuous scale, the log-density (normalised units) of what
        they leave: a lower bound of the chunk's own log-density, which sums over all tokens."""
        residual = tokenizer.quantise(tokenizer.latent(actions_BHA))
        logits, refined = self(context_BD, residual, tokenizer)
        total = context_BD.new_zeros(len(context_BD))
        for k, part in enumerate(logits):
            codes = residual.codes[k].flatten(1)
            if k < self.num_categorical:
                total = total + part.log_softmax(-1).gather(-1, codes.unsqueeze(-1)).flatten(1).sum(1)
                continue
            digits = to_digits(codes, self.levels)
            for i, each in enumerate(part.split(self.levels, -1)):
                total = total + each.log_softmax(-1).gather(-1, digits[..., i : i + 1]).flatten(1).sum(1)
        if self.refiner is not None and refined is not None:
            total = total + self.refiner.log_density((refined - actions_BHA).abs()).flatten(1).sum(1)
        return total

    def sample(
        self,
        context_BD: Tensor,
        tokenizer: MultiScaleTokenizer,
        decoding: Decoding,
        generator: torch.Generator,
        num_samples: int = 1,
        use_cache: bool = True,
    ) -> Tensor:
        """Normalised chunks [B, N, H, A] of drawn tokens. Samples of a context share the pass of the coarsest scale.

        use_cache=False recomputes coarser tokens at every scale (slower).
        """
        caches: list[Cache] | None = None
        x = seen = self._tokens(context_BD, None, 0)
        modulations = self._modulate(context_BD)
        total = context_BD.new_zeros(())
        for k, length in enumerate(self.scales):
            if k:
                x = self._tokens(context_BD, tokenizer.next_input(total, k), k)
                seen = torch.cat([seen, x], 1)
            hidden, caches = self._next(x, seen, modulations, caches, use_cache)
            if k == 0 and num_samples > 1:
                hidden, seen = _repeat(hidden, num_samples), _repeat(seen, num_samples)
                modulations = [tuple(_repeat(part, num_samples) for part in parts) for parts in modulations]
                caches = [(_repeat(key, num_samples), _repeat(value, num_samples)) for key, value in caches] if caches else None
            values = self._draw(self._logits(hidden, k), k, decoding, generator, tokenizer)
            total = total + tokenizer.contribution(values.unflatten(1, (length, self.groups)), k)
        chunk = tokenizer.reconstruct(total)
        if self.refiner is not None:
            chunk = self.refiner(_repeat(context_BD, num_samples), chunk)
        return tokenizer.settle(chunk).unflatten(0, (-1, num_samples))

    def _next(
        self, x: Tensor, seen: Tensor, modulations: list[Modulation], caches: list[Cache] | None, use_cache: bool
    ) -> tuple[Tensor, list[Cache] | None]:
        """Hidden states of the tokens x, which are the last ones of `seen`."""
        if use_cache:
            return self._trunk(x, modulations, None, caches)
        count = seen.shape[1]
        return self._trunk(seen, modulations, self.mask[:count, :count], None)[0][:, -x.shape[1] :], None

    def _draw(
        self, logits: Tensor, scale: int, decoding: Decoding, generator: torch.Generator, tokenizer: MultiScaleTokenizer
    ) -> Tensor:
        """Values [B, l G, C] of the tokens of a scale."""
        temperature = decoding.coarse if scale == 0 else decoding.fine
        quantiser, groups = tokenizer.quantiser, self.groups
        if scale < self.num_categorical:
            codes = draw(logits, temperature, generator, decoding.top_k)
            return quantiser.values(codes.unflatten(1, (-1, groups)), scale).flatten(1, 2)
        assert isinstance(quantiser, FiniteScalarQuantiser)
        parts = logits.split(self.levels, -1)
        if self.soft and scale == len(self.scales) - 1 and temperature <= 0:
            digits = torch.stack([p.softmax(-1) @ torch.arange(p.shape[-1], device=p.device, dtype=p.dtype) for p in parts], -1)
        else:
            digits = torch.stack([draw(p, temperature, generator, decoding.top_k) for p in parts], -1).to(logits.dtype)
        return quantiser.digit_values(digits.unflatten(1, (-1, groups)), scale).flatten(1, 2)

    def _logits(self, hidden_BLD: Tensor, scale: int) -> Tensor:
        return self.code_head(hidden_BLD) if scale < self.num_categorical else self.digit_head(hidden_BLD)

    def _tokens(self, context_BD: Tensor, running: Tensor | None, scale: int) -> Tensor:
        """Input tokens [B, l G, width] of a scale: from the context for the first, from the reconstruction for others."""
        first = sum(self.lengths[:scale])
        position = self.position[first : first + self.lengths[scale]]
        if running is None or self.embed is None:
            return self.start(context_BD).unsqueeze(1) + position
        return self.embed(running.flatten(1, 2)) + position

    def _modulate(self, context_BD: Tensor) -> list[Modulation]:
        """All that the passes take from the context: of each block, then of the last normalisation."""
        shift, scale = self.norm(functional.silu(context_BD)).unsqueeze(-2).chunk(2, -1)
        return [*(block.modulate(context_BD) for block in self.blocks), (shift, 1 + scale)]

    def _trunk(
        self, x_BLD: Tensor, modulations: list[Modulation], mask_LL: Tensor | None, caches: list[Cache] | None
    ) -> tuple[Tensor, list[Cache]]:
        kept = []
        for i, block in enumerate(self.blocks):
            x_BLD, cache = block.modulated(x_BLD, modulations[i], mask_LL, caches[i] if caches else None)
            kept.append(cache)
        shift, scale = modulations[-1]
        return torch.addcmul(shift, functional.layer_norm(x_BLD, x_BLD.shape[-1:]), scale), kept


def _repeat(x: Tensor, times: int) -> Tensor:
    return x.repeat_interleave(times, 0)


def _sequence(codes: Sequence[Tensor]) -> Tensor:
    """Codes per scale [B, l, G] as one sequence [B, L]."""
    return torch.cat([part.flatten(1) for part in codes], 1)
