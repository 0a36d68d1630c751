"""What steering gained, and how far the values of critics can be taken at their word: a picture of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt


def _saved(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def gains(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Success of base and steered, with their intervals, of each row of `summary.compared` or `joined`. Writes a PNG."""
    figure, axis = plt.subplots(figsize=(6.4, 0.9 + 0.55 * len(rows)))
    places = range(len(rows))[::-1]
    for name, offset, color in (("base", 0.12, "0.55"), ("other", -0.12, "C0")):
        middle = [row[name] for row in rows]
        low, high = zip(*(row[f"{name}_interval"] for row in rows), strict=True)
        errors = [[m - x for m, x in zip(middle, low, strict=True)], [x - m for m, x in zip(middle, high, strict=True)]]
        label = "base alone" if name == "base" else "steered"
        axis.errorbar(middle, [p + offset for p in places], xerr=errors, fmt="o", color=color, capsize=2, label=label)
    names = [row["key"].replace("/held_out/", ", ").replace("/", " ") for row in rows]
    seeds = [f" ({len(row['seeds'])} seeds)" if len(row.get("seeds", ())) > 1 else "" for row in rows]
    axis.set_yticks(list(places), [name + of for name, of in zip(names, seeds, strict=True)])
    axis.set(xlim=(0, 1), xlabel="success, 95 % intervals")
    axis.grid(axis="x", color="0.9")
    axis.legend(fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return _saved(figure, path)


def calibration(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """What critics said beside what came of it, by bins of their values: a panel for each task and family. Writes a PNG.

    rows: "task", "family", "critic", "worlds" and the "calibration" of a Quality.
    """
    panels = list(dict.fromkeys((row["task"], row["family"]) for row in rows))
    kinds = list(dict.fromkeys(row["critic"] for row in rows))
    worlds = list(dict.fromkeys(row["worlds"] for row in rows))
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 4.4), squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        for row in (row for row in rows if (row["task"], row["family"]) == panel):
            bins, style = row["calibration"], ("-", "--")[worlds.index(row["worlds"]) % 2]
            label = f"{row['critic']}, {row['worlds']}"
            axis.plot(
                bins["value"], bins["worth"], style, marker="o", ms=3, color=f"C{kinds.index(row['critic'])}", label=label
            )
        axis.plot([0, 1], [0, 1], color="0.6", lw=0.8)
        axis.set(title="/".join(panel), xlabel="value, mean of a bin", ylabel="what came of it, mean", xlim=(0, 1), ylim=(0, 1))
        axis.legend(fontsize=7)
    return _saved(figure, path)
