"""One battery for all trainable policies, then steering, execution and loading."""

import functools
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from robopolicy import checkpoint
from robopolicy.batch import fake_batch
from robopolicy.data.transforms import Normalizer, vector_statistics
from robopolicy.models.chunk_transformer import ChunkTransformer, TimedChunkTransformer
from robopolicy.models.coarse_to_fine import CoarseToFineTransformer
from robopolicy.models.critic import SuccessCritic
from robopolicy.models.encoders import ObservationEncoder
from robopolicy.models.tokenizer import MultiScaleTokenizer
from robopolicy.policies.act import ActPolicy
from robopolicy.policies.autoregressive import AutoregressivePolicy
from robopolicy.policies.bc import BehaviourCloningPolicy
from robopolicy.policies.candidates import smooth_noise
from robopolicy.policies.carp import CarpPolicy
from robopolicy.policies.diffusion import DiffusionPolicy
from robopolicy.policies.flow import FlowPolicy
from robopolicy.policies.load import load_critic, load_policy
from robopolicy.policies.mip import MipPolicy
from robopolicy.policies.selection import Selection, select
from robopolicy.policies.steering import SteeredPolicy
from robopolicy.policies.wrappers import ChunkExecutor, Exploring, Perturbed
from robopolicy.spec import (
    ACTION,
    ACTION_IS_PAD,
    ENVIRONMENT_STATE,
    OUTCOME,
    POINTS,
    STATE,
    Critic,
    CriticSpec,
    FeatureSpec,
    Policy,
    PolicySpec,
    SpecError,
    image_key,
)

NAMES = ("x", "y", "z", "gripper")
WORLDS = {
    "state": ({STATE: FeatureSpec((3,))}, FeatureSpec((2,), unit="m"), {}),
    "images": ({image_key("front"): FeatureSpec((20, 24, 3), "uint8")}, FeatureSpec((3,)), {"obs_horizon": 1}),
    "points": (
        {STATE: FeatureSpec((4,), names=NAMES), POINTS: FeatureSpec((11, 5)), ENVIRONMENT_STATE: FeatureSpec((6,))},
        FeatureSpec((7,), names=tuple("abcdefg")),
        {"action_horizon": 5, "execute_horizon": 3},
    ),
}
SMALL_TOKENIZER = {"width": 16, "levels": (4, 3), "scales": (1, 2, 3)}
SMALL = {"width": 16, "depth": 2, "num_heads": 2}
CHUNKS, TIMED = functools.partial(ChunkTransformer, **SMALL), functools.partial(TimedChunkTransformer, **SMALL)
HYPER = {
    CarpPolicy: {
        "tokenizer": functools.partial(MultiScaleTokenizer, **SMALL_TOKENIZER),
        "transformer": functools.partial(CoarseToFineTransformer, **SMALL),
    },
    BehaviourCloningPolicy: {"width": 32},
    DiffusionPolicy: {"transformer": TIMED, "sampler": "ddim"},
    FlowPolicy: {"transformer": TIMED},
    MipPolicy: {"transformer": TIMED},
    ActPolicy: {"transformer": CHUNKS},
    AutoregressivePolicy: {"transformer": CHUNKS, "num_bins": 32},
}
PARTIAL = {"_partial_": True, **SMALL}
DRAWN = (DiffusionPolicy, FlowPolicy)  # their candidate 0 starts from noise
HORIZONS = {"obs_horizon": 2, "action_horizon": 8, "execute_horizon": 4}


def make(kind, world="state", **options):
    observation, action, horizons = WORLDS[world]
    center = ["x", "y", "z"] if POINTS in observation else []
    encoder = functools.partial(ObservationEncoder, width=16, points_center=center)
    return kind(observation, action, 20.0, encoder=encoder, **{**HORIZONS, **horizons, **HYPER[kind], **options})


def batch_for(policy, size, generator):
    spec = policy.spec
    return fake_batch(spec.observation, spec.action, spec.obs_horizon, spec.action_horizon, size, generator)


