"""What the benchmark of steering makes before it measures: demonstrations, base policies, experience, branches, critics.

Every product lies in a folder whose name ends in a digest of all that made it, so a killed benchmark goes on where it was,
and a changed setting makes a new product. Policies and critics see either states with the true poses of objects, so that the
machine's time goes into episodes, or point clouds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from robopolicy import pipeline
from robopolicy.checkpoint import list_checkpoints, sha256
from robopolicy.config import compose, to_plain
from robopolicy.data.branches import Branches, is_branches
from robopolicy.evaluation.branches import Plan, branch
from robopolicy.evaluation.rollout import Arm, Suite

# What is seen: options of the environment, overrides of training
INPUTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "state": (
        {"observation": ["state", "environment_state"]},
        ("inputs.observation_keys=[observation.state,observation.environment_state]",),
    ),
    "points": ({"observation": ["state", "points"], "image_size": 64, "num_points": 64}, ("inputs=points",)),
}
DEMONSTRATIONS, EXPERIENCE, BRANCHES, DEVELOPMENT, HELD_OUT, QUALITY = range(6)  # uses of seeds, which never share an episode
TRAINED_IN, REPORTED_IN = "wide", "held_out"  # randomisations


@dataclass(frozen=True)
class Base:
    """A base policy: trained on so many demonstrations, for so many steps; its place among the run's checkpoints."""

    demonstrations: int
    steps: int
    place: int = -1


# Strengths by task and family, such that the reporting worlds (on development seeds) show success of .2 to .4 and .5 to .7;
# of pick_place the weak one was not looked at, and Push's medium one with diffusion, the best there was, has .44
BASES: dict[str, dict[str, dict[str, Base]]] = {
    "state": {
        "lift/carp": {"weak": Base(15, 600), "medium": Base(100, 1800), "strong": Base(300, 4000)},
        "lift/diffusion": {"weak": Base(100, 1800, 1), "medium": Base(100, 1800)},
        "pick_place/carp": {"weak": Base(200, 3000, 1), "medium": Base(200, 3000)},
        "push/carp": {"weak": Base(100, 1800), "medium": Base(300, 3000)},
        "push/diffusion": {"weak": Base(100, 1800), "medium": Base(300, 6000, 7)},
    },
    "points": {
        "lift/carp": {"weak": Base(15, 800), "medium": Base(40, 800)},
        "lift/diffusion": {"weak": Base(100, 1600, 2), "medium": Base(100, 1600, 5)},
    },
}
EXPERIENCED = ("weak", "medium")  # whose rollouts critics learn from: a strong base is steered by what weaker ones taught


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    bases: Mapping[str, Mapping[str, Base]] = field(default_factory=lambda: BASES["state"])
    limit: int = 120  # control steps of an episode
    checkpoints: int = 12
    expert: int = 40
    noisy: int = 80
    imperfect: int = 80
    rollouts: int = 640  # of each strength
    critic_steps: int = 5000
    critic_batch: int = 256
    proof: int = 150  # pairs of episodes in the development worlds that open the gate
    branched: int = 24  # episodes; one half of them chooses a checkpoint
    states: int = 4
    candidates: int = 5


QUICK = Sizes(
    bases={"lift/carp": {"weak": Base(3, 60, 0), "medium": Base(3, 60)}},
    limit=60,
    checkpoints=2,
    expert=3,
    noisy=3,
    imperfect=3,
    rollouts=3,
    critic_steps=40,
    critic_batch=64,
    proof=2,
    branched=2,
    states=2,
    candidates=3,
)


