"""Properties of intervals, tests and bootstraps: published values, exact coverage, error rates, bad input."""

import itertools

import numpy as np
import pytest
from scipy import stats

from robopolicy.ranking import betting_ci, betting_sequence, e_test_2x2, metrics, ppi_mean, statistics
from robopolicy.ranking.intervals import anytime_binomial, clopper_pearson, tango, wilson
from robopolicy.ranking.sequential import ALTERNATIVES, ETest2x2


def test_wilson_and_clopper_pearson_match_published_values():
    # Newcombe 1998, table I (81/263, 15/148, 0/20, 1/29), score and exact methods
    successes, trials = [81, 15, 0, 1], [263, 148, 20, 29]
    low, high = wilson(successes, trials)
    np.testing.assert_allclose(low, [0.2553, 0.0624, 0.0, 0.0061], atol=5e-5)
    np.testing.assert_allclose(high, [0.3662, 0.1605, 0.1611, 0.1718], atol=5e-5)
    low, high = clopper_pearson(successes, trials)
    np.testing.assert_allclose(low, [0.2527, 0.0578, 0.0, 0.0009], atol=5e-5)
    np.testing.assert_allclose(high, [0.3676, 0.1617, 0.1684, 0.1776], atol=5e-5)
    with pytest.raises(ValueError, match="trials >= 1"):
        wilson(0, 0)


def test_mcnemar_is_the_exact_sign_test_of_discordant_pairs():
    base = np.array([1] * 9 + [0] * 1 + [1] * 20 + [0] * 5, dtype=bool)
    other = np.array([0] * 9 + [1] * 1 + [1] * 20 + [0] * 5, dtype=bool)
    only_base, only_other, p = statistics.mcnemar(base, other)
    assert (only_base, only_other) == (9, 1)
    assert p == pytest.approx(2 * (1 + 10) / 2**10)
    assert statistics.mcnemar(base, base) == (0, 0, 1.0)


def test_holm_steps_down():
    np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


def test_streams_differ_by_purpose_and_repeat_by_seed():
    draw = [statistics.stream(seed, purpose).integers(1 << 40) for seed, purpose in [(0, "a"), (0, "a"), (0, "b"), (1, "a")]]
    assert draw[0] == draw[1]
    assert len(set(draw)) == 3


def test_bootstrap_over_conditions_covers_the_true_rate():
    covered, rng = 0, np.random.default_rng(0)
    for trial in range(200):
        level = rng.beta(4, 2, size=40)  # conditions differ in difficulty and have 3 episodes each
        sums = rng.binomial(3, level)[None]
        weights = statistics.bootstrap_weights(40, 400, statistics.stream(trial, "coverage"))
        low, high = statistics.percentile_interval(statistics.bootstrap_means(sums, np.full(40, 3), weights)[:, 0])
        covered += low <= 4 / 6 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_cluster_bootstrap_is_wider_than_ignoring_the_runs():
    rng = np.random.default_rng(3)
    runs = np.repeat(np.arange(8), 6)
    score = rng.normal(size=8)[runs] + 0.1 * rng.normal(size=48)
    truth = score + rng.normal(size=8)[runs] + 0.1 * rng.normal(size=48)

    def width(clusters):
        generator = statistics.stream(0, "width")
        draws = statistics.cluster_bootstrap(lambda at: metrics.spearman(truth[at], score[at]), clusters, generator, 300)
        return np.subtract(*statistics.percentile_interval(draws)[::-1])

    assert width(runs) > 1.5 * width(np.arange(48))


def test_top_k_probabilities_sum_to_k_and_ties_share():
    places = statistics.ranks(np.array([[3.0, 3.0, 1.0, np.nan], [5.0, 1.0, 1.0, 1.0]]))
    np.testing.assert_allclose(places, [[1.5, 1.5, 3, 4], [1, 3, 3, 3]])
    np.testing.assert_allclose(statistics.prob_top_k(places, 1), [0.75, 0.25, 0, 0])
    for k in (1, 2, 3, 4):
        assert statistics.prob_top_k(places, k).sum() == pytest.approx(k)


# ---- intervals


