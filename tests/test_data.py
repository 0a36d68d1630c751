"""The dataset folder, training windows and the normaliser."""

import json
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from robopolicy.data.episode_file import DatasetError
from robopolicy.data.episodes import EpisodeStore, EpisodeWriter, write_episodes
from robopolicy.data.transforms import Normalizer, fit_statistics, vector_statistics
from robopolicy.data.windows import Windows, window_indices
from robopolicy.spec import (
    ACTION,
    ACTION_IS_PAD,
    EPISODE,
    EPISODE_LENGTH,
    OUTCOME,
    POINTS,
    STATE,
    STEP,
    SUCCESS,
    TASK,
    DatasetSpec,
    FeatureSpec,
    SpecError,
    depth_key,
    image_key,
)

FRONT = image_key("front")
SPEC = DatasetSpec(
    features={
        STATE: FeatureSpec((3,), names=("x", "y", "z"), unit="m"),
        FRONT: FeatureSpec((6, 5, 3), "uint8"),
        ACTION: FeatureSpec((2,)),
        SUCCESS: FeatureSpec((), "bool"),
    },
    fps=20.0,
)


def episode(seed: int = 0, steps: int = 9) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        STATE: rng.normal(size=(steps, 3)).astype(np.float32),
        FRONT: rng.integers(0, 256, (steps, 6, 5, 3), dtype=np.uint8),
        ACTION: rng.normal(size=(steps, 2)).astype(np.float32),
        SUCCESS: np.arange(steps) == steps - 1,
    }


def dataset(path: Path, lengths=(4, 1, 7)) -> EpisodeStore:
    writer = EpisodeWriter(path, SPEC)
    for seed, steps in enumerate(lengths):
        writer.add(episode(seed, steps), info={TASK: "lift", "seed": seed, "success": seed % 2 == 0})
    return EpisodeStore(path)


# --- episodes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "int64", "float16", "float32", "float64"])
def test_round_trip_is_bit_exact(tmp_path, dtype):
    rng = np.random.default_rng(0)
    value = np.frombuffer(rng.bytes(150 * 12), np.uint8).reshape(150, 3, 4).astype(dtype)
    zeros = np.zeros((150, 90, 90), np.uint8)
    spec = DatasetSpec(
        features={
            "observation.x": FeatureSpec((3, 4), dtype),
            FRONT: FeatureSpec((90, 90), "uint8"),
            ACTION: FeatureSpec((1,)),
        },
        fps=5.0,
    )
    action = rng.normal(size=(150, 1)).astype(np.float32)
    EpisodeWriter(tmp_path, spec).add({ACTION: action, "observation.x": value, FRONT: zeros})
    read = EpisodeStore(tmp_path).read(0)
    assert {key: array.dtype for key, array in read.items()} == {key: np.dtype(f.dtype) for key, f in spec.features.items()}
    assert read["observation.x"].tobytes() == value.tobytes()
    assert np.array_equal(read[FRONT], zeros)
    assert read[ACTION].tobytes() == action.tobytes()


def test_store_gives_back_spec_info_and_table(tmp_path):
    writer = EpisodeWriter(tmp_path, SPEC)
    info = {TASK: "lift", "success": np.bool_(True), "seed": 2**80, "randomization": {"mass": np.float64(0.2), "rgb": [1, 2]}}
    path = writer.add(episode(), info=info, name="seed_1")
    writer.add(episode(1, 4), info={TASK: "lift", "seed": "text"}, name="seed_0")
    store = EpisodeStore(tmp_path)
    assert store.spec == SPEC
    assert path.name == "seed_1.zarr.zip"
    assert store.table["file"].to_pylist() == ["seed_0.zarr.zip", "seed_1.zarr.zip"]
    assert store.lengths.tolist() == store.table["length"].to_pylist() == [4, 9]
    assert store.table["randomization.mass"].to_pylist() == [None, 0.2]
    assert store.table["randomization.rgb"].to_pylist() == [None, [1, 2]]
    assert store.table["success"].to_pylist() == [None, True]
    assert store.info(1) == {**info, "success": True, "randomization": {"mass": 0.2, "rgb": [1, 2]}}
    assert list(store.read(0, [ACTION])) == [ACTION]


