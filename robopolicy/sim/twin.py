"""The held-out simulator: the world of sim.bullet in MuJoCo, with nothing in common but the scene and the robot's description.

Another solver (Newton, elliptic cones, soft contacts, 2 ms), another actuator model (a torque-limited PD with gravity
compensation instead of a velocity-level gain) and another renderer (sim.raycast). Quaternions are wxyz inside this file only.
"""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import mujoco
import numpy as np
import pybullet_data

from robopolicy.sim import raycast
from robopolicy.sim.engine import whole_steps
from robopolicy.sim.meshes import panda_visuals
from robopolicy.sim.robot import MAX_OPENING, NUM_JOINTS
from robopolicy.sim.scene import BACKGROUND, FIRST_BODY, ROBOT, TABLE, Body, Camera, Frame, Scene
from robopolicy.sim.textures import NUM_TEXTURES, texture_bank
from robopolicy.spec import did_you_mean

TIME_STEP = 0.002  # s
TABLE_THICKNESS = 0.1  # m
LINK_FRICTION = 0.5  # of the links other than the fingers, which have scene.finger_friction
ARM_STIFFNESS = (4500.0, 4500.0, 3500.0, 3500.0, 2000.0, 2000.0, 2000.0)  # N m / rad
ARM_FORCE = (87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0)  # N m, Franka's data sheet
ARM_DAMPING = (10.0, 10.0, 10.0, 10.0, 1.0, 1.0, 1.0)  # N m s / rad
ARM_ARMATURE = (0.1, 0.1, 0.1, 0.1, 0.02, 0.02, 0.02)  # kg m2, reflected rotor inertia
FINGER_STIFFNESS = 10000.0  # N / m: full force from a few millimetres of error
FINGER_DAMPING = 100.0  # N s / m, once in the joint and once in the controller
FINGER_ARMATURE = 0.05  # kg
CONTACT_SOLREF = (0.005, 1.0)  # s, damping ratio; MuJoCo's own 0.02 s lets a grasp sink millimetres into a box
CONTACT_SOLIMP = (0.95, 0.99, 0.001, 0.5, 2.0)
_JOINTS = tuple(f"panda_joint{i + 1}" for i in range(NUM_JOINTS))
_FINGER_JOINTS = ("panda_finger_joint1", "panda_finger_joint2")
_FINGER_LINKS = ("panda_leftfinger", "panda_rightfinger")
_BASE_LINK = "panda_link0"
_LINKS = (  # index + 1 = link index in PyBullet's numbering, whose base is -1
    *(f"panda_link{i}" for i in range(9)),
    "panda_hand",
    *_FINGER_LINKS,
)
_COLLISION, _VISUAL, _SHAPE = "collision:", "visual:", "shape:"  # prefixes of geom names
_HIDDEN_GROUP = 3
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION


def _urdf() -> str:
    """pybullet_data's Panda without visuals, mesh paths absolute, with MuJoCo's compiler options."""
    folder = Path(pybullet_data.getDataPath()) / "franka_panda"
    robot = ET.parse(folder / "panda.urdf").getroot()
    for link in robot.iter("link"):
        for visual in link.findall("visual"):
            link.remove(visual)
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


def _add_geom(body: mujoco.MjsBody, name: str, **attributes: object) -> None:
    """A visible geom. Contacts come from explicit pairs alone (_add_contacts)."""
    body.add_geom(name=name, group=raycast.VISIBLE_GROUP, contype=0, conaffinity=0, **attributes)


def _add_actuators(spec: mujoco.MjSpec, scene: Scene) -> None:
    """PD position servos. Away from the torque limits the arm follows with the lag arm_time_constant = kv / kp.

    The passive damping adds damping / kp to that lag, 1 to 3 ms.
    """
    arm = zip(_JOINTS, ARM_STIFFNESS, ARM_FORCE, ARM_DAMPING, ARM_ARMATURE, strict=True)
    for name, kp, limit, damping, armature in arm:
        _add_servo(spec, name, kp=kp, kv=kp * scene.arm_time_constant, limit=limit, damping=damping, armature=armature)
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


def _add_body(spec: mujoco.MjSpec, body: Body) -> None:
    x, y, z, w = body.quaternion
    link = spec.worldbody.add_body(name=body.name, pos=body.position, quat=[w, x, y, z])
    if body.mass > 0:
        link.add_freejoint()
    _add_geom(link, _SHAPE + body.name, type=mujoco.mjtGeom.mjGEOM_BOX, size=body.shapes[0].size, mass=body.mass)


