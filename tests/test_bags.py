"""Bags: what is written can be read, by rosbags and up to a full disk; episodes, targets and replays are what was recorded.

Bags that a node on real ROS wrote: tests/ros/closed_loop.py, `make test-ros`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from robopolicy import spec
from robopolicy.data.episode_file import DatasetError
from robopolicy.data.episodes import EpisodeStore
from robopolicy.pipeline import import_run
from robopolicy.spec import FeatureSpec, PolicySpec, SpecError

pytest.importorskip("rosbags.highlevel", reason="rosbags is not installed: pip install 'robopolicy[bags]'")

from bag_messages import STORES, Messages
from rosbags.highlevel import AnyReader

from robopolicy.deploy import ros_bag
from robopolicy.deploy.ros_config import NodeConfig
from robopolicy.deploy.ros_recorder import Recorder
from robopolicy.deploy.ros_replay import replay

ROOT = Path(__file__).resolve().parent.parent
HZ, LENGTHS = 10.0, (7, 5)
FRONT = spec.image_key("front")
POLICY = PolicySpec(
    observation={spec.STATE: FeatureSpec((2,), "float32", "rad", names=("a", "b")), FRONT: FeatureSpec((6, 8, 3), "uint8")},
    action=FeatureSpec((7,), "float32", "m, rad, 0..1", "base", ("dx", "dy", "dz", "rx", "ry", "rz", "gripper")),
    obs_horizon=2,
    action_horizon=4,
    execute_horizon=2,
    control_hz=HZ,
)
MAPPING = {
    "observation": {
        spec.STATE: {"topic": "/joints", "type": "sensor_msgs/JointState", "joints": ["a", "b"]},
        FRONT: {"topic": "/front", "type": "sensor_msgs/Image"},
    },
    "command": {"topic": "/cmd", "type": "geometry_msgs/TwistStamped", "gripper_topic": "/gripper"},
    "limits": {},
    "task": "lift",
}


def episode(number: int) -> dict[str, np.ndarray]:
    """What is recorded of an episode; actions follow from states, so that a policy can be right or wrong."""
    rng, length = np.random.default_rng(number), LENGTHS[number]
    state = rng.normal(size=(length, 2)).astype(np.float32)
    action = np.zeros((length, 7), np.float32)
    action[:, :2], action[:, 6] = 0.01 * state, np.linspace(0, 1, length)
    images = rng.integers(0, 256, (length, 12, 16, 3), dtype=np.uint8)
    return {spec.STATE: state, FRONT: images, spec.ACTION: action}


def record(path: Path, version: str, *, own: bool) -> Path:
    """A bag of two episodes: as our node records, or as somebody else's tool would."""
    messages = Messages(version)
    recorder = Recorder(path, version, messages.serialize, reserve_bytes=0)

    def write(*message) -> None:
        while recorder._queue.qsize() > 100:  # a robot would not wait: what the disk cannot take is dropped
            time.sleep(0.001)
        recorder.write(*message)

    if own:
        about = {"policy": "p", "spec": POLICY.to_dict(), "control_hz": HZ, "mapping": MAPPING}
        write("/robopolicy/about", "std_msgs/String", messages.text(json.dumps(about)), 0.0)
    now = 100.0
    for number in range(len(LENGTHS)):
        arrays = episode(number)
        if own:
            write("/robopolicy/episode", "std_msgs/String", messages.text("start"), now)
        for t in range(LENGTHS[number]):
            now += 1 / HZ
            write("/joints", "sensor_msgs/JointState", messages.joints(arrays[spec.STATE][t], now), now)
            write("/front", "sensor_msgs/Image", messages.image(arrays[FRONT][t], now), now)
            action = arrays[spec.ACTION][t]
            if own:
                write("/robopolicy/action", "std_msgs/Float64MultiArray", messages.array(action), now + 0.01)
            opening = messages.make("std_msgs/Float64", data=float(action[6]))
            write("/gripper", "std_msgs/Float64", opening, now + 0.02)
            write("/cmd", "geometry_msgs/TwistStamped", messages.twist(action * HZ, now), now + 0.03)
        if own:
            write("/robopolicy/episode", "std_msgs/String", messages.text("stop"), now + 0.04)
    recorder.close()
    assert (recorder.num_dropped, recorder.problem) == (0, "")
    return path


def bag_name(version: str) -> str:
    return "bag" if version == "2" else "x.bag"


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_bag_of_our_recorder_is_a_dataset_step_by_step(version, tmp_path):
    bag = record(tmp_path / bag_name(version), version, own=True)
    lines = import_run(bag, tmp_path / "out")
    assert "2 episodes, 12 steps at 10 Hz" in lines[0]
    store = EpisodeStore(tmp_path / "out")
    assert store.spec.features[spec.ACTION].names == POLICY.action.names
    assert store.spec.fps == HZ
    for number in range(2):
        there, then = store.read(number), episode(number)
        np.testing.assert_allclose(there[spec.STATE], then[spec.STATE], atol=1e-6)
        np.testing.assert_allclose(there[spec.ACTION], then[spec.ACTION], atol=1e-6)
        means = then[FRONT].reshape(-1, 6, 2, 8, 2, 3).mean(axis=(2, 4))
        assert np.abs(there[FRONT] - means).max() <= 1  # averaged down to what the policy sees
        assert store.info(number)["task"] == "lift"


