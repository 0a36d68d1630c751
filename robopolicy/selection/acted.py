"""Scores of checkpoints at the target's recorded actions and rewards: support, imitation, critics, off-policy evaluation.

Each gives {checkpoint: Estimate}, larger = better; what cannot be computed is an Estimate that says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.data.episodes import EpisodeStore
from robopolicy.evaluation.rollout import Arm
from robopolicy.ope.estimate import Estimate, clustered_mean
from robopolicy.policies.load import load_policy
from robopolicy.ranking.imitation import action_error
from robopolicy.ranking.opc import opc, soft_opc
from robopolicy.ranking.support import ActionSupport
from robopolicy.selection.acts import Acts, between
from robopolicy.selection.features import kept_arrays
from robopolicy.spec import REWARD, SUCCESS, Array

Estimates = dict[str, Estimate]
FQE_SETTINGS: dict[str, Any] = {  # quicker than the library's defaults; it ends early when the values have settled
    **{"steps": 3000, "hidden": 64, "batch_size": 128, "learning_rate": 1e-3},
    **{"polyak": 0.02, "check_every": 250, "tolerance": 1e-2},
}
DYNAMICS_SETTINGS: dict[str, Any] = {"steps": 2000, "hidden": 128, "batch_size": 128}
AMQ_HORIZON = 5  # decisions
ACTS, AMQ = "acts", "amq"  # folders of the ranking's


def each(score: Callable[[Acts], Estimate], acts: Mapping[str, Acts]) -> Estimates:
    """A score of every checkpoint by itself."""
    found = {}
    for name, own in acts.items():
        try:
            found[name] = score(own)
        except ValueError as error:
            found[name] = Estimate.refuse(str(error))
    return found


def support(own: Acts) -> Estimate:
    """Minus how far from demonstrated actions the policy acts, in units of the demonstrators' own distance."""
    fitted = ActionSupport().fit(own["features"], own["recorded"], own["episode"])
    found = fitted.score(own["features"], own["chunks"][:, 0], own["episode"]).score
    return Estimate(-found.value, found.sd, found.n_eff)


def imitation(own: Acts) -> Estimate:
    """Minus the error of the policy's chunks on recorded ones."""
    scale = own["recorded"].reshape(-1, own["recorded"].shape[-1]).std(axis=0)
    options = {"is_pad": own["is_pad"], "episode": own["episode"]}
    found = action_error(own["chunks"][:, 0], own["recorded"], np.where(scale > 0, scale, 1.0), **options)
    return Estimate(-found.value, found.sd, found.n_eff)


def critic_value(own: Acts) -> Estimate:
    """What a critic says of the policy's chunks."""
    return Estimate(*clustered_mean(own["value"], own["episode"]))


def off_policy(acts: Mapping[str, Acts], target: EpisodeStore, seed: int) -> dict[str, Estimates]:
    """{"fqe", "opc", "soft_opc"}: fitted Q evaluation of all checkpoints side by side, on the features of the first one's
    encoder, and how well the Q fitted to each policy tells the actions of successes, asked of members that did not see them.
    """
    from robopolicy.ope.fqe import FQEConfig, fqe
    from robopolicy.ope.networks import one_thread

    first = acts[min(acts)]
    why = _no_rewards(target)
    if not why and len({own["recorded"].shape for own in acts.values()}) > 1:
        why = "the checkpoints decide at different rates, so they share no decisions"
    if why:
        return {name: dict.fromkeys(acts, Estimate.refuse(why)) for name in ("fqe", "opc", "soft_opc")}
    try:
        data, current, following = _transitions(first, target)
        starts = first["step"][current] == 0
        policies = {name: (own["chunks"][following], own["chunks"][current][starts]) for name, own in acts.items()}
        with one_thread():
            result = fqe(data, policies, FQEConfig(seed=seed, **FQE_SETTINGS))
    except ValueError as error:
        return {name: dict.fromkeys(acts, Estimate.refuse(str(error))) for name in ("fqe", "opc", "soft_opc")}
    won = _outcomes(target)
    classified: dict[str, Estimates] = {"opc": {}, "soft_opc": {}}
    for name, estimate in result.estimates.items():
        for kind, score in (("opc", opc), ("soft_opc", soft_opc)):
            if won is None:
                found = Estimate.refuse(f"{target.path} does not say which episodes succeeded")
            elif not estimate.applicable:
                found = Estimate.refuse(f"its Q is not to be believed: {estimate.reason}")
            else:
                known, values = result.unseen(name, data.features, data.action)
                episode = first["episode"][current][known]
                found = score(values[known], won[episode], episode, seed=seed)
            classified[kind][name] = found
    return {"fqe": result.estimates, **classified}


