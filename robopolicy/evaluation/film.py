"""Pictures of worlds and films of episodes, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from robopolicy.data.actors import Actor
from robopolicy.data.collect import Episode, environment, play, robot_env
from robopolicy.evaluation.rollout import Arm, PolicyActor, Suite, arm_policy
from robopolicy.sim import world
from robopolicy.sim.scene import Frame
from robopolicy.spec import Array


def look(env: gymnasium.Env, camera: str, size: int) -> Frame:
    """What a camera of the environment sees now, size x size pixels, without sensor noise."""
    robot = robot_env(env)
    return robot.engine.render(world.camera(camera, robot.world, robot.T_base_ee, size))


def worlds(suite: Suite, seeds: Sequence[int], size: int = 192) -> list[Array]:
    """The first frame uint8 [size, size, 3] of the worlds that `seeds` draw in the suite's environment."""
    env = environment(suite.env_id, suite.env_kwargs)
    pictures = []
    for seed in seeds:
        env.reset(seed=int(seed))
        pictures.append(look(env, "front", size).rgb)
    return pictures


class _Filming:
    """An actor that photographs the environment before every `every`-th action of another actor."""

    def __init__(self, actor: Actor, cameras: Sequence[str], size: int, every: int) -> None:
        self.actor, self.cameras, self.size, self.every = actor, cameras, size, every
        self.frames: list[Array] = []

    @property
    def facts(self) -> Any:
        return self.actor.facts

    @property
    def wants_observation(self) -> bool:
        return self.actor.wants_observation

    def reset(self, seed: int) -> None:
        self.actor.reset(seed)
        self._step = 0

    def act(self, env: gymnasium.Env, observation: dict[str, Array] | None) -> Array:
        if self._step % self.every == 0:
            self.photograph(env)
        self._step += 1
        return self.actor.act(env, observation)

    def photograph(self, env: gymnasium.Env) -> None:
        self.frames.append(np.concatenate([look(env, camera, self.size).rgb for camera in self.cameras], axis=1))


def film_actor(
    env: gymnasium.Env, actor: Actor, seed: int, cameras: Sequence[str] = ("front",), size: int = 192, every: int = 2
) -> tuple[Array, Episode]:
    """An actor's episode and frames uint8 [T, size, cameras * size, 3] of it, every `every` control steps and its end."""
    filming = _Filming(actor, cameras, size, every)
    episode = play(env, filming, int(seed))
    filming.photograph(env)
    return np.stack(filming.frames), episode


def film(arm: Arm, suite: Suite, seed: int, size: int = 192, every: int = 2) -> tuple[Array, bool]:
    """Frames uint8 [T, size, size, 3] of an episode, every `every` control steps and its end, and whether it succeeded.

    The episode is the one that evaluate() ran under that seed.
    """
    env = environment(suite.env_id, suite.env_kwargs)
    frames, episode = film_actor(env, PolicyActor(arm_policy(arm)), seed, size=size, every=every)
    return frames, bool(episode.row["success"])


def strip(frames: Array, count: int = 7) -> Array:
    """`count` frames of a film, evenly spaced from first to last, uint8 [count, H, W, 3]."""
    return frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]
