"""What the ROS node knows without ROS: frames, messages, commands, mappings, and everything that is missing at once.

The node itself runs on real ROS 1 and ROS 2: tests/ros/closed_loop.py, `make test-ros`.
"""

from __future__ import annotations

import ast
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.transform import Rotation

from robopolicy import spec
from robopolicy.deploy import (
    ros_checks,
    ros_commands,
    ros_config,
    ros_messages,
    ros_streams,
    ros_transforms,
    ros_transport,
)
from robopolicy.deploy.client import RemoteSpec
from robopolicy.deploy.limits import SafetyLimits
from robopolicy.spec import FeatureSpec, PolicySpec

ROOT = Path(__file__).resolve().parent.parent
turns = hnp.arrays(np.float64, 3, elements=st.floats(-1.8, 1.8))
points = hnp.arrays(np.float64, 3, elements=st.floats(-2, 2))


def xyz(values):
    return SimpleNamespace(**dict(zip("xyzw", map(float, values), strict=False)))


def header(frame="", stamp=0.0):
    return SimpleNamespace(frame_id=frame, stamp=SimpleNamespace(sec=int(stamp), nanosec=round(stamp % 1 * 1e9)))


def transform(parent, child, T, stamp=0.0):
    quaternion = Rotation.from_matrix(T[:3, :3]).as_quat()
    pose = SimpleNamespace(translation=xyz(T[:3, 3]), rotation=xyz(quaternion))
    return SimpleNamespace(header=header(parent, stamp), child_frame_id=child, transform=pose)


def pose(position, turn):
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = Rotation.from_rotvec(turn).as_matrix(), position
    return T


@given(turn=turns)
@settings(max_examples=80, deadline=None)
def test_rotations_agree_with_scipy(turn):
    R = Rotation.from_rotvec(turn).as_matrix()
    np.testing.assert_allclose(ros_transforms.rotation_vector_matrix(turn), R, atol=1e-9)
    quaternion = ros_transforms.matrix_quaternion(R)
    np.testing.assert_allclose(ros_transforms.quaternion_matrix(*(3 * quaternion)), R, atol=1e-9)
    assert quaternion[3] >= 0


@given(turns=st.lists(turns, min_size=3, max_size=3), places=st.lists(points, min_size=3, max_size=3))
@settings(max_examples=40, deadline=None)
def test_frames_are_found_through_their_common_parent(turns, places):
    T_base_arm, T_arm_hand, T_base_camera = (pose(p, t) for p, t in zip(places, turns, strict=True))
    tree = ros_transforms.TransformTree()
    tree.add([transform("base", "arm", T_base_arm), transform("/base", "camera", T_base_camera)], static=True)
    tree.add([transform("arm", "hand", T_arm_hand, stamp=5.0)], static=False)
    expected = np.linalg.inv(T_base_camera) @ T_base_arm @ T_arm_hand
    np.testing.assert_allclose(tree.lookup("camera", "hand", 5.0), expected, atol=1e-9)
    np.testing.assert_allclose(tree.lookup("hand", "hand", 99.0), np.eye(4))


def test_a_moving_frame_is_taken_from_the_nearest_time_and_never_extrapolated():
    tree = ros_transforms.TransformTree(max_gap_s=0.1)
    for n in range(5):
        tree.add([transform("base", "hand", pose([n, 0, 0], [0, 0, 0]), stamp=10 + 0.1 * n)], static=False)
    assert tree.lookup("base", "hand", 10.22)[0, 3] == 2
    with pytest.raises(ros_transforms.TransformError, match=r"0\.600 s away"):
        tree.lookup("base", "hand", 11.0)
    with pytest.raises(ros_transforms.TransformError, match="frames on /tf: base, hand"):
        tree.lookup("base", "wrist", 10.0)
    tree.add([transform("base", "camera", pose([0, 0, 1], [0, 0, 0]))], static=True)
    tree.add([transform("odom", "base", np.eye(4), stamp=10.0)], static=False)
    assert tree.lookup("base", "camera", 99.0)[2, 3] == 1  # what is above both is not asked
    tree.add([transform("base", "broken", np.eye(4))], static=True)
    tree.add([SimpleNamespace(**vars(transform("x", "y", np.eye(4))) | {"transform": bad_transform()})], static=True)
    with pytest.raises(ros_transforms.TransformError):
        tree.lookup("x", "y", 0.0)  # a quaternion of zeros is no rotation


