"""CARP: coarse-to-fine autoregressive policy (arXiv 2412.06782): a multi-scale action tokenizer, then a transformer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Unpack

import torch
from torch import Tensor, nn

from robopolicy.batch import Batch, Phase
from robopolicy.data.transforms import Statistics
from robopolicy.models.coarse_to_fine import CoarseToFineTransformer
from robopolicy.models.sampling import Decoding
from robopolicy.models.tokenizer import MultiScaleTokenizer, usage
from robopolicy.models.trainable import Metrics
from robopolicy.policies.base import PolicyOptions, TrainablePolicy
from robopolicy.spec import ACTION, ACTION_IS_PAD, Array, Features, FeatureSpec, Observation

TOKENIZER, POLICY = "tokenizer", "policy"
NEEDS_CODES = 0.1  # normalised standard deviation above which an action entry does
COLLAPSED = 2.0  # perplexity of a scale's codes below which they say next to nothing
ENOUGH = 16  # tokens; of fewer at a time no perplexity is told
TOLERATED, TOLERATED_IF_REFINED = 0.05, 0.2  # reconstruction error as a share of an entry's 1-99 % range

logger = logging.getLogger(__name__)


class CarpPolicy(TrainablePolicy):
    """Two phases: the tokenizer alone, then (with it frozen) the encoder and the transformer.

    Sample 0 takes the most likely tokens; the others draw the coarsest tokens, which choose what to do, and the finer
    ones, which say how exactly, each with a temperature.

    Args:
        observation, action, control_hz, options: see TrainablePolicy.
        tokenizer: makes the MultiScaleTokenizer; a functools.partial of it carries further arguments.
        transformer: makes the CoarseToFineTransformer, likewise.
        coarse_temperature, fine_temperature, top_k: of samples 1 and up, see Decoding.
        tokenizer_fraction: share of the training steps that the tokenizer gets.
        tokenizer_learning_rate, learning_rate: peaks of the two phases.
    """

    def __init__(
        self,
        observation: Features,
        action: FeatureSpec,
        control_hz: float,
        *,
        tokenizer: Callable[..., MultiScaleTokenizer] = MultiScaleTokenizer,
        transformer: Callable[..., CoarseToFineTransformer] = CoarseToFineTransformer,
        coarse_temperature: float = 1.0,
        fine_temperature: float = 0.0,
        top_k: int = 0,
        tokenizer_fraction: float = 0.15,
        tokenizer_learning_rate: float = 2e-3,
        learning_rate: float = 1e-3,
        **options: Unpack[PolicyOptions],
    ) -> None:
        super().__init__(
            observation,
            action,
            control_hz,
            **options,
            capabilities=("features", "log_prob"),
        )
        self.tokenizer = tokenizer(action_dim=self.spec.action_dim, action_horizon=self.spec.action_horizon)
        self.transformer = transformer(tokenizer=self.tokenizer, context_width=self.encoder.width)
        self.decoding = Decoding(coarse_temperature, fine_temperature, top_k)
        self.phases = (
            Phase(TOKENIZER, tokenizer_fraction, tokenizer_learning_rate),
            Phase(POLICY, 1 - tokenizer_fraction, learning_rate),
        )

    def fit(self, stats: Statistics) -> None:
        """Set the normaliser, and the tokenizer's ranges and switches, from the statistics of a dataset."""
        super().fit(stats)
        ours = stats[ACTION]
        scaled = {name: self._normalized(ours[name]) for name in ("min", "max")}
        scaled["distinct"] = self._normalized(ours["distinct"].T).T
        self.tokenizer.fit({**scaled, "num_distinct": ours["num_distinct"]})

    def _normalized(self, values: Array) -> Array:
        return self.normalizer.normalize(ACTION, torch.from_numpy(values).float().to(self.device)).cpu().numpy()

    def phase_parameters(self, name: str) -> list[nn.Parameter]:
        """Parameters that the phase `name` trains."""
        self.check_phase(name)
        if name == TOKENIZER:
            return list(self.tokenizer.parameters())
        return [*self.encoder.parameters(), *self.transformer.parameters()]

    def loss(self, phase: str, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Loss of a phase. Steps past the end of an episode are the last action, held; refined chunks need not have them."""
        self.check_phase(phase)
        actions = self.normalizer.normalize(ACTION, batch[ACTION])
        if phase == TOKENIZER:
            loss, reconstructions, residual = self.tokenizer.loss(actions)
            return loss, self._tokenizer_metrics(batch[ACTION], reconstructions.detach(), residual.codes)
        return self.transformer.loss(self.encoder(batch, generator), actions, self.tokenizer, generator, ~batch[ACTION_IS_PAD])

    def review(self, phase: str, metrics: Mapping[str, float]) -> None:
        """Warn about a tokenizer whose codes collapsed or whose reconstructions are too coarse, and say what helps."""
        if phase != TOKENIZER:
            return
        fewer = "fewer policy.tokenizer.scales"
        instead = fewer if self.tokenizer.quantiser.levels else f"policy.tokenizer.quantiser=fsq or {fewer}"
        refined = self.transformer.refiner is not None
        correct = "" if refined else ", or let a continuous scale correct it (policy.transformer.refine=true)"
        for name in (name for name in metrics if name.startswith("codes/") and metrics[name] < COLLAPSED):
            logger.warning(
                "the codes of tokenizer scale %s collapsed: their perplexity within a batch is %.1f; train the tokenizer "
                "longer (policy.tokenizer_fraction, train.steps), use %s",
                name.removeprefix("codes/"),
                metrics[name],
                instead,
            )
        tolerated = TOLERATED_IF_REFINED if refined else TOLERATED
        spread = 2 * self.normalizer.get_buffer("action_scale").cpu()
        for entry, name in enumerate(self.action_names):
            error = metrics[f"error/{name}"]
            if self.tokenizer.moves[entry] and error > tolerated * float(spread[entry]):
                logger.warning(
                    "the tokenizer reconstructs action entry %s only to %.3g%s on average, %.0f %% of its range; train it "
                    "longer (policy.tokenizer_fraction), add policy.tokenizer.scales or levels, use a smaller "
                    "policy.tokenizer.group_size%s",
                    name,
                    error,
                    f" {self.spec.action.unit}" if self.spec.action.unit else "",
                    100 * error / float(spread[entry]),
                    correct,
                )

    def propose(self, context_BD: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
        """Normalised chunks [B, N, H, A]. Sample 0 is decoded by itself: not a bit of it depends on num_samples."""
        best = self.transformer.sample(context_BD, self.tokenizer, Decoding(), generator)
        if num_samples == 1:
            return best
        others = self.transformer.sample(context_BD, self.tokenizer, self.decoding, generator, num_samples - 1)
        return torch.cat([best, others], 1)

    def log_prob(self, observation: Observation, actions: Array) -> Array:
        """Log-probability float32 [B, N] (nats) of the tokens of chunks float32 [B, N, H, A] in physical units.

        With a continuous scale plus the log-density, in normalised units, of what it leaves, of every entry (see
        CoarseToFineTransformer.log_prob): for comparing chunks, whose draws have no such spread.

        Raises:
            SpecError: the observation or the actions do not fit the spec.
        """
        return self._of_chunks(observation, actions, partial(self.transformer.log_prob, tokenizer=self.tokenizer))

    @torch.no_grad()
    def _tokenizer_metrics(self, actions_BHA: Tensor, reconstructions: Tensor, codes: list[Tensor]) -> Metrics:
        """Mean absolute error per action entry in physical units, of each prefix relative to the first, and code usage.

        Errors of prefixes are of the entries that move, in units of their ranges.
        The usage is that of the group with the least, among those that have an entry which is no switch and moves: a command
        that is hardly ever given needs few codes.
        """
        settled = self.tokenizer.settle(reconstructions)
        errors = (self.normalizer.denormalize(ACTION, settled) - actions_BHA).abs().mean((1, 2))  # [S, A]
        metrics: Metrics = {f"error/{name}": error for name, error in zip(self.action_names, errors[-1], strict=True)}
        moving = actions_BHA.std((0, 1), correction=0) > NEEDS_CODES * self.normalizer.get_buffer("action_scale")
        needed = (moving & ~self.tokenizer.is_switch).cpu()
        varied = [g for g, group in enumerate(self.tokenizer.groups) if needed[group].any()]
        for k, part in enumerate(codes if varied else ()):
            if part[..., 0].numel() >= ENOUGH:
                metrics[f"codes/{k + 1}"] = usage(part[..., varied], self.tokenizer.vocabulary).min()
        relative = (errors / self.normalizer.get_buffer("action_scale"))[:, self.tokenizer.moves].sum(1)
        for k in range(1, len(codes)):
            metrics[f"prefix_error/{k + 1}"] = relative[k] / relative[0].clamp(min=1e-12)
        return metrics
