"""Point clouds to vectors. Suffixes as in robopolicy/batch.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robopolicy.models.layers import mlp


class PointEncoder(nn.Module):
    """Point clouds [B, T, P, C] -> [B, D]: one MLP for all points, maximum over them (PointNet, arXiv 1612.00593).

    Rows whose xyz are all zero are padding and never win the maximum; an empty cloud is a zero vector.

    Args:
        num_features: C, xyz (m) and further columns.
        unit: length (m) that becomes 1 inside the network.
        num_points: size of the random subset drawn in training; None = all points.
        jitter: std (m) of Gaussian noise on every point, and of a shift of the whole cloud, in training.
        widths: of the shared MLP.
    """

    def __init__(
        self,
        num_features: int,
        obs_horizon: int,
        width: int,
        unit: float = 0.1,
        num_points: int | None = None,
        jitter: float = 0.0,
        widths: Sequence[int] = (64, 64, 128),
    ) -> None:
        super().__init__()
        if unit <= 0:
            raise ValueError(f"unit={unit} must be a positive length in metres")
        self.unit, self.num_points, self.jitter = unit, num_points, jitter
        self.points = mlp(num_features, *widths, norm=True)
        self.frames = mlp(obs_horizon * widths[-1], width, width, norm=True)

    def forward(self, cloud_BTPC: Tensor, generator: torch.Generator | None = None, center_BT3: Tensor | None = None) -> Tensor:
        """[B, T, P, C] -> [B, D]. center_BT3 (m) is subtracted from xyz: what matters is where things are relative to it."""
        if generator is not None and self.num_points is not None and self.num_points < cloud_BTPC.shape[2]:
            chosen = torch.randperm(cloud_BTPC.shape[2], generator=generator, device=cloud_BTPC.device)
            cloud_BTPC = cloud_BTPC[:, :, chosen[: self.num_points]]
        xyz = cloud_BTPC[..., :3]
        padding = (xyz == 0).all(-1, keepdim=True)
        if center_BT3 is not None:
            xyz = xyz - center_BT3.unsqueeze(2)
        if generator is not None and self.jitter:
            each = torch.randn(xyz.shape, generator=generator, device=xyz.device)
            whole = torch.randn((*xyz.shape[:2], 1, 3), generator=generator, device=xyz.device)
            xyz = xyz + self.jitter * (each + whole)
        inputs = torch.cat([xyz / self.unit, cloud_BTPC[..., 3:]], -1)
        features = self.points(inputs).masked_fill(padding, -torch.inf).amax(2)
        return self.frames(features.masked_fill(padding.all(2), 0.0).flatten(1))
