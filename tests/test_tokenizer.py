"""The multi-scale tokenizer and its quantisers, by their properties."""

import numpy as np
import pytest
import torch

from robopolicy.data.transforms import vector_statistics
from robopolicy.models.quantisers import FiniteScalarQuantiser, VectorQuantiser, to_code, to_digits
from robopolicy.models.tokenizer import MultiScaleTokenizer, check_groups, resampling, usage

LEVELS = (4, 3, 5)
KINDS = ({"quantiser": "fsq", "levels": LEVELS}, {"quantiser": "vq", "codebook_size": 12, "code_width": 4})
kinds = pytest.mark.parametrize("kind", KINDS, ids=["fsq", "vq"])


def motions(num, horizon, generator):
    """Smooth motion in three entries, a constant, and a switch between -1 and 1 at a random step."""
    time = torch.linspace(0, 1, horizon)
    start, slope, phase = torch.randn((3, num, 3, 1), generator=generator) * 0.5
    smooth = (start + slope * time + 0.5 * torch.sin(3 * time + phase)).transpose(1, 2)
    switch = torch.randint(0, horizon, (num, 1), generator=generator)
    gripper = torch.where(torch.arange(horizon) < switch, -1.0, 1.0)[..., None]
    return torch.cat([smooth, torch.full_like(gripper, 0.25), gripper], -1)


def fitted(chunks, **options):
    """A tokenizer for chunks that has seen their statistics, and (vq) once the chunks."""
    made = MultiScaleTokenizer(action_dim=chunks.shape[2], action_horizon=chunks.shape[1], **{"width": 16, **options})
    made.fit(vector_statistics(chunks.flatten(0, 1).numpy()))
    with torch.no_grad():
        made.loss(chunks)
    return made


def random_codes(tokenizer, num, generator):
    return [
        torch.randint(0, tokenizer.vocabulary, (num, n, tokenizer.num_groups), generator=generator) for n in tokenizer.scales
    ]


