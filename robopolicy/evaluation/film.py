"""Pictures of worlds and of rollouts, for reports."""

from __future__ import annotations

import io
from collections.abc import Sequence

import gymnasium
import numpy as np
from PIL import Image

from robopolicy.data.collect import environment, play, robot_env
from robopolicy.evaluation.rollout import Arm, PolicyActor, Suite, arm_policy
from robopolicy.spec import Array


def worlds(suite: Suite, seeds: Sequence[int], size: int = 192) -> list[Array]:
    """The first frame uint8 [size, size, 3] of the worlds that `seeds` draw in the suite's environment."""
    env = environment(suite.env_id, suite.env_kwargs)
    pictures = []
    for seed in seeds:
        env.reset(seed=int(seed))
        pictures.append(robot_env(env).picture(size))
    return pictures


class _Filming:
    """An actor that photographs the environment before every `every`-th action of another actor."""

    def __init__(self, actor: PolicyActor, size: int, every: int) -> None:
        self.actor, self.size, self.every = actor, size, every
        self.frames: list[Array] = []
        self.facts = actor.facts

    @property
    def wants_observation(self) -> bool:
        return self.actor.wants_observation

    def reset(self, seed: int) -> None:
        self.actor.reset(seed)
        self._step = 0

    def act(self, env: gymnasium.Env, observation: dict[str, Array] | None) -> Array:
        if self._step % self.every == 0:
            self.frames.append(robot_env(env).picture(self.size))
        self._step += 1
        return self.actor.act(env, observation)


def film(arm: Arm, suite: Suite, seed: int, size: int = 192, every: int = 2) -> tuple[Array, bool]:
    """Frames uint8 [T, size, size, 3] of an episode, every `every` control steps and its end, and whether it succeeded.

    The episode is the one that evaluate() ran under that seed.
    """
    env = environment(suite.env_id, suite.env_kwargs)
    actor = _Filming(PolicyActor(arm_policy(arm)), size, every)
    episode = play(env, actor, int(seed))
    return np.stack([*actor.frames, robot_env(env).picture(size)]), bool(episode.row["success"])


def gif(frames: Array, milliseconds: int = 100) -> bytes:
    """An endless animation of frames uint8 [T, H, W, 3]; the last one stays for a second."""
    images = [Image.fromarray(frame).quantize(128, dither=Image.Dither.NONE) for frame in frames]
    durations = [milliseconds] * (len(images) - 1) + [1000]
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    return buffer.getvalue()


def strip(frames: Array, count: int = 7) -> Array:
    """`count` frames of a film, evenly spaced from first to last, uint8 [count, H, W, 3]."""
    return frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]
