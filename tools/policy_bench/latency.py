"""How long a decision takes: policy.sample on real observations, encoder included, policies in turn in every round."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from robopolicy.data.episodes import EpisodeStore
from robopolicy.data.windows import Windows
from robopolicy.policies.base import TrainablePolicy

SETTINGS = ((1, 1), (32, 1), (1, 32), (32, 32))  # observations, candidates of each
BASE = "carp"  # the ratio of the others is to this one
WARM_UP = 3


def name(batch: int, samples: int) -> str:
    """The key of a setting."""
    return f"b{batch}_n{samples}"


def measure(
    policies: Mapping[str, TrainablePolicy], store: EpisodeStore, rounds: int, seconds: float, patience: float
) -> dict[str, dict[str, dict[str, float]]]:
    """{setting: {policy: p50, p95 and cpu_p50 (ms), ratio to BASE, rounds}}, one thread.

    A ratio is the median over rounds of the ratio within a round, so what else the machine does falls on both.

    Args:
        policies: trained ones for the dataset `store`, which gives the observations.
        rounds: at most so many in a setting, at least three.
        seconds: the time after which a setting takes no further rounds.
        patience: a policy is left out where a call would take longer (s), by its time for fewer candidates.
    """
    torch.set_num_threads(1)
    first = next(iter(policies.values()))
    windows = Windows(store, tuple(first.spec.observation), 1, 1)
    rows = np.linspace(0, len(windows) - 1, 32).round().astype(int)
    observations = {key: value for key, value in windows.batch(rows).items() if key in first.spec.observation}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for batch, samples in SETTINGS:
        seen = {key: value[:batch] for key, value in observations.items()}
        single = found.get(name(batch, 1), {})
        quick = [key for key in policies if key not in single or samples * single[key]["p50"] < 1e3 * patience]
        chosen = {key: policies[key] for key in quick}
        for policy in chosen.values():
            for number in range(WARM_UP if batch * samples == 1 else 1):
                policy.sample(seen, samples, number)
        wall: dict[str, list[float]] = {key: [] for key in chosen}
        cpu: dict[str, list[float]] = {key: [] for key in chosen}
        began = time.perf_counter()
        for number in range(rounds):
            if number >= 3 and time.perf_counter() - began > seconds:
                break
            for key, policy in chosen.items():
                start, start_cpu = time.perf_counter(), time.process_time()
                policy.sample(seen, samples, number)
                wall[key].append(1e3 * (time.perf_counter() - start))
                cpu[key].append(1e3 * (time.process_time() - start_cpu))
        base = np.array(wall[BASE if BASE in chosen else next(iter(chosen))])
        found[name(batch, samples)] = {
            key: {
                "p50": float(np.median(wall[key])),
                "p95": float(np.quantile(wall[key], 0.95)),
                "cpu_p50": float(np.median(cpu[key])),
                "ratio": float(np.median(np.array(wall[key]) / base)),
                "rounds": len(base),
            }
            for key in chosen
        }
    return found


def table(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The figures as text."""
    settings = list(found)
    lines = [f"{'latency, ms p50 (x carp)':24}" + "".join(f"{setting:>20}" for setting in settings)]
    for key in found[settings[0]]:
        rows = [found[setting].get(key) for setting in settings]
        cells = [f"{row['p50']:.2f} ({row['ratio']:.2f}x)" if row else "-" for row in rows]
        lines.append(f"{key:24}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)
