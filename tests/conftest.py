"""Fixtures of all tests."""

import os

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:  # test files side by side, a core each: more threads would wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


@pytest.fixture
def generator():
    """A torch generator with a fixed seed."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def _initial_weights():
    """Networks begin with the same weights whatever ran before."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
