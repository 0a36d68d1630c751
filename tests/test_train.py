import json
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from robopolicy import checkpoint
from robopolicy.batch import Phase
from robopolicy.config import ConfigError, TrainConfig
from robopolicy.data.episodes import EpisodeStore, write_episodes
from robopolicy.data.transforms import Normalizer
from robopolicy.data.windows import Windows
from robopolicy.policies.bc import BehaviourCloningPolicy
from robopolicy.policies.carp import CarpPolicy
from robopolicy.spec import ACTION, STATE, PolicySpec
from robopolicy.train import optim
from robopolicy.train.feed import prefetched
from robopolicy.train.logging import METRICS, MetricsLog, read_metrics
from robopolicy.train.loop import train
from robopolicy.train.plan import TrainingError, batch_indices, checkpoint_steps, plan_stages, seeded, step_seeds

CONFIG = {
    "policy": {"_target_": "robopolicy.policies.carp.CarpPolicy"},
    "train": {"resume": False, "seed": 0},
    "rates": [1, 2.5],
}


class LinearModule(nn.Module):
    """Two maps from state to action, trained one after the other; the second uses the first, dropout and noise."""

    def __init__(self, spec: PolicySpec, poison_step: int | None = None) -> None:
        super().__init__()
        self.spec, self.batch_keys, self.extra_keys = spec, (), ()
        self.phases = (Phase("first", 0.4, 0.05), Phase("second", 0.6, 0.05))
        self.normalizer = Normalizer({**spec.observation, ACTION: spec.action})
        self.first, self.second = nn.Linear(3, 2), nn.Linear(2, 2)
        self.dropout = nn.Dropout(0.1)
        self.register_buffer("num_calls", torch.zeros((), dtype=torch.int64))
        self.poison_step, self.noise = poison_step, 0.01
        self.students: list[torch.Tensor] = []  # weights that each step starts from
        self.noises: list[torch.Tensor] = []

    def fit(self, stats):
        self.normalizer.fit(stats)

    def review(self, phase, metrics):
        pass

    def after_step(self):
        pass

    def phase_parameters(self, name):
        return list(getattr(self, name).parameters())

    def loss(self, phase, batch, generator):
        target = self.normalizer.normalize(ACTION, batch[ACTION])[:, 0]
        hidden = self.first(self.normalizer.normalize(STATE, batch[STATE])[:, -1])
        self.students.append(self.first.weight.detach().clone())
        if phase == "second":
            noise = self.noise * torch.randn(hidden.shape, generator=generator)
            self.noises.append(noise)
            hidden = self.second(self.dropout(hidden.detach()) + noise)
        loss = (hidden - target).square().mean()
        self.num_calls += 1
        if self.poison_step is not None and self.num_calls > self.poison_step:
            loss = loss * float("nan")
        return loss, {"error": loss.detach().sqrt()}


class Stopping:
    """Windows whose user pulls the plug when batch number `stop` is asked for."""

    def __init__(self, windows: Windows, stop: int) -> None:
        self._windows, self._left = windows, stop

    def __getattr__(self, name):
        return getattr(self._windows, name)

    def __len__(self):
        return len(self._windows)

    def batch(self, indices):
        if len(indices) > 1:
            self._left -= 1
            if self._left < 0:
                raise KeyboardInterrupt
        return self._windows.batch(indices)


def make_dataset(folder: Path) -> EpisodeStore:
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((3, 2))
    episodes = []
    for length in (17, 23, 12):
        state = rng.standard_normal((length, 3)).astype(np.float32)
        episodes.append({STATE: state, ACTION: (state @ mixing).astype(np.float32)})
    write_episodes(folder, episodes, fps=10)
    return EpisodeStore(folder)


@pytest.fixture(scope="module")
def windows(tmp_path_factory) -> Windows:
    return Windows(make_dataset(tmp_path_factory.mktemp("data") / "set"), [STATE], obs_horizon=1, action_horizon=4)


def linear(windows: Windows, **kwargs) -> LinearModule:
    observation, action = windows.spec.observation, windows.spec.action
    spec = PolicySpec(observation, action, obs_horizon=1, action_horizon=4, execute_horizon=2, control_hz=10.0)
    with seeded(0):
        return LinearModule(spec, **kwargs)


