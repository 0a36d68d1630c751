"""The critic by its properties. Other networks: test_encoders.py, test_tokenizer.py, test_coarse_to_fine.py."""

import numpy as np
import pytest
import torch

from robopolicy.batch import fake_batch, to_torch
from robopolicy.models.critic import SuccessCritic, discounted_outcome
from robopolicy.spec import (
    ACTION,
    OUTCOME,
    STATE,
    STEP,
    TASK,
    FeatureSpec,
    SpecError,
)


def optimise(parameters, loss, steps, learning_rate=3e-3):
    optimizer = torch.optim.Adam(parameters, learning_rate)
    for _ in range(steps):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return value.item()


def test_to_torch_keeps_numbers_and_drops_text():
    batch = to_torch({STATE: np.ones((2, 1, 3), np.float32), "flag": np.array([True]), TASK: np.array(["lift", "lift"])})
    assert set(batch) == {STATE, "flag"}
    assert batch[STATE].dtype == torch.float32


def test_pictures_of_floats_are_told_how_they_become_bytes():
    with pytest.raises(SpecError, match=r"from 0 \.\. 1 convert it with \(255 \* x\)\.round\(\)\.astype\('uint8'\)"):
        FeatureSpec((4, 4, 3), "uint8").check("observation.images.front", np.zeros((4, 4, 3)))


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
    critic = critic_of(num_heads=3, num_encoders=3)
    batch = fake_batch(critic.spec.observation, critic.spec.action, 1, 4, 8, generator)
    critic.values(critic.contexts(batch), batch[ACTION][:, None])[1].sum().backward()
    gradient = critic.heads.outer.weight.grad.abs().sum((1, 2))
    assert gradient[1] > 0
    assert gradient[0] == gradient[2] == 0
    told = [sum(p.grad.abs().sum().item() for p in e.parameters() if p.grad is not None) for e in critic.further_encoders]
    assert told[0] > 0
    assert told[1] == 0


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
