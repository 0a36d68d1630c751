"""Whether a critic can score a policy's chunks: shapes, units, rates, observations, and the range of the actions."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from robopolicy.spec import ACTION, VALUE, Array, Critic, Features, FeatureSpec, Policy, PolicySpec, SpecError

logger = logging.getLogger(__name__)

FAR = 5.0  # half ranges of the critic's data: where most entries go further than that two scales differ, not two habits
NEVER_DONE = 1000.0  # half ranges: what the critic's data holds still
NARROW = 0.04  # of the critic's half range: chunks that differ so little look all alike to it


def policy_spec(policy: Policy) -> PolicySpec:
    """The policy's spec; that of a policy behind a socket has the same attributes, but is of another class."""
    return policy.spec if isinstance(policy.spec, PolicySpec) else PolicySpec.from_dict(policy.spec.to_dict())


def check_fit(policy: Policy, critic: Critic) -> None:
    """Raises SpecError unless the critic can score the policy's chunks from observations that both understand."""
    ours, theirs = policy_spec(policy), critic.spec
    if differs := ours.action.difference(theirs.action, "shape", "unit", "frame", "names"):
        field, mine, its = differs
        raise SpecError(
            f"the policy's actions have {field} {mine}, the critic scores {field} {its}: train both on the same data"
        )
    if theirs.control_hz != ours.control_hz:
        raise SpecError(f"the policy's steps are at {ours.control_hz} Hz, the critic scores steps at {theirs.control_hz} Hz")
    if theirs.execute_horizon > ours.action_horizon:
        raise SpecError(f"the critic scores {theirs.execute_horizon} steps, the policy's chunks have {ours.action_horizon}")
    if theirs.execute_horizon != ours.execute_horizon:
        logger.warning(
            "the critic was trained on %d executed steps, the policy executes %d", theirs.execute_horizon, ours.execute_horizon
        )
    check_observations(ours.observation, theirs.observation, "policy", "critic")
    check_ranges(policy, critic)


def check_observations(ours: Features, theirs: Features, we: str, they: str) -> None:
    """Raises SpecError where both see a key, and not the same there."""
    for key in ours.keys() & theirs.keys():
        if replace(ours[key], values=()) != replace(theirs[key], values=()):
            raise SpecError(f"{key!r} is {ours[key]} for the {we} and {theirs[key]} for the {they}")


def check_role(critic: Critic, role: str) -> None:
    """Raises SpecError where the critic says that what it scores is something else than `role`."""
    found = getattr(critic, "role", role)
    if found != role:
        right = "critic" if found == VALUE else "safety"
        raise SpecError(f"{type(critic).__name__} scores a {found}, not a {role}: give it as {right} (steer.{right}=RUN)")


def check_ranges(policy: object, critic: object) -> None:
    """Raises SpecError where the policy's usual actions lie far outside those that the critic was trained on, or all at one
    point of them. A few entries that go further than the critic's data are warned of: rollouts may hardly move some.

    Both normalise on their own, and hand physical units over, so that differing statistics do no harm; but a critic knows
    nothing of actions that its data did not have. Not checked where one of them does not say (a policy behind a socket).
    """
    ours, theirs = action_range(policy), action_range(critic)
    if ours is None or theirs is None:
        return
    centre, half = (theirs[1] + theirs[0]) / 2, np.maximum((theirs[1] - theirs[0]) / 2, 1e-9)
    reach = np.maximum(np.abs(ours[0] - centre), np.abs(ours[1] - centre)) / half
    mine = (ours[1] - ours[0]) / 2
    moves = mine > mine.max() * 1e-6
    if moves.any() and (mine[moves] < NARROW * half[moves]).all():
        raise SpecError(
            f"the policy's actions usually span at most {(mine / half)[moves].max():.3g} of the range of the critic's data: it "
            "could not tell them apart; train it on rollouts of the policy too"
        )
    if (reach > FAR).any():
        entry = int(reach.argmax())
        feature: FeatureSpec | None = getattr(getattr(policy, "spec", None), "action", None)
        name = feature.names[entry] if feature is not None and feature.names else str(entry)
        told = (
            f"action entry {name} of the policy usually lies in {ours[0][entry]:.6g} .. {ours[1][entry]:.6g}, that of the "
            f"critic's data in {theirs[0][entry]:.6g} .. {theirs[1][entry]:.6g}: train it on rollouts of the policy too"
        )
        if (reach > NEVER_DONE).any() or np.median(reach) > FAR:
            raise SpecError(told)
        logger.warning("%s, if it was not", told)


def action_range(of: object) -> tuple[Array, Array] | None:
    """Usual range (low, high) [A], physical units, of the actions of a policy or critic; None where it does not say."""
    normalizer = getattr(of, "normalizer", None)
    if normalizer is None:
        inner = getattr(of, "policy", None)
        return None if inner is None else action_range(inner)
    offset, scale = normalizer.offset(ACTION), normalizer.scale(ACTION)
    return None if offset is None or scale is None else (offset - scale, offset + scale)
