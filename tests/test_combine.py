"""Properties of VSDR and of the rules that combine scores."""

import warnings

import numpy as np
import pytest

from robopolicy.ranking.combine import COMBINERS, combine, vsdr
from robopolicy.ranking.metrics import spearman
from robopolicy.ranking.plackett_luce import fit_plackett_luce

SIM = np.array([0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
OOD = np.array([9.0, 0.5, 1.0, 0.8, 2.0, 0.1, 3.0, 4.0, 5.0])


def test_vsdr_prefers_what_holds_on_both():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rule in COMBINERS:
            score = vsdr(SIM, OOD, combine=rule)
            assert np.argmax(score) == 1 or rule == "minmax_product"
            assert score[0] < score[1]
    np.testing.assert_allclose(vsdr(SIM, OOD)[1], np.sqrt(8 / 9 * 8 / 9))


def test_a_constant_term_leaves_the_order_to_the_other():
    for rule in COMBINERS:
        assert spearman(vsdr(SIM, np.ones(9), rule), SIM) == pytest.approx(1)
        assert spearman(vsdr(np.full(9, 0.5), OOD, rule), -OOD) == pytest.approx(1)


def test_rank_product_survives_one_exploded_score_and_min_max_does_not():
    ood = np.array([9.0, 8.0, *OOD[2:]])
    exploded = np.array([1e9, *ood[1:]])
    np.testing.assert_allclose(vsdr(SIM, exploded), vsdr(SIM, ood))
    flattened = vsdr(SIM, exploded, "minmax_product")[1:]
    assert spearman(flattened, SIM[1:]) == pytest.approx(1)  # the detector has no say left
    assert spearman(vsdr(SIM, ood, "minmax_product")[1:], SIM[1:]) < 0.8


def test_few_policies_warn_and_fall_back_to_simulation():
    with pytest.warns(UserWarning, match="at least 8"):
        np.testing.assert_array_equal(vsdr(SIM[:7], OOD[:7]), SIM[:7])


def test_unseen_and_disqualified_policies():
    ood = OOD.copy()
    ood[1] = np.inf
    assert np.argmin(vsdr(SIM, ood)[:4]) == 1
    ood[1] = np.nan
    with pytest.warns(UserWarning, match="1 of 9 policies"):
        assert vsdr(SIM, ood)[1] == pytest.approx(8 / 9)
    for sim, distance, message in [
        ([np.nan, *SIM[1:]], OOD, r"sim\[0\]=nan"),
        (SIM, [*OOD[1:], -np.inf], "larger = worse"),
        (SIM, OOD[:3], "one of each per policy"),
        ([], [], "one of each per policy"),
    ]:
        with pytest.raises(ValueError, match=message):
            vsdr(sim, distance)
    with pytest.raises(ValueError, match="rank_product"):
        vsdr(SIM, OOD, "rank_produkt")


def test_plackett_luce_finds_the_term_that_tells_and_ignores_noise():
    rng = np.random.default_rng(0)

    def domain(num=12):
        truth = rng.normal(size=num)
        return np.stack([truth + 0.3 * rng.normal(size=num), rng.normal(size=num)]), truth

    fitted = fit_plackett_luce([domain() for _ in range(10)])
    assert fitted.weights[0] > 0.9
    assert fitted.weights.sum() == pytest.approx(1)
    terms, truth = domain(200)
    assert spearman(combine(list(terms), fitted), truth) > spearman(combine(list(terms)), truth) + 0.1
    noise = fit_plackett_luce([(rng.normal(size=(2, 12)), rng.normal(size=12)) for _ in range(20)])
    assert noise.sharpness < 0.35 < fitted.sharpness
    with pytest.raises(ValueError, match="terms of the fit"):
        combine([SIM], fitted)


def test_with_much_prior_plackett_luce_is_the_rank_product():
    rng = np.random.default_rng(1)
    terms, truth = rng.normal(size=(3, 10)), rng.integers(3, size=10).astype(float)  # outcomes with ties
    fitted = fit_plackett_luce([(terms, truth)], ridge=1e9)
    np.testing.assert_allclose(combine(list(terms), fitted), combine(list(terms)), rtol=1e-6)
    order = rng.permutation(10)
    shuffled = fit_plackett_luce([(terms[:, order], truth[order])])
    np.testing.assert_allclose(shuffled.weights, fit_plackett_luce([(terms, truth)]).weights, rtol=1e-4)
