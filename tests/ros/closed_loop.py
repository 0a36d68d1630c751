"""`make test-ros`: a simulated robot on a real ROS 1 and a real ROS 2, driven by the inference node over real topics.

Three processes as on a robot: the policy's server, the node (ROS's own environment, without torch), the robot. Skipped where
tests/ros/install.sh could not install a ROS, with its reason.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import yaml

from robopolicy import spec
from robopolicy.data.collect import environment, episode_seed, play
from robopolicy.data.episodes import EpisodeStore
from robopolicy.deploy.server import serve
from robopolicy.evaluation.rollout import PolicyActor
from robopolicy.pipeline import import_run, replay_run
from robopolicy.policies.load import load_policy
from robopolicy.spec import ENVIRONMENT_STATE, STATE, FeatureSpec, PolicySpec

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TOOL = ROOT / "tools" / "ros_infer.py"
ENV = {"env_id": "robopolicy/Lift-v0", "env_kwargs": {"observation": ["state", "environment_state"], "randomization": "none"}}
NUM_SEEDS, NUM_REAL_TIME = 20, 5
SEEDS = [episode_seed(8, n) for n in range(NUM_SEEDS)]


class Ros:
    """How to run a process in one ROS."""

    def __init__(self, version: str, folder: Path) -> None:
        self.version, self.folder, self.venv = version, folder, ROOT / f".venv-ros{version}"
        if not (self.venv / "installed").exists():
            missing = self.venv / "missing"
            pytest.skip(missing.read_text().strip() if missing.exists() else "run tests/ros/install.sh (make test-ros)")
        self.env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
        self._core = None
        if version == "2":
            packages = next((self.venv / "lib").glob("python3*")) / "site-packages"
            libraries = [str(self.venv / "lib"), *map(str, packages.glob("ros_*.libs"))]
            profile = str(ROOT / "assets" / "ros" / "fastdds_shm.xml")
            # what the wheels' .pth would do at every start by executing the interpreter anew
            self.env |= {"_ROS_WHEELS_BOOTSTRAP_COMPLETE": "1", "LD_LIBRARY_PATH": ":".join(libraries)}
            self.env |= {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "ROS_DOMAIN_ID": str(os.getpid() % 100)}
            self.env |= {"FASTDDS_DEFAULT_PROFILES_FILE": profile, "FASTRTPS_DEFAULT_PROFILES_FILE": profile}
        else:
            port = 11411 + os.getpid() % 500
            self.env |= {"ROS_MASTER_URI": f"http://127.0.0.1:{port}", "ROS_IP": "127.0.0.1", "ROS_HOSTNAME": "127.0.0.1"}
            self.env |= {"ROS_LOG_DIR": str(folder / "log")}
            self._core = self.start("/usr/bin/python3", "/usr/bin/roscore", "-p", str(port), log="roscore")
            until(lambda: self._param("get", "/rosdistro"), 30, "roscore does not come up")

    def _param(self, *words: str) -> bool:
        return subprocess.run(["/usr/bin/rosparam", *words], env=self.env, capture_output=True, check=False).returncode == 0

    def sim_time(self, on: bool) -> list[str]:
        """Arguments of a node whose clock is simulated."""
        if self.version == "1":
            assert self._param("set", "/use_sim_time", "true" if on else "false")
            return []
        return ["use_sim_time:=true"] if on else []

    def start(self, *words: str, log: str, packages: bool = False) -> subprocess.Popen:
        """A process whose output goes to a file. packages: the package and its environment's packages are on its path."""
        env = {**self.env, "PYTHONPATH": f"{ROOT}:{sysconfig.get_path('purelib')}"} if packages else self.env
        with (self.folder / f"{log}.log").open("w") as file:
            return subprocess.Popen(words, env=env, stdout=file, stderr=subprocess.STDOUT, cwd=self.folder)

    @contextmanager
    def node(self, address: str, config: Path, parameters: list[str], *words: str, log: str):
        """The inference node."""
        python = str(self.venv / "bin" / "python")
        if self.version == "2":
            ros = ["--ros-args", *(word for p in parameters for word in ("-p", p))]
        else:
            self._param("delete", "/robopolicy")  # those of the node before outlive it
            pairs = [p.split(":=") for p in parameters]
            ros = [f"_{name.replace('.', '/')}:={value}" for name, value in pairs]
        base = [python, str(TOOL), "--ros", self.version, "--address", address, "--config", str(config)]
        process = self.start(*base, *words, *ros, log=log)
        try:
            yield process
        finally:
            end(process, signal.SIGINT)

    def robot(self, script: str, *words: str, log: str, timeout_s: float = 400, packages: bool = True) -> None:
        """Run a robot to its end."""
        python = str(self.venv / "bin" / "python")
        process = self.start(python, str(HERE / script), "--ros", self.version, *words, log=log, packages=packages)
        try:
            code = process.wait(timeout_s)
        finally:
            end(process, signal.SIGKILL)
        assert code == 0, self.said(log)

    def said(self, log: str) -> str:
        """The end of a process's output."""
        return (self.folder / f"{log}.log").read_text()[-3000:]

    def close(self) -> None:
        """End what runs."""
        if self._core is not None:
            end(self._core, signal.SIGINT)


