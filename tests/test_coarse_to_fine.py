"""The coarse-to-fine transformer by its properties."""

import itertools

import pytest
import torch

from robopolicy.models.coarse_to_fine import CoarseToFineTransformer, block_causal_mask, ordinal_targets
from robopolicy.models.sampling import Decoding, draw
from robopolicy.models.tokenizer import MultiScaleTokenizer

LEVELS = (4, 3, 5)
PAPER = {"num_categorical": None, "refine": False, "own_tokens": 0.0, "self_correction": 0.0}
VARIANTS = {
    "default": ({}, {}),
    "three scales": ({"scales": (1, 2, 3), "group_size": 2}, {"refine_width": 16}),
    "digits only": ({}, {"num_categorical": 0, "refine": False, "own_tokens": 0.0}),
    "one scale": ({"scales": (1,)}, {"refine_depth": 1}),
    "paper": ({"quantiser": "vq", "codebook_size": 6, "code_width": 4, "group_size": 1, "scales": (1, 2, 3, 4)}, PAPER),
}


def make(tokenizer_options=None, options=None, action_dim=5, action_horizon=8):
    sizes = {"scales": (1, 2), "levels": LEVELS, "width": 16, **(tokenizer_options or {})}
    tokenizer = MultiScaleTokenizer(action_dim=action_dim, action_horizon=action_horizon, **sizes)
    small = {"context_width": 12, "width": 16, "depth": 2, "num_heads": 2, **(options or {})}
    return tokenizer, CoarseToFineTransformer(tokenizer=tokenizer, **small)


@pytest.fixture(params=list(VARIANTS))
def pair(request):
    return make(*VARIANTS[request.param])


def optimise(parameters, loss, steps, learning_rate=3e-3):
    optimizer = torch.optim.Adam(parameters, learning_rate)
    for _ in range(steps):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()


def residual_of(tokenizer, generator, batch=4):
    chunks = torch.randn((batch, tokenizer.action_horizon, tokenizer.action_dim), generator=generator)
    return tokenizer.quantise(tokenizer.latent(chunks))


def test_a_finer_scale_cannot_change_the_logits_of_a_coarser_one(generator):
    tokenizer, transformer = make({"scales": (1, 2, 3), "group_size": 2})
    context, residual = torch.randn((4, 12), generator=generator), residual_of(tokenizer, generator)
    before, refined = transformer(context, residual, tokenizer)
    residual.running[1] = residual.running[1] + 1  # what scale 3 starts from
    after, _ = transformer(context, residual, tokenizer)
    for coarse in (0, 1):
        assert torch.allclose(before[coarse], after[coarse], atol=1e-6)
    assert not torch.allclose(before[2], after[2], atol=1e-3)
    residual.running[2] = residual.running[2] + 1  # what the continuous scale starts from
    last, changed = transformer(context, residual, tokenizer)
    assert torch.allclose(last[2], after[2], atol=1e-6)
    assert not torch.allclose(refined, changed, atol=1e-3)


def test_tokens_of_a_scale_see_each_other(generator):
    tokenizer, transformer = make({"scales": (1, 2), "group_size": 2})
    context, residual = torch.randn((4, 12), generator=generator), residual_of(tokenizer, generator)
    before = transformer(context, residual, tokenizer)[0][1][:, 0]
    residual.running[0] = residual.running[0].clone()
    residual.running[0][:, -1, -1] += 1  # the start of the last token of scale 2
    assert not torch.allclose(before, transformer(context, residual, tokenizer)[0][1][:, 0], atol=1e-4)