@pytest.mark.parametrize("n", [1, 10, 20, 50])
def test_clopper_pearson_covers_every_rate_and_wilson_covers_on_average(n):
    rates, k = np.linspace(0.0, 1.0, 401), np.arange(n + 1)
    mass = stats.binom.pmf(k, n, rates[:, None])

    def coverage(interval, confidence):
        low, high = interval(k, n, confidence)
        return (mass * ((low <= rates[:, None]) & (rates[:, None] <= high))).sum(axis=1)

    for confidence in (0.8, 0.95):
        exact = coverage(clopper_pearson, confidence)
        assert exact.min() >= confidence
        assert exact[1:-1].min() < confidence + (1 - confidence) * 0.7  # not by being far too wide
        if n >= 10:
            assert coverage(wilson, confidence).mean() == pytest.approx(confidence, abs=0.02)
            assert coverage(wilson, confidence).min() < confidence  # the true figure, as documented


def test_tangos_interval_of_paired_rates_covers_and_is_no_point_where_no_pair_differs():
    low, high = tango(12, 2, 50)
    assert (low, high) == pytest.approx((0.0611, 0.3447), abs=1e-4)
    assert tango(0, 0, 54) == pytest.approx((-0.0664, 0.0664), abs=1e-4)
    assert tango(2, 12, 50) == pytest.approx((-high, -low))
    gained, lost = np.array([(b, c) for b in range(21) for c in range(21 - b)]).T
    low, high = tango(gained, lost, 20)
    for p, q in itertools.product((0.0, 0.05, 0.2, 0.4), repeat=2):
        mass = stats.multinomial.pmf(np.stack([gained, lost, 20 - gained - lost], 1), 20, [p, q, 1 - p - q])
        assert mass[(low <= p - q + 1e-9) & (p - q - 1e-9 <= high)].sum() > 0.93
    with pytest.raises(ValueError, match="trials"):
        tango(3, 3, 5)


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.5, 0.9])
def test_anytime_binomial_covers_at_all_times_at_once(rate):
    """Exact: the probability that a random walk of successes ever leaves the interval within 100 trials."""
    alive = np.array([1.0])
    for n in range(1, 101):
        alive = np.append(alive * (1 - rate), 0) + np.append(0, alive * rate)
        low, high = anytime_binomial(np.arange(n + 1), n)
        alive *= (low <= rate) & (rate <= high)
    assert 0.001 < 1 - alive.sum() <= 0.05


def test_intervals_of_scalars_are_floats_and_are_ordered():
    for interval in (wilson, clopper_pearson, anytime_binomial):
        low, high = interval(15, 49)
        assert isinstance(low, float)
        assert 0 < low < 15 / 49 < high < 1
        assert interval(0, 5)[0] == 0
        assert interval(5, 5)[1] == 1
        assert interval([1, 2], 9)[0].shape == (2,)
        narrow = interval(15, 49, 0.5)
        assert low < narrow[0] < narrow[1] < high
    assert clopper_pearson(15, 49) == pytest.approx((0.183, 0.454), abs=5e-4)
    assert clopper_pearson(45, 49, 0.9)[0] == pytest.approx(0.823, abs=5e-4)  # one-sided 95 %


@pytest.mark.parametrize(
    ("successes", "trials", "confidence", "message"),
    [
        (1, 0, 0.95, "trials >= 1"),
        (-1, 5, 0.95, "0 <= successes"),
        (6, 5, 0.95, "0 <= successes"),
        (float("nan"), 5, 0.95, "0 <= successes"),
        (1.5, 5, 0.95, "betting_ci"),
        (1, 5, 1.0, "strictly between"),
        (1, 5, 95, "strictly between"),
    ],
)
def test_bad_counts_are_named(successes, trials, confidence, message):
    for interval in (wilson, clopper_pearson, anytime_binomial):
        with pytest.raises(ValueError, match=message):
            interval(successes, trials, confidence)


def test_betting_covers_skewed_progress_at_all_times():
    rng, missed, ended_in = np.random.default_rng(0), 0, 0
    for _ in range(60):
        x = rng.beta(0.3, 0.1, size=60)  # progress: mostly all or nothing, mean 0.75
        low, high = betting_sequence(x)
        missed += not ((low <= 0.75) & (high >= 0.75)).all()
        ended_in += high[-1] - low[-1] < 0.4
    assert missed / 60 <= 0.05 + 0.02
    assert ended_in > 55


