"""Branched rollouts: what they say is what the simulator does, and what a critic's quality makes of them."""

import json
from dataclasses import replace
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest

from robopolicy import pipeline
from robopolicy.config import compose
from robopolicy.data.branches import NEVER as NO_EVENT
from robopolicy.data.branches import Branches, BranchWindows, concatenate
from robopolicy.data.collect import environment, robot_env
from robopolicy.data.episodes import EpisodeWriter
from robopolicy.evaluation import branches as branching
from robopolicy.evaluation.branches import OracleActor, branch_point, decision_points, differing, follow, try_chunk
from robopolicy.evaluation.critic_quality import (
    NEVER,
    best_checkpoint,
    measured_gain,
    proven_gain,
    quality,
    row_correlation,
    worth,
)
from robopolicy.evaluation.rollout import PolicyActor
from robopolicy.models.critic import ProgressCritic, SafetyCritic, SuccessCritic
from robopolicy.models.critic_td import IqlCritic
from robopolicy.ope.dynamics_gap import GapConfig
from robopolicy.policies.selection import Selection, select
from robopolicy.sim.unsafe import Limits
from robopolicy.spec import (
    ACTION,
    CHUNK_SUCCESS,
    ENVIRONMENT_STATE,
    HAS_SUCCESSOR,
    OUTCOME,
    STATE,
    SUCCESS,
    TASK,
    UNSAFE,
    WEIGHT,
    DatasetSpec,
    FeatureSpec,
    PolicySpec,
    SpecError,
    successor,
)
from robopolicy.train.sources import Branched, Recorded, source, target_weights

ENV = "robopolicy/Lift-v0"
KWARGS = {"observation": ["state", "environment_state"], "max_episode_steps": 50}


class Reaching:
    """A policy that goes down onto the object, or beside it: candidate n is `miss` n metres off."""

    def __init__(self, features, action, miss=0.0, noise=0.0):
        keys = {key: features[key] for key in (STATE, ENVIRONMENT_STATE)}
        self.spec = PolicySpec(keys, action, 1, 8, 8, 20.0)
        self.miss, self.noise, self.hand = miss, noise, features[STATE].index_of(["ee_x", "ee_y", "ee_z"])

    def reset(self):
        pass

    def sample(self, observation, num_samples=1, seed=None):
        hand = observation[STATE][:, -1, self.hand]
        thing = observation[ENVIRONMENT_STATE][:, -1, :3]
        rng = np.random.default_rng(seed)
        chunks = np.zeros((len(hand), num_samples, 8, 7), np.float32)
        for n in range(num_samples):
            goal = thing + [self.miss * n, 0, 0.0]
            move = (goal - hand) / 8 + self.noise * rng.normal(size=3)
            chunks[:, n, :, :3] = np.clip(move, -0.03, 0.03)[:, None]
            near = np.linalg.norm(goal - hand, axis=1) < 0.02
            chunks[:, n, :, 6] = np.where(near, 0.0, 1.0)[:, None]
            chunks[near, n, 4:, 2] = 0.03
        return chunks


@pytest.fixture(scope="module")
def world():
    env = environment(ENV, KWARGS)
    return env, robot_env(env)


def reaching(robot, **options):
    return Reaching(robot.features, robot.action_spec, **options)


def test_what_near_candidates_differ_by_is_told_apart_from_what_far_ones_do():
    rng = np.random.default_rng(0)
    chunks = rng.normal(size=(400, 4, 8, 2)).astype(np.float32)
    chance, known = rng.random((400, 4)) < 0.2, chunks[:, :, :4].mean((2, 3)) > 0
    found = []
    for success in (chance, known):
        made = Branches({}, chunks, success[..., None], *[np.zeros(1)] * 2, {}, *[np.zeros(1)] * 2, None, 4)
        found.append(differing(made))
    assert abs(found[0][0] - 0.32) < 0.04
    assert abs(found[0][1] - 0.32) < 0.04
    assert found[1][1] > found[1][0] + 0.1
    assert np.isnan(differing(replace(made, candidates=chunks[:, :1], success=success[:, :1, None]))).all()


