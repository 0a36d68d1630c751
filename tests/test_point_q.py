"""Properties of dense point-cloud actors and critics, how they learn, and the loop that teaches them."""

import json
import shutil
import sys
from argparse import Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from robopolicy import checkpoint
from robopolicy.batch import fake_batch
from robopolicy.config import ConfigError, compose, to_plain
from robopolicy.data.collect import collect, new_environment
from robopolicy.data.episodes import EpisodeWriter
from robopolicy.data.vector import Start, VectorEnv
from robopolicy.models.cloud_encoder import CloudEncoder
from robopolicy.models.cloud_noise import CloudNoise, dilated, dropped, eroded
from robopolicy.models.dense_points import GripperCloud, backbone
from robopolicy.models.point_critic import PointCritic
from robopolicy.pipeline import evaluate_run, train_run
from robopolicy.policies.bc import BehaviourCloningPolicy
from robopolicy.policies.load import load_critic, load_policy
from robopolicy.policies.point_actor import PointActor, squashed_log_prob
from robopolicy.policies.steering import SteeredPolicy
from robopolicy.reinforce import best_checkpoint, distillation
from robopolicy.sim import dress_sensors
from robopolicy.spec import ACTION, POINTS, REWARD, STATE, TERMINATED, Critic, DatasetSpec, FeatureSpec, Policy, SpecError
from robopolicy.train import rl
from robopolicy.train.distil import Distillation, in_units_of, kl, wasserstein
from robopolicy.train.learners import ImplicitQ, SoftActorCritic, TwinDelayed
from robopolicy.train.plan import TrainingError
from robopolicy.train.replay import ReplayBuffer, Transition, Transitions

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import bench_pointq

OBSERVATION = {
    STATE: FeatureSpec((4,), names=("ee_x", "ee_y", "ee_z", "opening")),
    POINTS: FeatureSpec((12, 5), names=("x", "y", "z", "arm", "garment")),
}
ACTIONS = FeatureSpec((2,), unit="m", names=("dx", "dy"))
LOW, HIGH = np.array([-0.02, -0.1]), np.array([0.02, 0.1])
SMALL = {
    "balls": {"widths": (16, 16)},
    "pointnet2": {"widths": ((8, 8), (8, 16), (16, 16)), "back": ((16,), (16,), (16,)), "out": (16,)},
}
NODES = {
    "policy": {
        "_target_": "robopolicy.policies.point_actor.PointActor",
        "encoder": {
            "_target_": "robopolicy.models.cloud_encoder.CloudEncoder",
            "_partial_": True,
            "options": {"widths": [16, 16]},
        },
        "hidden": [32],
    },
    "critic": {"_target_": "robopolicy.models.point_critic.PointCritic", "options": {"widths": [16, 16]}, "hidden": [32]},
}
nets = pytest.mark.parametrize("net", SMALL)


def actor(net="balls", **encoder):
    made = PointActor(
        OBSERVATION, ACTIONS, 20.0, encoder=partial(CloudEncoder, net=net, options=SMALL[net], **encoder), hidden=(32,)
    )
    made.fit(rl.bound_statistics(made.observation, LOW, HIGH))
    return made


def critic(net="balls", **options):
    made = PointCritic(OBSERVATION, ACTIONS, 20.0, net=net, options=SMALL[net], hidden=(32,), **options)
    made.fit(rl.bound_statistics(made.observation, LOW, HIGH))
    return made


def clouds(size, seed=0, empty=3):
    """Observations {key: [B, 1, ...]}, the last `empty` rows padding."""
    rng = np.random.default_rng(seed)
    state = rng.uniform(-0.2, 0.2, (size, 1, 4))
    points = np.zeros((size, 1, 12, 5))
    points[..., :3] = state[..., None, :3] + rng.uniform(-0.3, 0.3, (size, 1, 12, 3))
    points[..., 3 + rng.integers(2)] = 1
    points[:, :, 12 - empty :] = 0
    return {STATE: state.astype(np.float32), POINTS: points.astype(np.float32)}


def tensors(observation):
    return {key: torch.from_numpy(value) for key, value in observation.items()}


# clouds and their noise


def test_every_kind_of_noise_keeps_its_bounds_and_its_inputs(generator):
    cloud = tensors(clouds(200))[POINTS][:, 0]
    xyz, mask = cloud[..., :3], (cloud != 0).any(-1)
    before = cloud.clone()
    lost = mask & ~dropped(mask, 0.5, generator)
    assert 0.15 < lost.sum() / mask.sum() < 0.35
    hole = mask & ~eroded(xyz, mask, 0.2, generator)
    assert hole.any()
    for i in range(200):
        gone = xyz[i, hole[i]]
        assert len(gone) == 0 or torch.cdist(gone, gone).max() <= 0.4
    more, classes, both = dilated(xyz, cloud[..., 3:], mask, 0.9, 0.02, generator)
    new = both & ~mask
    assert new.any()
    assert (torch.cdist(more, xyz).masked_fill(~mask[:, None], torch.inf).amin(-1)[new] <= 0.0201).all()
    assert (classes[new].sum(-1) == 1).all()
    assert torch.equal(cloud, before)