def bad_transform():
    return SimpleNamespace(translation=xyz([0, 0, 0]), rotation=xyz([0, 0, 0, 0]))


LIMITS = SafetyLimits(low=None, high=None)
ACTION = np.array([0.01, -0.02, 0.005, 0.1, -0.2, 0.3, 0.75])


def blank(*parts):
    """A message with these parts, e.g. twist.linear."""
    message = SimpleNamespace()
    for path in parts:
        at = message
        for name in path.split("."):
            if not hasattr(at, name):
                setattr(at, name, SimpleNamespace())
            at = getattr(at, name)
    return message


def test_a_twist_is_the_motion_of_a_step_times_the_rate_and_reads_back():
    make = lambda: blank("twist.linear", "twist.angular")  # noqa: E731
    message, opening = ros_commands.command(ros_commands.TWIST, ACTION, LIMITS, 20.0, make=make)
    np.testing.assert_allclose(ros_messages.twist(message) / 20.0, ACTION[:6], atol=1e-6)
    assert opening == 0.75


@given(turn=turns, place=points)
@settings(max_examples=40, deadline=None)
def test_a_pose_is_where_the_motion_leads_from_where_the_arm_is(turn, place):
    T, target = pose(place, turn), ros_commands.PoseTarget(LIMITS, policy_hz=20.0, reach_s=0.25)
    options = {"make": lambda: blank("pose.position", "pose.orientation"), "T_base_ee": T, "target": target}
    message, opening = ros_commands.command(ros_commands.POSE, ACTION, LIMITS, 20.0, **options)
    got = ros_transforms.pose_matrix(message.pose.position, message.pose.orientation)
    np.testing.assert_allclose(got[:3, 3], place + ACTION[:3], atol=1e-9)
    np.testing.assert_allclose(got[:3, :3], Rotation.from_rotvec(ACTION[3:6]).as_matrix() @ T[:3, :3], atol=1e-9)
    assert opening == 0.75


def test_a_commanded_pose_goes_the_whole_way_where_poses_come_seldom_and_then_stays():
    target, robot = ros_commands.PoseTarget(SafetyLimits(), policy_hz=20.0, reach_s=0.25), pose([0.4, 0, 0.2], [3, 0, 0])
    motion, turn, none = np.array([0.002, 0, 0]), np.array([0.002, 0, 0]), np.zeros(3)
    measured, quaternions = robot, []
    for n in range(200):  # 100 Hz, poses at 20 Hz, a robot that is at once where it is told to be
        measured = robot if n % 5 == 0 else measured
        position, quaternion = target.move(motion, turn, measured)
        quaternions.append(quaternion)
        robot = pose(position, Rotation.from_quat(quaternion).as_rotvec())
    np.testing.assert_allclose(robot, pose([0.8, 0, 0.2], [3.4, 0, 0]), atol=1e-9)
    assert (np.sum(np.diff(quaternions, axis=0) ** 2, axis=1) < 1e-5).all()  # through half a turn without a change of sign
    for sag in np.linspace(0, 0.03, 50):  # it gives way under its weight, and is told the same all the time
        position, _ = target.move(none, none, pose(robot[:3, 3] - [0, 0, sag], [3.4, 0, 0]))
    np.testing.assert_allclose(position, [0.8, 0, 0.2], atol=1e-9)
    np.testing.assert_allclose(target.move(none, none, None)[0], [0.8, 0, 0.2], atol=1e-9)