def train(tokenizer, chunks, steps, generator):
    optimizer = torch.optim.Adam(tokenizer.parameters(), 1e-2)
    for _ in range(steps):
        loss = tokenizer.loss(chunks[torch.randint(0, len(chunks), (64,), generator=generator)])[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


# quantisers


def test_codes_and_digits_are_inverse():
    codes = torch.arange(4 * 3 * 5)
    assert torch.equal(to_code(to_digits(codes, LEVELS), LEVELS), codes)


def test_fsq_takes_the_nearest_level(generator):
    quantiser = FiniteScalarQuantiser(LEVELS, 2, 1)
    x = torch.randn((50, 2, 1, 3), generator=generator)
    for scale, gain in enumerate((1.0, 0.5)):
        values, codes, _ = quantiser(x, scale)
        assert torch.allclose(values, quantiser.values(codes, scale), atol=1e-6)
        for entry, count in enumerate(LEVELS):
            grid = torch.linspace(-1, 1, count)
            nearest = grid[(torch.tanh(x[..., entry, None] / gain) - grid).abs().argmin(-1)]
            assert torch.allclose(values[..., entry], gain * nearest, atol=1e-6)


def test_vq_takes_codes_of_its_own_group_and_gives_their_values(generator):
    quantiser = VectorQuantiser(6, 3, 2)
    x = torch.randn((40, 2, 2, 3), generator=generator)
    quantiser(x, 0, learn=True)
    values, codes, loss = quantiser(x, 0)
    assert torch.allclose(values, quantiser.values(codes, 0), atol=1e-6)
    assert codes.shape == (40, 2, 2)
    assert loss.isfinite()
    table = torch.stack([quantiser.values(torch.full((1, 1, 2), code), 0)[0, 0] for code in range(6)], 1)  # [G, K, C]
    for group in range(2):
        distance = torch.cdist(x[:, :, group], table[group])
        assert torch.equal(distance.argmin(-1), codes[:, :, group])


def test_a_codebook_moves_only_when_it_learns(generator):
    quantiser = VectorQuantiser(6, 3, 2)
    x = torch.randn((40, 2, 2, 3), generator=generator)
    quantiser(x, 0, learn=True)
    before = {name: value.clone() for name, value in quantiser.state_dict().items()}
    for _ in range(3):
        quantiser.train()
        quantiser(x + 1, 0)
    assert all(torch.equal(before[name], value) for name, value in quantiser.state_dict().items())
    quantiser(x + 1, 0, learn=True)
    assert any(not torch.equal(before[name], value) for name, value in quantiser.state_dict().items())


@pytest.mark.parametrize("make", [lambda: FiniteScalarQuantiser(LEVELS, 1, 2), lambda: VectorQuantiser(60, 3, 2)])
def test_neighbours_are_codes_of_the_vocabulary(make, generator):
    quantiser = make()
    codes = torch.randint(0, 60, (200, 4, 2), generator=generator)
    moved = quantiser.neighbours(codes, generator)
    assert moved.shape == codes.shape
    assert 0 <= moved.min() <= moved.max() < 60
    assert 0.5 < (moved != codes).float().mean() <= 1
    if quantiser.levels:
        assert ((to_digits(moved, LEVELS) - to_digits(codes, LEVELS)).abs() <= 1).all()


@pytest.mark.parametrize("num_codes", [2, 4])
def test_a_small_codebook_has_neighbours_too(num_codes, generator):
    quantiser = VectorQuantiser(num_codes, 3, 2)
    quantiser(torch.randn((40, 2, 2, 3), generator=generator), 0, learn=True)
    codes = torch.randint(0, num_codes, (50, 4, 2), generator=generator)
    moved = quantiser.neighbours(codes, generator)
    assert moved.max() < num_codes
    assert (moved != codes).all()


# shapes


def test_area_downsampling_keeps_the_mean_and_upsampling_keeps_constants():
    for length in (1, 2, 3, 4):
        down, up = resampling(length, 4)
        assert torch.allclose(down.sum(1), torch.ones(length))
        assert torch.allclose(up.sum(1), torch.ones(4))
    assert all(torch.equal(matrix, torch.eye(4)) for matrix in resampling(4, 4))


def test_groups_cover_every_entry_once():
    assert check_groups(None, 3, 7) == [[0, 1, 2], [3, 4, 5], [6]]
    assert check_groups([[2], [0, 1]], 3, 3) == [[2], [0, 1]]
    for groups in ([[0, 1]], [[0, 1], [1, 2]], [[0], [1], [2], []]):
        with pytest.raises(ValueError, match="exactly once"):
            check_groups(groups, 3, 3)


@kinds
@pytest.mark.parametrize("horizon", [1, 2, 5, 16, 33])
@pytest.mark.parametrize(("dim", "size"), [(1, None), (4, 3), (7, 1), (12, 5)])
def test_any_horizon_and_any_number_of_entries_make_a_round_trip(kind, horizon, dim, size, generator):
    chunks = torch.randn((20, horizon, dim), generator=generator)
    tokenizer = fitted(chunks, group_size=size, scales=(1, 2, 3), **kind).requires_grad_(False)
    codes = tokenizer.encode(chunks)
    assert [part.shape for part in codes] == [(20, n, len(tokenizer.groups)) for n in (1, 2, 3)]
    assert all(part.dtype == torch.int64 and 0 <= part.min() <= part.max() < tokenizer.vocabulary for part in codes)
    assert all(torch.equal(a, b) for a, b in zip(codes, tokenizer.encode(chunks), strict=True))
    residual = tokenizer.quantise(tokenizer.latent(chunks))
    for k, running in enumerate(residual.running):
        assert torch.allclose(tokenizer.decode(codes[: k + 1]), tokenizer.settle(tokenizer.reconstruct(running)), atol=1e-4)
    decoded = tokenizer.decode(random_codes(tokenizer, 50, generator))
    assert decoded.shape == (50, horizon, dim)
    assert decoded.isfinite().all()


@kinds
def test_each_scale_describes_what_the_ones_before_left_over(kind, generator):
    chunks = motions(30, 8, generator)
    tokenizer = fitted(chunks, group_size=2, scales=(1, 2, 4), **kind).requires_grad_(False)
    latent = tokenizer.latent(chunks)
    residual, before = tokenizer.quantise(latent), torch.zeros_like(latent)
    for k, running in enumerate(residual.running):
        left = tokenizer.next_input(latent, k) - tokenizer.next_input(before, k)
        assert torch.equal(tokenizer.quantiser(left, k)[1], residual.codes[k])
        assert torch.allclose(
            running - before, tokenizer.contribution(tokenizer.quantiser.values(residual.codes[k], k), k), atol=1e-5
        )
        before = running


@kinds
def test_the_groups_of_an_action_do_not_mix(kind, generator):
    chunks = motions(30, 8, generator)
    tokenizer = fitted(chunks, groups=[[3, 0], [1, 4, 2]], **kind).requires_grad_(False)
    changed = chunks.clone()
    changed[..., 0] *= -1
    before, after = tokenizer.encode(chunks), tokenizer.encode(changed)
    assert all(torch.equal(a[..., 1], b[..., 1]) for a, b in zip(before, after, strict=True))
    assert any(not torch.equal(a[..., 0], b[..., 0]) for a, b in zip(before, after, strict=True))
    mixed = [torch.stack([b[..., 0], a[..., 1]], -1) for a, b in zip(before, after, strict=True)]
    assert torch.allclose(tokenizer.decode(mixed)[..., [1, 4, 2]], tokenizer.decode(before)[..., [1, 4, 2]], atol=1e-6)


# values


@kinds
def test_every_code_gives_switches_and_constants_a_value_that_occurs(kind, generator):
    chunks = motions(40, 8, generator)
    tokenizer = fitted(chunks, **kind).requires_grad_(False)
    for count in (1, len(tokenizer.scales)):
        decoded = tokenizer.decode(random_codes(tokenizer, 100, generator)[:count])
        assert set(decoded[..., 4].unique().tolist()) == {-1.0, 1.0}
        assert (decoded[..., 3] == 0.25).all()
        assert len(decoded[..., 0].unique()) > 8


def test_settling_takes_the_nearest_value_and_leaves_the_rest(generator):
    tokenizer = fitted(motions(40, 8, generator), levels=LEVELS)
    actions = torch.tensor([[0.123, 5.0, -5.0, 9.0, -0.01], [0.0, 0.0, 0.0, -9.0, 0.01]])
    settled = tokenizer.settle(actions)
    assert torch.equal(settled[:, :3], actions[:, :3])
    assert settled[:, 3:].tolist() == [[0.25, -1.0], [0.25, 1.0]]


@kinds
def test_values_that_were_not_seen_count_as_the_nearest_seen(kind, generator):
    chunks = motions(40, 8, generator)
    tokenizer = fitted(chunks, **kind).requires_grad_(False)
    low, high = chunks.amin((0, 1)), chunks.amax((0, 1))
    for far, edge in ((1e6, high), (-1e6, low)):
        strange = tokenizer.encode(chunks[:1] + far)
        assert all(torch.equal(a, b) for a, b in zip(strange, tokenizer.encode(edge.expand(1, 8, 5)), strict=True))


# learning


@kinds
def test_training_lowers_the_error_and_finer_scales_lower_it_further(kind, generator):
    data, held_out = motions(512, 12, generator), motions(200, 12, generator)
    tokenizer = fitted(
        data, groups=[[0, 1, 2], [3, 4]], width=32, **(kind if kind["quantiser"] == "fsq" else {**kind, "codebook_size": 64})
    )

    def errors():
        with torch.no_grad():
            codes = tokenizer.encode(held_out)
            return [float((tokenizer.decode(codes[:k]) - held_out)[..., :3].square().mean()) for k in (1, 2, 3)]

    before = errors()
    train(tokenizer, data, 200, generator)
    after = errors()
    assert after[-1] < 0.3 * before[-1]
    assert after[0] > after[-1]
    assert after[-1] < 0.3 * float(held_out[..., :3].var())


@kinds
def test_the_loss_gives_every_network_parameter_a_gradient(kind, generator):
    tokenizer = fitted(motions(40, 8, generator), group_size=2, **kind)
    tokenizer.loss(motions(40, 8, generator))[0].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tokenizer.parameters() if p.requires_grad)


