"""RLDS datasets as TFDS keeps them (https://github.com/google-research/rlds), read without TensorFlow.

    features.json                              the tree of features: steps/..., episode_metadata/...
    dataset_info.json                          splits and how many episodes each shard has
    <name>-<split>.tfrecord-00000-of-000NN     a tf.train.Example an episode: all steps of a feature in a row

Step t holds an observation and the action taken after it. By the RLDS convention the action and reward of a step with
is_last mean nothing; the Open X-Embodiment datasets have real ones there, and every step is imported.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.data.episode_file import DatasetError
from robopolicy.data.importers.source import Episode, Layout, camera_defaults
from robopolicy.data.importers.tfrecord import parse_example, read_records
from robopolicy.spec import ACTION, REWARD, STATE, TASK, TERMINATED, Array

_STEPS, _METADATA = "steps/", "episode_metadata/"
_SHARD = re.compile(r"(?P<name>.+)-(?P<split>[^-]+)\.tfrecord-(?P<number>\d{5})-of-(?P<count>\d{5})")
_LONGEST = 16  # numbers of a metadata feature that become a column of the episode table


@dataclass(frozen=True)
class _Feature:
    """A leaf of features.json. kind: "tensor", "image" or "text"; shape: with -1 for what is not known."""

    kind: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    encoding: str = "none"


class RldsSource:
    """A TFDS folder of RLDS episodes. Fields are the paths of the steps' features, e.g. observation/image.

    Raises:
        DatasetError: no such folder or no shards in it, features that are not of an RLDS dataset.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        left_out: dict[str, str] = {}
        try:
            tree = json.loads((path / "features.json").read_text())
            leaves = dict(_leaves(tree, "", left_out))
        except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"{path / 'features.json'} cannot be read ({error!r}); restore it from a copy") from error
        self.steps = {name.removeprefix(_STEPS): leaf for name, leaf in leaves.items() if name.startswith(_STEPS)}
        self.metadata = {name.removeprefix(_METADATA): leaf for name, leaf in leaves.items() if name.startswith(_METADATA)}
        if not self.steps:
            raise DatasetError(f"{path} is no RLDS dataset: features.json has no 'steps', only {sorted(leaves)}")
        self.shards = self._find_shards()
        self.texts = [name for name, leaf in self.steps.items() if leaf.kind == "text"]
        fields = tuple(name for name in self.steps if name not in self.texts)
        left_out = {name.removeprefix(_STEPS): why for name, why in left_out.items() if name.startswith(_STEPS)}
        instructions = [name for name in self.texts if "instruction" in name.rpartition("/")[2]]
        self.instruction = min(instructions, key=lambda name: (name.count("/"), name), default="")
        left_out |= {name: "holds text" for name in self.texts if name != self.instruction}
        here = {split for split, _, _ in self.shards}
        left_out |= {f"split {split}": "has no file here" for split, each in self.lengths.items() if each and split not in here}
        total = sum(count or 0 for _, _, count in self.shards)
        self.layout = Layout(fields, self._defaults(), total, left_out=left_out)

    def episodes(self, fields: Collection[str]) -> Iterator[Episode]:
        """Episodes shard by shard, training split first; the split and episode_metadata become columns of the table."""
        number = 0
        for split, shard, expected in self.shards:
            found = 0
            if not shard.exists():
                before = f", or take the {number} before it: episodes={number}" if number else ""
                raise DatasetError(f"{self.path} lacks {shard.name}; fetch it{before}")
            for record in read_records(shard):
                label = f"{shard.name} record {found}"
                example = parse_example(record)
                try:
                    arrays = {field: self._array(field, example) for field in fields}
                    info = self._info(example, split)
                except (AttributeError, KeyError, TypeError, ValueError, zlib.error) as error:
                    what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
                    raise DatasetError(f"{self.path}, {label} does not fit features.json: {what}") from error
                yield Episode(arrays, info, label, f"episode_{number:06d}")
                number, found = number + 1, found + 1
            if expected is not None and found != expected:
                raise DatasetError(f"{shard} has {found} of {expected} episodes; restore it from a copy")

    def _array(self, field: str, example: Mapping[str, Any]) -> Array:
        """[T, ...] of one feature of the steps."""
        leaf, values = self.steps[field], example[_STEPS + field]
        if leaf.kind == "image":
            frames = [_decode_image(field, data, leaf) for data in values]
            return np.stack(frames)
        dtype = np.dtype(leaf.dtype)
        if leaf.encoding != "none":
            raw = b"".join(zlib.decompress(data) if leaf.encoding == "zlib" else data for data in values)
            return np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype).reshape(len(values), *leaf.shape)
        size = math.prod(leaf.shape)
        if len(values) % size or isinstance(values, list):
            raise ValueError(f"{field!r} has {len(values)} values, which make no steps of {list(leaf.shape)}")
        if (values.astype(dtype) != values).any() and dtype.kind in "biu":
            raise ValueError(f"{field!r} has values that {dtype} cannot hold")
        return values.astype(dtype).reshape(-1, *leaf.shape)

    def _info(self, example: Mapping[str, Any], split: str) -> dict[str, Any]:
        texts = example.get(_STEPS + self.instruction, []) if self.instruction else []
        info: dict[str, Any] = {TASK: next((text.decode() for text in texts if text), ""), "split": split}
        metadata: dict[str, Any] = {}
        for name, leaf in self.metadata.items():
            values = example.get(_METADATA + name, [])
            if leaf.kind == "text" and len(values) == 1:
                metadata[name] = values[0].decode(errors="replace")
            elif leaf.kind == "tensor" and leaf.encoding == "none" and not isinstance(values, list) and len(values) <= _LONGEST:
                plain = [value if math.isfinite(value) else None for value in values.astype(leaf.dtype).tolist()]
                metadata[name] = plain if leaf.shape else next(iter(plain), None)
        if isinstance(metadata.get("success"), bool):
            info["success"] = metadata.pop("success")
        return info | ({"metadata": metadata} if metadata else {})

    def _defaults(self) -> dict[str, tuple[str, ...]]:
        images = [name for name, leaf in self.steps.items() if leaf.kind == "image" and leaf.shape[-1:] != (1,)]
        depths = [
            name
            for name, leaf in self.steps.items()
            if "depth" in name and leaf.kind == "tensor" and leaf.dtype.startswith("float") and len(leaf.shape) in (2, 3)
        ]
        usual = {ACTION: ("action",), STATE: ("observation/state", "observation/proprio"), REWARD: ("reward",)}
        usual[TERMINATED] = ("is_terminal",)
        found = {key: next((name for name in names if name in self.steps), "") for key, names in usual.items()}
        return camera_defaults(images, depths) | {key: (name,) for key, name in found.items() if name}

    def _find_shards(self) -> list[tuple[str, Path, int | None]]:
        """Split, file and number of episodes, if known, of each shard."""
        try:
            info = json.loads((self.path / "dataset_info.json").read_text())
            self.lengths = {split["name"]: [int(n) for n in split["shardLengths"]] for split in info.get("splits", [])}
            kind = info.get("fileFormat", "tfrecord")
        except FileNotFoundError:
            self.lengths, kind = {}, "tfrecord"
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"{self.path / 'dataset_info.json'} is damaged ({error!r}); restore it from a copy") from error
        if kind != "tfrecord":
            raise DatasetError(f"{self.path} keeps its episodes as {kind}; only tfrecord can be read")
        files = [match for file in sorted(self.path.iterdir()) if (match := _SHARD.fullmatch(file.name))]
        if not files:
            raise DatasetError(f"{self.path} holds no *.tfrecord-00000-of-000NN file")
        shards: list[tuple[str, Path, int | None]] = []
        for split in sorted({match["split"] for match in files}, key=lambda name: (name != "train", name)):
            name, count = next((match["name"], int(match["count"])) for match in files if match["split"] == split)
            each: Sequence[int | None] = self.lengths.get(split, [None] * count)
            if len(each) != count:
                raise DatasetError(
                    f"{self.path}: dataset_info.json has {len(each)} shards of {split!r}, the files' names {count}"
                )
            paths = (self.path / f"{name}-{split}.tfrecord-{number:05d}-of-{count:05d}" for number in range(count))
            shards += [(split, file, length) for file, length in zip(paths, each, strict=True)]
        return shards


