"""The rasteriser against PyBullet's TinyRenderer and against geometry that is known exactly."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pybullet
import pybullet_data
import pytest
from pybullet_utils.bullet_client import BulletClient
from scipy.spatial.transform import Rotation

from robopolicy.sim.meshes import panda_visuals, shape_mesh
from robopolicy.sim.raster import Part, Rasterizer
from robopolicy.sim.scene import BACKGROUND, FIRST_BODY, ROBOT, TABLE, Body, Camera, Light, Scene, Shape, look_at
from robopolicy.sim.textures import NUM_TEXTURES, texture_bank

JOINTS = (0.0, -0.3, 0.0, -2.2, 0.0, 1.95, 0.785)
BODIES = (
    Body.box("red", (0.03, 0.03, 0.03), 0.1, (0.5, 0.18, 0.03)),
    Body.box("green", (0.05, 0.03, 0.04), 0.1, (0.62, -0.12, 0.04), (0.0, 0.0, 0.247, 0.969), rgb=(0.1, 0.6, 0.2)),
)
SCENE = Scene(bodies=BODIES, robot_joints=JOINTS)


ROUND = (
    Body("can", (Shape("cylinder", (0.04, 0.04, 0.06), rgb=(0.2, 0.3, 0.8)),), 0.1, (0.62, 0.2, 0.06), (0.0, 0.26, 0.0, 0.966)),
    Body("ball", (Shape("sphere", (0.05, 0.05, 0.05), rgb=(0.9, 0.8, 0.1)),), 0.1, (0.7, -0.02, 0.05)),
)


def camera(size, eye=(1.2, -0.7, 0.8), target=(0.3, 0.0, 0.3), fov_deg=50.0):
    return Camera("front", look_at(np.array(eye), np.array(target)), fov_deg, size, size)


def pose(position, quaternion=(0.0, 0.0, 0.0, 1.0)):
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = Rotation.from_quat(quaternion).as_matrix(), position
    return T


def drawing(bodies, scene=SCENE, visuals=(), **options):
    """A rasterizer of the robot's visuals, frame i of visual i, and then of the bodies."""
    arm = [Part(v.mesh, i, ROBOT, v.rgb) for i, v in enumerate(visuals)]
    shapes = [(len(arm) + i, FIRST_BODY + i, shape) for i, body in enumerate(bodies) for shape in body.shapes]
    return Rasterizer(arm + [Part(shape_mesh(s), i, k, s.rgb, s.texture) for i, k, s in shapes], scene, **options)


def at(*bodies):
    """Poses [n, 7] of bodies."""
    return np.array([[*body.position, *body.quaternion] for body in bodies]).reshape(-1, 7)


def render_boxes(bodies, view, scene=SCENE, rgb=True, **options):
    return drawing(bodies, scene, **options).render(at(*bodies), view, rgb=rgb)


def points_on(body, frame, view):
    """The points [H, W, 3] that the depth image shows, in the frame of `body`."""
    row, column = np.mgrid[: view.height, : view.width] + 0.5
    ray = np.stack([(column - view.width / 2) / view.focal, (row - view.height / 2) / view.focal, np.ones_like(row)], axis=-1)
    T_body_cam = np.linalg.inv(pose(body.position, body.quaternion)) @ view.T_base_cam
    return (ray * frame.depth[..., None]) @ T_body_cam[:3, :3].T + T_body_cam[:3, 3]


def pixel_of(view, point):
    x, y, z = (np.linalg.inv(view.T_base_cam) @ [*point, 1.0])[:3]
    return int(view.height / 2 + view.focal * y / z), int(view.width / 2 + view.focal * x / z)


@pytest.fixture
def bullet():
    client = BulletClient(pybullet.DIRECT)
    yield client
    client.disconnect()


@pytest.fixture
def panda(bullet):
    arm = bullet.loadURDF(pybullet_data.getDataPath() + "/franka_panda/panda.urdf", useFixedBase=True)
    for joint, angle in [*enumerate(JOINTS), (9, 0.04), (10, 0.02)]:
        bullet.resetJointState(arm, joint, angle)
    return arm


def link_poses(bullet, arm, links):
    states = {link: bullet.getLinkState(arm, link, computeForwardKinematics=1) for link in links if link >= 0}
    return np.array([states[link][4] + states[link][5] if link >= 0 else (0, 0, 0, 0, 0, 0, 1) for link in links])


