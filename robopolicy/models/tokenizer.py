"""Multi-scale action tokenizer: a chunk <-> a few coarse tokens, then finer and finer ones (CARP, arXiv 2412.06782, sec. 3.1).

The entries of an action are split into groups. Each group's chunk is encoded into a latent signal of a few steps,
which is quantised residually: the first scale is one token for the whole chunk, each later scale adds detail.
Instead of a learned codebook a token is a tuple of small integers (FSQ, arXiv 2309.15505), so no code can die.

Suffixes as in robopolicy/batch.py, and:
    L  steps of the latent signal (`_BLGC`) or tokens of a scale along time      C  digits of a token
A chunk has sum(scales) * G tokens, ordered scale by scale, then by time, then by group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.models.layers import BatchedLinear


@dataclass(frozen=True)
class Residual:
    """A latent signal, quantised scale by scale.

    digits: per scale, int64 [B, l, G, C], the best description of what the scales before left over.
    running: per scale, [B, L, G, C], the signal reconstructed from that scale and all before.
    """

    digits: list[Tensor]
    running: list[Tensor]


def snap(x: Tensor, levels_C: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest grid values of tanh(x) in [-1, 1] (straight-through gradient), and their digits 0 .. levels - 1."""
    half = (levels_C - 1) / 2
    bounded = torch.tanh(x)
    digits = torch.round((bounded + 1) * half)
    return bounded + (digits / half - 1 - bounded).detach(), digits.long()


def grid_values(digits: Tensor, levels_C: Tensor) -> Tensor:
    """Values in [-1, 1] of digits [..., C]; digits may be fractional, as expectations are."""
    return digits / ((levels_C - 1) / 2) - 1


