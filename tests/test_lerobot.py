"""LeRobotDataset v3.0 folders: what is exported without loss comes back bit for bit; lossy video stays close."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robopolicy.data.episode_file import DatasetError
from robopolicy.data.episodes import EpisodeStore, EpisodeWriter
from robopolicy.data.importers import import_dataset
from robopolicy.data.lerobot import export_dataset, exporting, layout
from robopolicy.data.lerobot.stats import QUANTILES
from robopolicy.data.lerobot.video import ENCODINGS, VideoReader, VideoWriter
from robopolicy.spec import (
    ACTION,
    POINTS,
    REWARD,
    STATE,
    SUCCESS,
    TASK,
    DatasetSpec,
    FeatureSpec,
    SpecError,
    depth_key,
    image_key,
)

FRONT, WRIST = image_key("front"), image_key("wrist")
SPEC = DatasetSpec(
    features={
        STATE: FeatureSpec((3,), names=("x", "y", "z"), unit="m", frame="base"),
        FRONT: FeatureSpec((33, 47, 3), "uint8"),  # odd on purpose: video codecs like even sizes
        WRIST: FeatureSpec((32, 32, 3), "uint8"),
        depth_key("front"): FeatureSpec((5, 7), unit="m"),
        POINTS: FeatureSpec((6, 3)),
        "observation.volume": FeatureSpec((2, 3, 4), "uint16"),
        "observation.gripper": FeatureSpec((1,), "float64"),
        ACTION: FeatureSpec((1,)),
        REWARD: FeatureSpec(()),
        SUCCESS: FeatureSpec((), "bool"),
        "clock": FeatureSpec((), "int64"),
    },
    fps=12.5,
)
SMOOTH = {key: SPEC.features[key] for key in (STATE, WRIST, ACTION)}


def frames(rng: np.random.Generator, steps: int, height: int, width: int) -> np.ndarray:
    """Smooth moving pictures with a little noise."""
    t, y, x = np.meshgrid(np.arange(steps), np.arange(height), np.arange(width), indexing="ij")
    phase = rng.uniform(0, 6, 3)
    waves = [128 + 90 * np.sin(x / 9 + t / 3 + p) * np.cos(y / 7 - p) for p in phase]
    return (np.stack(waves, axis=-1) + rng.normal(0, 1, (steps, height, width, 3))).clip(0, 255).astype(np.uint8)


def value(rng: np.random.Generator, feature: FeatureSpec, steps: int) -> np.ndarray:
    if len(feature.shape) == 3 and feature.shape[-1] == 3:
        return frames(rng, steps, *feature.shape[:2])
    raw = rng.normal(size=(steps, *feature.shape)) * 100
    return (raw > 0) if feature.dtype == "bool" else np.abs(raw).astype(feature.dtype)


def dataset(path: Path, spec: DatasetSpec = SPEC, lengths=(5, 1, 9)) -> EpisodeStore:
    writer = EpisodeWriter(path, spec)
    for number, steps in enumerate(lengths):
        rng = np.random.default_rng(number)
        info = {
            TASK: f"lift {number % 2}",
            "success": number != 1,
            "seed": number,
            "randomization": {"mass": 0.1, "rgb": [1, 2]},
        }
        arrays = {key: value(rng, feature, steps) for key, feature in spec.features.items()}
        writer.add(arrays, info, name=f"expert_{number}")
    return EpisodeStore(path)


@pytest.mark.parametrize("images", ["png", "h264_lossless"])
@pytest.mark.parametrize("small_files", [False, True])
def test_what_is_exported_without_loss_comes_back_bit_for_bit(tmp_path, monkeypatch, images, small_files):
    if images != "png":
        pytest.importorskip("av")
    if small_files:
        for name in ("DATA_FILE_MB", "VIDEO_FILE_MB"):
            monkeypatch.setattr(exporting, name, 1e-3)
        monkeypatch.setattr(layout, "CHUNK_FILES", 2)
    store = dataset(tmp_path / "set")
    export_dataset(tmp_path / "set", tmp_path / "out", images=images)
    files = sorted(str(file.relative_to(tmp_path / "out/data")) for file in (tmp_path / "out/data").rglob("*.parquet"))
    last = ["chunk-001/file-000.parquet"] if small_files else []
    assert files[0] == "chunk-000/file-000.parquet"
    assert files[2:] == last
    import_dataset(tmp_path / "out", tmp_path / "back")
    back = EpisodeStore(tmp_path / "back")
    assert back.hash == store.hash
    assert back.spec == store.spec
    assert back.info(2) == store.info(2)


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="the system has no scheduling policies")
@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_a_video_leaves_the_process_at_its_priority(tmp_path, encoding):
    """As root, SVT-AV1 turns its caller into a real-time process."""
    threads = lambda: {os.sched_getscheduler(int(task)) for task in os.listdir("/proc/self/task")}  # noqa: E731
    before = threads()
    writer = VideoWriter(tmp_path / "x.mp4", (64, 64), 20.0, ENCODINGS[encoding])
    writer.add(np.zeros((3, 64, 64, 3), np.uint8))
    assert threads() == before
    writer.close()
    assert threads() == before


@pytest.mark.parametrize(("images", "least"), [("h264", 38.0), ("av1", 30.0)])
def test_lossy_video_is_close_and_everything_else_exact(tmp_path, images, least):
    pytest.importorskip("av")
    store = dataset(tmp_path / "set", DatasetSpec(SMOOTH, fps=20.0), lengths=(12, 7))
    export_dataset(tmp_path / "set", tmp_path / "out", images=images)
    import_dataset(tmp_path / "out", tmp_path / "back")
    back = EpisodeStore(tmp_path / "back")
    for index in range(2):
        given, found = store.read(index), back.read(index)
        assert all(np.array_equal(given[key], found[key]) for key in (STATE, ACTION))
        error = np.mean((given[WRIST].astype(float) - found[WRIST]) ** 2)
        assert 10 * np.log10(255**2 / error) > least


def test_metadata_says_where_every_episode_is_and_what_it_holds(tmp_path):
    store = dataset(tmp_path / "set")
    export_dataset(tmp_path / "set", tmp_path / "out", images="png", where={"success": [True]})
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    assert (info["codebase_version"], info["total_episodes"], info["total_frames"], info["fps"]) == ("v3.0", 2, 14, 12.5)
    assert info["features"][STATE] == {"dtype": "float32", "shape": [3], "names": ["x", "y", "z"]}
    assert info["features"][FRONT]["shape"] == [33, 47, 3]
    assert info["features"][SUCCESS]["shape"] == [1]
    rows = pq.read_table(tmp_path / "out/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [(row["dataset_from_index"], row["dataset_to_index"], row["tasks"]) for row in rows] == [
        (0, 5, ["lift 0"]),
        (5, 14, ["lift 0"]),
    ]
    assert [row["robopolicy/seed"] for row in rows] == [0, 2]
    assert rows[0]["robopolicy/randomization.mass"] == 0.1
    data = pq.read_table(tmp_path / "out/data/chunk-000/file-000.parquet")
    assert data["index"].to_pylist() == list(range(14))
    assert np.allclose(data["timestamp"].to_numpy(), np.r_[np.arange(5), np.arange(9)] / 12.5)
    stats = json.loads((tmp_path / "out/meta/stats.json").read_text())
    state, pictures = (np.concatenate([store.read(i)[key] for i in (0, 2)]) for key in (STATE, FRONT))
    for name, function in (("min", np.min), ("max", np.max), ("mean", np.mean), ("std", np.std)):
        assert np.allclose(stats[STATE][name], function(state.astype(float), axis=0))
        assert np.allclose(np.squeeze(stats[FRONT][name]), function(pictures / 255.0, axis=(0, 1, 2)))
    assert set(stats[FRONT]) == {"min", "max", "mean", "std", "count", *QUANTILES}
    assert np.shape(stats[FRONT]["q50"]) == (3, 1, 1)


def foreign(path: Path, version: str = "v3.0") -> None:
    """A dataset as LeRobot's recorder lays it out: motor names in a mapping, [1] for scalars, a text column."""
    for folder in ("meta/episodes/chunk-000", "data/chunk-000"):
        (path / folder).mkdir(parents=True)
    scalar = {"shape": [1], "names": None}
    features = {
        STATE: {"dtype": "float32", "shape": [2], "names": {"motors": ["a", "b"]}},
        ACTION: {"dtype": "float32", "shape": [1], "names": ["a"]},
        REWARD: {"dtype": "float32", **scalar},
        "subtask": {"dtype": "string", **scalar},
        **{key: {"dtype": dtype, **scalar} for key, dtype in layout.COUNTERS.items()},
    }
    info = {"codebase_version": version, "fps": 30, "total_episodes": 2, "features": features, "video_path": None}
    (path / "meta/info.json").write_text(json.dumps(info))
    rows = [
        {"episode_index": i, "length": 3, "data/chunk_index": 0, "data/file_index": 0, "tasks": [f"do {i}"]} for i in range(2)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path / "meta/episodes/chunk-000/file-000.parquet")
    pq.write_table(pa.table({"task_index": [1, 0], "__index_level_0__": ["do 1", "do 0"]}), path / "meta/tasks.parquet")
    columns = {
        STATE: [[i, i + 0.5] for i in range(6)],
        ACTION: [float(i) for i in range(6)],
        REWARD: [0.0] * 6,
        "subtask": ["reach"] * 6,
        "timestamp": [0.0, 1 / 30, 2 / 30] * 2,
        "frame_index": [0, 1, 2] * 2,
        "episode_index": [0] * 3 + [1] * 3,
        "index": list(range(6)),
        "task_index": [0] * 3 + [1] * 3,
    }
    pq.write_table(pa.table(columns), path / "data/chunk-000/file-000.parquet")