def test_zarr_itself_opens_an_episode(tmp_path):
    path = EpisodeWriter(tmp_path, SPEC).add(episode(), info={TASK: "lift"})
    group = zarr.open_group(zarr.storage.ZipStore(path, mode="r"), mode="r")
    assert dict(group.attrs) == {TASK: "lift"}
    assert np.array_equal(group[FRONT][:], episode()[FRONT])


def test_equal_data_has_an_equal_hash_and_any_change_another(tmp_path):
    hashes = [dataset(tmp_path / "a").hash, dataset(tmp_path / "b").hash, dataset(tmp_path / "c", lengths=(4, 1)).hash]
    assert hashes[0] == hashes[1] != hashes[2]
    EpisodeWriter(tmp_path / "c", SPEC).add(episode(3, 7))
    assert EpisodeStore(tmp_path / "c").hash not in hashes


@pytest.mark.parametrize("harm", ["missing", "garbage", "stale"])
def test_table_is_rebuilt_when_it_does_not_match_the_files(tmp_path, harm):
    expected, table = dataset(tmp_path).table, tmp_path / "episodes.parquet"
    if harm == "missing":
        table.unlink()
    elif harm == "garbage":
        table.write_bytes(b"PAR1 nonsense")
    else:
        path = tmp_path / "episodes" / "episode_000001.zarr.zip"
        path.unlink()
        EpisodeStore(tmp_path)
        EpisodeWriter(tmp_path, SPEC).add(episode(1, 1), info={TASK: "lift", "seed": 1, "success": False})
    assert EpisodeStore(tmp_path).table.equals(expected)
    assert pq.read_table(table, partitioning=None).equals(expected)


def test_read_only_dataset_opens_without_a_table(tmp_path):
    dataset(tmp_path)
    (tmp_path / "episodes.parquet").unlink()
    (tmp_path / "episodes.parquet").mkdir()  # cannot be replaced by a file, also for root
    assert EpisodeStore(tmp_path).table.num_rows == 3


def test_empty_dataset_opens(tmp_path):
    EpisodeWriter(tmp_path, SPEC)
    store = EpisodeStore(tmp_path)
    assert (len(store), store.table.num_rows, store.lengths.shape) == (0, 0, (0,))
    with pytest.raises(SpecError, match="no episodes"):
        Windows(store, [STATE], 1, 1)


def harmed(key, change):
    data = episode()
    data[key] = change(data[key])
    return data


