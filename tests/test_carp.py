"""CARP as a whole: switches, constant entries, unseen values, warnings. The battery of all policies: test_policies.py."""

import functools
import logging

import numpy as np
import pytest
import torch

from robopolicy.data.transforms import vector_statistics
from robopolicy.models.coarse_to_fine import CoarseToFineTransformer
from robopolicy.models.encoders import ObservationEncoder
from robopolicy.models.tokenizer import MultiScaleTokenizer
from robopolicy.policies.carp import POLICY, TOKENIZER, CarpPolicy
from robopolicy.spec import ACTION, ACTION_IS_PAD, STATE, FeatureSpec
from robopolicy.train import optim

NAMES = ("x", "fixed", "gripper")
OPEN, CLOSED = 0.0, 0.08


def actions(num, rng):
    """A continuous entry, a constant one and a gripper that is open or closed."""
    gripper = np.where(rng.random(num) < 0.5, OPEN, CLOSED)
    return np.stack([rng.normal(0.0, 0.02, num), np.full(num, 0.3), gripper], 1).astype(np.float32)


def make(refine=True, **options):
    small = {"width": 16, "depth": 1, "num_heads": 2, "refine": refine}
    policy = CarpPolicy(
        {STATE: FeatureSpec((3,))},
        FeatureSpec((3,), unit="m", names=NAMES),
        10.0,
        action_horizon=6,
        execute_horizon=3,
        encoder=functools.partial(ObservationEncoder, width=16),
        **{"tokenizer": functools.partial(MultiScaleTokenizer, width=16, levels=(4, 4)), **options},
        transformer=functools.partial(CoarseToFineTransformer, **small),
    )
    rng = np.random.default_rng(0)
    policy.fit({STATE: vector_statistics(rng.normal(size=(200, 3))), ACTION: vector_statistics(actions(200, rng))})
    return policy


def observation(batch=4):
    return {STATE: np.random.default_rng(1).normal(size=(batch, 1, 3)).astype(np.float32)}


@pytest.mark.parametrize("refine", [False, True])
def test_a_gripper_is_open_or_closed_and_a_constant_stays(refine):
    chunks = make(refine).sample(observation(), 8, seed=0)
    gripper = chunks[..., 2]
    assert (np.isclose(gripper, OPEN, atol=1e-6) | np.isclose(gripper, CLOSED, atol=1e-6)).all()
    assert np.allclose(chunks[..., 1], 0.3, atol=1e-6)
    assert chunks[..., 0].std() > 0


