"""Domain randomisation: {parameter: distribution} evaluated from a remembered nominal world with one explicit seed.

Every draw is f(nominal, rng), so nothing compounds over resets (the contract of dm_control's variations). Each parameter
has a random stream of its own, keyed by its name: adding a parameter does not shift the others.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from robopolicy.resources import conf_dir
from robopolicy.sim.distributions import FAMILIES, OPERATIONS, Distribution, Level, Value
from robopolicy.spec import did_you_mean

OPTIONS = ("op", "shared", "unit", "clip")  # what may stand beside the family of a distribution
OPTIONAL = "optional"  # key of a whole spec: names that only other tasks have are skipped
_UNITS = (
    {"m": 1.0, "cm": 1e-2, "mm": 1e-3},
    {"rad": 1.0, "deg": math.pi / 180, "mrad": 1e-3},
    {"kg": 1.0, "g": 1e-3},
    {"s": 1.0, "ms": 1e-3},
    {"N": 1.0, "kN": 1e3},
)


class RandomizationError(ValueError):
    """A randomisation that cannot be used. The message names the parameter, what was given and what would have worked."""


@dataclass(frozen=True)
class Parameter:
    """A named quantity of a world: its nominal value (a number or a list of numbers), unit ("" = none) and bounds.

    whole: only whole numbers mean something (an index, a count). about: one line for people.
    """

    value: Value
    unit: str = ""
    low: float = -math.inf
    high: float = math.inf
    about: str = ""
    whole: bool = False


class World(dict[str, Value]):
    """{parameter: value}: a world, nominal or drawn."""

    def scalar(self, name: str) -> float:
        """A parameter that is one number."""
        return float(self[name])  # type: ignore[arg-type]

    def vector(self, name: str) -> np.ndarray:
        """A parameter that is several numbers, float64 [n]."""
        return np.asarray(self[name], float).reshape(-1)

    def colour(self, name: str) -> tuple[float, float, float]:
        """An RGB parameter, clipped to [0, 1]."""
        r, g, b = np.clip(self.vector(name), 0.0, 1.0).tolist()
        return r, g, b


def nominal(parameters: Mapping[str, Parameter], *overrides: Mapping[str, Any]) -> World:
    """The nominal world: the parameters' values with `overrides` {parameter: value}, later ones winning.

    Raises:
        RandomizationError: an unknown parameter, a value of another size, one that is no number or is out of bounds.
    """
    world = World({name: parameter.value for name, parameter in parameters.items()})
    for given in overrides:
        for name, value in given.items():
            if name not in parameters:
                raise RandomizationError(f"nominal has {name!r}; {did_you_mean(name, parameters)}")
            world[name] = _checked_value(name, value, parameters[name])
    return world


def _checked_value(name: str, value: Any, parameter: Parameter) -> Value:
    plain = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    entries = list(plain) if isinstance(plain, list | tuple) else [plain]
    size = len(parameter.value) if isinstance(parameter.value, list) else None
    if not _numbers(entries) or (len(entries) if isinstance(plain, list | tuple) else None) != size:
        what = "one number" if size is None else f"a list of {size} numbers"
        raise RandomizationError(f"nominal {name}={value!r}: give {what}, such as {parameter.value!r}")
    _require_inside(f"nominal {name}={value!r}", parameter, min(entries), max(entries))
    if parameter.whole and any(entry != int(entry) for entry in entries):
        raise RandomizationError(f"nominal {name}={value!r}: give whole numbers")
    return float(plain) if size is None else [float(entry) for entry in entries]


def _numbers(entries: Sequence[Any]) -> bool:
    return all(isinstance(e, int | float) and not isinstance(e, bool) and math.isfinite(e) for e in entries)


def _require_inside(what: str, parameter: Parameter, low: float, high: float, hint: str = "") -> None:
    slack = 1e-9 * max(1.0, abs(low), abs(high))
    if low < parameter.low - slack or high > parameter.high + slack:
        unit = f" {parameter.unit}" if parameter.unit else ""
        raise RandomizationError(f"{what} leaves its bounds {parameter.low:g} .. {parameter.high:g}{unit}{hint}")


def parse(
    spec: str | Mapping[str, Any],
    parameters: Mapping[str, Parameter],
    around: Mapping[str, Value] | None = None,
    others: Collection[str] = (),
) -> dict[str, Distribution]:
    """Distributions from a preset's name or a mapping such as {"object": {"mass": {"uniform": [0.5, 2.0], "op": "scale"}}}.

    Keys of a node: one family with its arguments (distributions.Distribution), and optionally
        op: set (default), add to the nominal, or scale it. shared: one draw for all entries of a vector.
        unit: of the arguments; where it is given it must be the parameter's own. clip: cut what leaves the bounds of the
        parameter, instead of refusing it.
    A mapping with `optional: true` at its top is written for several tasks: names in `others` are skipped where
    `parameters` lacks them.

    Args:
        around: the nominal world (default: the parameters' own values), whose draws must stay in bounds.
        others: names that parameters of other tasks have.

    Raises:
        RandomizationError: an unknown parameter, family or option, a unit that does not fit, wrong arguments, a range upside
            down or out of bounds.
    """
    chosen = preset(spec) if isinstance(spec, str) else spec
    if not isinstance(chosen, Mapping):
        raise RandomizationError(f"randomization {spec!r}: give the name of a preset or a mapping {{parameter: distribution}}")
    optional = chosen.get(OPTIONAL, False)
    if not isinstance(optional, bool):
        raise RandomizationError(f"randomization has {OPTIONAL}: {optional!r}; give true or false")
    out: dict[str, Distribution] = {}
    for name, node in _leaves({key: value for key, value in chosen.items() if key != OPTIONAL}):
        if name in parameters:
            value = parameters[name].value if around is None else around[name]
            out[name] = _distribution(name, node, parameters[name], value)
        elif not (optional and name in others):
            hint = did_you_mean(name, parameters)
            if name in others:
                hint = f"this task has none; leave it out, or write {OPTIONAL}: true at the top to skip what a task lacks"
            raise RandomizationError(f"randomization of {name!r}: no such parameter; {hint}")
    return out


def _leaves(node: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Mapping[str, Any]]]:
    out: list[tuple[str, Mapping[str, Any]]] = []
    for key, value in node.items():
        name = f"{prefix}{key}"
        if not isinstance(value, Mapping):
            raise RandomizationError(f"randomization of {name!r} is {value!r}: give a mapping such as {{uniform: [low, high]}}")
        if any(k in FAMILIES for k in value) or not any(isinstance(v, Mapping) for v in value.values()):
            out.append((name, value))
        else:
            out.extend(_leaves(value, f"{name}."))
    return out


def _distribution(name: str, node: Mapping[str, Any], parameter: Parameter, value: Value) -> Distribution:
    where = f"randomization of {name!r}"
    families = [key for key in node if key not in OPTIONS]
    if len(families) != 1 or families[0] not in FAMILIES:
        known = f"give exactly one of {', '.join(sorted(FAMILIES))}, and beside it only {', '.join(OPTIONS)}"
        raise RandomizationError(f"{where} has {', '.join(map(repr, families)) or 'no family'}: {known}")
    family, operation = families[0], node.get("op", "set")
    if operation not in OPERATIONS:
        raise RandomizationError(f"{where}: op={operation!r}; use one of {', '.join(sorted(OPERATIONS))}")
    for key in ("shared", "clip"):
        if not isinstance(node.get(key, False), bool):
            raise RandomizationError(f"{where}: {key}={node[key]!r}; give true or false")
    arguments = _arguments(where, family, node[family])
    _check_unit(where, node.get("unit"), operation, parameter, arguments)
    if parameter.whole and (operation == "scale" or family not in ("integers", "choice") or any(a % 1 for a in arguments)):
        raise RandomizationError(f"{where}: it is a whole number; use integers or choice of whole numbers, with op set or add")
    if operation == "scale" and family != "normal" and min(arguments) < 0 <= max(arguments):
        raise RandomizationError(f"{where}: {family}={list(arguments)} scales by ratios of both signs; use op: add")
    bounds = (parameter.low, parameter.high)
    found = Distribution(family, arguments, operation, bool(node.get("shared", False)), *bounds)
    if not node.get("clip", False):
        low, high = found.support(value)
        if family == "normal":  # its tails are cut at the bounds; its mean must lie inside
            low = high = (low + high) / 2
        hint = "; narrow the range, or write clip: true to cut it there"
        given = f"{where}: {family}={list(arguments)} with op {operation} around {value}"
        _require_inside(f"{given} draws {low.min():g} .. {high.max():g}, which", parameter, low.min(), high.max(), hint)
    return found


def _arguments(where: str, family: str, given: Any) -> tuple[float, ...]:
    """The checked arguments of a family."""
    if not isinstance(given, list | tuple) or not _numbers(given):
        raise RandomizationError(f"{where}: {family}={given!r}; give a list of numbers")
    what = f"{where}: {family}={list(given)}"
    if family == "choice":
        if not given:
            raise RandomizationError(f"{what} has nothing to choose from; give at least one option")
    elif len(given) != 2:
        names = "mean, std" if family == "normal" else "low, high"
        raise RandomizationError(f"{what} has {len(given)} arguments; give two, [{names}]")
    elif family == "normal":
        if given[1] < 0:
            raise RandomizationError(f"{what} has a negative std; give [mean, std] with std at least 0")
    elif given[0] > given[1]:
        raise RandomizationError(f"{what} is upside down; write {[given[1], given[0]]}")
    if family == "log_uniform" and given[0] <= 0:
        raise RandomizationError(f"{what} needs bounds above 0; use uniform for a range with 0 or negative numbers in it")
    if family == "integers" and any(a != int(a) for a in given):
        raise RandomizationError(f"{what}: give whole numbers, such as {[math.ceil(given[0]), math.floor(given[1])]}")
    return tuple(float(a) for a in given)


def _check_unit(where: str, unit: Any, operation: str, parameter: Parameter, arguments: Sequence[float]) -> None:
    own = parameter.unit
    if unit is None or (unit == own and operation != "scale"):
        return
    if operation == "scale":
        raise RandomizationError(f"{where}: unit {unit!r} with op scale, whose numbers are ratios without a unit; leave it out")
    if not own:
        raise RandomizationError(f"{where}: unit {unit!r}, but it has none; leave it out")
    hint = f"write the numbers in {own}"
    for factors in _UNITS:
        if unit in factors and own in factors:
            hint = f"write {[float(f'{a * factors[unit] / factors[own]:.6g}') for a in arguments]} with unit {own}"
    raise RandomizationError(f"{where}: unit {unit!r}, but it is in {own}: {hint}")


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


def draw(
    distributions: Mapping[str, Distribution],
    nominal: Mapping[str, Value],
    seed: int,
    levels: Mapping[str, Any] | None = None,
    attempts: Mapping[str, int] | None = None,
) -> World:
    """A world: every parameter of the nominal, randomised where there is a distribution for it.

    Args:
        levels: {parameter: level}: 0 keeps the nominal, 1 (as for parameters not named) draws from the whole distribution,
            between them draws move towards the nominal. A level is a number, or (below, above[, edge]): see Level.
        attempts: {parameter: k}: k > 0 takes the k-th further draw of the same seed, where the earlier ones did not do.

    Raises:
        RandomizationError: levels or attempts of an unknown parameter, a level outside [0, 1].
    """
    levels, attempts = levels or {}, attempts or {}
    for name in (*levels, *attempts):
        if name not in nominal:
            raise RandomizationError(f"levels or attempts of {name!r}: no such parameter; {did_you_mean(name, nominal)}")
    out = World(nominal)
    for name, distribution in distributions.items():
        level = _level(name, levels[name]) if name in levels else None
        attempt = attempts.get(name, 0)
        rng = stream(seed, f"{name}#{attempt}" if attempt > 0 else name)
        out[name] = distribution.draw(nominal[name], rng, level)
    return out


def _level(name: str, given: Any) -> Level:
    level = Level(*given) if isinstance(given, list | tuple) and len(given) in (2, 3) else Level(given, given)
    if not _numbers((level.below, level.above)) or not (0 <= level.below <= 1 and 0 <= level.above <= 1):
        raise RandomizationError(
            f"level of {name!r} is {given!r}: give one from 0 (nominal) to 1 (whole range), or two, [below, above]"
        )
    if level.edge not in (None, "low", "high"):
        raise RandomizationError(f"level of {name!r} has edge {level.edge!r}: give low or high")
    return level
