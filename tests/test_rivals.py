"""Schedules, samplers and decoding of the policies that CARP is compared with."""

import functools
import math

import numpy as np
import pytest
import torch

from robopolicy.models.chunk_transformer import ChunkTransformer, TimedChunkTransformer
from robopolicy.models.encoders import ObservationEncoder
from robopolicy.policies.act import ActPolicy
from robopolicy.policies.autoregressive import AutoregressivePolicy
from robopolicy.policies.candidates import around, noise_source
from robopolicy.policies.diffusion import DiffusionPolicy, cosine_alphas, spaced_steps
from robopolicy.policies.flow import FlowPolicy
from robopolicy.policies.mip import MipPolicy
from robopolicy.spec import ACTION, STATE, FeatureSpec

SMALL = {"width": 32, "depth": 1, "num_heads": 2}
TIMED = {"transformer": functools.partial(TimedChunkTransformer, **SMALL)}
PLAIN = {"transformer": functools.partial(ChunkTransformer, **SMALL)}
OPTIONS = {DiffusionPolicy: TIMED, FlowPolicy: TIMED, MipPolicy: TIMED, ActPolicy: PLAIN, AutoregressivePolicy: PLAIN}


def make(kind, **options):
    encoder = functools.partial(ObservationEncoder, width=16)
    horizons = {"action_horizon": 4, "execute_horizon": 2}
    features = {STATE: FeatureSpec((3,))}
    return kind(features, FeatureSpec((2,)), 20.0, encoder=encoder, **{**horizons, **OPTIONS[kind], **options})


# trunk


def test_passes_at_several_times_are_single_passes(generator):
    net = TimedChunkTransformer(context_width=16, action_horizon=4, action_dim=2, **SMALL)
    context, chunks = torch.randn(3, 16, generator=generator), torch.randn(6, 4, 2, generator=generator)
    for time, modulations in zip((0.0, 0.3, 0.9), net.passes(context, (0.0, 0.3, 0.9), 2), strict=True):
        expected = net.at(chunks, context.repeat_interleave(2, 0), torch.full((6,), time))
        assert torch.allclose(net.run(chunks, modulations)[0], expected, atol=1e-6)
    alone = next(net.passes(context[:1], [0.5], 6))
    assert torch.allclose(net.run(chunks, alone)[0], net.at(chunks, context[:1], torch.full((1,), 0.5)), atol=1e-6)


def test_the_output_depends_on_chunk_context_and_time(generator):
    net = TimedChunkTransformer(context_width=16, action_horizon=4, action_dim=2, **SMALL)
    chunk, context, time = torch.randn(1, 4, 2), torch.randn(1, 16), torch.tensor([0.2])
    before = net.at(chunk, context, time)
    for changed in ((chunk + 1, context, time), (chunk, -context, time), (chunk, context, time + 0.01)):
        assert (net.at(*changed) - before).abs().max() > 1e-4


# diffusion


def test_the_schedule_is_a_squared_cosine():
    alphas = cosine_alphas(100)
    t = torch.arange(1, 100, dtype=torch.float64) / 100
    level = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert torch.allclose(alphas[:-1], level, rtol=1e-9)
    assert alphas[-1] / alphas[-2] == pytest.approx(0.001)  # beta is capped at 0.999


def test_steps_run_from_pure_noise_to_the_cleanest():
    assert spaced_steps(100, 100) == list(range(99, -1, -1))
    assert spaced_steps(100, 4) == [99, 74, 49, 24]
    for num in range(1, 101):
        steps = spaced_steps(100, num)
        assert steps[0] == 99
        assert len(set(steps)) == num
        assert steps == sorted(steps, reverse=True)
        assert steps[-1] >= 0


@pytest.mark.parametrize(("sampler", "num"), [("ddpm", None), ("ddpm", 10), ("ddim", None), ("ddim", 3), ("ddim", 1)])
def test_a_perfect_denoiser_recovers_the_data(sampler, num, generator, monkeypatch):
    policy = make(DiffusionPolicy, sampler=sampler, num_inference_steps=num)
    data = torch.rand((2, 1, 4, 2), generator=generator).mul(2).sub(1)
    visited = []

    def noise_in(chunks, time):
        visited.append(time)
        alpha = policy.alphas[round(time * 100)]
        return (chunks - math.sqrt(alpha) * data.flatten(0, 1)) / math.sqrt(1 - alpha), []

    monkeypatch.setattr(policy.transformer, "passes", lambda context, times, repeats: times)
    monkeypatch.setattr(policy.transformer, "run", noise_in)
    assert torch.allclose(policy.propose(torch.zeros(2, 16), 1, generator), data, atol=1e-3)
    assert len(visited) == (num or {"ddpm": 100, "ddim": 16}[sampler])


