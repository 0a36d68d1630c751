"""Further scores of a pool beside simulated success and distance: each larger = better, or not computed, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from robopolicy.data.episodes import EpisodeStore
from robopolicy.ope.estimate import Estimate, clustered_mean
from robopolicy.ranking.imitation import action_error
from robopolicy.ranking.pessimism import kl_robust
from robopolicy.ranking.support import ActionSupport
from robopolicy.ranking.tables import RankingError
from robopolicy.selection.acts import Acts
from robopolicy.spec import REWARD, did_you_mean

KL_RADIUS = 0.1  # nats
MIN_LEVEL = 1e-6  # distance between demonstrators, in standard deviations
FQE_STEPS, FQE_HIDDEN, FQE_BATCH, DISCOUNT = 1500, 64, 128, 0.99
SIMULATED = ("kl_robust",)
ACTED = ("support", "action_error", "critic", "fqe")  # need target data with actions
FURTHER = (*SIMULATED, *ACTED)


@dataclass
class Further:
    """scores: {name: {checkpoint: value}}, larger = better. missing: {name: why it was not computed}."""

    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def check(wanted: Sequence[str], critic: str | None) -> None:
    """Refuse unknown scores, and the critic's without a critic."""
    for name in wanted:
        if name not in FURTHER:
            raise RankingError(f"also has {name!r}; {did_you_mean(name, FURTHER)}")
    if "critic" in wanted and not critic:
        raise RankingError("also=[critic] needs a critic: give value_critic=RUN or CHECKPOINT")


def simulated(wanted: Sequence[str], episodes: pa.Table) -> Further:
    """Scores that need simulated episodes alone."""
    found = Further()
    if "kl_robust" in wanted:
        owner, success = (np.array(episodes[key].to_pylist()) for key in ("checkpoint", "success"))
        found.scores["kl_robust"] = {
            str(name): kl_robust(success[owner == name].astype(float), KL_RADIUS).value for name in np.unique(owner)
        }
    return found


def acted(wanted: Sequence[str], acts: Mapping[str, Acts], target: EpisodeStore, seed: int) -> Further:
    """Scores that need target data with actions. acts: acts.policy_acts of every checkpoint."""
    found = Further()
    each: dict[str, Callable[[Acts], Estimate]] = {"support": _support, "action_error": _action_error, "critic": _critic}
    for name, score in each.items():
        if name not in wanted:
            continue
        estimates = {}
        for checkpoint, own in acts.items():
            try:
                estimates[checkpoint] = score(own)
            except ValueError as error:
                estimates[checkpoint] = Estimate.refuse(str(error))
        _take(found, name, estimates)
    if "fqe" in wanted:
        _fqe(found, acts, target, seed)
    return found


def _take(found: Further, name: str, estimates: Mapping[str, Estimate]) -> None:
    known = {checkpoint: e.value for checkpoint, e in estimates.items() if e.applicable and np.isfinite(e.value)}
    reasons = sorted({e.reason for e in estimates.values() if not e.applicable})
    if known:
        found.scores[name] = known
    if reasons:
        found.missing[name] = f"of {len(estimates) - len(known)} of {len(estimates)} checkpoints: {reasons[0]}"


def _support(own: Acts) -> Estimate:
    """Minus how far from demonstrated actions the policy acts, in units of the demonstrators' own distance."""
    support = ActionSupport().fit(own["features"], own["recorded"], own["episode"])
    if support.level < MIN_LEVEL:
        return Estimate.refuse("demonstrators of different episodes act alike to the last bit: no distance to compare with")
    found = support.score(own["features"], own["chunks"][:, 0], own["episode"]).score
    return Estimate(-found.value, found.sd, found.n_eff)


def _action_error(own: Acts) -> Estimate:
    scale = own["recorded"].reshape(-1, own["recorded"].shape[-1]).std(axis=0)
    found = action_error(
        own["chunks"][:, 0], own["recorded"], np.where(scale > 0, scale, 1.0), is_pad=own["is_pad"], episode=own["episode"]
    )
    return Estimate(-found.value, found.sd, found.n_eff)


def _critic(own: Acts) -> Estimate:
    return Estimate(*clustered_mean(own["value"], own["episode"]))


def _fqe(found: Further, acts: Mapping[str, Acts], target: EpisodeStore, seed: int) -> None:
    """Fitted Q evaluation of all checkpoints side by side, on the features of the first one's encoder."""
    from robopolicy.ope.fqe import FQEConfig, fqe
    from robopolicy.ope.transitions import Transitions

    if REWARD not in target.spec.features:
        found.missing["fqe"] = f"{target.path} has no rewards ({REWARD})"
        return
    first = acts[min(acts)]
    horizon = first["recorded"].shape[1]
    same = [name for name, own in acts.items() if own["recorded"].shape == first["recorded"].shape]
    if len(same) < len(acts):
        found.missing["fqe"] = "the checkpoints decide at different rates, so they share no decisions"
        return
    try:
        current, following, rewards, discounts = decisions(first, target, horizon)
        z = first["features"]
        data = Transitions.of(
            z[current],
            first["recorded"][current],
            rewards,
            z[following],
            discounts,
            first["episode"][current],
            first["step"][current] == 0,
        )
        starts = first["step"][current] == 0
        policies = {name: (own["chunks"][following], own["chunks"][current][starts]) for name, own in acts.items()}
        result = fqe(data, policies, FQEConfig(steps=FQE_STEPS, hidden=FQE_HIDDEN, batch_size=FQE_BATCH, seed=seed))
    except ValueError as error:
        found.missing["fqe"] = str(error)
        return
    _take(found, "fqe", result.estimates)


def decisions(own: Acts, target: EpisodeStore, horizon: int) -> tuple[np.ndarray, ...]:
    """Rows of decisions and of those that follow, discounted rewards between them, and the discounts; at an end 0."""
    at = {(int(e), int(s)): row for row, (e, s) in enumerate(zip(own["episode"], own["step"], strict=True))}
    rewards = {e: target.read(e, [REWARD])[REWARD].astype(float) for e in {int(e) for e in own["episode"]}}
    current, following, sums, discounts = [], [], [], []
    for (episode, step), row in at.items():
        part = rewards[episode][step : step + horizon]
        last = step + horizon >= len(rewards[episode])
        if not last and (episode, step + horizon) not in at:
            continue  # it was not drawn
        current.append(row)
        following.append(row if last else at[episode, step + horizon])
        sums.append(float(part @ DISCOUNT ** np.arange(len(part))))
        discounts.append(0.0 if last else DISCOUNT**horizon)
    return np.array(current), np.array(following), np.array(sums), np.array(discounts)


def merged(*parts: Further) -> Further:
    """All of several."""
    whole: dict[str, Any] = {"scores": {}, "missing": {}}
    for part in parts:
        whole["scores"] |= part.scores
        whole["missing"] |= part.missing
    return Further(**whole)
