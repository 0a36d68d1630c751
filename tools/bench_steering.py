"""Does steering make policies better? Base and steered on the same worlds, controls, the oracle, K, overhead, critics.

    nice python tools/bench_steering.py [--quick] [--seed 0] [--episodes 300] [--minutes M] [--work FOLDER] [--out FILE.json]

Makes base policies (two families, weak and medium) of cheap tasks, critics from flawed experts and the bases' own rollouts,
and plays arms in blocks of 25 episodes, all cells in turn. Every product and block is kept under --work, named by what made
it: the same command goes on where it was stopped, and --minutes stops it with all cells alike. Settings were chosen on
development seeds under the training randomisation (--split development); what is reported has other seeds and another
randomisation. Everything that is printed is in the JSON.

--quick: tiny everything, under a minute: shows that it runs, and measures the overhead; says nothing of gains.
--parts: primary (base against the default rule), controls, numbers (K), choosers (the critic's checkpoint by correlation within
states, by rank correlation, the last one), critics (quality on branches), overhead.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pyarrow as pa
import torch
from provenance import provenance, write_json
from steering_bench import overhead, picture, summary
from steering_bench.cells import Cell, Method, in_rounds, proof
from steering_bench.study import BASES, EXPERIENCED, INPUTS, QUALITY, QUICK, REPORTED_IN, TRAINED_IN, Sizes, Study

from robopolicy.evaluation.critic_quality import branch_scores, quality, worth
from robopolicy.policies.load import load_critic
from robopolicy.spec import did_you_mean

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("primary", "controls", "numbers", "choosers", "critics", "overhead")
FAMILIES = ("carp", "diffusion")
NOISE = {"std": 0.2, "share": 0.75, "fixed": ["gripper", "rx", "ry", "rz"]}
BATCH = {"state": 256, "points": 64}
# CARP's draws hardly differ in when the gripper closes, diffusion's do
PERTURB: dict[str, dict[str, Any]] = {"carp": {**NOISE, "delay": {"gripper": 4}}, "diffusion": NOISE}
SMALL = {"state": ("critic.hidden=64",), "points": ("critic.hidden=128",)}  # states are small, and so is the machine
KINDS = ("progress", "success", "iql", "cal_ql")  # of critics
DEFAULT_KIND = dict.fromkeys(("push", "pick_place"), "progress")  # else "success": gained more in the worlds of training
LOOKS_AHEAD = {"push": ("critic.gamma=0.98",)}  # the hand goes round the puck first, which takes seconds
DEFAULT_RULE: dict[str, Any] = {"rule": "lcb", "num_samples": 16, "lcb": 1.0, "margin": 1.0, "min_gain": None}
PAPER = ("critic.num_heads=2", "critic.execute_horizon=1", "critic.gamma=0.98")
BASE = Method("base")
NUMBERS = (1, 2, 4, 8, 16, 32, 64, 128)


def default_critic(task: str, inputs: str, kind: str | None = None) -> tuple[str, str, tuple[str, ...]]:
    """A critic's kind, the task's usual one by default, its data and overrides."""
    kind = kind or DEFAULT_KIND.get(task, "success")
    return kind, "both", (*SMALL[inputs], *(LOOKS_AHEAD.get(task, ()) if kind == "progress" else ()))


def method(name: str, critic: tuple[str, str, tuple[str, ...]], **steer: Any) -> Method:
    """The default rule with a critic, or what is said otherwise."""
    return Method(name, critic, {**DEFAULT_RULE, **steer})


def choosers(task: str, inputs: str) -> list[Method]:
    """The default critic's checkpoint, chosen by several figures of its quality on branches, and followed."""
    found = method("within", default_critic(task, inputs), min_gain=0.0)
    return [replace(found, name=f"by_{name}", chooser=name) for name in ("within", "spearman", "last")]


def controls(task: str, inputs: str) -> list[Method]:
    """Other rules, other critics, the paper's variant and the oracle."""
    usual = default_critic(task, inputs)
    found = [method("ungated", usual, min_gain=0.0)]
    found += [method(rule, usual, rule=rule, min_gain=0.0) for rule in ("random", "worst", "medoid", "argmax", "softmax")]
    found += [method(kind, default_critic(task, inputs, kind)) for kind in KINDS if kind != usual[0]]
    for beta in (0.0, 0.1, 1.0):  # in control steps, as the paper's; ours are values in [0, 1]
        rule = {"rule": "softmax", "temperature": 0.02 * beta, "scale_free": False} if beta else {"rule": "argmax"}
        paper = ("cal_ql", "both", (*SMALL[inputs], *PAPER))
        found.append(method(f"paper_beta{beta:g}", paper, num_samples=10, heads="min", min_gain=0.0, **rule))
    return [*found, Method("oracle", oracle=16)]


