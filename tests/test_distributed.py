"""Training by several processes, launched by torchrun as a user would, against one process."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import test_train
import torch
from torch import distributed, nn

from robopolicy import checkpoint
from robopolicy.config import compose, to_plain
from robopolicy.data.episodes import write_episodes
from robopolicy.data.windows import Windows
from robopolicy.pipeline import train_run
from robopolicy.spec import ACTION, STATE
from robopolicy.train.logging import read_metrics
from robopolicy.train.plan import TrainingError
from robopolicy.train.ranks import join

SETTINGS = ["policy=bc", "+inputs.encoder.vectors={noise: 0.2}", "train.steps=12", "train.batch_size=16"]
SETTINGS += ["train.num_checkpoints=2", "train.log_every=3", "train.progress=false"]


def torchrun(*arguments):
    """Two processes of it, finished."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)


def assert_same_run(a, b):
    """Equal metrics and weights up to float error."""
    rows = [[{k: v for k, v in row.items() if k not in ("seconds", "phase")} for row in read_metrics(run)] for run in (a, b)]
    assert len(rows[0]) == len(rows[1]) > 0
    for one, two in zip(*rows, strict=True):
        assert one == pytest.approx(two, rel=1e-4)
    for folders in zip(checkpoint.list_checkpoints(a), checkpoint.list_checkpoints(b), strict=True):
        one, two = ({k: v for k, v in checkpoint.load(f).tensors.items() if k != "num_calls"} for f in folders)
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


def test_two_processes_train_what_one_does_on_the_joint_batch(tmp_path):
    rng = np.random.default_rng(0)
    states = [rng.normal(size=(30, 3)).astype(np.float32) for _ in range(4)]
    write_episodes(tmp_path / "set", [{STATE: state, ACTION: np.tanh(state[:, :2])} for state in states], fps=10)
    settings = [*SETTINGS, f"data.path={tmp_path / 'set'}"]
    done = torchrun("-m", "robopolicy.cli", "train", *settings, f"run_dir={tmp_path / 'two'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 checkpoints") == 1, "one of them speaks"
    assert not (tmp_path / "two/resume").exists()
    train_run(to_plain(compose("train", [*settings, "train.accumulate=2"])), tmp_path / "one")
    assert_same_run(tmp_path / "two", tmp_path / "one")


def test_what_two_processes_left_unfinished_two_or_one_finish(tmp_path):
    windows = test_train.make_dataset(tmp_path / "set")
    done = torchrun(__file__, "resume", tmp_path)
    assert done.returncode == 0, done.stderr
    assert test_train.losses(tmp_path / "cut") == test_train.losses(tmp_path / "whole")
    finals = [checkpoint.load(checkpoint.list_checkpoints(tmp_path / name)[-1]).tensors for name in ("cut", "whole")]
    assert test_train.same_tensors(*finals)
    windows = Windows(windows, [STATE], obs_horizon=1, action_horizon=4)
    with pytest.raises(TrainingError, match=r"cut into 2 slices, now 1: .* product is 2"):
        test_train.fit(test_train.linear(windows), windows, tmp_path / "left", resume=True)
    test_train.fit(test_train.linear(windows), windows, tmp_path / "left", resume=True, accumulate=2)
    assert_same_run(tmp_path / "left", tmp_path / "whole")


def test_a_process_that_fails_ends_all_and_says_why(tmp_path):
    test_train.make_dataset(tmp_path / "set")
    done = torchrun(__file__, "fail", tmp_path)
    assert done.returncode != 0
    assert "ValueError: episode 3 is damaged" in done.stderr
    assert not checkpoint.list_checkpoints(tmp_path / "run")


class Damaged(test_train.Stopping):
    """Windows that cannot be read from some batch on."""

    def batch(self, indices):
        try:
            return super().batch(indices)
        except KeyboardInterrupt:
            raise ValueError("episode 3 is damaged") from None


def check_exchange() -> int:
    """Gradients, losses, buffers and metrics of two processes; the number of this one."""
    ranks = join("cpu")
    parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(3))]
    parameters[0].grad = torch.full((2,), float(ranks.rank))
    if ranks.first:
        parameters[1].grad = torch.full((1,), 4.0)
    loss = ranks.average_gradients(parameters, torch.tensor(1.0 + ranks.rank))
    assert loss == 1.5
    assert [None if p.grad is None else p.grad.tolist() for p in parameters] == [[0.5, 0.5], [2.0], None]
    module = nn.BatchNorm1d(2)
    module.running_mean.fill_(ranks.rank)
    module.num_batches_tracked.fill_(ranks.rank)
    module.weight.data.fill_(ranks.rank)
    ranks.share_buffers(module)
    assert module.running_mean.tolist() == [0.0, 0.0]
    assert module.num_batches_tracked == 0
    assert module.weight.tolist() == [ranks.rank] * 2
    assert ranks.means({"a": ranks.rank, "b": 3.0}) == {"a": 0.5, "b": 3.0}
    own = {"b": 2.0, "a": 1.0} if ranks.first else {"a": 3.0}  # a metric that one slice alone had something to say of
    assert ranks.means(own) == {"b": 2.0, "a": 2.0}
    assert ranks.agree(f"from {ranks.rank}") == "from 0"
    with pytest.raises(TrainingError, match=r"one GPU for 2 processes.*train\.device=cuda"):
        join("cuda:0")
    return ranks.rank


def main(mode: str, folder: Path) -> None:
    """What each process runs."""
    from robopolicy.data.episodes import EpisodeStore

    windows = Windows(EpisodeStore(folder / "set"), [STATE], obs_horizon=1, action_horizon=4)
    fit, linear, rank = test_train.fit, test_train.linear, check_exchange()
    if mode == "fail":
        fit(linear(windows), Damaged(windows, 6) if rank else windows, folder / "run", num_checkpoints=1)
    with pytest.raises(TrainingError, match=r"train\.batch_size=8 or 10"):
        fit(linear(windows), windows, folder / "odd", batch_size=9)
    fit(linear(windows), windows, folder / "whole")
    for name in ("cut", "left"):
        with pytest.raises(KeyboardInterrupt):
            fit(linear(windows), test_train.Stopping(windows, 33), folder / name)
        distributed.barrier()
    fit(linear(windows), windows, folder / "cut", resume=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
