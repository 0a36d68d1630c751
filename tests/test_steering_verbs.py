"""branch, train critic=..., evaluate steer.critic=...: the verbs work together. Tiny networks: no claim of gains."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from robopolicy import pipeline
from robopolicy.config import compose, to_plain
from robopolicy.data.branches import Branches
from robopolicy.evaluation import branches as branches_module
from robopolicy.evaluation.branches import Plan, branch
from robopolicy.evaluation.critic_quality import NEVER
from robopolicy.evaluation.proof import FILE, LEVEL, attempts, is_proven, level, record, recorded, worlds
from robopolicy.evaluation.rollout import Suite
from robopolicy.policies.load import load_critic
from robopolicy.policies.wrappers import Perturbed
from robopolicy.spec import STATE, TASK, SpecError

OBSERVED = "task.env.observation=[state,environment_state]"
KEYS = "inputs.observation_keys=[observation.state,observation.environment_state]"
SHORT = "+task.env.max_episode_steps=24"


def settings(verb, *overrides):
    return to_plain(compose(verb, list(overrides)))


def trained(folder, data, *overrides):
    small = ["train.steps=4", "train.batch_size=8", "train.num_checkpoints=2", "train.progress=false", KEYS]
    return pipeline.train_run(settings("train", f"data.path={data}", *small, *overrides), folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Episodes (dense: with progress for a reward), a policy, and two sets of branches of it."""
    folder = tmp_path_factory.mktemp("steering")
    task = settings("collect", OBSERVED, SHORT, "path=x")["task"]
    pipeline.collect_run(folder / "data", task, "none", {"expert": 2, "random": 1}, seed=0, num_workers=0)
    dense = {**task, "env": {**task["env"], "reward": "dense"}}
    pipeline.collect_run(folder / "dense", dense, "none", {"expert": 2, "random": 1}, seed=0, num_workers=0)
    policy = trained(folder / "policy", folder / "data", "policy=bc")[-1]
    given = [
        "checkpoint=" + str(policy),
        f"out={folder / 'branches'}",
        "episodes=2",
        "states=2",
        "candidates=3",
        "num_workers=0",
    ]
    lines = pipeline.branch_run(settings("branch", OBSERVED, SHORT, *given, "perturb={std: 0.3, share: 1.0}"))
    others = ["perturb={std: 0.3, share: 1.0}", f"out={folder / 'judging'}", "seed=7100"]
    pipeline.branch_run(settings("branch", OBSERVED, SHORT, *given, *others))
    return folder, policy, lines


def test_branches_have_the_policys_states_and_their_own_facts(made):
    folder, policy, lines = made
    branches = Branches.load(folder / "branches")
    assert branches.candidates.shape == (4, 3, 16, 7)
    assert branches.facts["env_kwargs"]["max_episode_steps"] == 24
    assert "4 states x 3 candidates x 1 continuations" in lines[0]
    assert (branches.steps > 0).all()
    assert branches.progress.shape == (*branches.steps.shape, 24)
    assert np.array_equal(branches.progress[..., -1] == 1, branches.success)
    assert set(branches.events) == {"collision", "drop", "force"}
    arm = pipeline.find_checkpoints(policy)[0]
    env_id, env_kwargs = pipeline.task_env(settings("branch", OBSERVED, SHORT, "checkpoint=x", "out=y")["task"], "wide")
    suite = Suite.draw("s", env_id, env_kwargs, 2, 7000, "select")
    plain = branch(arm, suite, Plan(2, 1), num_workers=0)
    assert np.array_equal(plain.success[:, 0], branches.success[:, 0])  # candidate 0 is not perturbed
    assert np.array_equal(plain.steps[:, 0], branches.steps[:, 0])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("rollouts=0", "rollouts=0"),
        ("states=0", "states=0"),
        ("candidates=0", "candidates=0"),
        ("limits.force=abc", r"limits\.force=abc does not work"),
        ("episodes=1", "is there already"),
    ],
)
def test_branching_that_cannot_work_is_refused_before_an_episode_is_played(made, monkeypatch, more, message):
    monkeypatch.setattr("robopolicy.evaluation.branches.branch", lambda *given: pytest.fail("it began"))
    with pytest.raises(ValueError, match=message):
        pipeline.branch_run(settings("branch", f"checkpoint={made[1]}", f"out={made[0] / 'branches'}", more))


