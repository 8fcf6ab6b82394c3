"""Shared test settings."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread_per_process():
    """Tiny matrices lose more to waking threads than they gain, above all under `pytest -n`."""
    torch.set_num_threads(1)
