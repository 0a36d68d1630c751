"""LeRobot's own loader against our exports, and our import against a dataset that LeRobot wrote.

    python tools/check_lerobot.py [--quick] [--seed 0] [--out FILE.json]

Collects a few episodes (two cameras, depth, points, state), exports them in every image encoding, opens each with
`LeRobotDataset` in an environment of its own (.venv-peer-lerobot, made on first use: about 8 GB) and compares every step
of every key, then windows (delta_timestamps) across the borders of episodes. Exact encodings must be equal bit for bit.
LeRobot then records the same steps itself, and our import of that must be equal too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXACT = ("png", "h264_lossless")
QUIET = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore"}
LOSSY = ("h264", "av1")
LARGEST_DIFFERENCE = 2  # of 255, between the loader's frames and our decoding of the same video: rounding of colours
TASK = "lift the object"
STATE, FRONT, ACTION = "observation.state", "observation.images.front", "action"


def main() -> None:
    """Collect, export, compare, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 episodes of 30 steps at most instead of 12 whole ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)  # this file runs itself in LeRobot's environment
    args = parser.parse_args()
    if args.inside:
        inside(args.inside)
        return
    from peers.environments import interpreter
    from provenance import provenance, write_json  # not there in LeRobot's environment

    try:
        python = interpreter("lerobot")
    except RuntimeError as error:
        sys.exit(str(error))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        result = {"exports": prepare(work, args.quick, args.seed)}
        environment = {**os.environ, "HF_HOME": str(work / "hf"), **QUIET, "PYTHONPATH": ""}
        subprocess.run([str(python), __file__, "--inside", str(work)], check=True, env=environment)
        found = json.loads((work / "found.json").read_text())
        for name, export in found.pop("exports").items():
            result["exports"][name].update(export)
        result |= found
        result["import_of_theirs"] = compare_import(work)
    result |= {**provenance("av", "pyarrow"), "seed": args.seed}
    report(result)
    if args.out:
        write_json(args.out, result)
    sys.exit(0 if result["passed"] else 1)


def prepare(work: Path, quick: bool, seed: int) -> dict:
    """Collect a dataset, export it in every encoding, and keep the arrays for the other environment."""
    import numpy as np

    from robopolicy.data.actors import ExpertActor
    from robopolicy.data.collect import dataset_spec, environment, episode_seed, play
    from robopolicy.data.episodes import EpisodeStore, EpisodeWriter
    from robopolicy.data.importers import import_dataset
    from robopolicy.data.lerobot import export_dataset

    keys = ["state", "images.front", "images.wrist", "depth.front", "points"]
    env = environment("robopolicy/Lift-v0", {"observation": keys, "image_size": 84, "randomization": "wide"})
    writer = EpisodeWriter(work / "set", dataset_spec(env))
    for number in range(3 if quick else 12):
        episode = play(env, ExpertActor(), episode_seed(seed, number), record=True)
        arrays = {key: array[:30] if quick else array for key, array in episode.arrays.items()}
        writer.add(arrays, {"task": TASK, "success": episode.row["success"], "randomization": episode.randomization})
    store = EpisodeStore(work / "set")
    episodes = [store.read(index) for index in range(len(store))]
    np.savez(work / "arrays.npz", lengths=store.lengths, **{k: np.concatenate([e[k] for e in episodes]) for k in episodes[0]})
    exports = {}
    for images in (*EXACT, *LOSSY):
        started = time.process_time()
        export_dataset(work / "set", work / images, images=images)
        seconds = time.process_time() - started
        size = sum(file.stat().st_size for file in (work / images).rglob("*") if file.is_file())
        if images in LOSSY:
            import_dataset(work / images, work / "decoded" / images)
            decoded = EpisodeStore(work / "decoded" / images)
            cameras = [key for key in episodes[0] if "images" in key]
            parts = [decoded.read(index, cameras) for index in range(len(decoded))]
            np.savez(work / f"{images}.npz", **{key: np.concatenate([part[key] for part in parts]) for key in cameras})
        exports[images] = {"export_cpu_s": seconds, "mb": size / 1e6}
    return exports


