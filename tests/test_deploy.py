"""A served policy is the policy; nothing a client sends ends the server; nothing a policy says exceeds the limits."""

from __future__ import annotations

import ast
import contextlib
import logging
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from serving import IMAGE, ProportionalPolicy, observation, served

from robopolicy import spec
from robopolicy.deploy import client, protocol, ros_config, ros_messages, server
from robopolicy.deploy.answering import Answerer
from robopolicy.deploy.monitor import Monitor
from robopolicy.spec import Policy, PolicySpec

ROOT = Path(__file__).resolve().parent.parent
ISLAND = ROOT / "robopolicy" / "deploy"
SERVER_SIDE = ("server.py", "answering.py", "ros_bag.py", "ros_replay.py")  # all else in the folder runs on a robot
TOOL = ROOT / "tools" / "ros_infer.py"


@pytest.mark.parametrize("scheme", ["tcp", "ipc"])
def test_the_socket_policy_is_the_local_policy_bit_for_bit(scheme, tmp_path):
    local = ProportionalPolicy()
    address = "tcp://127.0.0.1:*" if scheme == "tcp" else f"ipc://{tmp_path}/policy"
    with served(local, address, name="toy") as (bound, stats), client.RemotePolicy(bound) as remote:
        assert isinstance(remote, Policy)
        assert remote.name == "toy"
        assert PolicySpec.from_dict(remote.spec.to_dict()) == local.spec
        assert remote.spec.action_dim == 7
        for seed in range(3):
            given_obs = observation(seed=seed)
            there, here = remote.sample(given_obs, 5, seed), local.sample(given_obs, 5, seed)
            assert there.dtype == here.dtype
            assert there.tobytes() == here.tobytes()
        before = local.resets
        remote.reset()
        assert local.resets == before + 1
    assert stats[0].num_samples == 3
    assert 0 < stats[0].latency_ms(50) <= stats[0].latency_ms(95)


def test_a_network_behind_the_socket_gives_the_same_bits():
    import torch

    from robopolicy.policies.bc import BehaviourCloningPolicy

    toy = ProportionalPolicy().spec
    with torch.random.fork_rng():
        torch.manual_seed(0)
        local = BehaviourCloningPolicy({spec.STATE: toy.observation[spec.STATE]}, toy.action, 20.0, obs_horizon=2, width=32)
    given_obs = {spec.STATE: observation()[spec.STATE]}
    with served(local) as (bound, _), client.RemotePolicy(bound) as remote:
        assert PolicySpec.from_dict({**remote.spec.to_dict(), "capabilities": local.spec.capabilities}) == local.spec
        assert remote.sample(given_obs, 4, seed=5).tobytes() == local.sample(given_obs, 4, seed=5).tobytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda o: o.pop(IMAGE), IMAGE),
        (lambda o: o.update({spec.STATE: o[spec.STATE][:, 0]}), "time axis"),
        (lambda o: o.update({spec.STATE: o[spec.STATE].astype(np.float64)}), "float64"),
        (lambda o: o.update({spec.STATE: np.full((2, 2, 3), np.nan, np.float32)}), "not finite"),
    ],
)
def test_a_bad_observation_is_refused_by_name_and_the_server_lives_on(change, words):
    with served(ProportionalPolicy()) as (bound, _), client.RemotePolicy(bound) as remote:
        bad = observation()
        change(bad)
        with pytest.raises(client.RemoteError, match=words) as caught:
            remote.sample(bad)
        assert caught.value.code == "observation"
        assert isinstance(caught.value, ValueError)
        for count in (0, 10**9):
            with pytest.raises(client.RemoteError, match="num_samples"):
                remote.sample(observation(), count)
        with pytest.raises(client.RemoteError, match=r"1\.\.512 for 2"):
            remote.sample(observation(), 513)  # of each of two observations
        assert remote.sample(observation()).shape == (2, 1, 4, 7)


