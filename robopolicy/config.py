"""Configuration: compose Hydra groups, read typed settings, build objects from `_target_` nodes.

Values live in YAML and types in Python: a component is typed by its own constructor (`build`, `bind`), a run node
that is pure data by a dataclass (`read`). Hydra and OmegaConf are imported here and in `cli.py` only.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar, Unpack, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from robopolicy.resources import conf_dir
from robopolicy.spec import did_you_mean

PACKAGE = "robopolicy"
TARGET = "_target_"
PARTIAL = "_partial_"
DEVICES = r"cpu|cuda(:\d+)?"  # names of devices, a regular expression
PRECISIONS = ("auto", "float32", "bfloat16")

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot work. The message names the key, the value and what would have worked."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How one trainable module is trained (`train.*` on the command line).

    steps: optimiser steps, all phases together. batch_size: windows per step, of all processes together.
    accumulate: parts that a process cuts its windows of a step into, so that fewer are in memory at once. The update is
        that of the whole batch: gradients are averaged.
    precision: "float32"; "bfloat16", in which networks compute (weights and losses stay float32); or "auto": bfloat16 on
        a GPU that has it, else float32.
    num_prefetch: parts of batches that a thread makes ready ahead; 0 = none. It changes no number.
    num_checkpoints: checkpoints kept, evenly spaced over the last phase, the last one at its end.
    seed: fixes the order of the windows and all randomness of the losses.
    learning_rate_scale: multiplies the learning rate of every phase. weight_decay: AdamW, not on biases and norms.
    clip_norm: largest gradient norm. ema_decay: decay per step of the averaged weights that checkpoints hold.
    warmup: fraction of a phase with a linearly rising learning rate; the rest follows a cosine to zero.
    log_every: steps per line of metrics.jsonl. save_every_seconds: least time between two resumable states.
    num_threads: torch threads of this process. device: "cpu" or "cuda" (under torchrun a GPU each).
    logger: "jsonl", or "wandb" on top of it.
    resume: continue the run in the run folder, if there is one. progress: show a bar on a terminal.
    """

    steps: int = 10_000
    batch_size: int = 64
    accumulate: int = 1
    precision: str = "auto"
    num_prefetch: int = 2
    num_checkpoints: int = 5
    seed: int = 0
    learning_rate_scale: float = 1.0
    weight_decay: float = 1e-3
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    warmup: float = 0.02
    log_every: int = 50
    save_every_seconds: float = 60.0
    num_threads: int = 1
    device: str = "cpu"
    logger: str = "jsonl"
    resume: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "num_checkpoints", "log_every", "num_threads"):
            self._require(name, getattr(self, name) >= 1, "a whole number of at least 1")
        for name in ("learning_rate_scale", "clip_norm"):
            self._require(name, getattr(self, name) > 0, "a number above 0")
        for name in ("seed", "weight_decay", "save_every_seconds", "num_prefetch"):
            self._require(name, getattr(self, name) >= 0, "a number of at least 0")
        for name in ("ema_decay", "warmup"):
            self._require(name, 0 <= getattr(self, name) < 1, "a number in [0, 1)")
        self._require("num_checkpoints", self.num_checkpoints <= self.steps, f"at most steps={self.steps}")
        self._require("precision", self.precision in PRECISIONS, "'auto', 'float32' or 'bfloat16'")
        self._require("device", re.fullmatch(DEVICES, self.device), "'cpu', 'cuda' or 'cuda:N'")
        self._require("logger", self.logger in ("jsonl", "wandb"), "'jsonl' or 'wandb'")

    def _require(self, name: str, fits: Any, what: str) -> None:
        if not fits:
            raise ConfigError(f"train.{name}={getattr(self, name)!r} does not work: give {what}")


@dataclass
class SteerConfig:
    """Types of the settings of steering beside its critics and candidates; see conf/steering and SteeredPolicy."""

    num_samples: int = 16
    rule: str = "lcb"
    lcb: float = 1.0
    margin: float = 1.0
    min_gain: float | None = None
    temperature: float = 1.0
    scale_free: bool = True
    heads: str = "mean"
    veto: float = 0.5
    support: float = 0.0
    budget_ms: float | None = None