def tiny_renderer(bullet, view):
    """Segmentation (PyBullet's body ids) and metric depth of TinyRenderer.

    It samples a pixel at its corner; the projection is shifted by half a pixel so that it samples the centre.
    """
    T = np.diag([1.0, -1.0, -1.0, 1.0]) @ np.linalg.inv(view.T_base_cam)
    projection = list(bullet.computeProjectionMatrixFOV(view.fov_deg, view.width / view.height, view.near, view.far))
    projection[8] += 1 / view.width
    projection[9] += 1 / view.height
    image = bullet.getCameraImage(view.width, view.height, T.T.reshape(-1), projection, renderer=bullet.ER_TINY_RENDERER)
    z = np.asarray(image[3], float).reshape(view.height, view.width)
    segmentation = np.asarray(image[4]).reshape(view.height, view.width)
    return segmentation, view.far * view.near / (view.far - (view.far - view.near) * z)


def render_world(bullet, arm, view, bodies=BODIES, **options):
    visuals = panda_visuals()
    poses = np.concatenate([link_poses(bullet, arm, [v.link for v in visuals]), at(*bodies)])
    return drawing(bodies, visuals=visuals, **options).render(poses, view)


T_HAND_WRIST = look_at(np.array([0.075, 0.0, -0.10]), np.array([0.01, 0.0, 0.02]))  # behind the fingers, looking along them


def views(bullet, arm):
    hand = link_poses(bullet, arm, [11])[0]
    wrist = Camera("wrist", pose(hand[:3], hand[3:]) @ T_HAND_WRIST, 60, 96, 96, near=0.015)
    return [*(camera(96, eye=eye) for eye in ((1.2, -0.7, 0.8), (1.05, 0.0, 0.65), (0.1, 0.9, 0.5))), wrist]


@pytest.mark.parametrize("view_index", range(4))
def test_agrees_with_tiny_renderer(bullet, panda, view_index):
    view = views(bullet, panda)[view_index]
    ids = {panda: ROBOT}
    slab = bullet.createVisualShape(bullet.GEOM_BOX, halfExtents=[0.6, 0.6, 0.02])
    ids[bullet.createMultiBody(0, -1, slab, [0.5, 0, -0.02])] = TABLE
    bodies = BODIES + ROUND
    for i, body in enumerate(bodies):
        kind = {"box": bullet.GEOM_BOX, "cylinder": bullet.GEOM_CYLINDER, "sphere": bullet.GEOM_SPHERE}[body.shapes[0].kind]
        size = body.shapes[0].size
        shape = bullet.createVisualShape(kind, halfExtents=size, radius=size[0], length=2 * size[2])
        ids[bullet.createMultiBody(0, -1, shape, body.position, body.quaternion)] = FIRST_BODY + i
    reference, reference_depth = tiny_renderer(bullet, view)
    frame = render_world(bullet, panda, view, bodies)

    expected = np.vectorize(lambda n: ids.get(n, BACKGROUND))(reference)
    assert (frame.segmentation == expected).mean() >= 0.99
    seen = [ROBOT] + [FIRST_BODY + i for i in range(len(bodies)) if (expected == FIRST_BODY + i).sum() > 20]
    assert len(seen) >= 2, "the view must show what is compared"
    for label in seen:
        ours, theirs = frame.segmentation == label, expected == label
        both = ours & theirs
        overlap, depth_error = 0.98, 1e-4
        if label == ROBOT:
            overlap, depth_error = 0.97, 0.001
        elif label >= FIRST_BODY + len(BODIES):  # TinyRenderer's balls have corners
            overlap, depth_error = 0.9, 0.003
        assert both.sum() >= overlap * (ours | theirs).sum(), label
        assert np.median(np.abs(frame.depth - reference_depth)[both]) < depth_error, label


def test_link_indices_are_pybullets(bullet, panda):
    visual_links = {v.link for v in panda_visuals()}
    assert visual_links == {shape[1] for shape in bullet.getVisualShapeData(panda)}
    for link in visual_links:
        vertices = np.concatenate([v.mesh.vertices for v in panda_visuals() if v.link == link])
        name = bullet.getJointInfo(panda, link)[12].decode() if link >= 0 else bullet.getBodyInfo(panda)[0].decode()
        if "finger" in name:  # the right finger's visual is the left one's turned by half a turn
            assert np.sign(vertices[:, 1].mean()) == (1 if "left" in name else -1)


