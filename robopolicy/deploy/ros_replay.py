"""A policy over a recording, open loop: what it would have done at each moment, beside what was done."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from robopolicy.deploy.client import RemoteSpec
from robopolicy.deploy.ros_bag import BagSource
from robopolicy.files import atomic_write, plain
from robopolicy.spec import ACTION, IMAGES, TASK, Array, Policy, PolicySpec, SpecError

BATCH = 32  # observations of one call of the policy
_RECORDED, _EXECUTED, _FURTHER = "#1c1c1c", "#c8553d", "#e9b8a8"


@dataclass(frozen=True)
class Replayed:
    """An episode: recorded actions [T, A], steps [K] of decisions, their chunks [K, H, A], pictures [T, H, W, 3] or None."""

    label: str
    actions: Array
    steps: Array
    chunks: Array
    pictures: Array | None


def open_loop(policy: Policy, arrays: Mapping[str, Array], task: str, label: str, seed: int) -> Replayed:
    """Ask the policy at every execute_horizon-th step of an episode {key: [T, ...]}.

    Raises:
        SpecError: the recording does not fit the policy.
    """
    spec, actions = policy.spec, arrays[ACTION]
    if actions.shape[1:] != spec.action.shape:
        raise SpecError(f"the recorded actions have shape {list(actions.shape[1:])}, the policy's {list(spec.action.shape)}")
    steps = np.arange(0, len(actions), spec.execute_horizon)
    frames = np.maximum(steps[:, None] + np.arange(1 - spec.obs_horizon, 1), 0)
    chunks = []
    for start in range(0, len(steps), BATCH):
        part = frames[start : start + BATCH]
        observation: dict[str, Any] = {
            key: arrays[key][part].astype(feature.dtype, copy=False) for key, feature in spec.observation.items() if key != TASK
        }
        if TASK in spec.observation:
            observation[TASK] = np.full(len(part), task)
        policy.reset()
        chunks.append(policy.sample(observation, 1, seed)[:, 0])
    pictures = next((arrays[key] for key in sorted(arrays) if key.startswith(IMAGES)), None)
    return Replayed(label, actions, steps, np.concatenate(chunks), pictures)


def replay(
    bag: Path,
    policy: Policy,
    out: Path,
    *,
    name: str,
    mapping: str | None = None,
    fps: float | None = None,
    episodes: int | None = 5,
    seed: int = 0,
) -> list[str]:
    """Run `policy` over the episodes of bags; plots, a page and summary.json in the folder `out`; lines for people.

    Args:
        bag: a bag, or a folder of bags. policy: whose chunks are compared. out: folder. name: of the policy.
        mapping, fps: see BagSource; the rate of the policy is that of the steps unless fps says otherwise.
        episodes: at most so many; None = all. seed: of the policy's samples.

    Raises:
        ValueError: bags that cannot be read, or do not hold what the policy needs.
    """
    spec = policy.spec
    source = BagSource(bag, mapping, fps or spec.control_hz, RemoteSpec.from_dict(spec.to_dict()))
    keys = [key for key in spec.observation if key != TASK]
    missing = [key for key in [*keys, ACTION] if key not in source.layout.fields]
    if missing:
        raise SpecError(
            f"{bag} lacks {', '.join(missing)}; it has {', '.join(source.layout.fields)}. "
            "Say with mapping=FILE which topics they are (docs/ros.md)"
        )
    if source.fps != spec.control_hz:
        raise SpecError(
            f"{bag} has {source.fps:g} steps a second, the policy {spec.control_hz:g}: their chunks cannot be compared"
        )
    found = [
        open_loop(policy, episode.arrays, str(episode.info[TASK]), episode.label, seed)
        for episode in islice(source.episodes([*keys, ACTION]), episodes)
    ]
    out.mkdir(parents=True, exist_ok=True)
    rows = _compare(found, spec)
    by_step = _error_by_step(found, spec.action_horizon)
    shown = []
    for n, episode in enumerate(found):
        atomic_write(out / f"episode_{n:03d}.png", _png(_plot(episode, spec)))
        strip = f"strip_{n:03d}.png" if episode.pictures is not None else ""
        if episode.pictures is not None:
            atomic_write(out / strip, _strip(episode.pictures))
        shown.append({"label": episode.label, "steps": len(episode.actions), "picture": f"episode_{n:03d}.png", "strip": strip})
    atomic_write(out / "horizon.png", _png(_plot_by_step(by_step, spec)))
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    page = jinja2.Environment(loader=loader, autoescape=True).get_template("replay.html.j2")
    steps = sum(len(episode.actions) for episode in found)
    about = f"{name} over {bag}: {len(found)} episodes, {steps} steps at {spec.control_hz:g} Hz, open loop"
    atomic_write(out / "index.html", page.render(title="Replay", about=about, rows=rows, episodes=shown).encode())
    summary = {"policy": name, "bag": str(bag), "episodes": shown, "entries": rows, "error_by_step": by_step}
    atomic_write(
        out / "summary.json", (json.dumps(plain(summary, where="summary", nonfinite="null"), indent=2) + "\n").encode()
    )
    lines = [about]
    for row in rows:
        share = "" if row["ratio"] is None else f", {row['ratio']:.2f} of the error of the mean action"
        lines.append(f"  {row['name']}: mean absolute error {row['error']:.4g}{share}")
    return [*lines, f"Page: {out / 'index.html'}"]


def _names(spec: PolicySpec) -> tuple[str, ...]:
    return spec.action.names or tuple(map(str, range(spec.action_dim)))


def _errors(episode: Replayed) -> Array:
    """|predicted - recorded| [K, H, A], NaN beyond the episode's end."""
    K, H, A = episode.chunks.shape
    errors = np.full((K, H, A), np.nan)
    for k, step in enumerate(episode.steps):
        there = episode.actions[step : step + H]
        errors[k, : len(there)] = np.abs(episode.chunks[k, : len(there)] - there)
    return errors