def observation_for(policy, size, generator):
    return {key: value.numpy() for key, value in batch_for(policy, size, generator).items() if key in policy.spec.observation}


every_policy = pytest.mark.parametrize("kind", HYPER, ids=lambda kind: kind.__name__)
every_world = pytest.mark.parametrize("world", WORLDS)


# training


@every_policy
@every_world
def test_each_phase_has_a_finite_loss_and_trains_all_its_parameters_and_no_others(kind, world, generator):
    policy = make(kind, world)
    assert sum(phase.fraction for phase in policy.phases) == pytest.approx(1)
    trained = []
    for phase in policy.phases:
        policy.zero_grad(set_to_none=True)
        parameters = policy.phase_parameters(phase.name)
        loss, metrics = policy.loss(phase.name, batch_for(policy, 3, generator), generator)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(np.isfinite(float(value)) for value in metrics.values())
        reached = {id(p) for p in policy.parameters() if p.grad is not None}
        assert reached == {id(p) for p in parameters}
        trained += parameters
    assert {id(p) for p in trained} == {id(p) for p in policy.parameters()}
    assert len(trained) == len(set(map(id, trained)))


@every_policy
def test_four_samples_are_overfitted(kind, generator):
    policy = make(kind)
    batch = {**batch_for(policy, 4, generator), ACTION_IS_PAD: torch.zeros((4, 8), dtype=torch.bool)}
    batch[ACTION] = batch[ACTION].cumsum(1) / 4
    observation = {key: batch[key].numpy() for key in policy.spec.observation}
    error = [np.abs(policy.sample(observation, seed=0)[:, 0] - batch[ACTION].numpy()).mean()]
    for phase in policy.phases:
        parameters = policy.phase_parameters(phase.name)
        optimizer = torch.optim.Adam(parameters, 5e-3)
        losses = []
        for _ in range(150):
            loss, _ = policy.loss(phase.name, batch, generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert np.mean(losses[-5:]) < 0.7 * losses[0]
    error.append(np.abs(policy.sample(observation, seed=0)[:, 0] - batch[ACTION].numpy()).mean())
    assert error[1] < 0.4 * error[0]


@every_policy
def test_padded_actions_do_not_decide_a_regression_loss(kind, generator):
    policy = make(kind)
    batch = batch_for(policy, 3, generator)
    changed = {**batch, ACTION: torch.where(batch[ACTION_IS_PAD][..., None], 100.0, batch[ACTION])}
    losses = [policy.loss("policy", b, torch.Generator().manual_seed(1))[0].item() for b in (batch, changed)]
    if kind is BehaviourCloningPolicy:
        assert losses[0] == losses[1]
    else:  # a chunk is one thing, held last action included
        assert losses[0] != losses[1]


def test_the_losses_of_the_parts_of_a_batch_add_up_to_that_of_the_whole(generator):
    policy = make(BehaviourCloningPolicy)
    batch = batch_for(policy, 4, generator)
    batch[ACTION_IS_PAD] = torch.arange(batch[ACTION].shape[1])[None] >= torch.tensor([1, 2, 16, 16])[:, None]
    parts = [{key: value[rows] for key, value in batch.items()} for rows in (slice(0, 2), slice(2, 4))]
    whole, *losses = (policy.loss("policy", each, torch.Generator())[0].item() for each in (batch, *parts))
    assert whole == pytest.approx(np.mean(losses), rel=1e-5)


@every_policy
def test_an_unknown_phase_is_named(kind, generator):
    policy = make(kind)
    for call in (lambda: policy.phase_parameters("warmup"), lambda: policy.loss("warmup", {}, generator)):
        with pytest.raises(ValueError, match=r"available: (tokenizer, )?policy"):
            call()


# sampling


@every_policy
@every_world
def test_samples_have_the_promised_shape(kind, world, generator):
    policy = make(kind, world)
    chunks = policy.sample(observation_for(policy, 3, generator), num_samples=5, seed=0)
    assert isinstance(policy, Policy)
    assert chunks.shape == (3, 5, policy.spec.action_horizon, policy.spec.action_dim)
    assert chunks.dtype == np.float32
    assert np.isfinite(chunks).all()


@every_policy
def test_samples_are_physical(kind, generator):
    policy = make(kind)
    observation = observation_for(policy, 2, generator)
    before = policy.sample(observation, seed=0)
    actions = np.random.default_rng(0).normal(5.0, 0.01, (500, 2))
    identity = vector_statistics(np.random.default_rng(0).normal(size=(5000, 3)))
    identity["mean"], identity["std"] = np.zeros(3), np.ones(3)
    stats = {STATE: identity, ACTION: vector_statistics(actions)}
    policy.fit(stats)
    half = (stats[ACTION]["q99"] - stats[ACTION]["q01"]) / 2
    middle = (stats[ACTION]["q99"] + stats[ACTION]["q01"]) / 2
    assert np.allclose(policy.sample(observation, seed=0), before * half + middle, rtol=1e-5)


@every_policy
def test_an_entry_that_is_constant_in_the_data_is_so_in_every_candidate(kind, generator):
    policy = make(kind)
    constants = np.array([0.0, 0.3])
    state = vector_statistics(np.random.default_rng(0).normal(size=(100, 3)))
    policy.fit({STATE: state, ACTION: vector_statistics(np.tile(constants, (100, 1)))})
    observation = observation_for(policy, 2, generator)
    for tried in (policy, Perturbed(policy, std=1.0)):
        assert np.allclose(tried.sample(observation, 6, 0), constants, rtol=0, atol=2e-5)


@every_policy
def test_equal_seeds_give_equal_samples_and_others_differ(kind, generator):
    policy = make(kind)
    observation = observation_for(policy, 2, generator)
    first, again, other, free = (policy.sample(observation, 4, seed) for seed in (1, 1, 2, None))
    assert np.array_equal(first, again)
    assert not np.array_equal(first[:, 1:], other[:, 1:])
    assert not np.array_equal(first[:, 1:], free[:, 1:])
    assert first.std(1).max() > 0


@every_policy
def test_sample_zero_depends_on_neither_number_nor_mode_nor_where_it_is_not_drawn_on_the_seed(kind, generator):
    policy = make(kind)
    observation = observation_for(policy, 2, generator)
    alone = policy.train().sample(observation, 1, 3)[:, 0]
    among = policy.eval().sample(observation, 7, 3)[:, 0]
    if kind in DRAWN:  # decoded in one batch with the others: equal but for rounding
        assert np.allclose(alone, among, atol=1e-5)
        assert not np.allclose(alone, policy.sample(observation, 1, 4)[:, 0], atol=1e-3)
    else:
        assert np.array_equal(alone, among)
        assert np.array_equal(alone, policy.sample(observation)[:, 0])


@every_policy
def test_using_a_policy_changes_nothing_in_it(kind, generator):
    policy = make(kind, "points").train()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    observation = observation_for(policy, 2, generator)
    policy.sample(observation, 3)
    policy.features(observation)
    policy.reset()
    assert policy.training
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


@every_policy
def test_a_batch_is_many_single_observations(kind, generator, monkeypatch):
    policy = make(kind, "points")
    if kind in DRAWN:
        monkeypatch.setattr(f"{kind.__module__}.noise_source", lambda shape, *_: lambda: torch.ones(shape).flatten(0, 1))
    observation = observation_for(policy, 3, generator)
    together = policy.sample(observation)
    alone = np.concatenate([policy.sample({k: v[i : i + 1] for k, v in observation.items()}) for i in range(3)])
    assert np.allclose(together, alone, atol=1e-4)


@every_policy
def test_observations_that_do_not_fit_are_refused(kind, generator):
    policy = make(kind)
    good = observation_for(policy, 2, generator)[STATE]
    bad = good.copy()
    bad[1, 0, 2] = np.nan
    cases = {
        "lacks": {},
        "not finite": {STATE: bad},
        "time axis": {STATE: good[:, 0]},
        "dtype": {STATE: good.astype(np.float64)},
        "expected": {STATE: good[..., :2]},
        "frames": {STATE: good[:, :1]},
    }
    for message, observation in cases.items():
        with pytest.raises(SpecError, match=message):
            policy.sample(observation)
    with pytest.raises(SpecError, match="num_samples=0"):
        policy.sample({STATE: good}, 0)


@every_policy
def test_observation_keys_select_what_is_used(kind):
    assert set(make(kind, "points").spec.observation) == {STATE, POINTS}
    chosen = make(kind, "points", observation_keys=[STATE, ENVIRONMENT_STATE])
    assert set(chosen.spec.observation) == {STATE, ENVIRONMENT_STATE}
    with pytest.raises(SpecError, match="did you mean"):
        make(kind, "points", observation_keys=["observation.point"])


@every_policy
def test_actions_that_are_not_float32_are_refused(kind):
    with pytest.raises(SpecError, match="'action' is float64, expected float32"):
        kind({STATE: FeatureSpec((3,))}, FeatureSpec((2,), "float64"), 20.0)


@every_policy
def test_declared_capabilities_exist(kind, generator):
    policy = make(kind)
    observation = observation_for(policy, 2, generator)
    assert "features" in policy.spec.capabilities
    features = policy.features(observation)
    assert features.shape == (2, 16)
    assert features.dtype == np.float32
    assert hasattr(policy, "log_prob") == ("log_prob" in policy.spec.capabilities)
    if "log_prob" in policy.spec.capabilities:
        log_prob = policy.log_prob(observation, policy.sample(observation, 3, 0))
        assert log_prob.shape == (2, 3)
        assert np.isfinite(log_prob).all()
        with pytest.raises(SpecError, match="expected"):
            policy.log_prob(observation, np.zeros((2, 3, 4, 2), np.float32))


@every_policy
def test_a_spec_survives_a_round_trip(kind):
    spec = make(kind, "points").spec
    assert PolicySpec.from_dict(spec.to_dict()) == spec


def test_smooth_noise_has_unit_variance_and_changes_slowly(generator):
    noise = smooth_noise((50, 20, 16, 2), 4, generator, torch.device("cpu"))
    assert noise.shape == (50, 20, 16, 2)
    assert noise.std() == pytest.approx(1, abs=0.05)
    assert (noise[:, :, 1:] - noise[:, :, :-1]).std() == pytest.approx((2 / 4) ** 0.5, abs=0.05)


# steering


class DistanceCritic:
    """Prefers prefixes near a target; head e adds e * `noise` * step 0, so heads may disagree."""

    def __init__(self, spec, target, noise=0.0):
        self.spec = CriticSpec(spec.observation, spec.action, spec.obs_horizon, spec.execute_horizon, 3, spec.control_hz)
        self.target, self.noise = target, noise

    def encode(self, observation):
        return len(next(iter(observation.values())))

    def score(self, context, actions):
        assert actions.shape[0] == context
        assert actions.shape[2] == self.spec.execute_horizon
        distance = np.abs(actions - self.target).mean((2, 3))
        return np.stack([-distance * (1 + self.noise * head * (-1) ** head) for head in range(3)])


@pytest.fixture
def policy():
    return make(BehaviourCloningPolicy, proposal_std=1.0)


def test_a_critic_of_one_opinion_leaves_the_policy_alone(policy, generator):
    observation = observation_for(policy, 3, generator)
    base = policy.sample(observation, 8, 5)
    for rule in ("lcb", "argmax"):
        steered = SteeredPolicy(policy, DistanceCritic(policy.spec, np.zeros(2) * np.nan), num_samples=8, rule=rule)
        steered.critic.score = lambda context, actions: np.ones((3, *actions.shape[:2]))
        assert isinstance(steered, Policy)
        assert isinstance(steered.critic, Critic)
        assert np.array_equal(steered.sample(observation, 8, 5), base)


def test_one_candidate_is_the_policy_itself(policy, generator):
    observation = observation_for(policy, 2, generator)
    steered = SteeredPolicy(policy, DistanceCritic(policy.spec, 3.0), num_samples=1)
    assert np.array_equal(steered.sample(observation), policy.sample(observation))


@pytest.mark.parametrize("rule", ["lcb", "argmax", "softmax"])
def test_the_best_candidate_comes_first_and_the_rest_keep_their_order(policy, generator, rule):
    observation = observation_for(policy, 4, generator)
    candidates = policy.sample(observation, 12, 1)
    steered = SteeredPolicy(policy, DistanceCritic(policy.spec, 2.0), num_samples=12, rule=rule, temperature=1e-6)
    best = np.abs(candidates[:, :, : policy.spec.execute_horizon] - 2.0).mean((2, 3)).argmin(1)
    assert (best != 0).any()
    chunks = steered.sample(observation, 12, 1)
    for b in range(4):
        rest = [n for n in range(12) if n != best[b]]
        assert np.array_equal(chunks[b], candidates[b][[best[b], *rest]])
    assert np.array_equal(steered.sample(observation, 1, 1), chunks[:, :1])
    assert np.array_equal(steered.decide(observation, 1).index, best)
    assert steered.sample(observation, 20, 1).shape[1] == 20


def test_heads_that_disagree_on_the_gain_keep_candidate_zero():
    rng = np.random.default_rng(0)
    agreed = np.array([[[0.0, 0.5]], [[0.2, 0.7]]])  # heads differ in level, agree on the gain
    disputed = np.array([[[0.0, 1.0]], [[0.2, 0.0]]])
    assert select(agreed, Selection(), rng).tolist() == [1]
    assert select(disputed, Selection(), rng).tolist() == [0]
    assert select(disputed, Selection(rule="argmax", margin=0.0), rng).tolist() == [1]
    assert select(disputed, Selection(lcb=5.0, margin=0.0), rng).tolist() == [0]


def test_a_gain_within_the_critics_error_keeps_candidate_zero():
    rng, scores = np.random.default_rng(0), np.array([[[0.0, 0.1], [0.0, 0.3]]])
    assert select(scores, Selection(min_gain=0.2), rng).tolist() == [0, 1]
    with pytest.raises(ValueError, match="min_gain=-1"):
        Selection(min_gain=-1.0)


def test_exploring_executes_a_drawn_candidate(policy, generator):
    observation = observation_for(policy, 3, generator)
    explorer, candidates = Exploring(policy, 4), policy.sample(observation, 4, seed=1)
    drawn = explorer.sample(observation, 4, seed=1)
    for mine, theirs in zip(drawn, candidates, strict=True):
        assert sorted(chunk.tobytes() for chunk in mine) == sorted(chunk.tobytes() for chunk in theirs)
    assert np.array_equal(explorer.sample(observation, 1, seed=1), drawn[:, :1])
    with pytest.raises(SpecError, match="num_samples=0"):
        explorer.sample(observation, 0)


def test_augmentation_happens_in_training_only():
    features = {STATE: FeatureSpec((3,)), POINTS: FeatureSpec((8, 3), unit="m")}
    options = {"vectors": {"noise": 0.3}, "points": {"jitter": 0.05}}
    torch.manual_seed(0)
    encoder = ObservationEncoder(observation=features, obs_horizon=1, normalizer=Normalizer(features), width=8, **options)
    batch = {STATE: torch.randn(2, 1, 3), POINTS: torch.randn(2, 1, 8, 3)}
    assert torch.equal(encoder(batch), encoder(batch))
    generator = torch.Generator().manual_seed(0)
    assert not torch.equal(encoder(batch, generator), encoder(batch, generator))
    again = torch.Generator().manual_seed(0)
    assert torch.equal(encoder(batch, again), encoder(batch, torch.Generator().manual_seed(0)))


def test_softmax_draws_by_value_and_a_flat_critic_draws_evenly():
    rng = np.random.default_rng(0)
    scores = np.broadcast_to(np.array([0.0, 1.0, 2.0]), (2, 6000, 3))
    logits = (scores[0, 0] - 1) / scores[0, 0].std() / 0.5
    expected = np.exp(logits) / np.exp(logits).sum()
    share = np.bincount(select(scores, Selection("softmax", temperature=0.5), rng)) / 6000
    assert np.allclose(share, expected, atol=0.03)
    even = np.bincount(select(np.zeros((2, 6000, 3)), Selection("softmax"), rng)) / 6000
    assert np.allclose(even, 1 / 3, atol=0.03)


def test_critics_that_do_not_fit_are_refused(policy, caplog):
    fitting = DistanceCritic(policy.spec, 0.0)
    wrong = {
        "shape": {"action": FeatureSpec((3,), unit="m")},
        "unit": {"action": FeatureSpec((2,), unit="rad")},
        "steps": {"execute_horizon": 9},
        "observation.state": {"observation": {STATE: FeatureSpec((4,))}},
    }
    for message, change in wrong.items():
        critic = DistanceCritic(policy.spec, 0.0)
        critic.spec = replace(fitting.spec, **change)
        with pytest.raises(SpecError, match=message):
            SteeredPolicy(policy, critic)
    fitting.spec = replace(fitting.spec, execute_horizon=2)
    with caplog.at_level(logging.WARNING):
        SteeredPolicy(policy, fitting)
    assert "2 executed steps" in caplog.text
    for options, message in (({"rule": "best"}, "lcb, softmax, argmax"), ({"num_samples": 0}, "num_samples=0")):
        with pytest.raises(ValueError, match=message):
            SteeredPolicy(policy, DistanceCritic(policy.spec, 0.0), **options)


def test_a_steered_policy_asks_for_what_both_need(generator):
    policy = make(BehaviourCloningPolicy, "points", observation_keys=[STATE], obs_horizon=1)
    observation, action, _ = WORLDS["points"]
    critic = SuccessCritic(observation, action, 20.0, observation_keys=[POINTS], obs_horizon=2, execute_horizon=3, hidden=16)
    steered = SteeredPolicy(policy, critic, num_samples=3, margin=0.0)
    assert set(steered.spec.observation) == {STATE, POINTS}
    assert steered.spec.obs_horizon == 2
    chunks = steered.sample(observation_for(steered, 2, generator), seed=0)
    assert chunks.shape == (2, 1, 5, 7)


# execution


class Recorder:
    """A policy whose chunk counts its decisions and steps, and which keeps what it was given."""

    def __init__(self, obs_horizon, execute_horizon=3):
        self.spec = PolicySpec({STATE: FeatureSpec((1,))}, FeatureSpec((2,)), obs_horizon, 4, execute_horizon, 20.0)
        self.seen, self.seeds = [], []

    def reset(self):
        self.seen, self.seeds = [], []

    def sample(self, observation, num_samples=1, seed=None):
        self.seen.append(observation[STATE][0, :, 0].tolist())
        self.seeds.append(seed)
        steps = np.arange(4, dtype=np.float32)
        return np.stack([np.full(4, len(self.seen) - 1, np.float32), steps], -1)[None, None]


@pytest.mark.parametrize("obs_horizon", [1, 2, 3])
def test_chunks_are_executed_in_order_with_the_last_frames(obs_horizon):
    policy = Recorder(obs_horizon)
    executor = ChunkExecutor(policy)
    actions = []
    for step in range(8):
        frame = {STATE: np.array([step], np.float32)} if executor.wants_observation else None
        actions.append(executor.act(frame).tolist())
    assert actions == [[step // 3, step % 3] for step in range(8)]
    history = [[max(step - back, 0) for back in reversed(range(obs_horizon))] for step in (0, 3, 6)]
    assert policy.seen == history


def test_frames_nobody_looks_at_need_not_be_rendered():
    executor = ChunkExecutor(Recorder(1))
    wanted = []
    for step in range(7):
        wanted.append(executor.wants_observation)
        executor.act({STATE: np.array([step], np.float32)} if wanted[-1] else None)
    assert wanted == [True, False, False, True, False, False, True]
    executor.act(None)
    executor.act(None)
    with pytest.raises(SpecError, match="lacks"):
        executor.act(None)
    with pytest.raises(SpecError, match="shape"):
        executor.act({STATE: np.zeros((1, 1), np.float32)})


def test_a_reset_forgets_the_episode_and_fixes_its_seeds():
    policy = Recorder(2)
    executor = ChunkExecutor(policy, execute_horizon=1, seed=4)
    runs = []
    for seed in (4, 4, 5):
        executor.reset(seed)
        for step in range(3):
            executor.act({STATE: np.array([step], np.float32)})
        assert policy.seen[0] == [0.0, 0.0]
        runs.append(policy.seeds)
    assert runs[0] == runs[1] != runs[2]
    assert len(set(runs[0])) == 3
    with pytest.raises(SpecError, match="execute_horizon=5"):
        ChunkExecutor(policy, execute_horizon=5)


# checkpoints


def node_of(kind):
    node = {"_target_": f"{kind.__module__}.{kind.__qualname__}", **HORIZONS}
    encoder = {"_target_": "robopolicy.models.encoders.ObservationEncoder", "_partial_": True, "width": 16}
    tokenizer = {"_target_": "robopolicy.models.tokenizer.MultiScaleTokenizer", "_partial_": True, **SMALL_TOKENIZER}
    made = HYPER[kind].get("transformer")
    parts = {} if made is None else {"transformer": {"_target_": f"{made.func.__module__}.{made.func.__name__}", **PARTIAL}}
    return {**node, "encoder": encoder, **HYPER[kind], **parts, **({"tokenizer": tokenizer} if kind is CarpPolicy else {})}


@every_policy
def test_a_loaded_policy_is_bit_equal(kind, tmp_path, generator):
    policy = make(kind)
    stats = vector_statistics(np.random.default_rng(0).normal(2.0, 3.0, (100, 3)))
    policy.fit({STATE: stats, ACTION: {name: value[:2] for name, value in stats.items()}})
    meta = {"kind": "policy", "spec": policy.spec.to_dict(), "step": 1}
    folder = checkpoint.save(tmp_path / "step_000001", policy.state_dict(), {"policy": node_of(kind)}, meta)
    loaded = load_policy(folder.parent)
    observation = observation_for(policy, 2, generator)
    assert loaded.spec == policy.spec
    assert not loaded.training
    assert np.array_equal(loaded.sample(observation, 4, 0), policy.sample(observation, 4, 0))
    with pytest.raises(checkpoint.CheckpointError, match="not a critic"):
        load_critic(folder)


def test_a_loaded_critic_is_bit_equal(tmp_path, generator):
    observation, action, _ = WORLDS["state"]
    critic = SuccessCritic(observation, action, 20.0, execute_horizon=4, hidden=16)
    node = {"_target_": "robopolicy.models.critic.SuccessCritic", "execute_horizon": 4, "hidden": 16}
    meta = {"kind": "critic", "spec": critic.spec.to_dict(), "step": 1}
    folder = checkpoint.save(tmp_path / "step_000001", critic.state_dict(), {"critic": node}, meta)
    loaded = load_critic(folder)
    batch = fake_batch(observation, action, 1, 8, 2, generator)
    state, actions = {STATE: batch[STATE].numpy()}, batch[ACTION][:, None, :4].numpy()
    assert OUTCOME in batch
    assert loaded.spec == critic.spec
    assert np.array_equal(loaded.score(loaded.encode(state), actions), critic.score(critic.encode(state), actions))
    with pytest.raises(checkpoint.CheckpointError, match="not a policy"):
        load_policy(folder)
