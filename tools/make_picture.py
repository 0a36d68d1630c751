"""The picture at the top of the README, from a demo run: python tools/make_picture.py runs/demo docs/images/demo.png."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from robopolicy.config import compose, to_plain
from robopolicy.demo import TARGET, VALIDATION
from robopolicy.evaluation.film import worlds
from robopolicy.evaluation.rollout import Suite
from robopolicy.pipeline import task_env

COLOURS = {"none": "#c8553d", "wide": "#2a6f97"}


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    task = to_plain(compose("collect", ["path=unused"]))["task"]
    rows = [("trained on: none", "none", False), ("trained on: wide", "wide", False)]
    rows += [("validated on", VALIDATION, False), ("stands in for the robot", TARGET, True)]
    figure = plt.figure(figsize=(12, 4.6), dpi=110, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.0, 1.25))
    axes = left.subplots(4, 5)
    for row, (title, randomization, twin) in zip(axes, rows, strict=True):
        env_id, env_kwargs = task_env(task, randomization, twin)
        pictures = worlds(Suite(title, env_id, env_kwargs, ()), range(3, 8), 160)
        for ax, picture in zip(row, pictures, strict=True):
            ax.imshow(picture)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        row[0].set_title(title, fontsize=9, loc="left")
    draw_ranking(right.subplots(), json.loads((arguments.run / "ranking.json").read_text()))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out)


def draw_ranking(ax: plt.Axes, ranking: dict) -> None:
    """Checkpoints best first by VSDR: simulated success and, hollow, success in the twin, with their intervals."""
    checkpoints = ranking["checkpoints"]
    for y, c in enumerate(checkpoints):
        colour = COLOURS.get(c["run"], "#444444")
        for offset, value, interval, fill in (
            (-0.14, c["success"], c["success_interval"], colour),
            (0.14, c["target_success"], c["target_interval"], "white"),
        ):
            ax.plot(interval, [y + offset] * 2, color=colour, lw=1.4, alpha=0.6)
            ax.plot(value, y + offset, "o", color=colour, markerfacecolor=fill, markersize=6)
    ax.set_yticks(np.arange(len(checkpoints)), [f"{i + 1}. {c['checkpoint']}" for i, c in enumerate(checkpoints)])
    ax.set(xlim=(-0.02, 1.02), ylim=(len(checkpoints) - 0.5, -0.5))
    ax.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    ax.set_title("Checkpoints in the order of VSDR", loc="left", fontsize=10)
    ax.set_xlabel("success: in simulation (filled), then in the held-out simulator (hollow); 95 % intervals", fontsize=9)
    ax.grid(axis="x", alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
