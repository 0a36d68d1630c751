"""Steering beyond the default rule: controls, veto, support, budget, policies that only offer `sample`."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from serving import served

from robopolicy.data.transforms import vector_statistics
from robopolicy.deploy.client import RemotePolicy
from robopolicy.models.critic import SuccessCritic
from robopolicy.policies.bc import BehaviourCloningPolicy
from robopolicy.policies.fit import check_ranges
from robopolicy.policies.selection import Selection, chunk_distances, select
from robopolicy.policies.steering import SteeredPolicy
from robopolicy.policies.wrappers import ChunkExecutor, Exploring, Perturbed
from robopolicy.spec import ACTION, STATE, CriticSpec, FeatureSpec, PolicySpec, SpecError

NAMES = ("x", "gripper")
ACTIONS = FeatureSpec((2,), unit="m", names=NAMES)
OBSERVATION = {STATE: FeatureSpec((3,))}


class Numbered:
    """A policy whose candidates are numbers around 0; candidate 0 is 0. It offers nothing but what spec.Policy says."""

    def __init__(self, spec=None):
        self.spec = spec or PolicySpec(OBSERVATION, ACTIONS, 1, 6, 4, 20.0)
        self.calls = []

    def reset(self):
        self.calls = []

    def sample(self, observation, num_samples=1, seed=None):
        self.calls.append((num_samples, seed))
        batch = len(observation[STATE])
        drawn = np.random.default_rng(seed).normal(size=(batch, num_samples, 1, 1))
        drawn[:, 0] = 0
        return np.broadcast_to(drawn, (batch, num_samples, 6, 2)).astype(np.float32)


class Liking:
    """A critic whose head e values a prefix as value(mean of x) + e * dispute; it counts what it is asked."""

    def __init__(self, value=lambda x: x, dispute=0.0, spec=None):
        self.spec = CriticSpec(OBSERVATION, ACTIONS, 1, 4, 3, 20.0) if spec is None else spec
        self.value, self.dispute, self.encoded = value, dispute, 0

    def encode(self, observation):
        self.encoded += 1
        return observation

    def score(self, context, actions):
        value = self.value(actions[..., 0].mean(2))
        return np.stack([value + head * self.dispute for head in range(3)]).astype(np.float32)

    def distance(self, context, actions):
        return np.abs(actions[..., 0].mean(2))


def looking(batch=1):
    return {STATE: np.zeros((batch, 1, 3), np.float32)}


def test_controls_do_what_they_say():
    rng = np.random.default_rng(0)
    scores = np.stack([np.array([[0.0, 1.0, -1.0, 0.5]] * 4000)] * 2)
    assert select(scores, Selection("worst"), rng)[0] == 2
    shares = np.bincount(select(scores, Selection("random"), rng), minlength=4) / 4000
    assert np.allclose(shares, 0.25, atol=0.03)
    chunks = np.array([0.0, 1.0, 1.1, 5.0]).reshape(1, 4, 1, 1) * np.ones((1, 1, 3, 2))
    assert select(scores[:, :1], Selection("medoid"), rng, chunks=chunks)[0] in (1, 2)
    with pytest.raises(ValueError, match="medoid"):
        select(scores, Selection("medoid"), rng)


def test_the_papers_variant_draws_by_the_lower_head_at_an_absolute_temperature():
    rng = np.random.default_rng(0)
    scores = np.stack([np.array([[0.0, 0.3, 0.9]] * 6000), np.array([[0.1, 0.4, 0.2]] * 6000)])
    paper = Selection("softmax", temperature=0.2, scale_free=False, heads="min")
    logits = np.array([0.0, 0.3, 0.2]) / 0.2
    expected = np.exp(logits) / np.exp(logits).sum()
    assert np.allclose(np.bincount(select(scores, paper, rng)) / 6000, expected, atol=0.03)
    assert select(scores, Selection("argmax", heads="min"), rng)[0] == 1
    assert select(scores, Selection("argmax"), rng)[0] == 2


def test_distances_between_chunks_do_not_depend_on_units():
    chunks = np.random.default_rng(0).normal(size=(2, 5, 3, 2))
    scaled = chunks * np.array([1000.0, 0.001])
    assert np.allclose(chunk_distances(chunks), chunk_distances(scaled))


def test_a_veto_excludes_candidates_and_never_leaves_none():
    policy = Numbered()
    calm = SteeredPolicy(policy, Liking(), num_samples=12, safety=Liking(lambda x: (x > 0.5) * 1.0))
    decision = calm.decide(looking(), seed=0)
    x = decision.candidates[0, :, 0, 0]
    assert (x > 0.5).any()
    assert np.array_equal(decision.allowed[0], x <= 0.5)
    assert x[decision.index[0]] == x[x <= 0.5].max()
    own = SteeredPolicy(policy, Liking(), num_samples=12, min_gain=1e9, safety=Liking(lambda x: np.where(x == 0, 1.0, 0.0)))
    assert own.decide(looking(), seed=0).index[0] == 1  # the policy's own is vetoed: the first that is not takes its place
    worried = SteeredPolicy(policy, Liking(), num_samples=12, safety=Liking(lambda x: 0.9 + 0.01 * x))
    risky = worried.decide(looking(), seed=0)
    assert risky.allowed.sum() == 1
    assert risky.candidates[0, risky.index[0], 0, 0] == x.min()


def test_a_critic_of_risk_is_no_critic_of_value():
    value, risk = Liking(), Liking()
    value.role, risk.role = "value", "risk"
    SteeredPolicy(Numbered(), value, safety=risk)
    with pytest.raises(SpecError, match=r"a risk, not a value.*steer\.safety"):
        SteeredPolicy(Numbered(), risk)
    with pytest.raises(SpecError, match=r"a value, not a risk.*steer\.critic"):
        SteeredPolicy(Numbered(), value, safety=value)


def test_support_holds_candidates_near_the_data():
    free = SteeredPolicy(Numbered(), Liking(), num_samples=16).decide(looking(), 0)
    held = SteeredPolicy(Numbered(), Liking(), num_samples=16, support=5.0).decide(looking(), 0)
    x = free.candidates[0, :, 0, 0]
    assert x[free.index[0]] == x.max() > 1
    assert abs(held.candidates[0, held.index[0], 0, 0]) <= 1
    with pytest.raises(ValueError, match=r"support=1\.0"):
        SteeredPolicy(Numbered(), object.__new__(NoDistance), support=1.0)


class NoDistance:
    """A critic that does not know where its data ends."""

    spec = Liking().spec
    encode = score = None


class Clock:
    """A clock that moves only when a policy or critic works."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def timed(clock, policy, seconds):
    inner = policy.sample

    def sample(observation, num_samples=1, seed=None):
        clock.now += seconds * num_samples
        return inner(observation, num_samples, seed)

    policy.sample = sample
    return policy