def test_betting_sequence_is_the_running_interval():
    x = np.random.default_rng(1).beta(2, 3, size=40) * 4 - 1
    low, high = betting_sequence(x, low=-1, high=3)
    for t in (1, 7, 40):
        exact = betting_ci(x[:t], low=-1, high=3)
        assert exact[0] - 4e-3 - 1e-6 <= low[t - 1] <= exact[0] + 1e-6
        assert exact[1] - 1e-6 <= high[t - 1] <= exact[1] + 4e-3 + 1e-6
    assert (np.diff(low) >= 0).all()
    assert (np.diff(high) <= 0).all()


def test_betting_moves_with_the_units_and_tightens_where_outcomes_vary_little():
    x = np.random.default_rng(2).uniform(0.4, 0.6, size=100)
    low, high = betting_ci(x)
    assert betting_ci(10 * x - 3, low=-3, high=7) == pytest.approx((10 * low - 3, 10 * high - 3), abs=1e-6)
    assert betting_ci(1 - x) == pytest.approx((1 - high, 1 - low), abs=1e-6)
    assert high - low < 0.6 * np.subtract(*betting_ci((x > 0.5).astype(float))[::-1])
    assert low < x.mean() < high
    for bad, message in [([], "at least 1"), ([0.2, np.nan], "nan"), ([0.2, 1.2], r"values\[1\] = 1.2 is outside")]:
        for interval in (betting_ci, betting_sequence):
            with pytest.raises(ValueError, match=message):
                interval(bad)
    with pytest.raises(ValueError, match="low < high"):
        betting_ci([0.5], low=1, high=0)


# ---- sequential test


def test_e_variable_has_mean_at_most_one_under_every_null():
    """Exact, over the four outcomes of a pair: for any estimates q and any rates in the null. It fails for c = q_other."""
    from robopolicy.ranking.sequential import _log_factor

    base, other = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    grid, largest = np.linspace(0.05, 0.95, 10), 0.0
    for q0 in grid:
        for q1 in grid:
            e = np.exp(_log_factor(base, other, np.float64(q0), np.float64(q1)))
            for p0 in grid:
                for p1 in grid[grid <= p0]:
                    mass = np.where(base, p0, 1 - p0) * np.where(other, p1, 1 - p1)
                    largest = max(largest, mass @ e)
    assert 0.99 < largest <= 1 + 1e-12


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_e_test_rarely_rejects_a_true_null_however_often_one_looks(alternative):
    from robopolicy.ranking.sequential import log_e_path

    rng = np.random.default_rng(3)
    outcomes = rng.random((2, 2000, 200)) < 0.5
    rejected = (log_e_path(*outcomes, alternative).max(axis=1) >= np.log(20)).mean()
    assert 0.005 < rejected <= 0.05


def test_e_test_stops_early_where_policies_differ():
    from robopolicy.ranking.sequential import log_e_path

    rng = np.random.default_rng(4)
    for rates, mean, power in [((0.3, 0.6), 43.5, 0.99), ((0.2, 0.8), 10.6, 1.0), ((0.4, 0.6), 100.5, 0.85)]:
        outcomes = [rng.random((2000, 200)) < rate for rate in rates]
        crossed = log_e_path(*outcomes) >= np.log(20)
        at = np.where(crossed.any(axis=1), crossed.argmax(axis=1) + 1, 200)
        assert at.mean() == pytest.approx(mean, rel=0.06)
        assert crossed.any(axis=1).mean() == pytest.approx(power, abs=0.02)
        assert (log_e_path(*outcomes[::-1])[:, -1] > 0).mean() < 0.05  # never in the wrong direction


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_e_test_pair_by_pair_is_the_e_test_of_all(alternative):
    rng = np.random.default_rng(5)
    base, other = rng.random(60) < 0.4, rng.random(60) < 0.7
    whole, streamed = e_test_2x2(base, other, alternative=alternative), ETest2x2(alternative)
    values = [streamed.update(a, b) for a, b in zip(base, other, strict=True)]
    np.testing.assert_allclose(np.log(values), whole.log_e_path)
    assert streamed.p_value == pytest.approx(whole.p_value)
    assert streamed.rejects() == whole.rejected
    assert whole.p_value <= 1 / max(values) + 1e-12
    mirror = {"greater": "less", "less": "greater", "two-sided": "two-sided"}[alternative]
    assert e_test_2x2(other, base, alternative=mirror).e_value == pytest.approx(whole.e_value)


