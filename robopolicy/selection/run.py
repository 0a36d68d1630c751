"""The verb rank: from a pool of checkpoints, or from scores made elsewhere, to a verdict."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from robopolicy import checkpoint, pipeline
from robopolicy.evaluation.rollout import Arm
from robopolicy.ranking.detectors import Detection
from robopolicy.ranking.episode_table import check_episodes, is_episode_table, load_episodes, no_episodes, open_parquet, rows_of
from robopolicy.ranking.fresh import split_names, with_fresh
from robopolicy.ranking.gate import Rule, check_rules, read_rules
from robopolicy.ranking.looks import histogram
from robopolicy.ranking.rank import COMBINED, check_settings, check_terms, detect_pool, rank, rank_scores
from robopolicy.ranking.result import Ranking
from robopolicy.ranking.score_table import check_scores, read_table
from robopolicy.ranking.tables import RankingError, load_features
from robopolicy.selection import further, gallery
from robopolicy.selection.features import AUTO, LAYERS, features_file, named_data, pool_features, refuse_leaks, refuse_reference
from robopolicy.selection.pool import Work, confirm, expected, find_pool, play_pool, say_cost, with_identity, within_time
from robopolicy.selection.provenance import now, provenance
from robopolicy.selection.publish import Finished, publish, read_json
from robopolicy.selection.spending import Spending
from robopolicy.selection.suite import CONFIRM, SEALED, SELECT, FrozenSuite, read_suite
from robopolicy.selection.target import Target, open_target, prepare
from robopolicy.spec import did_you_mean

logger = logging.getLogger(__name__)

UNITS, FEATURES, TARGET, REFERENCE, SUITE = "units", "features", "target", "reference", "suite.yaml"
NUM_LISTED = 100  # checkpoints whose hash the provenance says
NUM_OPEN = 1_000_000  # episodes of a table that are sliced and kept; of larger ones those of the finalists are
DYNAMICS = "Gaps in dynamics"
NOT_SHOWN = {
    "A claim about the robot": "the order is a prediction from simulation and from the target's observations; it is checked by "
    "trials on the robot (robopolicy rank next-real, ingest-real)",
    DYNAMICS: "a detector on observations is blind to friction, latency and contact that differ on the target: "
    "also=[dynamics_gap] where the target has states and actions",
}
_Result = tuple[Ranking, pa.Table | None, dict[str, Any], dict[str, dict[str, Any]]]


def rank_verb(settings: Mapping[str, Any]) -> Finished:
    """Rank, and write everything about it to out. See conf/rank.yaml for the settings."""
    started = now()
    rules = read_rules(settings["gate"]) if settings["gate"] else []
    given = [key for key in ("pool", "scores") if settings[key]]
    if len(given) != 1:
        raise RankingError(
            "give pool=[checkpoints or run folders] to roll checkpoints out, or scores=table.csv (or .parquet) to rank scores"
            + (", not both" if given else "")
        )
    Spending.of(settings)
    _check_layer(settings)
    scores = settings["scores"] or _old_style(settings["pool"])
    found = _of_table(Path(scores), settings) if scores else _of_pool(settings, rules)
    if isinstance(found, Finished):
        return found
    ranking, episodes, context, about = found
    facts = {"inputs": ranking.inputs, "episodes": 0 if episodes is None else episodes.num_rows}
    facts |= {"checkpoints": {c.checkpoint: c.sha for c in ranking.checkpoints[:NUM_LISTED] if c.sha}}
    done = publish(
        settings["out"],
        ranking,
        episodes=episodes,
        rules=rules,
        baseline=settings["baseline"],
        about=about,
        context=context,
        provenance=provenance(settings, started, **facts),
    )
    if settings["wandb"]:
        log_to_wandb(ranking, Path(settings["out"]))
    return done


def _old_style(pool: Any) -> str | None:
    """A score table given as the pool."""
    return pool if isinstance(pool, str) and Path(pool).suffix in (".parquet", ".csv") else None


def _rank_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("detector", "combiner", "seed", "num_bootstrap", "k")
    weights = _weights(Path(settings["weights"])) if settings["weights"] else None
    return {**{key: settings[key] for key in keys}, "combined": settings["combine"], "weights": weights}


def _detected(
    settings: Mapping[str, Any], features: Mapping[str, Mapping[str, np.ndarray]], names: Sequence[str]
) -> dict[str, Detection]:
    return detect_pool(features, names, **{key: settings[key] for key in ("detector", "seed", "num_bootstrap")})


def _early(options: Mapping[str, Any]) -> dict[str, Any]:
    """The same ranking by what is known while rounds are played: simulated success and distance."""
    combined = [name for name in options["combined"] or () if name in COMBINED] or None
    weights = {name: weight for name, weight in (options["weights"] or {}).items() if name in COMBINED} or None
    combiner = options["combiner"] if weights or not options["weights"] else "rank_product"
    return {**options, "combined": combined, "weights": weights, "combiner": combiner}


def _check_layer(settings: Mapping[str, Any]) -> None:
    if settings["layer"] not in LAYERS:
        raise RankingError(f"layer={settings['layer']!r}; {did_you_mean(settings['layer'], LAYERS)}")
    if settings["layer"] != AUTO and not settings["target"]:
        raise RankingError(
            f"layer={settings['layer']} says where the detectors look in checkpoints: it needs pool= and target="
        )


def _reference(settings: Mapping[str, Any], target: Target | None, out: Path) -> Path | None:
    """Simulated episodes of whoever recorded the target, if they were given.

    Raises:
        RankingError: there is no target beside them, or they cannot be read or split. IntegrityError: see refuse_reference.
    """
    if not settings["reference"]:
        return None
    if target is None:
        raise RankingError("reference= says how whoever recorded target= moves: give target= too")
    path = prepare(settings["reference"], out / REFERENCE, fps=settings["target_fps"], keys=settings["target_keys"])
    refuse_reference(open_target(path), target)
    return path


def _weights(path: Path) -> dict[str, float]:
    """The Plackett-Luce weights of a back-test. Raises RankingError when it has none."""
    found = (read_json(path) or {}).get("plackett_luce", {})
    if "weights" not in found:
        why = found.get("not_computed", "it is no backtest.json")
        raise RankingError(f"weights={path}: {why}; give the backtest.json of `robopolicy rank backtest` over several domains")
    return dict(found["weights"])


def file_sha(path: str | Path) -> str:
    """sha256 (hex) of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of_table(path: Path, settings: Mapping[str, Any]) -> _Result:
    """Rank a table of scores or of episodes."""
    context: dict[str, Any] = {"not_computed": dict(NOT_SHOWN)}
    if settings["target"] or settings["reference"]:
        raise RankingError(
            "target= and reference= need checkpoints in pool=; beside a score table, give features=FOLDER or a column ood"
        )
    if settings["also"]:
        raise RankingError(f"also={list(settings['also'])} needs checkpoints in pool=; in a table, give a score a column")
    large = path.suffix == ".parquet"  # read only when it holds scores
    if large and not path.is_file():
        raise no_episodes(path)
    given = None if large else read_table(path)
    options = _rank_settings(settings)
    if not is_episode_table(open_parquet(path).schema_arrow.names if given is None else given.column_names):
        for key, remedy in (("outcomes", "a column real"), ("baseline", "episodes (parquet)")):
            if settings[key]:
                raise RankingError(f"{key}= is for checkpoints or episodes; beside a score table give {remedy} instead")
        table = check_scores(read_table(path) if given is None else given, path.name)
        features = _given_features(settings, table.policies)
        detected = _detected(settings, features, table.policies)
        ranking = rank_scores(table, features, detected=detected, **options)
        context["histograms"] = _histograms(ranking, detected)
        context["not_computed"] |= {
            "Slices, failures, training curves": "the scores come without episodes",
            "Finalists on fresh conditions": "the scores come without checkpoints; a selection flatters its own winner",
        }
        if not ranking.num_draws:
            context["not_computed"]["Intervals and P(best)"] = "the table does not say how many episodes a rate comes from"
        return with_identity(ranking, None, {"scores": file_sha(path)}), None, context, {}
    if not large:
        raise RankingError(f"{path}: give episodes as parquet; a CSV holds scores, one row a policy")
    ranked, fresh = split_names(path)
    features = _given_features(settings, _checkpoints_in(path) if settings["features"] else ())
    outcomes = load_episodes(settings["outcomes"]) if settings["outcomes"] else None
    detected = _detected(settings, features, list(features))
    ranking = rank(path, features, target_outcomes=outcomes, splits=ranked, detected=detected, **options)
    ranking = with_fresh(ranking, path, fresh, num_finalists=settings["finalists"], baseline=settings["baseline"])
    names = [line.checkpoint for line in ranking.checkpoints]
    many = open_parquet(path).metadata.num_rows > NUM_OPEN
    if many:
        kept = names[: settings["finalists"]] + [settings["baseline"]] * bool(settings["baseline"])
        context["not_computed"]["Parameters that make worlds hard, over the pool"] = (
            f"more than {NUM_OPEN} episodes: those of the finalists alone are kept and sliced"
        )
        episodes = rows_of(path, kept)
    else:
        episodes = load_episodes(path)
    context["histograms"] = _histograms(ranking, detected)
    inputs = {"scores": file_sha(path)} | ({"outcomes": file_sha(settings["outcomes"])} if settings["outcomes"] else {})
    return with_identity(ranking, None, inputs), episodes, context, {}


