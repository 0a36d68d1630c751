"""What the OOD term adds when it cannot know anything, and how much of the gain is the choosing of a variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robopolicy.ranking.combine import combine
from robopolicy.ranking.statistics import percentile_interval, stream
from vsdr_study.report import DEVELOPMENT_TARGET, TARGETS, closeness, spearman, spearmans, variants
from vsdr_study.runs import COMMON, PLACEBO
from vsdr_study.tables import Tables

Array = np.ndarray
PERMUTATIONS = 300
HALVES = 500


def controls(
    tables: Tables, target: str, chosen: Mapping[str, str], seed: int, permutations: int = PERMUTATIONS, halves: int = HALVES
) -> dict[str, Any]:
    """Spearman gained over simulation alone on a target, and what is gained without knowledge.

    permuted: every configuration has the distances of another one, seed by seed, on T0 and on the target alike, and the variant
        is chosen anew on T0: what a choice among as many variants that know nothing gains. p: share that gains as much.
    halves: the variant is chosen on half of the configurations and judged on the other half.
    placebo: observations of a policy's own training worlds. other_observations: those of the other targets.
    constant_encoder_place: of a policy with the best simulated success whose encoder sees nothing.
    """
    real, sim = tables.outcomes(target).mean(1), tables.outcomes(COMMON).mean(1)
    _, layer, detector, rule = chosen["vsdr"].split(":")
    alone, ood = spearman(real, sim), closeness(tables, target)[f"{layer}:{detector}"]

    def gained(observed: str) -> float:
        return spearman(real, combine([sim, closeness(tables, observed)[f"{layer}:{detector}"]], rule)) - alone

    gain = gained(target)
    shuffled = _permuted(tables, target, stream(seed, "permuted", len(real)), permutations)
    found: dict[str, Any] = {"gain": gain, "permuted_mean": float(shuffled.mean())}
    found |= {"permuted_ci": list(percentile_interval(shuffled))}
    found["permuted_p"] = float((1 + (shuffled >= gain).sum()) / (1 + len(shuffled)))
    found["halves"] = _halves(tables, target, stream(seed, "halves", len(real)), halves)
    found["placebo_gain"] = gained(PLACEBO)
    others = (name for name in (DEVELOPMENT_TARGET, *TARGETS) if name != target)
    found["gain_with_observations_of"] = {name: gained(name) for name in others}
    blind = combine([np.append(sim, sim.max()), np.append(ood, -np.inf)], rule)
    return {**found, "constant_encoder_place": int(1 + (blind[:-1] > blind[-1]).sum()), "of_policies": len(blind)}


def _permuted(tables: Tables, target: str, generator: np.random.Generator, num: int) -> Array:
    """Gains [num] of variants chosen on T0, with configurations exchanged in the OOD term."""
    orders = np.stack([exchanged(tables.policies, tables.configs, generator) for _ in range(num)])
    sim = tables.outcomes(COMMON).mean(1)
    agreed = []
    for name in (DEVELOPMENT_TARGET, target):
        real = tables.outcomes(name).mean(1)
        shown = {of: values[orders] for of, values in closeness(tables, name).items()}
        agreed.append(np.stack([spearmans(real, each) for each in variants(sim, shown).values()]))
    best = np.argmax(np.nan_to_num(agreed[0], nan=-2.0), axis=0)
    return agreed[1][best, np.arange(num)] - spearman(tables.outcomes(target).mean(1), sim)


def exchanged(policies: Sequence[str], configs: Sequence[str], generator: np.random.Generator) -> Array:
    """An order [C] in which every policy has the place of one of the same seed of another configuration that has as many."""
    place = {policy: at for at, policy in enumerate(policies)}
    seeds: dict[str, list[str]] = {}
    for policy, config in zip(policies, configs, strict=True):
        seeds.setdefault(config, []).append(policy.rpartition("/")[2])
    alike: dict[tuple[str, ...], list[str]] = {}
    for config, found in seeds.items():
        alike.setdefault(tuple(sorted(found)), []).append(config)
    order = np.arange(len(policies))
    for having, members in alike.items():
        for config, other in zip(members, generator.permutation(members), strict=True):
            for seed in having:
                order[place[f"{config}/{seed}"]] = place[f"{other}/{seed}"]
    return order


def _halves(tables: Tables, target: str, generator: np.random.Generator, num: int) -> dict[str, Any]:
    """Spearman on the half of the configurations that the variant was not chosen on."""
    sim, names = tables.outcomes(COMMON).mean(1), sorted(set(tables.configs))
    reals = [tables.outcomes(name).mean(1) for name in (DEVELOPMENT_TARGET, target)]
    known = [np.stack(list(variants(sim, closeness(tables, name)).values())) for name in (DEVELOPMENT_TARGET, target)]
    config, rows = np.array(tables.configs), []
    for _ in range(num):
        first = np.isin(config, generator.permutation(names)[: len(names) // 2])
        best = int(np.argmax(np.nan_to_num(spearmans(reals[0][first], known[0][:, first]), nan=-2.0)))
        rows.append([spearman(reals[1][~first], values[~first]) for values in (known[1][best], sim)])
    vsdr, alone = np.array(rows).T
    kept = np.isfinite(vsdr) & np.isfinite(alone)
    difference = (vsdr - alone)[kept]
    return {
        "vsdr": float(vsdr[kept].mean()),
        "sim": float(alone[kept].mean()),
        "difference": float(difference.mean()),
        "range": list(percentile_interval(difference)),
        "share_above": float((difference > 0).mean()),
    }
