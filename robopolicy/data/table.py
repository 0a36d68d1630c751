"""The derived table of a dataset: a row per episode, read from the files once and then kept beside them as parquet.

The parquet file remembers size, time stamp and inode of every episode file; opening a dataset of many episodes then
costs a `stat` of each, and only files that are new or have changed are opened. The table can be deleted at any time.
"""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robopolicy.data.episode_file import SUFFIX, describe
from robopolicy.data.seal import BLANK, is_intact, seal
from robopolicy.files import atomic_write, locked

if TYPE_CHECKING:
    import pyarrow

logger = logging.getLogger(__name__)

OWN_COLUMNS = ("file", "length", "checksum")  # the info of an episode may not redefine them
_FORMAT, _STAMPS, _AS_JSON, _SEAL = b"robopolicy_table", b"robopolicy_stamps", b"robopolicy_json_columns", "robopolicy_seal"
_VERSION = b"2"

Stamp = list[int]


def episode_files(folder: Path) -> dict[str, Stamp]:
    """{file name: [size, modification time (ns), inode]} of the finished episodes in `folder`, sorted by name."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        found = {e.name: e.stat() for e in entries if e.name.endswith(SUFFIX) and not e.name.startswith(".")}
    return {name: [found[name].st_size, found[name].st_mtime_ns, found[name].st_ino] for name in sorted(found)}


def read_table(file: Path, folder: Path, lock: Path) -> pyarrow.Table:
    """The table of the episode files in `folder`; `file` holds it afterwards, if it can be written.

    Where `file` names episodes whose files are gone it stays as it is, so that `check_table` tells of them until they are
    back or it is deleted.

    Raises:
        DatasetError: an episode file that had to be read is damaged.
    """
    stamps = episode_files(folder)
    stored, problem = _load(file)
    if problem:
        logger.debug("no usable episode table: %s", problem)
    if stored is not None and _stamps(stored) == stamps:
        return stored
    table = _update(stored, folder, stamps)
    if lost := _lost(stored, file, folder, stamps):
        logger.warning("%s", lost)
        return table
    try:
        content = _content(table)
        with locked(lock):
            atomic_write(file, content)
    except OSError as error:
        logger.info("the episode table stays in memory: %s", error)
    return table


def check_table(file: Path, folder: Path) -> list[str]:
    """What is wrong with the table at `file`: damage, or episodes in it whose files are gone. [] also when it is old."""
    if not file.exists():
        return []
    stored, problem = _load(file)
    if problem:
        return [f"{file} is damaged ({problem}); delete it: it is derived and made again when the dataset is opened"]
    lost = _lost(stored, file, folder, episode_files(folder))
    return [lost] if lost else []


def _lost(stored: pyarrow.Table | None, file: Path, folder: Path, present: Collection[str]) -> str:
    """Which episodes of the stored table have no file any more, and what to do; "" where all have."""
    gone = sorted(set(stored["file"].to_pylist()) - set(present)) if stored is not None else []
    if not gone:
        return ""
    names = ", ".join(gone[:5]) + (", ..." if len(gone) > 5 else "")
    return (
        f"{folder}: {len(gone)} episode files that were here are gone ({names}); restore them from a copy, "
        f"or delete {file} to go on without them"
    )


def _load(file: Path) -> tuple[pyarrow.Table | None, str]:
    """The stored table, if there is a usable one, and what is wrong with the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        data = file.read_bytes()
        intact = is_intact(data)
        if intact is False:
            return None, "its checksum differs"
        # pyarrow's reader threads sometimes abort the interpreter when it ends: none are started here
        table = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)
        found = (table.schema.metadata or {}).get(_FORMAT)
    except FileNotFoundError:
        return None, ""
    except (OSError, pa.ArrowException, KeyError) as error:
        return None, str(error)
    if intact is None and found != b"1":  # version 1 had no checksum
        return None, "it holds no checksum"
    return (table if found == _VERSION else None), ""


def _content(table: pyarrow.Table) -> bytes:
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({_SEAL: BLANK})
    return seal(buffer.getvalue())


def _stamps(table: pyarrow.Table) -> dict[str, Stamp]:
    return json.loads(table.schema.metadata[_STAMPS])


def _update(stored: pyarrow.Table | None, folder: Path, stamps: Mapping[str, Stamp]) -> pyarrow.Table:
    """The table of the files with `stamps`, reading only new ones where `stored` covers all others unchanged."""
    import pyarrow as pa

    known = _stamps(stored) if stored is not None else {}
    appended = known.items() <= stamps.items() and stored is not None and not json.loads(stored.schema.metadata[_AS_JSON])
    if stored is None or not appended:
        return _build(folder, stamps, list(stamps))
    fresh = _build(folder, stamps, [name for name in stamps if name not in known])
    if json.loads(fresh.schema.metadata[_AS_JSON]):
        return _build(folder, stamps, list(stamps))
    try:
        table = pa.concat_tables([stored, fresh], promote_options="permissive")
    except pa.ArrowException:  # types differ between old and new episodes
        return _build(folder, stamps, list(stamps))
    return _finish(table.sort_by("file"), stamps, [])


def _build(folder: Path, stamps: Mapping[str, Stamp], names: Sequence[str]) -> pyarrow.Table:
    import pyarrow as pa

    rows = []
    for name in names:
        length, info, digest = describe(folder / name)
        rows.append({**_flatten(info), "file": name, "length": length, "checksum": digest})
    types = {"file": pa.string(), "length": pa.int64(), "checksum": pa.string()}
    arrays, as_json = {}, []
    for column in dict.fromkeys([*OWN_COLUMNS, *itertools.chain.from_iterable(rows)]):
        values = [row.get(column) for row in rows]
        try:
            arrays[column] = pa.array(values, types.get(column))
        except (pa.ArrowException, OverflowError):  # types that differ between episodes, integers beyond 64 bits
            arrays[column] = pa.array([None if value is None else json.dumps(value) for value in values])
            as_json.append(column)
    return _finish(pa.table(arrays), stamps, as_json)


def _finish(table: pyarrow.Table, stamps: Mapping[str, Stamp], as_json: Sequence[str]) -> pyarrow.Table:
    columns = [*OWN_COLUMNS, *sorted(set(table.column_names) - set(OWN_COLUMNS))]
    metadata = {_FORMAT: _VERSION, _STAMPS: json.dumps(stamps).encode(), _AS_JSON: json.dumps(list(as_json)).encode()}
    return table.select(columns).combine_chunks().replace_schema_metadata(metadata)


def _flatten(info: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as columns "a.b"; a list that holds more than numbers or text becomes JSON text."""
    flat: dict[str, Any] = {}
    for key, value in info.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            nested = isinstance(value, list) and any(isinstance(item, list | Mapping) for item in value)
            flat[f"{prefix}{key}"] = json.dumps(value) if nested else value
    return flat
