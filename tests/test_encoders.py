"""Encoders of observations, each by its properties, and any mix of them."""

import functools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from robopolicy import checkpoint
from robopolicy.batch import fake_batch, task_ids, to_torch
from robopolicy.data.episodes import EpisodeStore, write_episodes
from robopolicy.data.transforms import Normalizer
from robopolicy.data.windows import Windows, task_feature
from robopolicy.models.encoders import ObservationEncoder, select_observation
from robopolicy.models.images import ImageEncoder, jitter_color, random_shift, spatial_softmax, weights_come_later
from robopolicy.models.points import PointEncoder
from robopolicy.models.tasks import TaskEncoder, TextFeatures, text_parts
from robopolicy.policies.bc import BehaviourCloningPolicy
from robopolicy.policies.load import load_policy
from robopolicy.policies.wrappers import ChunkExecutor
from robopolicy.spec import (
    ACTION,
    ENVIRONMENT_STATE,
    POINTS,
    STATE,
    TASK,
    FeatureSpec,
    PolicySpec,
    SpecError,
    check_observation,
    depth_key,
    features_from_dict,
    image_key,
)

TASKS = ("lift the cube", "push the puck to the mark")
KINDS = {
    STATE: FeatureSpec((3,), names=("x", "y", "z")),
    POINTS: FeatureSpec((9, 5)),
    image_key("front"): FeatureSpec((20, 24, 3), "uint8"),
    image_key("wrist"): FeatureSpec((20, 24, 3), "uint8"),
    depth_key("front"): FeatureSpec((20, 24)),
    TASK: FeatureSpec((), "str", values=TASKS),
}


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


def test_what_is_sensed_is_pictures_depth_and_clouds_without_the_robots_state(generator):
    encoder = encoder_of(KINDS, obs_horizon=1, points_center=("x", "y", "z")).eval()
    seen = fake_batch(KINDS, FeatureSpec((2,)), 1, 4, 2, generator)
    sensed = encoder.sensed(seen)
    assert sensed.shape == (2, 4 * encoder.width)
    moved = {**seen, STATE: seen[STATE] + 1.0, POINTS: seen[POINTS] + torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])}
    assert torch.allclose(encoder.sensed(moved), sensed, atol=1e-4)
    assert not torch.allclose(encoder(moved), encoder(seen), atol=1e-4)
    for key in (POINTS, image_key("front"), image_key("wrist"), depth_key("front")):
        other = {**seen, key: fake_batch({key: KINDS[key]}, FeatureSpec((2,)), 1, 4, 2, generator)[key]}
        assert not torch.allclose(encoder.sensed(other), sensed)
    with pytest.raises(SpecError, match=r"no picture, depth image or cloud, only observation\.state"):
        encoder_of({STATE: KINDS[STATE]}).sensed({STATE: seen[STATE]})


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
    with pytest.raises(SpecError, match=r"'observation.gripper'.*\[T, 1\].*inputs.observation_keys"):
        encoder_of({"observation.gripper": FeatureSpec(())})
    with pytest.raises(SpecError, match=r"observation\.images\.<camera>"):
        encoder_of({"observation.image": FeatureSpec((20, 24, 3), "uint8")})


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


# any mix


mixes = st.lists(st.sampled_from(list(KINDS)), min_size=1, unique=True)


@settings(max_examples=40, deadline=None)
@given(keys=mixes, horizon=st.sampled_from([1, 2, 3]), by=st.sampled_from(["id", "text"]), share=st.booleans())
def test_any_mix_of_observations_becomes_a_context(keys, horizon, by, share):
    generator = torch.Generator().manual_seed(0)
    observation = {key: KINDS[key] for key in keys}
    center = ["x", "y", "z"] if STATE in keys else []
    encoder = encoder_of(observation, horizon, 8, points_center=center, images={"share": share}, tasks={"by": by})
    batch = fake_batch(observation, FeatureSpec((2,)), horizon, 4, 3, generator)
    assert encoder(batch, generator).shape == (3, 8)
    context = encoder(batch)
    context.square().sum().backward()
    assert torch.isfinite(context).all()
    assert all(p.grad is not None for p in encoder.parameters())
    assert torch.equal(context, encoder(batch)), "inference has no randomness"
    alone = torch.cat([encoder({key: x[i : i + 1] for key, x in batch.items()}) for i in range(3)])
    assert torch.allclose(context, alone, atol=1e-4), "rows do not mix"


