"""Properties of the statistics of a pool: separation, seeds, shrinkage, sample sizes, halving, co-kriging, advice."""

import itertools
import json

import numpy as np
import pytest
from scipy import stats

from robopolicy.ranking import (
    CoKriging,
    allocation,
    confirm,
    detectable_difference,
    episodes_to_separate,
    fisher_matrix,
    fit_cokriging,
    halving_plan,
    hopeless,
    mcnemar,
    mcnemar_matrix,
    next_real,
    plateaued,
    posterior_draws,
    power_to_separate,
    rank_summary,
    seed_variance,
    sequential_halving,
    shrink,
    stream,
    survivors,
    tie_groups,
    variance_components,
    wald_matrix,
)

# ---- places


def test_rank_summary_of_joint_draws():
    common = stream(0, "common").normal(size=(4000, 1))  # what all share must cancel
    draws = np.array([0.9, 0.8, 0.2]) + 0.05 * stream(0, "own").normal(size=(4000, 3)) + 5 * common
    found = rank_summary(draws, k=(1, 2, 3))
    np.testing.assert_array_equal(found.median, [1, 2, 3])
    np.testing.assert_array_equal((found.low, found.high), [[1, 1, 3], [2, 2, 3]])
    expected = stats.norm.cdf(0.1 / (0.05 * np.sqrt(2)))
    assert found.prob_best == pytest.approx([expected, 1 - expected, 0], abs=0.02)
    for k, probability in found.prob_top.items():
        assert probability.sum() == pytest.approx(k)
    for bad, message in [(np.zeros(3), "give \\[B, C\\]"), ([[0.1, np.nan]], "NaN")]:
        with pytest.raises(ValueError, match=message):
            rank_summary(bad, k=(1,))
    with pytest.raises(ValueError, match="k=4 for 3"):
        rank_summary(draws, k=(4,))


def test_mcnemar_of_all_pairs_is_mcnemar_of_each():
    outcomes = np.random.default_rng(0).random((5, 40)) < np.linspace(0.1, 0.9, 5)[:, None]
    p = mcnemar_matrix(outcomes)
    for i, j in itertools.product(range(5), repeat=2):
        assert p[i, j] == pytest.approx(mcnemar(outcomes[i], outcomes[j])[2])


def test_fisher_of_all_pairs_is_fishers_test_of_each():
    rng = np.random.default_rng(0)
    trials = np.array([1, 3, 20, 20, 20, 40, 2000])
    won = rng.binomial(trials, rng.uniform(0.2, 0.8, 7))
    found = fisher_matrix(won, trials)
    for i, j in itertools.permutations(range(7), 2):
        table = [[won[i], trials[i] - won[i]], [won[j], trials[j] - won[j]]]
        assert found[i, j] == pytest.approx(stats.fisher_exact(table).pvalue, rel=1e-9)
    with pytest.raises(ValueError, match="needs 0 <= successes <= trials"):
        fisher_matrix([3], [2])


def test_tie_groups_are_the_connected_sets_of_pairs_not_separated():
    p = np.ones((5, 5))
    for i, j in [(0, 1), (0, 2), (0, 3), (0, 4), (1, 4), (2, 4), (3, 4), (1, 3)]:
        p[i, j] = p[j, i] = 1e-4
    # 1 - 2 and 2 - 3 tie, so 1, 2 and 3 form one chain although 1 and 3 differ
    np.testing.assert_array_equal(tie_groups(p, [0.1, 0.5, 0.6, 0.7, 0.9]), [2, 1, 1, 1, 0])
    np.testing.assert_array_equal(tie_groups(np.ones((3, 3)), [1, 2, 3]), [0, 0, 0])
    with pytest.raises(ValueError, match="give \\[C, C\\]"):
        tie_groups(p, [1, 2])


