"""The verbs around rank: suite, backtest, next-real, ingest-real, report, diff, replay."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from robopolicy.files import atomic_write, file_stem
from robopolicy.ranking import backtest as judge
from robopolicy.ranking.diff import difference
from robopolicy.ranking.result import Ranking
from robopolicy.ranking.score_table import check_scores, read_table
from robopolicy.ranking.tables import RankingError
from robopolicy.selection import gallery, pool, real
from robopolicy.selection.provenance import now, provenance
from robopolicy.selection.publish import CONTEXT, PROVENANCE, Finished, read_json, render, write_json
from robopolicy.selection.run import SUITE, suite_of
from robopolicy.selection.suite import SPLITS, read_suite

SHOWN = ("num_policies", "spearman", "kendall", "mmrv")
SHOWN_AT_K = ("regret", "best", "worst", "mean", "std", "sharpe")


def suite(settings: Mapping[str, Any]) -> Finished:
    """Freeze a suite."""
    sizes = {"episodes": settings["select"], "confirm": settings["confirm"], "sealed": settings["sealed"]}
    drawn = suite_of({**settings, **sizes, "suite": None})
    if settings["name"]:
        drawn = drawn.renamed(settings["name"])
    path = drawn.write(settings["out"])
    counts = ", ".join(f"{drawn.size(split)} {split}" for split in SPLITS)
    return Finished([f"{path}: {drawn.name}, {counts}, at most {drawn.horizon} steps each; sha256 {drawn.sha}"])


def backtest(settings: Mapping[str, Any]) -> Finished:
    """Judge scores on policies whose real value is known."""
    started = now()
    keys = ("k", "baseline", "combiners", "choose_by", "num_bootstrap", "seed")
    found = judge.backtest(check_scores(read_table(settings["scores"])), **{key: settings[key] for key in keys})
    lines = _backtest_lines(found)
    if settings["out"]:
        out = Path(settings["out"])
        write_json(out / "backtest.json", {**found, "provenance": provenance(settings, started)})
        rows = [
            {"domain": domain, "score": name, **{key: cell["value"] for key, cell in line.items()}}
            for domain, result in found["domains"].items()
            for name, line in result["scores"].items()
        ]
        atomic_write(out / "backtest.csv", partial(pyarrow.csv.write_csv, pa.Table.from_pylist(rows)))
        lines.append(f"Written: {out / 'backtest.json'}, {out / 'backtest.csv'}")
    return Finished(lines)


def _backtest_lines(found: Mapping[str, Any]) -> list[str]:
    columns = [*SHOWN, *(f"{name}@{k}" for k in found["k"] for name in SHOWN_AT_K)]
    by, lines = found["choose_by"], list[str]()
    for domain, result in found["domains"].items():
        scores, title = result["scores"], f"Domain {domain}: " if domain else ""
        about = f"{result['num_policies']} policies of {result['num_runs']} runs, baseline {result['baseline']:.3f}"
        lines += [f"{title}{about}"]
        lines += _grid(columns, {name: {c: line[c]["value"] for c in columns} for name, line in scores.items()})
        best = min(scores, key=lambda name: _sortable(scores[name][by]["value"], by))
        if interval := scores[best][by]["interval"]:
            lines.append(f"  {by} of {best}: 95 % interval over runs {interval[0]:.3f} to {interval[1]:.3f}")
    if found["leave_one_out"]:
        lines.append(f"Chosen by {found['choose_by']} on all other domains (leave one out):")
        chosen = {f"{d}: {line['chosen']}": {c: line[c] for c in columns} for d, line in found["leave_one_out"].items()}
        lines += _grid(columns, chosen)
    fitted = found["plackett_luce"]
    if "weights" in fitted:
        weights = ", ".join(f"{name} {weight:.2f}" for name, weight in fitted["weights"].items())
        lines.append(
            f"Plackett-Luce weights on all domains: {weights}; sharpness {fitted['sharpness']:.2f} (0 = no score tells)"
        )
    lines += [f"Note: {note}" for note in found["notes"]]
    return [*lines, "Conventions:", *(f"  {name}: {text}" for name, text in found["conventions"].items())]


def _sortable(value: float, metric: str) -> float:
    sign = 1.0 if metric.startswith(judge.LOWER_IS_BETTER) else -1.0
    return sign * value if value == value else float("inf")


def _grid(columns: list[str], rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    width = max(len(name) for name in rows) + 2
    head = "  " + " " * width + "".join(f"{c:>13}" for c in columns)

    def cell(column: str, value: float) -> str:
        if value != value:
            return f"{'-':>13}"
        return f"{value:>13.0f}" if column == "num_policies" else f"{value:>13.3f}"

    return [head, *(f"  {name:{width}}" + "".join(cell(c, row[c]) for c in columns) for name, row in rows.items())]


def next_real(settings: Mapping[str, Any]) -> Finished:
    """Which policy to try on the robot next."""
    out = Path(settings["out"])
    known = real.known_scores(out, settings["scores"])
    if settings["log"]:
        real.add_trials(out, settings["log"], known.policies)
    options = {"cost": real.costs(settings["cost"], known.policies), "tolerance": settings["delta"], "seed": settings["seed"]}
    found = real.advise(known, real.trials(out), **options)
    write_json(out / real.POSTERIOR, found)
    if (out / CONTEXT).is_file():
        render(out)
    return Finished([*real.lines(found), f"Written: {out / real.POSTERIOR}"])


def ingest_real(settings: Mapping[str, Any]) -> Finished:
    """Add real trials to a ranking."""
    out = Path(settings["out"])
    known = real.known_scores(out, None)
    added, skipped = real.add_trials(out, settings["log"], known.policies)
    found = real.advise(known, real.trials(out))
    write_json(out / real.POSTERIOR, found)
    page = render(out)
    text = f"{added} trials added" + (f", {skipped} were there already" if skipped else "")
    return Finished(
        [f"{text}; {sum(p['trials'] for p in found['policies'])} in all", *real.lines(found), f"Report: {page.resolve()}"]
    )


def report(settings: Mapping[str, Any]) -> Finished:
    """Write the page again."""
    return Finished([f"Report: {render(settings['out']).resolve()}"])


def diff(settings: Mapping[str, Any]) -> Finished:
    """Compare two rankings."""
    a, b = (Ranking.read(settings[key]) for key in ("a", "b"))
    lines, same_leader = difference(a, b)
    return Finished(lines, 0 if same_leader else 1)


def replay(settings: Mapping[str, Any]) -> Finished:
    """Play an episode again and film it."""
    out, name = Path(settings["out"]), str(settings["checkpoint"])
    Ranking.read(out).line(name)
    frozen = read_suite(out / SUITE)
    given = settings["pool"] or ((read_json(out / PROVENANCE) or {}).get("settings") or {}).get("pool")
    if not given:
        raise RankingError(f"{out} does not say where {name} is: give pool=FOLDER")
    arms = {arm.name: arm for arm in pool.find_pool(given).arms}
    if name not in arms:
        raise RankingError(f"{name} is not among the checkpoints at {given} any more: give pool=FOLDER")
    seed = int(settings["condition"])
    if not any(seed in seeds for seeds in frozen.splits.values()):
        raise RankingError(f"condition={seed} is none of the suite {frozen.name}: take one from the report or episodes.parquet")
    video = Path(settings["video"] or out / "replays" / f"{file_stem(name)}_{seed}.mp4")
    path, row = gallery.replay(arms[name], frozen, seed, video)
    ended = "success" if row["success"] else "failure"
    return Finished(
        [f"{name}, condition {seed}: {ended} after {row['length']} steps, progress {row['progress']:.2f}", f"Film: {path}"]
    )
