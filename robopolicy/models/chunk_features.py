"""What a critic's heads see of a chunk: its steps, their running sum, and where they lead beside what is around the hand.

The chunks of a state differ by centimetres, its observation says where things are within a metre: a network that has to
subtract one from the other spends itself on it. Suffixes as in batch.py; G counts things, S stops on a chunk's way.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robopolicy.batch import Batch
from robopolicy.data.transforms import Normalizer
from robopolicy.models.layers import mlp
from robopolicy.spec import ACTION, ENVIRONMENT_STATE, POINTS, STATE, Features

MOTION, HAND = ("dx", "dy", "dz"), ("ee_x", "ee_y", "ee_z")
NEAR = 0.02  # m: distances up to it are told apart evenly, larger ones by their logarithm
STOPS = 4  # of the way that are looked at
MOST_POINTS = 64  # of a cloud


class ChunkFeatures(nn.Module):
    """Features of a chunk for ActionHeads.

    Where the action has the entries dx, dy, dz (m), the state the end effector's position ee_x, ee_y, ee_z, and the
    privileged state positions of things (<thing>_x, _y, _z), features are also the vectors from each thing to the end
    effector along the chunk's way, as commanded. Where there is a point cloud, `clouds` has it as the end effector would see it
    from its stops, for CloudWay. Other robots and observations have the chunk alone.

    Args:
        observation: what the critic sees. steps, size: h and A. normalizer: of the critic; read, not held.
    """

    normalizer: Normalizer

    def __init__(self, observation: Features, steps: int, size: int, normalizer: Normalizer) -> None:
        super().__init__()
        object.__setattr__(self, "normalizer", normalizer)
        action = normalizer.features[ACTION]
        able = set(MOTION) <= set(action.names) and STATE in observation and set(HAND) <= set(observation[STATE].names)
        names = observation[ENVIRONMENT_STATE].names if able and ENVIRONMENT_STATE in observation else ()
        self.things = [names.index(name) for name in names if name.endswith("_x") and _is_position(name, names)]
        self.cloud_width = observation[POINTS].shape[-1] if able and POINTS in observation else 0
        self.motion = action.index_of(MOTION) if able else []
        self.hand = observation[STATE].index_of(HAND) if able else []
        self.stops = sorted({round(steps * (n + 1) / STOPS) - 1 for n in range(STOPS)} - {-1})
        self.anchor_width = 3 * len(self.things)
        self.width = 2 * steps * size + self.anchor_width * len(self.stops)

    def anchors(self, batch: Batch) -> Tensor:
        """Vectors [B, 3 G] from each thing to the end effector, spread, in the last frame of an observation."""
        state, around = (batch[key][:, -1].float() for key in (STATE, ENVIRONMENT_STATE))
        return spread(torch.cat([state[:, self.hand] - around[:, x : x + 3] for x in self.things], -1))

    def forward(self, context_BD: Tensor, actions_BNHA: Tensor) -> Tensor:
        """Features [B, N, width] of normalised chunks [B, N, h, A]; the context [B, D] ends with the anchors."""
        steps = soft_clip(actions_BNHA)
        found = [steps, steps.cumsum(2) / steps.shape[2] ** 0.5]
        if self.things:
            way = self.way(actions_BNHA).repeat(1, 1, 1, len(self.things))  # [B, N, S, 3 G]
            start = NEAR * torch.sinh(context_BD[:, -self.anchor_width :])
            found.append(spread(start[:, None, None] + way))
        return torch.cat([x.flatten(2) for x in found], -1)

    def way(self, actions_BNHA: Tensor) -> Tensor:
        """Where normalised chunks lead the end effector from where it is, m [B, N, S, 3]."""
        return self.normalizer.denormalize(ACTION, actions_BNHA.float())[..., self.motion].cumsum(2)[:, :, self.stops]

    def cloud(self, batch: Batch) -> Tensor:
        """The last frame's cloud [B, P, C], P at most MOST_POINTS: vectors (m) from each point to the end effector, then the
        further columns; rows of padding are infinite."""
        points = batch[POINTS][:, -1].float()
        points = points[:, :: math.ceil(points.shape[1] / MOST_POINTS)]
        hand = batch[STATE][:, -1, None].float()[..., self.hand]
        padding = (points[..., :3] == 0).all(-1, keepdim=True)
        return torch.cat([(hand - points[..., :3]).masked_fill(padding, torch.inf), points[..., 3:]], -1)


class CloudWay(nn.Module):
    """What the end effector meets along a chunk's way: at each stop one MLP for all points, and the maximum over them.

    The chunk thus enters before the cloud is pooled (as in the dense Q of arXiv 2306.12372); the cloud's encoder, which is run
    once for all chunks of an observation, cannot know what lies where only this chunk leads.

    Args:
        cloud_width: C. num_stops: S. width: of the MLP; the output has S times as many.
    """

    def __init__(self, cloud_width: int, num_stops: int, width: int) -> None:
        super().__init__()
        self.points, self.width = mlp(cloud_width, width, width), num_stops * width

    def forward(self, cloud_BPC: Tensor, way_BNS3: Tensor) -> Tensor:
        """Features [B, N, width] of ways (m) through clouds as ChunkFeatures.cloud makes them."""
        padding = cloud_BPC[..., :1].isinf()
        near = spread(cloud_BPC[..., :3].masked_fill(padding, 0.0)[:, None, None] + way_BNS3.unsqueeze(3))  # [B, N, S, P, 3]
        rest = cloud_BPC[:, None, None, :, 3:].expand(*near.shape[:4], -1)
        seen = self.points(torch.cat([near, rest], -1)).masked_fill(padding[:, None, None], -torch.inf).amax(3)
        return seen.masked_fill(padding.all(1)[:, None, None], 0.0).flatten(2)


def _is_position(name: str, names: tuple[str, ...]) -> bool:
    stem, at = name.removesuffix("_x"), names.index(name)
    return not stem.endswith("half") and names[at : at + 3] == (f"{stem}_x", f"{stem}_y", f"{stem}_z")


def spread(distance: Tensor) -> Tensor:
    """Metres so that centimetres count near 0 and decades far from it."""
    return torch.asinh(distance / NEAR)


def soft_clip(x: Tensor) -> Tensor:
    """The identity on [-1, 1], beyond it a bend towards +-2: far actions stay apart without leading the scale."""
    return torch.where(x.abs() <= 1, x, x.sign() * (1 + torch.tanh(x.abs() - 1)))
