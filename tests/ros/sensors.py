"""Every kind of sensor on real topics, and an operator with an emergency stop.

    sensors.py --ros 2 --out FILE.json [--tf]

Publishes at 20 Hz, over and over, the eight moments that `moment(k)` describes, raw VGA pictures among them, until
/joint_commands has come for a while; then presses the emergency stop, and writes what the node made of it.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path

import numpy as np
from PIL import Image

NUM_MOMENTS = 8
# The camera looks straight down from 1.2 m: its x is the base's x, its y and z are the base's -y and -z.
T_BASE_CAMERA = [[1.0, 0.0, 0.0, 0.5], [0.0, -1.0, 0.0, 0.1], [0.0, 0.0, -1.0, 1.2], [0.0, 0.0, 0.0, 1.0]]
FOCAL, WIDTH, HEIGHT = 150.0, 160, 120


def moment(k: int) -> dict[str, np.ndarray]:
    """What there is to see at moment k: small pictures (shown enlarged), a flat depth (m), points and joints."""
    rng = np.random.default_rng(k)
    return {
        "raw": rng.integers(0, 256, (48, 64, 3), dtype=np.uint8),
        "compressed": rng.integers(0, 256, (24, 32, 3), dtype=np.uint8),
        "depth": np.full((HEIGHT, WIDTH), 1.0 + 0.01 * k, np.float32),
        "cloud": rng.uniform(-1, 1, (64, 3)).astype(np.float32),
        "joints": np.array([0.1, 0.2, 0.3]) + k,
    }


def enlarged(picture: np.ndarray, times: int) -> np.ndarray:
    """Every pixel repeated."""
    return picture.repeat(times, 0).repeat(times, 1)


class Sensors:
    """The topics."""

    def __init__(self, ros, message, tf: bool) -> None:
        self.ros, self.message, self.commands = ros, message, []
        ros.subscribe("/joint_commands", "trajectory_msgs/JointTrajectory", self.commands.append)
        self.stop(False)
        if tf:
            self._publish_tf()
        self._info = message("sensor_msgs/CameraInfo")(height=HEIGHT, width=WIDTH)
        K = [FOCAL, 0.0, (WIDTH - 1) / 2, 0.0, FOCAL, (HEIGHT - 1) / 2, 0.0, 0.0, 1.0]
        setattr(self._info, "k" if hasattr(self._info, "k") else "K", K)
        moments = [moment(k) for k in range(NUM_MOMENTS)]
        self.values = [
            {**m, "vga": enlarged(m["raw"], 10).tobytes(), "png": _png(enlarged(m["compressed"], 10))} for m in moments
        ]

    def stop(self, pressed: bool) -> None:
        """The emergency stop, of the kind of publisher that asks least of the middleware."""
        self.ros.publish("/emergency_stop", "std_msgs/Bool", self.message("std_msgs/Bool")(data=pressed), best_effort=True)

    def _publish_tf(self) -> None:
        item = self.message("geometry_msgs/TransformStamped")()
        item.header.frame_id, item.child_frame_id = "base", "camera_optical"
        item.transform.translation.x, item.transform.translation.y, item.transform.translation.z = 0.5, 0.1, 1.2
        item.transform.rotation.x = 1.0  # half a turn about x
        self.ros.publish("/tf_static", "tf2_msgs/TFMessage", self.message("tf2_msgs/TFMessage")([item]), latched=True)

    def show(self, k: int) -> None:
        """Publish moment k, all of it with one stamp."""
        stamp, value = self.ros.time(time.time()), self.values[k]

        def send(topic, kind, frame="", **fields) -> None:
            sent = self.message(kind)(**fields)
            sent.header.stamp, sent.header.frame_id = stamp, frame
            self.ros.publish(topic, kind, sent)

        send("/joints", "sensor_msgs/JointState", name=["a", "b", "c"], position=value["joints"].tolist())
        send("/raw", "sensor_msgs/Image", height=480, width=640, encoding="rgb8", step=1920, data=value["vga"])
        send("/compressed", "sensor_msgs/CompressedImage", format="png", data=value["png"])
        self._info.header.stamp = stamp
        self.ros.publish("/depth/info", "sensor_msgs/CameraInfo", self._info)
        options = {"height": HEIGHT, "width": WIDTH, "encoding": "32FC1", "step": 4 * WIDTH, "data": value["depth"].tobytes()}
        send("/depth", "sensor_msgs/Image", "camera_optical", **options)
        field = self.message("sensor_msgs/PointField")
        fields = [field(name=name, offset=4 * i, datatype=7, count=1) for i, name in enumerate("xyz")]
        cloud = {"height": 1, "width": 64, "fields": fields, "point_step": 12, "row_step": 768, "is_dense": True}
        send("/cloud", "sensor_msgs/PointCloud2", "base", data=value["cloud"].tobytes(), **cloud)


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def main() -> None:
    """Show, and press the emergency stop once commands have come."""
    from middleware import Ros1Robot, Ros2Robot, message

    parser = argparse.ArgumentParser()
    parser.add_argument("--ros", choices=["1", "2"], required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tf", action="store_true")
    args = parser.parse_args()
    ros = Ros1Robot() if args.ros == "1" else Ros2Robot()
    sensors = Sensors(ros, message, args.tf)
    out, due, pressed, n = {}, time.monotonic(), None, 0
    deadline = due + 60.0
    while pressed is None or n < pressed + 10:
        sensors.show(n % NUM_MOMENTS)
        due += 0.05
        time.sleep(max(0.0, due - time.monotonic()))
        n += 1
        if pressed is None and len(sensors.commands) >= 40:
            out["before"] = len(sensors.commands)
            sensors.stop(True)
            pressed = n
        if time.monotonic() > deadline:
            raise SystemExit(f"only {len(sensors.commands)} commands came")
    last = [list(c.points[0].positions) for c in sensors.commands[-3:]]
    out |= {"after": last, "names": list(sensors.commands[-1].joint_names), "reset_pressed": ros.call("/robopolicy/reset")}
    sensors.stop(False)
    time.sleep(0.5)
    out["start_unreset"] = ros.call("/robopolicy/start")
    out["reset"], out["start"] = ros.call("/robopolicy/reset"), ros.call("/robopolicy/start")
    count = len(sensors.commands)
    for k in range(20):
        sensors.show(k % NUM_MOMENTS)
        time.sleep(0.05)
    out["resumed"] = len(sensors.commands) - count
    args.out.write_text(json.dumps(out))
    ros.close()


if __name__ == "__main__":
    main()
