"""Shared test settings."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread_per_process():
    """Tiny matrices lose more to waking threads than they gain, above all under `pytest -n`."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_numbers_on_every_run():
    """What fails, fails again."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    """Processes that share the tests must agree on their names."""
    for item in items:
        if " at 0x" in item.name:
            raise pytest.UsageError(f"{item.nodeid}: expected a name without an address; set ids=")