BAD = {
    "nan": (harmed(ACTION, lambda a: np.where(a == a[3], np.nan, a).astype(np.float32)), "'action' is not finite"),
    "shape": (harmed(STATE, lambda a: a[:, :2]), "observation.state' has shape"),
    "dtype": (harmed(STATE, lambda a: a.astype(np.float64)), r"astype\('float32'\)"),
    "missing": ({k: v for k, v in episode().items() if k != FRONT}, f"'{FRONT}' is missing"),
    "unknown": ({**episode(), "observation.stat": np.zeros(9)}, "did you mean 'observation.state'"),
    "length": (harmed(SUCCESS, lambda a: a[1:]), "differ in their number of steps"),
    "no steps": ({k: v[:0] for k, v in episode().items()}, "no steps"),
    "no time axis": (harmed(SUCCESS, lambda a: a[0]), "next.success' has shape"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_episode_is_refused_by_name_and_nothing_is_written(tmp_path, case):
    data, message = BAD[case]
    writer = EpisodeWriter(tmp_path, SPEC)
    with pytest.raises(SpecError, match=message) as error:
        writer.add(data, name="bad_one")
    assert "bad_one" in str(error.value)
    assert list((tmp_path / "episodes").iterdir()) == []


@pytest.mark.parametrize(
    ("info", "message"),
    [({"x": float("nan")}, "x is nan"), ({"a": {"b": object()}}, r"info.a.b is a object"), ({"length": 3}, "source_length")],
)
def test_info_that_the_table_cannot_hold_is_refused(tmp_path, info, message):
    writer = EpisodeWriter(tmp_path, SPEC)
    with pytest.raises(SpecError, match=message):
        writer.add(episode(), info=info)
    assert list((tmp_path / "episodes").iterdir()) == []


def test_names_are_unique_and_safe(tmp_path):
    writer = EpisodeWriter(tmp_path, SPEC)
    path = writer.add(episode(0), name="episode_000000")
    before = path.read_bytes()
    with pytest.raises(SpecError, match="exists in"):
        writer.add(episode(1), name="episode_000000")
    assert writer.add(episode(1), name="episode_000000", exist_ok=True).read_bytes() == before
    assert writer.add(episode(1)).name == "episode_000001.zarr.zip"
    assert writer.has("episode_000001")
    assert not writer.has("episode_000002")
    for name in ("../x", "a/b", ".hidden", ""):
        with pytest.raises(SpecError, match="letters, digits"):
            writer.add(episode(1), name=name)


def test_another_spec_is_refused_naming_the_first_difference(tmp_path):
    EpisodeWriter(tmp_path, SPEC)
    EpisodeWriter(tmp_path, SPEC)
    other = {**SPEC.features, ACTION: FeatureSpec((7,))}
    with pytest.raises(SpecError, match=r"features.action.shape is \[7\] in the one given and \[2\] in the dataset"):
        EpisodeWriter(tmp_path, DatasetSpec(features=other, fps=20.0))
    with pytest.raises(SpecError, match=r"fps is 10.0 .* 20.0"):
        EpisodeWriter(tmp_path, DatasetSpec(features=SPEC.features, fps=10.0))


@pytest.mark.parametrize("harm", ["cut", "flipped", "gone"])
def test_damaged_episode_is_named_with_a_remedy(tmp_path, harm):
    store = dataset(tmp_path)
    path = tmp_path / "episodes" / "episode_000001.zarr.zip"
    data = path.read_bytes()
    if harm == "gone":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        with zipfile.ZipFile(path) as archive:
            at = archive.getinfo(f"{ACTION}/c/0/0").header_offset + 60
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(DatasetError, match=r"episode_000001.zarr.zip is (cut short or damaged.*restore it|gone)"):
        store.read(1)
    assert store.read(2)[STATE].shape == (7, 3)
    if harm == "cut":
        with pytest.raises(DatasetError, match="the other 2 episode files are not affected"):
            EpisodeStore(tmp_path)


def test_opening_what_is_no_dataset_says_so(tmp_path):
    with pytest.raises(DatasetError, match="does not exist"):
        EpisodeStore(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"holds no info.json"):
        EpisodeStore(tmp_path)
    (tmp_path / "info.json").write_text(json.dumps({"format": "robopolicy-dataset", "version": 99}))
    with pytest.raises(DatasetError, match="update robopolicy"):
        EpisodeStore(tmp_path)
    (tmp_path / "info.json").write_text("{")
    with pytest.raises(DatasetError, match="damaged"):
        EpisodeStore(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="is a file"):
        EpisodeWriter(tmp_path / "file", SPEC)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("thesis.txt", "years of work"),
        (".notes.tmp", "years of work"),
        ("episodes/s01e01.mkv", "a film"),
        ("info.json", '{"name": "mine"}'),
        ("info.json", "[]"),
    ],
)
def test_a_folder_of_something_else_is_refused_and_left_as_it_was(tmp_path, file, content):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    message = "not a dataset.*another program" if file == "info.json" else f"other files .{file}"
    with pytest.raises(DatasetError, match=message):
        EpisodeWriter(tmp_path, SPEC)
    assert [found for found in tmp_path.rglob("*") if found.is_file()] == [path]
    assert path.read_text() == content


def test_a_writer_removes_what_a_killed_one_left_and_nothing_else(tmp_path):
    dataset(tmp_path)
    ours, other = tmp_path / ".info.json.12.34.tmp", tmp_path / ".notes.tmp"
    for path in (ours, other):
        path.write_text("half")
    EpisodeWriter(tmp_path, SPEC)
    assert (ours.exists(), other.exists()) == (False, True)


