"""What every checkpoint would do at the target's recorded decisions, beside what was done there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from robopolicy import checkpoint
from robopolicy.data.episodes import EpisodeStore
from robopolicy.data.windows import Windows
from robopolicy.evaluation.features import BATCH, draw_rows
from robopolicy.evaluation.rollout import Arm
from robopolicy.executor import Executor
from robopolicy.policies.load import load_critic, load_policy
from robopolicy.policies.steering import last_frames
from robopolicy.selection.features import kept_arrays
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
    """policy_acts of every arm by name; see features.kept_arrays."""
    make = partial(policy_acts, target=str(target.path.absolute()), num_frames=num_frames, seed=seed, critic=critic)
    identity = [target.hash, num_frames, seed, checkpoint.sha256(critic) if critic else ""]
    return kept_arrays(arms, make, identity, folder, num_workers, "acts", executor)
