"""Features of every checkpoint's encoder: of the data it was trained on and of the target observations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy import checkpoint
from robopolicy.data.episodes import EpisodeStore
from robopolicy.data.manage import select_episodes
from robopolicy.data.windows import Windows
from robopolicy.evaluation.features import Frames, of_frames
from robopolicy.evaluation.rollout import Arm
from robopolicy.executor import Executor, map_units
from robopolicy.files import atomic_write, file_stem
from robopolicy.ope.networks import one_thread
from robopolicy.policies.base import TrainablePolicy
from robopolicy.policies.load import load_policy
from robopolicy.ranking.tables import IntegrityError, RankingError, load_features
from robopolicy.selection.target import RecordedTarget, Target, frame_digests, open_target, store_pictures
from robopolicy.selection.units import hashes, played_by
from robopolicy.spec import DEPTH, IMAGES, Observation, SpecError

FEATURE_SPLIT = 2  # of the episodes a policy was trained on, every second one calibrates the detectors that the others fit
Arrays = Mapping[str, np.ndarray]
AUTO, CONTEXT, SENSORS = LAYERS = ("auto", "context", "sensors")  # of a policy's encoder, in which the detectors look
KEY = "key"  # in a file: hash of what its content depends on


def training_data(arm: Arm) -> tuple[EpisodeStore, Mapping[str, Sequence[object]]]:
    """The dataset that a checkpoint was trained on, and which of its episodes (`data.where`).

    Raises:
        CheckpointError: its config does not say, or that is another dataset now.
    """
    data, data_hash = named_data(arm)
    store = EpisodeStore(data["path"])
    if data_hash not in ("", None, store.hash):
        raise checkpoint.CheckpointError(f"{arm.checkpoint} was trained on another state of {data['path']} than is there now")
    return store, data.get("where") or {}


def named_data(arm: Arm) -> tuple[Mapping[str, Any], str | None]:
    """The node `data` of what a checkpoint was trained on, with its path, and the hash of the dataset then.

    Raises:
        CheckpointError: its config names none, as after reinforcement learning without demonstrations.
    """
    config, meta = checkpoint.describe(arm.checkpoint)
    data = config.get("data") or {}
    if not data.get("path"):
        raise checkpoint.CheckpointError(
            f"{arm.checkpoint} names no data that it was trained on, and without it no detector knows what is usual: leave out "
            "target=, which ranks by simulated success alone (combine=[sim]), or give features=<folder of .npz>"
        )
    return data, meta.get("data_hash")


def detection_frames(arm: Arm, policy: TrainablePolicy, target: str) -> dict[str, Frames]:
    """What the detectors compare: data it was trained on ("fit", "calibration": disjoint episodes) and the "target".

    Raises:
        CheckpointError: see training_data. SpecError: the target lacks a key that the policy needs.
    """
    store, where = training_data(arm)
    episodes, keys, horizon = select_episodes(store, where), policy.spec.observation, policy.spec.obs_horizon
    return {
        "fit": Windows(store, tuple(keys), horizon, 1, episodes=episodes[::FEATURE_SPLIT]),
        "calibration": Windows(store, tuple(keys), horizon, 1, episodes=episodes[1::FEATURE_SPLIT]),
        "target": open_target(target).frames(keys, horizon),
    }


def policy_features(
    arm: Arm, target: str, num_frames: int, seed: int, reference: str | None = None, layer: str = AUTO
) -> dict[str, np.ndarray]:
    """A checkpoint's features [N, D] of what the detectors compare, and the episode of every row; see compared.

    layer: CONTEXT, what its encoder makes of everything, or SENSORS, of pictures, depth and clouds alone. AUTO: SENSORS where
        it reads pictures and no reference shows how whoever recorded the target moves, which would be what the detectors see.

    Raises:
        ValueError: its policy offers no features. RankingError: it has no such layer. CheckpointError, SpecError: see
            detection_frames.
    """
    policy = load_policy(arm.checkpoint)
    if "features" not in policy.spec.capabilities:
        raise ValueError(
            f"{arm.checkpoint} offers no features: rank it by simulated success alone, or train a policy that has them"
        )
    if layer == AUTO:
        pictures = any(key.startswith((IMAGES, DEPTH)) for key in policy.spec.observation)
        layer = SENSORS if pictures and reference is None else CONTEXT
    make = partial(_sensed, arm, policy) if layer == SENSORS else policy.features
    return compared(arm, policy, make, target, num_frames, seed, reference)


def _sensed(arm: Arm, policy: TrainablePolicy, observation: Observation) -> np.ndarray:
    try:
        return policy.sensed(observation)
    except SpecError as error:
        raise RankingError(f"layer={SENSORS} of {arm.checkpoint}: {error}; give layer={CONTEXT}") from error


def policy_outputs(arm: Arm, target: str, num_frames: int, seed: int, reference: str | None = None) -> dict[str, np.ndarray]:
    """What a checkpoint would do [N, h A] where the detectors look: the steps it would execute."""
    policy = load_policy(arm.checkpoint)
    found = compared(arm, policy, partial(executed, policy, seed=seed), target, num_frames, seed, reference)
    return {name: found[name] for name in ("fit", "calibration", "target")}


def executed(policy: TrainablePolicy, observation: Observation, seed: int) -> np.ndarray:
    """The steps of its best guess that a policy would execute, flat [B, h A]."""
    chunks = policy.sample(observation, seed=seed)[:, 0, : policy.spec.execute_horizon]
    return chunks.reshape(len(chunks), -1)


def compared(
    arm: Arm,
    policy: TrainablePolicy,
    make: Callable[[Observation], np.ndarray],
    target: str,
    num_frames: int,
    seed: int,
    reference: str | None = None,
) -> dict[str, np.ndarray]:
    """make(observation) of up to num_frames of each of detection_frames [N, ...], and the episodes int64 [N] of the rows.

    reference: simulated episodes of whoever recorded the target; see with_reference.
    """
    found: dict[str, np.ndarray] = {}
    for name, frames in detection_frames(arm, policy, target).items():
        found[name], found[f"{name}_episode"] = of_frames(policy, make, frames, num_frames, seed)
    if reference is not None:
        recorded = open_target(reference).frames(policy.spec.observation, policy.spec.obs_horizon)
        rows, owner = of_frames(policy, make, recorded, num_frames, seed)
        found |= with_reference(found, rows, owner)
    return found


def with_reference(found: Arrays, rows: np.ndarray, owner: np.ndarray) -> dict[str, np.ndarray]:
    """What is known ("fit") and what calibrates, with rows [N, ...] of a reference's episodes `owner` int64 [N].

    Every second episode is known beside the training data, the others calibrate in place of it: what is left between them and
    the target is the world.
    """
    known = owner % FEATURE_SPLIT == 0
    return {
        "fit": np.concatenate([found["fit"], rows[known]]),
        "fit_episode": np.concatenate([found["fit_episode"], -1 - owner[known]]),  # not those of the training data
        "calibration": rows[~known],
        "calibration_episode": owner[~known],
    }


def _make(unit: tuple[Arm, Path, str], make: Callable[[Arm], Arrays]) -> None:
    arm, file, key = unit
    with one_thread():
        write_arrays(file, make(arm), key)


def kept_arrays(
    arms: Sequence[Arm],
    make: Callable[[Arm], Arrays],
    identity: Sequence[Any],
    folder: Path,
    num_workers: int | None,
    title: str,
    executor: Executor | None = None,
    shas: Mapping[str, str] | None = None,
) -> dict[str, Arrays]:
    """make(arm) of every arm by name, in parallel, kept in `folder`; what is there already is not made again.

    identity: all that the arrays depend on beside the checkpoint and the versions of what runs it. shas: units.hashes of the
    arms, where they are known.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shas, units = hashes(arms) if shas is None else shas, []
    for arm in arms:
        key = hashlib.sha256(json.dumps([shas[arm.checkpoint], *identity, played_by()]).encode()).hexdigest()
        units.append((arm, features_file(folder, arm.name), key))
    missing = [unit for unit in units if not is_of(unit[1], unit[2])]
    map_units(partial(_make, make=make), missing, num_workers, title, executor=executor)
    return {arm.name: load_features(file) for arm, file, _ in units}


