"""Compiles a scene into a MuJoCo model: the arm from its URDF, bodies of shapes, joints, and every contact that can happen.

Quaternions are wxyz inside MuJoCo and xyzw everywhere else; wxyz() is the border.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import mujoco
import numpy as np
from scipy.spatial.transform import Rotation

from robopolicy.sim import raycast
from robopolicy.sim import twin_contacts as contacts
from robopolicy.sim.description import panda_urdf, without_visuals
from robopolicy.sim.inertia import mass_properties, shape_masses
from robopolicy.sim.meshes import panda_visuals
from robopolicy.sim.robot import NUM_JOINTS
from robopolicy.sim.scene import BACKGROUND, FIRST_BODY, ROBOT, TABLE, Body, Joint, Scene, Shape
from robopolicy.sim.shadows import casters
from robopolicy.sim.textures import NUM_TEXTURES, texture_bank

TIME_STEP = 0.002  # s
TABLE_THICKNESS = 0.1  # m
LINK_FRICTION = 0.5  # of the links other than the fingers, which have scene.finger_friction
FINGER_SPINNING = 0.002  # m
ARM_STIFFNESS = (4500.0, 4500.0, 3500.0, 3500.0, 2000.0, 2000.0, 2000.0)  # N m / rad
ARM_FORCE = (87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0)  # N m, Franka's data sheet
ARM_DAMPING = (10.0, 10.0, 10.0, 10.0, 1.0, 1.0, 1.0)  # N m s / rad
ARM_ARMATURE = (0.1, 0.1, 0.1, 0.1, 0.02, 0.02, 0.02)  # kg m2, reflected rotor inertia
FINGER_STIFFNESS = 10000.0  # N / m: full force from a few millimetres of error
FINGER_DAMPING = 100.0  # N s / m, once in the joint and once in the controller
FINGER_ARMATURE = 0.05  # kg
_JOINTS = tuple(f"panda_joint{i + 1}" for i in range(NUM_JOINTS))
_FINGER_JOINTS = ("panda_finger_joint1", "panda_finger_joint2")
_FINGER_LINKS = ("panda_leftfinger", "panda_rightfinger")
_BASE_LINK = "panda_link0"
_LINKS = (  # index + 1 = link index in PyBullet's numbering, whose base is -1
    *(f"panda_link{i}" for i in range(9)),
    "panda_hand",
    *_FINGER_LINKS,
)
_COLLISION, _VISUAL, _SHAPE, _TABLE = "collision:", "visual:", "shape:", "table:"  # names of geoms start so
_HIDDEN_GROUP = 3
_GEOM_TYPES = {
    "box": mujoco.mjtGeom.mjGEOM_BOX,
    "cylinder": mujoco.mjtGeom.mjGEOM_CYLINDER,
    "sphere": mujoco.mjtGeom.mjGEOM_SPHERE,
}
_JOINT_TYPES = {"slide": mujoco.mjtJoint.mjJNT_SLIDE, "hinge": mujoco.mjtJoint.mjJNT_HINGE}


def _urdf() -> str:
    """pybullet_data's Panda without visuals, mesh paths absolute, with MuJoCo's compiler options."""
    folder, robot = panda_urdf().parent, without_visuals()
    for mesh in robot.iter("mesh"):
        mesh.set("filename", mesh.get("filename", "").replace("package://", f"{folder}/"))
    options = {"strippath": "false", "discardvisual": "false", "fusestatic": "false", "angle": "radian"}
    ET.SubElement(ET.SubElement(robot, "mujoco"), "compiler", options)
    return ET.tostring(robot, encoding="unicode")


@cache
def _robot_spec() -> mujoco.MjSpec:
    """The arm and its decimated visuals, with nothing of a scene in it. A copy of it is where each build starts.

    The URDF gives every link the inertia 0.1 kg m2; here a link has the inertia of its collision mesh at the URDF's mass.
    """
    spec = mujoco.MjSpec.from_string(_urdf())
    spec.option.timestep = TIME_STEP
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 10.0
    for link in _LINKS:
        body = spec.body(link)
        body.gravcomp, body.explicitinertial = 1.0, False
        for geom in body.geoms:
            geom.name, geom.group, geom.mass = _COLLISION + link, _HIDDEN_GROUP, body.mass
            geom.contype = geom.conaffinity = 0
    spec.delete(spec.body("panda_grasptarget"))
    for i, visual in enumerate(panda_visuals()):
        mesh = spec.add_mesh(name=f"{_VISUAL}{i}", inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL)
        mesh.uservert, mesh.userface = visual.mesh.vertices.reshape(-1), visual.mesh.faces.reshape(-1)
        _add_geom(spec.body(_LINKS[visual.link + 1]), mesh.name, type=mujoco.mjtGeom.mjGEOM_MESH, meshname=mesh.name, mass=0.0)
    return spec


def _add_geom(body: mujoco.MjsBody, name: str, **attributes: object) -> mujoco.MjsGeom:
    """A visible geom. Contacts come from explicit pairs alone (twin_contacts)."""
    return body.add_geom(name=name, group=raycast.VISIBLE_GROUP, contype=0, conaffinity=0, **attributes)


def _add_actuators(spec: mujoco.MjSpec, scene: Scene) -> None:
    """PD position servos. Away from the torque limits the arm follows with the lag arm_time_constant = kv / kp.

    The passive damping, with scene.joint_damping, adds damping / kp to that lag: 1 to 3 ms.
    """
    arm = zip(_JOINTS, ARM_STIFFNESS, ARM_FORCE, ARM_DAMPING, ARM_ARMATURE, strict=True)
    for name, kp, limit, damping, armature in arm:
        kv, passive = kp * scene.arm_time_constant, damping + scene.joint_damping
        _add_servo(spec, name, kp=kp, kv=kv, limit=limit, damping=passive, armature=armature)
    for name in _FINGER_JOINTS:
        gains = {"kp": FINGER_STIFFNESS, "kv": FINGER_DAMPING, "limit": scene.grip_force}
        _add_servo(spec, name, **gains, damping=FINGER_DAMPING, armature=FINGER_ARMATURE)


def _add_servo(spec: mujoco.MjSpec, name: str, *, kp: float, kv: float, limit: float, damping: float, armature: float) -> None:
    """A servo on the joint `name`, whose own properties are set; `limit` replaces the effort limit of the URDF."""
    joint = spec.joint(name)
    joint.armature, joint.damping[0], joint.actfrclimited = armature, damping, False
    servo = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
    servo.set_to_position(kp=kp, kv=kv)
    servo.forcelimited, servo.forcerange = True, [-limit, limit]


def wxyz(quaternion: Sequence[float]) -> np.ndarray:
    """MuJoCo's order of a quaternion (xyzw)."""
    return np.asarray(quaternion, np.float64)[[3, 0, 1, 2]]


