"""From raw measurements to figures: medians over rounds, ratios taken within a round, bootstrap intervals. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

OURS = "ours"
Raw = Mapping[str, list[dict[str, float]]]  # of each contender, by round: steps, cpu, wall, resets, reset_cpu


def rates(raw: Raw, clock: str) -> dict[str, np.ndarray]:
    """Steps per second [R] by "cpu" or "wall" of every contender that was measured."""
    return {name: np.array([r["steps"] / r[clock] for r in rows]) for name, rows in raw.items() if rows}


def interval(values: np.ndarray, seed: int) -> list[float]:
    """Bootstrap 95 % interval of the median of values [R]."""
    samples = np.random.default_rng(seed).choice(values, (2000, len(values)))
    low, high = np.percentile(np.median(samples, axis=1), [2.5, 97.5])
    return [float(low), float(high)]


def ratios(measured: Mapping[str, np.ndarray], pairs: Mapping[str, tuple[str, str]]) -> dict[str, np.ndarray]:
    """First over second, round by round, of the pairs of which both were measured."""
    out = {}
    for name, (first, second) in pairs.items():
        if first in measured and second in measured:
            both = min(len(measured[first]), len(measured[second]))
            out[name] = measured[first][:both] / measured[second][:both]
    return out


def summarise(raw: Raw, peers: tuple[str, ...], seed: int) -> dict[str, Any]:
    """Every figure of the interleaved rounds. Keys of raw are those of rounds.entries()."""
    measured = rates(raw, "cpu")
    medians = {name: float(np.median(values)) for name, values in measured.items()}
    scene = {"mujoco_equal_scene": (f"{OURS}_scene/shadow", "mujoco_scene/shadow")}
    shadowless = {"mujoco_equal_scene": (f"{OURS}_scene/plain", "mujoco_scene/plain")}
    with_pictures = ratios(measured, {peer: (OURS, peer) for peer in peers} | scene)
    state_only = ratios(measured, {peer: (f"{OURS}/state", f"{peer}/state") for peer in peers})
    plain = ratios(measured, shadowless)

    def median_and_interval(values: Mapping[str, np.ndarray], prefix: str) -> dict[str, Any]:
        return {
            prefix: {name: float(np.median(v)) for name, v in values.items()},
            f"{prefix}_interval": {name: interval(v, seed) for name, v in values.items()},
        }

    chosen = {name: values for name, values in measured.items() if name in (OURS, f"{OURS}_none", *peers)}
    states = {name.removesuffix("/state"): values for name, values in measured.items() if name.endswith("/state")}
    return {
        **median_and_interval(chosen, "steps_per_second"),
        **median_and_interval(with_pictures, "ratio"),
        "state_only": {**median_and_interval(states, "steps_per_second"), **median_and_interval(state_only, "ratio")},
        "resets_per_second": {
            name: sum(r["resets"] for r in raw[name]) / max(sum(r["reset_cpu"] for r in raw[name]), 1e-9)
            for name in measured
            if "_scene" not in name
        },
        "equal_scene": {
            "frames_per_second": {name: rate for name, rate in medians.items() if "_scene" in name},
            **median_and_interval(plain, "ratio_without_shadows"),
            "lift_steps_per_second": {n: medians[n] for n in (OURS, f"{OURS}_none", "mujoco_lift") if n in medians},
        },
        "by_wall_clock": {name: float(np.median(values)) for name, values in rates(raw, "wall").items()},
        "rounds": min((len(rows) for rows in raw.values() if rows), default=0),
        "raw": raw,
    }


def wall_over_cpu(raw: Raw) -> float:
    """How much longer than its CPU time the work took: 1 on a quiet machine."""
    return float(np.median([r["wall"] / r["cpu"] for rows in raw.values() for r in rows]))


def text(result: Mapping[str, Any]) -> str:
    """The figures as tables."""
    lines = []
    if "steps_per_second" in result:
        state, resets = result["state_only"], result["resets_per_second"]
        lines.append(
            f"{'steps per CPU second':24}{'state only':>11}{'ours / it':>11}{'+ frame':>11}{'ours / it':>11}"
            f"{'95 % interval':>17}{'resets/s':>10}"
        )
        for name, rate in result["steps_per_second"].items():
            low, high = result["ratio_interval"].get(name, (None, None))
            between = f"{low:.1f} .. {high:.1f}" if low is not None else ""
            lines.append(
                f"{name:24}{_cell(state['steps_per_second'].get(name)):>11}{_cell(state['ratio'].get(name), 'x'):>11}"
                f"{_cell(rate):>11}{_cell(result['ratio'].get(name), 'x'):>11}{between:>17}{_cell(resets.get(name)):>10}"
            )
    scene = result.get("equal_scene", {})
    if scene.get("frames_per_second"):
        lines.append(
            "\nequal scene, frames per CPU second: "
            + ", ".join(f"{n} {_cell(r)}" for n, r in scene["frames_per_second"].items())
        )
        without = scene["ratio_without_shadows"].get("mujoco_equal_scene")
        ratio = _cell(result["ratio"].get("mujoco_equal_scene"), "x")
        lines.append(f"  ours / MuJoCo: {ratio} with shadows, {_cell(without, 'x')} without")
        lines.append(
            "Lift with frames, steps per CPU second: "
            + ", ".join(f"{n} {_cell(r)}" for n, r in scene["lift_steps_per_second"].items())
        )
    for name, counts in result.get("all_cores", {}).items():
        lines.append(
            f"{name} at once on "
            + ", ".join(
                f"{k} cores: {v['factor_cpu']:.2f}x by CPU time, {v['factor_wall']:.2f}x by wall clock"
                for k, v in counts.items()
            )
        )
    for shake, row in result.get("stability", {}).items():
        lines.append(
            f"{row['lifts']} lifts, held {shake}: lifted {row['lifted']:.1%}, held {row['held']:.1%}, slip median "
            f"{row['slip_mm_median']:.2f} mm, 95 % {row['slip_mm_p95']:.2f} mm, most {row['slip_mm_max']:.2f} mm"
        )
    lines += [f"{name} failed: {reason}" for name, reason in result["failed"].items()]
    return "\n".join(lines)


def _cell(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:.4g}{unit}"
