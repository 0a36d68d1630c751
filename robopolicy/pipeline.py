"""The verbs as functions of plain settings: collect, train, branch, evaluate, view, deploy. Ranking: selection/."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from robopolicy import config
from robopolicy.checkpoint import CheckpointError, list_checkpoints
from robopolicy.data.actors import Actor, scripted_actor
from robopolicy.data.collect import FINAL, collect, fault_lines
from robopolicy.data.episodes import EpisodeStore
from robopolicy.evaluation.rollout import (
    Arm,
    PolicyActor,
    Suite,
    arm_policy,
    evaluate,
    exploring_actor,
    observing,
    success_by_arm,
    write_table,
)
from robopolicy.executor import Executor
from robopolicy.policies.exported import ExportedPolicy
from robopolicy.policies.load import identity, load_policy
from robopolicy.policies.served import ServedPolicy, is_served
from robopolicy.spec import FAULT, TASK, Policy, did_you_mean

logger = logging.getLogger(__name__)

BACKENDS = ("torch", "onnx")  # what computes a deployed policy
ROLLOUT = "rollout"  # behaviour of episodes that a policy played


def collect_run(
    path: str | Path,
    task: Mapping[str, Any],
    randomization: Any,
    episodes: Mapping[str, int],
    seed: int,
    twin: bool = False,
    disturbance: float = 0.0,
    num_workers: int | None = None,
    title: str = "collect",
    checkpoint: str | Path | None = None,
    levels: Sequence[float] | None = None,
    executor: Mapping[str, Any] | None = None,
    perturb: Mapping[str, Any] | None = None,
) -> EpisodeStore:
    """Collect episodes of a task (conf/task) under a randomisation (preset name or mapping) into the dataset at `path`.

    checkpoint: whose sampled actions make the episodes of behaviour "rollout". perturb: keyword arguments of Perturbed for it.
    executor: a node of conf/executor.
    """
    if not isinstance(episodes, Mapping):
        raise config.ConfigError(f"episodes={episodes!r} does not work: give numbers by behaviour, such as episodes.expert=100")
    pushes = config.number("disturbance", disturbance)
    env_id, env_kwargs = task_env(task, randomization, twin)
    env_kwargs["nominal"] = {**env_kwargs.get("nominal", {}), "robot.disturbance": pushes}
    options: dict[str, Any] = {"levels": levels, "executor": make_executor(executor)}
    if checkpoint:
        arm = replace(find_checkpoints(checkpoint)[-1], perturb=_perturbation(perturb, "perturb"))
        acts = identity(arm.checkpoint) + (json.dumps(dict(arm.perturb), sort_keys=True) if arm.perturb else "")
        options |= {"make_actor": partial(_actor, arm=arm), "actor_id": acts}
    elif episodes.get(ROLLOUT):
        raise ValueError(f"episodes.{ROLLOUT}={episodes[ROLLOUT]} needs a policy: give checkpoint=CHECKPOINT")
    return collect(path, env_id, env_kwargs, episodes, seed, num_workers, title, **options)


def make_executor(node: Mapping[str, Any] | None) -> Executor | None:
    """The executor that a node of conf/executor describes; None = the default one."""
    return config.build(node, within="robopolicy.executor") if node else None


def _actor(behaviour: str, arm: Arm) -> Actor:
    return exploring_actor(arm) if behaviour == ROLLOUT else scripted_actor(behaviour)


def task_env(task: Mapping[str, Any], randomization: Any, twin: bool = False) -> tuple[str, dict[str, Any]]:
    """The gymnasium id and keyword arguments of a task's environment, or of its twin.

    Raises:
        ValueError: settings that cannot work, before any work starts.
    """
    from robopolicy.sim.env import check_settings

    if config.flag("twin", twin) and not task.get("twin_id"):
        raise ValueError(f"twin=true: {task['env_id']} has no twin in the held-out simulator")
    env_id, env_kwargs = task["twin_id" if twin else "env_id"], {**task["env"], "randomization": randomization}
    for name in {"image_size", "num_points", "max_episode_steps"} & set(env_kwargs):
        config.whole(f"task.env.{name}", env_kwargs[name], 1)
    if "control_hz" in env_kwargs and config.number("task.env.control_hz", env_kwargs["control_hz"]) <= 0:
        raise config.ConfigError(f"task.env.control_hz={env_kwargs['control_hz']} does not work: give a rate above 0 (Hz)")
    if env_kwargs.get("observation") is not None:
        config.texts("task.env.observation", env_kwargs["observation"])
    check_settings(env_id, env_kwargs)
    return env_id, env_kwargs


def train_run(settings: Mapping[str, Any], run_dir: str | Path) -> list[Path]:
    """Train the policy (where `critic` is set the critic, where `rl` is both) of a resolved config; its checkpoints."""
    if settings.get("rl"):
        from robopolicy.reinforce import reinforce_run

        return reinforce_run(settings, *task_env(settings["task"], settings.get("randomization", "none")), run_dir)
    from robopolicy.data.branches import Branches
    from robopolicy.data.windows import MEMORY_GB
    from robopolicy.evaluation.critic_quality import check_branches, check_unseen
    from robopolicy.train import sources
    from robopolicy.train.loop import train
    from robopolicy.train.plan import seeded

    kind = "critic" if settings.get("critic") else "policy"
    train_config = config.read(config.TrainConfig, {**settings["train"], "logger": settings.get("logger", "jsonl")})
    options = settings["data"]
    if not options.get("path"):
        raise config.ConfigError("missing 'data.path': give data.path=VALUE")
    if not isinstance(options["path"], str | Path):
        raise config.ConfigError(
            f"data.path={options['path']!r} does not work: give one folder; data merge makes one of several"
        )
    memory_gb = options.get("memory_gb", MEMORY_GB)
    if not isinstance(memory_gb, int | float) or not memory_gb >= 0:
        raise config.ConfigError(f"data.memory_gb={memory_gb!r} does not work: give a number of at least 0")
    source = sources.source(options)
    with seeded(train_config.seed):
        module = config.build(
            settings[kind], observation=source.observation, action=source.spec.action, control_hz=source.spec.fps
        )
    if TASK not in module.spec.observation and len(source.observation[TASK].values) > 1:
        logger.warning(
            "the data has the tasks %s and the %s is not told which: add 'task' to inputs.observation_keys",
            ", ".join(source.observation[TASK].values),
            kind,
        )
    if kind == "critic" and options.get("branches"):
        judges = Branches.load(options["branches"])
        check_branches(module, judges, options)
        if isinstance(source, sources.Branched):
            check_unseen(source.branches, judges)
    windows = source.windows(module, options, train_config.seed)
    resolved = {key: value for key, value in settings.items() if key not in ("policy", "critic", "inputs", "run_dir")}
    resolved[kind] = settings[kind]
    resolved["data"] = {**options, "path": str(Path(options["path"]).resolve())}  # ranking looks there again
    found = train(module, windows, run_dir, config=resolved, settings=train_config, kind=kind, data_hash=source.hash)
    if kind == "critic" and options.get("branches"):
        judge_critics(found, options["branches"])
    return found


def find_checkpoints(paths: str | Path | Sequence[str | Path]) -> list[Arm]:
    """The checkpoints at `paths` (checkpoint folders, run folders, or folders of run folders), as arms to evaluate; behind
    them the policies of servers at tcp://HOST:PORT or ipc:///PATH, which are called what the server calls them.

    Raises:
        CheckpointError: a path with no checkpoint in it.
        deploy.client.PolicyTimeout: nobody answers at an address.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    found = [folder for path in given if not is_served(path) for folder in _checkpoints_under(Path(path))]
    runs = {folder: folder.parent.parent if folder.parent.name == "checkpoints" else folder for folder in found}
    short = {run: run.name for run in runs.values()}
    if len(set(short.values())) < len(short):  # runs of the same name in different places
        short = {run: str(run) for run in short}
    names = [(folder, short[runs[folder]], _step(folder)) for folder in found]
    arms = [Arm(f"{run}@{step}", str(folder), run=run, step=step) for folder, run, step in names]
    return [*arms, *(_served_arm(str(path)) for path in given if is_served(path))]


