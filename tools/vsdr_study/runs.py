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

import pyarrow as pa
import pyarrow.parquet as pq

from robopolicy import pipeline
from robopolicy.checkpoint import git_commit
from robopolicy.config import compose, to_plain
from robopolicy.data.episodes import EpisodeStore
from robopolicy.evaluation.rollout import Arm, Suite, play_block
from robopolicy.files import atomic_write
from robopolicy.selection import acted
from robopolicy.selection.acts import policy_acts
from robopolicy.selection.gap import dynamics_gaps
from vsdr_study.design import EVERYWHERE, TASK, VIEW, Configuration, Sizes, randomization, targets, trials
from vsdr_study.distances import distances

PLACEBO = "placebo"  # fresh observations of a policy's own training worlds: nothing there is out of distribution
OWN, COMMON = "own", "common"  # simulated suites: a policy's own randomisation; the widest one, the same for all
BEHAVIOUR = "noisy"  # makes the fixed target observations: an expert that misjudges where things are, no policy of the pool
AUGMENTATION = ("shift", "brightness", "contrast", "saturation", "hue")  # off: randomisation is what the study varies
DISTURBANCE = 0.025  # m; pushes while demonstrations are made: where nothing else varies, cloning fails without them
MATCHED = "matched"  # of the same behaviour in the same worlds: what detectors may know beside the demonstrations


@dataclass(frozen=True)
class Run:
    """A training run of the pool."""

    configuration: Configuration
    seed: int
    step: int = 0  # of the checkpoint that plays; 0 = the last one

    @property
    def name(self) -> str:
        """Such as "wide-none-narrow/0", or "wide-none-narrow/0@1000" of an early checkpoint."""
        return self.training + (f"@{self.step}" if self.step else "")

    @property
    def training(self) -> str:
        """The name without the checkpoint: what demonstrations and further observations are drawn by."""
        return f"{self.configuration.name}/{self.seed}"

    def folder(self, root: Path) -> Path:
        """Where its policy lies."""
        return root / "policies" / self.file_name

    @property
    def file_name(self) -> str:
        """The name without what a file's may not have."""
        return self.name.replace("/", "_")


def node(sizes: Sizes) -> dict[str, Any]:
    """The task: proprioception and a small picture of the front camera, which looks closer than usual."""
    found = to_plain(compose("collect", [f"task={TASK}", "path=x"]))["task"]
    env = {"observation": ["state", "images.front"], "image_size": sizes.image_size, "nominal": VIEW}
    env["max_episode_steps"] = sizes.limit
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
        pipeline.collect_run(found[name], task, trials(), {BEHAVIOUR: sizes.observed}, seed, **options)
    return found


def play_run(run: Run, root: Path, sizes: Sizes, observed: Mapping[str, Path]) -> None:
    """Everything about one run, into root/tables; nothing where that is there already."""
    tables = {kind: table_file(root, run, kind) for kind in ("episodes", "scores", "facts")}
    if all(file.is_file() for file in tables.values()):
        return
    began = time.perf_counter()
    data = root / "data" / run.file_name
    arm = _train(run, root, data, sizes)
    trained = time.perf_counter()
    rows = [row for suite in _suites(run, sizes) for row in _episodes(arm, suite)]
    played = time.perf_counter()
    shown = {
        use: _collect(data.with_name(f"{data.name}_{use}"), run, sizes, {BEHAVIOUR: episodes}, use)
        for use, episodes in ((PLACEBO, sizes.observed), (MATCHED, 2 * sizes.observed))
    }
    seen = {**observed, PLACEBO: shown[PLACEBO]}
    scores = [{"policy": arm.name, **row} for row in _scores(arm, seen, shown[MATCHED], sizes)]
    seconds = {"train": trained - began, "play": played - trained, "score": time.perf_counter() - played}
    facts = {"policy": arm.name, "config": arm.run, "width": run.configuration.width, "data_hash": EpisodeStore(data).hash}
    facts |= {"commit": git_commit() or "", **{f"{name}_hash": EpisodeStore(path).hash for name, path in observed.items()}}
    facts |= {f"{name}_s": round(value, 1) for name, value in seconds.items()}
    for kind, of in (("episodes", rows), ("scores", scores), ("facts", [facts])):
        write(tables[kind], pa.Table.from_pylist(of))
    for folder in (data, *shown.values()):
        shutil.rmtree(folder, ignore_errors=True)


def table_file(root: Path, run: Run, kind: str) -> Path:
    """Where a run's rows are."""
    return root / "tables" / f"{run.file_name}.{kind}.parquet"


def write(file: Path, table: pa.Table) -> None:
    """Write a table, in one step."""
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, partial(pq.write_table, table, compression="zstd"))


def _collect(path: Path, run: Run, sizes: Sizes, episodes: Mapping[str, int], use: str) -> Path:
    seed = zlib.crc32(f"{run.training}/{use}".encode())
    disturbance = DISTURBANCE if use == "train" else 0.0
    options: dict[str, Any] = {"num_workers": 0, "title": path.name, "disturbance": disturbance}
    pipeline.collect_run(path, node(sizes), run.configuration.randomization, episodes, seed, **options)
    return path


def _train(run: Run, root: Path, data: Path, sizes: Sizes) -> Arm:
    """The checkpoint of the run that plays."""
    _collect(data, run, sizes, {"expert": sizes.demonstrations}, "train")
    given = ["policy=bc", "inputs=images", *(f"+inputs.encoder.images.{name}=0" for name in AUGMENTATION)]
    given += [f"data.path={data}", f"train.steps={sizes.steps}", f"train.batch_size={sizes.batch_size}"]
    given += [f"train.num_checkpoints={sizes.steps // (run.step or sizes.steps)}", f"train.seed={run.seed}"]
    given += ["train.resume=true", "train.progress=false", "train.num_threads=1"]
    settings = to_plain(compose("train", given))
    pipeline.train_run(settings, run.folder(root))
    checkpoints = {found.step: found for found in pipeline.find_checkpoints(run.folder(root))}
    checkpoint = checkpoints[run.step or sizes.steps]
    return Arm(run.name, checkpoint.checkpoint, run.configuration.name, checkpoint.step)


def _suites(run: Run, sizes: Sizes) -> Iterator[Suite]:
    """Every place where a policy plays: its own worlds, the common ones, the targets; the same conditions for all policies."""
    task = node(sizes)
    places: list[tuple[str, Any, int, dict[str, Any] | None]] = [
        (OWN, run.configuration.randomization, sizes.own, None),
        (COMMON, randomization(EVERYWHERE), sizes.common, None),
        *((name, trials(), sizes.target, nominal) for name, nominal in targets().items()),
    ]
    for name, drawn, episodes, nominal in places:
        env = task["env"] if nominal is None else {**task["env"], "nominal": nominal}
        env_id, env_kwargs = pipeline.task_env({**task, "env": env}, drawn, twin=nominal is not None)
        seed = zlib.crc32(f"played/{name}".encode())
        yield Suite.draw(name, env_id, env_kwargs, episodes, seed, "select")


def _episodes(arm: Arm, suite: Suite) -> list[dict[str, Any]]:
    kept = ("condition", "success", "progress", "length")
    names = {"policy": arm.name, "config": arm.run, "suite": suite.name}
    return [{**names, **{key: row[key] for key in kept}} for row in play_block((arm, suite))]


def _scores(arm: Arm, observed: Mapping[str, Path], matched: Path, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """{"target", "layer", "score", "size", "draw", "value"}; detectors' values grow with distance, others with merit."""
    yield from distances(arm, observed, matched, sizes.frames, sizes.subsets)
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
