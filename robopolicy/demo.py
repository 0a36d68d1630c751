"""The whole pipeline in a few minutes on a laptop: collect, train, steer, rank, check in the held-out simulator, report."""

from __future__ import annotations

import json
import logging
import platform
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from robopolicy import pipeline
from robopolicy.checkpoint import git_commit
from robopolicy.data.episodes import EpisodeStore
from robopolicy.evaluation.film import film, strip, worlds
from robopolicy.evaluation.pictures import gif
from robopolicy.evaluation.rollout import Arm, Suite, success_by_arm, write_table
from robopolicy.executor import map_units
from robopolicy.ranking.looks import histogram
from robopolicy.ranking.rank import compare, detect_pool, rank
from robopolicy.ranking.result import Ranking
from robopolicy.selection.features import pool_features
from robopolicy.selection.publish import publish
from robopolicy.train.run_folder import open_run

VALIDATION = "held_out"  # the randomisation that every checkpoint is validated on
TARGET = "twin"  # what varies from trial to trial on the target
EXPLORER = -1  # which checkpoint of its run makes the critic's experience: the one whose actions it will have to judge
DEPENDS_ON = ("task", "seed", "randomizations", "collect")  # settings that the episodes depend on
TWIN_NAME = "the MuJoCo twin"
SEEDS = {
    "collect": 1,
    "target": 2,
    "explore": 3,
    "select": 101,
    "confirm": 102,
    "twin": 103,
}  # offsets: no two stages share an episode

logger = logging.getLogger(__name__)