@pytest.mark.parametrize("kind", ["success", "progress", "iql", "cal_ql"])
def test_critics_train_and_are_judged(made, kind, tmp_path):
    folder, policy, _ = made
    more = [f"critic={kind}", f"data.branches={folder / 'branches'}", "critic.support_size=16"]
    more += [f"data.proposals.checkpoint={policy}", "data.proposals.num=2"] if kind == "cal_ql" else []
    found = trained(tmp_path / "critic", folder / ("dense" if kind == "progress" else "data"), *more)
    measured = json.loads((tmp_path / "critic" / "quality.json").read_text())["checkpoints"]
    assert list(measured) == [checkpoint.name for checkpoint in found]
    assert pipeline.chosen_critic(tmp_path / "critic") in found
    assert load_critic(found[-1]).spec.normalizer_hash


def test_a_critic_that_needs_more_than_it_is_given_says_what(made, tmp_path):
    folder, _, _ = made
    with pytest.raises(SpecError, match=r"data\.proposals\.checkpoint=CHECKPOINT"):
        trained(tmp_path / "a", folder / "data", "critic=cal_ql")
    with pytest.raises(SpecError, match="critic=success and critic=safety"):
        trained(tmp_path / "b", folder / "branches", "critic=iql")


def test_branches_that_lack_what_a_critic_sees_are_refused_before_it_is_trained(made, tmp_path):
    folder, _, _ = made
    whole = Branches.load(folder / "branches")
    replace(whole, observation={STATE: whole.observation[STATE], TASK: whole.observation[TASK]}).save(tmp_path / "less")
    with pytest.raises(ValueError, match=r"'observation\.environment_state'.*inputs\.observation_keys=\[observation\.state\]"):
        trained(tmp_path / "run", folder / "data", "critic=success", f"data.branches={tmp_path / 'less'}")
    assert not (tmp_path / "run").exists()


def test_nothing_is_watched_for_without_limits(made, tmp_path):
    given = [f"checkpoint={made[1]}", f"out={tmp_path / 'b'}", "limits=null", "episodes=1", "states=1", "candidates=1"]
    lines = pipeline.branch_run(settings("branch", OBSERVED, SHORT, *given, "num_workers=0"))
    assert lines[-1] == "unsafe: nothing was watched for"
    assert Branches.load(tmp_path / "b").events == {}
    with pytest.raises(SpecError, match="branch with limits"):
        trained(tmp_path / "run", tmp_path / "b", "critic=safety")


def test_a_critic_of_risk_is_judged_on_what_was_unsafe(made, tmp_path):
    folder, _, _ = made
    more = ["critic=safety", "data.events=[force]", "data.event_horizon=9", f"data.branches={folder / 'judging'}"]
    found = trained(tmp_path / "safety", folder / "branches", *more)
    measured = json.loads((tmp_path / "safety" / "quality.json").read_text())["checkpoints"][found[-1].name]
    seen, _ = Branches.load(folder / "judging").split(0.5)
    assert np.average(measured["calibration"]["worth"], weights=measured["calibration"]["count"]) == pytest.approx(
        seen.unsafe(["force"], 9).mean()
    )
    assert measured["min_gain"] is measured["captured"] is None


def test_base_and_steered_are_compared_and_a_decision_is_drawn(made, tmp_path):
    folder, policy, _ = made
    trained(tmp_path / "critic", folder / "data", "critic=success")
    trained(tmp_path / "safety", folder / "branches", "critic=safety", "data.events=[force]")
    given = [f"checkpoint={policy}", f"steer.critic={tmp_path / 'critic'}", f"steer.safety={tmp_path / 'safety'}"]
    given += ["steer.num_samples=4", "steer.perturb={std: 0.2, share: 1.0}", "episodes=2", "num_workers=0"]
    given += [f"picture.file={tmp_path / 'decision.png'}", "picture.episode=1", "picture.decision=1"]
    lines = pipeline.evaluate_run(settings("evaluate", OBSERVED, SHORT, *given))
    assert lines[0].startswith("picture: ")
    assert Image.open(tmp_path / "decision.png").size[0] > 800
    assert "policy@4+steer against policy@4: " in lines[-1]
    assert "exact McNemar p = " in lines[-1]
    own = [*given[:3], "steer.perturb={std: 0.2, share: 1.0}", "episodes=2", "num_workers=0"]
    lines = pipeline.evaluate_run(settings("evaluate", OBSERVED, SHORT, *own, "steer.prove=true"))
    assert lines[-1].startswith("policy@4+steer: not proven (attempt 1, ")
    arm = pipeline.find_checkpoints(policy)[0]
    assert pipeline.steered(arm, settings("evaluate", *own)["steer"]).steer["min_gain"] == NEVER
    given[-1] = "picture.decision=9"
    with pytest.raises(ValueError, match=r"picture\.decision=9: the episode has 3 decisions"):  # before any episode is played
        pipeline.evaluate_run(settings("evaluate", OBSERVED, SHORT, *given))
    with pytest.raises(ValueError, match=r"steer\.critic"):
        pipeline.evaluate_run(settings("evaluate", OBSERVED, SHORT, f"checkpoint={policy}", "episodes=1", "picture.file=x.png"))


