"""What a chunk loses in a tokenizer: our multi-scale ones, cosine coefficients as in FAST, and uniform bins, by token count.

    python tools/bench_tokenizers.py [--quick] [--tasks pick-place-v3,assembly-v3,lift] [--steps 600] [--seed 0] [--seeds 3]
        [--folder runs/bench_tokenizers] [--out FILE.json]

Demonstrations are those of tools/bench_policies.py (50 episodes of a Meta-World expert) and 100 of our Lift expert. A fifth
of the episodes is held out; every chunk of 16 steps of theirs is encoded and decoded. Each prefix of our scales is compared
at its number of tokens. All take the policy's normalised actions, learn ranges from the training episodes alone, and have
switches settled on values that occur, the references too. Errors are absolute, in physical units per step of a chunk;
"wrong" is the share of gripper commands that settle on another value (or, where the command is not a switch, on the other
side of its middle). Bits are those of tokens of equal length; FAST's byte pairs (a vocabulary of 1024) change its number of
tokens but no error: its rows give the mean number after them.

--quick: one task, one seed, 30 steps, FSQ only. It vouches for keys and the references, not for ours.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import provenance, write_json
from tokenizer_bench import learned, picture
from tokenizer_bench.references import BytePairs, CosineTokens, UniformBins

from robopolicy.policies.carp import CarpPolicy
from robopolicy.spec import ACTION, Array, did_you_mean

ROOT = Path(__file__).resolve().parents[1]
COSINE, BINS = "cosine", "bins"
COSINE_SCALE = 100.0  # fine enough that what is lost is what is cut off, at about a byte a token
FAST_SCALES = (10.0, 30.0, 100.0)  # the first is FAST's default
BYTE_PAIR_ROWS = 2000


def main() -> None:
    """Measure, print, write."""
    args = _arguments()
    origin, rows = provenance("torch", "scipy", "vector-quantize-pytorch"), []
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.tasks:
        task = learned.TASKS[name]
        store = task.demonstrations(args.folder)
        for seed in range(args.seed, args.seed + args.seeds):
            data = learned.split(store, seed)
            measured = _measure(data, learned.entries(task, store), args.variants, args.steps, seed)
            rows += [{"task": name, "seed": seed, "data_hash": store.hash, **row} for row in measured]
            print(f"{name}, seed {seed}: {len(data.chunks)} training chunks, {len(data.held_out)} held out", flush=True)
    result = {"rows": rows, "summary": summarise(rows), "steps": args.steps, "seed": args.seed, "seeds": args.seeds}
    result |= {"quick": args.quick, "horizon": learned.HORIZON, **origin}
    print(table(result["summary"]))
    out = args.out or args.folder / "bench_tokenizers.json"
    write_json(out, result)
    print(f"\nwrote {out} and {picture.draw(out.with_suffix('.png'), result['summary'])}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tasks", help=", ".join(learned.TASKS) + ", comma-separated; all by default")
    parser.add_argument("--steps", type=int, default=600, help="of training; the default is what the policy benchmark gives")
    parser.add_argument("--seed", type=int, default=0, help="of the first split and training")
    parser.add_argument("--seeds", type=int, default=3, help="number of splits and trainings")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "bench_tokenizers", help="of the demonstrations")
    parser.add_argument("--out", type=Path, help="JSON file; the picture goes beside it")
    args = parser.parse_args()
    args.folder = args.folder.absolute()
    args.tasks = args.tasks.split(",") if args.tasks else list(learned.TASKS)[: 1 if args.quick else None]
    for name in args.tasks:
        if name not in learned.TASKS:
            parser.error(f"no task {name!r}; {did_you_mean(name, learned.TASKS)}")
    args.variants = list(learned.VARIANTS)
    if args.quick:
        args.steps, args.seeds, args.variants = min(args.steps, 30), 1, [v for v in args.variants if v.startswith("fsq")]
    if args.steps < 1 or args.seeds < 1:
        parser.error("--steps and --seeds must be at least 1")
    return args


def _measure(
    data: learned.Split, kinds: Sequence[learned.Entry], variants: Sequence[str], steps: int, seed: int
) -> Iterator[dict[str, Any]]:
    counts: set[int] = set()
    for variant in variants:
        with tempfile.TemporaryDirectory(prefix="bench_tokenizers_") as folder:
            policy, cpu_s = learned.trained(data, learned.VARIANTS[variant], steps, seed, Path(folder) / "run")
        tokenizer, held_out = policy.tokenizer, _normalised(policy, data.held_out)
        codes = tokenizer.encode(torch.from_numpy(held_out))
        for k in range(1, len(codes) + 1):
            tokens = sum(tokenizer.scales[:k]) * tokenizer.num_groups
            decoded = tokenizer.decode(codes[:k]).numpy()
            facts = {"variant": variant, "scales": k, "complete": k == len(codes), "tokens": tokens, "cpu_s": cpu_s}
            yield {**facts, "bits": tokens * float(np.log2(tokenizer.vocabulary)), **_errors(policy, decoded, data, kinds)}
            counts.add(tokens)
    training = _normalised(policy, data.chunks)  # normaliser and switches are the same in all
    most = learned.HORIZON * len(kinds)
    cosine = CosineTokens(training, COSINE_SCALE)
    encoded = cosine.encode(held_out)
    for n in sorted(counts | {n for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48) if n <= most}):
        if n > most:
            continue
        bins = UniformBins(training, n)
        for variant, bits, decoded in (
            (COSINE, cosine.bits(n), cosine.decode(encoded[:, :n])),
            (BINS, bins.bits(), bins.decode(bins.encode(held_out))),
        ):
            yield {"variant": variant, "tokens": n, "bits": bits, **_errors(policy, decoded, data, kinds)}
    for scale in FAST_SCALES:
        fast = CosineTokens(training, scale)
        rows = np.random.default_rng(seed).permutation(fast.encode(training))[:BYTE_PAIR_ROWS]
        tokens = BytePairs(rows).mean_count(fast.encode(held_out))
        facts = {"variant": f"FAST, scale {scale:g}", "tokens": tokens, "bits": 10.0 * tokens}
        yield {**facts, **_errors(policy, fast.decode(fast.encode(held_out)), data, kinds)}


def _normalised(policy: CarpPolicy, chunks: Array) -> Array:
    return policy.normalizer.normalize(ACTION, torch.from_numpy(chunks)).numpy()


def _errors(policy: CarpPolicy, decoded: Array, data: learned.Split, kinds: Sequence[learned.Entry]) -> dict[str, Any]:
    """Per entry, and over those of a kind: the mean absolute error and its 99th percentile."""
    settled = policy.normalizer.denormalize(ACTION, policy.tokenizer.settle(torch.from_numpy(decoded).float())).numpy()
    error = np.abs(settled - data.held_out) * [e.factor for e in kinds]
    by_entry = {e.name: {"mean": error[..., i].mean(), "p99": np.quantile(error[..., i], 0.99)} for i, e in enumerate(kinds)}
    found: dict[str, Any] = {"entries": by_entry}
    for kind in dict.fromkeys(e.kind for e in kinds):
        part = error[..., [i for i, e in enumerate(kinds) if e.kind == kind]]
        found[kind] = {"mean": part.mean(), "p99": np.quantile(part, 0.99)}
    for i in [i for i, e in enumerate(kinds) if e.kind == "gripper"]:
        low, high = data.chunks[..., i].min(), data.chunks[..., i].max()
        if policy.tokenizer.is_switch[i]:
            found["wrong"] = (error[..., i] > 1e-3 * max(high - low, 1.0)).mean()
        else:  # a continuous command: on the other side of the middle
            found["wrong"] = ((settled[..., i] > (low + high) / 2) != (data.held_out[..., i] > (low + high) / 2)).mean()
    return found


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds, and the standard deviation over seeds of the mean errors."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        at = row["scales"] if "scales" in row else row["tokens"] if row["variant"] in (COSINE, BINS) else 0
        groups[row["task"], row["variant"], at].append(row)
    found = []
    for (task, variant, _), same in groups.items():
        row: dict[str, Any] = {"task": task, "variant": variant, "complete": same[0].get("complete")}
        row |= {key: float(np.mean([r[key] for r in same])) for key in ("tokens", "bits", "wrong", "cpu_s") if key in same[0]}
        for kind in [kind for kind in ("mm", "mrad", "gripper") if kind in same[0]]:
            row[kind] = {key: float(np.mean([r[kind][key] for r in same])) for key in ("mean", "p99")}
            row[kind]["sd"] = float(np.std([r[kind]["mean"] for r in same]))
        found.append(row)
    return found


def table(summary: Sequence[dict[str, Any]]) -> str:
    """Ours, each prefix beside the references at its number of tokens."""
    titles = ("mm mean", "p99", "cosine", "p99", "bins", "p99", "wrong %", "cosine", "bins", "mrad", "cosine", "bins")
    lines = []
    for task in dict.fromkeys(row["task"] for row in summary):
        mine = [row for row in summary if row["task"] == task]
        at = {(row["variant"], row["tokens"]): row for row in mine if row["variant"] in (COSINE, BINS)}
        lines.append(f"\n{task:24}{'tokens':>7}{'bits':>6}" + "".join(f"{title:>9}" for title in titles) + f"{'cpu s':>7}")
        for row in [row for row in mine if row["variant"] not in (COSINE, BINS)]:
            beside = [row, at.get((COSINE, row["tokens"])), at.get((BINS, row["tokens"]))]
            cells = [r["mm"][key] if r else None for r in beside for key in ("mean", "p99")]
            cells += [100 * r["wrong"] if r else None for r in beside]
            cells += [r["mrad"]["mean"] if r and "mrad" in r else None for r in beside]
            values = "".join(f"{'-' if cell is None else f'{cell:.3g}':>9}" for cell in cells)
            cpu = f"{row['cpu_s']:.1f}" if row.get("complete") else ""
            lines.append(f"{row['variant']:24}{row['tokens']:7.4g}{row['bits']:6.0f}{values}{cpu:>7}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