def settings(**kwargs) -> TrainConfig:
    small = {"steps": 50, "batch_size": 8, "num_checkpoints": 3, "log_every": 5, "save_every_seconds": 0.0, "progress": False}
    return TrainConfig(**{**small, "ema_decay": 0.9, **kwargs})


def fit(module, windows, run_dir, config=CONFIG, **kwargs) -> list[Path]:
    return train(module, windows, run_dir, config=config, settings=settings(**kwargs), kind="policy", data_hash="d")


def losses(run_dir: Path) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read_metrics(run_dir)]


def same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_linear_problem_is_solved_and_checkpoints_hold_it(windows, tmp_path):
    module = linear(windows)
    checkpoints = fit(module, windows, tmp_path, steps=300, num_checkpoints=4, save_every_seconds=60.0)
    rows = losses(tmp_path)
    first = [row["loss"] for row in rows if row["phase"] == "first"]
    assert first[-1] < 0.01 * first[0]
    assert [path.name for path in checkpoints] == ["step_000165", "step_000210", "step_000255", "step_000300"]
    last = checkpoint.load(checkpoints[-1])
    assert last.meta["kind"] == "policy"
    assert last.meta["step"] == 300
    assert last.meta["data_hash"] == "d"
    assert last.meta["metrics"]["loss"] == rows[-1]["loss"]
    assert PolicySpec.from_dict(last.meta["spec"]) == module.spec
    assert last.config == CONFIG
    assert same_tensors(last.tensors, module.state_dict())
    assert not module.training
    assert not (tmp_path / "resume").exists()


def test_later_phases_are_taught_by_the_very_weights_that_are_stored(windows, tmp_path):
    module = linear(windows)
    stored = [checkpoint.load(path).tensors["first.weight"] for path in fit(module, windows, tmp_path)]
    assert len(module.students) == 50
    assert all(torch.equal(weight, stored[0]) for weight in [*stored, *module.students[20:]])


