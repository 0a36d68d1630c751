"""One self-contained HTML page about a ranking: verdict, table, figures, galleries, provenance.

Nothing is loaded from elsewhere. The only script sorts and unfolds the table; without it the page says the same.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from robopolicy.files import atomic_write
from robopolicy.ranking import curves, plots
from robopolicy.ranking.embed import galleries
from robopolicy.ranking.fresh import FRESH
from robopolicy.ranking.result import CheckpointScore, Ranking
from robopolicy.ranking.tables import RankingError
from robopolicy.ranking.verdict import number, percent, points, verdict
from robopolicy.spec import did_you_mean

CONTEXT = (
    *("title", "subtitle", "target_name", "what_ran", "galleries", "steering", "not_computed", "worlds"),
    *("slices", "histograms", "rounds", "gate", "provenance", "real"),
)
NUM_OPEN_ROWS = 25
NUM_OPEN_PARAMETERS = 8
LONG_SCORES = {"vsdr": "VSDR", "sim": "Simulation only", "ood": "Detector only"}
STATISTICS = {  # what is missing of them is said
    "Shrinkage to the pool": "shrinkage",
    "Luck of the training seed": "training_seeds",
    "Success on the target with simulated twins": "real_means",
    "Finalists one against the other": "finalists",
}
TERM_WORDS = {"sim": "simulation", "ood": "distance of the target"}


def _figures(ranking: Ranking, target_name: str, histograms: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    more = len(ranking.checkpoints) > plots.MAX_ROWS
    cut = f" The first {plots.MAX_ROWS} of {len(ranking.checkpoints)}." if more else ""
    figures = []

    def add(title: str, caption: str, svg: str) -> None:
        figures.append({"title": title, "caption": caption, "svg": svg})

    if any(c.ood is not None for c in ranking.checkpoints):
        text = "Top left is best: good in simulation, at home in the target's observations. A colour is a training run."
        add("The two pieces of evidence", text, plots.scatter(ranking))
    if ranking.check is not None:
        text = "A good order falls from left to right. Filled: the first pick. Dashed: the best of the pool."
        add("Predicted against obtained", text, plots.obtained(ranking, target_name))
    if curves.has_curves(ranking):
        add("Along training", "Simulated success of each run by training step, 95 % intervals.", curves.training(ranking))
    if histograms:
        text = "Scores of the detector: simulator observations it has not seen, and the target's. Right is stranger."
        add("What the encoders make of the target", text, curves.histograms(histograms))
    if sum(any(v is not None for v in _column(ranking, name)) for name in ranking.checkpoints[0].scores) > 2:
        text = "Places by every score against places by every other: on the diagonal two scores agree."
        add("Score against score", text, curves.score_matrix(ranking))
    if ranking.num_draws:
        text = f"How far each place moves when the evidence is drawn anew.{cut}"
        add("How sure is the order?", text, plots.rank_intervals(ranking))
    if any(c.success is not None for c in ranking.checkpoints):
        text = "Every checkpoint met the same conditions." if ranking.num_conditions else "As given, with 95 % intervals."
        if any(c.dropped for c in ranking.checkpoints):
            text = "Checkpoints that were dropped met the first of the conditions that the others met."
        add("Success rates", f"{text}{cut}", plots.forest(ranking, target_name))
    return figures


def _column(ranking: Ranking, name: str) -> list[float | None]:
    return [c.scores.get(name) for c in ranking.checkpoints]


def _not_computed(ranking: Ranking, given: Mapping[str, str]) -> dict[str, str]:
    reasons: dict[str, str] = {}
    if "ood" not in ranking.orders:
        reasons["Detection term"] = "no features of target observations were given"
    if ranking.check is None:
        reasons["Check against outcomes"] = "no outcomes on the target were given"
    elif ranking.check["num_runs"] < 2:
        reasons["Intervals of the check"] = ranking.check["note"]
    for what, name in STATISTICS.items():
        if "not_computed" in ranking.statistics.get(name, {}):
            reasons[what] = ranking.statistics[name]["not_computed"]
    if all(c.behind_leader is None or c.behind_leader["p_value"] is None for c in ranking.checkpoints):
        reasons["McNemar tests"] = "they need exactly one episode per condition, and two checkpoints"
    return reasons | dict(given)


def _flags(scores: tuple[CheckpointScore, ...]) -> list[dict[str, Any]]:
    """{"code", "text", "checkpoints"} of each kind of flag, the text being that of the first checkpoint that has it."""
    found: dict[str, dict[str, Any]] = {}
    for c in scores:
        for flag in c.flags:
            code, _, text = flag.partition(": ")
            found.setdefault(code, {"code": code, "text": text, "checkpoints": []})["checkpoints"].append(c.checkpoint)
    return list(found.values())


def _environment() -> jinja2.Environment:
    loader = jinja2.PackageLoader("robopolicy.ranking")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"percent": percent, "points": points, "number": number}
    return environment


def write_report(path: str | Path, ranking: Ranking, context: Mapping[str, Any]) -> Path:
    """Writes the page and returns its path.

    context, all optional: "title", "subtitle", "target_name" (str, e.g. "the MuJoCo twin"); "what_ran" {key: value}: command,
    commit, seeds, versions, times; "galleries" [{"title", "caption", "images": [(label, image)]}], an image being bytes (PNG,
    APNG, GIF, JPEG, WebP), uint8 [H, W, 3] or a film strip uint8 [T, H, W, 3]; "steering": one or a list of
    PairedComparison.to_dict() plus optional "title", "base_name", "other_name", "note"; "not_computed" {what: why}; "worlds":
    what worlds.drawn_parameters() found; "slices" {"checkpoints", "parameters": slices.weakest()}; "histograms":
    [looks.histogram()]; "rounds": log of sequential halving; "gate": gate.judge(); "provenance": plain data; "real": the
    posterior of real trials.

    Raises:
        RankingError: an unknown context key or an image that cannot be shown.
    """
    for key in context:
        if key not in CONTEXT:
            raise RankingError(f"no context {key!r}; {did_you_mean(key, CONTEXT)}")
    ranking = Ranking.from_json(ranking.to_json())  # the page of a ranking in memory is that of its file, to the byte
    target_name = context.get("target_name", "the target")
    steering = context.get("steering") or []
    worlds = list(context.get("worlds", ()))
    environment = _environment()
    script = environment.loader.get_source(environment, "sort.js")[0]  # type: ignore[union-attr]
    headline, *sentences = verdict(ranking, target_name)
    lead = ranking.checkpoints[0]
    page = environment.get_template("report.html.j2").render(
        title=context.get("title", "Checkpoint ranking"),
        subtitle=context.get("subtitle", ""),
        target_name=target_name,
        headline=headline,
        sentences=sentences,
        ranking=ranking,
        lead=lead,
        likely=ranking.shortlist(),
        further=[name for name in lead.scores if name not in ("sim", "ood")],
        fresh=[split for split in FRESH if any(split in c.fresh for c in ranking.checkpoints)],
        num_open=NUM_OPEN_ROWS,
        styles=plots.run_styles([c.run for c in ranking.checkpoints]),
        flags=_flags(ranking.checkpoints),
        figures=_figures(ranking, target_name, context.get("histograms", ())),
        galleries=galleries(context.get("galleries", ())),
        steering=[steering] if isinstance(steering, Mapping) else list(steering),
        worlds=[w for w in (worlds[:NUM_OPEN_PARAMETERS], worlds[NUM_OPEN_PARAMETERS:]) if w],
        slices=context.get("slices"),
        rounds=list(context.get("rounds", ())),
        gate=context.get("gate"),
        real=context.get("real"),
        what_ran={**_provenance_lines(context.get("provenance")), **context.get("what_ran", {})},
        not_computed=_not_computed(ranking, context.get("not_computed", {})),
        order_names={name: LONG_SCORES.get(name, name) for name in dict.fromkeys((*LONG_SCORES, *ranking.orders))},
        combined=" and ".join(TERM_WORDS.get(name, name) for name in ranking.settings["combined"]),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        script=script,
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, page.encode())
    return path


def _provenance_lines(provenance: Mapping[str, Any] | None) -> dict[str, str]:
    """What of the provenance is shown; all of it is in provenance.json."""
    if provenance is None:
        return {}
    keys = ("command", "commit", "started", "finished", "machine")
    lines = {key: str(provenance[key]) for key in keys if key in provenance}
    for key in ("versions", "inputs"):
        values = provenance.get(key) or {}
        if values:
            lines[key] = " ".join(f"{name}={str(value)[:16]}" for name, value in values.items())
    return lines
