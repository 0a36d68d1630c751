"""What the tables say: how well every score orders the policies on every target, against simulation alone and the ceiling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from robopolicy.ranking import metrics
from robopolicy.ranking.agreement import split_half_reliability
from robopolicy.ranking.backtest import measure
from robopolicy.ranking.combine import COMBINERS, combine
from robopolicy.ranking.detectors import DETECTORS
from robopolicy.ranking.pessimism import kl_robust
from robopolicy.ranking.statistics import cluster_bootstrap, percentile_interval, stream
from vsdr_study.design import targets
from vsdr_study.distances import LAYERS, SPARSE
from vsdr_study.runs import COMMON, OWN
from vsdr_study.tables import Tables

Array = np.ndarray
DEVELOPMENT_TARGET, TARGETS = "T0", ("T1", "T2", "T3")
K = (1, 3, 5)
KL_RADIUS = 0.1  # nats
RESAMPLES = 1000  # of configurations for Spearman; a fifth of it for all other metrics
MIN_POLICIES = 1 + max(K)
ACTED = ("dynamics_gap", "support", "action_error", "fqe", "opc", "soft_opc")  # also need the target's actions, some rewards
SIMULATED = ("sim", "sim_own", "kl_robust")  # of simulation alone
RIVALS = ("sim", "sim_best", "ood", "ood_best", "sim_width")  # what VSDR is compared with, on the same resamples
SHOWN = ("spearman", "kendall", "pearson", "mmrv", "regret@1", "regret@3", "regret@5", "sharpe@3", "best@1")
WIDENED = ("kendall", "pearson", "mmrv")  # have intervals too; copies of a configuration would crowd the best k

HEAD = f"{'score':34} {'n':>3} {'Spearman':>22} {'Kendall':>8} {'MMRV':>6} {'regret@1':>9} {'@3':>6} {'@5':>6} {'hit@5':>6}"


class StudyError(ValueError):
    """What cannot be reported, and what to do."""


def scores(tables: Tables, target: str, observed: str | None = None) -> dict[str, Array]:
    """Every score of the policies for a target, larger = better [C], NaN for those without it, where MIN_POLICIES have it.

    observed: the target whose observations the detectors saw, if another (or the placebo).
    """
    seen, common = observed or target, tables.outcomes(COMMON)
    progress = tables.progress(COMMON)  # of success alone it would be another name for the mean
    found = {
        "sim": common.mean(1),
        "sim_own": tables.outcomes(OWN).mean(1),
        "kl_robust": np.array([kl_robust(row, KL_RADIUS).value for row in progress]),
        "width": tables.width,
    }
    found |= {name: tables.score(seen, name) for name in ACTED}
    found |= {f"sim_width:{rule}": combine([found["sim"], found["width"]], rule) for rule in COMBINERS}
    distance = closeness(tables, seen)
    found |= {f"ood:{name}": _last(values) for name, values in distance.items()}
    found |= variants(found["sim"], distance)
    if np.isfinite(found["dynamics_gap"]).sum() >= MIN_POLICIES:
        gap = {f"vsdr_gap:{name}": [found["sim"], values, found["dynamics_gap"]] for name, values in distance.items()}
        found |= {f"{name}:{rule}": combine(terms, rule) for name, terms in gap.items() for rule in COMBINERS}
    return {name: values for name, values in found.items() if np.isfinite(values).sum() >= MIN_POLICIES}


def closeness(tables: Tables, observed: str) -> dict[str, Array]:
    """{layer:detector: minus the distance of the observations [C]}; -inf for an encoder in which it cannot be told."""
    each = {(layer, detector): tables.score(observed, detector, layer) for layer in LAYERS for detector in DETECTORS}
    return {f"{layer}:{detector}": _close(distance) for (layer, detector), distance in each.items()}


def _close(distance: Array) -> Array:
    return np.where(np.isnan(distance), -np.inf, -distance)


def variants(sim: Array, distance: Mapping[str, Array]) -> dict[str, Array]:
    """Every VSDR [..., C] of simulated success [C] and closeness [..., C]."""
    return {f"vsdr:{name}:{rule}": combine([sim, values], rule) for name, values in distance.items() for rule in COMBINERS}


def _last(values: Array) -> Array:
    """Disqualified policies share the last place."""
    known = np.isfinite(values)
    return np.where(known, values, values[known].min() - 1.0) if known.any() else values


def choose(tables: Tables, seed: int) -> dict[str, Any]:
    """The variants that order the policies best on the development target, by Spearman: {"vsdr", "ood", ..., "spearman"}.

    "ood" is the detector that the chosen VSDR has, so that the two differ in simulation only; "ood_best" and "sim_best" are
    chosen as VSDR is; "sim_width" knows of the target nothing at all: simulation and how wide the training worlds were.
    """
    if len(tables.policies) < MIN_POLICIES:
        raise StudyError(f"{len(tables.policies)} policies in the tables: at least {MIN_POLICIES} are needed to choose by")
    real = tables.outcomes(DEVELOPMENT_TARGET).mean(1)
    found = {name: spearman(real, each) for name, each in scores(tables, DEVELOPMENT_TARGET).items()}
    best = {kind: _best(found, f"{kind}:") for kind in ("vsdr", "vsdr_gap", "ood")}
    if best["vsdr"] is None:
        raise StudyError("no VSDR score orders the policies on T0: they all do equally well there, or none has an OOD score")
    _, layer, detector, rule = best["vsdr"].split(":")
    chosen = {"vsdr": best["vsdr"], "vsdr_gap": best["vsdr_gap"], "sim": "sim", "ood": f"ood:{layer}:{detector}"}
    chosen |= {"ood_best": best["ood"], "sim_best": max(SIMULATED, key=lambda name: np.nan_to_num(found[name], nan=-2.0))}
    chosen["sim_width"] = f"sim_width:{rule}"
    chosen = {name: of for name, of in chosen.items() if of is not None}
    return {"chosen": chosen, "target": DEVELOPMENT_TARGET, "num_policies": len(real), "spearman": found, "seed": seed}


def _best(found: Mapping[str, float], kind: str) -> str | None:
    """The variant of a kind that orders best; None where none orders."""
    known = {name: value for name, value in found.items() if name.startswith(kind) and np.isfinite(value)}
    return max(known, key=lambda name: (round(known[name], 4), name)) if known else None


def report(tables: Tables, choice: Mapping[str, Any], seed: int, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Every target with the frozen variants and all others, and how many observations it takes.

    The choice stays as it was made, on as many policies as there were then; more may have come.

    Raises:
        StudyError: there were more when the choice was made, or the runs were shown different observations.
    """
    if choice["num_policies"] > len(tables.policies):
        raise StudyError(
            f"the choice was made on {choice['num_policies']} policies, of which only {len(tables.policies)} are left"
        )
    for target in targets():
        if len(shown := set(tables.facts[f"{target}_hash"].to_pylist())) > 1:
            raise StudyError(f"the runs were shown {len(shown)} different sets of observations of {target}: play them anew")
    result: dict[str, Any] = {"num_policies": len(tables.policies), "num_configs": len(set(tables.configs))}
    result |= {
        "chosen": choice["chosen"],
        "chosen_on": choice["num_policies"],
        "conventions": CONVENTIONS,
        "outcome": tables.outcome,
        "targets": {},
    }
    for target in (DEVELOPMENT_TARGET, *TARGETS):
        result["targets"][target] = _target(tables, target, choice["chosen"], seed, resamples)
    result["by_seed"] = {each: _alone(tables.of_seed(each), choice["chosen"], seed, resamples) for each in tables.seeds}
    result["commits"] = sorted(set(tables.facts["commit"].to_pylist()))
    result["facts"] = {name: float(np.median(tables.facts[name].to_numpy())) for name in ("train_s", "play_s", "score_s")}
    return result