@dataclass(frozen=True)
class Study:
    """One seed of the benchmark under the folder `root`.

    inputs: what policies and critics see, of INPUTS.
    perturb: of the candidates, by family ({} = a policy's own draws are diverse enough).
    given: {product: folder} of what exists already and is used in place of what would be made:
        base-<task>-<family>-<strength> (a checkpoint), experience-<task>-<family> (a dataset),
        branches-<task>-<family>-<strength>-<randomisation>.
    """

    root: Path
    seed: int
    sizes: Sizes
    perturb: Mapping[str, Mapping[str, Any]]
    given: Mapping[str, Path] = field(default_factory=dict)
    inputs: str = "state"

    def perturbed(self, family: str) -> dict[str, Any]:
        """How candidates are perturbed: in experience, in branches and in steering alike."""
        return dict(self.perturb.get(family, {}))

    def number(self, use: int) -> int:
        """Seed of a use of episodes."""
        return 10_000 * (self.seed + 1) + use

    def folder(self, name: str, *made_of: Any) -> Path:
        """A folder that belongs to what it is made of."""
        digest = hashlib.sha256(json.dumps([self.seed, *made_of], sort_keys=True, default=str).encode()).hexdigest()[:10]
        return self.root / f"{name}-{digest}"

    def task(self, name: str) -> dict[str, Any]:
        """A task's node, with what is seen and the benchmark's time limit."""
        node = to_plain(compose("collect", [f"task={name}", "path=x"]))["task"]
        return {**node, "env": {**INPUTS[self.inputs][0], "max_episode_steps": self.sizes.limit}}

    def collected(self, name: str, task: str, episodes: Mapping[str, int], **options: Any) -> Path:
        """A dataset of a task; its rewards are the task's progress, which critic=progress learns from."""
        node = self.task(task)
        node["env"]["reward"] = "dense"
        path = self.folder(f"{name}-{task}", episodes, options, node["env"])
        use = EXPERIENCE if name != "demonstrations" else DEMONSTRATIONS
        pipeline.collect_run(path, node, TRAINED_IN, episodes, self.number(use), title=path.name, num_workers=0, **options)
        return path

    def base(self, task: str, family: str, strength: str) -> Path:
        """The checkpoint of a base policy."""
        name, base = f"base-{task}-{family}-{strength}", self.sizes.bases[f"{task}/{family}"][strength]
        if name in self.given:
            return self.given[name]
        data = self.collected("demonstrations", task, {"expert": base.demonstrations}, disturbance=0.008)
        sampler = ["policy.sampler=ddim", "policy.num_inference_steps=6"] if family == "diffusion" else []
        return self.trained(f"base-{task}-{family}", data, [f"policy={family}", *sampler], base.steps, 64)[base.place]

    def trained(self, name: str, data: Path, overrides: list[str], steps: int, batch: int) -> list[Path]:
        """Checkpoints of one training run."""
        given = [*overrides, *INPUTS[self.inputs][1], f"data.path={data}", f"train.steps={steps}"]
        given += [f"train.batch_size={batch}", f"train.num_checkpoints={self.sizes.checkpoints}", f"train.seed={self.seed}"]
        run = self.folder(name, given)
        settings = to_plain(compose("train", [*given, "train.resume=true", "train.progress=false"]))
        if len(list_checkpoints(run) if run.is_dir() else []) < self.sizes.checkpoints:
            pipeline.train_run(settings, run)
        return list_checkpoints(run)

    def best(self, task: str, family: str) -> str:
        """The strongest of the base policies that critics learn from: they are judged on its branches."""
        return self.experienced(task, family)[-1]

    def experienced(self, task: str, family: str) -> list[str]:
        """The base policies that critics learn from."""
        return [strength for strength in EXPERIENCED if strength in self.sizes.bases[f"{task}/{family}"]]

    def arm(self, task: str, family: str, strength: str) -> Arm:
        """The base policy alone."""
        return Arm("base", str(self.base(task, family, strength)), run=f"{task}/{family}/{strength}")

    def experience(self, task: str, family: str, kind: str) -> list[Path]:
        """Datasets for critics: "mixed" has episodes of flawed experts, "own" the base policies' rollouts, "both" both.

        A rollout executes drawn candidates, perturbed as in steering, so that what steering will ask about is in the data.
        """
        sizes, found = self.sizes, []
        if kind in ("mixed", "both"):
            episodes = {"expert": sizes.expert, "noisy": sizes.noisy, "imperfect": sizes.imperfect}
            found.append(self.collected("mixed", task, episodes, disturbance=0.004))
        if kind in ("own", "both"):
            for strength in self.experienced(task, family):
                checkpoint = self.arm(task, family, strength).checkpoint
                perturb = self.perturbed(family)
                found.append(
                    self.collected(
                        f"own-{family}-{strength}", task, {"rollout": sizes.rollouts}, checkpoint=checkpoint, perturb=perturb
                    )
                )
        return found

    def branches(self, task: str, family: str, strength: str, randomization: str = TRAINED_IN, use: int = BRANCHES) -> Path:
        """Branched rollouts of a base policy. use: BRANCHES of what is chosen by them, QUALITY of what is reported."""
        sizes = self.sizes
        perturb = self.perturbed(family)
        plan = Plan(sizes.states, sizes.candidates)
        arm = replace(self.arm(task, family, strength), perturb=perturb)
        name = f"branches-{task}-{family}-{strength}-{randomization}"
        if use == BRANCHES and name in self.given:
            return self.given[name]
        path = self.folder(name, arm.checkpoint, perturb, asdict(plan), sizes.branched, sizes.limit, self.number(use))
        if not is_branches(path):
            suite, facts = self.suite(task, randomization, sizes.branched, use), {"checkpoint_sha": sha256(arm.checkpoint)}
            branch(arm, suite, plan, num_workers=0, facts=facts).save(path)
        return path

    def suite(self, task: str, randomization: str, episodes: int, use: int) -> Suite:
        """Conditions of a use of seeds."""
        env_id, env_kwargs = pipeline.task_env(self.task(task), randomization)
        return Suite.draw(f"{task}/{randomization}", env_id, env_kwargs, episodes, self.number(use), "select")

    def critic(self, task: str, family: str, kind: str, data: str, overrides: tuple[str, ...] = ()) -> tuple[Path, Path]:
        """A critic's run folder, and the checkpoint in it that orders the branches of the strongest base best.

        kind: option of conf/critic. data: see `experience`.
        """
        from robopolicy.data.manage import merge

        name = f"experience-{task}-{family}"
        parts = [self.given[name]] if data == "both" and name in self.given else self.experience(task, family, data)
        path = parts[0]
        if len(parts) > 1:
            path = self.folder(f"data-{task}-{family}-{data}", [p.name for p in parts])
            if not path.is_dir():
                merge(paths=[str(p) for p in parts], out=str(path))
        given = [f"critic={kind}", *overrides]
        if kind == "cal_ql":
            given.append(f"data.proposals.checkpoint={self.arm(task, family, self.best(task, family)).checkpoint}")
        found = self.trained(
            f"critic-{task}-{family}-{kind}-{data}", path, given, self.sizes.critic_steps, self.sizes.critic_batch
        )
        run = found[0].parent.parent
        if not (run / "quality.json").is_file():
            pipeline.judge_critics(found, self.branches(task, family, self.best(task, family)))
        return run, pipeline.chosen_critic(run)

    def branch_data(self, path: Path) -> Branches:
        """What `branches` made."""
        return Branches.load(path)
