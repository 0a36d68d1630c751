"""A pool of checkpoints, rolled out on a suite and ranked: rounds of episodes, features, finalists on fresh conditions."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from robopolicy import checkpoint, pipeline
from robopolicy.evaluation.rollout import Arm
from robopolicy.executor import Executor, Local
from robopolicy.policies.served import is_served
from robopolicy.ranking.allocation import sequential_halving
from robopolicy.ranking.fresh import with_fresh
from robopolicy.ranking.rank import rank
from robopolicy.ranking.result import Ranking
from robopolicy.ranking.tables import CONFIG, RankingError
from robopolicy.selection import units
from robopolicy.selection.spending import Round, Spending, rounds
from robopolicy.selection.suite import CONFIRM, SEALED, SELECT, FrozenSuite

NEUTRAL = frozenset(  # settings of training that make no other configuration
    (
        "seed",
        "device",
        "num_threads",
        "num_prefetch",
        "num_checkpoints",
        "log_every",
        "save_every_seconds",
        "resume",
        "progress",
    )
)


@dataclass(frozen=True)
class Pool:
    """Checkpoints, each once.

    shas: {checkpoint folder: its sha256}. configs: {arm: its training configuration}; runs that share it differ in their seed.
    notes: what was left out, and why.
    """

    arms: tuple[Arm, ...]
    shas: Mapping[str, str]
    configs: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.arms)

    def arm(self, name: str) -> Arm:
        """The arm of this name."""
        return next(arm for arm in self.arms if arm.name == name)


@dataclass
class Played:
    """What rolling out a pool gave: its episodes, who was dropped after which round, and a log line a decision."""

    select: pa.Table
    dropped: dict[str, int]
    log: list[dict[str, Any]]


@dataclass(frozen=True)
class Work:
    """Where units run and where their results are kept."""

    folder: Path
    num_workers: int | None
    executor: Executor | None

    @property
    def processes(self) -> int:
        """How many work at once."""
        return 1 if self.num_workers == 0 else (self.executor or Local()).crew(self.num_workers).size


def find_pool(given: str | Sequence[str]) -> Pool:
    """The checkpoints at folders, run folders, folders of runs, or patterns of them with * or ?.

    Raises:
        CheckpointError: a path with no checkpoint in it, or a pattern that nothing matches.
    """
    paths: list[str] = []
    for path in [given] if isinstance(given, str) else list(given):
        if is_served(path):
            raise checkpoint.CheckpointError(
                f"{path} is a server, and a pool compares what encoders see, as only checkpoints show: evaluate plays servers, "
                "and rank scores=TABLE orders what was played"
            )
        found = sorted(glob.glob(str(path))) if glob.has_magic(str(path)) else [str(path)]
        if not found:
            raise checkpoint.CheckpointError(
                f"nothing matches {path}: give checkpoint folders, run folders or patterns of them"
            )
        paths += found
    arms = list({arm.checkpoint: arm for arm in pipeline.find_checkpoints(list(dict.fromkeys(paths)))}.values())
    shas, first, kept, notes = units.hashes(arms), dict[str, str](), list[Arm](), list[str]()
    for arm in arms:
        same = first.setdefault(shas[arm.checkpoint], arm.name)
        if same == arm.name:
            kept.append(arm)
        else:
            notes.append(f"{arm.name} is the same checkpoint as {same} (equal hash) and was left out")
    return Pool(tuple(kept), shas, {arm.name: _config(arm) for arm in kept}, tuple(notes))


def _config(arm: Arm) -> str:
    """Equal for checkpoints that were trained alike but for the seed: hash of data, training and policy settings."""
    config, meta = checkpoint.describe(arm.checkpoint)
    train = {key: value for key, value in config.get("train", {}).items() if key not in NEUTRAL}
    alike = [meta.get("data_hash"), config.get("data", {}).get("where"), train, config.get("policy")]
    return hashlib.sha256(json.dumps(alike, sort_keys=True, default=str).encode()).hexdigest()[:12]


def expected(num_arms: int, suite: FrozenSuite, spending: Spending) -> tuple[list[Round], int]:
    """The rounds, and all episodes they, the certificates and the finalists' fresh conditions take.

    Raises:
        RankingError: a budget that gives no episode to everyone.
    """
    planned = rounds(num_arms, suite.size(SELECT), spending)
    return planned, sum(r.episodes for r in planned) + beside(num_arms, suite, spending)


def beside(num_arms: int, suite: FrozenSuite, spending: Spending) -> int:
    """Episodes that are played whatever the budget: those with noise, and the finalists' on fresh conditions."""
    finalists = min(spending.finalists, num_arms)
    fresh = suite.size(CONFIRM) + (suite.size(SEALED) if spending.open_sealed else 0)
    staying = finalists if spending.alloc == "halving" else num_arms
    return finalists * fresh + (staying * suite.size(SELECT) if spending.noisy else 0)


