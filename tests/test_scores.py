"""Scores from recorded or noisy episodes: off-policy classification, certificates, pessimism, support, imitation."""

import numpy as np
import pytest
from scipy.stats import norm

from robopolicy.ranking.certificate import certify_return, certify_success
from robopolicy.ranking.imitation import action_error
from robopolicy.ranking.opc import opc, soft_opc
from robopolicy.ranking.pessimism import kl_robust
from robopolicy.ranking.support import ActionSupport


def test_off_policy_classification_by_hand():
    q, success = np.array([0.9, 0.8, 0.4, 0.6, 0.2, 0.1]), np.array([1, 1, 1, 0, 0, 0], bool)
    assert soft_opc(q, success).value == pytest.approx(0.7 - 0.5)  # d3rlpy's: mean of successes less mean of all
    assert soft_opc(q, success, prior=0.8).value == pytest.approx(0.8 * 0.7 - 0.5)
    assert opc(q, success).value == pytest.approx(1 - 4 / 6)  # the threshold between .2 and .4
    assert opc(q, success, prior=0.5).value == pytest.approx(0.0)
    assert opc(np.ones(6), success).value == 0  # equal values lie on one side of every threshold


def test_off_policy_classification_prefers_the_critic_that_tells_and_ignores_scale_where_it_says_so():
    rng = np.random.default_rng(0)
    success = np.repeat(rng.random(60) < 0.5, 10)
    episode = np.repeat(np.arange(60), 10)
    good, blind = 0.5 * success + 0.3 * rng.random(600), 0.8 * rng.random(600)
    for score in (soft_opc, opc):
        told, guessed = score(good, success, episode), score(blind, success, episode)
        assert told.value - guessed.value > 3 * np.hypot(told.sd, guessed.sd)
        assert told.n_eff == 60
    assert opc(7 * good - 3, success, episode).value == pytest.approx(opc(good, success, episode).value)
    rows, clusters = soft_opc(good + success, success), soft_opc(good + np.repeat(rng.normal(size=60), 10), success, episode)
    assert clusters.sd > 2 * rows.sd
    only = soft_opc(good, np.ones(600, bool), episode)
    assert not only.applicable
    assert "60 successes in 60 episodes" in only.reason


# one-sided alpha .05, .95 observed, at B / sigma of .1, .25, .5, 1, 1.5: Policy Smoothing's formula, arXiv 2106.11420
@pytest.mark.parametrize(
    ("episodes", "clean", "certified"),
    [(1000, 0.937, [0.924, 0.900, 0.849, 0.702, 0.512]), (100, 0.898, [0.879, 0.846, 0.779, 0.606, 0.409])],
)
def test_certified_success_has_known_values(episodes, clean, certified):
    found = certify_success(round(0.95 * episodes), episodes, sigma=2.0, budgets=2 * np.array([0, 0.1, 0.25, 0.5, 1, 1.5]))
    np.testing.assert_allclose(found.certified, [clean, *certified], atol=6e-4)
    assert found.largest_budget(found.certified[3]) == pytest.approx(1.0)
    assert found.largest_budget(0.999) == 0
    assert (np.diff(certify_success(90, 100, 1.0).certified) < 0).all()
    assert certify_success(0, 100, 1.0).certified.max() == 0
    assert certify_success(90, 100, 1.0, num_policies=20).certified[0] < certify_success(90, 100, 1.0).certified[0]


def test_the_certificate_is_tight_on_the_half_space_game():
    """One observation a step; the episode fails when their noisy sum is above a threshold. The attack spends B evenly."""
    rng, steps, budget = np.random.default_rng(0), 20, 0.7
    noisy = rng.normal(size=(200_000, steps)).sum(axis=1)
    threshold = 1.0 * np.sqrt(steps)
    clean, attacked = np.mean(noisy < threshold), np.mean(noisy + budget * np.sqrt(steps) < threshold)
    found = certify_success(int(clean * 200_000), 200_000, 1.0, [budget]).certified[0]
    assert found <= attacked + 2e-3
    assert found == pytest.approx(attacked, abs=5e-3)


