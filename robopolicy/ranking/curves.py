"""Figures over many scores or steps: training curves, histograms of detector scores, places by score against score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from robopolicy.ranking.plots import (
    FAINT,
    HAIRLINE,
    MUTED,
    RUN_COLOURS,
    SIM,
    STYLE,
    TARGET,
    WIDTH,
    as_svg,
    axes_of,
    legend,
    percent_axis,
    run_styles,
    short,
)
from robopolicy.ranking.result import CheckpointScore, Ranking

MAX_SCORES = 5


def _by_run(ranking: Ranking) -> dict[str, list[CheckpointScore]]:
    """Checkpoints with a success rate, by run, ascending in step; runs with several of them only."""
    known = sorted((c for c in ranking.checkpoints if c.success is not None), key=lambda c: (c.run, c.step))
    runs = {run: list(lines) for run, lines in groupby(known, key=lambda c: c.run)}
    return {run: lines for run, lines in runs.items() if len({c.step for c in lines}) > 1}


def has_curves(ranking: Ranking) -> bool:
    """Whether any training run has checkpoints at several steps."""
    return bool(_by_run(ranking))


@matplotlib.rc_context(STYLE)
def training(ranking: Ranking) -> str:
    """Simulated success over training steps, a line a run, with its intervals as bands."""
    runs, styles = _by_run(ranking), run_styles([c.run for c in ranking.checkpoints])
    figure, (ax,) = axes_of(3.5)
    for run, lines in runs.items():
        colour, marker = styles[run]
        steps = [c.step for c in lines]
        intervals = [c.success_interval or (c.success, c.success) for c in lines]
        low, high = (np.array([float(i[end] or 0.0) for i in intervals]) for end in (0, 1))
        ax.fill_between(steps, low, high, color=colour, alpha=0.1, linewidth=0)
        ax.plot(steps, [c.success for c in lines], color=colour, marker=marker, markersize=4.5, linewidth=1.5)  # type: ignore[arg-type]
    percent_axis(ax, "y")
    ax.grid(color=HAIRLINE, linewidth=0.8)
    ax.set_xlabel("training step")
    ax.set_ylabel("simulated success")
    if len(runs) <= len(RUN_COLOURS):
        legend(figure, [(short(run, 18), *styles[run], False) for run in runs])
    return as_svg(figure, "training")


@matplotlib.rc_context(STYLE)
def histograms(found: Sequence[Mapping[str, Any]]) -> str:
    """Detector scores of simulator hold-out and target, a row a checkpoint."""
    figure = Figure(figsize=(WIDTH, 0.6 + 1.5 * len(found)), layout="constrained")
    grid = np.atleast_1d(figure.subplots(len(found), 1))
    for ax, entry in zip(grid, found, strict=True):
        edges = np.asarray(entry["edges"])
        for shares, colour in ((entry["simulation"], SIM), (entry["target"], TARGET)):
            ax.stairs(shares, edges, color=colour, fill=True, alpha=0.28)
            ax.stairs(shares, edges, color=colour, linewidth=1.3)
        ax.set_title(short(entry["checkpoint"], 40), fontsize=9.5, loc="left", color=MUTED)
        ax.set_yticks([])
        ax.tick_params(length=0)
        ax.spines["left"].set_visible(False)
    grid[-1].set_xlabel("log score of the detector  →  stranger")
    legend(figure, [("simulation, held out", SIM, "s", False), ("target", TARGET, "s", False)])
    return as_svg(figure, "histograms")


@matplotlib.rc_context(STYLE)
def score_matrix(ranking: Ranking) -> str:
    """Places by each score against places by each other."""
    names = [n for n in ("vsdr", "sim", "ood", *sorted(ranking.orders)) if n in ranking.orders]
    names = list(dict.fromkeys(names))[:MAX_SCORES]
    size = len(names) - 1
    figure = Figure(figsize=(WIDTH, WIDTH * 0.86), layout="constrained")
    grid = np.atleast_2d(figure.subplots(size, size, squeeze=False))
    styles, pool = run_styles([c.run for c in ranking.checkpoints]), len(ranking.checkpoints)
    for row in range(size):
        for column in range(size):
            ax, x, y = grid[row, column], names[column], names[row + 1]
            if column > row:
                ax.set_visible(False)
                continue
            colours = [styles[c.run][0] for c in ranking.checkpoints]
            ax.plot([1, pool], [1, pool], color=FAINT, linewidth=0.8, zorder=1)
            ax.scatter([c.ranks[x] for c in ranking.checkpoints], [c.ranks[y] for c in ranking.checkpoints], 9, colours)
            ax.set_xlim(0.2, pool + 0.8)
            ax.set_ylim(0.2, pool + 0.8)
            ax.set_xticks([])
            ax.set_yticks([])
            if row == size - 1:
                ax.set_xlabel(short(x, 14))
            if column == 0:
                ax.set_ylabel(short(y, 14))
    return as_svg(figure, "score_matrix")