def _served_arm(address: str) -> Arm:
    with closing(ServedPolicy(address)) as policy:
        return Arm(policy.name, address, run=policy.name)


def _step(folder: Path) -> int:
    """The training step in a checkpoint folder's name; 0 when somebody renamed it."""
    number = folder.name.removeprefix("step_")
    return int(number) if number.isdecimal() else 0


def _checkpoints_under(path: Path) -> Iterator[Path]:
    if path.name == "model":
        path = path.resolve().parent
    if (path / "model").is_dir():
        yield path.resolve()
        return
    folders = list_checkpoints(path) if path.is_dir() else []
    if path.is_dir() and not folders:
        folders = [folder for run in sorted(path.iterdir()) if run.is_dir() for folder in list_checkpoints(run)]
    if not folders:
        raise CheckpointError(f"no checkpoint at {path}: give a folder step_*, a run folder, or a folder of runs")
    yield from (folder.resolve() for folder in folders)


def judge_critics(checkpoints: Sequence[Path], branches: str | Path) -> Path:
    """Measure a run's critics on branched rollouts, write quality.json into its folder, and name the best checkpoint."""
    from robopolicy.data.branches import Branches
    from robopolicy.evaluation import critic_quality

    file = checkpoints[0].parent.parent / critic_quality.FILE
    found = critic_quality.judge(checkpoints, Branches.load(branches), file)
    for name, each in found.items():
        logger.info(
            "%s: correlation within states %.3f, of ranks %.3f +- %.3f (%d states), over all %.3f, calibration error %.3f",
            name,
            each.within,
            each.spearman,
            each.spearman_error,
            each.num_states,
            each.overall,
            each.error,
        )
    return critic_quality.best_checkpoint(checkpoints, file)


