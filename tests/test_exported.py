"""The decision as an ONNX graph: the chunks of torch, checks of observations, what falls back and what is refused."""

import builtins
import functools
import sys

import numpy as np
import pytest
import torch

from robopolicy import checkpoint, pipeline
from robopolicy.data.transforms import Normalizer, vector_statistics
from robopolicy.evaluation.rollout import Arm
from robopolicy.models.chunk_transformer import ChunkTransformer, TimedChunkTransformer
from robopolicy.models.cloud_encoder import CloudEncoder
from robopolicy.models.coarse_to_fine import CoarseToFineTransformer
from robopolicy.models.encoders import ObservationEncoder
from robopolicy.models.tokenizer import MultiScaleTokenizer
from robopolicy.policies.act import ActPolicy
from robopolicy.policies.autoregressive import AutoregressivePolicy
from robopolicy.policies.bc import BehaviourCloningPolicy
from robopolicy.policies.carp import CarpPolicy
from robopolicy.policies.exported import TOLERANCE, ExportedPolicy, disagreement, random_observations
from robopolicy.policies.flow import FlowPolicy
from robopolicy.policies.mip import MipPolicy
from robopolicy.policies.point_actor import PointActor
from robopolicy.spec import ACTION, POINTS, STATE, TASK, FeatureSpec, Policy, SpecError, image_key

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SMALL = {"width": 16, "depth": 1, "num_heads": 2}
STATE_ONLY = {STATE: FeatureSpec((4,), names=("x", "y", "z", "gripper"))}
EVERYTHING = {
    **STATE_ONLY,
    POINTS: FeatureSpec((11, 5)),
    image_key("front"): FeatureSpec((20, 24, 3), "uint8"),
    TASK: FeatureSpec((), "str", values=("lift", "push")),
}


def tokens(**options):
    return functools.partial(MultiScaleTokenizer, **{"width": 16, "levels": (4, 3), "scales": (1, 2, 3), **options})


def coarse_to_fine(**options):
    return functools.partial(CoarseToFineTransformer, **SMALL, **options)


CARP = {"tokenizer": tokens(), "transformer": coarse_to_fine()}
PAPER = {
    "tokenizer": tokens(quantiser="vq", codebook_size=16, code_width=4, group_size=1),
    "transformer": coarse_to_fine(num_categorical=None, refine=False, own_tokens=0.0),
}
CHUNKS, TIMED = functools.partial(ChunkTransformer, **SMALL), functools.partial(TimedChunkTransformer, **SMALL)
CASES = {
    "carp": (CarpPolicy, EVERYTHING, CARP),
    "the paper's carp": (CarpPolicy, STATE_ONLY, PAPER),
    "act": (ActPolicy, STATE_ONLY, {"transformer": CHUNKS}),
    "mip": (MipPolicy, STATE_ONLY, {"transformer": TIMED}),
    "autoregressive": (AutoregressivePolicy, STATE_ONLY, {"transformer": CHUNKS, "num_bins": 32}),
    "bc": (BehaviourCloningPolicy, STATE_ONLY, {"width": 32}),
}


def make(kind, features, options):
    """A policy whose last action entry is a switch, with weights that let the observation decide."""
    encoder = functools.partial(ObservationEncoder, width=16, points_center=("x", "y", "z") if POINTS in features else ())
    torch.manual_seed(0)
    horizons = {"obs_horizon": 2, "action_horizon": 6, "execute_horizon": 3}
    policy = kind(features, FeatureSpec((3,)), 20.0, encoder=encoder, **horizons, **options)
    for parameter in policy.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    if options is PAPER:
        policy.tokenizer.quantiser.books.codebook.normal_()  # k-means would start it
    rng = np.random.default_rng(0)
    actions = np.stack([*rng.normal(5.0, [0.1, 3.0], (500, 2)).T, rng.integers(0, 2, 500)], 1)
    policy.fit({STATE: vector_statistics(rng.normal(2.0, 3.0, (500, 4))), ACTION: vector_statistics(actions)})
    return policy.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def exported():
    with torch.random.fork_rng():
        return ExportedPolicy(make(*CASES["carp"]))


@pytest.mark.parametrize("case", CASES)
def test_the_graph_is_the_policy_within_tolerance(case, request):
    with torch.random.fork_rng():
        graph = request.getfixturevalue("exported") if case == "carp" else ExportedPolicy(make(*CASES[case]))
    policy = graph.policy
    assert isinstance(graph, Policy)
    scale = policy.normalizer.get_buffer("action_scale").numpy()
    observations = list(random_observations(policy, 100, seed=5))
    ours, theirs = (np.concatenate([each.sample(o, 1, 0) for o in observations]) for each in (graph, policy))
    assert ours.shape == theirs.shape == (100, 1, 6, 3)
    assert ours.dtype == np.float32
    assert np.abs((ours - theirs) / scale).max() < 1e-4
    assert (theirs.std(0) / scale).max() > 1e-2  # the observation decides
    if case == "carp":
        assert set(np.unique(ours[..., 2])) <= {0.0, 1.0}
        assert np.array_equal(ours[..., 2], theirs[..., 2])


