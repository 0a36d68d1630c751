"""Does VSDR pick the right policy? Independently trained policies, ranked without the target, checked against it.

    nice python tools/study_vsdr.py run [--seeds 3] [--step 1000] [--workers 2] [--minutes M] [--folder RUNS] [--tables FOLDER]
    python tools/study_vsdr.py choose [--tables FOLDER]        # on the development target T0 alone: once
    python tools/study_vsdr.py report [--tables FOLDER] [--out FILE.json] [--repeats 20]

run: 27 randomisations of the training worlds (visual, dynamics, camera; each none, narrow or wide) x training seeds; every run
    has its own demonstrations and training, plays in its own worlds, in the widest ones and in four targets of the
    other simulator, and is shown a fixed set of observations of each target, which no policy of the pool made. Goes on where it
    was stopped; finished runs are merged into the tables (docs/results/vsdr), which are all that the rest needs. With --step
    checkpoints after so many training steps play, a second pool, whose tables lie in early/ beside the others.
choose: fixes detector, layer and combiner on T0 and writes them down. report: T1, T2 and T3 with what was chosen; how well
    every score orders the policies, controls, and how many episodes on the target each way of spending them takes (--repeats 0
    leaves that out; the rest takes seconds).

A target is a held-out simulator, never a robot. --quick (without a verb): all of it with six tiny runs, which are judged by
progress since none succeeds. It vouches for keys, not for figures.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from provenance import provenance, write_json
from vsdr_study import pictures, report, trials
from vsdr_study.controls import controls
from vsdr_study.design import QUICK, Sizes, frozen, runs
from vsdr_study.runs import Run, observe_targets, play_run
from vsdr_study.tables import Tables, gather

from robopolicy.executor import map_units

ROOT = Path(__file__).resolve().parents[1]
DESIGN, CHOICE = "design.json", "choice.json"
EARLY = "early"  # folder of a second pool: early checkpoints, reported apart


def main() -> None:
    """Do what the first argument says."""
    args = _arguments()
    verbs = {"run": run, "choose": choose, "report": make_report}
    try:
        for verb in [args.verb] if args.verb else verbs:
            verbs[verb](args)
    except report.StudyError as error:
        sys.exit(str(error))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", nargs="?", choices=("run", "choose", "report"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--seeds", type=int, default=3, help="training runs of every configuration")
    parser.add_argument("--step", type=int, default=0, help="play checkpoints after so many steps, a pool apart; 0 = the last")
    parser.add_argument("--workers", type=int, default=2, help="processes, each with a run of its own")
    parser.add_argument("--minutes", type=float, help="begin no run after so long")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "study_vsdr")
    parser.add_argument("--tables", type=Path, default=ROOT / "docs" / "results" / "vsdr")
    parser.add_argument("--repeats", type=int, default=20, help="of spending episodes on a target")
    parser.add_argument("--resamples", type=int, default=report.RESAMPLES, help="of the training configurations")
    parser.add_argument("--trials", type=int, default=100, help="episodes on the target, of ways that decide after each")
    parser.add_argument("--out", type=Path, help="JSON file; the pictures go beside it")
    args = parser.parse_args()
    if not args.verb and not args.quick:
        parser.error("give run, choose or report, or --quick for a tiny version of all three")
    if args.quick:
        args.folder = args.folder / "quick"
        args.tables = args.folder / "report"
        args.repeats, args.trials, args.resamples = 2, 5, 50
    args.outcome = "progress" if args.quick else "success"
    args.sizes = QUICK if args.quick else Sizes()
    args.folder, args.tables = args.folder.absolute(), args.tables.absolute()
    if args.step and (not 0 < args.step < args.sizes.steps or args.sizes.steps % args.step):
        parser.error(f"--step {args.step}: give a divisor of the {args.sizes.steps} steps of a training, or 0 for the last")
    args.pool = args.tables / EARLY if args.step else args.tables
    args.folder = args.folder / EARLY if args.step else args.folder
    args.out = args.out or args.tables / "report.json"
    return args


def run(args: argparse.Namespace) -> None:
    """Play the runs that are missing."""
    design, began = frozen(args.sizes), time.time()
    written = args.tables / DESIGN
    if written.is_file() and json.loads(written.read_text())["hash"] != design["hash"]:
        raise report.StudyError(f"{written} is another design than that of this code: give other --tables, or that commit")
    write_json(written, design)
    done = Tables.read(args.pool).policies if (args.pool / "facts.parquet").is_file() else set()
    wanted = [Run(*each, args.step) for each in runs(1 if args.quick else args.seeds)]
    wanted = [each for each in (wanted[: report.MIN_POLICIES] if args.quick else wanted) if each.name not in done]
    observed = observe_targets(args.folder, args.sizes)
    until = None if args.minutes is None else began + 60 * args.minutes
    work = partial(_unit, root=args.folder, sizes=args.sizes, observed=observed, until=until)
    finished = sum(map_units(work, wanted, args.workers, "runs"))
    tables = gather(args.folder, args.pool)
    minutes = (time.time() - began) / 60
    print(f"{finished} of {len(wanted)} runs finished in {minutes:.1f} min; {len(tables.policies)} in the tables")


def _unit(each: Run, root: Path, sizes: Sizes, observed: dict[str, Path], until: float | None) -> bool:
    if until is not None and time.time() > until:
        return False
    play_run(each, root, sizes, observed)
    return True


def _design(args: argparse.Namespace) -> str:
    return json.loads((args.tables / DESIGN).read_text())["hash"]


def choose(args: argparse.Namespace) -> None:
    """Fix the variants by the development target."""
    file = args.tables / CHOICE
    if file.is_file() and not args.quick:
        raise report.StudyError(f"{file} is there: a choice is made once, and the other targets may have been looked at since")
    found = report.choose(Tables.read(args.tables, args.outcome), args.seed)
    write_json(file, {**found, "design": _design(args), **provenance()})
    print(report.choice_table(found))


def make_report(args: argparse.Namespace) -> None:
    """Figures, pictures, tables of every target."""
    file = args.tables / CHOICE
    if not file.is_file():
        raise report.StudyError(f"nothing was chosen: {file} does not exist; run `study_vsdr.py choose` first, on T0")
    tables, chosen = Tables.read(args.tables, args.outcome), json.loads(file.read_text())
    if chosen["design"] != _design(args):
        raise report.StudyError(f"{file} was chosen for the design {chosen['design']}, the tables are of {_design(args)}")
    result: dict[str, Any] = report.report(tables, chosen, args.seed, args.resamples)
    for target, found in result["targets"].items():
        found["controls"] = controls(tables, target, chosen["chosen"], args.seed, args.resamples // 3, args.resamples // 2)
    if (args.tables / EARLY).is_dir():
        early = Tables.read(args.tables / EARLY, args.outcome)
        result["early"] = report.early_checkpoints(tables, early, chosen["chosen"], args.seed, args.resamples)
    if args.repeats:
        spent = (args.repeats, args.trials, args.seed, args.workers)
        result["trials"] = {t: trials.spend(tables, t, chosen["chosen"], *spent) for t in report.TARGETS}
    origin = {"design": _design(args), "quick": args.quick, "seed": args.seed, **provenance()}
    write_json(args.out, {**result, **origin})
    drawn = pictures.draw(args.out.parent, tables, result, chosen)
    print(report.as_text(result))
    print(f"\nwrote {args.out} and {', '.join(file.name for file in drawn)}")


if __name__ == "__main__":
    main()
