"""Critics that bootstrap, their outputs and their memory, by their properties. The Monte-Carlo critic: test_models.py."""

import numpy as np
import pytest
import torch

from robopolicy.batch import fake_batch
from robopolicy.data.transforms import vector_statistics
from robopolicy.data.windows import discounted_rewards
from robopolicy.models.chunk_features import soft_clip, spread
from robopolicy.models.critic import ProgressCritic, SafetyCritic, SuccessCritic
from robopolicy.models.critic_heads import ValueOutput, gaussian_bins
from robopolicy.models.critic_td import CalQlCritic, IqlCritic
from robopolicy.models.support import Support
from robopolicy.spec import (
    ACTION,
    CHUNK_SUCCESS,
    ENVIRONMENT_STATE,
    EPISODE_LENGTH,
    HAS_SUCCESSOR,
    OUTCOME,
    POINTS,
    PROGRESS,
    PROPOSALS,
    STATE,
    STEP,
    UNSAFE,
    WEIGHT,
    FeatureSpec,
    SpecError,
    successor,
)

GAMMA, STEPS = 0.8, 2
OBSERVATION, ACTIONS = {STATE: FeatureSpec((2,))}, FeatureSpec((1,))
SIZE = 64


def make(kind, **options):
    given = {"execute_horizon": STEPS, "hidden": 24, "num_heads": 3, "gamma": GAMMA, **options}
    return kind(OBSERVATION, ACTIONS, 10.0, **given)


def corridor(generator, size=SIZE):
    """Two rooms in a row: a chunk to the right leads on, from the second room to success at once; to the left, to failure.

    Behaviour is a coin's. MC value of right in the first room: half of what the best continuation is worth.
    """
    room = torch.randint(0, 2, (size,), generator=generator)
    right = torch.rand((size,), generator=generator) < 0.5
    lucky = torch.rand((size,), generator=generator) < 0.5  # whether the behaviour goes right afterwards
    chunk = torch.where(right, 1.0, -1.0).view(-1, 1, 1).expand(-1, STEPS, 1)
    chunk = chunk + 0.1 * torch.randn(chunk.shape, generator=generator)
    state = torch.stack([1.0 - room, room.float()], -1).view(-1, 1, 2)
    done = right & (room == 1)
    success = torch.zeros(size, STEPS, dtype=torch.bool)
    success[:, -1] = done
    outcome = (done | (right & lucky & (room == 0))).float()
    left = torch.where(room == 0, 2 * STEPS, STEPS)
    second = torch.tensor([0.0, 1.0]).expand(size, 1, 2)
    proposals = torch.tensor([1.0, -1.0, 0.9]).view(1, 3, 1, 1).expand(size, 3, STEPS, 1)
    return {
        **{STATE: state, ACTION: chunk, successor(STATE): second, CHUNK_SUCCESS: success},
        **{HAS_SUCCESSOR: right & (room == 0), OUTCOME: outcome, STEP: torch.zeros(size, dtype=torch.int64)},
        **{EPISODE_LENGTH: left, PROPOSALS: proposals, successor(PROPOSALS): proposals},
    }


