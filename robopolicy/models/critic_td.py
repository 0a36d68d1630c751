"""Critics that bootstrap over chunks: implicit Q-learning, and calibrated conservative Q-learning. Suffixes as in batch.py.

A transition is a chunk: observation, h executed actions, whether they reached success and when, and the observation after
them (data.windows with a successor). The chunk is an input, so the h-step backup has no bias (arXiv 2507.07969).
"""

from __future__ import annotations

import copy
import math
from typing import Unpack, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.batch import Batch
from robopolicy.models.critic import ChunkCritic, Contexts, CriticOptions, copied, discounted_outcome, next_batch, weighted_mean
from robopolicy.models.critic_heads import StateHeads
from robopolicy.models.trainable import Metrics
from robopolicy.spec import (
    CHUNK_SUCCESS,
    EPISODE_LENGTH,
    HAS_SUCCESSOR,
    OUTCOME,
    PROPOSALS,
    STEP,
    SUCCESS,
    Features,
    FeatureSpec,
    SpecError,
    successor,
)


class BootstrapCritic(ChunkCritic):
    """Common part: target networks (slow copies of encoders and heads) and the backup.

    The end of an episode: success is absorbing (value 1 at its step). An end without it, a time-out included, is worth 0, as
    for critics of outcomes and in every evaluation here: a task not done in time is not done.

    Args:
        observation, action, control_hz, options: see ChunkCritic.
        target_rate: share by which the copies move towards the networks at each step.
    """

    batch_keys = (SUCCESS,)

    def __init__(
        self,
        observation: Features,
        action: FeatureSpec,
        control_hz: float,
        *,
        target_rate: float = 0.02,
        **options: Unpack[CriticOptions],
    ) -> None:
        super().__init__(observation, action, control_hz, **options)
        if not 0 < target_rate <= 1:
            raise ValueError(f"target_rate={target_rate} must be in (0, 1]")
        self.target_rate, self.successor_horizon = target_rate, self.execute_horizon

    def _make_targets(self) -> None:
        """Copy what the subclass has made so far."""
        encoders = [copied(encoder, self.encoder) for encoder in (self.encoder, *self.further_encoders)]
        self.target_encoders = nn.ModuleList(encoders)
        self.target_nets = nn.ModuleDict({name: _frozen(net) for name, net in self._tracked().items()})

    def _tracked(self) -> dict[str, nn.Module]:
        """Networks besides the encoders that have a slow copy."""
        return {"heads": self.heads, "cloud_ways": self.cloud_ways}

    def _pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """(slow, fast) parameters."""
        nets = [(self.target_nets[name], net) for name, net in self._tracked().items()]
        nets += list(zip(self.target_encoders, (self.encoder, *self.further_encoders), strict=True))
        return [pair for slow, fast in nets for pair in zip(slow.parameters(), fast.parameters(), strict=True)]

    def phase_parameters(self, name: str) -> list[nn.Parameter]:
        """All parameters but those of the slow copies."""
        slow = {id(pair[0]) for pair in self._pairs()}
        return [parameter for parameter in super().phase_parameters(name) if id(parameter) not in slow]

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the slow copies."""
        slow, fast = (list(side) for side in zip(*self._pairs(), strict=True))
        torch._foreach_lerp_(slow, fast, self.target_rate)

    def target_contexts(self, batch: Batch) -> Contexts:
        """Contexts by the slow encoders."""
        return self.contexts_by(list(self.target_encoders), batch)

    def target_values(self, contexts: Contexts, actions_BNHA: Tensor) -> Tensor:
        """Values [E, B, N] by the slow heads."""
        ways = cast(nn.ModuleList, self.target_nets["cloud_ways"])
        return self.output.value(self.raw(contexts, actions_BNHA, self.target_nets["heads"], ways))

    def backup(self, batch: Batch, next_value_EB: Tensor) -> Tensor:
        """Targets [E, B] of the chunks' values."""
        reached = batch[CHUNK_SUCCESS].bool()  # [B, h]
        first = reached.float().argmax(1)
        now = torch.where(reached.any(1), self.gamma ** first.float(), 0.0)
        follows = batch[HAS_SUCCESSOR].bool() & ~reached.any(1)
        return now + self.gamma**self.execute_horizon * next_value_EB * follows

    def _metrics(self, values_EB: Tensor, targets_EB: Tensor, batch: Batch) -> Metrics:
        values = values_EB.detach()
        gain = discounted_outcome(batch[OUTCOME], batch[EPISODE_LENGTH] - 1 - batch[STEP], self.gamma)
        return {
            "value": values.mean(),
            "target": targets_EB.mean(),
            "above_outcome": (values.mean(0) - gain).mean(),  # over-estimation
            "disagreement": values.std(0).mean() if len(values) > 1 else 0.0,
        }


def _frozen(net: nn.Module) -> nn.Module:
    return copy.deepcopy(net).requires_grad_(False)


