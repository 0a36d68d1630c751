"""Transformer with one token per step of a chunk, on the blocks of the coarse-to-fine one: the trunk of the other policies.

Everything that the context decides (the modulations of all blocks) is computed apart from the passes, so that a sampler
of many passes pays for it once. Suffixes as in robopolicy/batch.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.models.layers import Cache, ConditionedBlock, Modulation, mlp

TIME_SCALE = 1000.0  # times in [0, 1] are spread to this range before their sines are taken


class ChunkTransformer(nn.Module):
    """Tokens of the steps [B, H, inputs] and a context [B, D] -> outputs of the steps [B, H, outputs].

    Args:
        context_width: D of the context.
        action_horizon: H, steps of a chunk.
        inputs: numbers that a step's token starts from; 0 = its position alone.
        outputs: numbers that are read off a step's token.
        width, depth, num_heads: of the transformer.
    """

    def __init__(
        self,
        *,
        context_width: int,
        action_horizon: int,
        inputs: int,
        outputs: int,
        width: int = 128,
        depth: int = 3,
        num_heads: int = 4,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs, width) if inputs else None
        self.position = nn.Parameter(0.02 * torch.randn(action_horizon, width))
        blocks = [ConditionedBlock(width, num_heads, context_width, depth) for _ in range(depth)]
        self.blocks: Sequence[ConditionedBlock] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.norm = nn.Linear(context_width, 2 * width)
        self.head = nn.Linear(width, outputs)
        for layer in (self.norm, self.head):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x_BHI: Tensor | None, context_BD: Tensor, mask_HH: Tensor | None = None) -> Tensor:
        """Outputs [B, H, outputs]. mask_HH: bool, True where a row's step may look at a column's; None = everywhere."""
        return self.run(x_BHI, self.modulate(context_BD), mask_HH)[0]

    def modulate(self, context_BD: Tensor) -> list[Modulation]:
        """All that the passes take from contexts [..., D]: of each block, then of the last normalisation."""
        shift, scale = self.norm(functional.silu(context_BD)).unsqueeze(-2).chunk(2, -1)
        return [*(block.modulate(context_BD) for block in self.blocks), (shift, 1 + scale)]

    def run(
        self,
        x_BHI: Tensor | None,
        modulations: list[Modulation],
        mask_HH: Tensor | None = None,
        caches: Sequence[Cache] | None = None,
    ) -> tuple[Tensor, list[Cache]]:
        """Outputs of the steps of x, which come after those in `caches`, and the caches with them added."""
        if x_BHI is None or self.embed is None:
            x = self.position.expand(len(modulations[0][0]), -1, -1)
        else:
            first = caches[0][0].shape[2] if caches else 0
            x = self.embed(x_BHI) + self.position[first : first + x_BHI.shape[1]]
        kept = []
        for i, block in enumerate(self.blocks):
            x, cache = block.modulated(x, modulations[i], mask_HH, caches[i] if caches else None)
            kept.append(cache)
        shift, scale = modulations[-1]
        return self.head(torch.addcmul(shift, functional.layer_norm(x, x.shape[-1:]), scale)), kept


class TimedChunkTransformer(ChunkTransformer):
    """The trunk of policies that refine a chunk: chunk [B, H, A], context [B, D] and a time in [0, 1] -> [B, H, A]."""

    def __init__(
        self,
        *,
        context_width: int,
        action_horizon: int,
        action_dim: int,
        width: int = 128,
        depth: int = 3,
        num_heads: int = 4,
    ) -> None:
        super().__init__(
            context_width=context_width,
            action_horizon=action_horizon,
            inputs=action_dim,
            outputs=action_dim,
            width=width,
            depth=depth,
            num_heads=num_heads,
        )
        self.num_sines = width // 2
        self.time = mlp(2 * self.num_sines, context_width, context_width)

    def at(self, x_BHA: Tensor, context_BD: Tensor, time_B: Tensor) -> Tensor:
        """Output [B, H, A] at one time per row."""
        return self(x_BHA, context_BD + self.time(self._sines(time_B)))

    def passes(self, context_BD: Tensor, times: Sequence[float], repeats: int = 1) -> Iterator[list[Modulation]]:
        """Modulations of one pass per time, for `run`, computed together; each context serves `repeats` rows in turn."""
        times_S = torch.tensor(times, dtype=context_BD.dtype, device=context_BD.device)
        stacked = self.modulate(context_BD + self.time(self._sines(times_S)).unsqueeze(1))  # of [S, B, D]
        if repeats > 1 and len(context_BD) == 1:
            repeats = 1  # one context broadcasts
        unbound = [[part.unbind(0) for part in modulation] for modulation in stacked]
        for i in range(len(times)):
            step = [tuple(part[i] for part in modulation) for modulation in unbound]
            yield step if repeats == 1 else [tuple(p.repeat_interleave(repeats, 0) for p in m) for m in step]

    def _sines(self, time: Tensor) -> Tensor:
        """Sines and cosines [..., width] of times [...], periods from 2 pi to 2 pi 10,000 on the scale of TIME_SCALE."""
        exponent = torch.arange(self.num_sines, dtype=time.dtype, device=time.device) / self.num_sines
        angle = TIME_SCALE * time.unsqueeze(-1) * torch.exp(-math.log(1e4) * exponent)
        return torch.cat([angle.sin(), angle.cos()], -1)