def test_slow_errors_weigh_more_and_those_of_switches_do_not(generator):
    chunks = motions(40, 8, generator)
    plain, weighted = (fitted(chunks, low_frequency=weight) for weight in (0.0, 3.0))
    assert plain.is_switch.tolist() == [False, False, False, True, True]
    signs = torch.tensor([1.0, -1.0]).repeat(4)[:, None]
    errors = {"slow": torch.full((8, 1), 0.5), "fast": 0.5 * signs}
    for entries, ratios in {(0, 1, 2): {"slow": 4.0, "fast": 1.0}, (3, 4): {"slow": 1.0, "fast": 1.0}}.items():
        for name, error in errors.items():
            off = torch.zeros(1, 6, 8, 5)
            off[..., list(entries)] = error
            ratio = float(weighted.errors(off) / plain.errors(off))
            # an alternating sign is not quite the highest cosine, so that a little of it is slow
            assert ratio == pytest.approx(ratios[name], abs=0.2 if name == "fast" else 1e-5)


def test_encoding_and_teacher_forcing_leave_a_codebook_alone(generator):
    chunks = motions(40, 8, generator)
    tokenizer = fitted(chunks, **KINDS[1]).train()
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    with torch.no_grad():
        tokenizer.encode(chunks)
        tokenizer.quantise(tokenizer.latent(chunks), 0.3, generator)
    assert all(torch.equal(before[name], value) for name, value in tokenizer.state_dict().items())


