"""How fast the simulator is, beside its peers, in one interleaved run: python tools/bench_sim.py [--quick] [--out FILE.json].

Parts (--parts; default all):
    steps      environment steps per second, one core, with one RGB frame a step and without; resets per second
    equal      the same scene drawn by our rasteriser and by MuJoCo's OpenGL renderer; physics and frames of Lift in both
    cores      the same work on all cores at once
    stability  shaken grasps at the chosen physics step
    profile    where the time of a step goes
--profile and --stability do only that.

Every contender is one process on one core with one thread, peers in environments of their own (.venv-peer-NAME, made when
missing). In every round each works in turn for --seconds of CPU time, in an order that rotates, on random actions, with a
reset every 50 steps that is timed apart. Rates are steps per second of CPU time; wall-clock rates are given too, and mean
something on a quiet machine only. Ratios are taken within a round: median over rounds and a bootstrap 95 % interval.

What is compared, and what to bear in mind:
    Ours is robopolicy/Lift-v0 with shadows and, as "wide", every randomisation, delays and sensor noise included. Peers are at
    their defaults but for the size of the picture, which is the same for everybody, and do not randomise looks or physics.
    One step is 50 ms of the world for ours and robosuite, 40 ms for panda-gym and Fetch, 12.5 ms for Meta-World.
    Peers draw their original meshes (32,000 faces in Fetch, 67,000 in Meta-World, 180,000 in robosuite), ours are decimated
    to about 500 faces a link: most of the difference. panda-gym and Meta-World draw shadows, Fetch and robosuite none;
    Fetch, Meta-World and robosuite antialias (4 samples), panda-gym and ours do not. robosuite computes an
    operational-space controller at each physics step; ours solves inverse kinematics once a step. The wrappers that
    gymnasium.make() puts around an environment are on for everybody. MuJoCo draws in software (llvmpipe, in-thread),
    because the claim is about CPU cores; with a GPU the peers' pictures would cost less.
    The equal scene has none of these differences: same meshes, boxes of 12 faces, colours, camera, light, texels of the shadow
    map, no antialiasing, plain colours (peers/equal_scene.py). There the renderers alone differ. --picture writes both.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from peers import step_profile, summary
from peers.client import WorkerError
from peers.environments import REQUIREMENTS
from peers.rounds import Field, entries
from peers.stability import AMPLITUDES
from peers.summary import OURS
from provenance import provenance, write_json

PARTS = ("steps", "equal", "cores", "stability", "profile")
PEERS = tuple(REQUIREMENTS)
PROFILES = {  # title: arguments of step_profile.profile_lift
    "rgb, wide, random actions": {"image": True, "randomization": "wide", "expert": False},
    "rgb, none, random actions": {"image": True, "randomization": "none", "expert": False},
    "rgb, wide, expert": {"image": True, "randomization": "wide", "expert": True},
    "state, wide, random actions": {"image": False, "randomization": "wide", "expert": False},
}
BUSY = 1.15  # wall time over CPU time from which wall-clock figures mean nothing
PICTURE_STEPS = (5, 25, 45)  # of the replayed episode


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--profile", dest="parts", action="store_const", const=("profile",), help="only the profile")
    parser.add_argument("--stability", dest="parts", action="store_const", const=("stability",), help="only the grasps")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    parser.add_argument("--rounds", type=int, help="default 9; with --quick 3")
    parser.add_argument("--seconds", type=float, help="CPU time of a contender in a round; default 4, with --quick 0.4")
    parser.add_argument("--quick", action="store_true", help="under a minute, once the environments exist")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=84, help="side of the pictures")
    parser.add_argument("--gl", choices=("egl", "osmesa"), default="egl", help="how MuJoCo draws")
    parser.add_argument("--out", type=Path, help="JSON file, written after every round")
    parser.add_argument("--picture", type=Path, help="PNG of the equal scene by both renderers")
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (3 if arguments.quick else 9)
    arguments.seconds = arguments.seconds or (0.4 if arguments.quick else 4.0)
    return arguments


def main() -> None:
    """Measure, print, write."""
    arguments = parse()
    cores = sorted(os.sched_getaffinity(0))
    field = Field(cores, arguments.gl, arguments.seconds, arguments.seed)
    result: dict[str, Any] = {
        **provenance(),
        "seed": arguments.seed,
        "image_size": arguments.size,
        "num_cores": len(cores),
        "load_at_start": os.getloadavg()[0],
        "settings": field.settings,
        "versions": field.versions,
        "failed": field.failed,
    }
    if os.getloadavg()[0] > 0.5:
        print(f"load {os.getloadavg()[0]:.1f}: others use this machine, so wall-clock figures mean nothing", file=sys.stderr)

    def save(**found: Any) -> None:
        result.update(found)
        if arguments.out:
            write_json(arguments.out, result)

    try:
        if {"steps", "equal", "cores"} & set(arguments.parts):
            interleaved(arguments, field, save)
        own_studies(arguments, field, save, cores[0])
    finally:
        field.close()
    save()
    print(summary.text(result))
    for title, profile in result.get("profile", {}).items():
        print("\n" + step_profile.table(title, profile))
    if result.get("wall_over_cpu", 1.0) > BUSY:
        print(f"wall time was {result['wall_over_cpu']:.2f} times CPU time: use the CPU figures only", file=sys.stderr)


def interleaved(arguments: argparse.Namespace, field: Field, save: Any) -> None:
    """The parts in which contenders take turns."""
    field.make(entries(tuple(arguments.parts), tuple(arguments.peers), arguments.size))
    save()
    if {"steps", "equal"} & set(arguments.parts):
        for index in range(arguments.rounds):
            field.round(index)
            found = summary.summarise(field.raw, tuple(arguments.peers), arguments.seed)
            save(**found, wall_over_cpu=summary.wall_over_cpu(field.raw))
            rates = ", ".join(f"{name} {rate:.4g}" for name, rate in found["steps_per_second"].items())
            print(
                f"round {index + 1} of {arguments.rounds}, load {os.getloadavg()[0]:.1f}: {rates}", file=sys.stderr, flush=True
            )
    if "equal" in arguments.parts and arguments.picture:
        side_by_side(field, arguments.picture)
    if "cores" in arguments.parts:
        names = (OURS,) if arguments.quick else (OURS, *arguments.peers)
        field.together(names, min(arguments.rounds, 5), lambda found: save(all_cores=found))


def own_studies(arguments: argparse.Namespace, field: Field, save: Any, core: int) -> None:
    """Stability and profile, each in a process of its own."""
    stability, profiles = {}, {}
    lifts, steps = (20, 300) if arguments.quick else (200, 2000)
    try:
        if "stability" in arguments.parts:
            worker = field.worker(OURS, core)
            for shake in AMPLITUDES:
                stability[shake] = worker.ask("stability", 3.0 * lifts, lifts=lifts, seed=arguments.seed, shake=shake)
                save(stability=stability)
            worker.close()
        if "profile" in arguments.parts:
            for title, options in list(PROFILES.items())[: 1 if arguments.quick else None]:
                worker = field.worker(OURS, core)  # a profile patches the simulator
                profiles[title] = worker.ask(
                    "profile", 0.1 * steps, **options, size=arguments.size, seed=arguments.seed, steps=steps
                )
                worker.close()
                save(profile=profiles)
    except WorkerError as error:
        field.fail("stability" if not profiles and "stability" in arguments.parts else "profile", error)


def side_by_side(field: Field, path: Path) -> None:
    """Some moments of the equal scene, enlarged four times: ours above, MuJoCo below; with shadows, then without."""
    columns = []
    try:
        for kind in ("shadow", "plain"):
            names = f"{OURS}_scene/{kind}", f"mujoco_scene/{kind}"
            columns += [np.vstack(field.pictures(names, steps)) for steps in PICTURE_STEPS]
    except WorkerError as error:
        field.fail("picture", error)
        return
    large = np.hstack(columns).repeat(4, axis=0).repeat(4, axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), large[:, :, ::-1])


if __name__ == "__main__":
    main()
