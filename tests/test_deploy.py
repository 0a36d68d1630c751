"""A served policy is the policy; nothing a client sends ends the server; nothing a policy says exceeds the limits."""

from __future__ import annotations

import ast
import contextlib
import logging
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from robopolicy import spec
from robopolicy.deploy import client, protocol, ros_config, ros_messages, runtime, server
from robopolicy.spec import FeatureSpec, Policy, PolicySpec

ROOT = Path(__file__).resolve().parent.parent
ISLAND = ROOT / "robopolicy" / "deploy"
TOOL = ROOT / "tools" / "ros_infer.py"
IMAGE = spec.image_key("front")
EE_NAMES = ("ee_x", "ee_y", "ee_z")


class ProportionalPolicy:
    """Moves the end effector a fraction of the way to a goal, plus noise for samples after the first."""

    def __init__(self, goal=(0.5, 0.0, 0.2), delay_s=0.0):
        self.goal, self.delay_s, self.resets = np.array(goal, np.float32), delay_s, 0
        self.spec = PolicySpec(
            observation={
                spec.STATE: FeatureSpec((3,), "float32", "m", "base", EE_NAMES),
                IMAGE: FeatureSpec((8, 6, 3), "uint8"),
            },
            action=FeatureSpec((7,), "float32", "m, rad, 0..1", "base", ("dx", "dy", "dz", "rx", "ry", "rz", "gripper")),
            obs_horizon=2,
            action_horizon=4,
            execute_horizon=3,
            control_hz=50.0,
        )

    def reset(self):
        self.resets += 1

    def sample(self, observation, num_samples=1, seed=None):
        batch = spec.check_observation(observation, self.spec)
        time.sleep(self.delay_s)
        chunks = np.zeros((batch, num_samples, 4, 7), np.float32)
        chunks[..., :3] = 0.1 * (self.goal - observation[spec.STATE][:, -1])[:, None, None]
        chunks[..., 6] = observation[IMAGE].mean() / 255
        chunks[:, 1:, :, :3] += np.random.default_rng(seed).normal(0, 0.01, chunks[:, 1:, :, :3].shape)
        return chunks


def observation(batch=2, seed=0):
    rng = np.random.default_rng(seed)
    return {
        spec.STATE: rng.normal(size=(batch, 2, 3)).astype(np.float32),
        IMAGE: rng.integers(0, 256, (batch, 2, 8, 6, 3), dtype=np.uint8),
    }


@contextmanager
def served(policy, address="tcp://127.0.0.1:*", **kwargs):
    """(address, stats box) of a real server in a thread."""
    bound, stats, stop = queue.Queue(), [], threading.Event()
    run = lambda: stats.append(server.serve(policy, address, ready=bound.put, stop=stop, **kwargs))  # noqa: E731
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield bound.get(timeout=5), stats
    finally:
        stop.set()
        thread.join(timeout=5)
        assert not thread.is_alive()


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
    other_version = protocol.encode(protocol.Message(protocol.HELLO, 1)).replace(b"\xa8protocol\x01", b"\xa8protocol\x07")
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


def test_only_addresses_of_other_machines_are_warned_about(caplog):
    caplog.set_level(logging.WARNING)
    with served(ProportionalPolicy()):
        assert not caplog.records
    with served(ProportionalPolicy(), "tcp://0.0.0.0:*"):
        assert "other machines" in caplog.text
    local = {
        "tcp://127.0.0.1:1": True,
        "tcp://[::1]:1": True,
        "ipc:///x": True,
        "tcp://0.0.0.0:1": False,
        "tcp://10.0.0.5:1": False,
    }
    assert {address: server.is_local(address) for address in local} == local


def test_sigterm_ends_the_server_with_its_statistics():
    code = (
        "import logging, sys; logging.basicConfig(level=logging.INFO, stream=sys.stdout)\n"
        "sys.path.insert(0, sys.argv[1]); from test_deploy import ProportionalPolicy\n"
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
        ({"__nd__": "|O", "shape": [1], "data": b"\0" * 8}, "dtype"),
        ({"__nd__": "f4,O", "shape": [1], "data": b"\0" * 12}, "dtype"),
        ({"__nd__": "<U0", "shape": [2**40], "data": b""}, "dtype"),
        ({"__nd__": 3, "shape": [1], "data": b"\0"}, "dtype"),
        ({"__nd__": "<f4", "shape": [2**62, 4], "data": b""}, "does not have 0 bytes"),
        ({"__nd__": "<f4", "shape": [-1], "data": b"\0" * 4}, "shape"),
        ({"__nd__": "<f4", "data": b"\0" * 4}, "shape"),
        ({"__nd__": "<f4", "shape": [0] * 100, "data": b""}, "cannot be made"),
    ],
)
def test_arrays_that_are_none_are_refused(array, words):
    import msgpack

    envelope = {
        "protocol": 1,
        "kind": "sample",
        "request": 1,
        "client": "c",
        "observation": {"k": array},
        "num_samples": 1,
        "seed": None,
    }
    with pytest.raises(protocol.ProtocolError, match=words):
        protocol.decode(msgpack.packb(envelope))


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


