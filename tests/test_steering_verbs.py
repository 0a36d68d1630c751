"""branch, train critic=..., evaluate steer.critic=...: the verbs work together. Tiny networks: no claim of gains."""

import json

import numpy as np
import pytest
from PIL import Image

from robopolicy import pipeline
from robopolicy.checkpoint import sha256
from robopolicy.config import compose, to_plain
from robopolicy.data.branches import Branches
from robopolicy.evaluation.branches import Plan, branch
from robopolicy.evaluation.critic_quality import NEVER
from robopolicy.evaluation.proof import record
from robopolicy.evaluation.rollout import Suite
from robopolicy.policies.load import load_critic
from robopolicy.spec import SpecError

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
    """Episodes, a policy, and branches of it."""
    folder = tmp_path_factory.mktemp("steering")
    task = settings("collect", OBSERVED, SHORT, "path=x")["task"]
    pipeline.collect_run(folder / "data", task, "none", {"expert": 2, "random": 1}, seed=0, num_workers=0)
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


@pytest.mark.parametrize("kind", ["success", "progress", "iql", "cal_ql"])
def test_critics_train_and_are_judged(made, kind, tmp_path):
    folder, policy, _ = made
    more = [f"critic={kind}", f"data.branches={folder / 'branches'}", "critic.support_size=16"]
    more += [f"data.proposals.checkpoint={policy}", "data.proposals.num=2"] if kind == "cal_ql" else []
    found = trained(tmp_path / "critic", folder / "data", *more)
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
    assert lines[-1] == "policy@4+steer: not proven, written for steer.min_gain=null"
    arm = pipeline.find_checkpoints(policy)[0]
    options = settings("evaluate", OBSERVED, SHORT, *own)["steer"]
    assert pipeline.steered(arm, options).steer["min_gain"] == NEVER
    critic = pipeline.chosen_critic(tmp_path / "critic")
    assert record(critic, sha256(policy), {"only_base": 2, "only_steered": 11, "p_value": 0.02})
    assert pipeline.steered(arm, options).steer["min_gain"] == 0.0
    given[-1] = "picture.decision=9"
    with pytest.raises(ValueError, match="has 3 decisions"):  # before any episode is played
        pipeline.evaluate_run(settings("evaluate", OBSERVED, SHORT, *given))
    with pytest.raises(ValueError, match=r"steer\.critic"):
        pipeline.evaluate_run(settings("evaluate", OBSERVED, SHORT, f"checkpoint={policy}", "episodes=1", "picture.file=x.png"))