def _add_contacts(spec: mujoco.MjSpec, scene: Scene) -> None:
    """One explicit pair for every two things that may touch, with the product of their friction coefficients.

    Of two geoms MuJoCo would take the greater coefficient, where Bullet multiplies; a pair says what it is. The robot does
    not collide with itself, nor do things that cannot move with each other.
    """
    links = [name for name in _LINKS if spec.geom(_COLLISION + name) is not None]
    robot = [(_COLLISION + k, scene.finger_friction if k in _FINGER_LINKS else LINK_FRICTION, k != _BASE_LINK) for k in links]
    table = [(_SHAPE, scene.table_friction, False)]
    bodies = [(_SHAPE + body.name, body.friction, body.mass > 0) for body in scene.bodies]
    candidates = [
        *itertools.product(robot, table + bodies),
        *itertools.product(table, bodies),
        *itertools.combinations(bodies, 2),
    ]
    for (geom1, mu1, moves1), (geom2, mu2, moves2) in candidates:
        if moves1 or moves2:
            friction = [mu1 * mu2, mu1 * mu2, 0.005, 1e-4, 1e-4]
            spec.add_pair(
                geomname1=geom1, geomname2=geom2, condim=4, friction=friction, solref=CONTACT_SOLREF, solimp=CONTACT_SOLIMP
            )


def _check(scene: Scene) -> None:
    if len(scene.robot_joints) != NUM_JOINTS:
        raise ValueError(f"robot_joints has {len(scene.robot_joints)} entries, the arm has {NUM_JOINTS} joints")
    for name, texture in [("the table", scene.table_texture), *((body.name, body.shapes[0].texture) for body in scene.bodies)]:
        if not -1 <= texture < NUM_TEXTURES:
            raise ValueError(f"texture {texture} of {name} must lie in -1..{NUM_TEXTURES - 1}")


def compile_scene(scene: Scene) -> mujoco.MjModel:
    """The MuJoCo model of `scene`. Bodies and joints keep their names; the joints of the arm come first in qpos."""
    spec = _robot_spec().copy()
    _add_actuators(spec, scene)
    size = [scene.table_half, scene.table_half, TABLE_THICKNESS / 2]
    position = [scene.table_x, 0.0, scene.table_height - TABLE_THICKNESS / 2]
    _add_geom(spec.worldbody, _SHAPE, type=mujoco.mjtGeom.mjGEOM_BOX, size=size, pos=position)
    for body in scene.bodies:
        _add_body(spec, body)
    _add_contacts(spec, scene)
    return spec.compile()


@cache
def _textures() -> np.ndarray:
    return texture_bank() / 255.0


def _looks(model: mujoco.MjModel, scene: Scene) -> raycast.Looks:
    """Colours, textures and segmentation ids of the geoms of compile_scene(scene)."""
    segmentation = np.zeros(model.ngeom + 1, np.uint8)
    rgb = np.zeros((model.ngeom + 1, 3))
    texture = np.full(model.ngeom + 1, -1)
    for i, visual in enumerate(panda_visuals()):
        geom = model.geom(f"{_VISUAL}{i}").id
        segmentation[geom], rgb[geom] = ROBOT, np.multiply(visual.rgb, scene.robot_rgb)
    table = model.geom(_SHAPE).id
    segmentation[table], rgb[table], texture[table] = TABLE, scene.table_rgb, scene.table_texture
    for i, body in enumerate(scene.bodies):
        geom = model.geom(_SHAPE + body.name).id
        segmentation[geom], rgb[geom], texture[geom] = FIRST_BODY + i, body.shapes[0].rgb, body.shapes[0].texture
    segmentation[-1], rgb[-1] = BACKGROUND, scene.background_rgb
    return raycast.Looks(segmentation, rgb, texture, _textures(), table)


@dataclass(frozen=True)
class _World:
    """A compiled scene and its state."""

    scene: Scene
    model: mujoco.MjModel
    data: mujoco.MjData
    looks: raycast.Looks


@dataclass(frozen=True)
class _Token:
    world: _World
    state: np.ndarray
    grip_forces: np.ndarray


