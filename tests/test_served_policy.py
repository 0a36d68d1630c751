"""checkpoint=tcp://HOST:PORT: a policy behind a socket is played, branched, steered, proven and passed on like a checkpoint."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from serving import served

from robopolicy import pipeline
from robopolicy.config import compose, to_plain
from robopolicy.data.branches import Branches
from robopolicy.data.episodes import EpisodeStore
from robopolicy.deploy.client import PolicyTimeout, RemoteError
from robopolicy.evaluation.proof import FILE
from robopolicy.policies.load import identity, load_policy
from robopolicy.policies.served import ServedPolicy
from robopolicy.selection.pool import find_pool

OBSERVED = ["task.env.observation=[state,environment_state]", "+task.env.max_episode_steps=24"]
KEYS = "inputs.observation_keys=[observation.state,observation.environment_state]"
SCALE = "scale: [0.02, 0.02, 0.02, 0.1, 0.1, 0.1, 1.0]"
NOISE = "{std: 0.3, share: 1.0, fixed: [gripper, rx, ry, rz], " + SCALE + "}"


def settings(verb, *overrides):
    return to_plain(compose(verb, list(overrides)))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A policy's checkpoint, and a critic's run on the same data."""
    folder = tmp_path_factory.mktemp("served")
    task = settings("collect", *OBSERVED, "path=x")["task"]
    pipeline.collect_run(folder / "data", task, "none", {"expert": 2, "random": 1}, seed=0, num_workers=0)
    small = [f"data.path={folder / 'data'}", "train.steps=4", "train.batch_size=8", "train.num_checkpoints=1", KEYS]
    quiet = [*small, "train.progress=false"]
    policy = pipeline.train_run(settings("train", *quiet, "policy=bc"), folder / "policy")[-1]
    pipeline.train_run(settings("train", *quiet, "critic=success"), folder / "critic")
    return policy, folder / "critic"


def evaluated(checkpoint, *overrides):
    common = [*OBSERVED, "num_workers=0", "episodes=3", "randomization=none"]
    return pipeline.evaluate_run(settings("evaluate", *common, f"checkpoint={checkpoint}", *overrides))


def test_it_plays_the_episodes_of_the_checkpoint_that_is_served(made, tmp_path):
    policy, _ = made
    with served(load_policy(policy), name="pi 1.0") as (address, _):
        lines = evaluated(f"[{policy},{address}]", f"out={tmp_path / 'scores.parquet'}")
        assert lines[-1].startswith("pi 1.0: success")
        rows = pq.read_table(tmp_path / "scores.parquet").to_pylist()
        near, far = ([row for row in rows if row["checkpoint"] == name] for name in ("policy@4", "pi 1.0"))
        for key in ("condition", "length", "progress", "success"):
            assert [row[key] for row in near] == [row[key] for row in far]
        assert {row["checkpoint_sha"] for row in far} == {identity(address)}
        with served(load_policy(policy), name="pi 1.1") as (other, _):
            assert identity(other) != identity(address)


def test_it_is_branched_and_makes_experience(made, tmp_path):
    policy, _ = made
    with served(load_policy(policy), name="pi 1.0") as (address, _):
        given = [*OBSERVED, f"out={tmp_path / 'branches'}", "episodes=2", "states=2", "candidates=3", "num_workers=0"]
        pipeline.branch_run(settings("branch", *given, f"checkpoint={address}", f"perturb={NOISE}"))
        branches = Branches.load(tmp_path / "branches")
        assert branches.facts["checkpoint"] == "pi 1.0"
        assert branches.candidates.shape == (4, 3, 16, 7)
        task = settings("collect", *OBSERVED, "path=x")["task"]
        stores = []
        for checkpoint, path in ((address, "far"), (policy, "near")):
            pipeline.collect_run(tmp_path / path, task, "none", {"rollout": 2}, seed=3, num_workers=0, checkpoint=checkpoint)
            stores.append(EpisodeStore(tmp_path / path))
        assert np.array_equal(*(store.read(0)["action"] for store in stores))


def test_steering_it_is_proven_for_its_name_and_passed_on(made):
    policy, critic = made
    steer = [f"steer.critic={critic}", f"steer.perturb={NOISE}"]
    with served(load_policy(policy), name="pi 1.0") as (address, _):
        lines = evaluated(address, *steer, "steer.prove=true", "seed=7")
        assert any(line.startswith("pi 1.0+steer against pi 1.0") for line in lines)
        assert list(json.loads((critic / FILE).read_text())["attempts"]) == [identity(address)]
        passing, options = pipeline.deployment(settings("deploy", f"checkpoint={address}", *steer, "steer.min_gain=0"))
        assert options["name"].startswith("pi 1.0+steer")
        observation = {
            k: np.zeros((1, passing.spec.obs_horizon, *f.shape), f.dtype) for k, f in passing.spec.observation.items()
        }
        with served(passing, name=options["name"]) as (again, _):
            assert np.array_equal(ServedPolicy(again).sample(observation, seed=2), passing.sample(observation, seed=2))


def test_what_cannot_be_is_refused(made, monkeypatch):
    policy, critic = made
    monkeypatch.setattr("robopolicy.policies.served.GREETING_MS", 100)
    with pytest.raises(PolicyTimeout, match="is it running"):
        evaluated("tcp://127.0.0.1:9")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="cannot connect"):
        evaluated("tcp://nowhere")
    with pytest.raises(ValueError, match="as only checkpoints show"):
        find_pool("tcp://127.0.0.1:9")
    with pytest.raises(ValueError, match="a critic is read from its checkpoint"):
        evaluated(policy, "steer.critic=tcp://127.0.0.1:9")
    with served(load_policy(policy), name="pi 1.0") as (address, _):
        with pytest.raises(ValueError, match=r"scale=\[\.\.\.\]"):
            evaluated(address, f"steer.critic={critic}", "steer.perturb={std: 0.3}")
        with pytest.raises(ValueError, match="leave backend=torch"):
            pipeline.deployment(settings("deploy", f"checkpoint={address}", "backend=onnx"))
        remote = ServedPolicy(address)
    with served(load_policy(policy), address, name="pi 1.1"), pytest.raises(RemoteError, match=r"now serves 'pi 1\.1'"):
        remote.sample({k: np.zeros((1, 1, *f.shape), f.dtype) for k, f in remote.spec.observation.items()})
