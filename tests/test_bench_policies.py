"""tools/bench_policies.py: episodes in lanes, the two-mode task, summaries, identities of cells. No training, no Meta-World."""

import io
import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from policy_bench import cells as bench_cells
from policy_bench import detour, frames, jobs, lerobot_peer, lock_step, metaworld, registry, sources, summary, two_modes

from robopolicy.data.windows import Windows
from robopolicy.spec import ACTION, STATE, PolicySpec, SpecError


@dataclass
class Planned:
    """Chunks of a demonstrator without noise, on the sides given (0 = the mean of both), cut from the obstacle that is next."""

    task: str = "detour-centre"
    sides: tuple[int, ...] = (0,)
    obs_horizon: int = 1

    @property
    def spec(self):
        horizon = detour.DECISION
        return PolicySpec(
            {STATE: detour.SPEC.features[STATE]}, detour.SPEC.features[ACTION], self.obs_horizon, horizon, horizon, 10.0
        )

    def reset(self):
        pass

    def sample(self, observation, num_samples=1, seed=None):
        obstacles, phase = detour.TASKS[self.task], np.pi * np.arange(detour.DECISION + 1) / detour.DECISION
        chunks = np.zeros((len(observation[STATE]), num_samples, detour.DECISION, 2), np.float32)
        for row, (x, y, _, goal_y) in enumerate(observation[STATE][:, 0].astype(np.float64)):
            lobe = min(int((x + 1.1) / 2 * len(obstacles)), len(obstacles) - 1)
            obstacle, end = obstacles[lobe], 2 * (lobe + 1) / len(obstacles) - 1
            height = obstacle.y + self.sides[lobe] * (obstacle.radius + detour.CLEARANCE)
            ways = np.stack([np.linspace(x, end, len(phase)), np.linspace(y, goal_y, len(phase)) + np.sin(phase) * height], 1)
            chunks[row] = np.diff(ways, axis=0)
        return chunks


def played(policy, seeds, lanes=50):
    environments = detour.DetourTask(policy.task).environments()
    environments.lanes = lanes
    return lock_step.play(policy, environments, seeds, seed=0)[0]


def test_outcomes_do_not_depend_on_lanes_and_come_in_the_order_of_the_seeds():
    seeds = [7, 3, 3, 12, 5]
    one, many = (played(Planned(sides=(1,)), seeds, lanes=lanes) for lanes in (2, 50))
    assert one == many
    assert [outcome.seed for outcome in one] == seeds
    assert one[1] == one[2]
    assert one[0] != one[3]


@pytest.mark.parametrize("task", list(detour.TASKS))
def test_every_way_reaches_the_goal_and_the_mean_of_all_collides(task):
    number = len(detour.TASKS[task])
    for sides in itertools.product((1, -1), repeat=number):
        outcomes = played(Planned(task, sides), range(20))
        assert all(outcome.success for outcome in outcomes)
        assert {outcome.facts["sides"] for outcome in outcomes} == {"".join("L" if side > 0 else "R" for side in sides)}
    through = played(Planned(task, (0,) * number), range(20))
    assert all(outcome.facts["collided"] and not outcome.success and not outcome.facts["sides"] for outcome in through)


