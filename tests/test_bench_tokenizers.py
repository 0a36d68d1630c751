"""tools/bench_tokenizers.py: the reference tokenizers, by their properties. No training, no simulator."""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from tokenizer_bench.references import BytePairs, CosineTokens, UniformBins

STEPS, ENTRIES = 16, 3


@pytest.fixture
def chunks():
    rng = np.random.default_rng(0)
    time = np.linspace(0, 1, STEPS)[:, None]
    start, slope, phase = rng.standard_normal((3, 200, 1, ENTRIES))
    return start + slope * time + 0.3 * np.sin(6 * time + phase)


def error(decoded, chunks):
    return np.abs(decoded - chunks).mean()


def test_all_cosine_tokens_are_within_their_rounding(chunks):
    for scale in (10, 1000):
        tokens = CosineTokens(chunks, scale)
        decoded = tokens.decode(tokens.encode(chunks))
        distance = np.sqrt(((decoded - chunks) ** 2).sum(1))  # the transform keeps lengths
        assert distance.max() <= 0.5 / scale * np.sqrt(STEPS) + 1e-9


def test_more_cosine_tokens_never_add_error(chunks):
    tokens = CosineTokens(chunks, 1000)
    encoded = tokens.encode(chunks)
    errors = [((tokens.decode(encoded[:, :n]) - chunks) ** 2).mean() for n in range(STEPS * ENTRIES + 1)]
    assert all(later <= earlier + 1e-6 for earlier, later in pairwise(errors))
    assert errors[2 * ENTRIES] < 0.2 * errors[0]
    assert tokens.bits(4) < tokens.bits(8)


def test_a_constant_chunk_needs_the_first_frequency_only(chunks):
    tokens = CosineTokens(chunks, 1000)
    constant = np.broadcast_to(np.array([0.1, -0.2, 0.3]), (1, STEPS, ENTRIES))
    assert np.allclose(tokens.decode(tokens.encode(constant)[:, :ENTRIES]), constant, atol=1e-3)


def test_bins_at_every_step_are_within_half_a_bin(chunks):
    bins = UniformBins(chunks, STEPS * ENTRIES)
    half = (chunks.max((0, 1)) - chunks.min((0, 1))) / 512
    assert (np.abs(bins.decode(bins.encode(chunks)) - chunks) <= half + 1e-9).all()


def test_more_bins_lower_the_error_and_lines_are_kept(chunks):
    made = [UniformBins(chunks, n) for n in (1, 3, 6, 12, 48)]
    errors = [error(bins.decode(bins.encode(chunks)), chunks) for bins in made]
    assert errors == sorted(errors, reverse=True)
    assert [bins.encode(chunks).shape[1] for bins in made] == [1, 3, 6, 12, 48]
    line = np.linspace(-0.5, 0.5, STEPS)[None, :, None].repeat(ENTRIES, 2)
    assert np.allclose(made[2].decode(made[2].encode(line)), line, atol=0.03)


def test_entries_without_a_token_decode_to_their_mean(chunks):
    bins = UniformBins(chunks, 1)
    assert np.allclose(bins.decode(bins.encode(chunks))[..., 1:], chunks.mean((0, 1))[1:])


@pytest.mark.parametrize("count", [0, STEPS * ENTRIES + 1])
def test_a_number_of_bins_that_cannot_be_is_refused(chunks, count):
    with pytest.raises(ValueError, match=f"num_tokens={count}"):
        UniformBins(chunks, count)


def test_what_was_not_seen_is_clamped(chunks):
    bins, cosine = UniformBins(chunks, 48), CosineTokens(chunks, 10)
    assert np.allclose(bins.decode(bins.encode(chunks[:1] + 1e6)), chunks.max((0, 1)), atol=0.05)
    assert np.array_equal(cosine.encode(chunks[:1] + 1e6)[0, :ENTRIES], cosine.high[:ENTRIES])


def test_pairs_that_recur_become_one_token():
    rows = np.tile([0, 0, 0, 0, 5, 6], (4, 1))
    assert BytePairs(rows, 3).mean_count(rows) == 6
    assert BytePairs(rows, 4).mean_count(rows) == 4  # 00 00 5 6
    assert BytePairs(rows).mean_count(rows) == 1
    assert BytePairs(rows).mean_count(np.array([[6, 6, 6, 5, 5, 5]])) == 6
