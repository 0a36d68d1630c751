"""What orders a pool: every score as an estimate and its replicates, their combination, and the places that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from robopolicy.ranking.combine import Rule, combine
from robopolicy.ranking.separation import tie_groups, wald_matrix
from robopolicy.ranking.statistics import bootstrap_weights, ranks, stream
from robopolicy.ranking.tables import Array, Outcomes

BLOCK_BYTES = 1 << 27  # of one temporary array


@dataclass(frozen=True)
class Scored:
    """Scores of C policies, and which of them make the final one.

    terms: {name: [1 + B, C]}, larger = better; row 0 is the estimate, the rest are replicates of it (B may be 0). NaN =
        missing, -inf = disqualified. "sim" is among them.
    combined: the terms that make the final score. tiers: int [C], 0 = stayed to the end; a policy dropped in an earlier round
        of sequential halving has a higher number and is placed behind all that stayed longer.
    """

    names: tuple[str, ...]
    terms: Mapping[str, Array]
    combined: tuple[str, ...]
    tiers: Array

    def ordered(self, rule: str | Rule) -> Ordered:
        """The final score by `rule`, and the places by every score."""
        scores = {"vsdr": combine([self.terms[name] for name in self.combined], rule), **self.terms}
        return Ordered(self.names, scores, {name: tiered_ranks(value, self.tiers) for name, value in scores.items()})


@dataclass(frozen=True)
class Ordered:
    """scores, places: {"vsdr", "sim", ...: [1 + B, C]}, row 0 the estimate; place 1 is best."""

    names: tuple[str, ...]
    scores: Mapping[str, Array]
    places: Mapping[str, Array]

    @property
    def num_draws(self) -> int:
        """Replicates."""
        return len(self.places["vsdr"]) - 1

    def order(self, name: str) -> list[int]:
        """Policies best first; ties by simulated score, then by name."""
        place, sim = self.places[name][0], self.places["sim"][0]
        return sorted(range(place.size), key=lambda c: (place[c], sim[c], self.names[c]))

    def groups(self, p_values: Array | None = None) -> list[int] | None:
        """`separation.tie_groups` of the final score, a number for each policy [C], 0 = the leader's; None without replicates.

        p_values: of all pairs [C, C] where an exact test of the final score exists; None = from its replicates.
        """
        if not self.num_draws:
            return None
        final = self.scores["vsdr"]
        tested = wald_matrix(final[0], final[1:]) if p_values is None else p_values
        return tie_groups(tested, -self.places["vsdr"][0]).tolist()


def tiered_ranks(scores: Array, tiers: Array) -> Array:
    """Mid-ranks of scores [..., C] within each tier, every tier behind all of lower number."""
    if not tiers.any():
        return ranks(scores)
    places, before = np.empty_like(scores, dtype=np.float64), 0
    for tier in np.unique(tiers):
        member = tiers == tier
        places[..., member] = before + ranks(scores[..., member])
        before += int(member.sum())
    return places


def success_draws(outcomes: Outcomes, seed: int, num_bootstrap: int) -> Array:
    """Success rates [1 + B, C], estimate first, over conditions drawn with replacement, the same ones for every policy.

    Temporary arrays stay small, however many policies and conditions there are.
    """
    num_policies, num_conditions = outcomes.trials.shape
    generator = stream(seed, "conditions", num_conditions)
    draws = np.empty((1 + num_bootstrap, num_policies))
    draws[0] = outcomes.success
    rows = max(1, min(num_bootstrap, BLOCK_BYTES // (8 * num_conditions)))
    columns = max(1, BLOCK_BYTES // (16 * num_conditions))
    nested = outcomes.nested
    for start in range(1, 1 + num_bootstrap, rows):
        weights = bootstrap_weights(num_conditions, min(rows, 1 + num_bootstrap - start), generator).astype(np.float64)
        block = slice(start, start + len(weights))
        same = weights @ outcomes.counts.astype(np.float64)
        for first in range(0, num_policies, columns):
            part = slice(first, first + columns)
            total = weights @ outcomes.trials[part].T.astype(np.float64) if nested else same[:, None]
            draws[block, part] = weights @ outcomes.successes[part].T.astype(np.float64) / np.maximum(total, 1.0)
    return draws


def rate_draws(rates: Array, episodes: Array, seed: int, num_draws: int) -> Array:
    """Rates [1 + B, C], estimate first, then draws of the Beta posterior (Jeffreys) of so many episodes each, independent."""
    generator, won = stream(seed, "episodes", len(rates)), rates * episodes
    return np.vstack([rates, generator.beta(won + 0.5, episodes - won + 0.5, size=(num_draws, len(rates)))])


def constant_draws(values: Sequence[float] | Array, num_draws: int) -> Array:
    """A score without known error [1 + B, C]."""
    return np.tile(np.asarray(values, dtype=np.float64), (1 + num_draws, 1))
