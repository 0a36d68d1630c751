"""Whole datasets: describe, check every byte, merge, split. Episodes are hard-linked, so neither copy nor disk is spent."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from robopolicy import config
from robopolicy.data.episode_file import SUFFIX, DatasetError, label, verify
from robopolicy.data.episode_file import describe as describe_file
from robopolicy.data.episodes import EPISODES, LOCK, TABLE, EpisodeStore, read_file
from robopolicy.data.info_file import INFO, check_spec, info_content, read_info, read_spec, spec_difference, verify_info
from robopolicy.data.table import check_table, episode_files
from robopolicy.executor import map_units
from robopolicy.files import atomic_write, locked, plain, sync_folder
from robopolicy.spec import DatasetSpec, SpecError, did_you_mean

_COUNTED = ("task", "source", "success")
_DRAWN = "randomization."
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SHOW_PROGRESS = 1000  # episodes
_CHECK_BLOCK = 64  # files that one work unit verifies


def describe(path: str | Path) -> list[str]:
    """What a dataset holds, in lines for people; reads its table only."""
    store = EpisodeStore(path)
    size = sum(stamp[0] for stamp in episode_files(store.path / EPISODES).values())
    count, steps = len(store), int(store.lengths.sum())
    each = f", {size / 1e6 / count:.2f} MB and {steps / count:.1f} steps an episode" if count else ""
    lines = [f"{path}: {count} episodes, {steps} steps at {store.spec.fps:g} Hz, {size / 1e6:.1f} MB{each}"]
    for key, feature in sorted(store.spec.features.items()):
        details = [f"{feature.dtype} {list(feature.shape)}", feature.unit, feature.frame and f"in {feature.frame}"]
        lines.append(f"  {key}: " + " ".join(filter(None, details)))
    for column in _COUNTED:
        if column in store.table.column_names:
            counts = Counter(map(str, store.table[column].to_pylist()))
            lines.append(f"  {column}: " + ", ".join(f"{value} {number}" for value, number in sorted(counts.items())))
    drawn = [name for name in store.table.column_names if name.startswith(_DRAWN)]
    lines += [f"  {name}: {_range(store.table[name].to_pylist())}" for name in drawn]
    for source in read_info(path).get("sources", []):
        lines.append(f"  from {source['path']}: {source['episodes']} episodes (hash {source['hash'][:12]})")
    return lines


def _range(values: Sequence[Any]) -> str:
    """Lowest and highest of numbers or of equally long lists of numbers; else how many values there are."""
    found = [value for value in values if value is not None]
    try:
        numbers = np.array(found, float)
        ends = [numbers.min(axis=0), numbers.max(axis=0)]
    except (TypeError, ValueError):
        return f"{len({str(value) for value in found})} values"
    low, high = (" ".join(f"{x:.4g}" for x in np.atleast_1d(end)) for end in ends)
    low, high = (f"[{end}]" if numbers.ndim > 1 else end for end in (low, high))
    return f"{low} to {high}" if low != high else low


def check(path: str | Path, num_workers: int | None = None) -> tuple[list[str], int]:
    """Read every byte of a dataset.

    Returns:
        What is wrong, one line for each damaged, swapped or lost file with its remedy, and the number of episode files.

    Raises:
        DatasetError: there is no such folder, or it holds no dataset at all.
    """
    path = Path(path)
    config.workers(num_workers)
    problems: list[str] = []
    files = [path / EPISODES / name for name in episode_files(path / EPISODES)]
    spec: DatasetSpec | None = None
    if not path.is_dir() or not ((path / INFO).exists() or files):
        read_info(path)
    try:
        verify_info(path)
        spec = read_spec(path)
    except DatasetError as error:
        problems.append(str(error))
    problems += check_table(path / TABLE, path / EPISODES)
    blocks = [files[start : start + _CHECK_BLOCK] for start in range(0, len(files), _CHECK_BLOCK)]
    if len(blocks) == 1:
        num_workers = 1  # not worth a process
    found = map_units(partial(_check_files, spec=spec), blocks, num_workers, "check", weight=len)
    return problems + [problem for block in found for problem in block], len(files)


def _check_files(files: Sequence[Path], spec: DatasetSpec | None) -> list[str]:
    problems = []
    for file in files:
        try:
            verify(file)
            if spec is not None:
                read_file(file, spec, describe_file(file)[0])
        except DatasetError as error:
            problems.append(str(error))
    return problems


@dataclass(frozen=True)
class _Copy:
    """An episode file and the name (without suffix) that it gets."""

    file: Path
    name: str
    checksum: str


def merge(paths: Sequence[str | Path], out: str | Path, duplicates: str = "skip") -> list[str]:
    """One dataset of the episodes of several that have equal specs; what was done, in lines for people.

    An episode whose name is taken by another gets the number of its dataset in `paths` appended. The new folder appears
    in one step; when interrupted, the same call goes on with what was copied.

    Args:
        paths: the datasets, two or more. out: a folder that does not exist yet.
        duplicates: "skip" episodes whose content an earlier one has, or "refuse" to merge.

    Raises:
        SpecError: other specs, or duplicates that are refused. DatasetError: no dataset, or a damaged one.
    """
    if duplicates not in ("skip", "refuse"):
        raise SpecError(f"duplicates={duplicates!r} does not work: give 'skip' or 'refuse'")
    if len(config.texts("paths", paths)) < 2:
        raise SpecError(f"paths={[str(path) for path in paths]}: give two datasets or more to merge")
    stores = [EpisodeStore(path) for path in paths]
    for store in stores[1:]:
        if difference := spec_difference(store.spec, stores[0].spec):
            difference = difference.replace("the one given", str(store.path)).replace("the dataset", str(stores[0].path))
            raise SpecError(f"{store.path} cannot be merged with {stores[0].path}: {difference}")
    copies: list[_Copy] = []
    seen: dict[str, Path] = {}
    names: set[str] = set()
    sources, lines = [], []
    for number, store in enumerate(stores):
        skipped, renamed = 0, 0
        for file, checksum in zip(store.files, store.table["checksum"].to_pylist(), strict=True):
            if checksum in seen:
                if duplicates == "refuse":
                    raise SpecError(f"{file} has the content of {seen[checksum]}; duplicates=skip leaves such episodes out")
                skipped += 1
                continue
            seen[checksum] = file
            name = file.name.removesuffix(SUFFIX)
            while name in names:
                name, renamed = f"{name}-{number}", renamed + 1
            names.add(name)
            copies.append(_Copy(file, name, checksum))
        kept = len(store) - skipped
        sources.append({"path": str(store.path.resolve()), "hash": store.hash, "episodes": kept, "duplicates": skipped})
        details = [f"{skipped} duplicates left out" * bool(skipped), f"{renamed} renamed" * bool(renamed)]
        lines.append(f"  {store.path}: " + ", ".join(filter(None, [f"{kept} episodes", *details])))
    with building(Path(out), resume=True) as folder:
        _fill(folder, stores[0].spec, copies, sources)
    return [f"{out}: {len(copies)} episodes", *lines]


def split(
    path: str | Path,
    out: str | Path,
    fractions: Mapping[str, float] | None = None,
    by: str | None = None,
    stratify: str | None = None,
    where: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> list[str]:
    """Part a dataset by episode into the datasets `out`/<part>; what was done, in lines for people.

    Args:
        path: the dataset. out: a folder that does not exist yet; it appears in one step.
        fractions: {part: share}, sizes by largest remainder; shares below 1 in total leave episodes out.
        by: a table column instead; every value becomes a part, named by its letters and digits, with a number where two
            values would share a name.
        stratify: a table column whose values get into the parts of `fractions` in equal proportions.
        where: {table column: allowed values, or the one}; other episodes are left out.
        seed: decides, with the order of the episodes' names, which part an episode gets into.

    Raises:
        SpecError: a column that does not exist, shares that cannot be, or both or neither of `fractions` and `by`.
    """
    store = EpisodeStore(path)
    chosen = select_episodes(store, where or {})
    config.whole("seed", seed)
    if bool(fractions) == bool(by):
        raise SpecError("give either fractions={train: 0.8, test: 0.2} or by=COLUMN")
    if fractions and not isinstance(fractions, Mapping):
        raise SpecError(f"fractions={fractions!r} does not work: give shares by name, such as {{train: 0.8, test: 0.2}}")
    if by:
        values = [str(value) for value in _column(store, by)]
        names = _part_names({values[i] for i in chosen})
        parts = {name: [i for i in chosen if values[i] == value] for value, name in names.items()}
    else:
        groups = [str(value) for value in _column(store, stratify)] if stratify else [""] * len(store)
        parts = _shares(chosen, groups, dict(fractions or {}), seed)
    digests = store.table["checksum"].to_pylist()
    chosen_by = {"fractions": fractions, "by": by, "stratify": stratify, "where": where, "seed": seed}
    with building(Path(out), resume=True) as folder:
        for stray in set(os.listdir(folder)) - set(parts):  # of an interrupted call with other arguments
            shutil.rmtree(folder / stray)
        for name, rows in parts.items():
            copies = [_Copy(store.files[i], store.files[i].name.removesuffix(SUFFIX), digests[i]) for i in rows]
            source = {
                "path": str(store.path.resolve()),
                "hash": store.hash,
                "episodes": len(rows),
                "split": {**chosen_by, "part": name},
            }
            _fill(folder / name, store.spec, copies, [{**source, "split": {**chosen_by, "part": name}}])
    return [f"{Path(out) / name}: {len(rows)} episodes" for name, rows in parts.items()]


def select_episodes(store: EpisodeStore, where: Mapping[str, Any]) -> list[int]:
    """Episodes of a dataset whose table columns hold one of the values in `where`: {column: list of values, or the one}.

    Raises:
        SpecError: no mapping, a column that the table lacks, or a selection without episodes.
    """
    if not isinstance(where, Mapping):
        raise SpecError(f"where={where!r} does not work: give columns and their values, such as {{source: [expert]}}")
    keep = np.ones(len(store), bool)
    for column, given in where.items():
        values = _column(store, column)
        allowed = list(given) if isinstance(given, list | tuple) else [given]
        keep &= np.array([value in allowed for value in values], bool)
        if not keep.any():
            found = sorted({str(value) for value in values})
            raise SpecError(f"where: no episode has {column} in {allowed}; it is {', '.join(found[:10])}")
    return np.flatnonzero(keep).tolist()


def _column(store: EpisodeStore, column: str) -> list[Any]:
    if column not in store.table.column_names:
        raise SpecError(f"no column {column!r} in {store.path}; {did_you_mean(column, store.table.column_names)}")
    return store.table[column].to_pylist()


def _part_name(value: str) -> str:
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in value)
    return name if name.strip(".") else "_"  # "." and ".." are folders that exist


def _part_names(values: Collection[str]) -> dict[str, str]:
    """A folder name for each value, numbered where values would share one; those that are names keep themselves."""
    owners: dict[str, str] = {}
    for value in sorted(values, key=lambda value: (_part_name(value) != value, value)):
        name = _part_name(value)
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        owners[next(n for n in itertools.chain([name], numbered) if n not in owners)] = value
    return {value: name for name, value in owners.items()}


def _shares(chosen: Sequence[int], groups: Sequence[str], fractions: Mapping[str, float], seed: int) -> dict[str, list[int]]:
    """Rows of each part: each has its share of every group, to within an episode or two."""
    for name, share in fractions.items():
        if not 0 < config.number(f"fractions.{name}", share) <= 1 or _part_name(str(name)) != name:
            raise SpecError(f"fractions.{name}={share} does not work: give shares in (0, 1], named by letters and digits")
    if sum(fractions.values()) > 1 + 1e-9:
        raise SpecError(f"fractions {dict(fractions)} add up to {sum(fractions.values()):g}, more than all episodes")
    rng = np.random.default_rng(seed)
    by_group: dict[str, list[int]] = {group: [] for group in sorted({groups[row] for row in chosen})}
    for row in chosen:
        by_group[groups[row]].append(row)
    order = [int(row) for group in by_group.values() for row in rng.permutation(group)]
    shares = np.array([*fractions.values(), max(0.0, 1 - sum(fractions.values()))])  # the last is left out
    parts: list[list[int]] = [[] for _ in shares]
    for number, row in enumerate(order, start=1):  # to the part that lacks most: any stretch of `order` has the shares
        parts[int(np.argmax(number * shares - [len(part) for part in parts]))].append(row)
    return {name: sorted(part) for name, part in zip(fractions, parts, strict=False)}


@contextmanager
def building(out: Path, resume: bool) -> Iterator[Path]:
    """A hidden folder beside `out` that becomes `out` on success; else it stays, to be gone on with, if `resume`."""
    if out.exists():
        raise DatasetError(f"{out} exists already; give a folder that does not")
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f".{out.name}.part")
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    try:
        yield folder
    except BaseException as error:
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            text = f"{error.strerror}: there is no {out} yet; make room and give the same command again"
            raise OSError(error.errno, text, str(out)) from error
        raise
    folder.rename(out)
    sync_folder(out.parent)


def _fill(folder: Path, spec: DatasetSpec, copies: Sequence[_Copy], sources: Sequence[Mapping[str, Any]]) -> None:
    """Make `folder` the dataset of these files, hard-linked where the file system and the name allow it, else copied."""
    (folder / EPISODES).mkdir(parents=True, exist_ok=True)
    with locked(folder / LOCK):
        wanted = {f"{copy.name}{SUFFIX}" for copy in copies}
        (folder / TABLE).unlink(missing_ok=True)
        for stray in set(os.listdir(folder / EPISODES)) - wanted:  # of an interrupted call with other arguments
            (folder / EPISODES / stray).unlink()
        for copy in tqdm(copies, unit="episode", disable=len(copies) < _SHOW_PROGRESS, leave=False):
            _place(copy, folder / EPISODES / f"{copy.name}{SUFFIX}")
        content = plain(list(sources), where="sources", error=SpecError)
        atomic_write(folder / INFO, info_content(check_spec(spec), sources=content))
        sync_folder(folder / EPISODES)
    EpisodeStore(folder)  # makes the table


def _place(copy: _Copy, target: Path) -> None:
    linkable = target.name == copy.file.name  # another name needs another label in the file
    if target.exists():  # an interrupted call went on to here
        if describe_file(target)[2] == copy.checksum:
            return
        target.unlink()
    if linkable:
        with suppress(OSError):  # another file system, or one without hard links
            os.link(copy.file, target)
            return
    verify(copy.file)  # a copy gets a new label, which must not vouch for damage
    atomic_write(target, label(copy.file.read_bytes(), copy.name))
