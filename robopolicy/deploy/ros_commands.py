"""Actions as ROS messages: velocities, poses, joint trajectories, or the bare numbers.

Part of the robot-side island: numpy only; the message classes are handed in, so that ROS 1, ROS 2 and a test can use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING or __package__:
    from .ros_transforms import matrix_quaternion, matrix_rotation_vector, rotation_vector_matrix
else:  # this folder itself is on the path
    from ros_transforms import matrix_quaternion, matrix_rotation_vector, rotation_vector_matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .runtime import SafetyLimits

TWIST, POSE = "geometry_msgs/TwistStamped", "geometry_msgs/PoseStamped"
TRAJECTORY, ARRAY = "trajectory_msgs/JointTrajectory", "std_msgs/Float64MultiArray"
COMMANDS = (TWIST, POSE, TRAJECTORY, ARRAY)


def refusal(kind: str, limits: SafetyLimits, joints: Sequence[str], *, has_pose: bool) -> str:
    """Why a policy with these limits cannot be commanded by messages of type `kind`; "" if it can."""
    moves = (len(limits.translation), len(limits.rotation)) == (3, 3)
    if kind in (TWIST, POSE) and not moves:
        return f"a {kind} needs 3 translation and 3 rotation entries; use {TRAJECTORY} or {ARRAY} for other actions"
    if kind == POSE and not has_pose:
        return f"a {POSE} needs ee_position and ee_rotation, from which the pose goes on"
    if kind == TRAJECTORY and not 0 < len(joints) <= len(limits.absolute):
        return f"a {TRAJECTORY} needs 1 to {len(limits.absolute)} `joints`, for absolute entries; given {list(joints)}"
    if kind == TRAJECTORY and limits.max_absolute_speed is None:
        return f"a {TRAJECTORY} needs limits.max_absolute_speed: without it a joint may be told to be anywhere in one step"
    return ""


def command(
    kind: str, action: np.ndarray, limits: SafetyLimits, hz: float, *, make: Callable[[], Any], **options: Any
) -> tuple[Any, float | None]:
    """The message of one control step's action [A], its header left to the caller, and the gripper's opening if it has
    no place for it.

    TWIST: translation and rotation times `hz`, in m/s and rad/s. POSE: `target`, which they move; where the robot
    shall be a step later. TRAJECTORY: the absolute entries of `joints`, a step of 1 / `hz` s ahead. ARRAY: the
    action as it is.

    Args:
        kind: one of COMMANDS.
        action, limits, hz: what is commanded, which entries are which, and the rate of control steps.
        make: the message's class.
        options: `target` and the measured `T_base_ee` for POSE; `joints`, `make_point` and `make_duration` for TRAJECTORY.
    """
    message = make()
    rest = action[list(limits.absolute)]
    if kind == ARRAY:
        message.data = [float(x) for x in action]
        return message, None
    if kind == TRAJECTORY:
        joints = options["joints"]
        point = options["make_point"]()
        point.positions = [float(x) for x in rest[: len(joints)]]
        point.time_from_start = options["make_duration"](1.0 / hz)
        message.joint_names, message.points = list(joints), [point]
        return message, float(rest[len(joints)]) if len(rest) > len(joints) else None
    motion, turn = action[list(limits.translation)].astype(float), action[list(limits.rotation)].astype(float)
    if kind == TWIST:
        _set_xyz(message.twist.linear, motion * hz)
        _set_xyz(message.twist.angular, turn * hz)
    else:
        position, (x, y, z, w) = options["target"].move(motion, turn, options["T_base_ee"])
        _set_xyz(message.pose.position, position)
        _set_xyz(message.pose.orientation, (x, y, z))
        message.pose.orientation.w = float(w)
    return message, float(rest[0]) if len(rest) else None


class PoseTarget:
    """The commanded pose. Actions move it, not the measured one: a still arm does not drift, and nothing of the way is lost
    where poses come less often than commands go.

    A leash keeps it where the robot could be: from the measured pose not further than `reach_s` at full speed, and within the
    workspace, so a blocked arm does not wind up.
    """

    def __init__(self, limits: SafetyLimits, *, policy_hz: float, reach_s: float) -> None:
        self._limits = limits
        steps = policy_hz * reach_s
        self._reach = limits.max_translation_per_step * steps, limits.max_rotation_per_step * steps
        self.forget()

    def forget(self) -> None:
        """The robot was not told: the next motion begins at the measured pose."""
        self._T: np.ndarray | None = None
        self._quaternion = np.zeros(4)

    @property
    def known(self) -> bool:
        """Whether there is one."""
        return self._T is not None

    def move(self, motion: np.ndarray, turn: np.ndarray, T_measured: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Position [3] and quaternion [4] (xyzw, continuous) after a translation [3] (m) and a rotation vector [3] (rad).

        T_measured: [4, 4]; None where unknown, which is no matter after the first.
        """
        T = T_measured if self._T is None else self._T
        assert T is not None
        T = T.copy()
        T[:3, 3] += motion
        T[:3, :3] = rotation_vector_matrix(turn) @ T[:3, :3]
        if T_measured is not None:
            T = self._leashed(T, T_measured)
        quaternion = matrix_quaternion(T[:3, :3])
        self._quaternion = -quaternion if quaternion @ self._quaternion < 0 else quaternion
        self._T = T
        return T[:3, 3], self._quaternion

    def _leashed(self, T: np.ndarray, T_measured: np.ndarray) -> np.ndarray:
        out, measured, R = np.eye(4), T_measured[:3, 3], T_measured[:3, :3]
        out[:3, :3] = rotation_vector_matrix(_shortened(matrix_rotation_vector(T[:3, :3] @ R.T), self._reach[1])) @ R
        out[:3, 3] = measured + _shortened(T[:3, 3] - measured, self._reach[0])
        low, high = self._limits.workspace_low, self._limits.workspace_high
        if low is not None and high is not None:
            out[:3, 3] = np.clip(out[:3, 3], np.minimum(low, measured), np.maximum(high, measured))
        return out


def _shortened(vector: np.ndarray, longest: float) -> np.ndarray:
    return vector * min(1.0, longest / max(float(np.linalg.norm(vector)), 1e-12))


def _set_xyz(part: Any, values: Any) -> None:
    part.x, part.y, part.z = (float(v) for v in values)