def test_a_foreign_dataset_is_imported_with_its_names_tasks_and_what_is_left_out(tmp_path):
    foreign(tmp_path / "theirs")
    lines = import_dataset(tmp_path / "theirs", tmp_path / "ours")
    assert any("subtask is left out" in line for line in lines)
    store = EpisodeStore(tmp_path / "ours")
    assert store.spec.features == {
        STATE: FeatureSpec((2,), names=("a", "b")),
        ACTION: FeatureSpec((1,), names=("a",)),
        REWARD: FeatureSpec(()),
    }
    assert store.spec.fps == 30
    assert store.table["task"].to_pylist() == ["do 0", "do 1"]
    assert store.read(1)[STATE].tolist() == [[3, 3.5], [4, 4.5], [5, 5.5]]
    assert store.read(1)[ACTION].tolist() == [[3], [4], [5]]


def test_vectors_of_a_foreign_dataset_become_float32_whatever_they_are_stored_as(tmp_path):
    foreign(tmp_path / "theirs")
    file = tmp_path / "theirs/meta/info.json"
    info = json.loads(file.read_text())
    info["features"][STATE]["dtype"], info["features"][ACTION]["dtype"] = "float64", "int64"
    file.write_text(json.dumps(info))
    import_dataset(tmp_path / "theirs", tmp_path / "ours")
    store = EpisodeStore(tmp_path / "ours")
    assert store.spec.features[STATE] == FeatureSpec((2,), names=("a", "b"))
    assert store.spec.features[ACTION] == FeatureSpec((1,), names=("a",))
    assert [store.read(1)[key].dtype for key in (STATE, ACTION)] == [np.float32] * 2
    assert store.read(1)[STATE].tolist() == [[3, 3.5], [4, 4.5], [5, 5.5]]


