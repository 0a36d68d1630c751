"""Multi-scale action tokenizer: a chunk <-> a few coarse tokens, then finer and finer ones (CARP, arXiv 2412.06782, sec. 3.1).

The entries of an action are split into groups. Each group's chunk is encoded into a latent signal of a few steps,
which is quantised residually: the first scale is one token for the whole chunk, each later scale adds detail.

Suffixes as in robopolicy/batch.py, and:
    L  steps of the latent signal (`_BLGC`) or tokens of a scale along time      C  entries of a code's vector
A chunk has sum(scales) * G tokens, ordered scale by scale, then by time, then by group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy.fft import dct
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.data.transforms import MAX_DISTINCT
from robopolicy.models.layers import BatchedLinear
from robopolicy.models.quantisers import FiniteScalarQuantiser, Quantiser, VectorQuantiser
from robopolicy.spec import Array

QUANTISERS = ("fsq", "vq")


@dataclass(frozen=True)
class Residual:
    """A latent signal, quantised scale by scale.

    codes: per scale, int64 [B, l, G], the best description of what the scales before left over.
    running: per scale, [B, L, G, C], the signal reconstructed from that scale and all before.
    commitment: what a learned codebook adds to the loss.
    """

    codes: list[Tensor]
    running: list[Tensor]
    commitment: Tensor


def resampling(length: int, steps: int) -> tuple[Tensor, Tensor]:
    """Matrices of area averaging [length, steps] and of linear interpolation back [steps, length]."""
    down = functional.adaptive_avg_pool1d(torch.eye(steps)[None], length)[0].T
    up = functional.interpolate(torch.eye(length)[None], size=steps, mode="linear", align_corners=False)[0].T
    return down.contiguous(), up.contiguous()


def check_groups(groups: Sequence[Sequence[int]] | None, group_size: int | None, action_dim: int) -> list[list[int]]:
    """Groups of action entries: those given, or consecutive ones of `group_size` (None: all in one).

    Raises:
        ValueError: an entry is missing, repeated or out of range.
    """
    if groups is None:
        size = action_dim if group_size is None else group_size
        if size < 1:
            raise ValueError(f"group_size={group_size} must be at least 1")
        return [list(range(i, min(i + size, action_dim))) for i in range(0, action_dim, size)]
    if sorted(i for group in groups for i in group) != list(range(action_dim)) or not all(groups):
        raise ValueError(f"groups={[list(g) for g in groups]} must hold each of 0..{action_dim - 1} exactly once")
    return [list(group) for group in groups]


class MultiScaleTokenizer(nn.Module):
    """Normalised chunks [B, H, A] <-> codes, per scale int64 [B, l, G].

    Entries of an action that only ever take a few values (a gripper command: open, closed) always decode to one of
    them, and values outside what was seen in training are clamped before encoding.

    Args:
        action_dim: A.
        action_horizon: H.
        scales: tokens along time at each scale, ascending; the last one is the length of the latent signal.
        quantiser: "fsq" (a token is a tuple of small integers) or "vq" (a learned codebook per group).
        levels: fsq: number of values of each of the C digits of a token; their product is the vocabulary.
        codebook_size, code_width: vq: the vocabulary and C.
        group_size: consecutive action entries that share tokens; None = all of them, 1 is the paper's choice.
        groups: explicit groups of action entries instead.
        width: of the hidden layers, per group.
        prefix_weight: weight of the error of reconstructions from incomplete scales, which makes the coarse tokens
            carry what matters most.
        low_frequency: additional weight of the slow part of the errors, the first quarter of their cosine coefficients;
            switches have none (after MINT, arXiv 2602.08602; there all coefficients, which Parseval makes the plain error).
    """

    gather: Tensor
    scatter: Tensor
    slow: Tensor
    low: Tensor
    high: Tensor
    switch_values: Tensor
    is_switch: Tensor

    def __init__(
        self,
        *,
        action_dim: int,
        action_horizon: int,
        scales: Sequence[int] = (1, 2, 4),
        quantiser: str = "fsq",
        levels: Sequence[int] = (8, 5, 5, 5),
        codebook_size: int = 512,
        code_width: int = 8,
        group_size: int | None = None,
        groups: Sequence[Sequence[int]] | None = None,
        width: int = 128,
        prefix_weight: float = 0.1,
        low_frequency: float = 0.0,
    ) -> None:
        super().__init__()
        if not scales or list(scales) != sorted(set(scales)) or scales[0] < 1:
            raise ValueError(f"scales={list(scales)} must be ascending positive numbers, such as [1, 2, 4]")
        if quantiser not in QUANTISERS:
            raise ValueError(f"quantiser={quantiser!r} must be one of {', '.join(QUANTISERS)}")
        for name, weight in {"prefix_weight": prefix_weight, "low_frequency": low_frequency}.items():
            if not weight >= 0:
                raise ValueError(f"{name}={weight} must be at least 0: it is a weight")
        self.action_dim, self.action_horizon, self.prefix_weight = action_dim, action_horizon, prefix_weight
        self.low_frequency = low_frequency
        self.scales = tuple(scales)
        self.groups = check_groups(groups, group_size, action_dim)
        self.num_groups = len(self.groups)
        self.quantiser: Quantiser
        if quantiser == "fsq":
            self.quantiser = FiniteScalarQuantiser(levels, len(scales), self.num_groups)
        else:
            self.quantiser = VectorQuantiser(codebook_size, code_width, self.num_groups)
        self.code_width = self.quantiser.width
        self._register_constants()
        size, latent = action_horizon * self.gather.shape[1], scales[-1] * self.code_width
        self.encoder = _batched_mlp(self.num_groups, size, width, width, latent)
        self.decoder = _batched_mlp(self.num_groups, latent, width, width, size)

    def _register_constants(self) -> None:
        largest = max(map(len, self.groups))
        # short groups repeat their first entry: same shape for one matmul, and the copies are dropped when decoding
        padded = [group + [group[0]] * (largest - len(group)) for group in self.groups]
        place = {entry: (g, i) for g, group in enumerate(self.groups) for i, entry in enumerate(group)}
        scatter = [place[entry][0] * largest + place[entry][1] for entry in range(self.action_dim)]
        for name, values in {"gather": padded, "scatter": scatter}.items():
            self.register_buffer(name, torch.tensor(values), persistent=False)
        for k, length in enumerate(self.scales):
            down, up = resampling(length, self.scales[-1])
            self.register_buffer(f"down_{k}", down, persistent=False)
            self.register_buffer(f"up_{k}", up, persistent=False)
        slow = dct(np.eye(self.action_horizon), axis=0, norm="ortho")[: math.ceil(self.action_horizon / 4)]
        self.register_buffer("slow", torch.from_numpy(slow).float(), persistent=False)
        self.register_buffer("low", torch.full((self.action_dim,), -1e6))
        self.register_buffer("high", torch.full((self.action_dim,), 1e6))
        self.register_buffer("is_switch", torch.zeros(self.action_dim, dtype=torch.bool))
        self.register_buffer("switch_values", torch.zeros(self.action_dim, MAX_DISTINCT))

    def fit(self, normalized: Mapping[str, Array]) -> None:
        """Remember the range of each action entry and the values of switches.

        normalized: "min", "max" [A], "num_distinct" [A] and "distinct" [A, MAX_DISTINCT] of data.transforms.vector_statistics,
            in normalised units.
        """
        self.low.copy_(torch.from_numpy(normalized["min"]))
        self.high.copy_(torch.from_numpy(normalized["max"]))
        self.is_switch.copy_(torch.from_numpy(normalized["num_distinct"] <= MAX_DISTINCT))
        self.switch_values.copy_(torch.from_numpy(normalized["distinct"]))

    @property
    def moves(self) -> Tensor:
        """Whether an action entry takes more than one value, bool [A]; all of them before `fit`."""
        return self.low < self.high

    @property
    def vocabulary(self) -> int:
        """Number of different tokens."""
        return self.quantiser.num_codes

    def latent(self, actions_BHA: Tensor) -> Tensor:
        """Continuous latent signal [B, L, G, C] of normalised chunks."""
        clamped = torch.minimum(torch.maximum(actions_BHA, self.low), self.high)
        grouped = clamped[..., self.gather]  # [B, H, G, g]
        x = _run(self.encoder, grouped.permute(2, 0, 1, 3).flatten(2))
        return x.view(self.num_groups, -1, self.scales[-1], self.code_width).permute(1, 2, 0, 3)

    def reconstruct(self, latent_BLGC: Tensor) -> Tensor:
        """Normalised chunks [B, H, A] of latent signals, before `settle`."""
        y = _run(self.decoder, latent_BLGC.permute(2, 0, 1, 3).flatten(2))  # [G, B, H g]
        y = y.view(self.num_groups, -1, self.action_horizon, self.gather.shape[1]).permute(1, 2, 0, 3)
        return y.flatten(2)[..., self.scatter]

    def settle(self, actions: Tensor) -> Tensor:
        """Actions [..., A] whose switches take the nearest value that they can take."""
        nearest = (actions.unsqueeze(-1) - self.switch_values).abs().argmin(-1)  # [..., A]
        values = self.switch_values.expand(*actions.shape, -1).gather(-1, nearest.unsqueeze(-1)).squeeze(-1)
        return torch.where(self.is_switch, values, actions)

    def contribution(self, values_BlGC: Tensor, scale: int) -> Tensor:
        """What the values of the tokens of `scale` add to the latent signal: [B, L, G, C]."""
        return torch.einsum("tl,blgc->btgc", self.get_buffer(f"up_{scale}"), values_BlGC)

    def next_input(self, running_BLGC: Tensor, scale: int) -> Tensor:
        """The reconstruction before `scale` at its resolution, [B, l, G, C]: what the tokens of `scale` start from."""
        return torch.einsum("lt,btgc->blgc", self.get_buffer(f"down_{scale}"), running_BLGC)

    def quantise(
        self,
        latent_BLGC: Tensor,
        disturb: float = 0.0,
        generator: torch.Generator | None = None,
        learn: bool = False,
        given_B1G: Tensor | None = None,
    ) -> Residual:
        """Residual quantisation, coarse to fine.

        disturb > 0 (with a generator) replaces a random part of the tokens that `running` is made of by neighbours, but
        not `codes`: each scale then describes what corrects the disturbed ones before it (self-correction, arXiv
        2412.04431, sec. 3.4). The part is drawn per sample between 0 and `disturb`. learn: see Quantiser.forward. given_B1G:
        codes of the coarsest scale that take the place of the best ones in `running`, where they are not -1.
        """
        with torch.autocast(latent_BLGC.device.type, enabled=False):
            return self._quantise(latent_BLGC, disturb, generator, learn, given_B1G)

    def _quantise(
        self, latent_BLGC: Tensor, disturb: float, generator: torch.Generator | None, learn: bool, given_B1G: Tensor | None
    ) -> Residual:
        codes, running, commitment = [], [], latent_BLGC.new_zeros(())
        total = torch.zeros_like(latent_BLGC)
        for k in range(len(self.scales)):
            values, chosen, loss = self.quantiser(self.next_input(latent_BLGC - total, k), k, learn)
            codes.append(chosen)
            commitment = commitment + loss / len(self.scales)
            if k == 0 and given_B1G is not None:
                values = self.quantiser.values(torch.where(given_B1G >= 0, given_B1G, chosen), k)
            elif disturb > 0 and generator is not None:
                shape, device = (len(chosen), 1, 1), chosen.device
                part = disturb * torch.rand(shape, generator=generator, device=device)
                moved = torch.rand(chosen.shape, generator=generator, device=device) < part
                near = self.quantiser.neighbours(chosen, generator)
                values = self.quantiser.values(torch.where(moved, near, chosen), k)
            total = total + self.contribution(values, k)
            running.append(total)
        return Residual(codes, running, commitment)

    def coarse_errors(self, actions_BHA: Tensor) -> Tensor:
        """Mean squared error [B, G, K] of decoding each code of a one-token coarsest scale, per group."""
        codes = torch.arange(self.vocabulary, device=actions_BHA.device)[:, None, None].expand(-1, 1, self.num_groups)
        table = self.reconstruct(self.contribution(self.quantiser.values(codes, 0), 0))  # [K, H, A]
        a, t = actions_BHA.transpose(1, 2), table.transpose(1, 2)  # [B, A, H], [K, A, H]
        squared = a.square().sum(-1)[:, None] - 2 * torch.einsum("bah,kah->bka", a, t) + t.square().sum(-1)[None]
        return torch.stack([squared[..., group].mean(-1) for group in self.groups], 1) / self.action_horizon

    def encode(self, actions_BHA: Tensor) -> list[Tensor]:
        """Codes per scale, int64 [B, l, G], of normalised chunks."""
        return self.quantise(self.latent(actions_BHA)).codes

    def decode(self, codes: Sequence[Tensor]) -> Tensor:
        """Normalised chunks [B, H, A] of the codes of all scales, or of the first few. Every code decodes.

        Raises:
            ValueError: no scale, or more than there are.
        """
        if not 1 <= len(codes) <= len(self.scales):
            raise ValueError(f"codes of {len(codes)} scales given, there must be 1 to {len(self.scales)}")
        parts = [self.contribution(self.quantiser.values(part, k), k) for k, part in enumerate(codes)]
        return self.settle(self.reconstruct(torch.stack(parts).sum(0)))

    def errors(self, off_SBHA: Tensor) -> Tensor:
        """Mean squared error [S] of deviations, the slow part of those of entries that are no switches weighted more."""
        squared = off_SBHA.square().flatten(1).mean(1)
        if self.low_frequency == 0:
            return squared
        slow = torch.einsum("kh,sbha->sbka", self.slow, torch.where(self.is_switch, 0.0, off_SBHA)).square().mean((1, 3)).sum(1)
        return squared + self.low_frequency * slow / self.action_horizon

    def loss(self, actions_BHA: Tensor) -> tuple[Tensor, Tensor, Residual]:
        """Squared error of all prefixes (weighted), the reconstructions [S, B, H, A], and the residual."""
        residual = self.quantise(self.latent(actions_BHA), learn=True)
        num_scales = len(self.scales)
        stacked = self.reconstruct(torch.cat(residual.running)).unflatten(0, (num_scales, -1))
        errors = self.errors(stacked - actions_BHA)
        return (
            errors[-1] + self.prefix_weight * errors[:-1].sum() / max(num_scales - 1, 1) + residual.commitment,
            stacked,
            residual,
        )


def usage(codes_BLG: Tensor, vocabulary: int) -> Tensor:
    """Perplexity [G] of each group's codes: how many are in use, counted by how evenly they are used."""
    chosen = codes_BLG.flatten(0, 1).T  # [G, B L]
    counts = torch.zeros((len(chosen), vocabulary), device=chosen.device)
    share = counts.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=counts.dtype)) / chosen.shape[1]
    return torch.special.entr(share).sum(1).exp()


def _batched_mlp(num: int, *widths: int) -> nn.ModuleList:
    return nn.ModuleList(BatchedLinear(num, i, o) for i, o in pairwise(widths))


def _run(layers: nn.ModuleList, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):  # a rounded latent would be another code
        x = x.float()
        for i, layer in enumerate(layers):
            x = layer(x if i == 0 else functional.silu(x))
    return x
