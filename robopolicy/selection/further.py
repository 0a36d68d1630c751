"""Further scores of a pool beside simulated success and distance: each larger = better, or not computed, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from robopolicy import pipeline
from robopolicy.ope.estimate import Estimate
from robopolicy.ranking.detectors import Disagreement, evidence
from robopolicy.ranking.pessimism import kl_robust
from robopolicy.ranking.tables import RankingError
from robopolicy.selection import acted
from robopolicy.selection.acts import pool_acts
from robopolicy.selection.certified import certified, check_noise
from robopolicy.selection.features import Arrays, policy_outputs, pool_features
from robopolicy.selection.gap import dynamics_gaps
from robopolicy.selection.pool import Played, Pool, Work
from robopolicy.selection.suite import FrozenSuite
from robopolicy.selection.target import StoreTarget, Target
from robopolicy.spec import did_you_mean

KL_RADIUS = 0.1  # nats
SIMULATED = ("kl_robust", "certified")
OBSERVED = ("disagreement",)  # need target observations
ACTED = ("support", "action_error", "critic", "fqe", "opc", "soft_opc", "amq", "dynamics_gap")  # need its actions too
FURTHER = (*SIMULATED, *OBSERVED, *ACTED)


@dataclass
class Further:
    """estimates: {score: {checkpoint: Estimate}}, values larger = better. facts: what scores say beside, plain data."""

    estimates: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """{score: {checkpoint: value}} of what could be computed."""
        known = {
            name: {checkpoint: e.value for checkpoint, e in found.items() if e.applicable and np.isfinite(e.value)}
            for name, found in self.estimates.items()
        }
        return {name: values for name, values in known.items() if values}

    @property
    def missing(self) -> dict[str, str]:
        """{score: for how many checkpoints it was not computed, and why not for the first}."""
        found = {}
        for name, estimates in self.estimates.items():
            refused = [e.reason for _, e in sorted(estimates.items()) if not (e.applicable and np.isfinite(e.value))]
            if refused:
                found[name] = (
                    f"n/a for {len(refused)} of {len(estimates)} checkpoints: {refused[0] or 'its value is not finite'}"
                )
        return found

    @property
    def statistics(self) -> dict[str, Any]:
        """All of it for Ranking.statistics."""
        if not self.estimates:
            return {}
        each = {name: {c: e.to_dict() for c, e in found.items()} for name, found in self.estimates.items()}
        return {"estimates": each, **self.facts}


def check(settings: Mapping[str, Any]) -> None:
    """Refuse unknown scores, and those that lack a setting."""
    for name in settings["also"]:
        if name not in FURTHER:
            raise RankingError(f"also has {name!r}; {did_you_mean(name, FURTHER)}")
    if "critic" in settings["also"] and not settings["value_critic"]:
        raise RankingError("also=[critic] needs a critic: give value_critic=RUN or CHECKPOINT")
    if settings["value_critic"]:
        pipeline.find_checkpoints(settings["value_critic"])  # raises where there is none
    if "certified" in settings["also"]:
        check_noise(settings["noise"], settings["noise_budget"])


def further_scores(
    settings: Mapping[str, Any],
    pool: Pool,
    suite: FrozenSuite,
    played: Played,
    target: Target | None,
    path: Path | None,
    reference: Path | None,
    work: Work,
) -> Further:
    """The scores that settings["also"] names. path, reference: where those observations are (target.prepare)."""
    found, wanted = Further(), settings["also"]
    if "kl_robust" in wanted:
        found.estimates["kl_robust"] = _robust(played.select)
    if "certified" in wanted:
        staying = [arm.name for arm in pool.arms if arm.name not in played.dropped]
        estimates, lines = certified(pool, staying, suite, work, settings["noise"], settings["noise_budget"])
        found.estimates["certified"] = estimates
        found.facts["certificates"] = {"noise": dict(settings["noise"]), "budget": settings["noise_budget"], "lines": lines}
    if "disagreement" in wanted:
        found.estimates["disagreement"] = _disagreement(settings, pool, path, reference, work)
    if set(ACTED) & set(wanted):
        _with_actions(found, settings, pool, target, work)
    return found


def _all(pool: Pool, why: str) -> dict[str, Estimate]:
    return {arm.name: Estimate.refuse(why) for arm in pool.arms}


def _robust(episodes: pa.Table) -> dict[str, Estimate]:
    owner, progress = (np.array(episodes[key].to_pylist()) for key in ("checkpoint", "progress"))
    return {str(name): kl_robust(progress[owner == name].astype(float), KL_RADIUS) for name in np.unique(owner)}


def _disagreement(
    settings: Mapping[str, Any], pool: Pool, path: Path | None, reference: Path | None, work: Work
) -> dict[str, Estimate]:
    """Minus how much more the training seeds of a configuration differ on the target than in simulation, at equal step."""
    if path is None:
        return _all(pool, "no target was given")
    members: dict[tuple[str, int], list[str]] = {}
    for arm in pool.arms:
        members.setdefault((pool.configs[arm.name], arm.step), []).append(arm.name)
    found = _all(
        pool, "the pool has one training seed of its configuration at its step: an ensemble needs 2, e.g. train.seed=0,1,2 -m"
    )
    ensembles = [sorted(names) for names in members.values() if len(names) > 1]
    if not ensembles:
        return found
    options: dict[str, Any] = {key: settings[key] for key in ("num_frames", "seed", "num_workers")}
    options |= {"make": policy_outputs, "reference": reference}
    arms = [pool.arm(name) for names in ensembles for name in names]
    folder = Path(settings["out"]) / "outputs"
    outputs = pool_features(arms, path, folder=folder, executor=work.executor, shas=pool.shas, **options)
    for names in ensembles:
        found |= dict.fromkeys(names, seeds_disagree([outputs[name] for name in names]))
    return found


def seeds_disagree(outputs: Sequence[Arrays]) -> Estimate:
    """Minus the effect size of an ensemble's disagreement on the target. outputs: features.policy_outputs of each member."""
    fit, calibration, target = (np.stack([own[part] for own in outputs]) for part in ("fit", "calibration", "target"))
    try:
        detector = Disagreement().fit(fit)
        size = evidence(detector.score(target), detector.score(calibration)).effect_size
    except ValueError as error:
        return Estimate.refuse(str(error))
    if not np.isfinite(size):
        return Estimate.refuse("the members differ alike on all simulated hold-out observations: no spread to compare with")
    return Estimate(-size, float("nan"), float(target.shape[1]), True, f"shared by {len(outputs)} seeds")


