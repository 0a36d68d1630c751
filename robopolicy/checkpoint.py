"""Checkpoint folders: weights (safetensors), config (YAML) and metadata (JSON); nothing in them can run code.

    <run>/checkpoints/latest                                               name of the newest step folder
    <run>/checkpoints/step_000123/model/{model.safetensors,config.yaml,meta.json}    all that inference needs
    <run>/checkpoints/step_000123/training/{state.safetensors,state.json}            all that resuming needs

Both folders appear by a rename: a kill at any moment leaves the old content or the new, never a part.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from robopolicy.files import atomic_write, plain, sync_folder, write_durable

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

SCHEMA = 1  # of meta.json
MODEL, TRAINING, LATEST = "model", "training", "latest"
WEIGHTS, CONFIG, META = "model.safetensors", "config.yaml", "meta.json"
STATE_TENSORS, STATE_JSON = "state.safetensors", "state.json"
_UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}  # schema n -> function that makes it schema n + 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be used. The message names the file or tensor and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """What `load` returns: tensors {name: Tensor on the CPU}, resolved config, metadata (current schema), model folder."""

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    meta: dict[str, Any]
    path: Path


def step_folder(run_dir: str | Path, step: int) -> Path:
    """Folder of the checkpoint at `step` of a run."""
    return Path(run_dir) / "checkpoints" / f"step_{step:06d}"


def save(folder: str | Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], meta: Mapping[str, Any]) -> Path:
    """Write `<folder>/model` in one step and, when `folder` is a step_* folder, name it in `latest` beside it.

    Call `save_training` first where both are wanted: `latest` then never names a step that cannot be resumed.

    Args:
        folder: a step folder; an existing model in it is replaced.
        tensors: {name: tensor}, as from `module.state_dict()`; tied tensors are stored under each of their names.
        config: resolved run config.
        meta: "kind", "spec", "step", "data_hash", "git_commit", "metrics"; "schema" is added. NaN becomes null.

    Returns:
        The model folder.

    Raises:
        CheckpointError: something in config, meta or tensors that is neither a plain value nor a tensor.
    """
    folder = _outer(folder)
    config_text = yaml.safe_dump(plain(config, where="config", error=CheckpointError), sort_keys=False, allow_unicode=True)
    meta_json = plain({**meta, "schema": SCHEMA}, where="meta", error=CheckpointError, nonfinite="null")
    model = _replace(
        folder / MODEL, {WEIGHTS: _pack(tensors), CONFIG: config_text.encode(), META: json.dumps(meta_json, indent=2).encode()}
    )
    if _step_of(folder) is not None:
        atomic_write(folder.parent / LATEST, f"{folder.name}\n".encode())
    return model


def load(folder: str | Path) -> Checkpoint:
    """Read a checkpoint from a model folder or from the step folder around it.

    Raises:
        CheckpointError: a missing folder or file, a damaged file, or a schema newer than this version knows.
    """
    config, meta = describe(folder)
    model = _find(folder, MODEL, (WEIGHTS, CONFIG, META))
    return Checkpoint(tensors=_unpack(model / WEIGHTS), config=config, meta=meta, path=model)


def describe(folder: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config and the meta of a checkpoint, without its weights. Raises CheckpointError as `load` does."""
    model = _find(folder, MODEL, (WEIGHTS, CONFIG, META))
    try:
        config = yaml.safe_load((model / CONFIG).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{model / CONFIG} is not plain YAML ({error}); restore it from a copy") from error
    return config, upgrade(_read_json(model / META))


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], where: str | Path) -> None:
    """Copy `tensors` into `module`, strictly: the names and shapes must be the same.

    Args:
        module: what receives them.
        tensors: as from `load`.
        where: the checkpoint's path, for messages.

    Raises:
        CheckpointError: naming missing and unexpected tensors, or those of another shape. Nothing is copied then.
    """
    own = module.state_dict()
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    remedy = "it was written by another architecture: load it with its own config.yaml"
    if missing or unexpected:
        found = [f"{title} {_some(names)}" for title, names in (("lacks", missing), ("has unknown", unexpected)) if names]
        raise CheckpointError(f"{where} does not fit {type(module).__name__}: it {' and '.join(found)}; {remedy}")
    shapes = {name: (list(tensors[name].shape), list(own[name].shape)) for name in own}
    wrong = [f"{name} {given} for {expected}" for name, (given, expected) in shapes.items() if given != expected]
    if wrong:
        raise CheckpointError(f"{where} does not fit {type(module).__name__}: shapes {_some(wrong)}; {remedy}")
    module.load_state_dict(dict(tensors), strict=True)