def test_disturbed_tokens_are_corrected_by_the_scales_after_them(generator):
    chunks = motions(64, 8, generator)
    tokenizer = fitted(chunks, levels=LEVELS).requires_grad_(False)
    latent = tokenizer.latent(chunks)
    plain, disturbed = tokenizer.quantise(latent), tokenizer.quantise(latent, 1.0, generator)
    assert torch.equal(plain.codes[0], disturbed.codes[0])
    assert not torch.equal(plain.running[0], disturbed.running[0])
    left = tokenizer.next_input(latent - disturbed.running[0], 1)
    assert torch.equal(tokenizer.quantiser(left, 1)[1], disturbed.codes[1])


def test_usage_counts_codes_in_use():
    codes = torch.tensor([[0, 7], [1, 7], [2, 7], [3, 7]])[:, None]
    assert usage(codes, 8).tolist() == pytest.approx([4, 1])


# bad input


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"scales": (4, 2)}, "scales"),
        ({"scales": ()}, "scales"),
        ({"scales": (0, 1)}, "scales"),
        ({"levels": (1, 5)}, "levels"),
        ({"levels": ()}, "levels"),
        ({"group_size": 0}, "group_size"),
        ({"groups": [[0, 1]]}, "groups"),
        ({"quantiser": "lfq"}, "lfq.*fsq, vq"),
        ({"quantiser": "vq", "codebook_size": 1}, "codebook_size"),
        ({"quantiser": "vq", "code_width": 0}, "code_width"),
        ({"prefix_weight": -1.0}, "prefix_weight=-1.0"),
        ({"low_frequency": float("nan")}, "low_frequency=nan"),
    ],
)
def test_a_tokenizer_that_cannot_work_is_refused(wrong, named):
    with pytest.raises(ValueError, match=named):
        MultiScaleTokenizer(action_dim=3, action_horizon=8, **wrong)


@pytest.mark.parametrize("count", [0, 4])
def test_codes_of_no_scale_or_too_many_are_refused(count, generator):
    tokenizer = MultiScaleTokenizer(action_dim=2, action_horizon=4, levels=LEVELS)
    codes = [*random_codes(tokenizer, 1, generator), torch.zeros((1, 1, 1), dtype=torch.int64)][:count]
    with pytest.raises(ValueError, match=f"codes of {count} scales"):
        tokenizer.decode(codes)


def test_statistics_need_no_particular_precision():
    tokenizer = MultiScaleTokenizer(action_dim=1, action_horizon=2, levels=LEVELS)
    tokenizer.fit(vector_statistics(np.array([[0.0], [1.0]])))
    assert tokenizer.settle(torch.tensor([[0.4], [0.6]])).flatten().tolist() == [0.0, 1.0]