def amq_scores(
    arms: Mapping[str, Arm],
    shas: Mapping[str, str],
    acts: Mapping[str, Acts],
    target: EpisodeStore,
    seed: int,
    out: Path,
    **workers: Any,
) -> Estimates:
    """AM-Q of every checkpoint, each in the space of its own encoder. out: folder of the ranking, with their acts."""
    why = _no_rewards(target)
    if why:
        return dict.fromkeys(acts, Estimate.refuse(why))
    first = acts[min(acts)]
    settings = {"fqe": FQE_SETTINGS, "dynamics": DYNAMICS_SETTINGS, "seed": seed}
    make = partial(_amq_unit, acts=out / ACTS, target=str(target.path.absolute()), settings=settings)
    identity = [target.hash, len(first["episode"]), settings, AMQ_HORIZON]
    found = kept_arrays(list(arms.values()), make, identity, out / AMQ, shas=shas, title="am-q", **workers)
    return {
        name: Estimate(float(value), float(sd), float(n_eff), bool(own["applicable"]), str(own["reason"]))
        for name, own in found.items()
        for value, sd, n_eff in [own["estimate"]]
    }


def _amq_unit(arm: Arm, acts: Path, target: str, settings: Mapping[str, Any]) -> dict[str, Array]:
    from robopolicy.ranking.tables import load_features
    from robopolicy.selection.features import features_file

    try:
        found = amq_of(arm, load_features(features_file(acts, arm.name)), EpisodeStore(target), settings)
    except ValueError as error:
        found = Estimate.refuse(str(error))
    numbers = np.array([found.value, found.sd, found.n_eff])
    return {"estimate": numbers, "applicable": np.array(found.applicable), "reason": np.array(found.reason)}


def amq_of(arm: Arm, own: Acts, target: EpisodeStore, settings: Mapping[str, Any]) -> Estimate:
    """AM-Q of a checkpoint: dynamics and the behaviour's Q are fitted to the target in the policy's own features.

    settings: {"fqe", "dynamics": of FQEConfig and DynamicsConfig, "seed": of all}.

    Raises:
        ValueError: too few episodes or starts.
    """
    import torch

    from robopolicy.ope.amq import amq
    from robopolicy.ope.dynamics import DynamicsConfig, fit_dynamics
    from robopolicy.ope.fqe import FQEConfig, fqe
    from robopolicy.spec import ACTION

    policy, steps, seed = load_policy(arm.checkpoint), own["recorded"].shape[1], settings["seed"]
    data, current, following = _transitions(own, target)
    recorded, starts = own["recorded"][:, None], own["step"][current] == 0
    behaviour = {"behaviour": (recorded[following], recorded[current][starts])}
    judged = fqe(data, behaviour, FQEConfig(seed=seed, **settings["fqe"]))
    if not judged.estimates["behaviour"].applicable:
        return Estimate.refuse(f"the critic is not to be believed: {judged.estimates['behaviour'].reason}")
    dynamics = fit_dynamics(data.rows(data.discount > 0), DynamicsConfig(seed=seed, **settings["dynamics"]))

    def act(state: torch.Tensor, decision: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed + decision)
        return policy.normalizer.denormalize(ACTION, policy.propose(state, 1, generator))[:, 0, :steps]

    def q(state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return judged.q("behaviour", state, action).mean(0)

    options = {"horizon": AMQ_HORIZON, "episode": data.episode.numpy(), "seed": seed}
    return amq(act, q, dynamics, data.features, **options).estimate


def _transitions(own: Acts, target: EpisodeStore) -> tuple[Any, Array, Array]:
    """`Transitions` in the features of these acts, rows of its decisions and of those that follow."""
    from robopolicy.ope.transitions import Transitions

    current, following, rewards, discounts = between(own, target)
    z, chunks, episode = own["features"], own["recorded"][current], own["episode"][current]
    data = Transitions.of(z[current], chunks, rewards, z[following], discounts, episode, own["step"][current] == 0)
    return data, current, following


def _no_rewards(target: EpisodeStore) -> str:
    return "" if REWARD in target.spec.features else f"{target.path} has no rewards ({REWARD})"


def _outcomes(target: EpisodeStore) -> Array | None:
    """Whether each episode succeeded, bool [E]; None where that is not recorded."""
    if "success" in target.table.column_names:
        told = target.table["success"].to_pylist()
        if None not in told:
            return np.array(told, bool)
    if SUCCESS not in target.spec.features:
        return None
    return np.array([bool(target.read(e, [SUCCESS])[SUCCESS].any()) for e in range(len(target))])
