"""robopolicy: take a robot manipulation skill from simulation to a real arm, and know which checkpoint to put on it.

Importing the package registers the gymnasium ids robopolicy/<Task>-v0 and robopolicy/<Task>Twin-v0 and loads no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robopolicy.spec import Critic, Policy

__version__ = "0.1.0"


def _register() -> None:
    """One id for each task file in conf/task, and one for its twin where it has one."""
    try:
        from gymnasium import register
    except ImportError:  # ranking and deployment work without it
        return
    import yaml

    from robopolicy.resources import conf_dir

    for file in sorted((conf_dir() / "task").glob("*.yaml")):
        task = yaml.safe_load(file.read_text())
        limit = task["max_episode_steps"]
        if "entry_point" in task:  # an environment of its own
            register(task["env_id"], task["entry_point"], max_episode_steps=limit)
            continue
        for key, engine in (("env_id", "bullet"), ("twin_id", "mujoco")):
            kwargs = {"task": file.stem, "engine": engine}
            register(task[key], "robopolicy.sim.env:RobotEnv", max_episode_steps=limit, kwargs=kwargs)


_register()


def expert(env: Any) -> Any:
    """The scripted, privileged expert of an environment, wrapped or not: a callable (env) -> action float32 [A]."""
    return env.unwrapped.expert()


def load_policy(path: str | Path) -> Policy:
    """The policy in a checkpoint directory. Raises checkpoint.CheckpointError when it cannot be loaded whole."""
    from robopolicy.policies.load import load_policy

    return load_policy(path)


def load_critic(path: str | Path) -> Critic:
    """The critic in a checkpoint directory. Raises checkpoint.CheckpointError when it cannot be loaded whole."""
    from robopolicy.policies.load import load_critic

    return load_critic(path)