@settings(max_examples=20, deadline=None)
@given(keys=mixes, horizon=st.sampled_from([1, 2, 3]), by=st.sampled_from(["id", "text"]))
def test_every_key_and_every_frame_of_a_mix_counts(keys, horizon, by):
    generator = torch.Generator().manual_seed(0)
    observation = {key: KINDS[key] for key in keys}
    encoder = encoder_of(observation, horizon, 8, tasks={"by": by})
    batch = fake_batch(observation, FeatureSpec((2,)), horizon, 4, 1, generator)
    before = encoder(batch)
    for key in keys:
        if key == TASK:
            assert not torch.allclose(encoder({**batch, TASK: 1 - batch[TASK]}), before)
            continue
        for frame in range(horizon):
            changed = batch[key].clone()
            changed[:, frame] = fake_batch(observation, FeatureSpec((2,)), horizon, 4, 1, generator)[key][:, frame]
            assert not torch.equal(encoder({**batch, key: changed}), before)


def policy_of(observation, obs_horizon=1, **encoder):
    options = {"obs_horizon": obs_horizon, "action_horizon": 4, "execute_horizon": 2, "width": 16}
    make = functools.partial(ObservationEncoder, width=16, **encoder)
    return BehaviourCloningPolicy(
        observation, FeatureSpec((2,)), 10.0, encoder=make, observation_keys=list(observation), **options
    )


def numpy_observation(policy, size, generator):
    spec = policy.spec
    batch = fake_batch(spec.observation, spec.action, spec.obs_horizon, 4, size, generator)
    observation = {key: batch[key].numpy() for key in spec.observation}
    if TASK in observation:
        observation[TASK] = np.array(spec.observation[TASK].values)[observation[TASK]]
    return observation


@pytest.mark.parametrize("horizon", [1, 2, 3])
def test_a_policy_of_everything_takes_tasks_with_and_without_a_time_axis(horizon, generator):
    policy = policy_of(KINDS, horizon)
    observation = numpy_observation(policy, 3, generator)
    chunk = policy.sample(observation)
    assert chunk.shape == (3, 1, 4, 2)
    for tasks in (observation[TASK].tolist(), np.repeat(observation[TASK][:, None], horizon, 1)):
        assert np.array_equal(policy.sample({**observation, TASK: tasks}), chunk)
    other = {TASKS[0]: TASKS[1], TASKS[1]: TASKS[0]}
    assert not np.allclose(policy.sample({**observation, TASK: [other[t] for t in observation[TASK]]}), chunk)


# wrong observations


FRONT, WRIST = image_key("front"), image_key("wrist")
WRONG = {
    "lacks 'observation.images.wrist'": lambda o: {k: v for k, v in o.items() if k != WRIST},
    "lacks 'observation.images.front'": lambda o: {**{k: v for k, v in o.items() if k != FRONT}, image_key("fornt"): o[FRONT]},
    r"images are HWC": lambda o: {**o, FRONT: np.moveaxis(o[FRONT], -1, -3)},
    r"grayscale": lambda o: {**o, FRONT: o[FRONT][..., 0]},
    r"looks grayscale": lambda o: {**o, FRONT: o[FRONT][..., :1]},
    r"resize it to 20 x 24": lambda o: {**o, FRONT: o[FRONT][:, :, :16]},
    r"dtype float32, expected uint8": lambda o: {**o, FRONT: o[FRONT].astype(np.float32) / 255},
    r"time axis is missing": lambda o: {**o, FRONT: o[FRONT][:, 0]},
    r"unknown task 'lift the cub'; known: 'lift the cube'": lambda o: {**o, TASK: ["lift the cub"] * 2},
    r"unknown task 'x'; known: 'lift the cube', 'push the puck to the mark'": lambda o: {**o, TASK: ["x"] * 2},
    r"'task' has dtype int64, expected text": lambda o: {**o, TASK: np.array([0, 1])},
    r"'task' has shape \[\]": lambda o: {**o, TASK: TASKS[0]},
    r"'task' has batch size 1": lambda o: {**o, TASK: TASKS[:1]},
    r"lacks 'task'": lambda o: {k: v for k, v in o.items() if k != TASK},
}


