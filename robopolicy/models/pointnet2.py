"""PointNet++ (arXiv 1706.02413) in dense torch, for clouds of about a hundred points. Suffixes as in robopolicy/batch.py.

No compiled extras: neighbours come from a distance matrix. Every point is a centre (the authors of "One Policy to Dress Them
All" ran ratios of 1), so there is no farthest point sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from robopolicy.models.dense_points import Cloud


def _mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers)


class SetAbstraction(nn.Module):
    """Features of every point from its neighbours within `radius`, at most `num_neighbours` of them: MLP, maximum."""

    def __init__(self, width: int, widths: Sequence[int], radius: float, num_neighbours: int) -> None:
        super().__init__()
        self.radius, self.num_neighbours = radius, num_neighbours
        self.net = _mlp(width + 3, *widths)

    def forward(self, xyz_BP3: Tensor, features_BPC: Tensor, mask_BP: Tensor) -> Tensor:
        """[B, P, D]; zero for rows that are no points."""
        distance = torch.cdist(xyz_BP3, xyz_BP3).masked_fill(~mask_BP.unsqueeze(1), torch.inf)
        near, index = distance.topk(min(self.num_neighbours, distance.shape[-1]), largest=False)
        at = torch.arange(len(index), device=index.device)[:, None, None], index
        inputs = torch.cat([features_BPC[at], xyz_BP3[at] - xyz_BP3.unsqueeze(2)], -1)
        inside = (near <= self.radius) & mask_BP.unsqueeze(-1)
        return (self.net(inputs) * inside.unsqueeze(-1)).amax(2)  # after ReLU zero is the maximum over nothing


class PointNet2(nn.Module):
    """Two set abstractions and a global one; for dense features also the way back to the gripper's row.

    Args:
        num_channels: C, of which the first three are xyz. dense: features at the gripper's row instead of the whole cloud's.
        action_dim: entries of an action attached to every point, 0 = none.
        radii, num_neighbours: of the set abstractions, network units (the authors': 0.05 and 0.1 m, 64).
        widths: of the set abstractions' MLPs, those of the global one last. back: of the way back. out: D.
    """

    def __init__(
        self,
        num_channels: int,
        dense: bool = True,
        action_dim: int = 0,
        radii: Sequence[float] = (0.25, 0.5),
        num_neighbours: int = 64,
        widths: Sequence[Sequence[int]] = ((64, 64, 128), (128, 128, 256), (256, 512, 1024)),
        back: Sequence[Sequence[int]] = ((256, 256), (256, 128), (128, 128, 128)),
        out: Sequence[int] = (128, 128, 50),
    ) -> None:
        super().__init__()
        self.dense = dense
        inputs = num_channels - 3 + action_dim
        first, second, last = (tuple(some) for some in widths)
        self.first = SetAbstraction(inputs, first, radii[0], num_neighbours)
        self.second = SetAbstraction(first[-1], second, radii[1], num_neighbours)
        self.whole = _mlp(second[-1] + 3, *last)
        width = last[-1]
        if dense:
            skips = (second[-1], first[-1], inputs)
            self.back = nn.ModuleList()
            for skip, some in zip(skips, back, strict=True):
                self.back.append(_mlp(width + skip, *some))
                width = some[-1]
        self.out = nn.Sequential(*list(_mlp(width, *out))[:-1])
        self.width = out[-1]

    def forward(self, cloud: Cloud, action_BA: Tensor | None = None) -> Tensor:
        """Features [B, D] of the gripper's row (the last), or of the whole cloud.

        All points are centres, so the features that PointNet++ interpolates on its way back are those of the point itself.
        """
        xyz, rest, mask = cloud.points[..., :3], cloud.points[..., 3:], cloud.mask
        if action_BA is not None:
            rest = torch.cat([rest, action_BA.unsqueeze(1).expand(-1, rest.shape[1], -1)], -1)
        near = self.first(xyz, rest, mask)
        far = self.second(xyz, near, mask)
        features = (self.whole(torch.cat([far, xyz], -1)) * mask.unsqueeze(-1)).amax(1)
        if self.dense:
            for net, skip in zip(self.back, (far, near, rest), strict=True):
                features = net(torch.cat([features, skip[:, -1]], -1))
        return self.out(features)
