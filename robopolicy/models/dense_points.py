"""Dense networks on point clouds around a gripper, after "One Policy to Dress Them All". Suffixes as in robopolicy/batch.py.

A cloud gets one more row, the gripper's own point, and the gripper's place as its origin. What is to be known at the gripper
(an action, a value) is computed from that row's neighbourhood, and an action that is to be judged is attached to the points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from robopolicy import config
from robopolicy.data.transforms import Normalizer
from robopolicy.models.cloud_noise import CloudNoise
from robopolicy.models.pointnet2 import PointNet2
from robopolicy.spec import POINTS, STATE, Features, SpecError

BACKBONES = ("balls", "pointnet2")


@dataclass(frozen=True)
class Cloud:
    """Points [B, P, C] with the gripper's row last, in network units around it, and a mask [B, P], True for points."""

    points: Tensor
    mask: Tensor

    def repeated(self, num: int) -> Cloud:
        """Every cloud `num` times in a row."""
        return Cloud(self.points.repeat_interleave(num, 0), self.mask.repeat_interleave(num, 0))


class GripperCloud(nn.Module):
    """Observations to clouds: centred on the gripper, scaled, with the gripper's row.

    Args:
        observation: features; needs POINTS [P, 3 + F] and STATE.
        center: names of the three entries of STATE that are the gripper's position (m).
        extras: names of further entries of STATE that the gripper's row carries.
        unit: length (m) that becomes 1.
        noise: randomisation of clouds in training, arguments of CloudNoise; None = none.
        extras_noise: std of Gaussian noise on the normalised extras in training; keeps an actor from recognising single
            demonstrations by entries that hardly vary.

    Raises:
        SpecError: a feature or an entry that is not there, or a negative noise. ConfigError: no such noise.
    """

    def __init__(
        self,
        observation: Features,
        center: Sequence[str] = ("ee_x", "ee_y", "ee_z"),
        extras: Sequence[str] = (),
        unit: float = 0.2,
        noise: dict[str, Any] | None = None,
        extras_noise: float = 0.0,
    ) -> None:
        super().__init__()
        if not extras_noise >= 0:
            raise SpecError(f"extras_noise={extras_noise} must not be negative")
        for key in (POINTS, STATE):
            if key not in observation:
                raise SpecError(f"dense point networks need {key!r}; given: {sorted(observation)}")
        if len(center) != 3 or unit <= 0:
            raise SpecError(f"center={list(center)} must name three entries of {STATE!r}, unit={unit} must be positive")
        self.center, self.extras = observation[STATE].index_of(center), observation[STATE].index_of(extras)
        self.unit, self.extras_noise = unit, extras_noise
        self.noise = None if noise is None else config.read(CloudNoise, noise, "noise")
        self.classes = observation[POINTS].shape[-1] - 3
        self.num_channels = 3 + self.classes + 1 + len(self.extras)

    def forward(
        self, observation: dict[str, Tensor], generator: torch.Generator | None = None, normalizer: Normalizer | None = None
    ) -> Cloud:
        """Clouds of the last frames of {key: [B, T, ...]}; rows of zeros are no points.

        generator: adds the noise. normalizer: of the extras; None leaves them as they are.
        """
        cloud, state = observation[POINTS][:, -1].float(), observation[STATE][:, -1].float()
        mask, center = (cloud != 0).any(-1), state[:, self.center]
        if generator is not None and self.noise is not None:
            cloud, mask, center = self.noise(cloud, mask, center, generator)
        xyz = (cloud[..., :3] - center[:, None]) / self.unit
        rows = functional.pad(torch.cat([xyz, cloud[..., 3:]], -1) * mask.unsqueeze(-1), (0, 1 + len(self.extras)))
        gripper = torch.zeros_like(rows[:, :1])
        gripper[:, 0, 3 + self.classes] = 1.0
        if self.extras:
            known = (state if normalizer is None else normalizer.normalize(STATE, state))[:, self.extras]
            if generator is not None and self.extras_noise:
                known = known + self.extras_noise * torch.randn(known.shape, generator=generator, device=known.device)
            gripper[:, 0, 4 + self.classes :] = known
        return Cloud(torch.cat([rows, gripper], 1), functional.pad(mask, (0, 1), value=True))


class BallNet(nn.Module):
    """One MLP for all points, then maxima over all of them and over balls around the gripper, and the gripper's own row.

    A set abstraction centred on the gripper: what PointNet++ computes at the gripper's row, at the price of one PointNet.

    Args:
        num_channels: C. radii: of the balls, in network units; () leaves the gripper's row out too: a plain PointNet.
        action_dim: entries of an action that is attached to every point, 0 = none.
        widths: of the MLP.
    """

    def __init__(
        self,
        num_channels: int,
        dense: bool = True,
        action_dim: int = 0,
        widths: Sequence[int] = (64, 64, 128),
        radii: Sequence[float] = (0.75,),
    ) -> None:
        super().__init__()
        self.radii = tuple(radii) if dense else ()
        self.dense = dense
        self.from_points = nn.Linear(num_channels, widths[0])
        self.from_action = nn.Linear(action_dim, widths[0], bias=False) if action_dim else None
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.ReLU(), nn.Linear(before, after)]
        self.inner = nn.Sequential(*layers, nn.ReLU())
        self.width = widths[-1] * (1 + len(self.radii) + dense)

    def forward(self, cloud: Cloud, action_BA: Tensor | None = None) -> Tensor:
        """Features [B, D]. action_BA: attached to every point (its share of the first layer is computed once per cloud)."""
        first = self.from_points(cloud.points)
        if action_BA is not None and self.from_action is not None:
            first = first + self.from_action(action_BA).unsqueeze(1)
        features = self.inner(first)  # not negative, so zero is the maximum over nothing
        pooled = [(features * cloud.mask.unsqueeze(-1)).max(1).values]  # amax's gradient costs twice as much
        if self.dense:
            distance = cloud.points[..., :3].norm(dim=-1)
            pooled += [(features * (cloud.mask & (distance <= r)).unsqueeze(-1)).max(1).values for r in self.radii]
            pooled.append(features[:, -1])
        return torch.cat(pooled, -1)


def backbone(kind: str, num_channels: int, dense: bool, action_dim: int = 0, **options: Any) -> BallNet | PointNet2:
    """A network from clouds to features: "balls" (BallNet) or "pointnet2" (PointNet2).

    dense: features at the gripper's row (the paper's dense transformation) instead of one vector of the whole cloud.

    Raises:
        ValueError: another kind.
    """
    if kind not in BACKBONES:
        raise ValueError(f"backbone={kind!r} must be one of {', '.join(BACKBONES)}")
    return {"balls": BallNet, "pointnet2": PointNet2}[kind](num_channels, dense, action_dim, **options)