@pytest.mark.parametrize("version", ["1", "2"])
def test_any_bag_is_a_dataset_with_a_mapping_or_with_keys(version, tmp_path):
    bag, mapping = record(tmp_path / bag_name(version), version, own=False), tmp_path / "mapping.json"
    mapping.write_text(json.dumps(MAPPING))
    with pytest.raises(SpecError, match="fps"):
        import_run(bag, tmp_path / "out", mapping)
    import_run(bag, tmp_path / "out", mapping, fps=HZ)
    store = EpisodeStore(tmp_path / "out")
    there = store.read(0)
    then = {key: np.concatenate([episode(n)[key] for n in range(2)]) for key in episode(0)}
    assert FRONT in there  # 12 x 16, as recorded
    assert there[FRONT].shape[1:] == (12, 16, 3)
    count = len(there[spec.ACTION])
    assert count >= sum(LENGTHS) - 2
    first = int(np.argmin(np.abs(then[spec.STATE] - there[spec.STATE][0]).sum(axis=1)))
    shown = slice(first, first + count)
    np.testing.assert_allclose(there[spec.STATE], then[spec.STATE][shown], atol=1e-6)
    np.testing.assert_allclose(there[spec.ACTION], then[spec.ACTION][shown], atol=1e-6)  # commanded after they were seen
    keys = {spec.ACTION: ["/cmd", "/gripper"]}
    import_run(bag, tmp_path / "keys", fps=HZ, keys=keys, format="rosbag")
    loose = EpisodeStore(tmp_path / "keys").read(0)
    assert loose[spec.ACTION].shape[1:] == (7,)
    assert loose[spec.STATE].shape[1:] == (2,)  # the only joint states, in the order of the message