def test_equal_policies_are_seldom_told_apart_and_different_ones_are():
    rng, split = np.random.default_rng(1), 0
    for _ in range(100):
        outcomes = rng.random((8, 50)) < 0.6
        split += tie_groups(mcnemar_matrix(outcomes), outcomes.mean(axis=1)).max() > 0
    assert split <= 5
    clear = rng.random((6, 300)) < np.repeat([0.9, 0.3], 3)[:, None]
    np.testing.assert_array_equal(tie_groups(mcnemar_matrix(clear), clear.mean(axis=1)), [0, 0, 0, 1, 1, 1])


def test_wald_uses_the_paired_difference():
    rng = np.random.default_rng(2)
    shared, own = rng.normal(size=(5000, 1)), 0.1 * rng.normal(size=(5000, 2))
    paired = wald_matrix([0.0, 0.5], shared + own)[0, 1]
    assert paired == pytest.approx(2 * stats.norm.sf(0.5 / (0.1 * np.sqrt(2))), rel=0.3)
    assert wald_matrix([0.0, 0.5], rng.normal(size=(5000, 2)))[0, 1] > 0.5
    np.testing.assert_array_equal(wald_matrix([1.0, 1.0], np.ones((5, 2))), 1)


# ---- training seeds


def test_seed_variance_recovers_a_known_deviation_and_warns_of_one_seed():
    rng = np.random.default_rng(3)
    trend = np.linspace(0.2, 0.8, 12)
    found = seed_variance(trend + 0.05 * rng.normal(size=(400, 12)), chance=0.2)
    end = trend[-3:].mean()
    assert found.seed_sd == pytest.approx(0.05, rel=0.05)
    assert found.mean == pytest.approx(end, abs=0.01)
    assert found.snr == pytest.approx((found.mean - 0.2) / found.seed_sd)
    assert found.smallest_difference == pytest.approx(2 * np.sqrt(2) * found.seed_sd)
    assert found.monotonicity > 0.7
    assert found.warning == ""
    assert seed_variance([[3, 2, 1], [3, 2, 1]]).monotonicity == -1
    alone = seed_variance([trend])
    assert (alone.seed_sd, alone.snr, alone.smallest_difference) == (None, None, None)
    assert "1 training seed" in alone.warning
    with pytest.raises(ValueError, match="NaN"):
        seed_variance([[0.1, np.nan]])


def test_variance_components_recover_what_was_put_in():
    rng = np.random.default_rng(4)
    sds = {"seed": 0.3, "condition": 0.5, "interaction": 0.4, "repeat": 0.7}
    estimates = []
    for _ in range(40):
        y = sds["seed"] * rng.normal(size=(12, 1, 1)) + sds["condition"] * rng.normal(size=(1, 15, 1))
        y = y + sds["interaction"] * rng.normal(size=(12, 15, 1)) + sds["repeat"] * rng.normal(size=(12, 15, 3))
        found = variance_components(y)
        estimates.append([getattr(found, name) for name in sds])
    np.testing.assert_allclose(np.mean(estimates, axis=0), np.square(list(sds.values())), rtol=0.15)
    assert found.variance_of_mean(10**9, 15, 3) == pytest.approx(found.condition / 15, rel=1e-3)
    assert variance_components(y[..., :1]).interaction is None


def test_a_plateau_needs_a_flat_score_and_two_intervals_that_hold_zero():
    flat, rising = [0.5, 0.52, 0.5, 0.51, 0.5], [0.1, 0.2, 0.3, 0.4, 0.5]
    undecided, better = [(-0.1, 0.1), (-0.05, 0.02)], [(-0.1, 0.1), (0.01, 0.1)]
    assert plateaued(flat, undecided)
    assert not plateaued(rising, undecided)
    assert not plateaued(flat, better)


# ---- winner's curse


