"""The one training loop. A killed run resumes bit for bit: on a CPU, under one seed, as if it had never stopped.

That rests on three rules. The windows of a step, and all randomness in it, are functions of (seed, step) alone. A state
is saved only where a line of metrics.jsonl ends, so no half-filled mean is lost. Whatever else a step depends on
(weights, their average, AdamW's moments) is in that state.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import AdamW
from tqdm import tqdm

from robopolicy import checkpoint
from robopolicy.batch import to_torch
from robopolicy.config import TrainConfig
from robopolicy.data.transforms import fit_statistics
from robopolicy.data.windows import Windows
from robopolicy.files import plain
from robopolicy.models.trainable import Metrics, Trainable
from robopolicy.spec import ACTION, known_tasks
from robopolicy.train import optim, plan
from robopolicy.train.logging import MetricsLog, means, open_log
from robopolicy.train.plan import Stage, TrainingError, batch_indices, checkpoint_steps, plan_stages, step_seeds
from robopolicy.train.run_folder import RunState, drop_state, load_state, open_run, save_state

logger = logging.getLogger(__name__)


def train(
    module: Trainable,
    windows: Windows,
    run_dir: str | Path,
    *,
    config: Mapping[str, Any],
    settings: TrainConfig,
    kind: str,
    data_hash: str = "",
) -> list[Path]:
    """Train `module` through all its phases and return its checkpoint folders by ascending step.

    Checkpoints hold averaged weights; each phase hands its average on to the next. The normaliser is fitted first.

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
            a device that is not there, a loss that is not finite.
    """
    run_dir = Path(run_dir)
    stages = plan_stages(module.phases, settings.steps)
    marks = checkpoint_steps(stages[-1], settings.num_checkpoints)
    device = plan.torch_device(settings.device)
    _check_windows(module, windows)
    open_run(run_dir, plain(config, where="config"), settings.resume)
    module.fit(fit_statistics(windows, [*module.spec.observation, ACTION]))
    module.to(device)
    meta = {"kind": kind, "data_hash": data_hash, "git_commit": checkpoint.git_commit()}
    state = _state(module, run_dir, data={"hash": data_hash, "num_windows": len(windows)})
    run = _Run(module, windows, run_dir, config, settings, meta, marks, device, state)
    if checkpoint.step_folder(run_dir, marks[-1]) not in checkpoint.list_checkpoints(run_dir):
        run.run(stages)
    drop_state(run_dir)
    checkpoints = checkpoint.list_checkpoints(run_dir)
    checkpoint.load_into(module, checkpoint.load(checkpoints[-1]).tensors, checkpoints[-1])
    module.eval()
    return checkpoints


def _state(module: Trainable, run_dir: Path, data: dict[str, Any]) -> RunState:
    """The newest saved state, its raw weights loaded into `module`, or that of step 0. Raises TrainingError: other data."""
    state = load_state(run_dir)
    if state is None:
        model = module.state_dict()
        return RunState(data=data, model=model, average={name: value.clone() for name, value in model.items()})
    if state.data != data:
        raise TrainingError(f"{run_dir} was trained on {state.data}, this dataset is {data}: start a new run")
    checkpoint.load_into(module, state.model, run_dir)
    logger.info("resuming %s after step %d", run_dir, state.step)
    average = {name: state.average[name].to(value.device) for name, value in module.state_dict().items()}
    return replace(state, model=module.state_dict(), average=average)


@dataclass(frozen=True)
class _Run:
    """One call of `train`: what it works with, and the state that its steps change."""

    module: Trainable
    windows: Windows
    run_dir: Path
    config: Mapping[str, Any]
    settings: TrainConfig
    meta: dict[str, Any]
    marks: list[int]
    device: torch.device
    state: RunState

    def run(self, stages: Sequence[Stage]) -> None:
        """Run the steps of `stages` that are still to be done."""
        settings, step = self.settings, self.state.step
        with (
            plan.torch_threads(settings.num_threads),
            plan.seeded(settings.seed, self.device),
            open_log(self.run_dir, step=step, wandb=settings.logger == "wandb", config=self.config) as log,
            tqdm(total=settings.steps, initial=step, unit="step", disable=None if settings.progress else True) as bar,
        ):
            for stage in stages:
                if self.state.step < stage.last:
                    self._train_stage(stage, log, bar)

    def _train_stage(self, stage: Stage, log: MetricsLog, bar: tqdm) -> None:
        state, rows = self.state, list[Metrics]()
        if state.step == stage.first:
            self.module.load_state_dict(state.average)
            state.optimizer = {}
        parameters = self.module.phase_parameters(stage.name)
        optimizer = optim.make_optimizer(self.module, parameters, self.settings.weight_decay)
        optim.load_optimizer_tensors(optimizer, self.module, state.optimizer)
        saved = time.monotonic()
        start = saved - state.seconds
        with optim.only_trainable(self.module, parameters):
            while state.step < stage.last:
                rows.append(self._update(stage, parameters, optimizer))
                bar.update()
                if state.step % self.settings.log_every == 0 or state.step == stage.last:
                    state.seconds = time.monotonic() - start
                    state.row = {"step": state.step, "phase": stage.name, **means(rows)}
                    log.write({**state.row, "seconds": round(state.seconds, 3)})
                    bar.set_postfix(phase=stage.name, loss=f"{state.row['loss']:.4g}")
                    rows.clear()
                    if time.monotonic() - saved >= self.settings.save_every_seconds:
                        state.optimizer = optim.optimizer_tensors(optimizer, self.module)
                        save_state(self.run_dir, state)
                        saved = time.monotonic()
                if state.step in self.marks:
                    self._save_checkpoint()

    def _update(self, stage: Stage, parameters: list[nn.Parameter], optimizer: AdamW) -> Metrics:
        """One optimiser step and its metrics."""
        settings, state = self.settings, self.state
        local = state.step - stage.first
        rate = optim.learning_rate_factor(local, stage.last - stage.first, settings.warmup)
        rate *= stage.learning_rate * settings.learning_rate_scale
        for group in optimizer.param_groups:
            group["lr"] = rate
        indices = batch_indices(settings.seed, state.step, len(self.windows), settings.batch_size)
        batch = to_torch(self.windows.batch(indices), self.device, known_tasks(self.module.spec.observation))
        global_seed, loss_seed = step_seeds(settings.seed, state.step)
        plan.seed_globals(global_seed, self.device)
        self.module.train()
        loss, metrics = self.module.loss(stage.name, batch, torch.Generator(self.device).manual_seed(loss_seed))
        optimizer.zero_grad()
        loss.backward()
        loss, norm = loss.detach(), nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        if not (loss.isfinite() and norm.isfinite()):
            raise TrainingError(
                f"loss {float(loss)}, gradient norm {float(norm)} at step {state.step} of phase {stage.name!r} (learning "
                f"rate {rate:.3g}): start a new run with a lower train.learning_rate_scale or repair the data; the "
                f"checkpoints and the state in {self.run_dir} are from before this step"
            )
        optimizer.step()
        optim.update_average(state.average, self.module, parameters, optim.average_decay(local, settings.ema_decay))
        state.step += 1
        return {"loss": loss, "learning_rate": rate, "gradient_norm": norm, **metrics}

    def _save_checkpoint(self) -> None:
        step, row = self.state.step, self.state.row
        folder = checkpoint.step_folder(self.run_dir, step)
        if folder not in checkpoint.list_checkpoints(self.run_dir):  # else it was written before a kill, the same
            meta = {**self.meta, "spec": self.module.spec.to_dict(), "step": step, "metrics": row}
            checkpoint.save(folder, self.state.average, self.config, meta)


def _check_windows(module: Trainable, windows: Windows) -> None:
    """The keys and the horizon that `module` needs are there."""
    batch = windows.batch(np.arange(1))
    for key in [*module.spec.observation, *module.batch_keys]:
        if key not in batch:
            raise TrainingError(f"the windows lack {key!r}, which {type(module).__name__} needs; they have {', '.join(batch)}")
    if windows.obs_horizon != module.spec.obs_horizon:
        raise TrainingError(f"windows have obs_horizon={windows.obs_horizon}, the module {module.spec.obs_horizon}")