def _compare(found: list[Replayed], spec: PolicySpec) -> list[dict[str, Any]]:
    recorded = np.concatenate([episode.actions for episode in found])
    executed = np.concatenate([_errors(episode)[:, : spec.execute_horizon].reshape(-1, spec.action_dim) for episode in found])
    error, baseline = np.nanmean(executed, axis=0), np.abs(recorded - recorded.mean(axis=0)).mean(axis=0)
    return [
        {
            "name": name,
            "low": float(recorded[:, i].min()),
            "high": float(recorded[:, i].max()),
            "std": float(recorded[:, i].std()),
            "error": float(error[i]),
            "baseline": float(baseline[i]),
            "ratio": float(error[i] / baseline[i]) if baseline[i] > 1e-9 else None,
        }
        for i, name in enumerate(_names(spec))
    ]


def _error_by_step(found: list[Replayed], horizon: int) -> list[list[float]]:
    """[H][A]: mean absolute error by the step of a chunk."""
    errors = np.concatenate([_errors(episode) for episode in found])
    return [
        [float(x) for x in np.nanmean(errors[:, h], axis=0)] if np.isfinite(errors[:, h]).any() else [] for h in range(horizon)
    ]


def _plot(episode: Replayed, spec: PolicySpec) -> Figure:
    names, Ta = _names(spec), spec.execute_horizon
    figure = Figure(figsize=(11, 1.35 * len(names) + 0.8), layout="constrained")
    for i, (axes, name) in enumerate(zip(np.atleast_1d(figure.subplots(len(names), 1, sharex=True)), names, strict=True)):
        for step, chunk in zip(episode.steps, episode.chunks[:, :, i], strict=True):
            times = step + np.arange(len(chunk))
            axes.plot(times[Ta - 1 :], chunk[Ta - 1 :], color=_FURTHER, linewidth=1)
            axes.plot(times[:Ta], chunk[:Ta], color=_EXECUTED, linewidth=1.8)
            axes.plot(step, chunk[0], "o", color=_EXECUTED, markersize=3)
        axes.plot(episode.actions[:, i], color=_RECORDED, linewidth=1)
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(-0.5, len(episode.actions) + spec.action_horizon - Ta)
    axes.set_xlabel(f"step ({spec.control_hz:g} Hz)")
    lines = [Figure().subplots().plot([], [], color=c, linewidth=2)[0] for c in (_RECORDED, _EXECUTED, _FURTHER)]
    labels = ["recorded", "predicted, would be executed", "rest of the chunk"]
    figure.legend(lines, labels, loc="outside upper right", ncols=3, frameon=False)
    return figure


def _plot_by_step(by_step: list[list[float]], spec: PolicySpec) -> Figure:
    """Error relative to that of a chunk's first step would hide its size; so each entry is relative to its largest."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    errors = np.array([row for row in by_step if row])
    for i, name in enumerate(_names(spec)):
        if errors[:, i].max() > 0:
            axes.plot(np.arange(1, len(errors) + 1), errors[:, i] / errors[:, i].max(), marker=".", label=name)
    axes.axvline(spec.execute_horizon + 0.5, color="#999", linewidth=1, linestyle=":")
    axes.set(
        xlabel="step of a chunk (dotted: the last that is executed)",
        ylabel="mean absolute error,\nshare of largest",
        ylim=(0, 1.05),
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _strip(pictures: Array, count: int = 10, height: int = 96) -> bytes:
    """Pictures from start to end, side by side."""
    chosen = pictures[np.linspace(0, len(pictures) - 1, min(count, len(pictures))).round().astype(int)]
    width = round(height * chosen.shape[2] / chosen.shape[1])
    buffer = io.BytesIO()
    row = np.concatenate([np.asarray(Image.fromarray(picture).resize((width, height))) for picture in chosen], axis=1)
    Image.fromarray(row).save(buffer, "PNG")
    return buffer.getvalue()
