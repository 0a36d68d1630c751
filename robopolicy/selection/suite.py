"""An evaluation suite: a frozen list of conditions in disjoint splits, in a file that knows when it has been edited."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from robopolicy.data.collect import episode_seed
from robopolicy.evaluation.rollout import Suite
from robopolicy.files import atomic_write
from robopolicy.ranking.tables import IntegrityError, RankingError
from robopolicy.spec import did_you_mean

SCHEMA = 1
SELECT, CONFIRM, SEALED = "select", "confirm", "sealed"
SPLITS = (SELECT, CONFIRM, SEALED)


@dataclass(frozen=True)
class FrozenSuite:
    """Conditions that every checkpoint meets. A condition is the seed of an episode of one environment.

    splits: "select" chooses; "confirm" gives the numbers of those that were chosen; "sealed" is opened for a release.
    horizon: steps after which an episode ends; discount: of the returns. Returns of other values are other quantities.
    """

    name: str
    env_id: str
    env_kwargs: Mapping[str, Any]
    splits: Mapping[str, tuple[int, ...]]
    horizon: int
    discount: float = 1.0

    def __post_init__(self) -> None:
        if not any(self.splits.values()):
            raise RankingError(f"suite {self.name!r} is empty: give it conditions, e.g. select=100 confirm=100")
        if not self.splits.get(SELECT):
            raise RankingError(f"suite {self.name!r} has no conditions to select on: give select=100, say")
        owner: dict[int, str] = {}
        for split, seeds in self.splits.items():
            if split not in SPLITS:
                raise RankingError(f"suite {self.name!r} has a split {split!r}; {did_you_mean(split, SPLITS)}")
            for seed in seeds:
                if seed in owner:
                    where = f"twice in {split!r}" if owner[seed] == split else f"in {owner[seed]!r} and in {split!r}"
                    remedy = "splits that overlap confirm nothing: draw a new suite"
                    raise RankingError(f"suite {self.name!r}: condition {seed} is {where}; {remedy}")
                owner[seed] = split

    @classmethod
    def draw(
        cls, name: str, env_id: str, env_kwargs: Mapping[str, Any], horizon: int, sizes: Mapping[str, int], seed: int
    ) -> FrozenSuite:
        """sizes[split] conditions of each split. "select" has those that `robopolicy evaluate` has under the same seed."""
        for split, size in sizes.items():
            if isinstance(size, bool) or not isinstance(size, int) or size < 0:
                raise RankingError(f"{split}={size!r}: give a number of conditions")
        splits: dict[str, tuple[int, ...]] = {}
        taken: set[int] = set()
        for split, size in sizes.items():
            chosen: list[int] = []
            index = 0
            while len(chosen) < size:
                label = () if split == SELECT else (zlib.crc32(split.encode()),)
                drawn = episode_seed(seed, *label, index)
                index += 1
                if drawn not in taken:
                    chosen.append(drawn)
                    taken.add(drawn)
            splits[split] = tuple(chosen)
        return cls(name, env_id, dict(env_kwargs), splits, horizon)

    def renamed(self, name: str) -> FrozenSuite:
        """The same conditions under another name."""
        return replace(self, name=name)

    @property
    def content(self) -> dict[str, Any]:
        """All of it as plain data, without the hash."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "env_id": self.env_id,
            "env_kwargs": dict(self.env_kwargs),
            "horizon": self.horizon,
            "discount": self.discount,
            "splits": {split: list(seeds) for split, seeds in self.splits.items()},
        }

    @property
    def sha(self) -> str:
        """sha256 (hex) of the content."""
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()

    @property
    def worlds(self) -> str:
        """What an episode depends on beside its seed and the policy, as text: environment, horizon and discount."""
        return json.dumps([self.env_id, dict(self.env_kwargs), self.horizon, self.discount], sort_keys=True)

    def block(self, split: str, start: int = 0, stop: int | None = None) -> Suite:
        """Conditions start..stop of a split, to be rolled out."""
        return Suite(self.name, self.env_id, self.env_kwargs, tuple(self.splits.get(split, ())[start:stop]), split)

    def size(self, split: str) -> int:
        """Conditions of a split."""
        return len(self.splits.get(split, ()))

    def write(self, path: str | Path) -> Path:
        """Write the suite as YAML, with its hash."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump({**self.content, "sha256": self.sha}, sort_keys=False, default_flow_style=None, width=120)
        atomic_write(path, text.encode())
        return path


def read_suite(path: str | Path) -> FrozenSuite:
    """The suite in a file that `FrozenSuite.write` wrote.

    Raises:
        RankingError: no such file, no suite, splits that overlap, or nothing in it. IntegrityError: it was edited.
    """
    path = Path(path)
    if not path.is_file():
        raise RankingError(f"no suite at {path}: write one with `robopolicy rank suite out={path}`")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RankingError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise RankingError(f"{path} is no suite of schema {SCHEMA}: write one with `robopolicy rank suite out=...`")
    try:
        splits = {str(k): tuple(int(s) for s in v or ()) for k, v in content["splits"].items()}
        given = {key: content[key] for key in ("name", "env_id", "env_kwargs", "horizon", "discount")}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RankingError(f"{path} is a damaged suite ({error}): write a new one with `robopolicy rank suite`") from error
    suite = FrozenSuite(splits=splits, **given)
    if content.get("sha256") != suite.sha:
        raise IntegrityError(
            f"{path} says sha256 {str(content.get('sha256'))[:12]} and is {suite.sha[:12]}: it was edited after it was frozen; "
            "draw a new suite with `robopolicy rank suite` instead of changing one"
        )
    return suite