CONVENTIONS = {
    "real": "mean outcome over all episodes on the target",
    "intervals": "95 %, percentile bootstrap over training configurations (all seeds of one together)",
    "minus_X": "Spearman of VSDR less that of X, the same resamples; the variant that was chosen on T0 stays",
    "ceiling": "Spearman that a score without error could have: root of the truth's reliability (random halves, stepped up)",
    "mmrv": "predicted ties of really different policies count",
    "n": "policies that have the score; sim_spearman beside it is simulation's on those",
    "random": "mean over random orders",
    "early": "a second pool, alone and with the last checkpoints of its trainings; lost: success, by the one of two taken",
    "by_seed": "the policies of one training seed, ranked among themselves",
}


def _target(tables: Tables, target: str, chosen: Mapping[str, str], seed: int, resamples: int) -> dict[str, Any]:
    success = tables.outcomes(target)
    real = success.mean(1)
    if np.ptp(real) == 0:
        raise StudyError(f"all {len(real)} policies have success {real[0]:.3f} on {target}: there is nothing to rank")
    every = scores(tables, target)
    named = {name: every[of] for name, of in chosen.items() if of in every}
    shown = {**named, **{name: values for name, values in every.items() if name not in named}}
    whole = [name for name, values in shown.items() if np.isfinite(values).all()]
    draws = _resampled(real, [shown[name] for name in whole], tables.configs, seed, resamples)
    found: dict[str, Any] = {name: _line(real, shown[name], draws[:, at]) for at, name in enumerate(whole)}
    for name in shown:
        if name not in found:
            found[name] = _partial(real, shown[name], every["sim"], tables.configs, seed, resamples)
    for name in named:
        _widen(found[name], real, named[name], tables.configs, seed, resamples // 5)
    found["random"] = _random(real, seed, resamples // 5)
    for rival in (name for name in RIVALS if name in named):
        difference = draws[:, whole.index("vsdr")] - draws[:, whole.index(rival)]
        found["vsdr"][f"minus_{rival}"] = found["vsdr"]["spearman"] - found[rival]["spearman"]
        found["vsdr"][f"minus_{rival}_ci"] = list(percentile_interval(difference))
    facts = {"mean": real.mean(), "best": real.max(), "worst": real.min(), "episodes": success.shape[1]}
    found["success"] = {name: float(v) for name, v in facts.items()}
    return {**found, "ceiling": ceiling(success, seed), "by_size": _by_size(tables, target, chosen, real, every["sim"])}


def _alone(tables: Tables, chosen: Mapping[str, str], seed: int, resamples: int) -> dict[str, Any]:
    """{target: {"vsdr", "sim", "ood": Spearman, "minus_sim", "minus_ood": difference, intervals}} of one seed's policies.

    A seed that came after the choice is a pool no policy of which took part in it.
    """
    found: dict[str, Any] = {}
    for target in (DEVELOPMENT_TARGET, *TARGETS) if len(tables.policies) >= MIN_POLICIES else ():
        real, every = tables.outcomes(target).mean(1), scores(tables, target)
        shown = {name: every[chosen[name]] for name in ("vsdr", "sim", "ood") if chosen[name] in every}
        if len(shown) < 3 or not all(np.isfinite(values).all() for values in shown.values()):
            continue
        draws = _resampled(real, list(shown.values()), tables.configs, seed, resamples)
        line: dict[str, Any] = {"num_policies": len(real)}
        for at, (name, values) in enumerate(shown.items()):
            line |= {name: spearman(real, values), f"{name}_ci": list(percentile_interval(draws[:, at]))}
            if at:
                line[f"minus_{name}"] = line["vsdr"] - line[name]
                line[f"minus_{name}_ci"] = list(percentile_interval(draws[:, 0] - draws[:, at]))
        found[target] = line
    return found


def early_checkpoints(
    tables: Tables, early: Tables, chosen: Mapping[str, str], seed: int, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """A second pool, of early checkpoints: alone, as one pool with the last checkpoints of their trainings, and in pairs."""
    both = early.together(tables.only([policy.partition("@")[0] for policy in early.policies]))
    found: dict[str, Any] = {"num_policies": len(early.policies), "alone": _alone(early, chosen, seed, resamples)}
    found["with_last"] = _alone(both, chosen, seed, resamples)
    found["pairs"] = {target: _pairs(both, target, chosen, seed, resamples) for target in (DEVELOPMENT_TARGET, *TARGETS)}
    return found


def _pairs(tables: Tables, target: str, chosen: Mapping[str, str], seed: int, resamples: int) -> dict[str, Any]:
    """Which of two checkpoints of a training to take, by every score and by taking the last: the success that is lost."""
    at = {policy: place for place, policy in enumerate(tables.policies)}
    pairs = np.array([(place, at[policy.partition("@")[0]]) for policy, place in at.items() if "@" in policy])
    configs = [tables.configs[early] for early, _ in pairs]
    every, real = scores(tables, target), tables.outcomes(target).mean(1)[pairs]
    shown = {name: every[chosen[name]][pairs] for name in ("vsdr", "sim", "ood") if chosen[name] in every}
    found: dict[str, Any] = {"num_pairs": len(pairs), "early_better": float((real[:, 0] > real[:, 1]).mean())}
    for name, values in {**shown, "last": np.tile([0.0, 1.0], (len(pairs), 1))}.items():
        best = values == values.max(1, keepdims=True)
        lost = real.max(1) - (real * best).sum(1) / best.sum(1)  # of equals either is taken
        draws = cluster_bootstrap(
            lambda rows, lost=lost: lost[rows].mean(), configs, stream(seed, "pairs", len(lost)), resamples
        )
        found[name] = {"lost": float(lost.mean()), "lost_ci": list(percentile_interval(draws))}
    return found


def ceiling(success: Array, seed: int) -> float:
    """Spearman with the measured success [C, K] that the true one can be expected to have."""
    once = np.ones(success.shape[1])
    return float(np.sqrt(max(split_half_reliability(success, once, stream(seed, "ceiling", len(success))), 0.0)))


def _partial(real: Array, predicted: Array, sim: Array, configs: Sequence[str], seed: int, resamples: int) -> dict[str, Any]:
    """The line of a score that some policies lack, judged on those that have it, and simulation's Spearman on the same."""
    at = np.flatnonzero(np.isfinite(predicted))
    draws = _resampled(real[at], [predicted[at]], [configs[i] for i in at], seed, resamples)
    return {**_line(real[at], predicted[at], draws[:, 0]), "sim_spearman": spearman(real[at], sim[at])}


def _resampled(real: Array, predicted: Sequence[Array], configs: Sequence[str], seed: int, resamples: int) -> Array:
    """Spearman of each score over resampled configurations [B, S]."""

    return cluster_bootstrap(
        lambda at: spearmans(real[at], np.stack(predicted)[:, at]), configs, stream(seed, "study", len(real)), resamples
    )


def spearman(real: Array, predicted: Array) -> float:
    """Rank correlation of the policies that have the score; NaN where either is constant."""
    at = np.isfinite(predicted)
    return float(spearmans(real[at], predicted[at])[0]) if at.sum() > 1 else float("nan")


def spearmans(real: Array, predicted: Array) -> Array:
    """Rank correlation of each row of predicted [S, C] (or [C]) with real [C]: [S]; NaN where either is constant."""
    places = [stats.rankdata(np.atleast_2d(values), axis=-1) for values in (real, predicted)]
    ours, theirs = (p - p.mean(-1, keepdims=True) for p in places)
    norm = np.sqrt((ours**2).sum(-1) * (theirs**2).sum(-1))
    return np.where(norm > 0, (ours * theirs).sum(-1) / np.where(norm > 0, norm, 1.0), np.nan)


def _line(real: Array, predicted: Array, draws: Array | None) -> dict[str, Any]:
    found = measure(real, predicted, K, float(real.mean()))
    line: dict[str, Any] = {"num": len(real), **{name: found[name] for name in SHOWN}}
    line |= {f"hit@{k}": float(metrics.top_k_hit(real, predicted, k)) for k in K}
    return line if draws is None else {**line, "spearman_ci": list(percentile_interval(draws))}


def _widen(line: dict[str, Any], real: Array, predicted: Array, configs: Sequence[str], seed: int, resamples: int) -> None:
    """Intervals of the further metrics that resampled configurations allow, for the scores that count."""
    known = np.flatnonzero(np.isfinite(predicted))

    def statistic(at: Array) -> list[float]:
        rows = known[at]
        found = measure(real[rows], predicted[rows], (), float(real[rows].mean()))
        return [found[name] for name in WIDENED]

    draws = cluster_bootstrap(statistic, [configs[i] for i in known], stream(seed, "study", len(real)), resamples)
    line |= {f"{name}_ci": list(percentile_interval(draws[:, at])) for at, name in enumerate(WIDENED)}


def _random(real: Array, seed: int, repeats: int) -> dict[str, Any]:
    generator = stream(seed, "random", len(real))
    lines = [_line(real, generator.permutation(len(real)).astype(float), None) for _ in range(repeats)]
    return {name: float(np.nanmean([line[name] for line in lines])) for name in lines[0]}


def _by_size(tables: Tables, target: str, chosen: Mapping[str, str], real: Array, sim: Array) -> dict[str, Any]:
    """Spearman of VSDR by the number of observations: the chosen layer and rule, the detector that was tried on fewer."""
    _, layer, _, rule = chosen["vsdr"].split(":")
    found: dict[str, Any] = {"detector": SPARSE, "layer": layer}
    for size, draws in tables.smaller(target).items():
        distances = [tables.score(target, SPARSE, layer, size, draw) for draw in draws]
        values = [spearman(real, combine([sim, _close(distance)], rule)) for distance in distances]
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
    lines = [f"{result['num_policies']} policies of {result['num_configs']} randomisations"]
    lines += [f"chosen on T0, with {result['chosen_on']} policies:"]
    lines += [f"  {name}: {of}" for name, of in result["chosen"].items()]
    for target, found in result["targets"].items():
        success = found["success"]
        mean, best, episodes = (success[name] for name in ("mean", "best", "episodes"))
        lines.append(f"\n{target}: success {mean:.2f} on average, best {best:.2f}, {episodes:.0f} episodes")
        lines.append(HEAD)
        rows = [name for name in found if isinstance(found[name], dict) and "spearman" in found[name]]
        rows = [name for name in rows if ":" not in name] + [name for name in rows if name.startswith("ood:")]
        lines += [_text_row(name, found[name]) for name in rows]
        lines.append(f"  ceiling {found['ceiling']:+.3f}")
        for rival in (name for name in RIVALS if f"minus_{name}" in found["vsdr"]):
            low, high = found["vsdr"][f"minus_{rival}_ci"]
            lines.append(f"  VSDR - {rival}: {found['vsdr'][f'minus_{rival}']:+.3f} [{low:+.3f}, {high:+.3f}]")
        lines += [f"  {name}: {_text_control(value)}" for name, value in found.get("controls", {}).items()]
        near = result.get("trials", {}).get(target, {}).get("episodes_until_near", {})
        lines += [f"  episodes until near the best, {name}: {_until(each)}" for name, each in near.items()]
    for each, alone in result["by_seed"].items():
        lines += [f"seed {each} alone, {target}: {_text_control(line)}" for target, line in alone.items()]
    for of in ("alone", "with_last", "pairs") if "early" in result else ():
        lines += [f"early checkpoints, {of}, {target}: {_text_control(line)}" for target, line in result["early"][of].items()]
    return "\n".join(lines)


def _until(each: Mapping[str, Any]) -> str:
    return f"{each['episodes']:.0f}" if each["episodes"] is not None else f"not within {each['within']:.0f}"


def _text_control(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text_control(each)}" for name, each in value.items())
    if isinstance(value, list):
        return f"[{', '.join(map(_text_control, value))}]"
    return f"{value:+.3f}" if isinstance(value, float) else str(value)


def _text_row(name: str, line: Mapping[str, Any]) -> str:
    interval = line.get("spearman_ci")
    shown = f"{line['spearman']:+.3f}" + (f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else "")
    text = (
        f"{name:34} {line['num']:3.0f} {shown:>22} {line['kendall']:+8.3f} {line['mmrv']:6.3f} {line['regret@1']:9.3f} "
        f"{line['regret@3']:6.3f} {line['regret@5']:6.3f} {line['hit@5']:6.2f}"
    )
    return text + (f"  (sim on those {line['sim_spearman']:+.3f})" if "sim_spearman" in line else "")