def test_panda_meshes_are_sound():
    for visual in panda_visuals():
        mesh = visual.mesh
        assert mesh.faces.min() == 0
        assert mesh.faces.max() == len(mesh.vertices) - 1
        np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-3)
        a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
        outward = np.cross(b - a, c - a)
        assert (np.einsum("fi,fi->f", outward, mesh.normals[mesh.faces[:, 0]]) > 0).mean() > 0.999
    assert sum(len(v.mesh.faces) for v in panda_visuals()) < 8000


def test_box_faces_look_outwards():
    mesh = shape_mesh(Shape("box", (0.1, 0.2, 0.3)))
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    normal = np.cross(b - a, c - a)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    np.testing.assert_allclose(normal, mesh.normals[mesh.faces[:, 0]], atol=1e-6)
    assert (np.einsum("fi,fi->f", normal, a) > 0).all()
    np.testing.assert_allclose(np.abs(mesh.vertices).max(axis=0), (0.1, 0.2, 0.3), rtol=1e-6)


def test_depth_of_a_box_and_of_the_table_are_exact():
    T_base_cam = np.eye(4)
    T_base_cam[:3, :3], T_base_cam[:3, 3] = np.diag([1.0, -1.0, -1.0]), (0.5, 0.0, 1.0)
    frame = render_boxes([Body.box("b", (0.1, 0.05, 0.04), 0, (0.5, 0, 0.04))], Camera("down", T_base_cam, 60, 100, 80))
    top = frame.segmentation == FIRST_BODY
    np.testing.assert_allclose(frame.depth[top], 0.92, atol=1e-5)
    np.testing.assert_allclose(frame.depth[frame.segmentation == TABLE], 1.0, atol=1e-5)
    focal = 40 / np.tan(np.radians(30))
    assert top.any(axis=0).sum() == pytest.approx(0.2 / 0.92 * focal, abs=1)
    assert top.any(axis=1).sum() == pytest.approx(0.1 / 0.92 * focal, abs=1)


def test_depth_back_projects_onto_the_surface():
    view = camera(96, eye=(1.0, 0.3, 0.5), target=(0.5, 0, 0.1))
    half = np.array((0.08, 0.1, 0.12))
    body = Body.box("b", tuple(half), 0, (0.5, 0, 0.15), tuple(Rotation.from_rotvec([0.3, 0.4, 0.5]).as_quat()))
    frame = render_boxes([body], view)
    local = points_on(body, frame, view)[frame.segmentation == FIRST_BODY]
    assert len(local) > 500
    np.testing.assert_allclose(np.max(np.abs(local) - half, axis=1), 0, atol=1e-3)


@pytest.mark.parametrize("body", ROUND, ids=lambda body: body.name)
def test_round_shapes_are_round(body):
    mesh = shape_mesh(body.shapes[0])
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    outward = np.cross(b - a, c - a)
    assert (np.linalg.norm(outward, axis=1) > 0).all()
    assert (np.einsum("fi,fi->f", outward, mesh.normals[mesh.faces].mean(axis=1)) > 0).all()
    np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-6)
    assert np.ptp(mesh.uv[mesh.faces], axis=1).max() < 1.01, "no face runs across the seam of the texture"

    view = camera(96, eye=(1.0, 0.3, 0.5), target=body.position, fov_deg=20)
    frame = render_boxes([body], view)
    local = points_on(body, frame, view)[frame.segmentation == FIRST_BODY]
    assert len(local) > 1000
    size = np.array(body.shapes[0].size)
    if body.shapes[0].kind == "sphere":
        radius = np.linalg.norm(local, axis=1) / size[0]
    else:
        radius = np.maximum(np.linalg.norm(local[:, :2], axis=1) / size[0], np.abs(local[:, 2]) / size[2])
    assert radius.max() < 1.001
    assert radius.min() > 0.98


def test_principal_point_moves_the_picture():
    middle = render_boxes(BODIES, camera(64))
    moved = render_boxes(BODIES, replace(camera(64), center=(0.5 + 8 / 64, 0.5 - 4 / 64)))
    for name in ("rgb", "depth", "segmentation"):
        difference = np.abs(getattr(moved, name)[:-4, 8:].astype(float) - getattr(middle, name)[4:, :-8])
        assert (difference > 1e-3 + (name == "rgb")).mean() < 0.01


