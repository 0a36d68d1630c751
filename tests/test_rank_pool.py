"""Properties of `robopolicy rank` on checkpoints: work units, resuming, worker counts, halving, suites, leaks, targets."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from test_importers import example, record, tensor, tree

from robopolicy import checkpoint, pipeline, spec
from robopolicy.config import compose, to_plain
from robopolicy.data.episodes import EpisodeStore, write_episodes
from robopolicy.data.lerobot import export_dataset
from robopolicy.evaluation.features import draw_rows
from robopolicy.policies.load import load_policy
from robopolicy.ranking.allocation import sequential_halving
from robopolicy.ranking.result import Ranking
from robopolicy.ranking.tables import IntegrityError, RankingError
from robopolicy.selection import features, verbs
from robopolicy.selection.acts import between, decision_rows
from robopolicy.selection.features import LAYERS, policy_features
from robopolicy.selection.pool import Work, find_pool
from robopolicy.selection.run import rank_verb
from robopolicy.selection.spending import Spending, rounds
from robopolicy.selection.suite import FrozenSuite, read_suite
from robopolicy.selection.target import open_target, prepare
from robopolicy.spec import STATE, image_key

TASK = ("+task.env.max_episode_steps=6", "task.env.observation=[state]", "randomization=none")
SMALL = ("episodes=6", "confirm=3", "num_frames=40", "num_bootstrap=100", "num_workers=0", "pictures=false")


def settings(name, *overrides):
    return to_plain(compose(name, list(overrides)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of four checkpoints each, a dataset they were trained on, and another of the twin."""
    folder = tmp_path_factory.mktemp("pool")
    given = settings("rank", *TASK)
    for name, seed, twin in (("data", 1, False), ("target", 2, True)):
        options = {"episodes": {"expert": 8}, "twin": twin, "disturbance": 0.01, "num_workers": 0}
        pipeline.collect_run(folder / name, given["task"], "none", seed=seed, **options)
    for seed in (0, 1):
        inputs = "inputs.observation_keys=[observation.state]"
        overrides = ("policy=bc", f"data.path={folder / 'data'}", "train.steps=16", "train.num_checkpoints=4")
        train = settings("train", *overrides, f"train.seed={seed}", "train.batch_size=8", inputs)
        train.pop("run_dir", None)
        pipeline.train_run(train, folder / "runs" / f"seed{seed}")
    return folder


def ranked(runs, out, *more):
    pool = f"pool={runs / 'runs'}/*"
    done = rank_verb(settings("rank", *TASK, pool, f"target={runs / 'target'}", f"out={out}", *SMALL, *more))
    return done, (Path(out) / "ranking.json").read_bytes()


@pytest.fixture(scope="module")
def whole(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, *ranked(runs, out)


def test_a_pool_is_rolled_out_detected_ranked_and_confirmed(whole):
    out, done, _ = whole
    ranking = Ranking.read(out)
    assert done.exit_code == 0
    assert len(ranking.checkpoints) == 8
    assert set(ranking.orders) == {"vsdr", "sim", "ood"}
    assert all(len(c.sha) == 64 for c in ranking.checkpoints)
    assert [len(c.fresh) for c in ranking.checkpoints] == [1] * 3 + [0] * 5
    assert ranking.inputs.keys() == {"suite", "target"}
    assert read_suite(out / "suite.yaml").sha == ranking.inputs["suite"]
    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["settings"]["episodes"] == 6
    assert "sha256" in (out / f"card_{ranking.checkpoints[0].checkpoint}.md").read_text()


def test_the_result_is_byte_identical_for_any_number_of_workers(runs, whole, tmp_path):
    assert ranked(runs, tmp_path / "two", "num_workers=2")[1] == whole[2]


def test_what_was_played_is_not_played_again(runs, whole, tmp_path, monkeypatch):
    shutil.copytree(whole[0] / "units", tmp_path / "units")
    monkeypatch.setattr("robopolicy.selection.units.play_block", None)  # would fail
    assert ranked(runs, tmp_path)[1] == whole[2]


def test_a_killed_run_goes_on_where_it_stopped(runs, whole, tmp_path):
    arguments = [*TASK, f"pool={runs / 'runs'}/*", f"target={runs / 'target'}", f"out={tmp_path}", *SMALL, "num_workers=1"]
    command = [sys.executable, "-m", "robopolicy.cli", "rank", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None and len(list(tmp_path.glob("units/*/*.json"))) < 3:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "ranking.json").exists(), "it was killed too late to show anything"
    stamps = {file: file.stat().st_mtime_ns for file in tmp_path.glob("units/*/*.json")}
    assert len(stamps) >= 3
    assert ranked(runs, tmp_path)[1] == whole[2]
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in stamps.items()), "nothing was played twice"


