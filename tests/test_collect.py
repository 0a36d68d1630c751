"""Collection: what is played is what is recorded, and nothing is lost or doubled whatever happens on the way."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from robopolicy import spec
from robopolicy.cli import INTERRUPTED
from robopolicy.data.actors import ExpertActor, NoisyExpertActor, RandomActor, scripted_actor
from robopolicy.data.collect import CollectionError, collect, play
from robopolicy.data.episodes import EpisodeStore, write_episodes
from robopolicy.data.measures import ALL, cell_counts, measures, rarefied
from robopolicy.executor import Local, Ray, WorkerError, map_units
from robopolicy.sim.env import RobotEnv

ENV_ID = "robopolicy/Lift-v0"
KWARGS = {"observation": ["state"], "randomization": "narrow"}


def files(path):
    """{name: content} of everything in the episodes' folder, leftovers included."""
    return {file.name: file.read_bytes() for file in (Path(path) / "episodes").iterdir()}


def collection(path, **options):
    """Four episodes, in this process unless told otherwise."""
    episodes = {"expert": 2, "random": 2}
    return collect(path, ENV_ID, KWARGS, episodes, **{"seed": 3, "num_workers": 0, "title": "", **options})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The four episodes of an undisturbed collection."""
    path = tmp_path_factory.mktemp("whole")
    collection(path)
    return files(path)


@pytest.fixture
def env():
    env = gymnasium.make(ENV_ID, disable_env_checker=True, **KWARGS)
    yield env
    env.close()


# --- actors ---


@pytest.mark.parametrize("behaviour", ["expert", "imperfect", "noisy", "random"])
def test_recorded_actions_replay_the_episode(env, behaviour):
    episode = play(env, scripted_actor(behaviour), seed=11, record=True)
    actions = episode.arrays[spec.ACTION]
    assert all(env.action_space.contains(action) for action in actions)
    observation, _ = env.reset(seed=11)
    for state, action, reward in zip(episode.arrays[spec.STATE], actions, episode.arrays[spec.REWARD], strict=True):
        np.testing.assert_array_equal(observation[spec.STATE], state)
        observation, replayed, *_ = env.step(action)
        assert replayed == reward


def test_noise_spreads_between_the_expert_and_nothing(env):
    still = play(env, NoisyExpertActor(max_epsilon=0.0, max_std=0.0), seed=5, record=True)
    expert = play(env, ExpertActor(), seed=5, record=True)
    np.testing.assert_array_equal(still.arrays[spec.ACTION], expert.arrays[spec.ACTION])
    actor, magnitudes = NoisyExpertActor(), []
    for seed in range(200):
        actor.reset(seed)
        magnitudes.append(actor.facts["noise"])
    assert np.abs(np.sort(magnitudes) - (np.arange(200) + 0.5) / 200).max() < 0.1, "uniform in [0, 1]"


def test_random_actions_fill_the_space_and_smooth_ones_travel(env):
    env.reset(seed=0)
    actor, steps = RandomActor(), {False: [], True: []}
    for seed in range(30):
        actor.reset(seed)
        actions = np.stack([actor.act(env, None) for _ in range(50)])
        steps[actor.facts["correlation_s"] > 0].append((actions - actions.mean(0)) / np.ptp(env.action_space.high))
        assert all(env.action_space.contains(action) for action in actions)
    assert min(len(steps[False]), len(steps[True])) > 5
    correlation = {kind: np.mean([(a[1:] * a[:-1]).sum() / (a**2).sum() for a in arrays]) for kind, arrays in steps.items()}
    assert abs(correlation[False]) < 0.1
    assert correlation[True] > 0.4


# --- robustness ---


SCRIPT = f"""
import sys
from robopolicy.data.collect import collect
collect(sys.argv[1], {ENV_ID!r}, {KWARGS!r}, {{"expert": 8, "noisy": 8}}, seed=0, num_workers=int(sys.argv[2]), title="")
"""


def stopped_after(episodes, path, how, command):
    """(exit code, stderr, files) of a collection that gets the signal `how`, as all of its workers do, at so many episodes."""
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a test run in the background ignores it, and hands that on
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    signal.signal(signal.SIGINT, before)
    while len(list(path.glob("episodes/[!.]*"))) < episodes and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, how)
    _, message = process.communicate(timeout=60)
    return process.returncode, message, {file: file.stat().st_mtime_ns for file in path.glob("episodes/[!.]*")}


def test_a_killed_collection_goes_on_to_the_same_files(tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "cut"), "2"]
    code, _, before = stopped_after(5, tmp_path / "cut", signal.SIGKILL, command)
    assert code == -signal.SIGKILL
    assert 5 <= len(before) < 16, "it was killed too late to show anything"
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert f"({len(before)} of 16 are there)" in done.stderr
    assert all(file.stat().st_mtime_ns == written for file, written in before.items()), "none was played again"
    collect(tmp_path / "whole", ENV_ID, KWARGS, {"expert": 8, "noisy": 8}, seed=0, num_workers=0, title="")
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_an_interrupt_stops_cleanly_and_says_how_to_go_on(tmp_path):
    command = [sys.executable, "-m", "robopolicy.cli", "collect", f"path={tmp_path}", "num_workers=1", "episodes.expert=500"]
    code, message, found = stopped_after(1, tmp_path, signal.SIGINT, [*command, "task.env.observation=[state]"])
    assert code == INTERRUPTED
    assert f"interrupted: {len(found)} of 500 episodes are in {tmp_path}; the same command goes on from there" in message
    assert "Traceback" not in message


def failing_actor(behaviour, marker, victim, how):
    """The actor of a behaviour, but the worker that plays the episode with the seed `victim` is lost; once, given a marker."""

    class Failing(type(scripted_actor(behaviour))):
        def reset(self, seed):
            super().reset(seed)
            if seed == victim and not (marker and Path(marker).exists()):
                if marker:
                    Path(marker).touch()
                os.kill(os.getpid(), how)

    return Failing()


def seed_of(content, name):
    """The seed in the info of an episode file's content."""
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(content[name])) as archive:
        return json.loads(archive.read("zarr.json"))["attributes"]["seed"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_an_episode_whose_worker_is_lost_is_played_by_another(whole, tmp_path, how):
    victim = seed_of(whole, sorted(whole)[1])
    actor = partial(failing_actor, marker=str(tmp_path / "marker"), victim=victim, how=how)
    collection(tmp_path / "data", num_workers=2, make_actor=actor, executor=Local(retries=1))
    assert (tmp_path / "marker").exists(), "a worker was lost"
    assert files(tmp_path / "data") == whole


def test_an_episode_that_ends_every_worker_is_named_and_the_others_are_there(whole, tmp_path):
    name = sorted(whole)[2]
    actor = partial(failing_actor, marker=None, victim=seed_of(whole, name), how=signal.SIGKILL)
    with pytest.raises(CollectionError, match=r"SIGKILL.*3 of 4 episodes") as caught:
        collection(tmp_path / "data", num_workers=2, make_actor=actor, executor=Local(retries=1))
    assert name.removesuffix(".zarr.zip") in str(caught.value)
    assert files(tmp_path / "data") == {other: content for other, content in whole.items() if other != name}


def test_a_full_disk_stops_the_collection_and_keeps_what_is_there(tmp_path, whole):
    sizes = {kind: [len(content) for name, content in whole.items() if name.startswith(kind)] for kind in ("expert", "random")}
    limit = (max(sizes["expert"]) + min(sizes["random"])) // 2  # bytes of a file: the kernel refuses more
    assert max(sizes["expert"]) < limit
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match=r"no space left for .*: 2 of 4 episodes are in .* once there is space"):
            collection(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(tmp_path) == {name: content for name, content in whole.items() if name.startswith("expert")}
    collection(tmp_path)
    assert files(tmp_path) == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": {"expret": 1}}, "did you mean 'expert'"),
        ({"episodes": {"expert": -1}}, "expert=-1"),
        ({"episodes": {"expert": 1}, "levels": [0, 2]}, "levels"),
        ({"episodes": {"expert": 1}, "levels": [0.5]}, "levels"),
    ],
)
def test_mistakes_are_named_before_anything_starts(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        collect(tmp_path / "data", ENV_ID, KWARGS, seed=0, **options)
    assert not (tmp_path / "data").exists()


def test_collections_that_differ_add_to_each_other(tmp_path, whole):
    collection(tmp_path)
    collect(tmp_path, ENV_ID, {**KWARGS, "randomization": "none"}, {"expert": 1}, seed=3, num_workers=0, title="")
    assert len(EpisodeStore(tmp_path)) == len(whole) + 1


def test_a_curriculum_rises_over_the_episodes(tmp_path, monkeypatch):
    seen, reset = [], RobotEnv.reset

    def spy(self, *, seed=None, options=None):
        seen.append(options)
        return reset(self, seed=seed, options=options)

    monkeypatch.setattr(RobotEnv, "reset", spy)
    store = collect(tmp_path, ENV_ID, KWARGS, {"random": 3}, seed=0, num_workers=0, title="", levels=[0.2, 1.0])
    assert store.table["level"].to_pylist() == pytest.approx([0.2, 0.6, 1.0])
    assert [options["level"] for options in seen if options] == pytest.approx([0.2, 0.6, 1.0])


# --- executors ---


def poorly(unit):
    """-unit, but an error for 3."""
    if unit == 3:
        raise KeyError("three")
    return -unit


def lethal(unit):
    """-unit, but the end of the process for 3."""
    if unit == 3:
        os._exit(7)
    return -unit


def slow_at_first(unit, marker):
    """-unit, after a quarter of an hour for 3, unless somebody has tried before."""
    if unit == 3 and not Path(marker).exists():
        Path(marker).touch()
        time.sleep(900)
    return -unit


def test_a_stalled_worker_is_replaced(tmp_path):
    work = partial(slow_at_first, marker=str(tmp_path / "marker"))
    assert map_units(work, range(6), 2, progress=False, executor=Local(timeout_s=3.0)) == [0, -1, -2, -3, -4, -5]


def test_errors_of_units_arrive_as_they_are():
    for num_workers in (0, 2):
        with pytest.raises(KeyError, match="three"):
            map_units(poorly, range(6), num_workers, progress=False)
        assert map_units(poorly, range(3), num_workers, progress=False) == [0, -1, -2], "and the workers go on"


def test_units_that_end_their_workers_are_reported_after_all_others_are_done():
    done = []
    with pytest.raises(WorkerError, match=r"1 of 6 .*exited with 7") as caught:
        map_units(lethal, range(6), 2, progress=False, executor=Local(retries=1), note=lambda result: str(done.append(result)))
    assert list(caught.value.lost) == [3]
    assert sorted(done) == [-5, -4, -2, -1, 0]


def test_ray_plays_the_same_episodes(whole, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))  # the workers import this module
    try:
        collection(tmp_path / "data", num_workers=2, executor=Ray())
        assert files(tmp_path / "data") == whole
        with pytest.raises(WorkerError, match="1 of 4"):
            map_units(lethal, range(4), 2, progress=False, executor=Ray(retries=1))
        with pytest.raises(KeyError, match="three"):
            map_units(poorly, range(4), 2, progress=False, executor=Ray())
    finally:
        ray.shutdown()