def main() -> None:
    """Measure, print, write."""
    args = _arguments()
    began, cpu = time.monotonic(), time.process_time()
    torch.set_num_threads(1)
    sizes = QUICK if args.quick else Sizes(bases=BASES[args.inputs], critic_batch=BATCH[args.inputs])
    study = Study(args.work.resolve(), args.seed, sizes, _perturb(args), args.given, args.inputs)
    result: dict[str, Any] = {"settings": _settings(args)}

    def out_of_time() -> bool:
        return args.minutes is not None and time.monotonic() - began > 60 * args.minutes

    if "overhead" in args.parts:
        result["overheads"] = overhead.measure(5 if args.quick else 40)
        result["overhead"] = _overhead(result["overheads"])
        print(_overhead_table(result["overheads"]), flush=True)
    if "critics" in args.parts:
        result["critics"] = critic_quality(study, args)
        print(f"wrote {picture.calibration(args.out.with_suffix('.calibration.png'), result['critics'])}", flush=True)
    if set(args.parts) & {"primary", "controls", "numbers", "choosers"}:
        result |= gains(study, args, out_of_time)
        result["contrasts"] = summary.contrasts(result["episodes"])
        print(_contrast_lines(result["contrasts"]), flush=True)
        for part in ("primary", "controls", "numbers", "choosers"):
            if result.get(part):
                print(f"wrote {picture.gains(args.out.with_suffix(f'.{part}.png'), result[part])}", flush=True)
    result |= {"seed": args.seed, "seeds": 1, "quick": args.quick, "cpu_s": time.process_time() - cpu}
    write_json(args.out, {**result, **provenance("torch")})
    print(f"\nwrote {args.out}; {result['cpu_s']:.0f} s of CPU, {time.monotonic() - began:.0f} s")


def _perturb(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    return {family: {**noise, "std": args.std} for family, noise in PERTURB.items()}


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "perturb": _perturb(args),
        "inputs": args.inputs,
        "bases": {key: {name: asdict(base) for name, base in of.items()} for key, of in BASES[args.inputs].items()},
        "critics": {task: list(default_critic(task, args.inputs)) for task in args.tasks},
        "rule": DEFAULT_RULE,
        "split": args.split,
        "parts": list(args.parts),
        "given": {name: str(path) for name, path in args.given.items()},
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=300, help="pairs of a primary cell; a third of it for the others")
    parser.add_argument("--minutes", type=float, help="begin no further block of episodes after so long")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tasks", nargs="+", help="by default all that there are base policies of")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--inputs", choices=INPUTS, default="state", help="what is seen: true poses of objects, or clouds")
    parser.add_argument("--strengths", nargs="+", choices=(*EXPERIENCED, "strong"), default=list(EXPERIENCED))
    parser.add_argument("--std", type=float, default=NOISE["std"], help="of the noise on candidates")
    parser.add_argument("--given", nargs="+", default=[], metavar="PRODUCT=FOLDER", help="what exists already, see study.py")
    parser.add_argument("--methods", nargs="+", help="of the controls, only these")
    parser.add_argument("--split", choices=("development", "held_out"), default="held_out")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "bench_steering")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench_steering.json")
    args = parser.parse_args()
    bases = BASES[args.inputs]
    known = sorted({key.partition("/")[0] for key in bases})
    args.tasks = args.tasks or known
    for task in args.tasks:
        if task not in known:
            parser.error(
                f"--tasks {task}: there are no base policies of it with --inputs {args.inputs}; {did_you_mean(task, known)}"
            )
    args.given = {name: Path(path).resolve() for name, _, path in (item.partition("=") for item in args.given)}
    if args.quick:
        args.episodes, args.tasks, args.work = 2, args.tasks[:1], args.work / "quick"
        args.families, args.strengths, args.methods = args.families[:1], args.strengths[-1:], ["random", "oracle"]
    return args


