"""What every checkpoint would do at the target's recorded decisions, beside what was done there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from robopolicy import checkpoint
from robopolicy.data.episodes import EpisodeStore
from robopolicy.data.windows import Windows
from robopolicy.evaluation.features import BATCH, draw_rows
from robopolicy.evaluation.rollout import Arm
from robopolicy.executor import Executor, map_units
from robopolicy.policies.load import load_critic, load_policy
from robopolicy.policies.steering import last_frames
from robopolicy.ranking.tables import load_features
from robopolicy.selection.features import features_file, is_of, write_arrays
from robopolicy.spec import ACTION, ACTION_IS_PAD, EPISODE, STEP

NUM_SAMPLES = 4  # chunks drawn at each decision
Acts = Mapping[str, np.ndarray]


def policy_acts(arm: Arm, target: str, num_frames: int, seed: int, critic: str | None) -> dict[str, np.ndarray]:
    """A checkpoint at up to num_frames decisions of the dataset `target`, one every execute_horizon steps.

    {"features" [N, D], "chunks" [N, m, h, A], "recorded" [N, h, A], "is_pad" [N, h], "episode", "step" [N]}, h being the steps
    that are executed, and with a critic "value" [N]: its mean over heads for chunk 0.

    Raises:
        SpecError: the target lacks a key that the policy or the critic needs.
    """
    policy, judge = load_policy(arm.checkpoint), load_critic(critic) if critic else None
    spec = policy.spec
    keys = dict.fromkeys((*spec.observation, *(judge.spec.observation if judge else ())))
    horizon = max(spec.obs_horizon, judge.spec.obs_horizon if judge else 1)
    windows = Windows(EpisodeStore(target), tuple(keys), horizon, spec.action_horizon)
    step = np.concatenate([np.arange(length) for length in windows.lengths])
    decisions = np.flatnonzero(step % spec.execute_horizon == 0)
    rows = decisions[draw_rows(len(decisions), num_frames, seed)]
    found: dict[str, list[np.ndarray]] = {}
    executed = slice(0, spec.execute_horizon)
    for start in range(0, len(rows), BATCH):
        batch = windows.batch(rows[start : start + BATCH])
        seen = last_frames({key: batch[key] for key in spec.observation}, spec.observation, spec.obs_horizon)
        chunks = policy.sample(seen, num_samples=NUM_SAMPLES, seed=seed)
        part = {
            "features": policy.features(seen),
            "chunks": chunks[:, :, executed],
            "recorded": batch[ACTION][:, executed],
            "is_pad": batch[ACTION_IS_PAD][:, executed],
            "episode": batch[EPISODE],
            "step": batch[STEP],
        }
        if judge is not None:
            context = judge.encode(last_frames(batch, judge.spec.observation, judge.spec.obs_horizon))
            part["value"] = judge.score(context, chunks[:, :1, : judge.spec.execute_horizon]).mean(axis=(0, 2))
        for key, array in part.items():
            found.setdefault(key, []).append(np.asarray(array))
    return {key: np.concatenate(arrays) for key, arrays in found.items()}


def _unit(unit: tuple[Arm, Path, str], target: str, num_frames: int, seed: int, critic: str | None) -> None:
    arm, file, key = unit
    write_arrays(file, policy_acts(arm, target, num_frames, seed, critic), key)


def pool_acts(
    arms: Sequence[Arm],
    target: EpisodeStore,
    num_frames: int,
    seed: int,
    critic: str | None,
    num_workers: int | None,
    folder: Path,
    executor: Executor | None = None,
) -> dict[str, Acts]:
    """policy_acts of every arm by name, in parallel, kept in `folder`; what is there already is not made again."""
    folder.mkdir(parents=True, exist_ok=True)
    judge = checkpoint.sha256(critic) if critic else ""
    units = []
    for arm in arms:
        identity = [checkpoint.sha256(arm.checkpoint), target.hash, num_frames, seed, judge]
        units.append((arm, features_file(folder, arm.name), hashlib.sha256(json.dumps(identity).encode()).hexdigest()))
    missing = [unit for unit in units if not is_of(unit[1], unit[2])]
    work = partial(_unit, target=str(target.path.absolute()), num_frames=num_frames, seed=seed, critic=critic)
    map_units(work, missing, num_workers, "acts", executor=executor)
    return {arm.name: load_features(file) for arm, file, _ in units}
