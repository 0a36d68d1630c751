"""The encoder of a point-cloud actor: observations to features at the gripper. Stands in for ObservationEncoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robopolicy.batch import Batch, to_torch
from robopolicy.data.transforms import Normalizer
from robopolicy.models.dense_points import GripperCloud, backbone
from robopolicy.spec import Features


class CloudEncoder(nn.Module):
    """Observations {key: [B, T, ...]} -> features [B, D] at the gripper's point, from the last frame.

    Args:
        observation, obs_horizon, normalizer: see ObservationEncoder.
        dense: features at the gripper's row; False = one vector of the whole cloud ("direct vector").
        net: "balls" or "pointnet2". options: further arguments of it.
        center, extras, unit, noise, extras_noise: see GripperCloud.
        action_dim: entries of an action that `net` attaches to every point.
    """

    def __init__(
        self,
        *,
        observation: Features,
        obs_horizon: int,
        normalizer: Normalizer,
        dense: bool = True,
        net: str = "balls",
        options: Mapping[str, Any] | None = None,
        center: Sequence[str] = ("ee_x", "ee_y", "ee_z"),
        extras: Sequence[str] = (),
        unit: float = 0.2,
        noise: dict[str, Any] | None = None,
        extras_noise: float = 0.0,
        action_dim: int = 0,
    ) -> None:
        super().__init__()
        self.keys, self.normalizer = tuple(observation), normalizer
        self.cloud = GripperCloud(observation, center, extras, unit, noise, extras_noise)
        self.net = backbone(net, self.cloud.num_channels, dense, action_dim, **dict(options or {}))
        self.width = self.net.width

    def forward(self, observation: Mapping[str, Tensor], generator: torch.Generator | None = None) -> Tensor:
        """[B, D]. generator: source of the clouds' randomisation in training, None at inference."""
        return self.net(self.cloud(dict(observation), generator, self.normalizer))

    def tensors(self, observation: Mapping[str, Any], device: torch.device | str) -> Batch:
        """What `forward` takes of a numpy observation, on `device`."""
        return to_torch({key: observation[key] for key in self.keys}, device)