def test_ddpm_draws_from_the_data_where_the_best_denoiser_is_known(generator, monkeypatch):
    """Data N(0.2, 0.3^2): the expected noise is linear in the chunk, so the samples' moments are known."""
    mean, std = 0.2, 0.3
    policy = make(DiffusionPolicy, sample_clip=None)

    def expected_noise(chunks, time):
        alpha = policy.alphas[round(time * 100)]
        return math.sqrt(1 - alpha) * (chunks - math.sqrt(alpha) * mean) / (alpha * std**2 + 1 - alpha), []

    monkeypatch.setattr(policy.transformer, "passes", lambda context, times, repeats: times)
    monkeypatch.setattr(policy.transformer, "run", expected_noise)
    for sampler, num in (("ddpm", 100), ("ddim", 100)):
        policy.set_sampler(sampler, num)
        samples = policy.propose(torch.zeros(1, 16), 2000, generator)
        assert samples.mean() == pytest.approx(mean, abs=0.02)
        assert samples.std() == pytest.approx(std, abs=0.02)


def test_samples_stay_within_the_clip_that_was_asked_for(generator):
    for clip in (0.5, 1.5):
        for sampler in ("ddim", "ddpm"):
            chunks = make(DiffusionPolicy, sampler=sampler, sample_clip=clip).propose(torch.randn(3, 16), 4, generator)
            assert chunks.abs().max() <= clip + 1e-6
    for clip in (0.0, -1.5):
        with pytest.raises(ValueError, match=f"sample_clip={clip}"):
            make(DiffusionPolicy, sample_clip=clip)


def test_samplers_share_weights_and_bad_ones_are_refused():
    policy = make(DiffusionPolicy)
    other = make(DiffusionPolicy, sampler="ddim", num_inference_steps=8)
    other.load_state_dict(policy.state_dict(), strict=True)
    policy.set_sampler("ddim", 8)
    observation = {STATE: np.ones((2, 1, 3), np.float32)}
    assert np.array_equal(policy.sample(observation, 3, 0), other.sample(observation, 3, 0))
    with pytest.raises(ValueError, match=r"sampler='dpm'.*ddpm"):
        policy.set_sampler("dpm")
    for num in (101, 0, -1):
        with pytest.raises(ValueError, match=f"num_inference_steps={num} must be in 1..num_training_steps=100"):
            policy.set_sampler("ddim", num)


# flow


@pytest.mark.parametrize("num", [1, 4, 9])
def test_a_perfect_velocity_recovers_the_data(num, generator, monkeypatch):
    policy = make(FlowPolicy, num_inference_steps=num)
    data = torch.randn((2, 3, 4, 2), generator=generator)
    monkeypatch.setattr(policy.transformer, "passes", lambda context, times, repeats: times)
    monkeypatch.setattr(policy.transformer, "run", lambda x, time: ((data.flatten(0, 1) - x) / (1 - time), []))
    assert torch.allclose(policy.propose(torch.zeros(2, 16), 3, generator), data, atol=1e-5)
    with pytest.raises(ValueError, match="num_inference_steps=0"):
        make(FlowPolicy, num_inference_steps=0)


# candidates


def test_noise_of_candidate_zero_is_the_same_for_any_number():
    sources = [noise_source((3, num, 4, 2), torch.Generator().manual_seed(5), torch.device("cpu")) for num in (1, 6)]
    for _ in range(3):
        alone, among = (source() for source in sources)
        assert torch.equal(alone, among.unflatten(0, (3, 6))[:, 0])
        assert among.unique().numel() == among.numel()


def test_candidates_of_a_regression_surround_it(generator):
    chunks = torch.randn(2, 16, 3)
    candidates = around(chunks, 400, 0.1, generator)
    assert torch.equal(candidates[:, 0], chunks)
    assert (candidates[:, 1:] - chunks.unsqueeze(1)).std() == pytest.approx(0.1, abs=0.005)


# autoregressive


def test_cached_decoding_equals_decoding_without(generator):
    policy = make(AutoregressivePolicy)
    torch.nn.init.normal_(policy.transformer.head.weight)
    context = torch.randn(3, 16, generator=generator)
    chunks = policy.decode(context, 0.0, generator)
    logits = policy._logits(context, policy._tokens(chunks))
    assert torch.equal(logits.argmax(-1), policy._tokens(chunks))
    assert policy._tokens(chunks).unique().numel() > 5


