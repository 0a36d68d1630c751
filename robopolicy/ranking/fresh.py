"""Numbers that may be quoted: success of chosen checkpoints on conditions that chose nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from robopolicy.ranking.episode_table import check_columns, check_episodes, open_parquet, rows_of
from robopolicy.ranking.finalists import compare_finalists
from robopolicy.ranking.result import Ranking
from robopolicy.ranking.tables import RankingError
from robopolicy.ranking.winners import confirm

FRESH = ("confirm", "sealed")  # splits that never choose


def split_names(episodes: pa.Table | str | Path) -> tuple[list[str], list[str]]:
    """(splits that rank, fresh splits) of an episode table; where all of it is fresh, all of it ranks.

    Raises:
        RankingError: a column of an episode table is missing, or an episode says no split.
    """
    if isinstance(episodes, pa.Table):
        check_columns(episodes.column_names, "episodes")
        names = set(pc.unique(episodes["split"].cast(pa.string())).to_pylist())
    else:
        file, names = open_parquet(episodes), set()
        check_columns(file.schema_arrow.names, Path(episodes).name)
        for batch in file.iter_batches(columns=["split"], use_threads=False):
            names |= set(pc.unique(batch.column(0).cast(pa.string())).to_pylist())
    if None in names:
        raise RankingError("column 'split' of the episodes has nulls; drop or repair those episodes")
    fresh = [name for name in FRESH if name in names]
    others = sorted(names - set(fresh))
    return (others, fresh) if others else (sorted(names), [])


def with_fresh(
    ranking: Ranking,
    episodes: pa.Table | str | Path,
    splits: Sequence[str],
    *,
    num_finalists: int = 3,
    baseline: str | None = None,
) -> Ranking:
    """The ranking with what its checkpoints did on fresh splits: `winners.confirm`, of all that met a split together, and the
    leader against the other finalists and the baseline (`compare_finalists`).

    Raises:
        RankingError: checkpoints that met different conditions of a split.
    """
    lines = ranking.checkpoints
    selected = [round((c.success or 0.0) * (c.num_episodes or 1)) for c in lines]
    trials = [c.num_episodes or 1 for c in lines]
    place = {c.checkpoint: i for i, c in enumerate(lines)}
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for split in splits:
        outcomes = check_episodes(episodes, f"split {split}", splits=[split])
        members = [c for c, name in enumerate(outcomes.checkpoints) if name in place]
        if not members:
            continue
        finalists = [place[outcomes.checkpoints[c]] for c in members]
        confirmed = confirm(selected, trials, finalists, outcomes.num_successes[members], outcomes.episodes[members])
        for c, line in zip(members, confirmed, strict=True):
            found.setdefault(outcomes.checkpoints[c], {})[split] = {
                "success": line.confirmed,
                "interval": [line.low, line.high],
                "num_finalists": len(members),
                "optimism": line.optimism,
                "progress": float(outcomes.progress[c]),
                "num_episodes": int(outcomes.episodes[c]),
            }
    compared: dict[str, Any] = {"not_computed": "no episodes on fresh conditions"}
    if found:
        options = {"seed": ranking.settings["seed"], "num_bootstrap": ranking.settings["num_bootstrap"]}
        compared = {}
        for split in splits:
            names = [c.checkpoint for c in lines if split in found.get(c.checkpoint, {})]
            names = names[:num_finalists] + [n for n in names[num_finalists:] if n == baseline]
            compared[split] = compare_finalists(rows_of(episodes, names, [split]), names, **options)
    return replace(
        ranking,
        checkpoints=tuple(replace(c, fresh=found.get(c.checkpoint, {})) for c in lines),
        statistics={**ranking.statistics, "finalists": compared},
    )