def test_a_phase_hands_on_the_average_of_its_weights(windows, tmp_path):
    averaged, raw = linear(windows), linear(windows)
    fit(averaged, windows, tmp_path / "averaged", ema_decay=0.8)
    fit(raw, windows, tmp_path / "raw", ema_decay=0.0)
    assert all(torch.equal(a, b) for a, b in zip(averaged.students[:20], raw.students[:20], strict=True))
    expected = raw.students[0]
    for step, weight in enumerate(raw.students[1:21]):
        decay = min(0.8, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(averaged.students[20], expected)
    assert not torch.allclose(averaged.students[20], raw.students[20])


def test_noise_differs_between_steps_and_seeds_but_not_between_runs(windows, tmp_path):
    modules = [linear(windows) for _ in range(3)]
    for index, (module, seed) in enumerate(zip(modules, (0, 0, 1), strict=True)):
        fit(module, windows, tmp_path / str(index), seed=seed)
    drawn = [[tuple(noise.flatten().tolist()) for noise in module.noises] for module in modules]
    assert drawn[0] == drawn[1]
    assert len({*drawn[0], *drawn[2]}) == 60


@pytest.fixture(scope="module")
def uninterrupted(windows, tmp_path_factory) -> tuple[list[dict], dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("whole")
    final = fit(linear(windows), windows, folder)[-1]
    return losses(folder), checkpoint.load(final).tensors


@pytest.mark.parametrize("stop", [0, 3, 5, 19, 20, 21, 38, 49])
def test_an_interrupted_run_resumes_bit_for_bit(windows, uninterrupted, tmp_path, stop):
    with pytest.raises(KeyboardInterrupt):
        fit(linear(windows), Stopping(windows, stop), tmp_path)
    with seeded(99):
        other = LinearModule(linear(windows).spec) if stop >= 5 else linear(windows)  # its own weights must not matter
    final = fit(other, windows, tmp_path, resume=True)[-1]
    rows, tensors = uninterrupted
    assert losses(tmp_path) == rows
    assert same_tensors(checkpoint.load(final).tensors, tensors)


@pytest.mark.parametrize("stop", [7, 39, 62])
def test_accumulated_and_low_precision_steps_resume_bit_for_bit_too(windows, tmp_path, stop):
    options = {"accumulate": 2, "precision": "bfloat16"}
    fit(linear(windows), windows, tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        fit(linear(windows), Stopping(windows, stop), tmp_path / "cut", **options)
    fit(linear(windows), windows, tmp_path / "cut", resume=True, **options)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    finals = [checkpoint.load(checkpoint.list_checkpoints(tmp_path / name)[-1]).tensors for name in ("cut", "whole")]
    assert same_tensors(*finals)


def quiet(windows: Windows) -> LinearModule:
    module = linear(windows)
    module.dropout.p = module.noise = 0.0
    return module


def test_accumulated_gradients_make_the_step_of_the_whole_batch(windows, tmp_path):
    modules = [quiet(windows) for _ in range(2)]
    for module, accumulate in zip(modules, (1, 4), strict=True):
        fit(module, windows, tmp_path / str(accumulate), accumulate=accumulate)
    whole, parts = (losses(tmp_path / name) for name in ("1", "4"))
    for one, other in zip(whole, parts, strict=True):
        for name in ("loss", "gradient_norm", "learning_rate"):
            assert other[name] == pytest.approx(one[name], rel=1e-4)
    for one, other in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_slices_of_a_step_have_noise_of_their_own(windows, tmp_path):
    module = linear(windows)
    fit(module, windows, tmp_path, accumulate=2)
    assert len({tuple(noise.flatten().tolist()) for noise in module.noises}) == len(module.noises) == 60


class Peeking(LinearModule):
    """Uses its weights without gradient before it uses them with one, and notes in what it computes."""

    def loss(self, phase, batch, generator):
        with torch.no_grad():
            self.kind = self.first(self.normalizer.normalize(STATE, batch[STATE])[:, -1]).dtype
        return super().loss(phase, batch, generator)


def test_networks_compute_in_the_precision_asked_for_and_still_learn(windows, tmp_path):
    rows = {}
    for precision in ("float32", "auto", "bfloat16"):
        with seeded(0):
            module = Peeking(linear(windows).spec)
        fit(module, windows, tmp_path / precision, precision=precision, steps=200)
        assert module.kind == (torch.bfloat16 if precision == "bfloat16" else torch.float32)
        assert {p.dtype for p in module.parameters()} == {torch.float32}
        rows[precision] = [row["loss"] for row in losses(tmp_path / precision) if row["phase"] == "first"]
    assert rows["auto"] == rows["float32"] != rows["bfloat16"]
    assert rows["bfloat16"][0] == pytest.approx(rows["float32"][0], rel=0.02)
    assert rows["bfloat16"][-1] < 0.01 * rows["bfloat16"][0]


@pytest.mark.parametrize("num_prefetch", [0, 1, 5])
def test_batches_made_ahead_change_no_number(windows, uninterrupted, tmp_path, num_prefetch):
    final = fit(linear(windows), windows, tmp_path, num_prefetch=num_prefetch)[-1]
    assert losses(tmp_path) == uninterrupted[0]
    assert same_tensors(checkpoint.load(final).tensors, uninterrupted[1])


@pytest.mark.parametrize("num_ahead", [0, 1, 3])
def test_what_fails_ahead_fails_in_its_turn_and_no_thread_is_left(num_ahead):
    loaded = []

    def load(key: int) -> int:
        loaded.append(key)
        return 10 // (4 - key)

    feed = prefetched(load, range(100), num_ahead)
    assert [next(feed) for _ in range(4)] == [2, 3, 5, 10]
    with pytest.raises(ZeroDivisionError):
        next(feed)
    assert len(loaded) <= 5 + num_ahead
    feed = prefetched(load, range(5, 100), num_ahead)
    next(feed)
    feed.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("feed")]


def test_memory_stays_flat_while_a_dataset_larger_than_memory_is_streamed(tmp_path):
    rng, image = np.random.default_rng(0), "observation.images.front"
    for _ in range(40):
        frames = rng.integers(0, 256, (64, 64, 64, 3), dtype=np.uint8)
        write_episodes(tmp_path / "set", [{image: frames, ACTION: frames[:, 0, 0, :2].astype(np.float32)}], fps=10)
    store = EpisodeStore(tmp_path / "set")
    size = frames.nbytes * len(store)
    with seeded(0):
        policy = BehaviourCloningPolicy(store.spec.observation, store.spec.action, 10.0, action_horizon=4, execute_horizon=2)
    options = {"obs_horizon": 1, "action_horizon": 4, "memory_gb": 0.1 * size / 1e9}
    fit(policy, Windows(store, [image], **options), tmp_path / "imports", steps=3)
    tracemalloc.start()
    windows = Windows(store, [image], **options)
    fit(policy, windows, tmp_path / "run", steps=12)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.05 * size < peak < 0.5 * size
    assert windows.num_resident < 0.1 * len(windows) + 64


def test_the_seed_decides_and_the_global_generator_is_left_alone(windows, uninterrupted, tmp_path):
    before = torch.get_rng_state()
    fit(linear(windows), windows, tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), before)
    assert losses(tmp_path / "a") == uninterrupted[0]
    fit(linear(windows), windows, tmp_path / "b", seed=1)
    assert losses(tmp_path / "b") != uninterrupted[0]


def carp(windows: Windows) -> CarpPolicy:
    from functools import partial

    from robopolicy.models.coarse_to_fine import CoarseToFineTransformer
    from robopolicy.models.encoders import ObservationEncoder
    from robopolicy.models.tokenizer import MultiScaleTokenizer

    with seeded(0):
        return CarpPolicy(
            windows.spec.observation,
            windows.spec.action,
            10.0,
            action_horizon=4,
            execute_horizon=2,
            encoder=partial(ObservationEncoder, width=8),
            tokenizer=partial(MultiScaleTokenizer, scales=(1, 2), width=8),
            transformer=partial(CoarseToFineTransformer, width=8, depth=1, num_heads=2),
        )


def test_a_finished_phase_is_reviewed_with_its_last_metrics(windows, tmp_path):
    policy, seen = carp(windows), []
    policy.review = lambda phase, metrics: seen.append((phase, metrics))
    fit(policy, windows, tmp_path, steps=60, log_every=7)
    assert [phase for phase, _ in seen] == ["tokenizer", "policy"]
    assert seen[0][1]["codes/2"] >= 1
    assert seen[1][1]["loss"] == read_metrics(tmp_path)[-1]["loss"]


def test_a_policy_whose_training_is_killed_resumes_bit_for_bit(windows, tmp_path):
    steps = {"steps": 60, "log_every": 3}
    whole = checkpoint.load(fit(carp(windows), windows, tmp_path / "whole", **steps)[-1]).tensors
    run_dir = tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    code = f"import test_train; test_train.train_slowly({str(tmp_path)!r}, {steps!r})"
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        deadline = time.monotonic() + 60
        while len(read_metrics(run_dir)) < 9:  # 27 steps: 12 into the second phase
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 9 <= len(read_metrics(run_dir)) < 20
    final = fit(carp(windows), windows, run_dir, resume=True, **steps)[-1]
    assert losses(run_dir) == losses(tmp_path / "whole")
    assert same_tensors(checkpoint.load(final).tensors, whole)


def train_slowly(folder: str, steps: dict) -> None:
    """What the killed process runs: the same training, with a pause in every batch."""

    class Slow(Stopping):
        def batch(self, indices):
            time.sleep(0.02)
            return super().batch(indices)

    windows = Windows(make_dataset(Path(folder) / "set"), [STATE], obs_horizon=1, action_horizon=4)
    fit(carp(windows), Slow(windows, 10_000), Path(folder) / "killed", **steps)


def test_a_finished_run_is_not_trained_again(windows, tmp_path):
    checkpoints = fit(linear(windows), windows, tmp_path)
    digests = [checkpoint.sha256(path) for path in checkpoints]
    module = linear(windows)
    assert fit(module, Stopping(windows, 0), tmp_path, resume=True) == checkpoints
    assert [checkpoint.sha256(path) for path in checkpoints] == digests
    assert same_tensors(module.state_dict(), checkpoint.load(checkpoints[-1]).tensors)
    with pytest.raises(TrainingError, match=r"cannot resume.*dataset"):
        train(linear(windows), windows, tmp_path, config=CONFIG, settings=settings(resume=True), kind="policy", data_hash="x")


def test_a_folder_with_a_run_is_resumed_only_on_request_and_only_as_it_was(windows, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(linear(windows), Stopping(windows, 9), tmp_path)
    with pytest.raises(TrainingError, match=r"already holds a run.*train.resume=true"):
        fit(linear(windows), windows, tmp_path)
    changed = {**CONFIG, "train": {"resume": True, "seed": 5}}
    with pytest.raises(TrainingError, match=r"train\.seed was 0 and is now 5"):
        fit(linear(windows), windows, tmp_path, config=changed, resume=True)
    with pytest.raises(TrainingError, match=r"extra was 'absent' and is now 1"):
        fit(linear(windows), windows, tmp_path, config={**CONFIG, "extra": 1}, resume=True)
    with pytest.raises(TrainingError, match="dataset"):
        train(linear(windows), windows, tmp_path, config=CONFIG, settings=settings(resume=True), kind="policy", data_hash="x")
    allowed = {**CONFIG, "train": {"resume": True, "seed": 0}}
    assert len(fit(linear(windows), windows, tmp_path, config=allowed, resume=True)) == 3


def test_a_loss_that_is_not_finite_stops_the_run_before_it_does_harm(windows, tmp_path):
    with pytest.raises(TrainingError, match=r"loss nan.*step 30 of phase 'second'.*train\.learning_rate_scale"):
        fit(linear(windows, poison_step=30), windows, tmp_path)
    for path in checkpoint.list_checkpoints(tmp_path):
        assert all(torch.isfinite(value).all() for value in checkpoint.load(path).tensors.values())
    fit(linear(windows), windows, tmp_path, resume=True)
    assert np.isfinite([row["loss"] for row in losses(tmp_path)]).all()


def test_what_cannot_be_trained_is_said_before_anything_is_written(windows, tmp_path):
    module = linear(windows)
    module.batch_keys = ("next.success",)
    with pytest.raises(TrainingError, match=r"'next\.success'"):
        fit(module, windows, tmp_path)
    with pytest.raises(TrainingError, match="num_checkpoints=40 exceeds the 30 steps of phase 'second'"):
        fit(linear(windows), windows, tmp_path, num_checkpoints=40)
    with pytest.raises(TrainingError, match=r"batch_size=8 cannot be cut into 3 equal slices.*train\.batch_size=6 or 9"):
        fit(linear(windows), windows, tmp_path, accumulate=3)
    with pytest.raises(TrainingError, match=r"cuda:77.*use train.device=cpu"):
        fit(linear(windows), windows, tmp_path, device="cuda:77")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match=r"train\.steps=0"):
        settings(steps=0)
    with pytest.raises(ConfigError, match=r"train\.precision='float16'.*'bfloat16'"):
        settings(precision="float16")


@pytest.mark.parametrize("shares", [(1.0,), (0.25, 0.75), (0.1, 0.2, 0.7)])
@pytest.mark.parametrize("steps", [10, 101, 9999])
def test_phases_share_all_steps_and_checkpoints_fall_into_the_last(shares, steps):
    stages = plan_stages([Phase(str(i), share, 1e-3) for i, share in enumerate(shares)], steps)
    assert [stage.first for stage in stages] == [0, *(stage.last for stage in stages[:-1])]
    assert stages[-1].last == steps
    assert all(abs((s.last - s.first) - steps * share) <= 1 for s, share in zip(stages, shares, strict=True))
    marks = checkpoint_steps(stages[-1], 5)
    assert marks[-1] == steps
    assert marks[0] > stages[-1].first
    assert len(set(marks)) == 5
    assert max(np.diff(marks)) - min(np.diff(marks)) <= 1


@pytest.mark.parametrize("shares", [(), (0.5, 0.4), (0.001, 0.999)])
def test_phases_that_do_not_fill_the_run_are_refused(shares):
    with pytest.raises(TrainingError, match="steps=100"):
        plan_stages([Phase(str(i), share, 1e-3) for i, share in enumerate(shares)], 100)


@pytest.mark.parametrize(("num_steps", "warmup"), [(1, 0.0), (1, 0.5), (100, 0.0), (100, 0.1), (1000, 0.02), (7, 0.9)])
def test_learning_rates_rise_then_fall_and_stay_positive(num_steps, warmup):
    factors = np.array([optim.learning_rate_factor(step, num_steps, warmup) for step in range(num_steps)])
    peak = int(factors.argmax())
    assert (factors > 0).all()
    assert factors[peak] == 1
    assert peak == min(int(np.ceil(warmup * num_steps)), num_steps - 1)
    assert (np.diff(factors[: peak + 1]) > 0).all()
    assert (np.diff(factors[peak:]) < 0).all()


@pytest.mark.parametrize(("num_windows", "batch_size"), [(10, 4), (64, 64), (5, 12)])
def test_every_window_is_seen_once_an_epoch_in_another_order(num_windows, batch_size):
    num_steps = -(-3 * num_windows // batch_size)
    stream = np.concatenate([batch_indices(3, step, num_windows, batch_size) for step in range(num_steps)])
    epochs = stream[: 3 * num_windows].reshape(3, num_windows)
    assert (np.sort(epochs, 1) == np.arange(num_windows)).all()
    assert not (epochs[0] == epochs[1]).all()
    assert (batch_indices(3, 1, num_windows, batch_size) == stream[batch_size : 2 * batch_size]).all()


def test_steps_and_seeds_have_randomness_of_their_own():
    drawn = [number for seed in range(5) for step in range(50) for number in step_seeds(seed, step)]
    assert len(set(drawn)) == len(drawn)


def test_only_matrices_are_decayed():
    module = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    optimizer = optim.make_optimizer(module, module.parameters(), 0.1)
    decayed = [p for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]]
    assert [id(p) for p in decayed] == [id(module[0].weight)]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4


def test_the_average_follows_the_given_weights_and_copies_the_rest():
    module = nn.BatchNorm1d(2)
    average = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.no_grad():
        module.weight.fill_(3.0)
        module.bias.fill_(5.0)
        module.running_mean.fill_(7.0)
    optim.update_average(average, module, [module.weight], decay=0.75)
    assert average["weight"].tolist() == [1.5, 1.5]
    assert average["bias"].tolist() == [5.0, 5.0]
    assert average["running_mean"].tolist() == [7.0, 7.0]
    assert optim.average_decay(0, 0.999) == pytest.approx(0.1)
    assert optim.average_decay(10**6, 0.999) == 0.999


def test_a_metrics_file_cut_short_by_a_kill_is_continued_whole(tmp_path):
    (tmp_path / METRICS).write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    log = MetricsLog(tmp_path, step=2)
    log.write({"step": 3, "loss": 0.5})
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 0.5}]  # flushed before it is closed
    log.close()


def test_an_offline_wandb_run_holds_the_metrics(windows, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_dir = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        fit(linear(windows), Stopping(windows, 21), run_dir, logger="wandb")
    fit(linear(windows), windows, run_dir, resume=True, logger="wandb")
    files = sorted((run_dir / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2  # one a session, under one id
    assert {path.stem for path in files} == {f"run-{(run_dir / 'wandb_id').read_text()}"}
    uploaded = {row["step"]: row for path in files for row in wandb_history(path)}
    assert [uploaded[row["step"]] for row in read_metrics(run_dir)] == read_metrics(run_dir)


def wandb_history(path: Path) -> list[dict]:
    """Rows in a .wandb file: 7 bytes of header, then records (crc u32, length u16, type u8) in the LevelDB log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, rows = path.read_bytes(), 7, []
    while position < len(data):
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        assert kind == 1, "a record over several blocks: log less in this test"
        record = Record.FromString(data[position + 7 : position + 7 + length])
        items = {(item.key or ".".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
        if items:
            rows.append({key: value for key, value in items.items() if not key.startswith("_")})
        position += 7 + length
    return rows