@pytest.fixture
def steering(made):
    """An arm, and a run of a critic that nobody proved."""
    folder, policy, _ = made
    if not (folder / "critic").is_dir():
        trained(folder / "critic", folder / "data", "critic=success")
    (folder / "critic" / FILE).unlink(missing_ok=True)
    return pipeline.find_checkpoints(policy)[0], folder / "critic"


def steered(steering, *overrides):
    arm, critic = steering
    return pipeline.steered(
        arm, settings("evaluate", f"checkpoint={arm.checkpoint}", f"steer.critic={critic}", *overrides)["steer"]
    )


WON = {"only_base": 1, "only_steered": 11, "p_value": 0.006}
LOST = {"only_base": 6, "only_steered": 7, "p_value": 1.0}


def test_a_proof_opens_the_gate_for_the_settings_that_were_played(steering, caplog):
    played = worlds(Suite.draw("s", "x", {}, 20, 5, "select"), 5)
    assert steered(steering).steer["min_gain"] == 0.0  # nothing was tried
    assert record(steered(steering), played, WON)["proven"]
    assert steered(steering).steer["min_gain"] == 0.0
    for other in ("steer.num_samples=64", "steer.rule=softmax", "steer.perturb={std: 0.2}", "steer.heads=min"):
        caplog.clear()
        assert steered(steering, other).steer["min_gain"] == NEVER
        name = other.partition("=")[0].removeprefix("steer.")
        assert f"{name} was " in caplog.text
        assert ("leaves the policy alone" in caplog.text) == ("rule" not in other)
    assert steered(steering, "steer.num_samples=64", "steer.min_gain=0.3").steer["min_gain"] == 0.3


def test_every_further_attempt_has_to_be_surer_and_the_latest_decides(steering):
    arm = steered(steering)
    suites = [worlds(Suite.draw("s", "x", {}, 20, seed, "select"), seed) for seed in range(4)]
    assert not record(arm, suites[0], LOST)["proven"]
    assert record(arm, suites[0], LOST)["attempt"] == len(attempts(arm)) == 1  # the same question again
    assert record(arm, suites[1], WON)["attempt"] == 2
    assert steered(steering).steer["min_gain"] == 0.0
    assert not record(arm, suites[2], {**WON, "p_value": 0.01})["proven"]  # 0.005 one-sided, 0.05 / 12 asked for
    assert steered(steering).steer["min_gain"] == NEVER
    assert record(arm, suites[3], {**WON, "p_value": 0.004})["proven"]
    assert steered(steering).steer["min_gain"] == 0.0
    assert [is_proven(2, 11, 0.016, n) for n in (1, 2, 3)] == [True, True, False]
    assert sum(level(n) for n in range(1, 2000)) == pytest.approx(LEVEL, rel=1e-3)


def test_attempts_with_other_checkpoints_of_a_run_count_and_a_critic_taken_out_of_its_run_keeps_its_own(steering, tmp_path):
    arm, critic = steering
    first, last = (pipeline.steered(arm, {"critic": str(each)}) for each in sorted((critic / "checkpoints").glob("step_*")))
    record(first, worlds(Suite.draw("s", "x", {}, 20, 1, "select"), 1), LOST)
    assert recorded(last) == (None, [])
    assert record(last, worlds(Suite.draw("s", "x", {}, 20, 2, "select"), 2), WON)["attempt"] == 2
    shutil.copytree(str(last.critic), tmp_path / "shelf" / "mine")
    alone = pipeline.steered(arm, {"critic": str(tmp_path / "shelf" / "mine")})
    record(alone, worlds(Suite.draw("s", "x", {}, 20, 1, "select"), 1), LOST)
    assert (tmp_path / "shelf" / "mine" / FILE).is_file()
    load_critic(str(alone.critic))
    for name in "ab":
        shutil.copytree(critic, tmp_path / "runs" / name)
    with pytest.raises(ValueError, match="holds 2 runs"):
        pipeline.steered(arm, {"critic": str(tmp_path / "runs")})