def test_unknown_key_is_refused_with_what_is_there(tmp_path):
    store = dataset(tmp_path)
    with pytest.raises(SpecError, match=r"did you mean 'observation.state'"):
        store.read(0, ["observation.stat"])
    with pytest.raises(SpecError, match=r"Its keys: \['action', 'next.success', 'observation.images.front'"):
        Windows(store, [POINTS], 1, 1)


@pytest.mark.parametrize(("state_dim", "action_dim"), [(1, 1), (11, 5), (57, 23)])
def test_write_episodes_infers_the_spec_for_any_dimensions(tmp_path, state_dim, action_dim):
    rng = np.random.default_rng(0)
    episodes = [
        {STATE: rng.normal(size=(t, state_dim)), ACTION: rng.normal(size=(t, action_dim)), "count": np.arange(t), "seed": t}
        for t in (3, 5)
    ]
    write_episodes(tmp_path, episodes[:1], fps=10)
    write_episodes(tmp_path, episodes[1:], fps=10)
    store = EpisodeStore(tmp_path)
    assert {key: (f.shape, f.dtype) for key, f in store.spec.features.items()} == {
        STATE: ((state_dim,), "float32"),
        ACTION: ((action_dim,), "float32"),
        "count": ((), "int64"),
    }
    assert store.info(1) == {TASK: "", "seed": 5}
    assert np.array_equal(store.read(1)[ACTION], episodes[1][ACTION].astype(np.float32))


def test_write_episodes_refuses_what_cannot_be_a_dataset(tmp_path):
    state, action = np.zeros((4, 2)), np.zeros((4, 3))
    with pytest.raises(SpecError, match="episode 0: no 'action'"):
        write_episodes(tmp_path / "a", [{STATE: state}], fps=10)
    with pytest.raises(SpecError, match=r"no key that starts with 'observation.'"):
        write_episodes(tmp_path / "b", [{ACTION: action, "state": state}], fps=10)
    with pytest.raises(SpecError, match=r"'observation.words' has dtype"):
        write_episodes(tmp_path / "c", [{ACTION: action, "observation.words": np.array(["a"] * 4)}], fps=10)
    with pytest.raises(SpecError, match=r"episode 1: 'observation.state' is not finite"):
        write_episodes(tmp_path / "d", [{ACTION: action, STATE: state}, {ACTION: action, STATE: state * np.nan}], fps=10)
    assert len(EpisodeStore(tmp_path / "d")) == 1
    with pytest.raises(SpecError, match="no episodes"):
        write_episodes(tmp_path / "e", [], fps=10)
    with pytest.raises(SpecError, match="fps=30"):
        write_episodes(tmp_path / "d", [{ACTION: action, STATE: state}], fps=30)


WRITER = """
import sys, json, numpy as np
from robopolicy.data.episodes import DatasetSpec, EpisodeWriter
path, count, spec = sys.argv[1], int(sys.argv[2]), DatasetSpec.from_dict(json.loads(sys.argv[3]))
writer = EpisodeWriter(path, spec)
for number in range(count):
    arrays = {key: np.full((40, *f.shape), number % 2, f.dtype) for key, f in spec.features.items()}
    print(writer.add(arrays, info={"number": number}).name, flush=True)
"""


def start_writer(path: Path, count: int) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, str(path), str(count), json.dumps(SPEC.to_dict())]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_killed_writer_leaves_every_finished_episode(tmp_path):
    process = start_writer(tmp_path, 100_000)
    finished = [process.stdout.readline().strip() for _ in range(12)]
    time.sleep(0.013)
    process.send_signal(signal.SIGKILL)
    finished += process.stdout.read().split()
    process.wait()
    (tmp_path / "episodes" / ".episode_x.zarr.zip.1.1.tmp").write_bytes(b"half an episode")
    store = EpisodeStore(tmp_path)
    assert set(finished) <= set(store.table["file"].to_pylist())
    for index in range(len(store)):
        assert (store.read(index)[STATE] == store.info(index)["number"] % 2).all()
    EpisodeWriter(tmp_path, SPEC).add(episode(0, 40))
    assert len(EpisodeStore(tmp_path)) == len(store) + 1
    assert not list(tmp_path.rglob("*.tmp"))


