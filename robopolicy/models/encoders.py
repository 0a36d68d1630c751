"""Observations to one context vector [B, D]: an encoder per key, then a fusion. Suffixes as in robopolicy/batch.py.

Training-time randomness (crops, point subsets) happens only when a generator is passed, so inference has none
whatever mode the module is in.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from robopolicy.data.transforms import Normalizer
from robopolicy.models.layers import mlp
from robopolicy.spec import (
    DEPTH,
    ENVIRONMENT_STATE,
    IMAGES,
    POINTS,
    SEGMENTATION,
    STATE,
    Features,
    FeatureSpec,
    SpecError,
    did_you_mean,
)


def select_observation(features: Mapping[str, FeatureSpec], keys: Sequence[str] | None) -> Features:
    """The observation features named by `keys`, or by default all but the privileged state and depth images.

    Raises:
        SpecError: an unknown key, or no observation at all.
    """
    known = {key: feature for key, feature in features.items() if key.startswith("observation.")}
    if keys is None:
        keys = [key for key in known if key != ENVIRONMENT_STATE and not key.startswith((DEPTH, SEGMENTATION))]
    for key in keys:
        if key not in known:
            raise SpecError(f"no observation {key!r}; {did_you_mean(key, known)}")
    if not keys:
        raise SpecError(f"no observation selected; available: {', '.join(sorted(known)) or 'none'}")
    return {key: known[key] for key in keys}


def random_shift(frames_BCHW: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    """Each frame moved by up to `pad` pixels either way, edges repeated (DrQ, arXiv 2004.13649)."""
    batch, _, height, width = frames_BCHW.shape
    padded = functional.pad(frames_BCHW, (pad,) * 4, mode="replicate")
    offset = torch.randint(0, 2 * pad + 1, (2, batch, 1), generator=generator, device=frames_BCHW.device)
    rows = (offset[0] + torch.arange(height, device=offset.device))[:, None, :, None]
    columns = (offset[1] + torch.arange(width, device=offset.device))[:, None, None, :]
    index = torch.arange(batch, device=offset.device)[:, None, None, None]
    channel = torch.arange(frames_BCHW.shape[1], device=offset.device)[None, :, None, None]
    return padded[index, channel, rows, columns]


def spatial_softmax(maps_BCHW: Tensor) -> Tensor:
    """Expected (x, y) in [-1, 1] of each channel under the softmax of its map: [B, 2 C] (arXiv 1504.00702, eq. 2)."""
    weights = maps_BCHW.flatten(2).softmax(-1).view_as(maps_BCHW)
    x = torch.linspace(-1, 1, maps_BCHW.shape[3], device=maps_BCHW.device)
    y = torch.linspace(-1, 1, maps_BCHW.shape[2], device=maps_BCHW.device)
    return torch.cat([(weights.sum(2) * x).sum(-1), (weights.sum(3) * y).sum(-1)], -1)


class VectorEncoder(nn.Module):
    """Low-dimensional frames [B, T, n] -> [B, D]: an MLP over the concatenated frames.

    Args:
        size: n, entries of a frame.
        noise: std of Gaussian noise on the normalised entries in training; keeps a policy from recognising single
            demonstrations by their exact joint positions.
    """

    def __init__(self, size: int, obs_horizon: int, width: int, noise: float = 0.0) -> None:
        super().__init__()
        self.noise = noise
        self.net = mlp(obs_horizon * size, 2 * width, width)

    def forward(self, frames_BTn: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """[B, T, n] -> [B, D]."""
        x = frames_BTn.flatten(1).float()
        if generator is not None and self.noise:
            x = x + self.noise * torch.randn(x.shape, generator=generator, device=x.device)
        return self.net(x)


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


class ImageEncoder(nn.Module):
    """Images [B, T, H, W, C] or depth [B, T, H, W] -> [B, D], frame by frame with shared weights.

    Args:
        shape: (H, W, 3), or (H, W) for depth.
        backbone: "small" (four convolutions, GroupNorm, spatial softmax: made for CPUs) or the name of a timm model,
            built with random weights and GroupNorm in place of BatchNorm.
        shift: largest random shift in training, pixels.
    """

    def __init__(self, shape: tuple[int, ...], obs_horizon: int, width: int, backbone: str = "small", shift: int = 4) -> None:
        super().__init__()
        self.shift = shift
        channels = shape[2] if len(shape) == 3 else 1
        if backbone == "small":
            self.backbone: nn.Module = _small_cnn(channels)
            size = 2 * 64
        else:
            self.backbone, size = _timm_backbone(backbone, channels)
        self.frames = mlp(obs_horizon * size, width, width, norm=True)

    def forward(self, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """[B, T, H, W, C] or [B, T, H, W] -> [B, D]."""
        frames = frames.float() / 255 if frames.dtype == torch.uint8 else frames
        frames = frames.unsqueeze(-1) if frames.ndim == 4 else frames
        batch, horizon = frames.shape[:2]
        x = frames.flatten(0, 1).permute(0, 3, 1, 2)
        if generator is not None and self.shift:
            x = random_shift(x, self.shift, generator)
        x = self.backbone(x.contiguous())
        x = spatial_softmax(x) if x.ndim == 4 else x
        return self.frames(x.view(batch, horizon * x.shape[1]))


def _small_cnn(channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width_in, width_out, kernel, stride in ((channels, 32, 5, 2), (32, 32, 3, 2), (32, 64, 3, 2), (64, 64, 3, 1)):
        convolution = nn.Conv2d(width_in, width_out, kernel, stride, padding=kernel // 2)
        layers += [convolution, nn.GroupNorm(8, width_out), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def _timm_backbone(name: str, channels: int) -> tuple[nn.Module, int]:
    import timm  # here, because it takes ten seconds

    if not timm.is_model(name):
        raise ValueError(f"no image backbone {name!r}; {did_you_mean(name, ['small', *timm.list_models()])}")
    model = timm.create_model(name, pretrained=False, num_classes=0, in_chans=channels)
    _replace_batch_norm(model)
    size: Any = model.num_features
    return model, int(size)


def _replace_batch_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            groups = next(n for n in (16, 8, 4, 2, 1) if child.num_features % n == 0)
            norm = nn.GroupNorm(groups, child.num_features)
            fused = [getattr(child, part, nn.Identity()) for part in ("drop", "act")]  # timm puts these into its norms
            setattr(module, name, nn.Sequential(norm, *fused))
        else:
            _replace_batch_norm(child)


class ObservationEncoder(nn.Module):
    """Observations {key: [B, T, ...]}, physical as stored -> context [B, D].

    Args:
        observation: features it reads.
        obs_horizon: T.
        normalizer: statistics of those features; kept inside, so that they travel with the weights.
        width: D.
        points_center: names of the three entries of STATE (a position, m) that clouds are expressed relative to.
        vectors: further arguments of VectorEncoder.
        points: further arguments of PointEncoder.
        images: further arguments of ImageEncoder.
    """

    def __init__(
        self,
        *,
        observation: Features,
        obs_horizon: int,
        normalizer: Normalizer,
        width: int = 128,
        points_center: Sequence[str] = (),
        vectors: Mapping[str, Any] | None = None,
        points: Mapping[str, Any] | None = None,
        images: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.keys, self.width, self.normalizer = tuple(observation), width, normalizer
        self.center = _center_index(observation, points_center) if POINTS in observation else []
        self.parts = nn.ModuleDict()
        for key, feature in observation.items():
            if key == POINTS:
                part: nn.Module = PointEncoder(feature.shape[-1], obs_horizon, width, **_known(PointEncoder, points))
            elif key.startswith((IMAGES, DEPTH)):
                part = ImageEncoder(feature.shape, obs_horizon, width, **_known(ImageEncoder, images))
            elif len(feature.shape) == 1:
                part = VectorEncoder(feature.shape[0], obs_horizon, width, **_known(VectorEncoder, vectors))
            else:
                shape = list(feature.shape)
                raise SpecError(f"{key!r} has shape {shape}: only {POINTS!r}, images, depth and vectors can be encoded")
            self.parts[_part_name(key)] = part
        self.fuse = mlp(width * len(observation), 2 * width, width, norm=True)

    def forward(self, observation: Mapping[str, Tensor], generator: torch.Generator | None = None) -> Tensor:
        """Context [B, D] of {key: [B, T, ...]}. generator: source of augmentation in training, None at inference."""
        parts = []
        for key in self.keys:
            x = self.normalizer.normalize(key, observation[key])
            if key == POINTS and self.center:
                parts.append(self.parts[_part_name(key)](x, generator, observation[STATE][..., self.center]))
            else:
                parts.append(self.parts[_part_name(key)](x, generator))
        return self.fuse(torch.cat(parts, -1))


def _known(part: type, options: Mapping[str, Any] | None) -> Mapping[str, Any]:
    allowed = list(inspect.signature(part).parameters)[3:]
    for name in options or {}:
        if name not in allowed:
            raise ValueError(f"{part.__name__} has no option {name!r}; {did_you_mean(name, allowed)}")
    return options or {}


def _part_name(key: str) -> str:
    return key.removeprefix("observation.").replace(".", "_")  # names of submodules may hold no dots


def _center_index(observation: Features, names: Sequence[str]) -> list[int]:
    if not names:
        return []
    if len(names) != 3:
        raise SpecError(f"points_center={list(names)} must name three entries of {STATE!r}")
    if STATE not in observation:
        raise SpecError(f"points_center={list(names)} needs {STATE!r} among the observation keys: {sorted(observation)}")
    return observation[STATE].index_of(names)