@pytest.mark.parametrize("task", list(detour.TASKS))
def test_every_start_is_demonstrated_with_all_ways_and_each_decision_is_a_chunk(task, tmp_path):
    store, number = detour.DetourTask(task).demonstrations(tmp_path), len(detour.TASKS[task])
    assert len(store) == detour.NUM_DEMONSTRATIONS
    assert set(store.lengths) == {number * detour.DECISION}
    windows = Windows(store, (STATE,), 1, detour.DECISION)
    first = windows.batch(np.arange(len(store)) * number * detour.DECISION)
    heights = first[ACTION][:, : detour.DECISION // 2, 1].sum(1)
    starts, group = np.unique(first[STATE][:, 0], axis=0, return_inverse=True)
    assert len(starts) == len(store) // 2**number
    assert all(
        (heights[group.ravel() == i] > 0.1).mean() == 0.5 == (heights[group.ravel() == i] < -0.1).mean()
        for i in range(len(starts))
    )


def test_overrides_of_a_task_are_part_of_its_cells_alone():
    contender, budget = bench_cells.contenders()["bc"], bench_cells.Budget()
    horizons = {
        task.kind: bench_cells.settings(contender, budget, 0, task, Path("-"))["policy"]["execute_horizon"]
        for task in registry.chosen("development", ["detour", "peg-insert-side-v3"])
    }
    assert horizons == {"detour": detour.DECISION, "metaworld": 8}


def test_policies_that_see_images_are_trained_three_times_as_long():
    contender, budget = bench_cells.contenders()["bc"], bench_cells.Budget(steps=20)
    steps = {
        task.name: bench_cells.settings(contender, budget, 0, task, Path("-"))["train"]["steps"]
        for task in registry.chosen("development", ["simulated", "peg-insert-side-v3"])
    }
    assert steps == {"lift-images": 60, "drawer-points": 20, "peg-insert-side-v3": 20}


def test_policies_that_look_at_several_frames_are_refused():
    with pytest.raises(SpecError, match="obs_horizon=2"):
        played(Planned(obs_horizon=2), [0])


def test_the_splits_share_no_task_and_unknown_tasks_are_named():
    names = [name for split in ("development", "seen", "held_out") for name in registry.tasks(split)]
    assert len(names) == len(set(names))
    assert {task.kind for task in registry.chosen("held_out", ["detour", "peg-insert-points"])} == {"detour", "simulated"}
    with pytest.raises(ValueError, match="peg-insert-side-v3"):
        registry.chosen("held_out", ["peg-insert-side-v3"])


def test_every_ablation_changes_one_training_of_carp():
    table = bench_cells.contenders(Path(bench_cells.__file__).with_name("ablations.yaml"))
    good, missing = jobs.available(table, bench_cells.Budget(), registry.tasks("development")["soccer-v3"])
    assert not missing
    assert len({contender.train for contender in good}) == len(table) > 8


def test_every_point_actor_of_the_table_is_a_training_of_its_own():
    table = bench_cells.contenders(Path(bench_cells.__file__).with_name("point_actors.yaml"))
    good, missing = jobs.available(table, bench_cells.Budget(), registry.tasks("seen")["lift-points"])
    assert not missing
    assert len({contender.train for contender in good}) == len(table) > 5


def cell(policy, task, successes, kind="metaworld"):
    outcomes = [{"seed": i, "success": bool(s), "steps": 10, "jerk": 0.1, "facts": {}} for i, s in enumerate(successes)]
    cost = {"params": 5, "cpu_s": 1.0, "wall_s": 1.0}
    return {"policy": policy, "task": task, "kind": kind, "seed": 0, "repeats": 0, "cost": cost, "outcomes": outcomes}


def test_differences_are_paired_and_failures_are_kept_apart():
    ours, theirs = [1] * 60 + [0] * 20 + [1] * 20, [1] * 60 + [0] * 40
    cells = [cell("carp", task, ours) for task in "ab"] + [cell("bc", task, theirs) for task in "ab"]
    result = summary.summarise([*cells, {"policy": "act", "task": "a", "error": "no"}], ["carp", "act", "bc"], seed=0)
    assert result["policies"]["carp"]["success"] == 0.8
    assert result["policies"]["bc"]["by_task"]["b"]["success"] == 0.6
    assert "act" not in result["policies"]
    assert result["failed"][0]["policy"] == "act"
    paired = result["paired"]["bc"]
    assert (paired["difference"], paired["only_carp"], paired["only_rival"], paired["pairs"]) == (
        pytest.approx(0.2),
        40,
        0,
        200,
    )
    assert 0.14 < paired["interval"][0] < 0.2 < paired["interval"][1] < 0.27
    assert paired["mcnemar_p"] < 1e-9
    assert "failed: act on a: no" in summary.table(result)


def detour_cell(policy, ways, repeats=0):
    """Outcomes of draws in groups of `repeats` from a start; a way in small letters collides before its last obstacle."""
    made = cell(policy, "detour-centre", [way.isupper() for way in ways], "detour") | {"repeats": repeats}
    for number, (outcome, way) in enumerate(zip(made["outcomes"], ways, strict=True)):
        outcome["seed"] = number // max(repeats, 1)
        outcome["facts"] = {"collided": way.islower(), "sides": "" if way.islower() else way}
    return made


def test_both_sides_are_counted_by_start_and_obstacle_and_best_guesses_are_paired():
    cells = [detour_cell("carp", "LLRR"), detour_cell("bc", "lllL"), detour_cell("bc", ["l"] * 4, 2)]
    result = two_modes.summarise([*cells, detour_cell("carp", "LRLLRlRL", 2)], ["carp", "bc"], seed=0)
    ours, theirs = (result["policies"][name]["detour-centre"] for name in ("carp", "bc"))
    assert ours["best"]["left"]["share"] == 0.5
    assert ours["drawn"]["both_sides"] | {"ci": 0} == {"share": 0.5, "ci": 0, "of": 4}
    assert theirs["best"]["collided"]["share"] == 0.75
    assert theirs["drawn"]["both_sides"]["share"] == 0.0
    assert theirs["drawn"]["left"] is None
    assert result["paired"]["best"]["bc"]["only_carp"] == 3
    assert "carp minus, best" in two_modes.table(result)
    twice = [detour_cell("carp", ["LL", "LR", "RL", "LL"], 2)]
    assert two_modes.both_sides(twice) == [False, True, True, False]


def test_a_fingerprint_follows_code_and_imports_but_not_comments(tmp_path, monkeypatch):
    package = tmp_path / "robopolicy_probe"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "a.py").write_text("from robopolicy_probe import b\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sources, "_DECIDING", ("robopolicy_probe",))
    monkeypatch.setattr(sources, "PACKAGE", "robopolicy_probe")

    def found(text):
        (package / "b.py").write_text(text)
        sources.module.cache_clear()
        return sources.fingerprint(["robopolicy_probe.a"])

    assert found("x = 1\n") == found('"""Words."""\nx = 1  # more words\n') != found("x = 2\n")


def test_messages_between_processes_keep_arrays_bit_for_bit():
    stream = io.BytesIO()
    sent = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([True]), "c": np.zeros((0, 4))}
    frames.write(stream, {"do": "it"}, **sent)
    stream.seek(0)
    head, received = frames.read(stream)
    assert head == {"do": "it"}
    assert all(received[key].dtype == sent[key].dtype and np.array_equal(received[key], sent[key]) for key in sent)
    assert frames.read(stream) is None