def compare_import(work: Path) -> dict:
    """Our import of what LeRobot recorded, against the same arrays."""
    import numpy as np

    from robopolicy.data.episodes import EpisodeStore
    from robopolicy.data.importers import import_dataset

    import_dataset(work / "theirs", work / "imported")
    store = EpisodeStore(work / "imported")
    arrays = np.load(work / "arrays.npz")
    episodes = [store.read(index) for index in range(len(store))]
    joined = {key: np.concatenate([episode[key] for episode in episodes]) for key in episodes[0]}
    equal = {key: bool(np.array_equal(value.reshape(arrays[key].shape), arrays[key])) for key, value in joined.items()}
    return {"episodes": len(store), "equal_keys": sum(equal.values()), "keys": len(equal)}


def inside(work: Path) -> None:
    """In LeRobot's environment: open every export, compare, and record the same steps with LeRobot."""
    import lerobot
    import numpy as np
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    arrays = dict(np.load(work / "arrays.npz"))
    lengths = arrays.pop("lengths")
    backend = video_backend()
    exports = {}
    for name in (*EXACT, *LOSSY):
        dataset = LeRobotDataset("local/set", root=work / name, video_backend=backend)
        started = time.process_time()
        decoded = dict(np.load(work / f"{name}.npz")) if name in LOSSY else arrays
        exports[name] = {**compare(dataset, arrays, decoded, lengths), "load_cpu_s": time.process_time() - started}
        fps = dataset.fps
        deltas = {STATE: [-1 / fps, 0.0], FRONT: [-2 / fps, -1 / fps, 0.0], ACTION: [i / fps for i in range(8)]}
        windows = LeRobotDataset("local/set", root=work / name, video_backend=backend, delta_timestamps=deltas)
        exports[name]["windows"] = compare_windows(windows, arrays, decoded, lengths)
        exports[name]["task"] = dataset[0]["task"]
    record(LeRobotDataset, work / "theirs", arrays, lengths, int(fps))
    stats = {root: json.loads((work / root / "meta/stats.json").read_text()) for root in ("png", "theirs")}
    worst = max(
        float(np.abs(np.subtract(stats["png"][key][name], stats["theirs"][key][name])).max())
        for key in (STATE, ACTION)
        for name in ("min", "max", "mean", "std")
    )
    found = {"exports": exports, "video_backend": backend, "largest_difference_of_statistics": worst}
    found |= {"lerobot": lerobot.__version__, "torch_there": torch.__version__}
    (work / "found.json").write_text(json.dumps(found))


def video_backend() -> str:
    """torchcodec where it can be loaded (it needs FFmpeg's libraries), else pyav."""
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, RuntimeError, OSError):
        return "pyav"
    return "torchcodec"


def as_array(value, like):
    """A loader's tensor in the form of our array: images come as float [C, H, W] in [0, 1]."""
    import numpy as np

    array = value.numpy()
    if like.dtype == np.uint8 and array.ndim >= 3:
        array = np.round(np.moveaxis(array, -3, -1) * 255).astype(np.uint8)
    return array.reshape(like.shape)


def psnr(a, b) -> float:
    """Peak signal-to-noise ratio (dB) of uint8 images; 99 for equal ones."""
    import numpy as np

    error = np.mean((a.astype(float) - b.astype(float)) ** 2)
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))


def compare(dataset, arrays: dict, decoded: dict, lengths) -> dict:
    """Every step and key that the loader gives, against the arrays and the images that the videos decode to."""
    import numpy as np

    assert len(dataset) == sum(lengths), f"{len(dataset)} steps, expected {sum(lengths)}"
    unequal, ratios, difference = dict.fromkeys(arrays, 0), [], 0
    steps = np.concatenate([np.arange(n) for n in lengths])
    owners = np.repeat(np.arange(len(lengths)), lengths)
    for row in range(len(dataset)):
        item = dataset[row]
        assert (item["episode_index"].item(), item["frame_index"].item()) == (owners[row], steps[row])
        for key, array in arrays.items():
            found = as_array(item[key], array[row])
            unequal[key] += not np.array_equal(found, array[row])
            if "images" in key:
                ratios.append(psnr(found, array[row]))
                difference = max(difference, int(np.abs(found.astype(int) - decoded[key][row]).max()))
    images = sum(count for key, count in unequal.items() if "images" in key)
    others = sum(count for key, count in unequal.items() if "images" not in key)
    return {
        "steps": len(dataset),
        "images_unequal": images,
        "others_unequal": others,
        "psnr_median_db": float(np.median(ratios)),
        "psnr_min_db": min(ratios),
        "largest_difference_from_decoded": difference,
    }