def test_a_policy_that_raises_or_breaks_its_spec_does_not_end_the_server():
    policy = ProportionalPolicy()
    answers = [RuntimeError("out of memory"), np.full((2, 1, 4, 7), np.nan, np.float32), np.zeros((2, 1, 3, 7), np.float32)]
    with served(policy) as (bound, stats), client.RemotePolicy(bound) as remote:
        good = policy.sample

        def sample(*args, **kwargs):
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        policy.sample = sample
        for words in ("RuntimeError: out of memory", "not finite", r"shape \[2, 1, 3, 7\]"):
            with pytest.raises(client.RemoteError, match=words) as caught:
                remote.sample(observation())
            assert caught.value.code == "policy"
        policy.sample = good
        assert np.isfinite(remote.sample(observation())).all()
    assert (stats[0].num_errors, stats[0].num_samples) == (3, 1)


def test_a_policy_that_breaks_its_spec_is_found_before_the_socket_opens():
    policy = ProportionalPolicy()
    policy.sample = lambda *_args, **_kwargs: np.zeros((1, 1, 2, 7), np.float32)
    with pytest.raises(spec.SpecError, match="promises"):
        server.serve(policy, "tcp://127.0.0.1:*")


def test_garbage_does_not_end_the_server():
    other_version = protocol.encode(protocol.Message(protocol.HELLO, 1)).replace(b"\xa8protocol\x03", b"\xa8protocol\x07")
    junk = [b"", b"\xc1", b"\x00" * 1000, bytes(range(256)), b"\xdd\xff\xff\xff\xff", b"\x91" * 5000, other_version]
    with served(ProportionalPolicy()) as (bound, stats):
        dealer = zmq.Context.instance().socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(bound)
        for frame in junk:
            dealer.send(frame)
            assert dealer.poll(2000), frame
            reply = protocol.decode(dealer.recv())
            assert (reply.kind, reply["code"]) == (protocol.ERROR, "protocol")
        assert "protocol 7" in reply["message"]
        assert reply.request == 1
        dealer.send_multipart([b"a", b"b", b"", b"c"])
        dealer.close()
        host, port = bound.removeprefix("tcp://").split(":")
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\n\r\n" * 50)
        with client.RemotePolicy(bound) as remote:
            assert remote.sample(observation()).shape == (2, 1, 4, 7)
    assert stats[0].num_errors >= len(junk)


def test_after_a_timeout_the_client_works_again_when_the_server_is_back():
    policy = ProportionalPolicy()
    with served(policy) as (bound, _):
        remote = client.RemotePolicy(bound, timeout_ms=200)
        first = remote.sample(observation(), seed=0)
    with pytest.raises(client.PolicyTimeout, match=bound):
        remote.sample(observation())
    with served(policy, bound):
        remote.timeout_ms = 3000
        assert np.array_equal(remote.sample(observation(), seed=0), first)
    with served(policy, bound, name="another checkpoint"), pytest.raises(client.RemoteError, match="another checkpoint"):
        remote.sample(observation())
    remote.close()


def test_a_late_answer_is_not_taken_for_the_next_call_and_calls_do_not_pile_up():
    policy = ProportionalPolicy()
    with served(policy) as (bound, stats), client.RemotePolicy(bound, timeout_ms=50) as remote:
        policy.delay_s = 0.3
        for seed in range(5):
            with pytest.raises(client.PolicyTimeout):
                remote.sample(observation(seed=seed))
        policy.delay_s = 0.0
        remote.timeout_ms = 5000
        last = observation(seed=9)
        assert np.array_equal(remote.sample(last), policy.sample(last))
    assert stats[0].num_samples <= 3  # one or two slow ones and the last; the calls that were given up are not served


def test_nobody_there_is_a_timeout_and_a_bad_address_a_value_error():
    with pytest.raises(client.PolicyTimeout, match=r"tcp://127\.0\.0\.1:9"):
        client.RemotePolicy("tcp://127.0.0.1:9", timeout_ms=50)
    with pytest.raises(ValueError, match="tcp://HOST:PORT"):
        client.RemotePolicy("nonsense", timeout_ms=50)
    with pytest.raises(ValueError, match="nonsense"):
        server.serve(ProportionalPolicy(), "nonsense")