@pytest.mark.parametrize("message", WRONG)
def test_an_observation_that_does_not_fit_is_refused_with_the_remedy(message, generator):
    policy = policy_of({key: KINDS[key] for key in (STATE, FRONT, WRIST, TASK)})
    observation = numpy_observation(policy, 2, generator)
    policy.sample({**observation, image_key("side"): observation[FRONT]})  # what it does not look at may be there
    with pytest.raises(SpecError, match=message):
        policy.sample(WRONG[message](observation))


def test_a_batch_that_does_not_fit_is_refused_by_the_encoder(generator):
    observation = {key: KINDS[key] for key in (STATE, FRONT, TASK)}
    encoder = encoder_of(observation)
    batch = fake_batch(observation, FeatureSpec((2,)), 2, 4, 3, generator)
    cases = {
        "images are HWC": {**batch, FRONT: batch[FRONT].movedim(-1, -3)},
        "lacks 'task'": {key: value for key, value in batch.items() if key != TASK},
        r"has shape \[3, 1, 3\], the encoder reads \[B, 2, 3\]": {**batch, STATE: batch[STATE][:, :1]},
    }
    for message, wrong in cases.items():
        with pytest.raises(SpecError, match=message):
            encoder(wrong)


@pytest.mark.parametrize(
    "feature", [FeatureSpec((3, 20, 24), "uint8"), FeatureSpec((20, 24), "uint8"), FeatureSpec((20, 24, 3))]
)
def test_datasets_of_other_images_are_refused(feature):
    with pytest.raises(SpecError, match="uint8 and HWC"):
        encoder_of({FRONT: feature})


# tasks


def test_text_features_say_what_a_wording_shares_with_the_known_ones():
    assert sorted(text_parts("ab")) == ["ab", "~#ab", "~#ab#", "~ab#"]
    assert TextFeatures(["ab"])("Ab").tolist() == [0.5] * 4
    features = TextFeatures(["lift", "push", "pick_place"])
    lift, push, place = (features(text) for text in features.known)
    for vector in (lift, push, place):
        assert np.linalg.norm(vector) == pytest.approx(1)
    assert lift @ push == 0
    for text in ("Lift!", "please lift it", "lifting", "LIFT the red box"):
        assert features(text) @ lift > 0.7
        assert features(text) @ push < 0.3
    assert features("pick and place") @ place > 0.8
    assert not features("open").any()


def test_a_task_is_by_id_or_by_text_and_unknown_ones_are_refused():
    by_id, by_text = (TaskEncoder(TASKS, 8, by) for by in ("id", "text"))
    for encoder in (by_id, by_text):
        places = torch.tensor([1, 0, 1])
        assert torch.allclose(encoder(encoder.tensor([TASKS[i] for i in places])), encoder(places))
    assert task_ids([[TASKS[0], TASKS[1]]], TASKS).tolist() == [1], "of a history the last one counts"
    with pytest.raises(SpecError, match="unknown task 'lift a cube'"):
        by_id.tensor(["lift a cube"])
    assert by_text.tensor(["lift a cube"]).shape[0] == 1
    with pytest.raises(SpecError, match=r"'xyz' has nothing in common with those known: 'lift the cube'"):
        by_text.tensor(["xyz"])
    with pytest.raises(ValueError, match=r"tasks.by='txt'.*did you mean 'text'"):
        TaskEncoder(TASKS, 8, "txt")
    with pytest.raises(SpecError, match="no known values"):
        TaskEncoder((), 8)


