"""tools/bench_steering.py: pairing, pooling and identities. No training."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import bench_steering
from steering_bench import cells, overhead, summary
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
    a, b = summary.outcomes(table([1, 0, 1]), table([1, 1], ["2", "1"]))
    assert a.tolist() == [False, True]
    assert b.tolist() == [True, True]


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
    few, many = (np.array([False] * n), np.array([True] * n)) if (n := 10) else None, (np.ones(90, bool), np.ones(90, bool))
    found = summary.pooled([few, many])
    assert found["gain"] == pytest.approx(0.5)
    assert found["pairs"] == 100
    assert found["only_other"] == 10
    assert summary.pooled([]) is None


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


def test_splits_and_uses_share_no_episode(tmp_path):
    study = Study(tmp_path, 0, QUICK, {})
    cell = Cell("lift", "carp", "weak", Method("base"), "development")
    suites = [cells.suite_of(study, Cell(*cell.base, cell.method, split), 40) for split in ("development", "held_out")]
    suites.append(study.suite("lift", "wide", 40, 2))
    assert len({seed for suite in suites for seed in suite.seeds}) == 120
    assert {suite.env_kwargs["randomization"] for suite in suites} == {"wide", "held_out"}


def test_arms_have_different_names_and_the_overhead_is_a_ratio():
    names = [method.name for method in bench_steering.controls("push")]
    assert len(set(names)) == len(names)
    assert {"random", "worst", "medoid", "paper_beta0", "paper_beta0.1", "paper_beta1", "oracle"} <= set(names)
    rows = overhead.measure(1, (2,))
    assert {row["proposals"] for row in rows} == {"own", "perturbed"}
    assert all(row["ratio"] > 0 and row["critic_ms"] > 0 for row in rows)