def test_another_interface_needs_a_token_that_strangers_do_not_have(caplog, monkeypatch):
    caplog.set_level(logging.WARNING)
    with served(ProportionalPolicy()):
        assert not caplog.records
    for token, words in (("", "token="), ("short", "at least 16")):
        with pytest.raises(ValueError, match=words):
            server.serve(ProportionalPolicy(), "tcp://0.0.0.0:*", token=token)
    secret = "correct horse battery staple"
    with served(ProportionalPolicy(), "tcp://0.0.0.0:*", token=secret) as (bound, stats):
        assert "other machines" in caplog.text
        address = bound.replace("0.0.0.0", "127.0.0.1")
        for wrong in ("", "correct horse battery stapl", secret + "r"):
            with pytest.raises(client.RemoteError) as caught:
                client.RemotePolicy(address, token=wrong)
            assert caught.value.code == "token"
        with client.RemotePolicy(address, token=secret) as remote:
            assert remote.sample(observation()).shape == (2, 1, 4, 7)
        monkeypatch.setenv(client.TOKEN_VARIABLE, secret)
        with client.RemotePolicy(address) as remote:
            assert remote.sample(observation()).shape == (2, 1, 4, 7)
    assert (stats[0].num_errors, stats[0].num_samples) == (3, 2)
    local = {
        "tcp://127.0.0.1:1": True,
        "tcp://[::1]:1": True,
        "ipc:///x": True,
        "tcp://0.0.0.0:1": False,
        "tcp://*:1": False,
        "tcp://10.0.0.5:1": False,
        "tcp://127.example.org:1": False,
        "ws://127.0.0.1:1": False,
    }
    assert {address: server.is_local(address) for address in local} == local


def sample_frame(request=1, client_name="a", seed=None, num_samples=1, batch=2, obs_seed=0):
    fields = {"client": client_name, "observation": observation(batch, obs_seed), "num_samples": num_samples, "seed": seed}
    return protocol.encode(protocol.Message(protocol.SAMPLE, request, fields))


def test_calls_that_wait_together_are_one_pass_and_those_with_a_seed_are_not():
    policy, sizes = ProportionalPolicy(), []
    good = policy.sample

    def sample(given, num_samples=1, seed=None):
        sizes.append(len(given[spec.STATE]))
        return good(given, num_samples, seed)

    policy.sample = sample
    answerer = Answerer(policy, "toy", max_batch=5)
    sizes.clear()
    kinds = [{}, {"seed": 3, "num_samples": 4}, {}, {"num_samples": 2}, {"batch": 3}, {"seed": 4}]
    frames = [sample_frame(client_name=str(n), obs_seed=n, **kind) for n, kind in enumerate(kinds)]
    replies = [protocol.decode(reply) for reply in answerer.answers(frames)]
    assert sorted(sizes) == [2, 2, 2, 3, 4]  # 0 and 2 together; 4 would be too many
    for n, (kind, reply) in enumerate(zip(kinds, replies, strict=True)):
        alone = good(observation(kind.get("batch", 2), n), kind.get("num_samples", 1), kind.get("seed"))
        if kind.get("num_samples", 1) == 1 or "seed" in kind:
            assert reply["actions"].tobytes() == alone.tobytes()
        assert reply["actions"].shape == alone.shape
    assert answerer.stats.num_batches == 5


def test_a_bad_call_in_a_batch_does_not_take_the_others_with_it():
    policy = ProportionalPolicy()
    good = policy.sample

    def sample(given, num_samples=1, seed=None):
        if (given[spec.STATE] > 100).any():
            raise RuntimeError("poison")
        return good(given, num_samples, seed)

    policy.sample = sample
    answerer = Answerer(policy, "toy")
    poison = observation(2, 1)
    poison[spec.STATE][0, 0, 0] = 1000
    fields = {"client": "b", "observation": poison, "num_samples": 1, "seed": None}
    frames = [sample_frame(client_name="a"), protocol.encode(protocol.Message(protocol.SAMPLE, 1, fields)), b"junk"]
    replies = [protocol.decode(reply) for reply in answerer.answers([*frames, sample_frame(client_name="c")])]
    assert [reply.kind for reply in replies] == [protocol.ACTIONS, protocol.ERROR, protocol.ERROR, protocol.ACTIONS]
    assert "poison" in replies[1]["message"]