def test_a_budget_is_kept_and_candidate_zero_is_always_there():
    clock, policy = Clock(), Numbered()
    steered = SteeredPolicy(timed(clock, policy, 0.001), Liking(), num_samples=64, budget_ms=30, clock=clock)
    first = steered.decide(looking(), seed=3)
    assert 8 <= first.candidates.shape[1] < 64
    assert first.seconds <= 0.03
    assert np.array_equal(first.candidates[:, :8], policy.sample(looking(), 8, 3))
    assert len(np.unique(first.candidates[0, :, 0, 0])) == first.candidates.shape[1]  # later blocks bring new ones
    assert steered.critic.encoded == 1
    assert steered.sample(looking(), 60, seed=3).shape[1] == 60  # who asks for so many gets them, late
    slow = SteeredPolicy(timed(clock, Numbered(), 0.01), Liking(), num_samples=64, budget_ms=30, clock=clock)
    slow.decide(looking(), seed=3)  # finds out
    second = slow.decide(looking(), seed=3)
    assert second.candidates.shape[1] == 1
    assert second.index[0] == 0
    assert second.seconds <= 0.03
    assert slow.sample(looking(), 4, seed=3).shape[1] == 4  # unscored
    whole = SteeredPolicy(Numbered(), Liking(), num_samples=64, budget_ms=1e9).decide(looking(), 3)
    assert whole.candidates.shape[1] == 64


def test_a_veto_is_not_skipped_for_want_of_time(caplog):
    clock = Clock()
    options = {"num_samples": 16, "budget_ms": 30, "clock": clock, "safety": Liking(lambda x: np.where(x == 0, 0.99, 0.0))}
    steered = SteeredPolicy(timed(clock, Numbered(), 0.01), Liking(), **options)
    for seed in range(3):
        decision = steered.decide(looking(), seed)
        assert decision.index[0] > 0
        assert not decision.allowed[0, 0]
    assert caplog.text.count("decisions are late") == 1


def test_values_that_are_not_finite_choose_nothing():
    broken = Liking(lambda x: np.where(x == x.max(), np.nan, x))
    for given in ({"critic": broken}, {"critic": Liking(), "safety": broken}):
        with pytest.raises(SpecError, match="not finite"):
            SteeredPolicy(Numbered(), **given).decide(looking(), 0)


def test_one_encoding_and_one_batch_a_decision():
    critic, policy = Liking(), Numbered()
    SteeredPolicy(policy, critic, num_samples=32).sample(looking(5), seed=1)
    assert critic.encoded == 1
    assert policy.calls == [(32, 1)]


