"""A robot on ROS that is a simulation: our environment behind topics, in a process of its own.

    robot.py --ros 2 --settings FILE.json --out FILE.json [--lockstep]

Sensors: /joint_states, /ee_pose, /environment (what the simulator knows of the object), /emergency_stop. Commands: the
velocities on /cmd and the opening on /gripper. With --lockstep its clock is /clock, which stands still until a command has
come; without, it goes on at its 20 Hz and takes the newest command, or none.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path

import numpy as np
from middleware import Ros1Robot, Ros2Robot, message
from scipy.spatial.transform import Rotation

from robopolicy.data.collect import environment, robot_env
from robopolicy.geometry import matrix_from_6d
from robopolicy.spec import ENVIRONMENT_STATE, STATE

NODE = "/robopolicy"
STALE_S = 0.2  # a command older than this moves nothing


class Robot:
    """The environment's topics."""

    def __init__(self, ros: Ros1Robot | Ros2Robot, settings: dict, lockstep: bool) -> None:
        self.ros, self.lockstep = ros, lockstep
        self.env = environment(settings["env_id"], settings["env_kwargs"])
        self.period = robot_env(self.env).period
        self.stamp = 100.0
        self._news = threading.Condition()
        self._twist, self._gripper, self._num_twists, self._num_grips, self._came = None, None, 0, 0, 0.0
        ros.subscribe("/cmd", "geometry_msgs/TwistStamped", self._take_twist)
        ros.subscribe("/gripper", "std_msgs/Float64", self._take_gripper)

    def _take_twist(self, received) -> None:
        with self._news:
            linear, angular = received.twist.linear, received.twist.angular
            self._twist = np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])
            self._num_twists, self._came = self._num_twists + 1, time.monotonic()
            self._news.notify_all()

    def _take_gripper(self, received) -> None:
        with self._news:
            self._gripper, self._num_grips = received.data, self._num_grips + 1
            self._news.notify_all()

    def show(self, observation: dict) -> None:
        """Publish what the sensors see, stamped with a new moment."""
        if self.lockstep:
            self.stamp += self.period
            self.ros.publish("/clock", "rosgraph_msgs/Clock", message("rosgraph_msgs/Clock")(clock=self.ros.time(self.stamp)))
        else:
            self.stamp = time.time()
        state = observation[STATE].astype(float)
        joints = message("sensor_msgs/JointState")()
        joints.name = ["panda_finger_joint1", *(f"panda_joint{i + 1}" for i in range(7))]  # not in the order of training
        joints.position = [float(state[7]) / 2, *state[:7].tolist()]
        joints.header.stamp = self.ros.time(self.stamp)
        pose = message("geometry_msgs/PoseStamped")()
        pose.header.stamp, pose.header.frame_id = self.ros.time(self.stamp), "panda_link0"
        x, y, z, w = Rotation.from_matrix(matrix_from_6d(state[11:])).as_quat().tolist()
        point, turn = pose.pose.position, pose.pose.orientation
        point.x, point.y, point.z = state[8:11].tolist()
        turn.x, turn.y, turn.z, turn.w = x, y, z, w
        known = message("std_msgs/Float64MultiArray")(data=observation[ENVIRONMENT_STATE].astype(float).tolist())
        self.ros.publish("/environment", "std_msgs/Float64MultiArray", known)
        self.ros.publish("/joint_states", "sensor_msgs/JointState", joints)
        self.ros.publish("/ee_pose", "geometry_msgs/PoseStamped", pose)

    def command(self, twists: int, grips: int, timeout_s: float) -> np.ndarray | None:
        """In lockstep the action [7] that comes after so many; else the newest, if it is new enough."""
        with self._news:
            if self.lockstep and not self._news.wait_for(
                lambda: self._num_twists > twists and self._num_grips > grips, timeout_s
            ):
                return None
            fresh = self.lockstep or time.monotonic() - self._came < STALE_S
            motion = self._twist * self.period if fresh and self._twist is not None else np.zeros(6)
            return np.append(motion, 1.0 if self._gripper is None else self._gripper).astype(np.float32)

    def episode(self, seed: int) -> dict:
        """Play one with the node at the other end."""
        success, text = self.ros.call(f"{NODE}/reset", 90.0)
        if not success:
            raise RuntimeError(f"reset: {text}")
        self._gripper = None
        observation, _ = self.env.reset(seed=seed)
        deadline = time.monotonic() + 60.0
        while True:  # until it has seen everything
            self.show(observation)
            success, text = self.ros.call(f"{NODE}/start")
            if success:
                break
            if time.monotonic() > deadline:
                raise RuntimeError(f"start: {text}")
            time.sleep(0.1)
        length, retries, ended, info, actions = 0, 0, False, {}, []
        due = time.monotonic()
        while not ended:
            counts = self._num_twists, self._num_grips
            self.show(observation)
            if not self.lockstep:
                due += self.period
                time.sleep(max(0.0, due - time.monotonic()))
            action = self.command(*counts, timeout_s=2.0)
            if action is None:
                retries += 1
                if retries > 20:
                    raise RuntimeError(f"no command after step {length}")
                continue
            observation, _, terminated, truncated, info = self.env.step(np.clip(action, *self._bounds()))
            actions.append(action.tolist())
            length, ended = length + 1, terminated or truncated
        self.ros.call(f"{NODE}/stop")
        return {"seed": seed, "success": bool(info["success"]), "length": length, "retries": retries, "actions": actions}

    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        return self.env.action_space.low, self.env.action_space.high


def main() -> None:
    """Play the episodes, write what came of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ros", choices=["1", "2"], required=True)
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lockstep", action="store_true")
    args = parser.parse_args()
    settings = json.loads(args.settings.read_text())
    ros = Ros1Robot() if args.ros == "1" else Ros2Robot()
    ros.publish("/emergency_stop", "std_msgs/Bool", message("std_msgs/Bool")(data=False), latched=True)
    robot = Robot(ros, settings, args.lockstep)
    rows = [robot.episode(seed) for seed in settings["seeds"]]
    args.out.write_text(json.dumps(rows))
    ros.close()


if __name__ == "__main__":
    main()
