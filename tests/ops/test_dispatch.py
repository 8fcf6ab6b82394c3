"""Which way an op goes is a matter of one thread and task, and ends with its block."""

import asyncio
import contextlib
import contextvars
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import l4kernels
from l4kernels.ops import dispatch as dispatch_module
from l4kernels.ops.dispatch import dispatch, target_of

OP = "silu_mul"


def in_a_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(timeout=10)


def block(steps=1):
    """One step inside a block, as a generator: blocks of several may end in any order."""
    with l4kernels.reference():
        for _ in range(steps):
            yield target_of(OP)


@pytest.mark.parametrize("order", itertools.permutations(range(3)), ids=str)
def test_overlapping_blocks_leave_nothing_behind(order):
    blocks = [block() for _ in order]
    assert [next(b) for b in blocks] == ["reference"] * 3
    for count, i in enumerate(order, start=1):
        assert list(blocks[i]) == []
        assert target_of(OP) == ("reference" if count < 3 else "library")


def test_overlapping_blocks_of_threads_leave_nothing_behind():
    opened, closed = threading.Barrier(2, timeout=10), threading.Barrier(2, timeout=10)
    seen = {}

    def work(name, first_to_leave):
        with l4kernels.reference():
            opened.wait()
            seen[name] = [target_of(OP)]
            if first_to_leave:
                return
            closed.wait()
            seen[name].append(target_of(OP))

    threads = [threading.Thread(target=work, args=(n, n == "a")) for n in "ab"]
    for t in threads:
        t.start()
    threads[0].join(10)
    assert target_of(OP) == "library"  # while b is inside its block
    closed.wait()
    threads[1].join(10)
    assert seen == {"a": ["reference"], "b": ["reference"] * 2}
    assert target_of(OP) == "library" == in_a_thread(lambda: target_of(OP))


def test_a_thread_starts_without_a_route_unless_it_is_given_one():
    with l4kernels.reference():
        context = contextvars.copy_context()
        assert in_a_thread(lambda: target_of(OP)) == "library"
        assert in_a_thread(lambda: context.run(target_of, OP)) == "reference"
        assert asyncio.run(asyncio.to_thread(target_of, OP)) == "reference"
    assert context.run(target_of, OP) == "library"  # its block has ended


def test_tasks_do_not_see_each_others_routes():
    async def inside():
        with l4kernels.reference():
            await asyncio.sleep(0.01)
            return target_of(OP)

    async def outside():
        await asyncio.sleep(0.005)
        return target_of(OP)

    async def main():
        return await asyncio.gather(inside(), outside(), inside())

    assert asyncio.run(main()) == ["reference", "library", "reference"]
    assert target_of(OP) == "library"


def test_the_innermost_block_counts_and_an_error_closes_it():
    with pytest.raises(KeyError), l4kernels.reference():
        with dispatch("emulated", frozenset([OP])):
            assert (target_of(OP), target_of("gemm")) == ("reference", "emulated")
        assert target_of("gemm") == "reference"
        raise KeyError
    assert target_of("gemm") == "library"


@pytest.mark.parametrize("autocast", [False, True])
def test_a_compiled_function_follows_the_route(autocast):
    counted, body = [], l4kernels.ops.silu_mul.body
    x = torch.randn(2, 8)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def program(x):
        return (l4kernels.ops.silu_mul(x), target_of(OP) == "reference")

    for _ in range(2):
        for inside in (contextlib.nullcontext, l4kernels.reference):
            with inside(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                y, on_reference = program(x)
            counted.append(on_reference)
            torch.testing.assert_close(y, body(x))
    assert counted == [False, True] * 2


def test_blocks_that_end_elsewhere_are_forgotten():
    """Suspended generators may be collected in any thread, which cannot reach this one's stack."""
    for _ in range(20):
        generator = block()
        next(generator)
        in_a_thread(generator.close)
    with l4kernels.reference():
        assert len(dispatch_module._stack.get()) == 1