def test_shrinkage_recovers_the_pool_and_takes_the_luck_out_of_the_winner():
    rng = np.random.default_rng(5)
    optimism, shrunk_error = [], []
    for _ in range(20):
        truth = rng.beta(8, 4, size=400)
        k = rng.binomial(20, truth)
        found = shrink(k, np.full(400, 20))
        winner = int(np.argmax(k))
        optimism.append(k[winner] / 20 - truth[winner])
        shrunk_error.append(found.mean[winner] - truth[winner])
        inside = (found.low <= truth) & (truth <= found.high)
        assert inside.mean() > 0.9
    assert np.mean(optimism) > 0.09
    assert abs(np.mean(shrunk_error)) < 0.03
    assert found.alpha / (found.alpha + found.beta) == pytest.approx(8 / 12, abs=0.02)
    assert 6 < found.alpha + found.beta < 24


def test_shrinkage_of_equal_policies_is_their_common_rate():
    k = np.random.default_rng(6).binomial(50, 0.7, size=200)
    found = shrink(k, 50)
    assert np.ptp(found.mean) < 0.03
    assert found.mean.mean() == pytest.approx(k.mean() / 50, abs=1e-3)
    with pytest.raises(ValueError, match="at least 2 policies"):
        shrink([3], [5])


def test_confirmed_intervals_hold_the_truth_of_the_best_of_500_equal_policies():
    rng, covered, select_covered = np.random.default_rng(7), 0, 0
    for _ in range(100):
        k = rng.binomial(30, 0.7, size=500)
        best = np.argsort(-k, kind="stable")[:3]
        found = confirm(k, np.full(500, 30), best, rng.binomial(100, 0.7, size=3), [100] * 3)
        covered += all(f.low <= 0.7 <= f.high for f in found)
        select_covered += found[0].selected < 0.85
        assert found[0].optimism == pytest.approx(found[0].selected - found[0].confirmed)
    assert covered / 100 >= 0.95 - 0.02  # all three at once
    assert select_covered == 0  # while the winner's own rate is always far too good
    assert np.mean([f.shrunk for f in found]) == pytest.approx(0.7, abs=0.03)
    for finalists, message in [([0, 0], "each once"), ([], "at least one"), ([500], "0 to 499")]:
        with pytest.raises(ValueError, match=message):
            confirm(k, [30] * 500, finalists, [1] * len(finalists), [1] * len(finalists))


# ---- sample sizes


def test_sample_sizes_match_known_ones_and_simulation():
    known = {(0.85, 0.0): 903, (0.85, 0.3): 634, (0.85, 0.6): 365, (0.9, 0.0): 197, (0.9, 0.3): 140, (0.9, 0.6): 84}
    for (p2, correlation), n in known.items():
        assert episodes_to_separate(0.8, p2, correlation=correlation) == n
        assert power_to_separate(n, 0.8, p2, correlation=correlation) == pytest.approx(0.8, abs=0.005)
        assert detectable_difference(n, 0.8, correlation=correlation) == pytest.approx(p2 - 0.8, abs=2e-3)
    rng = np.random.default_rng(8)
    rates = rng.binomial(196, [[0.8], [0.9]], size=(2, 4000)) / 196
    error = np.sqrt((rates * (1 - rates)).sum(axis=0) / 196)
    found = (np.abs(rates[1] - rates[0]) / np.maximum(error, 1e-9) > 1.96).mean()
    assert found == pytest.approx(0.8, abs=0.025)
    assert detectable_difference(5, 0.9) is None
    for arguments, message in [((0.5, 0.5), "equal rates"), ((0, 0.5), "p1=0"), ((0.1, 0.9, 0.5), "reach")]:
        with pytest.raises(ValueError, match=message):
            episodes_to_separate(*arguments[:2], correlation=arguments[2] if arguments[2:] else 0.0)


# ---- allocation