def test_the_mask_is_block_causal():
    mask = block_causal_mask([1, 2, 0, 1])
    assert mask.tolist() == [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize("decoding", [Decoding(), Decoding(1.0, 0.5), Decoding(1.0, 0.0, 2)])
def test_cached_and_uncached_sampling_agree(pair, decoding, generator):
    tokenizer, transformer = pair
    context = torch.randn((4, 12), generator=generator)
    chunks = [
        transformer.sample(context, tokenizer, decoding, torch.Generator().manual_seed(3), 3, use_cache=cached)
        for cached in (True, False)
    ]
    assert torch.allclose(*chunks, atol=1e-5)
    assert chunks[0].shape == (4, 3, 8, 5)


def test_samples_of_a_context_share_its_pass_and_equal_those_of_repeated_contexts(pair, generator):
    tokenizer, transformer = pair
    context = torch.randn((2, 12), generator=generator)
    together = transformer.sample(context, tokenizer, Decoding(), generator, 3)
    apart = transformer.sample(context.repeat_interleave(3, 0), tokenizer, Decoding(), generator)
    assert torch.allclose(together.flatten(0, 1), apart[:, 0], atol=1e-5)


def test_probabilities_of_all_token_sequences_sum_to_one():
    tokenizer, transformer = make({"levels": (2, 2), "scales": (1, 2)}, {"refine": False}, 2, 4)
    total = 0.0
    quantiser = tokenizer.quantiser
    for code in itertools.product(range(4), repeat=3):
        codes = [torch.tensor(code[:1]).view(1, 1, 1), torch.tensor(code[1:]).view(1, 2, 1)]
        parts = [tokenizer.contribution(quantiser.values(part, k), k) for k, part in enumerate(codes)]
        residual = type(residual_of(tokenizer, torch.Generator()))(codes, [parts[0], parts[0] + parts[1]], torch.zeros(()))
        tokenizer.quantise = lambda latent, residual=residual: residual
        total += transformer.log_prob(torch.zeros((1, 12)), torch.zeros((1, 4, 2)), tokenizer).exp().item()
    assert total == pytest.approx(1, abs=1e-4)


def test_the_density_of_what_tokens_leave_integrates_to_one():
    tokenizer, transformer = make({"scales": (1,)}, {"own_tokens": 0.0}, 1, 1)
    residual = residual_of(tokenizer, torch.Generator().manual_seed(0), 1)
    tokenizer.quantise = lambda latent: type(residual)(
        [c.expand(len(latent), -1, -1) for c in residual.codes],
        [r.expand(len(latent), -1, -1, -1) for r in residual.running],
        0,
    )
    grid = torch.linspace(-30, 30, 60001)
    with torch.no_grad():
        log_prob = transformer.log_prob(torch.zeros((len(grid), 12)), grid.view(-1, 1, 1), tokenizer)
        codes = transformer(torch.zeros((1, 12)), residual, tokenizer)[0][0].log_softmax(-1)[0, 0, residual.codes[0].item()]
    assert (log_prob - codes).exp().sum().item() * 0.001 == pytest.approx(1, abs=1e-3)


def test_learned_chunks_are_drawn_and_likely(pair, generator):
    tokenizer, transformer = pair
    context = torch.randn((2, 12), generator=generator)
    chunks = torch.randn((2, 8, 5), generator=generator)
    optimise(tokenizer.parameters(), lambda: tokenizer.loss(chunks)[0], 100, 1e-2)
    optimise(transformer.parameters(), lambda: transformer.loss(context, chunks, tokenizer, generator)[0], 250)
    right, swapped = (transformer.log_prob(context, x, tokenizer) for x in (chunks, chunks.flip(0)))
    assert (right > swapped).all()
    drawn = transformer.sample(context, tokenizer, Decoding(), generator)[:, 0]
    own, other = ((drawn - x).abs().mean((1, 2)) for x in (chunks, chunks.flip(0)))
    assert (own < 0.7 * other).all()


def test_every_parameter_gets_a_gradient_and_the_tokenizer_none(pair, generator):
    tokenizer, transformer = pair
    chunks = torch.randn((8, 8, 5), generator=generator)
    transformer.loss(torch.randn((8, 12), generator=generator), chunks, tokenizer, generator)[0].backward()
    alone = sum(transformer.lengths) == 1  # one token attends to itself, with weight 1 whatever the scale
    wanted = {n: p for n, p in transformer.named_parameters() if not (alone and n.endswith("log_scale"))}
    missing = [n for n, p in wanted.items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not missing
    assert all(p.grad is None for p in tokenizer.parameters())


def two_ways(num, generator):
    """Chunks [num, 8, 2] that go left or right of zero, exactly as often, with some spread; contexts that do not tell which."""
    side = torch.where(torch.rand((num, 1), generator=generator) < 0.5, -1.0, 1.0)
    height = 1 + 0.1 * torch.randn((num, 1), generator=generator)
    time = torch.linspace(0, 3.14159, 8)
    return torch.zeros((num, 12)), torch.stack([torch.ones((num, 8)), side * height * time.sin()], -1)


@pytest.mark.parametrize("own_tokens", [0.0, 1.0])
def test_both_ways_are_kept_and_never_averaged(own_tokens, generator):
    tokenizer, transformer = make({"levels": (5, 5), "width": 32}, {"width": 32, "own_tokens": own_tokens}, 2)
    context, chunks = two_ways(256, generator)
    optimise(tokenizer.parameters(), lambda: tokenizer.loss(chunks)[0], 200, 1e-2)
    optimise(transformer.parameters(), lambda: transformer.loss(context, chunks, tokenizer, generator)[0], 200, 3e-3)
    drawn = transformer.sample(torch.zeros((1, 12)), tokenizer, Decoding(1.0, 0.0), generator, 200)[0]
    middle = drawn[:, 4, 1]
    assert (middle.abs() > 0.6).float().mean() > 0.95
    assert 0.25 < (middle > 0).float().mean() < 0.75
    best = transformer.sample(torch.zeros((1, 12)), tokenizer, Decoding(), generator)[0, 0, 4, 1]
    assert abs(best) > 0.6


def test_the_policys_own_tokens_stay_in_the_mode_of_the_demonstration(generator):
    tokenizer, transformer = make({"levels": (5, 5), "width": 32}, {"width": 32}, 2)
    context, chunks = two_ways(256, generator)
    optimise(tokenizer.parameters(), lambda: tokenizer.loss(chunks)[0], 200, 1e-2)
    with torch.no_grad():  # untrained: every code is equally likely
        codes = transformer._own_codes(context, chunks, tokenizer, generator)
        running = tokenizer.quantise(tokenizer.latent(chunks), given_B1G=codes).running[0]
        decoded = tokenizer.reconstruct(running)
    same = (decoded[:, 4, 1] > 0) == (chunks[:, 4, 1] > 0)
    assert same.float().mean() > 0.95
    assert len(codes.unique()) > 2


def test_drawing_follows_temperature_and_top_k(generator):
    logits = torch.tensor([0.0, 1.0, -1.0]).expand(20000, 3)
    assert (draw(logits, 0.0, generator) == 1).all()
    for temperature in (0.5, 1.0):
        share = torch.bincount(draw(logits, temperature, generator), minlength=3) / 20000
        assert torch.allclose(share, (logits[0] / temperature).softmax(-1), atol=0.02)
    share = torch.bincount(draw(logits, 1.0, generator, top_k=2), minlength=3) / 20000
    assert share[2] == 0
    assert torch.allclose(share[:2], logits[0, :2].softmax(-1), atol=0.02)


def test_ordinal_targets_peak_at_the_level_and_fall_with_distance():
    target = ordinal_targets(5, 0.6)
    assert torch.allclose(target.sum(1), torch.ones(5))
    assert (target.argmax(1) == torch.arange(5)).all()
    assert (target[0].diff() < 0).all()
    assert torch.equal(ordinal_targets(4, 0.0), torch.eye(4))


@pytest.mark.parametrize(
    ("tokenizer_options", "options", "message"),
    [
        ({}, {"num_categorical": 3, "own_tokens": 0.0}, "num_categorical=3 must be in 0..2"),
        ({"scales": (2, 4)}, {}, "set own_tokens=0"),
        ({}, {"self_correction": 1.5}, "self_correction=1.5 must be in"),
        ({"quantiser": "vq", "codebook_size": 4}, {}, "set num_categorical=null or quantiser=fsq"),
    ],
)
def test_settings_that_cannot_work_are_refused(tokenizer_options, options, message):
    with pytest.raises(ValueError, match=message):
        make(tokenizer_options, options)
