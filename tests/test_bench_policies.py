"""tools/bench_policies.py: episodes in lanes, the two-mode task, summaries, identities of cells. No training, no Meta-World."""

import io
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from policy_bench import detour, frames, lerobot_peer, lock_step, metaworld, registry, sources, summary

from robopolicy.spec import ACTION, STATE, PolicySpec, SpecError


@dataclass
class Straight:
    """Heads for the goal; `aside` of what it proposes goes round the obstacle on the left (+1) or the right (-1)."""

    aside: float = 0.0
    obs_horizon: int = 1

    @property
    def spec(self):
        return PolicySpec({STATE: detour.SPEC.features[STATE]}, detour.SPEC.features[ACTION], self.obs_horizon, 16, 8, 10.0)

    def reset(self):
        pass

    def sample(self, observation, num_samples=1, seed=None):
        state = observation[STATE][:, 0].astype(np.float64)
        chunks = np.zeros((len(state), num_samples, 16, 2), np.float32)
        for row, (x, y, goal_x, goal_y) in enumerate(state):
            for step in range(16):
                wanted = self.aside * 0.6 if -0.6 < x < 0.6 else goal_y
                move = np.array(
                    [0.0 if abs(wanted - y) > 0.1 and x < 0.6 else min(goal_x - x, 0.06), np.clip(wanted - y, -0.06, 0.06)]
                )
                chunks[row, :, step] = move
                x, y = x + move[0], y + move[1]
        return chunks


def played(policy, seeds, lanes=50, task="detour-centre"):
    environments = detour.DetourTask(task).environments()
    environments.lanes = lanes
    return lock_step.play(policy, environments, seeds, seed=0)[0]


def test_outcomes_do_not_depend_on_lanes_and_come_in_the_order_of_the_seeds():
    seeds = [7, 3, 3, 12, 5]
    one, many = played(Straight(1.0), seeds, lanes=2), played(Straight(1.0), seeds, lanes=50)
    assert one == many
    assert [outcome.seed for outcome in one] == seeds
    assert one[1] == one[2]
    assert one[0] != one[3]


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_either_side_of_the_obstacle_reaches_the_goal_and_the_mean_of_both_collides(side):
    round_it, through_it = played(Straight(side), range(20)), played(Straight(0.0), range(20))
    assert all(outcome.success and outcome.facts["sides"] == ("L" if side > 0 else "R") for outcome in round_it)
    assert all(outcome.facts["collided"] and not outcome.success for outcome in through_it)


@pytest.mark.parametrize("task", list(detour.TASKS))
def test_demonstrations_of_the_detours_succeed_on_both_sides(task):
    episodes = [detour.demonstration(detour.TASKS[task], seed) for seed in range(60)]
    assert all(episode["success"] for episode in episodes)
    assert 0.3 < np.mean([episode["left"] for episode in episodes]) < 0.7


def test_policies_that_look_at_several_frames_are_refused():
    with pytest.raises(SpecError, match="obs_horizon=2"):
        played(Straight(obs_horizon=2), [0])


def test_the_splits_share_no_task_and_unknown_tasks_are_named():
    development, held_out = registry.tasks("development"), registry.tasks("held_out")
    assert not set(development) & set(held_out)
    assert {task.kind for task in registry.chosen("held_out", ["detour", "lift-points"])} == {"detour", "simulated"}
    with pytest.raises(ValueError, match="peg-insert-side-v3"):
        registry.chosen("held_out", ["peg-insert-side-v3"])


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
    assert 0.14 < paired["interval"][0] < 0.2 < paired["interval"][1] < 0.26
    assert paired["mcnemar_p"] < 1e-9
    assert "failed: act on a: no" in summary.table(result)


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
