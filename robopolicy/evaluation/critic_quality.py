"""How good a critic is, measured on branched rollouts: there the value of every chunk is known, not learned.

What steering needs is the order of chunks in one state. A critic can predict outcomes well from the state alone (a high
AUROC, a small error) and still know nothing of the chunk; so the correlation `within` states decides, never a TD loss.
One half of the episodes chooses a run's checkpoint, the other one says from which predicted gain on it is followed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from robopolicy.checkpoint import describe
from robopolicy.data.branches import Branches, BranchWindows
from robopolicy.evaluation.proof import LEVEL
from robopolicy.files import atomic_write
from robopolicy.models.critic import ChunkCritic
from robopolicy.policies.load import load_critic
from robopolicy.policies.selection import Selection, select
from robopolicy.spec import PROGRESS, RISK, TASK, Array

FILE = "quality.json"
BINS = 10
NEVER = 1e9  # a gain that no critic predicts
ROWS = 256  # states scored at a time
MIN_STATES = 20  # fewer prove nothing
FLIPS = 2000  # draws of the signs of the episodes' gains


@dataclass(frozen=True)
class Quality:
    """A critic beside the truth of S states with K chunks each. NaN where no state tells chunks apart.

    within: correlation over chunks of what values and worths deviate from their state's mean, all states together: a state
        counts as much as its chunks differ. spearman: rank correlation over the chunks of a state, mean of the states where
        chunks differ; its standard error.
    num_states: such states. pairs: share of pairs of chunks of unequal worth that it orders rightly, ties count half.
    captured: (chosen - candidate 0) / (best - candidate 0) of mean worth, when the default rule chooses; NaN for risks.
    overall: rank correlation over all states and chunks together. bias: mean of value minus worth.
    sensitivity: spread of its values over chunks of a state beside that over states. truth_sensitivity: the same of worths.
    calibration: {"value", "worth", "count"} of equally full bins of its values. error: mean |value - worth| of those bins.
    min_gain: predicted gain from which on following the critic is shown to help, see `proven_gain`; None = it is not.
    """

    within: float
    spearman: float
    spearman_error: float
    num_states: int
    pairs: float
    captured: float
    overall: float
    bias: float
    sensitivity: float
    truth_sensitivity: float
    calibration: dict[str, list[float]]
    error: float
    min_gain: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; what is not finite is None."""
        return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in asdict(self).items()}


