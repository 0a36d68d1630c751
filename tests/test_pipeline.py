"""The command line and the whole pipeline, run as a user would."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

import robopolicy
from robopolicy import checkpoint, demo, pipeline, spec
from robopolicy.cli import VERBS
from robopolicy.config import compose, to_plain
from robopolicy.data.episodes import EpisodeStore, write_episodes
from robopolicy.executor import map_units
from robopolicy.train.logging import read_metrics
from robopolicy.train.plan import TrainingError

ROOT = Path(__file__).parent.parent


def robopolicy_run(*arguments, cwd=None, env=None, check=True):
    """A finished `robopolicy` process."""
    command = [sys.executable, "-m", "robopolicy.cli", *map(str, arguments)]
    environment = {**os.environ, "WANDB_MODE": "offline", **(env or {})}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Demonstrations of nothing in particular: state of 3, actions of 2."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "points"
    episodes = []
    for _ in range(6):
        state = rng.normal(size=(30, 3)).astype(np.float32)
        episodes.append({spec.STATE: state, spec.ACTION: np.tanh(state[:, :2]), spec.SUCCESS: np.arange(30) == 29})
    write_episodes(path, episodes, fps=10)
    return path


def small(dataset, run_dir, *more):
    return (
        *("train", f"data.path={dataset}", f"run_dir={run_dir}"),
        *("train.steps=40", "train.batch_size=8", "train.num_checkpoints=2", "train.log_every=5"),
        *more,
    )


def test_help_lists_the_verbs_and_every_verb_shows_examples():
    text = robopolicy_run("--help").stdout
    assert all(verb in text for verb in VERBS)
    for verb in VERBS:
        assert f"robopolicy {verb}" in (VERBS[verb].__doc__ or "")
    text = robopolicy_run("train", "--help").stdout
    assert text.count("  robopolicy train ") == 3
    assert "batch_size" in text
    assert "policy: act, autoregressive, bc, carp, carp_paper, diffusion, flow, mip" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tarin",), "did you mean 'train'"),
        (("train", "data.path=x", "train.stpes=3"), "train.steps"),
        (("train", "data.path=x", "policy=crap"), "carp"),
        (("train", "data.path=x", "train.steps=many"), "train.steps=many does not work: expected int"),
        (("train", "data.path=nowhere"), "no dataset at nowhere"),
        (("train",), "give data.path=VALUE"),
        (("evaluate", "checkpoint=nowhere"), "no checkpoint at nowhere"),
        (("rank", "pool=nowhere.parquet"), "no episode table at nowhere.parquet"),
        (("rank", "scores=nowhere.csv"), "no score table at nowhere.csv"),
        (("rank", "bactest"), "backtest"),
        (("rank",), "give pool="),
    ],
)
def test_mistakes_exit_with_2_and_say_what_works(arguments, message, tmp_path):
    done = robopolicy_run(*arguments, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir()), "nothing is left behind"


BAD = {
    ("collect", "path=new"): [
        *(
            "episodes.expert=2.5",
            "episodes.expert=abc",
            "episodes.expert=null",
            "episodes=5",
            "seed=1.5",
            "seed=-1",
            "seed=abc",
        ),
        *("disturbance=abc", "levels=0.5", "levels=[a,b]", "num_workers=abc", "num_workers=-1", "twin=maybe"),
        *("+task.env.control_hz=0", "+task.env.control_hzz=20", "task.env.image_size=-4", "task.env.image_size=0"),
        *("task.env.num_points=0", "task.env.observation=state"),
    ],
    ("evaluate", "checkpoint=any"): ["episodes=0", "episodes=-3", "seed=-1", "num_workers=-1", "twin=maybe"],
    ("view", "out=new"): ["worlds=2.5", "worlds=0", "size=-3", "kinds=rgb", "cameras=front", "seed=-1", "episode=abc"],
    ("data split", "path=DATA", "out=new"): ["fractions=0.8", "fractions={train: abc}"],
    ("data split", "path=DATA", "out=new", "fractions={train: 0.5}"): ["seed=-1"],
    ("data merge", "out=new"): ["paths=DATA"],
    ("data check", "path=DATA"): ["num_workers=-1"],
    ("train", "run_dir=new"): ["data.path=[DATA]"],
}


@pytest.mark.parametrize("words", [(*given, bad) for given, values in BAD.items() for bad in values], ids=" ".join)
def test_a_value_that_cannot_work_is_refused_by_name_before_anything_is_written(words, dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "find_checkpoints", lambda paths: [])
    verb, *given = (word.replace("DATA", str(dataset)) for word in words)
    settings = to_plain(compose(verb.replace(" ", "_"), given))
    setting = words[-1].partition("=")[0].rpartition(".")[2]
    with pytest.raises(ValueError, match=rf"\b{setting}\b.*(give|did you mean)"):
        VERBS[verb](settings)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_dataset_is_named_and_leaves_no_run(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "copy")
    victim = sorted((tmp_path / "copy/episodes").iterdir())[2]
    victim.write_bytes(victim.read_bytes()[:300])
    done = robopolicy_run(*small(tmp_path / "copy", tmp_path / "run"), check=False)
    assert done.returncode == 2
    assert victim.name in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_with_other_tensors_is_refused_by_name(dataset, tmp_path):
    robopolicy_run(*small(dataset, tmp_path / "run", "policy=bc"))
    folder = tmp_path / "run/checkpoints/step_000040"
    tensors = checkpoint.load(folder).tensors
    name = next(iter(tensors))
    tensors["surplus"] = tensors.pop(name)
    save_file({key: value.clone() for key, value in tensors.items()}, folder / "model/model.safetensors")
    done = robopolicy_run("evaluate", f"checkpoint={folder}", "episodes=1", "num_workers=1", check=False)
    assert done.returncode == 2
    assert name in done.stderr
    assert "surplus" in done.stderr


def test_trains_any_dataset_and_samples_in_physical_units(dataset, tmp_path):
    robopolicy_run(*small(dataset, tmp_path / "run", "policy=bc", "logger=wandb"))
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(5, 41, 5))
    assert list((tmp_path / "run").rglob("*.wandb")), "an offline run was opened"
    policy = robopolicy.load_policy(tmp_path / "run/checkpoints/step_000040")
    observation = {spec.STATE: np.zeros((4, 1, 3), np.float32)}
    chunk = policy.sample(observation, num_samples=8, seed=0)
    assert chunk.shape == (4, 8, policy.spec.action_horizon, 2)
    assert chunk.dtype == np.float32
    with pytest.raises(spec.SpecError, match=r"lacks 'observation\.state'"):
        policy.sample({})


def test_sweeps_write_one_run_each(dataset, tmp_path):
    arguments = ("train", f"data.path={dataset}", "train.steps=6", "train.batch_size=4", "train.num_checkpoints=1")
    robopolicy_run(*arguments, "policy=carp,bc", "train.log_every=2", "-m", cwd=tmp_path)
    finished = sorted(tmp_path.glob("runs/sweep/*/*/checkpoints/step_000006/model/model.safetensors"))
    assert len(finished) == 2


def test_a_killed_run_resumes_with_the_same_losses(dataset, tmp_path):
    steady = small(dataset, tmp_path / "whole", "train.steps=400", "train.save_every_seconds=0")
    robopolicy_run(*steady)
    command = [sys.executable, "-m", "robopolicy.cli", *small(dataset, tmp_path / "cut", *steady[6:], "train.resume=true")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    log = tmp_path / "cut/metrics.jsonl"
    while time.monotonic() < deadline and (not log.exists() or len(log.read_text().splitlines()) < 30):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut/checkpoints/step_000400").exists(), "it was killed too late to show anything"
    subprocess.run(command, check=True, capture_output=True)
    losses = [[(row["step"], row["loss"]) for row in read_metrics(tmp_path / name)] for name in ("whole", "cut")]
    assert losses[0] == losses[1]
    weights = [(tmp_path / name / "checkpoints/step_000400/model/model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_the_wheel_carries_its_configuration(tmp_path):
    wheel = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(wheel, check=True, capture_output=True)
    [built] = tmp_path.glob("*.whl")
    zipfile.ZipFile(built).extractall(tmp_path / "site")
    code = "import robopolicy, robopolicy.resources as r; print(robopolicy.__file__, r.conf_dir(), r.assets_dir())"
    environment = {"PYTHONPATH": str(tmp_path / "site")}
    options = {"cwd": tmp_path, "env": {**os.environ, **environment}, "capture_output": True, "text": True}
    printed = subprocess.run([sys.executable, "-c", code], check=True, **options).stdout
    assert all(path.startswith(str(tmp_path)) for path in printed.split())
    assert "lift_points" in robopolicy_run("train", "--help", cwd=tmp_path, env=environment).stdout


def test_results_do_not_depend_on_the_number_of_workers():
    for num_workers in (1, 2):
        assert map_units(abs, [-3, 2, -1], num_workers, progress=False) == [3, 2, 1]


def test_a_demo_goes_on_only_with_the_episodes_its_policies_were_trained_on(tmp_path, monkeypatch):
    monkeypatch.setattr(demo.Demo, "run", lambda self: ["done"])

    def run(*overrides):
        return demo.run_demo(to_plain(compose("demo", [f"out={tmp_path}", *overrides])))

    assert run() == run("num_workers=1", "evaluate.episodes=9") == ["done"]
    with pytest.raises(TrainingError, match=r"cannot resume: collect.expert was 360 and is now 6;.*another folder"):
        run("debug=smoke", f"out={tmp_path}")


def test_a_small_demo_and_a_whole_one_share_no_folder():
    assert compose("demo", ["debug=smoke"]).out != compose("demo").out


def test_the_demo_runs_from_end_to_end(tmp_path):
    done = robopolicy_run("demo", "debug=smoke", f"out={tmp_path}")
    report = (tmp_path / "report.html").read_text()
    lines = done.stdout.strip().splitlines()
    assert lines[-1] == f"Report: {tmp_path / 'report.html'}"
    assert any("VSDR puts" in line for line in lines)
    ranking = json.loads((tmp_path / "ranking.json").read_text())
    assert len(ranking["checkpoints"]) == 8
    assert set(ranking["orders"]) == {"vsdr", "sim", "ood"}
    assert all(checkpoint["checkpoint"] in report for checkpoint in ranking["checkpoints"])
    assert ranking["check"] is not None, "checked against the twin"
    assert "data:image/gif" in report
    store = EpisodeStore(tmp_path / "data/wide")
    drawn = store.table["randomization.object.mass"].to_numpy()
    assert len(np.unique(drawn)) == len(store), "every world was drawn"
    again = robopolicy_run("evaluate", f"checkpoint={tmp_path / 'policies/wide'}", "episodes=1", "num_workers=1")
    assert again.stdout.count("success") == 4
