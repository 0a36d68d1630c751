"""`robopolicy deploy`: what a checkpoint says through the socket, its monitor, its token, its mistakes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from serving import ProportionalPolicy, served

from robopolicy import checkpoint, load_policy, spec
from robopolicy.config import compose, to_plain
from robopolicy.data.episodes import EpisodeStore, write_episodes
from robopolicy.data.windows import Windows
from robopolicy.deploy import monitor
from robopolicy.deploy.client import RemotePolicy
from robopolicy.monitoring import encoder_of, fit_monitor
from robopolicy.pipeline import deployment
from robopolicy.policies.bc import BehaviourCloningPolicy
from robopolicy.policies.steering import SteeredPolicy

TOKEN = "0123456789abcdef"


def walk(rng, shift=0.0):
    """An episode whose state wanders; `shift` puts it elsewhere."""
    state = np.cumsum(rng.normal(size=(40, 3)), axis=0).astype(np.float32) * 0.1 + np.float32(shift)
    return {spec.STATE: state, spec.ACTION: np.tanh(state[:, :2]), spec.SUCCESS: np.arange(40) == 39}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(dataset, checkpoint); weights as they are drawn."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("run")
    write_episodes(folder / "data", [walk(rng) for _ in range(120)], fps=10)
    store = EpisodeStore(folder / "data")
    features = (store.spec.observation, store.spec.action)
    horizons = {"obs_horizon": 2, "action_horizon": 6, "execute_horizon": 3, "width": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = BehaviourCloningPolicy(*features, 10.0, **horizons)
    node = {"_target_": "robopolicy.policies.bc.BehaviourCloningPolicy", **horizons}
    meta = {"kind": "policy", "spec": policy.spec.to_dict(), "step": 1}
    checkpoint.save(folder / "bc" / "checkpoints" / "step_000001", policy.state_dict(), {"policy": node}, meta)
    return folder / "data", folder / "bc" / "checkpoints" / "step_000001"


def deployed(checkpoint_folder, *overrides):
    """(policy, arguments of serve) of conf/deploy.yaml with overrides."""
    return deployment(to_plain(compose("deploy", [f"checkpoint={checkpoint_folder}", *overrides])))


def windows_of(dataset, policy, **kwargs):
    return Windows(EpisodeStore(dataset), tuple(policy.spec.observation), policy.spec.obs_horizon, 1, **kwargs)


def test_a_deployed_checkpoint_with_a_monitor_knows_what_it_was_trained_on(run, tmp_path):
    dataset, folder = run
    policy = load_policy(folder)
    file = tmp_path / "monitors" / "bc.npz"
    made, options = deployed(folder, f"monitor.data={dataset}", f"monitor.file={file}", "monitor.patience=2", f"token={TOKEN}")
    known = windows_of(dataset, policy).batch(np.arange(5, 4800, 97))
    known = {spec.STATE: known[spec.STATE]}
    with served(made, **options) as (address, _), RemotePolicy(address, 5000, token=TOKEN) as remote:
        assert set(remote.band) == set(monitor.LEVELS)
        assert remote.patience == 2
        reply = remote.decide(known, 2, seed=3)
        assert reply.actions.tobytes() == policy.sample(known, 2, seed=3).tobytes()
        assert (reply.scores < remote.band["slow"]).mean() > 0.9
        elsewhere = {spec.STATE: known[spec.STATE] + np.float32(20)}
        assert (remote.decide(elsewhere, 1, seed=3).scores > remote.band["stop"]).all()
    kept = monitor.Monitor.load(file)
    np.testing.assert_allclose(kept.score(policy.features(known)), reply.scores, rtol=1e-6)


def test_the_band_holds_for_episodes_it_has_not_seen(run):
    dataset, folder = run
    policy = load_policy(folder)
    watch = fit_monitor(policy, windows_of(dataset, policy), patience=2)
    band, rng, far = watch.band(), np.random.default_rng(5), []
    for shift in (0.0, 8.0):
        seen = []
        for _ in range(60):
            state = walk(rng, shift)[spec.STATE]
            pairs = np.stack([state[:-1], state[1:]], axis=1)[:: policy.spec.execute_horizon]
            scores = watch.score(policy.features({spec.STATE: pairs}))
            seen.append(monitor.episode_statistic(scores, 2))
        far.append([(np.array(seen) > band[level]).mean() for level in monitor.LEVELS])
    assert far[0][0] < 0.4  # 0.2 promised on average
    assert far[0][2] < 0.15
    assert far[1] == [1.0, 1.0, 1.0]


def test_what_has_no_encoder_has_no_monitor():
    with pytest.raises(ValueError, match="offers none"):
        encoder_of(ProportionalPolicy())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("address=tcp://0.0.0.0:*", "token="),
        ("token=short", "at least 16"),
        ("monitor.file=nowhere.npz", "monitor.data="),
        ("backend=onxx", "did you mean 'onnx'"),
        ("monitor.episodes=20", "needs 49"),
    ],
)
def test_mistakes_are_refused_before_anything_is_served(run, more, message):
    data = [f"monitor.data={run[0]}"] if "episodes" in more else []
    with pytest.raises(ValueError, match=message):
        deployed(run[1], more, *data)


def test_the_token_comes_from_the_environment(run, monkeypatch):
    monkeypatch.setenv("ROBOPOLICY_TOKEN", TOKEN)
    assert deployed(run[1])[1]["token"] == TOKEN
    monkeypatch.delenv("ROBOPOLICY_TOKEN")
    assert deployed(run[1])[1]["token"] == ""


class PrefersLess:
    """A critic with one head: less motion is better."""

    def __init__(self, policy):
        own = policy.spec
        self.spec = spec.CriticSpec(own.observation, own.action, own.obs_horizon, own.execute_horizon, 1, own.control_hz)

    def encode(self, observation):
        return None

    def score(self, context, actions):
        return -np.abs(actions).sum(axis=(2, 3))[None]


def test_a_steered_policy_is_served_with_its_choices_and_watched_through_its_steering(run):
    dataset, folder = run
    policy = load_policy(folder)
    steered = SteeredPolicy(policy, PrefersLess(policy), num_samples=8)
    given = {spec.STATE: windows_of(dataset, policy).batch(np.arange(3))[spec.STATE]}
    _, features = encoder_of(steered)
    watch = fit_monitor(policy, windows_of(dataset, policy), patience=2)
    with served(steered, features=features, monitor=watch) as (address, _), RemotePolicy(address, 5000) as remote:
        reply = remote.decide(given, 1, seed=2)
    assert reply.actions.tobytes() == steered.sample(given, 1, seed=2).tobytes()
    assert reply.actions.tobytes() != policy.sample(given, 1, seed=2).tobytes()
    np.testing.assert_allclose(reply.scores, watch.score(policy.features(given)))
