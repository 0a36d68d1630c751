"""Properties of domain randomisation: what is drawn, what is refused, how it grows."""

import json
from collections import Counter

import gymnasium
import numpy as np
import pytest

from robopolicy.sim.adaptive import AutomaticRandomization, linear
from robopolicy.sim.clutter import CLEARANCE, distractors
from robopolicy.sim.coverage import coverage
from robopolicy.sim.randomize import Parameter, RandomizationError, World, draw, nominal, parse, preset
from robopolicy.sim.scene import FIRST_BODY, Body
from robopolicy.sim.tasks import make_task, parameter_names, task_names
from robopolicy.sim.world import PARAMETERS, TWIN, camera, scene

PRESETS = ("narrow", "wide", "held_out", "twin")
LIFT = {**PARAMETERS, **make_task("lift").parameters}
OTHERS = parameter_names()
TOY = {
    "mass": Parameter(0.1, "kg", 0.01, 1.0),
    "colour": Parameter([0.5, 0.5, 0.5], low=0.0, high=1.0),
    "texture": Parameter(3.0, low=-1, high=9, whole=True),
    "gain": Parameter(1.0, low=0.0, high=10.0),
}


def drawn(distributions, around, num_worlds=1000, **options):
    return [draw(distributions, around, seed, **options) for seed in range(num_worlds)]


# ---- what is drawn


@pytest.mark.parametrize("name", PRESETS)
def test_a_thousand_worlds_cover_what_a_preset_declares(name):
    around = nominal(LIFT)
    distributions = parse(name, LIFT, around, OTHERS)
    worlds = drawn(distributions, around)
    found = coverage(worlds, distributions, around)
    assert found.problems == []
    assert found.correlation_bound < 0.18
    untouched = set(LIFT) - set(distributions)
    assert untouched
    assert all(world[key] == around[key] for world in worlds for key in untouched)
    assert around == nominal(LIFT)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda i, w: {"gain": w["gain"] + 0.0005 * i}, "gain drifts"),
        (lambda i, w: {"gain": 0.8 + 0.4 * w["colour"][1]}, "colour[1] and gain correlate"),
        (lambda i, w: {"mass": 1.3 * w["mass"]}, "mass: "),
        (lambda i, w: {"mass": 0.05 + (w["mass"] - 0.05) ** 2 / 0.15}, "mass is not distributed as log_uniform"),
        (lambda i, w: {"mass": 0.1}, "mass never varies"),
        (lambda i, w: {"texture": 5.0 if w["texture"] == 6 else w["texture"]}, "texture is not distributed as integers"),
    ],
)
def test_coverage_finds_what_is_wrong(spoil, problem):
    around = nominal(TOY)
    spec = {
        "mass": {"log_uniform": [0.5, 2.0], "op": "scale"},
        "colour": {"uniform": [0.0, 1.0]},
        "texture": {"integers": [0, 6]},
        "gain": {"uniform": [0.8, 1.2]},
    }
    distributions = parse(spec, TOY)
    worlds = drawn(distributions, around)
    assert coverage(worlds, distributions, around).problems == []
    spoilt = [{**world, **spoil(i, world)} for i, world in enumerate(worlds)]
    assert any(problem in found for found in coverage(spoilt, distributions, around).problems)


@pytest.mark.parametrize("env_id", ["robopolicy/Lift-v0", "robopolicy/LiftTwin-v0"])
def test_an_environment_draws_the_same_worlds(env_id):
    env = gymnasium.make(env_id, disable_env_checker=True, observation=("state",), randomization="wide").unwrapped
    around = nominal(LIFT, {key: value for key, value in TWIN.items() if key in LIFT} if "Twin" in env_id else {})
    distributions = parse("wide", LIFT, around, OTHERS)
    for seed in range(20):
        world = env.reset(seed=seed)[1]["randomization"]
        expected = draw(distributions, around, seed)
        assert all(world[key] == expected[key] for key in distributions)
        assert all(LIFT[key].low <= np.min(value) and np.max(value) <= LIFT[key].high for key, value in world.items())
    env.close()