@pytest.mark.parametrize(
    ("num", "budget", "final", "conditions"), [(64, 3000, 1, None), (7, 50, 3, 10), (1000, 1000, 1, 50), (5, 40, 5, None)]
)
def test_halving_plans_spend_the_budget_and_reach_the_final(num, budget, final, conditions):
    plan = halving_plan(num, budget, num_final=final, num_conditions=conditions)
    assert plan[0].num_policies == num
    assert plan[-1].num_survivors == final
    for earlier, later in itertools.pairwise(plan):
        assert later.num_policies == earlier.num_survivors < earlier.num_policies
        assert later.start == earlier.stop
    spent = sum(r.episodes for r in plan)
    assert spent <= budget
    if conditions is None:
        assert spent > 0.8 * budget
    else:
        assert plan[-1].stop <= conditions


def test_survivors_ties_go_to_the_lower_number():
    assert survivors([0.5, 0.9, 0.5, 0.1], 2) == [0, 1]
    assert survivors([0.5, 0.9, 0.5], 2, policies=[7, 3, 5]) == [3, 5]
    with pytest.raises(ValueError, match="1 <= num_survivors"):
        survivors([1.0], 2)


def suite(rates, num_conditions, seed):
    table = np.random.default_rng(seed).random((len(rates), num_conditions)) < np.asarray(rates)[:, None]
    return lambda policies, start, stop: table[np.asarray(policies), start:stop]


def test_halving_beats_uniform_allocation_and_plays_the_same_conditions():
    halving, uniform, budget = [], [], 64 * 16
    for seed in range(60):
        rates = np.random.default_rng(1000 + seed).beta(8, 4, size=64)
        play = suite(rates, 400, seed)
        found = sequential_halving(play, halving_plan(64, budget))
        halving.append(rates.max() - rates[found.best[0]])
        uniform.append(rates.max() - rates[int(np.argmax(play(range(64), 0, 16).mean(axis=1)))])
        assert found.trials.sum() <= budget
    assert np.mean(halving) < 0.6 * np.mean(uniform)
    again = sequential_halving(play, halving_plan(64, budget))
    assert (again.best, again.log) == (found.best, found.log)


def test_early_stopping_saves_episodes_and_seldom_drops_the_best():
    saved, dropped = [], 0
    plan = halving_plan(16, 16 * 200, num_final=2)
    for seed in range(60):
        rates = np.r_[0.9, 0.8, np.full(14, 0.2)]
        found = sequential_halving(suite(rates, 1000, seed), plan, look_every=10)
        saved.append(1 - found.trials.sum() / sum(r.episodes for r in plan))
        early = {p for line in found.log if line["why"] == "hopeless" for p in line["dropped"]}
        dropped += bool(early & {0, 1})
        assert sorted(found.best) == [0, 1]
    assert np.mean(saved) > 0.25
    assert dropped <= 3
    assert not hopeless([5, 0], [5, 5], 1).any()  # 5 of 5 against 0 of 5 is not enough at all times
    assert hopeless([30, 0], [30, 30], 1).tolist() == [False, True]


def test_bad_plans_are_refused():
    for arguments, message in [((4, 3), "one episode each"), ((4, 9, 5), "num_final=5"), ((4, 9, 1, 1.0), "exceed 1")]:
        with pytest.raises(ValueError, match=message):
            halving_plan(*arguments[:2], **dict(zip(("num_final", "eta"), arguments[2:], strict=False)))
    with pytest.raises(ValueError, match="no rounds"):
        sequential_halving(suite([0.5], 5, 0), [])
    with pytest.raises(ValueError, match="expected"):
        sequential_halving(lambda p, a, b: [[1]], allocation.halving_plan(2, 8))


# ---- co-kriging


def forrester(x):
    return (6 * x - 2) ** 2 * np.sin(12 * x - 4)