@dataclass
class PerturbConfig:
    """Types of the settings of a perturbation; see policies.wrappers.Perturbed."""

    std: float = 0.1
    share: float = 0.5
    scale: list[float] | None = None
    fixed: list[str] | None = None
    delay: dict[str, int] | None = None


def build(node: Any, /, within: str | Sequence[str] = PACKAGE, **runtime: Any) -> Any:
    """The object that `node` = {_target_: dotted class, argument: value, ...} describes; nested nodes are built first.

    The only place where a configuration becomes an object. A target must be a class that robopolicy defines: the
    configuration may come with a checkpoint from elsewhere, and a target runs code. Interpolations are resolved once,
    before targets are looked at. A node with `_partial_: true` becomes a functools.partial of its class.

    Args:
        node: DictConfig or mapping with a `_target_`.
        within: packages whose classes are allowed; give the narrowest ones for a configuration that is not ours.
        runtime: arguments known only now (specs, generators); they win over those in `node`.

    Raises:
        ConfigError: a forbidden or unknown target, an unknown or missing argument.
    """
    plain = to_plain(node)
    if not isinstance(plain, Mapping) or TARGET not in plain:
        raise ConfigError(f"expected a node with a {TARGET} such as 'robopolicy.policies.carp.CarpPolicy', got {plain!r}")
    return _construct(plain, runtime, _packages(within), path="", call=True)


def bind(node: Any, /, within: str | Sequence[str] = PACKAGE, **runtime: Any) -> None:
    """Check all that `build` checks, of every `_target_` in the tree `node`, without constructing anything.

    Raises:
        ConfigError: as `build`.
    """
    _construct(to_plain(node), runtime, _packages(within), path="", call=False)


def _packages(within: str | Sequence[str]) -> tuple[str, ...]:
    return (within,) if isinstance(within, str) else tuple(within)


def _construct(node: Any, runtime: Mapping[str, Any], within: tuple[str, ...], path: str, call: bool) -> Any:
    if isinstance(node, list):
        return [_construct(item, {}, within, f"{path}[{i}]", call) for i, item in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    prefix = f"{path}." if path else ""
    children = {k: _construct(v, {}, within, f"{prefix}{k}", call) for k, v in node.items() if k not in runtime}
    if TARGET not in node:
        return children
    target = _locate(node[TARGET], within, path)
    partial = bool(children.pop(PARTIAL, False))
    children.pop(TARGET)
    arguments = {**children, **runtime}
    _check_arguments(target, arguments, path, partial)
    if not call:
        return None
    return functools.partial(target, **arguments) if partial else target(**arguments)


def _locate(name: Any, within: tuple[str, ...], path: str) -> type:
    """The class called `name`, if a module below `within` defines it (importing it there is not enough)."""
    where = f"{path}.{TARGET}" if path else TARGET
    allowed = f"allowed: classes defined in {' or '.join(within)}"
    if not isinstance(name, str) or not any(name.startswith(package + ".") for package in within):
        raise ConfigError(f"{where}={name!r} is refused; {allowed}")
    module_name, _, class_name = name.rpartition(".")
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not module_name.startswith(str(error.name)):
            raise
        raise ConfigError(f"{where}={name!r}: there is no module {error.name!r}; {allowed}") from error
    target = getattr(found, class_name, None)
    classes = [n for n, value in vars(found).items() if inspect.isclass(value) and value.__module__ == module_name]
    if target is None:
        raise ConfigError(f"{where}={name!r}: {module_name} has no class {class_name!r}; {did_you_mean(class_name, classes)}")
    if not inspect.isclass(target) or not any(f"{target.__module__}.".startswith(package + ".") for package in within):
        raise ConfigError(f"{where}={name!r} is refused: it is no class of ours; {did_you_mean(class_name, classes)}")
    return target


def _check_arguments(target: type, arguments: Mapping[str, Any], path: str, partial: bool) -> None:
    parameters = inspect.signature(target).parameters.values()
    named = {p.name: p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    rest = next((p for p in parameters if p.kind is p.VAR_KEYWORD), None)
    handed_on = _unpacked(target, rest.name) if rest else ()
    known = [*named, *handed_on]
    label = f"{path or 'node'} ({target.__module__}.{target.__qualname__})"
    for key in arguments:
        if key not in known and (rest is None or handed_on):
            raise ConfigError(f"{label} has no argument {key!r}; {did_you_mean(str(key), known)}")
    missing = [name for name, p in named.items() if p.default is p.empty and name not in arguments]
    if missing and not partial:
        raise ConfigError(f"{label} lacks {', '.join(map(repr, missing))}; its arguments are {', '.join(known)}")


def _unpacked(target: type, name: str) -> tuple[str, ...]:
    """The keys of the TypedDict that annotates `**name` of a constructor; none where it takes anything."""
    hint = get_type_hints(target.__init__).get(name)  # type: ignore[misc]
    return tuple(get_args(hint)[0].__annotations__) if get_origin(hint) is Unpack else ()


def read(schema: type[T], node: Any, where: str = "train") -> T:
    """`node` as an instance of the dataclass `schema`: unknown keys and wrong types are errors, defaults fill gaps.

    Raises:
        ConfigError: names the key below `where`, the value and what works.
    """
    plain = to_plain(node)
    names = [f.name for f in fields(schema)]  # type: ignore[arg-type]
    for key in plain:
        if key not in names:
            raise ConfigError(f"unknown key '{where}.{key}': {did_you_mean(key, names)}")
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), plain))  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error, [f"{where}.{name}" for name in names], prefix=f"{where}.")) from error