def end(process: subprocess.Popen, how: int) -> None:
    """Stop a process of ours."""
    if process.poll() is None:
        process.send_signal(how)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def until(done, seconds: float, otherwise: str) -> None:
    """Wait."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.1)


def robopolicy(*words: str) -> str:
    """Run a verb."""
    done = subprocess.run([sys.executable, "-m", "robopolicy.cli", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=["2", "1"], ids=["ros2", "ros1"])
def ros(request, tmp_path_factory):
    world = Ros(request.param, tmp_path_factory.mktemp(f"ros{request.param}"))
    yield world
    world.close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A policy that sees the object's true pose, trained on the expert's episodes: a minute of work."""
    folder = tmp_path_factory.mktemp("policy")
    keys = "[observation.state,observation.environment_state]"
    settings = ["task.env.observation=[state,environment_state]", "randomization=none", "episodes.imperfect=20"]
    robopolicy("collect", f"path={folder / 'data'}", *settings, "episodes.expert=80", "executor=local")
    training = ["train.steps=1200", "train.num_checkpoints=1", "train.progress=false", f"inputs.observation_keys={keys}"]
    robopolicy("train", "policy=bc", f"data.path={folder / 'data'}", f"run_dir={folder / 'run'}", *training)
    return next((folder / "run" / "checkpoints").glob("step_*"))


@pytest.fixture(scope="module")
def address(checkpoint, tmp_path_factory):
    """Where `robopolicy deploy` serves the policy."""
    folder = tmp_path_factory.mktemp("server")
    where = f"ipc://{folder}/socket"
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-m", "robopolicy.cli", "deploy", f"checkpoint={checkpoint}", f"address={where}"]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    until(lambda: "serving" in (folder / "log").read_text() or process.poll() is not None, 240, "the server does not start")
    yield where
    end(process, signal.SIGTERM)


@pytest.fixture(scope="module")
def direct(checkpoint):
    """Episodes of the policy on the same seeds without ROS."""
    actor, env = PolicyActor(load_policy(checkpoint)), environment(**ENV)
    episodes = [play(env, actor, seed, record=True) for seed in SEEDS]
    assert sum(episode.row["success"] for episode in episodes) >= NUM_SEEDS // 2, "nothing is shown with a policy that fails"
    return episodes


def drive(ros: Ros, address: str, seeds: list[int], name: str, *, lockstep: bool, record: Path | None = None) -> list[dict]:
    """Episodes of the robot with the node at the other end of its topics."""
    settings, out = ros.folder / f"{name}_settings.json", ros.folder / f"{name}.json"
    settings.write_text(json.dumps({**ENV, "seeds": seeds}))
    parameters = [*ros.sim_time(lockstep), *(["step_on:=observation"] if lockstep else ["runtime.lead_steps:=1"])]
    words = ["--enable", *(["--record", str(record)] if record else [])]
    with ros.node(address, HERE / "lift.yaml", parameters, *words, log=f"{name}_node"):
        robot_words = ["--settings", str(settings), "--out", str(out), *(["--lockstep"] if lockstep else [])]
        ros.robot("robot.py", *robot_words, log=f"{name}_robot")
    return json.loads(out.read_text())


