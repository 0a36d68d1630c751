"""The vocabulary of the whole package: observation and action keys, per-key specs, the Policy and Critic protocols.

Numpy only. Every other module speaks in these words and none spells a key out as a string.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

Array = np.ndarray
Observation = dict[str, Array]

STATE = "observation.state"
POINTS = "observation.points"
ENVIRONMENT_STATE = "observation.environment_state"
IMAGES = "observation.images."
DEPTH = "observation.depth."
SEGMENTATION = "observation.segmentation."
TASK = "task"  # which task an episode is, in words; an observation where a policy can do several: str [B] or [B, To]
FAULT = "fault"  # of an episode: why its last step teaches nothing, "" where all is well
ACTION = "action"
REWARD = "next.reward"
TERMINATED = "next.terminated"
TRUNCATED = "next.truncated"
SUCCESS = "next.success"

# Further keys of a training batch
ACTION_IS_PAD = "action_is_pad"  # bool [B, H]: this step lies past the end of the episode and repeats the last action
EPISODE = "episode"  # int64 [B]: index of the episode
STEP = "step"  # int64 [B]: step of the last frame within it
EPISODE_LENGTH = "episode_length"  # int64 [B]: steps of the episode
PROGRESS = "progress"  # float32 [B]: discounted mean of the rewards from here on, see data.windows.discounted_rewards
WEIGHT = "weight"  # float32 [B]: how much a window counts in a critic's loss
PROPOSALS = "proposals"  # float32 [B, N, H, A]: chunks that a policy proposes at the last frame
CHUNK_SUCCESS = "chunk_success"  # bool [B, h]: SUCCESS at the steps of the executed prefix, False past the episode's end
HAS_SUCCESSOR = "has_successor"  # bool [B]: there is an observation after the executed prefix
UNSAFE = "unsafe"  # float32 [B]: 1 when something unsafe happens soon, of branched rollouts (data/branches.py)
OUTCOME = "outcome"  # float32 [B]: 1 when the episode reaches success at any step, else 0

VALUE, RISK = "value", "risk"  # roles of critics


def successor(key: str) -> str:
    """Key of what `key` is after the executed prefix of a chunk."""
    return f"successor.{key}"


def image_key(camera: str) -> str:
    """Key of the RGB image (uint8 [H, W, 3]) of `camera`."""
    return IMAGES + camera


def depth_key(camera: str) -> str:
    """Key of the depth image (float32 [H, W], metres, 0 = invalid) of `camera`."""
    return DEPTH + camera


def segmentation_key(camera: str) -> str:
    """Key of the segmentation image (uint8 [H, W], ids of sim.scene) of `camera`."""
    return SEGMENTATION + camera


class SpecError(ValueError):
    """Data that does not fit its spec. The message names the key, what was given and what would have worked."""


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """Tail of an error message: the closest candidates, or all of them."""
    names = [str(c) for c in candidates]
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"available: {', '.join(sorted(names)) or 'none'}"


@dataclass(frozen=True)
class FeatureSpec:
    """One key: the shape, dtype, unit and frame of its value at one time step.

    shape: per-step shape, e.g. (7,) or (84, 84, 3).
    dtype: of numpy; "str" for text.
    names: names of the entries along the last axis, e.g. ("x", "y", "z"); () when they have none.
    values: of text: the strings that are known, e.g. the tasks of a dataset; () for numbers.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    unit: str = ""
    frame: str = ""
    names: tuple[str, ...] = ()
    values: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "values", tuple(self.values))
        np.dtype(self.dtype)
        if self.names and (not self.shape or len(self.names) != self.shape[-1]):
            raise SpecError(f"{len(self.names)} names {self.names} for shape {self.shape}: one name per entry of the last axis")

    def check(self, key: str, value: Any, leading: int = 0) -> Array:
        """`value` as an array when it fits, with `leading` extra axes in front.

        Raises:
            SpecError: wrong shape, wrong dtype or a value that is not finite; the message says which and what fits.
        """
        array = np.asarray(value)
        if array.ndim != leading + len(self.shape) or tuple(array.shape[leading:]) != self.shape:
            axes = ", ".join(["B", "T", "N"][:leading] + [str(n) for n in self.shape])
            hint = image_hint(key, tuple(array.shape[leading:]), self.shape)
            raise SpecError(f"{key!r} has shape {list(array.shape)}, expected [{axes}]{hint}")
        if self.dtype == "str":
            if array.dtype.kind != "U":
                raise SpecError(f"{key!r} has dtype {array.dtype}, expected text: a str or an array of str")
        elif array.dtype != np.dtype(self.dtype):
            convert = f"convert it with .astype({self.dtype!r})"
            if self.dtype == "uint8" and array.dtype.kind == "f":
                convert = f"from 0 .. 1 convert it with (255 * x).round(){convert.removeprefix('convert it with ')}"
            raise SpecError(f"{key!r} has dtype {array.dtype}, expected {self.dtype}; {convert}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = np.argwhere(~np.isfinite(array))[0].tolist()
            raise SpecError(f"{key!r} is not finite: {array[tuple(bad)]} at index {bad}; drop or repair that frame")
        return array

    def index_of(self, names: Iterable[str]) -> list[int]:
        """Positions of `names` along the last axis. Raises SpecError naming the closest ones that exist."""
        for name in names:
            if name not in self.names:
                raise SpecError(f"no entry {name!r}; {did_you_mean(name, self.names)}")
        return [self.names.index(name) for name in names]

    def difference(self, other: FeatureSpec, *attributes: str) -> tuple[str, Any, Any] | None:
        """The first of the `attributes` (shape, unit, ...) in which the two differ, and both values; None where they agree."""
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in attributes)
        return next((pair for pair in pairs if pair[1] != pair[2]), None)

    def zeros(self, leading: tuple[int, ...] = ()) -> Array:
        """An array [*leading, *shape] that fits: zeros, or the first known string."""
        if self.dtype == "str":
            return np.full((*leading, *self.shape), next(iter(self.values), ""))
        return np.zeros((*leading, *self.shape), self.dtype)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form. `values` are left out where there are none, so numbers look as they did before text came."""
        return {name: value for name, value in asdict(self).items() if name != "values" or value}


def image_hint(key: str, given: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """What is probably wrong with the shape of an image, as the rest of a sentence; "" where nothing is known."""
    if not key.startswith(IMAGES) or len(wanted) != 3:
        return ""
    height, width, channels = wanted
    if given == (channels, height, width):
        return "; images are HWC (height, width, colour): np.moveaxis(x, -3, -1) makes them so"
    if given in ((height, width), (height, width, 1), (1, height, width)):
        return "; it looks grayscale: repeat its one channel three times"
    if len(given) == 3 and given[-1] == channels:
        return f"; resize it to {height} x {width} pixels"
    return ""


Features = dict[str, FeatureSpec]


def features_to_dict(features: Mapping[str, FeatureSpec]) -> dict[str, Any]:
    """JSON-ready form of {key: FeatureSpec}."""
    return {key: feature.to_dict() for key, feature in features.items()}


def features_from_dict(data: Mapping[str, Any]) -> Features:
    """Inverse of features_to_dict."""
    return {key: FeatureSpec(**value) for key, value in data.items()}


def known_tasks(features: Mapping[str, FeatureSpec]) -> tuple[str, ...]:
    """The tasks of the feature TASK; () where it is not among `features`."""
    return features[TASK].values if TASK in features else ()


@dataclass(frozen=True)
class PolicySpec:
    """What a policy eats and returns.

    observation: {key: FeatureSpec} it needs (shapes per time step).
    action: spec of one action; its shape is (A,), its unit physical.
    obs_horizon: To, frames of history in an observation. action_horizon: H, steps in a chunk.
    execute_horizon: Ta <= H, steps of a chunk that are executed before the next decision.
    control_hz: rate (Hz) at which the steps of a chunk are meant to be executed.
    capabilities: optional methods it has, of "features" and "log_prob".
    """

    observation: Features
    action: FeatureSpec
    obs_horizon: int
    action_horizon: int
    execute_horizon: int
    control_hz: float
    capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "capabilities", tuple(self.capabilities))
        if not 1 <= self.execute_horizon <= self.action_horizon:
            raise SpecError(f"execute_horizon={self.execute_horizon} must be in 1..action_horizon={self.action_horizon}")
        if self.obs_horizon < 1:
            raise SpecError(f"obs_horizon={self.obs_horizon} must be at least 1")

    @property
    def action_dim(self) -> int:
        """A, entries of one action."""
        return self.action.shape[-1]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {**self.__dict__, "observation": features_to_dict(self.observation), "action": self.action.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PolicySpec:
        """Inverse of to_dict."""
        observation, action = features_from_dict(data["observation"]), FeatureSpec(**data["action"])
        return cls(**{**data, "observation": observation, "action": action})


def check_observation(observation: Mapping[str, Any], spec: PolicySpec | CriticSpec) -> int:
    """Batch size B of a batched observation {key: [B, To, ...]} that fits `spec`; extra keys are ignored.

    TASK may also have no time axis: str [B], an array or a list.

    Raises:
        SpecError: a missing key, a missing To axis, a wrong shape or dtype, a non-finite value, unequal batch sizes.
    """
    batch: int | None = None
    for key, feature in spec.observation.items():
        if key not in observation:
            needs, given = sorted(spec.observation), sorted(observation)
            raise SpecError(f"observation lacks {key!r}; it needs {needs}, given: {given}")
        array = np.asarray(observation[key])
        timeless = array.ndim == 1 + len(feature.shape) and tuple(array.shape[1:]) == feature.shape
        if timeless and key != TASK:
            shape = list(array.shape)
            raise SpecError(f"{key!r} has shape {shape}: the time axis is missing, expected [B, {spec.obs_horizon}, ...]")
        feature.check(key, array, leading=1 if timeless else 2)
        if not timeless and array.shape[1] != spec.obs_horizon:
            raise SpecError(f"{key!r} has {array.shape[1]} frames, it needs obs_horizon={spec.obs_horizon}")
        if batch is not None and array.shape[0] != batch:
            raise SpecError(f"{key!r} has batch size {array.shape[0]}, other keys have {batch}")
        batch = array.shape[0]
    if not batch:
        raise SpecError("the observation is empty: give at least one of " + ", ".join(sorted(spec.observation)))
    return batch


@runtime_checkable
class Policy(Protocol):
    """A black box that proposes action chunks. Stateless but for wrappers, which reset() clears."""

    @property
    def spec(self) -> PolicySpec:
        """What it eats and returns."""

    def reset(self) -> None:
        """Forget the current episode."""

    def sample(self, observation: Observation, num_samples: int = 1, seed: int | None = None) -> Array:
        """Candidate chunks float32 [B, N, H, A] in physical units for observation {key: [B, To, ...]}.

        Sample 0 is what the policy would execute on its own.

        Raises:
            SpecError: the observation does not fit `spec`, or num_samples < 1.
        """


@dataclass(frozen=True)
class CriticSpec:
    """What a critic eats: observation keys, obs_horizon To, the executed prefix h of a chunk, action spec, ensemble size E,
    the rate control_hz (Hz) of its steps.

    normalizer_hash: fingerprint of the normaliser in its weights, to tell which dataset it belongs to.
    """

    observation: Features
    action: FeatureSpec
    obs_horizon: int
    execute_horizon: int
    num_heads: int
    control_hz: float
    normalizer_hash: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {**self.__dict__, "observation": features_to_dict(self.observation), "action": self.action.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CriticSpec:
        """Inverse of to_dict."""
        observation, action = features_from_dict(data["observation"]), FeatureSpec(**data["action"])
        return cls(**{**data, "observation": observation, "action": action})


@runtime_checkable
class Critic(Protocol):
    """A value of executing a chunk prefix: encode the observation once, score many candidates.

    It may have a `role`: VALUE, more is better (as is assumed of one without), or RISK, less is better.
    """

    @property
    def spec(self) -> CriticSpec:
        """What it eats."""

    def encode(self, observation: Observation) -> Any:
        """Context of a batched observation {key: [B, To, ...]}, computed once per decision."""

    def score(self, context: Any, actions: Array) -> Array:
        """Values [E, B, N] of actions float32 [B, N, h, A] in physical units, one row per ensemble head."""


@dataclass(frozen=True)
class DatasetSpec:
    """What a dataset holds: {key: FeatureSpec} of every per-step array, and the rate fps (Hz) of its steps."""

    features: Features
    fps: float
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def action(self) -> FeatureSpec:
        """Spec of one action."""
        return self.features[ACTION]

    @property
    def observation(self) -> Features:
        """Specs of the observation keys."""
        return {key: feature for key, feature in self.features.items() if key.startswith("observation.")}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {"features": features_to_dict(self.features), "fps": self.fps, "extra": self.extra}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DatasetSpec:
        """Inverse of to_dict."""
        return cls(features=features_from_dict(data["features"]), fps=float(data["fps"]), extra=dict(data.get("extra", {})))