def test_what_reaches_behind_the_camera_is_cut_at_the_near_plane():
    plate = Body.box("plate", (2.0, 2.0, 0.1), 0, (0.5, 0, -0.1))  # its top is where the table is, its faces reach behind us
    view = replace(camera(80, eye=(0.8, 0.1, 0.06), target=(0.3, 0.0, 0.0), fov_deg=70), near=0.05)
    table = render_boxes([], view, replace(SCENE, table_half=2.0))
    frame = render_boxes([plate], view, replace(SCENE, table_height=-1.0))
    np.testing.assert_array_equal(frame.segmentation == FIRST_BODY, table.segmentation == TABLE)
    np.testing.assert_allclose(frame.depth, table.depth, rtol=1e-4)
    assert frame.depth[-1].max() < 0.15
    assert frame.depth[frame.depth > 0].min() >= view.near

    cut = render_boxes([plate], replace(view, near=0.1), replace(SCENE, table_height=-1.0))
    np.testing.assert_array_equal(cut.depth > 0, frame.depth >= 0.1)


def test_depth_is_zero_only_on_the_background():
    frame = render_boxes(BODIES, camera(64, target=(0.5, 0, 0.3)))
    assert set(np.unique(frame.segmentation)) == {BACKGROUND, TABLE, FIRST_BODY, FIRST_BODY + 1}
    np.testing.assert_array_equal(frame.depth == 0, frame.segmentation == BACKGROUND)
    background = np.round(255 * np.array(SCENE.background_rgb)).astype(np.uint8)
    np.testing.assert_array_equal(
        frame.rgb[frame.segmentation == BACKGROUND], np.tile(background, (sum(frame.depth.flat == 0), 1))
    )


def test_beyond_far_and_before_near_nothing_shows():
    view = camera(48, eye=(0.9, 0, 0.4), target=(0.5, 0, 0.03))
    distance = render_boxes(BODIES[:1], view).depth
    far = render_boxes(BODIES[:1], replace(view, far=0.5)).depth
    assert far.max() <= 0.5 < distance.max()
    np.testing.assert_array_equal(far[distance <= 0.5], distance[distance <= 0.5])
    near = render_boxes(BODIES[:1], replace(view, near=0.6))
    assert not (near.segmentation == FIRST_BODY).any()
    assert near.depth[near.depth > 0].min() >= 0.6


def test_table_texture_stays_with_the_table_when_the_camera_moves():
    scene = replace(SCENE, table_texture=7, table_rgb=(1.0, 1.0, 1.0), light=Light(specular=0.0))
    points = [(0.5 + u, v, 0.0) for u in (-0.225, -0.075, 0.075, 0.225) for v in (-0.225, 0.075)]
    seen = []
    for eye in ((1.1, 0.1, 0.9), (0.6, -0.8, 1.0), (0.2, 0.5, 1.2)):
        view = camera(160, eye=eye, target=(0.5, 0, 0))
        picture = render_boxes([], view, scene).rgb
        seen.append([picture[pixel_of(view, point)] for point in points])
    assert np.ptp(np.array(seen, int), axis=1).max() > 20, "the points must differ, or the test would show nothing"
    assert np.ptp(np.array(seen, int), axis=0).max() <= 2


def test_background_hangs_at_infinity_and_closes_on_itself():
    scene = replace(SCENE, background_texture=12, background_rgb=(1.0, 1.0, 1.0), table_height=-50.0)
    eye = np.array([0.2, -0.1, 0.6])
    directions = [(np.cos(angle), np.sin(angle), 0.2) for angle in np.linspace(-np.pi, np.pi, 40)]

    def look(x, y, z, eye=eye):
        return Camera("around", look_at(eye, eye + np.array([x, y, z])), 60, 96, 96)

    seen = []
    for view in (look(-1, 0, 0.1), look(-1, 0.3, 0.3), look(-1, -0.3, 0), look(0, 1, 0.2), look(1, 0.2, 0)):
        picture = render_boxes([], view, scene).rgb
        for i, direction in enumerate(directions):
            x, y, z = view.T_base_cam[:3, :3].T @ direction
            row, column = 48 + view.focal * y / max(z, 1e-9), 48 + view.focal * x / max(z, 1e-9)
            if z > 0 and 0 <= row < 96 and 0 <= column < 96:
                seen.append((i, *picture[int(row), int(column)]))
    seen = np.array(seen, int)
    means = np.array([seen[seen[:, 0] == i, 1:].mean(axis=0) for i in np.unique(seen[:, 0])])
    assert np.ptp(means, axis=0).max() > 60, "the directions must differ, or the test would show nothing"
    spread = [np.ptp(seen[seen[:, 0] == i, 1:], axis=0).max() for i in np.unique(seen[:, 0])]
    assert np.median(spread) <= 8
    np.testing.assert_array_equal(
        render_boxes([], look(-1, 0, 0.1), scene).rgb, render_boxes([], look(-1, 0, 0.1, eye + 0.3), scene).rgb
    )
    across = render_boxes([], look(-1, 0, 0.1), scene).rgb.astype(int)  # azimuth jumps from pi to -pi in the middle
    steps = np.abs(np.diff(across, axis=1)).max(axis=(0, 2))
    assert steps[45:50].max() <= steps.max()
    assert steps[47] < 2 * np.median(steps)


