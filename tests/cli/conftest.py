"""Checkpoints that verbs are tried on."""

import pytest

from tests.support import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    tiny.write_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A checkpoint without weights: what fails on it after the checks was checked too late."""
    path = tmp_path_factory.mktemp("settings")
    tiny.write_settings(path)
    return path