def xyzw(quaternion: np.ndarray) -> np.ndarray:
    """The project's order of a MuJoCo quaternion (wxyz)."""
    return quaternion[[1, 2, 3, 0]]


def shape_geom(body: str, index: int) -> str:
    """Name of the geom that is shape `index` of a body."""
    return f"{_SHAPE}{body}:{index}"


@dataclass(frozen=True)
class BodyFrame:
    """The frame of a scene's body in its MuJoCo link: position [3] (m) and quaternion [4] (wxyz)."""

    position: np.ndarray
    quaternion: np.ndarray


def _body_frame(body: Body) -> BodyFrame:
    """A free link lies in the principal axes of its body, so that damping acts on each degree of freedom alone."""
    if body.joint or body.mass == 0:
        return BodyFrame(np.zeros(3), wxyz((0.0, 0.0, 0.0, 1.0)))
    principal = mass_properties(body)
    back = Rotation.from_quat(principal.quaternion).inv()
    return BodyFrame(-back.apply(principal.position), wxyz(back.as_quat()))


def _add_body(spec: mujoco.MjSpec, body: Body, own: BodyFrame) -> None:
    pos, quat = np.empty(3), np.empty(4)
    mujoco.mju_negPose(pos, quat, own.position, own.quaternion)
    mujoco.mju_mulPose(pos, quat, np.array(body.position, np.float64), wxyz(body.quaternion), pos.copy(), quat.copy())
    link = spec.worldbody.add_body(name=body.name, pos=pos, quat=quat)
    if body.joint:
        _add_joint(link, body.name, body.joint)
    elif body.mass > 0:
        link.add_freejoint()
    frame = link.add_frame(pos=own.position, quat=own.quaternion)
    for i, (shape, mass) in enumerate(zip(body.shapes, shape_masses(body), strict=True)):
        place = {"pos": shape.position, "quat": wxyz(shape.quaternion)}
        geom = _add_geom(
            link, shape_geom(body.name, i), type=_GEOM_TYPES[shape.kind], size=_geom_size(shape), mass=mass, **place
        )
        geom.set_frame(frame)


def _geom_size(shape: Shape) -> tuple[float, float, float]:
    x, y, z = shape.size
    return {"box": (x, y, z), "cylinder": (x, z, 0.0), "sphere": (x, 0.0, 0.0)}[shape.kind]


def _add_joint(link: mujoco.MjsBody, name: str, joint: Joint) -> None:
    link.add_joint(
        name=name,
        type=_JOINT_TYPES[joint.kind],
        axis=joint.axis,
        range=[joint.low, joint.high],
        limited=True,
        solref_limit=[contacts.TIME_CONSTANT, 1.0],
        damping=[joint.damping, 0.0, 0.0],
        frictionloss=joint.friction,
    )


