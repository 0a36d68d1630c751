"""The picture of docs/dressing.md: python tools/make_dress_picture.py docs/images/dressing.jpg.

An episode of the scripted expert in each range of the elbow, below each frame the partial cloud that a policy gets (arm red,
garment blue, gripper black), and one episode with the Panda.
"""

from __future__ import annotations

import sys

import cv2
import numpy as np

from robopolicy.sim.dress import DressEnv
from robopolicy.sim.dress_experts import DressExpert
from robopolicy.spec import POINTS

SIZE, MOMENTS = 220, (0, 14, 26, 38)
COLOURS = {3: (200, 60, 50), 4: (50, 90, 200)}


def drawn(cloud: np.ndarray, gripper: np.ndarray) -> np.ndarray:
    """A cloud from the side of the camera, uint8 [SIZE, SIZE, 3]."""
    picture = np.full((SIZE, SIZE, 3), 255, np.uint8)

    def place(point: np.ndarray) -> tuple[int, int]:
        x, z = (point[[0, 2]] - [-0.45, 0.55]) / 1.3 * SIZE  # 1.3 m of the plane that the camera faces
        return int(x), int(SIZE - z)

    for column, colour in COLOURS.items():
        for point in cloud[cloud[:, column] == 1]:
            cv2.circle(picture, place(point[:3]), 3, colour, -1, cv2.LINE_AA)
    cv2.circle(picture, place(gripper), 5, (20, 20, 20), -1, cv2.LINE_AA)
    return picture


def episode(env: DressEnv, seed: int, region: str) -> np.ndarray:
    """Frames over clouds at some moments of an expert's episode."""
    observation, _ = env.reset(seed=seed, options={"region": region})
    expert, columns = DressExpert(), []
    for step in range(max(MOMENTS) + 1):
        if step in MOMENTS:
            columns.append(np.vstack([env.picture(SIZE), drawn(observation[POINTS], env.cloth.position)]))
        observation = env.step(expert(env))[0]
    return np.hstack(columns)


def main() -> None:
    """Play, draw, write."""
    rows = [np.hstack([episode(DressEnv(), 3, "straight"), episode(DressEnv(), 4, "bent")])]
    rows.append(np.hstack([episode(DressEnv(), 5, "folded"), episode(DressEnv(holder="panda"), 0, "bent")]))
    cv2.imwrite(sys.argv[1], np.vstack(rows)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])


if __name__ == "__main__":
    main()
