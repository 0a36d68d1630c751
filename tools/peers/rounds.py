"""Workers at work: every contender made once, measured in turn in every round, and together on all cores."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peers.client import Remote, WorkerError
from peers.environments import interpreter
from peers.summary import OURS

MUJOCO = "mujoco"


@dataclass(frozen=True)
class Entry:
    """A contender: its key in the results, its maker in peers.contenders with options, and whose process it runs in."""

    key: str
    maker: str
    options: dict[str, Any]
    simulator: str


def entries(parts: tuple[str, ...], peers: tuple[str, ...], size: int) -> list[Entry]:
    """The contenders that the parts need."""
    image, state = {"image": True, "size": size}, {"image": False, "size": size}
    out = []
    if {"steps", "cores", "equal"} & set(parts):
        out.append(Entry(OURS, OURS, image, OURS))
    if {"steps", "equal"} & set(parts):
        out.append(Entry(f"{OURS}_none", OURS, image | {"randomization": "none"}, OURS))
    if "steps" in parts:
        out.append(Entry(f"{OURS}/state", OURS, state, OURS))
        out.append(Entry(f"{OURS}_none/state", OURS, state | {"randomization": "none"}, OURS))
    if {"steps", "cores"} & set(parts):
        out += [Entry(peer, peer, image, peer) for peer in peers]
    if "steps" in parts:
        out += [Entry(f"{peer}/state", peer, state, peer) for peer in peers]
    if "equal" in parts:
        for key, options in (("shadow", {"shadow": True}), ("plain", {"shadow": False})):
            out.append(Entry(f"{OURS}_scene/{key}", "ours_equal_scene", options | {"size": size}, OURS))
            out.append(Entry(f"mujoco_scene/{key}", "mujoco_equal_scene", options | {"size": size}, MUJOCO))
        finer = {"shadow": True, "shadow_map": 256, "size": size}
        out.append(Entry("mujoco_scene/shadow_256", "mujoco_equal_scene", finer, MUJOCO))
        textured = {"shadow": True, "textured": True, "size": size}
        out.append(Entry(f"{OURS}_scene/textured", "ours_equal_scene", textured, OURS))
        out.append(Entry("mujoco_lift", "mujoco_lift", image, MUJOCO))
    return out


class Field:
    """All contenders that run.

    Attributes: raw (see summary.Raw), settings and versions as the workers tell them, failed {name: reason}.
    """

    def __init__(self, cores: list[int], gl: str, seconds: float, seed: int) -> None:
        self._cores, self._gl, self._seconds, self._seed = cores, gl, seconds, seed
        self._workers: dict[str, Remote] = {}
        self._entries: dict[str, Entry] = {}
        self.raw: dict[str, list[dict[str, float]]] = {}
        self.settings: dict[str, Any] = {}
        self.versions: dict[str, Any] = {}
        self.failed: dict[str, str] = {}

    def fail(self, name: str, error: Exception) -> None:
        """Note that something cannot be measured, and go on."""
        self.failed[name] = str(error)
        print(f"{name}: failed: {error}", file=sys.stderr, flush=True)

    def worker(self, simulator: str, core: int) -> Remote:
        """A new process for the simulator. Raises WorkerError when its environment cannot be made."""
        own = simulator in (OURS, MUJOCO)
        try:
            python = Path(sys.executable) if own else interpreter(simulator)
            return Remote(python, core, self._gl, repository=own)
        except (RuntimeError, OSError) as error:
            raise WorkerError(f"no environment: {error}") from error

    def make(self, chosen: list[Entry]) -> None:
        """Make every contender; those that fail are left out."""
        sent = []
        for entry in chosen:
            try:
                if entry.simulator in self.failed:
                    continue
                if entry.simulator not in self._workers:
                    self._workers[entry.simulator] = self.worker(entry.simulator, self._cores[0])
                self._workers[entry.simulator].send("make", key=entry.key, name=entry.maker, options=entry.options)
                sent.append(entry)
            except WorkerError as error:
                self.fail(entry.simulator, error)
        for entry in sent:
            try:
                answer = self._workers[entry.simulator].receive()
            except WorkerError as error:
                self.fail(entry.key, error)
                continue
            self._entries[entry.key], self.raw[entry.key] = entry, []
            self.settings[entry.key], self.versions[entry.simulator] = answer["settings"], answer["versions"]

    def round(self, index: int) -> None:
        """Measure everybody once, in an order that rotates with `index`."""
        names = list(self._entries)
        turn = index % max(len(names), 1)
        for name in names[turn:] + names[:turn]:
            try:
                self.raw[name].append(self._run(self._workers[self._entries[name].simulator], name))
            except WorkerError as error:
                self.fail(name, error)
                del self._entries[name]

    def _run(self, worker: Remote, name: str) -> dict[str, float]:
        return worker.ask("run", self._seconds, key=name, seconds=self._seconds, seed=self._seed)

    def pictures(self, names: tuple[str, ...], steps: int) -> list[np.ndarray]:
        """The frames uint8 [S, S, 3] of contenders after so many steps. Raises WorkerError: one of them does not run."""
        missing = [name for name in names if name not in self._entries]
        if missing:
            raise WorkerError(f"{', '.join(missing)} did not run")
        return [self._workers[self._entries[name].simulator].picture(name, steps) for name in names]

    def together(self, names: tuple[str, ...], rounds: int, done: Callable[[dict[str, Any]], None]) -> None:
        """How much more two cores, and all, do at once than one, to `done`: {name: {count: {factor_cpu, factor_wall}}}."""
        out: dict[str, Any] = {}
        for name in names:
            if name not in self._entries:
                continue
            entry = self._entries[name]
            workers = [self._workers[entry.simulator]]
            try:
                for core in self._cores[1:]:
                    workers.append(self.worker(entry.simulator, core))
                    workers[-1].ask("make", key=name, name=entry.maker, options=entry.options)
                counts = sorted({2, len(workers)}) if len(workers) > 1 else []
                out[name] = {str(count): self._factor(workers[:count], name, rounds) for count in counts}
            except WorkerError as error:
                self.fail(f"{name} on all cores", error)
            for worker in workers[1:]:
                worker.close()
            done(out)

    def _factor(self, workers: list[Remote], name: str, rounds: int) -> dict[str, float]:
        factors: dict[str, list[float]] = {"cpu": [], "wall": []}
        for _ in range(rounds):
            alone = [self._run(worker, name) for worker in workers]
            for worker in workers:
                worker.send("run", key=name, seconds=self._seconds, seed=self._seed)
            at_once = [worker.receive(self._seconds) for worker in workers]
            for clock, values in factors.items():
                one = np.mean([r["steps"] / r[clock] for r in alone])
                values.append(float(sum(r["steps"] / r[clock] for r in at_once) / one))
        return {f"factor_{clock}": float(np.median(values)) for clock, values in factors.items()}

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers.values():
            worker.close()
