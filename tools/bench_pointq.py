"""Dense against latent Q, dense against direct actors, teachers against none: dressed ratios; a rigid task; throughput.

    python tools/bench_pointq.py [--quick] [--seed 0] [--out FILE.json]
    python tools/bench_pointq.py --arms dense,latent,direct --seeds 3 --rounds 2500 --cells runs/pointq --out pointq.json

A cell is one arm under one seed, kept as a file in --cells: the same command goes on where it stopped, and several processes
with different --arms may share the folder. Arms of one comparison differ in one setting and have the same budget. Learned
arms take the checkpoint that did best on development episodes, and are scored on others. Ratios are final ones, not the
best of an episode.

Intervals are 95 %. All seeds play the same episodes, so with several seeds both are drawn again (two-way bootstrap; with
three or fewer it is rather too narrow). With one seed they are over its episodes (normal; Wilson for success) and say nothing
about other seeds. The first trained arm is compared with each of the others, episode by episode and seed by seed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import provenance, write_json

from robopolicy.config import compose, to_plain
from robopolicy.data.collect import collect, new_environment
from robopolicy.data.vector import VectorEnv
from robopolicy.pipeline import train_run
from robopolicy.policies.load import load_critic, load_policy
from robopolicy.policies.steering import SteeredPolicy
from robopolicy.policies.wrappers import ChunkExecutor
from robopolicy.ranking.intervals import wilson
from robopolicy.reinforce import best_checkpoint
from robopolicy.sim.dress_experts import DressExpert, NaivePath
from robopolicy.sim.dress_world import BENDS
from robopolicy.sim.garments import GARMENTS
from robopolicy.train import rl

JUDGE = 11  # seed of the episodes that arms are scored on (those of 5 and 7 have been looked at while choosing)
PUSHES = {"dress": 0.008, "lift": 0.025}  # m; on the expert's motion, so that recovery is in the demonstrations
METRICS = ("upper_ratio", "whole_ratio", "success", "peak_force_n")
SCRIPTS: dict[str, Callable[[], Any]] = {"expert": DressExpert, "naive": NaivePath}
LEARNED: dict[str, list[str]] = {
    "dense": [],
    "latent": ["critic.attach=latent"],
    "both": ["critic.attach=both"],
    "direct": ["policy.encoder.dense=false"],
    "td3": ["rl=td3"],
}
STUDENTS = {"student": "wasserstein", "student_kl": "kl", "student_imitation": "imitation"}
ARMS = (
    "expert",
    "naive",
    *LEARNED,
    "bc",
    "bc_steered",
    "carp",
    "carp_steered",
    "iql",
    *STUDENTS,
    "alone",
    "lift_bc",
    "lift_iql",
)


class Bench:
    """Settings of a run of this tool."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.cells = args.cells

    def cell(self, arm: str, seed: int) -> dict[str, Any]:
        """The scores of an arm under a seed, from its file or by doing the work."""
        settings, name = self.settings(arm, seed), self.name(arm, seed)
        file = self.cells / f"{name}.json"
        if file.is_file():
            return json.loads(file.read_text())
        started = time.process_time()
        found = self.work(arm, seed, self.cells / name)
        result = {**settings, **found, "cpu_s": time.process_time() - started, "commit": provenance()["commit"]}
        write_json(file, result)
        print(f"{name}: upper {_floats(found['upper_ratio']).mean():.2f}, success {np.mean(found['success']):.2f}", flush=True)
        return result

    def settings(self, arm: str, seed: int) -> dict[str, Any]:
        """What tells a cell from others."""
        a = self.args
        settings = {"arm": arm, "seed": seed, "region": a.region, "rounds": a.rounds, "episodes": a.episodes, "judge": a.judge}
        return settings | {"teachers": a.teacher_rounds, **self.training(), **({"unseen": a.unseen} if a.unseen else {})}

    def name(self, arm: str, seed: int) -> str:
        """Of a cell and the folder of its run."""
        return f"{arm}_{seed}_{hashed(self.settings(arm, seed))}"

    def training(self) -> dict[str, Any]:
        """What all that is trained depends on, besides its own arguments."""
        a = self.args
        return {"garments": a.garments, "demonstrations": a.demonstrations, "updates": a.bc_updates, "set": a.set}

    def work(self, arm: str, seed: int, run: Path) -> dict[str, Any]:
        """Train where there is something to train, and play the judging episodes."""
        if arm in SCRIPTS:
            return self.scripted(SCRIPTS[arm])
        if arm in LEARNED:
            return self.scored(self.reinforce(run, seed, self.args.region, self.args.rounds, LEARNED[arm]), self.args.region)
        if arm.endswith("_steered"):
            return self.steered(arm, seed)
        if arm in ("bc", "carp"):
            found = self.imitate(run, seed, arm, self.args.region)
            return self.scored(found, self.args.region) | self.other_garments(found, self.args.region)
        if arm == "iql":
            return self.scored(self.offline(run, seed), self.args.region)
        if arm.startswith("lift_"):
            return self.rigid(run, seed, arm.removeprefix("lift_"))
        return self.all_regions(run, seed, arm)

    # arms

    def reinforce(self, run: Path, seed: int, region: str, rounds: int, overrides: list[str]) -> Path:
        """A run of experiment=dress; resumes."""
        a = self.args
        given = [
            "experiment=dress",
            *overrides,
            f"task.env.region={region}",
            f"task.env.garments=[{','.join(a.garments)}]",
            f"rl.train.steps={rounds}",
            f"rl.train.seed={seed}",
            f"rl.train.evaluate_every={max(rounds // 4, 1)}",
            f"rl.train.warmup={min(150, rounds // 4)}",
            f"rl.train.evaluate_episodes={min(6, a.episodes)}",
            "rl.train.resume=true",
            "rl.train.progress=false",
            *a.set,
        ]
        train_run(to_plain(compose("train", given)), run)
        return best_checkpoint(run)

    def demonstrated(self, task: str, region: str | None = None) -> Path:
        """A dataset of the scripted expert, pushed about."""
        kwargs: dict[str, Any] = {"observation": ["state", "points"], "nominal": {"robot.disturbance": PUSHES[task]}}
        if region:
            kwargs |= {"region": region, "garments": list(self.args.garments)}
        env_id = {"dress": "robopolicy/Dress-v0", "lift": "robopolicy/Lift-v0"}[task]
        episodes = {"expert": self.args.demonstrations}
        path = self.cells / f"demonstrations_{task}_{hashed({'env': kwargs, 'episodes': episodes})}"
        collect(path, env_id, kwargs, episodes, seed=0, num_workers=0)
        return path

    def imitate(self, run: Path, seed: int, policy: str, region: str) -> Path:
        """Behaviour cloning of the expert, by the point-cloud actor or by CARP."""
        which = {"bc": ["policy=point_actor", "policy.encoder.noise=null"], "carp": ["policy=carp", "inputs=points"]}[policy]
        if not (run / "checkpoints").is_dir():
            data = self.demonstrated("dress", region)
            train_run(self.supervised(data, seed, which), run)
        return best_checkpoint(run)

    def supervised(self, data: Path, seed: int, overrides: list[str]) -> dict[str, Any]:
        """Settings of `robopolicy train` on a dataset."""
        given = [f"data.path={data}", f"train.seed={seed}", f"train.steps={self.args.bc_updates}", "train.num_checkpoints=1"]
        return to_plain(compose("train", [*overrides, *given, "train.progress=false", "train.resume=true"]))

    def steered(self, arm: str, seed: int) -> dict[str, Any]:
        """A clone's proposals, chosen from by the critic that SAC with latent Q learned (first action of a chunk, no gate)."""
        a, cloned = self.args, arm.removesuffix("_steered")
        policy = load_policy(self.imitate(self.cells / self.name(cloned, seed), seed, cloned, a.region))
        actor = self.reinforce(self.cells / self.name("latent", seed), seed, a.region, a.rounds, LEARNED["latent"])
        critic = load_critic(actor.parents[1] / "critic" / actor.parent.name / actor.name)
        return self.judged(SteeredPolicy(policy, critic, num_samples=16, rule="argmax"), a.region) | {"checkpoint": actor.name}

    def offline(self, run: Path, seed: int) -> Path:
        """IQL on the expert's demonstrations."""
        data = self.demonstrated("dress", self.args.region)
        settings = ["rl=iql", f"rl.train.demonstrations={data}", "rl.train.updates=1"]
        return self.reinforce(run, seed, self.args.region, self.args.bc_updates, settings)

    def all_regions(self, run: Path, seed: int, arm: str) -> dict[str, Any]:
        """One policy for the three ranges of the elbow: with teachers, or alone. It sees spoilt clouds."""
        a = self.args
        groups = "{" + ", ".join(f"{name}: {{region: {name}}}" for name in BENDS) + "}"
        overrides = [f"rl.groups={groups}", "policy.encoder.noise={}"]
        if arm != "alone":
            teachers = {}
            for name in BENDS:
                folder = self.teacher(name, seed)
                cloned = not a.teacher_rounds
                teachers[name] = (
                    self.imitate(folder, seed, "bc", name)
                    if cloned
                    else self.reinforce(folder, seed, name, a.teacher_rounds, [])
                )
            named = ", ".join(f"{name}: '{path}'" for name, path in teachers.items())
            weight = 0.0 if arm == "student_imitation" else 1.0
            overrides.append(f"rl.distil={{teachers: {{{named}}}, kind: {STUDENTS[arm]}, rl_weight: {weight}}}")
        found = self.reinforce(run, seed, "all", a.rounds, overrides)
        parts = {name: self.scored(found, name) for name in BENDS}
        together = {metric: [x for part in parts.values() for x in part[metric]] for metric in METRICS}
        return together | {"by_region": parts} | self.other_garments(found, "all")

    def teacher(self, region: str, seed: int) -> Path:
        """The folder of a teacher."""
        rounds, judged = self.args.teacher_rounds, min(6, self.args.episodes)
        return self.cells / f"teacher_{region}_{seed}_{hashed({'rounds': rounds, 'judged': judged, **self.training()})}"

    def rigid(self, run: Path, seed: int, how: str) -> dict[str, Any]:
        """Lift from point clouds with the same nets, from demonstrations."""
        data = self.demonstrated("lift")
        if how == "bc":
            # Without the orientation, which hardly varies: with it 0.20 of 200 succeeded, without 0.99 (docs/results.md).
            net = ["policy=point_actor", "policy.encoder.extras=[gripper_opening,ee_z]", "policy.encoder.unit=0.1"]
            net += ["policy.encoder.options={widths: [64, 64, 128]}", "policy.hidden=[256,256]"]
            chunks = ["policy.action_horizon=16", "policy.execute_horizon=8"]
            if not (run / "checkpoints").is_dir():
                train_run(self.supervised(data, seed, [*net, *chunks]), run)
        else:
            given = ["experiment=lift_rl", "rl=iql", f"rl.train.demonstrations={data}", f"rl.train.seed={seed}"]
            given += [f"rl.train.steps={self.args.bc_updates}", f"rl.train.evaluate_every={self.args.bc_updates}"]
            given += ["rl.train.evaluate_episodes=0", "rl.train.resume=true", "rl.train.progress=false"]
            train_run(to_plain(compose("train", given)), run)
        kwargs = {"observation": ["state", "points"]}
        return self.played(load_policy(best_checkpoint(run)), "robopolicy/Lift-v0", kwargs, {})

    # scoring

    def other_garments(self, path: Path, region: str) -> dict[str, Any]:
        """{"unseen": the judging episodes with the garments of --unseen}, or nothing."""
        return {"unseen": self.scored(path, region, self.args.unseen)} if self.args.unseen else {}

    def scored(self, path: Path, region: str, garments: list[str] | None = None) -> dict[str, Any]:
        """judged() of a checkpoint."""
        return self.judged(load_policy(path), region, garments) | {"checkpoint": path.name}

    def judged(self, policy: Any, region: str, garments: list[str] | None = None) -> dict[str, Any]:
        """The judging episodes of a policy in a region, with the garments of training unless given."""
        kwargs = {"garments": list(garments or self.args.garments)}
        return self.played(policy, "robopolicy/Dress-v0", kwargs, {"region": region})

    def played(self, policy: Any, env_id: str, kwargs: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """Final metrics of the judging episodes, one after the other, chunks executed as the policy says."""
        torch.set_num_threads(1)
        name = options.get("region", "all")
        starts = rl.evaluation_starts(self.args.episodes, name, options, seed=self.args.judge)
        found = []
        with VectorEnv(partial(new_environment, env_id, dict(kwargs)), 1) as envs:
            for start in starts:
                executor = ChunkExecutor(policy, seed=start.seed)
                found += rl.play(envs, partial(_one, executor), [start])
        return _columns(found)

    def scripted(self, make: Callable[[], Any]) -> dict[str, Any]:
        """The judging episodes of a script."""
        a = self.args
        env: Any = new_environment("robopolicy/Dress-v0", {"garments": list(a.garments)})
        found = []
        for start in rl.evaluation_starts(a.episodes, a.region, {"region": a.region}, seed=a.judge):
            env.reset(seed=start.seed, options=dict(start.options))
            actor, over = make(), False
            while not over:
                *_, over, info = env.step(actor(env))
            found.append(info)
        env.close()
        return _columns(found)


def hashed(settings: Mapping[str, Any]) -> str:
    """What tells folders of different settings apart."""
    return hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode()).hexdigest()[:8]


