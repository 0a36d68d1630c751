"""Off-policy evaluation against closed forms: fitted Q on a linear-quadratic regulator, AM-Q, the gap between two dynamics."""

import numpy as np
import pytest
import torch

from robopolicy.ope.amq import amq, amq_difference
from robopolicy.ope.dynamics import DynamicsConfig, fit_dynamics
from robopolicy.ope.dynamics_gap import GapConfig, dynamics_gap, validity_weighted
from robopolicy.ope.estimate import clustered_mean
from robopolicy.ope.fqe import FQEConfig, fqe
from robopolicy.ope.transitions import Transitions
from robopolicy.ranking.metrics import spearman

GAMMA, NOISE, GAINS = 0.9, 0.1, (0.0, 0.3, 0.9, 1.6, 2.3, 3.0)
QUICK = FQEConfig(num_members=3, hidden=32, steps=500, batch_size=96, learning_rate=3e-3, polyak=0.02, check_every=100)


def regulator(num=50, steps=20, seed=0, push=0.0, gain=0.5):
    """States [num, steps + 1] and actions [num, steps] of s' = s + gain u + push + noise under u = -0.8 s + exploration."""
    rng = np.random.default_rng(seed)
    s, u = np.zeros((num, steps + 1)), np.zeros((num, steps))
    s[:, 0] = rng.normal(size=num)
    for t in range(steps):
        u[:, t] = -0.8 * s[:, t] + 0.8 * rng.normal(size=num)
        s[:, t + 1] = s[:, t] + gain * u[:, t] + push + NOISE * rng.normal(size=num)
    return s, u


def transitions(s, u, after=None, reward=None):
    num, steps = u.shape
    after = s[:, 1:] if after is None else after
    reward = -(s[:, :-1] ** 2 + 0.3 * u**2) if reward is None else reward
    rows = [x.reshape(-1, 1) for x in (s[:, :-1], u)]
    return Transitions.of(
        *rows, reward.reshape(-1), after.reshape(-1, 1), np.full(u.size, GAMMA), np.repeat(np.arange(num), steps)
    )


def evaluated(s, u, after, config=QUICK, gains=GAINS):
    policies = {f"{k}": (-k * after.reshape(-1, 1, 1), -k * s[:, :1, None]) for k in gains}
    return fqe(transitions(s, u, after), policies, config)


def value(k, square):
    """Discounted value of u = -k s: -(p E[s0^2] + gamma p sigma^2 / (1 - gamma)), p = (1 + .3 k^2) + gamma p (1 - k / 2)^2."""
    p = (1 + 0.3 * k * k) / (1 - GAMMA * (1 - k / 2) ** 2)
    return -(p * square + GAMMA * p * NOISE**2 / (1 - GAMMA))


def test_fitted_q_orders_regulators_as_their_closed_form_and_needs_the_next_state():
    s, u = regulator()
    truth = [value(k, np.mean(s[:, 0] ** 2)) for k in GAINS]
    right = evaluated(s, u, s[:, 1:])
    assert spearman([e.value for e in right.estimates.values()], truth) >= 0.9
    assert all(e.applicable and e.sd > 0 and e.n_eff == 50 for e in right.estimates.values())
    mutated = evaluated(s, u, s[:, :-1])  # s in place of s'
    assert spearman([e.value for e in mutated.estimates.values()], truth) < 0.5


def test_fitted_q_reaches_the_value_of_one_step_and_repeats_itself():
    s, u = regulator(num=40, steps=1)
    data = Transitions.of(s[:, :1], u, s[:, 0] > 0, s[:, 1:], np.zeros(40), np.arange(40))
    policies = {"a": (np.zeros((40, 2, 1)), np.zeros((40, 2, 1)))}
    settings = FQEConfig(**{**QUICK.__dict__, "steps": 300, "value_range": (0.0, 1.0)})
    state = torch.get_rng_state()
    first = fqe(data, policies, settings)
    assert torch.equal(state, torch.get_rng_state())
    assert first.estimates["a"].value == pytest.approx(np.mean(s[:, 0] > 0), abs=0.1)
    assert first.q("a", [[2.0], [-2.0]], [[0.0], [0.0]]).mean(0).numpy() == pytest.approx([1, 0], abs=0.15)
    np.testing.assert_array_equal(first.draws["a"], fqe(data, policies, settings).draws["a"])
    twice = fqe(data, {"a": policies["a"], "b": policies["a"]}, settings).draws
    np.testing.assert_allclose(twice["a"], twice["b"], rtol=1e-5)  # equal policies: equal to the last batch


