"""Policies and critics from checkpoint folders, and policies that a server has."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from robopolicy import checkpoint, config
from robopolicy.models.images import weights_come_later
from robopolicy.models.trainable import Trainable
from robopolicy.policies.base import TrainablePolicy
from robopolicy.policies.served import ServedPolicy, is_served
from robopolicy.spec import Critic, FeatureSpec, Policy, features_from_dict

POLICY, CRITIC = "policy", "critic"  # kinds of checkpoints, and the config nodes that describe them
ALLOWED = ("robopolicy.policies", "robopolicy.models")  # packages whose classes a checkpoint may name


def module_from(node: Any, spec: Mapping[str, Any]) -> Trainable:
    """The untrained module that `node` (with a `_target_`) and a spec's dict describe. No file is read for it."""
    with weights_come_later():
        return config.build(
            node,
            within=ALLOWED,
            observation=features_from_dict(spec["observation"]),
            action=FeatureSpec(**spec["action"]),
            control_hz=float(spec["control_hz"]),
        )


def load_policy(path: str | Path) -> TrainablePolicy:
    """The policy in a checkpoint folder (step_* or the model folder in it), ready to sample.

    Raises:
        checkpoint.CheckpointError: no policy there, or weights that do not fit its config.
    """
    module = _load(path, POLICY)
    if not isinstance(module, TrainablePolicy):
        raise checkpoint.CheckpointError(f"{path} names a {type(module).__name__}, which is no policy")
    return module


def policy_at(path: str | Path) -> Policy:
    """The policy in a checkpoint folder, or that of the server at an address.

    Raises:
        checkpoint.CheckpointError: see load_policy. For servers see ServedPolicy.
    """
    return ServedPolicy(str(path)) if is_served(path) else load_policy(path)


def identity(path: str | Path) -> str:
    """Hex digest of a checkpoint, or ServedPolicy.identity of a server's policy. Raises as policy_at."""
    if not is_served(path):
        return checkpoint.sha256(path)
    with closing(ServedPolicy(str(path))) as policy:
        return policy.identity


def load_critic(path: str | Path) -> Critic:
    """The critic in a checkpoint folder, ready to score.

    Raises:
        checkpoint.CheckpointError: no critic there, or weights that do not fit its config.
    """
    module = _load(path, CRITIC)
    if not isinstance(module, Critic):
        raise checkpoint.CheckpointError(f"{path} names a {type(module).__name__}, which is no critic")
    expected = checkpoint.describe(path)[1]["spec"].get("normalizer_hash")
    if expected and module.spec.normalizer_hash != expected:
        found = module.spec.normalizer_hash
        raise checkpoint.CheckpointError(
            f"{path} holds the statistics {found}, but was trained with {expected}: its values would mean nothing"
        )
    return module


def _load(path: str | Path, kind: str) -> Trainable:
    loaded = checkpoint.load(path)
    found = loaded.meta.get("kind")
    if found != kind or kind not in loaded.config:
        raise checkpoint.CheckpointError(f"{path} holds a {found}, not a {kind}; its config has {sorted(loaded.config)}")
    module = module_from(loaded.config[kind], loaded.meta["spec"])
    checkpoint.load_into(module, loaded.tensors, loaded.path)
    return module.eval().requires_grad_(False)
