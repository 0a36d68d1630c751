"""Ensembles of small networks that share no parameter, made from a seed without touching torch's global generator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.models.layers import BatchedLinear


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: the same bits whatever the number of cores, and no slower for networks so small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Ensemble(nn.Module):
    """`num` independent MLPs with LayerNorm: [num, B, in] -> [num, B, out]."""

    def __init__(self, num: int, width_in: int, hidden: int, width_out: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first = BatchedLinear(num, width_in, hidden)
            self.second = BatchedLinear(num, hidden, hidden)
            self.last = BatchedLinear(num, hidden, width_out)

    def forward(self, x: Tensor) -> Tensor:
        """[num, B, in] -> [num, B, out]."""
        for layer in (self.first, self.second):
            x = layer(x)
            x = functional.silu(functional.layer_norm(x, x.shape[-1:]))
        return self.last(x)


def bootstrap_rows(episode: Tensor, num_members: int, generator: torch.Generator) -> Tensor:
    """How often each row counts for each member, float32 [num_members, N]: episodes drawn with replacement."""
    num = int(episode.max()) + 1
    present = torch.unique(episode)
    drawn = present[torch.randint(len(present), (num_members, len(present)), generator=generator)]
    counts = torch.zeros(num_members, num).scatter_add_(1, drawn, torch.ones(drawn.shape))
    return counts[:, episode]
