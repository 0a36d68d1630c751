"""What happens at which step of a training run (phases, checkpoints, windows, seeds), and the torch globals it runs under."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from robopolicy.batch import Phase
from robopolicy.spec import Array


class TrainingError(ValueError):
    """A run that cannot start, go on or be resumed. The message says what to change."""


@dataclass(frozen=True)
class Stage:
    """A phase placed on the time line: it takes the run from `first` to `last` finished steps."""

    name: str
    first: int
    last: int
    learning_rate: float


def plan_stages(phases: Sequence[Phase], steps: int) -> list[Stage]:
    """Share `steps` among `phases` by their fractions. Raises TrainingError if they do not add up to 1 or one gets no step."""
    ends = [round(steps * sum(phase.fraction for phase in phases[: i + 1])) for i in range(len(phases))]
    starts = [0, *ends[:-1]]
    if not phases or ends[-1] != steps or any(first >= last for first, last in zip(starts, ends, strict=True)):
        shares = ", ".join(f"{phase.name}={phase.fraction}" for phase in phases)
        raise TrainingError(f"train.steps={steps} cannot be shared among the phases {shares}: each needs a step and the sum 1")
    return [Stage(p.name, first, last, p.learning_rate) for p, first, last in zip(phases, starts, ends, strict=True)]


def checkpoint_steps(stage: Stage, num_checkpoints: int) -> list[int]:
    """Finished steps after which a checkpoint is written: evenly spaced over `stage`, the last at its end."""
    length = stage.last - stage.first
    if num_checkpoints > length:
        raise TrainingError(f"train.num_checkpoints={num_checkpoints} exceeds the {length} steps of phase {stage.name!r}")
    return [stage.first + round(length * k / num_checkpoints) for k in range(1, num_checkpoints + 1)]


def batch_indices(seed: int, step: int, num_windows: int, batch_size: int) -> Array:
    """Windows of `step`, int [batch_size]: the next ones of an endless row of permutations of all windows."""
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    return np.array([_permutation(seed, p // num_windows, num_windows)[p % num_windows] for p in positions.tolist()])


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_windows: int) -> Array:
    return np.random.default_rng((seed, epoch)).permutation(num_windows)


def slice_size(batch_size: int, accumulate: int, num_processes: int) -> int:
    """Windows in each of the accumulate * num_processes equal slices of a batch. Raises TrainingError if it has no such."""
    num_slices = accumulate * num_processes
    size, rest = divmod(batch_size, num_slices)
    if rest:
        works = [str(n * num_slices) for n in (size, size + 1) if n]
        raise TrainingError(
            f"train.batch_size={batch_size} cannot be cut into {num_slices} equal slices (train.accumulate={accumulate}, "
            f"{num_processes} processes): give train.batch_size={' or '.join(works)}"
        )
    return size


def step_seeds(seed: int, step: int, number: int = 0) -> tuple[int, int]:
    """Two independent seeds in 0..2^63 - 1 for the randomness of slice `number` of one step."""
    first, second = np.random.SeedSequence((seed, step, number)).generate_state(2, np.uint64) >> np.uint64(1)
    return int(first), int(second)


def torch_device(name: str, setting: str = "train.device") -> torch.device:
    """The device called `name`, the value of `setting`. Raises TrainingError when this machine lacks it."""
    device = torch.device(name)
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise TrainingError(f"{setting}={name!r}: torch sees {count} GPUs; use {setting}=cpu")
    return device


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What networks compute in, see TrainConfig. Raises TrainingError for a GPU without bfloat16."""
    has_bfloat16 = device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)
    if precision == "bfloat16" and not has_bfloat16:
        name = torch.cuda.get_device_name(device)
        raise TrainingError(f"train.precision='bfloat16': {name} lacks it; use train.precision=float32")
    if precision == "float32" or not has_bfloat16 or (precision == "auto" and device.type == "cpu"):
        return torch.float32
    return torch.bfloat16


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed torch's global generators (initial weights, dropout) inside the block and restore them after it."""
    with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
        seed_globals(seed, device)
        yield


def seed_globals(seed: int, device: torch.device | str = "cpu") -> None:
    """Seed the global generators of the CPU and of `device` alone: torch.manual_seed costs a stack trace without a GPU."""
    torch.default_generator.manual_seed(seed)
    if torch.device(device).type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextmanager
def torch_threads(num_threads: int) -> Iterator[None]:
    """Torch uses `num_threads` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
