"""Pictures for the report: failures of the finalists with the command that replays each, extreme target observations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from robopolicy.data.collect import environment
from robopolicy.evaluation.features import draw_rows
from robopolicy.evaluation.film import film_actor, strip
from robopolicy.evaluation.pictures import write_video
from robopolicy.evaluation.rollout import Arm, PolicyActor, arm_policy, observing
from robopolicy.executor import Executor, map_units
from robopolicy.ranking.detectors import Detection
from robopolicy.ranking.looks import extremes
from robopolicy.selection.suite import FrozenSuite
from robopolicy.selection.target import Target
from robopolicy.spec import Array

NUM_FAILURES, NUM_STRIP, SIZE = 2, 6, 160  # of each finalist; frames; px


def _film(unit: tuple[Arm, int], suite: FrozenSuite) -> Array:
    import torch

    torch.set_num_threads(1)
    arm, seed = unit
    policy = arm_policy(arm)
    env = environment(suite.env_id, observing(suite.env_kwargs, policy))
    return strip(film_actor(env, PolicyActor(policy, arm.instruction), seed, size=SIZE)[0], NUM_STRIP)


def failures(
    arms: Sequence[Arm],
    suite: FrozenSuite,
    episodes: pa.Table,
    out: Path,
    num_workers: int | None,
    executor: Executor | None = None,
) -> dict[str, Any] | None:
    """A gallery of the first failures of each arm, from start to end; None where nobody failed."""
    rows = episodes.select(["checkpoint", "condition", "success"]).to_pylist()
    chosen = []
    for arm in arms:
        failed = sorted({r["condition"] for r in rows if r["checkpoint"] == arm.name and not r["success"]}, key=int)
        chosen += [(arm, int(condition)) for condition in failed[:NUM_FAILURES]]
    if not chosen:
        return None
    films = map_units(partial(_film, suite=suite), chosen, num_workers, "failures", executor=executor)
    images = [
        (f"{arm.name}, condition {seed}: robopolicy rank replay out={out} checkpoint={arm.name} condition={seed}", frames)
        for (arm, seed), frames in zip(chosen, films, strict=True)
    ]
    caption = "Failures of the finalists from start to end, and the command that plays each again."
    return {"title": "Failures", "caption": caption, "images": images}


def target_pictures(target: Target, name: str, found: Detection, num_frames: int, seed: int) -> dict[str, Any] | None:
    """A gallery of target observations that look most and least like simulation to a checkpoint; None without pictures."""
    near, far = extremes(found)
    pictures = list(target.pictures()) if near else []
    rows = draw_rows(len(pictures), num_frames, seed)
    if not pictures or found.scores is None or len(rows) != len(found.scores[0]):
        return None
    images = [(f"nearest {i + 1}", np.ascontiguousarray(pictures[rows[r]])) for i, r in enumerate(near)]
    images += [(f"farthest {i + 1}", np.ascontiguousarray(pictures[rows[r]])) for i, r in enumerate(far)]
    caption = f"Target observations that look most and least like simulation to the encoder of {name}."
    return {"title": "Nearest and farthest target observations", "caption": caption, "images": images}


def replay(arm: Arm, suite: FrozenSuite, seed: int, path: Path) -> tuple[Path, Mapping[str, Any]]:
    """Play an episode of a suite again and film it: (the video, the episode's row)."""
    policy = arm_policy(arm)
    env = environment(suite.env_id, observing(suite.env_kwargs, policy))
    frames, episode = film_actor(env, PolicyActor(policy, arm.instruction), seed, size=320, every=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_video(path, frames, policy.spec.control_hz), episode.row
