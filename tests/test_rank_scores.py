"""Properties of the further scores in `robopolicy rank`, on a target whose dynamics, rewards and outcomes are known."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from robopolicy import pipeline, spec
from robopolicy.config import compose, to_plain
from robopolicy.data.episodes import EpisodeStore, write_episodes
from robopolicy.evaluation.rollout import PolicyActor
from robopolicy.ranking.result import Ranking
from robopolicy.ranking.tables import RankingError, load_features
from robopolicy.selection import acted, gap
from robopolicy.selection.further import FURTHER, seeds_disagree
from robopolicy.selection.run import rank_verb

TASK = ("+task.env.max_episode_steps=6", "task.env.observation=[state]", "randomization=none")
SMALL = ("episodes=6", "confirm=3", "num_frames=60", "num_bootstrap=100", "num_workers=0", "pictures=false", "finalists=2")
EVERYTHING = (f"also=[{','.join(name for name in FURTHER if name != 'critic')}]", "noise={observation.state: 0.01}")
HORIZON, SEEDS, STEPS = 2, (0, 1), 2


def settings(name, *overrides):
    return to_plain(compose(name, list(overrides)))


def moves(store, gain, seed, num=40, steps=12):
    """Episodes of s' = s + gain * (a, a, a[:3]) + noise, in the spec of `store`; the upper half of the returns succeeds."""
    rng = np.random.default_rng(seed)
    episodes = []
    for _ in range(num):
        state, action = np.zeros((steps, 17)), rng.uniform(-1, 1, (steps, 7))
        state[0] = rng.normal(size=17)
        for t in range(steps - 1):
            push = np.r_[action[t], action[t], action[t, :3]]
            state[t + 1] = state[t] + gain * push + 0.02 * rng.normal(size=17)
        reward = action[:, 0] + 0.1 * state[:, 0]
        flags = {key: np.zeros(steps, bool) for key in (spec.TERMINATED, spec.TRUNCATED, spec.SUCCESS)}
        flags[spec.TERMINATED][-1] = True
        arrays = {spec.STATE: state.astype(np.float32), spec.ACTION: action.astype(np.float32)}
        episodes.append({**arrays, spec.REWARD: reward.astype(np.float32), **flags})
    middle = np.median([e[spec.REWARD].sum() for e in episodes])
    for episode in episodes:
        won = bool(episode[spec.REWARD].sum() > middle)
        episode[spec.SUCCESS][-1] = won
        episode |= {"success": won, "source": "made"}
    return episodes


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of two checkpoints, trained on moves of gain 0.3; targets that move alike and otherwise."""
    folder = tmp_path_factory.mktemp("scores")
    given = settings("rank", *TASK)
    pipeline.collect_run(folder / "real", given["task"], "none", seed=1, episodes={"expert": 1}, twin=False, num_workers=0)
    store = EpisodeStore(folder / "real")
    for name, gain, seed in (("data", 0.3, 0), ("target", 0.3, 1), ("weak", 0.1, 1)):
        write_episodes(folder / name, moves(store, gain, seed), store.spec.fps, store.spec)
    horizons = (f"policy.execute_horizon={HORIZON}", "policy.action_horizon=4", "inputs.encoder.width=16")
    for seed in SEEDS:
        overrides = ("policy=bc", f"data.path={folder / 'data'}", "train.steps=16", f"train.num_checkpoints={STEPS}")
        inputs = "inputs.observation_keys=[observation.state]"
        train = settings("train", *overrides, *horizons, f"train.seed={seed}", "train.batch_size=8", inputs)
        train.pop("run_dir", None)
        pipeline.train_run(train, folder / "runs" / f"seed{seed}")
    return folder


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(acted, "FQE_SETTINGS", {"steps": 150, "hidden": 24, "batch_size": 64, "learning_rate": 5e-3})
        patch.setattr(acted, "DYNAMICS_SETTINGS", {"steps": 200, "hidden": 32, "batch_size": 64})
        patch.setattr(gap, "STEPS", 60)
        yield


def ranked(runs, out, *more, target="target"):
    pool = f"pool={runs / 'runs'}/*"
    given = () if target is None else (f"target={runs / target}",)
    done = rank_verb(settings("rank", *TASK, pool, *given, f"out={out}", *SMALL, *more))
    return done, (out / "ranking.json").read_bytes()


@pytest.fixture(scope="module")
def scored(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("scored")
    return out, ranked(runs, out, *EVERYTHING)[1]


def test_every_score_has_a_value_or_says_why_not(scored):
    ranking = Ranking.read(scored[0])
    found = ranking.statistics["estimates"]
    assert found.keys() == set(FURTHER) - {"critic"}
    for name, estimates in found.items():
        for estimate in estimates.values():
            assert (estimate["value"] is not None) or estimate["reason"], name
    page = (scored[0] / "report.html").read_text()
    for name in ("fqe", "opc", "soft_opc", "amq", "dynamics_gap", "disagreement", "certified", "kl_robust", "action_error"):
        values = [line.scores.get(name) for line in ranking.checkpoints]
        assert None not in values, (name, found[name])
        assert f"<button>{name}</button>" in page
    assert all(0 <= line.scores["opc"] <= 1 for line in ranking.checkpoints)
    assert max(e["n_eff"] for e in found["fqe"].values()) == 40


def test_all_scores_are_byte_identical_for_other_numbers_of_workers(runs, scored, tmp_path):
    shutil.copytree(scored[0] / "units", tmp_path / "units")
    assert ranked(runs, tmp_path, *EVERYTHING, "num_workers=2")[1] == scored[1]
    assert (tmp_path / "amq").is_dir()


def test_fitted_q_in_the_command_prefers_the_policy_that_earns_more(runs, scored):
    """Reward grows with the first action and with the state that it pushes: a policy that pushes is worth more."""
    store = EpisodeStore(runs / "target")
    own = load_features(next((scored[0] / "acts").glob("*.npz")))
    acts = {name: {**own, "chunks": np.full_like(own["chunks"], shift)} for name, shift in (("up", 0.8), ("down", -0.8))}
    found = acted.off_policy(acts, store, 0)["fqe"]
    assert found["up"].applicable
    assert found["up"].value > found["down"].value + 2 * found["up"].sd


def test_other_dynamics_are_seen_where_pictures_would_look_alike(runs, scored, tmp_path):
    shutil.copytree(scored[0] / "units", tmp_path / "units")
    ranked(runs, tmp_path, "also=[dynamics_gap]", target="weak")
    alike, other = (Ranking.read(out).statistics["dynamics_gap"][0]["gap"]["value"] for out in (scored[0], tmp_path))
    assert other > 3 * abs(alike)
    assert other > 0.3


def test_noise_lowers_what_is_certified_and_changes_every_observation(scored):
    lines = Ranking.read(scored[0]).statistics["certificates"]["lines"]
    assert len(lines) == 4
    assert all(line["certified"] <= line["noisy_success"] for line in lines)

    class Seen:
        spec = spec.PolicySpec(
            observation={spec.STATE: spec.FeatureSpec((3,), "float32")},
            action=spec.FeatureSpec((1,), "float32"),
            obs_horizon=1,
            action_horizon=1,
            execute_horizon=1,
            control_hz=10.0,
        )

        def __init__(self):
            self.seen = []

        def reset(self):
            pass

        def sample(self, observation, num_samples=1, seed=None):
            self.seen.append(observation[spec.STATE][0, 0].copy())
            return np.zeros((1, 1, 1, 1), np.float32)

    policy = Seen()
    actor = PolicyActor(policy, noise={spec.STATE: 0.5})
    for _ in range(2):
        actor.reset(3)
        for _ in range(200):
            actor.act(None, {spec.STATE: np.ones(3, np.float32)})
    first, again = np.array(policy.seen[:200]), np.array(policy.seen[200:])
    np.testing.assert_array_equal(first, again)
    assert first.std() == pytest.approx(0.5, rel=0.1)
    assert abs(np.corrcoef(first[1:, 0], first[:-1, 0])[0, 1]) < 0.25


def test_seeds_that_disagree_on_the_target_alone_are_found():
    rng = np.random.default_rng(0)
    fit, held = rng.normal(size=(100, 3)), rng.normal(size=(80, 3))
    target = rng.normal(size=(60, 3))

    def members(spread):
        noise = np.random.default_rng(1)
        shaken = lambda x, sd: x + sd * noise.normal(size=x.shape)  # noqa: E731
        return [{"fit": shaken(fit, 0.1), "calibration": shaken(held, 0.1), "target": shaken(target, spread)} for _ in range(3)]

    assert abs(seeds_disagree(members(0.1)).value) < 0.5
    assert seeds_disagree(members(0.5)).value < -2


@pytest.mark.parametrize(
    ("target", "also", "message"),
    [
        (None, ("amq", "dynamics_gap", "disagreement"), "no target was given"),
        ("pictures", ("amq", "soft_opc", "dynamics_gap"), "target has no actions"),
    ],
)
def test_what_is_missing_is_said(runs, scored, tmp_path, target, also, message):
    shutil.copytree(scored[0] / "units", tmp_path / "units")
    if target == "pictures":
        store = EpisodeStore(runs / "target")
        state = np.concatenate([store.read(i, [spec.STATE])[spec.STATE] for i in range(3)])
        folder = runs / "pictures"
        folder.mkdir(exist_ok=True)
        for i in range(len(state)):
            Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(folder / f"{i:03d}.png")
        rows = [",".join(f"s{i}" for i in range(17)), *(",".join(map(repr, row)) for row in state.tolist())]
        (folder / "state.csv").write_text("\n".join(rows) + "\n")
    ranked(runs, tmp_path, f"also=[{','.join(also)}]", target=target)
    missing = json.loads((tmp_path / "context.json").read_text())["not_computed"]
    for name in also:
        assert missing[f"Score {name}"] == f"n/a for 4 of 4 checkpoints: {message}" + (
            ": give a dataset" if "actions" in message else ""
        )
    with pytest.raises(RankingError, match="could not be computed: n/a"):
        ranked(runs, tmp_path, f"also=[{also[0]}]", f"combine=[sim,{also[0]}]", target=target)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("also=[certified]",), "give noise="),
        (("also=[certified]", "noise={observation.state: 0}"), "above 0"),
        (("look_every=2",), "needs alloc=halving"),
        (("look_every=2", "alloc=halving"), "by success alone"),
        (("budget=2hours",), "budget=2h or 30m"),
        (("budget=0.01s",), "give more than"),
        (("baseline=sed0@16",), "did you mean 'seed0@16'"),
        (("combine=[sim,fqe]",), "combine has 'fqe'"),
        (("outcomes=nowhere.parquet",), "no episode table at"),
        (("open_sealed=true",), "no split 'sealed'"),
        (("combiner=rank_produkt",), "did you mean 'rank_product'"),
        (("k=[0]",), "each at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_played(runs, tmp_path, given, message):
    with pytest.raises(RankingError, match=message):
        ranked(runs, tmp_path, *given)
    assert not (tmp_path / "ranking.json").exists()
    assert given == ("budget=0.01s",) or not (tmp_path / "units").exists()  # of a time, a block is played first


def test_an_hour_is_enough_for_all_conditions_and_the_report_says_how_it_was_spent(runs, scored, tmp_path):
    shutil.copytree(scored[0] / "units", tmp_path / "units")
    ranked(runs, tmp_path, "budget=1h", "alloc=halving", "look_every=2", "combine=[sim]")
    assert Ranking.read(tmp_path).num_episodes == 6
    assert "How the episodes were spent" in (tmp_path / "report.html").read_text()


def test_statistics_of_the_pool_are_in_the_ranking(scored):
    found = Ranking.read(scored[0]).statistics
    [config] = found["training_seeds"]["configs"]
    assert (config["runs"], config["num_seeds"], config["num_checkpoints"]) == (["seed0", "seed1"], 2, STEPS)
    assert config["components"].keys() >= {"seed", "condition", "repeat"}
    pairs = found["finalists"]["confirm"]
    assert pairs["num_pairs"] == 3
    assert len(pairs["comparisons"]) == 1
    assert pairs["comparisons"][0]["p_holm"] == pairs["comparisons"][0]["p_value"]
    assert found["real_means"]["not_computed"].startswith("no outcomes")
    assert found["separation"]["num_groups"] == 1