def test_lit_faces_carry_no_shadow_acne():
    for direction in ((-0.4, 0.3, 1.0), (0.9, 0.5, 0.5), (0.0, 0.0, 1.0)):
        scene = replace(SCENE, light=Light(direction=direction, specular=0.0, shadow=1.0))
        body = Body.box("b", (0.15, 0.15, 0.05), 0, (0.5, 0, 0.05), (0.0, 0.0, 0.2, 0.98), rgb=(0.5, 0.5, 0.5))
        view = camera(128, eye=(0.9, 0.2, 0.8), target=(0.5, 0, 0))
        frame = render_boxes([body], view, scene)
        local = points_on(body, frame, view)
        inner = (np.abs(local[..., :2]) < 0.148).all(axis=-1) & (np.abs(local[..., 2] - 0.05) < 1e-4)
        top = frame.rgb[(frame.segmentation == FIRST_BODY) & inner]
        assert len(top) > 1000
        assert np.ptp(top.astype(int), axis=0).max() <= 1


def test_shadow_falls_away_from_the_light_and_is_dark():
    scene = replace(SCENE, table_texture=-1, light=Light(direction=(0.0, 1.0, 1.0), shadow=1.0, specular=0.0))
    body = Body.box("b", (0.05, 0.05, 0.1), 0, (0.5, 0, 0.1))
    view = camera(128, eye=(1.1, 0.0, 0.9), target=(0.5, 0, 0))
    picture = render_boxes([body], view, scene).rgb.astype(int)
    shadowed, lit = picture[pixel_of(view, (0.5, -0.15, 0))], picture[pixel_of(view, (0.5, 0.15, 0))]
    assert (shadowed < 0.7 * lit).all()
    without = render_boxes([body], view, scene, shadow_size=0).rgb.astype(int)
    np.testing.assert_array_equal(without[pixel_of(view, (0.5, -0.15, 0))], without[pixel_of(view, (0.5, 0.15, 0))])


def test_boxes_stand_on_their_shadow():
    scene = replace(SCENE, table_texture=-1, light=Light(direction=(0.0, 1.0, 1.0), shadow=1.0, specular=0.0))
    view = camera(256, eye=(0.8, -0.4, 0.3), target=(0.5, 0, 0), fov_deg=30)
    picture = render_boxes([Body.box("b", (0.02, 0.02, 0.02), 0, (0.5, 0, 0.02))], view, scene).rgb.astype(int)
    lit = picture[pixel_of(view, (0.5, 0.1, 0))].sum()
    assert picture[pixel_of(view, (0.5, -0.024, 0))].sum() < 0.8 * lit


def test_balls_shade_boxes_and_boxes_balls():
    scene = replace(SCENE, table_texture=-1, light=Light(direction=(0.0, 0.0, 1.0), shadow=1.0, specular=0.0))
    ball = Body("ball", (Shape("sphere", (0.05, 0.05, 0.05), rgb=(1, 1, 1)),), 0, (0.5, 0, 0.3))
    plate = Body.box("plate", (0.12, 0.12, 0.01), 0, (0.5, 0, 0.15), rgb=(1.0, 1.0, 1.0))
    view = camera(128, eye=(0.9, -0.5, 0.6), target=(0.5, 0, 0.2))
    below, above = replace(ball, position=(0.5, 0, 0.06)), replace(plate, position=(0.42, 0, 0.3))
    for bodies, shaded, lit in (
        ((ball, plate), (0.5, 0, 0.16), (0.5, -0.1, 0.16)),
        ((below, above), (0.52, -0.01, 0.104), (0.65, -0.2, 0)),
    ):
        picture = render_boxes(bodies, view, scene).rgb.astype(int)
        plain = render_boxes(bodies, view, replace(scene, light=replace(scene.light, shadow=0.0))).rgb.astype(int)
        assert picture[pixel_of(view, shaded)].sum() < 0.6 * plain[pixel_of(view, shaded)].sum()
        np.testing.assert_array_equal(picture[pixel_of(view, lit)], plain[pixel_of(view, lit)])


