"""The one training loop. A killed run resumes bit for bit: on a CPU, under one seed, as if it had never stopped.

That rests on three rules. The windows of a step, and all randomness in it, are functions of (seed, step) alone. A state
is saved only where a line of metrics.jsonl ends, so no half-filled mean is lost. Whatever else a step depends on
(weights, their average, AdamW's moments) is in that state.

A batch is cut into `accumulate` times processes equal slices, each with random numbers of its own, and the gradients are
averaged. So it does not matter which process takes a slice: two processes make the step that one makes with twice the
`accumulate`, up to float error. Buffers that change in a forward pass (a codebook's averages) see one slice after the
other within a process; after each step all processes take those of the first.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import AdamW
from tqdm import tqdm

from robopolicy import checkpoint
from robopolicy.batch import Batch, to_torch
from robopolicy.config import TrainConfig
from robopolicy.data.transforms import fit_statistics
from robopolicy.data.windows import TrainingWindows
from robopolicy.files import plain
from robopolicy.models.trainable import Metrics, Trainable
from robopolicy.spec import ACTION, known_tasks
from robopolicy.train import optim, plan
from robopolicy.train.feed import prefetched
from robopolicy.train.logging import MetricsLog, means, open_log
from robopolicy.train.plan import Stage, TrainingError, batch_indices, checkpoint_steps, plan_stages, step_seeds
from robopolicy.train.ranks import Ranks, join
from robopolicy.train.run_folder import RunState, drop_state, load_state, open_run, save_state

logger = logging.getLogger(__name__)


def train(
    module: Trainable,
    windows: TrainingWindows,
    run_dir: str | Path,
    *,
    config: Mapping[str, Any],
    settings: TrainConfig,
    kind: str,
    data_hash: str = "",
) -> list[Path]:
    """Train `module` through all its phases and return its checkpoint folders by ascending step.

    Checkpoints hold averaged weights; each phase hands its average on to the next. The normaliser is fitted first.
    Processes that torchrun launches train together: each calls this with the same arguments, the first writes the files.

    Args:
        module: trained in place, on the device of `settings`. It ends with the weights of the last checkpoint, in eval mode.
        windows: training windows, with the keys that the module needs.
        run_dir: gets config.yaml, metrics.jsonl, checkpoints/ and, while the run is unfinished, resume/.
        config: resolved config of the whole run, stored in every checkpoint. A run resumes under the same one only.
        settings: see TrainConfig.
        kind: "policy" or "critic", for the checkpoints' metadata.
        data_hash: identity of the dataset; a run does not resume on another one.

    Raises:
        TrainingError: a folder that holds another run, windows that lack a key, phases that do not fit into the steps,
            a device that is not there, a batch that cannot be cut evenly, a loss that is not finite, a process that failed.
    """
    ranks = join(settings.device)
    run_dir = Path(ranks.agree(str(run_dir)))
    stages = plan_stages(module.phases, settings.steps)
    marks = checkpoint_steps(stages[-1], settings.num_checkpoints)
    slice_size = plan.slice_size(settings.batch_size, settings.accumulate, ranks.count)
    dtype = plan.compute_dtype(settings.precision, ranks.device)
    _check_windows(module, windows)
    if ranks.first:
        open_run(run_dir, plain(config, where="config"), settings.resume)
    ranks.wait()
    module.fit(fit_statistics(windows, [*module.spec.observation, ACTION]))
    module.to(ranks.device)
    meta = {"kind": kind, "data_hash": data_hash, "git_commit": checkpoint.git_commit()}
    last = checkpoint.step_folder(run_dir, marks[-1])
    finished = last in checkpoint.list_checkpoints(run_dir)
    if finished:
        _check_data(run_dir, {"hash": checkpoint.describe(last)[1]["data_hash"]}, {"hash": data_hash})
    state = _state(module, run_dir, {"hash": data_hash, "num_windows": len(windows)}, settings.batch_size // slice_size)
    run = _Run(module, windows, run_dir, config, settings, meta, marks, ranks, slice_size, dtype, state)
    if not finished:
        run.run(stages)
    if ranks.first:
        drop_state(run_dir)
    ranks.wait()
    checkpoints = checkpoint.list_checkpoints(run_dir)
    checkpoint.load_into(module, checkpoint.load(checkpoints[-1]).tensors, checkpoints[-1])
    module.eval()
    return checkpoints


def _state(module: Trainable, run_dir: Path, data: dict[str, Any], num_slices: int) -> RunState:
    """The newest saved state, its raw weights loaded into `module`, or that of step 0.

    Raises:
        TrainingError: it was trained on other data, or on batches that were cut otherwise.
    """
    state = load_state(run_dir)
    if state is None:
        model = module.state_dict()
        average = {name: value.clone() for name, value in model.items()}
        return RunState(data=data, model=model, average=average, num_slices=num_slices)
    _check_data(run_dir, state.data, data)
    if state.num_slices != num_slices:
        raise TrainingError(
            f"{run_dir} cannot resume: its batches were cut into {state.num_slices} slices, now {num_slices}: choose "
            f"train.accumulate and the number of processes so that their product is {state.num_slices}"
        )
    checkpoint.load_into(module, state.model, run_dir)
    logger.info("resuming %s after step %d", run_dir, state.step)
    average = {name: state.average[name].to(value.device) for name, value in module.state_dict().items()}
    return replace(state, model=module.state_dict(), average=average)


def _check_data(run_dir: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises TrainingError where a run was trained on other data than it is to resume on."""
    if before != now:
        raise TrainingError(
            f"{run_dir} cannot resume: it was trained on a dataset with {dict(before)}, this one has {dict(now)}: "
            "give the data as it was, or choose another folder"
        )


