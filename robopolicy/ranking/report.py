"""One self-contained HTML page about a ranking: verdict, table, figures, galleries, provenance. No scripts, no links."""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.image import imsave

from robopolicy.ranking import plots
from robopolicy.ranking.result import CheckpointScore, Ranking
from robopolicy.ranking.tables import RankingError
from robopolicy.spec import did_you_mean

Array = np.ndarray

CONTEXT = ("title", "subtitle", "target_name", "what_ran", "galleries", "steering", "not_computed", "worlds")
MAGIC = {b"\x89PNG": "png", b"GIF8": "gif", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp"}
STRIP_ASPECT = 2.5
STRIP_GAP = 3  # pixels between the frames of a strip
NUM_OPEN_ROWS = 25
NUM_OPEN_PARAMETERS = 8
CLEAR, LIKELY = 0.8, 0.5


def percent(value: float | None, digits: int = 0) -> str:
    """A fraction as text, e.g. 0.874 -> "87 %"; a dash when it is None."""
    return "–" if value is None else f"{100 * value:.{digits}f}\u202f%"


def points(value: float | None) -> str:
    """A signed difference of fractions in percentage points, e.g. -0.125 -> "−12.5"."""
    return "–" if value is None else f"{100 * value:+.1f}".replace("-", "−")


def _interval(value: Any) -> str:
    return "" if value is None else f"{percent(value[0])} to {percent(value[1])}"


def _obtained_sentence(ranking: Ranking, target_name: str) -> str | None:
    """What the target said about the pick, and about the pick of simulation alone."""
    known = {c.checkpoint: c for c in ranking.checkpoints if c.target_success is not None}
    lead = ranking.checkpoints[0]
    if not known:
        return None
    if lead.target_success is None:
        return f"It has no outcome on {target_name} yet; {len(known)} others have."
    best = max(c.target_success for c in known.values() if c.target_success is not None)
    short_of = best - lead.target_success
    place = "the best of the pool" if short_of <= 1e-9 else f"{100 * short_of:.1f} points below the best of the pool"
    text = f"On {target_name} it obtained {percent(lead.target_success)} ({_interval(lead.target_interval)}), {place}."
    sim_pick = known.get(ranking.orders["sim"][0])
    if sim_pick is not None and sim_pick.target_success is not None and sim_pick is not lead:
        text += f" The pick of simulation alone, {sim_pick.checkpoint}, obtained {percent(sim_pick.target_success)}."
    return text


def verdict(ranking: Ranking, target_name: str = "the target") -> list[str]:
    """The result in plain words: a headline, then sentences that qualify it."""
    lead, pool = ranking.checkpoints[0], len(ranking.checkpoints)
    likely = ranking.shortlist()
    if pool == 1:
        headline = f"Only {lead.checkpoint} was given: nothing to compare it with."
    elif not any(c.success for c in ranking.checkpoints):
        headline = "Deploy none of them: no checkpoint succeeded once in simulation."
    elif lead.prob_best >= CLEAR:
        headline = f"Deploy {lead.checkpoint} first."
    elif lead.prob_best >= LIKELY:
        headline = f"{lead.checkpoint} leads, but not beyond doubt."
    else:
        headline = f"No clear winner: {lead.checkpoint} is ahead by a little."
    sentences = [
        f"It takes first place in {percent(lead.prob_best)} of {ranking.settings['num_bootstrap']} resamples of the evidence."
    ]
    if len(likely) > 1 and pool > 1:
        shown = " or ".join(likely) if len(likely) <= 4 else f"one of {len(likely)} checkpoints"
        sentences.append(f"In 90\u202f% of them, first place goes to {shown}.")
    simulated = f"Simulated success {percent(lead.success)} ({_interval(lead.success_interval)})"
    if "ood" in ranking.orders:
        sim_pick = ranking.orders["sim"][0]
        same = sim_pick == lead.checkpoint
        simulated += "; simulation alone picks it too" if same else f"; simulation alone would have picked {sim_pick}"
    sentences.append(f"{simulated}.")
    outcome = _obtained_sentence(ranking, target_name)
    return [headline, *sentences, *([outcome] if outcome else [])]


def _png(image: Array) -> bytes:
    buffer = io.BytesIO()
    imsave(buffer, image, format="png", metadata={"Software": "robopolicy"})
    return buffer.getvalue()


def _strip(frames: Array) -> Array:
    """Frames [T, H, W, C] side by side, uint8 [H, T (W + gap) - gap, C], white between them."""
    padded = np.pad(frames, ((0, 0), (0, 0), (0, STRIP_GAP), (0, 0)), constant_values=255)
    return np.concatenate(list(padded), axis=1)[:, :-STRIP_GAP]


def _image(label: str, image: Any) -> dict[str, Any]:
    """{"label", "uri", "strip"} of PNG, APNG, GIF, JPEG or WebP bytes, uint8 [H, W, C], or a film strip uint8 [T, H, W, C]."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (3, 4) or image.shape[-1] not in (3, 4):
            raise RankingError(
                f"image {label!r} is {image.dtype} {list(image.shape)}; give uint8 [H, W, 3] or a strip [T, H, W, 3]"
            )
        image = _png(_strip(image) if image.ndim == 4 else image)
    kind = next((name for magic, name in MAGIC.items() if bytes(image[:4]).startswith(magic)), None)
    if kind is None:
        raise RankingError(f"image {label!r}: unknown format; give PNG, GIF, JPEG or WebP bytes, or a uint8 array")
    width, height = 1, 1
    if kind == "png":
        width, height = struct.unpack(">II", image[16:24])
    elif kind == "gif":
        width, height = struct.unpack("<HH", image[6:10])
    uri = f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
    return {"label": label, "uri": uri, "strip": width > STRIP_ASPECT * height}


def _galleries(galleries: Any) -> list[dict[str, Any]]:
    shown = []
    for gallery in galleries:
        pictures = [_image(str(label), image) for label, image in gallery["images"]]
        shown.append({"title": gallery["title"], "caption": gallery.get("caption", ""), "images": pictures})
    return shown


def _figures(ranking: Ranking, target_name: str) -> list[dict[str, str]]:
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
    text = f"How far each place moves when the evidence is drawn anew.{cut}"
    add("How sure is the order?", text, plots.rank_intervals(ranking))
    add("Success rates", f"Every checkpoint met the same conditions.{cut}", plots.forest(ranking, target_name))
    return figures


def _not_computed(ranking: Ranking, given: Mapping[str, str]) -> dict[str, str]:
    reasons: dict[str, str] = {}
    if not ranking.num_target_observations:
        reasons["Detection term"] = "no features of target observations were given"
    if ranking.check is None:
        reasons["Check against outcomes"] = "no outcomes on the target were given"
    elif ranking.check["num_runs"] < 2:
        reasons["Intervals of the check"] = ranking.check["note"]
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


def write_report(path: str | Path, ranking: Ranking, context: Mapping[str, Any]) -> Path:
    """Writes the page and returns its path.

    context, all optional: "title", "subtitle", "target_name" (str, e.g. "the MuJoCo twin"); "what_ran" {key: value}: command,
    commit, seeds, versions, times; "galleries" [{"title", "caption", "images": [(label, image)]}], an image being bytes (PNG,
    APNG, GIF, JPEG, WebP), uint8 [H, W, 3] or a film strip uint8 [T, H, W, 3]; "steering": one or a list of
    PairedComparison.to_dict() plus optional "title", "base_name", "other_name", "note"; "not_computed" {what: why}; "worlds":
    what worlds.drawn_parameters() found.

    Raises:
        RankingError: an unknown context key or an image that cannot be shown.
    """
    for key in context:
        if key not in CONTEXT:
            raise RankingError(f"no context {key!r}; {did_you_mean(key, CONTEXT)}")
    ranking = Ranking.from_json(ranking.to_json())  # the page of a ranking in memory is that of its file, to the byte
    target_name = context.get("target_name", "the target")
    steering = context.get("steering") or []
    galleries = _galleries(context.get("galleries", ()))
    worlds = list(context.get("worlds", ()))
    loader = jinja2.PackageLoader("robopolicy.ranking")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["percent"], environment.filters["points"] = percent, points
    headline, *sentences = verdict(ranking, target_name)
    page = environment.get_template("report.html.j2").render(
        title=context.get("title", "Checkpoint ranking"),
        subtitle=context.get("subtitle", ""),
        target_name=target_name,
        headline=headline,
        sentences=sentences,
        ranking=ranking,
        likely=ranking.shortlist(),
        tables=[t for t in (ranking.checkpoints[:NUM_OPEN_ROWS], ranking.checkpoints[NUM_OPEN_ROWS:]) if t],
        styles=plots.run_styles([c.run for c in ranking.checkpoints]),
        flags=_flags(ranking.checkpoints),
        figures=_figures(ranking, target_name),
        galleries=galleries,
        steering=[steering] if isinstance(steering, Mapping) else list(steering),
        worlds=[w for w in (worlds[:NUM_OPEN_PARAMETERS], worlds[NUM_OPEN_PARAMETERS:]) if w],
        what_ran=context.get("what_ran", {}),
        not_computed=_not_computed(ranking, context.get("not_computed", {})),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path
