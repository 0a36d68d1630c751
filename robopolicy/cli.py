"""The command line: `robopolicy <verb> key=value ...`, each verb a Hydra application. Errors exit with 2."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from robopolicy.config import compose, explain, keys_of, to_plain
from robopolicy.resources import conf_dir
from robopolicy.spec import did_you_mean

USAGE_ERROR, INTERRUPTED = 2, 130

logger = logging.getLogger("robopolicy")


def collect(cfg: dict[str, Any]) -> None:
    """Collect episodes of a task: of its expert, flawed and noisy copies, random actions or a policy.

    robopolicy collect path=runs/data/wide randomization=wide
    robopolicy collect path=runs/data/mixed episodes.expert=100 episodes.noisy=200 episodes.random=50 seed=1
    robopolicy collect path=runs/data/target twin=true randomization=none episodes.expert=20 disturbance=0
    robopolicy collect path=runs/data/tried episodes.expert=0 episodes.rollout=100 checkpoint=runs/wide
    """
    from robopolicy.data.collect import fault_lines
    from robopolicy.data.measures import measures, table
    from robopolicy.pipeline import collect_run

    keys = ("path", "task", "randomization", "episodes", "seed", "twin", "disturbance", "num_workers", "checkpoint", "levels")
    store = collect_run(**{key: cfg[key] for key in (*keys, "perturb", "executor")})
    print(f"{len(store)} episodes, {int(store.lengths.sum())} steps, in {cfg['path']}")
    print("\n".join([*table(measures(store)), *fault_lines(store.faults)]))


def train(cfg: dict[str, Any]) -> None:
    """Train a policy, or a critic with critic=success (iql, cal_ql, safety), on a dataset.

    robopolicy train inputs=points data.path=runs/data/wide run_dir=runs/wide train.steps=4000
    robopolicy train critic=success inputs=points data.path=runs/data/mixed run_dir=runs/critic train.steps=2000
    robopolicy train policy=carp,bc inputs=points data.path=runs/data/wide train.seed=0,1 -m
    """
    from robopolicy.pipeline import train_run
    from robopolicy.train.ranks import launched

    run_dir = cfg.pop("run_dir") or _default_run_dir()
    checkpoints = train_run(cfg, run_dir)
    if launched()[0] == 0:
        print(f"{len(checkpoints)} checkpoints; the last is {checkpoints[-1]}")


def _default_run_dir() -> str:
    job = HydraConfig.get()
    if job.mode == RunMode.MULTIRUN:
        return job.runtime.output_dir
    return time.strftime("runs/train/%Y-%m-%d_%H-%M-%S")


def evaluate(cfg: dict[str, Any]) -> None:
    """Roll checkpoints out on the same worlds; with a critic, base and steered, paired.

    robopolicy evaluate checkpoint=runs/wide
    robopolicy evaluate checkpoint=runs/wide/checkpoints/step_004000 randomization=none episodes=100 out=runs/scores.parquet
    robopolicy evaluate checkpoint=runs/wide/checkpoints/step_004000 steer.critic=runs/critic
    robopolicy evaluate checkpoint=... steer.critic=runs/critic steer.perturb='{std: 0.2}' picture.file=decision.png
    """
    from robopolicy.pipeline import evaluate_run

    print("\n".join(evaluate_run(cfg)))


def branch(cfg: dict[str, Any]) -> None:
    """Try several of a checkpoint's candidates in states of its own episodes, each to the end: the truth about a critic.

    robopolicy branch checkpoint=runs/wide/checkpoints/step_004000 out=runs/branches episodes=100 seed=7000
    robopolicy train critic=success data.path=runs/data/tried data.branches=runs/branches run_dir=runs/critic
    robopolicy train critic=safety data.path=runs/branches run_dir=runs/safety
    """
    from robopolicy.pipeline import branch_run

    print("\n".join(branch_run(cfg)))


def rank(cfg: dict[str, Any]) -> int:
    """Order checkpoints before any real run: simulated success combined with out-of-distribution detection (VSDR).

    robopolicy rank pool=[runs/none,runs/wide] target=runs/data/target out=runs/rank
    robopolicy rank pool='runs/sweep/*' target=photos/ suite=suite.yaml alloc=halving budget=5000 gate=gate.yaml
    robopolicy rank pool=[runs/none,runs/wide] target=runs/data/target outcomes=runs/outcomes.parquet executor=ray
    robopolicy rank scores=table.csv
    robopolicy rank scores=scores.parquet features=features/ detector=knn combiner=robust_z
    """
    from robopolicy.selection.run import rank_verb

    return _finish(rank_verb(cfg))


def rank_suite(cfg: dict[str, Any]) -> int:
    """Freeze the conditions of a ranking: disjoint splits select, confirm and sealed, in a file with a hash.

    robopolicy rank suite out=suites/lift.yaml task=lift randomization=held_out select=200 confirm=200 sealed=200
    """
    from robopolicy.selection.verbs import suite

    return _finish(suite(cfg))


def rank_backtest(cfg: dict[str, Any]) -> int:
    """Judge the scores themselves on policies whose real outcome is known: which score should one have trusted?

    robopolicy rank backtest scores=table.csv
    robopolicy rank backtest scores=table.csv k=[1,2,4] baseline=incumbent out=runs/backtest
    """
    from robopolicy.selection.verbs import backtest

    return _finish(backtest(cfg))


def rank_next_real(cfg: dict[str, Any]) -> int:
    """Which policy to try on the robot next: scores and real trials so far, by multi-fidelity co-kriging.

    robopolicy rank next-real out=runs/rank
    robopolicy rank next-real scores=table.csv log=trials.csv out=runs/rank
    """
    from robopolicy.selection.verbs import next_real

    return _finish(next_real(cfg))


def rank_ingest_real(cfg: dict[str, Any]) -> int:
    """Add real trials (CSV: policy, success[, trial]) to a ranking; trials that are there already are skipped.

    robopolicy rank ingest-real log=trials.csv out=runs/rank
    """
    from robopolicy.selection.verbs import ingest_real

    return _finish(ingest_real(cfg))


def rank_report(cfg: dict[str, Any]) -> int:
    """Write report.html of a ranking again, from the files in its folder.

    robopolicy rank report out=runs/rank
    """
    from robopolicy.selection.verbs import report

    return _finish(report(cfg))


def rank_diff(cfg: dict[str, Any]) -> int:
    """What differs between two rankings: inputs, settings, places and rates; exit code 1 if the leader does.

    robopolicy rank diff a=runs/rank_monday b=runs/rank_tuesday
    """
    from robopolicy.selection.verbs import diff

    return _finish(diff(cfg))


def rank_replay(cfg: dict[str, Any]) -> int:
    """Play one episode of a ranking again and film it.

    robopolicy rank replay out=runs/rank checkpoint=wide@4000 condition=1234567
    """
    from robopolicy.selection.verbs import replay

    return _finish(replay(cfg))


def _finish(done: Any) -> int:
    """Say what a verb found; its exit code."""
    print("\n".join(done.lines))
    return done.exit_code


def deploy(cfg: dict[str, Any]) -> None:
    """Serve a checkpoint on a local socket, for tools/ros_infer.py or any other client.

    robopolicy deploy checkpoint=runs/wide/checkpoints/step_004000
    robopolicy deploy checkpoint=runs/wide/checkpoints/step_004000 address=ipc:///tmp/robopolicy.sock
    robopolicy deploy checkpoint=runs/wide/checkpoints/step_004000 backend=onnx
    robopolicy deploy checkpoint=runs/wide/checkpoints/step_004000 steer.critic=runs/critic/checkpoints/step_002000
    robopolicy deploy checkpoint=runs/wide/checkpoints/step_004000 monitor.data=runs/data/wide
    """
    from robopolicy.pipeline import deploy_policy

    deploy_policy(cfg)


def replay(cfg: dict[str, Any]) -> None:
    """Run a policy over a ROS bag, open loop: a page of what it would have done beside what was done.

    robopolicy replay bag=bags/monday checkpoint=runs/wide/checkpoints/step_004000
    robopolicy replay bag=teleop.bag checkpoint=runs/wide mapping=assets/ros/lift.yaml out=runs/replay episodes=2
    """
    from robopolicy.pipeline import replay_run

    print("\n".join(replay_run(cfg)))


def data_info(cfg: dict[str, Any]) -> None:
    """What a dataset holds: keys, sizes, outcomes, ranges of the drawn parameters, where it comes from.

    robopolicy data info path=runs/data/wide
    """
    from robopolicy.data.manage import describe

    print("\n".join(describe(cfg["path"])))


def data_check(cfg: dict[str, Any]) -> None:
    """Read every byte of a dataset and name all damaged, swapped and lost files; exit code 2 if there are any.

    robopolicy data check path=runs/data/wide
    """
    from robopolicy.data.episode_file import DatasetError
    from robopolicy.data.manage import check

    problems, count = check(cfg["path"], cfg["num_workers"])
    if problems:
        raise DatasetError("\n  ".join([f"{cfg['path']} has {len(problems)} damaged or lost files or parts:", *problems]))
    print(f"{cfg['path']}: every byte of {count} episodes is as it was written")


def data_merge(cfg: dict[str, Any]) -> None:
    """One dataset of several with equal specs; files are hard-linked where possible.

    robopolicy data merge paths=[runs/data/wide,runs/data/more] out=runs/data/both
    robopolicy data merge paths=[runs/data/wide,runs/data/more] out=runs/data/both duplicates=refuse
    """
    from robopolicy.data.manage import merge

    print("\n".join(merge(**cfg)))


def data_split(cfg: dict[str, Any]) -> None:
    """Part a dataset by episode; no episode gets into two parts.

    robopolicy data split path=runs/data/wide out=runs/data/parts fractions='{train: 0.8, test: 0.2}' seed=0
    robopolicy data split path=runs/data/wide out=runs/data/parts fractions='{train: 0.5}' stratify=success
    robopolicy data split path=runs/data/mixed out=runs/data/by_source by=source where='{success: [true]}'
    """
    from robopolicy.data.manage import split

    print("\n".join(split(**cfg)))


def data_export(cfg: dict[str, Any]) -> None:
    """Write a dataset in another format: LeRobotDataset v3.0 (needs PyAV: pip install robopolicy[lerobot]).

    robopolicy data export path=runs/data/wide out=runs/lerobot/wide format=lerobot
    robopolicy data export path=runs/data/wide out=runs/lerobot/exact format=lerobot images=h264_lossless
    robopolicy data export path=runs/data/wide out=runs/lerobot/good format=lerobot where='{success: [true]}'
    """
    from robopolicy.data.lerobot import export_dataset

    if (name := cfg.pop("format")) != "lerobot":
        raise ValueError(f"format={name!r} does not work; {did_you_mean(name, ['lerobot'])}")
    print("\n".join(export_dataset(**cfg)))


def data_import(cfg: dict[str, Any]) -> None:
    """Make a dataset of one in another format: LeRobotDataset v3.0 or v2.1, robomimic HDF5, zarr replay buffer, RLDS, ROS bags.

    robopolicy data import path=runs/lerobot/wide out=runs/data/wide
    robopolicy data import path=lift/ph/image.hdf5 out=runs/data/lift format=robomimic episodes=50
    robopolicy data import path=pusht_cchi_v7_replay.zarr out=runs/data/pusht fps=10 instruction="push the T"
    robopolicy data import path=bridge/1.0.0 out=runs/data/bridge fps=5 keys='{observation.images.front: observation/image_0}'
    robopolicy data import path=bags/ out=runs/data/real format=rosbag mapping=assets/ros/lift.yaml fps=20
    """
    from robopolicy.pipeline import import_run

    print("\n".join(import_run(**cfg)))


def view(cfg: dict[str, Any]) -> None:
    """Show randomised worlds, or the episodes of a dataset: a contact sheet, a video and a page.

    robopolicy view randomization=wide out=runs/view
    robopolicy view randomization=wide kinds=[rgb,depth,segmentation] worlds=6 episode=true
    robopolicy view checkpoint=runs/wide randomization=held_out twin=true
    robopolicy view path=runs/data/wide episode=3
    """
    from robopolicy.pipeline import view_run

    print(f"Page: {view_run(cfg)}")


def demo(cfg: dict[str, Any]) -> None:
    """The whole pipeline on a laptop: collect, train, steer, rank, check in the held-out simulator, report.

    robopolicy demo
    robopolicy demo out=runs/demo2 seed=1 evaluate.episodes=100
    robopolicy demo debug=smoke
    """
    from robopolicy.demo import run_demo

    print("\n".join(run_demo(cfg)))


_DATA = (data_info, data_check, data_merge, data_split, data_export, data_import)
_RANK = (rank, rank_suite, rank_backtest, rank_next_real, rank_ingest_real, rank_report, rank_diff, rank_replay)
_VERBS: tuple[Callable[[dict[str, Any]], int | None], ...] = (
    *(collect, train, branch, evaluate),
    *_RANK,
    *(deploy, replay, *_DATA, view, demo),
)
VERBS = {verb.__name__.replace("_", " ", 1).replace("_", "-"): verb for verb in _VERBS}
ALIASES = {"rank run": "rank"}


def _usage(group: str = "") -> str:
    width = max(map(len, VERBS)) + 2
    chosen = {name: verb for name, verb in VERBS.items() if name.startswith(group)}
    verbs = [f"  {name:{width}}{(verb.__doc__ or '').splitlines()[0]}" for name, verb in chosen.items()]
    last = "robopolicy <verb> --help shows examples and settings."
    return "\n".join(["usage: robopolicy <verb> key=value ...", "", *verbs, "", last])


def _split_verb(words: list[str]) -> tuple[str, list[str]]:
    """The verb that a command line starts with, of one word or two, and its arguments."""
    two = " ".join(words[:2])
    if two in VERBS or two in ALIASES:
        return ALIASES.get(two, two), words[2:]
    subs = [name.partition(" ")[2] for name in VERBS if name.startswith(f"{words[0]} ")]
    odd = bool(subs) and len(words) > 1 and "=" not in words[1] and not words[1].startswith("-")
    if words[0] in VERBS and not odd:
        return words[0], words[1:]
    if not subs:
        raise ValueError(f"no verb {words[0]!r}; {did_you_mean(words[0], [name.split()[0] for name in VERBS])}")
    given = [word for word in words[1:2] if "=" not in word]
    hint = did_you_mean(given[0], subs) if given else f"available: {', '.join(subs)}"
    raise ValueError(f"{words[0]!r} needs a second word{', not ' + repr(given[0]) if given else ''}; {hint}")


def _verb_help(name: str) -> str:
    path = conf_dir() / f"{_config_name(name)}.yaml"
    first, _, examples = (VERBS[name].__doc__ or "").partition("\n")
    used = {str(key).split()[-1] for entry in OmegaConf.load(path).defaults if isinstance(entry, DictConfig) for key in entry}
    groups = sorted(f.name for f in conf_dir().iterdir() if f.is_dir() and f.name in used)
    options = [f"  {group}: {', '.join(sorted(p.stem for p in (conf_dir() / group).glob('*.yaml')))}" for group in groups]
    subs = [f"  {verb:20}{(VERBS[verb].__doc__ or '').splitlines()[0]}" for verb in VERBS if verb.startswith(f"{name} ")]
    settings = OmegaConf.to_yaml(compose(_config_name(name)), resolve=False)
    examples = "\n".join("  " + line.strip() for line in examples.strip().splitlines())
    parts = [
        first,
        "Examples:\n" + examples,
        *(["Further verbs:\n" + "\n".join(subs)] if subs else []),
        *(["Groups (group=option):\n" + "\n".join(options)] if options else []),
        "Settings (key=value):\n" + settings,
    ]
    return "\n\n".join(parts) + "\nAdd -m to sweep over comma-separated values; --cfg job shows the composed settings."


def _config_name(verb: str) -> str:
    return verb.replace(" ", "_").replace("-", "_")


def _run(name: str, arguments: list[str]) -> int:
    """Run a verb, several times with -m; the highest exit code."""
    failures: list[Exception] = []
    codes: list[int] = []

    def job(cfg: DictConfig) -> None:
        try:
            codes.append(VERBS[name](to_plain(cfg)) or 0)
        except (ValueError, OSError) as error:  # kept from Hydra, which would print more than the error
            failures.append(error)

    overrides = [argument for argument in arguments if not argument.startswith("-")]
    if len(overrides) == len(arguments):
        compose(_config_name(name), overrides)  # a mistake in them is explained better here than by Hydra
    sys.argv = [f"robopolicy {name}", *arguments]
    hydra.main(config_path=str(conf_dir()), config_name=_config_name(name), version_base="1.3")(job)()
    if failures:
        raise failures[0]
    return max(codes, default=0)


def main() -> None:
    """Entry point. Exit codes: 0 done, 2 a mistake in what was given or a failure, 130 interrupted.

    `rank` has further ones: 1 its gate failed, 3 its gate is inconclusive, 4 inputs that would make it meaningless.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here instead of being printed by Hydra
    words = sys.argv[1:] or ["--help"]
    group = "" if words[0] in ("-h", "--help") else f"{words[0]} "
    if not group or (words[1:] in (["-h"], ["--help"]) and words[0] not in VERBS and any(v.startswith(group) for v in VERBS)):
        print(_usage(group))
        return
    try:
        name, arguments = _split_verb(words)
        if {"-h", "--help"} & set(arguments):
            print(_verb_help(name))
            return
        code = _run(name, arguments)
    except KeyboardInterrupt as interrupt:
        print(f"\n{interrupt}" if str(interrupt) else "\ninterrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", USAGE_ERROR))
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {explain(error, keys_of(compose(_config_name(name))))}", file=sys.stderr)
        sys.exit(USAGE_ERROR)
    except Exception:
        traceback.print_exc()
        sys.exit(USAGE_ERROR)
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
