"""Tokenizers of chunks that learn nothing but ranges: cosine coefficients as in FAST (arXiv 2501.09747), and uniform bins.

Both take normalised chunks float [N, H, A] and clamp to what they saw in the chunks that they were made from.
"""

from __future__ import annotations

import numpy as np
from scipy.fft import dct, idct

from robopolicy.spec import Array


class CosineTokens:
    """Rounded coefficients of the orthonormal DCT-II of each entry; low frequencies first, of a frequency all entries.

    Any first few tokens decode: the missing coefficients are 0. FAST's own token count is that of BytePairs over all of them.

    Args:
        chunks: training chunks; each coefficient keeps to the integers that it spans there.
        scale: integers per unit of a coefficient; FAST's default is 10.
    """

    def __init__(self, chunks: Array, scale: float) -> None:
        self.scale, self.shape = scale, chunks.shape[1:]
        integers = self._integers(chunks)
        self.low, self.high = integers.min(0), integers.max(0)

    def _integers(self, chunks: Array) -> Array:
        return np.rint(self.scale * dct(chunks, axis=1, norm="ortho")).astype(np.int64).reshape(len(chunks), -1)

    def encode(self, chunks: Array) -> Array:
        """Tokens int64 [N, H A]."""
        return np.clip(self._integers(chunks), self.low, self.high)

    def decode(self, tokens: Array) -> Array:
        """Chunks [N, H, A] of the first few tokens [N, n], n <= H A."""
        padded = np.pad(tokens, ((0, 0), (0, len(self.low) - tokens.shape[1])))
        return idct(padded.reshape(-1, *self.shape) / self.scale, axis=1, norm="ortho")

    def bits(self, num_tokens: int) -> float:
        """Bits of the first tokens, when each is one of the integers of its coefficient."""
        return float(np.log2(self.high - self.low + 1)[:num_tokens].sum())


class UniformBins:
    """Each entry at evenly spaced steps in one of `bins` equal intervals of its range, linear in between.

    With fewer tokens than entries, the entries that get none decode to their mean; with one, it is of the middle step.

    Args:
        chunks: training chunks, which give range and mean.
        num_tokens: shared evenly by the entries, the first ones take what is left over; at most one per step.
    """

    def __init__(self, chunks: Array, num_tokens: int, bins: int = 256) -> None:
        steps, entries = chunks.shape[1:]
        if not 1 <= num_tokens <= steps * entries:
            raise ValueError(f"num_tokens={num_tokens} must be in 1..{steps * entries}, steps times entries")
        self.steps, self.bins, self.num_tokens = steps, bins, num_tokens
        self.low, self.high, self.mean = chunks.min((0, 1)), chunks.max((0, 1)), chunks.mean((0, 1))
        counts = [num_tokens // entries + (entry < num_tokens % entries) for entry in range(entries)]
        self.knots = [np.rint(np.linspace(0, steps - 1, n)).astype(int) if n != 1 else np.array([steps // 2]) for n in counts]

    def encode(self, chunks: Array) -> Array:
        """Tokens int64 [N, num_tokens], entry after entry."""
        width = np.where(self.high > self.low, self.high - self.low, 1.0)
        tokens = np.floor((chunks - self.low) / width * self.bins).clip(0, self.bins - 1).astype(np.int64)
        return np.concatenate([tokens[:, knots, entry] for entry, knots in enumerate(self.knots)], 1)

    def decode(self, tokens: Array) -> Array:
        """Chunks [N, H, A]."""
        columns, first = [], 0
        for entry, knots in enumerate(self.knots):
            part = tokens[:, first : first + len(knots)]
            values = self.low[entry] + (part + 0.5) / self.bins * (self.high - self.low)[entry]
            columns.append(_interpolated(values, knots, self.steps) if len(knots) else self._mean(entry, len(tokens)))
            first += len(knots)
        return np.stack(columns, -1)

    def _mean(self, entry: int, num: int) -> Array:
        return np.full((num, self.steps), self.mean[entry])

    def bits(self) -> float:
        """Bits of a chunk."""
        return self.num_tokens * float(np.log2(self.bins))


def _interpolated(values: Array, knots: Array, steps: int) -> Array:
    """Values [N, steps] of values [N, k] at `knots`, held beyond the outer ones."""
    weights = np.stack([np.interp(np.arange(steps), knots, unit) for unit in np.eye(len(knots))])
    return values @ weights


class BytePairs:
    """Byte-pair encoding of rows of integers: what it takes FAST's coefficients to, in number, with a vocabulary of its size.

    Args:
        rows: training rows int [N, L]. vocabulary: number of tokens, those of single integers included.
    """

    def __init__(self, rows: Array, vocabulary: int = 1024) -> None:
        self.alphabet = np.unique(rows)
        self.merges: list[tuple[int, int]] = []
        flat, size = self._flat(rows), max(vocabulary, len(self.alphabet))
        for new in range(len(self.alphabet), size):
            left, right = flat[:-1], flat[1:]
            inside = (left >= 0) & (right >= 0)
            counts = np.bincount(left[inside] * size + right[inside])
            if not len(counts) or counts.max() < 2:
                break
            pair = divmod(int(counts.argmax()), size)
            self.merges.append(pair)
            flat = _merged(flat, *pair, new)

    def _flat(self, rows: Array) -> Array:
        """Rows as places in the alphabet (of the nearest integer below where one is new), each ended by -1."""
        places = np.clip(np.searchsorted(self.alphabet, rows, side="right") - 1, 0, None)
        return np.pad(places, ((0, 0), (0, 1)), constant_values=-1).ravel()

    def mean_count(self, rows: Array) -> float:
        """Mean number of tokens of rows int [N, L]."""
        flat = self._flat(rows)
        for i, pair in enumerate(self.merges):
            flat = _merged(flat, *pair, len(self.alphabet) + i)
        return float((flat >= 0).sum() / len(rows))


def _merged(flat: Array, left: int, right: int, new: int) -> Array:
    at = np.flatnonzero((flat[:-1] == left) & (flat[1:] == right))
    if left == right and len(at):  # a run of n equal tokens holds n // 2 pairs
        start = np.maximum.accumulate(np.where(np.diff(at, prepend=at[0] - 2) != 1, at, 0))
        at = at[(at - start) % 2 == 0]
    flat = flat.copy()
    flat[at] = new
    return np.delete(flat, at + 1)
