"""When a robot is told to go on, to hold and to stop: synchronisation, chunks, watchdogs, the monitor, all by given times."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from serving import EE_NAMES, IMAGE, ProportionalPolicy

from robopolicy import spec
from robopolicy.deploy import monitor, scheduling
from robopolicy.deploy.controller import Controller
from robopolicy.deploy.inference import Inference
from robopolicy.deploy.interpolation import Interpolator
from robopolicy.deploy.limits import SafetyLimits
from robopolicy.deploy.runtime import HOLD, RUN, STOPPED, Runtime, RuntimeSettings
from robopolicy.deploy.scheduling import ChunkScheduler, soft_mask
from robopolicy.deploy.synchronise import Synchronizer, Watchdog

LIMITS = SafetyLimits()
HZ = 20.0
STEP = 1 / HZ


def steps(start, count=8):
    """A chunk whose x motion tells its steps apart."""
    chunk = np.zeros((count, 7), np.float32)
    chunk[:, 0] = (start + np.arange(count)) * 1e-4
    chunk[:, 6] = 0.5
    return chunk


def x_of(command):
    return round(float(command.action[0]) * 1e4)


def make_runtime(execute_horizon=8, gate=None, **settings):
    return Runtime(
        limits=LIMITS, execute_horizon=execute_horizon, policy_hz=HZ, settings=RuntimeSettings(**settings), gate=gate
    )


def give(run, start, now=0.0, **kwargs):
    """Ask and answer at once."""
    return run.offer(steps(start)[None], run.ask(now), now, **kwargs)


# -- streams


def test_a_stream_that_never_came_or_is_old_or_from_the_future_is_stale():
    dog = Watchdog(("image", "state"), max_age_s=0.2)
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
    assert Watchdog(("a", "b"), {"a": 1.0, "b": 0.1}).max_age_s["b"] == 0.1
    with pytest.raises(ValueError, match="max_age_s"):
        Watchdog(("a", "b"), {"a": 1.0})


def make_synchronizer(obs_horizon=1, tolerance_s=0.02, max_age_s=0.2):
    streams = ("camera", "state")
    return Synchronizer(streams, obs_horizon=obs_horizon, step_s=STEP, max_age_s=max_age_s, tolerance_s=tolerance_s)


def number(value):
    return np.array([value], np.float32)


def test_messages_of_the_same_time_are_put_together_whatever_their_rates():
    sync = make_synchronizer(obs_horizon=2)
    for n in range(100):  # a fast stream
        assert sync.feed("state", 1 + n * 0.005, number(1 + n * 0.005)) == ""
    for n in range(15):  # a slow one, whose newest is 20 ms older
        assert sync.feed("camera", 1 + n * 0.0333, number(1 + n * 0.0333)) == ""
    snapshot, reasons = sync.observe(1.5)
    assert reasons == ()
    assert snapshot.stamp == pytest.approx(1 + 14 * 0.0333)
    state, camera = snapshot.history("state"), snapshot.history("camera")
    assert np.abs(state - camera).max() < 0.02
    assert camera[1] - camera[0] == pytest.approx(STEP, abs=0.017)  # the frame nearest to a step before


def test_streams_too_far_apart_are_no_observation():
    sync = make_synchronizer(tolerance_s=0.02)
    sync.feed("state", 1.0, number(0))
    sync.feed("camera", 1.05, number(0))
    assert sync.observe(1.06) == (None, ("unsynced:camera",))
    sync.feed("state", 1.06, number(0))
    assert sync.observe(1.07)[1] == ()


def test_out_of_order_not_finite_and_unstamped_messages_are_refused():
    sync = make_synchronizer()
    assert sync.feed("state", 1.0, number(1)) == ""
    assert sync.feed("state", 0.9, number(2)) == "out_of_order"
    assert sync.feed("state", 1.0, number(2)) == "out_of_order"
    assert sync.feed("state", 1.1, number(np.nan)) == "not_finite"
    assert sync.feed("state", float("nan"), number(2)) == "bad_stamp"
    sync.feed("camera", 1.0, number(1))
    assert sync.observe(1.05)[0].history("state")[-1] == 1


def test_history_does_not_reach_over_a_gap_and_begins_with_the_first_frame():
    sync = make_synchronizer(obs_horizon=3, tolerance_s=0.01)
    for stream in ("camera", "state"):
        sync.feed(stream, 1.0, number(1))
    assert sync.observe(1.0)[0].history("camera").tolist() == [[1], [1], [1]]
    assert sync.observe(1.5)[1] == ("stale:camera", "stale:state")
    for stream in ("camera", "state"):
        sync.feed(stream, 2.0, number(2))
    assert sync.observe(2.0)[0].history("camera").tolist() == [[2], [2], [2]]


# -- chunks


def test_a_chunk_is_executed_once_and_then_held():
    run = make_runtime(execute_horizon=3)
    assert run.tick(0.0).action is None  # nothing to hold yet: nothing is sent
    assert not run.tick(0.0).publish
    assert give(run, 1)
    got = [run.tick(STEP * n) for n in range(5)]
    assert [c.state for c in got] == [RUN] * 3 + [HOLD] * 2
    assert [x_of(c) for c in got] == [1, 2, 3, 0, 0]
    assert got[4].action[6] == 0.5  # the gripper keeps its grip
    assert got[4].reasons == ("no_chunk",)
    assert all(command.publish for command in got)


def test_the_next_chunk_continues_where_the_robot_is():
    run = make_runtime(execute_horizon=4, lead_steps=2)
    give(run, 1)
    assert run.ask(0.0) is None  # 4 steps left, too early
    assert [x_of(run.tick(0.1)), x_of(run.tick(0.2))] == [1, 2]
    request = run.ask(0.25)
    assert run.ask(0.25) is None  # one at a time
    assert x_of(run.tick(0.3)) == 3  # sent after the observation: the new chunk's first step is past
    assert run.offer(steps(101)[None], request, 0.35)
    assert [x_of(run.tick(0.4 + n / 10)) for n in range(4)] == [102, 103, 104, 105]


@pytest.mark.parametrize(("age", "response", "first"), [(0.0, 0.0, 101), (0.12, 0.0, 104), (0.0, 0.06, 102)])
def test_steps_that_the_observation_does_not_show_are_not_repeated(age, response, first):
    """An observation that is 0.12 s old was made before three steps were sent; a robot that answers late shows one less."""
    run = make_runtime(execute_horizon=4, lead_steps=8, response_s=response)
    give(run, 1, now=-1.0)
    for n in range(4):
        run.tick(n * STEP)
    now = 3 * STEP + 0.01
    assert run.offer(steps(101)[None], run.ask(now, now - age), now)
    assert x_of(run.tick(4 * STEP)) == first


def test_a_pause_skips_nothing():
    run = make_runtime(execute_horizon=2)
    give(run, 1)
    for n in range(3):
        run.tick(n * STEP)
    request = run.ask(0.15)
    assert [run.tick(0.15 + n * STEP).state for n in range(6)] == [HOLD] * 6
    assert run.offer(steps(101)[None], request, 0.45)
    assert x_of(run.tick(0.45)) == 101


def test_a_late_chunk_is_dropped_and_another_is_asked_for():
    run = make_runtime(execute_horizon=3, timeout_s=0.5)
    late = run.ask(0.0)
    assert run.tick(0.4).state == HOLD
    assert run.ask(0.4) is None
    again = run.ask(0.6)
    assert again not in (None, late)
    assert not run.offer(steps(1)[None], late, 0.6)
    assert run.tick(0.65).action is None
    assert run.offer(steps(101)[None], again, 0.65)
    assert x_of(run.tick(0.7)) == 101
    assert (run.counters["inference_timeout"], run.counters["chunk_too_late"]) == (1, 1)


@pytest.mark.parametrize("spoil", [np.inf, np.nan])
def test_a_chunk_with_a_bad_step_is_refused_whole(spoil):
    run = make_runtime()
    chunk = steps(1)
    chunk[5, 3] = spoil
    assert not run.offer(chunk[None], run.ask(0.0), 0.0)
    assert run.tick(0.0).action is None
    assert not run.offer(steps(1)[None, :, :6], run.ask(0.1), 0.1)
    assert run.counters["chunk_refused"] == 2
    assert give(run, 1, 0.2)


def test_ensembling_is_the_weighted_mean_of_all_that_was_said_about_a_step():
    scheduler = ChunkScheduler(execute_horizon=8, step_s=STEP, mode=scheduling.ENSEMBLE, decay=0.5)
    rng = np.random.default_rng(0)
    chunks = [rng.normal(size=(4, 2)) for _ in range(3)]
    for n, chunk in enumerate(chunks):
        scheduler.add(chunk[None], scheduler.ask(n * STEP), n * STEP)
        action = scheduler.next(n * STEP + 0.01)
    said = np.array([chunks[0][2], chunks[1][1], chunks[2][0]])
    weights = np.exp(-0.5 * np.arange(3))  # the oldest weighs most
    np.testing.assert_allclose(action, weights @ said / weights.sum())


def test_real_time_chunks_join_without_a_step_and_go_on_while_the_policy_thinks():
    horizon, execute = 16, 6
    scheduler = ChunkScheduler(execute_horizon=execute, step_s=STEP, mode=scheduling.REAL_TIME, lead_steps=2)
    old, new = np.zeros((horizon, 1)), np.ones((horizon, 1))
    scheduler.add(old[None], scheduler.ask(0.0), 0.0)
    sent, asked = [], None
    for n in range(9):
        if scheduler.wants_chunk and asked is None:
            asked, request = n, scheduler.ask(n * STEP - 0.01)
        sent.append(scheduler.next(n * STEP)[0])
    assert asked == execute - 2
    assert sent == [0] * 9  # past execute_horizon: no pause
    scheduler.add(new[None], request, 9 * STEP)
    after = np.array([scheduler.next((9 + n) * STEP)[0] for n in range(scheduler.remaining)])
    assert len(after) == horizon - (9 - asked)
    assert (np.diff([0.0, *after]) < 0.5).all()  # a policy that changed its mind by 1 does not jump by 1
    assert (np.diff(after) >= 0).all()
    assert after[-1] == 1


def test_the_soft_mask_is_that_of_the_paper():
    """Frozen, then c (e^c - 1) / (e - 1) with c from near 1 to 0, then free."""
    weights = soft_mask(overlap=10, frozen=4, horizon=16)
    assert weights[:4].tolist() == [1] * 4
    assert (np.diff(weights[3:10]) < 0).all()
    c = (10 - 6) / (10 - 4 + 1)
    assert weights[6] == pytest.approx(c * (np.e**c - 1) / (np.e - 1))
    assert weights[10:].tolist() == [0] * 6


def test_of_several_candidates_the_one_that_fits_what_is_under_way_is_taken():
    scheduler = ChunkScheduler(execute_horizon=4, step_s=STEP, mode=scheduling.REAL_TIME, lead_steps=4)
    left, right = np.full((8, 1), -1.0), np.full((8, 1), 1.0)
    scheduler.add(left[None], scheduler.ask(0.0), 0.0)
    scheduler.next(0.0)
    scheduler.add(np.stack([right, left, right]), scheduler.ask(STEP), STEP)
    assert [scheduler.next(STEP * (1 + n))[0] for n in range(8)] == [-1] * 8


def test_the_automatic_lead_covers_the_slowest_of_the_last_inferences():
    scheduler = ChunkScheduler(execute_horizon=8, step_s=STEP, lead_steps=None)
    assert scheduler.lead_steps == 1
    for took in (0.02, 0.17, 0.03):
        scheduler.add(steps(1)[None], scheduler.ask(0.0), took)
    assert scheduler.lead_steps == 4


@pytest.mark.parametrize("ratio", [1.0, 0.2, 0.3])
@pytest.mark.parametrize("speed", [1.0, 0.5])
def test_interpolation_keeps_the_sum_of_motions_and_ends_at_the_targets(ratio, speed):
    rng = np.random.default_rng(0)
    chunk = rng.normal(size=(6, 7))
    rest = list(chunk)
    between = Interpolator(LIMITS, ratio=ratio)
    got = []
    while (action := between.next(lambda: rest.pop(0) if rest else None, speed)) is not None:
        got.append(action)
    got = np.array(got)
    np.testing.assert_allclose(got[:, :6].sum(axis=0), chunk[:, :6].sum(axis=0), atol=1e-9)
    assert len(got) == pytest.approx(6 / (ratio * speed), abs=1)
    assert got[-1, 6] == pytest.approx(chunk[-1, 6])
    assert got[:, 6].min() >= chunk[:, 6].min() - 1e-12
    assert got[:, 6].max() <= chunk[:, 6].max() + 1e-12


def test_commands_at_a_higher_rate_are_the_same_path():
    slow, fast = make_runtime(), make_runtime(control_hz=5 * HZ)
    paths = []
    for run, many in ((slow, 8), (fast, 40)):
        give(run, 1)
        paths.append(sum(run.tick(n / run.control_hz).action[:3] for n in range(many)))
    np.testing.assert_allclose(paths[0], paths[1], atol=1e-12)


# -- hold, then stop


def test_a_stale_observation_ends_the_chunk_for_good():
    run = make_runtime(lead_steps=6)
    give(run, 1)
    assert [x_of(run.tick(0.0)), x_of(run.tick(0.05))] == [1, 2]
    on_its_way = run.ask(0.05)
    command = run.tick(0.1, blocked=("stale:image",))
    assert (command.state, command.reasons, x_of(command)) == (HOLD, ("stale:image",), 0)
    assert run.tick(0.2).reasons == ("no_chunk",)  # fresh again, but the old motion is gone
    assert not run.offer(steps(50)[None], on_its_way, 0.2)


def test_a_hold_that_lasts_becomes_a_stop_but_not_before_the_robot_ever_moved():
    run = make_runtime(execute_horizon=2, stop_after_s=0.5)
    assert run.tick(0.0, blocked=("stale:camera",)).state == HOLD
    assert run.tick(9.0, blocked=("stale:camera",)).state == HOLD
    give(run, 1, 9.0)
    run.tick(9.0), run.tick(9.05)
    assert run.tick(9.5, blocked=("stale:camera",)).state == HOLD
    command = run.tick(9.6, blocked=("stale:camera",))
    assert (command.state, command.reasons) == (STOPPED, ("watchdog:stale:camera",))
    assert run.tick(9.65).state == STOPPED  # latched, though the camera is back
    assert run.resume()
    assert run.tick(9.7).state == HOLD
    assert run.counters["stop:watchdog:stale:camera"] == 1


def test_stop_is_latched():
    run = make_runtime(lead_steps=6)
    give(run, 1)
    run.tick(0.0), run.tick(0.05)
    on_its_way = run.ask(0.05)
    run.stop("operator")
    command = run.tick(0.1)
    assert (command.state, command.reasons, x_of(command)) == (STOPPED, ("operator",), 0)
    assert run.ask(0.2) is None
    run.resume()
    assert not run.offer(steps(50)[None], on_its_way, 0.2)  # from before the stop
    assert run.tick(0.3).state == HOLD
    assert give(run, 70, 0.3)
    assert x_of(run.tick(0.3)) == 70


def test_the_emergency_stop_outlasts_its_release_and_resuming_before_it():
    run = make_runtime()
    give(run, 1)
    run.tick(0.0)
    run.estop(True)
    assert run.tick(0.05).reasons == ("estop",)
    assert not run.resume()
    run.estop(False)
    assert run.tick(0.1).state == STOPPED
    assert run.resume()
    assert run.tick(0.15).state == HOLD


def test_when_the_clock_jumps_back_everything_is_dropped():
    run = make_runtime()
    give(run, 1, 100.0)
    run.tick(100.0)
    command = run.tick(3.0)
    assert (command.state, command.reasons, x_of(command)) == (HOLD, ("clock_jumped_back",), 0)
    assert run.tick(3.05).reasons == ("no_chunk",)


def test_a_dry_run_makes_commands_and_publishes_none():
    run = Runtime(limits=LIMITS, execute_horizon=8, policy_hz=HZ, enabled=False)
    give(run, 1)
    command = run.tick(0.0)
    assert (x_of(command), command.state, command.publish) == (1, RUN, False)


SMOOTH = SafetyLimits(max_acceleration=1.0)


def moving_runtime(**settings):
    """At full speed after 12 steps."""
    run = Runtime(limits=SMOOTH, execute_horizon=8, policy_hz=HZ, settings=RuntimeSettings(lead_steps=8, **settings))
    for n in range(12):
        give(run, 200, n * STEP)
        last = run.tick(n * STEP)
    return run, last


@pytest.mark.parametrize("how", ["reset", "resume"])
def test_a_robot_that_moves_is_braked_before_anything_begins_anew(how):
    run, last = moving_runtime()
    if how == "resume":
        run.stop("ood", abrupt=False)
        assert not run.resume()
    else:
        run.reset()
    moved = [last]
    for n in range(12, 30):
        command = run.tick(n * STEP)
        if command.publish:
            moved.append(command)
        assert command.state != RUN
    if how == "resume":
        assert run.resume()
    speeds = np.array([command.action[:3] for command in moved]) * HZ
    assert np.linalg.norm(np.diff(speeds, axis=0), axis=1).max() * HZ <= 1.0
    assert not speeds[-1].any()
    give(run, 200, 30 * STEP)
    first = run.tick(30 * STEP)
    assert first.state == RUN
    assert 0 < np.linalg.norm(first.action[:3]) * HZ * HZ <= 1.0  # from a standstill


def test_observations_from_before_a_new_beginning_are_not_acted_on():
    for begin in (Runtime.reset, Runtime.resume):
        run = make_runtime()
        begin(run)
        assert run.ask(1.0, stamp=0.9) is None
        assert run.ask(1.05, stamp=0.95) is None
        assert run.ask(1.1, stamp=1.0) is not None
    run = make_runtime()
    begin(run)
    run.tick(1.0), run.ask(1.0, stamp=0.9)
    run.tick(0.2)  # the clock jumped back
    assert run.ask(0.25, stamp=0.24) is not None


def test_enabling_after_a_dry_run_begins_where_the_robot_is():
    """Nobody did what the dry run came to: neither its speed nor its targets."""
    limits = SafetyLimits(max_acceleration=1.0, max_absolute_speed=(0.5,))
    settings = RuntimeSettings(lead_steps=8)
    run = Runtime(limits=limits, execute_horizon=8, policy_hz=HZ, settings=settings, enabled=False)
    for n in range(40):
        give(run, 200, n * STEP)
        run.tick(n * STEP, joints=np.array([0.0]))
    run.enable(True)
    assert not run.tick(40 * STEP, joints=np.array([0.0])).publish  # the plan of the dry run is gone
    give(run, 200, 41 * STEP)
    first = run.tick(41 * STEP, joints=np.array([0.0]))
    assert first.publish
    assert np.linalg.norm(first.action[:3]) * HZ * HZ <= 1.0
    assert first.action[6] <= 0.5 / HZ


# -- the monitor


def make_monitor(num_episodes=100, seed=0):
    rng = np.random.default_rng(seed)
    calibration = [monitor.episode_statistic(rng.chisquare(8, 30) / 8, 3) for _ in range(num_episodes)]
    unit = np.ones(8)
    return monitor.Monitor(np.zeros(8), unit, unit.astype(bool), np.eye(8), np.array(calibration))


def test_the_band_keeps_its_false_alarm_rate_and_says_when_it_cannot(tmp_path):
    rng, found = np.random.default_rng(1), []
    for seed in range(40):  # the promise holds over calibration sets
        band = make_monitor(seed=seed).band()
        fresh = np.array([monitor.episode_statistic(rng.chisquare(8, 30) / 8, 3) for _ in range(50)])
        found.append([(fresh > band[level]).mean() for level in monitor.LEVELS])
    rates = np.mean(found, axis=0)
    assert (rates <= np.array([0.2, 0.1, 0.02]) + 0.02).all()
    assert (rates > [0.15, 0.06, 0.005]).all()  # and is not bought with silence
    with pytest.raises(ValueError, match="needs 49"):
        make_monitor(num_episodes=30).band()
    kept = make_monitor()
    kept.save(tmp_path / "m.npz")
    features = rng.normal(size=(5, 8))
    again = monitor.Monitor.load(tmp_path / "m.npz")
    assert np.array_equal(again.score(features), kept.score(features))
    assert again.band() == kept.band()
    with pytest.raises(ValueError, match="8"):
        kept.score(np.zeros((2, 9)))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not an npz"])
def test_a_file_that_is_no_monitor_is_refused(content, tmp_path):
    (tmp_path / "m.npz").write_bytes(content)
    with pytest.raises(ValueError, match="no monitor"):
        monitor.Monitor.load(tmp_path / "m.npz")
    np.savez(tmp_path / "o.npz", **{name: np.array([object()]) for name in ("mean", "std", "alive", "whiten")})
    with pytest.raises(ValueError, match="no monitor"):
        monitor.Monitor.load(tmp_path / "o.npz")


def test_the_monitor_warns_slows_down_and_stops():
    gate = monitor.Gate({"warn": 2.0, "slow": 4.0, "stop": 8.0}, patience=2, slow_speed=0.5)
    run = make_runtime(execute_horizon=8, lead_steps=8, gate=gate)
    seen = []
    for n, score in enumerate([1, 3, 3, 5, 1, 5, 5, 9, 9]):
        give(run, 1, n * STEP, score=float(score))
        seen.append((run.tick(n * STEP).state, gate.level, gate.speed))
    assert [level for _, level, _ in seen] == ["ok", "ok", "warn", "warn", "ok", "ok", "slow", "slow", "stop"]
    assert seen[6][2] == 0.5
    assert seen[-1][0] == STOPPED  # latched
    assert run.counters["stop:ood"] == 1
    assert gate.update(float("nan")) == "stop"  # what cannot be scored is not known


@pytest.mark.parametrize("reason", ["ood", "estop"])
def test_only_an_operator_stops_the_arm_abruptly(reason):
    limits = SafetyLimits(max_acceleration=1.0, max_jerk=20.0)
    gate = monitor.Gate({"stop": 2.0}, patience=1)
    run = Runtime(limits=limits, execute_horizon=8, policy_hz=HZ, gate=gate, settings=RuntimeSettings(lead_steps=8))
    for n in range(12):
        give(run, 200, n * STEP)
        last = run.tick(n * STEP).action[:3]
    if reason == "ood":
        give(run, 200, 12 * STEP, score=9.0)
    else:
        run.estop(True)
    got = [run.tick((12 + n) * STEP) for n in range(20)]
    assert all(command.state == STOPPED for command in got)
    speeds = np.array([last, *[command.action[:3] for command in got]]) * HZ
    hardest = np.linalg.norm(np.diff(speeds, axis=0), axis=1).max() * HZ
    assert hardest <= 1.0 if reason == "ood" else hardest > 5.0
    assert not got[-1].action[:6].any()


def test_slow_is_the_same_path_in_more_time():
    gate = monitor.Gate({"slow": 4.0}, patience=1, slow_speed=0.5)
    run = make_runtime(gate=gate)
    give(run, 1, score=9.0)
    got = [run.tick(n * STEP) for n in range(16)]
    assert all(command.state == RUN for command in got)
    assert sum(command.action[0] for command in got) == pytest.approx(steps(1)[:, 0].sum())
    assert "ood:slow" in got[0].reasons


# -- everything together


LAYOUT = {"camera": IMAGE, "ee": spec.STATE}


def make_controller(policy=None, threaded=False, enabled=True, limits=None, streams=None, **settings):
    return Controller(
        policy or ProportionalPolicy(),
        streams or LAYOUT,
        limits=limits or SafetyLimits(workspace_low=(0.3, -0.4, 0.0), workspace_high=(0.7, 0.4, 0.5)),
        settings=RuntimeSettings(**settings),
        ee_position=EE_NAMES,
        enabled=enabled,
        threaded=threaded,
    )


def picture(value=128):
    return np.full((8, 6, 3), value, np.uint8)


def drive(controller, seconds, position, start=100.0, feed=("camera", "ee")):
    """The robot does what it is told; (commands, position)."""
    period, commands = 1 / controller.control_hz, []
    for n in range(round(seconds / period)):
        now = start + n * period
        if "camera" in feed:
            controller.receive("camera", now - 0.004, picture)
        if "ee" in feed:
            controller.receive("ee", now - 0.001, position.astype(np.float32))
        commands.append(controller.step(now))
        if commands[-1].publish:
            position = position + commands[-1].action[:3]
    return commands, position


@pytest.mark.parametrize("mode", scheduling.MODES)
@pytest.mark.parametrize("control_hz", [None, 200.0])
def test_the_loop_is_closed_and_reaches_the_goal(mode, control_hz):
    controller = make_controller(mode=mode, control_hz=control_hz, lead_steps=1)
    commands, position = drive(controller, 2.0, np.array([0.4, 0.1, 0.1]))
    assert np.abs(position - controller.policy.goal).max() < 1e-3
    assert {command.state for command in commands[2:]} == {RUN}
    assert commands[-1].stamp > 101.9
    controller.close()


@pytest.mark.parametrize("ee_delay", [0.001, 0.06])
def test_the_box_holds_where_pictures_and_poses_are_late(ee_delay):
    """What the robot was told since it was measured counts, whatever moment the observation is of."""
    controller = make_controller(ProportionalPolicy(goal=(0.4, 0.1, -5.0)), lead_steps=1, tolerance_s=0.06)
    places = [np.array([0.4, 0.1, 0.3])]
    for n in range(100):
        now = 100 + n / 50
        if n % 5 == 0:
            controller.receive("camera", now - 0.1, picture)
        before = places[max(0, len(places) - 1 - int(ee_delay * 50))]
        controller.receive("ee", now - ee_delay, before.astype(np.float32))
        command = controller.step(now)
        places.append(places[-1] + (command.action[:3] if command.publish else 0))
    assert min(place[2] for place in places) == pytest.approx(0.0, abs=1e-6)  # at the wall, and not through it
    controller.close()


def test_a_slow_policy_beside_the_loop_does_not_hold_it_up():
    controller = make_controller(ProportionalPolicy(delay_s=0.05), threaded=True, mode="real_time", lead_steps=None)
    durations, start = [], time.monotonic()
    while time.monotonic() - start < 1.0:
        now = time.monotonic()
        controller.receive("camera", now, picture)
        controller.receive("ee", now, np.array([0.4, 0.1, 0.1], np.float32))
        controller.step(time.monotonic())
        durations.append(time.monotonic() - now)
        time.sleep(0.02)
    assert np.median(durations) < 0.03  # never waits for the policy
    assert controller.counters["chunks"] > 3
    controller.close()


def test_everything_that_is_missing_is_listed_at_once():
    class Tasked(ProportionalPolicy):
        def __init__(self):
            super().__init__()
            self.spec.observation["task"] = spec.FeatureSpec((), "str", values=("lift", "push"))

    with pytest.raises(ValueError, match="cannot run") as caught:
        Controller(Tasked(), {"x": "observation.images.wrist"}, limits=SafetyLimits(absolute=(6, 7), low=None, high=None))
    text = str(caught.value)
    for word in (spec.STATE, IMAGE, "lift", "observation.images.wrist", "8 action entries"):
        assert word in text


@pytest.mark.parametrize(
    "limits",
    [
        {"joint_low": (-1.0,) * 7, "joint_high": (1.0,) * 7},
        {"max_absolute_speed": (1.0,)},
        {"workspace_low": (0, 0, 0), "workspace_high": (1, 1, 1)},
    ],
)
def test_limits_with_which_nothing_would_ever_move_are_refused(limits):
    with pytest.raises(ValueError, match=next(iter(limits)).split("_low")[0]):
        Controller(ProportionalPolicy(), LAYOUT, limits=SafetyLimits(**limits), ee_position=EE_NAMES[:2])


def test_the_same_seed_gives_the_decisions_of_the_chunk_executor():
    seeds = []

    class Noting(ProportionalPolicy):
        def sample(self, observation, num_samples=1, seed=None):
            seeds.append(seed)
            return super().sample(observation, num_samples, seed)

    from robopolicy.policies.wrappers import ChunkExecutor

    executor = ChunkExecutor(Noting(), seed=7)
    for _ in range(9):
        executor.act({IMAGE: picture(), spec.STATE: np.array([0.4, 0.1, 0.1], np.float32)})
    expected, seeds[:] = list(seeds), []
    controller = make_controller(Noting())
    controller.reset(seed=7)
    drive(controller, 9 / 50, np.array([0.4, 0.1, 0.1]))
    assert seeds[: len(expected)] == expected
    assert len(expected) == 3


def test_a_message_that_cannot_be_converted_or_does_not_fit_holds():
    controller = make_controller()
    _, position = drive(controller, 0.2, np.array([0.4, 0.1, 0.1]))

    def broken():
        raise ValueError("no image")

    for bad, stamp in ((broken, 100.25), (lambda: picture()[:, :3], 100.35), (lambda: np.full((8, 6, 3), np.nan), 100.45)):
        controller.receive("camera", stamp, bad)
        controller.receive("ee", stamp, position.astype(np.float32))
        states = [controller.step(stamp + n * 0.02) for n in range(4)]
        assert any("bad:camera" in command.reasons for command in states)
        assert states[-1].state == HOLD
        assert np.abs(states[-1].action[:3]).max() == 0
    controller.close()


@pytest.mark.parametrize("error", [KeyError("x"), IndexError(0), type("CvError", (Exception,), {})("assertion failed")])
def test_whatever_a_decoder_raises_holds_and_is_logged_once(error, caplog):
    controller = make_controller()

    def broken():
        raise error

    for n in range(30):
        controller.receive("camera", 100 + n / 50, broken)
        controller.receive("ee", 100 + n / 50, np.array([0.4, 0.1, 0.1], np.float32))
        assert "bad:camera" in controller.step(100 + n / 50).reasons
    assert [type(error).__name__ in record.getMessage() for record in caplog.records] == [True]
    controller.close()


def test_streams_that_cannot_be_joined_hold():
    controller = make_controller(streams={"camera": IMAGE, "x": spec.STATE, "y": spec.STATE})
    for name, value in (("camera", picture()), ("x", np.array(0.0)), ("y", np.array(1.0))):
        controller.receive(name, 100.0, value)
    assert controller.step(100.0).reasons == ("bad:x",)
    controller.close()


def test_one_stamp_from_the_future_does_not_silence_a_stream():
    controller = make_controller(lead_steps=1)
    _, position = drive(controller, 0.2, np.array([0.4, 0.1, 0.1]))
    controller.receive("camera", 1e6, picture)
    commands, _ = drive(controller, 0.4, position, start=100.2)
    assert {command.state for command in commands[3:]} == {RUN}
    assert controller.counters["from_the_future:camera"] == 1
    controller.close()


def test_a_policy_that_raises_anything_is_asked_again():
    class Moody(ProportionalPolicy):
        def sample(self, observation, num_samples=1, seed=None):
            if self.resets < 3:
                self.resets += 1
                raise KeyError("x")
            return super().sample(observation, num_samples, seed)

    controller, deadline = make_controller(Moody(), threaded=True), time.monotonic() + 10
    while controller.counters.get("chunks", 0) == 0 and time.monotonic() < deadline:
        now = time.monotonic()
        controller.receive("camera", now, picture)
        controller.receive("ee", now, np.array([0.4, 0.1, 0.1], np.float32))
        controller.step(now)
        time.sleep(0.005)
    assert controller.counters["policy_failed"] == 3
    assert controller.counters["chunks"] == 1
    controller.close()


def test_calls_that_wait_for_a_busy_policy_are_replaced():
    begun, go, seen = threading.Event(), threading.Event(), []

    class Busy:
        def sample(self, observation, num_samples, seed):
            seen.append(observation)
            begun.set()
            go.wait(5)
            return np.zeros((1, 1, 4, 7))

    inference = Inference(Busy())
    inference.submit(0, 0, 1, None)
    assert begun.wait(5)
    for n in range(1, 50):
        inference.submit(n, n, 1, None)
    assert inference._calls.qsize() == 1  # pictures do not pile up
    go.set()
    deadline = time.monotonic() + 5
    while len(seen) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    inference.close()
    assert seen == [0, 49]


def test_nothing_a_random_policy_says_leaves_the_limits():
    """The whole pipeline, all modes: random chunks, random scores, streams that come and go."""
    rng = np.random.default_rng(0)

    class Wild(ProportionalPolicy):
        def sample(self, observation, num_samples=1, seed=None):
            chunks = rng.normal(size=(1, num_samples, 4, 7)) * 10.0 ** rng.uniform(-4, 3)
            if rng.random() < 0.1:
                chunks[0, 0, rng.integers(4), rng.integers(7)] = rng.choice([np.nan, np.inf, 1e300])
            return chunks

    limits = SafetyLimits(workspace_low=(0.3, -0.4, 0.0), workspace_high=(0.7, 0.4, 0.5), max_acceleration=5.0, max_jerk=500.0)
    for mode in scheduling.MODES:
        controller = make_controller(Wild(), limits=limits, mode=mode, lead_steps=1, num_candidates=3, stop_after_s=None)
        position, sent = np.array([0.4, 0.1, 0.1]), []
        for n in range(300):
            now = 100 + n / 50
            if rng.random() < 0.9:
                controller.receive("camera", now - 0.004, picture)
            controller.receive("ee", now - 0.001, position)
            command = controller.step(now)
            if command.publish:
                sent.append(command.action)
                position = position + command.action[:3]
            assert (position >= np.array(limits.workspace_low) - 1e-6).all()
            assert (position <= np.array(limits.workspace_high) + 1e-6).all()
        sent = np.array(sent)
        assert len(sent) > 200
        assert np.isfinite(sent).all()
        assert np.linalg.norm(sent[:, :3], axis=1).max() <= 0.02
        assert np.linalg.norm(sent[:, 3:6], axis=1).max() <= 0.1
        assert np.linalg.norm(np.diff(sent[:, :3], axis=0), axis=1).max() * 50**2 <= 5.0 + 1e-6
        assert sent[:, 6].min() >= 0
        assert sent[:, 6].max() <= 1