def test_shadows_stay_when_something_else_moves():
    view = camera(96, eye=(1.0, 0.0, 0.9), target=(0.5, 0, 0))
    static = Body.box("static", (0.04, 0.04, 0.04), 0, (0.5, 0.1, 0.04))
    pictures = []
    for y in (-0.1, -0.25, -0.4):
        moving = Body.box("moving", (0.03, 0.03, 0.03), 0, (0.6, y, 0.1))
        pictures.append(render_boxes([static, moving], view).rgb[:, 60:].astype(int))
    assert np.ptp(pictures, axis=0).max() <= 1


def test_same_call_same_bits(bullet, panda):
    first, second = (render_world(bullet, panda, camera(84), supersample=2) for _ in range(2))
    for name in ("rgb", "depth", "segmentation"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_frames_outlive_the_next_render():
    body = Body.box("b", (0.05, 0.05, 0.05), 0, (0.5, 0, 0.05))
    raster = drawing([body])
    first = raster.render(at(body), camera(48))
    kept = first.rgb.copy(), first.depth.copy(), first.segmentation.copy()
    raster.render(at(replace(body, position=(0.3, 0.3, 0.3))), camera(48))
    for array, before in zip((first.rgb, first.depth, first.segmentation), kept, strict=True):
        np.testing.assert_array_equal(array, before)


def test_geometry_does_not_depend_on_colour_or_supersampling():
    plain = render_boxes(BODIES, camera(64))
    blind = render_boxes(BODIES, camera(64), rgb=False)
    smooth = render_boxes(BODIES, camera(64), supersample=2)
    for other in (blind, smooth):
        np.testing.assert_array_equal(plain.depth, other.depth)
        np.testing.assert_array_equal(plain.segmentation, other.segmentation)
    assert not blind.rgb.any()
    assert 0 < np.abs(plain.rgb.astype(int) - smooth.rgb).mean() < 5


def test_wrong_number_of_poses_or_unknown_texture_is_named():
    body = Body.box("b", (0.1, 0.1, 0.1), 0, (0, 0, 0))
    with pytest.raises(ValueError, match=r"poses \(2, 7\).*1 frames"):
        drawing([body]).render(at(body, body), camera(16))
    with pytest.raises(ValueError, match=f"-1..{NUM_TEXTURES - 1}"):
        drawing([Body.box("b", (0.1, 0.1, 0.1), 0, (0, 0, 0), texture=NUM_TEXTURES)])
    with pytest.raises(ValueError, match="supersample=3"):
        drawing([], supersample=3)
    with pytest.raises(ValueError, match="shadow_size=100"):
        drawing([], shadow_size=100)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e9])
def test_a_pose_that_is_none_is_named(value):
    poses = at(*BODIES)
    poses[1, 2] = value
    with pytest.raises(ValueError, match=r"frame 1: give a finite position"):
        drawing(BODIES).render(poses, camera(16))
    with pytest.raises(ValueError, match=r"frame 0: .* unit quaternion"):
        drawing(BODIES).render(np.zeros((2, 7)), camera(16))