class MujocoEngine:
    """robopolicy.sim.engine.Engine on MuJoCo.

    Raises:
        RuntimeError: anything but build() and close() before the first build() or after close().
    """

    time_step = TIME_STEP

    def __init__(self) -> None:
        self._world: _World | None = None
        self._grip_forces = np.zeros(2)

    @property
    def _built(self) -> _World:
        if self._world is None:
            raise RuntimeError("the twin holds no world: call build(scene) first")
        return self._world

    @property
    def model(self) -> mujoco.MjModel:
        """The compiled world, for studies of the twin itself."""
        return self._built.model

    @property
    def data(self) -> mujoco.MjData:
        """Its state, for studies of the twin itself."""
        return self._built.data

    def build(self, scene: Scene) -> None:
        """See Engine.build.

        Raises:
            ValueError: robot_joints without 7 entries, a texture that the bank does not have, or equal names.
        """
        _check(scene)
        model = compile_scene(scene)
        data = mujoco.MjData(model)
        self._world = _World(scene, model, data, _looks(model, scene))
        self._grip_forces = np.zeros(2)
        data.qpos[: NUM_JOINTS + 2] = [*scene.robot_joints, MAX_OPENING / 2, MAX_OPENING / 2]
        self.command(np.asarray(scene.robot_joints), MAX_OPENING)
        mujoco.mj_forward(model, data)

    def joints(self) -> tuple[np.ndarray, float]:
        """See Engine.joints."""
        qpos = self.data.qpos
        return qpos[:NUM_JOINTS].copy(), float(qpos[NUM_JOINTS : NUM_JOINTS + 2].sum())

    def command(self, q_target: np.ndarray, opening: float) -> None:
        """See Engine.command."""
        self.data.ctrl[:NUM_JOINTS] = q_target
        self.data.ctrl[NUM_JOINTS:] = opening / 2

    def advance(self, seconds: float) -> None:
        """See Engine.advance."""
        steps = whole_steps(seconds, self.time_step)
        world = self._built
        mujoco.mj_step(world.model, world.data, steps)
        self._grip_forces = _finger_forces(world.model, world.data)
        mujoco.mj_kinematics(world.model, world.data)  # a step leaves the poses of its start behind

    def _link(self, name: str) -> int:
        names = [body.name for body in self._built.scene.bodies]
        if name not in names:
            raise ValueError(f"no body {name!r}; {did_you_mean(name, names)}")
        return self.model.body(name).id

    def pose(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """See Engine.pose. Raises ValueError naming the closest bodies."""
        link = self._link(name)
        return self.data.xpos[link].copy(), self.data.xquat[link][[1, 2, 3, 0]]

    def velocity(self, name: str) -> np.ndarray:
        """See Engine.velocity. Raises ValueError naming the closest bodies."""
        link = self._link(name)
        start = self.model.body_dofadr[link]
        return self.data.qvel[start : start + 3].copy() if start >= 0 else np.zeros(3)

    def grip_forces(self) -> np.ndarray:
        """See Engine.grip_forces."""
        return self._grip_forces.copy()

    def render(self, camera: Camera, rgb: bool = True) -> Frame:
        """See Engine.render."""
        world = self._built
        return raycast.render(world.model, world.data, camera, world.looks, world.scene.light, rgb)

    def save_state(self) -> _Token:
        """See Engine.save_state. The state holds the solver's warm start, so a continuation is exact."""
        world = self._built
        state = np.empty(mujoco.mj_stateSize(world.model, _STATE))
        mujoco.mj_getState(world.model, world.data, state, _STATE)
        return _Token(world, state, self._grip_forces)

    def restore_state(self, token: _Token) -> None:
        """See Engine.restore_state. Raises ValueError for a token of another world."""
        if token.world is not self._built:
            raise ValueError("this state was saved before the last build(); save_state() again in the new world")
        mujoco.mj_setState(token.world.model, token.world.data, token.state, _STATE)
        mujoco.mj_kinematics(token.world.model, token.world.data)
        self._grip_forces = token.grip_forces

    def close(self) -> None:
        """See Engine.close."""
        self._world = None


def _finger_forces(model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
    """Sum of the normal contact forces on each finger [2] (N) in the last step."""
    forces, wrench = np.zeros(2), np.zeros(6)
    fingers = [model.geom(_COLLISION + link).id for link in _FINGER_LINKS]
    for i in range(data.ncon):
        for k, finger in enumerate(fingers):
            if finger in data.contact[i].geom:
                mujoco.mj_contactForce(model, data, i, wrench)
                forces[k] += wrench[0]
    return forces