def test_a_world_is_replayed_from_its_seed_whatever_came_before():
    around = nominal(LIFT)
    distributions = parse("wide", LIFT, around, OTHERS)
    first = draw(distributions, around, 2**40 + 7)
    draw(distributions, around, 3)
    assert draw(dict(reversed(distributions.items())), World(reversed(around.items())), 2**40 + 7) == first


def test_a_further_parameter_does_not_shift_the_others():
    few = parse({"light": {"ambient": {"uniform": [0, 1]}}}, PARAMETERS)
    more = parse({"light": {"ambient": {"uniform": [0, 1]}, "diffuse": {"uniform": [0, 1]}}}, PARAMETERS)
    around = nominal(PARAMETERS)
    assert draw(few, around, 7)["light.ambient"] == draw(more, around, 7)["light.ambient"]


def test_a_seed_draws_what_it_has_always_drawn():
    spec = {
        "mass": {"log_uniform": [0.5, 2.0], "op": "scale"},
        "colour": {"uniform": [0.0, 1.0]},
        "texture": {"integers": [0, 6]},
        "gain": {"normal": [0.0, 0.1], "op": "add"},
    }
    assert draw(parse(spec, TOY), nominal(TOY), 12) == {
        "mass": pytest.approx(0.05269777279426886, abs=1e-15),
        "colour": [0.7490310495902807, 0.7847545553246855, 0.7312027017176271],
        "texture": 1.0,
        "gain": 1.0288551760218474,
    }


def test_a_normal_is_cut_at_three_std_and_at_the_bounds():
    distributions = parse({"gain": {"normal": [1.0, 0.3]}, "mass": {"normal": [0.1, 0.1], "unit": "kg"}}, TOY)
    worlds = drawn(distributions, nominal(TOY), 3000)
    gain, mass = (np.array([world[name] for world in worlds]) for name in ("gain", "mass"))
    assert 0.85 < np.abs(gain - 1.0).max() <= 0.9
    assert np.unique(gain).size == 3000  # cut by drawing again, nothing piles up at the ends
    assert mass.min() == 0.01


def test_another_attempt_draws_afresh_and_leaves_the_rest():
    distributions = parse("wide", LIFT, None, OTHERS)
    around = nominal(LIFT)
    first = draw(distributions, around, 3)
    assert draw(distributions, around, 3, attempts={"object.mass": 0}) == first
    tries = [draw(distributions, around, 3, attempts={"object.mass": k}) for k in (1, 2)]
    assert len({world["object.mass"] for world in (first, *tries)}) == 3
    assert all({**world, "object.mass": first["object.mass"]} == first for world in tries)


# ---- levels


def test_levels_lead_from_the_nominal_world_to_the_whole_distribution():
    around = nominal(LIFT)
    distributions = parse("wide", LIFT, around, OTHERS)
    for seed in range(5):
        assert draw(distributions, around, seed, linear(distributions, done=0.0)) == around
        assert draw(distributions, around, seed, linear(distributions, done=1.0)) == draw(distributions, around, seed)
    half = drawn(distributions, around, 200, levels={"camera.fov": 0.5, "robot.time_constant": 0.5, "light.rgb": 0.25})
    whole = drawn(distributions, around, 200)
    fov, lag, light = (
        np.array([[world[name] for world in worlds] for worlds in (half, whole)])
        for name in ("camera.fov", "robot.time_constant", "light.rgb")
    )
    assert np.allclose(fov[0] - 48, (fov[1] - 48) / 2)
    assert np.allclose(np.log(lag[0] / 0.04), np.log(lag[1] / 0.04) / 2)  # ratios shrink in log space
    assert np.allclose(light[0], 1 + 0.25 * (light[1] - 1))
    assert [world["table.rgb"] for world in half] == [world["table.rgb"] for world in whole]