def _things(spec: mujoco.MjSpec, scene: Scene) -> Iterator[contacts.Thing]:
    """All that can be touched."""
    for link in _LINKS:
        if spec.geom(_COLLISION + link) is not None:
            finger = link in _FINGER_LINKS
            surface = contacts.Surface(scene.finger_friction, FINGER_SPINNING) if finger else contacts.Surface(LINK_FRICTION)
            mobility = contacts.FIXED if link == _BASE_LINK else contacts.MOBILE
            yield contacts.Thing([_COLLISION + link], mobility, surface, robot=True)
    yield contacts.Thing([_TABLE], contacts.FIXED, contacts.Surface(scene.table_friction, restitution=scene.table_restitution))
    for body in scene.bodies:
        if body.collides:
            mobility = contacts.JOINTED if body.joint else contacts.MOBILE if body.mass > 0 else contacts.FIXED
            surface = contacts.Surface(body.friction, body.spinning_friction, body.rolling_friction, body.restitution)
            yield contacts.Thing([shape_geom(body.name, i) for i in range(len(body.shapes))], mobility, surface)


def _check(scene: Scene) -> None:
    if len(scene.robot_joints) != NUM_JOINTS:
        raise ValueError(f"robot_joints has {len(scene.robot_joints)} entries, the arm has {NUM_JOINTS} joints")
    textures = {"the table": scene.table_texture, "the background": scene.background_texture}
    textures |= {f"shape {i} of {body.name}": shape.texture for body in scene.bodies for i, shape in enumerate(body.shapes)}
    for name, texture in textures.items():
        if not -1 <= texture < NUM_TEXTURES:
            raise ValueError(f"texture {texture} of {name} must lie in -1..{NUM_TEXTURES - 1}")


def compile_scene(scene: Scene) -> tuple[mujoco.MjModel, dict[str, BodyFrame]]:
    """The MuJoCo model of `scene`, and where its bodies lie in their links.

    Bodies and joints keep their names; the joints of the arm come first in qpos.

    Raises:
        ValueError: robot_joints without 7 entries, a texture that the bank does not have, a body without shapes, a joint that
            holds no mass or cannot start at 0, or equal names.
    """
    _check(scene)
    spec = _robot_spec().copy()
    _add_actuators(spec, scene)
    size = [scene.table_half, scene.table_half, TABLE_THICKNESS / 2]
    position = [scene.table_x, 0.0, scene.table_height - TABLE_THICKNESS / 2]
    _add_geom(spec.worldbody, _TABLE, type=mujoco.mjtGeom.mjGEOM_BOX, size=size, pos=position)
    frames = {body.name: _body_frame(body) for body in scene.bodies}
    for body in scene.bodies:
        _add_body(spec, body, frames[body.name])
    contacts.add_contacts(spec, list(_things(spec, scene)))
    model = spec.compile()
    for body in scene.bodies:
        _add_damping(model, body)
    return model, frames


def _add_damping(model: mujoco.MjModel, body: Body) -> None:
    """Damping of the velocity itself: linear_damping and angular_damping (1/s) times the inertia behind a degree of freedom."""
    start, num = model.body(body.name).dofadr[0], model.body(body.name).dofnum[0]
    if num:
        turns = [False] * 3 + [True] * 3 if body.joint is None else [body.joint.kind == "hinge"]
        rate = np.where(turns, body.angular_damping, body.linear_damping)
        model.dof_damping[start : start + num] += rate * model.dof_M0[start : start + num]


def looks(model: mujoco.MjModel, scene: Scene) -> raycast.Looks:
    """Colours, textures and segmentation ids of the geoms of compile_scene(scene)."""
    segmentation = np.zeros(model.ngeom + 1, np.uint8)
    rgb = np.zeros((model.ngeom + 1, 3))
    texture = np.full(model.ngeom + 1, -1)
    for i, visual in enumerate(panda_visuals()):
        geom = model.geom(f"{_VISUAL}{i}").id
        segmentation[geom], rgb[geom] = ROBOT, np.multiply(visual.rgb, scene.robot_rgb)
    table = model.geom(_TABLE).id
    segmentation[table], rgb[table], texture[table] = TABLE, scene.table_rgb, scene.table_texture
    for i, body in enumerate(scene.bodies):
        for k, shape in enumerate(body.shapes):
            geom = model.geom(shape_geom(body.name, k)).id
            segmentation[geom], rgb[geom], texture[geom] = FIRST_BODY + i, shape.rgb, shape.texture
    segmentation[-1], rgb[-1], texture[-1] = BACKGROUND, scene.background_rgb, scene.background_texture
    return raycast.Looks(segmentation, rgb, texture, texture_bank(), table, casters(model, raycast.VISIBLE_GROUP))


def robot_geoms(model: mujoco.MjModel) -> dict[int, int]:
    """Ids of the geoms that are the robot: 0 and 1 for its two fingers, 2 for the rest."""
    names = {model.geom(i).name.removeprefix(_COLLISION): i for i in range(model.ngeom) if _COLLISION in model.geom(i).name}
    return {i: _FINGER_LINKS.index(link) if link in _FINGER_LINKS else len(_FINGER_LINKS) for link, i in names.items()}
