"""The study of VSDR: what it varies, and that its statistics find what was put into tables, and nothing where nothing was."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from vsdr_study import report, trials
from vsdr_study.controls import controls, exchanged
from vsdr_study.design import (
    AXES,
    MILDER,
    QUICK,
    REGION,
    Configuration,
    Sizes,
    axis,
    configurations,
    frozen,
    part,
    source,
    targets,
)
from vsdr_study.distances import LAYERS, SPARSE
from vsdr_study.runs import COMMON, OWN, PLACEBO, Run, observe_targets, play_run
from vsdr_study.tables import KINDS, Tables, gather, write

from robopolicy.ranking.combine import COMBINERS
from robopolicy.ranking.detectors import DETECTORS
from robopolicy.sim.env import randomized
from robopolicy.sim.randomize import OPTIONAL, preset
from robopolicy.sim.tasks import make_task

FEW = ("--repeats", "2", "--trials", "2", "--resamples", "50", "--workers", "0")
SUITES = (OWN, COMMON, *targets())


def made(num_configs: int = 20, seeds: int = 2, knows: float = 1.0, seed: int = 0) -> Tables:
    """Tables of a pool whose real success is simulated success less a loss, which the OOD scores see as far as `knows`."""
    rng = np.random.default_rng(seed)
    episodes, scores, facts = [], [], []
    for c in range(num_configs):
        quality, loss = np.random.default_rng([seed, c]).uniform((0.4, 0.0), (0.95, 0.4))
        for s in range(seeds):
            policy = f"config{c:02d}/{s}"
            facts.append({"policy": policy, "config": f"config{c:02d}", "width": c % 7, "data_hash": "x"})
            facts[-1] |= {"train_s": 1.0, "play_s": 1.0, "score_s": 1.0, "commit": "x", **{f"{t}_hash": t for t in targets()}}
            for suite in SUITES:
                rate = quality - loss if suite in targets() else quality
                won = rng.random(60) < rate
                row = {"policy": policy, "config": f"config{c:02d}", "suite": suite}
                episodes += [
                    {**row, "condition": f"{k:03d}", "success": bool(w), "progress": max(float(w), 0.3)}
                    for k, w in enumerate(won)
                ]
            for target in (*targets(), PLACEBO):
                seen = knows * loss * 10 if target != PLACEBO else 0.0
                for layer in LAYERS:
                    for detector in DETECTORS:
                        row = {"policy": policy, "target": target, "layer": layer, "score": detector}
                        scores.append({**row, "size": 200, "draw": 0, "value": seen + rng.normal(0, 0.1)})
                        if detector == SPARSE:
                            scores.append({**row, "size": 10, "draw": 1, "value": seen + rng.normal(0, 1.0)})
                row = {"policy": policy, "target": target, "layer": "", "size": 30, "draw": 0}
                scores += [{**row, "score": name, "value": float("nan")} for name in report.ACTED]
    return Tables(*(pa.Table.from_pylist(rows) for rows in (episodes, scores, facts)))


def reported(tables: Tables) -> dict[str, Any]:
    choice = report.choose(tables, 0)
    found = report.report(tables, choice, 0, resamples=40)
    for target in report.TARGETS:
        found["targets"][target]["controls"] = controls(tables, target, choice["chosen"], 0, permutations=60, halves=60)
    return found


def test_every_parameter_of_a_preset_belongs_to_one_axis_and_configurations_hold_those_of_their_levels() -> None:
    whole = {f"{g}.{n}" for g, members in preset("wide").items() if g != OPTIONAL for n in members}
    whole = {name for name in whole if axis(name)}
    parts = [{f"{g}.{n}" for g, members in part("wide", name).items() for n in members} for name in AXES]
    assert set.union(*parts) == whole
    assert sum(map(len, parts)) == len(whole)
    looks = Configuration("wide", "none", "none").randomization
    names = {f"{g}.{n}" for g, members in looks.items() if g != OPTIONAL for n in members}
    assert {axis(name) for name in names - {"object.x", "object.y"}} == {"visual"}
    assert looks["object"]["x"] == REGION["x"]
    assert looks["light"]["direction"] == MILDER["light"]["direction"]
    assert Configuration("narrow", "none", "none").randomization["light"]["direction"] == preset("narrow")["light"]["direction"]
    assert Configuration("wide", "wide", "wide").width == 6
    assert Configuration("none", "none", "none").width == 0


def test_the_configurations_are_all_levels_of_all_axes_and_every_environment_takes_them() -> None:
    found = configurations()
    assert len({c.name for c in found}) == 27
    for each in found:
        randomized(make_task("lift"), each.randomization, {})


def test_targets_differ_from_the_training_simulator_in_their_own_axes_alone() -> None:
    for name, moved in (("T1", {"visual", "camera"}), ("T2", {"dynamics"}), ("T3", set(AXES))):
        world = targets()[name]
        assert {axis(p) for p, value in world.items() if value != source(p)} == moved
        randomized(make_task("lift"), "twin", world, "mujoco")


def test_a_design_has_another_hash_when_anything_about_it_changes() -> None:
    assert frozen(Sizes()) == frozen(Sizes())
    assert frozen(Sizes())["hash"] != frozen(Sizes(steps=1))["hash"]


def test_vsdr_beats_simulation_alone_where_the_detectors_see_the_loss() -> None:
    tables = made(knows=1.0)
    found = reported(tables)
    for target in report.TARGETS:
        line = found["targets"][target]
        assert line["vsdr"]["spearman"] > line["sim"]["spearman"] + 0.1
        for rival in ("sim", "sim_best", "ood", "ood_best", "sim_width"):
            assert line["vsdr"][f"minus_{rival}"] > 0
        known = line["controls"]
        assert known["permuted_p"] < 0.05
        assert known["placebo_gain"] < known["gain"]
        assert known["halves"]["difference"] > 0.1
        assert known["halves"]["share_above"] > 0.9
        assert line["vsdr"]["spearman"] < line["ceiling"] < 1


def test_the_policies_of_a_training_seed_are_ranked_among_themselves() -> None:
    tables = made(seeds=2)
    choice = report.choose(tables, 0)
    alone = report.report(tables, choice, 0, 50)["by_seed"]
    assert list(alone) == ["0", "1"]
    ours = tables.of_seed("1")
    assert ours.policies == [policy for policy in tables.policies if policy.endswith("/1")]
    line = alone["1"]["T3"]
    assert line["num_policies"] == 20
    real, every = ours.outcomes("T3").mean(1), report.scores(ours, "T3")
    assert line["vsdr"] == report.spearman(real, every[choice["chosen"]["vsdr"]])
    assert line["minus_sim_ci"][0] <= line["minus_sim"] <= line["minus_sim_ci"][1]


def early_of(tables: Tables, suites: tuple[str, ...] = SUITES) -> Tables:
    """Early checkpoints of seed 0, which win half as often in some suites."""
    ours = tables.of_seed("0")
    renamed = [
        pa.Table.from_pylist([{**r, "policy": f"{r['policy']}@9"} for r in t.to_pylist()]) for t in (ours.scores, ours.facts)
    ]
    rows = ours.episodes.to_pylist()
    for row in rows:
        halved = row["suite"] in suites and int(row["condition"]) % 2
        row |= {"policy": f"{row['policy']}@9", "success": row["success"] and not halved}
    return Tables(pa.Table.from_pylist(rows), *renamed)


def test_early_checkpoints_are_a_pool_apart_and_the_better_one_of_a_training_is_found() -> None:
    tables = made(seeds=2)
    chosen = report.choose(tables, 0)["chosen"]
    found = report.early_checkpoints(tables, early_of(tables), chosen, 0, 50)
    assert found["num_policies"] == 20
    assert found["alone"]["T1"]["num_policies"] == 20
    assert found["with_last"]["T1"]["num_policies"] == 40
    pairs = found["pairs"]["T1"]
    assert (pairs["num_pairs"], pairs["early_better"], pairs["last"]["lost"]) == (20, 0.0, 0.0)
    assert pairs["sim"]["lost"] == pytest.approx(0.0, abs=0.01)  # simulation sees it
    early = early_of(tables, ("T1",))
    unseen = report.early_checkpoints(tables, early, chosen, 0, 50)["pairs"]["T1"]
    at_stake = tables.of_seed("0").outcomes("T1").mean() - early.outcomes("T1").mean()
    for blind in ("sim", "ood"):  # half of what is at stake
        assert unseen[blind]["lost"] == pytest.approx(at_stake / 2)


def test_vsdr_gains_nothing_where_the_detectors_know_nothing() -> None:
    tables = made(knows=0.0)
    found = reported(tables)
    gains = [found["targets"][t]["controls"]["gain"] for t in report.TARGETS]
    assert max(gains) < 0.1
    assert min(found["targets"][t]["controls"]["permuted_p"] for t in report.TARGETS) > 0.01
    assert max(found["targets"][t]["controls"]["halves"]["difference"] for t in report.TARGETS) < 0.1
    assert max(found["targets"][t]["controls"]["permuted_mean"] for t in report.TARGETS) < 0.05


def test_a_score_that_some_policies_lack_is_judged_on_the_others() -> None:
    tables = made()
    real = tables.outcomes("T1").mean(1)
    rows = tables.scores.to_pylist()
    for row in rows:
        at = tables.policies.index(row["policy"])
        if row["target"] == "T1" and row["score"] in ("fqe", "dynamics_gap"):
            row["value"] = float(real[at]) if at % 3 else float("nan")
    known = Tables(tables.episodes, pa.Table.from_pylist(rows), tables.facts)
    line = reported(known)["targets"]["T1"]
    assert line["fqe"]["spearman"] == pytest.approx(1)
    assert line["fqe"]["num"] == sum(at % 3 != 0 for at in range(len(real)))
    assert -1 < line["fqe"]["sim_spearman"] < 1
    assert any(name.startswith("vsdr_gap:") for name in line)
    assert "vsdr_gap" not in line, "nothing of it was there to choose by on T0"


def test_exchanged_policies_keep_their_seed_and_take_a_whole_configuration_along() -> None:
    policies = [f"{c}/{s}" for c in "abcd" for s in range(2)] + ["a/2", "b/2"]
    configs = [p[0] for p in policies]
    generator = np.random.default_rng(0)
    for _ in range(20):
        order = exchanged(policies, configs, generator)
        pairs = {(policies[i][0], policies[j][0]) for i, j in enumerate(order)}
        assert sorted(order) == list(range(len(policies)))
        assert all(policies[i][2] == policies[j][2] for i, j in enumerate(order))
        assert len(pairs) == 4
        assert {b for a, b in pairs if a in "ab"} == {"a", "b"}


def test_what_was_chosen_on_more_and_mixed_observations_are_refused() -> None:
    tables = made(num_configs=6)
    choice = report.choose(tables, 0)
    with pytest.raises(report.StudyError, match="on 99 policies, of which only 12 are left"):
        report.report(tables, {**choice, "num_policies": 99}, 0, 40)
    at = tables.facts.column_names.index("T1_hash")
    mixed = pa.array(["T1"] * (len(tables.facts) - 1) + ["other"])
    with pytest.raises(report.StudyError, match="2 different sets of observations of T1"):
        report.report(Tables(tables.episodes, tables.scores, tables.facts.set_column(at, "T1_hash", mixed)), choice, 0, 40)


def test_the_order_of_names_gives_no_start_to_ways_that_know_nothing() -> None:
    tables = made(num_configs=10)
    rates = [tables.outcomes("T3").mean(1)[::step] for step in (1, -1)]
    for way in (trials._uniform, lambda real, seed: trials._halved(real, np.arange(len(real)), seed)):
        ends = [way(real, 0)[0] for real in rates]
        assert abs(ends[0]["regret"] - ends[1]["regret"]) < 4 * (ends[0]["error"] + ends[1]["error"])
        assert ends[0]["regret"] > 0


def test_the_command_chooses_reports_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    import study_vsdr

    for kind, table in zip(KINDS, (t := made()).__dict__.values(), strict=False):
        write(tmp_path / f"{kind}.parquet", table)
    (tmp_path / study_vsdr.DESIGN).write_text(json.dumps(frozen(Sizes())))

    def call(*given: str) -> None:
        monkeypatch.setattr(sys, "argv", ["study_vsdr.py", *given, "--tables", str(tmp_path), *FEW])
        study_vsdr.main()

    with pytest.raises(SystemExit, match="choose"):
        call("report")
    call("choose")
    with pytest.raises(SystemExit, match="made once"):
        call("choose")
    call("report")
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["num_policies"] == len(t.policies)
    for target in report.TARGETS:
        for name in ("vsdr", "sim", "ood", f"ood:{LAYERS[0]}:{SPARSE}"):
            assert {"spearman", "spearman_ci", "regret@1"} <= set(found["targets"][target][name])
        assert found["trials"][target]["curves"]["next-real"]
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("scatter.png", "scores.png", "trials.png"))
    assert "VSDR - sim" in capsys.readouterr().out


def test_choosing_looks_at_the_development_target_alone() -> None:
    tables = made()
    kept = tables.episodes.filter([suite in (OWN, COMMON, "T0") for suite in tables.episodes["suite"].to_pylist()])
    assert len(kept) < len(tables.episodes)
    assert report.choose(Tables(kept, tables.scores, tables.facts), 0) == report.choose(tables, 0)


def test_a_policy_that_sees_nothing_does_not_win() -> None:
    tables = made()
    control = reported(tables)["targets"]["T3"]["controls"]
    assert control["constant_encoder_place"] > control["of_policies"] // 3


def test_the_intervals_resample_whole_configurations() -> None:
    """Copies of every run are no further evidence: the interval stays as wide."""
    one, many = made(num_configs=10, seeds=1, seed=3), made(num_configs=10, seeds=1, seed=3)
    policies = many.facts["policy"].to_pylist()

    def copied(table: pa.Table) -> pa.Table:
        parts = [table]
        for copy in range(1, 4):
            named = pa.array([f"{p}+{copy}" for p in table["policy"].to_pylist()])
            parts.append(table.set_column(table.column_names.index("policy"), "policy", named))
        return pa.concat_tables(parts)

    many = Tables(copied(many.episodes), copied(many.scores), copied(many.facts))
    assert len(many.policies) == 4 * len(policies)
    widths = []
    for tables in (one, many):
        low, high = report.report(tables, report.choose(one, 0), 0, 100)["targets"]["T3"]["sim"]["spearman_ci"]
        widths.append(high - low)
    assert widths[1] > 0.8 * widths[0]


def test_episodes_on_the_target_are_spared_by_a_shortlist_that_knows() -> None:
    first = {"VSDR's first 8, halving": 0.0, "simulation's first 8, halving": 0.0}
    for seed in range(5):
        tables = made(num_configs=16, seed=seed)
        spent = trials.spend(tables, "T3", report.choose(tables, 0)["chosen"], repeats=2, num_trials=1, seed=0)
        for name in first:
            first[name] += spent["curves"][name][0]["regret"]
        tested = spent["tested"]["VSDR's first 8, the test"]
        assert 0 < tested["episodes"] <= 2 * trials.PAIRS * (trials.SHORTLIST - 1)
    assert first["VSDR's first 8, halving"] < first["simulation's first 8, halving"]
    curve = spent["curves"]["halving over all"]
    assert curve[-1]["regret"] <= curve[0]["regret"]
    assert curve[-1]["episodes"] > 100 * curve[0]["episodes"]


def test_a_pool_in_which_all_do_equally_well_is_refused() -> None:
    tables = made()
    lost = tables.episodes.set_column(
        tables.episodes.column_names.index("success"), "success", pa.array([False] * len(tables.episodes))
    )
    with pytest.raises(report.StudyError, match="T0"):
        report.choose(Tables(lost, tables.scores, tables.facts), 0)


def test_combiners_and_detectors_of_the_library_are_all_tried() -> None:
    names = report.scores(made(), "T1")
    assert sum(name.startswith("vsdr:") for name in names) == len(LAYERS) * len(DETECTORS) * len(COMBINERS)


def test_a_run_plays_everywhere_and_is_not_repeated(tmp_path: Path) -> None:
    observed = observe_targets(tmp_path, QUICK)
    run = Run(Configuration("narrow", "none", "none"), 0)
    play_run(run, tmp_path, QUICK, observed)
    tables = gather(tmp_path, tmp_path / "report")
    assert tables.policies == [run.name]
    assert tables.width.tolist() == [1.0]
    sizes = {suite: tables.outcomes(suite).shape for suite in SUITES}
    assert sizes == {OWN: (1, QUICK.own), COMMON: (1, QUICK.common), **dict.fromkeys(targets(), (1, QUICK.target))}
    for target in (*targets(), PLACEBO):
        assert np.isfinite(tables.score(target, SPARSE, LAYERS[0])).all()
        assert tables.smaller(target) == {n: [1, 2, 3, 4, 5] for n in QUICK.subsets}
    before = {kind: (tmp_path / "report" / f"{kind}.parquet").read_bytes() for kind in KINDS}
    stamps = [file.stat().st_mtime_ns for file in sorted((tmp_path / "tables").iterdir())]
    play_run(run, tmp_path, QUICK, observed)
    assert stamps == [file.stat().st_mtime_ns for file in sorted((tmp_path / "tables").iterdir())]
    gather(tmp_path, tmp_path / "report")
    assert before == {kind: (tmp_path / "report" / f"{kind}.parquet").read_bytes() for kind in KINDS}
    assert json.dumps(frozen(QUICK))
