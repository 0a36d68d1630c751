"""One episode as one file: a zarr v3 group in a zip, written whole and read with its checksums verified.

The format is zarr's (https://zarr-specs.readthedocs.io/en/latest/v3/core/) and any zarr reader opens it. Writing and
reading it here costs a few times less than through the zarr package, which works for much larger arrays.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import zipfile
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robopolicy.data.seal import BLANK, is_intact, seal
from robopolicy.spec import ACTION, Array

if TYPE_CHECKING:
    import pyarrow

SUFFIX = ".zarr.zip"
_WHOLE_BYTES = 1 << 20  # an array up to this size is one chunk; a larger one (images) is cut every _CHUNK_STEPS steps
_CHUNK_STEPS = 16  # a window decodes one or two chunks; chunks of 64 steps are only 1.2 times smaller
_ZSTD_LEVEL = 3
_EPOCH = (1980, 1, 1, 0, 0, 0)  # time stamp of every zip member, so that equal episodes are equal files


class DatasetError(ValueError):
    """A dataset folder or episode file that cannot be read. The message names the file and the remedy."""


def pack(arrays: Mapping[str, Array], info: Mapping[str, Any]) -> bytes:
    """Content of an episode file, to be named by `label`. Equal input gives equal bytes.

    Args:
        arrays: {key: array [T, ...]}; lossless zstd, one chunk per array (images: per 16 steps).
        info: JSON values, kept as the attributes of the group.
    """
    members = {"zarr.json": _json({"attributes": dict(info), "zarr_format": 3, "node_type": "group"})}
    for key, array in arrays.items():
        members.update(_encode(key, array))
    return _zip(members)


def label(data: bytes, name: str) -> bytes:
    """An episode file's content under `name` (without suffix): the zip comment then holds its checksum and the name."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        body = data[: len(data) - len(archive.comment) - 2]
    comment = f"{BLANK} {name}".encode()
    return seal(body + len(comment).to_bytes(2, "little") + comment)


def unpack(path: Path, keys: Iterable[str], start: int = 0, stop: int | None = None) -> dict[str, Array]:
    """Arrays {key: [T, ...]} of an episode file, or their steps `start` to `stop`, every byte verified against its CRC.

    Raises:
        DatasetError: the file is missing, cut short or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {key: _decode(archive, key, start, stop) for key in keys}
    except (PermissionError, MemoryError):
        raise
    except Exception as error:
        raise damaged(path, error) from error


def describe(path: Path) -> tuple[int, dict[str, Any], str]:
    """Number of steps T and info of an episode file, and a hex digest of its content, its name apart.

    The digest is over the names, sizes and CRCs of the members; they are not read.

    Raises:
        DatasetError: as `unpack` does.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            length = json.loads(archive.read(f"{ACTION}/zarr.json"))["shape"][0]
            members = [(member.filename, member.file_size, member.CRC) for member in archive.infolist()]
            info = json.loads(archive.read("zarr.json"))["attributes"]
    except (PermissionError, MemoryError):
        raise
    except Exception as error:
        raise damaged(path, error) from error
    return int(length), info, hashlib.sha256(repr(members).encode()).hexdigest()[:32]


def verify(path: Path) -> None:
    """Check every byte of an episode file, the zip's own structure and the file's name included.

    A file without checksum in its comment (written before there was one) must be, byte for byte, the zip that holds its
    members, which are verified against their CRCs.

    Raises:
        DatasetError: any byte differs from what was written, or the file has another's name.
    """
    try:
        data = path.read_bytes()
        intact = is_intact(data)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            comment = archive.comment.decode()
            if intact is None:
                intact = _zip({name: archive.read(name) for name in archive.namelist()}) == data
    except (PermissionError, MemoryError):
        raise
    except Exception as error:
        raise damaged(path, error) from error
    if not intact:
        raise damaged(path, "its checksum differs")
    name = comment.partition(" ")[2]
    if comment and name != path.name.removesuffix(SUFFIX):
        raise DatasetError(
            f"{path} holds episode {name!r}: files were swapped or renamed; give it back the name {name}{SUFFIX}"
        )