def gains(study: Study, args: argparse.Namespace, until: Any) -> dict[str, Any]:
    """Success of all arms on the same worlds, and what is claimed of them."""
    made = study.sizes.bases
    bases = [(t, f, s) for t in args.tasks for f in args.families for s in args.strengths if s in made.get(f"{t}/{f}", {})]
    few = max(args.episodes // 3, 1)
    plans: list[tuple[str, int, list[Cell]]] = []
    numbers = NUMBERS[:3] if args.quick else NUMBERS
    kept = set(args.methods or ())
    of: dict[str, Callable[[str], list[Method]]] = {
        "primary": lambda task: [method("default", default_critic(task, args.inputs))],
        "controls": lambda task: [m for m in controls(task, args.inputs) if not kept or m.name in kept],
        "choosers": lambda task: choosers(task, args.inputs),
        "numbers": lambda task: [
            method(f"k{n}", default_critic(task, args.inputs), num_samples=n, min_gain=0.0) for n in numbers
        ],
    }
    for part in (part for part in of if part in args.parts):
        cells = [Cell(*base, m, args.split) for base in bases for m in (BASE, *of[part](base[0]))]
        plans.append((part, args.episodes if part == "primary" else few, cells))
    found: dict[str, Any] = {"episodes": {}}
    for name, episodes, cells in plans:
        tables = in_rounds(study, cells, episodes, _progress, until)
        rows, pairs = _rows(cells, tables)
        found[name] = rows
        for cell in (cell for cell in cells if cell.key in tables):
            played = tables[cell.key].select(["condition", "success"]).to_pylist()
            successes = {row["condition"]: row["success"] for row in played}
            found["episodes"].setdefault("/".join(cell.base), {}).setdefault(cell.method.name, {}).update(successes)
        print(f"\n{name}\n{summary.table(rows)}", flush=True)
        if name == "primary":
            found |= {**_claims(rows, pairs), "proofs": {cell.key: proof(study, cell) for cell in cells if cell.key in pairs}}
    return found


def _progress(cell: Cell, table: pa.Table) -> None:
    successes = table["success"].to_pylist()
    print(f"  {cell.key}: {sum(successes)} of {len(successes)}", flush=True)


def _rows(cells: list[Cell], tables: dict[str, pa.Table]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    rows, pairs = [], {}
    for cell in cells:
        if cell.method.name == BASE.name:
            continue
        base = Cell(*cell.base, BASE, cell.split)
        row = summary.compared(cell, tables, base)
        if row is not None:
            rows.append(row)
            pairs[cell.key] = summary.outcomes(tables[base.key], tables[cell.key])
    for row, p in zip(rows, summary.adjusted(rows), strict=True):
        row["p_holm"] = p
    return rows, pairs


def _claims(rows: list[dict[str, Any]], pairs: dict[str, Any]) -> dict[str, Any]:
    whole = summary.pooled(list(pairs.values()))
    if whole is None:
        return {}
    names = dict.fromkeys(row["key"].split("/")[0] for row in rows)
    by_task = {n: summary.pooled([pair for key, pair in pairs.items() if key.startswith(f"{n}/")]) for n in names}
    low, high = whole["gain_ci"]
    print(f"\nmean gain {whole['gain']:+.3f} [{low:+.3f}, {high:+.3f}] over {whole['cells']} cells, {whole['pairs']} pairs")
    return {"gain": whole["gain"], "gain_ci": whole["gain_ci"], "pooled": whole, "by_task": by_task}


def critic_quality(study: Study, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Quality of critics on branched rollouts of fresh episodes, in the worlds of training and in shifted ones."""
    rows = []
    kinds = KINDS[1:2] if args.quick else KINDS
    for task in args.tasks:
        for family in (f for f in args.families if f"{task}/{f}" in study.sizes.bases):
            for kind in kinds:
                critic = load_critic(study.critic(task, family, *default_critic(task, args.inputs, kind))[1])
                for where in (TRAINED_IN, REPORTED_IN):
                    branches = study.branch_data(study.branches(task, family, study.best(task, family), where, QUALITY))
                    found = quality(branch_scores(critic, branches), worth(critic, branches)).to_dict()
                    rows.append({"task": task, "family": family, "critic": kind, "worlds": where, **found})
                    print(_quality_line(rows[-1]), flush=True)
    return rows


def _quality_line(row: dict[str, Any]) -> str:
    def shown(name: str) -> str:
        return "-" if row[name] is None else f"{row[name]:+.3f}"

    name = f"{row['task']}/{row['family']}/{row['critic']} in {row['worlds']}"
    return (
        f"{name:42} within states {shown('within')}, ranks {shown('spearman')} +- {shown('spearman_error')} "
        f"({row['num_states']} states), overall {shown('overall')}, calibration error {shown('error')}, "
        f"sensitivity {shown('sensitivity')} (truth {shown('truth_sensitivity')})"
    )


def _contrast_lines(found: dict[str, Any]) -> str:
    lines = [
        f"{base} {name}: {each['value']:+.3f} [{each['interval'][0]:+.3f}, {each['interval'][1]:+.3f}], {each['worlds']} worlds"
        for base, figures in found.items()
        for name, each in figures.items()
    ]
    return "\n".join(lines)


def _overhead(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The largest ratio of any policy on images, by K: those are the policies for which a decision takes long."""
    return {
        str(n): max(r["ratio"] for r in rows if r["num_samples"] == n and r["inputs"] == "images") for n in overhead.NUMBERS
    }


def _overhead_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"{'inputs':8} {'policy':10} {'proposals':10} {'K':>4} {'alone ms':>9} {'steered':>9} {'ratio':>7} {'critic ms':>10}"
    ]
    lines += [
        f"{r['inputs']:8} {r['family']:10} {r['proposals']:10} {r['num_samples']:4} {r['base_ms']:9.2f} {r['steered_ms']:9.2f} "
        f"{r['ratio']:7.2f} {r['critic_ms']:10.2f}"
        for r in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
