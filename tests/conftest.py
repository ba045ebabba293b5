"""Shared by all tests: one thread, so that parallel workers do not fight, and a seed of its own for each test."""

import os

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU; read where they are defined

torch.set_num_threads(1)

# What hypothesis makes up: always the same few cases; many others with --hypothesis-profile thorough.
settings.register_profile(
    "few", max_examples=60, stateful_step_count=12, deadline=None, database=None, derandomize=True
)
settings.register_profile("thorough", max_examples=2000, stateful_step_count=20, deadline=None, database=None)
settings.load_profile("few")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
