"""The process that holds LeRobot's policies: python -m policy_bench.lerobot_worker, from tools/.

Runs in the peer's own Python (tools/peers/environments.py) on one CPU thread. Requests and answers are messages of
policy_bench.frames. Datasets, batches, normalisation, training loop, checkpoints and samplers are LeRobot's own.
    {"do": "record", "root": ..., "fps": f, "task": ...} + state, environment, action [N, ...], lengths [E]
    {"do": "train", "root": ..., "output": ..., "kind": ..., "fields": {...}, "steps", "batch_size", "seed", "save"}
        -> cost
    {"do": "load", "name": ..., "checkpoint": ..., "fields": {...}}
    {"do": "make", "name": ..., "root": ..., "kind": ..., "fields": {...}}   untrained
    {"do": "sample", "name": ..., "seed": S} + state, environment [B, ...] -> chunks [B, n_action_steps, A], cpu_s, wall_s
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from policy_bench import frames

REPO_ID = "local/demonstrations"
WARM_UP = 0.02  # share of the steps, as in robopolicy's own training


class Worker:
    """Policies by name."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        self._policies: dict[str, tuple[Any, Any, Any]] = {}

    def record(self, root: str, fps: float, task: str, lengths: np.ndarray, **arrays: np.ndarray) -> Any:
        """Write a LeRobotDataset, which computes its statistics too."""
        from lerobot.datasets.lerobot_dataset import LeRobotDataset
        from lerobot.utils.constants import ACTION, OBS_ENV_STATE, OBS_STATE

        columns = {OBS_STATE: arrays["state"], OBS_ENV_STATE: arrays["environment"], ACTION: arrays["action"]}
        features = {key: {"dtype": "float32", "shape": value.shape[1:], "names": None} for key, value in columns.items()}
        dataset = LeRobotDataset.create(REPO_ID, fps=round(fps), features=features, root=root, use_videos=False)
        ends = np.cumsum(lengths)
        for start, end in zip(ends - lengths, ends, strict=True):
            for row in range(start, end):
                dataset.add_frame({**{key: value[row].copy() for key, value in columns.items()}, "task": task})
            dataset.save_episode()
        dataset.finalize()
        return {"steps": int(ends[-1])}, {}

    def train(
        self, root: str, output: str, kind: str, fields: dict[str, Any], steps: int, batch_size: int, seed: int, save: bool
    ) -> Any:
        """Train as lerobot-train does; `save` the last weights.

        The cost is of the whole call; `loop` is of a step of its loop, the first apart, data included; `update` is of the
        forward pass, backward pass and optimiser alone.
        """
        from lerobot.configs.default import DatasetConfig
        from lerobot.configs.train import TrainPipelineConfig
        from lerobot.optim.schedulers import DiffuserSchedulerConfig
        from lerobot.scripts import lerobot_train

        policy = _config(kind, fields)
        config = TrainPipelineConfig(
            dataset=DatasetConfig(REPO_ID, root=root),
            policy=policy,
            output_dir=Path(output),
            steps=steps,
            batch_size=batch_size,
            seed=seed,
            num_workers=0,
            eval_freq=0,
            log_freq=0,
            save_checkpoint=save,
            save_freq=steps,
            use_policy_training_preset=False,
            optimizer=policy.get_optimizer_preset(),
            scheduler=DiffuserSchedulerConfig(name="cosine", num_warmup_steps=round(WARM_UP * steps)),
        )
        original, clocks = lerobot_train.update_policy, []

        def update_policy(*args: Any, **kwargs: Any) -> Any:
            began = np.array([time.process_time(), time.perf_counter()])
            result = original(*args, **kwargs)
            clocks.append((began, np.array([time.process_time(), time.perf_counter()])))
            return result

        lerobot_train.update_policy = update_policy
        cpu, wall = time.process_time(), time.perf_counter()
        try:
            lerobot_train.train(config)
        finally:
            lerobot_train.update_policy = original
        cost = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
        loop = (clocks[-1][1] - clocks[0][1]) / max(steps - 1, 1)
        update = np.median([after - before for before, after in clocks[1:] or clocks], axis=0)
        for name, pair in (("loop", loop), ("update", update)):
            cost |= {f"{name}_cpu_s": float(pair[0]), f"{name}_wall_s": float(pair[1])}
        return cost, {}

    def load(self, name: str, checkpoint: str, fields: dict[str, Any]) -> Any:
        """Load a trained policy and its processors; `fields` of its configuration change how it is sampled."""
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors

        config = PreTrainedConfig.from_pretrained(checkpoint)
        for key, value in fields.items():
            setattr(config, key, value)
        policy = get_policy_class(config.type).from_pretrained(checkpoint, config=config)
        return self._keep(name, policy, make_pre_post_processors(config, pretrained_path=checkpoint))

    def make(self, name: str, root: str, kind: str, fields: dict[str, Any]) -> Any:
        """Make a policy with random weights and the statistics of a dataset."""
        from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata
        from lerobot.policies.factory import make_policy, make_pre_post_processors

        meta, config = LeRobotDatasetMetadata(REPO_ID, root=root), _config(kind, fields)
        policy = make_policy(config, ds_meta=meta)
        return self._keep(name, policy, make_pre_post_processors(config, dataset_stats=meta.stats))

    def _keep(self, name: str, policy: Any, processors: tuple[Any, Any]) -> Any:
        self._policies[name] = (policy.eval(), *processors)
        facts = {"params": sum(p.numel() for p in policy.parameters()), "n_action_steps": policy.config.n_action_steps}
        return facts, {}

    def sample(self, name: str, seed: int, state: np.ndarray, environment: np.ndarray) -> Any:
        """A chunk in physical units; the times are those of normalisation, policy and denormalisation."""
        import torch
        from lerobot.utils.constants import OBS_ENV_STATE, OBS_STATE

        policy, before, after = self._policies[name]
        torch.manual_seed(seed)
        wall, cpu = time.perf_counter(), time.process_time()
        with torch.no_grad():
            batch = {OBS_STATE: torch.from_numpy(state.copy()), OBS_ENV_STATE: torch.from_numpy(environment.copy())}
            batch = {key: value for key, value in before(batch).items() if key in policy.config.input_features}
            if policy.name == "diffusion":  # predict_action_chunk looks into queues that hold one episode
                frames_ = policy.config.n_obs_steps
                actions = policy.diffusion.generate_actions(
                    {key: value.unsqueeze(1).expand(-1, frames_, -1) for key, value in batch.items()}
                )
            else:
                actions = policy.predict_action_chunk(batch)
            chunks = after(actions[:, : policy.config.n_action_steps]).numpy()
        times = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
        return times, {"chunks": chunks}


def _config(kind: str, fields: dict[str, Any]) -> Any:
    """LeRobot's configuration of a policy, on the CPU. The environment's state is scaled as the robot's is.

    LeRobot scales no environment state unless it is told to, which would be a handicap: positions here are in metres.
    """
    from lerobot.policies.factory import make_policy_config

    config = make_policy_config(kind, device="cpu", push_to_hub=False, **fields)
    config.normalization_mapping["ENV"] = config.normalization_mapping["STATE"]
    return config


if __name__ == "__main__":
    frames.serve(Worker())