def test_e_test_refuses_what_is_no_pair_of_outcomes():
    with pytest.raises(ValueError, match="3 outcomes of base and 2 of other"):
        e_test_2x2([0, 1, 1], [0, 1])
    with pytest.raises(ValueError, match="outcomes are 0 or 1"):
        ETest2x2().update(0.5, 1)
    with pytest.raises(ValueError, match="did you mean 'greater'"):
        e_test_2x2([0], [1], alternative="grater")
    assert e_test_2x2([], []).e_value == 1


# ---- few real trials, many simulated ones


def twins(rng, n, num_simulated, rate=0.6, agree=0.75):
    """Real outcomes, their simulated twins and further simulated outcomes; both succeed at `rate`."""
    both = rng.random(n) < agree
    real = rng.random(n) < rate
    twin = np.where(both, real, rng.random(n) < rate)
    return real.astype(float), twin.astype(float), (rng.random(num_simulated) < rate).astype(float)


def test_prediction_powered_mean_is_the_formula_of_ppi_plus_plus():
    y, f, extra = twins(np.random.default_rng(0), 200, 5000)
    found = ppi_mean(y, f, extra, method="asymptotic")
    weight = np.cov(y, f)[0, 1] / ((1 + 200 / 5000) * np.var(f, ddof=1))
    error = np.sqrt(weight**2 * extra.var(ddof=1) / 5000 + (y - weight * f).var(ddof=1) / 200)
    assert found.weight == pytest.approx(weight)
    assert found.mean == pytest.approx(weight * extra.mean() + (y - weight * f).mean())
    assert (found.low, found.high) == pytest.approx((found.mean - 1.959964 * error, found.mean + 1.959964 * error))
    assert found.effective_multiplier == pytest.approx(1 / (1 - found.correlation**2 * 5000 / 5200))
    assert found.method == "asymptotic"


@pytest.mark.parametrize("method", ["asymptotic", "betting"])
def test_prediction_powered_interval_covers_a_biased_simulator(method):
    rng, covered, n = np.random.default_rng(1), 0, 120 if method == "asymptotic" else 25
    for _ in range(100):
        y, f, extra = twins(rng, n, 500)
        f, extra = np.maximum(f, rng.random(n) < 0.4), np.maximum(extra, rng.random(500) < 0.4)  # it is too easy
        found = ppi_mean(y, f, extra, method=method)
        covered += found.low <= 0.6 <= found.high
    assert covered / 100 >= 0.95 - 0.02


def test_prediction_powered_interval_gains_from_a_good_simulator_and_survives_a_useless_one():
    rng, gain, loss = np.random.default_rng(2), [], []
    for _ in range(8):
        for agree, ratios in [(0.97, gain), (0.0, loss)]:
            y, f, extra = twins(rng, 90, 2000, agree=agree)
            found, alone = ppi_mean(y, f, extra), betting_ci(y)
            assert found.method == "betting"
            ratios.append((found.high - found.low) / (alone[1] - alone[0]))
    assert np.mean(gain) < 0.8
    assert np.mean(loss) < 1.25
    constant = ppi_mean(np.ones(150), np.ones(150), np.ones(900))
    assert (constant.mean, constant.correlation, constant.effective_multiplier) == (1, None, 1)


def test_prediction_powered_mean_refuses_bad_trials():
    with pytest.raises(ValueError, match="2 real outcomes and 3 simulated twins"):
        ppi_mean([0, 1], [0, 1, 1], [0, 1])
    with pytest.raises(ValueError, match="at least 2"):
        ppi_mean([0], [1], [0, 1])
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        ppi_mean([0, 1], [0, 1], [0, 7])
    with pytest.raises(ValueError, match="did you mean 'betting'"):
        ppi_mean([0, 1], [0, 1], [0, 1], method="beting")