def test_noise_is_the_generators_alone_and_leaves_padding_and_empty_clouds_alone():
    cloud = tensors(clouds(6))[POINTS][:, 0]
    cloud[2] = 0
    mask, center, noise = (cloud != 0).any(-1), torch.zeros(6, 3), CloudNoise()
    first, second = (noise(cloud, mask, center, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not first[1][2].any()
    assert first[1].any(1)[[0, 1, 3, 4, 5]].all()
    assert all(value.isfinite().all() for value in first)
    for bad in ({"jitter": -0.1}, {"dropout": 1.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            CloudNoise(**bad)


def test_clouds_are_relative_to_the_gripper_whose_row_is_last():
    make = GripperCloud(OBSERVATION, extras=["opening"])
    one = tensors(clouds(3))
    moved = {key: value.clone() for key, value in one.items()}
    moved[STATE][..., :3] += 0.5
    moved[POINTS][..., :9, :3] += 0.5
    a, b = make(one), make(moved)
    assert torch.allclose(a.points, b.points, atol=1e-5)
    assert a.points.shape == (3, 13, make.num_channels) == (3, 13, 7)
    assert torch.equal(a.points[:, -1, :3], torch.zeros(3, 3))
    assert torch.equal(a.points[:, -1, -1], one[STATE][:, 0, 3])
    assert a.mask.sum(1).tolist() == [10, 10, 10]
    with pytest.raises(SpecError, match=r"need 'observation\.points'"):
        GripperCloud({STATE: OBSERVATION[STATE]})
    with pytest.raises(SpecError, match="did you mean 'opening'"):
        GripperCloud(OBSERVATION, extras=["openings"])
    with pytest.raises(ValueError, match="must be one of balls, pointnet2"):
        backbone("pointnet", 6, True)


def test_noise_on_the_extras_touches_them_alone_and_in_training_only():
    make = GripperCloud(OBSERVATION, extras=["opening"], extras_noise=0.2)
    one = tensors(clouds(3))
    clean, noisy = make(one), make(one, torch.Generator().manual_seed(0))
    assert torch.equal(clean.points[:, :-1], noisy.points[:, :-1])
    assert torch.equal(clean.points[:, -1, :-1], noisy.points[:, -1, :-1])
    off = noisy.points[:, -1, -1] - clean.points[:, -1, -1]
    assert 0 < off.abs().max() < 1
    with pytest.raises(SpecError, match=r"extras_noise=-0\.1"):
        GripperCloud(OBSERVATION, extras_noise=-0.1)


@nets
@pytest.mark.parametrize("dense", [True, False])
def test_networks_look_at_sets_of_points_and_at_no_padding(net, dense):
    observation = tensors(clouds(4))
    encoder = actor(net, dense=dense).encoder
    value = encoder(observation)
    shuffled = {**observation, POINTS: observation[POINTS][:, :, torch.randperm(12)]}
    assert torch.allclose(encoder(shuffled), value, atol=1e-5)
    fewer = {**observation, POINTS: observation[POINTS][:, :, :9]}
    narrow = CloudEncoder(
        observation={**OBSERVATION, POINTS: FeatureSpec((9, 5))},
        obs_horizon=1,
        normalizer=encoder.normalizer,
        net=net,
        options=SMALL[net],
        dense=dense,
    )
    narrow.net.load_state_dict(encoder.net.state_dict())
    assert torch.allclose(narrow(fewer), value, atol=1e-5)


@nets
@pytest.mark.parametrize("attach", ["points", "latent", "both"])
def test_values_depend_on_the_action_and_each_head_has_its_own(net, attach):
    judge = critic(net, attach=attach, num_heads=3, dense=net == "balls")
    cloud = judge.cloud(tensors(clouds(5)))
    a, b = torch.full((5, 1, 2), -0.5), torch.full((5, 1, 2), 0.5)
    assert judge.values(cloud, a).shape == (3, 5)
    assert ((judge.values(cloud, a) - judge.values(cloud, b)).abs() > 1e-6).all()
    assert judge.values(cloud, a).std(0).min() > 1e-4
    action = a.clone().requires_grad_()
    judge.values(cloud, action).sum().backward()
    assert (action.grad.abs() > 0).all()


# contracts


def test_the_actor_is_a_policy_and_the_critic_a_critic(tmp_path):
    policy, judge, observation = actor().eval(), critic().eval(), clouds(3)
    assert isinstance(policy, Policy)
    assert isinstance(judge, Critic)
    samples = policy.sample(observation, 5, seed=1)
    assert samples.shape == (3, 5, 1, 2)
    assert samples.dtype == np.float32
    assert (np.abs(samples) <= HIGH + 1e-6).all()
    assert np.array_equal(policy.sample(observation, 2, seed=9)[:, 0], samples[:, 0])  # what it does on its own
    assert np.array_equal(policy.sample(observation, 5, seed=1), samples)
    assert policy.features(observation).shape == (3, policy.encoder.width)
    density = policy.log_prob(observation, samples)
    assert density.shape == (3, 5)
    context = judge.encode(observation)
    scores = judge.score(context, samples)
    assert scores.shape == (2, 3, 5)
    assert np.allclose(judge.score(context, samples[:, 3:4])[..., 0], scores[..., 3], atol=1e-5)
    for kind, module in (("policy", policy), ("critic", judge)):
        checkpoint.save(tmp_path / kind, module.state_dict(), NODES, {"kind": kind, "spec": module.spec.to_dict()})
    assert np.array_equal(load_policy(tmp_path / "policy").sample(observation, 5, seed=1), samples)
    assert np.array_equal(load_critic(tmp_path / "critic").score(context, samples), scores)
    with pytest.raises(checkpoint.CheckpointError, match="not a critic"):
        load_critic(tmp_path / "policy")


def test_the_critic_steers_a_policy_of_another_kind():
    base = BehaviourCloningPolicy(OBSERVATION, ACTIONS, 20.0, action_horizon=4, execute_horizon=2, width=16)
    base.fit(rl.bound_statistics(base.observation, LOW, HIGH))
    steered = SteeredPolicy(base.eval(), critic().eval(), num_samples=6, margin=0.0, rule="argmax")
    decision = steered.decide(clouds(4), seed=0)
    best = decision.scores.mean(0)
    assert (best[np.arange(4), decision.index] >= best[:, 0] - 1e-6).all()
    assert steered.sample(clouds(4), seed=0).shape == (4, 1, 4, 2)


def test_a_squashed_density_adds_up_to_one():
    edges = torch.linspace(-0.99999, 0.99999, 200_001, dtype=torch.float64)
    for mean, std in ((0.3, 0.5), (-1.5, 0.2)):
        density = squashed_log_prob(torch.tensor(mean), torch.tensor(std), torch.atanh(edges)).exp()
        assert torch.trapezoid(density, edges).item() == pytest.approx(1, abs=2e-3)


def test_alone_both_learn_from_a_dataset(generator):
    for module in (actor(), critic()):
        batch = fake_batch(module.observation, ACTIONS, 1, 1, 4, generator)
        batch[ACTION] = batch[ACTION].clamp(-1, 1) * torch.from_numpy(HIGH).float()
        optimizer = torch.optim.Adam(module.parameters(), 1e-2)
        first, _ = module.loss(module.phases[0].name, batch, generator)
        for _ in range(80):
            loss, metrics = module.loss(module.phases[0].name, batch, generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert all(np.isfinite(float(value)) for value in metrics.values())
        assert loss < first - 0.5 * abs(first.item())


# learning


def toy(size, rng):
    """A step in which the right action points from the gripper to the only point. It ends there."""
    observation = {STATE: np.zeros((size, 4), np.float32), POINTS: np.zeros((size, 12, 5), np.float32)}
    wanted = rng.uniform(-0.8, 0.8, (size, 2)).astype(np.float32)
    observation[POINTS][:, 0, :2], observation[POINTS][:, 0, 3] = 0.2 * wanted, 1
    return observation, wanted


def toy_transitions(size, rng, action):
    observation, wanted = toy(size, rng)
    now = {key: torch.from_numpy(value)[:, None] for key, value in observation.items()}
    reward = -((torch.from_numpy(action) - torch.from_numpy(wanted)) ** 2).sum(-1)
    over = torch.ones(size, dtype=torch.bool)
    return Transitions(now, torch.from_numpy(action)[:, None], reward, now, torch.full((size,), 0.98), over), wanted


@pytest.mark.parametrize("kind", [SoftActorCritic, TwinDelayed, ImplicitQ])
def test_every_learner_finds_the_better_action(kind):
    learner = kind(actor(), critic(), learning_rate=4e-3, tau=0.05, actor_every=1)
    rng = np.random.default_rng(0)

    def error():
        transitions, wanted = toy_transitions(256, np.random.default_rng(99), np.zeros((256, 2), np.float32))
        mean = torch.tanh(learner.actor.distribution(transitions.now)[0])[:, 0].detach().numpy()
        return float(np.abs(mean - wanted).mean())

    before = error()
    for step in range(300):
        action = rng.uniform(-1, 1, (32, 2)).astype(np.float32)
        transitions, _ = toy_transitions(32, rng, action)
        metrics = learner.update(transitions, 0, step, torch.Generator().manual_seed(step))
    assert all(np.isfinite(float(value)) for value in metrics.values())
    assert error() < 0.6 * before


def test_a_head_with_layer_norms_does_not_care_for_the_scale_of_its_features():
    observation, action = tensors(clouds(6)), torch.rand(6, 1, 2)
    for layer_norm in (False, True):
        judge = critic(layer_norm=layer_norm)
        values = judge.values(judge.cloud(observation), action)
        with torch.no_grad():
            judge.heads[0].weight.mul_(50)
            judge.heads[0].bias.mul_(50)
        other = judge.values(judge.cloud(observation), action)
        assert values.shape == (2, 6)
        assert torch.allclose(values, other, atol=5e-3) == layer_norm


def test_the_spread_of_td3_becomes_that_of_its_exploration():
    learner = TwinDelayed(actor(), critic(), learning_rate=4e-3, actor_every=1, exploration=0.1)
    rng = np.random.default_rng(0)
    for step in range(200):
        transitions, _ = toy_transitions(32, rng, rng.uniform(-1, 1, (32, 2)).astype(np.float32))
        learner.update(transitions, 0, step, torch.Generator().manual_seed(step))
    policy, (observation, _) = learner.actor.eval(), toy(16, rng)
    samples = policy.sample({key: value[:, None] for key, value in observation.items()}, 64, seed=0)[:, 1:, 0] / HIGH
    assert 0.07 < samples.std(1).mean() < 0.14


def test_a_single_transition_is_a_batch_too():
    learner = ImplicitQ(actor(), critic())
    transitions, _ = toy_transitions(1, np.random.default_rng(0), np.zeros((1, 2), np.float32))
    metrics = learner.update(transitions, 0, 0, torch.Generator().manual_seed(0))
    assert all(np.isfinite(float(value)) for value in metrics.values())


def test_what_ends_is_worth_no_more_and_what_is_cut_off_is(generator):
    learner = SoftActorCritic(actor(), critic(), gamma=0.9)
    with torch.no_grad():
        learner.target.heads[-1].bias.fill_(10.0)
    transitions, _ = toy_transitions(32, np.random.default_rng(0), np.zeros((32, 2), np.float32))
    cut = replace(transitions, ended=~transitions.ended)
    ended = learner.critic_loss(transitions, generator)[1]["value"].item()
    assert ended == pytest.approx(transitions.reward.mean().item(), abs=1e-5)
    assert learner.critic_loss(cut, generator)[1]["value"] > ended + 5


def test_distances_between_gaussians():
    a, b = torch.randn(2, 4, 1, 2), torch.rand(2, 4, 1, 2) + 0.1
    normal = torch.distributions.Normal
    assert torch.allclose(kl(a[0], b[0], a[1], b[1]), torch.distributions.kl_divergence(normal(a[1], b[1]), normal(a[0], b[0])))
    assert torch.equal(wasserstein(a[0], b[0], a[0], b[0]), torch.zeros(4, 1, 2))
    assert (wasserstein(a[0], b[0], a[1], b[1]) > 0).all()


@pytest.mark.parametrize("kind", ["wasserstein", "kl", "imitation"])
def test_a_student_of_spoilt_clouds_comes_to_act_like_its_teacher(kind, generator):
    teachers = [actor() for _ in range(2)]
    for sign, teacher in zip((-1, 1), teachers, strict=True):
        with torch.no_grad():
            teacher.head[-1].bias.copy_(torch.tensor([sign * 1.0, -sign * 0.5, -1.0, -1.0]))
    learner = SoftActorCritic(actor(noise={}), critic(), learning_rate=3e-3)
    learner.distillation = Distillation(teachers, kind, weight=1.0, rl_weight=0.0)
    now = tensors(clouds(64))
    nothing = torch.zeros(64)
    transitions = Transitions(now, torch.zeros(64, 1, 2), nothing, now, nothing + 0.98, nothing.bool())
    for step in range(80):
        learner.update(transitions, 1, step, torch.Generator().manual_seed(step))
    mean = torch.tanh(learner.actor.distribution(now)[0]).mean(0)
    gaps = [(mean - torch.tanh(teacher.distribution(now)[0]).mean(0)).abs().max() for teacher in teachers]
    assert gaps[1] < 0.15 < gaps[0]
    with pytest.raises(ValueError, match="did you mean 'kl'"):
        Distillation(teachers, "kll")


def test_a_teacher_of_other_units_teaches_the_same_motion(generator):
    teacher, student = actor(), actor()
    teacher.fit(rl.bound_statistics(teacher.observation, LOW / 4, HIGH / 2))
    now = tensors(clouds(8))
    mean, std = (value.detach() for value in in_units_of(student, teacher, now))
    physical = [
        one.normalizer.denormalize(ACTION, torch.tanh(value.detach()))
        for one, value in ((teacher, teacher.distribution(now)[0]), (student, mean))
    ]
    assert torch.allclose(*physical, atol=1e-5)
    assert torch.allclose(std, 0.375 * teacher.distribution(now)[1])
    assert torch.allclose(in_units_of(student, student, now)[0], student.distribution(now)[0], atol=1e-4)


def test_a_teacher_of_another_rate_is_refused(tmp_path):
    slow = PointActor(OBSERVATION, ACTIONS, 10.0, encoder=partial(CloudEncoder, options=SMALL["balls"]), hidden=(32,))
    slow.fit(rl.bound_statistics(slow.observation, LOW, HIGH))
    checkpoint.save(tmp_path, slow.state_dict(), NODES, {"kind": "policy", "spec": slow.spec.to_dict()})
    with pytest.raises(ConfigError, match=r"control_hz as 10\.0, its student as 20\.0"):
        distillation({"teachers": {"all": tmp_path}}, ["all"], actor())


# the buffer and the loop


def test_the_buffer_forgets_the_oldest_of_a_group_and_comes_back_as_it_was():
    buffer = ReplayBuffer(OBSERVATION, (1, 2), 5, groups=2)
    observation = {STATE: np.zeros(4, np.float32), POINTS: np.zeros((12, 5), np.float32)}
    for i in range(8):
        buffer.add(Transition(observation, np.zeros((1, 2)), float(i), observation, i == 7, group=1))
    group, batch = buffer.sample(200, np.random.default_rng(0))
    assert group == 1
    assert set(batch.reward.tolist()) == {3, 4, 5, 6, 7}
    assert torch.equal(batch.ended, batch.reward == 7)
    assert batch.now[POINTS].shape == (200, 1, 12, 5)
    again = ReplayBuffer(OBSERVATION, (1, 2), 5, groups=2)
    again.restore(buffer.state())
    other = again.sample(200, np.random.default_rng(0))[1]
    assert torch.equal(other.reward, batch.reward)
    assert len(again) == len(buffer) == 5


def test_rewards_of_n_steps_are_those_of_the_episode_and_stop_where_it_does():
    buffer = ReplayBuffer(OBSERVATION, (1, 2), 64, groups=1)
    rng, gamma, n = np.random.default_rng(0), 0.9, 3
    rewards: dict[float, list[float]] = {}
    last = {0: -1, 1: -1}
    for number in range(100):  # two episodes at a time, of 11 steps; those of the first end, those of the second are cut off
        episode, step = number % 2, number // 2 % 11
        if step == 0:
            last[episode] = -1
        start = 16.0 * (number // 22 * 2 + episode)
        now, following = ({STATE: np.full(4, start + step + i), POINTS: np.zeros((12, 5))} for i in (0, 1))
        rewards.setdefault(start, []).append(rng.uniform())
        found = Transition(now, np.zeros((1, 2)), rewards[start][-1], following, episode == 0 and step == 10)
        last[episode] = buffer.add(found, last[episode])
    _, batch = buffer.sample(400, rng, steps=n, gamma=gamma)
    seen = set()
    for index in range(400):
        at, then = batch.now[STATE][index, 0, 0].item(), batch.following[STATE][index, 0, 0].item()
        start, step = at // 16 * 16, int(at % 16)
        summed = rewards[start][step : step + n]
        assert then == at + len(summed)
        assert batch.reward[index].item() == pytest.approx(sum(gamma**i * x for i, x in enumerate(summed)), abs=1e-5)
        assert batch.discount[index].item() == pytest.approx(gamma ** len(summed), abs=1e-6)
        assert batch.ended[index].item() == (start % 32 == 0 and step + len(summed) == 11)
        seen.add(len(summed))
    assert seen == {1, 2, 3}


class Reaching(gymnasium.Env):
    """Move the gripper to the point; eight steps."""

    def __init__(self):
        self.action_space = gymnasium.spaces.Box(LOW.astype(np.float32), HIGH.astype(np.float32))
        self.observation_space = gymnasium.spaces.Dict(
            {k: gymnasium.spaces.Box(-9, 9, f.shape) for k, f in OBSERVATION.items()}
        )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.goal = self.np_random.uniform(-0.05, 0.05, 2) + (options or {}).get("shift", 0.0)
        self.at, self.time = np.zeros(2), 0
        return self._see(), {}

    def _see(self):
        points = np.zeros((12, 5), np.float32)
        points[0] = [*self.goal, 0, 1, 0]
        return {STATE: np.array([*self.at, 0, 0], np.float32), POINTS: points}

    def step(self, action):
        self.at, self.time = self.at + action, self.time + 1
        gap = float(np.linalg.norm(self.at - self.goal))
        bad = self.np_random.random() < 0.05
        return self._see(), -gap, False, self.time == 8 or bad, {"gap": gap, "fault": "lost" if bad else ""}


class Broken(Reaching):
    """Its first steps end in a fault."""

    def __init__(self, steps):
        super().__init__()
        self.left = steps

    def step(self, action):
        *found, over, info = super().step(action)
        self.left -= 1
        return (*found, over, info) if self.left < 0 else (*found, True, {**info, "fault": "torn"})


GROUPS = {"here": {}, "there": {"shift": 0.03}}


class KilledError(Exception):
    """The plug is pulled."""


def loop(run_dir, resume=False, stop=None, env=Reaching, **settings):
    torch.manual_seed(5)
    learner = SoftActorCritic(actor(noise={}), critic())
    if stop is not None:
        update = learner.update

        def dying(transitions, group, step, generator):
            if step == stop:
                raise KilledError
            return update(transitions, group, step, generator)

        learner.update = dying
    world = rl.World(partial(VectorEnv, env), GROUPS, LOW, HIGH)
    options = {
        "steps": 40,
        "warmup": 6,
        "log_every": 5,
        "evaluate_every": 20,
        "evaluate_episodes": 2,
        "batch_size": 8,
        "n_step": 3,
        "progress": False,
    }
    config = rl.RLConfig(**{**options, "save_every_seconds": 0.0, "resume": resume, **settings})
    nodes = {"policy": {"a": 1}, "critic": {"b": 2}}
    return rl.train(learner, world, run_dir, config=nodes, settings=config), learner


def rows(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in lines]


def test_a_killed_run_resumes_as_if_it_had_never_stopped(tmp_path):
    whole, learner = loop(tmp_path / "whole")
    for stop in (55,):
        with pytest.raises(KilledError):
            loop(tmp_path / f"cut{stop}", stop=stop)
        pieces, other = loop(tmp_path / f"cut{stop}", resume=True)
        assert rows(tmp_path / "whole") == rows(tmp_path / f"cut{stop}")
        for name, value in learner.tensors().items():
            assert torch.equal(value, other.tensors()[name]), name
        assert [p.name for p in pieces] == [p.name for p in whole] == ["step_000020", "step_000040"]
    assert not (tmp_path / "whole" / "resume").exists()
    with pytest.raises(TrainingError, match=r"already holds a run: continue it with rl\.train\.resume=true"):
        loop(tmp_path / "whole")


def test_a_finished_run_that_resumes_is_left_as_it_is(tmp_path):
    found, learner = loop(tmp_path / "run", steps=12)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    again, other = loop(tmp_path / "run", resume=True, stop=0, steps=12)
    assert again == found
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    for name in ("actor", "critic"):
        for key, value in learner.modules[name].state_dict().items():
            assert torch.equal(value, other.modules[name].state_dict()[key]), (name, key)
    shutil.rmtree(tmp_path / "run" / "critic")
    with pytest.raises(KilledError):
        loop(tmp_path / "run", resume=True, stop=12, steps=12)


def test_faults_are_not_learned_from_and_scores_are_of_every_group(tmp_path):
    loop(tmp_path / "run")
    last = rows(tmp_path / "run")[-1]
    assert last["faults"] > 0
    assert last["transitions"] == 80 - last["faults"]
    judged = next(row for row in rows(tmp_path / "run") if row["phase"] == "evaluation")
    assert {"here/gap", "there/gap"} <= set(judged)
    assert best_checkpoint(tmp_path / "run", "gap").parent == tmp_path / "run" / "checkpoints"


def test_a_run_is_evaluated_on_the_same_episodes_throughout_and_another_seed_on_others(tmp_path, monkeypatch):
    played = []
    monkeypatch.setattr(rl, "play", lambda envs, act, starts: played.append([start.seed for start in starts]) or [])
    for seed in (0, 1):
        loop(tmp_path / str(seed), seed=seed)
    first, second = played[:4], played[4:]  # two evaluations of two groups each
    assert first[:2] == first[2:]
    assert second[:2] == second[2:]
    assert len({start for group in (*first[:2], *second[:2]) for start in group}) == 2 * 2 * 2


def test_a_run_waits_for_sound_steps_but_not_for_ever(tmp_path):
    loop(tmp_path / "late", env=partial(Broken, 12), steps=20, evaluate_episodes=0)
    last = rows(tmp_path / "late")[-1]
    assert last["faults"] >= 24
    assert np.isfinite(last["critic_loss"])
    with pytest.raises(TrainingError, match="all 214 steps of 107 rounds ended in a fault, the last in 'torn'"):
        loop(tmp_path / "never", env=partial(Broken, 10**6), steps=200, evaluate_episodes=0)


def test_processes_change_nothing():
    make = partial(new_environment, "robopolicy/Dress-v0", {"region": "bent"})
    found = []
    for workers in (0, 1):
        with VectorEnv(make, 2, workers) as envs:
            first = envs.reset({0: Start(3), 1: Start(4, {"region": "straight"}, (np.full(4, 0.01, np.float32),))})
            found.append([first, envs.step([np.full(4, 0.02, np.float32)] * 2)])
    for index in (0, 1):
        assert np.array_equal(found[0][0][index][POINTS], found[1][0][index][POINTS])
        a, b = found[0][1][index], found[1][1][index]
        assert np.array_equal(a.observation[POINTS], b.observation[POINTS])
        assert (a.reward, a.info) == (b.reward, b.info)


def test_a_process_that_hangs_is_ended_and_named(monkeypatch):
    with VectorEnv(Reaching, 1, 1) as envs:
        envs.reset({0: Start(0)})
        monkeypatch.setattr("robopolicy.data.vector.STALLED_S", 0.2)
        [member] = envs._members
        with pytest.raises(ChildProcessError, match=r"did not answer for 0\.2 s: resume the run"):
            member.receive()  # nothing was asked
        member._process.join(10)
        assert not member._process.is_alive()


def test_a_process_that_died_is_named_when_it_is_told_and_when_it_is_heard():
    with VectorEnv(Reaching, 1, 1) as envs:
        [member] = envs._members
        member._process.kill()
        member._process.join()
        for asked in (lambda: envs.reset({0: Start(0)}), member.receive):
            with pytest.raises(ChildProcessError, match="process exited with -9; resume the run"):
                asked()


def test_the_best_checkpoint_is_by_the_first_score_that_a_run_has(tmp_path):
    for run, scores in {"dress": ("upper_ratio", "success"), "lift": ("success", "progress")}.items():
        for step, values in ((1, (0.5, 0.2)), (2, (0.4, 0.9))):
            metrics = {f"all/{name}": value for name, value in zip(scores, values, strict=True)}
            checkpoint.save(checkpoint.step_folder(tmp_path / run, step), actor().state_dict(), NODES, {"metrics": metrics})
        assert best_checkpoint(tmp_path / run).name == "step_000001"
    assert best_checkpoint(tmp_path / "lift", "progress").name == "step_000002"


def small(tmp_path, *overrides, experiment="dress"):
    given = [
        f"experiment={experiment}",
        "rl.train.steps=4",
        "rl.train.warmup=2",
        "rl.train.batch_size=4",
        "rl.train.evaluate_episodes=1",
    ]
    given += ["policy.hidden=[16]", "critic.hidden=[16]", "rl.train.progress=false"]
    return to_plain(compose("train", [*given, *overrides]))


def test_experiment_dress_trains_an_actor_and_a_critic_that_load(tmp_path):
    found = train_run(small(tmp_path), tmp_path / "run")
    policy, judge = load_policy(found[-1]), load_critic(tmp_path / "run" / "critic" / "checkpoints" / "step_000004")
    env = new_environment("robopolicy/Dress-v0", {})
    observation, _ = env.reset(seed=0)
    batch = {key: value[None, None] for key, value in observation.items()}
    actions = SteeredPolicy(policy, judge, num_samples=4).sample(batch, 2, seed=0)
    assert all(env.action_space.contains(action) for action in actions[0, :, 0])
    env.close()
    metrics = checkpoint.describe(found[-1])[1]["metrics"]
    assert {"all/upper_ratio", "all/whole_ratio", "all/success"} <= set(metrics)


def test_evaluation_tells_how_far_the_arm_is_dressed(tmp_path):
    given = ["task=dress", "+task.env.max_episode_steps=3", f"checkpoint={tmp_path / 'step_000001'}"]
    settings = to_plain(compose("evaluate", [*given, f"out={tmp_path / 's.parquet'}", "episodes=2", "num_workers=0"]))
    env = new_environment("robopolicy/Dress-v0", {})
    features, action = env.unwrapped.features, env.unwrapped.action_spec
    env.close()
    policy = PointActor(features, action, 20.0, encoder=partial(CloudEncoder, options=SMALL["balls"]), hidden=(32,))
    policy.fit(rl.bound_statistics(policy.observation, env.action_space.low, env.action_space.high))
    meta = {"kind": "policy", "spec": policy.spec.to_dict()}
    checkpoint.save(tmp_path / "step_000001", policy.state_dict(), NODES, meta)
    lines = evaluate_run(settings)
    scores = pq.read_table(tmp_path / "s.parquet")
    assert scores["fault"].to_pylist() == ["", ""]
    peak = np.mean(scores["peak_force_n"].to_pylist())
    assert lines[1:] == [f"  mean upper_ratio 0, whole_ratio 0, peak_force_n {peak:.3g}"]


def test_the_rigid_task_trains_too(tmp_path):
    found = train_run(small(tmp_path, "rl.train.num_envs=1", experiment="lift_rl"), tmp_path / "run")
    assert "all/success" in checkpoint.describe(found[-1])[1]["metrics"]
    assert load_policy(found[-1]).spec.action_dim == 7


def test_iql_learns_from_demonstrations_alone(tmp_path):
    data = collect(
        tmp_path / "data",
        "robopolicy/Dress-v0",
        {"region": "bent", "observation": ["state", "points"]},
        {"expert": 1},
        seed=0,
        num_workers=0,
    )
    settings = small(
        tmp_path, "rl=iql", f"rl.train.demonstrations={data.path}", "rl.train.steps=4", "rl.train.evaluate_episodes=0"
    )
    found = train_run(settings, tmp_path / "run")
    row = rows(tmp_path / "run")[-1]
    assert row["transitions"] == 59
    assert np.isfinite(row["critic_loss"])
    assert row["weight"] > 0
    resolved, meta = checkpoint.describe(found[-1])
    assert (resolved["data"], meta["data_hash"]) == ({"path": str(data.path)}, data.hash)


def dataset(path, shorts=("state", "points"), num_points=96, unit="m, rad", fps=20.0):
    """A dataset of dressing, one episode of two steps."""
    features = {
        **dress_sensors.features(shorts, 96, num_points),
        ACTION: FeatureSpec((4,), unit=unit, names=("dx", "dy", "dz", "yaw")),
        REWARD: FeatureSpec(()),
        TERMINATED: FeatureSpec((), "bool"),
    }
    writer = EpisodeWriter(path, DatasetSpec(features, fps))
    writer.add({key: np.zeros((2, *feature.shape), feature.dtype) for key, feature in features.items()})
    return path


def test_mistakes_in_settings_are_named(tmp_path):
    teacher, other = actor(), tmp_path / "other"
    checkpoint.save(other, teacher.state_dict(), NODES, {"kind": "policy", "spec": teacher.spec.to_dict()})
    for overrides, message in (
        (["rl=iql"], "give rl.train.demonstrations"),
        (["rl.train.updates=0"], "rl.train.updates=0"),
        (["rl.train.device=gpu"], "rl.train.device='gpu'"),
        (["rl.train.device=cuda:99"], "use rl.train.device=cpu"),
        (["train.steps=77"], "train.steps=77 says nothing .* give rl.train"),
        (["data.path=x"], "give rl.train.demonstrations"),
        (["critic.attach=point"], "did you mean 'points'"),
        (["policy.action_horizon=4"], "give policy.action_horizon=1"),
        (["critic.num_heads=0"], "num_heads=0 must be at least 1"),
        (["rl.learner.temperature=0"], "temperature=0 must be above 0"),
        (["policy.encoder.noise={dropot: 0.2}"], r"unknown key 'noise\.dropot': did you mean 'dropout'"),
        (["policy.encoder.noise={dropout: 2}"], "dropout=2.0 is a share below 1"),
        (["rl.distil={weight: abc}"], r"rl\.distil\.weight='abc' does not work: give a number"),
        (["rl.distil={teachers: {al: x}}"], "did you mean 'all'"),
        (["rl.distil={teachers: {}}"], "lacks 'all'"),
        (["rl.distil={teacher: {}}"], "did you mean 'teachers'"),
        ([f"rl.distil={{teachers: {{all: '{other}'}}}}"], r"observation.state .*shape=\(4,\).*its student .*shape=\(9,\)"),
        (["rl.groups={a: {}, b: {}}", "rl.train.demonstrations=x"], "give one group"),
        (["rl.groups={a: {region: foldet}}"], "rl.groups.a=.*did you mean 'folded'"),
        (["rl.groups={a: {region: 5}}"], "rl.groups.a=.*region='5'"),
        (["rl.groups={a: 3}"], "rl.groups.a=3"),
        (["rl.groups=[a]"], "rl.groups=.*give {name"),
        (["rl.train.demonstrations=nowhere"], "no dataset at nowhere"),
        ([f"rl.train.demonstrations={dataset(tmp_path / 'blind', ['state'])}"], "blind lacks 'observation.points'"),
        ([f"rl.train.demonstrations={dataset(tmp_path / 'few', num_points=64)}"], r"few has .*\(64, 5\), the task \(96, 5\)"),
        ([f"rl.train.demonstrations={dataset(tmp_path / 'mm', unit='mm, rad')}"], "mm has 'action' with unit 'mm, rad'"),
        ([f"rl.train.demonstrations={dataset(tmp_path / 'slow', fps=10.0)}"], "slow has 10 steps a second, the task 20"),
    ):
        with pytest.raises((ValueError, ConfigError), match=message):
            train_run(small(tmp_path, *overrides), tmp_path / "run")
    with pytest.raises(ConfigError, match="give critic=point_q"):
        train_run({**small(tmp_path), "critic": None}, tmp_path / "run")
    other = {**small(tmp_path), "policy": {"_target_": "robopolicy.policies.bc.BehaviourCloningPolicy"}}
    with pytest.raises(ConfigError, match="rl needs a PointActor"):
        train_run(other, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# the benchmark


def test_seeds_that_disagree_make_intervals_wide():
    seeds = np.repeat([[0.0], [1.0], [1.0], [1.0]], 50, axis=1)
    low, high = bench_pointq.interval(seeds, binary=True)
    assert low < 0.3
    assert high == 1
    episodes = np.random.default_rng(0).normal(0.5, 0.1, (1, 400)).repeat(4, 0)  # the same ones under all seeds
    low, high = bench_pointq.interval(episodes)
    assert high - low == pytest.approx(4 * 0.1 / np.sqrt(400), rel=0.2)


def test_arms_are_compared_episode_by_episode():
    rng = np.random.default_rng(0)
    hard = rng.uniform(0, 0.8, 60)  # how hard episodes are matters more than which arm plays them

    def cells(gain, unseen):
        ratios = [{"upper_ratio": list(hard + gain + rng.normal(0, 0.01, 60))} for _ in range(3)]
        return [one | ({"unseen": {"upper_ratio": list(hard - gain)}} if unseen else {}) for one in ratios]

    found = bench_pointq.differences(
        {"expert": cells(0.5, False)[:1], "dense": cells(0.1, True), "latent": cells(0.0, True), "bc": cells(0.2, False)}
    )
    assert set(found) == {"dense - latent", "dense - latent, unseen garments", "dense - bc"}
    assert found["dense - latent"]["upper"] == pytest.approx(0.1, abs=0.005)
    low, high = found["dense - latent"]["ci"]
    assert 0.09 < low < high < 0.11
    assert found["dense - latent, unseen garments"]["upper"] == pytest.approx(-0.1)
    assert found["dense - bc"]["ci"][1] < 0


def test_teachers_and_demonstrations_of_other_settings_lie_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_pointq, "collect", lambda *_, **__: None)
    base = {"garments": ["shirt"], "demonstrations": 4, "bc_updates": 9, "set": [], "teacher_rounds": 5, "episodes": 1}

    def places(**changed):
        bench = bench_pointq.Bench(Namespace(cells=tmp_path, **{**base, **changed}))
        return bench.teacher("bent", 0), bench.demonstrated("dress", "bent")

    teacher, data = places()
    assert places() == (teacher, data)
    for changed in ({"garments": ["gown"]}, {"demonstrations": 5}):
        assert not {teacher, data} & set(places(**changed))
    for changed in ({"bc_updates": 10}, {"set": ["rl.train.batch_size=8"]}):
        assert places(**changed)[0] != teacher
