"""One run of the study from beginning to end: demonstrations, training, episodes everywhere, what the detectors see.

Its tables are written when all is done, so a killed study repeats no finished run.
"""

from __future__ import annotations

import shutil
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from robopolicy import pipeline
from robopolicy.checkpoint import git_commit
from robopolicy.config import compose, to_plain
from robopolicy.data.episodes import EpisodeStore
from robopolicy.evaluation.features import Frames, of_frames
from robopolicy.evaluation.rollout import Arm, Suite, play_block
from robopolicy.files import atomic_write
from robopolicy.policies.base import TrainablePolicy
from robopolicy.policies.load import load_policy
from robopolicy.ranking.detectors import DETECTORS, evidence
from robopolicy.ranking.detectors.base import Standard, effective_rank
from robopolicy.ranking.detectors.detect import MIN_EFFECTIVE_RANK
from robopolicy.selection import acted
from robopolicy.selection.acts import policy_acts
from robopolicy.selection.features import detection_frames
from robopolicy.selection.gap import dynamics_gaps
from robopolicy.selection.target import open_target
from robopolicy.spec import Observation
from vsdr_study.design import TASK, Configuration, Sizes, targets

PLACEBO = "placebo"  # fresh observations of a policy's own training worlds: nothing there is out of distribution
OWN, HELD_OUT = "own", "held_out"  # simulated suites: a policy's own randomisation; the common one that none was trained on
BEHAVIOUR = "noisy"  # makes the fixed target observations: an expert that misjudges where things are, no policy of the pool
SUBSETS = 5  # drawn sets of observations for each size
SPARSE = "mahalanobis"  # the detector of the smaller sets
LAYERS = ("features", "chunks")  # what detectors look at: the encoder's output; what the policy would do


@dataclass(frozen=True)
class Run:
    """A training run of the pool."""

    configuration: Configuration
    seed: int

    @property
    def name(self) -> str:
        """Such as "wide-none-narrow/0"."""
        return f"{self.configuration.name}/{self.seed}"

    def folder(self, root: Path) -> Path:
        """Where its policy lies."""
        return root / "policies" / self.name.replace("/", "_")


def node(sizes: Sizes) -> dict[str, Any]:
    """The task: proprioception and a partial point cloud."""
    found = to_plain(compose("collect", [f"task={TASK}", "path=x"]))["task"]
    env = {"observation": ["state", "points"], "num_points": sizes.num_points, "max_episode_steps": sizes.limit}
    return {**found, "env": env}


def observe_targets(root: Path, sizes: Sizes) -> dict[str, Path]:
    """The fixed set of observations of every target: {target: dataset}, with actions and rewards for whoever needs them."""
    found = {}
    for name, nominal in targets().items():
        task = node(sizes)
        task["env"]["nominal"] = nominal
        found[name] = root / "targets" / name
        seed = zlib.crc32(f"observed/{name}".encode())
        options: dict[str, Any] = {"twin": True, "num_workers": 0, "title": f"observe {name}"}
        pipeline.collect_run(found[name], task, "twin", {BEHAVIOUR: sizes.observed}, seed, **options)
    return found


def play_run(run: Run, root: Path, sizes: Sizes, observed: Mapping[str, Path]) -> None:
    """Everything about one run, into root/tables; nothing where that is there already."""
    tables = {kind: table_file(root, run, kind) for kind in ("episodes", "scores", "facts")}
    if all(file.is_file() for file in tables.values()):
        return
    began = time.perf_counter()
    data = root / "data" / run.name.replace("/", "_")
    arm = _train(run, root, data, sizes)
    trained = time.perf_counter()
    episodes = [row for suite in _suites(run, sizes) for row in _episodes(arm, suite)]
    played = time.perf_counter()
    placebo = _collect(data.with_name(f"{data.name}_{PLACEBO}"), run, sizes, {BEHAVIOUR: sizes.observed}, PLACEBO)
    scores = [{"policy": arm.name, **row} for row in _scores(arm, {**observed, PLACEBO: placebo}, sizes)]
    seconds = {"train": trained - began, "play": played - trained, "score": time.perf_counter() - played}
    facts = {"policy": arm.name, "config": arm.run, "width": run.configuration.width, "data_hash": EpisodeStore(data).hash}
    facts |= {"commit": git_commit() or "", **{f"{name}_hash": EpisodeStore(path).hash for name, path in observed.items()}}
    facts |= {f"{name}_s": round(value, 1) for name, value in seconds.items()}
    for kind, rows in (("episodes", episodes), ("scores", scores), ("facts", [facts])):
        write(tables[kind], pa.Table.from_pylist(rows))
    for folder in (data, placebo):
        shutil.rmtree(folder, ignore_errors=True)


def table_file(root: Path, run: Run, kind: str) -> Path:
    """Where a run's rows are."""
    return root / "tables" / f"{run.name.replace('/', '_')}.{kind}.parquet"


def write(file: Path, table: pa.Table) -> None:
    """Write a table, in one step."""
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, partial(pq.write_table, table, compression="zstd"))


def _collect(path: Path, run: Run, sizes: Sizes, episodes: Mapping[str, int], use: str) -> Path:
    seed = zlib.crc32(f"{run.name}/{use}".encode())
    disturbance = 0.008 if use == "train" else 0.0
    options: dict[str, Any] = {"num_workers": 0, "title": path.name, "disturbance": disturbance}
    pipeline.collect_run(path, node(sizes), run.configuration.randomization, episodes, seed, **options)
    return path


