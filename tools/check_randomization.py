"""Does randomisation cover what it declares? Resets an environment many times and looks at every factor.

    python tools/check_randomization.py --out runs/randomization.json
    python tools/check_randomization.py --env robopolicy/LiftTwin-v0 --preset twin --resets 200 --out runs/twin.json

Prints a table, writes the figures as JSON, and beside it a picture: the histogram of every factor against its declared range,
and the rank correlations of all pairs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import gymnasium
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from provenance import provenance, write_json
from tqdm import tqdm

from robopolicy.data.collect import robot_env
from robopolicy.sim.coverage import Coverage, Factor, columns, coverage
from robopolicy.sim.randomize import nominal, parse
from robopolicy.sim.tasks import parameter_names
from robopolicy.sim.world import PARAMETERS, TWIN


def main() -> int:
    """Check, print, write; 1 when something is not as declared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="robopolicy/Lift-v0")
    parser.add_argument("--preset", default="wide")
    parser.add_argument("--resets", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="100 resets")
    parser.add_argument("--out", type=Path, help="FILE.json; the picture goes beside it")
    arguments = parser.parse_args()
    env = gymnasium.make(
        arguments.env, disable_env_checker=True, observation=("state",), image_size=16, randomization=arguments.preset
    )
    parameters = {**PARAMETERS, **robot_env(env).task.parameters}
    twin = env.spec is not None and env.spec.kwargs["engine"] == "mujoco"
    around = nominal(parameters, {name: value for name, value in TWIN.items() if twin and name in parameters})
    distributions = parse(arguments.preset, parameters, around, parameter_names())
    seeds = range(arguments.seed, arguments.seed + (100 if arguments.quick else arguments.resets))
    worlds = [env.reset(seed=seed)[1]["randomization"] for seed in tqdm(seeds, desc="reset")]
    env.close()
    found = coverage(worlds, distributions, around)
    print_table(found, {name: parameters[name.partition("[")[0]].unit for name in columns(worlds[:1], distributions)})
    if arguments.out is not None:
        facts = {**provenance(), "env": arguments.env, "preset": arguments.preset, "seeds": [seeds[0], seeds[-1]]}
        write_json(arguments.out, {**facts, **found.to_dict()})
        draw_picture(arguments.out.with_suffix(".png"), found, columns(worlds, distributions), arguments)
        print(f"{arguments.out} and {arguments.out.with_suffix('.png')}")
    return 1 if found.problems else 0


def print_table(found: Coverage, units: dict[str, str]) -> None:
    """One line a factor, then the verdict."""
    print(f"{'factor':34} {'family':12} {'op':6} {'declared range':>24} {'drawn':>24} {'p family':>9} {'p drift':>8}")
    for f in found.factors:
        declared, drawn = f"{f.low:.4g} .. {f.high:.4g} {units[f.name]}".strip(), f"{f.least:.4g} .. {f.most:.4g}"
        family = "-" if f.p_family is None else f"{f.p_family:.3f}"
        print(f"{f.name:34} {f.family:12} {f.operation:6} {declared:>24} {drawn:>24} {family:>9} {f.p_drift:8.3f}")
    summary = found.to_dict()
    largest = summary["largest_rank_correlation"]
    print(f"\n{len(found.factors)} factors in {found.num_worlds} worlds; alpha = {found.alpha:g} for each kind of test")
    print(f"largest rank correlation {largest['value']:+.3f} ({', '.join(largest['pair'])}); bound {largest['bound']:.3f}")
    print("\n".join(found.problems) if found.problems else "every factor in range, as declared, without drift or correlation")


def draw_picture(path: Path, found: Coverage, values: dict[str, np.ndarray], arguments: argparse.Namespace) -> None:
    """Histograms against declared ranges above, rank correlations below."""
    across = 12
    rows = -(-len(found.factors) // across)
    figure = plt.figure(figsize=(20, 1.25 * rows + 9), dpi=100, layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.25 * rows, 9))
    axes = np.atleast_1d(upper.subplots(rows, across)).ravel()
    for ax, factor in zip(axes, found.factors, strict=False):
        _histogram(ax, factor, values[factor.name])
    for ax in axes[len(found.factors) :]:
        ax.set_axis_off()
    upper.suptitle(
        f"{arguments.preset} in {arguments.env}: {found.num_worlds} resets (bars) against the declared range (shaded)",
        fontsize=12,
    )
    ax = lower.subplots()
    image = ax.imshow(found.rank_correlation, vmin=-0.3, vmax=0.3, cmap="RdBu_r", interpolation="nearest")
    names = [factor.name for factor in found.factors]
    step = max(len(names) // 50, 1)
    ax.set_yticks(range(0, len(names), step), names[::step], fontsize=6)
    ax.set_xticks([])
    largest = found.to_dict()["largest_rank_correlation"]
    ax.set_title(f"rank correlations; largest {largest['value']:+.3f}, bound {largest['bound']:.3f}", fontsize=12)
    lower.colorbar(image, ax=ax, shrink=0.6)
    figure.savefig(path)


def _histogram(ax: plt.Axes, factor: Factor, values: np.ndarray) -> None:
    low, high = factor.low, factor.high
    discrete = factor.family in ("integers", "choice")
    margin = 0.5 if discrete else 0.1 * (high - low) or 0.5
    bins = np.arange(low - 0.5, high + 1.0) if discrete else np.linspace(low - margin, high + margin, 25)
    ax.axvspan(low - 0.5 * discrete, high + 0.5 * discrete, color="#2a6f97", alpha=0.15, lw=0)
    ax.hist(values, bins=bins, color="#2a6f97")
    ax.set_xlim(low - 2 * margin, high + 2 * margin)
    ax.set_title(factor.name, fontsize=6.5, pad=2)
    ax.set_yticks([])
    ax.set_xticks([low, high], [f"{low:.3g}", f"{high:.3g}"], fontsize=6)
    ax.tick_params(length=1.5, pad=1)
    ax.spines[["top", "right", "left"]].set_visible(False)


if __name__ == "__main__":
    sys.exit(main())
