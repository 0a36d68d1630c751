"""Position error of every tokenizer against tokens and against bits of a chunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt


def draw(path: Path, summary: Sequence[Mapping[str, Any]]) -> Path:
    """One row of axes per task, both axes logarithmic. Lines of ours join the prefixes of scales."""
    tasks = list(dict.fromkeys(row["task"] for row in summary))
    variants = list(dict.fromkeys(map(_line, summary)))
    figure, axes = plt.subplots(len(tasks), 2, figsize=(13, 3.8 * len(tasks)), squeeze=False)
    for task, line in zip(tasks, axes, strict=True):
        for axis, key in zip(line, ("tokens", "bits"), strict=True):
            for number, variant in enumerate(variants):
                rows = [row for row in summary if row["task"] == task and _line(row) == variant]
                rows = sorted(rows, key=lambda row: row[key])
                reference = variant in ("cosine", "bins", "FAST")
                style = {"ls": "--", "marker": "s", "ms": 3} if reference else {"marker": "o"}
                colour = plt.get_cmap("tab10")(number)
                axis.plot([r[key] for r in rows], [r["mm"]["mean"] for r in rows], label=variant, color=colour, **style)
            axis.set(xscale="log", yscale="log", xlabel=f"{key} of a chunk", ylabel="mean position error, mm", title=task)
            axis.grid(alpha=0.3, which="both")
        line[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
    return path


def _line(row: Mapping[str, Any]) -> str:
    """The line that a row is a point of: FAST's scales share one."""
    return "FAST" if row["variant"].startswith("FAST") else row["variant"]