def test_a_record_that_cannot_be_read_is_named_before_anything_is_played(steering):
    (steering[1] / FILE).write_text('{"attempts": ')
    given = [f"checkpoint={steering[0].checkpoint}", f"steer.critic={steering[1]}", "episodes=2", "num_workers=0"]
    with pytest.raises(ValueError, match=r"proof\.json is no record of proofs"):
        pipeline.evaluate_run(settings("evaluate", OBSERVED, SHORT, *given, "steer.prove=true", "steer.min_gain=0"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("perturb={sdt: 0.2}", r"unknown key 'steer\.perturb\.sdt': did you mean 'std'"),
        ("perturb=0.2", r"give steer\.perturb="),
        ("margin=null", r"steer\.margin"),
        ("min_gain=yes", r"steer\.min_gain"),
        ("critic=[a]", r"steer\.critic=\['a'\] does not work: give one run"),
    ],
)
def test_settings_of_steering_that_cannot_work_are_named(steering, given, message):
    with pytest.raises(ValueError, match=message):
        steered(steering, f"steer.{given}")


def test_a_critic_is_not_judged_by_what_it_was_trained_on(made, tmp_path):
    folder, _, _ = made
    with pytest.raises(ValueError, match="share 2 episodes"):
        trained(tmp_path / "critic", folder / "branches", "critic=success", f"data.branches={folder / 'branches'}")


def test_progress_needs_dense_rewards(made, tmp_path):
    with pytest.raises(ValueError, match=r"reward=dense"):
        trained(tmp_path / "critic", made[0] / "data", "critic=progress")
    with pytest.raises(ValueError, match="gamma below 1"):
        trained(tmp_path / "critic", made[0] / "data", "critic=progress", "critic.gamma=1.0")


def test_branching_goes_on_where_it_was_stopped(made, tmp_path, monkeypatch):
    _, policy, _ = made
    given = [OBSERVED, SHORT, f"checkpoint={policy}", f"out={tmp_path / 'b'}", "states=2", "candidates=2", "num_workers=0"]
    pipeline.branch_run(settings("branch", *given, "episodes=3", "out=" + str(tmp_path / "whole")))
    real = branches_module.branch_episode

    def stopped(unit):
        if len(list((tmp_path / "b.parts").iterdir())) == 3:  # the plan and two episodes
            raise KeyboardInterrupt
        return real(unit)

    monkeypatch.setattr(branches_module, "branch_episode", stopped)
    with pytest.raises(KeyboardInterrupt):
        pipeline.branch_run(settings("branch", *given, "episodes=3"))
    played = []
    monkeypatch.setattr(branches_module, "branch_episode", lambda unit: played.append(unit[0]) or real(unit))
    with pytest.raises(SpecError, match=r"b\.parts holds episodes that were branched with another plan"):
        pipeline.branch_run(settings("branch", *given, "episodes=3", "rollouts=2"))
    pipeline.branch_run(settings("branch", *given, "episodes=3"))
    assert len(played) == 1
    assert Branches.load(tmp_path / "b").hash == Branches.load(tmp_path / "whole").hash
    assert not (tmp_path / "b.parts").exists()


def test_a_report_in_the_worlds_of_the_proof_is_warned_of(steering, caplog):
    given = [f"checkpoint={steering[0].checkpoint}", f"steer.critic={steering[1]}", OBSERVED, SHORT, "num_workers=0"]
    pipeline.evaluate_run(settings("evaluate", *given, "episodes=2", "seed=40", "steer.prove=true"))
    for seed, warned in ((41, False), (40, True)):
        caplog.clear()
        pipeline.evaluate_run(settings("evaluate", *given, "episodes=1", f"seed={seed}"))
        assert ("1 of the 1 worlds were played to prove" in caplog.text) == warned


@pytest.mark.parametrize("name", ["safety=x", "prove=true", "perturb={std: 0.2}", "num_samples=4", "min_gain=0"])
def test_settings_of_steering_without_a_critic_are_refused(made, name):
    given = settings("evaluate", OBSERVED, SHORT, f"checkpoint={made[1]}", f"steer.{name}")
    with pytest.raises(ValueError, match=r"give steer\.critic=RUN"):
        pipeline.evaluate_run(given)


def test_what_is_served_is_perturbed_and_gated_as_what_was_evaluated(steering):
    arm, critic = steering
    given = [f"checkpoint={arm.checkpoint}", f"steer.critic={critic}", "steer.perturb={std: 0.3}", "steer.budget_ms=50"]
    evaluated, deployed = (settings(verb, *given)["steer"] for verb in ("evaluate", "deploy"))
    assert deployed == {name: value for name, value in evaluated.items() if name != "prove"}
    policy, _ = pipeline.deployment(settings("deploy", *given))
    assert isinstance(policy.policy, Perturbed)
    assert policy.budget_ms == 50
    assert policy.selection.min_gain == 0.0
    record(pipeline.steered(arm, evaluated), worlds(Suite.draw("s", "x", {}, 20, 9, "select"), 9), LOST)
    shut, _ = pipeline.deployment(settings("deploy", *given))
    assert shut.selection.min_gain == NEVER