def pool_features(
    arms: Sequence[Arm],
    target: str | Path,
    num_frames: int,
    seed: int,
    num_workers: int | None,
    folder: str | Path,
    executor: Executor | None = None,
    shas: Mapping[str, str] | None = None,
    make: Callable[..., Arrays] = policy_features,
    reference: str | Path | None = None,
    layer: str = AUTO,
) -> dict[str, Arrays]:
    """policy_features (or policy_outputs, which have no layers) of every arm by name; see kept_arrays."""
    path, identity = str(Path(target).absolute()), [open_target(target).hash, num_frames, seed]
    make_one = partial(make, target=path, num_frames=num_frames, seed=seed)
    if reference is not None:
        make_one = partial(make_one, reference=str(Path(reference).absolute()))
        identity.append(open_target(reference).hash)
    if make is policy_features:
        make_one = partial(make_one, layer=layer)
        identity.append(layer)
    title = make.__name__.removeprefix("policy_")
    return kept_arrays(arms, make_one, identity, Path(folder).absolute(), num_workers, title, executor, shas)


def is_of(file: Path, key: str) -> bool:
    """Whether `file` was written under this key."""
    if not file.is_file():
        return False
    with np.load(file, allow_pickle=False) as arrays:
        return KEY in arrays.files and str(arrays[KEY]) == key


