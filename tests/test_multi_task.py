"""One policy for several tasks, from demonstrations of each to an evaluation of each: the recipe multi_task, tiny."""

import logging
import queue
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest

from robopolicy import config, pipeline
from robopolicy.data.collect import environment
from robopolicy.data.manage import merge
from robopolicy.deploy.client import RemoteError, RemotePolicy
from robopolicy.deploy.controller import Controller
from robopolicy.deploy.limits import SafetyLimits
from robopolicy.deploy.server import serve
from robopolicy.evaluation.rollout import PolicyActor, observing
from robopolicy.policies.bc import BehaviourCloningPolicy
from robopolicy.policies.load import load_critic, load_policy
from robopolicy.policies.steering import SteeredPolicy
from robopolicy.spec import STATE, TASK, FeatureSpec, PolicySpec, SpecError, known_tasks

TASKS = ("lift", "pick_place", "push")
SMALL = {"image_size": 24, "num_points": 32}


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """Two demonstrations of each task, in one dataset."""
    folder = tmp_path_factory.mktemp("data")
    for name in TASKS:
        task = config.to_plain(config.compose("collect", [f"task={name}", "path=x"]))["task"]
        task["env"] |= SMALL
        pipeline.collect_run(folder / name, task, "none", {"expert": 2}, seed=0, num_workers=0)
    merge([folder / name for name in TASKS], folder / "all")
    return folder / "all"


def settings(merged, *overrides):
    small = [
        "train.steps=12",
        "train.batch_size=8",
        "train.num_checkpoints=1",
        "inputs.encoder.width=16",
        "train.progress=false",
    ]
    return config.to_plain(config.compose("train", ["experiment=multi_task", f"data.path={merged}", *small, *overrides]))


def evaluation(task, folder, **more):
    plain = config.to_plain(config.compose("evaluate", [f"task={task}", f"checkpoint={folder}", "episodes=1", "num_workers=0"]))
    plain["task"]["env"] |= {**SMALL, "max_episode_steps": 6}
    return {**plain, "randomization": "none", **more}


class Listening:
    """A policy that writes down the tasks it was told."""

    def __init__(self, policy):
        self.policy, self.spec, self.told = policy, policy.spec, []

    def reset(self):
        self.policy.reset()

    def sample(self, observation, num_samples=1, seed=None):
        self.told += np.reshape(observation[TASK], (-1, 1))[-1].tolist()
        return self.policy.sample(observation, num_samples, seed)


@pytest.mark.parametrize(("by", "policy"), [("id", "carp"), ("text", "bc")])
def test_the_recipe_trains_and_evaluates_every_task(by, policy, merged, tmp_path):
    [folder] = pipeline.train_run(settings(merged, f"inputs.encoder.tasks.by={by}", f"policy={policy}"), tmp_path / "run")
    loaded = load_policy(folder)
    assert known_tasks(loaded.spec.observation) == TASKS
    for task in TASKS:
        table = tmp_path / f"{task}.parquet"
        [line] = pipeline.evaluate_run(evaluation(task, folder, out=table))
        assert "success" in line
        assert "1 episodes" in line
        [row] = pq.read_table(table).to_pylist()
        assert row["length"] <= 6
        actor = PolicyActor(Listening(loaded))
        env = environment(row["suite"], observing({"observation": [], **SMALL, "randomization": "none"}, loaded))
        actor.reset(0)
        observation, info = env.reset(seed=0)
        actor.act(env, observation)
        assert actor.executor.policy.told == [task] == [info["task"]]
    if by == "text":
        assert pipeline.evaluate_run(evaluation("push", folder, instruction="please push it"))
    else:
        with pytest.raises(SpecError, match=r"unknown task 'stack'; known: 'lift', 'pick_place', 'push'"):
            pipeline.evaluate_run(evaluation("lift", folder, instruction="stack"))


def test_one_task_is_not_asked_for_and_several_unsaid_ones_are_warned_of(merged, tmp_path, caplog):
    keys = "inputs.observation_keys=[observation.state]"
    quiet = ["policy=bc", "~inputs.encoder.points_center", keys]
    with caplog.at_level(logging.WARNING):
        [folder] = pipeline.train_run(settings(merged, *quiet, "data.where={task: [push]}"), tmp_path / "one")
    assert not caplog.records
    assert TASK not in load_policy(folder).spec.observation
    with caplog.at_level(logging.WARNING):
        pipeline.train_run(settings(merged, *quiet), tmp_path / "blind")
    assert "lift, pick_place, push" in caplog.text
    assert "observation_keys" in caplog.text
    [folder] = pipeline.train_run(settings(merged, "policy=bc", "inputs.observation_keys=null"), tmp_path / "auto")
    assert TASK in load_policy(folder).spec.observation


def test_a_policy_and_a_critic_of_several_tasks_steer_together(merged, tmp_path):
    [folder] = pipeline.train_run(settings(merged, "policy=bc"), tmp_path / "policy")
    [critic] = pipeline.train_run(settings(merged, "critic=success"), tmp_path / "critic")
    steered = SteeredPolicy(load_policy(folder), load_critic(critic), num_samples=3)
    observation = {key: feature.zeros((2, 1)) for key, feature in steered.spec.observation.items()}
    chunks = [steered.sample({**observation, TASK: tasks}, seed=0) for tasks in (["lift", "push"], [["lift"], ["push"]])]
    assert chunks[0].shape == (2, 1, 16, 7)
    assert np.array_equal(*chunks)


def test_a_served_policy_is_told_its_task(merged, tmp_path):
    [folder] = pipeline.train_run(settings(merged, "policy=bc"), tmp_path / "policy")
    policy, stop, bound = load_policy(folder), threading.Event(), queue.Queue()
    server = threading.Thread(target=serve, args=(policy, "tcp://127.0.0.1:*"), kwargs={"ready": bound.put, "stop": stop})
    server.start()
    try:
        with RemotePolicy(bound.get(timeout=20), timeout_ms=5000) as remote:
            assert remote.spec.observation[TASK].values == TASKS
            assert PolicySpec.from_dict(remote.spec.to_dict()).observation == policy.spec.observation
            observation = {key: feature.zeros((1, 1)) for key, feature in policy.spec.observation.items()}
            for task in (np.array(["push"]), ["push"]):
                given = {**observation, TASK: task}
                assert np.array_equal(remote.sample(given, seed=0), policy.sample(given, seed=0))
            with pytest.raises(RemoteError, match="unknown task 'stack'"):
                remote.sample({**observation, TASK: ["stack"]})
    finally:
        stop.set()
        server.join()


def test_a_robot_tells_the_policy_its_task():
    features = {STATE: FeatureSpec((2,)), TASK: FeatureSpec((), "str", values=TASKS)}
    policy = Listening(BehaviourCloningPolicy(features, FeatureSpec((7,)), 20.0, obs_horizon=2))
    options = {"limits": SafetyLimits(), "enabled": True, "threaded": False}
    with pytest.raises(ValueError, match=r"task '': say which.*'pick_place'"):
        Controller(policy, {"joints": STATE}, **options)
    controller = Controller(policy, {"joints": STATE}, task="push", **options)
    moves = [controller.receive("joints", now, np.array([0.1, 0.2])) or controller.step(now) for now in np.arange(40) / 20]
    controller.close()
    assert set(policy.told) == {"push"}
    assert sum(command.publish and command.state == "run" for command in moves) > 30