class IqlCritic(BootstrapCritic):
    """Implicit Q-learning (arXiv 2110.06169): V is an upper expectile of Q over the data's own chunks; Q backs V up.

    It never asks for the value of a chunk that was not executed. Each head has a V of its own, so heads are independent.
    The cross-entropy that replaces the squared error has the same expectile: its gradient in the logit is the residual.

    Args:
        observation, action, control_hz, target_rate, options: see BootstrapCritic.
        expectile: tau in (0.5, 1): 0.5 is the data's own value, towards 1 the best that was done.
    """

    def __init__(
        self,
        observation: Features,
        action: FeatureSpec,
        control_hz: float,
        *,
        expectile: float = 0.8,
        target_rate: float = 0.02,
        **options: Unpack[CriticOptions],
    ) -> None:
        super().__init__(observation, action, control_hz, target_rate=target_rate, **options)
        if not 0.5 <= expectile < 1:
            raise ValueError(f"expectile={expectile} must be in [0.5, 1)")
        self.expectile = expectile
        self.state_heads = StateHeads(self.num_heads, self.context_width, options.get("hidden", 128))
        self._make_targets()

    def _tracked(self) -> dict[str, nn.Module]:
        return {**super()._tracked(), "state_heads": self.state_heads}

    def loss(self, phase: str, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Cross-entropy of Q to its backup plus the expectile loss of V."""
        self.check_phase(phase)
        contexts, prefix = self.contexts(batch, generator), self.prefix(batch)
        self.support.remember(contexts.heads[0], prefix)
        with torch.no_grad():
            following = self.target_contexts(next_batch(batch, self.observation))
            next_value = self.target_nets["state_heads"](following.heads).sigmoid()
            targets = self.backup(batch, next_value)
            slow_value = self.target_values(self.target_contexts(batch), prefix[:, None]).squeeze(-1)  # [E, B]
        raw, logits = self.raw(contexts, prefix[:, None]).squeeze(2), self.state_heads(contexts.heads)
        weights = self.weights(batch, generator)
        of_q = weighted_mean(self.output.error(raw, targets), weights)
        above = slow_value > logits.detach().sigmoid()
        asymmetry = torch.where(above, self.expectile, 1 - self.expectile)
        errors = functional.binary_cross_entropy_with_logits(logits.float(), slow_value.float(), reduction="none")
        of_v = weighted_mean(asymmetry * errors, weights)
        metrics = self._metrics(self.output.value(raw), targets, batch)
        return of_q + of_v, {**metrics, "loss_q": of_q.detach(), "loss_v": of_v.detach()}


class CalQlCritic(BootstrapCritic):
    """Calibrated conservative Q-learning (Cal-QL, arXiv 2303.05479) with the base policy's proposals in place of an actor.

    Backup: the best proposal in the next state, by the lower of two random heads. Conservatism: a soft maximum over uniform
    chunks and proposals of both states, less the value of what was done; proposals count at least their state's observed
    outcome, so that the scale of values stays true. The paper's own critic for steering, in units of [0, 1].

    Args:
        observation, action, control_hz, target_rate, options: see BootstrapCritic.
        conservatism: weight of that term. temperature: of the soft maximum. num_uniform: uniform chunks a state.
    """

    extra_keys = (PROPOSALS,)

    def __init__(
        self,
        observation: Features,
        action: FeatureSpec,
        control_hz: float,
        *,
        conservatism: float = 0.5,
        temperature: float = 0.05,
        num_uniform: int = 4,
        target_rate: float = 0.02,
        **options: Unpack[CriticOptions],
    ) -> None:
        super().__init__(observation, action, control_hz, target_rate=target_rate, **options)
        if conservatism < 0 or temperature <= 0 or num_uniform < 0:
            raise ValueError(
                f"conservatism={conservatism} and num_uniform={num_uniform} must not be negative, temperature={temperature} "
                "must be positive"
            )
        self.conservatism, self.temperature, self.num_uniform = conservatism, temperature, num_uniform
        self._make_targets()

    def loss(self, phase: str, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Cross-entropy to the backup plus the calibrated conservative term."""
        self.check_phase(phase)
        for key in (PROPOSALS, successor(PROPOSALS)):
            if key not in batch:
                raise SpecError(f"the batch lacks {key!r}: say whose with data.proposals.checkpoint=CHECKPOINT")
        contexts, prefix = self.contexts(batch, generator), self.prefix(batch)
        self.support.remember(contexts.heads[0], prefix)
        here, there = self.prefix(batch, PROPOSALS), self.prefix(batch, successor(PROPOSALS))  # [B, N, h, A]
        with torch.no_grad():
            following = self.target_values(self.target_contexts(next_batch(batch, self.observation)), there)
            pair = torch.randperm(self.num_heads, generator=generator, device=following.device)[:2]
            targets = self.backup(batch, following[pair].amin(0).amax(-1).expand(self.num_heads, -1))
        shape = (len(prefix), self.num_uniform, *prefix.shape[1:])
        uniform = 2 * torch.rand(shape, generator=generator, device=prefix.device) - 1
        raw = self.raw(contexts, torch.cat([prefix[:, None], uniform, here, there], 1))  # [E, B, 1 + ..., size]
        values, done = self.output.value(raw), raw[:, :, 0]
        outcome = discounted_outcome(batch[OUTCOME], batch[EPISODE_LENGTH] - 1 - batch[STEP], self.gamma)
        proposed = values[:, :, 1 + self.num_uniform :]
        floor = outcome.view(1, -1, 1)
        others = torch.cat([values[:, :, 1 : 1 + self.num_uniform], proposed.maximum(floor)], -1)
        soft = self.temperature * ((others / self.temperature).logsumexp(-1) - math.log(others.shape[-1]))
        weights = self.weights(batch, generator)
        of_q = weighted_mean(self.output.error(done, targets), weights)
        gap = weighted_mean(soft - values[:, :, 0], weights)
        metrics = self._metrics(values[:, :, 0], targets, batch)
        metrics |= {"loss_q": of_q.detach(), "gap": gap.detach(), "bound_rate": (proposed < floor).float().mean()}
        return of_q + self.conservatism * gap, metrics
