"""The whole pipeline in a few minutes on a laptop: collect, train, steer, rank, check in the held-out simulator, report."""

from __future__ import annotations

import json
import logging
import platform
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from robopolicy import pipeline
from robopolicy.checkpoint import git_commit
from robopolicy.data.episodes import EpisodeStore
from robopolicy.evaluation.film import film, gif, strip, worlds
from robopolicy.evaluation.rollout import Arm, Suite, success_by_arm, write_table
from robopolicy.executor import map_units
from robopolicy.ranking.rank import compare
from robopolicy.ranking.result import Ranking

VALIDATION = "held_out"  # the randomisation that every checkpoint is validated on
TWIN_NAME = "the MuJoCo twin"
SEEDS = {"collect": 1, "target": 2, "select": 101, "confirm": 102, "twin": 103}  # offsets: no two stages share an episode

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
        with self.stage("collect", f"demonstrations and flawed attempts under {' and '.join(names)}, and target observations"):
            target = self._collect(names)
        with self.stage("train", f"{len(names)} policies and a critic"):
            critic = self._train(names)
        arms = pipeline.find_checkpoints([self.out / "policies" / name for name in names])
        with self.stage("evaluate", f"{len(arms)} checkpoints on the same {VALIDATION} worlds"):
            table = self._evaluate(arms, self._suite("select", VALIDATION, "episodes"), "scores.parquet")
        best = max(arms, key=lambda arm: (success_by_arm(table)[arm.name].mean(), arm.step))
        with self.stage("steer", f"{best.name} with the critic, base and steered on the same worlds"):
            pair = [best, pipeline.steered(best, critic, self.settings["steer"])]
            steering = self._evaluate(pair, self._suite("confirm", VALIDATION, "steer_episodes"), "steering.parquet")
        with self.stage("twin", "what the checkpoints really achieve in the held-out simulator"):
            twin = self._suite("twin", "none", "target_episodes", twin=True)
            outcomes = self._evaluate(arms, twin, "outcomes.parquet")
        with self.stage("rank", "simulated success combined with out-of-distribution detection"):
            ranking = self._rank(arms, table, target, outcomes, steering, pair, twin)
        return self._summary(ranking, table, steering, pair)

    def _collect(self, names: Sequence[str]) -> EpisodeStore:
        wanted, task = self.settings["collect"], self.settings["task"]
        for name in names:
            episodes = {"expert": wanted["expert"], "imperfect": wanted["imperfect"]}
            arguments = (self.out / "data" / name, task, name, episodes, self.seed("collect"), False, wanted["disturbance"])
            pipeline.collect_run(*arguments, self.workers, f"collect {name}")
        target = {"expert": wanted["target"]}
        path = self.out / "data" / "target"
        return pipeline.collect_run(path, task, "none", target, self.seed("target"), True, 0.0, self.workers, "collect target")

    def _train(self, names: Sequence[str]) -> Path:
        base = {"inputs": self.settings["inputs"], "task": self.settings["task"], "logger": "jsonl"}
        common = {"seed": self.settings["seed"], "progress": False, "resume": True, "log_every": 20}
        demonstrations = {"source": ["expert"]}
        runs = [
            {
                **base,
                "policy": self.settings["policy"],
                "data": {"path": str(self.out / "data" / name), "where": demonstrations},
                "train": {**self.settings["train"], **common},
                "run_dir": str(self.out / "policies" / name),
            }
            for name in names
        ]
        critic_dir = self.out / "critic"
        critic = {
            **base,
            "critic": self.settings["critic"],
            "data": {"path": str(self.out / "data" / names[-1]), "where": {}},
            "train": {**self.settings["critic_train"], **common},
            "run_dir": str(critic_dir),
        }
        with watch_training([*runs, critic]):
            map_units(_train_unit, [*runs, critic], self.workers, progress=False)
        return Path(pipeline.find_checkpoints(critic_dir)[-1].checkpoint)

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
        frames, seed = settings.pop("num_frames"), self.seed("target")
        work = partial(pipeline.features_unit, target=str(target.path), num_frames=frames, seed=seed)
        found = map_units(work, arms, self.workers, "features")
        features = dict(zip([arm.name for arm in arms], found, strict=True))
        pipeline.save_features(self.out / "features", features)
        comparison = compare(steering, pair[0].name, pair[1].name, seed=int(self.settings["seed"]))
        names = {"base_name": pair[0].name, "other_name": "steered"}
        note = f"Best checkpoint by simulated success; fresh {VALIDATION} worlds, the same for both."
        context = {
            "title": "robopolicy demo: which checkpoint goes on the robot?",
            "subtitle": "Franka Panda lift, learned from partial point clouds; the MuJoCo twin stands in for the robot.",
            "target_name": TWIN_NAME,
            "galleries": self._galleries(arms, outcomes, twin, table),
            "steering": {**comparison.to_dict(), **names, "note": note},
            "what_ran": self._provenance(),
            "not_computed": {
                "off-policy evaluation": "the target observations come without rewards of the policies' own actions",
                "a claim about real robots": f"{TWIN_NAME} is a held-out simulator, not a robot",
                "a claim about VSDR": "checkpoints of a run are one cluster; few runs show the mechanics only",
            },
        }
        chance = {"seed": int(self.settings["seed"]), "outcomes": outcomes, "context": context}
        return pipeline.rank_run(table, features, self.out, **chance, **settings)

    def _galleries(self, arms: Sequence[Arm], outcomes: pa.Table, twin: Suite, table: pa.Table) -> list[dict[str, Any]]:
        names = list(self.settings["randomizations"])
        suites = [self._suite("select", name, "episodes") for name in [*names, VALIDATION]]
        images = [(s.name.split("/")[-1], frame) for s in suites for frame in worlds(s, range(4), 200)]
        images += [("twin", frame) for frame in worlds(twin, range(4), 200)]
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

    def _summary(self, ranking: Ranking, table: pa.Table, steering: pa.Table, pair: Sequence[Arm]) -> list[str]:
        first = ranking.checkpoints[0]
        low, high = first.success_interval
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
    """Run the demo under resolved settings (conf/demo.yaml); what happened, in plain words."""
    demo = Demo(settings)
    demo.out.mkdir(parents=True, exist_ok=True)
    lines = demo.run()
    write_table(demo.out / "stages.parquet", pa.table({"stage": list(demo.seconds), "seconds": list(demo.seconds.values())}))
    return lines
