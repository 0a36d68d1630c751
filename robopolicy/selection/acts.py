"""What every checkpoint would do at the target's recorded decisions, beside what was done there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from robopolicy import checkpoint
from robopolicy.data.episodes import EpisodeStore
from robopolicy.data.windows import Windows
from robopolicy.evaluation.features import BATCH
from robopolicy.evaluation.rollout import Arm
from robopolicy.executor import Executor
from robopolicy.policies.load import load_critic, load_policy
from robopolicy.policies.steering import last_frames
from robopolicy.selection.features import kept_arrays
from robopolicy.spec import ACTION, ACTION_IS_PAD, EPISODE, REWARD, STEP, Array

NUM_SAMPLES = 4  # chunks drawn at each decision
DISCOUNT = 0.99  # of rewards, a step
Acts = Mapping[str, Array]


def decision_rows(lengths: Array, horizon: int, most: int, seed: int) -> Array:
    """Rows (of all steps, episode after episode) of decisions, one every `horizon` steps, of whole episodes drawn at random.

    lengths: int [E]. Up to `most` rows, ascending, but at least those of one episode: what follows a decision is among them.
    """
    starts, counts = np.cumsum(lengths) - lengths, -(-lengths // horizon)
    order = np.random.default_rng(seed).permutation(len(lengths))
    num = max(1, int(np.searchsorted(np.cumsum(counts[order]), most, side="right")))
    return np.concatenate([starts[e] + np.arange(0, lengths[e], horizon) for e in np.sort(order[:num])])


def policy_acts(arm: Arm, target: str, num_decisions: int, seed: int, critic: str | None) -> dict[str, Array]:
    """A checkpoint at up to num_decisions decisions of the dataset `target`, of whole episodes, in order of time.

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
    rows = decision_rows(windows.lengths, spec.execute_horizon, num_decisions, seed)
    found: dict[str, list[Array]] = {}
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
    shas: Mapping[str, str],
    target: EpisodeStore,
    num_decisions: int,
    seed: int,
    critic: str | None,
    num_workers: int | None,
    folder: Path,
    executor: Executor | None = None,
) -> dict[str, Acts]:
    """policy_acts of every arm by name; see features.kept_arrays."""
    make = partial(policy_acts, target=str(target.path.absolute()), num_decisions=num_decisions, seed=seed, critic=critic)
    identity = [target.hash, num_decisions, seed, checkpoint.sha256(critic) if critic else ""]
    return kept_arrays(arms, make, identity, folder, num_workers, "acts", executor, shas)


def between(own: Acts, target: EpisodeStore) -> tuple[Array, Array, Array, Array]:
    """What lies between decisions: their rows [N], those of the ones that follow, discounted rewards, and the discounts.

    An end is an end, of time too, as in the suite's returns: nothing follows, and the discount is 0.
    """
    horizon = own["recorded"].shape[1]
    at = {(int(e), int(s)): row for row, (e, s) in enumerate(zip(own["episode"], own["step"], strict=True))}
    rewards = {e: target.read(e, [REWARD])[REWARD].astype(float) for e in {int(e) for e in own["episode"]}}
    current, following, sums, discounts = [], [], [], []
    for (episode, step), row in at.items():
        part = rewards[episode][step : step + horizon]
        after = at.get((episode, step + horizon))
        current.append(row)
        following.append(row if after is None else after)
        sums.append(float(part @ DISCOUNT ** np.arange(len(part))))
        discounts.append(0.0 if after is None else DISCOUNT**horizon)
    return np.array(current), np.array(following), np.array(sums), np.array(discounts)