def test_a_monitor_scores_what_the_policy_sees():
    class WithFeatures(ProportionalPolicy):
        def features(self, given):
            return given[spec.STATE][:, -1].astype(np.float32)

    kept = np.random.default_rng(0).normal(size=(60, 3))
    watch = Monitor(np.zeros(3), np.ones(3), np.ones(3, bool), np.eye(3), np.square(kept).mean(axis=1), patience=2)
    with served(WithFeatures(), monitor=watch) as (bound, _), client.RemotePolicy(bound) as remote:
        assert remote.band == pytest.approx(watch.band())
        assert remote.patience == 2
        reply = remote.decide(observation(), 1, 0)
        np.testing.assert_allclose(reply.scores, watch.score(observation()[spec.STATE][:, -1]))
    with served(ProportionalPolicy()) as (bound, _), client.RemotePolicy(bound) as remote:
        assert (remote.band, remote.decide(observation()).scores) == ({}, None)
    with pytest.raises(spec.SpecError, match="features"):
        server.serve(ProportionalPolicy(), monitor=watch)


def test_sigterm_ends_the_server_with_its_statistics():
    code = (
        "import logging, sys; logging.basicConfig(level=logging.INFO, stream=sys.stdout)\n"
        "sys.path.insert(0, sys.argv[1]); from serving import ProportionalPolicy\n"
        "from robopolicy.deploy.server import serve\n"
        "serve(ProportionalPolicy(), 'tcp://127.0.0.1:*', ready=lambda a: print('READY', a, flush=True))\n"
    )
    command = [sys.executable, "-c", code, str(ROOT / "tests")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        bound = next(line.split()[1] for line in process.stdout if line.startswith("READY"))
        with client.RemotePolicy(bound) as remote:
            remote.sample(observation())
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
    assert process.returncode == 0
    assert "1 samples, 0 errors" in rest


arrays = hnp.arrays(
    dtype=st.one_of(
        hnp.boolean_dtypes(), hnp.integer_dtypes(), hnp.floating_dtypes(sizes=(16, 32, 64)), hnp.unicode_string_dtypes()
    ),
    shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


@given(value=arrays)
@settings(max_examples=60, deadline=None)
def test_arrays_survive_the_wire(value):
    sent = protocol.Message(
        protocol.SAMPLE, 3, {"client": "c", "observation": {"k": value, "task": "lift"}, "num_samples": 1, "seed": None}
    )
    got = protocol.decode(protocol.encode(sent))
    back = got["observation"]["k"]
    assert (got.kind, got.request, got["observation"]["task"]) == (protocol.SAMPLE, 3, "lift")
    assert (back.dtype, back.shape, back.tobytes()) == (value.dtype, value.shape, value.tobytes())
    assert back.flags.writeable


@given(
    frame=st.one_of(st.binary(max_size=200), st.builds(lambda a, n: _HELLO[:n] + a, st.binary(max_size=20), st.integers(0, 40)))
)
@settings(max_examples=200, deadline=None)
def test_decode_raises_nothing_but_protocol_errors(frame):
    with contextlib.suppress(protocol.ProtocolError):
        assert protocol.decode(frame).kind in protocol.FIELDS


_HELLO = protocol.encode(
    protocol.Message(protocol.SAMPLE, 1, {"client": "c", "observation": {"k": np.arange(3)}, "num_samples": 1, "seed": None})
)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        ({"__nd__": "|O", "shape": [1]}, "dtype"),
        ({"__nd__": "f4,O", "shape": [1]}, "dtype"),
        ({"__nd__": "<U0", "shape": [2**40]}, "dtype"),
        ({"__nd__": 3, "shape": [1]}, "dtype"),
        ({"__nd__": "<f4", "shape": [2**62, 4]}, "and 16 follow"),
        ({"__nd__": "<f4", "shape": [5]}, "has 20 bytes, and 16 follow"),
        ({"__nd__": "<f4", "shape": [3]}, "4 bytes follow the last array"),
        ({"__nd__": "<f4", "shape": [-1]}, "shape"),
        ({"__nd__": "<f4"}, "shape"),
        ({"__nd__": "<f4", "shape": [0] * 100}, "cannot be made"),
    ],
)
def test_arrays_that_are_none_are_refused(array, words):
    import msgpack

    envelope = {
        "protocol": protocol.VERSION,
        "kind": "sample",
        "request": 1,
        "client": "c",
        "observation": {"k": array},
        "num_samples": 1,
        "seed": None,
    }
    with pytest.raises(protocol.ProtocolError, match=words):
        protocol.decode(frame_of(msgpack.packb(envelope), bytes(16)))


