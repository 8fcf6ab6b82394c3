"""A changed checkpoint folder loads, or ends in the package's own error, in under two seconds."""

import pytest

from tests.support.hostile import Folders

SHARES = 8


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return Folders(tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("share", range(SHARES))
def test_changed_folders(folders, share):
    """A share of all, files that are none included: `python -m tests.support.hostile` takes all."""
    assert len(folders.changes) > 1000
    for name, good, change in folders.changes[share :: 8 * SHARES]:
        folders.outcome(name, good, change)


@pytest.mark.parametrize("kind", ["pipe", "zeros", "link to itself", "a terabyte of nothing"])
def test_files_that_are_none(folders, kind):
    chosen = [c for c in folders.changes if c[0].endswith(f" {kind}")]
    assert len(chosen) == 5
    for name, good, change in chosen:
        assert folders.outcome(name, good, change) != "loaded", name


def test_headers_are_bounded_together(folders):
    (chosen,) = [c for c in folders.changes if c[0] == "index of large headers"]
    assert "headers of at most 8 MiB in all files" in folders.outcome(*chosen)


def test_the_folders_that_are_changed_are_good(folders):
    for folder in (folders.one, folders.two):
        assert folders.outcome("unchanged", folder, lambda folder: None) == "loaded"