def test_two_writers_at_once_lose_nothing(tmp_path):
    processes = [start_writer(tmp_path, 25) for _ in range(2)]
    names = [name for process in processes for name in process.communicate()[0].split()]
    assert [process.returncode for process in processes] == [0, 0]
    assert len(set(names)) == len(names) == 50
    assert EpisodeStore(tmp_path).table["file"].to_pylist() == sorted(names)


def test_importing_the_store_loads_neither_torch_nor_zarr():
    code = "import sys, robopolicy.data.windows; print(sorted({'torch', 'zarr', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# --- windows --------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 6), st.integers(1, 12))
def test_window_indices_never_cross_an_episode(lengths, obs_horizon, action_horizon):
    lengths = np.array(lengths)
    starts = np.cumsum(lengths) - lengths
    owner = np.repeat(np.arange(len(lengths)), lengths)
    step = np.arange(lengths.sum()) - starts[owner]
    frames, actions, is_pad = window_indices(
        step, starts[owner], lengths[owner], obs_horizon=obs_horizon, action_horizon=action_horizon
    )
    assert (owner[frames] == owner[:, None]).all()
    assert (owner[actions] == owner[:, None]).all()
    assert (frames[:, -1] == np.arange(lengths.sum())).all()
    assert (actions[:, 0] == frames[:, -1]).all()
    assert (np.diff(frames, axis=1) >= 0).all()
    assert np.array_equal(~is_pad, step[:, None] + np.arange(action_horizon) < lengths[owner][:, None])
    assert np.array_equal((np.diff(actions, axis=1) == 1), ~is_pad[:, 1:])


def test_windows_match_the_episodes_step_by_step(tmp_path):
    store = dataset(tmp_path)
    windows = Windows(store, [STATE, FRONT], 3, 4, keys=[SUCCESS], episodes=[2, 0])
    assert len(windows) == 11
    assert windows.lengths.tolist() == [7, 4]
    assert windows.data_hash == store.hash
    batch = windows.batch(np.arange(11))
    for i, (row, step) in enumerate([(2, s) for s in range(7)] + [(0, s) for s in range(4)]):
        data = store.read(row)
        length = len(data[ACTION])
        assert (batch[EPISODE][i], batch[STEP][i], batch[EPISODE_LENGTH][i]) == (row, step, length)
        assert batch[SUCCESS][i] == data[SUCCESS][step]
        for t in range(3):
            frame = max(step - 2 + t, 0)
            assert np.array_equal(batch[STATE][i, t], data[STATE][frame])
            assert np.array_equal(batch[FRONT][i, t], data[FRONT][frame])
        for h in range(4):
            assert np.array_equal(batch[ACTION][i, h], data[ACTION][min(step + h, length - 1)])
            assert batch[ACTION_IS_PAD][i, h] == (step + h >= length)
    assert batch[FRONT].dtype == np.uint8
    assert np.array_equal(windows.action_values(), np.concatenate([store.read(2)[ACTION], store.read(0)[ACTION]]))


def test_windows_beyond_the_memory_budget_are_the_same_and_only_the_first_episodes_stay(tmp_path):
    store = dataset(tmp_path, lengths=(4, 40, 70, 9))
    whole = Windows(store, [STATE, FRONT], 3, 4, keys=[SUCCESS])
    frame = 6 * 5 * 3 / 1e9
    rows = np.random.default_rng(0).integers(0, len(whole), 60)
    for memory_gb, resident in ((0.0, 0), (50 * frame, 44), (1.0, 123)):
        windows = Windows(store, [STATE, FRONT], 3, 4, keys=[SUCCESS], memory_gb=memory_gb)
        assert windows.num_resident == resident
        for key, value in whole.batch(rows).items():
            assert np.array_equal(windows.batch(rows)[key], value), key
    partial = Windows(store, [FRONT], 3, 4, memory_gb=0.0)
    assert partial.values(ACTION).shape == (123, 2)
    with pytest.raises(SpecError, match="in memory for 0 of 123 steps only; raise memory_gb"):
        partial.values(FRONT)


