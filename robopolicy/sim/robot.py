"""The Franka Panda: an end-effector delta and a gripper opening in, joint targets out. No simulator in here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numba as nb
import numpy as np

from robopolicy.geometry import rotation_6d

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
def _turn(R, axis, angle):
    """Rotate the columns of R [3, 3] in place by `angle` about its own `axis` (0 or 2)."""
    c, s = np.cos(angle), np.sin(angle)
    i, j = (1, 2) if axis == 0 else (0, 1)
    for k in range(3):
        a, b = R[k, i], R[k, j]
        R[k, i], R[k, j] = c * a + s * b, c * b - s * a


@nb.njit(cache=True)
def _forward(q, T, jacobian):
    """T_base_ee into T [4, 4] and its geometric Jacobian into jacobian [6, 7]."""
    R, o = T[:3, :3], T[:3, 3]
    R[:] = np.eye(3)
    o[:] = 0.0
    axes, origins = np.empty((7, 3)), np.empty((7, 3))
    for i in range(7):
        for k in range(3):
            o[k] += R[k, 0] * _OFFSET[i, 0] + R[k, 1] * _OFFSET[i, 1] + R[k, 2] * _OFFSET[i, 2]
        _turn(R, 0, _ROLL[i])
        axes[i], origins[i] = R[:, 2], o
        _turn(R, 2, q[i])
    o += R[:, 2] * _TOOL_Z
    _turn(R, 2, _TOOL_YAW)
    for i in range(7):
        x, y, z = o[0] - origins[i, 0], o[1] - origins[i, 1], o[2] - origins[i, 2]
        jacobian[0, i] = axes[i, 1] * z - axes[i, 2] * y
        jacobian[1, i] = axes[i, 2] * x - axes[i, 0] * z
        jacobian[2, i] = axes[i, 0] * y - axes[i, 1] * x
        jacobian[3:, i] = axes[i]


@nb.njit(cache=True)
def _damped_inverse(J, damping):
    """J^T (J J^T + damping)^-1 of J [6, 7], by Cholesky factors: [7, 6]."""
    A = np.empty((6, 6))
    for i in range(6):
        for j in range(i + 1):
            total = damping if i == j else 0.0
            for k in range(7):
                total += J[i, k] * J[j, k]
            for k in range(j):
                total -= A[i, k] * A[j, k]
            A[i, j] = np.sqrt(total) if i == j else total / A[j, j]
    out = np.empty((7, 6))
    for row in range(7):
        for i in range(6):  # forwards
            total = J[i, row]
            for k in range(i):
                total -= A[i, k] * out[row, k]
            out[row, i] = total / A[i, i]
        for i in range(5, -1, -1):  # backwards
            total = out[row, i]
            for k in range(i + 1, 6):
                total -= A[k, i] * out[row, k]
            out[row, i] = total / A[i, i]
    return out


@nb.njit(cache=True)
def _inverse(q, goal, iterations):
    q, T, J, error = q.copy(), np.eye(4), np.empty((6, 7)), np.empty(6)
    for _ in range(iterations):
        _forward(q, T, J)
        error[:3] = goal[:3, 3] - T[:3, 3]
        error[3:] = 0.0
        for c in range(3):
            for k in range(3):
                i, j = (k + 1) % 3, (k + 2) % 3
                error[3 + k] += 0.5 * (T[i, c] * goal[j, c] - T[j, c] * goal[i, c])
        J_inverse, posture = _damped_inverse(J, 1e-4), 0.1 * (HOME - q)
        for i in range(6):  # what the posture would move the end effector by is taken back
            for k in range(7):
                error[i] -= J[i, k] * posture[k]
        for k in range(7):
            step = posture[k]
            for i in range(6):
                step += J_inverse[k, i] * error[i]
            q[k] = min(max(q[k] + step, JOINT_LOW[k]), JOINT_HIGH[k])
    return q


@nb.njit(cache=True)
def _moved(T, T_measured, motion):
    """The commanded pose T [4, 4] after a motion [6] (m, rad), on its leash and within the workspace."""
    out = T.copy()
    x, y, z = motion[3], motion[4], motion[5]
    angle = np.sqrt(x * x + y * y + z * z)
    if angle > 0.0:  # Rodrigues
        x, y, z = x / angle, y / angle, z / angle
        c, s = np.cos(angle), np.sin(angle)
        t = 1.0 - c
        R = np.array(
            (
                (t * x * x + c, t * x * y - s * z, t * x * z + s * y),
                (t * x * y + s * z, t * y * y + c, t * y * z - s * x),
                (t * x * z - s * y, t * y * z + s * x, t * z * z + c),
            )
        )
        for i in range(3):
            for j in range(3):
                out[i, j] = R[i, 0] * T[0, j] + R[i, 1] * T[1, j] + R[i, 2] * T[2, j]
    ahead = T[:3, 3] + motion[:3] - T_measured[:3, 3]
    distance = np.sqrt((ahead * ahead).sum())
    if distance > LEASH:
        ahead *= LEASH / distance
    for k in range(3):
        out[k, 3] = min(max(T_measured[k, 3] + ahead[k], WORKSPACE_LOW[k]), WORKSPACE_HIGH[k])
    return out


def forward(q: np.ndarray) -> np.ndarray:
    """T_base_ee [4, 4] of the point between the finger pads for joint positions q [7] (rad)."""
    T = np.eye(4)
    _forward(np.asarray(q, np.float64), T, np.empty((6, 7)))
    return T


def jacobian(q: np.ndarray) -> np.ndarray:
    """Geometric Jacobian [6, 7] (linear, angular; base frame) of that point for joint positions q [7] (rad)."""
    out = np.empty((6, 7))
    _forward(np.asarray(q, np.float64), np.eye(4), out)
    return out


def inverse(q: np.ndarray, T_base_ee: np.ndarray, iterations: int = 6) -> np.ndarray:
    """Joint positions [7] (rad) near q that bring the end effector towards T_base_ee.

    Damped least squares with a null-space term that pulls towards HOME; joint limits are kept.
    """
    return _inverse(np.asarray(q, np.float64), np.ascontiguousarray(T_base_ee, np.float64), iterations)


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

    def act(self, action: np.ndarray, T_base_ee: np.ndarray) -> tuple[np.ndarray, float]:
        """Joint targets [7] (rad) and gripper opening (m) for an action [7] at the measured end-effector pose [4, 4]."""
        a = np.minimum(np.maximum(np.asarray(action, np.float64), ACTION_LOW), ACTION_HIGH)
        self.T_base_target = _moved(self.T_base_target, T_base_ee, self.gain * a[:6])
        self.q_target = _inverse(self.q_target, self.T_base_target, 6)
        grip, step = float(a[6]), self.gripper_speed * GRIPPER_SPEED * self.period
        self.opening += min(max(grip * MAX_OPENING - self.opening, -step), step)
        self.closing = grip < 0.5
        return self.q_target, self.opening


def proprioception(q: np.ndarray, opening: float) -> np.ndarray:
    """observation.state float32 [17]: joints (rad), opening (m), end-effector position (m) and 6-D rotation (base frame)."""
    T = forward(q)
    return np.concatenate([q, [opening], T[:3, 3], rotation_6d(T)]).astype(np.float32)