@dataclass
class Demo:
    """The demo's stages, in order; each reads what earlier ones left in `out` and remembers its wall time.

    settings: the resolved demo config (conf/demo.yaml).
    """

    settings: Mapping[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        """Folder of everything that the demo writes."""
        return Path(self.settings["out"])

    @property
    def workers(self) -> int | None:
        """Processes to use; None = one per core."""
        return self.settings["num_workers"]

    def seed(self, stage: str) -> int:
        """Seed of a stage."""
        return 1000 * int(self.settings["seed"]) + SEEDS[stage]

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        """Announce a stage and time it."""
        logger.info("%s: %s", name, what)
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 1)

    def run(self) -> list[str]:
        """Run all stages. Returns what happened, in plain words; the last line says where the report is."""
        names = list(self.settings["randomizations"])
        with self.stage("collect", f"demonstrations under {' and '.join(names)}, flawed attempts, target observations"):
            target = self._collect(names)
        with self.stage("train", f"{len(names)} policies, one for each randomisation"):
            self._train([self._policy_run(name) for name in names])
        arms = pipeline.find_checkpoints([self.out / "policies" / name for name in names])
        with self.stage("critic", "a policy tries things out, and a critic learns from what became of them"):
            critic = self._critic(names[-1])
        with self.stage("evaluate", f"{len(arms)} checkpoints on the same {VALIDATION} worlds"):
            table = self._evaluate(arms, self._suite("select", VALIDATION, "episodes"), "scores.parquet")
        success = success_by_arm(table)
        best = max(arms, key=lambda arm: (success[arm.name].mean(), arm.step))
        with self.stage("steer", f"{best.name} with the critic, base and steered on the same worlds"):
            pair = [best, pipeline.steered(best, {**self.settings["steer"], "critic": critic})]
            steering = self._evaluate(pair, self._suite("confirm", VALIDATION, "steer_episodes"), "steering.parquet")
        with self.stage("twin", "what the checkpoints really achieve in the held-out simulator"):
            twin = self._suite("twin", TARGET, "target_episodes", twin=True)
            outcomes = self._evaluate(arms, twin, "outcomes.parquet")
        with self.stage("rank", "simulated success combined with out-of-distribution detection"):
            ranking = self._rank(arms, table, target, outcomes, steering, pair, twin)
        return self._summary(ranking, steering, pair)

    def _collect(self, names: Sequence[str]) -> EpisodeStore:
        wanted = self.settings["collect"]
        for name in names:
            flawed = wanted["imperfect"] if name == names[-1] else 0  # the critic learns on the last one
            self._episodes(name, name, {"expert": wanted["expert"], "imperfect": flawed}, "collect", wanted["disturbance"])
        return self._episodes("target", TARGET, {"expert": wanted["target"]}, "target", twin=True)

    def _episodes(
        self,
        folder: str,
        randomization: str,
        episodes: Mapping[str, int],
        seed: str,
        disturbance: float = 0.0,
        twin: bool = False,
        policy: str | None = None,
    ) -> EpisodeStore:
        return pipeline.collect_run(
            path=self.out / "data" / folder,
            task=self.settings["task"],
            randomization=randomization,
            episodes=episodes,
            seed=self.seed(seed),
            twin=twin,
            disturbance=disturbance,
            num_workers=self.workers,
            title=f"collect {folder}",
            checkpoint=policy,
        )

    def _run(self, folder: str, data: str, where: Mapping[str, Any] | None, train: str, **node: Any) -> dict[str, Any]:
        common = {"seed": self.settings["seed"], "progress": False, "resume": True, "log_every": 20}
        return {
            "inputs": self.settings["inputs"],
            "task": self.settings["task"],
            "logger": "jsonl",
            "data": {"path": str(self.out / "data" / data), "where": where},
            "train": {**self.settings[train], **common},
            "run_dir": str(self.out / folder),
            **node,
        }

    def _policy_run(self, name: str) -> dict[str, Any]:
        return self._run(f"policies/{name}", name, {"source": ["expert"]}, "train", policy=self.settings["policy"])

    def _train(self, runs: Sequence[Mapping[str, Any]]) -> None:
        with watch_training(runs):
            map_units(_train_unit, runs, self.workers, progress=False)

    def _critic(self, name: str) -> str:
        """The run of a critic trained on all episodes under the randomisation `name`, those of the explorer included."""
        explorer = pipeline.find_checkpoints(self.out / "policies" / name)[EXPLORER].checkpoint
        episodes = {pipeline.ROLLOUT: self.settings["collect"]["rollout"]}
        # in a folder of their own: the policies' datasets stay what their checkpoints say they are
        mixed = self.out / "data" / "mixed"
        if not mixed.exists():
            part = mixed.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(self.out / "data" / name, part)
            part.rename(mixed)
        self._episodes("mixed", name, episodes, "explore", policy=explorer)
        self._train([self._run("critic", "mixed", None, "critic_train", critic=self.settings["critic"])])
        return str(self.out / "critic")

    def _suite(self, stage: str, randomization: str, episodes: str, twin: bool = False) -> Suite:
        env_id, env_kwargs = pipeline.task_env(self.settings["task"], randomization, twin)
        count, split = self.settings["evaluate"][episodes], "target" if twin else stage
        return Suite.draw(f"{env_id}/{randomization}", env_id, env_kwargs, count, self.seed(stage), split)

    def _evaluate(self, arms: Sequence[Arm], suite: Suite, file: str) -> pa.Table:
        return pipeline.evaluate_arms(arms, suite, self.out / file, self.workers, file.removesuffix(".parquet"))

    def _rank(
        self,
        arms: Sequence[Arm],
        table: pa.Table,
        target: EpisodeStore,
        outcomes: pa.Table,
        steering: pa.Table,
        pair: Sequence[Arm],
        twin: Suite,
    ) -> Ranking:
        settings = dict(self.settings["rank"])
        frames, folder = settings.pop("num_frames"), self.out / "features"
        features = pool_features(arms, target.path, frames, self.seed("target"), self.workers, folder)
        comparison = compare(steering, pair[0].name, pair[1].name, seed=int(self.settings["seed"]))
        names = {"base_name": pair[0].name, "other_name": "steered"}
        note = f"Best checkpoint by simulated success; fresh {VALIDATION} worlds, the same for both."
        context = {
            "title": "robopolicy demo: which checkpoint goes on the robot?",
            "subtitle": "Franka Panda lift, learned from partial point clouds; the MuJoCo twin stands in for the robot.",
            "target_name": TWIN_NAME,
            "galleries": self._galleries(arms, outcomes, twin),
            "steering": {**comparison.to_dict(), **names, "note": note},
            "what_ran": self._provenance(),
            "not_computed": {
                "off-policy evaluation": "the target observations come without rewards of the policies' own actions",
                "a claim about real robots": f"{TWIN_NAME} is a held-out simulator, not a robot",
                "a claim about VSDR": "checkpoints of a run are one cluster; few runs show the mechanics only",
            },
        }
        settings["seed"] = int(self.settings["seed"])
        detected = detect_pool(
            features, list(features), **{key: settings[key] for key in ("detector", "seed", "num_bootstrap")}
        )
        ranking = rank(table, features, target_outcomes=outcomes, detected=detected, **settings)
        seen = [histogram(name, detected[name]) for name in ranking.orders["ood"][:: len(arms) - 1]]
        context["histograms"] = [found for found in seen if found is not None]
        publish(self.out, ranking, episodes=table, context=context)
        return ranking

    def _galleries(self, arms: Sequence[Arm], outcomes: pa.Table, twin: Suite) -> list[dict[str, Any]]:
        names = list(self.settings["randomizations"])
        suites = [self._suite("select", name, "episodes") for name in [*names, VALIDATION]]
        images = [(s.name.split("/")[-1], frame) for s in suites for frame in worlds(s, range(6), 200)]
        images += [("twin", frame) for frame in worlds(twin, range(6), 200)]
        caption = (
            "Rows: what each policy was trained on, what all were validated on, and the twin that stands in for the robot."
        )
        return [
            {"title": "Randomised worlds", "caption": caption, "images": images},
            {"title": "Rollouts in the twin", "caption": "A success and a failure.", "images": _rollouts(arms, outcomes, twin)},
        ]

    def _provenance(self) -> dict[str, Any]:
        packages = ("torch", "pybullet", "mujoco", "numpy")
        return {
            "command": "make demo (robopolicy demo)",
            "commit": git_commit() or "not in a git checkout",
            "seed": self.settings["seed"],
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
            **{f"{name}, s": seconds for name, seconds in self.seconds.items()},
        }

    def _summary(self, ranking: Ranking, steering: pa.Table, pair: Sequence[Arm]) -> list[str]:
        first = ranking.checkpoints[0]
        low, high = first.success_interval or (float("nan"), float("nan"))
        steered = {name: float(values.mean()) for name, values in success_by_arm(steering).items()}
        lines = [
            f"Ranked {len(ranking.checkpoints)} checkpoints of {len(self.settings['randomizations'])} training runs.",
            f"VSDR puts {first.checkpoint} first: it lifts in {first.success:.0%} of simulated validation worlds "
            f"(95 % interval {low:.0%} to {high:.0%}).",
        ]
        if first.target_success is not None and first.target_interval is not None:
            low, high = first.target_interval
            achieved = f"{first.target_success:.0%} ({low:.0%} to {high:.0%})"
            lines.append(f"In {TWIN_NAME}, which stands in for the robot, it lifts in {achieved}.")
        base, other = (steered[arm.name] for arm in pair)
        lines.append(f"Steering {pair[0].name} with the critic: {base:.0%} alone, {other:.0%} steered, on the same worlds.")
        total = sum(self.seconds.values())
        lines.append(f"Took {total / 60:.1f} minutes ({', '.join(f'{k} {v:.0f} s' for k, v in self.seconds.items())}).")
        lines.append(f"Report: {(self.out / 'report.html').resolve()}")
        return lines


