"""Shared by all tests: one thread, so that parallel workers do not fight, and a seed of its own for each test."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