def upgrade(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of any older schema in today's form. The one place where old checkpoints are understood.

    Raises:
        CheckpointError: no schema, or one newer than this version knows.
    """
    schema = meta.get("schema")
    if not isinstance(schema, int) or schema < 1:
        raise CheckpointError(f"{META} has schema {schema!r}, expected 1 to {SCHEMA}: not a checkpoint of robopolicy")
    if schema > SCHEMA:
        raise CheckpointError(f"{META} has schema {schema}, this version reads up to {SCHEMA}: update robopolicy")
    current = dict(meta)
    while current["schema"] < SCHEMA:
        logger.info("upgrading checkpoint metadata from schema %d", current["schema"])
        current = {**_UPGRADES[current["schema"]](current), "schema": current["schema"] + 1}
    return current


def save_training(folder: str | Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Write `<folder>/training` in one step: tensors and JSON state (NaN and infinities are kept). Returns the folder."""
    text = json.dumps(plain(state, where="state", error=CheckpointError), indent=2)
    return _replace(_outer(folder) / TRAINING, {STATE_TENSORS: _pack(tensors), STATE_JSON: text.encode()})


def load_training(folder: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and JSON state that `save_training` wrote.

    Raises:
        CheckpointError: the folder holds no training state, or it is damaged.
    """
    training = _find(_outer(folder), TRAINING, (STATE_TENSORS, STATE_JSON))
    return _unpack(training / STATE_TENSORS), _read_json(training / STATE_JSON)


def list_checkpoints(run_dir: str | Path) -> list[Path]:
    """Step folders of a run (or of its checkpoints/ folder) that hold a model, by ascending step; [] when there are none."""
    root = Path(run_dir)
    root = root / "checkpoints" if (root / "checkpoints").is_dir() else root
    found = {path: _step_of(path) for path in root.glob("step_*") if (_part(path, MODEL) / META).is_file()}
    steps = {path: step for path, step in found.items() if step is not None}
    return sorted(steps, key=steps.__getitem__)


def latest(run_dir: str | Path) -> Path | None:
    """Step folder written last, None when the run has no checkpoint."""
    checkpoints = list_checkpoints(run_dir)
    if not checkpoints:
        return None
    pointer = checkpoints[0].parent / LATEST
    named = pointer.parent / pointer.read_text().strip() if pointer.is_file() else checkpoints[-1]
    return named if named in checkpoints else checkpoints[-1]


def sha256(folder: str | Path) -> str:
    """Hex digest of the three files of the model folder (or of the one in a step folder)."""
    model = _find(folder, MODEL, (WEIGHTS, CONFIG, META))
    digest = hashlib.sha256()
    for name in (WEIGHTS, CONFIG, META):
        with (model / name).open("rb") as file:
            digest.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def git_commit() -> str:
    """Commit of the checkout this package runs from, with "-dirty" when tracked files differ; "" outside a checkout."""
    package = Path(__file__).resolve().parent

    def git(*args: str) -> str:
        command = ["git", "-C", str(package), *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != package.parent:
            return ""  # installed below somebody else's checkout
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return ""


def _outer(folder: str | Path) -> Path:
    """The step folder, also when its model/ was given."""
    path = Path(folder)
    return path.parent if path.name == MODEL else path


def _step_of(folder: Path) -> int | None:
    match = re.fullmatch(r"step_(\d+)", folder.name)
    return int(match[1]) if match else None


def _part(folder: Path, name: str) -> Path:
    """`folder/name`, or the copy that an overwrite killed between its two renames left behind."""
    part, old = folder / name, folder / f".{name}.old"
    return old if old.is_dir() and not part.is_dir() else part


def _find(folder: str | Path, name: str, files: tuple[str, ...]) -> Path:
    """The folder that holds `files`: `folder` itself or its part `name`."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint at {folder}: the folder does not exist")
    part = folder if any((folder / file).is_file() for file in files) else _part(_outer(folder), name)
    missing = [file for file in files if not (part / file).is_file()]
    if not missing:
        return part
    steps = [str(path) for path in list_checkpoints(folder)]
    hint = f"; checkpoints in it: {_some(steps)}" if steps else ""
    raise CheckpointError(f"{folder} is not a checkpoint with a {name} part: {part} lacks {', '.join(missing)}{hint}")


def _replace(target: Path, files: Mapping[str, bytes]) -> Path:
    """Create or replace the folder `target` with `files` by renames."""
    new, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    for name, data in files.items():
        write_durable(new / name, data)
    sync_folder(new)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    new.rename(target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)
    return target


def _pack(tensors: Mapping[str, Tensor]) -> bytes:
    import torch
    from safetensors.torch import save as to_bytes

    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise CheckpointError(f"{name!r} is a {type(tensor).__name__}, not a tensor: put it into the JSON part")
    return to_bytes({name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()})


def _unpack(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        size = path.stat().st_size
        raise CheckpointError(f"{path} ({size} bytes) is damaged or cut short ({error}); restore it from a copy") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}); restore it from a copy") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a {type(data).__name__}, expected a JSON object; restore it from a copy")
    return data


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
