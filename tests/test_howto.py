"""The how-to's example is real: what docs/add_a_task.md shows runs, in both simulators."""

import re
import types
from pathlib import Path

import pytest
import yaml

from robopolicy.sim.env import RobotEnv

PAGE = (Path(__file__).parents[1] / "docs" / "add_a_task.md").read_text()


@pytest.fixture(scope="module")
def topple():
    module = types.ModuleType("topple")
    exec(re.search(r"```python\n(.*?)```", PAGE, re.S)[1], module.__dict__)
    return module.Topple


@pytest.mark.parametrize("engine", ["bullet", "mujoco"])
def test_the_task_of_the_how_to_works_in_both_simulators(topple, engine):
    settings = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.S)[1])
    env = RobotEnv(task=topple(), engine=engine, randomization="wide", **settings["env"])
    successes = 0
    for seed in range(8):
        env.reset(seed=seed)
        expert = env.expert()
        successes += any(env.advance(expert(env))[1] for _ in range(settings["max_episode_steps"]))
    assert successes >= 7
    assert set(env.features) == {"observation.state", "observation.images.front", "observation.points"}
