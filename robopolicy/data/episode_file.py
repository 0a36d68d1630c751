"""One episode as one file: a zarr v3 group in a zip, written whole and read with its checksums verified."""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.spec import ACTION, Array

SUFFIX = ".zarr.zip"
_WHOLE_BYTES = 1 << 20  # an array up to this size is one chunk; a larger one (images) is cut every _CHUNK_STEPS steps
_CHUNK_STEPS = 64
_EPOCH = (1980, 1, 1, 0, 0, 0)  # time stamp of every zip member, so that equal episodes are equal files


class DatasetError(ValueError):
    """A dataset folder or episode file that cannot be read. The message names the file and the remedy."""


def pack(arrays: Mapping[str, Array], info: Mapping[str, Any]) -> bytes:
    """Content of an episode file. Equal input gives equal bytes.

    Args:
        arrays: {key: array [T, ...]}; lossless zstd, one chunk per array (images: per 64 steps).
        info: JSON values, kept as the attributes of the group.
    """
    import zarr
    from zarr.codecs import ZstdCodec

    members: dict[str, Any] = {}
    group = zarr.open_group(zarr.storage.MemoryStore(members), mode="w", attributes=dict(info))
    for key, array in arrays.items():
        steps = len(array) if array.nbytes <= _WHOLE_BYTES else min(len(array), _CHUNK_STEPS)
        group.create_array(
            key,
            data=np.ascontiguousarray(array),
            chunks=(steps, *(max(1, n) for n in array.shape[1:])),
            compressors=ZstdCodec(level=3),
            config={"write_empty_chunks": True},  # a missing chunk is then always damage, never zeros
        )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(members):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), members[name].to_bytes())
    return buffer.getvalue()


def unpack(path: Path, keys: Iterable[str]) -> dict[str, Array]:
    """Arrays {key: [T, ...]} of an episode file, every byte of them verified against its CRC.

    Raises:
        DatasetError: the file is missing, cut short or damaged.
    """
    import zarr
    from zarr.buffer.cpu import Buffer

    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            for key in keys:
                chosen = [name for name in names if name.startswith(f"{key}/")]
                store = zarr.storage.MemoryStore({name: Buffer.from_bytes(archive.read(name)) for name in chosen})
                array = zarr.open_array(store, path=key, mode="r")
                if len(chosen) != 1 + math.prod(array.cdata_shape):
                    raise ValueError(f"{key!r} lacks chunks")
                arrays[key] = np.asarray(array[...])
    except (PermissionError, MemoryError):
        raise
    except Exception as error:
        raise damaged(path, error) from error
    return arrays


def describe(path: Path) -> tuple[int, dict[str, Any]]:
    """Number of steps T and info of an episode file. Raises DatasetError as `unpack` does."""
    try:
        with zipfile.ZipFile(path) as archive:
            length = json.loads(archive.read(f"{ACTION}/zarr.json"))["shape"][0]
            return int(length), json.loads(archive.read("zarr.json"))["attributes"]
    except (PermissionError, MemoryError):
        raise
    except Exception as error:
        raise damaged(path, error) from error


def checksum(path: Path) -> str:
    """Hex digest over the names, sizes and CRCs of the members of an episode file; the members are not read.

    Raises:
        DatasetError: as `unpack` does.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [(member.filename, member.file_size, member.CRC) for member in archive.infolist()]
    except (PermissionError, MemoryError):
        raise
    except Exception as error:
        raise damaged(path, error) from error
    return hashlib.sha256(repr(members).encode()).hexdigest()[:32]


def damaged(path: Path, error: Exception | str) -> DatasetError:
    """The error for an episode file that cannot be read, saying what else is intact."""
    if not path.exists():
        return DatasetError(f"{path} is gone; open the dataset again to go on without it")
    others = len(list(path.parent.glob(f"[!.]*{SUFFIX}"))) - 1
    return DatasetError(
        f"{path} is cut short or damaged ({type(error).__name__ if isinstance(error, Exception) else 'content'}: {error}); "
        f"delete that file or restore it from a copy; the other {others} episode files are not affected"
    )
