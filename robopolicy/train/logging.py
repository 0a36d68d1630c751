"""Where the numbers of a training run go: `metrics.jsonl` always, Weights & Biases on top where asked."""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robopolicy.files import atomic_write

METRICS = "metrics.jsonl"
WANDB_ID = "wandb_id"
PROJECT = "robopolicy"

logger = logging.getLogger(__name__)


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """Rows of a run's metrics.jsonl in order; a last line cut short by a kill is left out. [] when there is no file."""
    path = Path(run_dir) / METRICS
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []  # a whole line ends in \n
    return [json.loads(line) for line in lines]


def means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean of every metric over the rows that have it."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            values.setdefault(name, []).append(float(value))
    return {name: math.fsum(column) / len(column) for name, column in values.items()}


class MetricsLog:
    """Appends one JSON object a line to metrics.jsonl, flushed at once, and passes it to a wandb run if there is one.

    Args:
        run_dir: folder of the run.
        step: rows after this step are dropped first: a resumed run writes them again.
        wandb_run: an open wandb run, or None.
    """

    def __init__(self, run_dir: Path, *, step: int = 0, wandb_run: Any = None) -> None:
        rows = [row for row in read_metrics(run_dir) if row["step"] <= step]
        atomic_write(run_dir / METRICS, "".join(json.dumps(row) + "\n" for row in rows).encode())
        self._file = (run_dir / METRICS).open("a")
        self._wandb_run = wandb_run

    def write(self, row: Mapping[str, Any]) -> None:
        """Add one row; it has a "step"."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._wandb_run is not None:
            self._wandb_run.log(dict(row))

    def close(self) -> None:
        """Close the file. The wandb run is closed by who opened it."""
        self._file.close()


@contextmanager
def open_log(run_dir: Path, *, step: int, wandb: bool, config: Mapping[str, Any]) -> Iterator[MetricsLog]:
    """A MetricsLog that is closed at the end; with `wandb` it also feeds a run that resumes under the same id."""
    run = _start_wandb(run_dir, config) if wandb else None
    log = MetricsLog(run_dir, step=step, wandb_run=run)
    failed = True
    try:
        yield log
        failed = False
    finally:
        log.close()
        if run is not None:
            run.finish(exit_code=int(failed))


def _start_wandb(run_dir: Path, config: Mapping[str, Any]) -> Any:
    """An open wandb run. Without an account it is offline, in <run_dir>/wandb, for `wandb sync` later."""
    import wandb

    has_account = wandb.setup().settings.api_key or os.environ.get("WANDB_API_KEY")
    mode = os.environ.get("WANDB_MODE") or (None if has_account else "offline")
    id_file = run_dir / WANDB_ID
    if not id_file.is_file():
        atomic_write(id_file, secrets.token_hex(4).encode())
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=run_dir.name,
        id=id_file.read_text(),
        resume="allow",
        dir=run_dir,
        config=dict(config),
        mode=mode,  # type: ignore[arg-type]
        settings=wandb.Settings(console="off", silent=True),
    )
    run.define_metric("*", step_metric="step")  # rows that a resumed run writes again land on the same step
    if mode == "offline":
        logger.info("wandb is offline: upload the run with `wandb sync %s`", run.dir)
    return run
