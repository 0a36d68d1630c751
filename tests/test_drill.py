"""The fault drill's conditions hold: sensor faults in a time of their own, one process that is really killed, fuzzed frames."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from robopolicy.deploy import protocol
from robopolicy.deploy.answering import Answerer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import drill
from deploy_bench.process_faults import fuzzed
from deploy_bench.robot import LIMITS, beyond_limits
from deploy_bench.sensor_faults import sensor_robot
from deploy_bench.toy import Toward

IN_ITS_OWN_TIME = ["camera_stops", "frames_out_of_order", "nan_joints", "clock_jumps_back", "stamps_go_wrong", "late_camera"]


@pytest.mark.parametrize("fault", [*IN_ITS_OWN_TIME, "emergency_stop"])
def test_a_robot_with_a_fault_is_told_what_it_must_be(fault):
    found, must = drill.DRILLS[fault](True, 0)
    assert all(must.values()), (found, must)


def test_a_robot_outlives_its_server():
    found, must = drill.DRILLS["server_restarts"](True, 0)
    assert all(must.values()), (found, must)


def test_the_drill_can_fail():
    """What it counts as beyond the limits is."""
    still = np.zeros((5, 7))
    assert beyond_limits(still, [False] * 5, LIMITS, 20.0, 20.0) == 0
    for entry, value in ((0, 0.019), (3, 0.2), (6, 1.1), (2, np.nan)):
        spoilt = still.copy()
        spoilt[2, entry] = value  # 0.019 m is slow enough, but not from a standstill
        assert beyond_limits(spoilt, [False] * 5, LIMITS, 20.0, 20.0) > 0
    robot = sensor_robot().run(1.0)
    assert robot.beyond == 0
    robot.log.places[-1] = np.array([0.8, 0.0, 0.2])
    assert robot.beyond == 1


def test_fuzzed_frames_are_answered_and_change_nothing():
    rng, policy = np.random.default_rng(0), Toward()
    zeros = {key: feature.zeros((1, 1)) for key, feature in policy.spec.observation.items()}
    fields = {"client": "x", "observation": zeros, "num_samples": 1, "seed": None}
    good = [protocol.encode(protocol.Message(protocol.SAMPLE, 1, fields)), protocol.encode(protocol.Message(protocol.HELLO, 1))]
    answerer = Answerer(policy, "toy")
    before = answerer.answers(good)
    kinds = set()
    for _ in range(100):
        replies = answerer.answers([fuzzed(rng, good) for _ in range(30)])
        kinds |= {protocol.decode(reply).kind for reply in replies if reply is not None}
    assert protocol.ERROR in kinds
    assert kinds <= {protocol.ERROR, protocol.SPEC, protocol.ACTIONS, protocol.DONE}
    assert protocol.decode(answerer.answers(good)[0])["actions"].tobytes() == protocol.decode(before[0])["actions"].tobytes()
