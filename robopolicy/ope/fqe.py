"""Fitted Q evaluation: the value of policies from recorded transitions with rewards, without running them.

Le et al. (ICML 2019, arXiv 1903.08738): Q <- r + gamma^h E_{a'~pi} Q(s', a'), here between decisions, on frozen features, with
an ensemble whose members see bootstrapped episodes. All policies of a call are evaluated side by side: the same members,
initial weights and batches for each, so that differences between policies are less noisy than their values.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robopolicy.ope.estimate import Estimate
from robopolicy.ope.networks import Ensemble, bootstrap_rows
from robopolicy.ope.transitions import Scale, Transitions

MIN_EPISODES = 5
DIVERGED = 5.0  # mean |Q| beyond so many times what the rewards allow
RECENT = 0.02  # weight of a step in running means
CLIPPED = 0.5  # share of targets at a bound from which the bounds make the value


@dataclass(frozen=True)
class FQEConfig:
    """Settings of `fqe`.

    num_members: E of the bootstrap. value_range: what a value can be, targets are clipped to it; None = the extreme rewards for
    ever; where success pays 1 once, say (0, 1). It ends early when values moved by less than `tolerance` of their scale at
    `patience` looks in a row, `check_every` steps apart.
    """

    num_members: int = 5
    hidden: int = 128
    steps: int = 20_000
    batch_size: int = 256
    learning_rate: float = 3e-4
    weight_decay: float = 1e-4
    polyak: float = 0.005
    value_range: tuple[float, float] | None = None
    check_every: int = 500
    tolerance: float = 2e-3
    patience: int = 3
    seed: int = 0


@dataclass(frozen=True)
class FQEResult:
    """What the members say.

    estimates: {policy: value of the start states, sd over members}. draws: {policy: float64 [E]}; member e saw the same
    episodes for every policy, so draws subtract. residual: {policy: root mean squared Bellman residual}. steps: taken. weights:
    [E, N] how often each member saw each transition.
    """

    estimates: dict[str, Estimate]
    draws: dict[str, np.ndarray]
    residual: dict[str, float]
    steps: int
    weights: Tensor
    networks: Ensemble
    scales: tuple[Scale, Scale]
    value_scale: tuple[float, float]

    def q(self, policy: str, features: Any, action: Any) -> Tensor:
        """Q [E, N] of a policy's members at features [N, D] and chunks [N, A] (or [N, H, A])."""
        members = len(self.draws[policy])
        at = list(self.draws).index(policy) * members
        every = _inputs(
            self.scales, torch.as_tensor(features, dtype=torch.float32), torch.as_tensor(action, dtype=torch.float32)
        )
        centre, spread = self.value_scale
        with torch.no_grad():
            return self.networks(every.expand(len(self.draws) * members, -1, -1))[at : at + members, :, 0] * spread + centre

    def unseen(self, policy: str, features: Any, action: Any) -> tuple[np.ndarray, np.ndarray]:
        """Of the N transitions of the fit: whether some member did not see its episode, bool [N], and the Q of those, [N]."""
        out = (self.weights == 0).to(torch.float64)
        values = (self.q(policy, features, action).to(torch.float64) * out).sum(0) / out.sum(0).clamp(min=1)
        return (out.sum(0) > 0).numpy(), values.numpy()