def features_file(folder: str | Path, name: str) -> Path:
    """The file in `folder` with the features of the checkpoint `name`."""
    return Path(folder) / f"{file_stem(name)}.npz"


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], key: str) -> None:
    """Write arrays in one step, with the key of what they depend on."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays, **{KEY: np.array(key)})  # type: ignore[arg-type]

    atomic_write(path, write)


def refuse_reference(reference: Target, target: Target) -> None:
    """Refuse a reference of which the target is a part, or which cannot be split into what is known and what calibrates.

    Raises:
        IntegrityError: naming what they share. RankingError: it has fewer than two episodes.
    """
    shared = reference.hash == target.hash or reference.checksums & target.checksums
    if shared:
        raise IntegrityError("the reference holds episodes of the target: record it in simulation, as the target was recorded")
    if len(reference.checksums) < FEATURE_SPLIT:
        raise RankingError(
            f"the reference has {len(reference.checksums)} recorded episodes; every second one calibrates the detectors that "
            f"know the others: give a dataset of at least {FEATURE_SPLIT}, better 40"
        )


def refuse_leaks(arms: Sequence[Arm], target: Target) -> None:
    """Refuse target observations that a checkpoint was trained on.

    Told by hashes: of the whole dataset, of every episode, and, where the target is pictures, of every frame.

    Raises:
        IntegrityError: naming the checkpoint and its dataset.
    """
    frames = set(frame_digests(target.pictures())) if isinstance(target, RecordedTarget) else set()
    advice = "a detector finds nothing unusual in what its policy was trained on; record other target observations"
    target_hash, checked = target.hash, set[str]()  # paths of datasets
    for arm in arms:
        config, meta = checkpoint.describe(arm.checkpoint)
        path = str(config.get("data", {}).get("path") or "")
        if meta.get("data_hash") == target_hash:
            raise IntegrityError(f"{arm.checkpoint} was trained on the target observations (equal data hash): {advice}")
        if not path or path in checked or not Path(path).is_dir():
            continue
        store = EpisodeStore(path)
        checked.add(path)
        shared = target.checksums & set(store.table["checksum"].to_pylist())
        if shared:
            count = len(shared)
            raise IntegrityError(f"{count} episodes of the target are in {path}, which {arm.name} was trained on: {advice}")
        if frames:
            seen = sum(digest in frames for digest in set(frame_digests(store_pictures(store))))
            if seen:
                raise IntegrityError(f"{seen} target pictures are in {path}, which {arm.name} was trained on: {advice}")