def test_fitted_q_says_when_it_means_nothing():
    s, u = regulator(num=8, steps=4)
    short = FQEConfig(**{**QUICK.__dict__, "steps": 60})
    acts = {"a": (np.zeros((32, 1, 1)), np.zeros((8, 1, 1)))}
    flat = fqe(transitions(s, u, reward=np.ones_like(u)), acts, short).estimates["a"]
    assert not flat.applicable
    assert "all rewards are 1" in flat.reason
    few = fqe(transitions(s[:3], u[:3]), {"a": (np.zeros((12, 1, 1)), np.zeros((3, 1, 1)))}, short).estimates["a"]
    assert "3 episodes" in few.reason
    assert np.isnan(few.value)
    bounded = FQEConfig(**{**short.__dict__, "value_range": (0.0, 1.0)})  # rewards are negative
    assert "value range" in fqe(transitions(s, u), acts, bounded).estimates["a"].reason
    with pytest.raises(ValueError, match="next_actions of 'a'"):
        fqe(transitions(s, u), {"a": (np.zeros((5, 1, 1)), np.zeros((8, 1, 1)))}, short)
    with pytest.raises(ValueError, match="not finite in row 1"):
        Transitions.of(np.zeros((2, 1)), np.zeros((2, 1)), [0, np.nan], np.zeros((2, 1)), [1, 1], [0, 1])


@pytest.fixture(scope="module")
def learned():
    s, u = regulator()
    config = DynamicsConfig(num_members=3, hidden=32, steps=400, batch_size=96, learning_rate=3e-3)
    return fit_dynamics(transitions(s, u), config), s[:, :1]


def critic(s, a):
    return -(s[:, 0] ** 2)


def test_amq_of_a_policy_less_itself_is_exactly_nought_and_the_better_one_wins(learned):
    dynamics, starts = learned
    assert dynamics.explained > 0.8
    assert dynamics.error[0] == pytest.approx(NOISE, rel=0.5)
    runs = [amq(lambda s, t, k=k: -k * s, critic, dynamics, starts, horizon=4) for k in (0.3, 1.6, 1.6)]
    itself = amq_difference(runs[1], runs[2])
    assert (itself.value, itself.sd) == (0.0, 0.0)
    better = amq_difference(runs[1], runs[0])
    assert better.value - 2 * better.sd > 0
    assert better.sd < np.hypot(runs[0].estimate.sd, runs[1].estimate.sd)
    assert all(run.estimate.applicable for run in runs)


def test_amq_stops_where_the_ensemble_disagrees_and_ending_early_pays_nothing(learned):
    dynamics, starts = learned
    away = amq(lambda s, t: 40 + 0 * s, critic, dynamics, starts, horizon=4)
    assert away.truncated > 0.9
    assert not away.estimate.applicable
    assert "shorten the horizon" in away.estimate.reason
    paid = {"q": lambda s, a: torch.ones(len(s)), "dynamics": dynamics, "starts": starts, "horizon": 4}
    going = amq(lambda s, t: -s, **paid)
    ending = amq(lambda s, t: -s, **paid, ended=lambda s: s[:, 0] > 0)
    assert (going.estimate.value, going.ended) == (1.0, 0.0)
    assert ending.estimate.value < 1
    assert ending.ended >= np.mean(starts > 0)
    with pytest.raises(ValueError, match="at least 20"):
        amq(lambda s, t: -s, critic, dynamics, starts[:5])


def test_the_dynamics_gap_is_nought_between_equal_simulators_and_grows_with_the_difference():
    config = GapConfig(num_folds=2, hidden=32, steps=80, batch_size=128, learning_rate=5e-3)
    simulator = transitions(*regulator(num=30))
    same, small, large = (
        dynamics_gap(simulator, transitions(*regulator(num=30, seed=1, push=push)), config) for push in (0.0, 0.1, 0.3)
    )
    assert abs(same.estimate.value) < max(3 * same.estimate.sd, 0.03)
    assert abs(same.null.value) < max(3 * same.null.sd, 0.03)
    assert 0.1 < small.estimate.value < large.estimate.value  # exactly: push^2 / (2 NOISE^2) = .5 and 4.5, the last bounded
    assert small.estimate.value < 0.6
    assert small.auroc[1] > same.auroc[1] + 0.1
    assert large.ratio.mean() < small.ratio.mean() < same.ratio.mean() <= 1


def test_weights_of_validity_prefer_right_worlds_and_fall_back_when_few_are_left():
    values, gap = np.repeat([1.0, 0.0], 50), np.repeat([1.0, 0.0], 50)  # it succeeds where the simulator is wrong
    weighted = validity_weighted(values, gap)
    assert weighted.value == pytest.approx(np.exp(-1) / (1 + np.exp(-1)))
    assert weighted.n_eff < 100
    assert validity_weighted(values, np.full(100, 0.7)).value == pytest.approx(0.5)
    alone = validity_weighted(values, np.arange(100.0))
    assert not alone.applicable
    assert alone.value == 0.5
    assert not dynamics_gap(*[transitions(*regulator(num=4))] * 2).estimate.applicable


def test_the_standard_error_of_a_clustered_mean_counts_episodes_not_rows():
    rng = np.random.default_rng(0)
    means = rng.normal(size=50)
    mean, sd, n_eff = clustered_mean(np.repeat(means, 20), np.repeat(np.arange(50), 20))
    assert (mean, n_eff) == (pytest.approx(means.mean()), pytest.approx(50))
    assert sd == pytest.approx(means.std(ddof=1) / np.sqrt(50))
    with pytest.raises(ValueError, match="weights >= 0"):
        clustered_mean([1.0], None, [-1.0])