def chosen_critic(path: str | Path) -> Path:
    """The critic's checkpoint at `path`: of a run, the one that told branched chunks apart best, else the last."""
    from robopolicy.evaluation import critic_quality

    if is_served(path):
        raise ValueError(f"{path} is the address of a policy; a critic is read from its checkpoint: give a run")
    arms = find_checkpoints(path)
    if len(runs := sorted({str(arm.run) for arm in arms})) > 1:
        raise ValueError(f"{path} holds {len(runs)} runs ({', '.join(runs)}): give one of them, or a checkpoint")
    return critic_quality.best_checkpoint([Path(arm.checkpoint) for arm in arms], Path(path) / critic_quality.FILE)


def _proven_gain(arm: Arm) -> float:
    """steer.min_gain of a steered arm: 0 where paired episodes proved a gain, NEVER where they did not, else by branches."""
    from robopolicy.evaluation import critic_quality, proof

    critic = Path(str(arm.critic))
    proven, differences = proof.recorded(arm)
    if proven:
        return 0.0
    if differences:
        logger.warning("%s was tried in other settings, which prove nothing here: %s", critic, "; ".join(differences))
    file = critic.parent.parent / critic_quality.FILE
    never = critic_quality.NEVER
    found = never if proven is False else critic_quality.measured_gain(critic, file, identity(arm.checkpoint))
    if found == never:
        rule, vetoes = arm.steer.get("rule", "lcb"), " but for vetoes" if arm.safety else ""
        logger.warning(
            "%s was not shown to know more than the policy: %s",
            critic,
            f"steering leaves the policy alone{vetoes}; prove it with paired episodes in the worlds of training (evaluate "
            "steer.prove=true), or set steer.min_gain=0 to follow it all the same"
            if rule == "lcb"
            else f"rule={rule} has no gate and steers all the same",
        )
    return found