def _one(executor: ChunkExecutor, observation: Any) -> Any:
    return executor.act({key: value[0, 0] for key, value in observation.items()})[None]


def _columns(infos: list[dict[str, Any]]) -> dict[str, list[float]]:
    return {metric: [float(info.get(metric, np.nan)) for info in infos] for metric in METRICS}


def _floats(values: list[float | None]) -> np.ndarray:
    """Numbers as a cell keeps them; null is NaN (lifting has no dressed ratio)."""
    return np.array(values, float)


def summary(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Scores of all seeds, their cost, and where an arm has them those of each range and of garments that it did not see."""
    found = {**scores(cells), "cpu_s": float(np.mean([cell["cpu_s"] for cell in cells]))}
    if "unseen" in cells[0]:
        found["unseen"] = scores([cell["unseen"] for cell in cells])
    if "by_region" in cells[0]:
        regions = cells[0]["by_region"]
        found["regions"] = {n: float(np.mean([cell["by_region"][n]["upper_ratio"] for cell in cells])) for n in regions}
    return found


def scores(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the episodes of all seeds, with intervals."""
    upper, whole, success, force = (np.stack([_floats(cell[metric]) for cell in cells]) for metric in METRICS)
    return {
        **{"upper": upper.mean(), "whole": whole.mean(), "success": success.mean(), "peak_force_n": force.mean()},
        **{"ci": interval(upper), "whole_ci": interval(whole), "success_ci": interval(success, binary=True)},
        **{"seeds": len(cells), "episodes": upper.size, "upper_by_seed": upper.mean(1).tolist()},
    }


def differences(cells: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The upper-arm ratio of the first trained arm less that of each other one, paired, with garments not seen besides."""
    trained = [arm for arm in cells if arm not in SCRIPTS]
    found: dict[str, Any] = {}
    for arm in trained[1:]:
        pairs = list(zip(cells[trained[0]], cells[arm], strict=True))
        found[f"{trained[0]} - {arm}"] = difference(pairs)
        if all("unseen" in cell for pair in pairs for cell in pair):
            found[f"{trained[0]} - {arm}, unseen garments"] = difference([(a["unseen"], b["unseen"]) for a, b in pairs])
    return found


def difference(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """Mean over seeds and episodes of the first's upper-arm ratio less the second's, with its interval."""
    values = np.stack([_floats(a["upper_ratio"]) - _floats(b["upper_ratio"]) for a, b in pairs])
    return {"upper": float(values.mean()), "ci": interval(values)}


def interval(values: np.ndarray, binary: bool = False, draws: int = 4000) -> list[float]:
    """95 % interval [low, high] of the mean of `values` [seeds, episodes], see the module."""
    seeds, episodes = values.shape
    if seeds > 1:
        rng = np.random.default_rng(0)
        rows, columns = rng.integers(seeds, size=(draws, seeds, 1)), rng.integers(episodes, size=(draws, 1, episodes))
        return np.quantile(values[rows, columns].mean((1, 2)), (0.025, 0.975)).tolist()
    if binary:
        return [float(end) for end in wilson(float(values.sum()), episodes)]
    half = 1.96 * values.std(ddof=1) / np.sqrt(episodes) if episodes > 1 else np.nan
    return [float(values.mean() - half), float(values.mean() + half)]


def throughput(seed: int, steps: int) -> dict[str, float]:
    """CPU milliseconds of one core: of a decision (physics, picture and cloud apart), of acting, and of an update."""
    from robopolicy.models.cloud_noise import CloudNoise
    from robopolicy.reinforce import make_learner, make_world
    from robopolicy.train.replay import ReplayBuffer, Transition

    torch.set_num_threads(1)
    kwargs = {"region": "bent", "garments": ["shirt"]}
    settings = to_plain(compose("train", ["experiment=dress"]))
    world, spec = make_world("robopolicy/Dress-v0", kwargs, {"all": {}})
    env: Any = new_environment("robopolicy/Dress-v0", kwargs).unwrapped
    times: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.process_time()
        result = work()
        times.setdefault(name, []).append(1e3 * (time.process_time() - started))
        return result

    for name, overrides in {"dense": [], "latent": ["critic.attach=latent"]}.items():
        settings = to_plain(compose("train", ["experiment=dress", *overrides]))
        learner = make_learner(settings["rl"]["learner"], settings["policy"], settings["critic"], spec, world, seed)
        buffer = ReplayBuffer(learner.actor.observation, learner.action_shape, steps + 1)
        observation = timed("reset", lambda: env.reset(seed=seed))[0]
        expert = DressExpert()
        for step in range(steps):
            batch = {key: value[None, None] for key, value in observation.items()}
            timed("act", partial(learner.actor.sample, batch, 1, 0))
            reward = timed("physics and metrics", partial(env.advance, expert(env)))[0]
            following = timed("picture and cloud", env.observe)
            buffer.add(Transition(observation, np.zeros(learner.action_shape, np.float32), reward, following, False))
            observation = following
            _, sampled = buffer.sample(64, np.random.default_rng(step))
            timed(f"update, {name} Q", partial(learner.update, sampled, 0, step, torch.Generator().manual_seed(step)))
    cloud = torch.from_numpy(observation["observation.points"])[None]
    mask, center = (cloud != 0).any(-1), torch.zeros(1, 3)
    for size in (1, 64):
        inputs = (cloud.expand(size, -1, -1), mask.expand(size, -1), center.expand(size, -1))
        for step in range(steps):
            timed(f"cloud noise, {size}", partial(CloudNoise(), *inputs, torch.Generator().manual_seed(step)))
    env.close()
    return {name: float(np.median(values)) for name, values in times.items()}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few rounds of three arms: everything runs, nothing is learned")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cells", type=Path, default=Path("runs/pointq"))
    parser.add_argument("--arms", default="expert,naive,dense,latent,direct")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--region", default="straight")
    parser.add_argument("--garments", default="shirt")
    parser.add_argument("--unseen", default="", help="garments that trained arms are scored on besides: slim_shirt,jacket")
    parser.add_argument("--rounds", type=int, default=2500, help="of two decisions and two updates")
    parser.add_argument("--teacher-rounds", type=int, default=2500, help="of reinforcement; 0 = teachers clone the expert")
    parser.add_argument("--episodes", type=int, default=50, help="that every cell is scored on")
    parser.add_argument("--judge", type=int, default=JUDGE, help="seed of those episodes")
    parser.add_argument("--demonstrations", type=int, default=40)
    parser.add_argument("--set", nargs="*", default=[], help="further settings of the learned arms: rl.train.batch_size=32")
    parser.add_argument("--bc-updates", type=int, default=1500)
    args = parser.parse_args()
    if args.quick:
        args.arms, args.seeds, args.rounds, args.episodes = "expert,dense,latent", 1, 8, 1
        args.cells = args.cells / "quick"
    args.garments, args.unseen = args.garments.split(","), [name for name in args.unseen.split(",") if name]
    arms = args.arms.split(",")
    if unknown := set(arms) - set(ARMS):
        parser.error(f"unknown arms {sorted(unknown)}; available: {', '.join(ARMS)}")
    if unknown := {*args.garments, *args.unseen} - set(GARMENTS):
        parser.error(f"unknown garments {sorted(unknown)}; available: {', '.join(GARMENTS)}")
    bench = Bench(args)
    cells: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for seed in range(args.seed, args.seed + args.seeds):
        for arm in arms:
            if arm in SCRIPTS and seed > args.seed:
                continue  # nothing random but the episodes, which are the same
            cells[arm].append(bench.cell(arm, seed))
    result = {arm: summary(found) for arm, found in cells.items()}
    print(f"{'arm':18} {'upper':>5} {'95 % interval':>14} {'whole':>6} {'success':>8} {'peak N':>6}  by seed")
    for arm, row in result.items():
        low, high = row["ci"]
        seeds = " ".join(f"{x:.2f}" for x in row["upper_by_seed"])
        rest = f"{row['whole']:6.2f} {row['success']:8.2f} {row['peak_force_n']:6.1f}  {seeds}"
        print(f"{arm:18} {row['upper']:5.2f} [{low:5.2f}, {high:5.2f}] {rest}")
        if other := row.get("unseen"):
            low, high = other["whole_ci"]
            print(f"{'':18} unseen garments: upper {other['upper']:.2f}, whole {other['whole']:.2f} [{low:.2f}, {high:.2f}]")
        if parts := row.get("regions"):
            print(f"{'':18} upper by range: " + ", ".join(f"{name} {value:.2f}" for name, value in parts.items()))
    paired = differences(cells)
    for name, row in paired.items():
        low, high = row["ci"]
        print(f"{name}: {row['upper']:+.2f} [{low:+.2f}, {high:+.2f}]")
    costs = throughput(args.seed, 8 if args.quick else 60)
    print("CPU ms of one core, medians: " + ", ".join(f"{name} {value:.2f}" for name, value in costs.items()))
    if args.out:
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        found = {"settings": settings, "arms": result, "paired": paired, "cpu_ms": costs}
        write_json(args.out, {**provenance("torch", "pybullet"), **found})


if __name__ == "__main__":
    main()
