"""How an actor and a critic learn from transitions: SAC, TD3 and, from data alone, IQL. Suffixes as in robopolicy/batch.py.

A learner owns the target critic and the optimisers. Its `update` draws randomness from the generator that it is given, so a
run can resume exactly: tensors() is all of its state.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robopolicy.batch import Batch
from robopolicy.models.point_critic import PointCritic
from robopolicy.models.trainable import Metrics
from robopolicy.policies.point_actor import PointActor, imitation, spread_loss, squashed_log_prob
from robopolicy.train.distil import Distillation
from robopolicy.train.replay import Transitions


class Learner(ABC):
    """What all learners share: Adam for actor and critic, a critic whose average lags behind.

    Args:
        actor, critic: trained in place.
        gamma: discount per step. tau: share of the critic that its target takes over at each critic step.
        learning_rate: of all optimisers. clip_norm: largest gradient norm.
        actor_every: critic steps per actor step.
    """

    needs_next_action = True

    def __init__(
        self,
        actor: PointActor,
        critic: PointCritic,
        *,
        gamma: float = 0.98,
        tau: float = 0.01,
        learning_rate: float = 3e-4,
        clip_norm: float = 10.0,
        actor_every: int = 2,
    ) -> None:
        if not 0 < gamma < 1 or not 0 < tau <= 1 or actor_every < 1:
            raise ValueError(f"gamma={gamma} must be in (0, 1), tau={tau} in (0, 1], actor_every={actor_every} at least 1")
        self.actor, self.critic = actor, critic
        self.target = copy.deepcopy(critic).requires_grad_(False)
        self.gamma, self.tau, self.clip_norm, self.actor_every = gamma, tau, clip_norm, actor_every
        self.distillation: Distillation | None = None
        self.modules: dict[str, nn.Module] = {"actor": actor, "critic": critic, "target": self.target}
        self.optimizers = {
            "actor": torch.optim.Adam(actor.parameters(), learning_rate),
            "critic": torch.optim.Adam(critic.parameters(), learning_rate),
        }

    @property
    def action_shape(self) -> tuple[int, int]:
        """[H, A]."""
        return self.actor.spec.action_horizon, self.actor.spec.action_dim

    @torch.no_grad()
    def act(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Normalised actions [B, H, A] that explore."""
        mean, std = self.actor.distribution(batch, generator)
        return torch.tanh(mean + std * torch.randn(mean.shape, generator=generator, device=mean.device))

    @abstractmethod
    def critic_loss(self, transitions: Transitions, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Loss of the critic."""

    @abstractmethod
    def actor_loss(self, transitions: Transitions, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Loss of the actor, without distillation."""

    def update(self, transitions: Transitions, group: int, step: int, generator: torch.Generator) -> Metrics:
        """One critic step, and at every actor_every-th `step` one actor step. group: which teacher says what to do here."""
        loss, metrics = self.critic_loss(transitions, generator)
        self._descend("critic", loss)
        metrics = {"critic_loss": loss.detach(), **metrics}
        if step % self.actor_every == 0:
            self.critic.requires_grad_(False)
            loss, more = self.actor_loss(transitions, generator)
            self.critic.requires_grad_(True)
            if self.distillation is not None:
                extra, told = self.distillation.loss(self.actor, transitions.now, group, generator)
                loss, more = loss * self.distillation.rl_weight + extra, {**more, **told}
            self._descend("actor", loss)
            metrics |= {"actor_loss": loss.detach(), **more}
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.critic.parameters(), strict=True):
                slow.lerp_(fast, self.tau)
        return metrics

    def _descend(self, name: str, loss: Tensor) -> None:
        parameters = [p for group in self.optimizers[name].param_groups for p in group["params"]]
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        if not (loss.isfinite() and norm.isfinite()):
            raise ValueError(f"the {name}'s loss is {loss.item()}, its gradient norm {norm.item()}: lower learning_rate")
        self.optimizers[name].step()

    def minimum(self, critic: PointCritic, batch: Batch, action_BHA: Tensor, generator: torch.Generator | None) -> Tensor:
        """The least value [B] over the heads."""
        return critic.values(critic.cloud(batch, generator), action_BHA).amin(0)

    def tensors(self) -> dict[str, Tensor]:
        """All state: weights and the optimisers' moments."""
        out = {f"{name}/{key}": value for name, module in self.modules.items() for key, value in module.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            for index, state in optimizer.state_dict()["state"].items():
                out |= {f"optimizer.{name}/{index}.{key}": value for key, value in state.items()}
        return out

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Return to what tensors() saw."""
        for name, module in self.modules.items():
            prefix = f"{name}/"
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        for name, optimizer in self.optimizers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(f"optimizer.{name}/"):
                    index, _, entry = key.removeprefix(f"optimizer.{name}/").partition(".")
                    state.setdefault(int(index), {})[entry] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


class _Temperature(nn.Module):
    """The logarithm of SAC's temperature."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(math.log(start)))


class SoftActorCritic(Learner):
    """SAC (arXiv 1812.05905): twin heads, learned temperature, time limits bootstrapped.

    Args:
        actor, critic, options: see Learner. temperature: at the start. target_entropy: per action entry.
    """

    def __init__(
        self,
        actor: PointActor,
        critic: PointCritic,
        *,
        temperature: float = 0.05,
        target_entropy: float = -1.0,
        **options: float,
    ) -> None:
        super().__init__(actor, critic, **options)  # type: ignore[arg-type]
        if not temperature > 0:
            raise ValueError(f"temperature={temperature} must be above 0: it is learned as a logarithm")
        self.temperature = _Temperature(temperature).to(actor.device)
        self.target_entropy = target_entropy * math.prod(self.action_shape)
        self.modules["temperature"] = self.temperature
        rate = self.optimizers["actor"].param_groups[0]["lr"]
        self.optimizers["temperature"] = torch.optim.Adam(self.temperature.parameters(), rate)

    def _draw(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Reparametrised actions [B, H, A] and their log densities [B]."""
        mean, std = self.actor.distribution(batch, generator)
        before = mean + std * torch.randn(mean.shape, generator=generator, device=mean.device)
        return torch.tanh(before), squashed_log_prob(mean, std, before).sum((1, 2))

    def critic_loss(self, transitions: Transitions, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Squared error to the soft value of the next step."""
        with torch.no_grad():
            action, log_prob = self._draw(transitions.following, generator)
            following = self.minimum(self.target, transitions.following, action, generator)
            following = following - self.temperature.log.exp() * log_prob
            wanted = transitions.reward + transitions.discount * following * (~transitions.ended)
        values = self.critic.values(self.critic.cloud(transitions.now, generator), transitions.action)
        return ((values - wanted) ** 2).mean(1).sum(), {"value": wanted.mean()}

    def actor_loss(self, transitions: Transitions, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Minus the soft value of what the actor would do. The temperature takes a step too."""
        action, log_prob = self._draw(transitions.now, generator)
        value = self.minimum(self.critic, transitions.now, action, generator)
        alpha = self.temperature.log.exp().detach()
        gap = -(log_prob.detach().mean() + self.target_entropy)
        self._descend("temperature", self.temperature.log * gap)
        return (alpha * log_prob - value).mean(), {"temperature": alpha, "entropy": -log_prob.detach().mean()}


class TwinDelayed(Learner):
    """TD3 (arXiv 1802.09477): a deterministic actor, the squashed mean, and noise on its actions, to which its spread fits.

    Args:
        actor, critic, options: see Learner. exploration: std of the noise when acting. smoothing: that on the target's
            actions, cut at `limit`.
    """

    def __init__(
        self,
        actor: PointActor,
        critic: PointCritic,
        *,
        exploration: float = 0.2,
        smoothing: float = 0.2,
        limit: float = 0.5,
        **options: float,
    ) -> None:
        super().__init__(actor, critic, **options)  # type: ignore[arg-type]
        self.exploration, self.smoothing, self.limit = exploration, smoothing, limit
        self.slow_actor = copy.deepcopy(actor).requires_grad_(False)
        self.modules["slow_actor"] = self.slow_actor

    @torch.no_grad()
    def act(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """See Learner.act."""
        return self._explored(self.actor.distribution(batch, generator)[0], generator)

    def _explored(self, mean: Tensor, generator: torch.Generator) -> Tensor:
        """The action of a mean, with noise."""
        noise = self.exploration * torch.randn(mean.shape, generator=generator, device=mean.device)
        return (torch.tanh(mean) + noise).clamp(-1, 1)

    def critic_loss(self, transitions: Transitions, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Squared error to the value of the next step."""
        with torch.no_grad():
            mean = torch.tanh(self.slow_actor.distribution(transitions.following, generator)[0])
            noise = self.smoothing * torch.randn(mean.shape, generator=generator, device=mean.device)
            action = (mean + noise.clamp(-self.limit, self.limit)).clamp(-1, 1)
            following = self.minimum(self.target, transitions.following, action, generator)
            wanted = transitions.reward + transitions.discount * following * (~transitions.ended)
        values = self.critic.values(self.critic.cloud(transitions.now, generator), transitions.action)
        return ((values - wanted) ** 2).mean(1).sum(), {"value": wanted.mean()}

    def actor_loss(self, transitions: Transitions, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Minus the value of what the actor would do; the spread becomes that of what explores. Its slow copy follows."""
        with torch.no_grad():
            for slow, fast in zip(self.slow_actor.parameters(), self.actor.parameters(), strict=True):
                slow.lerp_(fast, self.tau)
        mean, std = self.actor.distribution(transitions.now, generator)
        value = self.minimum(self.critic, transitions.now, torch.tanh(mean), generator).mean()
        spread = spread_loss(mean, std, self._explored(mean.detach(), generator)).mean()
        return spread - value, {"spread": std.detach().mean()}


class ImplicitQ(Learner):
    """IQL (arXiv 2110.06169): values of the data's own actions at an upper expectile, and imitation weighted by advantage.

    Learns from data alone. The state's value is the critic's at no action: one more critic without actions would double the
    cost, so the action is replaced by a constant outside of its range (all entries ABSENT).

    Args:
        actor, critic, options: see Learner. expectile, inverse_temperature, most: expectile of the state's value, sharpness
            and upper limit of the weights.
    """

    ABSENT = -2.0

    def __init__(
        self,
        actor: PointActor,
        critic: PointCritic,
        *,
        expectile: float = 0.7,
        inverse_temperature: float = 3.0,
        most: float = 100.0,
        **options: float,
    ) -> None:
        super().__init__(actor, critic, **{"actor_every": 1, **options})  # type: ignore[arg-type]
        if not 0.5 <= expectile < 1:
            raise ValueError(f"expectile={expectile} must be in [0.5, 1)")
        self.expectile, self.inverse_temperature, self.most = expectile, inverse_temperature, most

    def state_value(self, critic: PointCritic, batch: Batch, generator: torch.Generator | None) -> Tensor:
        """V [E, B], of each head."""
        absent = torch.full((len(next(iter(batch.values()))), *self.action_shape), self.ABSENT, device=critic.device)
        return critic.values(critic.cloud(batch, generator), absent)

    def critic_loss(self, transitions: Transitions, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Q towards reward and next V; V towards an expectile of Q."""
        with torch.no_grad():
            following = self.state_value(self.target, transitions.following, generator).mean(0)
            wanted = transitions.reward + transitions.discount * following * (~transitions.ended)
            slow = self.minimum(self.target, transitions.now, transitions.action, generator)
        cloud = self.critic.cloud(transitions.now, generator)
        values = self.critic.values(cloud, transitions.action)
        state = self.critic.values(cloud, torch.full_like(transitions.action, self.ABSENT))
        gap = slow - state
        weight = torch.where(gap > 0, self.expectile, 1 - self.expectile)
        loss = ((values - wanted) ** 2).mean(1).sum() + (weight * gap**2).mean(1).sum()
        return loss, {"value": wanted.mean(), "advantage": gap.detach().mean()}

    def actor_loss(self, transitions: Transitions, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Imitation of the data's actions, each weighted by the exponential of its advantage, standardised over the batch."""
        with torch.no_grad():
            value = self.minimum(self.target, transitions.now, transitions.action, generator)
            advantage = value - self.state_value(self.critic, transitions.now, generator).mean(0)
            relative = (advantage - advantage.mean()) / advantage.std(correction=0).clamp(min=1e-6)
            weight = (self.inverse_temperature * relative).exp().clamp(max=self.most)
        mean, std = self.actor.distribution(transitions.now, generator)
        losses = imitation(mean, std, transitions.action).mean((1, 2))
        return (weight * losses).sum() / weight.sum(), {"weight": weight.mean()}
