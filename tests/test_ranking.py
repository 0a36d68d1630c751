"""Properties of the ranking: intervals, metrics, detectors, combination, the ranking itself and its report."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from robopolicy.ranking import statistics
from robopolicy.ranking.combine import COMBINERS, combine
from robopolicy.ranking.episode_table import load_episodes
from robopolicy.ranking.rank import compare, rank
from robopolicy.ranking.report import write_report
from robopolicy.ranking.result import Ranking
from robopolicy.ranking.tables import RankingError, load_features
from robopolicy.ranking.verdict import verdict
from robopolicy.ranking.worlds import drawn_parameters

NUM_CONDITIONS, NUM_FEATURES = 40, 8
SUCCESS = {"a@1": 0.85, "a@2": 0.9, "b@1": 0.6, "b@2": 0.65, "c@1": 0.3, "c@2": 0.4, "d@1": 0.5, "d@2": 0.55}
SHIFT = {"a@1": 2.5, "a@2": 3.0, "b@1": 0.0, "b@2": 0.3, "c@1": 0.6, "c@2": 1.0, "d@1": 1.4, "d@2": 1.8}
QUICK = {"num_bootstrap": 200}


def episode_table(success, seed=0, conditions=NUM_CONDITIONS):
    rng, rows = np.random.default_rng(seed), []
    for name, rate in success.items():
        for condition, drawn in enumerate(rng.permutation(conditions) < round(rate * conditions)):
            row = {
                "checkpoint": name,
                "run": name.split("@")[0],
                "step": int(name.split("@")[1]),
                "suite": "s",
                "split": "select",
            }
            row |= {"condition": condition, "seed": 100 + condition, "success": bool(drawn), "return": float(drawn)}
            rows.append(row | {"progress": float(drawn), "length": 10})
    return pa.Table.from_pylist(rows)


def feature_arrays(shift, seed=0, num_fit=200):
    rng = np.random.default_rng(seed)  # five latent directions, mixed, and a little noise off their subspace
    mix = rng.normal(size=(5, NUM_FEATURES))
    sizes = (num_fit, 120, 40)
    fit, calibration, target = (rng.normal(size=(n, 5)) @ mix + 0.5 * rng.normal(size=(n, NUM_FEATURES)) for n in sizes)
    return {"fit": fit, "calibration": calibration, "target": target + shift, "target_episode": np.arange(40) // 4}


def edited(table, column, row, value):
    values = table[column].to_pylist()
    values[row] = value
    return table.set_column(table.column_names.index(column), column, pa.array(values))


@pytest.fixture(scope="module")
def inputs():
    return episode_table(SUCCESS), {name: feature_arrays(shift) for name, shift in SHIFT.items()}


@pytest.fixture(scope="module")
def target():
    return episode_table({name: rate * np.exp(-SHIFT[name] / 2) for name, rate in SUCCESS.items()}, seed=1)


@pytest.fixture(scope="module")
def ranking(inputs, target):
    return rank(*inputs, target_outcomes=target, **QUICK)


# ---- combination


def test_rank_product_known_example():
    v, o = np.array([0.9, 0.8, 0.5]), np.array([1.0, 3.0, 2.0])  # ascending places 3 2 1 and 1 3 2
    np.testing.assert_allclose(combine([v, o]), np.sqrt([3 * 1, 2 * 3, 1 * 2]) / 3)


@pytest.mark.parametrize("rule", COMBINERS)
def test_combination_ignores_the_order_of_checkpoints(rule):
    rng = np.random.default_rng(0)
    terms, order = rng.integers(6, size=(2, 12)).astype(float), rng.permutation(12)
    terms[1, 3], terms[1, 5] = np.nan, -np.inf
    np.testing.assert_allclose(combine(list(terms), rule)[order], combine(list(terms[:, order]), rule), rtol=1e-12)


@pytest.mark.parametrize("rule", ["rank_product", "rank_average"])
def test_raising_a_term_never_worsens_the_place(rule):
    rng = np.random.default_rng(1)
    for _ in range(200):
        terms = rng.integers(8, size=(2, 9)).astype(float)
        before = statistics.ranks(combine(list(terms), rule))[4]
        terms[0, 4] += rng.integers(1, 5)
        assert statistics.ranks(combine(list(terms), rule))[4] <= before


@pytest.mark.parametrize("rule", COMBINERS)
def test_disqualified_is_worst_and_missing_is_left_out(rule):
    sim = np.array([0.9, 0.8, 0.7, 0.6])
    disqualified = combine([sim, np.array([-np.inf, -1.0, -2.0, -3.0])], rule)
    favoured = combine([sim, np.array([0.0, -1.0, -2.0, -3.0])], rule)
    assert disqualified[0] < favoured[0]
    np.testing.assert_allclose(combine([sim, np.full(4, np.nan)], rule), combine([sim], rule))
    assert np.isnan(combine([np.full(4, np.nan)], rule)).all()


def test_unknown_combiner_names_the_closest():
    with pytest.raises(ValueError, match="rank_product"):
        combine([np.ones(3)], "rank_produkt")


# ---- detectors


def test_a_constant_encoder_cannot_win(inputs):
    episodes, features = inputs
    constant = {k: v if k == "target_episode" else np.full_like(v, 0.7) for k, v in features["a@2"].items()}
    ranked = rank(episodes, {**features, "a@2": constant}, **QUICK)
    line = next(c for c in ranked.checkpoints if c.checkpoint == "a@2")
    assert line.ood is None
    assert line.flags[0].startswith("collapsed")
    assert ranked.orders["ood"][-1] == "a@2"
    assert ranked.checkpoints[0].checkpoint != "a@2"


# ---- ranking


def test_vsdr_prefers_what_holds_on_both_and_the_check_sees_it(ranking):
    assert ranking.orders["sim"][0] == "a@2"
    assert ranking.orders["vsdr"][0] in ("b@1", "b@2")
    orders = ranking.check["orders"]
    assert orders["vsdr"]["spearman"]["value"] > orders["sim"]["spearman"]["value"]
    assert orders["vsdr"]["regret@1"]["value"] < orders["sim"]["regret@1"]["value"]
    assert orders["vsdr"]["minus_sim"]["regret@1"]["value"] < 0


def test_ranking_is_byte_identical_and_ignores_the_order_of_rows(inputs, target, ranking):
    episodes, features = inputs
    shuffled = episodes.take(pa.array(np.random.default_rng(0).permutation(episodes.num_rows)))
    again = rank(shuffled, dict(reversed(features.items())), target_outcomes=target, **QUICK)
    assert again.to_json() == ranking.to_json()
    assert Ranking.from_json(ranking.to_json()).to_json() == ranking.to_json()


def test_intervals_hold_the_estimate_and_probabilities_sum(ranking):
    for c in ranking.checkpoints:
        assert c.success_interval[0] <= c.success <= c.success_interval[1]
        low, high = c.rank_intervals["sim"]
        assert low <= c.ranks["sim"] <= high
    assert sum(c.prob_best for c in ranking.checkpoints) == pytest.approx(1)
    assert sum(c.prob_top["3"] for c in ranking.checkpoints) == pytest.approx(3)
    probability = {c.checkpoint: c.prob_best for c in ranking.checkpoints}
    assert sum(probability[name] for name in ranking.shortlist()) >= 0.9


def test_raising_success_in_the_table_never_worsens_the_rank(inputs):
    episodes, features = inputs
    before = {c.checkpoint: c.rank for c in rank(episodes, features, **QUICK).checkpoints}
    for name in SUCCESS:
        better = rank(episode_table({**SUCCESS, name: SUCCESS[name] + 0.1}), features, **QUICK)
        assert next(c.rank for c in better.checkpoints if c.checkpoint == name) <= before[name]


def test_without_features_the_order_is_simulated_success(inputs):
    ranked = rank(inputs[0], None, **QUICK)
    assert ranked.orders["vsdr"] == ranked.orders["sim"] == sorted(SUCCESS, key=SUCCESS.get, reverse=True)
    assert any("simulated success alone" in warning for warning in ranked.warnings)


def test_files_are_written_and_read_back(ranking, tmp_path):
    folder = ranking.write(tmp_path)
    assert Ranking.from_json((folder / "ranking.json").read_text()).orders == ranking.orders
    header, *lines = (folder / "ranking.csv").read_text().splitlines()
    assert header.startswith('"checkpoint","run","step","rank","group","vsdr"')
    assert len(lines) == len(SUCCESS)
    stale = json.dumps({**json.loads(ranking.to_json()), "schema": 0})
    with pytest.raises(RankingError, match="schema 0"):
        Ranking.from_json(stale)


def test_few_runs_are_said_to_be_few(inputs, target):
    keep = pa.compute.is_in(target["run"], pa.array(["a", "b"]))
    assert "mechanics only" in rank(*inputs, target_outcomes=target.filter(keep), **QUICK).check["note"]
    one = rank(*inputs, target_outcomes=target.filter(pa.compute.equal(target["run"], "a")), **QUICK).check
    assert one["orders"]["vsdr"]["spearman"]["interval"] is None


def test_compare_with_itself_is_zero_and_is_antisymmetric(inputs):
    episodes, _ = inputs
    same, there, back = (
        compare(episodes, *pair, num_bootstrap=200) for pair in [("a@1", "a@1"), ("a@1", "c@1"), ("c@1", "a@1")]
    )
    low, high = same.difference_interval
    assert (same.difference, same.p_value) == (0, 1)
    assert -0.2 < low < 0 < high < 0.2, "few pairs without a difference do not show that there is none"
    assert low == pytest.approx(-high)
    assert there.difference_interval == pytest.approx([-end for end in reversed(back.difference_interval)])
    assert there.difference == pytest.approx(-back.difference)
    assert (there.only_base, there.p_value) == (back.only_other, back.p_value)


# ---- bad inputs


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.drop_columns(["success"]), "no column 'success'"),
        (lambda t: t.slice(0, 0), "no rows"),
        (lambda t: t.slice(1), "same conditions"),
        (lambda t: pa.concat_tables([t, t.slice(0, 1)]), "twice"),
        (lambda t: edited(t, "return", 3, float("nan")), "return=nan in row 3"),
        (lambda t: edited(t, "progress", 2, 1.5), "in \\[0, 1\\]"),
        (lambda t: edited(t, "success", 1, None), "1 nulls"),
        (lambda t: edited(t, "run", 0, "z"), "has run"),
    ],
)
def test_bad_episode_tables_are_named(inputs, spoil, message):
    with pytest.raises(RankingError, match=message):
        rank(spoil(inputs[0]), inputs[1], **QUICK)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": None}, "lack 'target'"),
        ({"fit": np.zeros(3)}, "expected \\[N, D\\]"),
        ({"fit": np.full((200, NUM_FEATURES), np.nan)}, "not finite in row 0"),
        ({"fit": np.zeros((200, 3))}, "same layer"),
        ({"target": np.zeros((7, NUM_FEATURES)), "target_episode": np.arange(7)}, "not of the same observations"),
    ],
)
def test_bad_features_are_named(inputs, change, message):
    episodes, features = inputs
    spoiled = {k: v for k, v in {**features["b@1"], **change}.items() if v is not None}
    with pytest.raises(RankingError, match=message):
        rank(episodes, {**features, "b@1": spoiled}, **QUICK)


def test_unknown_names_are_answered_with_close_ones(inputs, target):
    episodes, features = inputs
    with pytest.raises(RankingError, match="did you mean 'a@1'"):
        rank(episodes, {"aa@1": features["a@1"]}, **QUICK)
    with pytest.raises(RankingError, match="mahalanobis"):
        rank(episodes, features, detector="mahalanobi", **QUICK)
    with pytest.raises(RankingError, match="no episodes of checkpoint"):
        rank(
            episodes,
            features,
            target_outcomes=edited(target.slice(0, NUM_CONDITIONS), "checkpoint", 0, "zz").slice(0, 1),
            **QUICK,
        )


def test_files_of_inputs_are_read_or_named(inputs, tmp_path):
    pq.write_table(inputs[0], tmp_path / "episodes.parquet")
    assert load_episodes(tmp_path / "episodes.parquet").num_rows == len(SUCCESS) * NUM_CONDITIONS
    np.savez(tmp_path / "x.npz", **feature_arrays(0.0))
    np.testing.assert_array_equal(load_features(tmp_path / "x.npz")["fit"], feature_arrays(0.0)["fit"])
    for loader in (load_episodes, load_features):
        with pytest.raises(RankingError, match=r"no (episode table|features) at"):
            loader(tmp_path / "absent")


# ---- report


@pytest.fixture(scope="module")
def context(inputs):
    frames = np.random.default_rng(0).integers(255, size=(5, 16, 16, 3)).astype(np.uint8)
    images = [("one frame", frames[0]), ("strip", frames), ("animation", b"GIF89a\x10\x00\x10\x00rest")]
    steering = {**compare(inputs[0], "b@1", "a@1", num_bootstrap=200).to_dict(), "title": "candidates: 8"}
    return {
        "title": "A <title>",
        "target_name": "the twin",
        "what_ran": {"command": "robopolicy rank"},
        "galleries": [{"title": "Worlds", "caption": "at reset", "images": images}],
        "steering": steering,
        "not_computed": {"FQE": "no rewards"},
    }


def test_report_is_self_contained_and_complete(ranking, context, tmp_path):
    page = write_report(tmp_path / "report.html", ranking, context).read_text()
    assert not re.search(r'(src|href)\s*=\s*["\']?(https?:|//)|url\(\s*["\']?https?:|<script[^>]*src|@import', page)
    for source in re.findall(r'<img[^>]+src="([^"]{0,40})', page):
        assert source.startswith("data:image/")
    for text in [
        *verdict(ranking, "the twin"),
        *SUCCESS,
        "A &lt;title&gt;",
        "robopolicy rank",
        "no rewards",
        "candidates: 8",
        "strip",
    ]:
        assert text in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', page)) <= set(ids)
    assert page.count('<svg class="plot"') == 5


def test_report_is_byte_identical_also_from_disk(ranking, context, tmp_path):
    first = write_report(tmp_path / "1.html", ranking, context).read_bytes()
    restored = Ranking.from_json(ranking.to_json())
    assert write_report(tmp_path / "2.html", restored, context).read_bytes() == first
    assert verdict(restored) == verdict(ranking)


def test_report_of_the_barest_ranking_says_what_is_missing(tmp_path):
    bare = rank(episode_table({"only@1": 0.5}), None, **QUICK)
    page = write_report(tmp_path / "report.html", bare, {}).read_text()
    assert "nothing to compare it with" in page
    assert "no features of target observations were given" in page
    assert "no outcomes on the target were given" in page


def test_verdict_tells_a_clear_winner_from_a_close_race_and_from_failure():
    def headline(**success):
        return verdict(rank(episode_table({f"{run}@1": rate for run, rate in success.items()}), None, **QUICK))[0]

    assert headline(a=0.9, b=0.4, c=0.3) == "Deploy a@1 first."
    assert "No clear winner" in headline(a=0.5, b=0.5, c=0.5, d=0.5)
    assert "none of them" in headline(a=0.0, b=0.0)


def test_report_refuses_what_it_cannot_show(ranking, tmp_path):
    with pytest.raises(RankingError, match="did you mean 'galleries'"):
        write_report(tmp_path / "r.html", ranking, {"gallerys": []})
    for image, message in [(b"plain text", "unknown format"), (np.zeros((4, 4, 3)), "give uint8")]:
        with pytest.raises(RankingError, match=message):
            write_report(tmp_path / "r.html", ranking, {"galleries": [{"title": "t", "images": [("x", image)]}]})


def test_the_report_says_what_was_drawn_and_what_makes_worlds_hard(tmp_path):
    table, rng = episode_table({"a@1": 0.5, "b@1": 0.6}), np.random.default_rng(0)
    conditions = np.array(table["condition"].to_pylist())
    success = np.array(table["success"].to_pylist(), float)
    rate = np.bincount(conditions, success) / 2
    heavy = 0.1 - 0.05 * rate + rng.uniform(0, 0.01, NUM_CONDITIONS)
    drawn = {"object.mass": heavy, "camera.fov": rng.uniform(40, 50, NUM_CONDITIONS), "table.height": np.zeros(NUM_CONDITIONS)}
    drawn["light.rgb"] = rng.uniform(0, 1, (NUM_CONDITIONS, 3))
    for name, values in drawn.items():
        table = table.append_column(f"randomization.{name}", pa.array([values[c].tolist() for c in conditions]))
    found = drawn_parameters(table)
    assert {p.name for p in found} == {"object.mass", "camera.fov", "light.rgb[0]", "light.rgb[1]", "light.rgb[2]"}
    assert found[0].name == "object.mass"
    assert found[0].correlation < -0.7
    assert found[0].correlation == pytest.approx(stats.spearmanr(heavy, rate).statistic)
    assert found[0].interval[1] < 0
    assert (found[0].low, found[0].high) == (heavy.min(), heavy.max())
    assert drawn_parameters(episode_table({"a@1": 0.5})) == []
    page = write_report(tmp_path / "report.html", rank(table, {}, **QUICK), {"worlds": found}).read_text()
    assert "what makes them hard" in page
    assert "object.mass" in page
