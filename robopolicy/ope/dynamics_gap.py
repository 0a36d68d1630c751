"""Where the simulator moves differently from the target: a density ratio of transitions by two classifiers (H2O).

u = log P_sim(s' | s, a) / P_target(s' | s, a) of simulated transitions; its mean is the Kullback-Leibler divergence of the
simulator's dynamics from the target's (Niu et al., NeurIPS 2022, arXiv 2206.13464; Eysenbach et al., arXiv 2006.13916). One
classifier looks at (s, a), the other at (s, a, s'); the difference of their logits leaves the states' distribution out. It
sees what a detector of images cannot: friction, latency, gains. It needs transitions of the target.

Give it states, or frozen features of an encoder that makes simulated and target images alike; else it reads the visual gap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.models.layers import mlp
from robopolicy.ope.estimate import Estimate, auroc, clustered_mean
from robopolicy.ope.transitions import Scale, Transitions

MIN_EPISODES = 10
MIN_SHARE = 0.2  # of the episodes, that a weighted mean must effectively rest on


@dataclass(frozen=True)
class GapConfig:
    """Settings of `dynamics_gap`.

    num_folds: of cross-fitting: a transition is judged by classifiers that saw nothing of its episode. noise: standard
    deviation added to standardised inputs against overfitting. limit: bound of |logit|.
    """

    num_folds: int = 4
    hidden: int = 64
    steps: int = 400
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    noise: float = 0.1
    limit: float = 5.0
    seed: int = 0


@dataclass(frozen=True)
class DynamicsGap:
    """The gap as seen by classifiers that were not trained on what they judge.

    estimate: mean of u over simulated transitions (nats), clustered by episode; about 0 where the dynamics are the same.
    u: float64 [N_sim], single-sample estimates of log P_sim / P_target, noisy one by one: average them over episodes or bins.
    ratio: [N_sim] exp(-u) = P_target / P_sim, clipped to [1e-5, 1] as for critics on mixed data.
    auroc: of the classifiers of (s, a) and of (s, a, s'). null: the estimate between two halves of the simulator's episodes.
    """

    estimate: Estimate
    u: np.ndarray
    ratio: np.ndarray
    auroc: tuple[float, float]
    null: Estimate


def dynamics_gap(simulator: Transitions, target: Transitions, config: GapConfig | None = None) -> DynamicsGap:
    """The gap between the simulator's and the target's dynamics, with its null.

    Not applicable with fewer than 10 episodes of either, where the null itself is no null (more than 3 standard errors from 0),
    or where states and actions alone tell the two apart almost always: then no transition of one has its like in the other.

    Raises:
        ValueError: widths that differ, or settings out of range.
    """
    c = config or GapConfig()
    if simulator.features.shape[1] != target.features.shape[1] or simulator.action.shape[1] != target.action.shape[1]:
        raise ValueError("simulator and target transitions differ in width: use one encoder and one action space for both")
    if c.num_folds < 2 or min(c.hidden, c.steps, c.batch_size) < 1 or c.limit <= 0 or c.noise < 0:
        raise ValueError(f"{c}: needs num_folds >= 2, counts >= 1, limit > 0 and noise >= 0")
    few = min(len(torch.unique(x.episode)) for x in (simulator, target))
    if few < MIN_EPISODES:
        nothing = Estimate.refuse(
            f"{few} episodes on one side: needs at least {MIN_EPISODES} of the simulator and of the target"
        )
        missing = np.full(len(simulator.features), np.nan)
        return DynamicsGap(nothing, missing, missing, (float("nan"), float("nan")), nothing)
    u, auroc = _cross_fitted(simulator, target, c)
    half = torch.unique(simulator.episode)
    half = half[torch.randperm(len(half), generator=torch.Generator().manual_seed(c.seed))][: len(half) // 2]
    first = torch.isin(simulator.episode, half)
    null_u, _ = _cross_fitted(simulator.rows(first), simulator.rows(~first), c)
    null = Estimate(*clustered_mean(null_u, simulator.episode[first].numpy()))
    mean, sd, n_eff = clustered_mean(u, simulator.episode.numpy())
    reasons = []
    if abs(null.value) > 3 * null.sd:
        reasons.append(
            f"between halves of the simulator the gap is {null.value:.3g} +- {null.sd:.2g}, not 0: the classifiers overfit"
        )
    if auroc[0] > 0.99:
        reasons.append(f"states and actions alone tell simulator and target apart (AUROC {auroc[0]:.3f}): nothing to compare")
    estimate = Estimate(mean, sd, n_eff, not reasons, "; ".join(reasons))
    return DynamicsGap(estimate, u, np.clip(np.exp(-u), 1e-5, 1.0), auroc, null)


def validity_weighted(values: Any, gap: Any, strength: float = 1.0) -> Estimate:
    """Simulated score of a policy that trusts episodes less the more their transitions are wrong.

    sum_e R_e exp(-strength u_e) / sum_e exp(-strength u_e). values: [E], returns or successes. gap: [E], mean u over each
    episode's transitions (negative ones count as 0). Falls back to the plain mean, and says so, where the weights leave less
    than a fifth of the episodes; n_eff is Kish's effective number.

    Raises:
        ValueError: shapes that differ, values that are not finite, or a negative strength.
    """
    r, u = np.asarray(values, np.float64), np.asarray(gap, np.float64)
    if r.ndim != 1 or r.shape != u.shape or not r.size or not np.isfinite([r, u]).all() or strength < 0:
        raise ValueError(f"values {r.shape}, gap {u.shape}, strength={strength}: needs finite [E] twice and strength >= 0")
    penalty = np.maximum(u, 0.0)
    weight = np.exp(-strength * (penalty - penalty.min()))
    mean, sd, n_eff = clustered_mean(r, None, weight)
    if n_eff < MIN_SHARE * len(r):
        plain = Estimate(*clustered_mean(r))
        reason = f"weights leave {n_eff:.1f} of {len(r)} episodes: the plain mean instead"
        return Estimate(plain.value, plain.sd, plain.n_eff, False, reason)
    return Estimate(mean, sd, n_eff)


def _cross_fitted(simulator: Transitions, target: Transitions, c: GapConfig) -> tuple[np.ndarray, tuple[float, float]]:
    """u [N_sim] and the AUROC of both classifiers, each transition judged by the fold that left its episode out."""
    generator = torch.Generator().manual_seed(c.seed)
    pair = torch.cat([torch.cat([x.features, x.action], -1) for x in (simulator, target)])
    change = torch.cat([x.next_features - x.features for x in (simulator, target)])
    label = torch.cat([torch.ones(len(simulator.features)), torch.zeros(len(target.features))])
    fold = torch.cat([_folds(x.episode, c.num_folds, generator) for x in (simulator, target)])
    logits = torch.zeros(2, len(label))
    for k in range(c.num_folds):
        out = fold == k
        scales = Scale.of(pair[~out]), Scale.of(change[~out])
        inputs = scales[0](pair), scales[1](change)
        marginal, joint = _train(inputs[0][~out], inputs[1][~out], label[~out], c, generator, c.seed * c.num_folds + k)
        with torch.no_grad():
            logits[:, out] = torch.stack(_logits(marginal, joint, inputs[0][out], inputs[1][out], c.limit))
    simulated = label == 1
    u = (logits[1] - logits[0])[simulated].to(torch.float64).numpy()
    told = [auroc(logit[simulated].numpy(), logit[~simulated].numpy()) for logit in logits]
    return u, (told[0], told[1])


def _train(
    pair: Tensor, change: Tensor, label: Tensor, c: GapConfig, generator: torch.Generator, seed: int
) -> tuple[nn.Module, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        marginal = mlp(pair.shape[1], c.hidden, c.hidden, 1)
        joint = mlp(pair.shape[1] + change.shape[1], c.hidden, c.hidden, 1)
    optimizer = torch.optim.AdamW(
        [*marginal.parameters(), *joint.parameters()], lr=c.learning_rate, weight_decay=c.weight_decay
    )
    sides = [torch.argwhere(label == side).flatten() for side in (1, 0)]  # balanced: as many of each in a batch
    wanted = torch.cat([torch.ones(c.batch_size), torch.zeros(c.batch_size)])
    for _ in range(c.steps):
        rows = torch.cat([side[torch.randint(len(side), (c.batch_size,), generator=generator)] for side in sides])
        x, y = (v[rows] + c.noise * torch.randn(len(rows), v.shape[1], generator=generator) for v in (pair, change))
        loss = sum(functional.binary_cross_entropy_with_logits(v, wanted) for v in _logits(marginal, joint, x, y, c.limit))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
    return marginal, joint


def _logits(marginal: nn.Module, joint: nn.Module, pair: Tensor, change: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """log P(sim) / P(target) given (s, a), and given (s, a, s') as a correction to it, both within +-limit."""
    alone = marginal(pair)[:, 0]
    both = alone.detach() + joint(torch.cat([pair, change], -1))[:, 0]
    return limit * torch.tanh(alone / limit), limit * torch.tanh(both / limit)


def _folds(episode: Tensor, num: int, generator: torch.Generator) -> Tensor:
    present = torch.unique(episode)
    order = torch.empty(int(present.max()) + 1, dtype=torch.int64)
    order[present[torch.randperm(len(present), generator=generator)]] = torch.arange(len(present))
    return order[episode] % num