def shake(digits: Tensor, levels_C: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Digits with a random part of the tokens moved by at most one level per digit.

    The part is drawn per sample between 0 and `share`.
    """
    device, shape = digits.device, digits.shape
    part = share * torch.rand((shape[0], 1, 1, 1), generator=generator, device=device)
    chosen = torch.rand((*shape[:-1], 1), generator=generator, device=device) < part
    step = torch.randint(-1, 2, shape, generator=generator, device=device)
    moved = torch.minimum((digits + step).clamp(min=0), levels_C.long() - 1)
    return torch.where(chosen, moved, digits)


def to_code(digits: Tensor, levels: Sequence[int]) -> Tensor:
    """Digits [..., C] as one integer per token, the first digit varying fastest."""
    code = torch.zeros_like(digits[..., 0])
    for i in reversed(range(len(levels))):
        code = code * levels[i] + digits[..., i]
    return code


def from_code(code: Tensor, levels: Sequence[int]) -> Tensor:
    """Inverse of to_code."""
    digits = []
    for count in levels:
        digits.append(code % count)
        code = code // count
    return torch.stack(digits, -1)


def resampling(length: int, steps: int) -> tuple[Tensor, Tensor]:
    """Matrices of area averaging [length, steps] and of linear interpolation back [steps, length]."""
    down = functional.adaptive_avg_pool1d(torch.eye(steps)[None], length)[0].T
    up = functional.interpolate(torch.eye(length)[None], size=steps, mode="linear", align_corners=False)[0].T
    return down.contiguous(), up.contiguous()


def check_groups(groups: Sequence[Sequence[int]] | None, group_size: int, action_dim: int) -> list[list[int]]:
    """Groups of action entries: those given, or consecutive ones of `group_size`.

    Raises:
        ValueError: an entry is missing, repeated or out of range.
    """
    if groups is None:
        if group_size < 1:
            raise ValueError(f"group_size={group_size} must be at least 1")
        return [list(range(i, min(i + group_size, action_dim))) for i in range(0, action_dim, group_size)]
    if sorted(i for group in groups for i in group) != list(range(action_dim)) or not all(groups):
        raise ValueError(f"groups={[list(g) for g in groups]} must hold each of 0..{action_dim - 1} exactly once")
    return [list(group) for group in groups]


class MultiScaleTokenizer(nn.Module):
    """Normalised chunks [B, H, A] <-> digits [B, sum(scales), G, C].

    Args:
        action_dim: A.
        action_horizon: H.
        scales: tokens along time at each scale, ascending; the last one is the length of the latent signal.
        levels: number of values of each of the C digits of a token; their product is the vocabulary.
        group_size: consecutive action entries that share tokens; 1 is the paper's choice.
        groups: explicit groups of action entries instead.
        width: of the hidden layers, per group.
        prefix_weight: weight of the error of reconstructions from incomplete scales, which makes the coarse tokens
            carry what matters most.
    """

    gather: Tensor
    scatter: Tensor
    levels: Tensor

    def __init__(
        self,
        *,
        action_dim: int,
        action_horizon: int,
        scales: Sequence[int] = (1, 2, 3, 4),
        levels: Sequence[int] = (8, 5, 5, 5),
        group_size: int = 3,
        groups: Sequence[Sequence[int]] | None = None,
        width: int = 128,
        prefix_weight: float = 0.1,
    ) -> None:
        super().__init__()
        if len(scales) < 2 or list(scales) != sorted(set(scales)) or scales[0] < 1:
            raise ValueError(f"scales={list(scales)} must be at least two ascending positive numbers, such as [1, 2, 3, 4]")
        if not levels or min(levels) < 2:
            raise ValueError(f"levels={list(levels)} must all be at least 2, such as [8, 5, 5, 5]")
        self.action_dim, self.action_horizon, self.prefix_weight = action_dim, action_horizon, prefix_weight
        self.scales, self.level_counts = tuple(scales), tuple(levels)
        self.groups = check_groups(groups, group_size, action_dim)
        self.num_groups, self.num_digits = len(self.groups), len(levels)
        self._register_constants()
        size, latent = action_horizon * self.gather.shape[1], scales[-1] * len(levels)
        self.encoder = _batched_mlp(self.num_groups, size, width, width, latent)
        self.decoder = _batched_mlp(self.num_groups, latent, width, width, size)
        gains = torch.tensor([0.5**k for k in range(len(scales))])
        self.log_gain = nn.Parameter(gains.log()[:, None, None].repeat(1, self.num_groups, 1))

    def _register_constants(self) -> None:
        largest = max(map(len, self.groups))
        # short groups repeat their first entry: same shape for one matmul, and the copies are dropped when decoding
        padded = [group + [group[0]] * (largest - len(group)) for group in self.groups]
        place = {entry: (g, i) for g, group in enumerate(self.groups) for i, entry in enumerate(group)}
        scatter = [place[entry][0] * largest + place[entry][1] for entry in range(self.action_dim)]
        constants = {"gather": padded, "scatter": scatter, "levels": [float(n) for n in self.level_counts]}
        for name, values in constants.items():
            self.register_buffer(name, torch.tensor(values), persistent=False)
        for k, length in enumerate(self.scales):
            down, up = resampling(length, self.scales[-1])
            self.register_buffer(f"down_{k}", down, persistent=False)
            self.register_buffer(f"up_{k}", up, persistent=False)

    @property
    def vocabulary(self) -> int:
        """Number of different tokens."""
        return int(torch.tensor(self.level_counts).prod())

    @property
    def num_steps(self) -> int:
        """Tokens of one group, over all scales."""
        return sum(self.scales)

    def latent(self, actions_BHA: Tensor) -> Tensor:
        """Continuous latent signal [B, L, G, C] of normalised chunks."""
        grouped = actions_BHA[..., self.gather]  # [B, H, G, g]
        x = _run(self.encoder, grouped.permute(2, 0, 1, 3).flatten(2))
        return x.view(self.num_groups, -1, self.scales[-1], self.num_digits).permute(1, 2, 0, 3)

    def reconstruct(self, latent_BLGC: Tensor) -> Tensor:
        """Normalised chunks [B, H, A] of latent signals."""
        y = _run(self.decoder, latent_BLGC.permute(2, 0, 1, 3).flatten(2))  # [G, B, H g]
        y = y.view(self.num_groups, -1, self.action_horizon, self.gather.shape[1]).permute(1, 2, 0, 3)
        return y.flatten(2)[..., self.scatter]

    def contribution(self, digits: Tensor, scale: int) -> Tensor:
        """What the tokens [B, l, G, C] of `scale` (fractional digits allowed) add to the latent signal: [B, L, G, C]."""
        return self._up(grid_values(digits, self.levels) * self.log_gain[scale].exp(), scale)

    def next_input(self, running_BLGC: Tensor, scale: int) -> Tensor:
        """The reconstruction before `scale` at its resolution, [B, l, G, C]: what the tokens of `scale` start from."""
        return self._down(running_BLGC, scale)

    def quantise(self, latent_BLGC: Tensor, shake_share: float = 0.0, generator: torch.Generator | None = None) -> Residual:
        """Residual quantisation, coarse to fine.

        shake_share > 0 (with a generator) disturbs the tokens that `running` is made of, but not `digits`: each scale
        then describes what corrects the disturbed ones before it (self-correction, arXiv 2412.04431, sec. 3.4).
        """
        digits, running = [], []
        total = torch.zeros_like(latent_BLGC)
        for k in range(len(self.scales)):
            gain = self.log_gain[k].exp()
            values, chosen = snap(self._down(latent_BLGC - total, k) / gain, self.levels)
            digits.append(chosen)
            if shake_share > 0 and generator is not None:
                values = grid_values(shake(chosen, self.levels, shake_share, generator), self.levels)
            total = total + self._up(values * gain, k)
            running.append(total)
        return Residual(digits, running)

    def encode(self, actions_BHA: Tensor) -> Tensor:
        """Digits [B, sum(scales), G, C] of normalised chunks."""
        return torch.cat(self.quantise(self.latent(actions_BHA)).digits, 1)

    def decode(self, digits: Tensor) -> Tensor:
        """Normalised chunks [B, H, A] of digits [B, sum(scales), G, C]. Every digit tuple decodes."""
        return self.prefix(digits, len(self.scales))

    def prefix(self, digits: Tensor, num_scales: int) -> Tensor:
        """Normalised chunks [B, H, A] from the first `num_scales` scales of digits [B, >= their tokens, G, C].

        Raises:
            ValueError: num_scales is not in 1..number of scales.
        """
        if not 1 <= num_scales <= len(self.scales):
            raise ValueError(f"num_scales={num_scales} must be in 1..{len(self.scales)}")
        parts = digits[:, : sum(self.scales[:num_scales])].split(self.scales[:num_scales], 1)
        return self.reconstruct(torch.stack([self.contribution(part, k) for k, part in enumerate(parts)]).sum(0))

    def loss(self, actions_BHA: Tensor) -> tuple[Tensor, Tensor, Residual]:
        """Squared error of all prefixes (weighted), the reconstructions [S, B, H, A], and the residual."""
        residual = self.quantise(self.latent(actions_BHA))
        num_scales = len(self.scales)
        stacked = self.reconstruct(torch.cat(residual.running)).unflatten(0, (num_scales, -1))
        errors = (stacked - actions_BHA).square().flatten(1).mean(1)
        return errors[-1] + self.prefix_weight * errors[:-1].mean(), stacked, residual

    def _down(self, signal_BLGC: Tensor, scale: int) -> Tensor:
        return torch.einsum("lt,btgc->blgc", self.get_buffer(f"down_{scale}"), signal_BLGC)

    def _up(self, signal_BLGC: Tensor, scale: int) -> Tensor:
        return torch.einsum("tl,blgc->btgc", self.get_buffer(f"up_{scale}"), signal_BLGC)


def usage(digits: Tensor, levels: Sequence[int]) -> Tensor:
    """Perplexity of the tokens [..., C] in a batch: how many codes are in use, counted by how evenly they are used."""
    counts = torch.unique(to_code(digits, levels), return_counts=True)[1].float()
    share = counts / counts.sum()
    return (-(share * share.log()).sum()).exp()


def _batched_mlp(num: int, *widths: int) -> nn.ModuleList:
    return nn.ModuleList(BatchedLinear(num, i, o) for i, o in pairwise(widths))


def _run(layers: nn.ModuleList, x: Tensor) -> Tensor:
    for i, layer in enumerate(layers):
        x = layer(x if i == 0 else functional.silu(x))
    return x
