"""Small blocks that several models share. Suffixes as in robopolicy/batch.py; L counts tokens here."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

Cache = tuple[Tensor, Tensor]  # keys and values [B, heads, L, D / heads] of the tokens seen so far
Modulation = tuple[Tensor, ...]  # shift, scale and gate of attention, then of the MLP, [B, 1, D]; scales and gates near one


class BatchedLinear(nn.Module):
    """`num` independent linear maps in one matmul: [num, B, in_features] -> [num, B, out_features]."""

    def __init__(self, num: int, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(num, in_features, out_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(num, 1, out_features))

    def forward(self, x: Tensor) -> Tensor:
        """[num, B, in_features] -> [num, B, out_features]."""
        return torch.baddbmm(self.bias, x, self.weight)


def mlp(*widths: int, norm: bool = False) -> nn.Sequential:
    """Linear maps of the given widths with SiLU (and LayerNorm before it) between them; the last one is linear."""
    layers: list[nn.Module] = []
    for i, (width_in, width_out) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(width_in, width_out))
        if i < len(widths) - 2:
            layers += [nn.LayerNorm(width_out), nn.SiLU()] if norm else [nn.SiLU()]
    return nn.Sequential(*layers)


class ResidualBlock(nn.Module):
    """x + MLP(LayerNorm(x)), width preserved."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return x + self.block(x)


def residual_mlp(in_features: int, width: int, depth: int, out_features: int) -> nn.Sequential:
    """[..., in_features] -> [..., out_features] through `depth` residual blocks and a normalisation."""
    blocks = [ResidualBlock(width) for _ in range(depth)]
    return nn.Sequential(nn.Linear(in_features, width), *blocks, nn.LayerNorm(width), nn.Linear(width, out_features))


class ConditionedBlock(nn.Module):
    """Transformer block whose normalisations are shifted, scaled and gated by a context (adaLN, DiT, arXiv 2212.09748).

    Queries and keys are l2-normalised with a learned scale per head. Gates start near one, so that short runs learn.
    """

    def __init__(self, width: int, num_heads: int, context_width: int, depth: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width={width} is not a multiple of num_heads={num_heads}")
        self.num_heads = num_heads
        self.modulation = nn.Linear(context_width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.log_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(4.0)))
        self.project = nn.Linear(width, width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        nn.init.normal_(self.modulation.weight, std=0.02)
        nn.init.zeros_(self.modulation.bias)
        with torch.no_grad():
            self.project.weight.div_(math.sqrt(2 * depth))
            self.contract.weight.div_(math.sqrt(2 * depth))

    def forward(
        self, x_BLD: Tensor, context_BD: Tensor, mask_LL: Tensor | None = None, cache: Cache | None = None
    ) -> tuple[Tensor, Cache]:
        """Tokens after the block, and the keys and values of all tokens so far.

        mask_LL: bool, True where a row may look at a column; None = everywhere. cache: earlier tokens, seen by all of x.
        """
        return self.modulated(x_BLD, self.modulate(context_BD), mask_LL, cache)

    def modulate(self, context_BD: Tensor) -> Modulation:
        """All that the block takes from contexts [..., D]; several passes with one context share it."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(functional.silu(context_BD)).unsqueeze(-2).chunk(6, -1)
        return shift1, 1 + scale1, 1 + gate1, shift2, 1 + scale2, 1 + gate2

    def modulated(
        self, x_BLD: Tensor, modulation: Modulation, mask_LL: Tensor | None = None, cache: Cache | None = None
    ) -> tuple[Tensor, Cache]:
        """`forward` with the context's part given."""
        width = x_BLD.shape[-1]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        normed = torch.addcmul(shift1, functional.layer_norm(x_BLD, (width,)), scale1)
        attended, cache = self._attend(normed, mask_LL, cache)
        x_BLD = torch.addcmul(x_BLD, gate1, attended)
        normed = torch.addcmul(shift2, functional.layer_norm(x_BLD, (width,)), scale2)
        hidden = self.contract(functional.gelu(self.expand(normed), approximate="tanh"))
        return torch.addcmul(x_BLD, gate2, hidden), cache

    def _attend(self, x_BLD: Tensor, mask_LL: Tensor | None, cache: Cache | None) -> tuple[Tensor, Cache]:
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.qkv(x_BLD).chunk(3, -1))
        query = functional.normalize(query, dim=-1) * self.log_scale.clamp(max=math.log(100.0)).exp()
        key = functional.normalize(key, dim=-1)
        if cache is not None:
            key, value = torch.cat([cache[0], key], 2), torch.cat([cache[1], value], 2)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask_LL, scale=1.0)
        return self.project(attended.transpose(1, 2).flatten(2)), (key, value)