def test_what_a_bag_cannot_give_is_said(tmp_path):
    bag = record(tmp_path / "bag", "2", own=False)
    wrong = {**MAPPING, "observation": {spec.STATE: {"topic": "/joint", "type": "sensor_msgs/JointState"}}}
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))
    with pytest.raises(DatasetError, match="did you mean '/joints'"):
        import_run(bag, tmp_path / "out", tmp_path / "wrong.json", fps=HZ)
    wrong["observation"][spec.STATE] = {"topic": "/front", "type": "sensor_msgs/JointState"}
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))
    with pytest.raises(DatasetError, match="holds sensor_msgs/Image in the bag"):
        import_run(bag, tmp_path / "out", tmp_path / "wrong.json", fps=HZ)
    with pytest.raises(SpecError, match="nothing says which fields are 'action'"):
        import_run(bag, tmp_path / "out", fps=HZ)
    with pytest.raises(ValueError, match="is none"):
        import_run(ROOT / "conf", tmp_path / "out", tmp_path / "wrong.json")
    data = (bag / "bag.mcap").read_bytes()
    (bag / "bag.mcap").write_bytes(data[: len(data) // 2])
    with pytest.raises(DatasetError, match="cannot be read as a bag"):
        import_run(bag, tmp_path / "out", fps=HZ)
    assert not (tmp_path / "out").exists()


def test_joint_commands_are_taken_by_name_and_others_are_refused():
    joints = ["a", "b"]
    mapping = {
        "observation": {spec.STATE: {"topic": "/joints", "type": "sensor_msgs/JointState", "joints": joints}},
        "command": {"topic": "/goal", "type": "trajectory_msgs/JointTrajectory", "joints": joints},
        "limits": {"translation": [], "rotation": [], "absolute": [0, 1], "low": None, "high": None},
    }

    def commanded(names, positions, **changes):
        config = NodeConfig.from_dict({**mapping, "command": {**mapping["command"], **changes}})
        reader = ros_bag._Reader(ros_bag.Meaning(dict(config.observation), config), [spec.STATE, spec.ACTION])
        message = SimpleNamespace(joint_names=names, points=[SimpleNamespace(positions=positions)])
        reader.take("/goal", 1.0, lambda: message)
        return reader.commanded(HZ)[spec.ACTION].tolist()

    assert commanded(["b", "a"], [20.0, 10.0]) == [10.0, 20.0]
    assert commanded(["b", "a"], [20.0, 10.0], joints=[]) == [20.0, 10.0]  # the mapping says no order
    for wrong in ((["a"], [1.0]), (["a", "b", "c"], [1.0, 2.0, 3.0]), (["a", "b"], [1.0])):
        with pytest.raises(DatasetError, match=r"/goal: (the )?JointTrajectory"):
            commanded(*wrong)
    with pytest.raises(DatasetError, match="of 3 joints, the limits of 2"):
        commanded(["a", "b", "c"], [1.0, 2.0, 3.0], joints=[])


def test_a_bag_of_our_recorder_is_a_target_at_the_moments_of_decision(tmp_path):
    from robopolicy.selection.target import open_target, prepare

    bag = record(tmp_path / "bag", "2", own=True)
    target = open_target(prepare(bag, tmp_path / "target"))
    frames = target.frames(POLICY.observation, 1)
    assert len(frames) == sum(LENGTHS)
    got = frames.batch(np.arange(len(frames)))[spec.STATE][:, 0]
    np.testing.assert_allclose(got, np.concatenate([episode(n)[spec.STATE] for n in range(2)]), atol=1e-6)


class Scaled:
    """A Policy that says the recorded action times a factor, for every step of a chunk the present one's."""

    def __init__(self, factor: float) -> None:
        self.spec, self.factor, self.shapes = POLICY, factor, set()

    def reset(self) -> None:
        pass

    def sample(self, observation, num_samples=1, seed=None):
        spec.check_observation(observation, self.spec)
        state = observation[spec.STATE][:, -1]
        self.shapes.add(observation[FRONT].shape[1:])
        action = np.zeros((len(state), num_samples, 4, 7), np.float32)
        action[..., :2] = 0.01 * self.factor * state[:, None, None]
        return action


def test_a_replay_shows_where_the_policy_agrees_and_draws_it(tmp_path):
    bag = record(tmp_path / "bag", "2", own=True)
    recorded = np.concatenate([episode(n)[spec.ACTION] for n in range(2)])
    found = {}
    for factor in (1.0, -1.0):
        count = 2 if factor > 0 else 1
        lines = replay(bag, Scaled(factor), tmp_path / f"out{factor}", name="scaled", episodes=count)
        assert f"{count} episodes, {12 if count == 2 else 7} steps" in lines[0]
        found[factor] = json.loads((tmp_path / f"out{factor}" / "summary.json").read_text())
    first = [row["error_by_step"][0][0] for row in found.values()]
    decided = episode(0)[spec.ACTION][::2, 0]
    assert first[0] < 1e-6
    assert first[1] == pytest.approx(2 * np.abs(decided).mean(), rel=1e-4)
    gripper = found[1.0]["entries"][6]
    assert gripper["error"] == pytest.approx(np.abs(recorded[:, 6]).mean(), rel=1e-5)
    assert found[1.0]["entries"][3]["ratio"] is None  # nothing ever turned
    page = (tmp_path / "out1.0" / "index.html").read_text()
    for name in ("episode_000.png", "episode_001.png", "strip_000.png", "horizon.png"):
        assert name in page
        assert (tmp_path / "out1.0" / name).read_bytes()[:4] == b"\x89PNG"
    bare = record(tmp_path / "bare", "2", own=False)
    with pytest.raises(SpecError, match=r"lacks observation\.state.*mapping=FILE"):
        replay(bare, Scaled(1.0), tmp_path / "none", name="scaled")
    assert not (tmp_path / "none").exists()


FILL = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from bag_messages import Messages
from robopolicy.deploy.ros_recorder import Recorder
import numpy as np, time
version, folder = sys.argv[2], Path(sys.argv[3])
messages = Messages(version)
recorder = Recorder(folder / ("bag" if version == "2" else "x.bag"), version, messages.serialize, reserve_bytes=3 * 2**20)
count = 0
while not recorder.problem and count < 400:
    recorder.write("/front", "sensor_msgs/Image", messages.image(np.full((200, 200, 3), count % 256, np.uint8), count), count)
    count += 1
    while recorder._queue.qsize() > 50:
        time.sleep(0.001)
for _ in range(5):  # the robot goes on
    recorder.write("/front", "sensor_msgs/Image", messages.image(np.zeros((2, 2, 3), np.uint8), count), count)
recorder.close()
print(recorder.num_written, recorder.num_dropped, recorder.problem, sep="|")
"""


@pytest.mark.parametrize("version", ["1", "2"])
def test_when_the_disk_is_full_the_bag_is_readable_up_to_there_and_the_robot_goes_on(version, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    inner = f'mount -t tmpfs -o size=12m none {disk} && "$@" && cp -r {disk} {tmp_path / "kept"}'
    rights = [[], ["--map-root-user"]]
    mount = next((r for r in rights if _can_mount(r, disk)), None)
    if mount is None or shutil.which("unshare") is None:
        pytest.skip("a small disk cannot be mounted here")
    words = [sys.executable, "-c", FILL, str(ROOT / "tests"), version, str(disk)]
    done = subprocess.run(
        ["unshare", "--mount", *mount, "sh", "-c", inner, "sh", *words], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    written, dropped, problem = done.stdout.strip().split("|")
    assert problem == "the disk is full"
    assert int(dropped) >= 5
    kept = tmp_path / "kept" / bag_name(version)
    with AnyReader([kept], default_typestore=STORES["2"]) as reader:
        pictures = [reader.deserialize(raw, c.msgtype).data[0] for c, _, raw in reader.messages()]
    assert pictures == [n % 256 for n in range(int(written))]  # each of them, whole and in order
    assert 40 < len(pictures) < 100  # most of 12 MB, at 120 kB each


def _can_mount(rights: list[str], folder: Path) -> bool:
    command = ["unshare", "--mount", *rights, "mount", "-t", "tmpfs", "none", str(folder)]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0
