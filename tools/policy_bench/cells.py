"""Cells of the benchmark: trainings and evaluations in folders named by a hash of all that determines them.

    <folder>/data/                      demonstrations
    <folder>/trainings/<hash>/          run folder of the product's own loop, and cost.json when it is finished
    <folder>/evaluations/<hash>.json    outcomes of the episodes of one policy on one task

A cell appears in one step and is never run twice.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from policy_bench import lock_step, sources
from policy_bench.tasks import SPLITS, Environments, Task
from robopolicy import checkpoint
from robopolicy.config import bind, compose, to_plain
from robopolicy.data.episodes import EpisodeStore
from robopolicy.files import atomic_write, plain
from robopolicy.pipeline import train_run
from robopolicy.policies.base import TrainablePolicy
from robopolicy.policies.load import POLICY, module_from

VERSION = 1  # of what a cell holds; raise it when the meaning of the files changes
COST = "cost.json"


@dataclass(frozen=True)
class Contender:
    """An entry of policies.yaml: overrides of conf/train.yaml, and arguments of its policy that change decoding alone."""

    name: str
    train: tuple[str, ...]
    decode: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Budget:
    """What every policy is given. steps: of training, all phases, times what a task asks for. episodes: of evaluation."""

    steps: int = 1500
    batch_size: int = 64
    episodes: int = 200
    overrides: tuple[str, ...] = ()  # of conf/train.yaml, for all


def contenders(path: Path | None = None) -> dict[str, Contender]:
    """The entries of policies.yaml."""
    entries = yaml.safe_load((path or Path(__file__).with_name("policies.yaml")).read_text())
    return {name: Contender(name, tuple(e["train"]), e.get("decode") or {}) for name, e in entries.items()}


def settings(contender: Contender, budget: Budget, seed: int, task: Task, data: Path) -> dict[str, Any]:
    """The resolved train config of a contender on a task whose dataset is at `data`.

    Raises:
        ConfigError: there is no such policy, or it lacks an argument.
    """
    common = [f"train.steps={budget.steps * task.longer}", f"train.batch_size={budget.batch_size}", f"train.seed={seed}"]
    common += [*task.overrides, "train.num_checkpoints=1", "train.num_threads=1", "train.progress=false", f"data.path={data}"]
    config = to_plain(compose("train", [f"inputs={task.inputs}", *contender.train, *common, *budget.overrides]))
    config.pop("run_dir", None)
    bind({**config[POLICY], **contender.decode}, observation={}, action=None, control_hz=1.0)
    return config


def key(*parts: Any) -> str:
    """A short hash of plain values."""
    text = json.dumps(plain(parts, where="cell"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Training:
    """A training of the contenders that share it."""

    task: Task
    config: Mapping[str, Any]
    data_hash: str
    folder: Path

    @classmethod
    def of(cls, task: Task, store: EpisodeStore, config: Mapping[str, Any], folder: Path) -> Training:
        """The training that `config` describes, in a folder of its own below `folder`."""
        described = {k: v for k, v in config.items() if k in (POLICY, "train")}
        code = sources.fingerprint([*sources.targets(config[POLICY]), "robopolicy.train.loop"])
        return cls(task, config, store.hash, folder / "trainings" / key(VERSION, described, store.hash, code))

    def finished(self) -> bool:
        """Whether its cost is known, which is written last."""
        return (self.folder / COST).exists()

    def run(self) -> dict[str, Any]:
        """Train unless that was done; the cost."""
        if not self.finished():
            shutil.rmtree(self.folder, ignore_errors=True)
            cpu, wall = time.process_time(), time.perf_counter()
            checkpoints = train_run(self.config, self.folder)
            cost = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
            policy = load(checkpoints[-1], {})
            cost |= {"params": sum(p.numel() for p in policy.parameters()), "task": self.task.name}
            cost |= {"git_commit": checkpoint.git_commit(), "data_hash": self.data_hash}
            atomic_write(self.folder / COST, json.dumps(cost, indent=1).encode())
        return json.loads((self.folder / COST).read_text())

    def policy(self, decode: Mapping[str, Any]) -> TrainablePolicy:
        """The trained policy, decoding as `decode` says."""
        return load(checkpoint.list_checkpoints(self.folder)[-1], decode)


def load(folder: Path, decode: Mapping[str, Any]) -> TrainablePolicy:
    """The policy of a checkpoint folder with other constructor arguments for decoding."""
    loaded = checkpoint.load(folder)
    module = module_from({**loaded.config[POLICY], **decode}, loaded.meta["spec"])
    checkpoint.load_into(module, loaded.tensors, loaded.path)
    policy = module.eval().requires_grad_(False)
    assert isinstance(policy, TrainablePolicy)
    return policy


@dataclass(frozen=True)
class Evaluation:
    """The episodes of a contender in a split of its training's task.

    repeats: 0 = each episode once, executing the policy's best guess. n = each of a n-th as many episodes n times, executing
    drawn chunks: what is the same in them is all but the policy's randomness.
    """

    training: Training
    contender: Contender
    split: str
    episodes: int
    seed: int
    file: Path
    repeats: int = 0

    @classmethod
    def of(
        cls, training: Training, contender: Contender, split: str, episodes: int, seed: int, folder: Path, repeats: int = 0
    ) -> Evaluation:
        """The evaluation, in a file of its own below `folder`."""
        where = [training.folder.name, dict(contender.decode), split, training.task.describe(), episodes, seed, repeats]
        return cls(training, contender, split, episodes, seed, folder / "evaluations" / f"{key(VERSION, where)}.json", repeats)

    def finished(self) -> bool:
        """Whether it was run."""
        return self.file.exists()

    def run(self, environments: Environments) -> None:
        """Evaluate and write the outcomes and what they cost."""
        torch.set_num_threads(1)
        policy = self.training.policy(self.contender.decode)
        copies = max(self.repeats, 1)
        seeds = [SPLITS[self.split] + number for number in range(max(self.episodes // copies, 1)) for _ in range(copies)]
        wall = time.perf_counter()
        outcomes, cost = lock_step.play(policy, environments, seeds, self.seed, self.repeats > 0)
        cost["wall_s"] = time.perf_counter() - wall
        facts = {"policy": self.contender.name, "task": self.training.task.name, "split": self.split, "repeats": self.repeats}
        facts |= {"training": self.training.folder.name, "git_commit": checkpoint.git_commit(), "evaluation_cost": cost}
        content = {**facts, "outcomes": [asdict(outcome) for outcome in outcomes]}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(self.file, (json.dumps(plain(content, where="cell")) + "\n").encode())

    def read(self) -> dict[str, Any]:
        """What run() has written."""
        return json.loads(self.file.read_text())