def test_what_cannot_be_exported_or_imported_says_why_and_leaves_nothing(tmp_path):
    dataset(tmp_path / "set")
    with pytest.raises(SpecError, match="did you mean 'h264'"):
        export_dataset(tmp_path / "set", tmp_path / "out", images="h265")
    with pytest.raises(DatasetError, match=r"it is a robopolicy dataset already"):
        import_dataset(tmp_path / "set", tmp_path / "out")
    foreign(tmp_path / "old", version="v1.6")
    with pytest.raises(DatasetError, match=r"version v1.6; v3.0, v2.1 and v2.0 are read here"):
        import_dataset(tmp_path / "old", tmp_path / "out")
    foreign(tmp_path / "cut")
    file = tmp_path / "cut/data/chunk-000/file-000.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DatasetError, match=r"file-000.parquet cannot be read"):
        import_dataset(tmp_path / "cut", tmp_path / "out")
    foreign(tmp_path / "lacking")
    rows = tmp_path / "lacking/meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(rows).drop_columns("data/file_index"), rows)
    with pytest.raises(DatasetError, match=r"lacks 'data/file_index' in its metadata"):
        import_dataset(tmp_path / "lacking", tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["cut", "lacking", "old", "set"]


def pictures(number):
    """A frame that says which one it is."""
    return np.full((1, 64, 64, 3), 10 * number, np.uint8)


@pytest.mark.parametrize(("rate", "lost", "expected"), [(10, (), [0, 1, 2, 3]), (30, (), [0, 3, 6, 9]), (10, (2,), None)])
def test_frames_belong_to_steps_by_their_time(tmp_path, rate, lost, expected):
    pytest.importorskip("av")
    writer = VideoWriter(tmp_path / "x.mp4", (64, 64), rate, ENCODINGS["h264_lossless"])
    for number in range(12):
        if number in lost:
            writer.num_frames += 1
        else:
            writer.add(pictures(number))
    writer.close()
    reader = VideoReader(tmp_path / "x.mp4", 10)
    if expected is None:
        with pytest.raises(DatasetError, match=r"x\.mp4 lacks frame 2: by its time the next one is 3, at 10 frames"):
            reader.read(0, 4)
    else:
        assert (reader.read(0, 4)[:, 0, 0, 0] / 10).tolist() == expected


def test_of_an_episode_with_several_tasks_the_first_is_kept_and_that_is_said(tmp_path, caplog):
    foreign(tmp_path / "theirs")
    file = tmp_path / "theirs/data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    at = table.column_names.index("task_index")
    pq.write_table(table.set_column(at, "task_index", pa.array([0, 0, 1, 1, 0, 0])), file)
    import_dataset(tmp_path / "theirs", tmp_path / "ours")
    assert EpisodeStore(tmp_path / "ours").table["task"].to_pylist() == ["do 0", "do 1"]
    assert caplog.text.count("has 2 tasks, of which the first is kept: 'do 0', 'do 1'") == 1


def test_a_damaged_video_is_named(tmp_path):
    pytest.importorskip("av")
    dataset(tmp_path / "set")
    export_dataset(tmp_path / "set", tmp_path / "out")
    video = tmp_path / f"out/videos/{FRONT}/chunk-000/file-000.mp4"
    video.write_bytes(video.read_bytes()[:500])
    with pytest.raises(DatasetError, match=f"{FRONT}/chunk-000/file-000.mp4"):
        import_dataset(tmp_path / "out", tmp_path / "back")


def test_without_pyav_videos_are_refused_with_the_way_out(tmp_path):
    dataset(tmp_path / "set", DatasetSpec(SMOOTH, fps=20.0), lengths=(2,))
    code = (
        "import sys; sys.modules['av'] = None\n"
        "from robopolicy.data.lerobot import export_dataset\n"
        "export_dataset('set', 'png', images='png')\n"
        "export_dataset('set', 'video')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=False, capture_output=True, text=True
    )
    assert r"pip install 'robopolicy[lerobot]'" in done.stderr
    assert (tmp_path / "png/meta/info.json").exists()
    assert not (tmp_path / "video").exists()