def test_a_policy_behind_a_socket_is_steered_like_one_at_hand():
    near = Numbered()
    with served(Numbered()) as (address, _), RemotePolicy(address, timeout_ms=20_000) as far:
        chunks = [SteeredPolicy(policy, Liking(), num_samples=9).sample(looking(2), 3, seed=4) for policy in (near, far)]
        assert np.array_equal(*chunks)
        assert isinstance(SteeredPolicy(far, Liking()).spec, PolicySpec)
        wider = SteeredPolicy(Perturbed(far, std=0.5, share=1.0, scale=np.ones(2)), Liking(), num_samples=9)
        assert (wider.sample(looking(2), 1, seed=4)[..., 0] > 0).all()
        executors = [ChunkExecutor(SteeredPolicy(policy, Liking(), num_samples=9), seed=0) for policy in (near, far)]
        frames = [{STATE: np.full(3, step, np.float32)} for step in range(9)]
        assert np.array_equal(*([executor.act(frame) for frame in frames] for executor in executors))
        wrong = CriticSpec(OBSERVATION, FeatureSpec((2,), unit="rad", names=NAMES), 1, 4, 3, 20.0)
        with pytest.raises(SpecError, match="unit m"):
            SteeredPolicy(far, Liking(spec=wrong))


def test_the_scored_chunk_is_the_executed_one():
    policy, decisions = Numbered(), []
    steered = SteeredPolicy(policy, Liking(), num_samples=8, watch=decisions.append)
    executor = ChunkExecutor(steered, seed=0)
    done = [executor.act({STATE: np.zeros(3, np.float32)}) for _ in range(12)]
    assert len(decisions) == 3
    for i, decision in enumerate(decisions):
        chosen = decision.candidates[0, decision.index[0], :4]
        assert np.array_equal(done[4 * i : 4 * i + 4], chosen)


def test_perturbed_candidates_keep_the_policys_own_first_and_the_gripper_alone():
    policy = Perturbed(Numbered(), std=0.5, share=1.0, scale=np.array([2.0, 2.0]))
    chunks = policy.sample(looking(3), 200, seed=0)
    assert np.array_equal(chunks[:, 0], Numbered().sample(looking(3), 1, 0)[:, 0])
    assert chunks[:, 1:, :, 0].std() == pytest.approx(1.0 / 3**0.5, abs=0.06)
    assert not chunks[..., 1].any()
    half = Perturbed(Numbered(), share=0.5, scale=np.ones(2)).sample(looking(), 8, seed=0)
    assert np.array_equal(half[:, :4], Numbered().sample(looking(), 4, 0))
    with pytest.raises(SpecError, match="scale"):
        Perturbed(Numbered())
    with pytest.raises(SpecError, match="delay has 'griper'"):
        Perturbed(Numbered(), scale=np.ones(2), delay={"griper": 2})
    with pytest.raises(SpecError, match="fixed has 'griper'"):
        Perturbed(Numbered(), scale=np.ones(2), fixed=["griper"])
    nameless = PolicySpec(OBSERVATION, FeatureSpec((2,)), 1, 6, 4, 20.0)
    assert Perturbed(Numbered(nameless), share=1.0, scale=np.ones(2)).sample(looking(), 9, seed=0)[..., 1].std() > 0
    for steps in (-1, 1.5):
        with pytest.raises(SpecError, match="must be a whole number of steps"):
            Perturbed(Numbered(), scale=np.ones(2), delay={"gripper": steps})
    with pytest.raises(SpecError, match="share=2"):
        Perturbed(Numbered(), share=2, scale=np.ones(2))


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_exploring_perturbs_a_share_of_what_it_executes(share):
    class Still(Numbered):
        def sample(self, observation, num_samples=1, seed=None):
            return 0 * super().sample(observation, num_samples, seed)

    explorer = Exploring(Perturbed(Still(), std=0.5, share=share, scale=np.ones(2)))
    executed = np.concatenate([explorer.sample(looking(50), 1, seed) for seed in range(12)])
    assert (executed[:, 0, :, 0].any(1)).mean() == pytest.approx(share, abs=0.06)


class Closing(Numbered):
    """Closes its gripper at step 2."""

    def sample(self, observation, num_samples=1, seed=None):
        chunks = super().sample(observation, num_samples, seed)
        chunks[..., 1] = np.where(np.arange(chunks.shape[2]) < 2, 1.0, -1.0)
        return chunks


def test_perturbed_candidates_close_the_gripper_sooner_or_later_when_asked_to():
    policy = Perturbed(Closing(), std=0.0, share=1.0, scale=np.ones(2), delay={"gripper": 2})
    chunks = policy.sample(looking(), 400, seed=0)
    assert np.array_equal(chunks[:, 0], Closing().sample(looking(), 1, 0)[:, 0])
    assert (chunks[..., 0] == chunks[:, :1, :, 0]).all()
    closed_at = (chunks[0, 1:, :, 1] > 0).sum(1)
    assert set(np.unique(np.abs(chunks[..., 1]))) == {1.0}
    assert np.allclose(np.bincount(closed_at) / 399, 0.2, atol=0.07)  # at 0, 1, 2, 3 and 4 alike