@pytest.mark.parametrize("by", ["id", "text"])
def test_one_policy_does_what_the_task_says(by, generator):
    policy = policy_of({STATE: KINDS[STATE], TASK: KINDS[TASK]}, tasks={"by": by})
    optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
    for _ in range(80):
        batch = fake_batch(policy.spec.observation, policy.spec.action, 1, 4, 32, generator)
        batch[ACTION] = (2.0 * batch[TASK] - 1)[:, None, None].expand(-1, 4, 2)
        loss, _ = policy.loss("policy", batch, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    state = torch.randn((2, 1, 3), generator=generator).numpy()
    assert np.allclose(policy.sample({STATE: state, TASK: list(TASKS)})[:, 0, 0, 0], [-1, 1], atol=0.2)
    if by == "text":
        unseen = ["please lift a red cube", "Push it onto the mark"]
        assert np.allclose(policy.sample({STATE: state, TASK: unseen})[:, 0, 0, 0], [-1, 1], atol=0.5)


def test_the_task_is_an_input_when_asked_for_or_when_there_are_several():
    several, one = ({STATE: KINDS[STATE], TASK: FeatureSpec((), "str", values=v)} for v in (TASKS, TASKS[:1]))
    assert list(select_observation(several, None)) == [STATE, TASK]
    assert list(select_observation(one, None)) == [STATE]
    assert list(select_observation(several, [STATE])) == [STATE]
    assert list(select_observation(one, [STATE, TASK])) == [STATE, TASK]


def test_text_in_a_spec_survives_json_and_specs_from_before_it_are_read():
    spec = PolicySpec({STATE: KINDS[STATE], TASK: KINDS[TASK]}, FeatureSpec((2,)), 2, 4, 2, 10.0)
    assert PolicySpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert "values" not in spec.to_dict()["observation"][STATE], "hashes of datasets do not change"
    old = {STATE: {"shape": [3], "dtype": "float32", "unit": "", "frame": "", "names": ["x", "y", "z"]}}
    assert features_from_dict(old) == {STATE: KINDS[STATE]}
    zeros = {key: feature.zeros((1, 2)) for key, feature in KINDS.items()}
    assert check_observation(zeros, PolicySpec(KINDS, FeatureSpec((2,)), 2, 4, 2, 10.0)) == 1


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    episodes = [
        {STATE: rng.normal(size=(5, 3)), ACTION: rng.normal(size=(5, 2)), **({} if task is None else {TASK: task})}
        for task in ("push", "lift", "push", "open")
    ]
    write_episodes(tmp_path / "data", episodes, fps=10)
    return EpisodeStore(tmp_path / "data")


def test_windows_give_the_task_of_each(store):
    windows = Windows(store, [STATE, TASK], 2, 4, episodes=[0, 1, 2])
    batch = windows.batch(np.array([0, 4, 5, 14]))
    assert batch[TASK].tolist() == ["push", "push", "lift", "push"]
    assert windows.spec.features[TASK] == task_feature(store, [0, 1, 2])
    assert task_feature(store).values == ("lift", "open", "push")
    assert task_feature(store, [1]).values == ("lift",)
    tensors = to_torch(batch, tasks=windows.spec.features[TASK].values)
    assert tensors[TASK].tolist() == [1, 1, 0, 1]
    assert TASK not in to_torch(batch)
    assert TASK not in Windows(store, [STATE], 2, 4).batch(np.arange(2))
    with pytest.raises(SpecError, match="unknown task 'push'"):
        to_torch(batch, tasks=["lift"])


@pytest.mark.parametrize("by", ["id", "text"])
def test_a_checkpoint_knows_its_tasks(by, tmp_path, generator):
    observation = {STATE: KINDS[STATE], TASK: KINDS[TASK]}
    policy = policy_of(observation, tasks={"by": by})
    encoder = {"_target_": "robopolicy.models.encoders.ObservationEncoder", "_partial_": True, "width": 16, "tasks": {"by": by}}
    node = {"_target_": "robopolicy.policies.bc.BehaviourCloningPolicy", "observation_keys": list(observation)}
    node |= {"encoder": encoder, "obs_horizon": 1, "action_horizon": 4, "execute_horizon": 2, "width": 16}
    meta = {"kind": "policy", "spec": policy.spec.to_dict(), "step": 1}
    folder = checkpoint.save(tmp_path / "step_000001", policy.state_dict(), {"policy": node}, meta)
    loaded, example = load_policy(folder), numpy_observation(policy, 3, generator)
    assert loaded.spec == policy.spec
    assert np.array_equal(loaded.sample(example), policy.sample(example))
    executor = ChunkExecutor(loaded)
    frame = {STATE: example[STATE][0, 0], TASK: np.asarray(example[TASK][0])}
    assert np.allclose(executor.act(frame), loaded.sample(example)[0, 0, 0], atol=1e-5)


# images


def test_augmentation_is_drawn_per_sample_and_alike_for_its_frames(generator):
    frame = torch.rand((4, 1, 3, 16, 16), generator=generator)
    frames = frame.expand(-1, 3, -1, -1, -1)
    changed = jitter_color(frames, generator, brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1)
    assert torch.allclose(changed[:, 0], changed[:, 2], atol=1e-6)
    factors = (jitter_color(torch.full_like(frame, 0.3), generator, brightness=0.5) / 0.3).flatten(1)
    assert (factors.std(1) < 1e-6).all()
    assert factors.mean(1).std() > 0.05
    encoder = ImageEncoder((16, 16, 3), 2, 8)
    seen = []
    encoder.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].unflatten(0, (4, 2))))
    pair = (255 * frame).byte().permute(0, 1, 3, 4, 2).expand(-1, 2, -1, -1, -1)
    encoder(pair, generator)
    assert torch.allclose(seen[0][:, 0], seen[0][:, 1], atol=1e-6)
    encoder(pair)
    assert torch.allclose(seen[1], pair.permute(0, 1, 4, 2, 3) / 255)
    assert not torch.allclose(seen[0], seen[1], atol=0.02)