def _checkpoints_in(path: Path) -> list[str]:
    names: dict[str, None] = {}
    for batch in open_parquet(path).iter_batches(columns=["checkpoint"], use_threads=False):
        names |= dict.fromkeys(pc.unique(batch.column(0).cast(pa.string()).drop_null()).to_pylist())
    return list(names)


def _given_features(settings: Mapping[str, Any], names: Sequence[str]) -> dict[str, Mapping[str, np.ndarray]]:
    if not settings["features"]:
        return {}
    return {name: load_features(features_file(settings["features"], name)) for name in names}


def _histograms(ranking: Ranking, detected: Mapping[str, Detection]) -> list[dict[str, Any]]:
    """Of the first, and of the checkpoint that finds the target strangest."""
    seen = [line for line in ranking.checkpoints if line.ood is not None and line.checkpoint in detected]
    if not seen:
        return []
    strangest = max(seen, key=lambda line: line.ood or 0.0)
    names = dict.fromkeys((seen[0].checkpoint, strangest.checkpoint))
    return [h for name in names if (h := histogram(name, detected[name])) is not None]


def suite_of(settings: Mapping[str, Any]) -> FrozenSuite:
    """The suite of a file, or the one that task, randomization, sizes and seed describe."""
    if settings.get("suite"):
        return read_suite(settings["suite"])
    env_id, env_kwargs = pipeline.task_env(settings["task"], settings["randomization"])
    sizes = {SELECT: settings["episodes"], CONFIRM: settings["confirm"], SEALED: settings["sealed"]}
    horizon = int(env_kwargs.get("max_episode_steps") or settings["task"]["max_episode_steps"])
    return FrozenSuite.draw(env_id, env_id, env_kwargs, horizon, sizes, settings["seed"])