def frame_of(head, arrays=b""):
    return len(head).to_bytes(4, "big") + head + arrays


def test_no_bytes_of_a_frame_are_taken_twice():
    """A small frame that announces the same bytes again and again would fill the memory."""
    import msgpack

    head = {"protocol": protocol.VERSION, "kind": "actions", "request": 1, "seconds": 0.0, "name": ""}
    announced = {"__nd__": "|u1", "shape": [16]}
    with pytest.raises(protocol.ProtocolError, match="and 0 follow"):
        protocol.decode(frame_of(msgpack.packb({**head, "actions": announced, "scores": announced}), bytes(16)))
    both = protocol.decode(frame_of(msgpack.packb({**head, "actions": announced, "scores": announced}), bytes(range(32))))
    assert both["actions"].tolist() == list(range(16))
    assert both["scores"].tolist() == list(range(16, 32))


def test_a_frame_shorter_than_the_head_it_announces_is_refused():
    with pytest.raises(protocol.ProtocolError, match="announces a head of"):
        protocol.decode(b"\x85\xa8protocol")  # as earlier protocols began


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"client": "c", "observation": {"k": np.array([object()])}, "num_samples": 1, "seed": None}, "object"),
        ({"client": "c", "observation": {"k": object()}, "num_samples": 1, "seed": None}, "cannot send a object"),
        ({"client": "c", "observation": {"k": np.zeros(2**10)}, "num_samples": 1, "seed": None}, "limit of 4096"),
        ({"client": "c", "observation": {}, "num_samples": True, "seed": None}, "bool"),
        ({"client": "c", "observation": {}, "num_samples": 1}, "seed"),
        ({"client": "c", "observation": {}, "num_samples": 1, "seed": 2**70}, "64 bits"),
        ({"client": "c", "observation": {1: 2}, "num_samples": 1, "seed": None}, "not a string"),
    ],
)
def test_what_cannot_be_sent_is_refused_with_the_reason(fields, words):
    with pytest.raises(protocol.ProtocolError, match=words):
        protocol.encode(protocol.Message(protocol.SAMPLE, 1, fields), max_bytes=4096)


def fake_image(array, encoding, pad=5, big=0):
    """The fields of a sensor_msgs/Image with padded rows."""
    rows = np.ascontiguousarray(array).view(np.uint8).reshape(array.shape[0], -1)
    data = np.pad(rows, ((0, 0), (0, pad)))
    return SimpleNamespace(
        height=array.shape[0],
        width=array.shape[1],
        encoding=encoding,
        is_bigendian=big,
        step=data.shape[1],
        data=data.tobytes(),
    )


def test_images_of_every_encoding_become_rgb_or_metres():
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    alpha = np.concatenate([rgb, rgb[:, :, :1]], axis=2)
    assert np.array_equal(ros_messages.image(fake_image(rgb, "rgb8")), rgb)
    assert np.array_equal(ros_messages.image(fake_image(rgb[:, :, ::-1], "bgr8")), rgb)
    assert np.array_equal(ros_messages.image(fake_image(alpha, "rgba8")), rgb)
    assert np.array_equal(ros_messages.image(fake_image(alpha[:, :, [2, 1, 0, 3]], "bgra8")), rgb)
    assert np.array_equal(ros_messages.image(fake_image(rgb[:, :, 0], "mono8")), rgb[:, :, [0, 0, 0]])
    metres = np.array([[0.5, np.nan], [np.inf, 1.25]], "<f4")
    expected = [[0.5, 0.0], [0.0, 1.25]]
    assert ros_messages.image(fake_image(metres, "32FC1")).tolist() == expected
    millimetres = np.array([[500, 0], [0, 1250]], ">u2")
    np.testing.assert_allclose(ros_messages.image(fake_image(millimetres, "16UC1", big=1)), expected)
    with pytest.raises(ValueError, match="yuv422"):
        ros_messages.image(fake_image(rgb, "yuv422"))


