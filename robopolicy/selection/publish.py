"""What a ranking leaves behind: ranking.json and .csv, episodes.parquet, gate.json, provenance.json, cards, report.html."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from robopolicy.files import atomic_write, plain
from robopolicy.ranking.cards import file_name, model_card
from robopolicy.ranking.embed import encode_image, image_kind
from robopolicy.ranking.fresh import FRESH
from robopolicy.ranking.gate import EXIT_CODES, Rule, judge
from robopolicy.ranking.report import write_report
from robopolicy.ranking.result import Ranking
from robopolicy.ranking.slices import weakest
from robopolicy.ranking.tables import RankingError
from robopolicy.ranking.verdict import verdict
from robopolicy.ranking.worlds import drawn_parameters
from robopolicy.selection.real import POSTERIOR

EPISODES, GATE, CONTEXT, PROVENANCE, REPORT, PICTURES = (
    "episodes.parquet",
    "gate.json",
    "context.json",
    "provenance.json",
    "report.html",
    "pictures",
)
NUM_CARDS = 3


@dataclass(frozen=True)
class Finished:
    """What a verb says, and the exit code it ends with."""

    lines: list[str]
    exit_code: int = 0


def headline_episodes(ranking: Ranking, episodes: pa.Table | None) -> pa.Table | None:
    """The episodes that the leader's quotable numbers come from: fresh ones if it has any, else those that ranked it."""
    if episodes is None:
        return None
    splits = [split for split in FRESH if split in ranking.checkpoints[0].fresh]
    column = episodes["split"].cast(pa.string())
    if splits:
        return episodes.filter(pc.equal(column, splits[-1]))
    return episodes.filter(pc.invert(pc.is_in(column, pa.array(FRESH)))) if _ranked_elsewhere(column) else episodes


def _ranked_elsewhere(column: pa.ChunkedArray) -> bool:
    return bool(set(pc.unique(column).to_pylist()) - set(FRESH))


def publish(
    out: str | Path,
    ranking: Ranking,
    *,
    episodes: pa.Table | None = None,
    rules: Sequence[Rule] = (),
    baseline: str | None = None,
    about: Mapping[str, Mapping[str, Any]] | None = None,
    context: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Finished:
    """Write everything about a ranking to the folder `out`; the verdict in words, and the gate's exit code.

    episodes: what to keep and slice: all that was played, or of the finalists alone. about: {checkpoint: what it says of
    itself}. context: of report.write_report; its pictures are kept as files, so that the page can be written again.

    What an earlier ranking left there goes, the posterior of real trials too; the trials stay, for next-real and ingest-real.

    Raises:
        RankingError: a rule about something that was not measured; the ranking and its episodes are kept even so.
    """
    out = Path(out)
    ranking.write(out)
    for old in (*(out / name for name in (GATE, PROVENANCE, POSTERIOR, REPORT)), *out.glob("card_*.md")):
        old.unlink(missing_ok=True)
    if episodes is None:
        (out / EPISODES).unlink(missing_ok=True)
    else:
        atomic_write(out / EPISODES, partial(pq.write_table, episodes))
    context = dict(context or {})
    write_json(out / CONTEXT, {**context, "galleries": _keep_pictures(out / PICTURES, context.get("galleries", ()))})
    if provenance is not None:
        write_json(out / PROVENANCE, provenance)
    judged = headline_episodes(ranking, episodes)
    gate = judge(rules, ranking, judged, baseline, ranking.settings["seed"]) if rules else None
    if gate is not None:
        write_json(out / GATE, gate)
    for line in ranking.checkpoints[:NUM_CARDS]:
        own = None if judged is None else judged.filter(pc.equal(judged["checkpoint"], line.checkpoint))
        text = model_card(
            ranking,
            line,
            about=(about or {}).get(line.checkpoint, {}),
            slices=weakest(own, [line.checkpoint], 4) if own is not None and own.num_rows else [],
            gate=gate,
            not_computed=context.get("not_computed", {}),
        )
        atomic_write(out / file_name(line.checkpoint), text.encode())
    page = render(out)
    lines = [*verdict(ranking, context.get("target_name", "the target"))]
    if gate is not None:
        lines += [f"Gate {gate['verdict']}.", *(f"  {f['verdict']}: {f['rule']} ({f['why']})" for f in gate["findings"])]
    return Finished([*lines, f"Report: {page.resolve()}"], EXIT_CODES[gate["verdict"]] if gate is not None else 0)


def render(out: str | Path) -> Path:
    """Write the page of a folder that `publish` wrote, from what is in it alone."""
    out = Path(out)
    ranking = Ranking.read(out)
    context = read_json(out / CONTEXT) or {}
    episodes = pq.read_table(out / EPISODES, use_threads=False) if (out / EPISODES).is_file() else None
    context["galleries"] = [
        {**g, "images": [(i["label"], (out / PICTURES / i["file"]).read_bytes()) for i in g["images"]]}
        for g in context.get("galleries", ())
    ]
    context["gate"] = read_json(out / GATE)
    context["provenance"] = read_json(out / PROVENANCE)
    context["real"] = read_json(out / POSTERIOR)
    if episodes is not None and episodes.num_rows:
        context["worlds"] = drawn_parameters(episodes)
        judged = headline_episodes(ranking, episodes)
        names = [line.checkpoint for line in ranking.checkpoints[:NUM_CARDS]]
        found = weakest(judged, names) if judged is not None else []
        context["slices"] = {"checkpoints": names, "parameters": found} if found else None
    return write_report(out / REPORT, ranking, {key: value for key, value in context.items() if value})


def _keep_pictures(folder: Path, galleries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    shutil.rmtree(folder, ignore_errors=True)
    kept = []
    for g, gallery in enumerate(galleries):
        images = []
        for i, (label, image) in enumerate(gallery["images"]):
            data = encode_image(str(label), image)
            file = f"{g}_{i:02d}.{image_kind(data)}"
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write(folder / file, data)
            images.append({"label": str(label), "file": file})
        kept.append({"title": gallery["title"], "caption": gallery.get("caption", ""), "images": images})
    return kept


def write_json(path: Path, content: Any) -> None:
    """Write plain data, in one step; undefined numbers become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plain(content, where=path.name, nonfinite="null"), indent=1, sort_keys=True, ensure_ascii=False)
    atomic_write(path, (text + "\n").encode())


def read_json(path: Path) -> Any:
    """What write_json wrote; None where there is no such file. Raises RankingError when it is damaged."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RankingError(f"{path} is damaged ({error}): rank again") from error
