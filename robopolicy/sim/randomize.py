"""Domain randomisation: {parameter: distribution} evaluated from a remembered nominal world with one explicit seed.

Every draw is f(nominal, rng), so nothing compounds over resets (the contract of dm_control's variations). Each parameter
has a random stream of its own, keyed by its name: adding a parameter does not shift the others.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from robopolicy.resources import conf_dir
from robopolicy.spec import did_you_mean

Value = float | list[float]


class World(dict[str, Value]):
    """{parameter: value}: a world, nominal or drawn."""

    def scalar(self, name: str) -> float:
        """A parameter that is one number."""
        return float(np.asarray(self[name]))

    def vector(self, name: str) -> np.ndarray:
        """A parameter that is several numbers, float64 [n]."""
        return np.asarray(self[name], float).reshape(-1)

    def colour(self, name: str) -> tuple[float, float, float]:
        """An RGB parameter, clipped to [0, 1]."""
        r, g, b = np.clip(self.vector(name), 0.0, 1.0).tolist()
        return r, g, b


class RandomizationError(ValueError):
    """A randomisation spec that cannot be used. The message names the parameter and what would have worked."""


def _uniform(rng: np.random.Generator, size: int, low: float, high: float) -> np.ndarray:
    return rng.uniform(low, high, size)


def _log_uniform(rng: np.random.Generator, size: int, low: float, high: float) -> np.ndarray:
    return np.exp(rng.uniform(np.log(low), np.log(high), size))


def _normal(rng: np.random.Generator, size: int, mean: float, std: float) -> np.ndarray:
    return rng.normal(mean, std, size)


def _integers(rng: np.random.Generator, size: int, low: int, high: int) -> np.ndarray:
    return rng.integers(low, high, size, endpoint=True).astype(float)


def _choice(rng: np.random.Generator, size: int, *options: float) -> np.ndarray:
    return rng.choice(np.asarray(options, float), size)


_FAMILIES: dict[str, Callable[..., np.ndarray]] = {
    "uniform": _uniform,
    "log_uniform": _log_uniform,
    "normal": _normal,
    "integers": _integers,
    "choice": _choice,
}
_OPERATIONS = {
    "set": lambda nominal, draw: draw,
    "add": lambda nominal, draw: nominal + draw,
    "scale": lambda nominal, draw: nominal * draw,
}


@dataclass(frozen=True)
class Distribution:
    """`operation`(nominal, draw of `family`(*arguments)); shared=True draws once for all entries of a vector."""

    family: str
    arguments: tuple[float, ...]
    operation: str = "set"
    shared: bool = False

    def draw(self, nominal: Value, rng: np.random.Generator) -> Value:
        """A value of the nominal's size."""
        base = np.atleast_1d(np.asarray(nominal, float))
        sample = _FAMILIES[self.family](rng, 1 if self.shared else base.size, *self.arguments)
        out = _OPERATIONS[self.operation](base, sample) * np.ones(base.size)
        return out.tolist() if isinstance(nominal, list) else float(out[0])


def parse(spec: Mapping[str, Any], nominal: Mapping[str, Value]) -> dict[str, Distribution]:
    """Distributions from a nested mapping such as {"object": {"mass": {"uniform": [0.5, 2.0], "op": "scale"}}}.

    Keys of a node: one family (uniform, log_uniform, normal, integers, choice) with its arguments, and optionally
    op (set, add, scale), shared (bool) and unit (for the reader only).

    Raises:
        RandomizationError: unknown parameter, family, operation or a bad argument.
    """
    out: dict[str, Distribution] = {}
    for name, node in _leaves(spec):
        if name not in nominal:
            raise RandomizationError(f"randomization of {name!r}: no such parameter; {did_you_mean(name, nominal)}")
        families = [key for key in node if key not in ("op", "shared", "unit")]
        if len(families) != 1 or families[0] not in _FAMILIES:
            raise RandomizationError(f"randomization of {name!r} has {families}: give exactly one of {sorted(_FAMILIES)}")
        operation = node.get("op", "set")
        if operation not in _OPERATIONS:
            raise RandomizationError(f"randomization of {name!r}: op={operation!r}; use one of {sorted(_OPERATIONS)}")
        arguments = node[families[0]]
        try:
            distribution = Distribution(
                families[0], tuple(float(a) for a in arguments), operation, bool(node.get("shared", False))
            )
            if families[0] == "integers":
                distribution = Distribution("integers", tuple(int(a) for a in arguments), operation, distribution.shared)
            probe = distribution.draw(nominal[name], np.random.default_rng(0))
        except (TypeError, ValueError) as error:
            raise RandomizationError(
                f"randomization of {name!r}: {families[0]}={arguments!r} ({error}); give a list of numbers"
            ) from error
        if not np.isfinite(probe).all():
            raise RandomizationError(f"randomization of {name!r}: {families[0]}={arguments!r} draws {probe}; check the bounds")
        out[name] = distribution
    return out


def _leaves(node: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Mapping[str, Any]]]:
    out: list[tuple[str, Mapping[str, Any]]] = []
    for key, value in node.items():
        name = f"{prefix}{key}"
        if not isinstance(value, Mapping):
            raise RandomizationError(f"randomization of {name!r} is {value!r}: give a mapping such as {{uniform: [low, high]}}")
        if any(k in _FAMILIES for k in value) or not any(isinstance(v, Mapping) for v in value.values()):
            out.append((name, value))
        else:
            out.extend(_leaves(value, f"{name}."))
    return out


def preset(name: str) -> dict[str, Any]:
    """The mapping in conf/randomization/<name>.yaml. Raises RandomizationError naming the presets that exist."""
    folder = conf_dir() / "randomization"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        names = [f.stem for f in folder.glob("*.yaml")]
        raise RandomizationError(f"no randomization preset {name!r}; {did_you_mean(name, names)}")
    return yaml.safe_load(path.read_text()) or {}


def stream(seed: int, name: str) -> np.random.Generator:
    """The random stream `name` of an episode with `seed`."""
    return np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))


def draw(distributions: Mapping[str, Distribution], nominal: Mapping[str, Value], seed: int) -> World:
    """A world: every parameter of the nominal, randomised where there is a distribution for it."""
    return World(
        {
            name: distributions[name].draw(value, stream(seed, name)) if name in distributions else value
            for name, value in nominal.items()
        }
    )
