"""Observations to one context vector [B, D]: an encoder per key, then a fusion. Suffixes as in robopolicy/batch.py.

Training-time randomness (shifts, colours, point subsets) happens only when a generator is passed, so inference has none
whatever mode the module is in.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robopolicy.batch import Batch, to_torch
from robopolicy.data.transforms import Normalizer
from robopolicy.models.images import ImageEncoder
from robopolicy.models.layers import mlp
from robopolicy.models.points import PointEncoder
from robopolicy.models.tasks import TaskEncoder
from robopolicy.spec import (
    DEPTH,
    ENVIRONMENT_STATE,
    IMAGES,
    POINTS,
    SEGMENTATION,
    STATE,
    TASK,
    Features,
    FeatureSpec,
    SpecError,
    did_you_mean,
    image_hint,
)


def select_observation(features: Mapping[str, FeatureSpec], keys: Sequence[str] | None) -> Features:
    """The observation features named by `keys`, or by default all but the privileged state and depth images.

    The task is one of them by default where there are several, since one policy cannot do two things without being told
    which. Keys that are given are taken as they are.

    Raises:
        SpecError: an unknown key, or no observation at all.
    """
    known = {key: feature for key, feature in features.items() if key.startswith("observation.") or key == TASK}
    if keys is None:
        keys = [key for key in known if key not in (ENVIRONMENT_STATE, TASK) and not key.startswith((DEPTH, SEGMENTATION))]
        keys += [TASK] if keys and TASK in known and len(known[TASK].values) > 1 else []
    for key in keys:
        if key not in known:
            raise SpecError(f"no observation {key!r}; {did_you_mean(key, known)}")
    if not keys:
        raise SpecError(f"no observation selected; available: {', '.join(sorted(known)) or 'none'}")
    return {key: known[key] for key in keys}


class VectorEncoder(nn.Module):
    """Low-dimensional frames [B, T, n] -> [B, D]: an MLP over the concatenated frames.

    Args:
        size: n, entries of a frame.
        obs_horizon: T.
        width: D.
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
        images: further arguments of ImageEncoder, and `share`: one encoder for all cameras (and one for all depth cameras)
            instead of one each.
        tasks: further arguments of TaskEncoder.

    Raises:
        SpecError: a feature that no encoder reads, such as images that are not uint8 [H, W, 3].
        ValueError: an option that does not exist, or a value that does not work.
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
        tasks: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.features, self.keys = dict(observation), tuple(observation)
        self.obs_horizon, self.width, self.normalizer = obs_horizon, width, normalizer
        self.center = _center_index(observation, points_center) if POINTS in observation else []
        share = bool((images or {}).get("share", False))
        self.part_of = {key: _part_name(key, share) for key in observation}
        options = {
            VectorEncoder: _known(VectorEncoder, vectors),
            PointEncoder: _known(PointEncoder, points),
            ImageEncoder: {k: v for k, v in _known(ImageEncoder, images, ("share",)).items() if k != "share"},
            TaskEncoder: _known(TaskEncoder, tasks),
        }
        self.parts = nn.ModuleDict()
        shapes: dict[str, tuple[int, ...]] = {}
        for key, feature in observation.items():
            name = self.part_of[key]
            kind = _kind(key, feature)
            if shapes.setdefault(name, feature.shape) != feature.shape:
                raise SpecError(f"{key!r} has shape {list(feature.shape)}, a camera before {list(shapes[name])}: share=false")
            if name in self.parts:
                continue
            if kind is TaskEncoder:
                self.parts[name] = TaskEncoder(feature.values, width, **options[kind])
            else:
                size = {VectorEncoder: lambda s: s[0], PointEncoder: lambda s: s[-1], ImageEncoder: lambda s: s}[kind]
                self.parts[name] = kind(size(feature.shape), obs_horizon, width, **options[kind])
        self.fuse = mlp(width * len(observation), 2 * width, width, norm=True)

    def forward(self, observation: Mapping[str, Tensor], generator: torch.Generator | None = None) -> Tensor:
        """Context [B, D] of {key: [B, T, ...]}. generator: source of augmentation in training, None at inference.

        Raises:
            SpecError: a key is missing or has another shape.
        """
        return self.fuse(torch.cat([self._encoded(key, observation, generator) for key in self.keys], -1))

    def sensed(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Encodings [B, n D] of the n pictures, depth images and clouds alone, before they are joined with the other keys.

        Raises:
            SpecError: it reads none of them; see forward.
        """
        keys = [key for key in self.keys if key == POINTS or key.startswith((IMAGES, DEPTH))]
        if not keys:
            raise SpecError(f"it reads no picture, depth image or cloud, only {', '.join(self.keys)}")
        return torch.cat([self._encoded(key, observation) for key in keys], -1)

    def _encoded(self, key: str, observation: Mapping[str, Tensor], generator: torch.Generator | None = None) -> Tensor:
        part, raw = self.parts[self.part_of[key]], self._get(observation, key)
        if key == TASK:
            return part(raw)
        x = self.normalizer.normalize(key, raw)
        if key == POINTS and self.center:
            return part(x, generator, observation[STATE][..., self.center])
        return part(x, generator)

    def tensors(self, observation: Mapping[str, Any], device: torch.device | str) -> Batch:
        """What `forward` takes of a numpy observation {key: [B, T, ...]}, text included, on `device`.

        Raises:
            SpecError: a task that it does not know.
        """
        batch = to_torch({key: observation[key] for key in self.keys if key != TASK}, device)
        if TASK in self.keys:
            batch[TASK] = self.parts[TASK].tensor(observation[TASK]).to(device)  # type: ignore[operator, union-attr]
        return batch

    def _get(self, observation: Mapping[str, Tensor], key: str) -> Tensor:
        if key not in observation:
            raise SpecError(f"the batch lacks {key!r}; the encoder reads {sorted(self.keys)}, given: {sorted(observation)}")
        x, shape = observation[key], self.features[key].shape
        if key != TASK and tuple(x.shape[1:]) != (self.obs_horizon, *shape):
            axes = ", ".join(map(str, ("B", self.obs_horizon, *shape)))
            hint = image_hint(key, tuple(x.shape[2:]), shape)
            raise SpecError(f"{key!r} has shape {list(x.shape)}, the encoder reads [{axes}]{hint}")
        return x


def _kind(key: str, feature: FeatureSpec) -> Any:
    """The class that encodes a feature."""
    shape = list(feature.shape)
    if key == TASK:
        return TaskEncoder
    if key.startswith(IMAGES):
        if len(shape) != 3 or shape[2] != 3 or feature.dtype != "uint8":
            raise SpecError(
                f"{key!r} is {feature.dtype} {shape}: images are uint8 and HWC, [height, width, 3]; "
                "move the colour axis to the end, repeat a grayscale channel three times, scale floats by 255"
            )
        return ImageEncoder
    if key.startswith(DEPTH) and len(shape) == 2:
        return ImageEncoder
    if key == POINTS and len(shape) == 2:
        return PointEncoder
    if len(shape) == 1:
        return VectorEncoder
    if feature.dtype == "uint8" and len(shape) == 3 and shape[2] == 3:
        raise SpecError(f"{key!r} holds images, which the encoder expects under {IMAGES}<camera>: call it so")
    if not shape:
        raise SpecError(f"{key!r} is one number a step: write it as [T, 1], or leave it out by inputs.observation_keys")
    raise SpecError(f"{key!r} has shape {shape}: only {POINTS!r}, images, depth and vectors can be encoded")


def _known(part: type, options: Mapping[str, Any] | None, further: Sequence[str] = ()) -> Mapping[str, Any]:
    parameters = inspect.signature(part).parameters.values()
    allowed = [p.name for p in parameters if p.default is not inspect.Parameter.empty] + list(further)
    for name in options or {}:
        if name not in allowed:
            raise ValueError(f"{part.__name__} has no option {name!r}; {did_you_mean(name, allowed)}")
    return options or {}


def _part_name(key: str, share: bool = False) -> str:
    for prefix in (IMAGES, DEPTH):
        if share and key.startswith(prefix):
            return "shared_" + prefix.removeprefix("observation.").removesuffix(".")
    return key.removeprefix("observation.").replace(".", "_")  # names of submodules may hold no dots


def _center_index(observation: Features, names: Sequence[str]) -> list[int]:
    if not names:
        return []
    if len(names) != 3:
        raise SpecError(f"points_center={list(names)} must name three entries of {STATE!r}")
    if STATE not in observation:
        raise SpecError(f"points_center={list(names)} needs {STATE!r} among the observation keys: {sorted(observation)}")
    return observation[STATE].index_of(names)