def fqe(data: Transitions, policies: Mapping[str, tuple[Any, Any]], config: FQEConfig | None = None) -> FQEResult:
    """Values of policies, each given by what it would do in the recorded states.

    policies: {name: (next_actions [N, m, A], start_actions [S, m, A])}: m sampled chunks (flat, or [.., H, A]) in
        `data.next_features` and, for the S rows of `data.start`, in `data.features`. For the behaviour itself (SARSA): the next
        recorded chunks, with m = 1.

    An estimate is not applicable when there are too few episodes or start states, no reward differs, the values diverge, or
    most targets sit at a bound of the value range.

    Raises:
        ValueError: actions that do not fit, or settings out of range.
    """
    c = config or FQEConfig()
    problem = _Problem.of(data, policies, c)
    generator = torch.Generator().manual_seed(c.seed)
    weights = bootstrap_rows(data.episode, c.num_members, generator)
    width = data.features.shape[1] + data.action.shape[1]
    networks = _copies(Ensemble(c.num_members, width, c.hidden, 1, c.seed), len(policies))
    target = copy.deepcopy(networks).requires_grad_(False)
    optimizer = torch.optim.AdamW(networks.parameters(), lr=c.learning_rate, weight_decay=c.weight_decay)
    clipped, error = torch.zeros(len(policies)), torch.zeros(len(policies))  # running means
    before, calm, step = problem.start_values(networks, weights), 0, 0
    while step < c.steps and calm < c.patience:
        step += 1
        rows = torch.multinomial(weights, c.batch_size, replacement=True, generator=generator)  # [E, B]
        predicted = problem.recorded(networks, rows)
        wanted = problem.targets(target, rows)
        low, high = problem.value_range
        squares = torch.square(predicted - wanted.clamp(low, high)).mean((1, 2))
        optimizer.zero_grad(set_to_none=True)
        (squares.sum() / problem.scale[1] ** 2).backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), networks.parameters(), strict=True):
                slow.lerp_(fast, c.polyak)
            clipped = torch.lerp(clipped, ((wanted < low) | (wanted > high)).float().mean((1, 2)), RECENT)
            error = torch.lerp(error, squares, RECENT)
        if step % c.check_every == 0:
            now = problem.start_values(networks, weights)
            if not bool(torch.isfinite(now).all()):
                break
            calm = calm + 1 if bool(((now - before).abs().mean(1) < c.tolerance * problem.scale[1]).all()) else 0
            before = now
    draws = problem.start_values(networks, weights).to(torch.float64).numpy()
    settled = "" if calm >= c.patience else f"values still move after {step} steps"
    return FQEResult(
        {name: _estimate(problem, draws[p], float(clipped[p]), settled) for p, name in enumerate(policies)},
        {name: draws[p] for p, name in enumerate(policies)},
        {name: float(error[p].sqrt()) for p, name in enumerate(policies)},
        step,
        weights,
        networks.requires_grad_(False),
        problem.scales,
        problem.scale,
    )


@dataclass(frozen=True)
class _Problem:
    """The data with the actions of P policies: next_actions [P, N, m, A], start_actions [P, S, m, A]; and units for networks.

    scale: centre and spread of values.
    """

    data: Transitions
    next_actions: Tensor
    start_actions: Tensor
    scales: tuple[Scale, Scale]
    scale: tuple[float, float]
    value_range: tuple[float, float]

    @classmethod
    def of(cls, data: Transitions, policies: Mapping[str, tuple[Any, Any]], c: FQEConfig) -> _Problem:
        if not policies:
            raise ValueError("no policies to evaluate: give {name: (next_actions, start_actions)}")
        _check_config(c)
        acts = [_actions(data, name, *given) for name, given in policies.items()]
        if len({(x.shape[1], y.shape[1]) for x, y in acts}) > 1:
            raise ValueError("the policies were sampled unequally often: give as many chunks a state of each")
        low, high = c.value_range or _value_range(data)
        horizon = 1 / max(1 - float(data.discount.mean()), 1e-3)
        centre = min(max(float(data.reward.mean()) * horizon, low), high)
        spread = min(float(data.reward.std(correction=0)) * horizon**0.5, high - low)
        scales = Scale.of(data.features), Scale.of(data.action)
        stacked = [torch.stack(x) for x in zip(*acts, strict=True)]
        return cls(data, stacked[0], stacked[1], scales, (centre, max(spread, 1e-6)), (low, high))

    def values(self, net: Ensemble, features: Tensor, actions: Tensor) -> Tensor:
        """Q [P, E, B] of features [E, B, D] and actions [P, E, B, m, A], mean over m."""
        repeated = features[None, :, :, None].expand(*actions.shape[:4], -1)
        x = _inputs(self.scales, repeated, actions).flatten(2, 3).flatten(0, 1)
        q = net(x)[..., 0] * self.scale[1] + self.scale[0]
        return q.view(*actions.shape[:2], -1, actions.shape[3]).mean(-1)

    def recorded(self, net: Ensemble, rows: Tensor) -> Tensor:
        """Q [P, E, B] of the recorded chunks in rows [E, B]."""
        actions = self.data.action[rows][None, :, :, None].expand(len(self.next_actions), -1, -1, -1, -1)
        return self.values(net, self.data.features[rows], actions)

    @torch.no_grad()
    def targets(self, net: Ensemble, rows: Tensor) -> Tensor:
        """r + gamma^h Q(s', a') [P, E, B] in rows [E, B], not clipped."""
        ahead = self.values(net, self.data.next_features[rows], self.next_actions[:, rows])
        return self.data.reward[rows] + self.data.discount[rows] * ahead

    @torch.no_grad()
    def start_values(self, net: Ensemble, weights: Tensor) -> Tensor:
        """[P, E]: mean Q over the start states, weighted as each member's bootstrap [E, N] says."""
        starts = self.data.features[self.data.start].expand(len(weights), -1, -1)
        q = self.values(net, starts, self.start_actions[:, None].expand(-1, len(weights), -1, -1, -1))
        weight = weights[:, self.data.start]
        total = weight.sum(1)
        return torch.where(total > 0, (q * weight).sum(-1) / total.clamp(min=1), q.mean(-1))