def test_without_ray_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'robopolicy\[ray\]'"):
        collection(tmp_path, num_workers=1, executor=Ray())


# --- measures ---


def test_rarefaction_is_the_mean_over_samples():
    counts, rng = np.array([1, 1, 2, 5, 40]), np.random.default_rng(0)
    owners = np.repeat(np.arange(5), counts)
    samples = [len(np.unique(rng.permutation(owners)[:10])) for _ in range(4000)]
    assert rarefied(counts, 10) == pytest.approx(np.mean(samples), abs=0.05)
    assert rarefied(counts, 49) == pytest.approx(5.0)
    assert rarefied(counts, 1) == pytest.approx(1.0)


def test_measures_of_a_dataset_made_to_order(tmp_path):
    """On a grid of 5 states and 5 actions: the expert does one thing, random does everything, as often as it."""
    grid = np.stack(np.meshgrid(np.arange(5.0), np.arange(5.0)), -1).reshape(-1, 2).astype(np.float32)
    one = np.repeat(grid[:1], 25, axis=0)

    def episode(pairs, source, reward, success):
        rewards = np.full(len(pairs), reward / len(pairs), np.float32)
        arrays = {spec.STATE: pairs[:, :1], spec.ACTION: pairs[:, 1:], spec.REWARD: rewards}
        return {**arrays, "source": source, "success": success}

    episodes = [episode(one, "expert", 10.0, True), episode(grid, "random", 2.0, False), episode(one, "noisy", 4.0, False)]
    write_episodes(tmp_path, episodes, fps=10)
    rows = {row.source: row for row in measures(EpisodeStore(tmp_path))}
    assert [(rows[name].success, rows[name].unique) for name in ("expert", "noisy", "random", ALL)] == [
        (1.0, 1), (0.0, 1), (0.0, 25), (pytest.approx(1 / 3), 25),
    ]  # fmt: skip
    assert [rows[name].tq for name in ("expert", "random", "noisy")] == pytest.approx([1.0, 0.0, 0.25], abs=1e-6)
    expected = rarefied(cell_counts([np.concatenate([grid, one, one]).astype(np.uint8)]), 25)
    assert rows["expert"].saco == pytest.approx(1 / expected)
    assert rows["random"].saco == pytest.approx(25 / expected)
    assert rows[ALL].saco == pytest.approx(1.0)
    against = measures(EpisodeStore(tmp_path), reference=EpisodeStore(tmp_path))
    assert [row.saco for row in against] == pytest.approx([row.saco for row in measures(EpisodeStore(tmp_path))])
