"""From a dataset to the monitor that watches a deployed policy: the ranker's detector, calibrated on whole episodes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.data.episodes import EpisodeStore
from robopolicy.data.manage import select_episodes
from robopolicy.data.windows import Windows
from robopolicy.deploy.monitor import Monitor, episode_statistic
from robopolicy.evaluation.features import BATCH
from robopolicy.policies.base import TrainablePolicy
from robopolicy.policies.steering import last_frames
from robopolicy.ranking.detectors import Mahalanobis
from robopolicy.spec import Array, Observation, Policy

log = logging.getLogger(__name__)

MAX_ROWS = 4000  # frames that the detector is fitted on


def encoder_of(policy: Policy) -> tuple[TrainablePolicy, Callable[[Observation], Array]]:
    """The trained policy inside `policy` (steered, exported), and its features [B, D] of what `policy` observes.

    Raises:
        ValueError: there is none, or it has no features.
    """
    inner: Any = policy
    while not isinstance(inner, TrainablePolicy) and hasattr(inner, "policy"):
        inner = inner.policy
    if not isinstance(inner, TrainablePolicy) or "features" not in inner.spec.capabilities:
        raise ValueError(f"a monitor looks at the features of a policy's encoder, and {type(inner).__name__} offers none")
    spec = inner.spec
    return inner, lambda observation: inner.features(last_frames(observation, spec.observation, spec.obs_horizon))


def fit_monitor(policy: TrainablePolicy, windows: Windows, patience: int) -> Monitor:
    """A monitor of episodes in distribution: every second one fits the detector, the others calibrate it, decision by decision.

    windows: of the policy's observation keys and obs_horizon, one action. patience: decisions in a row that count.

    Raises:
        ValueError: fewer than 4 episodes, or features that are all constant.
    """
    if len(windows.episodes) < 4:
        raise ValueError(f"a monitor needs episodes to fit and others to calibrate on, given {len(windows.episodes)}")
    starts = np.concatenate([[0], np.cumsum(windows.lengths)])
    rows = [np.arange(first, end) for first, end in pairwise(starts)]
    fit = np.concatenate(rows[::2])
    detector = Mahalanobis().fit(_features(policy, windows, fit[:: max(1, -(-len(fit) // MAX_ROWS))]))
    decisions = [episode[:: policy.spec.execute_horizon] for episode in rows[1::2]]
    scores = detector.score(_features(policy, windows, np.concatenate(decisions)))
    episodes = np.split(scores, np.cumsum([len(d) for d in decisions])[:-1])
    standard = detector.standard
    return Monitor(
        mean=standard.mean,
        std=standard.std,
        alive=standard.alive,
        whiten=np.linalg.inv(detector.factor),
        calibration=np.array([episode_statistic(episode, patience) for episode in episodes]),
        patience=patience,
    )


def make_monitor(policy: TrainablePolicy, settings: Mapping[str, Any]) -> Monitor | None:
    """The monitor that conf/deploy.yaml's `monitor` asks for: from its file, else fitted on its data and written there.

    Raises:
        ValueError: the file is no monitor, or does not fit the policy.
    """
    file, data = settings["file"], settings["data"]
    if file and Path(file).exists():
        monitor = Monitor.load(file)
    elif data:
        store = EpisodeStore(data)
        episodes = select_episodes(store, settings["where"] or {})
        chosen = episodes[:: max(1, -(-len(episodes) // settings["episodes"]))]
        windows = Windows(store, tuple(policy.spec.observation), policy.spec.obs_horizon, 1, episodes=chosen)
        monitor = fit_monitor(policy, windows, settings["patience"])
        monitor.band()  # refused here if there are too few
        if file:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            monitor.save(file)
    elif file:
        raise ValueError(f"no monitor at {file}: give monitor.data=<dataset like what the policy was trained on> to make one")
    else:
        return None
    band = ", ".join(f"{level} {score:.3g}" for level, score in monitor.band().items())
    log.info("monitor of %d calibration episodes: %s", len(monitor.calibration), band)
    return monitor


def _features(policy: TrainablePolicy, windows: Windows, rows: Array) -> Array:
    parts = []
    for start in range(0, len(rows), BATCH):
        batch = windows.batch(rows[start : start + BATCH])
        parts.append(policy.features({key: batch[key] for key in policy.spec.observation}))
    return np.concatenate(parts)