def within_time(pool: Pool, suite: FrozenSuite, spending: Spending, work: Work) -> Spending:
    """The spending with its time budget as episodes, by what those of the first block took.

    Raises:
        RankingError: not even an episode for each checkpoint beside what is played in any case.
    """
    if spending.seconds is None:
        return spending
    probe = units.plan(pool.arms[:1], pool.shas, suite, SELECT, 0, suite.size(SELECT), work.folder)[:1]
    each = units.seconds_per_episode(probe, work.num_workers, work.executor)
    total, needed = int(spending.seconds * work.processes / each), beside(len(pool), suite, spending)
    if total - needed < len(pool):
        least = (needed + len(pool)) * each / work.processes
        raise RankingError(
            f"budget={units.duration(spending.seconds)} is about {total} episodes of {each:.2g} s on {work.processes} "
            f"processes; finalists and certificates take {needed} and {len(pool)} checkpoints at least one each: give more "
            f"than {units.duration(least)}, or lower confirm and finalists"
        )
    return replace(spending, budget=min(total - needed, len(pool) * suite.size(SELECT)))


def say_cost(pool: Pool, suite: FrozenSuite, spending: Spending, work: Work) -> str:
    """What the run will cost, in words, from blocks that were played."""
    planned, total = expected(len(pool), suite, spending)
    first = units.plan(pool.arms, pool.shas, suite, SELECT, planned[0].start, planned[0].stop, work.folder)
    each = units.seconds_per_episode(first, work.num_workers, work.executor)
    there = sum(map(len, first)) - units.num_missing(first)
    text = (
        f"{len(pool)} checkpoints, {total} episodes of about {each:.2g} s on {work.processes} processes: about "
        f"{units.duration((total - there) * each / work.processes)}"
    )
    text += f" ({there} of the first round's episodes are there)" if there else ""
    text += "; rounds (checkpoints x conditions): " + " -> ".join(f"{r.num_policies} x {r.stop}" for r in planned)
    uniform = len(pool) * suite.size(SELECT)
    return text + (f"; every checkpoint on every condition would take {uniform} episodes" if len(planned) > 1 else "")


def play_pool(
    pool: Pool,
    suite: FrozenSuite,
    spending: Spending,
    work: Work,
    features: Mapping[str, Mapping[str, Any]],
    ranking: Mapping[str, Any],
) -> Played:
    """Roll a pool out on split "select". ranking: settings of `rank`, which decides who stays after a round."""
    planned, _ = expected(len(pool), suite, spending)
    arms = sorted(pool.arms, key=lambda arm: arm.name)  # ties go to the first
    tables: list[pa.Table] = []

    def play(chosen: Sequence[int], start: int, stop: int) -> Any:
        blocks = units.plan([arms[i] for i in chosen], pool.shas, suite, SELECT, start, stop, work.folder)
        this = next(r.number for r in planned if start < r.stop)
        title = f"round {this + 1} of {len(planned)}" if len(planned) > 1 else "evaluate"
        tables.append(_with_configs(units.run(blocks, work.num_workers, title, work.executor), pool))
        return np.array(tables[-1]["success"].to_pylist(), bool).reshape(len(chosen), stop - start)

    def score(alive: Sequence[int], dropped: Mapping[int, int]) -> list[float]:
        out = {arms[i].name: number for i, number in dropped.items()}
        found = rank(_joined(tables), features, dropped=out, **ranking)
        return [-found.line(arms[i].name).ranks["vsdr"] for i in alive]

    found = sequential_halving(play, planned, score=score, look_every=spending.look_every)
    log = [{**line, "dropped": [arms[i].name for i in line["dropped"]]} for line in found.log]
    return Played(_joined(tables), {arms[i].name: number for i, number in found.dropped.items()}, log)


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables, promote_options="default")


def _with_configs(episodes: pa.Table, pool: Pool) -> pa.Table:
    configs = [pool.configs[name] for name in episodes["checkpoint"].to_pylist()]
    return episodes.append_column(CONFIG, pa.array(configs, pa.string()))


def confirm(
    ranking: Ranking, pool: Pool, suite: FrozenSuite, spending: Spending, work: Work, baseline: str | None
) -> tuple[Ranking, pa.Table | None]:
    """The finalists (and the baseline) on fresh conditions: the ranking with those numbers, and the episodes."""
    names = [line.checkpoint for line in ranking.checkpoints[: spending.finalists]]
    names += [baseline] * (baseline is not None and baseline not in names)  # type: ignore[list-item]
    splits = [CONFIRM] * bool(suite.size(CONFIRM)) + [SEALED] * bool(spending.open_sealed)
    tables = []
    for split in splits:
        finalists = [pool.arm(name) for name in names]
        blocks = units.plan(finalists, pool.shas, suite, split, 0, suite.size(split), work.folder)
        tables.append(_with_configs(units.run(blocks, work.num_workers, f"finalists on {split}", work.executor), pool))
    if not tables:
        return ranking, None
    options: dict[str, Any] = {"num_finalists": spending.finalists, "baseline": baseline}
    return with_fresh(ranking, _joined(tables), splits, **options), _joined(tables)


def with_identity(ranking: Ranking, pool: Pool | None, inputs: Mapping[str, str]) -> Ranking:
    """The ranking with the hashes of its checkpoints and inputs, and what was left out of the pool."""
    if pool is None:
        return replace(ranking, inputs=dict(inputs))
    shas = {arm.name: pool.shas[arm.checkpoint] for arm in pool.arms}
    lines = tuple(replace(line, sha=shas[line.checkpoint]) for line in ranking.checkpoints)
    return replace(ranking, checkpoints=lines, inputs=dict(inputs), warnings=(*ranking.warnings, *pool.notes))