def whole(name: str, value: Any, least: int = 0) -> int:
    """`value` of the setting `name`, if it is a whole number of at least `least`. Raises ConfigError otherwise."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ConfigError(f"{name}={value!r} does not work: give a whole number of at least {least}")
    return int(value)


def workers(num_workers: Any) -> int | None:
    """The setting num_workers, if it is null or a whole number. Raises ConfigError otherwise."""
    return None if num_workers is None else whole("num_workers", num_workers)


def number(name: str, value: Any) -> float:
    """`value` of the setting `name`, if it is a finite number. Raises ConfigError otherwise."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ConfigError(f"{name}={value!r} does not work: give a number")
    return float(value)


def flag(name: str, value: Any) -> bool:
    """`value` of the setting `name`, if it is true or false. Raises ConfigError otherwise."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={value!r} does not work: give true or false")
    return value


def texts(name: str, value: Any) -> list[str]:
    """`value` of the setting `name`, if it is a list of texts. Raises ConfigError otherwise."""
    if not isinstance(value, list | tuple) or not all(isinstance(item, str | Path) for item in value):
        example = f", such as {name}=[{value}]" if isinstance(value, str) else ""
        raise ConfigError(f"{name}={value!r} does not work: give a list of texts{example}")
    return [str(item) for item in value]


def to_plain(config: Any) -> Any:
    """`config` with every interpolation resolved, as dicts, lists and scalars only.

    Raises:
        ConfigError: mandatory values (`???`) are missing, or an interpolation points nowhere.
    """
    if not isinstance(config, DictConfig | ListConfig):
        return config
    missing = [key for key, value in _items(OmegaConf.to_container(config, resolve=False)) if value == "???"]
    if missing:
        raise ConfigError(f"missing {', '.join(map(repr, missing))}: give {' '.join(f'{key}=VALUE' for key in missing)}")
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error, keys_of(config))) from error


def keys_of(config: Any) -> list[str]:
    """Dotted names of all keys of a configuration, inner ones included."""
    plain = OmegaConf.to_container(config, resolve=False) if isinstance(config, DictConfig | ListConfig) else config
    return [key for key, _ in _items(plain)]


def _items(plain: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in plain.items() if isinstance(plain, Mapping) else ():
        yield f"{prefix}{key}", value
        yield from _items(value, f"{prefix}{key}.")


def compose(config_name: str, overrides: Sequence[str] = (), folder: Path | None = None) -> DictConfig:
    """The configuration `folder`/`config_name`.yaml with `overrides` ("key=value"); folder is our conf/ unless given.

    Raises:
        ConfigError: an override or a group option that does not exist; names the closest ones that do.
    """
    folder = folder or conf_dir()
    try:
        return _compose(config_name, overrides, folder)
    except Exception as error:
        if not _is_config_error(error):
            raise
        raise ConfigError(explain(error, _valid_keys(config_name, overrides, folder))) from error


def _compose(config_name: str, overrides: Sequence[str], folder: Path) -> DictConfig:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(str(folder.resolve()), version_base="1.3"):
        return hydra_compose(config_name, overrides=list(overrides))


def _is_config_error(error: BaseException) -> bool:
    from hydra.errors import HydraException

    return isinstance(error, HydraException | OmegaConfBaseException)


def _valid_keys(config_name: str, overrides: Sequence[str], folder: Path) -> list[str]:
    """Keys and groups that can be overridden once the overrides that do not compose are left out."""
    good: list[str] = []
    config: DictConfig | None = None
    for candidate in ([], *([override] for override in overrides)):
        try:
            config = _compose(config_name, [*good, *candidate], folder)
            good += candidate
        except Exception as error:
            if not _is_config_error(error):
                raise
    groups = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_dir()]
    return sorted({*keys_of(config), *groups})


def explain(error: BaseException, keys: Iterable[str] = (), prefix: str = "") -> str:
    """One sentence for an error of Hydra or OmegaConf: what was given, and what of `keys` would have worked.

    keys: dotted names and groups that exist (see `keys_of`). prefix: put before the key that OmegaConf names.
    Any other error keeps its own message.
    """
    if isinstance(error, ConfigError) or not _is_config_error(error):
        return str(error)
    keys, chain = list(keys), [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    text = "\n".join(str(link) for link in chain)
    full_key = re.search(r"full_key: (\S+)", text)
    if found := re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text):
        key = found[1] or (full_key[1] if full_key else found[2])
        if key in keys and full_key:  # it exists, but something in the mapping that it was given does not
            if close := _similar(full_key[1], keys):
                return f"unknown key {full_key[1]!r}: {did_you_mean(full_key[1], close)}"
            return f"unknown key {full_key[1]!r}: if what it configures takes it, add it by +{full_key[1]}=VALUE"
        return f"unknown key {key!r}: {_closest(key, [other for other in keys if other != key])}"
    if found := re.search(
        r"Could not find '([^']+)'(?:.*?Available options in '([^']+)':\n(.*?)(?:\nConfig search|\Z))?", text, re.S
    ):
        group, _, option = found[1].rpartition("/")
        options = [line.strip() for line in (found[3] or "").splitlines() if line.strip()]
        return f"{group or found[1]!r} has no option {option!r}: {did_you_mean(option, options)}"
    if found := re.search(r"Value '(.*)' (?:of type '(\w+)' could not be converted to|is not a valid) (\w+)", text):
        key = prefix + full_key[1] if full_key else "value"
        return f"{key}={found[1]} does not work: expected {found[3].lower()}"
    if found := re.search(r"You must specify '([^']+)'.*?Available options:?\s*(.*)", text, re.S):
        return f"missing {found[1]!r}: give {found[1]}=OPTION, one of {', '.join(found[2].split())}"
    if found := re.search(r"Missing mandatory value: (\S+)", text):
        return f"missing {prefix + found[1]!r}: give {prefix}{found[1]}=VALUE"
    if found := re.search(r"Cannot find primary config '([^']+)'", text):
        return f"there is no configuration {found[1]!r}"
    if "OverrideParseException" in type(error).__name__:
        return f"{getattr(error, 'override', 'override')!r} is not of the form key=value: {text.splitlines()[0]}"
    where = f"{prefix}{full_key[1]}: " if full_key else ""
    lines = [line.strip() for line in text.splitlines() if not re.search(r"full_key:|object_type=", line)]
    return where + " ".join(line for line in lines if line)


def _similar(key: str, keys: Iterable[str]) -> list[str]:
    """Those beside `key` whose name is like its own."""
    parent, dot, name = key.rpartition(".")
    beside = [k.rpartition(".")[2] for k in keys if k.rpartition(".")[0] == parent]
    return [parent + dot + n for n in difflib.get_close_matches(name, beside, n=2)]


def _closest(key: str, keys: Sequence[str]) -> str:
    """Suggestions for `key`: similar names beside it, else the same name elsewhere, else any similar, else all beside it."""
    parent, _, name = key.rpartition(".")
    beside = [k for k in keys if k.rpartition(".")[0] == parent]
    close = _similar(key, keys) or [k for k in keys if k.rpartition(".")[2] == name]
    hint = did_you_mean(key, close or beside or keys)
    return hint if close or beside or hint.startswith("did you mean") else did_you_mean(key, [k for k in keys if "." not in k])
