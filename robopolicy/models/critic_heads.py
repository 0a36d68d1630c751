"""Independent heads of a critic: context and chunk to a value in [0, 1], as a probability or a distribution over bins.

Suffixes as in robopolicy/batch.py; V counts bins of a value.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.models.layers import BatchedLinear
from robopolicy.spec import did_you_mean

OUTPUTS = ("probability", "hl_gauss")
PRIOR = -2.0  # logit that values start from: success is rare, and what bootstraps forgets its start slowly


def gaussian_bins(target: Tensor, num_bins: int, spread: float) -> Tensor:
    """Shares [..., V] of a Gaussian around `target` in [0, 1] in equal bins of [0, 1] (HL-Gauss, arXiv 2403.03950, eq. 4).

    spread: its std in bins. What lies outside [0, 1] is given back to the bins in proportion.
    """
    edges = torch.linspace(0, 1, num_bins + 1, device=target.device, dtype=target.dtype)
    below = torch.special.ndtr((edges - target.unsqueeze(-1)) * num_bins / spread)
    shares = below[..., 1:] - below[..., :-1]
    return shares / shares.sum(-1, keepdim=True)


class ValueOutput(nn.Module):
    """What raw outputs [..., size] mean, and how far they are from a target in [0, 1].

    Args:
        kind: "probability": a logit, binary cross-entropy; "hl_gauss": a distribution over `num_bins`, cross-entropy to a
            Gaussian of `spread` bins around the target.
    """

    def __init__(self, kind: str = "probability", num_bins: int = 51, spread: float = 0.75) -> None:
        super().__init__()
        if kind not in OUTPUTS:
            raise ValueError(f"output={kind!r}; {did_you_mean(kind, OUTPUTS)}")
        self.kind, self.num_bins, self.spread = kind, num_bins, spread
        self.size = num_bins if kind == "hl_gauss" else 1
        self.register_buffer("centres", (torch.arange(num_bins) + 0.5) / num_bins, persistent=False)

    def value(self, raw: Tensor) -> Tensor:
        """Values [...] in (0, 1) of raw outputs [..., size]."""
        if self.kind == "probability":
            return raw.squeeze(-1).sigmoid()
        return raw.float().softmax(-1) @ self.get_buffer("centres")

    def error(self, raw: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy [...] to `target` [...] in [0, 1]; its minimum over a distribution of targets has their mean.

        Nearly so within 3 `spread` bins of 0 and 1 for "hl_gauss": of targets that are all 0 it is 0.014 with 51 bins.
        """
        target = target.expand(raw.shape[:-1])
        if self.kind == "probability":
            return functional.binary_cross_entropy_with_logits(raw.squeeze(-1).float(), target.float(), reduction="none")
        shares = gaussian_bins(target.float(), self.num_bins, self.spread)
        return -(shares * raw.float().log_softmax(-1)).sum(-1)


class ActionHeads(nn.Module):
    """E independent networks (context, chunk) -> raw outputs. The chunk enters every layer, so none can leave it out.

    Args:
        num_heads: E. context_width: D. chunk_width: F, of a chunk's features. hidden: width. size: raw outputs of a head.
    """

    def __init__(self, num_heads: int, context_width: int, chunk_width: int, hidden: int, size: int) -> None:
        super().__init__()
        self.from_context = BatchedLinear(num_heads, context_width, hidden)
        self.from_chunk = BatchedLinear(num_heads, chunk_width, hidden)
        self.again = BatchedLinear(num_heads, chunk_width, hidden)
        self.inner = BatchedLinear(num_heads, hidden, hidden)
        self.outer = BatchedLinear(num_heads, hidden, size)
        if size == 1:
            nn.init.constant_(self.outer.bias, PRIOR)

    def forward(self, context_EBD: Tensor, chunks_EBNF: Tensor) -> Tensor:
        """Raw outputs [E, B, N, size]; the context's share is computed once for all N."""
        batch, num = chunks_EBNF.shape[1:3]
        flat = chunks_EBNF.flatten(1, 2)
        context = self.from_context(context_EBD).unsqueeze(2)  # [E, B, 1, hidden]
        x = (context + self.from_chunk(flat).unflatten(1, (batch, num))).flatten(1, 2)
        x = self.inner(_activate(x)) + self.again(flat)
        return self.outer(_activate(x)).unflatten(1, (batch, num))


def _activate(x: Tensor) -> Tensor:
    return functional.silu(functional.layer_norm(x, x.shape[-1:]))  # without weights, which heads would share


class StateHeads(nn.Module):
    """E independent networks context -> logit of a value in [0, 1]."""

    def __init__(self, num_heads: int, context_width: int, hidden: int) -> None:
        super().__init__()
        self.from_context = BatchedLinear(num_heads, context_width, hidden)
        self.outer = BatchedLinear(num_heads, hidden, 1)
        nn.init.constant_(self.outer.bias, PRIOR)

    def forward(self, context_EBD: Tensor) -> Tensor:
        """Logits [E, B]."""
        return self.outer(_activate(self.from_context(context_EBD))).squeeze(-1)
