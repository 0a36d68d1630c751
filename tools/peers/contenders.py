"""What is compared. Every contender has reset(seed), step() -> frame uint8 [S, S, 3] or None, and settings() -> dict.

A step is one random action and, where there are pictures, one frame as the environment's user would get it. Simulators are
imported by the contender that needs them, because each peer lives in an environment of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

EPISODE = 50  # steps between two resets, for everybody


class Contender(Protocol):
    """One simulator, ready to run."""

    def reset(self, seed: int) -> None:
        """Start an episode."""

    def step(self) -> np.ndarray | None:
        """One step with a random action and, with pictures, its frame."""

    def settings(self) -> dict[str, Any]:
        """What it spends: time steps, shadows, antialiasing, faces, as far as it tells."""


class Gymnasium:
    """A gymnasium environment; `frame` takes the picture out of it and its observation."""

    def __init__(self, env: Any, frame: Callable[[Any, Any], np.ndarray] | None, settings: dict[str, Any]):
        self.env, self._frame, self._settings = env, frame, settings

    def reset(self, seed: int) -> None:
        """See Contender.reset."""
        self.env.reset(seed=seed)
        self.env.action_space.seed(seed)

    def step(self) -> np.ndarray | None:
        """See Contender.step."""
        observation = self.env.step(self.env.action_space.sample())[0]
        return self._frame(self.env, observation) if self._frame else None

    def settings(self) -> dict[str, Any]:
        """See Contender.settings."""
        return self._settings


def _rendered(env: Any, observation: Any) -> np.ndarray:
    return env.render()


def _mujoco_settings(model: Any, substeps: int) -> dict[str, Any]:
    quality = model.vis.quality
    return {
        "physics": f"{substeps} x {1e3 * model.opt.timestep:g} ms",
        "shadow_map": int(quality.shadowsize) if model.nlight and model.light_castshadow.any() else 0,
        "msaa": int(quality.offsamples),
        "mesh_faces": int(model.mesh_facenum[model.geom_dataid[(model.geom_type == 7) & (model.geom_group <= 2)]].sum()),
    }


def ours(image: bool, size: int, randomization: str = "wide") -> Contender:
    """robopolicy/Lift-v0 with shadows; "wide" draws every factor anew at each reset."""
    import gymnasium

    import robopolicy  # noqa: F401  registers the environments

    observation = ("images.front",) if image else ("state",)
    env = gymnasium.make("robopolicy/Lift-v0", observation=observation, image_size=size, randomization=randomization)
    key = "observation.images.front"
    step = env.unwrapped.engine.time_step
    settings = {"physics": f"{round(0.05 / step)} x {1e3 * step:.3g} ms", "shadows": image, "msaa": 0}
    return Gymnasium(env, (lambda _, seen: seen[key]) if image else None, settings)


def panda_gym(image: bool, size: int) -> Contender:
    """PandaPickAndPlace-v3: PyBullet, pictures by its TinyRenderer."""
    import gymnasium
    import panda_gym  # noqa: F401  registers the environments

    kwargs = {"render_mode": "rgb_array", "renderer": "Tiny", "render_width": size, "render_height": size} if image else {}
    env = gymnasium.make("PandaPickAndPlace-v3", **kwargs)
    sim = env.unwrapped.sim
    settings = {"physics": f"{sim.n_substeps} x {1e3 * sim.timestep:g} ms", "renderer": "Tiny, original meshes"}
    return Gymnasium(env, _rendered if image else None, settings)


def gymnasium_robotics(image: bool, size: int) -> Contender:
    """FetchPickAndPlace-v4: MuJoCo with its OpenGL renderer."""
    import gymnasium
    import gymnasium_robotics

    gymnasium.register_envs(gymnasium_robotics)
    kwargs = {"render_mode": "rgb_array", "width": size, "height": size} if image else {}
    env = gymnasium.make("FetchPickAndPlace-v4", **kwargs)
    inner = env.unwrapped
    return Gymnasium(env, _rendered if image else None, _mujoco_settings(inner.model, inner.n_substeps))


def metaworld(image: bool, size: int) -> Contender:
    """pick-place-v3, camera corner2: MuJoCo with its OpenGL renderer."""
    import gymnasium
    import metaworld  # noqa: F401  registers the environments

    kwargs = {"render_mode": "rgb_array", "camera_name": "corner2", "width": size, "height": size} if image else {}
    env = gymnasium.make("Meta-World/MT1", env_name="pick-place-v3", **kwargs)
    inner = env.unwrapped
    return Gymnasium(env, _rendered if image else None, _mujoco_settings(inner.model, inner.frame_skip))


class Robosuite:
    """Lift with a Panda, its default controller (OSC), 20 Hz, camera agentview."""

    def __init__(self, image: bool, size: int):
        import robosuite

        cameras = {"camera_names": "agentview", "camera_heights": size, "camera_widths": size} if image else {}
        self._env = robosuite.make(
            "Lift", robots="Panda", has_renderer=False, has_offscreen_renderer=image, use_camera_obs=image, **cameras
        )
        self._image, self._rng = image, np.random.default_rng(0)
        self._low, self._high = self._env.action_spec

    def reset(self, seed: int) -> None:
        """See Contender.reset."""
        self._env.reset()
        self._rng = np.random.default_rng(seed)

    def step(self) -> np.ndarray | None:
        """See Contender.step."""
        seen = self._env.step(self._rng.uniform(self._low, self._high))[0]
        return seen["agentview_image"] if self._image else None

    def settings(self) -> dict[str, Any]:
        """See Contender.settings."""
        env = self._env
        return _mujoco_settings(env.sim.model._model, round(env.control_timestep / env.model_timestep))


def make(name: str, options: dict[str, Any]) -> Contender:
    """The contender `name` with its options."""
    from peers import equal_scene

    known = {
        "ours": ours,
        "panda_gym": panda_gym,
        "gymnasium_robotics": gymnasium_robotics,
        "metaworld": metaworld,
        "robosuite": Robosuite,
        "ours_equal_scene": equal_scene.Ours,
        "mujoco_equal_scene": equal_scene.Mujoco,
        "mujoco_lift": equal_scene.MujocoLift,
    }
    return known[name](**options)