def test_a_branch_of_the_policys_own_chunk_ends_as_the_episode_did(world):
    env, robot = world
    actor = PolicyActor(reaching(robot, noise=0.002))
    for seed in (1, 2):
        points, ending = decision_points(env, actor, seed)
        assert len(points) == -(-ending.steps // 8)
        for point in (points[0], points[-1], points[1]):
            batched, number = point.executor.fork(np.empty((0, 0))).question()
            chunk = actor.executor.policy.sample(batched, 1, number)[0, 0, :8]
            after = point.executor.fork(np.empty((0, 0)))
            after.question()
            found = try_chunk(robot, branching.Point(point.token, after, point.step), actor, chunk, None, 50)
            assert (found.success, point.step + found.steps) == (ending.success, ending.steps)


def test_what_a_chunk_does_is_measured_and_its_seed_only_changes_what_follows(world):
    env, robot = world
    actor = PolicyActor(reaching(robot, miss=0.1))
    points, _ = decision_points(env, actor, 3)
    _, candidates, tries = branch_point(
        env, actor, points[0], branching.Plan(candidates=2, rollouts=2, limits=Limits(force=5.0))
    )
    assert candidates.shape == (2, 8, 7)
    assert not np.array_equal(candidates[0], candidates[1])
    assert [len(row) for row in tries] == [2, 2]
    assert all(0 < ending.steps <= 50 for row in tries for ending in row)


def test_events_are_seen(world):
    env, robot = world
    press = np.zeros((24, 7), np.float32)
    press[:, 2] = -0.03
    press[:, 6] = 1.0
    points, _ = decision_points(env, PolicyActor(reaching(robot)), 5)
    robot.restore_state(points[0].token)
    actor = PolicyActor.of(points[0].executor.fork(press))
    ending = follow(robot, actor, 0, 24, Limits(force=5.0))
    assert "force" in ending.events  # fingers pressed onto the table
    robot.restore_state(points[0].token)
    still = PolicyActor.of(points[0].executor.fork(np.tile([0, 0, 0, 0, 0, 0, 1.0], (8, 1)).astype(np.float32)))
    assert not follow(robot, still, 0, 8, Limits()).events


class Told:
    """An environment whose steps are told beforehand: (terminated, truncated, success)."""

    action_space = gymnasium.spaces.Box(-1, 1, (7,))

    def __init__(self, *steps):
        self.steps = list(steps)

    def advance(self, action):
        terminated, truncated, success = self.steps.pop(0)
        return 0.0, terminated, truncated, {"success": success, "progress": 0.5}


def test_an_episode_ends_where_the_environment_says_and_succeeds_where_info_does():
    going, won, torn = (False, False, False), (False, False, True), (False, True, False)
    for steps, success, length in (
        ((going, won, won), True, 3),  # it goes on after success, to the time limit
        ((going, won, going), False, 3),
        ((won, torn, won), False, 2),  # a fault
        (((True, False, True), going), True, 1),
        (((True, False, False), going), False, 1),
    ):
        still = SimpleNamespace(wants_observation=False, next=lambda: np.zeros(7), act=lambda told: np.zeros(7))
        ending = follow(Told(*steps), PolicyActor.of(still), 0, 3, None)
        assert (ending.success, ending.steps) == (success, length)


def test_dressing_is_branched_too():
    env = environment("robopolicy/Dress-v0", {"max_episode_steps": 4, "region": "straight", "observation": ["state"]})
    robot = robot_env(env)
    actor = PolicyActor(Pulling(robot.features, robot.action_spec))
    points, ending = decision_points(env, actor, 0)
    assert ([point.step for point in points], ending.steps) == ([0, 2], 4)
    for force, events in ((0.0, {"force"}), (1e6, set())):
        plan = branching.Plan(candidates=2, limits=Limits(force=force))
        _, _, tries = branch_point(env, actor, points[1], plan)
        assert [[set(ending.events) for ending in row] for row in tries] == [[events], [events]]
    assert all(not ending.success and ending.steps == 2 for row in tries for ending in row)


def test_an_oracle_succeeds_where_some_candidate_does(world):
    env, robot = world
    policy = reaching(robot)
    wrong = Unwilling(policy)
    outcomes = []
    for actor in (PolicyActor(wrong), OracleActor(wrong, 4)):
        actor.reset(1)
        observation, _ = env.reset(seed=1)
        done, steps = False, 0
        while not done and steps < 50:
            _, done, _, _ = robot.advance(np.clip(actor.act(env, observation), env.action_space.low, env.action_space.high))
            observation, steps = robot.observe(), steps + 1
        outcomes.append(done)
    alone = PolicyActor(policy)
    _, ending = decision_points(env, alone, 1)
    assert ending.success
    assert outcomes == [False, True]


class Unwilling:
    """A policy that does as another one, but its own best guess never closes the gripper."""

    def __init__(self, policy):
        self.policy, self.spec = policy, policy.spec

    def reset(self):
        pass

    def sample(self, observation, num_samples=1, seed=None):
        chunks = self.policy.sample(observation, num_samples, seed)
        chunks[:, 0, :, 6] = 1.0
        return chunks


class Pulling:
    """A policy that pulls along the arm."""

    def __init__(self, features, action):
        self.spec = PolicySpec({STATE: features[STATE]}, action, 1, 2, 2, 20.0)

    def reset(self):
        pass

    def sample(self, observation, num_samples=1, seed=None):
        return np.tile(np.float32([0.01, 0, 0, 0]), (len(observation[STATE]), num_samples, 2, 1))


def made(states=6, chunks=4, rollouts=2, seed=0, horizon=3):
    """Branches in which larger x is better, by arithmetic."""
    rng = np.random.default_rng(seed)
    state = rng.normal(size=(states, 1, 2)).astype(np.float32)
    candidates = rng.normal(size=(states, chunks, 4, 1)).astype(np.float32)
    success = np.repeat((candidates[:, :, 0, :1] > 0), rollouts, 2)
    steps = np.where(success, 5, 20)
    progress = np.where(success[..., None], 1.0, 0.25) * np.ones(20, np.float32)
    events = {"drop": np.where(success, NO_EVENT, 4), "force": np.full(success.shape, NO_EVENT)}
    spec = DatasetSpec({STATE: FeatureSpec((2,)), ACTION: FeatureSpec((1,))}, 10.0)
    observation = {STATE: state, TASK: np.full(states, "lift")}
    rows = np.arange(states)
    return Branches(observation, candidates, success, steps, progress, events, rows // 2, rows, spec, horizon, {"seed": seed})


def test_branches_survive_a_file_and_split_by_episode(tmp_path):
    whole = concatenate([made(), made(seed=1)])
    again = Branches.load(whole.save(tmp_path / "b"))
    assert again.hash == whole.hash
    assert again.spec == whole.spec
    assert np.array_equal(again.values(), whole.values())
    one, two = whole.split(0.34)
    assert not set(one.seeds) & set(two.seeds)
    assert len(one) + len(two) == len(whole)
    with pytest.raises(SpecError, match="robopolicy branch"):
        Branches.load(tmp_path)


def test_values_are_discounted_success_and_events_have_a_horizon():
    branches = made()
    assert np.allclose(branches.values(0.5), np.where(branches.success[..., 0], 0.5**4, 0.0))
    assert np.array_equal(branches.unsafe(["drop"]), ~branches.success)
    assert not branches.unsafe(["drop"], horizon=3).any()
    rising = replace(branches, progress=np.broadcast_to(np.array([0.2, 0.4, 1.0]), (*branches.success.shape, 3)))
    assert np.allclose(rising.progress_values(0.5), 0.5 * 0.2 + 0.25 * 0.4 + 0.25 * 1.0)
    with pytest.raises(ValueError, match="did you mean 'drop'"):
        branches.unsafe(["dropp"])


def test_windows_of_branches_hold_every_try_once(tmp_path):
    branches = made()
    windows = BranchWindows(branches, (STATE, TASK), 1, 3, ["drop"], 10)
    batch = windows.batch(np.arange(len(windows)))
    assert len(windows) == 6 * 4 * 2
    assert batch[ACTION].shape == (48, 3, 1)
    assert np.array_equal(batch[OUTCOME].reshape(branches.success.shape), branches.success.astype(np.float32))
    assert np.array_equal(batch[UNSAFE], 1 - batch[OUTCOME])
    with pytest.raises(SpecError, match="3 steps of the branches"):
        BranchWindows(branches, (STATE,), 1, 4)
    with pytest.raises(SpecError, match="obs_horizon=2"):
        BranchWindows(branches, (STATE,), 2, 3)
    branches.save(tmp_path / "b")
    found = source({"path": str(tmp_path / "b")})
    assert isinstance(found, Branched)
    critic = SafetyCritic(found.observation, found.spec.action, 10.0, execute_horizon=3, observation_keys=[STATE])
    assert len(found.windows(critic, {"events": ["drop"]})) == 48


def test_quality_knows_a_perfect_a_blind_and_a_reversed_critic():
    worth = made(states=40, chunks=6).values()
    perfect = quality(np.stack([worth, worth]), worth)
    assert perfect.spearman == perfect.within == pytest.approx(1.0)
    assert perfect.pairs == perfect.captured == 1.0
    assert perfect.error == pytest.approx(0.0, abs=1e-9)
    blind = np.repeat(worth.mean(1, keepdims=True), 6, 1)
    only_state = quality(np.stack([blind, blind]), worth)
    assert only_state.within == only_state.spearman == only_state.captured == only_state.sensitivity == 0.0
    assert only_state.overall > 0.1
    assert only_state.pairs == 0.5
    reverse = quality(np.stack([1 - worth, 1 - worth]), worth, Selection("argmax"))
    assert reverse.spearman == reverse.within == pytest.approx(-1.0)
    assert reverse.captured <= 0
    assert perfect.num_states == sum(row.std() > 0 for row in worth)
    assert row_correlation(np.array([[1.0, 2, 3]]), np.array([[1.0, 3, 2]]))[0] == pytest.approx(0.5)


def test_states_whose_chunks_differ_much_decide_the_correlation_within_states():
    worth = np.array([[0.5, 0.501, 0.502]] * 9 + [[0.0, 0.5, 1.0]])
    nearly_blind, useful = worth.copy(), worth.copy()
    nearly_blind[9] = nearly_blind[9, ::-1]
    useful[:9] = useful[:9, ::-1]
    blind, sees = (quality(values[None], worth) for values in (nearly_blind, useful))
    assert blind.spearman == pytest.approx(0.8)
    assert sees.spearman == pytest.approx(-0.8)
    assert blind.within < -0.99
    assert sees.within > 0.99
    assert np.isnan(quality(worth[None], np.full_like(worth, 0.3)).within)


def test_a_critic_is_judged_in_what_it_predicts():
    branches, given = made(), (made().spec.observation, FeatureSpec((1,)), 10.0)
    assert np.array_equal(worth(SuccessCritic(*given, gamma=0.9), branches), branches.values(0.9))
    assert np.array_equal(worth(ProgressCritic(*given, gamma=0.9), branches), branches.progress_values(0.9).mean(2))
    risk = worth(SafetyCritic(*given), branches, {"events": ["drop"], "event_horizon": 10})
    assert np.array_equal(risk, 1 - branches.success.mean(2))


def test_only_gains_that_came_true_are_proven():
    rng, episodes = np.random.default_rng(0), np.arange(200) // 4
    worth = rng.uniform(size=(200, 5))
    true = np.stack([worth, worth])
    assert proven_gain(true, worth, episodes) == pytest.approx(0, abs=0.02)
    assert proven_gain(1 - true, worth, episodes) is None
    assert proven_gain(true[:, :9], worth[:9], episodes[:9]) is None  # too few
    assert proven_gain(true, worth, episodes // 12) is not None  # five episodes
    assert proven_gain(true, worth, episodes // 13) is None  # four: all the same sign is no wonder
    half = true.copy()
    half[:, 100:] = 0.2 * rng.uniform(size=(100, 5)) ** 2  # small predictions are noise, and the policy's own is best there
    worth[100:, 0] = 1.0
    found = proven_gain(half, worth, episodes)
    assert 0 < found < 0.25
    followed = select(half, Selection(min_gain=found), rng)
    assert np.take_along_axis(worth, followed[:, None], 1).mean() > worth[:, 0].mean() + 0.1


def test_critics_that_know_nothing_rarely_open_the_gate():
    rng, episodes, opened = np.random.default_rng(0), np.arange(96) // 4, 0
    for _ in range(300):
        luck = rng.normal(size=(24, 1, 5)) + 0.5 * rng.normal(size=(24, 4, 5))  # states of an episode are alike
        taste = rng.normal(size=(24, 1, 5)) + 0.5 * rng.normal(size=(24, 4, 5))  # and so is what a critic makes of them
        scores = taste.reshape(96, 5) + 0.3 * rng.normal(size=(5, 96, 5))
        opened += proven_gain(scores, (luck.reshape(96, 5) > 0.8).astype(float), episodes) is not None
    assert opened / 300 <= 0.08  # 0.05 and two standard errors


def test_what_was_measured_sets_the_gate_of_that_policy(tmp_path):
    file, folder = tmp_path / "quality.json", tmp_path / "step_000001"
    assert measured_gain(folder, file, "mine") == 0.0
    for written, gate in ((0.07, 0.07), (None, NEVER)):
        file.write_text(json.dumps({"policy": "mine", "checkpoints": {folder.name: {"min_gain": written}}}))
        assert measured_gain(folder, file, "mine") == gate
        assert measured_gain(folder, file, "another") == NEVER


def test_the_checkpoint_that_tells_chunks_apart_best_is_chosen(tmp_path):
    folders = [tmp_path / f"step_{n:06d}" for n in (1, 2, 3)]
    assert best_checkpoint(folders, tmp_path / "quality.json") == folders[-1]

    def measured(name, values):
        lines = {folder.name: {"spearman": 0.5, name: value} for folder, value in zip(folders, values, strict=True)}
        (tmp_path / "quality.json").write_text(json.dumps({"checkpoints": lines}))
        return best_checkpoint(folders, tmp_path / "quality.json")

    assert measured("within", (0.1, 0.4, None)) == folders[1]
    assert measured("spearman", (0.1, None, 0.05)) == folders[0]  # a file that knows no other


def test_windows_of_episodes_carry_what_follows_a_chunk(tmp_path):
    task = {"env_id": ENV, "env": {"observation": ["state", "environment_state"]}}
    pipeline.collect_run(tmp_path / "d", task, "none", {"expert": 12, "random": 1}, seed=0, num_workers=0)
    node = {"path": str(tmp_path / "d")}
    recorded = source(node)
    assert isinstance(recorded, Recorded)
    options = {"execute_horizon": 8, "observation_keys": [STATE], "hidden": 8}
    iql = IqlCritic(recorded.observation, recorded.spec.action, 20.0, **options)
    windows = recorded.windows(iql, node)
    batch = windows.batch(np.arange(len(windows)))
    length = windows.lengths[0]
    states = windows.values(STATE)
    assert np.array_equal(batch[successor(STATE)][0, 0], states[8])
    assert np.array_equal(batch[successor(STATE)][length - 3, 0], states[length - 1])
    assert batch[HAS_SUCCESSOR][: length - 8].all()
    assert not batch[HAS_SUCCESSOR][length - 8 : length].any()
    assert batch[CHUNK_SUCCESS][length - 1].tolist() == [True] + [False] * 7
    assert batch[CHUNK_SUCCESS].any(1).sum() == 8 * 12
    critic = SuccessCritic(recorded.observation, recorded.spec.action, 20.0, **options)
    with pytest.raises(SpecError, match="picks all"):
        recorded.windows(critic, {**node, "target": {"source": ["expert", "random"]}})
    assert WEIGHT not in recorded.windows(critic, node).batch(np.arange(2))


def test_simulated_windows_weigh_what_their_dynamics_are_worth_in_the_target(tmp_path):
    """Two simulators that differ in how far a command goes; half of the first move as the target does."""
    rng = np.random.default_rng(0)
    spec = DatasetSpec({STATE: FeatureSpec((2,)), ACTION: FeatureSpec((2,)), SUCCESS: FeatureSpec((), "bool")}, 10.0)
    writer = EpisodeWriter(tmp_path / "d", spec)
    for name, gain in [*(("same", 1.0),) * 10, *(("other", 0.3),) * 10, *(("target", 1.0),) * 10]:
        action = rng.normal(size=(40, 2)).astype(np.float32)
        state = np.zeros((40, 2), np.float32)
        for t in range(39):
            state[t + 1] = 0.5 * state[t] + gain * action[t] + 0.1 * rng.normal(size=2)
        writer.add({STATE: state, ACTION: action, SUCCESS: np.zeros(40, bool)}, {"task": "x", "source": name})
    node = {"path": str(tmp_path / "d"), "target": {"source": ["target"]}}
    recorded = source(node)
    critic = SuccessCritic(
        recorded.observation, recorded.spec.action, 10.0, execute_horizon=1, observation_keys=[STATE], hidden=8
    )
    quick = GapConfig(num_folds=2, hidden=32, steps=200, batch_size=64, learning_rate=5e-3)
    weights = target_weights(recorded.store, critic, recorded.episodes, node["target"], quick)
    kind = np.repeat(np.array(recorded.store.table["source"].to_pylist()), 40)
    weight = {name: weights[kind == name].mean() for name in ("same", "other", "target")}
    assert weight["target"] == 1.0
    assert weight["same"] > 1.4 * weight["other"]
    assert (weight["same"] + weight["other"]) / 2 == pytest.approx(1.0, abs=0.01)


def test_the_verbs_settings_compose():
    assert compose("branch", ["checkpoint=x", "out=y"]).limits.force == 60.0
    assert compose("train", ["critic=cal_ql", "data.path=x"]).critic.conservatism > 0
