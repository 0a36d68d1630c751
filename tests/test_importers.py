"""Datasets in other formats, written here by other means than those they are read with, come in value for value."""

import io
import json
import logging
import shutil
import struct
import sys
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from robopolicy.cli import main
from robopolicy.data.episode_file import DatasetError
from robopolicy.data.episodes import EpisodeStore, write_episodes
from robopolicy.data.importers import import_dataset
from robopolicy.data.importers.rlds import RldsSource
from robopolicy.data.importers.tfrecord import parse_example, read_records
from robopolicy.data.lerobot.importing import LeRobotSource
from robopolicy.data.windows import Windows
from robopolicy.spec import (
    ACTION,
    ENVIRONMENT_STATE,
    POINTS,
    REWARD,
    STATE,
    SUCCESS,
    TERMINATED,
    SpecError,
    depth_key,
    image_key,
)

FRONT, WRIST = image_key("front"), image_key("wrist")
LENGTHS = (5, 3, 8)


def pictures(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 256, (*shape, 3)).astype(np.uint8)


def encoded(image: np.ndarray, kind: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def trains(path: Path, keys: list[str]) -> Windows:
    """Windows of the imported dataset; every one of them is finite."""
    windows = Windows(EpisodeStore(path), keys, obs_horizon=2, action_horizon=4)
    batch = windows.batch(np.arange(len(windows)))
    assert np.isfinite(batch[ACTION]).all()
    assert all(batch[key].shape[:2] == (len(windows), 2) for key in keys)
    return windows


# LeRobotDataset v2.1


def lerobot_v21(path: Path, images: str) -> list[dict[str, np.ndarray]]:
    """A v2.1 folder with chunks of two episodes; images as PNG in the parquet files, beside them, or as video."""
    described = {
        STATE: {"dtype": "float32", "shape": [3], "names": {"motors": ["x", "y", "z"]}},
        FRONT: {
            "dtype": "video" if images == "video" else "image",
            "shape": [3, 16, 20],
            "names": ["channels", "height", "width"],
        },
        ACTION: {"dtype": "float32", "shape": [2], "names": ["dx", "dy"]},
        "next.done": {"dtype": "bool", "shape": [1], "names": None},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        **{name: {"dtype": "int64", "shape": [1]} for name in ("frame_index", "episode_index", "index", "task_index")},
    }
    data_path = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    video_path = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    info = {"codebase_version": "v2.1", "robot_type": "so100", "total_episodes": 3, "chunks_size": 2, "fps": 10}
    info |= {"data_path": data_path, "video_path": video_path if images == "video" else None, "features": described}
    (path / "meta").mkdir(parents=True)
    (path / "meta/info.json").write_text(json.dumps(info))
    tasks = [{"task_index": 0, "task": "reach"}, {"task_index": 1, "task": "push the block"}]
    (path / "meta/tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    episodes, lines = [], []
    for number, steps in enumerate(LENGTHS):
        rng = np.random.default_rng(number)
        frames = np.repeat(pictures(rng, steps, 4, 5), 4, axis=1).repeat(4, axis=2)
        episode = {STATE: rng.random((steps, 3), np.float32), ACTION: rng.random((steps, 2), np.float32), FRONT: frames}
        columns: dict[str, list] = {key: episode[key].tolist() for key in (STATE, ACTION)}
        columns |= {"next.done": [t == steps - 1 for t in range(steps)], "timestamp": [t / 10 for t in range(steps)]}
        columns |= {"frame_index": list(range(steps)), "episode_index": [number] * steps, "task_index": [number % 2] * steps}
        names = [f"images/{FRONT}/episode_{number:06d}/frame_{t:06d}.png" for t in range(steps)]
        if images == "inside":
            columns[FRONT] = [{"bytes": encoded(frame), "path": name} for frame, name in zip(frames, names, strict=True)]
        elif images == "beside":
            (path / names[0]).parent.mkdir(parents=True)
            for frame, name in zip(frames, names, strict=True):
                (path / name).write_bytes(encoded(frame))
            columns[FRONT] = [{"bytes": None, "path": name} for name in names]
        else:
            write_video(path / video_path.format(episode_chunk=number // 2, video_key=FRONT, episode_index=number), frames)
        file = path / data_path.format(episode_chunk=number // 2, episode_index=number)
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), file)
        episodes.append(episode)
        lines.append({"episode_index": number, "tasks": [tasks[number % 2]["task"]], "length": steps})
    (path / "meta/episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in reversed(lines)))
    return episodes


def write_video(file: Path, frames: np.ndarray) -> None:
    import av

    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264rgb", rate=10, options={"qp": "0", "g": "2"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("images", ["inside", "beside", "video"])
def test_lerobot_v21_comes_in_value_for_value(tmp_path, images):
    if images == "video":
        pytest.importorskip("av")
    episodes = lerobot_v21(tmp_path / "theirs", images)
    import_dataset(tmp_path / "theirs", tmp_path / "ours")
    store = EpisodeStore(tmp_path / "ours")
    for index, episode in enumerate(episodes):
        found = store.read(index)
        assert all(np.array_equal(found[key], array) for key, array in episode.items())
    assert store.spec.features[STATE].names == ("x", "y", "z")
    assert store.table["task"].to_pylist() == ["reach", "push the block", "reach"]
    assert store.spec.fps == 10
    trains(tmp_path / "ours", [STATE, FRONT])


def renamed(path: Path, old: str, new: str) -> None:
    """A v2.1 folder whose feature `old` is called `new`."""
    info = json.loads((path / "meta/info.json").read_text())
    info["features"][new] = info["features"].pop(old)
    (path / "meta/info.json").write_text(json.dumps(info))
    for file in path.glob("data/*/*.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.rename_columns([new if name == old else name for name in table.column_names]), file)


@pytest.mark.parametrize(("name", "key"), [("observation.image", FRONT), ("observation.wrist_image", WRIST)])
def test_cameras_of_other_names_become_cameras_of_ours(tmp_path, name, key):
    episodes = lerobot_v21(tmp_path / "theirs", "inside")
    renamed(tmp_path / "theirs", FRONT, name)
    import_dataset(tmp_path / "theirs", tmp_path / "ours")
    assert np.array_equal(EpisodeStore(tmp_path / "ours").read(1)[key], episodes[1][FRONT])
    trains(tmp_path / "ours", [STATE, key])


def test_a_camera_of_another_name_takes_no_key_that_there_is(tmp_path):
    lerobot_v21(tmp_path / "theirs", "inside")
    file = tmp_path / "theirs/meta/info.json"
    info = json.loads(file.read_text())
    info["features"]["observation.image"] = info["features"][FRONT]
    file.write_text(json.dumps(info))
    assert LeRobotSource(tmp_path / "theirs").layout.defaults == {
        **{key: (key,) for key in (STATE, FRONT, ACTION, "next.done")},
        image_key("image"): ("observation.image",),
    }


def test_a_lerobot_v21_folder_without_one_of_its_files_is_refused_with_its_name(tmp_path):
    lerobot_v21(tmp_path / "theirs", "beside")
    (tmp_path / f"theirs/images/{FRONT}/episode_000001/frame_000002.png").unlink()
    with pytest.raises(DatasetError, match=r"lacks the image images/.*frame_000002.png"):
        import_dataset(tmp_path / "theirs", tmp_path / "ours")
    file = tmp_path / "theirs/data/chunk-000/episode_000000.parquet"
    table = pq.read_table(file)
    outside = [{"bytes": None, "path": "../outside.png"}] * len(table)
    (tmp_path / "outside.png").write_bytes(encoded(np.zeros((16, 20, 3), np.uint8)))
    pq.write_table(table.set_column(table.column_names.index(FRONT), FRONT, pa.array(outside)), file)
    with pytest.raises(DatasetError, match=r"lacks the image ../outside.png"):
        import_dataset(tmp_path / "theirs", tmp_path / "ours")
    (tmp_path / "outside.png").unlink()
    file.unlink()
    with pytest.raises(DatasetError, match=r"episode_000000.parquet cannot be read"):
        import_dataset(tmp_path / "theirs", tmp_path / "ours")
    assert [child.name for child in tmp_path.iterdir()] == ["theirs"]


# robomimic


def robomimic(path: Path, *, control_freq: int | None = 20, dense: bool = False) -> list[dict[str, np.ndarray]]:
    """Demos 0, 2 and 10; demo_10 is the third, not the second."""
    h5py = pytest.importorskip("h5py")
    demos = []
    with h5py.File(path, "w") as file:
        kwargs = {} if control_freq is None else {"control_freq": control_freq}
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": kwargs})
        for number, steps in zip((10, 0, 2), LENGTHS, strict=True):
            rng = np.random.default_rng(number)
            demo = {
                "actions": rng.normal(size=(steps, 7)),
                "rewards": np.linspace(0, 0.9, steps) if dense else np.arange(steps) // (steps - 1) * float(number != 2),
                "dones": (np.arange(steps) == steps - 1).astype(int),
                "obs/robot0_eef_pos": rng.normal(size=(steps, 3)),
                "obs/robot0_eef_quat": rng.normal(size=(steps, 4)),
                "obs/robot0_gripper_qpos": rng.normal(size=(steps, 2)),
                "obs/robot0_joint_pos": rng.normal(size=(steps, 7)),
                "obs/object": rng.normal(size=(steps, 10)),
                "obs/agentview_image": pictures(rng, steps, 12, 10),
                "obs/agentview_depth": rng.random((steps, 12, 10, 1), np.float32),
                "obs/robot0_eye_in_hand_image": pictures(rng, steps, 8, 8),
            }
            group = data.create_group(f"demo_{number}")
            group.attrs["num_samples"] = steps
            for name, array in demo.items():
                group.create_dataset(name, data=array, compression="gzip")
                if name.startswith("obs/"):
                    group.create_dataset(f"next_{name}", data=array)
            demos.append((number, demo))
        file.create_dataset("mask/train", data=np.array([b"demo_0", b"demo_10"]))
        file.create_dataset("mask/valid", data=np.array([b"demo_2"]))
    return [demo for _, demo in sorted(demos, key=lambda pair: pair[0])]


def test_robomimic_comes_in_value_for_value(tmp_path):
    demos = robomimic(tmp_path / "image.hdf5")
    lines = import_dataset(tmp_path / "image.hdf5", tmp_path / "ours")
    store = EpisodeStore(tmp_path / "ours")
    for index, demo in enumerate(demos):
        found = store.read(index)
        state = np.concatenate([demo[f"obs/robot0_{name}"] for name in ("eef_pos", "eef_quat", "gripper_qpos")], axis=1)
        assert np.array_equal(found[STATE], state.astype(np.float32))
        assert np.array_equal(found[ENVIRONMENT_STATE], demo["obs/object"].astype(np.float32))
        assert np.array_equal(found[ACTION], demo["actions"].astype(np.float32))
        assert np.array_equal(found[image_key("agentview")], demo["obs/agentview_image"])
        assert np.array_equal(found[image_key("robot0_eye_in_hand")], demo["obs/robot0_eye_in_hand_image"])
        assert np.array_equal(found[depth_key("agentview")], demo["obs/agentview_depth"][..., 0])
        assert np.array_equal(found[REWARD], demo["rewards"].astype(np.float32))
        assert np.array_equal(found[SUCCESS], demo["rewards"] > 0)
        assert np.array_equal(found[TERMINATED], demo["dones"] > 0)
    assert store.spec.features[STATE].names[2:4] == ("robot0_eef_pos.2", "robot0_eef_quat.0")
    assert store.spec.fps == 20
    columns = {name: store.table[name].to_pylist() for name in ("task", "demo", "success", "mask.train", "mask.valid")}
    assert columns == {
        "task": ["Lift"] * 3,
        "demo": ["demo_0", "demo_2", "demo_10"],
        "success": [True, False, True],
        "mask.train": [True, False, True],
        "mask.valid": [False, True, False],
    }
    assert any("robot0_joint_pos" in line for line in lines if "not used" in line)
    trains(tmp_path / "ours", [STATE, image_key("agentview")])


def test_keys_choose_and_order_fields_and_leave_keys_out(tmp_path):
    demo = robomimic(tmp_path / "image.hdf5")[0]
    keys = {STATE: ["robot0_gripper_qpos", "robot0_joint_pos"], FRONT: "agentview_image", image_key("agentview"): None}
    import_dataset(tmp_path / "image.hdf5", tmp_path / "ours", episodes=1, instruction="lift the cube", keys=keys)
    store = EpisodeStore(tmp_path / "ours")
    state = np.concatenate([demo["obs/robot0_gripper_qpos"], demo["obs/robot0_joint_pos"]], axis=1)
    assert np.array_equal(store.read(0)[STATE], state.astype(np.float32))
    assert np.array_equal(store.read(0)[FRONT], demo["obs/agentview_image"])
    assert image_key("agentview") not in store.spec.features
    assert len(store) == 1
    assert store.info(0)["task"] == "lift the cube"


def test_rewards_that_are_no_flags_are_no_success(tmp_path):
    robomimic(tmp_path / "dense.hdf5", dense=True)
    import_dataset(tmp_path / "dense.hdf5", tmp_path / "ours")
    assert SUCCESS not in EpisodeStore(tmp_path / "ours").spec.features
    with pytest.raises(SpecError, match=r"demo_0: next.success must be 0 or 1 and 'rewards' holds 0.45"):
        import_dataset(tmp_path / "dense.hdf5", tmp_path / "out", keys={SUCCESS: "rewards"})


def test_a_robomimic_file_that_does_not_fit_is_refused_with_the_demo(tmp_path):
    h5py = pytest.importorskip("h5py")

    def refused(message: str, edit) -> None:
        file = tmp_path / "edited.hdf5"
        robomimic(file)
        with h5py.File(file, "r+") as opened:
            edit(opened["data"])
        with pytest.raises(ValueError, match=message):
            import_dataset(file, tmp_path / "out", format="robomimic")
        assert [child.name for child in tmp_path.iterdir()] == ["edited.hdf5"]

    def shorten(data) -> None:
        del data["demo_2/obs/object"]
        data["demo_2/obs/object"] = np.zeros((4, 10))

    def spoil(data) -> None:
        data["demo_2/actions"][1, 3] = np.nan

    refused(r"demo_2/obs/object has 4 steps, and num_samples says 8", shorten)
    refused(r"demo_2 lacks obs/agentview_image", lambda data: data.__delitem__("demo_2/obs/agentview_image"))
    refused(r"demo_2.*'action' is not finite: nan at index \[1, 3\]", spoil)
    refused(r"holds no observations .* dataset_states_to_obs.py", lambda data: data.__delitem__("demo_0/obs"))
    refused(r"holds no group data/demo_<k>", lambda data: [data.__delitem__(demo) for demo in list(data)])
    robomimic(tmp_path / "edited.hdf5")
    with pytest.raises(SpecError, match=r"fps=10 was given and .* says 20 Hz"):
        import_dataset(tmp_path / "edited.hdf5", tmp_path / "out", fps=10)
    robomimic(tmp_path / "edited.hdf5", control_freq=None)
    with pytest.raises(SpecError, match=r"give fps=RATE"):
        import_dataset(tmp_path / "edited.hdf5", tmp_path / "out")
    cut = (tmp_path / "edited.hdf5").read_bytes()[:-4000]
    (tmp_path / "edited.hdf5").write_bytes(cut)
    with pytest.raises(DatasetError, match=r"cut short or damaged"):
        import_dataset(tmp_path / "edited.hdf5", tmp_path / "out", fps=20)


# zarr


def replay_buffer(path: Path, arrays: dict[str, np.ndarray], ends, *, zarr_format: int = 2) -> None:
    """As diffusion_policy writes one: Blosc, chunks in time only."""
    zarr = pytest.importorskip("zarr")
    from numcodecs import Blosc

    store = zarr.storage.ZipStore(path, mode="w") if path.suffix == ".zip" else str(path)
    root = zarr.open_group(store, mode="w", zarr_format=zarr_format)
    data, meta = root.create_group("data"), root.create_group("meta")
    packed = {"compressors": Blosc("zstd", 5, Blosc.BITSHUFFLE)} if zarr_format == 2 else {}
    for name, array in arrays.items():
        chunks = (4, *array.shape[1:])
        data.create_array(name, shape=array.shape, dtype=array.dtype, chunks=chunks, **packed)[:] = array
    ends = np.asarray(ends, np.int64)
    meta.create_array("episode_ends", shape=ends.shape, dtype=ends.dtype, chunks=(2,), compressors=None)[:] = ends
    if path.suffix == ".zip":
        root.store.close()


def pusht(seed: int = 0, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Float images, as in the published Push-T buffers, and a keypoint array with two axes."""
    rng, steps = np.random.default_rng(seed), sum(LENGTHS)
    return {
        "img": pictures(rng, steps, 6, 8).astype(np.float32) / scale,
        "state": rng.random((steps, 5), np.float32),
        "action": rng.random((steps, 2), np.float32),
        "keypoint": rng.random((steps, 9, 2), np.float32),
        "point_cloud": rng.random((steps, 7, 6), np.float32),
    }


@pytest.mark.parametrize(("name", "zarr_format", "scale"), [("a.zarr", 2, 1), ("a.zarr.zip", 2, 255), ("a.zarr", 3, 255)])
def test_a_replay_buffer_comes_in_value_for_value(tmp_path, name, zarr_format, scale):
    arrays = pusht(scale=scale)
    replay_buffer(tmp_path / name, arrays, np.cumsum(LENGTHS), zarr_format=zarr_format)
    keys = {"observation.keypoints": "keypoint"}
    import_dataset(tmp_path / name, tmp_path / "ours", fps=10, instruction="push the T", keys=keys)
    store = EpisodeStore(tmp_path / "ours")
    assert store.lengths.tolist() == list(LENGTHS)
    found = {key: np.concatenate([store.read(i)[key] for i in range(3)]) for key in store.spec.features}
    assert np.array_equal(found.pop(FRONT), pusht()["img"].astype(np.uint8))
    names = {STATE: "state", ACTION: "action", "observation.keypoints": "keypoint", POINTS: "point_cloud"}
    assert dict.fromkeys(found, True) == {key: np.array_equal(found[key], arrays[name]) for key, name in names.items()}
    assert store.table["task"].to_pylist() == ["push the T"] * 3
    trains(tmp_path / "ours", [STATE, FRONT])


def test_constant_features_and_channels_first_are_no_obstacle(tmp_path):
    arrays = {
        "state": np.ones((16, 5)),
        "action": np.zeros((16, 1)),
        "front_rgb": pusht()["img"].astype(np.uint8).transpose(0, 3, 1, 2),
    }
    replay_buffer(tmp_path / "a.zarr", arrays, np.cumsum(LENGTHS))
    import_dataset(tmp_path / "a.zarr", tmp_path / "ours", fps=10)
    assert np.array_equal(EpisodeStore(tmp_path / "ours").read(0)[FRONT], pusht()["img"].astype(np.uint8)[:5])
    trains(tmp_path / "ours", [STATE])


def test_a_replay_buffer_that_does_not_fit_is_refused(tmp_path, caplog):
    def refused(message: str, arrays: dict[str, np.ndarray], ends=(5, 8, 16), **options) -> None:
        replay_buffer(tmp_path / "a.zarr", arrays, ends)
        with pytest.raises(ValueError, match=message):
            import_dataset(tmp_path / "a.zarr", tmp_path / "out", **{"fps": 10, **options})
        assert not (tmp_path / "out").exists()

    good = pusht()
    refused(r"give fps=RATE", good, fps=None)
    refused(r"fps=-1 must be", good, fps=-1)
    refused(r"holds no episodes", good, ends=())
    refused(r"must rise, and episode 1 goes from 5 to 5", good, ends=(5, 5, 16))
    refused(r"data/action has 16 steps, and meta/episode_ends ends at 20", good, ends=(5, 20))
    refused(r"no field 'images'; did you mean 'img'", good, keys={FRONT: "images"})
    refused(r"which fields are 'action'.*fields: img, state", {key: good[key] for key in ("img", "state")})
    refused(r"which fields are 'observation.'", {"action": good["action"]})
    refused(r"null", good, keys={STATE: []})
    refused(r"a color image is \[T, H, W, 3\]", good, keys={FRONT: "keypoint"})
    refused(
        r"episode 1: 'img' has values from .* first episode's are in 0..1",
        {**good, "img": np.where(np.arange(16) < 5, 0.5, 200)[:, None, None, None] * np.ones((16, 4, 4, 3))},
    )
    refused(r"'action' is not finite", {**good, "action": np.full((16, 2), 1e60)})
    refused(r"it looks like a diffusion_policy replay buffer.*give format=zarr", good, format="lerobot")
    refused(r"did you mean 'zarr'", good, format="zar")
    (tmp_path / "a.zarr/data/action/1.0").write_bytes(b"nonsense")
    with pytest.raises(DatasetError, match=r"data/action cannot be read"):
        import_dataset(tmp_path / "a.zarr", tmp_path / "out", fps=10)
    (tmp_path / "a.zarr/data/action/1.0").unlink()
    with caplog.at_level(logging.WARNING):
        import_dataset(tmp_path / "a.zarr", tmp_path / "out", fps=10)
    assert "1 of 4 chunks of data/action are not stored" in caplog.text


# RLDS: tf.train.Example and TFRecord by hand


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def chunk(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def feature(values) -> bytes:
    if isinstance(values, list):
        return chunk(1, b"".join(chunk(1, value) for value in values))
    values = np.asarray(values)
    if values.dtype.kind == "f":
        return chunk(2, chunk(1, values.astype("<f4").tobytes()))
    return chunk(3, chunk(1, b"".join(varint(int(value)) for value in values.ravel())))


def example(features: dict) -> bytes:
    return chunk(1, b"".join(chunk(1, chunk(1, name.encode()) + chunk(2, feature(v))) for name, v in features.items()))


def crc32c(data: bytes) -> int:
    """Bit by bit, after RFC 3720."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def record(data: bytes) -> bytes:
    def masked(part: bytes) -> bytes:
        crc = crc32c(part)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def tensor(dtype: str, *shape: int, encoding: str = "none") -> dict:
    return {"tensor": {"dtype": dtype, "encoding": encoding, "shape": {"dimensions": [str(size) for size in shape]}}}


def picture(dtype: str, *shape: int) -> dict:
    return {"image": {"dtype": dtype, "encodingFormat": "png", "shape": {"dimensions": [str(size) for size in shape]}}}


def tree(features: dict) -> dict:
    return {"featuresDict": {"features": features}}


def rlds(path: Path) -> list[dict[str, np.ndarray]]:
    """Two training shards and a validation one."""
    path.mkdir()
    observation = {
        "image": picture("uint8", 6, 8, 3),
        "wrist_image": picture("uint8", -1, -1, 3),
        "depth": tensor("float32", 6, 8, encoding="zlib"),
        "state": tensor("float32", 3),
        "count": tensor("int32"),
        "note": {"text": {}},
    }
    step = {"observation": tree(observation), "action": tensor("float32", 2), "reward": tensor("float32")}
    step |= {"is_terminal": tensor("bool"), "language_instruction": {"text": {}}, "frames": {"sequence": {}}}
    metadata = {"file_path": {"text": {}}, "success": tensor("bool"), "score": tensor("float64", 2)}
    steps = {"sequence": {"feature": tree(step), "length": "-1"}}
    (path / "features.json").write_text(json.dumps(tree({"steps": steps, "episode_metadata": tree(metadata)})))
    splits = [{"name": "val", "shardLengths": ["1"]}, {"name": "train", "shardLengths": ["1", "1"]}]
    (path / "dataset_info.json").write_text(json.dumps({"name": "toy", "fileFormat": "tfrecord", "splits": splits}))
    episodes = []
    names = ("train.tfrecord-00000-of-00002", "train.tfrecord-00001-of-00002", "val.tfrecord-00000-of-00001")
    for number, (steps_, name) in enumerate(zip(LENGTHS, names, strict=True)):
        rng = np.random.default_rng(number)
        episode = {
            "observation/image": pictures(rng, steps_, 6, 8),
            "observation/wrist_image": pictures(rng, steps_, 4, 4),
            "observation/depth": rng.random((steps_, 6, 8), np.float32),
            "observation/state": rng.random((steps_, 3), np.float32),
            "observation/count": -np.arange(steps_),
            "action": rng.random((steps_, 2), np.float32),
            "reward": (np.arange(steps_) == steps_ - 1).astype(np.float32),
            "is_terminal": np.arange(steps_) == steps_ - 1,
        }
        stored: dict = {f"steps/{key}": value for key, value in episode.items()}
        stored |= {
            f"steps/{key}": [encoded(im) for im in episode[key]] for key in ("observation/image", "observation/wrist_image")
        }
        stored["steps/observation/depth"] = [zlib.compress(frame.tobytes()) for frame in episode["observation/depth"]]
        stored |= {"steps/language_instruction": [f"pick {number}".encode()] * steps_, "steps/observation/note": [b""] * steps_}
        stored |= {"episode_metadata/file_path": [b"/x"], "episode_metadata/success": np.array([number % 2])}
        stored |= {"episode_metadata/score": np.array([number, 0.5])}
        (path / f"toy-{name}").write_bytes(record(example(stored)))
        episodes.append(episode)
    return episodes


def test_rlds_comes_in_value_for_value(tmp_path):
    episodes = rlds(tmp_path / "1.0.0")
    lines = import_dataset(tmp_path / "1.0.0", tmp_path / "ours", fps=5, keys={"observation.count": "observation/count"})
    store = EpisodeStore(tmp_path / "ours")
    mapping = {FRONT: "image", WRIST: "wrist_image", depth_key("front"): "depth", STATE: "state", "observation.count": "count"}
    names = {key: f"observation/{name}" for key, name in mapping.items()}
    names |= {ACTION: "action", REWARD: "reward", TERMINATED: "is_terminal"}
    for index, episode in enumerate(episodes):
        found = store.read(index)
        assert dict.fromkeys(found, True) == {key: np.array_equal(found[key], episode[name]) for key, name in names.items()}
    columns = {name: store.table[name].to_pylist() for name in ("task", "split", "success", "metadata.score")}
    assert columns["task"] == ["pick 0", "pick 1", "pick 2"]
    assert columns["split"] == ["train", "train", "val"]
    assert columns["success"] == [False, True, False]
    assert columns["metadata.score"] == [[0, 0.5], [1, 0.5], [2, 0.5]]
    assert any("frames is left out" in line for line in lines)
    trains(tmp_path / "ours", [STATE, FRONT])


def test_rlds_that_is_incomplete_is_refused(tmp_path):
    rlds(tmp_path / "1.0.0")
    shard = tmp_path / "1.0.0/toy-train.tfrecord-00001-of-00002"
    content = shard.read_bytes()

    def refused(message: str) -> None:
        with pytest.raises(DatasetError, match=message):
            import_dataset(tmp_path / "1.0.0", tmp_path / "out", fps=5)
        assert [child.name for child in tmp_path.iterdir()] == ["1.0.0"]

    shard.write_bytes(b"")
    refused(r"toy-train.tfrecord-00001-of-00002 has 0 of 1 episodes")
    shard.write_bytes(content[:-3])
    refused(r"toy-train.tfrecord-00001-of-00002: record 0 is cut short")
    shard.write_bytes(record(example({"steps/action": np.zeros(4)})))
    refused(r"record 0 does not fit features.json: it lacks 'steps/observation/image'")
    shard.unlink()
    refused(r"lacks toy-train.tfrecord-00001-of-00002; fetch it, or take the 1 before it: episodes=1")
    (tmp_path / "1.0.0/toy-val.tfrecord-00000-of-00001").unlink()
    assert any(
        "split val is left out" in line for line in import_dataset(tmp_path / "1.0.0", tmp_path / "some", fps=5, episodes=1)
    )
    shutil.rmtree(tmp_path / "some")
    with pytest.raises(DatasetError, match=r"give path=.*1.0.0, which looks like an RLDS folder"):
        import_dataset(tmp_path, tmp_path / "out", fps=5)


def test_every_flipped_bit_and_every_cut_of_a_tfrecord_is_found(tmp_path):
    file = tmp_path / "a"
    data = [example({"a": np.arange(3), "b": [b"xyz"], "c": np.array([1.5, -2])}), example({"a": np.array([-7])})]
    whole = b"".join(map(record, data))
    file.write_bytes(whole)
    assert list(read_records(file)) == data
    boundaries = {0, len(record(data[0])), len(whole)}
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        if size in boundaries:  # the number of records is the caller's to check
            assert list(read_records(file)) == data[: size and 1]
        else:
            with pytest.raises(DatasetError, match="is cut short"):
                list(read_records(file))
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        with pytest.raises(DatasetError, match=r"checksum differs|cut short"):
            list(read_records(file))


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 10**6), bit=st.integers(0, 7), cut=st.booleans())
def test_a_message_with_a_right_checksum_and_wrong_content_never_crashes(tmp_path_factory, at, bit, cut):
    path = tmp_path_factory.getbasetemp() / "fuzz"
    if not path.exists():
        rlds(path)
    source = RldsSource(path)
    shard = path / "toy-train.tfrecord-00000-of-00002"
    original = shard.read_bytes()
    data = original[12:-4]
    at %= len(data)
    edited = data[:at] if cut else data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
    shard.write_bytes(record(edited))
    try:
        with suppress(DatasetError):
            for episode in source.episodes(source.layout.fields):
                assert all(isinstance(array, np.ndarray) for array in episode.arrays.values())
    finally:
        shard.write_bytes(original)


@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_a_message_or_refused(data):
    with suppress(DatasetError):
        assert all(isinstance(values, np.ndarray | list) for values in parse_example(data).values())


# what all have in common


def test_the_command_line_tells_the_format_and_takes_a_mapping(tmp_path, monkeypatch, capsys):
    replay_buffer(tmp_path / "a.zarr", pusht(), np.cumsum(LENGTHS))
    monkeypatch.chdir(tmp_path)
    words = ["data", "import", "path=a.zarr", "out=ours", "fps=10", "instruction=push the T"]
    words += ["keys={observation.pose: state, observation.state: null}"]
    monkeypatch.setattr(sys, "argv", ["robopolicy", *words])
    main()
    assert "observation.pose = state" in capsys.readouterr().out
    assert EpisodeStore("ours").info(0)["task"] == "push the T"
    features = EpisodeStore("ours").spec.features
    assert "observation.pose" in features
    assert STATE not in features


def test_what_is_no_dataset_in_another_format_is_said_to_be_none(tmp_path):
    write_episodes(tmp_path / "own", [{STATE: np.zeros((3, 2)), ACTION: np.zeros((3, 1))}], fps=10)
    (tmp_path / "notes.txt").write_text("nothing")
    for path, message in (("own", "robopolicy dataset already"), ("notes.txt", "none of the formats"), ("gone", "there is no")):
        with pytest.raises(DatasetError, match=message):
            import_dataset(tmp_path / path, tmp_path / "out", fps=10)
    replay_buffer(tmp_path / "a.zarr", pusht(), np.cumsum(LENGTHS))
    with pytest.raises(DatasetError, match="exists already"):
        import_dataset(tmp_path / "a.zarr", tmp_path / "own", fps=10)