def test_a_level_is_how_often_a_discrete_parameter_is_randomised():
    distributions = parse({"texture": {"choice": [7, 8, 9]}}, TOY)
    kept = Counter(world["texture"] for world in drawn(distributions, nominal(TOY), 2000, levels={"texture": 0.3}))
    assert set(kept) == {3.0, 7.0, 8.0, 9.0}
    assert kept[3.0] / 2000 == pytest.approx(0.7, abs=0.04)


def test_the_two_sides_of_a_parameter_have_levels_of_their_own_and_edges():
    distributions = parse({"gain": {"uniform": [-0.5, 0.5], "op": "add"}, "colour": {"uniform": [0.0, 1.0]}}, TOY)
    gain = np.array([w["gain"] for w in drawn(distributions, nominal(TOY), 300, levels={"gain": [0.2, 1.0]})])
    assert 0.9 <= gain.min() < 0.91
    assert 1.48 < gain.max() <= 1.5
    worlds = drawn(distributions, nominal(TOY), 60, levels={"gain": [0.2, 1.0, "low"], "colour": [0.5, 1.0, "high"]})
    assert all(world["gain"] == pytest.approx(0.9) for world in worlds)
    at_edge = np.array([world["colour"] for world in worlds]) == 1.0
    assert (at_edge.sum(axis=1) == 1).all()
    assert at_edge.any(axis=0).all()


# ---- what is refused


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"object": {"szie": {"uniform": [0, 1]}}}, r"'object.szie': no such parameter; did you mean 'object.size'"),
        ({"object": {"mass": {"unifrm": [1, 2]}}}, r"'object.mass' has 'unifrm': give exactly one of choice, integers"),
        ({"object": {"mass": {}}}, r"'object.mass' has no family"),
        ({"object": {"mass": {"uniform": [0.1, 0.2], "untis": "kg"}}}, r"'untis': .* beside it only op, shared, unit, clip"),
        ({"object": {"mass": {"uniform": [0.2, 0.1], "unit": "kg"}}}, r"upside down; write \[0.1, 0.2\]"),
        (
            {"object": {"size": {"uniform": [15, 30], "unit": "mm"}}},
            r"unit 'mm', but it is in m: write \[0.015, 0.03\] with unit m",
        ),
        ({"camera": {"fov": {"uniform": [0.7, 0.9], "unit": "rad"}}}, r"in deg: write \[40.107, 51.5662\] with unit deg"),
        ({"object": {"mass": {"uniform": [0.1, 0.2], "unit": "m"}}}, r"unit 'm', but it is in kg: write the numbers in kg"),
        ({"light": {"ambient": {"uniform": [0.1, 0.2], "unit": "m"}}}, r"unit 'm', but it has none; leave it out"),
        ({"object": {"mass": {"uniform": [0.5, 2], "op": "scale", "unit": "kg"}}}, r"ratios without a unit; leave it out"),
        ({"object": {"mass": {"uniform": [1, 2, 3]}}}, r"has 3 arguments; give two, \[low, high\]"),
        ({"object": {"mass": {"normal": [1]}}}, r"has 1 arguments; give two, \[mean, std\]"),
        ({"object": {"mass": {"normal": [1, -1]}}}, r"negative std"),
        ({"object": {"mass": {"uniform": ["a", 2]}}}, r"give a list of numbers"),
        ({"object": {"mass": {"uniform": [0.1, float("nan")]}}}, r"give a list of numbers"),
        ({"object": {"mass": {"uniform": 2}}}, r"give a list of numbers"),
        ({"object": {"texture": {"choice": []}}}, r"nothing to choose from"),
        ({"object": {"mass": {"log_uniform": [0, 1]}}}, r"needs bounds above 0"),
        ({"distractors": {"count": {"integers": [0, 2.5]}}}, r"give whole numbers, such as \[0, 2\]"),
        ({"distractors": {"count": {"uniform": [0, 2]}}}, r"it is a whole number; use integers or choice"),
        (
            {"table": {"texture": {"integers": [-1, 99]}}},
            r"'table.texture': .* draws -1 .. 99, which leaves its bounds -1 .. 47",
        ),
        ({"object": {"mass": {"uniform": [-1, 2], "op": "scale"}}}, r"ratios of both signs; use op: add"),
        (
            {"object": {"rgb": {"uniform": [-0.3, 0.3], "op": "add"}}},
            r"draws -0.2 .. 1.15, which leaves its bounds 0 .. 1; .*clip",
        ),
        ({"object": {"mass": {"normal": [9, 1]}}}, r"leaves its bounds 0.005 .. 5 kg"),
        ({"object": {"mass": {"uniform": [1, 2], "op": "times"}}}, r"op='times'; use one of add, scale, set"),
        ({"object": {"mass": {"uniform": [1, 2], "shared": "yes"}}}, r"shared='yes'; give true or false"),
        ({"light": {"ambient": 0.3, "diffuse": {"uniform": [0, 1]}}}, r"'light.ambient' is 0.3: give a mapping"),
        ({"optional": "object"}, r"optional: 'object'; give true or false"),
        ("wid", r"did you mean 'wide'"),
        (["wide"], r"give the name of a preset or a mapping"),
    ],
)
def test_a_mistake_is_named_with_what_would_work(node, message):
    with pytest.raises(RandomizationError, match=message):
        parse(node, LIFT, None, OTHERS)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"camera.fvo": 40}, r"did you mean 'camera.fov'"),
        ({"camera.position": [1.0, 0.0]}, r"give a list of 3 numbers, such as \[0.98, 0.0, 0.56\]"),
        ({"camera.position": 1.0}, r"give a list of 3 numbers"),
        ({"camera.fov": [48.0]}, r"give one number, such as 48.0"),
        ({"camera.fov": "wide"}, r"give one number"),
        ({"camera.fov": 400}, r"camera.fov=400 leaves its bounds 10 .. 120 deg"),
        ({"table.texture": 1.5}, r"give whole numbers"),
    ],
)
def test_a_nominal_world_is_checked(override, message):
    with pytest.raises(RandomizationError, match=message):
        nominal(PARAMETERS, override)
    assert nominal(PARAMETERS, {"camera.fov": 30}, {"camera.fov": np.float32(50)})["camera.fov"] == 50.0