def test_a_commanded_pose_stays_near_a_blocked_arm_and_within_the_workspace():
    limits = SafetyLimits(workspace_low=(0.3, -0.4, 0.0), workspace_high=(0.7, 0.4, 0.5))
    target, still = ros_commands.PoseTarget(limits, policy_hz=20.0, reach_s=0.25), pose([0.4, 0, 0.05], [0, 0, 0])
    for _ in range(100):
        position, quaternion = target.move(np.array([0.02, 0, -0.02]), np.array([0, 0.1, 0]), still)
    assert np.linalg.norm(position - still[:3, 3]) <= 0.1 + 1e-9
    assert position[2] == 0
    assert Rotation.from_quat(quaternion).magnitude() == pytest.approx(0.5)


def test_joint_targets_become_a_trajectory_point_a_step_ahead():
    limits = SafetyLimits(translation=(), rotation=(), absolute=(0, 1, 2), low=None, high=None)
    options = {"make": blank, "make_point": blank, "make_duration": lambda s: s, "joints": ("a", "b")}
    message, opening = ros_commands.command(ros_commands.TRAJECTORY, np.array([1.0, 2.0, 0.5]), limits, 10.0, **options)
    assert message.joint_names == ["a", "b"]
    assert message.points[0].positions == [1.0, 2.0]
    assert message.points[0].time_from_start == 0.1
    assert opening == 0.5


@pytest.mark.parametrize(
    ("kind", "limits", "options", "words"),
    [
        (ros_commands.TWIST, SafetyLimits(translation=(), rotation=(), absolute=(0,)), {}, "3 translation"),
        (ros_commands.POSE, SafetyLimits(), {}, "ee_rotation"),
        (ros_commands.TRAJECTORY, SafetyLimits(), {"joints": ("a", "b")}, "1 to 1 `joints`"),
        (ros_commands.TRAJECTORY, SafetyLimits(), {"joints": ("a",)}, "max_absolute_speed"),
    ],
)
def test_commands_that_an_action_cannot_give_are_refused(kind, limits, options, words):
    assert words in ros_commands.refusal(kind, limits, options.get("joints", ()), has_pose=False)


def depth_message(depth, frame="camera"):
    data = np.asarray(depth, "<f4")
    fields = {"height": data.shape[0], "width": data.shape[1], "step": 4 * data.shape[1], "is_bigendian": 0}
    return SimpleNamespace(header=header(frame, 1.0), encoding="32FC1", data=data.tobytes(), **fields)


def test_depth_and_camera_info_become_points_in_the_base_frame():
    from robopolicy.sim.camera import _rays

    depth = np.random.default_rng(0).uniform(0.5, 1.5, (6, 8)).astype(np.float32)
    depth[0, 0] = 0.0  # no measurement
    T = pose([0.4, 0.1, 1.2], [np.pi, 0, 0.2])
    source = ros_config.Source("/depth", "sensor_msgs/Image", camera_info="/info", T_base_sensor=tuple(map(tuple, T)))
    converter = ros_streams.Converter()
    with pytest.raises(ValueError, match="/info"):
        converter.convert(source, depth_message(depth), 1.0, (47, 3))
    # half the size of the calibration: driver binned the picture
    converter.camera_infos["/info"] = SimpleNamespace(height=12, width=16, k=[20, 0, 8, 0, 20, 6, 0, 0, 1])
    got = converter.convert(source, depth_message(depth), 1.0, (47, 3))
    rays = _rays(6, 8, 10.0, (0.5 + 0.5 / 8, 0.5 + 0.5 / 6)).reshape(-1, 3)[1:]  # its pixel centres are at halves
    expected = (rays * depth.reshape(-1, 1)[1:]) @ T[:3, :3].T + T[:3, 3]
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_clouds_are_cropped_in_the_base_frame_and_spread_over_the_picture():
    depth = np.ones((30, 40), np.float32)
    source = ros_config.Source(
        "/depth", "sensor_msgs/Image", camera_info="/info", crop_low=(-0.1, -9.0, -9.0), crop_high=(0.1, 9.0, 9.0)
    )
    converter = ros_streams.Converter("base")
    converter.camera_infos["/info"] = SimpleNamespace(height=30, width=40, k=[40, 0, 20, 0, 40, 15, 0, 0, 1])
    with pytest.raises(ValueError, match="from 'camera' to 'base'"):
        converter.convert(source, depth_message(depth), 1.0, (16, 3))
    converter.transforms.add([transform("base", "camera", np.eye(4))], static=True)
    got = converter.convert(source, depth_message(depth), 1.0, (16, 3))
    assert np.abs(got[:, 0]).max() <= 0.1
    assert len(np.unique(got[:, 0])) > 4
    assert np.ptp(got[:, 1]) > 0.6
    assert len(np.unique(got, axis=0)) == 16
    far = ros_config.Source("/depth", "sensor_msgs/Image", camera_info="/info", crop_low=(5.0, 5.0, 5.0))
    with pytest.raises(ValueError, match="none of its 1200 points"):
        converter.convert(far, depth_message(depth), 1.0, (16, 3))