STRANGE = """
import sys
import numpy as np
from robopolicy.sim.raster import Part, Rasterizer
from robopolicy.sim.meshes import shape_mesh
from robopolicy.sim.scene import Camera, Light, Scene, Shape, look_at
rng = np.random.default_rng(0)
for i in range(60):
    radius, height = 10 ** rng.uniform(-3, 0.3, 2)
    sizes = {"box": (radius, height, radius), "cylinder": (radius, radius, height), "sphere": (radius,) * 3}
    parts = [Part(shape_mesh(Shape(kind, size)), j, 3 + j, (1, 1, 1), i % 48) for j, (kind, size) in enumerate(sizes.items())]
    light = Light(direction=(0.0, 0.0, 1.0) if i % 7 == 0 else (*rng.normal(size=2), (i % 5) - 2))
    scene = Scene((), (), table_height=0.1 * (i % 3), background_texture=i % 48, light=light)
    raster = Rasterizer(parts[: i % 4], scene, supersample=1 + i % 2, shadow_size=(0, 8, 64, 512)[i % 4])
    eye = rng.normal(size=3) * 10 ** rng.uniform(-2, 0.5) + [0.5, 0, 0.1]
    eye[2] = scene.table_height if i % 6 == 0 else eye[2]
    camera = Camera("strange", look_at(eye, rng.normal(size=3)), rng.uniform(5, 140), *rng.integers(1, 70, 2).tolist(),
                    near=10 ** rng.uniform(-3, 0), far=10 ** rng.uniform(0, 1), center=tuple(rng.uniform(-0.2, 1.2, 2)))
    poses = np.column_stack([rng.normal(size=(3, 3)) * 10 ** rng.uniform(-2, 2), rng.normal(size=(3, 4))])
    poses[:, 3:] /= np.linalg.norm(poses[:, 3:], axis=1, keepdims=True)
    frame = raster.render(poses[: raster.num_frames], camera)
    assert ((frame.depth == 0) == (frame.segmentation == 0)).all()
    seen = frame.depth[frame.depth > 0]
    assert np.isfinite(frame.depth).all() and (seen > 0.999 * camera.near).all() and (seen < 1.001 * camera.far).all()
"""


def test_strange_scenes_stay_within_memory():
    """The kernels check no index: wrong ones would crash the interpreter, so this runs in one of its own."""
    done = subprocess.run([sys.executable, "-c", STRANGE], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_textures_are_distinct_bright_and_tile():
    bank = texture_bank().astype(float)
    assert bank.shape == (NUM_TEXTURES, 64, 64, 3)
    flat = bank.reshape(NUM_TEXTURES, -1)
    distance = np.abs(flat[:, None] - flat[None]).mean(axis=-1) + 255 * np.eye(NUM_TEXTURES)
    assert distance.min() > 5
    assert flat.mean(axis=1).min() > 80
    for axis in (1, 2):  # the step across the border is no larger than the largest step inside
        inside = np.abs(np.diff(bank, axis=axis)).mean(axis=(3 - axis, 3)).max(axis=1)
        border = np.abs(bank.take(0, axis=axis) - bank.take(-1, axis=axis)).mean(axis=(1, 2))
        assert (border <= 1.2 * inside + 2).all()


BUILD = """
import sys, numpy as np
from robopolicy.sim.meshes import panda_visuals
np.savez(sys.argv[1], *[a for v in panda_visuals() for a in (v.mesh.vertices, v.mesh.normals, v.mesh.faces, [v.link], v.rgb)])
"""


def test_mesh_cache_survives_two_builders(tmp_path):
    cache = tmp_path / "cache"
    environment = {**os.environ, "ROBOPOLICY_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    outputs = [tmp_path / "a.npz", tmp_path / "b.npz"]
    workers = [subprocess.Popen([sys.executable, "-c", BUILD, str(output)], env=environment) for output in outputs]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    assert len(list(cache.iterdir())) == 1, "no temporary file stays behind"
    first, second = (np.load(output, allow_pickle=False) for output in outputs)
    assert first.files == second.files
    for name in first.files:
        np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.parametrize("supersample", [1, 2])
def test_a_camera_that_stands_still_sees_what_another_sees(supersample):
    scene = replace(SCENE, table_texture=6, background_texture=12)
    moving, still = camera(72), replace(camera(72), still=True)
    poses, far = at(*BODIES), at(*BODIES) + [0.1, 0.05, 0.1, 0, 0, 0, 0]
    raster = drawing(BODIES, scene, supersample=supersample)
    for place in (poses, far, poses):
        a, b = raster.render(place, moving).rgb.astype(int), raster.render(place, still).rgb.astype(int)
        assert np.abs(a - b).max() <= 1
    assert np.array_equal(
        raster.render(poses, still).rgb, drawing(BODIES, scene, supersample=supersample).render(poses, still).rgb
    )
    elsewhere = replace(camera(72, eye=(1.0, 0.5, 0.7)), still=True)
    assert np.abs(raster.render(poses, elsewhere).rgb.astype(int) - a).max() > 20