@pytest.mark.parametrize(
    "levels", [{"objct.mass": 0.5}, {"object.mass": 1.5}, {"object.mass": [0.5, 1, "top"]}, {"object.mass": "a"}]
)
def test_levels_are_checked(levels):
    with pytest.raises(RandomizationError, match=r"objct.mass.*object.mass|level of 'object.mass'"):
        draw(parse("wide", LIFT, None, OTHERS), nominal(LIFT), 0, levels)


def test_a_range_is_checked_around_the_world_it_is_used_in():
    node = {"mass": {"uniform": [0.5, 2.0], "op": "scale"}}
    parse(node, TOY)
    with pytest.raises(RandomizationError, match=r"around 0.6 draws 0.3 .. 1.2, which leaves its bounds 0.01 .. 1 kg"):
        parse(node, TOY, nominal(TOY, {"mass": 0.6}))
    clipped = parse({"mass": {**node["mass"], "clip": True}}, TOY, nominal(TOY, {"mass": 0.6}))
    assert max(world["mass"] for world in drawn(clipped, nominal(TOY, {"mass": 0.6}), 100)) == 1.0


def test_presets_skip_what_a_task_lacks_and_users_are_told():
    found = parse("wide", PARAMETERS, None, OTHERS)
    assert set(parse("wide", LIFT, None, OTHERS)) - set(found) == {
        name for name in OTHERS if name in parse("wide", LIFT, None, OTHERS)
    }
    with pytest.raises(RandomizationError, match=r"this task has none; leave it out, or write optional: true"):
        parse({"object": {"mass": {"uniform": [0.1, 0.2]}}}, PARAMETERS, None, OTHERS)
    with pytest.raises(RandomizationError, match=r"no such parameter"):  # what no task has is a mistake in a preset too
        parse({"optional": True, "object": {"mas": {"uniform": [0.1, 0.2]}}}, PARAMETERS, None, OTHERS)