def test_a_depth_picture_is_no_colour_picture_and_a_wrong_state_is_named():
    converter = ros_streams.Converter()
    with pytest.raises(ValueError, match=r"'32FC1'.*colour"):
        converter.convert(ros_config.Source("/c", "sensor_msgs/Image"), depth_message(np.ones((4, 4))), 0.0, (2, 2, 3))
    stream = ros_streams.Stream("observation.state", ros_config.Source("/j", "sensor_msgs/JointState"), (3,), converter)
    sample = stream.receive(SimpleNamespace(name=["a", "b"], position=[1.0, float("nan")]), 0.0)
    with pytest.raises(ValueError, match=r"shape \[2\] from /j, the policy wants \[3\]"):
        ros_streams.joined("observation.state", [sample], FeatureSpec((3,)))
    with pytest.raises(ValueError, match="1 numbers that are not finite"):
        ros_streams.joined("observation.state", [sample], FeatureSpec((2,)))


MAPPING = {
    "observation": {
        "observation.state": [
            {"topic": "/joint_states", "type": "sensor_msgs/JointState", "joints": ["a", "b"]},
            {"topic": "/ee_pose", "type": "geometry_msgs/PoseStamped"},
        ],
        "observation.images.front": {"topic": "/front", "type": "sensor_msgs/Image"},
    },
    "command": {"topic": "/cmd"},
    "limits": {"workspace_low": [0.3, -0.4, 0.0], "workspace_high": [0.7, 0.4, 0.5]},
    "ee_position": ["ee_x", "ee_y", "ee_z"],
    "runtime": {"max_age_s": 0.3},
}


def test_every_entry_of_a_mapping_is_a_parameter_and_survives_the_round_trip():
    config = ros_config.NodeConfig.from_dict(MAPPING)
    data = config.to_dict()
    assert ros_config.NodeConfig.from_dict(data) == config
    names = dict(ros_config.parameters(data))
    assert names["observation.state.1.topic"] == "/ee_pose"
    assert names["runtime.max_age_s"] == 0.3
    changes = {"observation.images.front.0.topic": "/other", "runtime.max_age_s": "0.5", "limits.workspace_low": [0.2, 0, 0]}
    changed = ros_config.NodeConfig.from_dict(ros_config.override(data, changes))
    assert changed.observation["observation.images.front"][0].topic == "/other"
    assert changed.runtime.max_age_s == 0.5
    assert changed.limits.workspace_low == (0.2, 0, 0)
    with pytest.raises(ValueError, match=r"no parameter runtime\.max_age; it has .*runtime\.max_age_s"):
        ros_config.override(data, {"runtime.max_age": 1})
    with pytest.raises(ValueError, match="must be like"):
        ros_config.override(data, {"wait_s": "soon"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"step_on": "clock"}, "timer, observation"),
        ({"runtime": {"mode": "fast"}}, "mode"),
        ({"observation": {"k": {"topic": "/x", "type": "sensor_msgs/PointCloud2", "camera_info": "/i"}}}, "depth"),
        ({"observation": {"k": {"topic": "/x", "type": "sensor_msgs/Image", "reliability": "best"}}}, "best_effort"),
        ({"observation": {"k": {"topic": "/x", "type": "sensor_msgs/Image", "T_base_sensor": [1, 2]}}}, "four rows"),
        ({"command": {"topic": "/x", "type": "std_msgs/String"}}, "JointTrajectory"),
    ],
)
def test_mistakes_in_a_mapping_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        ros_config.NodeConfig.from_dict({**MAPPING, **change})


