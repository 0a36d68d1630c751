"""Randomisation that grows: a linear curriculum, and Automatic Domain Randomisation. Both yield `levels` for randomize.draw.

adr = AutomaticRandomization.around(parse("wide", parameters), nominal(parameters))
proposal = adr.propose(rng)
env.reset(seed=seed, options={"levels": proposal.levels})  # ... play the episode ...
adr.record(proposal, success)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from robopolicy.sim.distributions import Distribution, Value
from robopolicy.sim.randomize import RandomizationError

LOW, HIGH = "low", "high"


def linear(names: Iterable[str], done: float, first: float = 0.0, last: float = 1.0, until: float = 1.0) -> dict[str, float]:
    """One level for all of `names`: from `first` to `last` while `done`, the share of the training, goes from 0 to `until`."""
    return dict.fromkeys(names, first + (last - first) * float(np.clip(done / until, 0.0, 1.0)))


@dataclass(frozen=True)
class Proposal:
    """Levels for one episode, and which boundary they test: a parameter and its edge, or None for a plain draw."""

    levels: dict[str, list[Any]]
    parameter: str | None = None
    edge: str | None = None


@dataclass
class AutomaticRandomization:
    """Automatic Domain Randomisation (OpenAI et al. 2019, arXiv 1910.07113, section 5 and algorithm 1).

    Every parameter starts at its nominal value. In a share of the episodes one parameter, chosen at random, is put at one
    boundary of its range while all others are drawn. Once `buffer` outcomes of a boundary are there, their mean moves that
    boundary outwards by `step` (at least `expand`) or inwards (at most `shrink`), and they are forgotten.

    Conventions that differ from the paper: ranges are levels in [0, 1] of a declared distribution, below and above the nominal
    value separately, so growth ends at the declared range; the share of draws on each side of the nominal value stays (the
    paper draws uniformly from the whole interval); the entries of a vector share their two levels, one random entry being put
    at the boundary; a discrete parameter has one boundary, its level being the probability that it is randomised.

    levels: {parameter: [below, above]}. edges: {parameter: its boundaries}. outcomes: {parameter: {edge: outcomes so far}}.
    """

    levels: dict[str, list[float]]
    edges: dict[str, list[str]]
    step: float = 0.05
    buffer: int = 20
    expand: float = 0.8
    shrink: float = 0.4
    boundary_share: float = 0.5
    outcomes: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fits = {
            "step": 0 < self.step <= 1,
            "buffer": self.buffer >= 1,
            "expand": 0 <= self.shrink < self.expand <= 1,
            "boundary_share": 0 < self.boundary_share <= 1,
        }
        for name, good in fits.items():
            if not good:
                raise RandomizationError(
                    f"{name}={getattr(self, name)!r} (shrink={self.shrink!r}): step and boundary_share must lie in (0, 1], "
                    "buffer must be 1 or more, and 0 <= shrink < expand <= 1"
                )

    @classmethod
    def around(
        cls, distributions: Mapping[str, Distribution], nominal: Mapping[str, Value], start: float = 0.0, **settings: Any
    ) -> AutomaticRandomization:
        """For these distributions around this nominal world, all at level `start`. settings: the class's other arguments."""
        edges: dict[str, list[str]] = {}
        for name, distribution in distributions.items():
            low, high = distribution.support(nominal[name])
            base = np.atleast_1d(np.asarray(nominal[name], float))
            sides = [HIGH] if distribution.discrete else [LOW] * bool((low < base).any()) + [HIGH] * bool((high > base).any())
            if sides:
                edges[name] = sides
        return cls({name: [start, start] for name in edges}, edges, **settings)

    def propose(self, rng: np.random.Generator) -> Proposal:
        """Levels for the next episode."""
        levels: dict[str, list[Any]] = {name: list(level) for name, level in self.levels.items()}
        boundaries = [(name, edge) for name, edges in self.edges.items() for edge in edges]
        if not boundaries or rng.random() >= self.boundary_share:
            return Proposal(levels)
        name, edge = boundaries[rng.integers(len(boundaries))]
        levels[name].append(edge)
        return Proposal(levels, name, edge)

    def record(self, proposal: Proposal, outcome: float) -> None:
        """Take in how the episode of a proposal went: success, or any measure in [0, 1]."""
        name, edge = proposal.parameter, proposal.edge
        if name is None or edge is None:
            return
        outcomes = self.outcomes.setdefault(name, {}).setdefault(edge, [])
        outcomes.append(float(outcome))
        if len(outcomes) < self.buffer:
            return
        mean = float(np.mean(outcomes))
        outcomes.clear()
        move = self.step * ((mean >= self.expand) - (mean <= self.shrink))
        sides = (0, 1) if len(self.edges[name]) == 1 else ((0,) if edge == LOW else (1,))
        for side in sides:
            self.levels[name][side] = float(np.clip(round(self.levels[name][side] + move, 12), 0.0, 1.0))

    def state(self) -> dict[str, Any]:
        """All of it as JSON values; AutomaticRandomization(**state) goes on from there."""
        return asdict(self)