def branch_scores(critic: ChunkCritic, branches: Branches) -> Array:
    """Values float32 [E, S, K] of the branches' chunks."""
    spec = critic.spec
    windows = BranchWindows(branches, tuple(spec.observation), spec.obs_horizon, spec.execute_horizon)
    parts = []
    for states in np.array_split(np.arange(len(branches)), -(-len(branches) // ROWS)):
        observation = windows.observations(states)
        parts.append(critic.score(critic.encode(observation), branches.candidates[states][:, :, : spec.execute_horizon]))
    return np.concatenate(parts, 1)


def quality(scores_ESK: Array, worth_SK: Array, selection: Selection | None = None) -> Quality:
    """How well scores [E, S, K] order and predict the chunks' worth [S, K] in [0, 1]."""
    values = scores_ESK.mean(0).astype(np.float64)
    telling = worth_SK.std(1) > 0
    rhos = row_correlation(*(rankdata(x[telling], axis=1) for x in (values, worth_SK)))
    chosen = select(scores_ESK, selection or Selection(), np.random.default_rng(0))
    first, best = worth_SK[:, 0].mean(), worth_SK.max(1).mean()
    got = np.take_along_axis(worth_SK, chosen[:, None], 1).mean()
    flat_values, flat_worth = values.reshape(-1), worth_SK.reshape(-1)
    bins = np.array_split(np.argsort(flat_values, kind="stable"), min(BINS, len(flat_values)))
    means = [(float(flat_values[b].mean()), float(flat_worth[b].mean()), float(len(b))) for b in bins]
    calibration = {name: [row[i] for row in means] for i, name in enumerate(("value", "worth", "count"))}
    return Quality(
        within=_within(values, worth_SK),
        spearman=float(rhos.mean()) if len(rhos) else float("nan"),
        spearman_error=float(rhos.std(ddof=1) / len(rhos) ** 0.5) if len(rhos) > 1 else float("nan"),
        num_states=int(telling.sum()),
        pairs=_ordered_pairs(values[telling], worth_SK[telling]),
        captured=float((got - first) / (best - first)) if best > first else float("nan"),
        overall=float(row_correlation(rankdata(flat_values)[None], rankdata(flat_worth)[None])[0]),
        bias=float((flat_values - flat_worth).mean()),
        sensitivity=_sensitivity(values),
        truth_sensitivity=_sensitivity(worth_SK),
        calibration=calibration,
        error=float(np.average([abs(v - w) for v, w, _ in means], weights=[n for _, _, n in means])),
    )


def proven_gain(scores_ESK: Array, worth_SK: Array, episodes_S: Array, selection: Selection | None = None) -> float | None:
    """The predicted gain over candidate 0 above which the chosen chunks were better than it, by a test of permutations.

    Of all such thresholds the one with the largest gain in total. None where there is none, or fewer than MIN_STATES states
    are left by each. Heads agree on errors that they share, and a policy's own best guess is often better than what is drawn
    around it: a critic that was not shown to know more than the policy should leave it alone.

    Many thresholds are tried, and states of one episode are alike. So a gain is proven where its t is above the 1 - LEVEL
    quantile of the largest t of any threshold, with the signs of whole episodes' gains drawn at random.

    Args:
        scores_ESK, worth_SK: see `quality`. episodes_S: the episode of each state.
    """
    rule = replace(selection or Selection(), rule="lcb", min_gain=0.0)
    best = select(scores_ESK, rule, np.random.default_rng(0))
    rows = np.flatnonzero(best)
    if len(rows) < MIN_STATES:
        return None
    predicted = (scores_ESK[:, rows, best[rows]] - scores_ESK[:, rows, 0]).mean(0)
    order = np.argsort(-predicted, kind="stable")
    gained = (worth_SK[rows, best[rows]] - worth_SK[rows, 0])[order]
    clusters = np.unique(episodes_S[rows][order], return_inverse=True)[1]
    sums = np.where(clusters == np.arange(clusters.max() + 1)[:, None], gained, 0.0).cumsum(1)  # [episodes, thresholds]
    norms = np.sqrt((sums**2).sum(0))
    shares = (sums / np.where(norms > 0, norms, 1.0))[:, MIN_STATES - 1 :]
    signs = np.random.default_rng(0).choice((-1.0, 1.0), (FLIPS, len(shares)))
    least = np.quantile((signs @ shares).max(1), 1 - LEVEL, method="higher")
    proven = shares.sum(0) > least + 1e-9
    if not proven.any():
        return None
    last = MIN_STATES - 1 + int(np.where(proven, sums.sum(0)[MIN_STATES - 1 :], -np.inf).argmax())
    return max(float(predicted[order[last]]) * (1 - 1e-6), 0.0)


def row_correlation(a: Array, b: Array) -> Array:
    """Pearson correlation [n] of the rows of [n, K] arrays; 0 where a row is constant."""
    a, b = (x - x.mean(1, keepdims=True) for x in (a, b))
    norm = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return (a * b).sum(1) / np.where(norm > 0, norm, 1.0)


def _within(values: Array, worth: Array) -> float:
    deviations = (values - values.mean(1, keepdims=True), worth - worth.mean(1, keepdims=True))
    return float(row_correlation(*(x.reshape(1, -1) for x in deviations))[0]) if worth.std(1).any() else float("nan")


def _ordered_pairs(values: Array, worth: Array) -> float:
    truth, guess = (np.sign(x[:, :, None] - x[:, None, :]) for x in (worth, values))
    asked = truth != 0
    return float((1 + (truth * guess)[asked].mean()) / 2) if asked.any() else float("nan")


def _sensitivity(values: Array) -> float:
    between = values.mean(1).std()
    return float(values.std(1).mean() / between) if between > 0 else float("nan")


def worth(critic: ChunkCritic, branches: Branches, data: Mapping[str, Any] | None = None) -> Array:
    """What came of the branches' chunks [S, K], in what the critic predicts.

    Discounted progress, or discounted success; of one of risk how often something unsafe happened, with the events and the
    event_horizon of its `data` (conf/train.yaml).
    """
    if critic.role == RISK:
        return branches.unsafe((data or {}).get("events"), (data or {}).get("event_horizon")).mean(2)
    if PROGRESS in critic.extra_keys:
        return branches.progress_values(critic.gamma).mean(2)
    return branches.values(critic.gamma)


def check_branches(critic: object, branches: Branches, data: Mapping[str, Any] | None = None) -> ChunkCritic:
    """The critic, where the branches can judge it. data: see `worth`.

    Raises:
        ValueError: another kind of critic, or branches that lack what it looks at, executes or predicts.
    """
    if not isinstance(critic, ChunkCritic):
        raise ValueError(f"branches judge critics of chunks (critic=success, progress, iql, ...), no {type(critic).__name__}")
    spec = critic.spec
    have = ",".join(sorted(branches.observation.keys() - {TASK}))
    for key in spec.observation:
        if key not in branches.observation:
            raise ValueError(
                f"the critic looks at {key!r}, which the branches (data.branches) do not have: give it what they have, e.g. "
                f"inputs.observation_keys=[{have}], or branch with observation=[...]"
            )
        seen = branches.spec.features.get(key)
        if seen is not None and seen.shape != spec.observation[key].shape:
            raise ValueError(f"the critic looks at {key!r} of {spec.observation[key].shape}, the branches have {seen.shape}")
    if branches.spec.fps != spec.control_hz:
        raise ValueError(
            f"the critic scores steps at {spec.control_hz} Hz, those of the branches are at {branches.spec.fps} Hz"
        )
    if branches.spec.action.shape != spec.action.shape:
        mine, theirs = spec.action.shape[0], branches.spec.action.shape[0]
        raise ValueError(f"the critic scores actions of {mine} entries, those of the branches have {theirs}")
    BranchWindows(branches, tuple(spec.observation), spec.obs_horizon, spec.execute_horizon)
    worth(critic, branches, data)
    return critic


def check_unseen(trained_on: Branches, judges: Branches) -> None:
    """Raises ValueError where the branches that a critic is trained on and those that judge it are of the same episodes."""
    worlds = ("env_id", "env_kwargs")
    if any(trained_on.facts.get(name) != judges.facts.get(name) for name in worlds):
        return
    shared = np.intersect1d(trained_on.seeds, judges.seeds)
    if len(shared):
        raise ValueError(
            f"data.path and data.branches share {len(shared)} episodes: a critic knows what it was trained on; "
            "branch others to judge it by, with another seed"
        )


def judge(checkpoints: Sequence[Path], branches: Branches, file: Path | None = None) -> dict[str, Quality]:
    """{folder name: its quality} of critics' checkpoints, written to `file` as JSON where one is given.

    One half of the episodes gives all figures, by which a checkpoint is chosen, and the other one `min_gain`, of which a critic
    of risk has none: it chooses no chunks.

    Raises:
        ValueError: see `check_branches`.
    """
    found = {folder.name: _judged(folder, *branches.split(0.5)) for folder in checkpoints}
    if file is not None:
        facts = {"branches": branches.hash, "policy": branches.facts.get("checkpoint_sha")}
        content = {**facts, "checkpoints": {name: each.to_dict() for name, each in found.items()}}
        atomic_write(file, (json.dumps(content, indent=1) + "\n").encode())
    return found


def _judged(folder: Path, choosing: Branches, proving: Branches) -> Quality:
    data = describe(folder)[0].get("data") or {}
    critic = check_branches(load_critic(folder), choosing, data)
    found = quality(branch_scores(critic, choosing), worth(critic, choosing, data))
    if critic.role == RISK:
        return replace(found, captured=float("nan"))
    if not len(proving):
        return found
    return replace(found, min_gain=proven_gain(branch_scores(critic, proving), worth(critic, proving), proving.seeds))


def measured_gain(checkpoint: Path, file: Path, policy_sha: str) -> float:
    """`min_gain` of a checkpoint for a policy: what was measured; 0 where nothing was measured.

    NEVER where nothing was proven, or branches of another policy were judged.
    """
    content = json.loads(file.read_text()) if file.is_file() else {"checkpoints": {}}
    found = content["checkpoints"].get(checkpoint.name)
    if found is None:
        return 0.0
    return NEVER if found["min_gain"] is None or content.get("policy") != policy_sha else float(found["min_gain"])


def best_checkpoint(checkpoints: Sequence[Path], file: Path, by: str = "within") -> Path:
    """The checkpoint with the highest correlation within states in `file`; the last one where nothing was measured.

    Rank correlation (what there is in files of before) counts all states alike: it hardly told a critic that harmed its policy
    from one that helped, see docs/results.md.

    Args:
        by: the figure of Quality that decides.
    """
    if not file.is_file():
        return checkpoints[-1]
    measured = json.loads(file.read_text())["checkpoints"]
    known = {name: each.get(by, each.get("spearman")) for name, each in measured.items()}
    judged = [folder for folder in checkpoints if known.get(folder.name) is not None]
    return max(judged, key=lambda folder: known[folder.name]) if judged else checkpoints[-1]