# ---- presets and the world they make


def test_presets_say_the_unit_of_every_number_that_has_one():
    parameters = {name: parameter for task in task_names() for name, parameter in make_task(task).parameters.items()}
    parameters |= PARAMETERS
    for name in PRESETS:
        for parameter, node in _entries(preset(name)):
            unit = parameters[parameter].unit
            assert node.get("op") == "scale" or node.get("unit", "") == unit, (name, parameter)


def _entries(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict) and any(isinstance(v, dict) for v in value.values()):
            yield from _entries(value, f"{prefix}{key}.")
        elif isinstance(value, dict):
            yield f"{prefix}{key}", value


@pytest.mark.parametrize("task", task_names())
@pytest.mark.parametrize("twin", [False, True])
def test_every_preset_suits_every_task_in_both_simulators(task, twin):
    parameters = {**PARAMETERS, **make_task(task).parameters}
    around = nominal(parameters, {key: value for key, value in TWIN.items() if twin and key in parameters})
    for name in ("none", *PRESETS):
        parse(name, parameters, around, OTHERS)


def test_wide_leaves_nothing_out_and_held_out_repeats_nothing():
    wide, held_out = preset("wide"), preset("held_out")
    left = {*PARAMETERS, *OTHERS} - {name for name, _ in _entries(wide)}
    initial = {name for task in task_names() for name in parse(make_task(task).initial, make_task(task).parameters)}
    assert left - initial == {"robot.disturbance", "distractors.textures"}
    same = [name for name, node in _entries(held_out) if node == dict(_entries(wide)).get(name)]
    assert same == ["object.rgb", "distractors.count", "sensor.calibration_rotation", "sensor.image_motion_angle"]
    worlds = drawn(parse("held_out", LIFT, None, OTHERS), nominal(LIFT), 50)
    textures = [world[key] for world in worlds for key in ("background.texture", "object.texture", "distractors.textures")]
    assert min(np.min(texture) for texture in textures) >= 24


def test_the_twin_is_later_and_slower():
    twin = nominal(LIFT, TWIN)
    assert twin["robot.action_delay"] > 0
    assert twin["sensor.delay"] > 0
    assert twin["robot.rate"] != 1


def test_distractors_stand_on_the_table_clear_of_all_else():
    around = nominal(PARAMETERS, {"distractors.count": 6, "distractors.shapes": [1, 1, 1], "table.height": 0.01})
    cabinet = Body.box("cabinet", (0.1, 0.06, 0.05), 0.0, (0.5, 0.3, 0.06))
    kinds, seen = Counter(), []
    for seed in range(60):
        bodies = scene(around, (cabinet,), seed).bodies[1:]
        kinds.update(body.shapes[0].kind for body in bodies)
        seen.append(len(bodies))
        for i, body in enumerate(bodies):
            assert body.position[2] - body.shapes[0].size[2] == pytest.approx(0.01)
            for other in bodies[:i]:
                apart = np.linalg.norm(np.subtract(body.position, other.position)[:2])
                assert apart >= body.shapes[0].size[0] + other.shapes[0].size[0] + CLEARANCE
            assert np.linalg.norm(np.subtract(body.position, cabinet.position)[:2]) >= 0.12 + CLEARANCE
    assert np.mean(seen) > 4.5
    assert min(kinds.values()) > 60
    few = distractors(nominal(PARAMETERS, {"distractors.count": 2}), (), 5)
    many = distractors(nominal(PARAMETERS, {"distractors.count": 5}), (), 5)
    assert few == many[:2]
    assert len(few) + FIRST_BODY < 255