def test_a_png_comes_back_exactly_and_rubbish_is_refused():
    import cv2

    rgb = np.random.default_rng(1).integers(0, 256, (9, 4, 3), dtype=np.uint8)
    data = cv2.imencode(".png", rgb[:, :, ::-1])[1].tobytes()
    assert np.array_equal(ros_messages.compressed_image(SimpleNamespace(data=data, format="png")), rgb)
    with pytest.raises(ValueError, match="decoded"):
        ros_messages.compressed_image(SimpleNamespace(data=b"rubbish", format="jpeg"))


def test_resizing_keeps_the_middle_and_the_mean():
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 20:60] = np.arange(40)[:, None] * 6  # the square in the middle
    small = ros_messages.resize_image(image, 10, 10)
    assert small.shape == (10, 10, 3)
    assert abs(small.mean() - image[:, 20:60].mean()) < 1
    assert np.array_equal(ros_messages.resize_image(image, 40, 80), image)
    depth = np.where(np.arange(40)[:, None] < 21, 1.0, 3.0).astype(np.float32) * np.ones((40, 40), np.float32)
    assert set(np.unique(ros_messages.resize_image(depth, 7, 7))) == {1.0, 3.0}  # no distance that is not there
    assert ros_messages.resize_image(image[:4, :4], 10, 10).shape == (10, 10, 3)


def test_clouds_joints_and_poses_become_arrays():
    from robopolicy.geometry import matrix_from_6d, pose

    points = np.zeros(6, dtype=[("x", "<f4"), ("pad", "<f4"), ("z", "<f4"), ("y", "<f4"), ("i", "<u2")])
    points["x"], points["y"], points["z"], points["i"] = range(6), 1, 2, 7
    points["x"][2] = np.nan
    fields = [
        SimpleNamespace(name=n, offset=points.dtype.fields[n][1], datatype=d)
        for n, d in (("x", 7), ("y", 7), ("z", 7), ("i", 4))
    ]
    layout = {"fields": fields, "is_bigendian": 0, "point_step": 18, "row_step": 54, "height": 2, "width": 3}
    cloud = ros_messages.point_cloud(SimpleNamespace(data=points.tobytes(), **layout), ("x", "y", "z", "i"))
    assert cloud.tolist() == [[n, 1, 2, 7] for n in (0, 1, 3, 4, 5)]
    assert ros_messages.resample_points(cloud, 2)[:, 0].tolist() == [0, 4]
    assert ros_messages.resample_points(cloud, 10).shape == (10, 4)
    with pytest.raises(ValueError, match="rgb"):
        ros_messages.point_cloud(SimpleNamespace(data=points.tobytes(), **layout), ("x", "rgb"))
    joints = SimpleNamespace(name=["b", "a"], position=[2.0, 1.0])
    assert ros_messages.joint_state(joints, ("a", "b")).tolist() == [1, 2]
    with pytest.raises(ValueError, match="'c'"):
        ros_messages.joint_state(joints, ("c",))
    quaternion = np.array([0.1, -0.5, 0.3, 0.8]) / np.linalg.norm([0.1, -0.5, 0.3, 0.8])
    point, turn = SimpleNamespace(x=1, y=2, z=3), SimpleNamespace(**dict(zip("xyzw", quaternion, strict=True)))
    got = ros_messages.pose(SimpleNamespace(pose=SimpleNamespace(position=point, orientation=turn)))
    assert got[:3].tolist() == [1, 2, 3]
    np.testing.assert_allclose(matrix_from_6d(got[3:].astype(float)), pose(np.zeros(3), quaternion)[:3, :3], atol=1e-6)