def _estimate(problem: _Problem, draws: np.ndarray, clipped: float, settled: str) -> Estimate:
    data, bound = problem.data, max(map(abs, problem.value_range))
    num, starts = len(torch.unique(data.episode)), int(data.start.sum())
    if min(num, starts) < MIN_EPISODES:
        return Estimate.refuse(f"{num} episodes, {starts} start states: needs at least {MIN_EPISODES} of each")
    if float(data.reward.max() - data.reward.min()) == 0:
        return Estimate.refuse(f"all rewards are {float(data.reward[0]):g}: nothing in the data tells policies apart")
    if not np.isfinite(draws).all() or np.abs(draws).mean() > DIVERGED * max(bound, 1e-12):
        return Estimate.refuse(f"values diverged: mean |Q| {np.abs(draws).mean():.3g}, the rewards allow {bound:.3g}")
    if clipped > CLIPPED:
        return Estimate.refuse(
            f"{clipped:.0%} of the targets lie outside the value range: the bounds make the value, not the data"
        )
    sd = float(draws.std(ddof=1)) if len(draws) > 1 else float("nan")
    return Estimate(float(draws.mean()), sd, float(num), True, settled)


def _actions(data: Transitions, name: str, next_actions: Any, start_actions: Any) -> tuple[Tensor, Tensor]:
    rows, starts, width = len(data.features), int(data.start.sum()), data.action.shape[1]
    found = []
    for label, given, num in (("next_actions", next_actions, rows), ("start_actions", start_actions, starts)):
        x = torch.as_tensor(given, dtype=torch.float32)
        x = x.flatten(2) if x.ndim > 3 else x
        if x.ndim != 3 or len(x) != num or x.shape[2] != width or not x.shape[1] or not bool(torch.isfinite(x).all()):
            raise ValueError(f"{label} of {name!r} have shape {list(x.shape)}, expected finite [{num}, m, {width}]")
        found.append(x)
    return found[0], found[1]


def _inputs(scales: tuple[Scale, Scale], features: Tensor, action: Tensor) -> Tensor:
    action = action.flatten(-2) if action.shape[-1] != len(scales[1].centre) else action
    return torch.cat([scales[0](features), scales[1](action)], -1)


def _copies(ensemble: Ensemble, num: int) -> Ensemble:
    """`num` copies of an ensemble, one after the other, in one: the same initial weights for every policy."""
    for layer in (ensemble.first, ensemble.second, ensemble.last):
        layer.weight = torch.nn.Parameter(layer.weight.detach().repeat(num, 1, 1))
        layer.bias = torch.nn.Parameter(layer.bias.detach().repeat(num, 1, 1))
    return ensemble


def _value_range(data: Transitions) -> tuple[float, float]:
    """Extreme rewards for ever, and 0, which is what comes after an end."""
    longest = float(data.discount.max())
    factor = 1 / max(1 - longest, 1e-3) if longest > 0 else 1.0
    return min(0.0, float(data.reward.min()) * factor), max(0.0, float(data.reward.max()) * factor)


def _check_config(c: FQEConfig) -> None:
    if min(c.num_members, c.hidden, c.steps, c.batch_size, c.check_every, c.patience) < 1 or not 0 < c.polyak <= 1:
        raise ValueError(f"{c}: counts must be at least 1 and polyak in (0, 1]")
    if c.value_range is not None and c.value_range[0] >= c.value_range[1]:
        raise ValueError(f"value_range={c.value_range}: the first must be below the second")
