#!/usr/bin/env bash
# Two virtual environments with a real ROS each, for `make test-ros`: install.sh PYTHON ROS1_VENV ROS2_VENV
#
# PYTHON is that of the package's own environment, CPython 3.11: the robot of the test imports the simulator from there.
# What cannot be installed leaves a line in VENV/missing, which is why the tests skip.
set -uo pipefail
python=$(realpath -s "$1") ros1=$2 ros2=$3
here=$(cd "$(dirname "$0")" && pwd)
lock=$here/../../requirements.lock
island=(numpy msgpack pyzmq pyyaml pillow "rosbags>=0.11,<0.12") # what the robot's side of the socket needs; the lock gives the versions
messages=5.3.6 # of ROS 2 Jazzy, whose rclpy is 7.1.6
debian=(rospy roslaunch rosmaster rosgraph rosbag rostopic rosnode rosparam std-msgs std-srvs sensor-msgs geometry-msgs
    trajectory-msgs diagnostic-msgs tf2-msgs)

make_venv() { # VENV WANTED PACKAGE...: false, and why, unless the packages are in it
    local venv=$1 wanted=$2
    shift 2
    if [ "$(cat "$venv/installed" 2>/dev/null)" = "$wanted" ]; then return 0; fi
    "$python" -m uv venv -q --clear --python "$python" "$venv" &&
        "$python" -m uv pip install -q --python "$venv/bin/python" --constraint <(grep -v '^#' "$lock") "$@" 2>"$venv/log" && return 0
    { echo "packages do not install: $(tail -n 3 "$venv/log" 2>/dev/null | tr '\n' ' ')"; } >"$venv/missing"
    return 1
}

ros2() {
    local packages=("ros-rclpy[fastrtps]==7.1.6" "ros-std-srvs==$messages")
    for name in sensor std geometry trajectory diagnostic; do packages+=("ros-$name-msgs==$messages"); done
    make_venv "$ros2" "ros2 ${packages[*]}" "${island[@]}" "${packages[@]}" || return
    echo "ros2 ${packages[*]}" >"$ros2/installed"
}

ros1() {
    make_venv "$ros1" "ros1 ${debian[*]}" "${island[@]}" || return
    if ! /usr/bin/python3 -c 'import rospy, rosbag, roslaunch, tf2_msgs' 2>/dev/null; then
        if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
            echo "Debian's python3-rospy is not installed, and apt-get needs root: apt-get install ${debian[*]/#/python3-}" >"$ros1/missing"
            return
        fi
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            "${debian[@]/#/python3-}"; } >"$ros1/log" 2>&1 ||
            { echo "apt-get could not install rospy: $(tail -n 2 "$ros1/log" | tr '\n' ' ')" >"$ros1/missing"; return; }
    fi
    # after the environment's own packages, so that its numpy wins
    echo /usr/lib/python3/dist-packages >"$("$ros1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_debian.pth"
    "$ros1/bin/python" -c 'import rospy, numpy' 2>"$ros1/log" ||
        { echo "rospy does not import in this Python: $(tail -n 1 "$ros1/log")" >"$ros1/missing"; return; }
    echo "ros1 ${debian[*]}" >"$ros1/installed"
}

rm -f "$ros1/missing" "$ros2/missing"
ros1
ros2
for venv in "$ros1" "$ros2"; do
    if [ -e "$venv/missing" ]; then echo "skipped, $venv: $(cat "$venv/missing")" >&2; fi
done
exit 0
