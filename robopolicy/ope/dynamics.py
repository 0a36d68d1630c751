"""An ensemble of dynamics models, one decision ahead, with a measure of where it may be trusted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robopolicy.ope.networks import Ensemble, bootstrap_rows
from robopolicy.ope.transitions import Scale, Transitions


@dataclass(frozen=True)
class DynamicsConfig:
    """Settings of `fit_dynamics`.

    holdout: share of the episodes that stop the training and set the limit of trust. quantile: of the members' disagreement
    there; beyond it a rollout is cut. patience: looks (every `check_every` steps) without a better hold-out error.
    """

    num_members: int = 5
    hidden: int = 200
    steps: int = 5000
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 5e-5
    holdout: float = 0.2
    quantile: float = 0.95
    check_every: int = 100
    patience: int = 5
    seed: int = 0


@dataclass(frozen=True)
class Dynamics:
    """s' = s + change(s, a) + noise.

    error: [D] root mean squared error on held-out episodes, per entry. explained: share of the changes' variance that the
    members' mean explains there. limit: disagreement that held-out transitions stay below.
    """

    networks: Ensemble
    scales: tuple[Scale, Scale, Scale]
    error: Tensor
    explained: float
    limit: float
    num_members: int

    @torch.no_grad()
    def change(self, features: Tensor, action: Tensor) -> Tensor:
        """Predicted change [E, B, D] by each member."""
        x = torch.cat([self.scales[0](features), self.scales[1](action)], -1)
        return self.networks(x.expand(self.num_members, -1, -1)) * self.scales[2].spread + self.scales[2].centre

    def disagreement(self, change: Tensor) -> Tensor:
        """Root mean square over entries of the members' standard deviation [B], in units of the recorded changes."""
        return (change / self.scales[2].spread).var(0, correction=1).mean(-1).sqrt()


def fit_dynamics(data: Transitions, config: DynamicsConfig | None = None) -> Dynamics:
    """Members on bootstrapped episodes, stopped by the error on held-out ones.

    Raises:
        ValueError: fewer than 5 episodes, fewer than 2 members, or settings out of range.
    """
    c = config or DynamicsConfig()
    episodes = torch.unique(data.episode)
    if len(episodes) < 5 or c.num_members < 2 or not 0 < c.holdout < 1 or not 0 < c.quantile < 1:
        raise ValueError(f"{len(episodes)} episodes, {c}: needs at least 5 episodes, 2 members, holdout and quantile in (0, 1)")
    generator = torch.Generator().manual_seed(c.seed)
    order = episodes[torch.randperm(len(episodes), generator=generator)]
    held = torch.isin(data.episode, order[: max(1, round(c.holdout * len(order)))])
    train, test = data.rows(~held), data.rows(held)
    delta = train.next_features - train.features
    scales = Scale.of(train.features), Scale.of(train.action), Scale.of(delta)
    inputs = torch.cat([scales[0](train.features), scales[1](train.action)], -1)
    test_inputs = torch.cat([scales[0](test.features), scales[1](test.action)], -1).expand(c.num_members, -1, -1)
    wanted, test_wanted = scales[2](delta), scales[2](test.next_features - test.features)
    weights = bootstrap_rows(train.episode, c.num_members, generator)
    networks = Ensemble(c.num_members, inputs.shape[1], c.hidden, wanted.shape[1], c.seed)
    optimizer = torch.optim.AdamW(networks.parameters(), lr=c.learning_rate, weight_decay=c.weight_decay)
    best, kept, waited = float("inf"), {k: v.clone() for k, v in networks.state_dict().items()}, 0
    for step in range(1, c.steps + 1):
        rows = torch.multinomial(weights, c.batch_size, replacement=True, generator=generator)
        loss = torch.square(networks(inputs[rows]) - wanted[rows]).mean((1, 2)).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % c.check_every == 0 or step == c.steps:
            with torch.no_grad():
                found = float(torch.square(networks(test_inputs).mean(0) - test_wanted).mean())
            if found < best:
                best, kept, waited = found, {k: v.clone() for k, v in networks.state_dict().items()}, 0
            elif (waited := waited + 1) >= c.patience:
                break
    networks.load_state_dict(kept)
    networks.requires_grad_(False)
    with torch.no_grad():
        predicted = networks(test_inputs)
    residual = (predicted.mean(0) - test_wanted) * scales[2].spread
    spread = predicted.var(0, correction=1).mean(-1).sqrt()
    variance = torch.square(test_wanted - test_wanted.mean(0)).mean().clamp(min=1e-12)
    return Dynamics(
        networks,
        scales,
        torch.square(residual).mean(0).sqrt(),
        float(1 - torch.square(predicted.mean(0) - test_wanted).mean() / variance),
        float(torch.quantile(spread, c.quantile)),
        c.num_members,
    )
