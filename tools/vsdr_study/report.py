"""What the tables say: how well every score orders the policies on every target, against simulation alone and the ceiling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from robopolicy.ranking import metrics
from robopolicy.ranking.backtest import measure
from robopolicy.ranking.combine import COMBINERS, combine
from robopolicy.ranking.detectors import DETECTORS
from robopolicy.ranking.pessimism import kl_robust
from robopolicy.ranking.statistics import cluster_bootstrap, percentile_interval, stream
from vsdr_study.distances import LAYERS, SPARSE
from vsdr_study.runs import COMMON, OWN, PLACEBO
from vsdr_study.tables import Tables

Array = np.ndarray
DEVELOPMENT_TARGET, TARGETS = "T0", ("T1", "T2", "T3")
K = (1, 3, 5)
KL_RADIUS = 0.1  # nats
RESAMPLES = 1000  # of configurations for Spearman, and permutations; a fifth of it for all other metrics
MIN_POLICIES = 3
ACTED = ("dynamics_gap", "support", "action_error", "fqe", "opc", "soft_opc")  # also need the target's actions, some rewards
FROZEN = ("vsdr", "sim", "ood", "vsdr_gap")
SHOWN = ("spearman", "kendall", "pearson", "mmrv", "regret@1", "regret@3", "regret@5", "sharpe@3", "best@1")


HEAD = f"{'score':34} {'Spearman':>22} {'Kendall':>8} {'MMRV':>6} {'regret@1':>9} {'@3':>6} {'@5':>6} {'hit@5':>6}"


class StudyError(ValueError):
    """What cannot be reported, and what to do."""


def scores(tables: Tables, target: str, observed: str | None = None) -> dict[str, Array]:
    """Every score of the policies for a target, larger = better [C], where at least MIN_POLICIES have it.

    observed: the target whose observations the detectors saw, if another (the placebo).
    """
    seen = observed or target
    common = tables.outcomes(COMMON)
    found = {
        "sim": common.mean(1),
        "sim_own": tables.outcomes(OWN).mean(1),
        "kl_robust": np.array([kl_robust(row, KL_RADIUS).value for row in common]),
        "width": tables.width,
    }
    found |= {name: tables.score(seen, name) for name in ACTED}
    for layer in LAYERS:
        for detector in DETECTORS:
            distance = tables.score(seen, detector, layer)
            found[f"ood:{layer}:{detector}"] = np.where(np.isnan(distance), -np.inf, -distance)
            for rule in COMBINERS:
                terms = [found["sim"], found[f"ood:{layer}:{detector}"]]
                found[f"vsdr:{layer}:{detector}:{rule}"] = combine(terms, rule)
                if np.isfinite(found["dynamics_gap"]).all():
                    found[f"vsdr_gap:{layer}:{detector}:{rule}"] = combine([*terms, found["dynamics_gap"]], rule)
    return {name: _last(values) for name, values in found.items() if np.isfinite(values).sum() >= MIN_POLICIES}


def _last(values: Array) -> Array:
    """Policies without the score share the last place."""
    known = np.isfinite(values)
    return np.where(known, values, values[known].min() - 1.0)


def choose(tables: Tables, seed: int) -> dict[str, Any]:
    """The variants that order the policies best on the development target, by Spearman: {"vsdr", "ood", ..., "spearman"}.

    OOD alone is the detector that the chosen VSDR has, so that the two differ in simulation only.
    """
    if len(tables.policies) < MIN_POLICIES:
        raise StudyError(f"{len(tables.policies)} policies in the tables: at least {MIN_POLICIES} are needed to choose by")
    real = tables.outcomes(DEVELOPMENT_TARGET).mean(1)
    found = {name: metrics.spearman(real, each) for name, each in scores(tables, DEVELOPMENT_TARGET).items()}
    chosen = {"sim": "sim"}
    for kind in ("vsdr", "vsdr_gap"):
        variants = {name: value for name, value in found.items() if name.startswith(f"{kind}:") and np.isfinite(value)}
        if variants:
            chosen[kind] = max(variants, key=lambda name: (round(variants[name], 4), name))
    if "vsdr" not in chosen:
        raise StudyError("no VSDR score orders the policies on T0: they all do equally well there, or none has an OOD score")
    _, layer, detector, _ = chosen["vsdr"].split(":")
    chosen["ood"] = f"ood:{layer}:{detector}"
    return {"chosen": chosen, "target": DEVELOPMENT_TARGET, "num_policies": len(real), "spearman": found, "seed": seed}


def report(tables: Tables, choice: Mapping[str, Any], seed: int, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Every target with the frozen variants and all others, the controls, and how many observations it takes."""
    chosen = choice["chosen"]
    result: dict[str, Any] = {"num_policies": len(tables.policies), "num_configs": len(set(tables.configs))}
    result |= {"chosen": chosen, "conventions": CONVENTIONS, "outcome": tables.outcome, "targets": {}}
    for target in (DEVELOPMENT_TARGET, *TARGETS):
        result["targets"][target] = _target(tables, target, chosen, seed, resamples)
    result["facts"] = {name: float(np.median(tables.facts[name].to_numpy())) for name in ("train_s", "play_s", "score_s")}
    return result


