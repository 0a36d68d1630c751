"""The Franka Panda: an end-effector delta and a gripper opening in, joint targets out. No simulator in here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numba as nb
import numpy as np

from robopolicy.geometry import rotation_6d, rotvec_matrix

NUM_JOINTS = 7
MAX_OPENING = 0.08  # m between the fingers
HOME = np.array([0.0, -0.3, 0.0, -2.2, 0.0, 1.95, 0.785])
JOINT_LOW = np.array([-2.9, -1.76, -2.9, -3.07, -2.9, -0.01, -2.9])
JOINT_HIGH = np.array([2.9, 1.76, 2.9, -0.07, 2.9, 3.75, 2.9])
MAX_TRANSLATION = 0.04  # m per control step and axis
MAX_ROTATION = 0.3  # rad per control step and axis
GRIPPER_SPEED = 0.15  # m/s of the opening
LEASH = 0.05  # m: how far the commanded pose may run ahead of the measured one
WORKSPACE_LOW = np.array([0.25, -0.45, 0.0])
WORKSPACE_HIGH = np.array([0.80, 0.45, 0.60])

ACTION_NAMES = ("dx", "dy", "dz", "rx", "ry", "rz", "gripper")
ACTION_LOW = np.array([-MAX_TRANSLATION] * 3 + [-MAX_ROTATION] * 3 + [0.0], np.float32)
ACTION_HIGH = np.array([MAX_TRANSLATION] * 3 + [MAX_ROTATION] * 3 + [1.0], np.float32)
STATE_NAMES = (
    *(f"joint_{i + 1}" for i in range(NUM_JOINTS)),
    "gripper_opening",
    *("ee_x", "ee_y", "ee_z"),
    *(f"ee_r{i}" for i in range(6)),
)

# Joint frames of the Panda's URDF: offset (m) and roll (rad) of each joint in its parent; all joints turn about their z.
_OFFSET = np.array(
    [[0, 0, 0.333], [0, 0, 0], [0, -0.316, 0], [0.0825, 0, 0], [-0.0825, 0.384, 0], [0, 0, 0], [0.088, 0, 0]], np.float64
)
_ROLL = np.array([0, -np.pi / 2, np.pi / 2, np.pi / 2, -np.pi / 2, np.pi / 2, np.pi / 2])
_TOOL_Z = 0.107 + 0.105  # flange to the point between the finger pads, m
_TOOL_YAW = -np.pi / 4


@nb.njit(cache=True)
def _forward(q, offset, roll, tool_z, tool_yaw, jacobian):
    R = np.eye(3)
    o = np.zeros(3)
    axes = np.zeros((7, 3))
    origins = np.zeros((7, 3))
    for i in range(7):
        o = o + R @ offset[i]
        c, s = np.cos(roll[i]), np.sin(roll[i])
        R = R @ np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])
        axes[i] = R[:, 2]
        origins[i] = o
        c, s = np.cos(q[i]), np.sin(q[i])
        R = R @ np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
    o = o + R[:, 2] * tool_z
    c, s = np.cos(tool_yaw), np.sin(tool_yaw)
    R = R @ np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
    for i in range(7):
        jacobian[:3, i] = np.cross(axes[i], o - origins[i])
        jacobian[3:, i] = axes[i]
    return o, R


@nb.njit(cache=True)
def _inverse(q, position, R_goal, offset, roll, tool_z, tool_yaw, low, high, rest, iterations):
    q = q.copy()
    J = np.zeros((6, 7))
    error = np.zeros(6)
    for _ in range(iterations):
        o, R = _forward(q, offset, roll, tool_z, tool_yaw, J)
        error[:3] = position - o
        error[3:] = 0.5 * (np.cross(R[:, 0], R_goal[:, 0]) + np.cross(R[:, 1], R_goal[:, 1]) + np.cross(R[:, 2], R_goal[:, 2]))
        J_pinv = J.T @ np.linalg.inv(J @ J.T + 1e-4 * np.eye(6))
        posture = (np.eye(7) - J_pinv @ J) @ (0.1 * (rest - q))
        q = np.minimum(np.maximum(q + J_pinv @ error + posture, low), high)
    return q


def forward(q: np.ndarray) -> np.ndarray:
    """T_base_ee [4, 4] of the point between the finger pads for joint positions q [7] (rad)."""
    position, R = _forward(np.asarray(q, np.float64), _OFFSET, _ROLL, _TOOL_Z, _TOOL_YAW, np.zeros((6, 7)))
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = R, position
    return T


def inverse(q: np.ndarray, T_base_ee: np.ndarray, iterations: int = 6) -> np.ndarray:
    """Joint positions [7] (rad) near q that bring the end effector towards T_base_ee.

    Damped least squares with a null-space term that pulls towards HOME; joint limits are kept.
    """
    target = np.ascontiguousarray(T_base_ee[:3, :3])
    args = (_OFFSET, _ROLL, _TOOL_Z, _TOOL_YAW, JOINT_LOW, JOINT_HIGH, HOME, iterations)
    return _inverse(np.asarray(q, np.float64), np.ascontiguousarray(T_base_ee[:3, 3]), target, *args)


@dataclass
class Panda:
    """The robot of every task: turns actions into joint targets, and joints into proprioception. It holds no simulator.

    Action float32 [7], clipped to ACTION_LOW..ACTION_HIGH: end-effector translation (m) and rotation vector (rad), both in
    the base frame, and the opening command in [0, 1].

    The commanded pose, not the measured one, is moved by an action, so a still arm does not drift; a leash keeps it
    within LEASH of the measured pose, so a blocked arm does not wind up. period (s): of one control step; gain scales
    commanded deltas, gripper_speed the speed of the fingers.
    """

    period: float = 0.05
    gain: float = 1.0
    gripper_speed: float = 1.0
    T_base_target: np.ndarray = field(default_factory=lambda: forward(HOME))
    q_target: np.ndarray = field(default_factory=HOME.copy)
    opening: float = MAX_OPENING
    closing: bool = False

    def start(self, q: np.ndarray, gain: float = 1.0, gripper_speed: float = 1.0) -> None:
        """Begin an episode at joint positions q [7] (rad), the gripper open."""
        self.gain, self.gripper_speed = gain, gripper_speed
        self.q_target = np.asarray(q, np.float64).copy()
        self.T_base_target = forward(self.q_target)
        self.opening, self.closing = MAX_OPENING, False

    def copy(self) -> Panda:
        """An independent robot in the same state."""
        return replace(self, T_base_target=self.T_base_target.copy(), q_target=self.q_target.copy())

    def act(self, action: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, float]:
        """Joint targets [7] (rad) and gripper opening (m) for an action [7] at measured joints q [7] (rad)."""
        a = np.clip(np.asarray(action, np.float64), ACTION_LOW, ACTION_HIGH)
        T = self.T_base_target.copy()
        T[:3, 3] += self.gain * a[:3]
        T[:3, :3] = rotvec_matrix(self.gain * a[3:6]) @ T[:3, :3]
        ahead = T[:3, 3] - forward(q)[:3, 3]
        distance = np.linalg.norm(ahead)
        if distance > LEASH:
            T[:3, 3] -= ahead * (1.0 - LEASH / distance)
        T[:3, 3] = np.clip(T[:3, 3], WORKSPACE_LOW, WORKSPACE_HIGH)
        self.T_base_target = T
        self.q_target = inverse(self.q_target, T)
        step = self.gripper_speed * GRIPPER_SPEED * self.period
        self.opening += float(np.clip(a[6] * MAX_OPENING - self.opening, -step, step))
        self.closing = bool(a[6] < 0.5)
        return self.q_target, self.opening


def proprioception(q: np.ndarray, opening: float) -> np.ndarray:
    """observation.state float32 [17]: joints (rad), opening (m), end-effector position (m) and 6-D rotation (base frame)."""
    T = forward(q)
    return np.concatenate([q, [opening], T[:3, 3], rotation_6d(T)]).astype(np.float32)