def test_an_actor_on_clouds_becomes_a_graph():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = {STATE: FeatureSpec((3,), names=("ee_x", "ee_y", "ee_z")), POINTS: FeatureSpec((11, 5))}
        encoder = functools.partial(CloudEncoder, options={"widths": (16, 16)})
        policy = PointActor(features, FeatureSpec((3,)), 20.0, encoder=encoder, hidden=(16,)).eval().requires_grad_(False)
        policy.fit({key: vector_statistics(np.random.default_rng(0).normal(size=(500, 3))) for key in (STATE, ACTION)})
        graph = ExportedPolicy(policy)
    [observation] = random_observations(policy, 1, seed=5)
    assert np.allclose(graph.sample(observation), policy.sample(observation, 3, seed=1)[:, :1], atol=1e-4)


def test_the_rounding_of_a_constant_entry_is_no_difference_and_a_step_of_a_moving_one_is():
    normalizer = Normalizer({ACTION: FeatureSpec((2,))})
    moving = np.random.default_rng(0).normal(5.0, 0.1, 500)
    normalizer.fit({ACTION: vector_statistics(np.stack([moving, np.full(500, 0.3)], 1))})
    chunk = np.tile(np.float32([5.0, 0.3]), (1, 1, 6, 1))
    rounded, moved = chunk.copy(), chunk.copy()
    rounded[..., 1] = np.nextafter(chunk[..., 1], np.float32(1))
    moved[..., 0] += 1e-3
    assert 0 < disagreement(rounded, chunk, normalizer) <= TOLERANCE < disagreement(moved, chunk, normalizer)


def test_several_chunks_or_observations_are_those_of_torch(exported):
    for batch, num in ((1, 3), (2, 1), (2, 3)):
        [observation] = random_observations(exported.policy, 1, batch=batch)
        expected = exported.policy.sample(observation, num, seed=4)
        assert np.array_equal(exported.sample(observation, num, seed=4), expected)
        assert expected.shape == (batch, num, 6, 3)


def test_observations_are_checked_as_before(exported):
    [good] = random_observations(exported.policy, 1)
    bad = {
        "lacks": {key: value for key, value in good.items() if key != POINTS},
        "has dtype float64": {**good, STATE: good[STATE].astype(np.float64)},
        "is not finite": {**good, STATE: np.full_like(good[STATE], np.nan)},
        "obs_horizon=2": {**good, STATE: good[STATE][:, :1]},
        "unknown task": {**good, TASK: np.array(["fold"])},
    }
    for message, observation in bad.items():
        with pytest.raises(SpecError, match=message):
            exported.sample(observation)
    with pytest.raises(SpecError, match="num_samples=0"):
        exported.sample(good, 0)
    empty = {**good, POINTS: np.zeros_like(good[POINTS])}
    assert np.allclose(exported.sample(empty), exported.policy.sample(empty, seed=0), atol=1e-3)


def test_what_cannot_be_a_graph_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"FlowPolicy executes is drawn.*backend=torch"):
        ExportedPolicy(make(FlowPolicy, STATE_ONLY, {"transformer": TIMED}))
    policy = make(*CASES["bc"])
    true_import = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "onnxruntime":
            raise ImportError(name)
        return true_import(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"pip install 'robopolicy\[onnx\]'"):
        ExportedPolicy(policy)


def test_a_checkpoint_is_deployed_by_either_backend(tmp_path):
    policy = make(*CASES["bc"])
    targets = ("robopolicy.policies.bc.BehaviourCloningPolicy", "robopolicy.models.encoders.ObservationEncoder")
    encoder = {"_target_": targets[1], "_partial_": True, "width": 16}
    horizons = {"obs_horizon": 2, "action_horizon": 6, "execute_horizon": 3}
    node = {"_target_": targets[0], "encoder": encoder, "width": 32, **horizons}
    meta = {"kind": "policy", "spec": policy.spec.to_dict(), "step": 1}
    arm = Arm("bc", str(checkpoint.save(tmp_path / "step_000001", policy.state_dict(), {"policy": node}, meta)))
    torch_policy, graph = (pipeline.deployed(arm, backend) for backend in pipeline.BACKENDS)
    assert isinstance(graph, ExportedPolicy)
    assert not isinstance(torch_policy, ExportedPolicy)
    [observation] = random_observations(policy, 1, seed=2)
    assert np.allclose(graph.sample(observation), torch_policy.sample(observation), atol=1e-3)
    with pytest.raises(ValueError, match=r"backend='onx'; did you mean 'onnx'"):
        pipeline.deployed(arm, "onx")
    with pytest.raises(ValueError, match=r"steer\.critic"):
        pipeline.deployed(Arm("bc", arm.checkpoint, critic="critic"), "onnx")