def _leaves(node: Mapping[str, Any], name: str, left_out: dict[str, str]) -> Iterator[tuple[str, _Feature]]:
    """Leaves of the tree in features.json; those that cannot become arrays go to `left_out`."""
    if "featuresDict" in node:
        for key, child in node["featuresDict"]["features"].items():
            yield from _leaves(child, f"{name}/{key}".lstrip("/"), left_out)
    elif "sequence" in node and name == _STEPS.rstrip("/"):
        yield from _leaves(node["sequence"]["feature"], name, left_out)
    elif "text" in node:
        yield name, _Feature("text")
    elif "image" in node:
        yield name, _Feature("image", _shape(node["image"]), node["image"].get("dtype") or "uint8")
    elif "classLabel" in node:
        yield name, _Feature("tensor", (), "int64")
    elif "tensor" in node:
        tensor = node["tensor"]
        leaf = _Feature("tensor", _shape(tensor), tensor["dtype"], tensor.get("encoding") or "none")
        if leaf.dtype in ("string", "object"):
            yield name, _Feature("text")
        elif min(leaf.shape, default=1) < 1 or not re.fullmatch(r"bool|u?int\d+|float(16|32|64)", leaf.dtype):
            left_out[name] = f"is {leaf.dtype} {list(leaf.shape)}, which makes no array of a fixed shape"
        else:
            yield name, leaf
    else:
        left_out[name] = f"is a {str(node.get('pythonClassName', 'feature')).rpartition('.')[2]}, which is not read"


def _shape(node: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(size) for size in node.get("shape", {}).get("dimensions", []))


def _decode_image(field: str, data: bytes, leaf: _Feature) -> Array:
    """[H, W, C] as encoded; RGB."""
    import cv2

    color = leaf.dtype == "uint8" and leaf.shape[-1:] != (1,)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION if color else cv2.IMREAD_UNCHANGED
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error:
        image = None
    if image is None:
        raise ValueError(f"{field!r} holds {len(data)} bytes that are no image that can be decoded")
    image = image[..., ::-1] if color else image.reshape(*image.shape[:2], -1)
    if len(leaf.shape) == 3 and any(known not in (-1, size) for known, size in zip(leaf.shape, image.shape, strict=True)):
        raise ValueError(f"{field!r} has an image of {list(image.shape)}, expected {list(leaf.shape)}")
    return image
