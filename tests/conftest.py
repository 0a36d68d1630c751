"""Fixtures of all tests."""

import pytest
import torch


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