def policy_spec():
    names = ("a", "b", "ee_x", "ee_y", "ee_z", *(f"r{i}" for i in range(6)))
    whole = PolicySpec(
        observation={
            spec.STATE: FeatureSpec((11,), "float32", "rad, m", "base", names),
            spec.image_key("front"): FeatureSpec((4, 4, 3), "uint8"),
            spec.image_key("wrist"): FeatureSpec((4, 4, 3), "uint8"),
            spec.TASK: FeatureSpec((), "str", values=("lift", "push")),
        },
        action=FeatureSpec((8,)),
        obs_horizon=1,
        action_horizon=4,
        execute_horizon=2,
        control_hz=20.0,
    )
    return RemoteSpec.from_dict(whole.to_dict())


def test_all_that_a_mapping_lacks_is_said_at_once():
    config = ros_config.NodeConfig.from_dict({**MAPPING, "ee_position": ["ee_x", "ee_y", "tool_z"], "task": "left"})
    said = "\n".join(ros_checks.mapping_problems(config, policy_spec()))
    for words in ("observation.images.wrist", "'left'", "7 action entries, the policy has 8", "tool_z"):
        assert words in said


def test_limits_that_nothing_measured_can_keep_are_refused_before_anything_moves():
    limits = {"joint_low": [-1.0] * 3, "joint_high": [1.0] * 3, "max_absolute_speed": [1.0]}
    config = ros_config.NodeConfig.from_dict({**MAPPING, "limits": limits, "joints": ["a", "b"]})
    said = "\n".join(ros_checks.mapping_problems(config, policy_spec()))
    for words in ("joint_low and joint_high are of 3 joints", "the first of the 1 absolute entries"):
        assert words in said
    command = {"topic": "/cmd", "type": ros_commands.TRAJECTORY, "joints": ["a", "b"]}
    limits = {"translation": [], "rotation": [], "absolute": list(range(8)), "low": None, "high": None}
    limits["max_absolute_speed"] = [1.0] * 8
    for joints, count in ((["a"], 1), (["a", "b"], 0)):
        mapping = {**MAPPING, "command": command, "limits": limits, "joints": joints, "task": "lift"}
        said = ros_checks.mapping_problems(ros_config.NodeConfig.from_dict(mapping), policy_spec())
        assert sum("in that order" in words for words in said) == count


def test_all_that_topics_lack_is_said_at_once():
    spec_ = policy_spec()
    features = {key: feature for key, feature in spec_.observation.items() if key in MAPPING["observation"]}
    config = ros_config.NodeConfig.from_dict(MAPPING)
    streams = ros_streams.make_streams(config.observation, features, ros_streams.Converter())
    published = {"/joint_states": "sensor_msgs/JointState", "/pose": "geometry_msgs/PoseStamped"}
    published["/front"] = "sensor_msgs/CompressedImage"
    streams[spec.STATE][0].receive(SimpleNamespace(name=["a"], position=[0.0]), 0.0)
    said = "\n".join(ros_checks.stream_problems(streams, features, published, "/emergency_stop"))
    for words in (
        "JointState has no ['b']",
        "/ee_pose (geometry_msgs/PoseStamped, for observation.state) is published by nobody; topics of that type: /pose",
        "/front is published as sensor_msgs/CompressedImage, the mapping says sensor_msgs/Image",
        "the robot could not be stopped",
    ):
        assert words in said


