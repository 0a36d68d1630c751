"""Coarse-to-fine transformer and critic, each by its properties. Encoders: test_encoders.py, tokenizer: test_tokenizer.py."""

import numpy as np
import pytest
import torch

from robopolicy.batch import fake_batch, to_torch
from robopolicy.models.coarse_to_fine import CoarseToFineTransformer, Decoding, draw
from robopolicy.models.critic import SuccessCritic, discounted_outcome
from robopolicy.models.tokenizer import MultiScaleTokenizer
from robopolicy.spec import (
    ACTION,
    OUTCOME,
    STATE,
    STEP,
    TASK,
    FeatureSpec,
    SpecError,
)

LEVELS = (4, 3, 5)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def _initial_weights():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def optimise(parameters, loss, steps, learning_rate=3e-3):
    optimizer = torch.optim.Adam(parameters, learning_rate)
    for _ in range(steps):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return value.item()


# batch


def test_to_torch_keeps_numbers_and_drops_text():
    batch = to_torch({STATE: np.ones((2, 1, 3), np.float32), "flag": np.array([True]), TASK: np.array(["lift", "lift"])})
    assert set(batch) == {STATE, "flag"}
    assert batch[STATE].dtype == torch.float32


# transformer


@pytest.fixture
def pair(generator):
    tokenizer = MultiScaleTokenizer(action_dim=5, action_horizon=8, scales=(1, 2, 3), levels=LEVELS, group_size=2, width=16)
    transformer = CoarseToFineTransformer(tokenizer=tokenizer, context_width=12, width=16, depth=2, num_heads=2)
    return tokenizer, transformer, torch.randn((4, 12), generator=generator)


def test_a_finer_scale_cannot_change_the_logits_of_a_coarser_one(pair, generator):
    _, transformer, context = pair
    inputs = [torch.randn((4, length, 3, 3), generator=generator) for length in (2, 3)]
    coarse, fine = transformer(context, inputs)
    changed = [inputs[0], inputs[1] + 1]
    coarse_after, fine_after = transformer(context, changed)
    scale_two = 2 * 3
    assert torch.allclose(coarse, coarse_after, atol=1e-6)
    assert torch.allclose(fine[:, :scale_two], fine_after[:, :scale_two], atol=1e-6)
    assert not torch.allclose(fine[:, scale_two:], fine_after[:, scale_two:], atol=1e-3)


def test_tokens_of_a_scale_see_each_other(pair, generator):
    _, transformer, context = pair
    inputs = [torch.randn((4, length, 3, 3), generator=generator) for length in (2, 3)]
    changed = [inputs[0].clone(), inputs[1]]
    changed[0][:, 1, 2] += 1  # the last token of the second scale
    first = transformer(context, inputs)[1][:, 0], transformer(context, changed)[1][:, 0]
    assert not torch.allclose(*first, atol=1e-4)


@pytest.mark.parametrize("decoding", [Decoding(), Decoding(1.0, 0.5), Decoding(1.0, 0.0)])
def test_cached_and_uncached_sampling_agree(pair, decoding):
    tokenizer, transformer, context = pair
    latents = [
        transformer.sample(context, tokenizer, decoding, torch.Generator().manual_seed(3), use_cache=cached)
        for cached in (True, False)
    ]
    assert torch.allclose(*latents, atol=1e-5)
    assert latents[0].shape == (4, 3, 3, 3)


def test_log_prob_sums_to_one_over_the_coarsest_tokens(generator):
    tokenizer = MultiScaleTokenizer(action_dim=1, action_horizon=4, scales=(1, 2), levels=(2,), width=8)
    transformer = CoarseToFineTransformer(tokenizer=tokenizer, context_width=4, width=8, depth=1, num_heads=2)
    latent = torch.randn((64, 2, 1, 1), generator=generator) * 3
    digits = torch.cat(tokenizer.quantise(latent).digits, 1).flatten(1)
    log_prob = transformer.log_prob(torch.zeros((64, 4)), latent, tokenizer)
    unique = {tuple(row.tolist()): value.item() for row, value in zip(digits, log_prob, strict=True)}
    assert len(unique) > 2
    assert all(value < 0 for value in unique.values())
    assert sum(np.exp(list(unique.values()))) <= 1 + 1e-5


