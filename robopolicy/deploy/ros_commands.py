"""Actions as ROS messages: velocities, poses, joint trajectories, or the bare numbers.

Part of the robot-side island: numpy only; the message classes are handed in, so that ROS 1, ROS 2 and a test can use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING or __package__:
    from .ros_transforms import matrix_quaternion, rotation_vector_matrix
else:  # this folder itself is on the path
    from ros_transforms import matrix_quaternion, rotation_vector_matrix

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
    return ""


def command(
    kind: str, action: np.ndarray, limits: SafetyLimits, hz: float, *, make: Callable[[], Any], **options: Any
) -> tuple[Any, float | None]:
    """The message of one control step's action [A], its header left to the caller, and the gripper's opening if it has
    no place for it.

    TWIST: translation and rotation times `hz`, in m/s and rad/s. POSE: `T_base_ee` [4, 4] moved by them, where the
    robot shall be a step later. TRAJECTORY: the absolute entries of `joints`, a step of 1 / `hz` s ahead. ARRAY: the
    action as it is.

    Args:
        kind: one of COMMANDS.
        action, limits, hz: what is commanded, which entries are which, and the rate of control steps.
        make: the message's class.
        options: `T_base_ee` for POSE; `joints`, `make_point` and `make_duration` for TRAJECTORY.
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
        T = options["T_base_ee"]
        _set_xyz(message.pose.position, T[:3, 3] + motion)
        x, y, z, w = matrix_quaternion(rotation_vector_matrix(turn) @ T[:3, :3])
        _set_xyz(message.pose.orientation, (x, y, z))
        message.pose.orientation.w = float(w)
    return message, float(rest[0]) if len(rest) else None


def _set_xyz(part: Any, values: Any) -> None:
    part.x, part.y, part.z = (float(v) for v in values)
