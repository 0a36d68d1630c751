"""A policy's decision as one ONNX graph: observations in, the chunk that it would execute out, no Python between operations.

Needs onnx, onnxscript and onnxruntime: `pip install robopolicy[onnx]`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robopolicy.batch import fake_batch
from robopolicy.data.transforms import Normalizer
from robopolicy.policies.base import TrainablePolicy
from robopolicy.spec import ACTION, TASK, Array, Observation, PolicySpec, check_observation

TOLERANCE = 1e-4  # largest accepted difference between graph and torch, in units of normalised actions
NUM_CHECKS = 8  # random observations that a new graph is compared on


class SingleChunk(nn.Module):
    """One tensor [B, T, ...] for each of the encoder's keys, in their order -> chunks [B, 1, H, A] in physical units."""

    def __init__(self, policy: TrainablePolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, *observation: Tensor) -> Tensor:
        """Candidate 0 of the policy."""
        context = self.policy.encoder(dict(zip(self.policy.encoder.keys, observation, strict=True)))
        chunk = self.policy.propose(context, 1, torch.Generator(self.policy.device))
        return self.policy.normalizer.denormalize(ACTION, chunk).float()


class ExportedPolicy:
    """A spec.Policy: one chunk for one observation comes from a graph; of several, torch computes them all.

    The graph holds the weights that the policy has now. It is compared with torch on random observations at once.

    Raises:
        ValueError: a package is missing, candidate 0 is drawn rather than computed, an operation has no counterpart in
            ONNX, or the graph's chunks are not those of torch.
    """

    def __init__(self, policy: TrainablePolicy) -> None:
        self.policy = policy
        self.spec: PolicySpec = replace(policy.spec, capabilities=())
        observations = list(random_observations(policy, NUM_CHECKS))
        if not np.array_equal(policy.sample(observations[0], 1, 0), policy.sample(observations[0], 1, 1)):
            raise ValueError(
                f"what {type(policy).__name__} executes is drawn, it depends on a seed: a graph needs a policy whose candidate "
                "0 is computed, such as carp, act, mip, autoregressive or bc; leave backend=torch"
            )
        self._session = _session(policy, observations[0])
        self._inputs = [entry.name for entry in self._session.get_inputs()]
        worst = max(disagreement(self.sample(o), policy.sample(o, 1, 0), policy.normalizer) for o in observations)
        if not worst <= TOLERANCE:
            raise ValueError(
                f"the graph of {type(policy).__name__} differs from torch by {worst:.2g} of the actions' range, more than "
                f"{TOLERANCE:g}: leave backend=torch"
            )

    def reset(self) -> None:
        """Forget the current episode."""
        self.policy.reset()

    def sample(self, observation: Observation, num_samples: int = 1, seed: int | None = None) -> Array:
        """Chunks [B, N, H, A] (see spec.Policy). The graph has B = N = 1."""
        if num_samples != 1 or check_observation(observation, self.spec) != 1:
            return self.policy.sample(observation, num_samples, seed)
        inputs = [tensor.numpy() for tensor in _tensors(self.policy, observation)]
        return self._session.run(None, dict(zip(self._inputs, inputs, strict=True)))[0]


def disagreement(ours: Array, theirs: Array, normalizer: Normalizer) -> float:
    """Largest difference of two arrays of chunks [..., A] in units of normalised actions, beyond an action's own rounding.

    An entry that hardly moves beside its size is counted in units in which the rounding of float32 is within TOLERANCE.
    """
    offset, scale = normalizer.offset(ACTION), normalizer.scale(ACTION)
    assert offset is not None
    assert scale is not None
    rounding = 2 * np.finfo(np.float32).eps * np.abs(offset)
    return float(np.abs((ours - theirs) / np.maximum(scale, rounding / TOLERANCE)).max())


def random_observations(policy: TrainablePolicy, count: int, seed: int = 0, batch: int = 1) -> Iterator[Observation]:
    """Observations {key: [batch, T, ...]} that fit the policy: vectors spread as its normaliser says, known tasks."""
    generator, spec = torch.Generator().manual_seed(seed), policy.spec
    normalizer = policy.normalizer
    for _ in range(count):
        drawn = fake_batch(spec.observation, spec.action, spec.obs_horizon, spec.action_horizon, batch, generator)
        numbers = {key: drawn[key].to(policy.device) for key in spec.observation if key != TASK}
        observation = {key: normalizer.denormalize(key, value).cpu().numpy() for key, value in numbers.items()}
        if TASK in spec.observation:
            observation[TASK] = np.array(spec.observation[TASK].values)[drawn[TASK].numpy()]
        yield observation


def _tensors(policy: TrainablePolicy, observation: Observation) -> list[Tensor]:
    tensors = policy.encoder.tensors(observation, "cpu")
    return [tensors[key] for key in policy.encoder.keys]


def _session(policy: TrainablePolicy, example: Observation) -> Any:
    """An onnxruntime session on one thread of the graph of SingleChunk."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise ValueError("a graph needs onnx, onnxscript and onnxruntime: pip install 'robopolicy[onnx]'") from error
    tensors = tuple(tensor.to(policy.device) for tensor in _tensors(policy, example))
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(SingleChunk(policy).eval(), tensors, dynamo=True, verbose=False)
    except torch.onnx.OnnxExporterError as error:
        raise ValueError(f"{type(policy).__name__} cannot become a graph, leave backend=torch: {error}") from error
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
