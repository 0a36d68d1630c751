"""Where the target moves otherwise than the data a checkpoint was trained on: H2O's dynamics gap, in states."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robopolicy import checkpoint
from robopolicy.data.episodes import EpisodeStore
from robopolicy.data.manage import select_episodes
from robopolicy.evaluation.rollout import Arm
from robopolicy.ope.estimate import Estimate
from robopolicy.selection.acts import decision_rows
from robopolicy.selection.features import training_data
from robopolicy.spec import ACTION, STATE

STEPS = 400  # of training the classifiers


def dynamics_gaps(
    arms: Sequence[Arm], target: EpisodeStore, num_decisions: int, seed: int
) -> tuple[dict[str, Estimate], list[dict[str, Any]]]:
    """({checkpoint: minus the gap in nats}, a line for each training data: the gap, its null, AUROC of both classifiers).

    Of observation.state before and after the executed steps, so that no difference in looks is taken for one in dynamics.
    Checkpoints with the same training data and rate of decisions share it.
    """
    from robopolicy.ope.dynamics_gap import GapConfig, dynamics_gap
    from robopolicy.ope.networks import one_thread

    found: dict[str, Estimate] = {}
    known: dict[str, Estimate] = {}
    lines = []
    for arm in arms:
        store, where = training_data(arm)
        horizon = int(checkpoint.describe(arm.checkpoint)[1]["spec"]["execute_horizon"])
        key = json.dumps([store.hash, dict(where), horizon], sort_keys=True, default=str)
        if key not in known:
            why = _unlike(store, target)
            if why:
                known[key] = Estimate.refuse(why)
            else:
                sides = [(store, select_episodes(store, where)), (target, range(len(target)))]
                try:
                    with one_thread():
                        ours, its = (state_transitions(s, list(e), horizon, num_decisions, seed) for s, e in sides)
                        gap = dynamics_gap(ours, its, GapConfig(steps=STEPS, seed=seed))
                    known[key] = gap.estimate
                    line = {
                        "data": f"{store.path.name} ({store.hash[:12]})",
                        "execute_horizon": horizon,
                        "gap": gap.estimate.to_dict(),
                    }
                    lines.append({**line, "null": gap.null.to_dict(), "auroc": list(gap.auroc)})
                except ValueError as error:
                    known[key] = Estimate.refuse(str(error))
        estimate = known[key]
        found[arm.name] = Estimate(-estimate.value, estimate.sd, estimate.n_eff, estimate.applicable, estimate.reason)
    return found, lines


def _unlike(store: EpisodeStore, target: EpisodeStore) -> str:
    for key in (STATE, ACTION):
        for data in (store, target):
            if key not in data.spec.features:
                return f"{data.path} has no {key}"
        ours, its = (data.spec.features[key].shape for data in (store, target))
        if ours != its:
            return f"{key} has shape {list(its)} on the target and {list(ours)} in {store.path}"
    return ""


def state_transitions(store: EpisodeStore, episodes: Sequence[int], horizon: int, most: int, seed: int) -> Any:
    """`Transitions` of states over `horizon` executed actions, in up to `most` decisions of whole episodes; rewards 0.

    Raises:
        ValueError: no episode is longer than the horizon.
    """
    from robopolicy.ope.transitions import Transitions

    lengths = store.lengths[np.asarray(episodes)]
    rows = decision_rows(lengths, horizon, most, seed)
    owner = np.repeat(np.arange(len(lengths)), lengths)[rows]
    step = rows - (np.cumsum(lengths) - lengths)[owner]
    data: Mapping[int, Any] = {i: store.read(int(episodes[i]), [STATE, ACTION]) for i in np.unique(owner).tolist()}
    pairs = [(int(i), int(s)) for i, s in zip(owner, step, strict=True) if s + horizon < lengths[i]]
    if not pairs:
        raise ValueError(f"no episode of {store.path} is longer than the {horizon} steps between decisions")
    before, after = (np.stack([data[i][STATE][s + h] for i, s in pairs]) for h in (0, horizon))
    chunks = np.stack([data[i][ACTION][s : s + horizon] for i, s in pairs])
    none = np.zeros(len(pairs))
    return Transitions.of(before, chunks, none, after, none + 1.0, [i for i, _ in pairs])