def report(capsys, title: str, rows: list[dict], direct) -> None:
    """Per seed, for people."""
    lines = [f"\n{title}: seed, steps and success through ROS, then directly"]
    for row, episode in zip(rows, direct, strict=False):
        there = episode.row
        lines.append(
            f"  {row['seed']:>10}  {row['length']:>3} {row['success']!s:5}  {there['length']:>3} {there['success']!s:5}"
        )
    wins = sum(row["success"] for row in rows), sum(e.row["success"] for e in direct[: len(rows)])
    lines.append(f"  successes: {wins[0]} of {len(rows)} through ROS, {wins[1]} directly")
    with capsys.disabled():
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()


@pytest.fixture(scope="module")
def lockstep(ros, address):
    """(episodes, bag) of the robot that waits for its commands."""
    bag = ros.folder / ("bag" if ros.version == "2" else "episodes.bag")
    return drive(ros, address, SEEDS, "lockstep", lockstep=True, record=bag), bag


def test_a_robot_that_waits_for_its_commands_does_what_the_direct_evaluation_does(ros, lockstep, direct, capsys):
    rows, _ = lockstep
    report(capsys, f"ROS {ros.version}, simulated clock", rows, direct)
    low, high = environment(**ENV).action_space.low, environment(**ENV).action_space.high
    for row, episode in zip(rows, direct, strict=True):  # before contacts amplify what float32 leaves out
        first = np.clip(np.array(row["actions"][:8]), low, high)
        np.testing.assert_allclose(first, episode.arrays[spec.ACTION][:8], atol=1e-5)
    same = [row["success"] == episode.row["success"] for row, episode in zip(rows, direct, strict=True)]
    assert sum(same) >= NUM_SEEDS - 1, same
    assert sum(row["retries"] for row in rows) <= 2  # observations that no command came for


def test_a_robot_that_does_not_wait_succeeds_as_often(ros, address, direct, capsys):
    rows = drive(ros, address, SEEDS[:NUM_REAL_TIME], "real_time", lockstep=False)
    report(capsys, f"ROS {ros.version}, in real time", rows, direct)
    wins = sum(row["success"] for row in rows), sum(e.row["success"] for e in direct[:NUM_REAL_TIME])
    assert wins[0] >= wins[1] - 2  # a busy machine makes it late


def test_the_bag_of_the_episodes_is_a_dataset_and_a_replay_of_it_is_what_happened(ros, lockstep, direct, checkpoint, tmp_path):
    rows, bag = lockstep
    pytest.importorskip("rosbags.highlevel", reason="rosbags is not installed here: pip install 'robopolicy[bags]'")
    import_run(bag, tmp_path / "data", format="rosbag")
    store = EpisodeStore(tmp_path / "data")
    assert store.lengths.tolist() == [row["length"] for row in rows]
    for n, (row, episode) in enumerate(zip(rows, direct, strict=True)):
        arrays = store.read(n, [spec.ACTION, STATE, ENVIRONMENT_STATE])
        np.testing.assert_allclose(arrays[spec.ACTION], row["actions"], atol=1e-6)
        for key in (STATE, ENVIRONMENT_STATE):
            np.testing.assert_allclose(arrays[key][:8], episode.arrays[key][:8], atol=1e-5)
    settings = {"mapping": None, "episodes": 3, "seed": 0}
    replay_run({"bag": str(bag), "checkpoint": str(checkpoint), "out": str(tmp_path / "replay"), **settings})
    entries = json.loads((tmp_path / "replay" / "summary.json").read_text())["entries"]
    assert all(entry["error"] < 1e-5 for entry in entries if entry["name"] != "gripper")  # whose bounds the node keeps
    if ros.version == "1":
        info = subprocess.run(["/usr/bin/rosbag", "info", str(bag)], env=ros.env, capture_output=True, text=True, check=False)
        assert "/robopolicy/action" in info.stdout, info.stdout + info.stderr