def test_learned_tokens_are_drawn_and_likely(pair, generator):
    tokenizer, transformer, _ = pair
    context = torch.randn((2, 12), generator=generator)
    latent = torch.randn((2, 3, 3, 3), generator=generator)
    optimise(transformer.parameters(), lambda: transformer.loss(context, latent, tokenizer, generator)[0], 150)
    drawn = transformer.sample(context, tokenizer, Decoding(), generator)
    coarse = [torch.stack(tokenizer.quantise(x).digits[:1]) for x in (latent, drawn)]
    assert (coarse[0] == coarse[1]).float().mean() > 0.9
    right, swapped = (transformer.log_prob(context, x, tokenizer) for x in (latent, latent.flip(0)))
    assert (right > swapped).all()


def test_drawing_follows_temperature(generator):
    logits = torch.tensor([0.0, 1.0, -1.0]).expand(20000, 3)
    assert (draw(logits, 0.0, generator) == 1).all()
    for temperature in (0.5, 1.0):
        share = torch.bincount(draw(logits, temperature, generator), minlength=3) / 20000
        assert torch.allclose(share, (logits[0] / temperature).softmax(-1), atol=0.02)


# critic


def critic_of(**options):
    observation = {STATE: FeatureSpec((3,))}
    return SuccessCritic(observation, FeatureSpec((2,)), 10.0, execute_horizon=4, hidden=16, **options)


def test_the_target_is_success_discounted_by_the_steps_left():
    value = discounted_outcome(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0, 2, 2]), 0.5)
    assert value.tolist() == [1.0, 0.25, 0.0]


def test_a_critic_learns_which_actions_succeed(generator):
    critic = critic_of(num_heads=3, gamma=1.0)
    observation = critic.spec.observation

    def batch():
        b = fake_batch(observation, critic.spec.action, 1, 6, 64, generator)
        return {**b, OUTCOME: (b[ACTION][:, :4, 0].mean(1) > 0).float()}

    optimise(critic.parameters(), lambda: critic.loss("critic", batch(), generator)[0], 120)
    actions = np.zeros((1, 2, 4, 2), np.float32)
    actions[:, 0, :, 0], actions[:, 1, :, 0] = -1, 1
    scores = critic.score(critic.encode({STATE: np.zeros((1, 1, 3), np.float32)}), actions)
    assert scores.shape == (3, 1, 2)
    assert (scores[:, 0, 1] > scores[:, 0, 0] + 0.3).all()


def test_scoring_candidates_together_or_alone_is_the_same(generator):
    critic = critic_of()
    observation = {STATE: torch.randn((2, 1, 3), generator=generator).numpy()}
    actions = torch.randn((2, 5, 4, 2), generator=generator).numpy()
    context = critic.encode(observation)
    together = critic.score(context, actions)
    alone = np.concatenate([critic.score(context, actions[:, n : n + 1]) for n in range(5)], 2)
    assert together.dtype == np.float32
    assert np.allclose(together, alone, atol=1e-5)
    assert together.std(0).min() > 0  # heads differ


def test_heads_are_independent(generator):
    critic = critic_of(num_heads=3)
    batch = fake_batch(critic.spec.observation, critic.spec.action, 1, 4, 8, generator)
    prefix = batch[ACTION][:, None]
    critic.logits(critic.encoder(batch).detach(), prefix)[1].sum().backward()
    gradient = critic.outer.weight.grad.abs().sum((1, 2))
    assert gradient[1] > 0
    assert gradient[0] == gradient[2] == 0


def test_a_critic_refuses_actions_that_do_not_fit():
    critic = critic_of()
    context = critic.encode({STATE: np.zeros((1, 1, 3), np.float32)})
    for shape in ((1, 2, 5, 2), (1, 4, 2), (1, 2, 4, 3), (2, 2, 4, 2)):
        with pytest.raises(SpecError):
            critic.score(context, np.zeros(shape, np.float32))


def test_the_critic_spec_follows_its_normaliser():
    critic = critic_of()
    before = critic.spec.normalizer_hash
    ones = {
        name: np.full(3, value)
        for name, value in zip(("mean", "std", "min", "max", "q01", "q99"), (0, 2, -3, 3, -2, 2), strict=True)
    }
    stats = {STATE: {**ones, "num_distinct": np.full(3, 9)}}
    stats[ACTION] = {name: value[:2] for name, value in stats[STATE].items()}
    critic.fit(stats)
    assert critic.spec.normalizer_hash != before
    assert STEP not in critic.batch_keys
