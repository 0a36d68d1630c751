"""What a dataset holds, in numbers: success, return, trajectory quality (TQ) and state-action coverage (SACo).

Schweighofer et al., "A Dataset Perspective on Offline Reinforcement Learning" (CoLLAs 2022, arXiv 2111.04714):

    TQ(D)   = (g(D) - g_random) / (g_expert - g_random)     g: mean return of the episodes
    SACo(D) = u(D) / u(D_ref)                               u: number of unique state-action pairs, |D| = |D_ref|

Continuous states and actions are counted as the authors do: every dimension is cut into equal parts between its least and
its largest value. Two choices differ, both needed here: NUM_BINS parts instead of 100, because in the 24 dimensions of an
arm's state and action 100 make every pair unique; exact counts instead of HyperLogLog's estimates. Where D and D_ref
differ in size, both are rarefied to the smaller one (Hurlbert 1971): the expected number of unique pairs in a random
sample of that many, in closed form, which is u itself at equal sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln

from robopolicy.data.episodes import EpisodeStore
from robopolicy.spec import ACTION, REWARD, STATE, SUCCESS, Array

NUM_BINS = 5  # odd, so that values around the middle of a range, such as resting, share a cell
RANDOM, EXPERT, ALL = "random", "expert", "all"


@dataclass(frozen=True)
class Measures:
    """Of the episodes of one source, or of all.

    success: share of episodes. tq, saco: as above; NaN where undefined. unique: state-action cells visited.
    """

    source: str
    episodes: int
    steps: int
    success: float
    mean_return: float
    tq: float
    unique: int
    saco: float


def measures(store: EpisodeStore, reference: EpisodeStore | None = None, num_bins: int = NUM_BINS) -> list[Measures]:
    """The measures of every source of a dataset, and last those of the whole.

    reference: D_ref of SACo, and where g_random and g_expert of TQ come from; None = the dataset itself. Those returns are
    the means of the sources "random" and "expert"; without the former, the least return that an episode had stands in for
    it, without the latter the largest.

    Raises:
        SpecError: the reference lacks the state or the actions that the dataset has.
    """
    reference = reference or store
    sources = _sources(store)
    groups = {name: [i for i, source in enumerate(sources) if source == name] for name in sorted(set(sources))}
    returns, successes = _returns(store), _successes(store)
    low, high = return_bounds(_returns(reference), _sources(reference))
    pairs = [_pairs(store, i) for i in range(len(store))]
    ref_pairs = pairs if reference is store else [_pairs(reference, i) for i in range(len(reference))]
    bounds = np.concatenate([[p.min(0), p.max(0)] for p in [*pairs, *ref_pairs]]) if pairs else np.zeros((0, 0))
    cells = [discretize(p, bounds.min(0), bounds.max(0), num_bins) for p in pairs]
    ref_cells = cells if reference is store else [discretize(p, bounds.min(0), bounds.max(0), num_bins) for p in ref_pairs]
    whole = cell_counts(ref_cells)
    out = []
    for name, chosen in [*groups.items(), (ALL, list(range(len(store))))]:
        counts, mean = cell_counts([cells[i] for i in chosen]), _mean(returns[chosen])
        out.append(
            Measures(
                source=name,
                episodes=len(chosen),
                steps=int(store.lengths[chosen].sum()),
                success=_mean(successes[chosen]),
                mean_return=mean,
                tq=(mean - low) / (high - low) if high > low else math.nan,
                unique=len(counts),
                saco=coverage(counts, whole),
            )
        )
    return out


def return_bounds(returns: Array, sources: Sequence[str]) -> tuple[float, float]:
    """g_random and g_expert from the returns [E] of episodes and their sources; see `measures`."""
    if not len(returns):
        return math.nan, math.nan
    names = np.array(sources)
    low = returns[names == RANDOM].mean() if RANDOM in sources else returns.min()
    high = returns[names == EXPERT].mean() if EXPERT in sources else returns.max()
    return float(low), float(high)


def discretize(pairs: Array, low: Array, high: Array, num_bins: int) -> Array:
    """Cell uint8 [T, D] of each state-action pair [T, D]: every dimension cut into num_bins equal parts of [low, high]."""
    width = np.where(high > low, high - low, 1.0)
    return np.minimum((pairs - low) / width * num_bins, num_bins - 1).astype(np.uint8)


def cell_counts(cells: Sequence[Array]) -> Array:
    """How many pairs each visited cell holds, int64 [u], from the cells [T, D] of episodes."""
    if not cells:
        return np.zeros(0, np.int64)
    rows = np.ascontiguousarray(np.concatenate(cells))
    return np.unique(rows.view(np.dtype((np.void, rows.shape[1]))).ravel(), return_counts=True)[1]


def coverage(counts: Array, reference: Array) -> float:
    """SACo from the counts of the visited cells: unique pairs relative to a reference, at equal numbers of pairs."""
    size = min(counts.sum(), reference.sum())
    return rarefied(counts, size) / rarefied(reference, size) if size else math.nan


def rarefied(counts: Array, size: int) -> float:
    """Expected number of cells in a random sample of `size` of the pairs, without replacement (Hurlbert 1971, eq. 6)."""
    total = counts.sum()
    absent = total - counts
    possible = absent >= size  # a cell so common that no sample misses it is certain
    with np.errstate(invalid="ignore"):
        log = gammaln(absent + 1) - gammaln(absent - size + 1) - gammaln(total + 1) + gammaln(total - size + 1)
    return float(len(counts) - np.exp(log[possible]).sum())


def table(rows: Sequence[Measures]) -> list[str]:
    """The measures as lines of text, the first one their header."""
    lines = [f"{'source':<12}{'episodes':>9}{'steps':>9}{'success':>9}{'return':>9}{'TQ':>7}{'unique':>9}{'SACo':>7}"]
    lines += [
        f"{m.source:<12}{m.episodes:>9}{m.steps:>9}{m.success:>9.1%}{m.mean_return:>9.3f}{m.tq:>7.2f}{m.unique:>9}{m.saco:>7.2f}"
        for m in rows
    ]
    return lines


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else math.nan


def _sources(store: EpisodeStore) -> list[str]:
    named = "source" in store.table.column_names
    return [source or "unknown" for source in store.table["source"].to_pylist()] if named else ["unknown"] * len(store)


def _returns(store: EpisodeStore) -> Array:
    """Return of each episode, float64 [E]: from the table, else the sum of the rewards, else NaN."""
    if "return" in store.table.column_names:
        return np.array([math.nan if value is None else value for value in store.table["return"].to_pylist()], float)
    if REWARD in store.spec.features:
        return np.array([store.read(i, [REWARD])[REWARD].sum() for i in range(len(store))], float)
    return np.full(len(store), math.nan)


def _successes(store: EpisodeStore) -> Array:
    """Success of each episode as 0 or 1, float64 [E]: from the table, else the last step's, else NaN."""
    if "success" in store.table.column_names:
        return np.array([math.nan if value is None else value for value in store.table["success"].to_pylist()], float)
    if SUCCESS in store.spec.features:
        return np.array([store.read(i, [SUCCESS])[SUCCESS][-1] for i in range(len(store))], float)
    return np.full(len(store), math.nan)


def _pairs(store: EpisodeStore, index: int) -> Array:
    """State-action pairs of an episode, float64 [T, D]; actions alone where the dataset has no state."""
    keys = [key for key in (STATE, ACTION) if key in store.spec.features]
    arrays = store.read(index, keys)
    return np.concatenate([arrays[key].reshape(len(arrays[key]), -1) for key in keys], axis=1).astype(float)