def _with_actions(found: Further, settings: Mapping[str, Any], pool: Pool, target: Target | None, work: Work) -> None:
    wanted = [name for name in settings["also"] if name in ACTED]
    if not isinstance(target, StoreTarget):
        why = "no target was given" if target is None else "target has no actions: give a dataset"
        found.estimates |= {name: _all(pool, why) for name in wanted}
        return
    store, seed, out = target.store, settings["seed"], Path(settings["out"]).absolute()
    if "dynamics_gap" in wanted:
        estimates, lines = dynamics_gaps(pool.arms, store, settings["num_decisions"], seed)
        found.estimates["dynamics_gap"], found.facts["dynamics_gap"] = estimates, lines
    if set(wanted) <= {"dynamics_gap"}:
        return
    critic = pipeline.find_checkpoints(settings["value_critic"])[-1].checkpoint if settings["value_critic"] else None
    drawn = (settings["num_decisions"], seed, critic)
    acts = pool_acts(pool.arms, pool.shas, store, *drawn, work.num_workers, out / acted.ACTS, work.executor)
    alone = {"support": acted.support, "action_error": acted.imitation, "critic": acted.critic_value}
    found.estimates |= {name: acted.each(score, acts) for name, score in alone.items() if name in wanted}
    if {"fqe", "opc", "soft_opc"} & set(wanted):
        valued = acted.off_policy(acts, store, seed)
        found.estimates |= {name: estimates for name, estimates in valued.items() if name in wanted}
    if "amq" in wanted:
        arms = {arm.name: arm for arm in pool.arms}
        judge = partial(acted.amq_scores, arms, pool.shas, acts, store, seed, out)
        found.estimates["amq"] = judge(num_workers=work.num_workers, executor=work.executor)
