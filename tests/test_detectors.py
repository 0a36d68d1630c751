"""Properties of the out-of-distribution detectors: what they see, what they ignore, when they say not to believe them."""

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf

from robopolicy.ranking import detectors
from robopolicy.ranking.detectors import DETECTORS, dead_units, detect, evidence
from robopolicy.ranking.tables import check_features

NUM_FEATURES = 8
DISTANCES = [name for name in DETECTORS if name != "rnd"]  # a random network's weights belong to the order of the units


def feature_arrays(shift, seed=0, num_fit=200):
    rng = np.random.default_rng(seed)  # five latent directions, mixed, and a little noise off their subspace
    mix = rng.normal(size=(5, NUM_FEATURES))
    sizes = (num_fit, 400, 80)
    fit, calibration, target = (rng.normal(size=(n, 5)) @ mix + 0.5 * rng.normal(size=(n, NUM_FEATURES)) for n in sizes)
    return {"fit": fit, "calibration": calibration, "target": target + shift, "target_episode": np.arange(80) // 4}


def changed(arrays, change):
    return {name: value if name == "target_episode" else change(value) for name, value in arrays.items()}


def detection(arrays, detector="mahalanobis"):
    return detect(check_features({"x": arrays}, ["x"])["x"], detector=detector, seed=0, num_bootstrap=100)


@pytest.fixture(scope="module")
def by_shift():
    return {shift: detection(feature_arrays(shift)) for shift in (0.0, 1.0, 2.0, 4.0)}


@pytest.mark.parametrize("detector", DETECTORS)
def test_evidence_is_nought_in_distribution_and_grows_with_the_shift(by_shift, detector):
    found = [by_shift[shift].evidence[detector] for shift in (0.0, 1.0, 2.0, 4.0)]
    sizes = [e.effect_size for e in found]
    assert abs(sizes[0]) < 0.6
    assert sizes == sorted(sizes)
    assert sizes[3] > sizes[0] + 0.3
    assert found[0].p_value > 0.5 > 0.4 < found[0].auroc < 0.6
    assert found[3].auroc > found[0].auroc + 0.1
    assert found[3].conformal > found[0].conformal + 0.1


def test_effect_sizes_ignore_scale_offset_and_order_of_the_units(by_shift):
    rng = np.random.default_rng(5)
    order, scale = rng.permutation(NUM_FEATURES), 10.0 ** rng.uniform(-5, 5, NUM_FEATURES)
    again = detection(changed(feature_arrays(1.0), lambda v: (v * scale + 3 * scale)[:, order])).effect_sizes
    for name in DISTANCES:
        assert again[name] == pytest.approx(by_shift[1.0].effect_sizes[name], rel=1e-5)
    scaled = detection(changed(feature_arrays(1.0), lambda v: v * scale)).effect_sizes
    assert scaled["rnd"] == pytest.approx(by_shift[1.0].effect_sizes["rnd"], rel=1e-6)


@pytest.mark.parametrize("make", DETECTORS.values(), ids=DETECTORS)
def test_float32_features_score_like_float64_ones_even_when_there_are_fewer_rows_than_units(make):
    rng = np.random.default_rng(2)
    fit, seen = rng.normal(size=(40, 64)), rng.normal(size=(30, 64)) * 1.5
    double, single = make().fit(fit).score(seen), make().fit(np.float32(fit)).score(np.float32(seen))
    assert (double > 0).all()
    np.testing.assert_allclose(single, double, rtol=2e-3)


def test_mahalanobis_is_that_of_ledoit_and_wolf_and_about_one_in_distribution():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(6, 6))
    fit, seen = rng.normal(size=(80, 6)) @ mix, rng.normal(size=(50, 6)) @ mix
    z, x = (fit - fit.mean(0)) / fit.std(0), (seen - fit.mean(0)) / fit.std(0)
    covariance = ledoit_wolf(z, assume_centered=True)[0]
    expected = np.einsum("nd,nd->n", x, np.linalg.solve(covariance, x.T).T) / 6
    np.testing.assert_allclose(detectors.Mahalanobis().fit(fit).score(seen), expected, rtol=1e-9)
    large = rng.normal(size=(5000, 6)) @ mix
    assert detectors.Mahalanobis().fit(large).score(rng.normal(size=(5000, 6)) @ mix).mean() == pytest.approx(1, abs=0.05)


def test_knn_and_pca_residual_are_what_their_definitions_say():
    rng = np.random.default_rng(1)
    fit, seen = rng.normal(size=(60, 4)), rng.normal(size=(9, 4))
    z, x = (fit - fit.mean(0)) / fit.std(0), (seen - fit.mean(0)) / fit.std(0)
    distances = np.sort(np.linalg.norm(x[:, None] - z[None], axis=2), axis=1)
    np.testing.assert_allclose(detectors.KNN(3).fit(fit).score(seen), distances[:, :3].mean(1))
    cosines = (x / np.linalg.norm(x, axis=1)[:, None]) @ (z / np.linalg.norm(z, axis=1)[:, None]).T
    np.testing.assert_allclose(detectors.KNN(2, "cosine").fit(fit).score(seen), np.sort(1 - cosines, axis=1)[:, :2].mean(1))
    plane = rng.normal(size=(300, 2)) @ rng.normal(size=(2, 5))
    residual = detectors.PCAResidual().fit(plane)
    assert residual.score(plane).max() < 1e-18
    assert residual.score(plane + rng.normal(size=plane.shape)).min() > 1e-6


