"""Critics: the value of executing a chunk's prefix in an observation, by an ensemble. Suffixes as in batch.py.

A value is a success discounted by the steps until it, in [0, 1]: gamma to the steps left, 0 without success. (A reward of -1 a
step until success, as in the paper, is an affine map of it.) Here: the common part, and critics that regress outcomes.
Critics that bootstrap: critic_td.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.batch import Batch, Phase
from robopolicy.models.chunk_features import ChunkFeatures, CloudWay
from robopolicy.models.critic_heads import ActionHeads, StateHeads, ValueOutput
from robopolicy.models.encoders import ObservationEncoder
from robopolicy.models.support import Support
from robopolicy.models.trainable import Metrics, Trainable
from robopolicy.spec import (
    ACTION,
    EPISODE_LENGTH,
    HAS_SUCCESSOR,
    OUTCOME,
    PROGRESS,
    RISK,
    STEP,
    SUCCESS,
    UNSAFE,
    VALUE,
    WEIGHT,
    Array,
    CriticSpec,
    Features,
    FeatureSpec,
    Observation,
    SpecError,
    successor,
)

CRITIC = "critic"


class Contexts(NamedTuple):
    """What a critic knows of observations before it sees a chunk.

    heads: [E, B, D]; heads with one encoder have equal ones. cloud: as of ChunkFeatures.cloud, None where nothing looks at it.
    """

    heads: Tensor
    cloud: Tensor | None


class CriticOptions(TypedDict, total=False):
    """Arguments that every critic takes and hands on; their meaning and defaults are those of ChunkCritic."""

    observation_keys: Sequence[str] | None
    obs_horizon: int
    execute_horizon: int
    encoder: Callable[..., ObservationEncoder]
    num_encoders: int
    num_heads: int
    hidden: int
    way_width: int
    gamma: float
    bootstrap: float
    output: str
    support_size: int
    learning_rate: float


def discounted_outcome(outcome_B: Tensor, steps_left_B: Tensor, gamma: float) -> Tensor:
    """Monte-Carlo value [B] in [0, 1]: gamma to the steps left when the episode succeeds, else 0."""
    return outcome_B * gamma ** steps_left_B.to(outcome_B.dtype)


class ChunkCritic(Trainable):
    """An ensemble of heads over (observation, h executed actions). Subclasses say what they learn from.

    Each head sees its own random part of each batch, so heads disagree where data is scarce. A batch may weigh its windows
    (WEIGHT, such as a simulator's density ratio to the robot, H2O): all losses then are weighted means.

    Args:
        observation, action, control_hz, observation_keys, obs_horizon, encoder: see TrainablePolicy.
        execute_horizon: h, steps of a chunk that count.
        num_encoders: encoders, shared out among the heads; heads with one encoder share its errors.
        num_heads: E.
        hidden: width of the heads.
        way_width: of CloudWay, which looks at a point cloud along a chunk's way, one for each encoder; 0 = none. Without a
            cloud, or without the end effector's position and motion, there is none.
        gamma: discount per step; below 1 it prefers faster successes.
        bootstrap: share of a batch that a head sees.
        output: "probability" or "hl_gauss", see ValueOutput.
        support_size: pairs that it remembers to say how far a chunk is from the data, see Support; 0 = none.
        learning_rate: peak of the only phase.
    """

    role = VALUE

    def __init__(
        self,
        observation: Features,
        action: FeatureSpec,
        control_hz: float,
        *,
        observation_keys: Sequence[str] | None = None,
        obs_horizon: int = 1,
        execute_horizon: int = 8,
        encoder: Callable[..., ObservationEncoder] = ObservationEncoder,
        num_encoders: int = 1,
        num_heads: int = 5,
        hidden: int = 128,
        way_width: int = 0,
        gamma: float = 0.99,
        bootstrap: float = 0.8,
        output: str = "probability",
        support_size: int = 0,
        learning_rate: float = 1e-3,
    ) -> None:
        super().__init__(observation, action, observation_keys, obs_horizon, encoder)
        if not 0 < gamma <= 1 or not 0 < bootstrap <= 1:
            raise ValueError(f"gamma={gamma} and bootstrap={bootstrap} must be in (0, 1]")
        if not 1 <= num_encoders <= num_heads:
            raise ValueError(f"num_encoders={num_encoders} must be in 1..num_heads={num_heads}")
        self.control_hz, self.gamma, self.bootstrap = control_hz, gamma, bootstrap
        self.obs_horizon, self.execute_horizon, self.num_heads = obs_horizon, execute_horizon, num_heads
        self.action = action
        self.phases = (Phase(CRITIC, 1.0, learning_rate),)
        more = [
            encoder(observation=self.observation, obs_horizon=obs_horizon, normalizer=self.normalizer)
            for _ in range(num_encoders - 1)
        ]
        self.further_encoders = nn.ModuleList([sharing(each, self.encoder) for each in more])
        self.output = ValueOutput(output)
        self.chunk_features = ChunkFeatures(self.observation, execute_horizon, action.shape[0], self.normalizer)
        self.context_width = self.encoder.width + self.chunk_features.anchor_width
        stops, columns = len(self.chunk_features.stops), self.chunk_features.cloud_width
        looks = num_encoders if way_width and columns else 0
        self.cloud_ways = nn.ModuleList([CloudWay(columns, stops, way_width) for _ in range(looks)])
        features_width = self.chunk_features.width + (stops * way_width if looks else 0)
        self.heads = ActionHeads(num_heads, self.context_width, features_width, hidden, self.output.size)
        self.support = Support(support_size, self.context_width, execute_horizon * action.shape[0])

    @property
    def spec(self) -> CriticSpec:  # type: ignore[override]
        """What it eats, with the fingerprint of the statistics inside it now."""
        return CriticSpec(
            observation=self.observation,
            action=self.action,
            obs_horizon=self.obs_horizon,
            execute_horizon=self.execute_horizon,
            num_heads=self.num_heads,
            control_hz=self.control_hz,
            normalizer_hash=self.normalizer.fingerprint(),
        )

    def phase_parameters(self, name: str) -> list[nn.Parameter]:
        """All parameters: there is one phase."""
        self.check_phase(name)
        return list(self.parameters())

    def contexts(self, batch: Batch, generator: torch.Generator | None = None) -> Contexts:
        """A context for every head."""
        return self.contexts_by([self.encoder, *self.further_encoders], batch, generator)

    def contexts_by(self, encoders: Sequence[nn.Module], batch: Batch, generator: torch.Generator | None = None) -> Contexts:
        """Contexts: the encoders' in turn, and the anchors of chunk features."""
        found = [encoder(batch, generator) for encoder in encoders]
        if self.chunk_features.things:
            anchors = self.chunk_features.anchors(batch)
            found = [torch.cat([context, anchors], -1) for context in found]
        return Contexts(self._dealt(found), self.chunk_features.cloud(batch) if self.cloud_ways else None)

    def _dealt(self, found: Sequence[Tensor]) -> Tensor:
        """[E, ...]: what belongs to an encoder, given to its heads."""
        if len(found) == 1:
            return found[0].expand(self.num_heads, *found[0].shape)
        return torch.stack([found[head % len(found)] for head in range(self.num_heads)])

    def prefix(self, batch: Batch, key: str = ACTION) -> Tensor:
        """Normalised prefixes [B, h, A] of a batch's chunks [B, H, A], or [B, N, h, A] of several."""
        return self.normalizer.normalize(ACTION, batch[key][..., : self.execute_horizon, :])

    def raw(
        self, contexts: Contexts, actions_BNHA: Tensor, heads: nn.Module | None = None, ways: nn.ModuleList | None = None
    ) -> Tensor:
        """Raw outputs [E, B, N, size] of normalised prefixes [B, N, h, A], by its own networks or others like them."""
        features = [self.chunk_features(contexts.heads[0], actions_BNHA)]
        if contexts.cloud is not None:
            way, looks = self.chunk_features.way(actions_BNHA), self.cloud_ways if ways is None else ways
            features = [torch.cat([*features, look(contexts.cloud, way)], -1) for look in looks]
        return (heads or self.heads)(contexts.heads, self._dealt(features))

    def values(self, contexts: Contexts, actions_BNHA: Tensor) -> Tensor:
        """Values [E, B, N] of normalised prefixes [B, N, h, A]."""
        return self.output.value(self.raw(contexts, actions_BNHA))

    def weights(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Weights [E, B] of windows in each head's losses: those of the batch, and the part of it that a head sees."""
        size, device = len(batch[ACTION]), batch[ACTION].device
        seen = (torch.rand((self.num_heads, size), generator=generator, device=device) < self.bootstrap).float()
        return seen * batch[WEIGHT].float() if WEIGHT in batch else seen

    @torch.no_grad()
    def encode(self, observation: Observation) -> Contexts:
        """Contexts of a batched observation {key: [B, T, ...]}, computed once per decision.

        Raises:
            SpecError: the observation does not fit the spec.
        """
        return self.contexts(self.checked(observation))

    @torch.no_grad()
    def score(self, context: Contexts, actions: Array) -> Array:
        """Predicted discounted success float32 [E, B, N] in (0, 1) of prefixes [B, N, h, A] in physical units.

        Raises:
            SpecError: the actions do not fit.
        """
        return self.values(context, self.chunks(actions, context.heads.shape[1], self.execute_horizon)).float().cpu().numpy()

    @property
    def remembers(self) -> bool:
        """Whether `distance` has pairs to compare with."""
        return self.support.filled > 1

    @torch.no_grad()
    def distance(self, context: Contexts, actions: Array) -> Array:
        """How far prefixes [B, N, h, A] are from the data in such situations, float32 [B, N]; see Support.distance."""
        return (
            self.support.distance(context.heads[0], self.chunks(actions, context.heads.shape[1], self.execute_horizon))
            .cpu()
            .numpy()
        )


def sharing(encoder: ObservationEncoder, owner: ObservationEncoder) -> ObservationEncoder:
    """`encoder`, reading the statistics of `owner` without holding them: each tensor has one name in a checkpoint."""
    encoder._modules.pop("normalizer", None)
    object.__setattr__(encoder, "normalizer", owner.normalizer)
    return encoder


def copied(encoder: ObservationEncoder, owner: ObservationEncoder) -> ObservationEncoder:
    """A copy of `encoder` without gradients that reads the statistics of `owner`."""
    return sharing(copy.deepcopy(encoder), owner).requires_grad_(False)


def next_batch(batch: Batch, observation: Features) -> Batch:
    """The observation after the chunk, under the names of the present one."""
    for key in observation:
        if successor(key) not in batch and key in batch and batch[key].ndim > 1:
            raise SpecError(f"the batch lacks {successor(key)!r}: give Windows a successor_horizon")
    return {key: batch.get(successor(key), batch[key]) for key in observation}


class OutcomeCritic(ChunkCritic):
    """Regresses what became of an episode after a chunk. Monte-Carlo: unbiased, about whoever acted in the data.

    Args:
        observation, action, control_hz, options: see ChunkCritic.
    """

    def __init__(self, observation: Features, action: FeatureSpec, control_hz: float, **options: Unpack[CriticOptions]) -> None:
        super().__init__(observation, action, control_hz, **options)

    def target(self, batch: Batch) -> Tensor:
        """What is regressed, [B] in [0, 1]."""
        raise NotImplementedError

    def loss(self, phase: str, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Cross-entropy to the target."""
        self.check_phase(phase)
        return self.regression(self.contexts(batch, generator), batch, self.target(batch), self.weights(batch, generator))

    def regression(self, contexts: Contexts, batch: Batch, target: Tensor, weights_EB: Tensor) -> tuple[Tensor, Metrics]:
        """Cross-entropy of the chunks' values to a target [B] or [E, B], and metrics."""
        prefix = self.prefix(batch)
        self.support.remember(contexts.heads[0], prefix)
        raw = self.raw(contexts, prefix[:, None]).squeeze(2)  # [E, B, size]
        values = self.output.value(raw.detach())
        metrics: Metrics = {
            "value": values.mean(),
            "target": target.mean(),
            "absolute_error": (values.mean(0) - target).abs().mean(),
            "disagreement": values.std(0).mean() if len(values) > 1 else 0.0,
        }
        return weighted_mean(self.output.error(raw, target), weights_EB), metrics


def weighted_mean(errors: Tensor, weights: Tensor) -> Tensor:
    """Mean of errors under weights, which may all be 0."""
    return (errors * weights).sum() / weights.sum().clamp(min=1e-6)


class SuccessCritic(OutcomeCritic):
    """Discounted success of the episode. It ranks the actions of whoever collected the data, and needs failures in it.

    On branched rollouts (data.path of a folder that `robopolicy branch` made) it learns the base policy's own values.
    """

    batch_keys = (SUCCESS,)

    def target(self, batch: Batch) -> Tensor:
        """The discounted outcome. The batch needs OUTCOME, STEP and EPISODE_LENGTH."""
        return discounted_outcome(batch[OUTCOME], batch[EPISODE_LENGTH] - 1 - batch[STEP], self.gamma)


class ProgressCritic(OutcomeCritic):
    """The discounted mean of the rewards from a chunk on, which must lie in [0, 1]: made for a task's progress (reward=dense).

    Progress says much sooner than success whether a chunk was good, so such a critic tells chunks apart where one of success
    sees little but the state. What followed the chunk is replaced by what is usual after where it led: a value of states is
    regressed beside, so that the luck of later decisions does not drown what one chunk is worth.

    Args:
        observation, action, control_hz, options: see ChunkCritic.
    """

    extra_keys = (PROGRESS,)

    def __init__(self, observation: Features, action: FeatureSpec, control_hz: float, **options: Unpack[CriticOptions]) -> None:
        super().__init__(observation, action, control_hz, **options)
        if self.gamma == 1:
            raise ValueError("gamma=1: a discounted mean of progress needs a gamma below 1")
        self.state_heads = StateHeads(self.num_heads, self.context_width, options.get("hidden", 128))
        self.successor_horizon = self.execute_horizon

    def target(self, batch: Batch) -> Tensor:
        """Rewards during the chunk, then the value of the state after it [E, B]; all rewards where the episode ended."""
        with torch.no_grad():
            usual = self.state_heads(self.contexts(next_batch(batch, self.observation)).heads).sigmoid()
        luck = (batch[successor(PROGRESS)] - usual) * batch[HAS_SUCCESSOR]
        return (batch[PROGRESS] - self.gamma**self.execute_horizon * luck).clamp(0, 1)

    def loss(self, phase: str, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Cross-entropy of the chunks' values to the target, and of the states' to the rewards that followed."""
        self.check_phase(phase)
        contexts, weights = self.contexts(batch, generator), self.weights(batch, generator)
        of_chunks, metrics = self.regression(contexts, batch, self.target(batch), weights)
        logits, rewards = self.state_heads(contexts.heads), batch[PROGRESS].expand(self.num_heads, -1)
        errors = functional.binary_cross_entropy_with_logits(logits.float(), rewards.float(), reduction="none")
        return of_chunks + weighted_mean(errors, weights), metrics


class SafetyCritic(OutcomeCritic):
    """Probability that something unsafe happens soon after a chunk (CAD2RL, arXiv 1611.04201), from branched rollouts.

    What is unsafe, and how soon is soon, is a matter of the data: data.events, data.event_horizon.
    """

    batch_keys = (UNSAFE,)
    role = RISK

    def target(self, batch: Batch) -> Tensor:
        """1 where it happened."""
        return batch[UNSAFE]