def test_ray_nodes_give_the_same_bytes_though_one_dies(runs, whole, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'robopolicy[ray]'")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")  # else a busy machine never gets to them
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    lost = []
    try:
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()

        def kill_a_node():
            while len(list(tmp_path.glob("units/*/*.json"))) < 2:
                time.sleep(0.01)
            cluster.remove_node(node, allow_graceful=False)
            lost.append(len(list(tmp_path.glob("units/*/*.json"))))

        killer = threading.Thread(target=kill_a_node, daemon=True)
        killer.start()
        found = ranked(runs, tmp_path, "executor=ray", f"executor.address='{cluster.address}'", "num_workers=2")[1]
        killer.join(60)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert found == whole[2]
    assert lost
    assert lost[0] < 8, "the node died too late to show anything"


def test_halving_spends_less_drops_the_worse_and_reads_every_checkpoint_once(runs, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr("robopolicy.selection.units.sha256", lambda folder: read.append(folder) or checkpoint.sha256(folder))
    done, _ = ranked(runs, tmp_path, "alloc=halving", "budget=32", "finalists=2", "episodes=12")
    ranking = Ranking.read(tmp_path)
    assert done.exit_code == 0
    assert sum(c.num_episodes for c in ranking.checkpoints) <= 32
    assert [c.dropped for c in ranking.checkpoints[:2]] == [None, None]
    assert sorted(c.dropped for c in ranking.checkpoints[2:]) == [1] * 4 + [2] * 2
    assert [c.dropped for c in ranking.checkpoints[2:]] == [2, 2, 1, 1, 1, 1], "dropped later is placed before dropped early"
    assert "How the episodes were spent" in (tmp_path / "report.html").read_text()
    assert len(read) == len(set(read)) == 8


def test_halving_by_another_score_finds_its_best_with_fewer_episodes():
    rng, rates = np.random.default_rng(0), np.arange(32) / 40
    hits = rng.uniform(size=(32, 200)) < rates[:, None]
    plan = rounds(32, 200, Spending("halving", 1600, finalists=2))
    upside_down = np.linspace(1, 0, 32)
    for score, best in ((None, 31), (lambda alive, dropped: upside_down[np.array(alive)], 0)):
        found = sequential_halving(lambda p, a, b: hits[np.array(p), a:b], plan, score=score)
        assert found.trials.sum() <= 1600 < 32 * 200
        assert best in found.best
        assert [line["policies"] for line in found.log] == [32, 16, 8, 4]
        assert sorted(found.dropped) == sorted(set(range(32)) - set(found.best))
    with pytest.raises(RankingError, match="less than an episode"):
        rounds(32, 200, Spending("halving", 20, finalists=2))


def test_early_stopping_needs_an_order_by_success_alone():
    given = ("alloc=halving", "look_every=5", "also=[kl_robust]")
    assert Spending.of(settings("rank", *given)).look_every == 5
    with pytest.raises(RankingError, match="by success alone"):
        Spending.of(settings("rank", *given, "combine=[sim,kl_robust]"))


def test_arrays_are_made_again_where_other_versions_run(tmp_path, monkeypatch):
    arm, made = SimpleNamespace(name="a@1", checkpoint="a"), []

    def make(arm):
        made.append(arm.name)
        return {"x": np.ones(1)}

    for _ in range(2):
        features.kept_arrays([arm], make, [], tmp_path, 0, "x", shas={"a": "1"})
    assert made == ["a@1"]
    monkeypatch.setattr(features, "played_by", lambda: ["other"])
    features.kept_arrays([arm], make, [], tmp_path, 0, "x", shas={"a": "1"})
    assert made == ["a@1", "a@1"]
    assert features.features_file(tmp_path, "a/b@1") != features.features_file(tmp_path, "a_b@1")


def test_the_cost_counts_the_processes_of_the_executor(tmp_path):
    cluster = SimpleNamespace(crew=lambda num_workers: SimpleNamespace(size=num_workers or 64))
    assert [Work(tmp_path, num, cluster).processes for num in (None, 8, 0)] == [64, 8, 1]


def test_a_dry_run_says_the_cost_and_stops(runs, tmp_path):
    done = rank_verb(settings("rank", *TASK, f"pool={runs / 'runs'}", f"out={tmp_path}", *SMALL, "dry_run=true"))
    assert "8 checkpoints, 57 episodes" in done.lines[0]
    assert not (tmp_path / "ranking.json").exists()


def test_equal_checkpoints_are_one_and_patterns_find_them(runs, tmp_path):
    shutil.copytree(runs / "runs/seed0", tmp_path / "again")
    found = find_pool([str(runs / "runs/seed0"), str(tmp_path / "*"), str(runs / "runs/seed0")])
    assert len(found) == len(found.notes) == 4
    assert "is the same checkpoint as seed0@" in found.notes[0]
    with pytest.raises(ValueError, match="nothing matches"):
        find_pool([str(tmp_path / "nothing*")])


def test_further_scores_are_shown_and_order_only_when_asked(runs, whole, tmp_path):
    shutil.copytree(whole[0] / "units", tmp_path / "units")
    ranked(runs, tmp_path, "also=[kl_robust,support,action_error]", "combine=[action_error]")
    ranking = Ranking.read(tmp_path)
    line = ranking.checkpoints[0]
    assert set(line.scores) == {"sim", "ood", "kl_robust", "action_error"}
    page = (tmp_path / "report.html").read_text()
    assert "n/a for 8 of 8 checkpoints: all 128 entries are constant" in page, "these episodes start alike"
    episodes = [row for row in pq.read_table(tmp_path / "episodes.parquet").to_pylist() if row["split"] == "select"]
    for c in ranking.checkpoints:
        progress = [row["progress"] for row in episodes if row["checkpoint"] == c.checkpoint]
        assert min(progress) - 1e-9 <= c.scores["kl_robust"] < np.mean(progress)
    assert ranking.orders["vsdr"] == ranking.orders["action_error"]
    errors = {c.checkpoint: -c.scores["action_error"] for c in ranking.checkpoints}
    trained = [errors[f"seed0@{step}"] for step in (4, 16)]
    assert trained[1] < trained[0], "training on these tasks lowers the error on the target's actions"
    with pytest.raises(RankingError, match="did you mean 'support'"):
        ranked(runs, tmp_path, "also=[suport]")


def test_recorded_decisions_become_transitions(runs):
    store = EpisodeStore(runs / "target")
    length = int(store.lengths[0])
    rows = decision_rows(store.lengths[:1], 2, 100, 0)
    own = {"episode": np.zeros(len(rows), int), "step": rows, "recorded": np.zeros((len(rows), 2, 7))}
    current, following, rewards, discounts = between(own, store)
    reward = store.read(0, [spec.REWARD])[spec.REWARD].astype(float)
    assert current.tolist() == list(range(length // 2))
    assert following[:-1].tolist() == list(range(1, length // 2))
    assert discounts[-1] == 0
    assert rewards[0] == pytest.approx(reward[0] + 0.99 * reward[1])


def test_decisions_are_drawn_in_whole_episodes():
    lengths = np.array([5, 8, 3, 8])
    rows = decision_rows(lengths, 4, 4, 0)
    starts = np.cumsum(lengths) - lengths
    owner = np.searchsorted(starts, rows, side="right") - 1
    assert 2 <= len(rows) <= 4
    for e in np.unique(owner):
        assert (rows[owner == e] - starts[e]).tolist() == list(range(0, lengths[e], 4))
    assert len(decision_rows(lengths, 4, 100, 0)) == 7
    assert len(decision_rows(lengths, 1, 1, 0)) in lengths


# ---- leaks and targets


def test_a_target_that_was_trained_on_is_refused_with_exit_code_4(runs, tmp_path):
    part = runs / "part"
    if not part.exists():
        shutil.copytree(runs / "data", part)
        for file in sorted((part / "episodes").iterdir())[2:]:
            file.unlink()
    for target, message in ((runs / "data", "equal data hash"), (part, "2 episodes of the target are in")):
        with pytest.raises(IntegrityError, match=message) as caught:
            rank_verb(settings("rank", *TASK, f"pool={runs / 'runs'}", f"target={target}", f"out={tmp_path}", *SMALL))
        assert caught.value.exit_code == 4
    assert not list(tmp_path.iterdir())


def test_checkpoints_that_name_no_data_are_refused_before_anything_is_played(tmp_path, monkeypatch):
    for name in ("a", "b"):
        folder = checkpoint.step_folder(tmp_path / "runs" / name, 1)
        checkpoint.save(folder, {name: torch.zeros(1)}, {"policy": {}}, {"kind": "policy", "data_hash": ""})
    arrays = {STATE: np.zeros((3, 4), np.float32), spec.ACTION: np.zeros((3, 7), np.float32)}
    write_episodes(tmp_path / "target", [arrays], fps=20.0)
    monkeypatch.setattr("robopolicy.selection.run.within_time", lambda *given: pytest.fail("it began"))
    given = [f"pool={tmp_path / 'runs'}", f"target={tmp_path / 'target'}", f"out={tmp_path / 'out'}"]
    with pytest.raises(checkpoint.CheckpointError, match=r"names no data .*leave out target=.*combine=\[sim\].*features="):
        rank_verb(settings("rank", *TASK, *SMALL, *given))


def picture_folder(folder, cameras=("",), count=5, size=16):
    rng = np.random.default_rng(0)
    for camera in cameras:
        (folder / camera).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.fromarray(rng.integers(255, size=(size, size, 3), dtype=np.uint8)).save(folder / camera / f"{i:02d}.png")
    return folder


def test_pictures_and_states_become_observations(tmp_path):
    folder = picture_folder(tmp_path / "photos")
    (folder / "state.csv").write_text("file,episode,x,y\n" + "".join(f"{4 - i:02d}.png,{i // 3},{i},{-i}\n" for i in range(5)))
    target = open_target(prepare(folder, tmp_path / "out"))
    assert set(target.values) == {"observation.images.front", spec.STATE}
    assert target.values[spec.STATE][np.flatnonzero(target.values[spec.STATE][:, 0] == 4)[0]].tolist() == [4, -4]
    assert sorted(target.episode.tolist()) == [0, 0, 0, 1, 1]
    features = {
        "observation.images.front": spec.FeatureSpec((8, 8, 3), "uint8"),
        spec.STATE: spec.FeatureSpec((2,), "float32"),
    }
    batch = target.frames(features, 2).batch(np.arange(5))
    assert batch["observation.images.front"].shape == (5, 2, 8, 8, 3)
    first = np.flatnonzero(np.diff(target.episode, prepend=-1))
    np.testing.assert_array_equal(batch[spec.STATE][first, 0], batch[spec.STATE][first, 1])  # history repeats the first
    with pytest.raises(spec.SpecError, match="the policy needs"):
        target.frames({spec.STATE: spec.FeatureSpec((3,), "float32")}, 1)


def test_states_alone_rank_through_a_recorded_target(runs, tmp_path):
    store = EpisodeStore(runs / "target")
    state = np.concatenate([store.read(i, [spec.STATE])[spec.STATE] for i in range(len(store))])
    folder = picture_folder(tmp_path / "photos", count=len(state), size=8)
    columns = ",".join(f"s{i}" for i in range(state.shape[1]))
    lines = [columns, *(",".join(map(repr, row)) for row in state.tolist())]
    (folder / "state.csv").write_text("\n".join(lines) + "\n")
    done = rank_verb(settings("rank", *TASK, f"pool={runs / 'runs'}/*", f"target={folder}", f"out={tmp_path / 'o'}", *SMALL))
    assert done.exit_code == 0
    assert Ranking.read(tmp_path / "o").num_target_observations == min(40, len(state))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "no target observations at"),
        (lambda p: p.mkdir(), "holds no target observations"),
        (lambda p: picture_folder(p, ("a", "b"), 2) and (p / "a/01.png").unlink(), "every camera needs one"),
        (lambda p: picture_folder(p) and (p / "00.png").write_bytes(b"no picture"), "no picture that can be read"),
        (lambda p: (picture_folder(p) / "state.csv").write_text("x\n1\n"), "1 lines and there are 5 pictures"),
        (lambda p: picture_folder(p, size=4) and Image.new("RGB", (5, 4)).save(p / "07.png"), "of one size"),
    ],
)
def test_bad_targets_are_named(make, message, tmp_path):
    make(tmp_path / "t")
    with pytest.raises(RankingError, match=message):
        prepare(tmp_path / "t", tmp_path / "out")


def test_a_lerobot_target_gives_the_bytes_of_the_dataset_it_was_exported_from(runs, whole, tmp_path):
    export_dataset(runs / "target", tmp_path / "lerobot", images="png")
    shutil.copytree(whole[0] / "units", tmp_path / "out/units")
    assert ranked(runs, tmp_path / "out", f"target={tmp_path / 'lerobot'}")[1] == whole[2]


def test_an_rlds_target_looks_as_strange_as_the_dataset_with_the_same_states(runs, whole, tmp_path):
    store, folder = EpisodeStore(runs / "target"), tmp_path / "1.0.0"
    folder.mkdir()
    step = tree({"observation": tree({"state": tensor("float32", 17)}), "action": tensor("float32", 7)})
    features = tree({"steps": {"sequence": {"feature": step, "length": "-1"}}})
    (folder / "features.json").write_text(json.dumps(features))
    splits = [{"name": "train", "shardLengths": [str(len(store))]}]
    (folder / "dataset_info.json").write_text(json.dumps({"name": "toy", "fileFormat": "tfrecord", "splits": splits}))
    lines = []
    for index in range(len(store)):
        found = store.read(index, [spec.STATE, spec.ACTION])
        lines.append(record(example({"steps/observation/state": found[spec.STATE], "steps/action": found[spec.ACTION]})))
    (folder / "toy-train.tfrecord-00000-of-00001").write_bytes(b"".join(lines))
    shutil.copytree(whole[0] / "units", tmp_path / "out/units")
    ranked(runs, tmp_path / "out", f"target={folder}", f"target_fps={store.spec.fps}", "also=[support,fqe]")
    ours, rlds = Ranking.read(whole[0]), Ranking.read(tmp_path / "out")
    assert [(c.checkpoint, c.ood) for c in rlds.checkpoints] == [(c.checkpoint, c.ood) for c in ours.checkpoints]
    missing = json.loads((tmp_path / "out/context.json").read_text())["not_computed"]
    assert "has no rewards (next.reward)" in missing["Score fqe"]


def test_a_bag_becomes_observations(tmp_path):
    rosbag2 = pytest.importorskip("rosbags.rosbag2", reason="rosbags is not installed: pip install 'robopolicy[bags]'")
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_HUMBLE)
    image, joints, header, stamp = (
        store.types[f"{name}"]
        for name in (
            "sensor_msgs/msg/Image",
            "sensor_msgs/msg/JointState",
            "std_msgs/msg/Header",
            "builtin_interfaces/msg/Time",
        )
    )
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    head, none = header(stamp(0, 0), "camera"), np.zeros(0)
    options = {"version": 9, "storage_plugin": rosbag2.StoragePlugin.MCAP}
    with rosbag2.Writer(tmp_path / "bag", **options) as writer:
        camera = writer.add_connection("/cam/image_raw", image.__msgtype__, typestore=store)
        state = writer.add_connection("/joint_states", joints.__msgtype__, typestore=store)
        for t in range(4):
            position = joints(head, ["j"], np.array([float(t)]), none, none)
            writer.write(state, 10 * t, store.serialize_cdr(position, joints.__msgtype__))
            frame = image(head, 2, 3, "bgr8", 0, 9, (pixels + t).reshape(-1))
            writer.write(camera, 10 * t + 5, store.serialize_cdr(frame, image.__msgtype__))
    target = open_target(prepare(tmp_path / "bag", tmp_path / "out"))
    np.testing.assert_array_equal(target.values["observation.images.front"][1], (pixels + 1)[..., ::-1])
    assert target.values[spec.STATE].reshape(-1).tolist() == [0, 1, 2, 3]
    with pytest.raises(RankingError, match="did you mean '/joint_states'"):
        prepare(tmp_path / "bag", tmp_path / "out", keys={spec.STATE: "/joint_state"})


# ---- suites


def suite(**sizes):
    return FrozenSuite.draw("s", "robopolicy/Lift-v0", {}, 120, {"select": 5, "confirm": 5, "sealed": 5} | sizes, 0)


def test_a_suite_is_frozen_disjoint_and_knows_when_it_was_edited(tmp_path):
    drawn = suite()
    seeds = [seed for split in drawn.splits.values() for seed in split]
    assert len(set(seeds)) == 15
    path = drawn.write(tmp_path / "suite.yaml")
    assert read_suite(path) == drawn
    content = yaml.safe_load(path.read_text())
    content["splits"]["confirm"][0] += 1
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(IntegrityError, match="edited after it was frozen"):
        read_suite(path)
    with pytest.raises(RankingError, match=r"in 'select' and in 'confirm'"):
        FrozenSuite("s", "e", {}, {"select": (1, 2), "confirm": (2,)}, 10)
    for sizes in ({"select": 0}, {"select": 0, "confirm": 0, "sealed": 0}):
        with pytest.raises(RankingError, match=r"is empty|no conditions to select"):
            suite(**sizes)


def test_the_verb_suite_writes_what_rank_reads(tmp_path):
    path = tmp_path / "suite.yaml"
    sizes = ("select=4", "confirm=3", "sealed=2", "name=mine")
    done = verbs.suite(settings("rank_suite", *TASK, f"out={path}", *sizes))
    assert "4 select, 3 confirm, 2 sealed, at most 6 steps" in done.lines[0]
    assert read_suite(path).block("confirm").seeds == read_suite(path).splits["confirm"]


def test_an_episode_of_a_ranking_is_played_again(whole, runs):
    out, _, _ = whole
    name = Ranking.read(out).checkpoints[0].checkpoint
    condition = read_suite(out / "suite.yaml").splits["confirm"][0]
    done = verbs.replay(settings("rank_replay", f"out={out}", f"checkpoint='{name}'", f"condition={condition}"))
    assert "after 6 steps" in done.lines[0] or "success" in done.lines[0]
    assert Path(done.lines[1].removeprefix("Film: ")).stat().st_size > 0
    with pytest.raises(RankingError, match="is none of the suite"):
        verbs.replay(settings("rank_replay", f"out={out}", f"checkpoint='{name}'", "condition=5"))


@pytest.fixture(scope="module")
def behaviours(runs):
    """Long episodes of random actions in the worlds of training: one set to be the target, another to compare with."""
    task = settings("rank", "+task.env.max_episode_steps=30", *TASK[1:])["task"]
    for use, seed in (("like_target", 3), ("like_reference", 4)):
        pipeline.collect_run(runs / use, task, "none", episodes={"random": 8}, seed=seed, disturbance=0.0, num_workers=0)
    return runs


def test_with_a_reference_of_its_recorder_a_target_in_the_worlds_of_training_is_close(behaviours, tmp_path):
    target = f"target={behaviours / 'like_target'}"
    found = {}
    for name, more in (("without", ()), ("with", (f"reference={behaviours / 'like_reference'}",))):
        ranked(behaviours, tmp_path / name, target, *more)
        found[name] = Ranking.read(tmp_path / name)
    distance = {name: np.mean([c.ood for c in each.checkpoints]) for name, each in found.items()}
    assert distance["without"] > 0.5
    assert abs(distance["with"]) < 0.4 * distance["without"]
    assert found["with"].inputs["reference"] == EpisodeStore(behaviours / "like_reference").hash
    assert "reference" not in found["without"].inputs


def test_a_reference_that_cannot_serve_is_refused(behaviours, tmp_path):
    given = f"reference={behaviours / 'like_reference'}"
    with pytest.raises(IntegrityError, match="holds episodes of the target"):
        ranked(behaviours, tmp_path / "same", f"target={behaviours / 'like_reference'}", given)
    with pytest.raises(RankingError, match="give target= too"):
        ranked(behaviours, tmp_path / "alone", "target=null", given)
    task = settings("rank", *TASK)["task"]
    pipeline.collect_run(tmp_path / "one", task, "none", episodes={"noisy": 1}, seed=5, num_workers=0)
    with pytest.raises(RankingError, match="1 recorded episodes"):
        ranked(behaviours, tmp_path / "few", f"reference={tmp_path / 'one'}")


def test_detectors_that_look_at_the_picture_alone_do_not_see_how_the_robot_moved(tmp_path):
    task = settings("rank", "+task.env.max_episode_steps=20")["task"]
    task["env"] |= {"observation": ["state", "images.front"], "image_size": 16}
    for use, episodes in (("data", {"expert": 6}), ("target", {"random": 6})):
        pipeline.collect_run(tmp_path / use, task, "none", episodes=episodes, seed=1, disturbance=0.0, num_workers=0)
    given = ("policy=bc", "inputs=images", f"data.path={tmp_path / 'data'}", "train.steps=4", "train.batch_size=8")
    pipeline.train_run(settings("train", *given, "train.num_checkpoints=1"), tmp_path / "run")
    (arm,) = pipeline.find_checkpoints(tmp_path / "run")
    layers = {layer: policy_features(arm, str(tmp_path / "target"), 30, 0, layer=layer) for layer in LAYERS}
    policy = load_policy(arm.checkpoint)
    assert layers["context"]["target"].shape == layers["sensors"]["target"].shape == (30, policy.encoder.width)
    key = image_key("front")
    rows = draw_rows(120, 30, 0)
    pictures = open_target(tmp_path / "target").frames(policy.spec.observation, 1).batch(rows)[key]
    state = np.zeros((30, 1, *policy.spec.observation[STATE].shape), np.float32)
    assert np.allclose(layers["sensors"]["target"], policy.sensed({STATE: state, key: pictures}), atol=1e-5)
    known, reference = (str(tmp_path / use) for use in ("target", "data"))
    assert np.array_equal(layers["auto"]["target"], layers["sensors"]["target"])
    of_all = policy_features(arm, known, 30, 0, reference)
    assert np.array_equal(of_all["target"], layers["context"]["target"]), "with a reference all that it acts on is compared"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("layer=sensors",), r"reads no picture.*only observation\.state; give layer=context"),
        (("layer=sensor",), "did you mean 'sensors'"),
        (("layer=sensors", "target=null"), "needs pool= and target="),
    ],
)
def test_a_layer_that_cannot_be_looked_at_is_named(runs, tmp_path, given, message):
    with pytest.raises(RankingError, match=message):
        ranked(runs, tmp_path, *given)
