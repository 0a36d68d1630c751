"""Optimiser, learning-rate schedule and weight averaging, and their state as flat named tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import AdamW


def learning_rate_factor(step: int, num_steps: int, warmup: float) -> float:
    """Share in (0, 1] of the peak learning rate for `step` in 0..num_steps - 1.

    It rises linearly over the first `warmup` * num_steps steps to 1, then falls along a half cosine to nearly zero.
    """
    rising = min(math.ceil(warmup * num_steps), num_steps - 1)
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / (num_steps - rising)))


def make_optimizer(module: nn.Module, parameters: Iterable[nn.Parameter], weight_decay: float) -> AdamW:
    """AdamW over `parameters` of `module`; vectors, scalars and everything called bias are not decayed."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    chosen = list(dict.fromkeys(parameters))
    decayed = [p for p in chosen if p.ndim >= 2 and not names[id(p)].rpartition(".")[2].startswith("bias")]
    kept = set(map(id, decayed))
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": [p for p in chosen if id(p) not in kept], "weight_decay": 0.0},
    ]
    return AdamW([group for group in groups if group["params"]], fused=True)


def average_decay(step: int, decay: float) -> float:
    """Decay of the average at `step`: small at first, so that it forgets the initial weights, then `decay`."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(average: Mapping[str, Tensor], module: nn.Module, parameters: Iterable[nn.Parameter], decay: float) -> None:
    """Move `average`, a copy of the state dict of `module`, towards it in place: average <- decay average + (1 - decay) x.

    Only `parameters` are averaged. Buffers and frozen weights are copied, so what was frozen stays exactly equal.
    """
    averaged = set(map(id, parameters))
    for name, value in module.state_dict(keep_vars=True).items():
        if id(value) in averaged:
            average[name].lerp_(value, 1 - decay)
        else:
            average[name].copy_(value)


def optimizer_tensors(optimizer: AdamW, module: nn.Module) -> dict[str, Tensor]:
    """State of `optimizer` as {"<parameter name>/<entry>": tensor}."""
    named = module.named_parameters()
    return {f"{name}/{entry}": value for name, p in named for entry, value in optimizer.state.get(p, {}).items()}


def load_optimizer_tensors(optimizer: AdamW, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of optimizer_tensors."""
    parameters = dict(module.named_parameters())
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        optimizer.state[parameters[name]][entry] = value.to(parameters[name].device)


@contextmanager
def only_trainable(module: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Gradients for `parameters` alone inside the block."""
    before, chosen = [(p, p.requires_grad) for p in module.parameters()], set(map(id, parameters))
    try:
        for parameter, _ in before:
            parameter.requires_grad_(id(parameter) in chosen)
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
            parameter.grad = None