def test_certified_returns_hold_under_attack_and_agree_with_success_where_returns_are_binary():
    rng = np.random.default_rng(1)
    returns = norm.cdf(rng.normal(size=4000) + 0.5)  # an adversary moves the normal down by B / sigma
    budgets = np.array([0.0, 0.3, 1.0])
    certified = certify_return(returns, 0.0, 1.0, budgets).certified
    attacked = [norm.cdf(rng.normal(size=100_000) + 0.5 - b).mean() for b in budgets]
    assert (certified <= attacked).all()
    np.testing.assert_allclose(certified, attacked, atol=0.035)
    assert certify_return(returns + 3, 3.0, 1.0, budgets).certified == pytest.approx(certified + 3)
    with pytest.raises(ValueError, match="below low"):
        certify_return(returns, 0.5, 1.0)


def test_the_robust_mean_is_the_minimum_over_distributions_within_the_radius():
    returns = np.repeat([1.0, 0.0], [80, 20])
    radius = 0.1
    p = np.linspace(0.2, 0.8, 100_001)
    within = p[p * np.log(p / 0.8) + (1 - p) * np.log((1 - p) / 0.2) <= radius]
    assert kl_robust(returns, radius).value == pytest.approx(within.min(), abs=1e-5)
    assert kl_robust(returns, 0).value == pytest.approx(0.8)
    assert kl_robust(returns, 2).value == 0  # radius beyond log(100 / 20)
    rng = np.random.default_rng(0)
    many = rng.normal(size=(300, 400))
    values = [kl_robust(row, 0.2) for row in many]
    assert np.std([v.value for v in values]) == pytest.approx(np.mean([v.sd for v in values]), rel=0.2)
    assert np.mean([v.value for v in values]) == pytest.approx(-np.sqrt(2 * 0.2), abs=0.03)  # Gaussian: -sd sqrt(2 radius)
    assert kl_robust(5 + 10 * many[0], 0.2).value == pytest.approx(5 + 10 * values[0].value)
    steady, risky = np.full(100, 0.7), np.repeat([1.0, 0.0], [75, 25])
    assert kl_robust(steady, 0.1).value > kl_robust(risky, 0.1).value


def test_support_is_one_for_demonstrators_and_grows_with_the_distance_of_actions():
    rng = np.random.default_rng(0)
    z, episode = rng.normal(size=(600, 4)), np.repeat(np.arange(30), 20)
    chunks = np.tanh(z[:, :1, None]) + 0.1 * rng.normal(size=(600, 8, 3))
    support = ActionSupport().fit(z, chunks, episode)
    own = support.score(z, chunks, episode)
    assert own.score.value == pytest.approx(1)
    assert own.score.n_eff == pytest.approx(30)
    near, far = (support.score(z, chunks + shift, episode).score for shift in (0.5, 3.0))
    assert 1 < near.value < far.value
    assert not near.reason or near.value > 1.5
    assert "extrapolates" in far.reason
    assert support.score(z, chunks).ratio.max() < 1e-5  # without their episodes rows find themselves
    scaled = ActionSupport().fit(1e3 * z + 5, 1e-3 * chunks, episode).score(1e3 * z + 5, 1e-3 * (chunks + 0.5), episode)
    assert scaled.score.value == pytest.approx(near.value, rel=1e-6)
    wrong_place = ActionSupport(beta=4).fit(z, chunks, episode).score(z, np.roll(chunks, 20, axis=0), episode).score
    assert wrong_place.value > 1.02
    with pytest.raises(ValueError, match="at least 2"):
        ActionSupport().fit(z, chunks, np.zeros(600))
    with pytest.raises(ValueError, match="24"):
        support.score(z, chunks[:, :4])


def test_action_error_counts_what_lies_inside_the_episode():
    recorded = np.zeros((6, 4, 2))
    predicted = recorded + [1.0, 10.0]
    assert action_error(predicted, recorded, [1, 10]).value == pytest.approx(1)
    pad = np.zeros((6, 4), bool)
    pad[:, 2:] = True
    predicted[:, 2:] = 99
    assert action_error(predicted, recorded, [1, 10], is_pad=pad).value == pytest.approx(1)
    predicted[0, :2] = 0
    assert action_error(predicted, recorded, [1, 10], is_pad=pad, weights=[1, 0, 0, 0, 0, 0]).value == 0
    assert action_error(predicted, recorded, [1, 10], is_pad=pad, episode=[0, 0, 1, 1, 2, 2]).n_eff == pytest.approx(3)
    with pytest.raises(ValueError, match=r"\[A\] above 0"):
        action_error(predicted, recorded, [1, 0])