def trained(critic, generator, steps=400, learning_rate=1e-2, change=lambda batch: batch):
    optimizer = torch.optim.Adam(critic.phase_parameters("critic"), learning_rate)
    critic.train()
    for _ in range(steps):
        loss, metrics = critic.loss("critic", change(corridor(generator)), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        critic.after_step()
    return critic.eval(), {name: float(value) for name, value in metrics.items()}


def values(critic, chunks=(1.0, -1.0)):
    """Mean values [room, chunk]."""
    observation = {STATE: np.eye(2, dtype=np.float32)[:, None]}
    actions = np.array(chunks, np.float32).reshape(1, -1, 1, 1) * np.ones((2, 1, STEPS, 1), np.float32)
    return critic.score(critic.encode(observation), actions).mean(0)


BEST = GAMMA ** (2 * STEPS - 1)  # of right in the first room, when one goes right again


def test_iql_joins_what_went_well_where_monte_carlo_averages(generator):
    iql, metrics = trained(make(IqlCritic, expectile=0.95, target_rate=0.1), generator, 200)
    found = values(iql)
    assert found[1, 0] == pytest.approx(GAMMA ** (STEPS - 1), abs=0.05)
    assert found[0, 0] == pytest.approx(BEST, abs=0.08)
    assert found[:, 1].max() < 0.1
    assert {"loss_q", "loss_v", "above_outcome"} <= set(metrics)
    averaged, _ = trained(make(SuccessCritic), generator, 120)
    assert values(averaged)[0, 0] == pytest.approx(BEST / 2, abs=0.06)


def test_cal_ql_backs_up_the_best_proposal_and_never_pushes_proposals_below_what_was_observed(generator):
    critic, metrics = trained(make(CalQlCritic, conservatism=0.1, target_rate=0.1), generator, 150)
    found = values(critic)
    assert found[0, 0] > found[0, 1] + 0.2
    assert found[1, 0] > found[1, 1] + 0.4
    assert found[0, 0] > BEST / 2 + 0.05  # above the behaviour's own value
    assert 0 < metrics["bound_rate"] < 1


def test_conservatism_lowers_other_chunks_beside_what_was_done(generator):
    gaps = [
        trained(make(CalQlCritic, conservatism=conservatism, target_rate=0.05), generator, 80)[1]["gap"]
        for conservatism in (0.0, 2.0)
    ]
    assert gaps[1] < gaps[0] - 0.02


@pytest.mark.parametrize("kind", [IqlCritic, CalQlCritic])
def test_slow_copies_follow_and_are_not_trained(kind, generator):
    critic = make(kind, target_rate=0.5, num_encoders=2)
    slow = [pair[0] for pair in critic._pairs()]
    trainable = set(map(id, critic.phase_parameters("critic")))
    assert slow
    assert not trainable & set(map(id, slow))
    before = [x.clone() for x in slow]
    with torch.no_grad():
        for _, fast in critic._pairs():
            fast.add_(1.0)
    critic.after_step()
    assert all(torch.allclose(now, was + 0.5, atol=1e-6) for now, was in zip(slow, before, strict=True))
    assert not any("normalizer" in name for name in critic.state_dict() if name.startswith(("target", "further")))


def test_heads_share_no_error_when_each_has_an_encoder(generator):
    critic = make(SuccessCritic, num_encoders=3)
    contexts = critic.contexts(corridor(generator, 4)).heads
    assert not torch.allclose(contexts[0], contexts[1])
    assert make(SuccessCritic).contexts(corridor(generator, 4)).heads.stride(0) == 0


def test_a_critic_without_proposals_says_whose(generator):
    batch = corridor(generator)
    del batch[PROPOSALS]
    with pytest.raises(SpecError, match=r"data\.proposals\.checkpoint"):
        make(CalQlCritic).loss("critic", batch, generator)


def test_weights_decide_which_windows_count(generator):
    def of(keep_right):
        def change(batch):
            right = batch[ACTION].mean((1, 2)) > 0
            lie = torch.where(right, batch[OUTCOME], 1.0)  # the windows that do not count say that left succeeds
            return {**batch, OUTCOME: lie, WEIGHT: (right if keep_right else torch.ones_like(right)).float()}

        return values(trained(make(SuccessCritic), generator, 120, change=change)[0])

    assert of(False)[1, 1] > 0.6
    assert of(True)[1, 1] < of(False)[1, 1]
    assert of(True)[1, 0] == pytest.approx(GAMMA ** (STEPS - 1), abs=0.1)


def test_the_safety_critic_learns_the_rate_of_events(generator):
    def change(batch):
        left = batch[ACTION].mean((1, 2)) < 0
        return {**batch, UNSAFE: (left & (torch.rand(SIZE, generator=generator) < 0.7)).float()}

    found = values(trained(make(SafetyCritic), generator, 120, change=change)[0])
    assert found[:, 1] == pytest.approx([0.7, 0.7], abs=0.12)
    assert found[:, 0].max() < 0.1


def test_gaussian_bins_keep_the_mean_and_sum_to_one():
    target = torch.tensor([0.2, 0.5, 0.83])
    shares = gaussian_bins(target, 51, 0.75)
    centres = (torch.arange(51) + 0.5) / 51
    assert torch.allclose(shares.sum(-1), torch.ones(3))
    assert torch.allclose(shares @ centres, target, atol=1e-3)


@pytest.mark.parametrize("kind", ["probability", "hl_gauss"])
def test_an_output_is_fitted_by_the_mean_of_its_targets(kind, generator):
    output = ValueOutput(kind)
    raw = torch.zeros(1, output.size, requires_grad=True)
    optimizer = torch.optim.Adam([raw], 0.1)
    for _ in range(300):
        target = (torch.rand((64,), generator=generator) < 0.3).float() * 0.8 + 0.1
        optimizer.zero_grad()
        output.error(raw.expand(64, -1), target).mean().backward()
        optimizer.step()
    assert output.value(raw).item() == pytest.approx(0.1 + 0.3 * 0.8, abs=0.05)
    with pytest.raises(ValueError, match="hl_gauss"):
        ValueOutput("hl_gaus")


def test_far_chunks_stay_apart_but_do_not_lead():
    x = torch.tensor([-9.0, -1.0, 0.3, 1.0, 3.0, 9.0])
    clipped = soft_clip(x)
    assert torch.equal(clipped[1:4], x[1:4])
    assert clipped.abs().max() <= 2
    assert clipped[4] < clipped[5]


def test_discounted_rewards_are_discounted_success_where_rewards_are_success():
    lengths, gamma = np.array([4, 3]), 0.9
    sparse = np.array([0, 0, 0, 1, 0, 0, 0], np.float32)
    assert np.allclose(discounted_rewards(sparse, lengths, gamma), [gamma**3, gamma**2, gamma, 1, 0, 0, 0])
    dense = discounted_rewards(np.array([0.0, 0.5, 0.2, 1.0, 0.4, 0.4, 0.4]), lengths, gamma)
    assert np.allclose(dense[4:], 0.4)  # what stays goes on for ever
    assert dense[2] == pytest.approx((1 - gamma) * 0.2 + gamma * 1.0)
    assert dense.min() >= 0
    assert dense.max() <= 1


def test_the_progress_critic_learns_rewards_to_come_without_the_luck_of_later_decisions(generator):
    kept = GAMMA**STEPS

    def change(batch):
        later = 0.5 + 0.4 * (2.0 * (torch.rand(SIZE, generator=generator) < 0.5) - 1)  # whatever the chunk was
        now = torch.where(batch[ACTION].mean((1, 2)) > 0, 0.8, 0.3)
        whole = (1 - kept) * now + kept * later
        return {**batch, PROGRESS: whole, successor(PROGRESS): later, HAS_SUCCESSOR: torch.ones(SIZE, dtype=torch.bool)}

    critic, _ = trained(make(ProgressCritic), generator, 120, change=change)
    expected = (1 - kept) * np.array([[0.8, 0.3]] * 2) + kept * 0.5
    assert values(critic) == pytest.approx(expected, abs=0.06)
    batch = change(corridor(generator))
    right = batch[ACTION].mean((1, 2)) > 0
    assert critic.target(batch)[:, right].std(1).max() < 0.3 * batch[PROGRESS][right].std()
    ended = critic.target({**batch, HAS_SUCCESSOR: torch.zeros(SIZE, dtype=torch.bool)})
    assert torch.allclose(ended, batch[PROGRESS].expand(3, -1))


def test_support_tells_what_is_like_the_data(generator):
    support = Support(64, 3, 4)
    with pytest.raises(ValueError, match="support_size"):
        support.distance(torch.zeros(1, 3), torch.zeros(1, 1, 2, 2))
    contexts, chunks = (torch.randn(shape, generator=generator) for shape in ((80, 3), (80, 2, 2)))
    support.remember(contexts[:40], chunks[:40])
    support.remember(contexts[40:], chunks[40:])
    near = support.distance(contexts[-1:], torch.stack([chunks[-1], chunks[-1] + 9.0])[None])
    assert near[0, 0] == pytest.approx(0, abs=1e-3)
    assert near[0, 1] > 3
    assert support.distance(contexts[:1], chunks[None, :1])[0, 0] > 0.1  # the oldest were replaced
    fresh = Support(64, 3, 4)
    fresh.load_state_dict(support.state_dict())
    assert torch.equal(fresh.distance(contexts[-1:], chunks[None, -1:]), support.distance(contexts[-1:], chunks[None, -1:]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 1.5}, "gamma=1.5"),
        ({"num_encoders": 4}, "num_encoders=4"),
        ({"output": "scalar"}, "probability"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(SuccessCritic, **options)
    with pytest.raises(ValueError, match="expectile=1"):
        make(IqlCritic, expectile=1.0)
    with pytest.raises(ValueError, match="temperature=0"):
        make(CalQlCritic, temperature=0.0)


def test_every_critic_eats_images_and_points_too(generator):
    features = {"observation.images.front": FeatureSpec((16, 16, 3), "uint8"), "observation.points": FeatureSpec((9, 3))}
    for kind in (SuccessCritic, SafetyCritic, IqlCritic, CalQlCritic):
        critic = kind(features, ACTIONS, 10.0, execute_horizon=STEPS, hidden=8, num_heads=2)
        batch = fake_batch(features, ACTIONS, 1, STEPS, 4, generator)
        extra = corridor(generator, 4)
        batch |= {successor(key): batch[key] for key in features} | {UNSAFE: extra[OUTCOME]}
        batch |= {key: extra[key] for key in (CHUNK_SUCCESS, HAS_SUCCESSOR, PROPOSALS, successor(PROPOSALS))}
        loss, _ = critic.loss("critic", batch, generator)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(p.grad is not None for p in critic.encoder.parameters())


def panda(things=("object",), **more):
    """Features of a hand and of things around it."""
    around = tuple(f"{thing}_{entry}" for thing in things for entry in ("x", "y", "z", "half_x", "half_y", "half_z"))
    state = FeatureSpec((4,), names=("gripper_opening", "ee_x", "ee_y", "ee_z"))
    return {STATE: state, ENVIRONMENT_STATE: FeatureSpec((len(around),), names=around), **more}


def test_chunk_features_say_where_a_chunk_leads_beside_each_thing(generator):
    action = FeatureSpec((4,), names=("dx", "dy", "dz", "gripper"))
    options = {"observation_keys": [STATE, ENVIRONMENT_STATE], "execute_horizon": 4, "hidden": 8, "num_heads": 2}
    critic = SuccessCritic(panda(("object", "goal")), action, 10.0, **options)
    scale = np.array([0.02, 0.02, 0.01, 0.5])
    ramp = np.linspace(-1, 1, 50)[:, None]
    stats = {key: vector_statistics(ramp * np.ones(f.shape)) for key, f in critic.observation.items()}
    critic.fit({**stats, ACTION: vector_statistics(ramp * scale)})
    hand, thing, goal = torch.tensor([0.5, 0.1, 0.2]), torch.tensor([0.45, 0.12, 0.02]), torch.tensor([0.6, 0.0, 0.0])
    around = torch.cat([thing, torch.ones(3), goal, torch.ones(3)])
    batch = {STATE: torch.cat([torch.zeros(1), hand]).view(1, 1, -1), ENVIRONMENT_STATE: around.view(1, 1, -1)}
    observation = {key: value.numpy() for key, value in batch.items()}
    chunk = 0.01 * torch.randn((1, 3, 4, 4), generator=generator)
    contexts = critic.encode(observation)
    found = critic.chunk_features(contexts.heads[0], critic.normalizer.normalize(ACTION, chunk))
    ways = hand + chunk[..., :3].cumsum(2)
    expected = spread(torch.cat([ways - thing, ways - goal], -1))
    assert torch.allclose(found[..., 2 * 4 * 4 :], expected.flatten(2), atol=1e-4)
    assert critic.score(contexts, chunk.numpy()).shape == (2, 1, 3)


def with_cloud(kind=SuccessCritic, points=20, **options):
    """A critic of a hand and a cloud that looks at the cloud along the chunk's way, and what it is asked."""
    features = {STATE: panda()[STATE], POINTS: FeatureSpec((points, 3))}
    action = FeatureSpec((4,), names=("dx", "dy", "dz", "gripper"))
    given = {"observation_keys": list(features), "execute_horizon": 4, "hidden": 8, "num_heads": 2, "way_width": 8, **options}
    critic = kind(features, action, 10.0, **given)
    ramp = np.linspace(-1, 1, 50)[:, None]
    critic.fit({STATE: vector_statistics(ramp * np.ones(4)), ACTION: vector_statistics(ramp * np.array([0.02, 0.02, 0.02, 1]))})
    return critic


def seen_along(critic, hand, cloud, chunk):
    """CloudWay features [N, F] of normalised chunks [1, N, h, A] from `hand` [3] in `cloud` [P, 3]."""
    batch = {STATE: torch.cat([torch.zeros(1), hand]).view(1, 1, -1), POINTS: cloud[None, None]}
    with torch.no_grad():
        return critic.cloud_ways[0](critic.chunk_features.cloud(batch), critic.chunk_features.way(chunk))[0]


def test_a_cloud_is_seen_from_where_the_chunk_leads(generator):
    critic, chunk = with_cloud(), torch.randn((1, 3, 4, 4), generator=generator)
    hand, cloud = torch.tensor([0.5, 0.1, 0.2]), torch.rand((20, 3), generator=generator)
    found = seen_along(critic, hand, cloud, chunk)
    assert found.shape == (3, 4 * 8)
    shift = torch.tensor([0.3, -0.2, 0.1])
    assert torch.allclose(seen_along(critic, hand + shift, cloud + shift, chunk), found, atol=1e-4)  # only where beside it
    assert torch.allclose(seen_along(critic, hand, cloud[torch.randperm(20, generator=generator)], chunk), found, atol=1e-6)
    assert (seen_along(critic, hand + shift, cloud, chunk) - found).abs().amax() > 0.01
    turned = chunk.clone()
    turned[..., 3] = 0.3  # the gripper moves the hand nowhere
    assert torch.equal(seen_along(critic, hand, cloud, turned), found)
    rest = torch.stack([hand - 0.05, hand + 0.05])  # a way of one stop: the first stop alone sees what it sees
    stops = critic.chunk_features.way(chunk)[0, :, 0]
    alone = torch.stack([seen_along(critic, hand + stop, rest, torch.zeros_like(chunk))[0, :8] for stop in stops])
    assert torch.allclose(seen_along(critic, hand, rest, chunk)[:, :8], alone, atol=1e-4)


def test_padding_of_a_cloud_is_not_seen_and_an_empty_one_is_zeros(generator):
    critic, chunk, hand = with_cloud(), torch.randn((1, 2, 4, 4), generator=generator), torch.tensor([0.5, 0.1, 0.2])
    cloud = torch.rand((20, 3), generator=generator)
    padded = cloud.clone()
    padded[5:] = 0
    assert torch.allclose(seen_along(critic, hand, padded, chunk), seen_along(critic, hand, cloud[:5], chunk), atol=1e-6)
    assert (seen_along(critic, hand, torch.zeros(20, 3), chunk) == 0).all()
    observation = {STATE: torch.zeros(1, 1, 4).numpy(), POINTS: torch.zeros(1, 1, 20, 3).numpy()}
    assert np.isfinite(critic.score(critic.encode(observation), 0.01 * chunk.numpy())).all()


def test_large_clouds_are_thinned_and_further_columns_kept(generator):
    critic = with_cloud(points=200)
    batch = {STATE: torch.zeros(2, 1, 4), POINTS: torch.rand((2, 1, 200, 3), generator=generator)}
    assert critic.chunk_features.cloud(batch).shape == (2, 50, 3)
    batch[POINTS] = torch.rand((2, 1, 10, 5), generator=generator)
    assert torch.equal(critic.chunk_features.cloud(batch)[..., 3:], batch[POINTS][:, 0, :, 3:])


def test_looks_along_the_way_learn_have_slow_copies_and_are_as_many_as_encoders(generator):
    features = with_cloud().observation
    for kind in (SuccessCritic, IqlCritic, CalQlCritic):
        critic = with_cloud(kind, num_encoders=2)
        assert len(critic.cloud_ways) == 2
        batch = fake_batch(features, critic.action, 1, 4, 4, generator)
        batch |= {successor(key): batch[key] for key in features}
        batch |= {CHUNK_SUCCESS: torch.tensor([[False] * 4, [True] * 4] * 2), HAS_SUCCESSOR: torch.tensor([True, False] * 2)}
        batch |= {key: torch.randn((4, 3, 4, 4), generator=generator) for key in (PROPOSALS, successor(PROPOSALS))}
        critic.loss("critic", batch, generator)[0].backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in critic.cloud_ways.parameters())
    slow = next(critic.target_nets["cloud_ways"].parameters())
    before = slow.clone()
    assert not slow.requires_grad
    with torch.no_grad():
        next(critic.cloud_ways.parameters()).add_(1.0)
    critic.after_step()
    assert torch.allclose(slow, before + critic.target_rate, atol=1e-5)


def test_critics_without_a_cloud_or_a_hand_do_not_look_along_the_way():
    assert not with_cloud(way_width=0).cloud_ways
    action = FeatureSpec((3,), names=("dx", "dy", "dz"))
    for features in ({STATE: panda()[STATE]}, {STATE: FeatureSpec((2,), names=("a", "b")), POINTS: FeatureSpec((9, 3))}):
        critic = SuccessCritic(features, action, 10.0, observation_keys=list(features), execute_horizon=4, way_width=8)
        assert not critic.cloud_ways


def test_critics_of_other_robots_look_at_the_chunk_alone():
    action = FeatureSpec((3,), names=("dx", "dy", "dz"))
    for observation, moves in (
        (OBSERVATION, action),
        ({STATE: panda()[STATE]}, action),
        (panda(), FeatureSpec((2,), names=("a", "b"))),
    ):
        features = SuccessCritic(observation, moves, 10.0, execute_horizon=4, observation_keys=list(observation)).chunk_features
        assert not features.things
        assert features.width == 2 * 4 * moves.shape[0]
