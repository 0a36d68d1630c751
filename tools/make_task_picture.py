"""The picture of the tasks in docs/simulator.md: python tools/make_task_picture.py docs/images/tasks.jpg.

A row a task; from left to right: an expert's episode in the nominal world, the wrist camera, three randomised worlds, the twin.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gymnasium
import numpy as np
from PIL import Image

from robopolicy.data.collect import robot_env
from robopolicy.sim.tasks import make_task, task_names

SIZE, GAP = 132, 4  # px
SEED = 5


def episode(env_id: str, randomization: str, moments: tuple[float, ...], camera: str = "front") -> list[np.ndarray]:
    """Pictures of an expert's episode at `moments`, shares of its length."""
    env = gymnasium.make(env_id, disable_env_checker=True, observation=("state",), randomization=randomization)
    world, pictures = robot_env(env), []
    env.reset(seed=SEED)
    expert, ended = world.expert(), False
    while not ended:
        pictures.append(world.picture(SIZE, camera))
        _, _, terminated, truncated, _ = env.step(expert(env))
        ended = terminated or truncated
    pictures.append(world.picture(SIZE, camera))
    env.close()
    return [pictures[round(moment * (len(pictures) - 1))] for moment in moments]


def worlds(env_id: str, randomization: str, seeds: range) -> list[np.ndarray]:
    """Randomised worlds as they start."""
    env = gymnasium.make(env_id, disable_env_checker=True, observation=("state",), randomization=randomization)
    pictures = []
    for seed in seeds:
        env.reset(seed=seed)
        pictures.append(robot_env(env).picture(SIZE))
    env.close()
    return pictures


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    rows = []
    for name in task_names():
        task = type(make_task(name)).__name__
        base, twin = f"robopolicy/{task}-v0", f"robopolicy/{task}Twin-v0"
        row = episode(base, "none", (0.0, 0.5, 1.0)) + episode(base, "none", (0.6,), "wrist")
        row += worlds(base, "wide", range(20, 23)) + episode(twin, "twin", (0.0, 0.7))
        rows.append(row)
    height, width = len(rows) * (SIZE + GAP) - GAP, len(rows[0]) * (SIZE + GAP) - GAP
    sheet = np.full((height, width, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            sheet[i * (SIZE + GAP) :, j * (SIZE + GAP) :][:SIZE, :SIZE] = picture
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(arguments.out, quality=88)


if __name__ == "__main__":
    main()
