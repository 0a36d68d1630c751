"""tools/bench_steering.py: pairing, pooling and identities. No training."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import bench_steering
from steering_bench import cells, overhead, picture, summary
from steering_bench.cells import Cell, Method
from steering_bench.study import QUICK, Study


def table(success, conditions=None, deviation=0.0, decisions=4):
    conditions = [str(i) for i in range(len(success))] if conditions is None else conditions
    length = len(success)
    return pa.table(
        {
            "condition": conditions,
            "success": [bool(s) for s in success],
            "deviation": [deviation] * length,
            "decisions": [decisions] * length,
        }
    )


def test_pairs_are_those_conditions_that_both_arms_have():
    assert summary.outcomes(table([1, 0, 1]), table([1, 1], ["2", "1"])) == {"1": (False, True), "2": (True, True)}


def test_a_cell_is_compared_with_its_own_base():
    base, steered = (Cell("lift", "carp", "weak", Method(name), "held_out") for name in ("base", "default"))
    tables = {base.key: table([0] * 30 + [1] * 10), steered.key: table([1] * 12 + [0] * 18 + [1] * 10, deviation=0.25)}
    row = summary.compared(steered, tables, base)
    assert row["difference"] == pytest.approx(0.3)
    assert (row["only_base"], row["only_other"]) == (0, 12)
    assert row["p_value"] == pytest.approx(2 * 0.5**12)
    assert row["difference_interval"][0] > 0.1
    assert row["deviation"] == 0.25
    assert summary.compared(steered, {base.key: tables[base.key]}, base) is None


def test_pooling_counts_cells_alike():
    few, many = ({str(i): (first, True) for i in range(n)} for n, first in ((10, False), (90, True)))
    found = summary.pooled([few, many])
    assert found["gain"] == pytest.approx(0.5)
    assert (found["pairs"], found["worlds"]) == (100, 90)
    assert summary.pooled([]) is None


def test_cells_of_the_same_worlds_say_no_more_than_one():
    rng = np.random.default_rng(0)
    cell = {str(i): (bool(a), bool(b)) for i, (a, b) in enumerate(rng.random((100, 2)) < (0.3, 0.5))}
    widths = [np.subtract(*summary.pooled([cell] * n)["gain_ci"][::-1]) for n in (1, 6)]
    assert widths[1] == pytest.approx(widths[0], rel=0.1)


def test_parts_are_put_together_on_the_worlds_that_all_played():
    whole = {str(i): i < 30 for i in range(100)}
    methods = {"base": whole, "default": {c: int(c) < 45 for c in whole}, "oracle": {str(i): i < 40 for i in range(50)}}
    found = summary.contrasts({"lift": {**methods, "random": whole, "worst": dict.fromkeys(whole, False)}})["lift"]
    assert found["captured"]["value"] == pytest.approx((45 - 30) / (40 - 30))  # of the first 50
    assert found["captured"]["worlds"] == 50
    assert found["worst"]["value"] == pytest.approx(-0.3)
    assert found["worst"]["interval"][1] < -0.15
    assert "more_candidates" not in found


def result(seed, methods, inputs="state"):
    return {"settings": {"inputs": inputs}, "seed": seed, "episodes": {"lift/carp/weak": methods}}


def test_seeds_are_joined_each_on_its_own_worlds():
    worlds = [str(i) for i in range(200)]
    few = {"base": dict.fromkeys(worlds, False), "default": {c: int(c) < 20 for c in worlds}}
    many = {"base": dict.fromkeys(worlds[:50], False), "default": {c: int(c) < 25 for c in worlds[:50]}}
    row, points = summary.joined([result(0, few), result(1, many), result(0, few, "points")])
    assert row["key"] == "lift/carp/weak/default"
    assert (row["seeds"], row["num_conditions"]) == ([0, 1], 250)
    assert row["difference"] == pytest.approx((0.1 + 0.5) / 2)  # each seed counts alike
    assert np.array(row["by_seed"]).tolist() == [[0.0, 0.1], [0.0, 0.5]]
    low, high = row["difference_interval"]
    assert low < 0.12  # seeds are drawn too,
    assert high > 0.48  # so one of them may be all
    assert points["key"] == "lift/carp/weak, points/default"
    assert np.diff(points["difference_interval"])[0] < 0.1
    with pytest.raises(ValueError, match="two results of seed 0"):
        summary.joined([result(0, few), result(0, few)])


def test_a_picture_of_calibration_is_drawn(tmp_path):
    row = {"task": "lift", "family": "carp", "calibration": {"value": [0.1, 0.8], "worth": [0.2, 0.6], "count": [5, 5]}}
    rows = [{**row, "critic": kind, "worlds": where} for kind in ("progress", "iql") for where in ("wide", "held_out")]
    assert Image.open(picture.calibration(tmp_path / "x" / "c.png", rows)).size[0] > 400


def test_a_picture_of_gains_is_drawn(tmp_path):
    interval = {"base_interval": [0.2, 0.4], "other_interval": [0.5, 0.7]}
    rows = [{"key": f"lift/carp/{name}/held_out/default", "base": 0.3, "other": 0.6, **interval} for name in ("weak", "medium")]
    assert Image.open(picture.gains(tmp_path / "x" / "g.png", rows)).size[0] > 400


def test_unknown_tasks_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_steering.py", "--tasks", "lfit"])
    with pytest.raises(SystemExit):
        bench_steering.main()
    assert "did you mean 'lift'" in capsys.readouterr().err


def test_blocks_are_played_in_turn_and_kept(tmp_path, monkeypatch):
    study = Study(tmp_path, 0, QUICK, {})
    played = []

    def episode(arm, suite, seed, oracle):
        played.append((arm.checkpoint, seed))
        row = {"condition": str(seed), "success": arm.checkpoint == "b", "length": 1, "progress": 0.0}
        return {**row, "seconds": 0.0, "deviation": 0.0, "decisions": 1}

    monkeypatch.setattr(cells, "_episode", episode)
    monkeypatch.setattr(cells, "arm_of", lambda study, cell: cells.Arm(cell.method.name, cell.method.name[0]))
    monkeypatch.setattr(cells, "sha256", lambda path: path)
    both = [Cell("lift", "carp", "weak", Method(name), "held_out") for name in "ab"]
    found = cells.in_rounds(study, both, 60, lambda cell, rows: None, lambda: len(played) >= 75)
    assert [name for name, _ in played] == ["a"] * 25 + ["b"] * 25 + ["a"] * 25
    assert {key: len(rows) for key, rows in found.items()} == {both[0].key: 50, both[1].key: 25}
    assert played[0][1] == played[25][1]  # the same worlds
    again = cells.in_rounds(study, both, 60, lambda cell, rows: None, lambda: False)
    assert len(played) == 120
    assert {len(rows) for rows in again.values()} == {60}
    same = Cell(*both[0].base, Method("a whose gate is shut"), "held_out")
    assert len(cells.in_rounds(study, [same], 60, lambda cell, rows: None, lambda: False)[same.key]) == 60
    assert len(played) == 120  # what comes to the same is not played again


def test_another_seed_plays_its_own_worlds(tmp_path, monkeypatch):
    played = []
    monkeypatch.setattr(cells, "_episode", lambda arm, suite, seed, oracle: played.append(seed) or {"condition": str(seed)})
    monkeypatch.setattr(cells, "sha256", lambda path: path)
    cell = Cell("lift", "carp", "weak", Method("base"), "held_out")
    tables = [cells.play_cell(Study(tmp_path, seed, QUICK, {}), cell, cells.Arm("base", "x"), 0, 3) for seed in (0, 1, 0)]
    assert tables[0].equals(tables[2])
    assert len(set(played)) == len(played) == 6


def test_a_family_has_the_same_noise_in_experience_and_in_steering(tmp_path, monkeypatch):
    collected = []
    monkeypatch.setattr(Study, "collected", lambda self, *given, **options: collected.append(options["perturb"]) or tmp_path)
    monkeypatch.setattr(Study, "arm", lambda self, *base: cells.Arm("base", "x"))
    sizes = replace(QUICK, bases={"push/carp": QUICK.bases["lift/carp"]})
    study = Study(tmp_path, 0, sizes, bench_steering.PERTURB)
    study.experience("push", "carp", "own")
    steered = cells.arm_of(study, Cell("push", "carp", "weak", Method("oracle", oracle=2), "held_out"))
    assert collected == [dict(steered.perturb)] * 2
    assert steered.perturb == bench_steering.PERTURB["carp"]


def test_a_critics_checkpoint_is_chosen_by_what_is_asked_for(tmp_path):
    measured = {"step_000001": {"within": 0.1, "spearman": 0.3}, "step_000002": {"within": 0.2, "spearman": 0.1}}
    for name in (*measured, "step_000003"):
        (tmp_path / "checkpoints" / name / "model").mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "model" / "meta.json").write_text("{}")
    (tmp_path / "quality.json").write_text(json.dumps({"checkpoints": measured}))
    found = [cells.chosen(tmp_path, by).name for by in ("within", "spearman", "last")]
    assert found == ["step_000002", "step_000001", "step_000003"]
    assert [method.chooser for method in bench_steering.choosers("lift", "state")] == ["within", "spearman", "last"]


def test_splits_and_uses_share_no_episode(tmp_path):
    study = Study(tmp_path, 0, QUICK, {})
    cell = Cell("lift", "carp", "weak", Method("base"), "development")
    suites = [cells.suite_of(study, Cell(*cell.base, cell.method, split), 40) for split in ("development", "held_out")]
    suites.append(study.suite("lift", "wide", 40, 2))
    assert len({seed for suite in suites for seed in suite.seeds}) == 120
    assert {suite.env_kwargs["randomization"] for suite in suites} == {"wide", "held_out"}


def test_arms_have_different_names_and_the_overhead_is_a_ratio():
    names = [method.name for method in bench_steering.controls("push", "state")]
    assert len(set(names)) == len(names)
    assert {"random", "worst", "medoid", "paper_beta0", "paper_beta0.1", "paper_beta1", "oracle"} <= set(names)
    rows = overhead.measure(1, (2,))
    assert {row["proposals"] for row in rows} == {"own", "perturbed"}
    assert all(row["ratio"] > 0 and row["critic_ms"] > 0 for row in rows)
