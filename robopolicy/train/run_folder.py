"""What a run folder holds besides checkpoints: its configuration, and the one state from which an unfinished run resumes.

<run>/config.yaml                            resolved configuration, written once
<run>/metrics.jsonl                          see logging.py
<run>/resume/step_000123/training/           newest state; gone when the run has finished
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from robopolicy import checkpoint
from robopolicy.files import atomic_write
from robopolicy.train.plan import TrainingError

CONFIG = "config.yaml"
RESUME = "resume"
MAY_CHANGE = (
    *("run_dir", "logger", "data.memory_gb", "train.resume", "train.save_every_seconds", "train.logger", "train.progress"),
    *(f"rl.train.{name}" for name in ("resume", "save_every_seconds", "logger", "progress", "num_workers")),
    *("train.accumulate", "train.num_prefetch"),  # that the batches are cut as before is checked when the state is loaded
)
_PARTS = ("model", "average", "optimizer")


@dataclass
class RunState:
    """All that the next step depends on besides (seed, step).

    data: identity of the dataset. model, average: state dicts, raw and averaged. optimizer: see optim.optimizer_tensors.
    num_slices: parts of a joint batch. step: finished steps. seconds: time spent. row: last row of metrics.
    """

    data: dict[str, Any]
    model: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    num_slices: int = 1
    step: int = 0
    seconds: float = 0.0
    row: dict[str, Any] = field(default_factory=dict)


def save_state(run_dir: Path, state: RunState) -> None:
    """Write `state` beside older ones, then remove those: a kill at any moment leaves a whole one."""
    tensors = {f"{part}/{name}": value for part in _PARTS for name, value in getattr(state, part).items()}
    rest = {name: value for name, value in vars(state).items() if name not in _PARTS}
    replace_state(run_dir, state.step, tensors, rest)


def replace_state(run_dir: Path, step: int, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
    """Write the state after `step` beside older ones, then remove those."""
    folder = run_dir / RESUME / f"step_{step:06d}"
    checkpoint.save_training(folder, tensors, rest)
    for path in folder.parent.iterdir():
        if path != folder:
            shutil.rmtree(path)


def load_state(run_dir: Path) -> RunState | None:
    """The newest state (tensors on the CPU), None when nothing was saved."""
    found = resumable(run_dir)
    if found is None:
        return None
    tensors, rest = found
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
    for key, value in tensors.items():
        part, _, name = key.partition("/")
        parts[part][name] = value
    return RunState(**{**rest, **parts})


def resumable(run_dir: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors (on the CPU) and the rest of the newest state that replace_state() wrote, None when there is none."""
    folders = [path for path in (run_dir / RESUME).glob("step_*") if (path / checkpoint.TRAINING).is_dir()]
    if not folders:
        return None
    return checkpoint.load_training(max(folders, key=lambda path: int(path.name.removeprefix("step_"))))


def drop_state(run_dir: Path) -> None:
    """Remove the state of a finished run."""
    shutil.rmtree(run_dir / RESUME, ignore_errors=True)


def open_run(run_dir: Path, config: dict[str, Any], resume: bool, switch: str = "train.resume") -> None:
    """Write config.yaml into a new run folder, or check that the run in it has the same configuration.

    switch: the setting that `resume` comes from.

    Raises:
        TrainingError: a folder that holds another run, or one that is not to be resumed.
    """
    path = run_dir / CONFIG
    if not path.is_file():
        run_dir.mkdir(parents=True, exist_ok=True)
        atomic_write(path, yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())
        return
    if not resume:
        raise TrainingError(f"{run_dir} already holds a run: continue it with {switch}=true, or choose another folder")
    before, now = dict(_leaves(yaml.safe_load(path.read_text()))), dict(_leaves(config))
    for key in [*before, *now]:
        if key not in MAY_CHANGE and before.get(key) != now.get(key):
            given = f"was {before.get(key, 'absent')!r} and is now {now.get(key, 'absent')!r}"
            raise TrainingError(f"{run_dir} cannot resume: {key} {given}; give the old value, or choose another folder")


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that is not a mapping."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
