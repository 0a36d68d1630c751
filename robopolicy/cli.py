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
    robopolicy collect path=runs/data/tried episodes.expert=0 episodes.rollout=100 policy=runs/wide levels=[0,1]
    """
    from robopolicy.data.measures import measures, table
    from robopolicy.pipeline import collect_run

    keys = ("path", "task", "randomization", "episodes", "seed", "twin", "disturbance", "num_workers", "policy", "levels")
    store = collect_run(**{key: cfg[key] for key in (*keys, "executor")})
    print(f"{len(store)} episodes, {int(store.lengths.sum())} steps, in {cfg['path']}")
    print("\n".join(table(measures(store))))


def train(cfg: dict[str, Any]) -> None:
    """Train a policy, or a critic with critic=success, on a dataset.

    robopolicy train inputs=points data.path=runs/data/wide run_dir=runs/wide train.steps=4000
    robopolicy train critic=success inputs=points data.path=runs/data/mixed run_dir=runs/critic train.steps=2000
    robopolicy train policy=carp,bc inputs=points data.path=runs/data/wide train.seed=0,1 -m
    """
    from robopolicy.pipeline import train_run

    run_dir = cfg.pop("run_dir") or _default_run_dir()
    checkpoints = train_run(cfg, run_dir)
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
    robopolicy evaluate checkpoint=runs/wide/checkpoints/step_004000 steer.critic=runs/critic/checkpoints/step_002000
    """
    from robopolicy.pipeline import evaluate_run

    print("\n".join(evaluate_run(cfg)))


def rank(cfg: dict[str, Any]) -> None:
    """Order checkpoints before any real run: simulated success combined with out-of-distribution detection (VSDR).

    robopolicy rank pool=[runs/none,runs/wide] target=runs/data/target out=runs/rank
    robopolicy rank pool=[runs/none,runs/wide] target=runs/data/target outcomes=runs/outcomes.parquet
    robopolicy rank pool=scores.parquet features=features/ detector=knn combiner=robust_z
    """
    from robopolicy.pipeline import rank_pool

    print("\n".join(rank_pool(cfg)))


def deploy(cfg: dict[str, Any]) -> None:
    """Serve a checkpoint on a local socket, for tools/ros_infer.py or any other client.

    robopolicy deploy checkpoint=runs/wide/checkpoints/step_004000
    robopolicy deploy checkpoint=runs/wide/checkpoints/step_004000 address=ipc:///tmp/robopolicy.sock
    robopolicy deploy checkpoint=runs/wide/checkpoints/step_004000 steer.critic=runs/critic/checkpoints/step_002000
    """
    from robopolicy.pipeline import deploy_policy

    deploy_policy(cfg)


def data(cfg: dict[str, Any]) -> None:
    """Describe a dataset and read all of it once, so that damage shows.

    robopolicy data path=runs/data/wide
    """
    from robopolicy.pipeline import describe_dataset

    print("\n".join(describe_dataset(cfg["path"])))


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


_VERBS = (collect, train, evaluate, rank, deploy, data, view, demo)
VERBS: dict[str, Callable[[dict[str, Any]], None]] = {verb.__name__: verb for verb in _VERBS}


def _usage() -> str:
    verbs = [f"  {name:9}{(verb.__doc__ or '').splitlines()[0]}" for name, verb in VERBS.items()]
    last = "robopolicy <verb> --help shows examples and settings."
    return "\n".join(["usage: robopolicy <verb> key=value ...", "", *verbs, "", last])


def _verb_help(name: str) -> str:
    first, _, examples = (VERBS[name].__doc__ or "").partition("\n")
    groups = sorted(f.name for f in conf_dir().iterdir() if f.is_dir())
    options = [f"  {group}: {', '.join(sorted(p.stem for p in (conf_dir() / group).glob('*.yaml')))}" for group in groups]
    settings = OmegaConf.to_yaml(compose(name), resolve=False)
    examples = "\n".join("  " + line.strip() for line in examples.strip().splitlines())
    parts = [
        first,
        "Examples:\n" + examples,
        "Groups (group=option):\n" + "\n".join(options),
        "Settings (key=value):\n" + settings,
    ]
    return "\n\n".join(parts) + "\nAdd -m to sweep over comma-separated values; --cfg job shows the composed settings."


def _run(name: str, arguments: list[str]) -> None:
    failures: list[Exception] = []

    def job(cfg: DictConfig) -> None:
        try:
            VERBS[name](to_plain(cfg))
        except (ValueError, OSError) as error:  # kept from Hydra, which would print more than the error
            failures.append(error)

    overrides = [argument for argument in arguments if not argument.startswith("-")]
    if len(overrides) == len(arguments):
        compose(name, overrides)  # a mistake in them is explained better here than by Hydra
    sys.argv = [f"robopolicy {name}", *arguments]
    hydra.main(config_path=str(conf_dir()), config_name=name, version_base="1.3")(job)()
    if failures:
        raise failures[0]


def main() -> None:
    """Entry point. Exit codes: 0 done, 2 a mistake in what was given or a failure, 130 interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here instead of being printed by Hydra
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(_usage())
        return
    try:
        if name not in VERBS:
            raise ValueError(f"no verb {name!r}; {did_you_mean(name, VERBS)}")
        if {"-h", "--help"} & set(arguments):
            print(_verb_help(name))
            return
        _run(name, arguments)
    except KeyboardInterrupt as interrupt:
        print(f"\n{interrupt}" if str(interrupt) else "\ninterrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USAGE_ERROR)
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {explain(error, keys_of(compose(name)))}", file=sys.stderr)
        sys.exit(USAGE_ERROR)
    except Exception:
        traceback.print_exc()
        sys.exit(USAGE_ERROR)


if __name__ == "__main__":
    main()