def test_color_jitter_changes_what_its_name_says(generator):
    frames = 0.4 + 0.2 * torch.rand((8, 2, 3, 6, 6), generator=generator)
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]

    def brightness(x):
        return (x * luma).sum(2)

    assert torch.allclose(jitter_color(frames, generator), frames, atol=1e-5)
    for kind in ({"hue": 0.2}, {"saturation": 0.5}):
        changed = jitter_color(frames, generator, **kind)
        assert torch.allclose(brightness(changed), brightness(frames), atol=1e-3)
        assert not torch.allclose(changed, frames, atol=0.01)
    changed = jitter_color(frames, generator, contrast=0.5)
    assert torch.allclose(brightness(changed).mean((1, 2, 3)), brightness(frames).mean((1, 2, 3)), atol=1e-4)
    grey = torch.rand((8, 2, 1, 6, 6), generator=generator).expand(-1, -1, 3, -1, -1)
    assert torch.allclose(jitter_color(grey, generator, hue=0.5, saturation=1.0), grey, atol=2e-3)
    wild = jitter_color(torch.rand((8, 1, 3, 6, 6), generator=generator), generator, brightness=1.0, contrast=1.0, hue=0.5)
    assert wild.min() >= 0
    assert wild.max() <= 1


def test_depth_is_shifted_but_keeps_its_metres(generator):
    depth = torch.rand((3, 2, 16, 16), generator=generator)
    encoder = ImageEncoder((16, 16), 2, 8, shift=0)
    assert torch.equal(encoder(depth, generator), encoder(depth))
    shifted = ImageEncoder((16, 16), 2, 8, shift=4)
    assert not torch.equal(shifted(depth, generator), shifted(depth))


