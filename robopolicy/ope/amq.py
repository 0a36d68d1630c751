"""AM-Q: a policy in learned dynamics, valued by a critic along the way (Uni-O4, Lei et al., ICLR 2024, arXiv 2311.03351).

J(pi) = E_{s0 ~ data, a ~ pi, s' ~ learned dynamics} of the mean over H decisions of Q(s_t, a_t). Unlike the released code: the
horizon is fixed, with 0 after an end (a mean over what is left of an episode rewards ending early); start states, the members
that predict and their noise are the same for every policy, so that differences are paired; and a rollout is cut where the
ensemble disagrees, its last trusted Q standing for the rest, with the share of cut rollouts reported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robopolicy.ope.dynamics import Dynamics
from robopolicy.ope.estimate import Estimate, clustered_mean

PolicyOf = Callable[[Tensor, int], Tensor]  # states [S, D] and the decision's number -> chunks [S, A] or [S, H, A]
ValueOf = Callable[[Tensor, Tensor], Tensor]  # states [S, D] and chunks [S, A] -> Q [S]
EndOf = Callable[[Tensor], Tensor]  # states [S, D] -> bool [S], the episode is over

MAX_TRUNCATED = 0.5
MIN_EXPLAINED = 0.2
MIN_STARTS = 20


@dataclass(frozen=True)
class Rollouts:
    """A policy in the learned dynamics from S fixed starts.

    estimate: mean over starts. values: float64 [S] per start, paired between policies of the same call's settings. horizon: [S]
    decisions until the ensemble was no longer trusted (H where it was throughout). truncated, ended: shares of the starts.
    """

    estimate: Estimate
    values: np.ndarray
    horizon: np.ndarray
    truncated: float
    ended: float


def amq(
    policy: PolicyOf,
    q: ValueOf,
    dynamics: Dynamics,
    starts: Any,
    *,
    horizon: int = 5,
    episode: Any = None,
    ended: EndOf | None = None,
    seed: int = 0,
) -> Rollouts:
    """AM-Q of one policy.

    policy: acts in the space of the dynamics (states, or features of the encoder that the policy shares with them); it must be
        deterministic given its inputs, or seed itself by the decision's number. q: the critic, e.g. FQE of the behaviour.
    starts: [S, D], the same for all policies. episode: int [S], their unit of sampling. horizon: decisions (5 to 8 chunks).
    ended: where an episode is over; None = never.

    Not applicable when more than half of the rollouts were cut or the dynamics explain less than a fifth of held-out changes.

    Raises:
        ValueError: starts or chunks of another width, fewer than 20 starts, or horizon < 1.
    """
    state = torch.as_tensor(starts, dtype=torch.float32)
    width = len(dynamics.error)
    if state.ndim != 2 or state.shape[1] != width or len(state) < MIN_STARTS or horizon < 1:
        raise ValueError(
            f"starts {list(state.shape)}, horizon={horizon}: needs [S, {width}] of at least {MIN_STARTS}, horizon >= 1"
        )
    num = len(state)
    generator = torch.Generator().manual_seed(seed)  # drawn in full before the policy has any say
    members = torch.randint(dynamics.num_members, (horizon, num), generator=generator)
    noise = torch.randn(horizon, num, width, generator=generator) * dynamics.error
    total, last = torch.zeros(num, dtype=torch.float64), torch.zeros(num, dtype=torch.float64)
    alive, trusted = torch.ones(num, dtype=torch.bool), torch.ones(num, dtype=torch.bool)
    reached = torch.full((num,), horizon)
    with torch.no_grad():
        for t in range(horizon):
            if ended is not None:
                alive &= ~(ended(state) & trusted)
            action = torch.as_tensor(policy(state, t), dtype=torch.float32)
            action = action.flatten(1)
            if action.shape != (num, len(dynamics.scales[1].centre)):
                raise ValueError(
                    f"the policy gave chunks {list(action.shape)}, expected [{num}, {len(dynamics.scales[1].centre)}]"
                )
            last = torch.where(trusted, q(state, action).to(torch.float64), last)
            total += torch.where(alive, last, 0.0)
            change = dynamics.change(state, action)
            lost = trusted & alive & (dynamics.disagreement(change) > dynamics.limit)
            reached[lost] = t + 1
            trusted &= ~lost
            moved = state + change[members[t], torch.arange(num)] + noise[t]
            state = torch.where((trusted & alive)[:, None], moved, state)
    values = (total / horizon).numpy()
    mean, sd, n_eff = clustered_mean(values, episode)
    early = float((reached < horizon).double().mean())
    reasons = []
    if early > MAX_TRUNCATED:
        reasons.append(
            f"{early:.0%} of the rollouts left what the ensemble knows before decision {horizon}: shorten the horizon"
        )
    if dynamics.explained < MIN_EXPLAINED:
        reasons.append(f"the dynamics explain {dynamics.explained:.0%} of held-out changes: collect more transitions")
    if not np.isfinite(values).all():
        reasons.append("the critic's values are not finite")
    estimate = Estimate(mean, sd, n_eff, not reasons, "; ".join(reasons))
    return Rollouts(estimate, values, reached.numpy(), early, 1 - float(alive.double().mean()))


def amq_difference(a: Rollouts, b: Rollouts, episode: Any = None) -> Estimate:
    """a minus b, paired by start; exactly 0 with sd 0 for a policy and itself.

    To accept a over b, ask for a lower bound above 0 (value - 1.645 sd), not for a larger mean: the best of many noisy means is
    better than it will turn out.

    Raises:
        ValueError: not the same number of starts.
    """
    if len(a.values) != len(b.values):
        raise ValueError(f"{len(a.values)} and {len(b.values)} starts: evaluate both from the same ones")
    applicable = a.estimate.applicable and b.estimate.applicable
    reason = "; ".join(r for r in (a.estimate.reason, b.estimate.reason) if r)
    return Estimate(*clustered_mean(a.values - b.values, episode), applicable, reason)
