"""Properties of the statistics in a ranking: finalists, twins, training seeds, shrinkage, groups, learned weights."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from robopolicy.config import compose, to_plain
from robopolicy.ope.fqe import FQEConfig, fqe
from robopolicy.ope.transitions import Transitions
from robopolicy.ranking.backtest import backtest
from robopolicy.ranking.finalists import compare_finalists
from robopolicy.ranking.rank import rank, rank_scores
from robopolicy.ranking.result import Ranking
from robopolicy.ranking.score_table import check_scores
from robopolicy.ranking.support import ActionSupport
from robopolicy.ranking.tables import RankingError
from robopolicy.selection import verbs
from robopolicy.selection.run import rank_verb


def settings(name, *overrides):
    return to_plain(compose(name, list(overrides)))


def episodes(success, split="select", suite="s", runs=None, steps=None, configs=None):
    """A table of success {checkpoint: bool [K]}; condition k is the same for all."""
    rows = []
    for name, hits in success.items():
        for k, hit in enumerate(hits):
            row = {"checkpoint": name, "run": (runs or {}).get(name, name), "step": (steps or {}).get(name, 1), "suite": suite}
            row |= {"split": split, "condition": str(k), "seed": k, "success": bool(hit), "return": float(hit)}
            rows.append(row | {"progress": 0.5 + hit / 2} | ({"config": configs[name]} if configs else {}))
    return pa.Table.from_pylist(rows)


def draws(rates, conditions, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(size=conditions) < rate for name, rate in rates.items()}


def test_a_better_finalist_is_told_from_a_worse_one_and_not_from_its_like():
    found = compare_finalists(episodes(draws({"a": 0.9, "b": 0.9, "c": 0.3}, 100)), ["a", "b", "c"], seed=0, num_bootstrap=200)
    like, worse = found["comparisons"]
    assert found["num_pairs"] == 100
    assert worse["p_holm"] < 1e-6
    assert worse["p_anytime_holm"] < 0.01
    assert worse["decided_after"] < 60
    assert like["p_anytime_holm"] > 0.05
    assert like["p_holm"] >= like["p_value"]
    mean, low, high = found["progress"]["a"]
    assert low < mean < high
    assert mean == pytest.approx(0.95, abs=0.04)


def test_finalists_without_pairs_say_so():
    one = episodes(draws({"a": 0.9, "b": 0.9}, 9))
    again = pa.concat_tables([one, one])
    assert "one finalist" in compare_finalists(one, ["a"], seed=0, num_bootstrap=100)["not_computed"]
    assert "same conditions" in compare_finalists(again, ["a", "b"], seed=0, num_bootstrap=100)["not_computed"]
    assert "same conditions" in compare_finalists(one.slice(1), ["a", "b"], seed=0, num_bootstrap=100)["not_computed"]


def test_twins_sharpen_what_few_real_trials_say():
    rng = np.random.default_rng(1)
    simulated = {name: rng.uniform(size=2000) < 0.7 for name in ("a", "b")}
    agree = rng.uniform(size=300) < 0.9
    real = {"a": np.where(agree, simulated["a"][:300], ~simulated["a"][:300])}
    ranking = rank(episodes(simulated), None, target_outcomes=episodes(real, suite="robot", split="target"), num_bootstrap=100)
    line = ranking.statistics["real_means"]["checkpoints"]["a"]
    assert line["low"] <= 0.9 * 0.7 + 0.1 * 0.3 <= line["high"]
    assert line["high"] - line["low"] < 0.8 * (line["alone"]["high"] - line["alone"]["low"])
    assert (line["num_real"], line["num_simulated"]) == (300, 1700)
    assert line["effective_multiplier"] > 1.5
    other = episodes(real, suite="robot").set_column(5, "condition", pa.array([f"x{i}" for i in range(300)]))
    assert other.column_names[5] == "condition"
    alone = rank(episodes(simulated), None, target_outcomes=other, num_bootstrap=100)
    assert "give those conditions their names" in alone.statistics["real_means"]["not_computed"]


def test_seeds_of_a_configuration_are_compared_with_their_luck():
    rng, success, runs, steps, configs = np.random.default_rng(2), {}, {}, {}, {}
    for config, rate in (("x", 0.5), ("y", 0.8)):
        for seed in range(4):
            luck = rng.normal(0, 0.1)
            for step in (10, 20, 30):
                name = f"{config}{seed}@{step}"
                success[name] = rng.uniform(size=400) < rate + luck + step / 200 - 0.1
                runs[name], steps[name], configs[name] = f"{config}{seed}", step, config
    table = episodes(success, runs=runs, steps=steps, configs=configs)
    found = rank(table, None, num_bootstrap=100).statistics["training_seeds"]["configs"]
    assert [line["config"] for line in found] == ["x", "y"]
    assert all(line["num_seeds"] == 4 and line["steps"] == [10, 20, 30] and not line["warning"] for line in found)
    assert all(0.02 < line["seed_sd"] < 0.25 and line["monotonicity"] > 0.5 for line in found)
    assert all(line["components"]["seed"] > 0 and line["components"]["repeat"] > 0.1 for line in found)
    alone = rank(episodes({"a": success["x0@10"], "b": success["x0@20"]}), None, num_bootstrap=100).statistics
    assert "no configuration" in alone["training_seeds"]["not_computed"]
    scores = pa.table({"policy": ["a", "b"], "sim": [0.2, 0.4], "run": ["r1", "r2"], "config": ["c", "c"]})
    [given] = rank_scores(check_scores(scores)).statistics["training_seeds"]["configs"]
    assert given["seed_sd"] == pytest.approx(np.sqrt(0.02))


def test_the_winner_is_shrunk_towards_its_pool_and_groups_are_told_apart():
    rates = {f"p{i}": 0.5 for i in range(12)} | {"good": 0.98}
    found = rank(episodes(draws(rates, 80)), None, num_bootstrap=200)
    leader, second = found.checkpoints[:2]
    assert (leader.checkpoint, leader.group, second.group) == ("good", 0, 1)
    assert {line.group for line in found.checkpoints[1:]} == {1}
    assert found.statistics["separation"] == {"num_groups": 2, "test": "exact McNemar"}
    assert leader.shrunk < leader.success
    assert second.shrunk < second.success
    assert leader.shrunk_interval[0] < leader.shrunk < leader.shrunk_interval[1]
    assert Ranking.from_json(found.to_json()).to_json() == found.to_json()


def test_rates_with_known_episodes_are_compared_with_the_leader_by_fishers_test():
    table = pa.table({"policy": list("abc"), "sim": [0.9, 0.85, 0.2], "episodes": [100, 100, 100]})
    found = rank_scores(check_scores(table), num_bootstrap=500)
    near, far = found.line("b").behind_leader, found.line("c").behind_leader
    assert far["p_holm"] < 1e-6 < near["p_value"] <= near["p_holm"]
    assert far["interval"][0] < -0.7 < far["interval"][1] < 0
    assert found.line("c").group > found.line("b").group == 0


def test_weights_learned_on_domains_combine_in_a_ranking(tmp_path):
    rng, rows = np.random.default_rng(3), []
    for domain in ("A", "B", "C", "D"):
        for i in range(10):
            real = float(rng.normal())
            row = {"policy": f"p{i}", "domain": domain, "sim": float(rng.normal()), "ood": float(-real + 0.2 * rng.normal())}
            rows.append(row | {"real": real})
    pa.csv.write_csv(pa.Table.from_pylist(rows), tmp_path / "domains.csv")
    done = verbs.backtest(settings("rank_backtest", f"scores={tmp_path}/domains.csv", f"out={tmp_path}/b", "num_bootstrap=0"))
    assert any("Plackett-Luce weights" in line for line in done.lines)
    found = json.loads((tmp_path / "b/backtest.json").read_text())
    assert found["plackett_luce"]["weights"]["ood"] > 0.8
    for domain in found["domains"].values():
        assert domain["scores"]["plackett_luce"]["spearman"]["value"] > domain["scores"]["sim"]["spearman"]["value"]
    part = pa.Table.from_pylist([{k: v for k, v in r.items() if k != "domain"} for r in rows if r["domain"] == "A"])
    pa.csv.write_csv(part, tmp_path / "a.csv")
    given = (f"scores={tmp_path}/a.csv", f"out={tmp_path}/o", "combiner=plackett_luce")
    rank_verb(settings("rank", *given, f"weights={tmp_path}/b/backtest.json"))
    ranking = Ranking.read(tmp_path / "o")
    assert ranking.settings["combined"] == ["sim", "ood"]
    assert ranking.orders["vsdr"][0] in ranking.orders["ood"][:2]
    for wrong, message in [((), "needs weights="), ((f"weights={tmp_path}/a.json",), "it is no backtest.json")]:
        with pytest.raises(RankingError, match=message):
            rank_verb(settings("rank", *given, *wrong))
    alone = backtest(check_scores(pa.Table.from_pylist([r for r in rows if r["domain"] == "A"])), num_bootstrap=0)
    assert "one domain" in alone["plackett_luce"]["not_computed"]


def test_demonstrators_that_act_alike_give_no_ratio_of_1e23():
    rng = np.random.default_rng(4)
    features, actions = rng.normal(size=(20, 4)), rng.normal(size=(20, 3))
    chunks = np.stack([actions, np.r_[[actions[0]], actions[:-1]]], axis=1)  # [N, H, A]
    chunks[:, 1, 1] *= 1e-20  # an entry that later steps of no chunk use
    chunks = np.concatenate([chunks, 1e-20 * rng.normal(size=(20, 2, 1))], axis=2)  # and one that none uses at all
    episode = np.arange(20) // 5
    found = ActionSupport().fit(features, chunks, episode).score(features, chunks + 0.01, episode)
    assert 0.7 < found.score.value < 1.3
    far = ActionSupport().fit(features, chunks, episode).score(features, chunks + np.array([0, 3, 0, 0]), episode)
    assert 1.5 < far.score.value < 10
    twice = (np.tile(features, (2, 1)), np.tile(actions, (2, 1)) + 1e-12)
    with pytest.raises(ValueError, match="act alike"):
        ActionSupport().fit(*twice, np.repeat([0, 1], 20))


def test_a_q_is_asked_of_members_that_have_not_seen_the_episode():
    rng = np.random.default_rng(5)
    episode = np.repeat(np.arange(12), 5)
    z, a, r = rng.normal(size=(60, 3)), rng.normal(size=(60, 2)), rng.normal(size=60)
    data = Transitions.of(z, a, r, z, np.full(60, 0.9), episode)
    acts = (rng.normal(size=(60, 1, 2)), rng.normal(size=(12, 1, 2)))
    found = fqe(data, {"p": acts}, FQEConfig(steps=20, hidden=8, num_members=3))
    known, values = found.unseen("p", z, a)
    every = found.q("p", z, a).numpy()
    out = (found.weights == 0).numpy()
    assert 0 < known.sum() < 60
    for row in np.flatnonzero(known):
        assert values[row] == pytest.approx(every[out[:, row], row].mean(), rel=1e-5)
    np.testing.assert_array_equal(known, np.repeat(known[::5], 5))