def _train(run: Run, root: Path, data: Path, sizes: Sizes) -> Arm:
    """The last checkpoint of the run."""
    _collect(data, run, sizes, {"expert": sizes.demonstrations}, "train")
    given = ["policy=bc", "inputs=points", f"data.path={data}", f"train.steps={sizes.steps}"]
    given += [f"train.batch_size={sizes.batch_size}", "train.num_checkpoints=1"]
    given += [f"train.seed={run.seed}", "train.resume=true", "train.progress=false", "train.num_threads=1"]
    settings = to_plain(compose("train", given))
    pipeline.train_run(settings, run.folder(root))
    checkpoint = pipeline.find_checkpoints(run.folder(root))[-1]
    return Arm(run.name, checkpoint.checkpoint, run.configuration.name, checkpoint.step)


def _suites(run: Run, sizes: Sizes) -> Iterator[Suite]:
    """Every place where a policy plays: its own worlds, the common ones, the targets; the same conditions for all policies."""
    task = node(sizes)
    places: list[tuple[str, Any, int, dict[str, Any] | None]] = [
        (OWN, run.configuration.randomization, sizes.own, None),
        (HELD_OUT, "held_out", sizes.held_out, None),
        *((name, "twin", sizes.target, nominal) for name, nominal in targets().items()),
    ]
    for name, randomization, episodes, nominal in places:
        env = task["env"] if nominal is None else {**task["env"], "nominal": nominal}
        env_id, env_kwargs = pipeline.task_env({**task, "env": env}, randomization, twin=nominal is not None)
        seed = zlib.crc32(f"played/{name}".encode())
        yield Suite.draw(name, env_id, env_kwargs, episodes, seed, "select")


def _episodes(arm: Arm, suite: Suite) -> list[dict[str, Any]]:
    kept = ("condition", "success", "progress", "length")
    names = {"policy": arm.name, "config": arm.run, "suite": suite.name}
    return [{**names, **{key: row[key] for key in kept}} for row in play_block((arm, suite))]


def _scores(arm: Arm, observed: Mapping[str, Path], sizes: Sizes) -> Iterator[dict[str, Any]]:
    """{"target", "layer", "score", "size", "draw", "value"}; detectors' values grow with distance, others with merit."""
    policy = load_policy(arm.checkpoint)
    for layer, make in (("features", policy.features), ("chunks", partial(_chunk, policy))):
        yield from ({"layer": layer, **row} for row in _distances(arm, policy, make, observed, sizes))
    for name, path in observed.items():
        store = EpisodeStore(path)
        own = {arm.name: policy_acts(arm, str(path), sizes.decisions, 0, None)}
        found = {"support": acted.each(acted.support, own), "action_error": acted.each(acted.imitation, own)}
        if name in sizes.moved:
            found["dynamics_gap"] = dynamics_gaps([arm], store, sizes.decisions, 0)[0]
        if name in sizes.valued:
            found |= acted.off_policy(own, store, 0)
        for score, estimates in found.items():
            estimate = estimates[arm.name]
            value = estimate.value if estimate.applicable else float("nan")
            yield {"layer": "", "target": name, "score": score, "size": len(store), "draw": 0, "value": value}


def _chunk(policy: TrainablePolicy, observation: Observation) -> np.ndarray:
    chunks = policy.sample(observation, seed=0)[:, 0, : policy.spec.execute_horizon]
    return chunks.reshape(len(chunks), -1)


def _distances(
    arm: Arm, policy: TrainablePolicy, make: Any, observed: Mapping[str, Path], sizes: Sizes
) -> Iterator[dict[str, Any]]:
    """Effect sizes of every detector on every target, and of one detector on smaller sets of observations."""
    parts = detection_frames(arm, policy, str(observed[next(iter(observed))]))
    fit, calibration = (of_frames(policy, make, parts[name], sizes.frames, 0)[0] for name in ("fit", "calibration"))
    standard = Standard.of(fit)
    if standard.width and effective_rank(standard.covariance(fit)) < MIN_EFFECTIVE_RANK:
        standard = None  # collapsed: no evidence, see ranking.detectors.detect
    for name, path in observed.items():
        frames: Frames = open_target(path).frames(policy.spec.observation, policy.spec.obs_horizon)
        seen, episode = of_frames(policy, make, frames, sizes.frames, 0)
        common = {"target": name}
        if standard is None or not standard.width:
            yield from ({**common, "score": d, "size": len(seen), "draw": 0, "value": float("nan")} for d in DETECTORS)
            continue
        for detector, made in DETECTORS.items():
            pair = made().fit_standardised(fit, standard).pair(seen, calibration, episode)
            size = evidence(*pair).effect_size
            yield {**common, "score": detector, "size": len(seen), "draw": 0, "value": size}
            if detector == SPARSE:
                yield from ({**common, "score": detector, **row} for row in _smaller(*pair, sizes.subsets))


def _smaller(target: np.ndarray, calibration: np.ndarray, subsets: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """The detector on fewer observations, several draws of each number; the same ones for every policy."""
    for number in subsets:
        for draw in range(1, 1 + SUBSETS):
            rows = np.random.default_rng([number, draw]).permutation(len(target))[:number]
            yield {"size": number, "draw": draw, "value": evidence(target[rows], calibration).effect_size}
