"""CPU threads: how many this process may use, and how many suit a model.

Between small products a second thread costs more than it brings, and on a machine that others use
far more: each product waits for the slower of the two.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BYTES_PER_THREAD = 64 << 20
"""Weights that make one more thread worth waking at every product of a decode step."""
TOKENS_PER_READ = 20
"""Tokens that a core multiplies with a weight in the time that it takes to fetch one."""
SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Where a user says how many threads to take; torch reads them, and nothing here changes it."""


def usable_cores() -> int:
    """Cores that this process may keep busy: its affinity's, or fewer if a cgroup allows less."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return int(max(1, min(cores, _quota())))


def _quota(
    mounts: Path = Path("/sys/fs/cgroup"), memberships: Path = Path("/proc/self/cgroup")
) -> float:
    """Cores' worth of time that the strictest cgroup around this process gets."""
    lowest = math.inf
    with contextlib.suppress(OSError, ValueError):
        for line in memberships.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            mount = mounts / "cpu" if controllers else mounts  # version 1, version 2
            group = mount / path.lstrip("/")
            while group != mounts:
                lowest = min(lowest, _quota_of(group))
                group = group.parent
            lowest = min(lowest, _quota_of(mounts))
    return lowest


def _quota_of(group: Path) -> float:
    """`quota period` in microseconds, in one file or two; -1 or "max" for no limit."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{x}_us").read_text() for x in ("quota", "period"))
        return float(quota) / float(period) if float(quota) > 0 else math.inf
    except (OSError, ValueError):
        return math.inf


def user_setting() -> str | None:
    """The user's own `NAME=value`, if there is one that torch heeds: a number, or several."""
    for name in SETTINGS:
        first = os.environ.get(name, "").split(",")[0].strip()
        if first.isdecimal() and int(first):
            return f"{name}={os.environ[name]}"
    return None


def threads_for(weight_bytes: float, tokens: int = 1) -> int:
    """Threads for a model with that many bytes of weights, and steps of that many tokens.

    Never more than torch is set to, and exactly that where the user said how many.

    >>> 1 <= threads_for(7.5e6) <= threads_for(7.5e6, tokens=4096) <= threads_for(218e9)
    True
    """
    import torch

    most = torch.get_num_threads()
    if user_setting():
        return most
    work = weight_bytes * max(1, tokens / TOKENS_PER_READ)
    return int(min(most, usable_cores(), 1 + work / BYTES_PER_THREAD))


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Gives torch that many CPU threads in the block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def report() -> dict[str, Any]:
    """What decides the number of threads; plain values, ready for JSON."""
    return {
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "max_threads": threads_for(math.inf),
        "weights_per_thread": BYTES_PER_THREAD,
        "user_setting": user_setting(),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY"),
    }