def test_a_gripper_whose_command_is_a_coin_toss_is_not_half_open_after_training():
    policy, rng, generator = make(), np.random.default_rng(2), torch.Generator().manual_seed(0)
    chunk = torch.zeros((64, 6, 3))
    chunk[..., 1] = 0.3
    for phase in (TOKENIZER, POLICY):
        optimizer = optim.make_optimizer(policy, policy.phase_parameters(phase), 0.0)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3
        for _ in range(60):
            chunk[..., 2] = torch.from_numpy(np.where(rng.random((64, 1)) < 0.5, OPEN, CLOSED)).float()
            batch = {STATE: torch.zeros((64, 1, 3)), ACTION: chunk, ACTION_IS_PAD: torch.zeros((64, 6), dtype=torch.bool)}
            loss, _ = policy.loss(phase, batch, generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    gripper = policy.eval().sample({STATE: np.zeros((1, 1, 3), np.float32)}, 65, seed=0)[0, 1:, :, 2]
    assert (np.isclose(gripper, OPEN, atol=1e-6) | np.isclose(gripper, CLOSED, atol=1e-6)).all()
    closed = np.isclose(gripper, CLOSED, atol=1e-6).mean(1)
    assert ((closed == 0) | (closed == 1)).mean() > 0.9  # a whole chunk agrees on it
    assert 0.2 < closed.mean() < 0.8


def test_actions_that_were_never_seen_are_scored_and_unlikely():
    policy = make()
    seen = policy.sample(observation(), 1, seed=0)
    strange = seen.copy()
    strange[..., 0] += 50.0
    likely, unlikely = policy.log_prob(observation(), seen), policy.log_prob(observation(), strange)
    assert np.isfinite(unlikely).all()
    assert (unlikely < likely - 100).all()


def metrics_of(policy, codes=9.0, error=0.0):
    scales = {f"codes/{k + 1}": codes for k in range(len(policy.tokenizer.scales))}
    return {**scales, **{f"error/{name}": error if name == "x" else 0.0 for name in NAMES}}


def test_a_healthy_tokenizer_is_passed_over_in_silence(caplog):
    policy = make()
    policy.review(TOKENIZER, metrics_of(policy))
    policy.review(POLICY, {"loss": 1.0})
    assert not caplog.records


def test_collapsed_codes_and_coarse_reconstructions_are_told_with_what_helps(caplog):
    policy = make()
    with caplog.at_level(logging.WARNING):
        policy.review(TOKENIZER, metrics_of(policy, codes=1.1))
    assert "codes of tokenizer scale 1 collapsed" in caplog.text
    assert "fewer policy.tokenizer.scales" in caplog.text
    assert "quantiser=fsq" not in caplog.text, "it is"
    caplog.clear()
    policy.review(TOKENIZER, metrics_of(policy, error=0.03))
    assert "action entry x only to 0.03 m" in caplog.text
    assert "refine=true" not in caplog.text, "it is"
    make(refine=False).review(TOKENIZER, metrics_of(policy, error=0.03))
    assert "policy.transformer.refine=true" in caplog.text


@pytest.mark.parametrize(("moving", "collapsed", "expected"), [([1], [0], 5.0), ([0, 1], [0], 1.0), ([], [0], None)])
def test_the_usage_of_codes_is_that_of_the_worst_group_that_needs_some(moving, collapsed, expected):
    """Groups of one entry each: whether it moves, and whether its codes are all alike; entry 2 is a gripper, which does."""
    policy = make(tokenizer=functools.partial(MultiScaleTokenizer, width=16, levels=(4, 4), group_size=1))
    policy.tokenizer.is_switch[:] = torch.tensor([False, False, True])
    codes = torch.arange(5)[:, None, None].repeat(4, 1, 3)
    codes[..., collapsed] = 3
    scaled = torch.linspace(-1, 1, 6)[None, :, None] * torch.tensor([1.0 if e in [*moving, 2] else 0.01 for e in range(3)])
    batch = policy.normalizer.denormalize(ACTION, scaled)
    metrics = policy._tokenizer_metrics(batch, batch[None], [codes])
    assert metrics.get("codes/1") == (None if expected is None else pytest.approx(expected))
    assert "codes/1" not in policy._tokenizer_metrics(batch, batch[None], [codes[:5]]), "too few to tell"


def test_errors_of_a_tokenizer_are_those_of_what_it_decodes_and_constants_do_not_count():
    policy, rng = make(), np.random.default_rng(3)
    batch = torch.from_numpy(actions(6, rng)).expand(4, -1, -1)
    scaled = policy.normalizer.normalize(ACTION, batch)
    off = torch.tensor([0.2, 5.0, 0.3])  # of the normalised entries; half open is still open, and the constant cannot be wrong
    found = policy._tokenizer_metrics(batch, torch.stack([scaled + 2 * off, scaled + off]), [torch.zeros(4, 1, 1).long()] * 2)
    assert found["error/x"] == pytest.approx(0.2 * float(policy.normalizer.get_buffer("action_scale")[0]), rel=1e-4)
    assert found["error/fixed"] == found["error/gripper"] == pytest.approx(0.0, abs=1e-6)
    assert found["prefix_error/2"] == pytest.approx(0.5, rel=1e-3)


def test_the_error_of_a_constant_entry_is_no_reason_for_a_warning(caplog):
    policy = make()
    policy.review(TOKENIZER, {**metrics_of(policy), "error/fixed": 1e-5})
    assert not caplog.records


def test_drawn_candidates_differ_and_top_one_draws_do_not():
    assert make().sample(observation(), 9, seed=0)[:, 1:].std(1).max() > 0
    same = make(top_k=1).sample(observation(), 9, seed=0)
    assert np.allclose(same, same[:, :1], atol=1e-5)


def test_settings_of_drawing_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="coarse=-1"):
        make(coarse_temperature=-1)