def test_a_step_depends_on_earlier_ones_alone(generator):
    policy = make(AutoregressivePolicy)
    context, tokens = torch.randn(1, 16), torch.zeros((1, 4, 2), dtype=torch.long)
    changed = tokens.clone()
    changed[:, 2] = 200
    difference = (policy._logits(context, changed) - policy._logits(context, tokens)).abs().amax((0, 2, 3))
    assert difference[:3].max() == 0
    assert difference[3] > 0


def test_levels_are_a_bin_apart_and_rarer_actions_count_as_the_nearest():
    policy = make(AutoregressivePolicy)
    actions = torch.linspace(-1, 1, 1001)
    assert (policy._levels(policy._tokens(actions)) - actions).abs().max() <= 1 / 255 + 1e-6
    assert policy._levels(policy._tokens(torch.tensor([-7.0, -1.0, 1.0, 3.0]))).tolist() == [-1, -1, 1, 1]


def test_probabilities_of_all_chunks_add_up_to_one():
    policy = make(AutoregressivePolicy, action_horizon=2, num_bins=3)
    torch.nn.init.normal_(policy.transformer.head.weight)
    grid = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 4).view(1, 81, 2, 2)
    log_prob = policy.log_prob({STATE: np.ones((1, 1, 3), np.float32)}, grid.numpy())
    assert np.exp(log_prob).sum() == pytest.approx(1, abs=1e-5)
    assert np.exp(log_prob).max() > 2 / 81


def test_top_one_is_the_most_likely_chunk(generator):
    policy = make(AutoregressivePolicy, top_k=1, temperature=5.0)
    context = torch.randn(2, 16)
    assert torch.equal(policy.decode(context, 5.0, generator), policy.decode(context, 0.0, generator))
    policy.top_k = 2
    drawn = torch.stack([policy.decode(context, 5.0, generator)[:, 0] for _ in range(40)])
    assert all(drawn[:, b, a].unique().numel() == 2 for b in range(2) for a in range(2))


# style


def test_a_style_variable_is_trained_and_its_candidates_differ_by_more_than_noise(generator):
    policy = make(ActPolicy, latent_dim=4, proposal_std=0.0, kl_weight=1.0)
    batch = {STATE: torch.ones(8, 1, 3), ACTION: torch.randn(8, 4, 2)}
    loss, metrics = policy.loss("policy", batch, generator)
    loss.backward()
    assert metrics["divergence"] > 0
    assert all(parameter.grad is not None for parameter in policy.parameters())
    chunks = policy.sample({STATE: np.ones((1, 1, 3), np.float32)}, 5, 0)
    assert np.ptp(chunks[0, 1:], axis=0).max() > 1e-4
    assert make(ActPolicy, latent_dim=0).sample({STATE: np.ones((1, 1, 3), np.float32)}, 1).shape == (1, 1, 4, 2)


# two modes


def two_mode_batch(generator, size=64):
    """One observation, two answers: the first entry of all steps at 0.8 or at -0.8; the second is always 0.3."""
    side = torch.randint(0, 2, (size, 1, 1), generator=generator) * 2.0 - 1
    action = torch.cat([0.8 * side, torch.full_like(side, 0.3)], -1)
    return {STATE: torch.ones(size, 1, 3), ACTION: action.expand(-1, 4, 2).contiguous()}


@pytest.mark.parametrize("kind", OPTIONS, ids=lambda kind: kind.__name__)
def test_generative_policies_keep_two_modes_where_regressions_have_one(kind, generator):
    policy = make(kind)
    optimizer = torch.optim.Adam(policy.parameters(), 3e-3)
    for step in range(350):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 350)
        loss, metrics = policy.loss("policy", two_mode_batch(generator), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if kind is DiffusionPolicy:
        policy.set_sampler("ddim", 16)
    if kind is FlowPolicy:
        policy.num_inference_steps = 16
    candidates = policy.sample({STATE: np.ones((1, 1, 3), np.float32)}, 301, 0)[0]
    sides = candidates[1:, :, 0].mean(1)
    if kind in (MipPolicy, ActPolicy):
        assert np.ptp(sides) < 0.8
        if kind is MipPolicy:  # between the two, although its second pass is exact on either; ACT's median may be anywhere
            assert metrics["second_loss"] < 0.01
            assert np.abs(candidates[0, :, 0]).max() < 0.4
    else:
        assert candidates[:, :, 1].mean() == pytest.approx(0.3, abs=0.05)
        assert np.mean(np.abs(np.abs(candidates[1:, :, 0]) - 0.8).max(1) < 0.25) > 0.9
        assert 0.25 < np.mean(sides > 0) < 0.75