def test_a_stop_topic_that_cannot_stop_is_refused():
    said = ros_checks.stream_problems({}, {}, {"/stop": "std_msgs/String"}, "/stop")
    assert "std_msgs/String" in said[0]
    assert ros_checks.stream_problems({}, {}, {"/stop": "std_msgs/Bool"}, "/stop") == []
    assert ros_checks.stream_problems({}, {}, {}, "") == []


# -- the node, on topics that are lists


class Topics:
    """A Transport without ROS: `publish` what came, look at what was `sent`."""

    version = "1"

    def __init__(self):
        self.seconds, self.sent, self.callbacks = 100.0, [], {}
        self.published = {"/ee": "geometry_msgs/PoseStamped", "/stop": "std_msgs/Bool"}

    def now(self):
        return self.seconds

    def stamp(self, message):
        return ros_transforms.header_seconds(message)

    def topics(self):
        return self.published

    def num_publishers(self, topic):
        return int(topic in self.published)

    def subscribe(self, topic, type_name, callback, **options):
        self.callbacks[topic] = callback

    def subscribe_latched(self, topic, type_name, callback):
        self.callbacks[topic] = callback

    def advertise(self, topic, type_name, **options):
        parts = ("twist.linear", "twist.angular", "pose.position", "pose.orientation", "header")
        make = lambda **fields: SimpleNamespace(**vars(blank(*parts)), **fields)  # noqa: E731
        return make, lambda message: self.sent.append((topic, message))

    def service(self, name, callback):
        pass

    def manage(self, node):
        self.node = node

    def transition(self, name):
        getattr(self.node, name)()

    def duration(self, seconds):
        return seconds

    def set_header(self, message, frame_id):
        pass

    def speeds(self):
        """Of the twists that were sent."""
        return [message.twist.linear.x for topic, message in self.sent if topic == "/cmd"]


class Onward:
    """A policy that always goes on in x."""

    name = "onward"

    def __init__(self):
        names = ("x", "y", "z", *(f"r{i}" for i in range(6)))
        self.spec = PolicySpec(
            observation={spec.STATE: FeatureSpec((9,), "float32", "m", "base", names)},
            action=FeatureSpec((7,)),
            obs_horizon=1,
            action_horizon=16,
            execute_horizon=8,
            control_hz=20.0,
        )

    def reset(self):
        pass

    def sample(self, observation, num_samples=1, seed=None):
        chunks = np.zeros((1, num_samples, 16, 7), np.float32)
        chunks[..., 0] = 0.01
        return chunks


def make_node(monkeypatch, **changes):
    """(node, its topics), configured."""
    from robopolicy.deploy import ros_node

    monkeypatch.setattr(ros_node, "type_problems", lambda config: [])
    mapping = {
        "observation": {spec.STATE: {"topic": "/ee", "type": "geometry_msgs/PoseStamped"}},
        "command": {"topic": "/cmd"},
        "limits": {},
        "runtime": {"lead_steps": 1},
        "stop_topic": "/stop",
        "diagnostics_hz": 0,
        **changes,
    }
    topics = Topics()
    node = ros_node.InferenceNode(topics, Onward(), ros_config.NodeConfig.from_dict(mapping), enabled=True)
    node._subscribe()
    show(topics)
    node.configure()
    return node, topics


def show(topics):
    topics.seconds += 0.05
    whole = SimpleNamespace(position=xyz([0.4, 0, 0.2]), orientation=xyz([0, 0, 0, 1]))
    topics.callbacks["/ee"](SimpleNamespace(header=header("base", topics.seconds), pose=whole))


def go(node, topics, seconds=1.0):
    """Control steps of a robot whose policy answers in time."""
    for _ in range(round(seconds * 20)):
        show(topics)
        node._step(topics.seconds)
        time.sleep(0.005)  # its thread
    return node


