"""Teachers, one per group of episodes, and how a student is drawn towards them. The teachers see what no noise has spoilt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from robopolicy.batch import Batch
from robopolicy.models.trainable import Metrics
from robopolicy.policies.point_actor import PointActor, imitation, unsquashed
from robopolicy.spec import ACTION, did_you_mean

LOSSES = ("wasserstein", "kl", "imitation")


class Distillation:
    """The teachers' part of a student's loss ("One Policy to Dress Them All": RL plus Earth Mover's distance).

    Args:
        teachers: frozen actors, by group.
        kind: "wasserstein", the squared 2-Wasserstein distance of the Gaussians with squashed means; "kl", the divergence of
            the Gaussians from the teacher's; "imitation", squared error to the teacher's mean.
        weight: of this loss, a mean over the batch (the authors' sum over 64 with 0.01 is 0.64 here).
        rl_weight: of the learner's own actor loss; 0 leaves imitation alone.
    """

    def __init__(self, teachers: Sequence[PointActor], kind: str = "wasserstein", weight: float = 0.64, rl_weight: float = 1.0):
        if kind not in LOSSES:
            raise ValueError(f"distil.kind={kind!r}; {did_you_mean(kind, LOSSES)}")
        if weight < 0 or rl_weight < 0 or not weight + rl_weight:
            raise ValueError(f"distil.weight={weight} and rl_weight={rl_weight} must not be negative, nor both zero")
        self.teachers = [teacher.eval().requires_grad_(False) for teacher in teachers]
        self.kind, self.weight, self.rl_weight = kind, weight, rl_weight

    def loss(self, student: PointActor, batch: Batch, group: int, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Weighted distance from the teacher of `group`: it sees the batch as it is, the student as its encoder spoils it."""
        with torch.no_grad():
            mean_t, std_t = in_units_of(student, self.teachers[group], batch)
        mean_s, std_s = student.distribution(batch, generator)
        distance = DISTANCES[self.kind](mean_s, std_s, mean_t, std_t).sum((1, 2)).mean()
        return self.weight * distance, {"teacher_distance": distance.detach()}


def in_units_of(student: PointActor, teacher: PointActor, batch: Batch) -> tuple[Tensor, Tensor]:
    """The teacher's mean and standard deviation [B, H, A] before squashing, for the normalised actions of the student.

    The mean is the same action in physical units, kept inside the student's range. The spread is scaled as actions are.
    """
    mean, std = teacher.distribution(batch)
    action = teacher.normalizer.denormalize(ACTION, torch.tanh(mean))
    ratio = torch.as_tensor(teacher.normalizer.scale(ACTION) / student.normalizer.scale(ACTION), device=std.device)  # type: ignore[operator]
    return unsquashed(student.normalizer.normalize(ACTION, action)), std * ratio


def wasserstein(mean_s: Tensor, std_s: Tensor, mean_t: Tensor, std_t: Tensor) -> Tensor:
    """Squared 2-Wasserstein distance of diagonal Gaussians, entry by entry, with squashed means as in the authors' code."""
    return (torch.tanh(mean_s) - torch.tanh(mean_t)) ** 2 + (std_s - std_t) ** 2


def kl(mean_s: Tensor, std_s: Tensor, mean_t: Tensor, std_t: Tensor) -> Tensor:
    """KL(teacher || student) of diagonal Gaussians, entry by entry. Squashing both changes nothing in it."""
    return (std_s / std_t).log() + (std_t**2 + (mean_t - mean_s) ** 2) / (2 * std_s**2) - 0.5


def _imitated(mean_s: Tensor, std_s: Tensor, mean_t: Tensor, std_t: Tensor) -> Tensor:
    return imitation(mean_s, std_s, torch.tanh(mean_t))


DISTANCES = {"wasserstein": wasserstein, "kl": kl, "imitation": _imitated}
