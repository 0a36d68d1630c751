"""What a batch is: keys, tensor shapes, conversion from numpy, a fake one for tests, and the phases of a training run.

Shape suffixes in model files:

    B  batch                    A  entries of one action      S  scales, coarse to fine
    N  candidate chunks         P  points of a cloud          K  codes or levels of a quantiser
    T  observation frames       C  channels                   E  ensemble heads
    H  steps of a chunk         D  width of a context         G  groups of action entries
    L  tokens, or latent steps where a file says so

A batch holds {observation key: [B, T, ...]}, ACTION float32 [B, H, A] whose first step belongs to the last frame, and the
further keys of spec.py. Everything is physical and as stored (uint8 images HWC); models normalise. TASK, text in numpy, is
int64 [B] here: the task's place among the known ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robopolicy.spec import (
    ACTION,
    ACTION_IS_PAD,
    EPISODE,
    EPISODE_LENGTH,
    OUTCOME,
    STEP,
    TASK,
    Array,
    Features,
    FeatureSpec,
    SpecError,
    did_you_mean,
)

Batch = dict[str, Tensor]
MAX_NAMED = 20  # tasks that an error message lists


@dataclass(frozen=True)
class Phase:
    """A stretch of a training run: its share (0, 1] of the steps and its peak learning rate."""

    name: str
    fraction: float
    learning_rate: float


def task_ids(tasks: Any, known: Sequence[str]) -> Array:
    """Places int64 [B] in `known` of the tasks str [B] or [B, T]; of a history the last one counts.

    Raises:
        SpecError: a task that is not known; the message names the known ones.
    """
    names = np.asarray(tasks)
    names = names[:, -1] if names.ndim == 2 else names
    place = {name: index for index, name in enumerate(known)}
    for name in names.tolist():
        if name not in place:
            few = len(known) <= MAX_NAMED
            hint = f"known: {', '.join(map(repr, known))}" if few else did_you_mean(name, known)
            raise SpecError(f"unknown task {name!r}; {hint}")
    return np.array([place[name] for name in names.tolist()], np.int64)


def to_torch(batch: Mapping[str, Any], device: torch.device | str = "cpu", tasks: Sequence[str] = ()) -> Batch:
    """Tensors of the numeric entries of `batch` on `device`; text is left out, but for TASK where `tasks` are known.

    tasks: the known ones (spec.known_tasks); TASK becomes its place among them.
    """
    if tasks and TASK in batch:
        batch = {**batch, TASK: task_ids(batch[TASK], tasks)}
    arrays = {key: np.ascontiguousarray(value) for key, value in batch.items()}
    return {key: torch.from_numpy(array).to(device) for key, array in arrays.items() if array.dtype.kind in "fiub"}


def fake_batch(
    observation: Features,
    action: FeatureSpec,
    obs_horizon: int,
    action_horizon: int,
    batch_size: int,
    generator: torch.Generator,
) -> Batch:
    """A batch of the right shapes and dtypes: standard normal floats, uniform integers; the last two steps are padding."""
    batch = {key: _fake(feature, (batch_size, obs_horizon), generator) for key, feature in observation.items() if key != TASK}
    if TASK in observation:
        batch[TASK] = torch.randint(0, len(observation[TASK].values), (batch_size,), generator=generator)
    batch[ACTION] = _fake(action, (batch_size, action_horizon), generator)
    batch[ACTION_IS_PAD] = (torch.arange(action_horizon) >= max(action_horizon - 2, 1)).repeat(batch_size, 1)
    batch[EPISODE] = torch.arange(batch_size)
    batch[STEP] = torch.randint(0, 50, (batch_size,), generator=generator)
    batch[EPISODE_LENGTH] = torch.full((batch_size,), 50)
    batch[OUTCOME] = torch.randint(0, 2, (batch_size,), generator=generator).float()
    return batch


def _fake(feature: FeatureSpec, leading: tuple[int, ...], generator: torch.Generator) -> Tensor:
    shape = (*leading, *feature.shape)
    if np.dtype(feature.dtype).kind == "f":
        return torch.randn(shape, generator=generator).to(getattr(torch, feature.dtype))
    high = 2 if feature.dtype == "bool" else 256
    return torch.randint(0, high, shape, generator=generator).to(getattr(torch, feature.dtype))