CONVENTIONS = {
    "real": "mean outcome over all episodes on the target",
    "intervals": "95 %, percentile bootstrap over training configurations (all seeds of one together)",
    "difference": "Spearman of VSDR less that of the other, the same resamples",
    "ceiling": "half of the target's episodes as a score for the other half: what noise in the truth leaves to gain",
    "random": "mean over random orders",
}


def _target(tables: Tables, target: str, chosen: Mapping[str, str], seed: int, resamples: int) -> dict[str, Any]:
    success = tables.outcomes(target)
    real, num = success.mean(1), success.shape[1]
    if np.ptp(real) == 0:
        raise StudyError(f"all {len(real)} policies have success {real[0]:.3f} on {target}: there is nothing to rank")
    every = scores(tables, target)
    named = {name: every[of] for name, of in chosen.items() if of in every}
    shown = {**named, **{name: values for name, values in every.items() if name not in named}}
    names = list(shown)
    draws = _resampled(real, [shown[name] for name in names], tables.configs, seed, resamples)
    found = {name: _line(real, shown[name], draws[:, at]) for at, name in enumerate(names)}
    for name in named:
        _widen(found[name], real, named[name], tables.configs, seed, resamples // 5)
    found["random"] = _random(real, seed, resamples // 5)
    first, second = success[:, : num // 2].mean(1), success[:, num // 2 :].mean(1)
    found["ceiling"] = _line(second, first, None)
    vsdr = names.index("vsdr")
    for rival in ("sim", "ood"):
        difference = draws[:, vsdr] - draws[:, names.index(rival)]
        value = found["vsdr"]["spearman"] - found[rival]["spearman"]
        found["vsdr"][f"minus_{rival}"], found["vsdr"][f"minus_{rival}_ci"] = value, list(percentile_interval(difference))
    facts = {"mean": real.mean(), "best": real.max(), "worst": real.min(), "episodes": num}
    placebo = scores(tables, target, observed=PLACEBO)
    controls = _controls(every, placebo, chosen, real, seed, resamples)
    sizes = _by_size(tables, target, chosen, real, every["sim"])
    return {**found, "success": {name: float(v) for name, v in facts.items()}, "controls": controls, "by_size": sizes}


def _resampled(real: Array, predicted: Sequence[Array], configs: Sequence[str], seed: int, resamples: int) -> Array:
    """Spearman of each score over resampled configurations [B, S]."""

    return cluster_bootstrap(
        lambda at: spearmans(real[at], np.stack(predicted)[:, at]), configs, stream(seed, "study", len(real)), resamples
    )


def spearmans(real: Array, predicted: Array) -> Array:
    """Rank correlation of each row of predicted [S, C] with real [C]: [S]; NaN where either is constant."""
    places = [stats.rankdata(values, axis=-1) for values in (np.atleast_2d(real), predicted)]
    ours, theirs = (p - p.mean(-1, keepdims=True) for p in places)
    norm = np.sqrt((ours**2).sum(-1) * (theirs**2).sum(-1))
    return np.where(norm > 0, (ours * theirs).sum(-1) / np.where(norm > 0, norm, 1.0), np.nan)


def _line(real: Array, predicted: Array, draws: Array | None) -> dict[str, Any]:
    found = measure(real, predicted, K, float(real.mean()))
    line: dict[str, Any] = {name: found[name] for name in SHOWN}
    line |= {f"hit@{k}": float(metrics.top_k_hit(real, predicted, k)) for k in K}
    return line if draws is None else {**line, "spearman_ci": list(percentile_interval(draws))}


def _widen(line: dict[str, Any], real: Array, predicted: Array, configs: Sequence[str], seed: int, resamples: int) -> None:
    """Intervals of all other metrics, for the scores that count."""

    def statistic(at: Array) -> list[float]:
        found = measure(real[at], predicted[at], K, float(real[at].mean()))
        return [found[name] for name in SHOWN]

    draws = cluster_bootstrap(statistic, configs, stream(seed, "study", len(real)), resamples)
    line |= {f"{name}_ci": list(percentile_interval(draws[:, at])) for at, name in enumerate(SHOWN) if name != "spearman"}


def _random(real: Array, seed: int, repeats: int) -> dict[str, Any]:
    generator = stream(seed, "random", len(real))
    lines = [_line(real, generator.permutation(len(real)).astype(float), None) for _ in range(repeats)]
    return {name: float(np.nanmean([line[name] for line in lines])) for name in lines[0]}


def _controls(
    own: Mapping[str, Array],
    placebo: Mapping[str, Array],
    chosen: Mapping[str, str],
    real: Array,
    seed: int,
    permutations: int,
) -> dict[str, Any]:
    """What the OOD term adds when it cannot know anything, and where a policy that sees nothing lands.

    own, placebo: `scores` from the target's observations, and from those of the policies' own training worlds.
    """
    rule = chosen["vsdr"].split(":")[-1]
    sim, ood = own["sim"], own[chosen["ood"]]
    alone = metrics.spearman(real, sim)
    gain = metrics.spearman(real, own[chosen["vsdr"]]) - alone
    generator = stream(seed, "permuted", len(real))
    permuted = (
        spearmans(real, combine([sim, np.stack([generator.permutation(ood) for _ in range(permutations)])], rule)) - alone
    )
    blind = combine([np.append(sim, sim.max()), np.append(ood, -np.inf)], rule)
    return {
        "gain": gain,
        "permuted_gain_ci": list(percentile_interval(permuted)),
        "permuted_p": float((1 + (permuted >= gain).sum()) / (1 + len(permuted))),
        "placebo_gain": metrics.spearman(real, placebo[chosen["vsdr"]]) - alone if chosen["vsdr"] in placebo else None,
        "constant_encoder_place": int(1 + (blind[:-1] > blind[-1]).sum()),
        "of_policies": len(blind),
    }


def _by_size(tables: Tables, target: str, chosen: Mapping[str, str], real: Array, sim: Array) -> dict[str, Any]:
    """Spearman of VSDR by the number of observations: the chosen layer and rule, the detector that was tried on fewer."""
    _, layer, _, rule = chosen["vsdr"].split(":")
    found: dict[str, Any] = {"detector": SPARSE, "layer": layer}
    for size, draws in tables.smaller(target).items():
        distances = [tables.score(target, SPARSE, layer, size, draw) for draw in draws]
        values = [metrics.spearman(real, _last(combine([sim, np.where(np.isnan(d), -np.inf, -d)], rule))) for d in distances]
        found[str(size)] = {"mean": float(np.mean(values)), "least": float(np.min(values)), "most": float(np.max(values))}
    return found


def choice_table(found: Mapping[str, Any]) -> str:
    """For people."""
    best = sorted(found["spearman"].items(), key=lambda item: -np.nan_to_num(item[1], nan=-2))
    lines = [f"{name:48} {value:+.3f}" for name, value in best if not name.startswith("vsdr")]
    lines += [f"{name:48} {value:+.3f}" for name, value in best if name.startswith("vsdr")][:12]
    return "\n".join([f"Spearman on {found['target']}, {found['num_policies']} policies", *lines, f"chosen: {found['chosen']}"])


def as_text(result: Mapping[str, Any]) -> str:
    """For people: the scores that count on every target."""
    lines = [f"{result['num_policies']} policies of {result['num_configs']} randomisations; chosen on T0: {result['chosen']}"]
    for target, found in result["targets"].items():
        success = found["success"]
        mean, best, episodes = (success[name] for name in ("mean", "best", "episodes"))
        lines.append(f"\n{target}: success {mean:.2f} on average, best {best:.2f}, {episodes:.0f} episodes")
        lines.append(HEAD)
        rows = [name for name in found if isinstance(found[name], dict) and "spearman" in found[name]]
        rows = [name for name in rows if ":" not in name] + [name for name in rows if name.startswith("ood:")]
        lines += [_text_row(name, found[name]) for name in rows]
        for rival in ("sim", "ood"):
            low, high = found["vsdr"][f"minus_{rival}_ci"]
            lines.append(f"  VSDR - {rival}: {found['vsdr'][f'minus_{rival}']:+.3f} [{low:+.3f}, {high:+.3f}]")
        control = found["controls"]
        lines.append(
            f"  gain {control['gain']:+.3f}; permuted OOD {control['permuted_gain_ci'][0]:+.3f} .. "
            f"{control['permuted_gain_ci'][1]:+.3f} (p {control['permuted_p']:.3f}); placebo "
            f"{'-' if control['placebo_gain'] is None else format(control['placebo_gain'], '+.3f')}; constant encoder "
            f"{control['constant_encoder_place']} of {control['of_policies']}"
        )
    return "\n".join(lines)


def _text_row(name: str, line: Mapping[str, Any]) -> str:
    interval = line.get("spearman_ci")
    shown = f"{line['spearman']:+.3f}" + (f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else "")
    return (
        f"{name:34} {shown:>22} {line['kendall']:+8.3f} {line['mmrv']:6.3f} {line['regret@1']:9.3f} {line['regret@3']:6.3f} "
        f"{line['regret@5']:6.3f} {line['hit@5']:6.2f}"
    )
