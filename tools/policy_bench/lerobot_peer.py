"""LeRobot's policies beside ours: cells of the same form (policy_bench.cells), answered by a process of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from peers.environments import REQUIREMENTS

from policy_bench import lock_step
from policy_bench.cells import COST, VERSION, Budget, key
from policy_bench.remote import Remote
from policy_bench.tasks import SPLITS, Environments, Task
from robopolicy import checkpoint
from robopolicy.data.episodes import EpisodeStore
from robopolicy.files import atomic_write, plain
from robopolicy.spec import ACTION, STATE, Array, Observation, PolicySpec, SpecError

PEER = "lerobot"
# LeRobot wants an image or an environment state beside the robot's. Ours is split by meaning: hand and gripper now and a step
# before are the robot, objects and goal the environment. Nothing is left out or given twice.
ROBOT_ENTRIES = ("hand_x", "hand_y", "hand_z", "gripper_opening")
_DEFAULT_STEPS = 3  # of training, where only the cost of a step is asked for


@dataclass(frozen=True)
class Entry:
    """A policy of lerobot.yaml; see there."""

    name: str
    kind: str
    trained: bool
    train: Mapping[str, Any] = field(default_factory=dict)
    decode: Mapping[str, Any] = field(default_factory=dict)


def entries() -> dict[str, Entry]:
    """The policies of lerobot.yaml."""
    content = yaml.safe_load(Path(__file__).with_name("lerobot.yaml").read_text())
    return {name: Entry(name, **fields) for name, fields in content.items()}


def split_state(state: Array, names: Sequence[str]) -> dict[str, Array]:
    """{"state", "environment"} of states [..., D] whose entries have `names`."""
    robot = np.array([name.removeprefix("previous_") in ROBOT_ENTRIES for name in names])
    return {"state": np.ascontiguousarray(state[..., robot]), "environment": np.ascontiguousarray(state[..., ~robot])}


@dataclass
class LeRobotPolicy:
    """A policy in the worker, as lock_step.play wants it. Its chunks are what LeRobot would execute before it decides anew.

    cpu_s, wall_s: time of the last decision in the worker, which leaves the pipe out.
    """

    remote: Remote
    name: str
    spec: PolicySpec
    cpu_s: float = 0.0
    wall_s: float = 0.0
    total_cpu_s: float = 0.0

    def reset(self) -> None:
        """Nothing to forget."""

    def sample(self, observation: Observation, num_samples: int = 1, seed: int | None = None) -> Array:
        """Chunks float32 [B, 1, h, A] in physical units."""
        if num_samples != 1:
            raise SpecError(f"num_samples={num_samples}: LeRobot's policies give one chunk")
        names = self.spec.observation[STATE].names
        times, found = self.remote.ask(
            "sample", split_state(observation[STATE][:, -1], names or ()), name=self.name, seed=seed or 0
        )
        self.cpu_s, self.wall_s = times["cpu_s"], times["wall_s"]
        self.total_cpu_s += self.cpu_s
        return found["chunks"][:, None]


class Peer:
    """The worker, the dataset that it recorded of a task's demonstrations, and the cells in `folder`."""

    def __init__(self, task: Task, store: EpisodeStore, folder: Path) -> None:
        home = {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        self.remote = Remote(PEER, "policy_bench.lerobot_worker", {**home, "HOME": str(folder), "PYTHONWARNINGS": "ignore"})
        self._task, self._store, self._folder = task, store, folder
        self._names = store.spec.features[STATE].names or ()
        self.root = folder / "lerobot_data" / key(VERSION, store.hash, REQUIREMENTS[PEER])
        if not (self.root / "recorded.json").exists():
            shutil.rmtree(self.root, ignore_errors=True)
            facts = self._record()
            atomic_write(self.root / "recorded.json", json.dumps(facts).encode())

    def _record(self) -> dict[str, Any]:
        episodes = [self._store.read(index) for index in range(len(self._store))]
        state = split_state(np.concatenate([episode[STATE] for episode in episodes]), self._names)
        arrays = {**state, "action": np.concatenate([episode[ACTION] for episode in episodes])}
        arrays = {name: array.astype(np.float32) for name, array in arrays.items()} | {"lengths": self._store.lengths}
        facts, _ = self.remote.ask("record", arrays, root=str(self.root), fps=self._store.spec.fps, task=self._task.name)
        return facts

    def train(self, entry: Entry, budget: Budget, seed: int, save: bool = True) -> tuple[Path, dict[str, Any]]:
        """Train unless that was done; the folder and the cost."""
        train = {"kind": entry.kind, "fields": dict(entry.train), "steps": budget.steps, "batch_size": budget.batch_size}
        train |= {"seed": seed, "save": save}
        folder = self._folder / "lerobot_trainings" / key(VERSION, train, self._store.hash, REQUIREMENTS[PEER])
        if not (folder / COST).exists():
            shutil.rmtree(folder, ignore_errors=True)
            cost, _ = self.remote.ask("train", root=str(self.root), output=str(folder), **train)
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write(folder / COST, json.dumps({**cost, "task": self._task.name}).encode())
        return folder, json.loads((folder / COST).read_text())

    def policy(self, entry: Entry, folder: Path | None = None) -> tuple[LeRobotPolicy, int]:
        """The policy, trained into `folder` or with random weights, and its number of parameters."""
        if folder:
            saved = next(folder.glob("checkpoints/[0-9]*/pretrained_model"))
            facts, _ = self.remote.ask("load", name=entry.name, checkpoint=str(saved), fields=dict(entry.decode))
        else:
            options = {"root": str(self.root), "kind": entry.kind, "fields": {**entry.train, **entry.decode}}
            facts, _ = self.remote.ask("make", name=entry.name, **options)
        features, steps = self._store.spec.features, facts["n_action_steps"]
        spec = PolicySpec({STATE: features[STATE]}, features[ACTION], 1, steps, steps, self._store.spec.fps)
        return LeRobotPolicy(self.remote, entry.name, spec), facts["params"]

    def step_cost(self, entry: Entry, batch_size: int, seed: int) -> dict[str, Any]:
        """What a training step costs; the weights are not kept."""
        return self.train(entry, Budget(steps=_DEFAULT_STEPS, batch_size=batch_size), seed, save=False)[1]

    def cell(
        self, entry: Entry, budget: Budget, seed: int, split: str, environments: Environments
    ) -> tuple[dict[str, Any], LeRobotPolicy]:
        """Train and evaluate unless that was done: a cell as policy_bench.summary takes it, and the policy."""
        folder, cost = self.train(entry, budget, seed)
        policy, params = self.policy(entry, folder)
        where = [folder.name, dict(entry.decode), split, self._task.describe(), budget.episodes, seed]
        file = self._folder / "lerobot_evaluations" / f"{key(VERSION, where)}.json"
        if not file.exists():
            seeds = [SPLITS[split] + number for number in range(budget.episodes)]
            outcomes, cpu = lock_step.play(policy, environments, seeds, seed)
            cpu["cpu_s"] = policy.total_cpu_s
            content = {"outcomes": [asdict(outcome) for outcome in outcomes], "evaluation_cost": cpu}
            content |= {"git_commit": checkpoint.git_commit()}
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(file, json.dumps(plain(content, where="cell")).encode())
        facts = {"policy": entry.name, "task": self._task.name, "kind": self._task.kind, "split": split, "repeats": 0}
        return {**json.loads(file.read_text()), **facts, "seed": seed, "cost": {**cost, "params": params}}, policy

    def close(self) -> None:
        """End the worker."""
        self.remote.close()