def branch_run(settings: Mapping[str, Any]) -> list[str]:
    """The verb branch: try candidates of a checkpoint in states of its own episodes, and write what became of each.

    Finished episodes are kept in `out`.parts: the same command goes on where it was stopped.

    Raises:
        ValueError: numbers that cannot work, or something at `out`, before any episode is played.
    """
    from robopolicy.evaluation.branches import Plan, branch, differing
    from robopolicy.sim.unsafe import Limits

    arm = _one_checkpoint(settings["checkpoint"])
    arm = replace(arm, instruction=settings["instruction"], perturb=_perturbation(settings["perturb"], "perturb"))
    plan = Plan(
        config.whole("states", settings["states"], 1),
        config.whole("candidates", settings["candidates"], 1),
        config.whole("rollouts", settings["rollouts"], 1),
        tuple(config.texts("observation", settings["observation"] or [])),
        None if settings["limits"] is None else config.read(Limits, settings["limits"], "limits"),
    )
    out = Path(settings["out"])
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"out={out} is there already: remove it, or give a new folder")
    suite = _suite(settings)
    facts: dict[str, Any] = {"checkpoint": arm.name, "checkpoint_sha": identity(arm.checkpoint), "env_id": suite.env_id}
    facts |= {"env_kwargs": dict(suite.env_kwargs), "seed": settings["seed"]}
    unfinished = out.with_name(f"{out.name}.parts")
    found = branch(arm, suite, plan, settings["num_workers"], make_executor(settings["executor"]), facts, unfinished)
    found.save(out)
    shutil.rmtree(unfinished)
    worth, success = found.values(), found.success.mean(2)
    events = ", ".join(f"{name} {found.unsafe([name]).mean():.1%}" for name in found.events)
    near, far = differing(found)
    told = f"; of two candidates one alone succeeds in {near:.1%} of the nearest pairs (chance), in {far:.1%} of the farthest"
    told = "" if success.shape[1] == 1 else told
    rates = success[:, 0].mean(), success.mean(), success.max(1).mean()
    return [
        f"{len(found)} states x {success.shape[1]} candidates x {found.success.shape[2]} continuations, in {out}",
        "success of candidate 0 {:.1%}, of all {:.1%}, of the best {:.1%}".format(*rates),
        f"candidates differ in {(worth.std(1) > 0).mean():.0%} of the states{told}",
        f"unsafe: {events or 'nothing was watched for'}",
    ]


def _one_checkpoint(path: str | Path) -> Arm:
    arms = find_checkpoints(path)
    if len(arms) != 1:
        raise ValueError(f"{path} holds {len(arms)} checkpoints: give one, e.g. {arms[-1].checkpoint}")
    return arms[0]


def steered(arm: Arm, steer: Mapping[str, Any]) -> Arm:
    """The arm with value-guided steering, or as it is without a critic.

    steer: `critic` (its checkpoint or run); perhaps `safety` (the same), `perturb` (keyword arguments of Perturbed for the
    candidates), `prove` (follow the critic, to prove it), and keyword arguments of SteeredPolicy.

    Raises:
        ValueError: settings of steering without a critic.
    """
    if not steer.get("critic"):
        usual = {field.name: field.default for field in fields(config.SteerConfig)}
        alone = [name for name in ("safety", "perturb", "prove") if steer.get(name)]
        alone += [name for name, value in usual.items() if steer.get(name, value) != value]
        if alone:
            raise ValueError(f"steer.{alone[0]}={steer[alone[0]]} does nothing without a critic: give steer.critic=RUN")
        return arm
    options = {key: value for key, value in steer.items() if key not in ("critic", "safety", "perturb", "prove")}
    config.read(config.SteerConfig, options, "steer")
    critic, safety = (_chosen(steer.get(key), f"steer.{key}") for key in ("critic", "safety"))
    perturb = _perturbation(steer.get("perturb"), "steer.perturb")
    found = replace(arm, name=f"{arm.name}+steer", critic=critic, safety=safety, perturb=perturb, steer=options)
    if steer.get("prove"):
        return replace(found, steer={**options, "min_gain": 0.0})
    if options.get("min_gain", 0.0) is None:
        return replace(found, steer={**options, "min_gain": _proven_gain(found)})
    return found


def _chosen(path: Any, name: str) -> str | None:
    if not path:
        return None
    if not isinstance(path, str | Path):
        raise config.ConfigError(f"{name}={path!r} does not work: give one run or checkpoint")
    return str(chosen_critic(path))


def _perturbation(node: Any, name: str) -> dict[str, Any]:
    """Keyword arguments of Perturbed from a setting, null = none."""
    if node is None or node == {}:
        return {}
    if not isinstance(node, Mapping):
        raise config.ConfigError(f"{name}={node!r} does not work: give {name}='{{std: 0.2, share: 0.5}}'")
    config.read(config.PerturbConfig, node, name)
    return dict(node)


def evaluate_arms(
    arms: Sequence[Arm],
    suite: Suite,
    out: str | Path | None,
    num_workers: int | None,
    title: str = "evaluate",
    executor: Executor | None = None,
) -> pa.Table:
    """The score table of `arms` on `suite`, written to `out` when given."""
    table = evaluate(arms, suite, num_workers, title, executor)
    if out is not None:
        write_table(out, table)
    return table