def _outcomes(settings: Mapping[str, Any], names: Sequence[str]) -> pa.Table | None:
    """What the checkpoints of these names really obtained, if that was given."""
    if not settings["outcomes"]:
        return None
    table = load_episodes(settings["outcomes"])
    for name in check_episodes(table, "outcomes").checkpoints:
        if name not in names:
            raise RankingError(f"outcomes has {name!r}, which is not in the pool; {did_you_mean(name, names)}")
    return table


def _check(settings: Mapping[str, Any], options: Mapping[str, Any], rules: Sequence[Rule], names: Sequence[str]) -> None:
    """Refuse what cannot work before anything is played. names: of the pool."""
    check_settings(*(settings[key] for key in ("detector", "combiner", "num_bootstrap", "k")))
    observed = ["ood"] * bool(settings["target"] or settings["features"])
    check_terms(settings["combiner"], options["combined"], options["weights"], ["sim", *observed, *settings["also"]])
    if settings["baseline"] and settings["baseline"] not in names:
        raise RankingError(f"baseline={settings['baseline']!r} is not in the pool; {did_you_mean(settings['baseline'], names)}")
    check_rules(rules, names, settings["baseline"])


def _of_pool(settings: Mapping[str, Any], rules: Sequence[Rule]) -> _Result | Finished:
    """Roll a pool out and rank it."""
    out = Path(settings["out"])
    spending = Spending.of(settings)
    further.check(settings)
    options = _rank_settings(settings)
    pool = find_pool(settings["pool"])
    names = [arm.name for arm in pool.arms]
    _check(settings, options, rules, names)
    outcomes = _outcomes(settings, names)
    suite = suite_of(settings)
    if spending.open_sealed and not suite.size(SEALED):
        raise RankingError("open_sealed=true and the suite has no split 'sealed': draw one with sealed=100, say")
    if spending.seconds is None:
        expected(len(pool), suite, spending)  # a budget that cannot work is refused before anything is written
    executor = pipeline.make_executor(settings["executor"])
    work = Work((out / UNITS).absolute(), settings["num_workers"], executor)
    path = target = None
    if settings["target"]:
        path = prepare(settings["target"], out / TARGET, fps=settings["target_fps"], keys=settings["target_keys"])
        target = open_target(path)
        refuse_leaks(pool.arms, target)
        for arm in pool.arms if not settings["features"] else ():
            named_data(arm)  # or an error, before anything is played
    reference = _reference(settings, target, out)
    spending = within_time(pool, suite, spending, work)
    cost = say_cost(pool, suite, spending, work)
    logger.info(cost)
    if settings["dry_run"]:
        return Finished([cost])
    suite.write(out / SUITE)
    features = _given_features(settings, names)
    if path is not None and not features:
        keys = {key: settings[key] for key in ("num_frames", "seed", "num_workers", "layer")}
        features = pool_features(
            pool.arms, path, folder=out / FEATURES, executor=executor, shas=pool.shas, reference=reference, **keys
        )
    detected = _detected(settings, features, names)
    options["detected"] = detected
    played = play_pool(pool, suite, spending, work, features, _early(options))
    more = further.further_scores(settings, pool, suite, played, target, path, reference, work)
    for name in settings["combine"] or ():
        if name in more.missing and name not in more.scores:
            raise RankingError(f"combine has {name!r}, which could not be computed: {more.missing[name]}")
    options |= {"further": more.scores}
    ranking = rank(played.select, features, target_outcomes=outcomes, dropped=played.dropped, **options)
    looked = {"layer": settings["layer"]} if path is not None and not settings["features"] else {}
    kept = {**ranking.settings, **looked}
    ranking = replace(ranking, settings=kept, statistics={**ranking.statistics, **more.statistics})
    ranking, fresh = confirm(ranking, pool, suite, spending, work, settings["baseline"])
    inputs = {"suite": suite.sha} | ({} if target is None else {"target": target.hash})
    inputs |= {} if reference is None else {"reference": open_target(reference).hash}
    inputs |= {"outcomes": file_sha(settings["outcomes"])} if settings["outcomes"] else {}
    ranking = with_identity(ranking, pool, inputs)
    episodes = played.select if fresh is None else pa.concat_tables([played.select, fresh], promote_options="default")
    finalists = [pool.arm(line.checkpoint) for line in ranking.checkpoints[: spending.finalists]]
    context = {
        "subtitle": f"{suite.name}; suite {suite.sha[:12]}",
        "galleries": _galleries(settings, suite, ranking, detected, target, finalists, work, episodes),
        "histograms": _histograms(ranking, detected),
        "rounds": played.log if spending.alloc == "halving" else [],
        "not_computed": _not_computed(settings, suite, more.missing),
    }
    return ranking, episodes, context, {arm.name: _about(arm) for arm in finalists}