LIMITS = runtime.SafetyLimits(workspace_low=(0.3, -0.4, 0.0), workspace_high=(0.7, 0.4, 0.5))
PREVIOUS = np.array([0.01, 0, 0, 0, 0, 0, 0.25], np.float32)
floats = st.floats(-(2.0**99), 2.0**99, width=32)
anything = st.one_of(floats, st.floats(-0.0625, 0.0625, width=32), st.floats(width=32))
positions = hnp.arrays(np.float32, 3, elements=st.floats(-1, 1.5, width=32))


@given(action=hnp.arrays(np.float32, 7, elements=anything), position=positions)
@settings(max_examples=300, deadline=None)
def test_guarded_actions_are_finite_and_within_every_limit(action, position):
    safe, flags = runtime.guard(action, position, LIMITS, previous=PREVIOUS)
    assert safe.dtype == np.float32
    assert np.isfinite(safe).all()
    assert np.linalg.norm(safe[:3].astype(float)) <= LIMITS.max_translation_per_step
    assert np.linalg.norm(safe[3:6].astype(float)) <= LIMITS.max_rotation_per_step
    assert 0 <= safe[6] <= 1
    low, high = np.array(LIMITS.workspace_low), np.array(LIMITS.workspace_high)
    target = position + safe[:3].astype(float)
    outside = np.maximum(low - position, position - high).clip(0)
    assert (np.maximum(low - target, target - high) <= outside + 1e-6).all()  # never further out than it is
    if np.isfinite(action).all():
        kept = (safe[:6] == 0) | (np.sign(safe[:6]) == np.sign(action[:6]))
        assert kept.all()  # shortened, never reversed
    else:
        assert flags == ("not_finite",)
        assert safe.tolist() == [0, 0, 0, 0, 0, 0, 0.25]
    assert (flags == ()) == (safe is action)


@given(
    direction=hnp.arrays(np.float32, 7, elements=st.floats(-1, 1, width=32)),
    position=hnp.arrays(np.float32, 3, elements=st.floats(0, 1, width=32)),
)
@settings(max_examples=100, deadline=None)
def test_actions_inside_the_limits_pass_unchanged(direction, position):
    low, high = np.array(LIMITS.workspace_low) + 0.02, np.array(LIMITS.workspace_high) - 0.02
    scale = np.array([0.011] * 3 + [0.05] * 3 + [1.0], np.float32)
    action = direction * scale
    action[6] = abs(action[6])
    safe, flags = runtime.guard(action, low + position * (high - low), LIMITS, previous=PREVIOUS)
    assert safe is action
    assert flags == ()


def test_limits_act_on_the_vector_not_on_its_entries():
    action = np.array([0.04, 0.03, 0.0, 0.0, 0.6, 0.8, 0.5], np.float32)
    safe, flags = runtime.guard(action, np.array([0.5, 0, 0.2]), LIMITS, previous=PREVIOUS)
    np.testing.assert_allclose(safe, [0.016, 0.012, 0, 0, 0.06, 0.08, 0.5], rtol=1e-5)
    assert flags == ("translation", "rotation")


def test_at_the_wall_the_arm_slides_and_outside_it_only_comes_back():
    action = np.array([0.01, 0.01, 0, 0, 0, 0, 0.5], np.float32)
    at_wall, _ = runtime.guard(action, np.array([0.7, 0, 0.2]), LIMITS, previous=PREVIOUS)
    np.testing.assert_allclose(at_wall[:3], [0, 0.01, 0], atol=1e-7)
    back, flags = runtime.guard(-action, np.array([0.9, 0, 0.2]), LIMITS, previous=PREVIOUS)
    np.testing.assert_allclose(back[:3], [-0.01, -0.01, 0], atol=1e-7)
    assert flags == ("bounds",)  # the gripper's -0.5
    for unknown in (None, np.full(3, np.nan), np.zeros(2)):
        blind, flags = runtime.guard(action, unknown, LIMITS, previous=PREVIOUS)
        assert blind[:3].tolist() == [0, 0, 0]
        assert flags == ("no_position",)


def test_an_action_of_the_wrong_shape_holds():
    safe, flags = runtime.guard(np.zeros(6, np.float32), None, runtime.SafetyLimits(), previous=PREVIOUS)
    assert safe.tolist() == [0, 0, 0, 0, 0, 0, 0.25]
    assert flags == ("shape",)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_translation_per_step": 0.0},
        {"max_rotation_per_step": float("nan")},
        {"workspace_low": (0, 0, 0)},
        {"workspace_low": (0, 0, 1), "workspace_high": (1, 1, 1)},
        {"low": (0.0, 0.0), "high": (1.0, 1.0)},
    ],
)
def test_limits_that_limit_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        runtime.SafetyLimits(**wrong)