@dataclass(frozen=True)
class _Run:
    """One call of `train`: what it works with, and the state that its steps change."""

    module: Trainable
    windows: TrainingWindows
    run_dir: Path
    config: Mapping[str, Any]
    settings: TrainConfig
    meta: dict[str, Any]
    marks: list[int]
    ranks: Ranks
    slice_size: int
    dtype: torch.dtype
    state: RunState

    def run(self, stages: Sequence[Stage]) -> None:
        """Run the steps of `stages` that are still to be done."""
        settings, step, first = self.settings, self.state.step, self.ranks.first
        wandb = settings.logger == "wandb"
        with (
            plan.torch_threads(settings.num_threads),
            plan.seeded(settings.seed, self.ranks.device),
            open_log(self.run_dir, step=step, wandb=wandb, config=self.config) if first else nullcontext() as log,
            tqdm(total=settings.steps, initial=step, unit="step", disable=None if settings.progress and first else True) as bar,
        ):
            for stage in stages:
                if self.state.step < stage.last:
                    self._train_stage(stage, log, bar)

    def _train_stage(self, stage: Stage, log: MetricsLog | None, bar: tqdm) -> None:
        state, rows = self.state, list[Metrics]()
        if state.step == stage.first:
            self.module.load_state_dict(state.average)
            state.optimizer = {}
        parameters = self.module.phase_parameters(stage.name)
        optimizer = optim.make_optimizer(self.module, parameters, self.settings.weight_decay)
        optim.load_optimizer_tensors(optimizer, self.module, state.optimizer)
        saved = time.monotonic()
        start = saved - state.seconds
        feed = prefetched(self._load, self._slices(stage), self.settings.num_prefetch)
        with optim.only_trainable(self.module, parameters), closing(feed):
            while state.step < stage.last:
                rows += self._update(stage, parameters, optimizer, feed)
                bar.update()
                if state.step % self.settings.log_every == 0 or state.step == stage.last:
                    state.seconds = time.monotonic() - start
                    state.row = {"step": state.step, "phase": stage.name, **self.ranks.means(means(rows))}
                    if log is not None:
                        log.write({**state.row, "seconds": round(state.seconds, 3)})
                    bar.set_postfix(phase=stage.name, loss=f"{state.row['loss']:.4g}")
                    rows.clear()
                    if log is not None and time.monotonic() - saved >= self.settings.save_every_seconds:
                        state.optimizer = optim.optimizer_tensors(optimizer, self.module)
                        save_state(self.run_dir, state)
                        saved = time.monotonic()
                if log is not None and state.step in self.marks:
                    self._save_checkpoint()
        if log is not None:
            self.module.review(stage.name, {name: value for name, value in state.row.items() if isinstance(value, float)})

    def _slices(self, stage: Stage) -> Iterator[tuple[int, int]]:
        """(step, slice of its batch) of all that this process will take of `stage`, in order."""
        mine = range(self.ranks.rank * self.settings.accumulate, (self.ranks.rank + 1) * self.settings.accumulate)
        return ((step, number) for step in range(self.state.step, stage.last) for number in mine)

    def _load(self, which: tuple[int, int]) -> tuple[int, Batch]:
        """The number of a slice and its windows."""
        step, number = which
        indices = batch_indices(self.settings.seed, step, len(self.windows), self.settings.batch_size)
        mine = indices[number * self.slice_size : (number + 1) * self.slice_size]
        return number, to_torch(self.windows.batch(mine), self.ranks.device, known_tasks(self.module.spec.observation))

    def _backward(self, phase: str, number: int, batch: Batch) -> Metrics:
        """Add this slice's share of the gradient of the batch; its loss and metrics."""
        device = self.ranks.device
        global_seed, loss_seed = step_seeds(self.settings.seed, self.state.step, number)
        plan.seed_globals(global_seed, device)
        generator = torch.Generator(device).manual_seed(loss_seed)
        # without cache: a weight that is first used under no_grad would be cached without its gradient
        with torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32, cache_enabled=False):
            loss, metrics = self.module.loss(phase, batch, generator)
        (loss.float() / self.settings.accumulate).backward()
        return {"loss": loss.detach().float(), **metrics}

    def _update(
        self, stage: Stage, parameters: list[nn.Parameter], optimizer: AdamW, feed: Iterator[tuple[int, Batch]]
    ) -> list[Metrics]:
        """One optimiser step and its metrics."""
        settings, state = self.settings, self.state
        local = state.step - stage.first
        rate = optim.learning_rate_factor(local, stage.last - stage.first, settings.warmup)
        rate *= stage.learning_rate * settings.learning_rate_scale
        for group in optimizer.param_groups:
            group["lr"] = rate
        self.module.train()
        optimizer.zero_grad()
        rows = [self._backward(stage.name, *next(feed)) for _ in range(settings.accumulate)]
        loss = self.ranks.average_gradients(parameters, torch.stack([torch.as_tensor(row["loss"]) for row in rows]).mean())
        norm = nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        if not (loss.isfinite() and norm.isfinite()):
            raise TrainingError(
                f"loss {float(loss)}, gradient norm {float(norm)} at step {state.step} of phase {stage.name!r} (learning "
                f"rate {rate:.3g}): start a new run with a lower train.learning_rate_scale or repair the data; the "
                f"checkpoints and the state in {self.run_dir} are from before this step"
            )
        optimizer.step()
        self.module.after_step()
        self.ranks.share_buffers(self.module)
        optim.update_average(state.average, self.module, parameters, optim.average_decay(local, settings.ema_decay))
        state.step += 1
        return [*rows, {"learning_rate": rate, "gradient_norm": norm}]

    def _save_checkpoint(self) -> None:
        step, row = self.state.step, self.state.row
        folder = checkpoint.step_folder(self.run_dir, step)
        if folder not in checkpoint.list_checkpoints(self.run_dir):  # else it was written before a kill, the same
            meta = {**self.meta, "spec": self.module.spec.to_dict(), "step": step, "metrics": row}
            checkpoint.save(folder, self.state.average, self.config, meta)


def _check_windows(module: Trainable, windows: TrainingWindows) -> None:
    """The keys and the horizon that `module` needs are there."""
    batch = windows.batch(np.arange(1))
    for key in [*module.spec.observation, *module.batch_keys, *module.extra_keys]:
        if key not in batch:
            raise TrainingError(f"the windows lack {key!r}, which {type(module).__name__} needs; they have {', '.join(batch)}")
    if windows.obs_horizon != module.spec.obs_horizon:
        raise TrainingError(f"windows have obs_horizon={windows.obs_horizon}, the module {module.spec.obs_horizon}")