class Witness:
    """A Policy that keeps what it was shown; its actions say at which moment that was."""

    spec = PolicySpec(
        observation={
            STATE: FeatureSpec((3,), "float32", "rad", names=("a", "b", "c")),
            spec.image_key("raw"): FeatureSpec((48, 64, 3), "uint8"),
            spec.image_key("compressed"): FeatureSpec((24, 32, 3), "uint8"),
            "observation.points": FeatureSpec((200, 3), "float32", "m", "base"),
            "observation.cloud": FeatureSpec((64, 3), "float32", "m", "base"),
        },
        action=FeatureSpec((4,), "float32", "rad, 0..1", "", ("a", "b", "c", "gripper")),
        obs_horizon=1,
        action_horizon=4,
        execute_horizon=4,
        control_hz=20.0,
    )

    def __init__(self) -> None:
        self.seen: list[dict] = []

    def reset(self) -> None:
        pass

    def sample(self, observation, num_samples=1, seed=None):
        self.seen.append({key: np.array(value[0, 0]) for key, value in observation.items()})
        state = observation[STATE][:, -1]
        action = np.concatenate([state, np.full((len(state), 1), 0.5, np.float32)], axis=1)
        return np.repeat(np.repeat(action[:, None, None], num_samples, 1), 4, 2)


def sensor_mapping(tf: bool) -> dict:
    """Of sensors.py."""
    from sensors import T_BASE_CAMERA

    depth = {"topic": "/depth", "type": "sensor_msgs/Image", "camera_info": "/depth/info"}
    return {
        "observation": {
            STATE: {"topic": "/joints", "type": "sensor_msgs/JointState", "joints": ["a", "b", "c"]},
            spec.image_key("raw"): {"topic": "/raw", "type": "sensor_msgs/Image"},
            spec.image_key("compressed"): {"topic": "/compressed", "type": "sensor_msgs/CompressedImage"},
            "observation.points": depth if tf else {**depth, "T_base_sensor": T_BASE_CAMERA},
            "observation.cloud": {"topic": "/cloud", "type": "sensor_msgs/PointCloud2"},
        },
        **({"base_frame": "base"} if tf else {}),
        "command": {"topic": "/joint_commands", "type": "trajectory_msgs/JointTrajectory", "joints": ["a", "b", "c"]},
        "joints": ["a", "b", "c"],
        "limits": {
            "translation": [],
            "rotation": [],
            "absolute": [0, 1, 2, 3],
            "low": [-20.0] * 4,
            "high": [20.0] * 4,
            "max_absolute_speed": [200.0] * 4,
        },
        "stop_topic": "/emergency_stop",
        "wait_s": 30.0,
    }


@contextmanager
def witnessed(folder: Path):
    """(address, Witness) of a server in this process."""
    witness, stop, bound = Witness(), threading.Event(), threading.Event()
    address = f"ipc://{folder}/witness"
    ready = {"ready": lambda _: bound.set(), "stop": stop}
    thread = threading.Thread(target=serve, args=(witness, address), kwargs=ready)
    thread.start()
    try:
        assert bound.wait(10)
        witness.seen.clear()  # the server's own first call
        yield address, witness
    finally:
        stop.set()
        thread.join()