def test_part_of_an_episode_is_what_its_slice_is(tmp_path):
    spec = DatasetSpec({FRONT: FeatureSpec((120, 120, 3), "uint8"), ACTION: FeatureSpec((1,))}, fps=5.0)
    frames = np.random.default_rng(0).integers(0, 256, (50, 120, 120, 3), dtype=np.uint8)  # several chunks
    EpisodeWriter(tmp_path, spec).add({FRONT: frames, ACTION: np.zeros((50, 1), np.float32)})
    store = EpisodeStore(tmp_path)
    for start, stop in ((0, 50), (15, 17), (16, 32), (31, 50), (49, 50), (10, 10), (48, None)):
        assert np.array_equal(store.read(0, [FRONT], start, stop)[FRONT], frames[start:stop])


def test_outcome_tells_whether_the_episode_ever_succeeds(tmp_path):
    writer = EpisodeWriter(tmp_path, SPEC)
    for success in ([0, 0, 0], [0, 1, 0, 0], [1]):
        writer.add({**episode(0, len(success)), SUCCESS: np.array(success, bool)})
    windows = Windows(EpisodeStore(tmp_path), [STATE], 1, 2, keys=[SUCCESS])
    assert windows.batch(np.arange(8))[OUTCOME].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert OUTCOME not in Windows(EpisodeStore(tmp_path), [STATE], 1, 2).batch(np.arange(8))


@pytest.mark.parametrize("memory_gb", [1.0, 0.0])
def test_windows_leave_out_the_last_step_of_a_fault(tmp_path, memory_gb):
    assert dataset(tmp_path).faults == [""] * 3  # nobody recorded any
    writer = EpisodeWriter(tmp_path, SPEC)
    for steps in (1, 5):
        writer.add(episode(9, steps), info={"fault": "torn"})
    store = EpisodeStore(tmp_path)
    windows = Windows(store, [STATE, FRONT], 1, 3, keys=[SUCCESS], memory_gb=memory_gb)
    assert windows.episodes.tolist() == [0, 1, 2, 4]
    assert windows.lengths.tolist() == [4, 1, 7, 4]
    batch = windows.batch(np.arange(12, 16))
    assert np.array_equal(batch[FRONT][:, 0], episode(9, 5)[FRONT][:4])
    assert batch[ACTION_IS_PAD].sum(1).tolist() == [0, 0, 1, 2]
    assert not batch[OUTCOME].any()  # it succeeded at its faulty step only


def test_windows_refuse_episodes_and_horizons_that_do_not_exist(tmp_path):
    store = dataset(tmp_path)
    with pytest.raises(SpecError, match=r"no episode 3: .* episodes 0 to 2"):
        Windows(store, [STATE], 1, 1, episodes=[0, 3])
    with pytest.raises(SpecError, match="obs_horizon=0"):
        Windows(store, [STATE], 0, 1)


# --- normaliser -----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.floats(1e-3, 1e3), st.floats(-10, 10))
def test_denormalize_inverts_normalize(seed, num_frames, spread, center):
    rng = np.random.default_rng(seed)
    values = (center + spread * rng.normal(size=(num_frames, 6)) * [1, 1e-3, 0, 1, 1, 1]).astype(np.float32)
    values[:, 3] = rng.integers(0, 2, num_frames)
    values[:, 4] = np.where(rng.random(num_frames) < 0.005, 0.3, 0)
    for key in (STATE, ACTION):
        normalizer = Normalizer({key: FeatureSpec((6,))})
        normalizer.fit({key: vector_statistics(values)})
        x = torch.from_numpy(np.concatenate([values, values + spread]))[:, None]
        y = normalizer.normalize(key, x)
        assert torch.isfinite(y).all()
        magnitude = float(np.abs(values).max() + spread)
        assert torch.allclose(normalizer.denormalize(key, y), x, rtol=1e-5, atol=4e-6 * magnitude)