def test_cameras_follow_their_parameters():
    around, T = nominal(PARAMETERS), np.eye(4)
    moved = {"wrist.position": [0.01, 0.0, -0.02], "wrist.fov": 70.0, "wrist.center": [0.4, 0.6], "camera.center": [0.6, 0.5]}
    before, after = (camera("wrist", nominal(PARAMETERS, given), T, 64) for given in ({}, moved))
    assert np.allclose(after.T_base_cam[:3, 3] - before.T_base_cam[:3, 3], [0.01, 0.0, -0.02])
    assert (after.fov_deg, after.center, before.center) == (70.0, (0.4, 0.6), (0.5, 0.5))
    assert camera("front", nominal(PARAMETERS, moved), T, 64).center == (0.6, 0.5)
    turned = camera("wrist", nominal(PARAMETERS, {"wrist.rotation": [0.0, 0.0, 0.1]}), T, 64).T_base_cam
    angle = np.arccos((np.trace(turned[:3, :3] @ before.T_base_cam[:3, :3].T) - 1) / 2)
    assert angle == pytest.approx(0.1)
    assert camera("front", around, T, 64).T_base_cam_believed == pytest.approx(camera("front", around, T, 64).T_base_cam)


# ---- randomisation that grows


def trained(success, distributions, around, num_episodes, **settings):
    adr, rng = AutomaticRandomization.around(distributions, around, **settings), np.random.default_rng(0)
    for seed in range(num_episodes):
        proposal = adr.propose(rng)
        adr.record(proposal, success(draw(distributions, around, seed, proposal.levels)))
    return adr


def test_adaptive_ranges_settle_where_success_ends():
    spec = {"gain": {"uniform": [-0.5, 0.5], "op": "add"}, "mass": {"log_uniform": [0.25, 4.0], "op": "scale"}}
    distributions, around = parse(spec, TOY), nominal(TOY)
    adr = trained(lambda w: 0.85 < w["gain"] < 1.3 and w["mass"] < 0.2, distributions, around, 6000)
    assert adr.levels["gain"] == pytest.approx([0.3, 0.6], abs=0.051)  # within one step of the bound
    assert adr.levels["mass"] == pytest.approx([1.0, 0.5], abs=0.051)  # log 2 of log 4


def test_adaptive_ranges_grow_to_the_whole_distribution_and_go_on_from_json():
    spec = {"colour": {"uniform": [0.2, 0.9]}, "texture": {"choice": [1, 2]}, "gain": {"uniform": [1.0, 1.5]}}
    distributions, around = parse(spec, TOY), nominal(TOY)
    settings = {"step": 0.2, "buffer": 5, "boundary_share": 0.8}
    adr = trained(lambda w: True, distributions, around, 400, **settings)
    assert adr.levels == {"colour": [1.0, 1.0], "texture": [1.0, 1.0], "gain": [1.0, 1.0]}
    half, copy = (trained(lambda w: True, distributions, around, 60, **settings) for _ in range(2))
    copy = AutomaticRandomization(**json.loads(json.dumps(copy.state())))
    for which in (half, copy):
        rng = np.random.default_rng(1)
        for _ in range(100):
            which.record(which.propose(rng), 0.0)
    assert half.state() == copy.state()
    assert half.levels != adr.levels


def test_middling_success_moves_no_boundary():
    spec = {"gain": {"uniform": [-0.5, 0.5], "op": "add"}}
    distributions, rng = parse(spec, TOY), np.random.default_rng(0)
    adr = trained(lambda w: rng.random() < 0.6, distributions, nominal(TOY), 2000, start=0.5, buffer=100)
    assert adr.levels == {"gain": [0.5, 0.5]}
    with pytest.raises(RandomizationError, match="shrink < expand"):
        AutomaticRandomization({}, {}, expand=0.3)


def test_a_linear_curriculum_reaches_its_end_and_stays():
    assert linear(["a", "b"], 0.25, first=0.2, until=0.5) == {"a": pytest.approx(0.6), "b": pytest.approx(0.6)}
    assert linear(["a"], 0.9, until=0.5) == {"a": 1.0}
