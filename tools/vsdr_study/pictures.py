"""The study in pictures: what scores say beside what policies obtained, how well each orders them, and what trials it saves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from vsdr_study.report import scores
from vsdr_study.tables import Tables

TITLES = {
    "T0": "T0, development",
    "T1": "T1, looks and camera",
    "T2": "T2, dynamics",
    "T3": "T3, both",
}
LINES = (
    *("vsdr", "sim", "ood", "sim_best", "ood_best", "sim_width", "vsdr_gap", "sim_own", "kl_robust", "width", "dynamics_gap"),
    *("support", "action_error", "fqe", "soft_opc", "random"),
)


def draw(folder: Path, tables: Tables, result: Mapping[str, Any], choice: Mapping[str, Any]) -> list[Path]:
    """The pictures; their files."""
    found = {
        "scatter.png": _scatter(tables, result, choice["chosen"]),
        "scores.png": _scores(result),
        "observations.png": _observations(result),
    }
    if "trials" in result:
        found["trials.png"] = _trials(result["trials"])
    return [_save(figure, folder / name) for name, figure in found.items()]


def _save(figure: Any, file: Path) -> Path:
    figure.savefig(file, dpi=110, bbox_inches="tight")
    plt.close(figure)
    return file


def _scatter(tables: Tables, result: Mapping[str, Any], chosen: Mapping[str, str]) -> Any:
    """Rows: simulated success, distance, VSDR. Columns: targets. Colour: how wide the training worlds were."""
    kinds = ("sim", "ood", "vsdr")
    names = list(result["targets"])
    figure, axes = plt.subplots(
        len(kinds), len(names), figsize=(3.4 * len(names), 3.0 * len(kinds)), squeeze=False, layout="constrained"
    )
    for column, target in enumerate(names):
        real, every = tables.outcomes(target).mean(1), scores(tables, target)
        for row, kind in enumerate(kinds):
            axis, line = axes[row, column], result["targets"][target][kind]
            values = every[chosen[kind]]
            dots = axis.scatter(values, real, c=tables.width, cmap="viridis", vmin=0, vmax=6, s=22, alpha=0.85)
            axis.set_title(
                f"{TITLES[target]}\nSpearman {line['spearman']:+.2f}" if not row else f"{line['spearman']:+.2f}", fontsize=9
            )
            axis.set(xlabel={"sim": "simulated success", "ood": "- distance of the target", "vsdr": "VSDR"}[kind])
            axis.grid(alpha=0.3)
        axes[0, column].set_ylim(-0.03, 1.03)
    for row in axes:
        row[0].set_ylabel("success on the target")
    figure.colorbar(dots, ax=axes, label="width of the randomisation", shrink=0.6)
    return figure


def _scores(result: Mapping[str, Any]) -> Any:
    lines = [name for name in LINES if any(name in found for found in result["targets"].values())]
    names = list(result["targets"])
    figure, axes = plt.subplots(
        1, len(names), figsize=(3.6 * len(names), 5.0), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, target in zip(axes[0], names, strict=True):
        found = result["targets"][target]
        for place, name in enumerate(lines):
            line = found.get(name)
            if line is None or not np.isfinite(line["spearman"]):
                continue
            low, high = line.get("spearman_ci") or (line["spearman"],) * 2
            colour = {"vsdr": "C3", "sim": "C0", "ood": "C1"}.get(name, "grey")
            axis.plot([low, high], [place, place], color=colour, lw=2)
            axis.plot(line["spearman"], place, "o", color=colour, ms=6)
        axis.axvline(0, color="black", lw=0.6)
        axis.axvline(found["ceiling"], color="black", lw=0.8, ls=":")
        axis.set(title=TITLES[target], xlabel="Spearman with success on the target", xlim=(-1, 1))
        axis.grid(alpha=0.3)
    axes[0, 0].set_yticks(range(len(lines)), lines)
    axes[0, 0].invert_yaxis()
    return figure


def _observations(result: Mapping[str, Any]) -> Any:
    figure, axis = plt.subplots(figsize=(5.2, 3.8), layout="constrained")
    detector = ""
    for number, (target, found) in enumerate(result["targets"].items()):
        sizes = {int(size): each for size, each in found["by_size"].items() if size.isdecimal()}
        if not sizes:
            continue
        detector = f" by {found['by_size']['detector']}"
        mean = [each["mean"] for each in sizes.values()]
        spread = [[each["least"] for each in sizes.values()], [each["most"] for each in sizes.values()]]
        axis.plot(list(sizes), mean, marker="o", color=f"C{number}", label=TITLES[target])
        axis.fill_between(list(sizes), *spread, color=f"C{number}", alpha=0.2)
        axis.axhline(found["sim"]["spearman"], color=f"C{number}", ls=":", lw=1)
    axis.set(xscale="log", xlabel="target observations", ylabel=f"Spearman of VSDR{detector}\n(dotted: simulation alone)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def _trials(found: Mapping[str, Any]) -> Any:
    figure, axes = plt.subplots(
        1, len(found), figsize=(4.6 * len(found), 4.0), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (target, spent) in zip(axes[0], found.items(), strict=True):
        for number, (name, rows) in enumerate(spent["curves"].items()):
            style = "-" if "VSDR" in name or "distance" in name else "--"
            episodes = [max(row["episodes"], 0.5) for row in rows]
            axis.plot(episodes, [row["regret"] for row in rows], style, color=f"C{number}", label=name, lw=1.6)
        axis.axhline(spent["near"], color="black", lw=0.6)
        axis.set(title=TITLES[target], xscale="log", xlabel="episodes on the target, all policies together")
        axis.grid(alpha=0.3, which="both")
    axes[0, 0].set(ylabel="regret of the deployed, success rate", ylim=(0, None))
    axes[0, -1].legend(fontsize=7)
    return figure