def fitted(module, scale):
    values = np.linspace(-1, 1, 100)[:, None]
    module.fit({STATE: vector_statistics(values * np.ones(3)), ACTION: vector_statistics(values * scale * np.ones(2))})
    return module.eval()


def test_a_critic_of_other_actions_is_refused_when_it_is_paired():
    torch.manual_seed(0)
    policy = fitted(BehaviourCloningPolicy(OBSERVATION, ACTIONS, 20.0), 0.1)
    for scale, fits in ((0.1, True), (0.08, True), (1.0, True), (0.01, False)):
        critic = fitted(SuccessCritic(OBSERVATION, ACTIONS, 20.0, hidden=8), scale)
        if fits:
            SteeredPolicy(policy, critic)
        else:
            with pytest.raises(SpecError, match=r"action entry x .* -0.1 .. 0.1, .* -0.01 .. 0.01"):
                SteeredPolicy(policy, critic)
            with pytest.raises(SpecError, match="action entry"):
                check_ranges(Perturbed(policy, 0.1), critic)


def test_a_critic_whose_data_spans_far_more_is_refused_and_one_entry_that_it_hardly_saw_is_warned_of(caplog):
    torch.manual_seed(0)
    policy = fitted(BehaviourCloningPolicy(OBSERVATION, ACTIONS, 20.0), 0.1)
    with pytest.raises(SpecError, match=r"at most 0.001 of the range"):
        SteeredPolicy(policy, fitted(SuccessCritic(OBSERVATION, ACTIONS, 20.0, hidden=8), 100.0))
    three = FeatureSpec((3,), unit="m", names=("x", "y", "gripper"))
    moving, state = np.linspace(-1, 1, 100), vector_statistics(np.linspace(-1, 1, 100)[:, None] * np.ones(3))
    pair = [BehaviourCloningPolicy(OBSERVATION, three, 20.0), SuccessCritic(OBSERVATION, three, 20.0, hidden=8)]
    for module, scale in zip(pair, (1.0, 0.1), strict=True):
        module.fit({STATE: state, ACTION: vector_statistics(np.stack([moving, moving * scale, moving], 1))})
    SteeredPolicy(*(module.eval() for module in pair))
    assert "action entry y of the policy usually lies in -1 .. 1" in caplog.text


def test_a_support_penalty_needs_remembered_pairs_and_two_critics_see_the_same():
    torch.manual_seed(0)
    policy = fitted(BehaviourCloningPolicy(OBSERVATION, ACTIONS, 20.0), 0.1)
    critic = fitted(SuccessCritic(OBSERVATION, ACTIONS, 20.0, hidden=8), 0.1)
    with pytest.raises(ValueError, match=r"critic\.support_size=N"):
        SteeredPolicy(policy, critic, support=0.1)
    other = {"observation.images.front": FeatureSpec((8, 8, 3), "uint8"), **OBSERVATION}
    larger = {**other, "observation.images.front": FeatureSpec((16, 16, 3), "uint8")}
    ours, theirs = Liking(), Liking()
    ours.spec, theirs.spec = (replace(each.spec, observation=seen) for each, seen in ((ours, other), (theirs, larger)))
    with pytest.raises(SpecError, match=r"images\.front.* for the critic and .* for the safety critic"):
        SteeredPolicy(Numbered(), ours, safety=theirs)


def test_a_critic_of_the_same_constant_entry_fits_and_one_of_another_constant_is_refused():
    torch.manual_seed(0)
    moving, state = np.linspace(-1, 1, 100), vector_statistics(np.linspace(-1, 1, 100)[:, None] * np.ones(3))

    def holding(module, constant):
        module.fit({STATE: state, ACTION: vector_statistics(np.stack([moving, np.full(100, constant)], 1))})
        return module.eval()

    policy = holding(BehaviourCloningPolicy(OBSERVATION, ACTIONS, 20.0), 0.3)
    SteeredPolicy(policy, holding(SuccessCritic(OBSERVATION, ACTIONS, 20.0, hidden=8), 0.3))
    with pytest.raises(SpecError, match="action entry gripper"):
        SteeredPolicy(policy, holding(SuccessCritic(OBSERVATION, ACTIONS, 20.0, hidden=8), 0.4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rulle": "lcb"}, "did you mean 'rule'"),
        ({"heads": "max"}, "mean, min"),
        ({"veto": 0.0}, "veto=0"),
        ({"budget_ms": 0}, "budget_ms=0"),
        ({"temperature": 0}, "argmax"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SteeredPolicy(Numbered(), Liking(), **options)
