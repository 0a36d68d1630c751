"""Properties of the simulated camera: every effect does what it says, in the units it says."""

import cv2
import numpy as np
import pytest

from robopolicy.sim.camera import deproject, noisy_depth
from robopolicy.sim.photometry import noisy_image, normals
from robopolicy.sim.randomize import draw, nominal, parse
from robopolicy.sim.scene import Camera
from robopolicy.sim.tasks import parameter_names
from robopolicy.sim.world import PARAMETERS


def grey(level, size=84):
    return np.full((size, size, 3), level, np.uint8)


def taken(rgb, seed=0, **parameters):
    """The image under parameters sensor.image_*."""
    world = nominal(PARAMETERS, {f"sensor.image_{name}": value for name, value in parameters.items()})
    return noisy_image(rgb, world, np.random.default_rng(seed))


def test_a_perfect_camera_changes_nothing():
    rgb = np.random.default_rng(0).integers(0, 256, (60, 84, 3), np.uint8)
    assert np.array_equal(taken(rgb), rgb)


def test_an_image_follows_from_world_and_generator():
    rgb = np.random.default_rng(0).integers(0, 256, (84, 84, 3), np.uint8)
    wide = parse("wide", PARAMETERS, None, parameter_names())
    world = draw(wide, nominal(PARAMETERS), 3)
    a, b, c = (noisy_image(rgb, world, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert a.dtype == np.uint8
    assert a.shape == rgb.shape
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_exposure_scales_the_light_and_saturates():
    assert (taken(grey(100), brightness=0.5) == 50).all()
    assert (taken(grey(200), brightness=1.5) == 255).all()


def test_noise_has_the_declared_std_and_shot_noise_grows_with_the_root_of_the_light():
    for level in (64, 144):
        read = taken(grey(level, 200), noise=0.02).astype(float)
        shot = taken(grey(level, 200), shot_noise=0.04).astype(float)
        assert read.mean() == pytest.approx(level, abs=0.2)
        assert read.std() == pytest.approx(np.hypot(5.1, 0.29), rel=0.02)
        assert shot.std() == pytest.approx(255 * 0.04 * np.sqrt(level / 255), rel=0.02)
    both = taken(grey(144, 200), noise=0.02, shot_noise=0.04).astype(float)
    assert both.std() == pytest.approx(np.hypot(5.1, 255 * 0.04 * np.sqrt(144 / 255)), rel=0.02)
    first, second = (taken(grey(100), seed, noise=0.05).ravel().astype(float) for seed in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.03


def test_noise_of_bytes_is_standard_normal():
    z = normals(np.random.default_rng(0), (50, 50, 41))
    assert z.shape == (50, 50, 41)
    assert z.mean() == pytest.approx(0, abs=0.01)
    assert z.std() == pytest.approx(1, abs=0.01)
    assert (z**4).mean() == pytest.approx(3, abs=0.1)  # the kurtosis of a normal, its far tails cut


def test_motion_smears_along_its_angle_only():
    point = np.zeros((41, 41, 3), np.uint8)
    point[20, 20] = 255
    for angle in (0.0, 0.7, np.pi / 2):
        light = taken(point, motion_blur=9.0, motion_angle=angle, brightness=5.0)[..., 0].astype(float)
        y, x = (offset - 20 for offset in np.mgrid[:41, :41])
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        assert np.sqrt((light * along**2).sum() / light.sum()) == pytest.approx(9 / np.sqrt(12), rel=0.12)
        assert np.sqrt((light * across**2).sum() / light.sum()) < 0.6
        assert abs((light * x).sum() / light.sum()) < 0.1


def test_vignette_darkens_the_corners_and_blur_keeps_the_mean():
    dark = taken(grey(200), vignette=0.4)
    assert dark[42, 42, 0] == pytest.approx(200, abs=1)
    assert dark[0, 0, 0] == pytest.approx(120, abs=1)
    edge = grey(50)
    edge[:, 42:] = 150
    soft = taken(edge, blur=2.0)[40, :, 0].astype(float)
    assert soft.mean() == pytest.approx(100, abs=0.5)
    slope = np.diff(soft).max()
    assert slope == pytest.approx(100 / np.sqrt(2 * np.pi) / 2.0, rel=0.1)


def test_colour_keeps_grey_but_for_white_balance():
    assert (taken(grey(120), saturation=0.3, hue=0.5) == 120).all()
    assert taken(grey(100), gains=[1.2, 1.0, 0.5])[0, 0].tolist() == [120, 100, 50]
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 200
    assert len(set(taken(red, saturation=0.0)[0, 0].tolist())) == 1
    turned = taken(red, hue=2 * np.pi / 3)[0, 0]
    assert turned.tolist() == [0, 200, 0]  # a third of the way round, red is green


def test_tone_turns_about_middle_grey_and_keeps_black_and_white():
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    flat = taken(ramp, contrast=0.5)[0, :, 0]
    assert flat[[0, 255]].tolist() == [64, 191]
    assert abs(int(flat[127]) - 127) <= 1
    dark = taken(ramp, gamma=2.0)[0, :, 0]
    assert dark[[0, 128, 255]].tolist() == [0, 64, 255]


def test_jpeg_loses_more_at_lower_quality_and_keeps_channels_apart():
    rgb = cv2.resize(np.random.default_rng(0).integers(0, 256, (10, 10, 3), np.uint8), (84, 84), interpolation=cv2.INTER_CUBIC)
    losses = [np.abs(taken(rgb, jpeg=q).astype(float) - rgb).mean() for q in (95, 60, 20)]
    assert 0 < losses[0] < losses[1] < losses[2] < 12
    red = grey(0)
    red[..., 0] = 220
    assert taken(red, jpeg=90)[40, 40].astype(int).tolist() == pytest.approx([220, 0, 0], abs=4)


def test_depth_is_scaled_noisy_and_lost_at_edges_first():
    depth = np.full((120, 120), 0.8, np.float32)
    depth[:, 60:] = 1.2
    depth[:10] = 0.0
    given = {"sensor.depth_scale": 1.01, "sensor.depth_noise": 0.003}
    out = noisy_depth(depth, nominal(PARAMETERS, given), np.random.default_rng(0))
    assert (out[:10] == 0).all()
    for columns, d in ((slice(0, 60), 0.8), (slice(60, 120), 1.2)):
        assert out[10:, columns].mean() == pytest.approx(1.01 * d, abs=2e-4)
        assert out[10:, columns].std() == pytest.approx(0.003 * (1.01 * d) ** 2, rel=0.05)
    given = {"sensor.depth_dropout": 0.1, "sensor.depth_edge_dropout": 0.5}
    lost = noisy_depth(depth, nominal(PARAMETERS, given), np.random.default_rng(0))[12:] == 0
    assert lost[:, 59:61].mean() == pytest.approx(0.55, abs=0.1)
    assert lost[:, :58].mean() == pytest.approx(0.1, abs=0.01)
    assert np.array_equal(noisy_depth(depth, nominal(PARAMETERS), np.random.default_rng(0)), depth)


def test_deprojection_follows_the_principal_point():
    camera = Camera("front", np.eye(4), 60.0, 100, 50, center=(0.6, 0.4))
    points = deproject(np.full((50, 100), 2.0, np.float32), camera)
    assert points[20, 60] == pytest.approx([0.5 / camera.focal * 2, 0.5 / camera.focal * 2, 2.0])