def _galleries(
    settings: Mapping[str, Any],
    suite: FrozenSuite,
    ranking: Ranking,
    detected: Mapping[str, Detection],
    target: Target | None,
    finalists: Sequence[Arm],
    work: Work,
    episodes: pa.Table,
) -> list[dict[str, Any]]:
    """Failures of the finalists, and the target observations that look most and least like simulation to the leader."""
    if not settings["pictures"]:
        return []
    found = [gallery.failures(finalists, suite, episodes, Path(settings["out"]), work.num_workers, work.executor)]
    lead = ranking.checkpoints[0].checkpoint
    if target is not None and lead in detected:
        found.append(gallery.target_pictures(target, lead, detected[lead], settings["num_frames"], settings["seed"]))
    return [g for g in found if g is not None]


def _not_computed(settings: Mapping[str, Any], suite: FrozenSuite, scores: Mapping[str, str]) -> dict[str, str]:
    """{what: why}. scores: those that could not be computed, and why."""
    missing = dict(NOT_SHOWN)
    if "dynamics_gap" in settings["also"] and "dynamics_gap" not in scores:
        del missing[DYNAMICS]
    if not suite.size(CONFIRM):
        missing["Finalists on fresh conditions"] = "the suite has no split confirm: give confirm=50"
    if suite.size(SEALED) and not settings["open_sealed"]:
        missing["Sealed conditions"] = f"{suite.size(SEALED)} are kept for a release: open_sealed=true"
    if not settings["pictures"]:
        missing["Pictures"] = "pictures=false"
    return missing | {f"Score {name}": why for name, why in scores.items()}


def _about(arm: Arm) -> dict[str, Any]:
    """What a checkpoint says of itself, for its card."""
    config, meta = checkpoint.describe(arm.checkpoint)
    data = config.get("data", {})
    return {
        "checkpoint": arm.checkpoint,
        "policy": config.get("policy", {}).get("_target_", "unknown"),
        "trained on": f"{data.get('path', 'unknown')} (data hash {str(meta.get('data_hash'))[:12]})",
        "code": meta.get("git_commit") or "unknown",
    }


def log_to_wandb(ranking: Ranking, out: Path) -> None:
    """Send the table to Weights & Biases (offline where WANDB_MODE says so)."""
    import wandb

    from robopolicy.train.logging import PROJECT

    table = ranking.table()
    run = wandb.init(project=PROJECT, dir=str(out), job_type="rank", config={**ranking.settings, **ranking.inputs})
    rows = [list(row.values()) for row in table.to_pylist()]
    run.log({"ranking": wandb.Table(columns=table.column_names, data=rows)})
    lead = ranking.checkpoints[0]
    run.summary.update({"leader": lead.checkpoint, "prob_best": lead.prob_best, "success": lead.success})
    run.finish()