def evaluate_run(settings: Mapping[str, Any]) -> list[str]:
    """The verb evaluate: success of every checkpoint with its interval; the paired difference where a critic steers."""
    from robopolicy.evaluation import proof
    from robopolicy.ranking.intervals import wilson
    from robopolicy.ranking.rank import compare

    arms = [replace(arm, instruction=settings["instruction"]) for arm in find_checkpoints(settings["checkpoint"])]
    steer, suite = settings["steer"], _suite(settings)
    pairs = [(arm, other) for arm in arms if (other := steered(arm, steer)) is not arm]
    for _, other in pairs:
        arm_policy(other)  # what does not fit is refused before anything is played
        played = proof.seen(other, suite)  # or an error, where the record cannot be read
        known = 0 if steer["prove"] else played
        if known:
            logger.warning(
                "%d of the %d worlds were played to prove %s: its gain in them is no news; give another seed",
                known,
                len(suite.seeds),
                other.name,
            )
    options: dict[str, Any] = {"num_workers": settings["num_workers"], "executor": make_executor(settings["executor"])}
    lines = [_draw_decision(pairs, suite, settings["picture"])] if settings["picture"]["file"] else []
    table = evaluate_arms([*arms, *(other for _, other in pairs)], suite, settings["out"], **options)
    for name, success in success_by_arm(table).items():
        low, high = wilson(success.sum(), len(success))
        lines.append(
            f"{name}: success {success.mean():.1%} "
            f"(95 % interval {float(low):.1%} to {float(high):.1%}, {len(success)} episodes)"
        )
        lines += [f"  {line}" for line in _endings(table.filter(pc.equal(table["checkpoint"], name)))]
    for base, other in pairs:
        found = compare(table, base.name, other.name, seed=settings["seed"])
        least, most = found.difference_interval
        lines.append(
            f"{other.name} against {base.name}: {found.difference:+.1%} ({least:+.1%} to {most:+.1%}), "
            f"exact McNemar p = {'undefined' if found.p_value is None else format(found.p_value, '.3g')}"
        )
        if steer["prove"]:
            outcomes = {"only_base": found.only_base, "only_steered": found.only_other, "p_value": found.p_value}
            lines.append(_recorded(other, proof.worlds(suite, settings["seed"]), outcomes))
    return lines


def _endings(rows: pa.Table) -> list[str]:
    """What the episodes of an arm came to besides success."""
    means = [f"{name} {pc.mean(rows[name]).as_py():.3g}" for name in FINAL if name in rows.column_names]
    return [*(["mean " + ", ".join(means)] if means else []), *fault_lines(rows[FAULT].to_pylist())]


def _recorded(arm: Arm, played: Mapping[str, Any], outcomes: Mapping[str, Any]) -> str:
    from robopolicy.evaluation import proof

    try:
        attempt = proof.record(arm, played, outcomes)
    except OSError as error:  # the episodes are worth more than the file
        return f"{arm.name}: this could not be kept beside the critic, so the gate does not know of it: {error}"
    verdict, number = "proven" if attempt["proven"] else "not proven", attempt["attempt"]
    asked = f"one-sided p of at most {proof.level(number):.3g} asked for"
    return f"{arm.name}: {verdict} (attempt {number}, {asked}), written for steer.min_gain=null"


def _draw_decision(pairs: Sequence[tuple[Arm, Arm]], suite: Suite, picture: Mapping[str, Any]) -> str:
    from robopolicy.evaluation.steering_view import draw_decision

    if len(pairs) != 1 or not 0 <= picture["episode"] < len(suite.seeds):
        raise ValueError(
            f"picture.file shows one steered policy, of {len(pairs)} given, in one of {len(suite.seeds)} episodes: give "
            f"steer.critic, one checkpoint, and picture.episode={picture['episode']} in 0..{len(suite.seeds) - 1}"
        )
    seed = suite.seeds[picture["episode"]]
    return f"picture: {draw_decision(pairs[0][1], suite, seed, picture['decision'], picture['file'])}"


def _suite(settings: Mapping[str, Any]) -> Suite:
    episodes, seed, twin = (
        config.whole("episodes", settings["episodes"], 1),
        config.whole("seed", settings["seed"]),
        settings["twin"],
    )
    config.workers(settings["num_workers"])
    env_id, env_kwargs = task_env(settings["task"], settings["randomization"], twin)
    return Suite.draw(env_id, env_id, env_kwargs, episodes, seed, "target" if twin else "select")