def test_cokriging_of_the_forrester_pair():
    """The golden test of multi-fidelity models (Forrester et al. 2007): 11 cheap points, 4 dear ones; min at x = .757."""
    x = np.linspace(0, 1, 201)
    cheap = np.where(np.isin(np.arange(201), np.arange(0, 201, 20)), 0.5 * forrester(x) + 10 * (x - 0.5) - 5, np.nan)
    names, gaps = [f"{value:.3f}" for value in x], np.abs(x[:, None] - x)
    exact = {"noise_variance": 1e-6, "regularization": 0.01, "distances": gaps}
    dear = {f"{value:.3f}": [float(forrester(value))] for value in (0.0, 0.4, 0.6, 1.0)}
    found = fit_cokriging(names, cheap, dear, **exact)
    error = np.sqrt(np.mean((found.mean - forrester(x)) ** 2))
    alone = fit_cokriging(names, np.zeros(201), dear, **exact)
    assert error < 0.2
    assert np.sqrt(np.mean((alone.mean - forrester(x)) ** 2)) > 3
    assert x[np.argmin(found.mean)] == pytest.approx(0.757, abs=0.01)
    assert np.abs(found.mean - forrester(x)).max() < 3 * found.sd.max()


def test_without_real_outcomes_the_expectation_is_the_simulation():
    sim = np.array([0.2, 0.5, 0.9])
    found = fit_cokriging("abc", sim, {})
    np.testing.assert_allclose(found.mean, sim)
    assert (found.sd > 0.1).all()
    one = found.ingest({"c": [0, 0, 0, 0]})
    assert one.mean[2] < 0.6  # what fails for real loses its lead,
    assert one.mean[0] < 0.2  # what resembles it in simulation too,
    assert one.sd[2] < found.sd[2]  # and is known better


def test_posterior_is_exact_gaussian_conditioning():
    """Against brute-force conditioning of the joint Gaussian that the module's text writes down."""
    sim, extra = np.array([0.3, 0.6, 0.7, 0.4]), np.array([1.0, -1.0, 2.0, 0.0])
    found = fit_cokriging("abcd", np.column_stack([sim, extra]), {"b": [1, 0, 1], "d": [1]})
    unit, k = max(sim.std(), 0.15), found.kernel
    z = (extra - extra.mean()) / extra.std()
    centred = sim - sim.mean()
    prior = 9 * unit**2 + np.outer(centred, centred) + unit**2 * np.outer(z, z) + (k.v + k.w) * np.eye(4)
    rate = {1: 3 / 5, 3: 2 / 3}
    noise = np.diag([rate[1] * (1 - rate[1]) / 3, rate[3] * (1 - rate[3])])
    gain = prior[:, [1, 3]] @ np.linalg.inv(prior[np.ix_([1, 3], [1, 3])] + noise)
    expected = sim + unit * z  # the further score counts from the start
    np.testing.assert_allclose(fit_cokriging("abcd", np.column_stack([sim, extra]), {}).mean, expected)
    np.testing.assert_allclose(found.mean, expected + gain @ (np.array([2 / 3, 1]) - expected[[1, 3]]))
    np.testing.assert_allclose(found.covariance, prior - gain @ prior[[1, 3]], atol=1e-12)


def test_posterior_survives_json_and_ingesting_in_parts():
    rng = np.random.default_rng(9)
    position = rng.normal(size=(8, 2))
    gaps = np.linalg.norm(position[:, None] - position, axis=2)
    outcomes = {f"p{i}": rng.integers(2, size=6).tolist() for i in range(5)}
    names, sim = [f"p{i}" for i in range(8)], rng.random((8, 2))
    whole = fit_cokriging(names, sim, outcomes, distances=gaps)
    halves = fit_cokriging(names, sim, {n: x[:3] for n, x in outcomes.items()}, distances=gaps)
    text = whole.to_json()
    restored = CoKriging.from_json(text)
    assert restored.to_json() == text
    np.testing.assert_allclose(halves.ingest({n: x[3:] for n, x in outcomes.items()}).mean, whole.mean)
    assert restored.trials.tolist() == [6] * 5 + [0] * 3
    assert repr(next_real(restored)) == repr(next_real(whole))
    with pytest.raises(ValueError, match="schema 0"):
        CoKriging.from_json(json.dumps({**json.loads(text), "schema": 0}))
    with pytest.raises(ValueError, match="not a posterior"):
        CoKriging.from_json("{}")


