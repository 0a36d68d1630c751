"""How a real camera spoils a point cloud, as pure functions on batches: dropout, holes, fringes, noise, wrong calibration.

Suffixes as in robopolicy/batch.py. xyz_BP3 is in metres; mask_BP is True where a row is a point. Randomness comes from the
generator that is passed in. Nothing changes its inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CloudNoise:
    """Guided domain randomisation of "One Policy to Dress Them All": what the student sees, and its teachers do not.

    Every cloud draws its own strengths, uniformly up to these. dropout: share of the points that are lost. erosion: radius
    (m) of a ball around a random point in which all are lost. dilation: share of the empty rows that become points up to
    `fringe` (m) beside others. jitter: std (m) of noise on each point. gripper: std (m) of an error of the gripper's
    position. camera_position (m), camera_rotation (rad): std of an error of the camera's pose, per axis.
    """

    dropout: float = 0.3
    erosion: float = 0.06
    dilation: float = 0.3
    fringe: float = 0.02
    jitter: float = 0.005
    gripper: float = 0.01
    camera_position: float = 0.01
    camera_rotation: float = 0.03

    def __post_init__(self) -> None:
        for name, value in self.__dict__.items():
            if value < 0:
                raise ValueError(f"{name}={value} must not be negative")
        for name in ("dropout", "dilation"):
            if getattr(self, name) >= 1:
                raise ValueError(f"{name}={getattr(self, name)} is a share below 1")

    def __call__(
        self, cloud_BPC: Tensor, mask_BP: Tensor, center_B3: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The spoilt cloud [B, P, C] (xyz first), its mask [B, P] and the gripper's position [B, 3].

        A cloud that would lose all its points keeps them.
        """
        xyz, rest = cloud_BPC[..., :3], cloud_BPC[..., 3:]
        mask = dropped(mask_BP, self.dropout, generator)
        mask = eroded(xyz, mask, self.erosion, generator)
        mask = torch.where(mask.any(1, keepdim=True), mask, mask_BP)
        xyz, rest, mask = dilated(xyz, rest, mask, self.dilation, self.fringe, generator)
        xyz = xyz + self.jitter * _normal(xyz, xyz.shape, generator)
        xyz = moved(xyz, mask, self.camera_position, self.camera_rotation, generator)
        center = center_B3 + self.gripper * _normal(center_B3, center_B3.shape, generator)
        return torch.cat([xyz, rest], -1), mask, center


def dropped(mask_BP: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """The mask without up to `share` of its points, each lost by itself."""
    strength = share * _uniform(mask_BP, (len(mask_BP), 1), generator)
    return mask_BP & (_uniform(mask_BP, mask_BP.shape, generator) >= strength)


def eroded(xyz_BP3: Tensor, mask_BP: Tensor, radius: float, generator: torch.Generator) -> Tensor:
    """The mask without the points in a ball of up to `radius` (m) around one of them."""
    middle = xyz_BP3[torch.arange(len(xyz_BP3)), chosen(mask_BP, 1, generator)[:, 0]]
    size = radius * _uniform(mask_BP, (len(mask_BP), 1), generator)
    return mask_BP & ((xyz_BP3 - middle[:, None]).norm(dim=-1) >= size)


def dilated(
    xyz_BP3: Tensor, rest_BPC: Tensor, mask_BP: Tensor, share: float, fringe: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Points, further columns and mask with up to `share` of the empty rows filled by points within `fringe` (m) of others."""
    batch, num = mask_BP.shape
    strength = share * _uniform(mask_BP, (batch, 1), generator)
    new = ~mask_BP & (_uniform(mask_BP, mask_BP.shape, generator) < strength) & mask_BP.any(1, keepdim=True)
    source = chosen(mask_BP, num, generator)
    direction = torch.nn.functional.normalize(_normal(xyz_BP3, xyz_BP3.shape, generator), dim=-1)
    offset = fringe * _uniform(mask_BP, (batch, num, 1), generator) * direction
    at = torch.arange(batch, device=mask_BP.device)[:, None], source
    pick = new.unsqueeze(-1)
    return torch.where(pick, xyz_BP3[at] + offset, xyz_BP3), torch.where(pick, rest_BPC[at], rest_BPC), mask_BP | new


def moved(xyz_BP3: Tensor, mask_BP: Tensor, position: float, rotation: float, generator: torch.Generator) -> Tensor:
    """Clouds shifted (std `position`, m) and turned about their middle (std `rotation`, rad): a camera's wrong pose."""
    batch = len(xyz_BP3)
    weight = mask_BP.unsqueeze(-1).to(xyz_BP3.dtype)
    middle = (xyz_BP3 * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
    x, y, z = (rotation * _normal(xyz_BP3, (batch, 3), generator)).unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).view(batch, 3, 3)
    shift = position * _normal(xyz_BP3, (batch, 1, 3), generator)
    return (xyz_BP3 - middle) @ torch.linalg.matrix_exp(skew).transpose(1, 2) + middle + shift


def chosen(mask_BP: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """`num` random indices int64 [B, num] of points, with repetition; row 0 for a cloud without points."""
    weights = torch.where(mask_BP.any(1, keepdim=True), mask_BP, torch.ones_like(mask_BP)).float()
    return torch.multinomial(weights, num, replacement=True, generator=generator)


def _uniform(like: Tensor, shape: tuple[int, ...] | torch.Size, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=like.device)


def _normal(like: Tensor, shape: tuple[int, ...] | torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)