def test_every_kind_of_sensor_arrives_whole_and_the_emergency_stop_holds_until_reset(ros, tmp_path):
    from sensors import T_BASE_CAMERA, moment

    tf = ros.version == "1"  # the wheels of ROS 2 have no tf2_msgs
    config, out = tmp_path / "mapping.yaml", tmp_path / "out.json"
    config.write_text(yaml.safe_dump(sensor_mapping(tf)))
    ros.sim_time(False)
    with witnessed(tmp_path) as (address, witness), ros.node(address, config, [], "--enable", "--start", log="sensors_node"):
        words = ["--out", str(out), *(["--tf"] if tf else [])]
        try:
            ros.robot("sensors.py", *words, log="sensors", packages=False)
        except AssertionError as error:
            raise AssertionError(f"{error}\nthe node: {ros.said('sensors_node')}") from None
    assert len(witness.seen) > 5
    T = np.array(T_BASE_CAMERA)
    for seen in witness.seen:
        k = round(float(seen[STATE][0]) - 0.1)
        then = moment(k)
        np.testing.assert_allclose(seen[STATE], then["joints"], atol=1e-6)
        assert np.array_equal(seen[spec.image_key("raw")], then["raw"])  # all of one moment: synchronised
        assert np.array_equal(seen[spec.image_key("compressed")], then["compressed"])
        np.testing.assert_allclose(seen["observation.cloud"], then["cloud"], atol=1e-6)
        points = (seen["observation.points"] - T[:3, 3]) @ T[:3, :3]
        np.testing.assert_allclose(points[:, 2], 1.0 + 0.01 * k, atol=1e-4)
        assert np.ptp(points[:, 0]) > 0.9 * 160 / 150
    came = json.loads(out.read_text())
    assert came["names"] == ["a", "b", "c"]
    assert came["after"][0] == came["after"][-1]  # held where it was
    assert not came["reset_pressed"][0]
    assert "still says stop" in came["reset_pressed"][1]
    assert not came["start_unreset"][0]
    assert (came["reset"][0], came["start"][0]) == (True, True)
    assert came["resumed"] > 5


def test_what_is_missing_is_listed_and_the_node_does_not_start(ros, tmp_path):
    mapping = sensor_mapping(tf=ros.version == "1")
    observation = mapping["observation"]
    observation[STATE]["joints"] = ["a", "b", "elbow"]
    observation[spec.image_key("raw")]["topic"] = "/depth"  # depth for a colour image
    observation[spec.image_key("compressed")] = {"topic": "/raw", "type": "sensor_msgs/CompressedImage"}
    observation["observation.cloud"]["topic"] = "/clouds"
    config, out = tmp_path / "mapping.yaml", tmp_path / "out.json"
    config.write_text(yaml.safe_dump(mapping))
    python = str(ros.venv / "bin" / "python")
    words = [str(HERE / "sensors.py"), "--ros", ros.version, "--out", str(out)]  # without --tf
    robot = ros.start(python, *words, log="refused_sensors")
    try:
        with witnessed(tmp_path) as (address, _), ros.node(address, config, ["wait_s:=4.0"], log="refused") as node:
            assert node.wait(40) == 2, ros.said("refused")
    finally:
        end(robot, signal.SIGKILL)
    said = ros.said("refused").rpartition("ros_infer:")[2]
    expected = ["elbow", "'32FC1'", "sensor_msgs/Image, the mapping says sensor_msgs/CompressedImage", "/clouds", "/cloud"]
    if ros.version == "1":
        expected.append("no transform from 'camera_optical' to 'base'")
    assert [words for words in expected if words not in said] == [], said
    if ros.version == "2":
        mapping["base_frame"] = "base"
        mapping["observation"]["observation.points"].pop("T_base_sensor")
        config.write_text(yaml.safe_dump(mapping))
        with witnessed(tmp_path) as (address, _), ros.node(address, config, [], log="no_tf") as node, suppress(AssertionError):
            assert node.wait(30) == 2
        assert "'tf2_msgs/TFMessage' is not installed" in ros.said("no_tf")


def test_roslaunch_reads_the_launch_file_of_ros_1(ros):
    if ros.version == "2":
        pytest.skip("there are no wheels of ROS 2's launch; tests/test_ros.py checks the syntax")
    code = (
        "import sys; from roslaunch.config import ROSLaunchConfig; from roslaunch.xmlloader import XmlLoader\n"
        "config = ROSLaunchConfig(); XmlLoader().load(sys.argv[1], config, argv=['enable:=true'], verbose=False)\n"
        "print(config.nodes[0].type, config.nodes[0].args)"
    )
    words = ["/usr/bin/python3", "-c", code, str(ROOT / "assets" / "ros" / "ros1.launch")]
    done = subprocess.run(words, env=ros.env, capture_output=True, text=True, check=False)
    assert "ros_infer.py --ros 1 --config lift.yaml" in done.stdout, done.stderr
    assert "--enable" in done.stdout