def compare_windows(dataset, arrays: dict, decoded: dict, lengths) -> dict:
    """Windows at the first and last steps of every episode: frames repeat the first, actions the last and are padding."""
    import numpy as np

    ends = np.cumsum(lengths)
    count = unequal = 0
    difference = 0
    for start, end in zip(ends - lengths, ends, strict=True):
        rows = sorted({*range(start, min(start + 4, end)), *range(max(start, end - 9), end)})
        for row in rows:
            item = dataset[row]
            frames = np.clip([row - 2, row - 1, row], start, end - 1)
            actions = np.clip(np.arange(row, row + 8), start, end - 1)
            count += 1
            unequal += not np.array_equal(item[ACTION].numpy(), arrays[ACTION][actions])
            unequal += not np.array_equal(item[STATE].numpy(), arrays[STATE][frames[1:]])
            unequal += not np.array_equal(item[f"{ACTION}_is_pad"].numpy(), np.arange(row, row + 8) >= end)
            found = as_array(item[FRONT], arrays[FRONT][frames]).astype(int)
            difference = max(difference, int(np.abs(found - decoded[FRONT][frames]).max()))
    return {"windows": count, "vectors_unequal": unequal, "largest_difference_from_decoded": difference}


def record(dataset_class, root: Path, arrays: dict, lengths, fps: int) -> None:
    """The same steps, recorded by LeRobot with images as PNG."""
    image = {"dtype": "image", "names": ["height", "width", "channels"]}
    features = {
        key: {**image, "shape": array.shape[1:]}
        if "images" in key
        else {"dtype": array.dtype.name, "shape": array.shape[1:] or (1,), "names": None}
        for key, array in arrays.items()
    }
    dataset = dataset_class.create("local/theirs", fps=fps, features=features, root=root, use_videos=False)
    row = 0
    for length in lengths:
        for _ in range(length):
            frame = {key: array[row].reshape(features[key]["shape"]) for key, array in arrays.items()}
            dataset.add_frame({**frame, "task": TASK})
            row += 1
        dataset.save_episode()
    dataset.finalize()


def report(result: dict) -> None:
    """Print the table and set result["passed"]."""
    exports = result["exports"]
    print(f"LeRobot {result['lerobot']}, videos decoded by {result['video_backend']}")
    head = f"{'images':15} {'steps':>6} {'MB':>6} {'unequal images':>15} {'others':>7} {'PSNR dB (least)':>16}"
    print(head + f" {'from decoded':>13} {'windows':>8}")
    passed = result["import_of_theirs"]["equal_keys"] == result["import_of_theirs"]["keys"]
    for name, e in exports.items():
        windows, difference = e["windows"], e["largest_difference_from_decoded"]
        print(
            f"{name:15} {e['steps']:6} {e['mb']:6.1f} {e['images_unequal']:15} {e['others_unequal']:7} "
            f"{e['psnr_median_db']:9.1f} ({e['psnr_min_db']:4.1f}) {difference:9}/255 {windows['windows']:8}"
        )
        allowed = LARGEST_DIFFERENCE if name in LOSSY else 0
        passed &= e["others_unequal"] == 0 and windows["vectors_unequal"] == 0
        passed &= max(difference, windows["largest_difference_from_decoded"]) <= allowed
    theirs = result["import_of_theirs"]
    print(f"import of LeRobot's own recording: {theirs['equal_keys']} of {theirs['keys']} keys equal bit for bit")
    print(f"statistics (state, action; min, max, mean, std) differ by {result['largest_difference_of_statistics']:.1e} at most")
    result["passed"] = bool(passed)
    print("passed" if passed else "FAILED")


if __name__ == "__main__":
    main()
