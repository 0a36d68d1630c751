"""The figures of the report as inline SVG: one palette, text kept as text, the same bytes for the same ranking."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from robopolicy.ranking.result import CheckpointScore, Ranking

INK, MUTED, HAIRLINE, FAINT = "#1d2433", "#667085", "#e3e7ee", "#b6bfcc"
SIM, TARGET, VSDR = "#3b6fb6", "#d0701b", "#0d7a70"
RUN_COLOURS = ("#3b6fb6", "#d0701b", "#2f8f5b", "#8a5fb0", "#b8475b", "#5b7083", "#a98a1d", "#2a9aa8")
RUN_MARKERS = ("o", "s", "D", "^", "v", "P", "X")
WIDTH = 5.2  # inches; the page scales it
MAX_ROWS = 30
MAX_ERROR_BARS, MAX_STYLES = 200, 56  # more points than that are drawn plainly
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "text.color": INK,
    "text.parse_math": False,  # a $ in a name is a $
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


def short(name: str, length: int = 22) -> str:
    """`name` with its middle cut out when it is longer than `length`."""
    head = (length - 1) // 2
    return name if len(name) <= length else f"{name[:head]}…{name[-(length - 1 - head) :]}"


def run_styles(runs: Sequence[str]) -> dict[str, tuple[str, str]]:
    """{run: (colour, marker)}: colours first, then the next marker."""
    n = len(RUN_COLOURS)
    names = sorted(set(runs))
    return {run: (RUN_COLOURS[i % n], RUN_MARKERS[i // n % len(RUN_MARKERS)]) for i, run in enumerate(names)}


def as_svg(figure: Figure, name: str) -> str:
    """The figure as an element to put into HTML: no header, no metadata, no addresses, ids unique to `name`."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s(xmlns(:xlink)?|version|width|height)="[^"]*"', "", text[: text.index(">")]) + text[text.index(">") :]
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    return text.replace("<svg", f'<svg class="plot" role="img" aria-label="{name.replace("_", " ")}"', 1)


def axes_of(height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of the page's width, so many inches high, and its axes side by side."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, columns, sharey=True))
    for ax in axes:
        ax.tick_params(length=0)
    return figure, list(axes)


def _rows(ax: Axes, scores: Sequence[CheckpointScore]) -> None:
    ax.set_yticks(range(len(scores)), [f"{short(c.checkpoint)}  {c.rank}" for c in scores])
    ax.set_ylim(len(scores) - 0.4, -0.6)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x", color=HAIRLINE, linewidth=0.8)


def _place_axis(ax: Axes, pool: int) -> None:
    step = next(step for step in (5, 10, 20, 50, 100, 200, 500, 1000, 10**9) if pool <= 8 * step)
    ax.set_xlim(0.4, pool + 0.6)
    ax.set_xticks([1, *range(step, pool + 1, step)])


def percent_axis(ax: Axes, axis: str) -> None:
    """Make axis "x" or "y" one of rates."""
    ticks, labels = [0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"]
    if axis == "x":
        ax.set_xlim(-0.02, 1.02)
        ax.set_xticks(ticks, labels)
    else:
        ax.set_ylim(-0.03, 1.03)
        ax.set_yticks(ticks, labels)


def _line(
    ax: Axes, x: tuple[float, float], y: tuple[float, float], colour: str, width: float = 2.0, alpha: float = 0.4
) -> None:
    ax.plot(x, y, color=colour, alpha=alpha, linewidth=width, solid_capstyle="round", zorder=2)


def _dot(ax: Axes, x: float, y: float, colour: str, marker: str = "o", size: float = 5.0, hollow: bool = False) -> None:
    ax.add_line(_symbol([x], [y], colour, marker, size, hollow))


def _symbol(x: list[float], y: list[float], colour: str, marker: str, size: float, hollow: bool, label: str = "") -> Line2D:
    face, edge = ("white", colour) if hollow else (colour, "white")
    look = {"markerfacecolor": face, "markeredgecolor": edge, "markeredgewidth": 1.0 if hollow else 0.5}
    return Line2D(x, y, linestyle="none", marker=marker, markersize=size, zorder=3 if hollow else 4, label=label, **look)  # type: ignore[arg-type]


def legend(figure: Figure, entries: Sequence[tuple[str, str, str, bool]], columns: int = 3) -> None:
    """entries: (label, colour, marker, hollow)."""
    symbols = [_symbol([], [], colour, marker, 6.0, hollow, label) for label, colour, marker, hollow in entries]
    figure.legend(handles=symbols, loc="outside upper left", ncols=columns, handletextpad=0.2, columnspacing=1.4)


@matplotlib.rc_context(STYLE)
def forest(ranking: Ranking, target_name: str) -> str:
    """Simulated (and obtained) success with their intervals, one row a checkpoint in ranking order."""
    scores = ranking.checkpoints[:MAX_ROWS]
    known = any(c.target_success is not None for c in scores)
    confirmed = any("confirm" in c.fresh for c in scores)
    figure, (ax,) = axes_of(0.9 + 0.23 * len(scores))
    for y, c in enumerate(scores):
        shift = 0.2 if known or confirmed else 0.0
        if c.success is not None:
            if c.success_interval is not None:
                _line(ax, c.success_interval, (y - shift, y - shift), SIM)
            _dot(ax, c.success, y - shift, SIM)
        if "confirm" in c.fresh:
            _line(ax, tuple(c.fresh["confirm"]["interval"]), (y, y), VSDR)
            _dot(ax, c.fresh["confirm"]["success"], y, VSDR, "s", 4.5)
        if c.target_success is not None:
            if c.target_interval is not None:
                _line(ax, c.target_interval, (y + shift, y + shift), TARGET)
            _dot(ax, c.target_success, y + shift, TARGET, "D", 4.5)
    _rows(ax, scores)
    percent_axis(ax, "x")
    ax.set_xlabel("success rate, 95 % interval")
    entries = [("selection", SIM, "o", False)] if confirmed else [("simulation", SIM, "o", False)]
    entries += [("fresh conditions", VSDR, "s", False)] if confirmed else []
    legend(figure, [*entries, (target_name, TARGET, "D", False)] if known else entries)
    return as_svg(figure, "forest")


@matplotlib.rc_context(STYLE)
def scatter(ranking: Ranking) -> str:
    """Simulated success over the distance of the target's observations, one colour a run; the best are at the top left."""
    styles = run_styles([c.run for c in ranking.checkpoints])
    figure, (ax,) = axes_of(3.7)
    for c in ranking.checkpoints:
        sim = c.scores["sim"]
        if c.ood is None or sim is None:
            continue
        colour, marker = styles[c.run] if len(styles) <= MAX_STYLES else (SIM, "o")
        if c.ood_interval is not None:
            _line(ax, c.ood_interval, (sim, sim), colour, 1.0)
        if c.success_interval is not None and len(ranking.checkpoints) <= MAX_ERROR_BARS:
            _line(ax, (c.ood, c.ood), c.success_interval, colour, 1.0)
        _dot(ax, c.ood, sim, colour, marker, 6.5 if len(ranking.checkpoints) <= MAX_ERROR_BARS else 4.0)
        if c is ranking.checkpoints[0]:
            ax.plot([c.ood], [sim], "o", markersize=12, markerfacecolor="none", markeredgecolor=VSDR, zorder=5)
            right = {"textcoords": "offset points", "color": VSDR, "fontweight": "bold"}
            ax.annotate(short(c.checkpoint), (c.ood, sim), (9.0, 7.0), **right)  # type: ignore[arg-type]
    if ranking.checkpoints[0].success is not None:
        percent_axis(ax, "y")
    ax.grid(color=HAIRLINE, linewidth=0.8)
    ax.set_xlabel("distance of the target's observations  →  further from simulation")
    ax.set_ylabel("simulated success" if ranking.checkpoints[0].success is not None else "simulated score")
    if 1 < len(styles) <= len(RUN_COLOURS):
        legend(figure, [(short(run, 18), colour, marker, False) for run, (colour, marker) in styles.items()])
    return as_svg(figure, "scatter")


@matplotlib.rc_context(STYLE)
def rank_intervals(ranking: Ranking) -> str:
    """Where each checkpoint may rank: 95 % bootstrap interval of its VSDR place, and its places by one term alone."""
    scores = ranking.checkpoints[:MAX_ROWS]
    figure, (ax,) = axes_of(0.9 + 0.23 * len(scores))
    entries = [
        ("VSDR, 95 % interval", VSDR, "o", False),
        ("simulation only", SIM, "s", True),
        ("detector only", MUTED, "^", True),
    ]
    for y, c in enumerate(scores):
        _line(ax, c.rank_intervals["vsdr"], (y, y), VSDR, 6.0, 0.3)
        for order, (_, colour, marker, hollow) in zip(("vsdr", "sim", "ood"), entries, strict=True):
            if order in c.ranks:
                _dot(ax, c.ranks[order], y, colour, marker, hollow=hollow)
    _rows(ax, scores)
    _place_axis(ax, len(ranking.checkpoints))
    ax.set_xlabel("place in the pool, 1 = best")
    legend(figure, entries if "ood" in ranking.orders else entries[:2])
    return as_svg(figure, "rank_intervals")


@matplotlib.rc_context(STYLE)
def obtained(ranking: Ranking, target_name: str) -> str:
    """Success on the target against the predicted place, for VSDR and for simulation alone: a good order falls."""
    outcomes = {
        c.checkpoint: (c.target_success, c.target_interval) for c in ranking.checkpoints if c.target_success is not None
    }
    best = max(success for success, _ in outcomes.values())
    figure, axes = axes_of(3.7, columns=2)
    for ax, order, colour, title in ((axes[0], "vsdr", VSDR, "VSDR"), (axes[1], "sim", SIM, "simulation only")):
        ax.axhline(best, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)))
        for place, name in enumerate([n for n in ranking.orders[order] if n in outcomes], start=1):
            success, interval = outcomes[name]
            if interval is not None:
                _line(ax, (place, place), interval, colour)
            _dot(ax, place, success, colour, size=8.0 if place == 1 else 5.5, hollow=place > 1)
        ax.set_title(title, fontsize=9.5, loc="left", color=colour, fontweight="bold")
        ax.set_xlabel("predicted place")
        _place_axis(ax, len(outcomes))
        ax.grid(axis="y", color=HAIRLINE, linewidth=0.8)
    if all(0 <= success <= 1 for success, _ in outcomes.values()):
        percent_axis(axes[0], "y")
    axes[0].set_ylabel(f"success on {short(target_name, 28)}")
    return as_svg(figure, "obtained")