def test_a_stream_that_never_came_or_is_old_or_from_the_future_is_stale():
    dog = runtime.Watchdog(("image", "state"), max_age_s=0.2)
    assert dog.stale(10.0) == ("image", "state")
    dog.feed("image", 9.9)
    dog.feed("state", 9.9)
    assert dog.stale(10.0) == ()
    assert dog.stale(10.11) == ("image", "state")
    dog.feed("state", 11.0)
    assert dog.stale(10.0) == ("state",)
    dog.feed("state", float("nan"))
    assert dog.stale(10.0) == ("state",)
    with pytest.raises(KeyError, match="image"):
        dog.feed("imgae", 1.0)


def steps(start, count=8):
    """A chunk whose x motion tells its steps apart."""
    chunk = np.zeros((count, 7), np.float32)
    chunk[:, 0] = (start + np.arange(count)) * 1e-4
    chunk[:, 6] = 0.5
    return chunk


def x_of(command):
    return round(float(command.action[0]) * 1e4)


def test_a_chunk_is_executed_once_and_then_held():
    run = runtime.Runtime(limits=runtime.SafetyLimits(), execute_horizon=3)
    assert run.tick(0.0).action is None  # nothing to hold yet: nothing is sent
    assert run.offer(steps(1), run.ask(0.0))
    got = [run.tick(0.05 * n) for n in range(5)]
    assert [c.state for c in got] == ["run"] * 3 + ["hold"] * 2
    assert [x_of(c) for c in got] == [1, 2, 3, 0, 0]
    assert got[4].action[6] == 0.5  # the gripper keeps its grip
    assert got[4].reasons == ("no_chunk",)


def test_the_next_chunk_continues_where_the_robot_is():
    run = runtime.Runtime(limits=runtime.SafetyLimits(), execute_horizon=4, lead_steps=2)
    run.offer(steps(1), run.ask(0.0))
    assert run.ask(0.0) is None  # 4 steps left, too early
    assert [x_of(run.tick(0.1)), x_of(run.tick(0.2))] == [1, 2]
    request = run.ask(0.2)
    assert run.ask(0.2) is None  # one at a time
    assert x_of(run.tick(0.3)) == 3  # executed after the observation: the new chunk's first step is past
    assert run.offer(steps(101), request)
    assert [x_of(run.tick(0.4 + n / 10)) for n in range(4)] == [102, 103, 104, 105]


def test_a_late_chunk_is_dropped_and_another_is_asked_for():
    run = runtime.Runtime(limits=runtime.SafetyLimits(), execute_horizon=3, timeout_s=0.5)
    late = run.ask(0.0)
    assert run.tick(0.4).state == runtime.HOLD
    assert run.ask(0.4) is None
    assert run.tick(0.6).state == runtime.HOLD
    again = run.ask(0.6)
    assert not run.offer(steps(1), late)
    assert run.tick(0.65).action is None
    assert run.offer(steps(101), again)
    assert x_of(run.tick(0.7)) == 101


def test_a_stale_observation_ends_the_chunk_for_good():
    run = runtime.Runtime(limits=runtime.SafetyLimits(), execute_horizon=8, lead_steps=6)
    run.offer(steps(1), run.ask(0.0))
    assert [x_of(run.tick(0.0)), x_of(run.tick(0.0))] == [1, 2]
    on_its_way = run.ask(0.0)
    command = run.tick(0.1, stale=("image",))
    assert (command.state, command.reasons, x_of(command)) == ("hold", ("stale:image",), 0)
    assert run.tick(0.2).reasons == ("no_chunk",)  # fresh again, but the old motion is gone
    assert not run.offer(steps(50), on_its_way)


def test_stop_is_latched():
    run = runtime.Runtime(limits=runtime.SafetyLimits(), execute_horizon=8, lead_steps=6)
    run.offer(steps(1), run.ask(0.0))
    run.tick(0.0), run.tick(0.0)
    on_its_way = run.ask(0.0)
    run.stop("operator")
    command = run.tick(0.1)
    assert (command.state, command.reasons, x_of(command)) == ("stopped", ("operator",), 0)
    assert run.ask(0.2) is None
    run.resume()
    assert not run.offer(steps(50), on_its_way)  # from before the stop
    assert run.tick(0.3).state == runtime.HOLD
    assert run.offer(steps(70), run.ask(0.3))
    assert x_of(run.tick(0.3)) == 70


def test_a_chunk_with_a_bad_step_is_dropped_whole():
    run = runtime.Runtime(limits=runtime.SafetyLimits(), execute_horizon=8)
    chunk = steps(1)
    chunk[1, 3] = np.inf
    run.offer(chunk, run.ask(0.0))
    assert x_of(run.tick(0.0)) == 1
    held = run.tick(0.1)
    assert (held.state, held.reasons, x_of(held)) == ("hold", ("not_finite",), 0)
    assert run.tick(0.2).reasons == ("no_chunk",)


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
    shutil.copytree(ISLAND, tmp_path / "ws" / "deploy", ignore=shutil.ignore_patterns("__pycache__", "server.py"))
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
for name in ("protocol", "client", "runtime", "ros_messages", "ros_config", "ros_transport", "ros_node"):
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
        if path.name != "server.py":
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