def test_actions_fill_the_unit_range_and_rare_motion_is_kept():
    rng = np.random.default_rng(0)
    smooth = rng.normal(size=2000)
    rare = np.where(np.arange(2000) < 8, 0.05, 1e-6 * smooth)  # 0.4 % of the steps hold all of the motion
    gripper = np.arange(2000) < 5
    actions = np.stack([smooth, rare, gripper, np.full(2000, 0.3)], axis=1).astype(np.float32)
    normalizer = Normalizer({ACTION: FeatureSpec((4,))})
    normalizer.fit({ACTION: vector_statistics(actions)})
    y = normalizer.normalize(ACTION, torch.from_numpy(actions)).numpy()
    assert 0.97 < (np.abs(y[:, 0]) <= 1).mean() < 0.99
    assert y[:, 0].max() > 1.1, "nothing is clipped"
    assert np.abs(y[:, 1]).max() == pytest.approx(1, abs=1e-4)
    assert set(y[:, 2].tolist()) == {-1.0, 1.0}
    assert np.abs(y[:, 3]).max() < 1e-6


def test_statistics_count_every_recorded_frame_once(tmp_path):
    windows = Windows(dataset(tmp_path), [STATE, FRONT], 3, 8)
    stats = fit_statistics(windows, [STATE, FRONT, ACTION])
    assert set(stats) == {STATE, ACTION}
    assert np.allclose(stats[ACTION]["mean"], windows.action_values().mean(0, dtype=np.float64), atol=1e-12)
    normalizer = Normalizer({key: windows.spec.features[key] for key in (STATE, FRONT, ACTION)})
    normalizer.fit(stats)
    state = normalizer.normalize(STATE, torch.from_numpy(windows.values(STATE)))
    assert torch.allclose(state.mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(state.std(0, correction=0), torch.ones(3), atol=1e-5)
    with pytest.raises(SpecError, match=r"no statistics for 'observation.points'"):
        fit_statistics(windows, [POINTS])


def test_images_depth_and_points_pass_unchanged():
    features = {
        FRONT: FeatureSpec((4, 4, 3), "uint8"),
        depth_key("front"): FeatureSpec((4, 4)),
        POINTS: FeatureSpec((10, 4)),
        SUCCESS: FeatureSpec((), "bool"),
    }
    normalizer = Normalizer(features)
    normalizer.fit({})
    assert not normalizer.state_dict()
    for key, feature in features.items():
        x = torch.ones(feature.shape)
        assert normalizer.normalize(key, x) is x
        assert normalizer.denormalize(key, x) is x


def test_normalizer_travels_with_the_weights():
    features = {STATE: FeatureSpec((3,)), ACTION: FeatureSpec((2,))}
    fitted, fresh = Normalizer(features), Normalizer(features)
    untouched = fresh.fingerprint()
    data = episode(0, 30)
    fitted.fit({key: vector_statistics(data[key]) for key in features})
    assert len({fitted.fingerprint(), untouched}) == 2
    fresh.load_state_dict(fitted.state_dict(), strict=True)
    assert fresh.fingerprint() == fitted.fingerprint()
    x = torch.from_numpy(data[STATE])
    assert torch.equal(fresh.normalize(STATE, x), fitted.normalize(STATE, x))
    assert not list(fitted.parameters())


def test_normalizer_names_what_it_does_not_know():
    normalizer = Normalizer({STATE: FeatureSpec((3,)), ACTION: FeatureSpec((2,))})
    with pytest.raises(SpecError, match=r"does not know 'observation.stat'; did you mean 'observation.state'"):
        normalizer.normalize("observation.stat", torch.zeros(3))
    with pytest.raises(SpecError, match=r"no statistics for 'observation.state'"):
        normalizer.fit({ACTION: vector_statistics(np.zeros((2, 2)))})
    with pytest.raises(SpecError, match=r"'observation.state' have shape \[2\], expected \[3\]"):
        normalizer.fit({STATE: vector_statistics(np.zeros((2, 2)))})