def damaged(path: Path, error: Exception | str) -> DatasetError:
    """The error for an episode file that cannot be read, saying what else is intact."""
    if not path.exists():
        return DatasetError(f"{path} is gone; open the dataset again to go on without it")
    others = len(list(path.parent.glob(f"[!.]*{SUFFIX}"))) - 1
    return DatasetError(
        f"{path} is cut short or damaged ({type(error).__name__ if isinstance(error, Exception) else 'content'}: {error}); "
        f"delete that file or restore it from a copy; the other {others} episode files are not affected"
    )


def _encode(key: str, array: Array) -> dict[str, bytes]:
    """A zarr v3 array as {member name: bytes}. Every chunk is there, so a missing one is always damage, never zeros."""
    steps = len(array) if array.nbytes <= _WHOLE_BYTES else min(len(array), _CHUNK_STEPS)
    chunk = (steps, *(max(1, n) for n in array.shape[1:]))
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    meta = {
        "shape": list(array.shape),
        "data_type": array.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": False if array.dtype.kind == "b" else 0.0 if array.dtype.kind == "f" else 0,
        "codecs": _codecs(array.dtype.itemsize),
        "attributes": {},
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }
    members = {f"{key}/zarr.json": _json(meta)}
    if array.size:
        for index in range(-(-len(array) // steps)):
            part = little[index * steps : (index + 1) * steps]
            if len(part) < steps:  # zarr's chunks all have the same shape
                part = np.concatenate([part, np.zeros((steps - len(part), *part.shape[1:]), part.dtype)])
            members[f"{key}/{_chunk_name(index, array.ndim)}"] = _zstd().compress(part, asbytes=True)
    return members


def _decode(archive: zipfile.ZipFile, key: str, start: int, stop: int | None) -> Array:
    meta = json.loads(archive.read(f"{key}/zarr.json"))
    shape, chunk = meta["shape"], meta["chunk_grid"]["configuration"]["chunk_shape"]
    dtype = np.dtype(meta["data_type"])
    names = [codec["name"] for codec in meta["codecs"]]
    if names != [codec["name"] for codec in _codecs(dtype.itemsize)] or chunk[1:] != [max(1, n) for n in shape[1:]]:
        raise ValueError(f"{key!r} is stored with codecs {names} in chunks of {chunk}, which robopolicy does not write")
    start, stop, _ = slice(start, stop).indices(shape[0])
    result = np.empty((max(0, stop - start), *shape[1:]), dtype)
    size = math.prod(chunk) * dtype.itemsize
    for index in range(start // chunk[0], -(-stop // chunk[0])) if result.size else ():
        raw = _zstd().decompress(archive.read(f"{key}/{_chunk_name(index, len(shape))}"), size)
        part = np.frombuffer(raw, dtype.newbyteorder("<")).reshape(chunk)
        first = index * chunk[0]
        low, high = max(start, first), min(stop, first + chunk[0])
        result[low - start : high - start] = part[low - first : high - first]
    return result


def _chunk_name(index: int, ndim: int) -> str:
    return "/".join(["c", str(index), *itertools.repeat("0", ndim - 1)])


def _codecs(itemsize: int) -> list[dict[str, Any]]:
    order: dict[str, Any] = {"name": "bytes"} if itemsize == 1 else {"name": "bytes", "configuration": {"endian": "little"}}
    return [order, {"name": "zstd", "configuration": {"level": _ZSTD_LEVEL, "checksum": False}}]


@lru_cache(maxsize=1)
def _zstd() -> pyarrow.Codec:
    import pyarrow as pa

    return pa.Codec("zstd", compression_level=_ZSTD_LEVEL)


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=False).encode()


def _zip(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(members):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), members[name])
    return buffer.getvalue()
