"""Whether steering was shown to help a policy: outcomes of paired episodes, kept beside the critic.

A critic that is a little right at every decision can gain much over an episode, and no single decision shows it: paired
episodes prove with dozens what branches of single decisions would need thousands for. A proof holds for the settings that were
played, and every further attempt has to be surer, so that all together prove falsely in at most LEVEL of cases.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from robopolicy.checkpoint import sha256
from robopolicy.data.collect import episode_seed
from robopolicy.evaluation.rollout import Arm, Suite
from robopolicy.files import atomic_write
from robopolicy.policies.load import identity
from robopolicy.policies.selection import Selection

FILE = "proof.json"
LEVEL = 0.05  # of the one-sided tests, all attempts together
CHOICE = {field.name: field.default for field in fields(Selection) if field.name != "min_gain"}


def is_proven(only_base: int, only_steered: int, p_value: float | None, attempt: int = 1) -> bool:
    """Whether steering won, by the numbers of episodes that one arm alone did and the two-sided exact p of McNemar's test.

    attempt: its number, from 1.
    """
    return only_steered > only_base and p_value is not None and p_value / 2 <= level(attempt)


def level(attempt: int) -> float:
    """What the one-sided p of an attempt must be at most; LEVEL is the sum over all that there can be."""
    return LEVEL / (attempt * (attempt + 1))


def settings_of(arm: Arm) -> dict[str, Any]:
    """What a proof of a steered arm holds for: critics, candidates, and how it chooses but for `min_gain`."""
    options = {**CHOICE, **{name: value for name, value in arm.steer.items() if name != "min_gain"}}
    critics = {name: path and sha256(path) for name, path in (("critic", arm.critic), ("safety", arm.safety))}
    return _plain({**critics, "perturb": dict(arm.perturb), **options})


def worlds(suite: Suite, seed: int) -> dict[str, Any]:
    """The worlds of a suite that was drawn with `seed`, JSON values."""
    facts = {"env_id": suite.env_id, "env_kwargs": dict(suite.env_kwargs), "seed": seed, "episodes": len(suite.seeds)}
    return _plain(facts)


def attempts(arm: Arm) -> list[dict[str, Any]]:
    """What was tried to prove that a checkpoint of the critic's run helps the arm's policy, in any settings, the latest last.

    Raises:
        ValueError: the file cannot be read.
    """
    file = _file(arm)
    try:
        found = json.loads(file.read_text())["attempts"].get(identity(arm.checkpoint), []) if file.is_file() else []
        return [{**each, "settings": {**CHOICE, **each["settings"]}} for each in found]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is no record of proofs ({error}): move it away, and prove the critic anew") from error


def record(arm: Arm, played: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Write what came of a steered arm beside its base into the critic's run; the attempt, with "attempt" and "proven".

    The same settings in the same worlds again are the same attempt.

    Args:
        played: see `worlds`. found: "only_base", "only_steered" and "p_value" (see `is_proven`), and further facts.
    """
    known = attempts(arm)
    asked: dict[str, Any] = {"settings": settings_of(arm), "worlds": dict(played), "instruction": arm.instruction}
    numbers = [n for n, each in enumerate(known, 1) if all(each[key] == asked[key] for key in asked)]
    number = numbers[0] if numbers else len(known) + 1
    proven = is_proven(found["only_base"], found["only_steered"], found["p_value"], number)
    attempt = {**asked, **found, "attempt": number, "proven": proven}
    known[number - 1 : number] = [attempt]
    file = _file(arm)
    content = json.loads(file.read_text()) if file.is_file() else {"attempts": {}}
    content["attempts"][identity(arm.checkpoint)] = known
    atomic_write(file, (json.dumps(content, indent=1) + "\n").encode())
    return attempt


def recorded(arm: Arm) -> tuple[bool | None, list[str]]:
    """Whether the latest attempt in the arm's settings is a proof, None where nothing was tried.

    (False, differences) where nothing was tried in these settings but in others, with how those of the latest attempt differ.
    """
    now = settings_of(arm)
    known = [each for each in attempts(arm) if each["settings"]["critic"] == now["critic"]]
    if not known:
        return None, []
    same = [each for each in known if each["settings"] == now]
    if same:
        return bool(same[-1]["proven"]), []
    then = known[-1]["settings"]
    names = [name for name in {**now, **then} if then.get(name) != now.get(name) or (name in then) != (name in now)]
    return False, [f"{name} was {then.get(name)!r}, is {now.get(name)!r}" for name in names]


def seen(arm: Arm, suite: Suite) -> int:
    """How many worlds of a suite an attempt to prove the arm's critic has played."""
    here, found = _plain({"env_id": suite.env_id, "env_kwargs": dict(suite.env_kwargs)}), set()
    for each in (each["worlds"] for each in attempts(arm)):
        if all(each.get(key) == value for key, value in here.items()):
            found |= {episode_seed(each["seed"], i) for i in range(each["episodes"])}
    return len(found & set(suite.seeds))


def _file(arm: Arm) -> Path:
    """In the run of the critic's checkpoint; in the checkpoint itself where it was taken out of its run."""
    critic = Path(str(arm.critic))
    return (critic.parent.parent if critic.parent.name == "checkpoints" else critic) / FILE


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    return json.loads(json.dumps(facts))