def test_work_in_blocks_changes_nothing(monkeypatch):
    arrays = feature_arrays(1.0)
    whole = detection(arrays)
    monkeypatch.setattr(detectors.base, "BLOCK_BYTES", 5000)
    in_blocks = detection(arrays)
    for name, size in whole.effect_sizes.items():
        assert in_blocks.effect_sizes[name] == pytest.approx(size, rel=1e-9)
    np.testing.assert_allclose(in_blocks.draws, whole.draws, rtol=1e-9)


def test_the_domain_classifier_knows_chance_from_a_gap_when_rows_of_an_episode_are_alike():
    rng = np.random.default_rng(0)

    def episodes(num, shift):
        own = rng.normal(size=(num, 1, 10))  # what an episode's ten rows share dwarfs what they do not
        return (own + 0.1 * rng.normal(size=(num, 10, 10)) + shift).reshape(-1, 10), np.repeat(np.arange(num), 10)

    fit, (calibration, of_calibration) = episodes(60, 0)[0], episodes(40, 0)
    classifier = detectors.DomainClassifier().fit(fit)
    gaps = []
    for shift in (0.0, 1.5):
        target, of_target = episodes(20, shift)
        gaps.append(classifier.gap(target, calibration, of_target, of_calibration))
    same, apart = gaps
    assert abs(same.auroc - 0.5) < 0.2
    assert same.p_value > 0.1
    assert apart.auroc > 0.85
    assert apart.accuracy > 0.75
    assert apart.p_value == pytest.approx(1 / 21)
    assert np.isnan(classifier.score(calibration[:10], np.zeros(10))).all()  # one episode cannot be held out


def test_disagreement_counts_each_output_in_its_own_unit():
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(1, 100, 2)) * [1.0, 1000.0]
    near, far = (mean + spread * rng.normal(size=(5, 100, 2)) * [1.0, 1000.0] for spread in (0.1, 0.5))
    detector = detectors.Disagreement().fit(near)
    assert detector.score(near).mean() == pytest.approx(0.01, rel=0.2)
    assert detector.score(far).mean() == pytest.approx(0.25, rel=0.2)
    assert evidence(detector.score(far), detector.score(near)).effect_size > 1
    with pytest.raises(ValueError, match="at least E=2 members"):
        detector.score(near[:1])
    with pytest.raises(ValueError, match="constant"):
        detectors.Disagreement().fit(np.zeros((3, 10, 2)))


def test_the_set_p_value_is_valid_and_an_effect_size_does_not_saturate():
    rng = np.random.default_rng(0)
    p = [evidence(rng.gamma(2, size=30), rng.gamma(2, size=200)).p_value for _ in range(300)]
    assert np.mean(np.array(p) <= 0.1) <= 0.1
    calibration, target = rng.gamma(2, size=200), rng.gamma(2, size=30)
    far, farther = evidence(100 * target, calibration), evidence(1e4 * target, calibration)
    assert far.auroc == farther.auroc == 1
    assert far.conformal == pytest.approx(np.log(201))
    assert farther.effect_size > far.effect_size + 2


def test_dead_units_are_left_out_and_flagged_when_the_target_wakes_them():
    arrays = feature_arrays(0.0)
    silent = changed(arrays, lambda v: np.column_stack([v, np.zeros(len(v))]))
    leaking = {**silent, "target": np.column_stack([arrays["target"], np.full(80, 0.01)])}
    found = [detection(x) for x in (arrays, silent, leaking)]
    assert [d.num_dead for d in found] == [0, 1, 1]
    assert [d.num_leaking for d in found] == [0, 0, 1]
    assert found[0].effect_sizes == found[1].effect_sizes == found[2].effect_sizes
    assert any(flag.startswith("leaking") for flag in found[2].flags)
    rare = np.zeros((400, 1))
    rare[7] = 5.0  # fires once in 400 frames: standardising it would let one frame decide
    assert dead_units(rare, rare).all()


def test_guards_raise_their_flags():
    arrays = feature_arrays(30.0, num_fit=10)
    few = detection({**arrays, "target": arrays["target"][:5], "target_episode": np.arange(5)})
    assert {"few_fit", "few_target", "saturated"} <= {flag.split(":")[0] for flag in few.flags}
    arrays = feature_arrays(0.0)
    overlap = detection({**arrays, "calibration": arrays["fit"][:120]})
    assert "overlap" in {flag.split(":")[0] for flag in overlap.flags}


def test_a_collapsed_encoder_is_no_evidence():
    rng = np.random.default_rng(0)
    line = changed(feature_arrays(0.0), lambda v: rng.normal(size=(len(v), 1)) @ np.ones((1, NUM_FEATURES)))
    for arrays in (line, changed(line, lambda v: np.full_like(v, 0.7))):
        found = detection(arrays)
        assert np.isnan(list(found.effect_sizes.values())).all()
        assert np.isneginf(found.draws).all()
        assert found.flags[0].startswith("collapsed")
    with pytest.raises(ValueError, match="collapsed encoder"):
        detectors.Mahalanobis().fit(np.full((50, 4), 0.7))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: detectors.Mahalanobis().fit(np.zeros(3)), r"expected \[N, D\]"),
        (lambda: detectors.Mahalanobis().fit(np.zeros((1, 3))), "at least 2"),
        (lambda: detectors.KNN().fit(np.eye(4)).score(np.eye(3)), "3 wide, the fit's 4"),
        (lambda: detectors.KNN().fit(np.array([[0.0, 1], [np.nan, 0]])), "not finite in row 1"),
        (lambda: detectors.KNN(metric="cosin"), "cosine"),
    ],
)
def test_bad_features_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
    with pytest.raises(RuntimeError, match="after fit"):
        detectors.PCAResidual().score(np.eye(3))
