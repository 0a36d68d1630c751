"""ROS 2 launch file of the inference node. An example: checked for syntax, never run here (the launch package has no wheels).

    ros2 launch ros2.launch.py config:=robot.yaml enable:=false
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction
from launch.substitutions import LaunchConfiguration

ARGUMENTS = {
    "tool": "tools/ros_infer.py",  # of this repository
    "config": "assets/ros/lift.yaml",
    "address": "tcp://127.0.0.1:5555",
    "enable": "false",  # true: commands go to the robot
    "record": "",  # a bag to write
    "use_sim_time": "false",
}


def start(context):
    """The process; it is no ament package, so a Node action would not find it."""
    values = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    command = ["python3", values["tool"], "--ros", "2", "--config", values["config"], "--address", values["address"]]
    command += ["--enable"] if values["enable"] == "true" else []
    command += ["--record", values["record"]] if values["record"] else []
    command += ["--ros-args", "-p", "use_sim_time:=" + values["use_sim_time"]]
    return [ExecuteProcess(cmd=command, output="screen", sigterm_timeout="10")]


def generate_launch_description():
    """See ros2 launch."""
    declared = [DeclareLaunchArgument(name, default_value=default) for name, default in ARGUMENTS.items()]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])
