"""Images and depth to vectors, and their augmentation in training. Suffixes as in robopolicy/batch.py."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from robopolicy.models.layers import mlp
from robopolicy.spec import did_you_mean

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LUMA = (0.299, 0.587, 0.114)  # brightness of red, green and blue (ITU-R BT.601)
YIQ = (LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))  # brightness and two colour axes

_read_weights: ContextVar[bool] = ContextVar("read_weights", default=True)


@contextmanager
def weights_come_later() -> Iterator[None]:
    """Image encoders made inside read no file of pretrained weights: a checkpoint brings its own."""
    token = _read_weights.set(False)
    try:
        yield
    finally:
        _read_weights.reset(token)


def random_shift(frames_BCHW: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    """Each sample moved by up to `pad` pixels either way, all its channels alike, edges repeated (DrQ, arXiv 2004.13649).

    That is a random crop of the padded picture, so the size stays and inference needs no crop.
    """
    batch, channels, height, width = frames_BCHW.shape
    device = frames_BCHW.device
    offset = torch.randint(-pad, pad + 1, (2, batch, 1), generator=generator, device=device)
    rows = (offset[0] + torch.arange(height, device=device)).clamp(0, height - 1)[:, None, :, None]
    columns = (offset[1] + torch.arange(width, device=device)).clamp(0, width - 1)[:, None, None, :]
    index = torch.arange(batch, device=device)[:, None, None, None]
    return frames_BCHW[index, torch.arange(channels, device=device)[None, :, None, None], rows, columns]


def jitter_color(
    frames_BTCHW: Tensor,
    generator: torch.Generator,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> Tensor:
    """RGB frames in [0, 1] with other colours, drawn per sample and the same for its T frames; the result is in [0, 1].

    Hue turns the colours about the grey axis (in YIQ), saturation scales their distance from grey, contrast scales the
    distance from the sample's mean brightness, brightness scales all. Together they are one affine map of the colours.

    Args:
        frames_BTCHW: float [B, T, 3, H, W].
        generator: source of randomness, on the frames' device.
        brightness, contrast, saturation: factors are uniform in 1 - x .. 1 + x.
        hue: the angle is uniform in -x .. x turns.
    """
    device, dtype = frames_BTCHW.device, frames_BTCHW.dtype
    drawn = 2 * torch.rand((4, len(frames_BTCHW)), generator=generator, device=device) - 1
    amounts = torch.tensor([brightness, contrast, saturation], device=device)
    bright, contrasted, saturated = 1 + amounts[:, None] * drawn[:3]
    angle = 2 * math.pi * hue * drawn[3]
    turned = torch.zeros((len(drawn[3]), 3, 3), device=device)
    turned[:, 0, 0] = 1
    turned[:, 1, 1] = turned[:, 2, 2] = saturated * angle.cos()
    turned[:, 1, 2], turned[:, 2, 1] = -saturated * angle.sin(), saturated * angle.sin()
    to_yiq = torch.tensor(YIQ, device=device)
    matrix = torch.linalg.inv(to_yiq) @ turned @ to_yiq
    grey = (matrix @ frames_BTCHW.mean((1, 3, 4)).float().unsqueeze(-1)).squeeze(-1) @ torch.tensor(LUMA, device=device)
    matrix = (bright * contrasted)[:, None, None] * matrix
    offset = bright * (1 - contrasted) * grey
    pixels = frames_BTCHW.transpose(1, 2).flatten(2)  # [B, 3, T H W]
    changed = torch.baddbmm(offset[:, None, None].to(dtype), matrix.to(dtype), pixels).clamp(0, 1)
    return changed.unflatten(2, (frames_BTCHW.shape[1], *frames_BTCHW.shape[3:])).transpose(1, 2)


def spatial_softmax(maps_BCHW: Tensor) -> Tensor:
    """Expected (x, y) in [-1, 1] of each channel under the softmax of its map: [B, 2 C] (arXiv 1504.00702, eq. 2)."""
    weights = maps_BCHW.flatten(2).softmax(-1).view_as(maps_BCHW)
    x = torch.linspace(-1, 1, maps_BCHW.shape[3], device=maps_BCHW.device)
    y = torch.linspace(-1, 1, maps_BCHW.shape[2], device=maps_BCHW.device)
    return torch.cat([(weights.sum(2) * x).sum(-1), (weights.sum(3) * y).sum(-1)], -1)


class ImageEncoder(nn.Module):
    """Images [B, T, H, W, C] or depth [B, T, H, W] -> [B, D], frame by frame with shared weights.

    Training (a generator is passed) shifts each sample at random and jitters the colours of images; both are drawn once
    per sample, for all of its T frames alike. Depth (m) is shifted only. Inference does neither, so it needs no crop.

    Args:
        shape: (H, W, 3), or (H, W) for depth.
        obs_horizon: T.
        width: D.
        backbone: "small" (four convolutions, GroupNorm, spatial softmax: made for CPUs) or the name of a timm model. Without
            `weights` its BatchNorm becomes GroupNorm, with them it is frozen: either way a batch's statistics do not count.
        weights: .safetensors file with pretrained weights of the timm model, read when training starts (checkpoints hold
            their own). Of a classifier the last layer is left out. Depth starts from random weights.
        statistics: "unit", images in [0, 1]; "imagenet", less the mean of ImageNet's colours and divided by their standard
            deviation; None = "imagenet" where there are `weights`.
        shift: largest random shift, pixels.
        brightness, contrast, saturation, hue: of jitter_color.

    Raises:
        ValueError: an unknown backbone, one that cannot read images of this size, or weights that do not fit it.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        obs_horizon: int,
        width: int,
        backbone: str = "small",
        weights: str | None = None,
        statistics: str | None = None,
        shift: int = 4,
        brightness: float = 0.2,
        contrast: float = 0.2,
        saturation: float = 0.2,
        hue: float = 0.03,
    ) -> None:
        super().__init__()
        statistics = statistics or ("imagenet" if weights else "unit")
        if statistics not in ("unit", "imagenet"):
            raise ValueError(f"images.statistics={statistics!r}; {did_you_mean(statistics, ('unit', 'imagenet'))}")
        self.shift = shift
        self.color = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
        if shift < 0 or not all(0 <= x <= 1 for x in self.color.values()):
            raise ValueError(f"images: shift={shift} is a number of pixels from 0, and {self.color} are in 0..1")
        if weights and backbone == "small":
            raise ValueError(f"images.weights={weights!r} are those of a timm model: say which in images.backbone")
        self.is_depth = len(shape) == 2
        self.standardise = statistics == "imagenet" and not self.is_depth
        if backbone == "small":
            self.backbone: nn.Module = _small_cnn(1 if self.is_depth else 3)
            size = 2 * 64
        else:
            self.backbone, size = _timm_backbone(backbone, shape, None if self.is_depth else weights)
        self.frames = mlp(obs_horizon * size, width, width, norm=True)

    def forward(self, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """[B, T, H, W, C] (uint8, or float in [0, 1]) or [B, T, H, W] (m) -> [B, D]."""
        x = frames.unsqueeze(2) if self.is_depth else frames.permute(0, 1, 4, 2, 3)
        if generator is not None and self.shift:
            x = random_shift(x.flatten(1, 2), self.shift, generator).view(x.shape)
        x = x.float() / 255 if frames.dtype == torch.uint8 else x
        if generator is not None and not self.is_depth and any(self.color.values()):
            x = jitter_color(x, generator, **self.color)
        if self.standardise:
            mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
            x = (x - mean) / std
        features = self.backbone(x.flatten(0, 1).contiguous())
        features = spatial_softmax(features) if features.ndim == 4 else features
        return self.frames(features.reshape(len(frames), -1))


def _small_cnn(channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width_in, width_out, kernel, stride in ((channels, 32, 5, 2), (32, 32, 3, 2), (32, 64, 3, 2), (64, 64, 3, 1)):
        convolution = nn.Conv2d(width_in, width_out, kernel, stride, padding=kernel // 2)
        layers += [convolution, nn.GroupNorm(8, width_out), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def _timm_backbone(name: str, shape: tuple[int, ...], weights: str | None) -> tuple[nn.Module, int]:
    """A timm model without its classifier for images of `shape`, and the number of its features."""
    import timm  # here, because it takes five seconds
    from timm.utils.model import freeze_batch_norm_2d

    if not timm.is_model(name):
        raise ValueError(f"no image backbone {name!r}; {did_you_mean(name, ['small', *timm.list_models()])}")
    facts: Any = timm.get_pretrained_cfg(name)
    size: dict[str, Any] = {"img_size": shape[:2]} if facts and facts.fixed_input_size else {}
    channels = 1 if len(shape) == 2 else 3
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, in_chans=channels, **size)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"the image backbone {name!r} cannot read images of {shape[0]} x {shape[1]}: {error}") from error
    if weights:
        if _read_weights.get():
            _load_weights(model, name, weights, (facts and facts.classifier) or ())
        model = freeze_batch_norm_2d(model)
    else:
        _replace_batch_norm(model)
    was_training = model.training
    try:
        with torch.no_grad():
            features = model.eval()(torch.zeros((1, channels, *shape[:2])))
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"the image backbone {name!r} cannot read images of {shape[0]} x {shape[1]}: {error}") from error
    return model.train(was_training), math.prod(features.shape[1:])


def _load_weights(model: nn.Module, name: str, path: str, classifier: str | tuple[str, ...]) -> None:
    if not Path(path).is_file():
        raise ValueError(f"images.weights={path!r}: there is no such file")
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"images.weights={path!r} is not a .safetensors file: {error}") from error
    heads = tuple(f"{head}." for head in ([classifier] if isinstance(classifier, str) else classifier))
    wanted = model.state_dict()
    found = {key: tensor for key, tensor in found.items() if key in wanted or not key.startswith(heads)}
    problems = [f"{key} is missing" for key in wanted if key not in found and not key.endswith("num_batches_tracked")]
    problems += [f"{key} is not in the model" for key in found if key not in wanted]
    problems += [
        f"{key} has shape {list(tensor.shape)}, the model's has {list(wanted[key].shape)}"
        for key, tensor in found.items()
        if key in wanted and tensor.shape != wanted[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"images.weights={path!r} do not fit the backbone {name!r}: {'; '.join(problems[:3])}{more}")
    model.load_state_dict(found, strict=False)


def _replace_batch_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            groups = next(n for n in (16, 8, 4, 2, 1) if child.num_features % n == 0)
            norm = nn.GroupNorm(groups, child.num_features)
            fused = [getattr(child, part, nn.Identity()) for part in ("drop", "act")]  # timm puts these into its norms
            setattr(module, name, nn.Sequential(norm, *fused))
        else:
            _replace_batch_norm(child)
