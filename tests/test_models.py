"""Encoders, tokenizer, coarse-to-fine transformer and critic, each by its properties."""

import numpy as np
import pytest
import torch

from robopolicy.batch import fake_batch, to_torch
from robopolicy.data.transforms import Normalizer
from robopolicy.models.coarse_to_fine import CoarseToFineTransformer, Decoding, draw
from robopolicy.models.critic import SuccessCritic, discounted_outcome
from robopolicy.models.encoders import ObservationEncoder, select_observation
from robopolicy.models.images import random_shift, spatial_softmax
from robopolicy.models.points import PointEncoder
from robopolicy.models.tokenizer import (
    MultiScaleTokenizer,
    check_groups,
    from_code,
    grid_values,
    resampling,
    shake,
    snap,
    to_code,
    usage,
)
from robopolicy.spec import (
    ACTION,
    ENVIRONMENT_STATE,
    OUTCOME,
    POINTS,
    STATE,
    STEP,
    TASK,
    FeatureSpec,
    SpecError,
    depth_key,
    image_key,
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


def motions(num, horizon, generator):
    """Smooth motion in four entries and a switch between -1 and 1 at a random step in the fifth."""
    time = torch.linspace(0, 1, horizon)
    start, slope, bend, phase = torch.randn((4, num, 4, 1), generator=generator) * 0.5
    smooth = start + slope * time + bend * torch.sin(3 * time + phase)
    switch = torch.randint(0, horizon, (num, 1), generator=generator)
    gripper = torch.where(torch.arange(horizon) < switch, -1.0, 1.0)
    return torch.cat([smooth.transpose(1, 2), gripper[..., None]], -1)


# batch


def test_to_torch_keeps_numbers_and_drops_text():
    batch = to_torch({STATE: np.ones((2, 1, 3), np.float32), "flag": np.array([True]), TASK: np.array(["lift", "lift"])})
    assert set(batch) == {STATE, "flag"}
    assert batch[STATE].dtype == torch.float32


# quantiser


def test_codes_and_digits_are_inverse():
    codes = torch.arange(4 * 3 * 5)
    assert torch.equal(to_code(from_code(codes, LEVELS), LEVELS), codes)


def test_snapping_is_to_the_nearest_level(generator):
    levels = torch.tensor([float(n) for n in LEVELS])
    x = torch.randn((50, 3), generator=generator)
    values, digits = snap(x, levels)
    assert torch.allclose(values, grid_values(digits, levels))
    for c, count in enumerate(LEVELS):
        grid = torch.linspace(-1, 1, count)
        nearest = grid[(torch.tanh(x[:, c, None]) - grid).abs().argmin(-1)]
        assert torch.allclose(values[:, c], nearest)


def test_shaken_digits_stay_valid_and_move_by_one(generator):
    levels = torch.tensor([float(n) for n in LEVELS])
    digits = from_code(torch.randint(0, 60, (200, 4, 2), generator=generator), LEVELS)
    moved = shake(digits, levels, 0.5, generator)
    assert ((moved - digits).abs() <= 1).all()
    assert (moved >= 0).all()
    assert (moved < levels).all()
    share = (moved != digits).any(-1).float().mean()
    assert 0.1 < share < 0.4


def test_area_downsampling_keeps_the_mean_and_upsampling_keeps_constants():
    for length in (1, 2, 3, 4):
        down, up = resampling(length, 4)
        assert torch.allclose(down.sum(1), torch.ones(length))
        assert torch.allclose(up.sum(1), torch.ones(4))
    down, up = resampling(4, 4)
    assert torch.equal(down, torch.eye(4))
    assert torch.equal(up, torch.eye(4))


def test_groups_cover_every_entry_once():
    assert check_groups(None, 3, 7) == [[0, 1, 2], [3, 4, 5], [6]]
    assert check_groups([[2], [0, 1]], 3, 3) == [[2], [0, 1]]
    for groups in ([[0, 1]], [[0, 1], [1, 2]], [[0], [1], [2], []]):
        with pytest.raises(ValueError, match="exactly once"):
            check_groups(groups, 3, 3)


def test_usage_counts_codes_in_use():
    digits = from_code(torch.tensor([0, 1, 2, 3]), LEVELS)
    assert usage(digits, LEVELS) == pytest.approx(4)
    assert usage(digits[:1].repeat(4, 1), LEVELS) == pytest.approx(1)


# tokenizer


@pytest.mark.parametrize(
    ("dim", "horizon", "size", "scales"), [(5, 12, 2, (1, 2, 4)), (2, 16, 3, (1, 2, 3, 4)), (7, 5, 1, (1, 3))]
)
def test_decoding_the_code_of_a_chunk_is_its_reconstruction(dim, horizon, size, scales, generator):
    tokenizer = MultiScaleTokenizer(
        action_dim=dim, action_horizon=horizon, group_size=size, scales=scales, levels=LEVELS, width=16
    )
    actions = torch.randn((3, horizon, dim), generator=generator)
    digits = tokenizer.encode(actions)
    assert digits.shape == (3, sum(scales), -(-dim // size), 3)
    assert digits.dtype == torch.int64
    residual = tokenizer.quantise(tokenizer.latent(actions))
    for k, running in enumerate(residual.running):
        assert torch.allclose(tokenizer.prefix(digits, k + 1), tokenizer.reconstruct(running), atol=1e-5)
    assert torch.equal(tokenizer.decode(digits), tokenizer.prefix(digits, len(scales)))


def test_the_groups_of_an_action_do_not_mix(generator):
    tokenizer = MultiScaleTokenizer(action_dim=5, action_horizon=8, groups=[[3, 0], [1, 4, 2]], levels=LEVELS, width=16)
    actions = torch.randn((2, 8, 5), generator=generator)
    changed = actions.clone()
    changed[..., [3, 0]] += 1
    before, after = tokenizer.encode(actions), tokenizer.encode(changed)
    assert torch.equal(before[:, :, 1], after[:, :, 1])
    assert not torch.equal(before[:, :, 0], after[:, :, 0])
    decoded = tokenizer.decode(before), tokenizer.decode(torch.cat([after[:, :, :1], before[:, :, 1:]], 2))
    assert torch.equal(decoded[0][..., [1, 4, 2]], decoded[1][..., [1, 4, 2]])
    assert not torch.equal(decoded[0][..., [3, 0]], decoded[1][..., [3, 0]])


def test_a_trained_tokenizer_refines_scale_by_scale_and_keeps_switches(generator):
    horizon = 12
    tokenizer = MultiScaleTokenizer(action_dim=5, action_horizon=horizon, groups=[[0, 1, 2, 3], [4]], width=32)
    data = motions(1024, horizon, generator)

    def loss():
        return tokenizer.loss(data[torch.randint(0, len(data), (64,), generator=generator)])[0]

    optimise(tokenizer.parameters(), loss, 300, 1e-2)
    chunks = motions(256, horizon, generator)
    with torch.no_grad():
        digits = tokenizer.encode(chunks)
        errors = [float((tokenizer.prefix(digits, k) - chunks).square().mean()) for k in (1, 2, 3, 4)]
        gripper = tokenizer.decode(digits)[..., 4]
    variance = float(chunks.var())
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[0] < 0.4 * variance
    assert errors[3] < 0.15 * variance
    late = ((gripper > 0).sum(1) - (chunks[..., 4] > 0).sum(1)).abs()
    assert (late <= 1).float().mean() > 0.97


def test_the_loss_gives_every_tokenizer_parameter_a_gradient(generator):
    tokenizer = MultiScaleTokenizer(action_dim=4, action_horizon=8, levels=LEVELS, width=16)
    tokenizer.loss(torch.randn((8, 8, 4), generator=generator))[0].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tokenizer.parameters())


@pytest.mark.parametrize("wrong", [{"scales": (4, 2)}, {"scales": (3,)}, {"levels": (1, 5)}, {"levels": ()}, {"group_size": 0}])
def test_a_tokenizer_that_cannot_work_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MultiScaleTokenizer(action_dim=3, action_horizon=8, **wrong)


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


# encoders


def encoder_of(observation, obs_horizon=2, width=16, **options):
    normalizer = Normalizer(observation)
    return ObservationEncoder(observation=observation, obs_horizon=obs_horizon, normalizer=normalizer, width=width, **options)


def test_default_observation_leaves_privileged_state_and_depth_out():
    keys = [STATE, POINTS, ENVIRONMENT_STATE, image_key("front"), depth_key("front")]
    features = {key: FeatureSpec((3,)) for key in [*keys, ACTION]}
    assert list(select_observation(features, None)) == [STATE, POINTS, image_key("front")]
    assert list(select_observation(features, [ENVIRONMENT_STATE])) == [ENVIRONMENT_STATE]
    with pytest.raises(SpecError, match=r"did you mean 'observation.state'"):
        select_observation(features, ["observation.stat"])
    with pytest.raises(SpecError, match="no observation"):
        select_observation({ACTION: FeatureSpec((3,))}, None)


def test_every_kind_of_observation_is_encoded(generator):
    observation = {
        STATE: FeatureSpec((3,)),
        POINTS: FeatureSpec((9, 5)),
        image_key("front"): FeatureSpec((20, 24, 3), "uint8"),
        depth_key("front"): FeatureSpec((20, 24)),
        ENVIRONMENT_STATE: FeatureSpec((4,)),
    }
    encoder = encoder_of(observation)
    batch = fake_batch(observation, FeatureSpec((2,)), 2, 4, 3, generator)
    context = encoder(batch, generator)
    context.sum().backward()
    assert context.shape == (3, 16)
    assert all(p.grad is not None for p in encoder.parameters())
    with pytest.raises(SpecError, match="can be encoded"):
        encoder_of({"observation.grid": FeatureSpec((4, 4))})


def test_a_cloud_is_a_set_and_its_padding_is_nothing(generator):
    encoder = PointEncoder(num_features=4, obs_horizon=1, width=8)
    cloud = torch.randn((2, 1, 10, 4), generator=generator)
    context = encoder(cloud)
    assert torch.allclose(encoder(cloud[:, :, torch.randperm(10, generator=generator)]), context, atol=1e-6)
    center = torch.randn((2, 1, 3), generator=generator)
    padded = torch.cat([cloud, torch.zeros((2, 1, 5, 4))], 2)
    assert torch.allclose(encoder(padded, None, center), encoder(cloud, None, center), atol=1e-6)
    empty = encoder(torch.zeros((2, 1, 10, 4)), None, center)
    assert torch.isfinite(empty).all()
    empty.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)


def test_a_centred_cloud_encoder_sees_relative_positions_only(generator):
    observation = {STATE: FeatureSpec((4,), names=("grip", "x", "y", "z")), POINTS: FeatureSpec((6, 3))}
    encoder = encoder_of(observation, obs_horizon=1, points_center=["x", "y", "z"])
    encoder.parts["state"].requires_grad_(False)
    batch = fake_batch(observation, FeatureSpec((2,)), 1, 4, 2, generator)
    seen = []
    encoder.parts["points"].points.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    encoder(batch)
    shift = torch.tensor([0.3, -0.2, 0.1])
    moved = {**batch, POINTS: batch[POINTS] + shift, STATE: batch[STATE] + torch.cat([torch.zeros(1), shift])}
    encoder(moved)
    assert torch.allclose(seen[0], seen[1], atol=1e-5)
    for wrong in (["x", "y"], ["x", "y", "depth"]):
        with pytest.raises(SpecError):
            encoder_of(observation, points_center=wrong)


def test_point_subsets_are_for_training_only(generator):
    encoder = PointEncoder(num_features=3, obs_horizon=1, width=8, num_points=4)
    cloud = torch.randn((2, 1, 30, 3), generator=generator)
    assert torch.equal(encoder(cloud), encoder(cloud))
    assert not torch.equal(encoder(cloud, generator), encoder(cloud, generator))


def test_a_shifted_frame_is_a_crop_of_the_padded_one(generator):
    frames = torch.arange(2 * 1 * 6 * 7, dtype=torch.float32).view(2, 1, 6, 7)
    shifted = random_shift(frames, 2, generator)
    padded = torch.nn.functional.pad(frames, (2, 2, 2, 2), mode="replicate")
    crops = [padded[:, :, i : i + 6, j : j + 7] for i in range(5) for j in range(5)]
    for b in range(2):
        assert any(torch.equal(shifted[b], crop[b]) for crop in crops)


def test_spatial_softmax_finds_the_peak():
    maps = torch.full((1, 2, 5, 9), -50.0)
    maps[0, 0, 0, 8] = 50.0  # top right
    maps[0, 1, 4, 4] = 50.0  # bottom middle
    assert torch.allclose(spatial_softmax(maps), torch.tensor([[1.0, 0.0, -1.0, 1.0]]), atol=1e-4)


def test_an_unknown_backbone_is_refused_with_a_suggestion():
    observation = {image_key("front"): FeatureSpec((32, 32, 3), "uint8")}
    with pytest.raises(ValueError, match="did you mean"):
        encoder_of(observation, images={"backbone": "resnet19"})
    with pytest.raises(ValueError, match="did you mean 'backbone'"):
        encoder_of(observation, images={"backbones": "small"})


def test_a_timm_backbone_has_no_batch_statistics(generator):
    observation = {image_key("front"): FeatureSpec((32, 32, 3), "uint8")}
    encoder = encoder_of(observation, obs_horizon=1, images={"backbone": "resnet10t"})
    batch = fake_batch(observation, FeatureSpec((2,)), 1, 4, 2, generator)
    alone = encoder({key: value[:1] for key, value in batch.items()})
    assert torch.allclose(encoder(batch)[:1], alone, atol=1e-4)


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
