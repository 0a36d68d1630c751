"""Whether steering was shown to help a policy: outcomes of paired episodes, kept beside the critic.

A critic that is a little right at every decision can gain much over an episode, and no single decision shows it: paired
episodes prove with dozens what branches of single decisions would need thousands for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robopolicy.files import atomic_write

FILE = "proof.json"
LEVEL = 0.05  # of the one-sided test


def is_proven(only_base: int, only_steered: int, p_value: float | None) -> bool:
    """Whether steering won, by the numbers of episodes that one arm alone did and the two-sided exact p of McNemar's test."""
    return only_steered > only_base and p_value is not None and p_value / 2 <= LEVEL


def record(critic: Path, policy_sha: str, found: Mapping[str, Any]) -> bool:
    """Write what came of the policy with and without the critic's checkpoint into the critic's run; whether it is a proof.

    found: "only_base", "only_steered", "p_value" (see is_proven), and further facts, JSON values.
    """
    proven = is_proven(found["only_base"], found["only_steered"], found["p_value"])
    file = critic.parent.parent / FILE
    content = json.loads(file.read_text()) if file.is_file() else {}
    content.setdefault(critic.name, {})[policy_sha] = {**found, "proven": proven}
    atomic_write(file, (json.dumps(content, indent=1) + "\n").encode())
    return proven


def recorded(critic: Path, policy_sha: str) -> bool | None:
    """Whether the critic's checkpoint was shown to help the policy; None where that was not tried."""
    file = critic.parent.parent / FILE
    content = json.loads(file.read_text()) if file.is_file() else {}
    found = content.get(critic.name, {}).get(policy_sha)
    return None if found is None else bool(found["proven"])