def test_cameras_have_weights_of_their_own_or_share_them(generator):
    observation = {FRONT: KINDS[FRONT], WRIST: KINDS[WRIST], depth_key("front"): KINDS[depth_key("front")]}
    own, shared = encoder_of(observation), encoder_of(observation, images={"share": True})
    assert set(own.parts) == {"images_front", "images_wrist", "depth_front"}
    assert set(shared.parts) == {"shared_images", "shared_depth"}
    batch = fake_batch(observation, FeatureSpec((2,)), 2, 4, 3, generator)
    swapped = {**batch, FRONT: batch[WRIST], WRIST: batch[FRONT]}
    assert not torch.allclose(shared(batch), shared(swapped)), "it still tells the cameras apart"
    with pytest.raises(SpecError, match="share=false"):
        encoder_of({**observation, WRIST: FeatureSpec((10, 12, 3), "uint8")}, images={"share": True})


def test_pretrained_weights_come_from_a_file_that_fits(tmp_path, generator):
    import timm

    model = timm.create_model("resnet10t", num_classes=7)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
    file = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), file)
    options = {"backbone": "resnet10t", "weights": str(file), "shift": 0}
    encoder = ImageEncoder((32, 32, 3), 1, 8, **options)
    images = torch.randint(0, 256, (4, 1, 32, 32, 3), generator=generator, dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = model.eval().forward_head(
        model.forward_features(((images[:, 0] / 255 - mean) / std).permute(0, 3, 1, 2)), pre_logits=True
    )
    seen = []
    encoder.backbone.register_forward_hook(lambda *call: seen.append(call[2]))
    encoder.train()(images)
    assert torch.allclose(seen[0], expected, atol=1e-4), "also in training mode: BatchNorm is frozen"
    with weights_come_later():
        blank = ImageEncoder((32, 32, 3), 1, 8, **{**options, "weights": "gone.safetensors"})
    blank.load_state_dict(encoder.state_dict())
    assert torch.equal(blank(images), encoder(images))
    other = {**load_file(file), "conv1.0.weight": torch.zeros(8, 3, 3, 3)}
    save_file(other, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights")
    for name, message in {
        "gone.safetensors": "there is no such file",
        "text.safetensors": r"is not a \.safetensors file",
        "other.safetensors": r"conv1.0.weight has shape \[8, 3, 3, 3\], the model's has \[24, 3, 3, 3\]",
    }.items():
        with pytest.raises(ValueError, match=message):
            ImageEncoder((32, 32, 3), 1, 8, **{**options, "weights": str(tmp_path / name)})
    with pytest.raises(ValueError, match=r"is missing.*and [0-9]+ more"):
        ImageEncoder((32, 32, 3), 1, 8, **{**options, "backbone": "resnet18"})


@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_timm_backbones_of_every_kind_fit(backbone, generator):
    encoder = ImageEncoder((32, 48, 3), 2, 8, backbone=backbone)
    images = torch.randint(0, 256, (2, 2, 32, 48, 3), generator=generator, dtype=torch.uint8)
    assert encoder(images, generator).shape == (2, 8)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"statistics": "imagnet"}, "did you mean 'imagenet'"),
        ({"hue": 2}, "in 0..1"),
        ({"shift": -1}, "shift=-1"),
        ({"weights": "x.safetensors"}, "images.backbone"),
    ],
)
def test_image_options_that_cannot_work_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ImageEncoder((16, 16, 3), 1, 8, **wrong)


def test_of_many_tasks_the_closest_are_named():
    many = [f"task number {i}" for i in range(100)]
    with pytest.raises(SpecError, match=r"unknown task 'task nummer 42'; did you mean 'task number 42'"):
        task_ids(["task nummer 42"], many)
