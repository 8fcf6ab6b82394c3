"""What tests of kernels share."""

import pytest

from bench.checks.kernel_checks import device_error


@pytest.fixture(autouse=True)
def _no_report_is_left_of_another_test():
    """What kernels reported stays until it is taken: a test that asks must find its own."""
    yield
    device_error()