def import_run(path: str | Path, out: str | Path, mapping: str | Path | None = None, **options: Any) -> list[str]:
    """The verb data import (data.importers.import_dataset); mapping: of the topics of ROS bags."""
    from robopolicy.data.importers.run import detect, import_dataset
    from robopolicy.deploy.ros_bag import BagSource

    if mapping is not None and detect(Path(path)) != "rosbag":
        raise ValueError(f"mapping={mapping} says what the topics of a ROS bag are, and {path} is none")
    return import_dataset(path, out, bags=partial(BagSource, mapping=mapping, fps=options.get("fps")), **options)


def view_run(settings: Mapping[str, Any]) -> Path:
    """The verb view: a page that shows worlds of a task, or the episodes of a dataset; its file."""
    from robopolicy.evaluation.view import view_dataset, view_worlds

    out, episode, seen = Path(settings["out"]), settings["episode"], settings["checkpoint"]
    for name, least in (("worlds", 1), ("size", 1), ("seed", 0)):
        config.whole(name, settings[name], least)
    for name in ("cameras", "kinds"):
        if settings[name] is not None:
            config.texts(name, settings[name])
    if episode is not None and not isinstance(episode, bool):
        config.whole("episode", episode)
    if settings["path"]:
        if isinstance(episode, bool):
            raise ValueError(f"episode={str(episode).lower()} with path=: give the number of a recorded episode")
        return view_dataset(out, settings["path"], count=settings["worlds"], episode=episode).resolve()
    env_id, env_kwargs = task_env(settings["task"], settings["randomization"], settings["twin"])
    actor: Actor | None = scripted_actor("expert") if episode else None
    if seen:
        policy = arm_policy(find_checkpoints(seen)[-1])
        actor, env_kwargs = PolicyActor(policy), observing(env_kwargs, policy)
    keys = ("seed", "cameras", "kinds", "size")
    options = {key: settings[key] for key in keys}
    return view_worlds(out, env_id, env_kwargs, count=settings["worlds"], actor=actor, **options).resolve()


def deploy_policy(settings: Mapping[str, Any]) -> None:
    """The verb deploy: serve a checkpoint, steered where a critic is given, until interrupted."""
    from robopolicy.deploy.server import serve

    policy, options = deployment(settings)
    serve(policy, settings["address"], **options)


def deployment(settings: Mapping[str, Any]) -> tuple[Policy, dict[str, Any]]:
    """The policy that conf/deploy.yaml asks for, and the other arguments of deploy.server.serve.

    Raises:
        ValueError: no token for an address that needs one, no such checkpoint, backend or monitor, or they do not fit.
    """
    from robopolicy.deploy.server import check_access
    from robopolicy.monitoring import encoder_of, make_monitor

    check_access(settings["address"], settings["token"])
    arm = _one_checkpoint(settings["checkpoint"])
    arm = steered(arm, settings["steer"])
    policy = deployed(arm, settings["backend"])
    options = {key: settings[key] for key in ("token", "max_batch", "max_samples")}
    if any(settings["monitor"][key] for key in ("file", "data")):
        encoder, options["features"] = encoder_of(policy)
        options["monitor"] = make_monitor(encoder, settings["monitor"])
    return policy, {**options, "name": f"{arm.name} {identity(arm.checkpoint)[:12]}"}


def replay_run(settings: Mapping[str, Any]) -> list[str]:
    """The verb replay: a checkpoint over recorded episodes, open loop."""
    from robopolicy.deploy.ros_replay import replay

    arm = _one_checkpoint(settings["checkpoint"])
    options = {key: settings[key] for key in ("mapping", "episodes", "seed")}
    name = f"{arm.name} {identity(arm.checkpoint)[:12]}"
    return replay(Path(settings["bag"]), arm_policy(arm), Path(settings["out"]), name=name, **options)


def deployed(arm: Arm, backend: str) -> Policy:
    """The policy of an arm, computed by torch or, backend="onnx", by a graph.

    Raises:
        ValueError: no such backend, or this policy cannot have it.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}; {did_you_mean(backend, BACKENDS)}")
    if backend == "torch":
        return arm_policy(arm)
    if arm.critic is not None:
        raise ValueError("steer.critic scores several candidates, which only torch computes: leave backend=torch")
    if is_served(arm.checkpoint):
        raise ValueError(f"{arm.checkpoint} computes its policy itself: leave backend=torch")
    return ExportedPolicy(load_policy(arm.checkpoint))
