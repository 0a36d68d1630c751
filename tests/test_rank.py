"""Properties of `robopolicy rank` on scores made elsewhere: tables, gate, back-test, real trials, diff, and bad input."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import yaml

from robopolicy.config import compose, to_plain
from robopolicy.ranking import mmrv, regret_at_k, sharpe_ratio_at_k
from robopolicy.ranking.backtest import backtest
from robopolicy.ranking.episode_table import check_episodes
from robopolicy.ranking.finalists import compare_finalists
from robopolicy.ranking.gate import judge, read_rules
from robopolicy.ranking.rank import rank, rank_scores
from robopolicy.ranking.result import Ranking
from robopolicy.ranking.score_table import check_scores, read_table
from robopolicy.ranking.slices import slices, weakest
from robopolicy.ranking.tables import RankingError
from robopolicy.ranking.worlds import drawn_parameters
from robopolicy.selection import verbs
from robopolicy.selection.run import rank_verb

SIM = [0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]
OOD = [3.2, 1.1, 0.5, 0.4, 2.0, 1.0, 0.2, 0.1, 3.0]
REAL = [0.4, 0.7, 0.75, 0.6, 0.3, 0.35, 0.4, 0.2, None]
NAMES = [f"p{i}" for i in range(1, 10)]


def settings(name, *overrides):
    return to_plain(compose(name, ["num_bootstrap=200", *overrides] if name == "rank" else list(overrides)))


def score_table(**columns):
    return pa.table({"policy": NAMES, "sim": SIM, "ood": OOD, **columns})


def write_csv(path, table):
    pyarrow.csv.write_csv(table, path)
    return path


def episodes(rates, conditions=60, seed=0, split="select", **drawn):
    """A table in which a policy succeeds at the easiest conditions first; `drawn` {name: [K]} are their parameters."""
    rng, rows = np.random.default_rng(seed), []
    for name, rate in rates.items():
        hit = (
            np.argsort(rng.permutation(conditions) + conditions * (np.arange(conditions) / conditions > 0.5))
            < rate * conditions
        )
        for c in range(conditions):
            row = {
                "checkpoint": name,
                "run": name,
                "step": 1,
                "suite": "s",
                "split": split,
                "condition": f"{split}{c}",
                "seed": c,
            }
            row |= {"success": bool(hit[c]), "return": float(hit[c]), "progress": float(hit[c])}
            rows.append(row | {f"randomization.{key}": float(values[c]) for key, values in drawn.items()})
    return pa.Table.from_pylist(rows)


def outcomes_of(success):
    """Episodes of these outcomes, {policy: bool [K]}."""
    table = episodes(dict.fromkeys(success, 0.5), len(next(iter(success.values()))))
    hit = pa.array(np.concatenate(list(success.values())).tolist())
    return table.set_column(table.column_names.index("success"), "success", hit)


# ---- score tables


def test_scores_alone_give_an_order_and_say_what_they_cannot(tmp_path):
    path = write_csv(tmp_path / "t.csv", score_table(real=REAL, critic=[0.7, 0.8, 0.9, 0.5, 0.4, 0.6, 0.3, 0.35, 0.1]))
    done = rank_verb(settings("rank", f"scores={path}", f"out={tmp_path / 'out'}"))
    ranking = Ranking.read(tmp_path / "out")
    assert done.exit_code == 0
    assert ranking.checkpoints[0].checkpoint in ("p3", "p4")
    assert ranking.orders["sim"] == NAMES
    assert ranking.orders["critic"][0] == "p3"
    assert ranking.num_draws == 0
    assert ranking.checkpoints[0].prob_best is None
    assert ranking.check["orders"]["vsdr"]["spearman"]["value"] > ranking.check["orders"]["sim"]["spearman"]["value"]
    page = (tmp_path / "out/report.html").read_text()
    assert "does not say how many episodes a rate comes from" in page
    assert {f.name for f in (tmp_path / "out").glob("card_*.md")} == {
        f"card_{c.checkpoint}.md" for c in ranking.checkpoints[:3]
    }


def test_episode_counts_bring_intervals_that_shrink_with_them():
    few, many = (rank_scores(check_scores(score_table(episodes=[n] * 9)), num_bootstrap=300) for n in (10, 1000))
    assert few.num_draws == many.num_draws == 300
    widths = [np.mean([np.ptp(c.rank_intervals["sim"]) for c in r.checkpoints]) for r in (few, many)]
    assert widths[1] < widths[0] / 2


def test_two_successes_of_two_do_not_beat_95_of_100_for_sure():
    table = pa.table({"policy": ["lucky", "solid", "weak"], "sim": [1.0, 0.95, 0.4], "episodes": [2, 100, 100]})
    found = rank_scores(check_scores(table), num_bootstrap=2000)
    assert found.line("lucky").prob_best < 0.7
    assert found.line("lucky").group == found.line("solid").group == 0
    assert found.statistics["separation"]["test"] == "Fisher's exact"
    opposite = pa.table({"policy": ["a", "b"], "sim": [1.0, 0.0], "episodes": [3, 3]})
    assert {line.group for line in rank_scores(check_scores(opposite)).checkpoints} == {0}


def test_fewer_than_eight_policies_fall_back_to_simulation_with_a_warning():
    small = rank_scores(check_scores(score_table().slice(0, 5)))
    assert small.settings["combined"] == ["sim"]
    assert small.orders["vsdr"] == small.orders["sim"] == NAMES[:5]
    assert any("too few" in w for w in small.warnings)
    asked = rank_scores(check_scores(score_table().slice(0, 5)), combined=["sim", "ood"])
    assert asked.checkpoints[0].checkpoint != "p1"


def test_several_checkpoints_of_one_training_are_warned_of_where_distance_counts():
    runs = ["long", "long", *NAMES[2:]]

    def warned(table, **asked):
        return [w for w in rank_scores(check_scores(table), **asked).warnings if "several checkpoints of one run" in w]

    assert "(long)" in warned(score_table(run=runs, step=[1, 2, *[2] * 7]))[0]
    assert not warned(score_table(run=NAMES, step=[2] * 9))
    assert not warned(score_table(run=runs, step=[1, 2, *[2] * 7]), combined=["sim"])


def test_scores_of_any_scale_are_ranked_but_make_no_rates(tmp_path):
    table = pa.table({"policy": NAMES, "sim": [100 * s for s in SIM]})
    line = rank_scores(check_scores(table)).checkpoints[0]
    assert (line.checkpoint, line.success, line.scores["sim"]) == ("p1", None, 90.0)
    path = write_csv(tmp_path / "t.csv", table)
    assert rank_verb(settings("rank", f"scores={path}", f"out={tmp_path}/o")).lines[0] == "p1 scores best."


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"policy": ["a"], "score": [1.0]}), "no column 'sim'"),
        (pa.table({"policy": [], "sim": []}), "no rows"),
        (pa.table({"policy": ["a", "a"], "sim": [0.1, 0.2]}), "'a' appears twice"),
        (pa.table({"policy": ["a", "b"], "sim": [0.1, float("nan")]}), "sim of 'b' is nan"),
        (pa.table({"policy": ["a", "b"], "sim": [0.1, None]}), "sim of 'b' is empty"),
        (pa.table({"policy": ["a", "b"], "sim": [0.1, 0.2], "fqe": [1.0, float("inf")]}), "fqe of 'b' is inf"),
        (pa.table({"policy": ["a", "b"], "sim": [0.1, 0.2], "discount": [0.9, 0.99]}), "discount 0.9 and 0.99"),
        (pa.table({"policy": ["a", "b"], "sim": [0.1, 0.2], "horizon": [100, 120]}), "different quantities"),
        (pa.table({"policy": ["a", "b"], "sim": ["x", "y"]}), "holds no numbers"),
        (pa.table({"policy": ["a", "b"], "sim": [0.1, 20.0], "episodes": [5, 5]}), "no success rate"),
        (pa.table({"policy": ["a", "b"], "sim": [0.1, 0.2], "vsdr": [1.0, 2.0]}), "'vsdr' has the name"),
        (pa.table({"policy": ["a", "b"], "sim": [0.1, 0.2], "vsdr:robust_z": [1.0, 2.0]}), "'vsdr:robust_z' has the name"),
        (pa.table({"policy": ["a", "b"], "sim": [0.1, 0.2], "plackett_luce": [1.0, 2.0]}), "'plackett_luce' has the name"),
        (pa.table({"policy": ["a", "b"], "sim": [0.1, 0.2], "step": [1, None]}), "step of 'b' is empty"),
        (pa.table({"policy": ["a", "b"], "sim": [0.1, 0.2], "step": [1, 2.5]}), "step of 'b' is 2.5"),
    ],
)
def test_bad_score_tables_are_named(table, message):
    with pytest.raises(RankingError, match=message):
        check_scores(table)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"policy,sim,sim\na,0.5,0.6\n", "'sim' is there twice"),
        ("t.parquet", b"", "t.parquet is no parquet file"),
        ("t.parquet", b"hello", "t.parquet is no parquet file"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RankingError, match=message):
        rank_verb(settings("rank", f"scores={tmp_path / name}", f"out={tmp_path / 'out'}"))


def test_a_policy_without_any_combined_score_is_named():
    table = score_table().set_column(2, "ood", pa.array([*OOD[:3], None, *OOD[4:]]))
    with pytest.raises(RankingError, match="'p4' has no ood"):
        rank_scores(check_scores(table), combined=["ood"])


def test_features_beside_a_score_table_make_its_distances(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "features").mkdir()
    fit, calibration, target = (rng.normal(size=(rows, 3)) for rows in (60, 30, 10))
    for i, name in enumerate(NAMES):
        np.savez(tmp_path / f"features/{name}.npz", fit=fit, calibration=calibration, target=target + 2 * i)
    path = write_csv(tmp_path / "t.csv", score_table(episodes=[50] * 9).drop_columns("ood"))
    given = (f"scores={path}", f"features={tmp_path / 'features'}", "pictures=false")
    rank_verb(settings("rank", *given, f"out={tmp_path / 'out'}"))
    found = Ranking.read(tmp_path / "out")
    assert found.settings["combined"] == ["sim", "ood"]
    assert found.orders["ood"] == NAMES
    assert found.checkpoints[0].ood_interval is not None
    write_csv(path, score_table())
    with pytest.raises(RankingError, match="leave out one of the two"):
        rank_verb(settings("rank", *given))
    for more in ("outcomes=e.parquet", "baseline=p1"):
        with pytest.raises(RankingError, match="beside a score table"):
            rank_verb(settings("rank", f"scores={path}", more))


@pytest.mark.parametrize("k", [(3,), (100,)])
def test_the_check_needs_no_shortlist_of_one(tmp_path, k):
    path = write_csv(tmp_path / "t.csv", score_table(real=REAL))
    rank_verb(settings("rank", f"scores={path}", f"out={tmp_path / 'out'}", f"k=[{k[0]}]"))
    assert "regret@1" in Ranking.read(tmp_path / "out").check["orders"]["vsdr"]


def test_a_csv_keeps_names_as_text_and_empty_cells_as_missing(tmp_path):
    (tmp_path / "t.csv").write_text("policy,sim,ood,real\n1,0.5,1.0,\n2,0.6,,0.4\n")
    found = check_scores(read_table(tmp_path / "t.csv"))
    assert found.policies == ("1", "2")
    np.testing.assert_array_equal(found.scores["ood"], [1.0, np.nan])
    np.testing.assert_array_equal(found.real, [np.nan, 0.4])


# ---- episode tables


def test_a_file_in_batches_gives_what_a_table_gives(tmp_path, monkeypatch):
    table = episodes({"a": 0.5, "b": 0.8, "c": 0.2})
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(table.num_rows)))
    pq.write_table(shuffled, tmp_path / "e.parquet")
    monkeypatch.setattr("robopolicy.ranking.episode_table.BATCH", 7)
    here, there = check_episodes(table), check_episodes(tmp_path / "e.parquet")
    assert (here.checkpoints, here.conditions) == (there.checkpoints, there.conditions)
    np.testing.assert_array_equal(here.successes, there.successes)
    assert rank(table, None, num_bootstrap=100).to_json() == rank(tmp_path / "e.parquet", None, num_bootstrap=100).to_json()


@pytest.mark.parametrize("column", ["split", "run"])
def test_episodes_without_a_column_or_with_nulls_in_it_are_named(tmp_path, column):
    table = episodes({"a": 0.5, "b": 0.7}, 10)
    at = table.column_names.index(column)
    nulls = table.set_column(at, column, pa.array([None, *table[column].to_pylist()[1:]]))
    for given, message in ((table.drop_columns(column), f"no column '{column}'"), (nulls, f"column '{column}'.*nulls")):
        pq.write_table(given, tmp_path / "e.parquet")
        with pytest.raises(RankingError, match=message):
            rank_verb(settings("rank", f"scores={tmp_path / 'e.parquet'}", f"out={tmp_path / 'out'}"))


@pytest.mark.parametrize("known", [None, "c"])
def test_a_configuration_that_is_not_said_is_the_run(known):
    table = episodes({"a": 0.5, "b": 0.7}, 10)
    table = table.append_column("config", pa.array([known] * 10 + [None] * 10, pa.string()))
    assert check_episodes(table).configs == (known or "a", "b")


def test_a_condition_is_told_by_its_suite_and_split():
    mass = np.arange(20.0)
    tables = []
    for split, drawn in (("select", mass), ("confirm", mass[::-1])):
        table = episodes({"a": 0.5, "b": 0.5}, 20, split=split, mass=drawn)
        alike = pa.array([str(c) for c in range(20)] * 2)
        heavy = pa.array([bool(m < 10) for m in drawn] * 2)
        table = table.set_column(table.column_names.index("condition"), "condition", alike)
        tables.append(table.set_column(table.column_names.index("success"), "success", heavy))
    both = pa.concat_tables(tables)
    assert drawn_parameters(both)[0].correlation < -0.8
    assert [cell["rates"][0]["success"] for cell in weakest(both, ["a"])[0]["cells"]] == pytest.approx([1, 0.5, 0], abs=0.1)
    suites = pa.concat_tables([tables[1], tables[1].set_column(3, "suite", pa.array(["t"] * 40))])
    assert compare_finalists(suites, ["a", "b"], seed=0, num_bootstrap=100)["num_pairs"] == 40


def test_mixed_returns_and_repeats_are_refused():
    table = episodes({"a": 0.5, "b": 0.8})
    mixed = table.append_column("discount", pa.array([0.9] * 60 + [0.99] * 60))
    with pytest.raises(RankingError, match=r"discount 0\.9 and 0\.99"):
        rank(mixed, None, num_bootstrap=100)
    with pytest.raises(RankingError, match="twice"):
        check_episodes(pa.concat_tables([table, table]))
    twice = table.set_column(table.column_names.index("seed"), "seed", pa.array(np.arange(120) + 1000))
    assert check_episodes(pa.concat_tables([table, twice])).num_episodes == 120


def test_fresh_splits_never_rank_and_give_the_number_to_quote(tmp_path):
    rates = dict(zip(NAMES, SIM, strict=True))
    table = pa.concat_tables([episodes(rates), episodes({"p1": 0.5, "p2": 0.6}, conditions=40, split="confirm")])
    pq.write_table(table, tmp_path / "e.parquet")
    done = rank_verb(settings("rank", f"scores={tmp_path / 'e.parquet'}", f"out={tmp_path / 'o'}"))
    line = Ranking.read(tmp_path / "o").line("p1")
    assert line.success == pytest.approx(0.9)
    assert line.fresh["confirm"]["success"] == pytest.approx(0.5)
    assert line.fresh["confirm"]["interval"] == pytest.approx([0.318, 0.682], abs=1e-3)  # exact, for two
    assert any("40 fresh conditions" in text and "50" in text for text in done.lines)


def test_nested_conditions_rank_behind_those_that_stayed():
    table = episodes({"a": 0.9, "b": 0.5, "c": 0.4, "d": 0.1})
    rows = table.select(["checkpoint", "condition"]).to_pylist()
    early = [int(r["condition"].removeprefix("select")) < 20 or r["checkpoint"] in ("b", "c") for r in rows]
    part = table.filter(pa.array(early))
    with pytest.raises(RankingError, match="same conditions"):
        rank(part, None, num_bootstrap=100)
    found = rank(part, None, num_bootstrap=100, dropped={"a": 1, "d": 1})
    assert [c.checkpoint for c in found.checkpoints] == ["b", "c", "a", "d"]
    assert [c.num_episodes for c in found.checkpoints] == [60, 60, 20, 20]
    assert found.line("a").prob_best == 0


# ---- gate


def write_gate(path, *rules):
    path.write_text(yaml.safe_dump(list(rules)))
    return path


@pytest.fixture(scope="module")
def judged():
    load = np.linspace(0, 1, 60)
    table = episodes(dict(zip(NAMES, SIM, strict=True)), mass=load)
    return rank(table, None, num_bootstrap=200), table


@pytest.mark.parametrize(
    ("rule", "verdict"),
    [
        ({"metric": "success", "op": ">=", "threshold": 0.7, "confidence": "lower"}, "passed"),
        ({"metric": "success", "op": ">=", "threshold": 0.88, "confidence": "lower"}, "inconclusive"),
        ({"metric": "success", "op": ">=", "threshold": 0.99, "confidence": "lower"}, "failed"),
        ({"metric": "success", "op": ">=", "threshold": 0.88, "confidence": "point"}, "passed"),
        ({"metric": "success", "op": "<=", "threshold": 0.5, "confidence": "upper"}, "failed"),
        ({"metric": "success", "op": ">=", "threshold": 0.7, "min_n": 61}, "inconclusive"),
        ({"metric": "success", "slice": "mass:low", "op": ">=", "threshold": 0.95}, "passed"),
        ({"metric": "success", "slice": "mass:high", "op": ">=", "threshold": 0.95}, "failed"),
        ({"metric": "success", "vs": "p9", "op": ">=", "threshold": 0.5, "confidence": "lower"}, "passed"),
        ({"metric": "success", "vs": "baseline", "op": ">=", "threshold": 0.0, "confidence": "lower"}, "inconclusive"),
        ({"metric": "prob_best", "op": ">=", "threshold": 0.2}, "passed"),
        ({"metric": "ood", "op": "<=", "threshold": 3}, "inconclusive"),
    ],
)
def test_a_rule_passes_fails_or_is_inconclusive(judged, tmp_path, rule, verdict):
    [read] = read_rules(write_gate(tmp_path / "g.yaml", rule))
    found = judge([read], *judged, baseline="p2")
    assert found["verdict"] == verdict, found
    assert found["checkpoint"] == "p1"


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([{"metric": "sucess", "op": ">=", "threshold": 0.5}], "did you mean 'success'"),
        ([{"metric": "success", "op": "=>", "threshold": 0.5}], "give one of >="),
        ([{"metric": "success", "op": ">="}], "lacks threshold"),
        ([{"metric": "success", "op": ">=", "treshold": 1}], "did you mean 'threshold'"),
        ([{"metric": "success", "op": ">=", "threshold": 0.5, "slice": "mas:low"}], "mass:low"),
        ([{"metric": "success", "op": ">=", "threshold": 0.5, "vs": "baseline"}], "baseline=CHECKPOINT"),
        ([{"metric": "success", "op": ">=", "threshold": 0.5, "vs": 3}], "vs=3: give text"),
        ([{"metric": 3, "op": ">=", "threshold": 0.5}], "metric=3: give text"),
        ([{"metric": "success", "op": [1], "threshold": 0.5}], "op=.1.: give text"),
        ([{"metric": "rank", "op": "<=", "threshold": 1, "vs": "p2"}], "leave out slice and vs"),
        ([], "no list of rules"),
    ],
)
def test_bad_gates_are_named(judged, tmp_path, rules, message):
    with pytest.raises(RankingError, match=message):
        judge(read_rules(write_gate(tmp_path / "g.yaml", *rules)), *judged)


def test_the_exit_code_is_the_verdict_of_the_gate(tmp_path):
    path = write_csv(tmp_path / "t.csv", score_table(episodes=[60] * 9))
    for threshold, code, verdict in ((0.5, 0, "passed"), (0.75, 3, "inconclusive"), (0.95, 1, "failed")):
        rule = {"metric": "success", "op": ">=", "threshold": threshold, "confidence": "lower"}
        gate = write_gate(tmp_path / "g.yaml", rule)
        done = rank_verb(settings("rank", f"scores={path}", f"out={tmp_path / 'out'}", f"gate={gate}"))
        assert done.exit_code == code
        assert json.loads((tmp_path / "out/gate.json").read_text())["verdict"] == verdict


def test_a_rule_about_pairs_seldom_passes_a_leader_that_is_worse_by_more(tmp_path):
    [rule] = read_rules(
        write_gate(tmp_path / "g.yaml", {"metric": "success", "op": ">=", "threshold": -0.05, "vs": "b", "confidence": "lower"})
    )
    line = SimpleNamespace(checkpoint="a")
    rng, passed = np.random.default_rng(0), 0
    for n in (3, 10, 20) * 20:
        base = rng.random(n) < 0.98
        table = outcomes_of({"a": base & (rng.random(n) < 0.9), "b": base})
        passed += judge([rule], SimpleNamespace(checkpoints=[line]), table)["verdict"] == "passed"
    assert passed == 0
    equal = outcomes_of({"a": np.ones(100, bool), "b": np.ones(100, bool)})
    assert judge([rule], SimpleNamespace(checkpoints=[line]), equal)["verdict"] == "passed"


@pytest.mark.parametrize(("n", "verdict"), [(20, "inconclusive"), (60, "passed")])
def test_progress_that_never_varies_says_little_from_few_episodes(tmp_path, n, verdict):
    given = {"metric": "progress", "op": ">=", "threshold": 0.9, "confidence": "lower"}
    [rule] = read_rules(write_gate(tmp_path / "g.yaml", given))
    table = outcomes_of({"a": np.ones(n, bool)})
    table = table.set_column(table.column_names.index("progress"), "progress", pa.array([0.95] * n))
    assert judge([rule], SimpleNamespace(checkpoints=[SimpleNamespace(checkpoint="a")]), table)["verdict"] == verdict


def test_a_gate_about_nothing_measured_keeps_the_ranking(tmp_path):
    path = tmp_path / "e.parquet"
    pq.write_table(episodes({"a": 0.5, "b": 0.7}, 10), path)
    gate = write_gate(tmp_path / "g.yaml", {"metric": "sucess", "op": ">=", "threshold": 0.5})
    with pytest.raises(RankingError, match="did you mean 'success'"):
        rank_verb(settings("rank", f"scores={path}", f"out={tmp_path / 'out'}", f"gate={gate}"))
    assert Ranking.read(tmp_path / "out").checkpoints[0].checkpoint == "b"


def test_another_ranking_leaves_nothing_of_the_one_before(ranked, tmp_path):
    path = tmp_path / "e.parquet"
    pq.write_table(episodes({"cost$5_$6^": 0.5, "a/b": 0.7, "a_b": 0.6}, 30, mass=np.arange(30.0)), path)
    (tmp_path / "log.csv").write_text("policy,success\np1,1\np2,0\n")
    verbs.ingest_real(settings("rank_ingest_real", f"log={tmp_path / 'log.csv'}", f"out={ranked}"))
    assert rank_verb(settings("rank", f"scores={path}", f"out={ranked}")).exit_code == 0
    assert len(list(ranked.glob("card_*.md"))) == 3
    assert "Trials on the robot" not in (ranked / "report.html").read_text()
    (tmp_path / "log.csv").write_text("policy,success\na/b,1\n")
    found = verbs.ingest_real(settings("rank_ingest_real", f"log={tmp_path / 'log.csv'}", f"out={ranked}"))
    assert any("'p1' are left out" in line for line in found.lines)
    rank_verb(settings("rank", f"scores={write_csv(tmp_path / 't.csv', score_table())}", f"out={ranked}"))
    assert not (ranked / "episodes.parquet").exists()
    assert "what makes them hard" not in (ranked / "report.html").read_text()


def test_slices_are_thirds_of_conditions():
    known = slices(episodes({"a": 0.5, "b": 0.5}, mass=np.arange(60.0)))
    assert set(known) == {"mass:low", "mass:middle", "mass:high"}
    assert [int(s.rows.sum()) for s in known.values()] == [40, 40, 40]
    assert sum(s.rows.astype(int) for s in known.values()).tolist() == [1] * 120


# ---- back-test


def domains():
    rng = np.random.default_rng(0)
    rows = []
    for domain in ("T1", "T2", "T3"):
        for i in range(12):
            sim, ood = float(rng.uniform()), float(rng.uniform(0, 3))
            rows.append(
                {
                    "policy": f"p{i}",
                    "domain": domain,
                    "sim": sim,
                    "ood": ood,
                    "real": sim * np.exp(-ood),
                    "noise": float(rng.uniform()),
                }
            )
    return pa.Table.from_pylist(rows)


def test_the_back_test_is_the_metrics_and_chooses_on_other_domains_only():
    table = check_scores(domains())
    found = backtest(table, k=[1, 3], num_bootstrap=0)
    first = table.take([i for i, d in enumerate(table.domains) if d == "T1"])
    line = found["domains"]["T1"]["scores"]["noise"]
    real, noise = first.real, first.scores["noise"]
    assert line["mmrv"]["value"] == pytest.approx(mmrv(real, noise))
    assert line["regret@3"]["value"] == pytest.approx(regret_at_k(real, noise, 3))
    assert line["sharpe@3"]["value"] == pytest.approx(sharpe_ratio_at_k(real, noise, 3, real.mean()))
    assert found["mean"]["vsdr:rank_product"]["spearman"] > found["mean"]["sim"]["spearman"]
    for held, choice in found["leave_one_out"].items():
        others = {
            n: np.mean([found["domains"][d]["scores"][n]["regret@1"]["value"] for d in found["domains"] if d != held])
            for n in found["mean"]
        }
        assert others[choice["chosen"]] == min(others.values())


def test_the_back_test_punishes_a_score_that_ties_all_and_takes_seeds_of_a_configuration_together():
    rows = [{**row, "tied": 0.5, "run": row["policy"]} for row in domains().to_pylist()]
    configs = {f"p{i}": f"c{i // 4}" for i in range(12)}
    found = {}
    for name, more in (("runs", {}), ("configs", {"config": configs})):
        given = [{**row, **{key: of[row["policy"]] for key, of in more.items()}} for row in rows]
        found[name] = backtest(check_scores(pa.Table.from_pylist(given)), k=[1], num_bootstrap=200)["domains"]["T1"]["scores"]
    assert found["runs"]["tied"]["mmrv"]["value"] > found["runs"]["sim"]["mmrv"]["value"]
    alone = backtest(
        check_scores(pa.Table.from_pylist([{**row, "run": configs[row["policy"]]} for row in rows])), k=[1], num_bootstrap=200
    )
    assert found["configs"]["sim"]["spearman"] == alone["domains"]["T1"]["scores"]["sim"]["spearman"]
    assert found["configs"]["sim"]["spearman"] != found["runs"]["sim"]["spearman"]


def test_the_back_test_prints_every_metric_with_its_convention(tmp_path):
    path = write_csv(tmp_path / "t.csv", domains())
    done = verbs.backtest(settings("rank_backtest", f"scores={path}", f"out={tmp_path / 'o'}", "num_bootstrap=50"))
    text = "\n".join(done.lines)
    assert all(word in text for word in ("spearman", "mmrv", "regret@3", "sharpe@3", "leave one out", "population std", "ties"))
    assert json.loads((tmp_path / "o/backtest.json").read_text())["leave_one_out"].keys() == {"T1", "T2", "T3"}


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (score_table(), {}, "no policy has a value in the column 'real'"),
        (score_table(real=REAL), {"k": [9]}, "from 1 to 8"),
        (score_table(real=REAL), {"baseline": "p9"}, "has no real value"),
        (score_table(real=REAL), {"choose_by": "regret@2"}, "regret@1"),
        (score_table(real=REAL).slice(7), {}, "at least 3"),
    ],
)
def test_bad_back_tests_are_named(table, options, message):
    with pytest.raises(RankingError, match=message):
        backtest(check_scores(table), **{"k": [1, 3], "num_bootstrap": 0, **options})


# ---- trials on the robot


@pytest.fixture
def ranked(tmp_path):
    path = write_csv(tmp_path / "t.csv", score_table(episodes=[60] * 9))
    rank_verb(settings("rank", f"scores={path}", f"out={tmp_path / 'out'}"))
    return tmp_path / "out"


def test_real_trials_are_taken_in_once_and_move_the_posterior(ranked, tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("policy,success\n" + "p1,0\n" * 6 + "p3,1\n" * 6)
    first = verbs.ingest_real(settings("rank_ingest_real", f"log={log}", f"out={ranked}"))
    again = verbs.ingest_real(settings("rank_ingest_real", f"log={log}", f"out={ranked}"))
    assert first.lines[0].startswith("12 trials added")
    assert again.lines[0].startswith("0 trials added, 12 were there already; 12 in all")
    posterior = json.loads((ranked / "posterior.json").read_text())
    mean = {line["policy"]: line["mean"] for line in posterior["policies"]}
    assert mean["p3"] > mean["p1"] + 0.2
    assert posterior["recommended"] == "p3"
    low, high = next(line["interval"] for line in posterior["policies"] if line["policy"] == "p3")
    assert 0.3 < low < 1 == high
    assert "not_computed" in posterior["comparison"] or posterior["comparison"]["better"] == "p3"
    assert "Trials on the robot" in (ranked / "report.html").read_text()
    advice = verbs.next_real(settings("rank_next_real", f"out={ranked}"))
    assert ("Next on the robot" in advice.lines[0]) or ("Enough" in advice.lines[0])
    log.write_text("policy,success\n" + "p1,1\n" * 6)
    with pytest.raises(RankingError, match="is 1 here and 0 in"):
        verbs.ingest_real(settings("rank_ingest_real", f"log={log}", f"out={ranked}"))


def test_lines_without_an_id_are_trials_of_their_own_and_a_longer_log_adds_the_rest(ranked, tmp_path):
    log = tmp_path / "log.csv"
    for text, added in (("p1,1,\np1,1,\np1,0,monday\n", 3), ("p1,1,\np1,1,\np1,0,monday\np1,1,\np1,0,monday\n", 1)):
        log.write_text(f"policy,success,trial\n{text}")
        assert verbs.ingest_real(settings("rank_ingest_real", f"log={log}", f"out={ranked}")).lines[0].startswith(f"{added} ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("policy,success,trial\np1,1,a\np1,0,a\n", "line 3: trial a of p1"),
        ("policy,success\np11,1\n", "did you mean 'p1'"),
        ("policy,success\np1,2\n", "line 2"),
        ("policy,ok\np1,1\n", "no column 'success'"),
    ],
)
def test_bad_logs_are_named_and_change_nothing(ranked, tmp_path, text, message):
    (tmp_path / "log.csv").write_text(text)
    for verb, name in ((verbs.ingest_real, "rank_ingest_real"), (verbs.next_real, "rank_next_real")):
        with pytest.raises(RankingError, match=message):
            verb(settings(name, f"log={tmp_path / 'log.csv'}", f"out={ranked}"))
    assert not (ranked / "real_trials.jsonl").exists()


def test_returns_are_not_taken_for_success_rates(tmp_path):
    path = write_csv(tmp_path / "t.csv", pa.table({"policy": NAMES, "sim": [100 * s for s in SIM]}))
    with pytest.raises(RankingError, match="sim of 'p1' is 90"):
        verbs.next_real(settings("rank_next_real", f"scores={path}", f"out={tmp_path / 'out'}"))


# ---- report, diff


def test_the_page_can_be_written_again_and_two_rankings_compared(ranked, tmp_path):
    before = (ranked / "report.html").read_bytes()
    (ranked / "report.html").unlink()
    verbs.report({"out": ranked})
    assert (ranked / "report.html").read_bytes() == before
    same = verbs.diff({"a": ranked, "b": ranked})
    assert (same.exit_code, same.lines) == (
        0,
        ["Both lead with " + Ranking.read(ranked).checkpoints[0].checkpoint + ".", "Same inputs and settings."],
    )
    path = write_csv(tmp_path / "t2.csv", score_table(episodes=[60] * 9).set_column(1, "sim", pa.array(SIM[::-1])))
    rank_verb(settings("rank", f"scores={path}", f"out={tmp_path / 'other'}"))
    other = verbs.diff({"a": ranked, "b": tmp_path / "other"})
    assert other.exit_code == 1
    assert any(line.startswith("inputs: scores is") for line in other.lines)
    assert any("p1: place" in line for line in other.lines)


def test_the_table_arrives_at_weights_and_biases(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    path = write_csv(tmp_path / "t.csv", score_table(episodes=[60] * 9))
    rank_verb(settings("rank", f"scores={path}", f"out={tmp_path / 'out'}", "wandb=true"))
    [file] = (tmp_path / "out/wandb").glob("offline-run-*/files/media/table/ranking_*.table.json")
    logged, table = json.loads(file.read_text()), Ranking.read(tmp_path / "out").table()
    assert sorted(logged["columns"]) == sorted(table.column_names)
    rows = [dict(zip(logged["columns"], row, strict=True)) for row in logged["data"]]
    assert [row["checkpoint"] for row in rows] == table["checkpoint"].to_pylist()
    assert [row["prob_best"] for row in rows] == pytest.approx(table["prob_best"].to_pylist())


def test_neither_or_both_inputs_are_refused():
    for given in ((), ("pool=runs/x", "scores=t.csv")):
        with pytest.raises(RankingError, match="give pool="):
            rank_verb(settings("rank", *given))
    with pytest.raises(RankingError, match="give a score a column"):
        rank_verb(settings("rank", "scores=t.csv", "also=[fqe]"))
    with pytest.raises(RankingError, match="no score table at"):
        rank_verb(settings("rank", "scores=nowhere.csv"))