def test_the_shipped_mapping_fits_the_observation_of_lift():
    from robopolicy.sim.robot import STATE_NAMES

    config = ros_config.load_config(ROOT / "assets" / "ros" / "lift.yaml")
    assert config.limits.action_dim == 7
    assert set(config.observation) == {spec.STATE, IMAGE, spec.image_key("wrist")}
    joints = sum(len(source.joints) for source in config.observation[spec.STATE])
    assert joints + 9 == len(STATE_NAMES)  # and the pose
    assert set(config.ee_position) <= set(STATE_NAMES)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"limits": {"max_speed": 1}}, "max_speed; known: max_translation_per_step"),
        ({"limits": {"max_translation_per_step": -1}}, "positive"),
        ({"command": {"topic": "/x", "type": "std_msgs/String"}}, "TwistStamped"),
        ({"observation": {"k": {"topic": "/x", "type": "sensor_msgs/Imu"}}}, "sensor_msgs/Image"),
        ({"observation": {"k": "/x"}}, "observation k"),
        ({"observations": {}}, "observations"),
        ({"command": None}, "command"),
    ],
)
def test_a_wrong_mapping_is_refused_by_entry(change, words):
    good = {"observation": {"k": {"topic": "/x", "type": "sensor_msgs/Image"}}, "command": {"topic": "/y"}, "limits": {}}
    ros_config.NodeConfig.from_dict(good)
    with pytest.raises(ValueError, match=words):
        ros_config.NodeConfig.from_dict({**good, **change})


def run_python(*args, cwd):
    return subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("layout", ["package", "flat"])
def test_the_island_runs_copied_away_from_the_package(layout, tmp_path):
    shutil.copytree(ISLAND, tmp_path / "ws" / "deploy", ignore=shutil.ignore_patterns("__pycache__", *SERVER_SIDE))
    modules = [path.stem for path in ISLAND.glob("*.py") if path.name not in (*SERVER_SIDE, "__init__.py")]
    prefix, path = ("deploy.", tmp_path / "ws") if layout == "package" else ("", tmp_path / "ws" / "deploy")
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("robopolicy", "torch", "scipy", "gymnasium", "yaml", "cv2", "rclpy", "rospy"):
            raise AssertionError("imports " + name)
sys.meta_path.insert(0, Refuse())
sys.path.insert(0, {str(path)!r})
import importlib, numpy as np
for name in {modules!r}:
    importlib.import_module("{prefix}" + name)
client = sys.modules["{prefix}client"]
policy = client.RemotePolicy(sys.argv[1])
zeros = {{k: np.zeros((1, policy.spec.obs_horizon, *f.shape), f.dtype) for k, f in policy.spec.observation.items()}}
print(policy.sample(zeros, 2, 0).shape)
"""
    with served(ProportionalPolicy()) as (bound, _):
        done = run_python("-c", code, bound, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 2, 4, 7)"


def test_the_island_parses_on_the_python_of_older_ros_installs():
    for path in [*ISLAND.glob("*.py"), TOOL]:
        if path.name not in SERVER_SIDE:
            ast.parse(path.read_text(), feature_version=(3, 8))


def test_the_dry_run_shows_latency_and_the_guarded_action(tmp_path):
    policy = ProportionalPolicy(goal=(5.0, 0.0, 0.0))  # wants 0.5 m a step
    with served(policy, name="toy") as (bound, stats):
        done = run_python(str(TOOL), "--dry-run", "--address", bound, "--seconds", "0.4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "policy toy" in done.stdout
    assert "p95" in done.stdout
    assert "first action: [0.02" in done.stdout
    assert "limited by: translation" in done.stdout
    assert stats[0].num_samples == 20


def test_without_ros_or_without_a_server_the_exit_code_is_2_and_one_line_says_why(tmp_path):
    no_ros = run_python("-I", str(TOOL), "--config", str(ROOT / "assets/ros/lift.yaml"), cwd=tmp_path)
    assert no_ros.returncode == 2
    assert "source /opt/ros" in no_ros.stderr
    assert no_ros.stderr.count("\n") == 1
    nobody = run_python(str(TOOL), "--dry-run", "--address", "tcp://127.0.0.1:9", "--timeout-ms", "50", cwd=tmp_path)
    assert nobody.returncode == 2
    assert "tcp://127.0.0.1:9" in nobody.stderr
