"""What choosing costs, in one picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt


def draw(path: Path, result: Mapping[str, Any]) -> Path:
    """Halving, e-test, and regret by real trials for each scenario."""
    scenarios = list(dict.fromkeys(row["scenario"] for row in result["next_real"]))
    figure, axes = plt.subplots(1, 2 + len(scenarios), figsize=(5.2 * (2 + len(scenarios)), 4.4))
    _halving(axes[0], result["halving"])
    _e_test(axes[1], result["e_test"])
    for axis, scenario in zip(axes[2:], scenarios, strict=True):
        _next_real(axis, scenario, [row for row in result["next_real"] if row["scenario"] == scenario])
    axes[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for axis in axes:
        axis.grid(alpha=0.3, which="both")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
    return path


def _halving(axis: Any, rows: list[dict[str, Any]]) -> None:
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        x, y = [row["episodes"] for row in own], [row["regret"] for row in own]
        axis.errorbar(x, y, yerr=[2 * row["error"] for row in own], marker="o", ms=4, capsize=2, label=method)
    title = f"{rows[0]['num_policies']} policies: which is the best?"
    axis.set(xscale="log", xlabel="simulated episodes played", ylabel="regret of the chosen, success rate", title=title)
    axis.set_yscale("symlog", linthresh=1e-3)
    axis.legend(fontsize=8)


def _e_test(axis: Any, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        label = f"{row['base']:g} against {row['other']:g}"
        axis.plot(
            range(1, len(row["decided"]) + 1), row["decided"], label=label, ls="--" if row["base"] == row["other"] else "-"
        )
    axis.axhline(0.05, color="grey", lw=0.8)
    axis.set(
        xlabel="pairs of episodes", ylabel="share decided for `other`", title="Anytime-valid test, alpha = 0.05", ylim=(0, 1)
    )
    axis.legend(fontsize=8)


def _next_real(axis: Any, scenario: str, rows: list[dict[str, Any]]) -> None:
    for number, row in enumerate(rows):
        ours = row["strategy"].startswith("next-real")
        axis.plot(row["regret"], label=row["strategy"], color=plt.get_cmap("tab10")(number), lw=1.8 if ours else 1.2)
        axis.lines[-1].set_linestyle("-" if ours else "--")
    axis.set(xlabel="real trials in all", ylabel="regret of the deployed, success rate", title=scenario)
    axis.set_ylim(bottom=0)