def _train_unit(run: Mapping[str, Any]) -> list[str]:
    settings = {key: value for key, value in run.items() if key != "run_dir"}
    return [str(folder) for folder in pipeline.train_run(settings, run["run_dir"])]


def _rollouts(arms: Sequence[Arm], outcomes: pa.Table, suite: Suite) -> list[tuple[str, Any]]:
    """One success and one failure in the twin, the best checkpoint's where it has both: an animation and a strip each."""
    rate = {name: values.mean() for name, values in success_by_arm(outcomes).items()}
    best_first = sorted(arms, key=lambda arm: -rate[arm.name])
    rows = outcomes.select(["checkpoint", "seed", "success"]).to_pylist()
    images: list[tuple[str, Any]] = []
    for wanted, word in ((True, "success"), (False, "failure")):
        found = ((a, r["seed"]) for a in best_first for r in rows if r["checkpoint"] == a.name and r["success"] is wanted)
        arm, seed = next(found, (None, 0))
        if arm is not None:
            frames, _ = film(arm, suite, seed)
            images += [(f"{word}: {arm.name}, seed {seed}", gif(frames)), (f"{word}, start to end", strip(frames))]
    return images


@contextmanager
def watch_training(runs: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """A progress bar over training runs in other processes, from the last line of their metrics.jsonl."""
    total, done = sum(run["train"]["steps"] for run in runs), threading.Event()
    files = [Path(run["run_dir"]) / "metrics.jsonl" for run in runs]

    def follow() -> None:
        with tqdm(total=total, desc="train", unit="step", mininterval=1.0) as bar:
            while not done.wait(1.0):
                bar.update(sum(map(_last_step, files)) - bar.n)
            bar.update(sum(map(_last_step, files)) - bar.n)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _last_step(file: Path) -> int:
    try:
        lines = file.read_text().splitlines()
        return int(json.loads(lines[-1])["step"]) if lines else 0
    except (OSError, ValueError):  # not there yet, or a line half written
        return 0


def run_demo(settings: Mapping[str, Any]) -> list[str]:
    """Run the demo under resolved settings (conf/demo.yaml); what happened, in plain words.

    Raises:
        TrainingError: `out` holds a demo with other episodes, which its policies were trained on.
    """
    demo = Demo(settings)
    open_run(demo.out, {key: settings[key] for key in DEPENDS_ON}, resume=True)
    lines = demo.run()
    write_table(demo.out / "stages.parquet", pa.table({"stage": list(demo.seconds), "seconds": list(demo.seconds.values())}))
    return lines