def test_policies_that_act_alike_share_what_is_learned():
    position = np.array([0.0, 0.01, 5.0])
    gaps = np.abs(position[:, None] - position)
    sim = [0.5, 0.5001, 0.4999]
    found = fit_cokriging("abc", sim, {"a": [1] * 10}, distances=gaps)
    assert found.mean[1] > found.mean[2] + 0.005
    assert found.sd[1] < found.sd[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policies": "aab"}, "2 of them different"),
        ({"scores": [0.1, 0.2]}, "for 3 policies"),
        ({"scores": [0.1, np.nan, 0.2]}, "score 0 of policy 'b' is NaN"),
        ({"scores": [0.1, np.inf, 0.2]}, "infinite"),
        ({"outcomes": {"z": [1]}}, "unknown policy 'z'"),
        ({"outcomes": {"a": [np.nan]}}, "nan"),
        ({"distances": np.ones((2, 2))}, "N = 3"),
        ({"noise_variance": 0.0}, "above 0"),
    ],
)
def test_bad_inputs_of_cokriging_are_named(change, message):
    arguments = {"policies": "abc", "scores": [0.1, 0.2, 0.3], "outcomes": {}, **change}
    with pytest.raises(ValueError, match=message):
        fit_cokriging(arguments.pop("policies"), arguments.pop("scores"), arguments.pop("outcomes"), **arguments)


# ---- advice


@pytest.mark.parametrize("rule", ["top_two", "ucb", "knowledge_gradient"])
def test_advice_tries_what_may_be_best_and_prefers_the_cheaper_of_two_alike(rule):
    posterior = fit_cokriging("abcd", [0.8, 0.8, 0.75, 0.1], {"a": [1, 1, 0], "b": [1, 1, 0], "d": [0, 0]})
    found = next_real(posterior, rule=rule)
    assert found.policy in "abc"
    assert found.prob_best.sum() == pytest.approx(1)
    alike = fit_cokriging("ab", [0.8, 0.8], {"a": [1, 0], "b": [1, 0]})
    assert next_real(alike, cost=[5.0, 1.0], rule=rule).policy == "b"
    assert next_real(alike, cost=[1.0, 5.0], rule=rule).policy == "a"


def test_advice_stops_when_settled_or_out_of_budget():
    open_race = fit_cokriging("abc", [0.6, 0.62, 0.58], {"a": [1, 0, 1]})
    found = next_real(open_race)
    assert not found.stop
    assert found.expected_regret > 0.01
    assert next_real(open_race, budget=0.5).reason.startswith("budget")
    settled = fit_cokriging("abc", [0.9, 0.3, 0.2], {"a": [1] * 40, "b": [0] * 40, "c": [0] * 40})
    found = next_real(settled)
    assert (found.stop, found.recommended) == (True, "a")
    assert found.reason.startswith("settled")
    for arguments, message in [
        ({"rule": "ucbb"}, "did you mean 'ucb'"),
        ({"cost": [1, 2]}, "3 policies"),
        ({"cost": 0}, "pos"),
    ]:
        with pytest.raises(ValueError, match=message):
            next_real(open_race, **arguments)


def test_expected_regret_is_that_of_the_posterior_and_draws_have_its_moments():
    posterior = fit_cokriging("abcd", [0.5, 0.45, 0.55, 0.4], {"a": [1, 0, 1, 1], "b": [0, 0]})
    draws = posterior_draws(posterior, stream(0, "test"), 200_000, bounds=None)
    np.testing.assert_allclose(draws.mean(axis=0), posterior.mean, atol=5e-3)
    np.testing.assert_allclose(np.cov(draws, rowvar=False), posterior.covariance, atol=5e-3)
    lead = int(np.argmax(posterior.mean))
    regret = (draws.max(axis=1) - draws[:, lead]).mean()
    assert next_real(posterior, bounds=None).expected_regret == pytest.approx(regret, rel=0.1)