def test_lerobot_gets_every_entry_of_the_state_once_split_by_meaning():
    names = metaworld.SPEC.features[STATE].names
    state = np.arange(2 * len(names), dtype=np.float32).reshape(2, -1)
    parts = lerobot_peer.split_state(state, names)
    np.testing.assert_array_equal(np.sort(np.concatenate(list(parts.values()), 1)), state)
    np.testing.assert_array_equal(parts["state"][0], [0, 1, 2, 3, 18, 19, 20, 21])  # hand and gripper, now and before


def test_lerobots_trained_policies_have_our_chunks():
    for entry in lerobot_peer.entries().values():
        if entry.trained:
            chunk = {"act": "chunk_size", "diffusion": "horizon"}[entry.kind]
            assert (entry.train[chunk], entry.train["n_action_steps"]) == (16, 8)


def test_a_worker_answers_what_its_methods_return_and_why_they_fail():
    class Doubler:
        def double(self, times, values):
            return {"times": times}, {"values": values * times}

    requests, answers = io.BytesIO(), io.BytesIO()
    frames.write(requests, {"do": "double", "times": 2}, values=np.arange(3))
    frames.write(requests, {"do": "double", "times": 2})
    requests.seek(0)
    frames.answer(Doubler(), requests, answers)
    answers.seek(0)
    head, arrays = frames.read(answers)
    assert head == {"times": 2}
    np.testing.assert_array_equal(arrays["values"], [0, 2, 4])
    assert "values" in frames.read(answers)[0]["error"]
    assert frames.read(answers) is None
