"""A pool of checkpoints, rolled out on a suite and ranked: rounds of episodes, features, finalists on fresh conditions."""

from __future__ import annotations

import glob
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from robopolicy import pipeline
from robopolicy.checkpoint import CheckpointError
from robopolicy.evaluation.rollout import Arm
from robopolicy.executor import Executor, available_cores
from robopolicy.ranking.fresh import with_fresh
from robopolicy.ranking.rank import rank
from robopolicy.ranking.result import Ranking
from robopolicy.ranking.tables import RankingError
from robopolicy.selection import halving, units
from robopolicy.selection.suite import CONFIRM, SEALED, SELECT, FrozenSuite

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Spending:
    """How episodes are spent: see halving.rounds. open_sealed: finalists play split "sealed" too."""

    alloc: str = "uniform"
    budget: int | None = None
    finalists: int = 3
    open_sealed: bool = False


@dataclass
class Played:
    """What rolling out a pool gave: its episodes, who was dropped after which round, and a log line a round."""

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
        return 1 if self.num_workers == 0 else self.num_workers or available_cores()


def find_pool(pool: str | Sequence[str]) -> tuple[list[Arm], list[str]]:
    """The checkpoints of a pool (folders, run folders, patterns with * or ?), each once, and what was left out.

    Raises:
        CheckpointError: a path with no checkpoint in it, or a pattern that nothing matches.
    """
    paths: list[str] = []
    for given in [pool] if isinstance(pool, str) else list(pool):
        found = sorted(glob.glob(str(given))) if glob.has_magic(str(given)) else [str(given)]
        if not found:
            raise CheckpointError(f"nothing matches {given}: give checkpoint folders, run folders or patterns of them")
        paths += found
    arms = list({arm.checkpoint: arm for arm in pipeline.find_checkpoints(list(dict.fromkeys(paths)))}.values())
    shas, first, kept, notes = units.hashes(arms), dict[str, str](), [], []
    for arm in arms:
        same = first.setdefault(shas[arm.name], arm.name)
        if same == arm.name:
            kept.append(arm)
        else:
            notes.append(f"{arm.name} is the same checkpoint as {same} (equal hash) and was left out")
    return kept, notes


def expected(num_arms: int, suite: FrozenSuite, spending: Spending) -> tuple[list[halving.Round], int]:
    """The rounds, and all episodes they and the finalists' fresh conditions take."""
    planned = halving.rounds(num_arms, suite.size(SELECT), spending.alloc, spending.budget, min(spending.finalists, num_arms))
    fresh = suite.size(CONFIRM) + (suite.size(SEALED) if spending.open_sealed else 0)
    episodes = sum(r.episodes for r in planned)
    return planned, episodes + min(spending.finalists, num_arms) * fresh


def say_cost(arms: Sequence[Arm], suite: FrozenSuite, spending: Spending, work: Work) -> str:
    """What the run will cost, in words, from blocks that were played."""
    planned, total = expected(len(arms), suite, spending)
    first = units.plan(arms, suite, SELECT, planned[0].start, planned[0].stop, work.folder)
    each = units.seconds_per_episode(first, work.num_workers, work.executor)
    there = sum(map(len, first)) - units.num_missing(first)
    uniform = len(arms) * suite.size(SELECT)
    text = (
        f"{len(arms)} checkpoints, {total} episodes of about {each:.2g} s on {work.processes} processes: about "
        f"{units.duration((total - there) * each / work.processes)}"
    )
    rounds = " -> ".join(f"{r.num_policies} x {r.stop}" for r in planned)
    text += f" ({there} of the first round's episodes are there)" if there else ""
    return f"{text}; rounds (checkpoints x conditions): {rounds}" + (
        f"; every checkpoint on every condition would take {uniform} episodes" if len(planned) > 1 else ""
    )


def play_pool(
    arms: Sequence[Arm],
    suite: FrozenSuite,
    spending: Spending,
    work: Work,
    features: Mapping[str, Mapping[str, Any]],
    ranking: Mapping[str, Any],
) -> Played:
    """Roll a pool out on split "select". ranking: settings of `rank`, which decides who stays after a round."""
    planned, _ = expected(len(arms), suite, spending)
    by_name = {arm.name: arm for arm in arms}
    tables: list[pa.Table] = []

    def play_round(names: Sequence[str], this: halving.Round) -> None:
        chosen = [by_name[name] for name in names]
        blocks = units.plan(chosen, suite, SELECT, this.start, this.stop, work.folder)
        title = f"round {this.number + 1} of {len(planned)}" if len(planned) > 1 else "evaluate"
        if blocks:
            tables.append(units.run(blocks, work.num_workers, title, work.executor))

    def score(dropped: Mapping[str, int]) -> dict[str, float]:
        found = rank(pa.concat_tables(tables, promote_options="default"), features, dropped=dropped, **ranking)
        return {line.checkpoint: -line.ranks["vsdr"] for line in found.checkpoints}

    dropped, log = halving.play(list(by_name), planned, play_round, score)
    return Played(pa.concat_tables(tables, promote_options="default"), dropped, log)


def confirm(
    ranking: Ranking, arms: Sequence[Arm], suite: FrozenSuite, spending: Spending, work: Work, baseline: str | None
) -> tuple[Ranking, pa.Table | None]:
    """The finalists (and the baseline) on fresh conditions: the ranking with those numbers, and the episodes."""
    by_name = {arm.name: arm for arm in arms}
    names = [line.checkpoint for line in ranking.checkpoints[: spending.finalists]]
    if baseline is not None:
        if baseline not in by_name:
            ranking.line(baseline)
        names += [baseline] * (baseline not in names)
    splits = [CONFIRM] * bool(suite.size(CONFIRM)) + [SEALED] * bool(spending.open_sealed)
    if spending.open_sealed and not suite.size(SEALED):
        raise RankingError("open_sealed=true and the suite has no split 'sealed': draw one with sealed=100, say")
    tables = []
    for split in splits:
        blocks = units.plan([by_name[name] for name in names], suite, split, 0, suite.size(split), work.folder)
        tables.append(units.run(blocks, work.num_workers, f"finalists on {split}", work.executor))
    if not tables:
        return ranking, None
    table = pa.concat_tables(tables, promote_options="default")
    return with_fresh(ranking, table, splits), table


def with_identity(ranking: Ranking, arms: Sequence[Arm], inputs: Mapping[str, str], notes: Sequence[str]) -> Ranking:
    """The ranking with the hashes of its checkpoints and inputs, and further warnings."""
    shas = units.hashes(arms)
    lines = tuple(replace(line, sha=shas.get(line.checkpoint, "")) for line in ranking.checkpoints)
    return replace(ranking, checkpoints=lines, inputs=dict(inputs), warnings=(*ranking.warnings, *notes))