def test_after_a_stop_no_motion_is_sent_whatever_the_threads_do(monkeypatch):
    """~/stop comes while another thread has decided a step and not published it."""
    node, topics = make_node(monkeypatch)
    node.activate()
    go(node, topics)
    assert topics.speeds()[-1] > 0
    decided, send = threading.Event(), node._send

    def slowly(*args):
        if threading.current_thread().name == "step":
            decided.set()
            time.sleep(0.2)
        send(*args)

    node._send = slowly
    show(topics)
    step = threading.Thread(target=node._step, args=(topics.seconds,), name="step")
    step.start()
    assert decided.wait(5)
    node.deactivate()
    step.join()
    assert topics.speeds()[-1] == 0
    assert topics.sent[-1][1].data == "stop"
    node.controller.close()


def test_an_emergency_stop_that_is_pressed_and_released_during_a_start_counts(monkeypatch):
    node, topics = make_node(monkeypatch)
    press = lambda: [topics.callbacks["/stop"](SimpleNamespace(data=data)) for data in (True, False)]  # noqa: E731
    node.controller.policy.reset = press
    with pytest.raises(ValueError, match="~/reset"):
        node.activate()
    assert go(node, topics).state != "active"
    assert topics.speeds() == []
    node.controller.policy.reset = lambda: None
    node.reset()
    node.activate()
    assert go(node, topics).last.state == "run"
    node.controller.close()


def test_a_robot_whose_stop_topic_is_gone_stops_and_one_without_such_a_topic_goes_on(monkeypatch):
    node, topics = make_node(monkeypatch)
    node.activate()
    assert go(node, topics).last.state == "run"
    del topics.published["/stop"]
    assert go(node, topics).last.reasons == ("stop_topic_lost",)
    assert topics.speeds()[-1] == 0
    node.deactivate()
    with pytest.raises(ValueError, match="/stop is published by nobody"):
        node.activate()
    node.controller.close()
    node, topics = make_node(monkeypatch, stop_topic="")
    node.activate()
    assert go(node, topics).last.state == "run"
    node.controller.close()


def test_what_ends_the_loop_of_a_simulator_ends_the_node_with_a_halt(monkeypatch):
    node, topics = make_node(monkeypatch, step_on="observation")
    node.controller.receive = lambda *_: {}["boom"]
    stop = threading.Event()

    def spin(hz, callback, stop):
        callback()
        node.activate()
        show(topics)
        deadline = time.monotonic() + 10
        while not stop.is_set() and time.monotonic() < deadline:
            callback()
            time.sleep(0.005)

    topics.spin = spin
    with pytest.raises(KeyError, match="boom"):
        node.run(stop)
    assert node.state == "inactive"
    assert "failed" in node.controller.diagnostics()["stopped"]


def test_commanded_poses_begin_at_the_measured_one_in_each_episode(monkeypatch):
    entries = ["x", "y", "z", *(f"r{i}" for i in range(6))]
    command = {"topic": "/cmd", "type": ros_commands.POSE}
    node, topics = make_node(monkeypatch, command=command, ee_position=entries[:3], ee_rotation=entries[3:])
    for _ in range(2):
        topics.sent.clear()
        node.activate()
        go(node, topics)
        node.deactivate()
        places = [message.pose.position.x for topic, message in topics.sent if topic == "/cmd"]
        assert places[0] == pytest.approx(0.41)
        assert places[-1] == pytest.approx(0.5)  # the leash of a robot that does not move at all
    node.controller.close()


def test_arguments_of_ros_are_not_the_tools():
    words = ["--config", "x", "_rate:=3", "--ros-args", "-p", "a:=1", "--", "--enable", "__name:=y"]
    assert ros_transport.without_ros_arguments(words) == ["--config", "x", "--enable"]


def test_launch_files_are_what_ros_reads():
    import xml.etree.ElementTree as ET

    tree = ET.parse(ROOT / "assets" / "ros" / "ros1.launch")
    assert tree.getroot().tag == "launch"
    launch = ast.parse((ROOT / "assets" / "ros" / "ros2.launch.py").read_text(), feature_version=(3, 8))
    assert any(isinstance(node, ast.FunctionDef) and node.name == "generate_launch_description" for node in launch.body)
    ET.parse(ROOT / "assets" / "ros" / "fastdds_shm.xml")
