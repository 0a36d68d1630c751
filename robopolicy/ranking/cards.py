"""A model card for every finalist: what it is, what it did, where it fails, what was not shown. Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robopolicy.files import file_stem
from robopolicy.ranking.result import CheckpointScore, Ranking

NOT_MEASURED = "not measured"


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as text."""
    return NOT_MEASURED if value is None else f"{100 * value:.{digits}f} %"


def _interval(value: Any) -> str:
    return "" if value is None else f"{percent(value[0])} to {percent(value[1])}"


def file_name(checkpoint: str) -> str:
    """Of the card of a checkpoint."""
    return f"card_{file_stem(checkpoint)}.md"


def model_card(
    ranking: Ranking,
    line: CheckpointScore,
    *,
    about: Mapping[str, Any],
    slices: Sequence[Mapping[str, Any]],
    gate: Mapping[str, Any] | None,
    not_computed: Mapping[str, str],
) -> str:
    """The card's text. about: what the checkpoint says of itself; slices: `slices.weakest` of this checkpoint alone."""
    rows = [("Simulated success, selection", line.success, _interval(line.success_interval), line.num_episodes)]
    if line.shrunk is not None:
        rows.append(("The same, shrunk to the pool", line.shrunk, _interval(line.shrunk_interval), None))
    for split, found in line.fresh.items():
        rows.append((f"Simulated success, {split}", found["success"], _interval(found["interval"]), found["num_episodes"]))
    if line.target_success is not None:
        rows.append(("Success on the target", line.target_success, _interval(line.target_interval), None))
    measured = [f"| {what} | {percent(value)} | {interval} | {n or ''} |" for what, value, interval, n in rows]
    others = [f"| {name} | {value:.4g} | | |" for name, value in line.scores.items() if value is not None and name != "sim"]
    place = f"{line.rank} of {len(ranking.checkpoints)}"
    known = "" if line.prob_best is None else f", first in {percent(line.prob_best, 0)} of {ranking.num_draws} resamples"
    worst = [
        f"| {entry['parameter']} | {cell['level']} ({cell['low']:.4g} to {cell['high']:.4g}) | {percent(rate['success'])} | "
        f"{_interval(rate['interval'])} | {rate['n']} |"
        for entry in slices
        for cell in entry["cells"]
        if (rate := cell["rates"][0]) is not None
    ]
    headline = (
        "Numbers on fresh conditions (confirm, sealed) may be quoted; the selection's own rate is flattered by the choice."
        if line.fresh
        else "Not evaluated on fresh conditions: its rate is that of the selection, which is flattered by the choice."
    )
    text = [
        f"# {line.checkpoint}",
        "",
        f"Place {place} by {' and '.join(ranking.settings['combined'])} ({ranking.settings['combiner']}){known}.",
        "",
        "## What it is",
        "",
        *[f"- {key}: {value}" for key, value in about.items()],
        f"- sha256: {line.sha or 'not given'}",
        f"- training run {line.run}, step {line.step}",
        "",
        "## Intended use",
        "",
        "The task and robot it was trained for, within the randomised worlds of the suite below. A rank among simulated "
        "checkpoints is no statement about safety: try it on the robot at low speed, supervised.",
        "",
        "## Evaluation",
        "",
        "| what | value | 95 % interval | episodes |",
        "|---|---|---|---|",
        *measured,
        *others,
        "",
        headline,
        "",
    ]
    if worst:
        head = ["## Where it fails", "", "| parameter | third | success | 95 % interval | episodes |", "|---|---|---|---|---|"]
        text += [*head, *worst, ""]
    if line.flags:
        text += ["## Warnings", "", *[f"- {flag}" for flag in line.flags], ""]
    if gate is not None:
        text += [f"## Gate: {gate['verdict']} (judges {gate['checkpoint']})", ""]
        text += [f"- {f['verdict']}: {f['rule']} ({f['why']})" for f in gate["findings"]] + [""]
    text += ["## Not shown", "", *[f"- {what}: {why}" for what, why in not_computed.items()], ""]
    text += ["## Provenance", "", *[f"- {key}: {value}" for key, value in ranking.inputs.items()], ""]
    return "\n".join(text)
