"""Memory that a binding lets go of too early: the compiler refuses the usual way, and the emulator
reports the others, which torch's caching allocator hides on a GPU."""

import array
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from l4kernels import STATUS, ops
from l4kernels.testing import assert_close, chained, emulated
from tests.support.changed_library import BUILD, CSRC, ROOT, compiled, linked

pytestmark = pytest.mark.skipif(not STATUS.loaded, reason="no compiled kernels: run `make build`")
BINDINGS = CSRC / "bindings"


def test_the_address_of_a_temporary_does_not_compile():
    """`pointer(call.workspace(...))` is freed at the semicolon, before the launch."""
    kept = """  Tensor partials = call.workspace(flash_prefill_partial_words(params));
  params.partials = pointer<float>(partials);
"""
    text = (BINDINGS / "attention.cpp").read_text()
    assert text.count(kept) == 1
    words = "flash_prefill_partial_words(params)"
    temporary = f"  params.partials = pointer<float>(call.workspace({words}));\n"
    done = compiled("attention.cpp", text.replace(kept, temporary), "-fsyntax-only")
    assert done.returncode and "use of deleted function" in done.stderr, done.stderr[-2000:]


def test_nor_that_of_an_optional_or_of_part_of_a_tuple():
    text = '#include "bindings/arguments.h"\nusing namespace l4k;\nvoid f(const Tensor& t) {{ {} }}'
    right = 'const OptionalTensor maybe = t; OptionalArgument("t", maybe), Argument("t", *maybe);'
    done = compiled("attention.cpp", text.format(right), "-fsyntax-only")
    assert done.returncode == 0, done.stderr[-2000:]
    for wrong in (
        'OptionalArgument("t", OptionalTensor(t));',
        'OptionalArgument("t", t);',
        'Argument("t", Tensor(t));',
        'pointer(std::get<0>(empty_fp8(Call("", {"t", t}), kScalingRow, 1, 8)));',
    ):
        done = compiled("attention.cpp", text.format(wrong), "-fsyntax-only")
        assert done.returncode and "use of deleted function" in done.stderr, wrong


def test_only_pointer_takes_an_address():
    """Everything else would get around its check."""
    taken = {
        f"{path.name}: {line.strip()}"
        for path in BINDINGS.iterdir()
        for line in path.read_text().splitlines()
        if "data_ptr()" in line and "reinterpret_cast<uintptr_t>" not in line
    }
    assert all(line.startswith("call.h: ") for line in taken), taken


EARLY = {  # op -> the binding's file, what it drops before the launch
    "flash_prefill": ("attention.cpp", "plan"),
    "flash_decode": ("attention.cpp", "partials"),
    "moe_route": ("moe.cpp", "counts"),
    "moe_router": ("moe.cpp", "workspace"),
    "quantize_tensor": ("quant.cpp", "maxima"),
    "moe_permute": ("moe.cpp", "out"),
}


@pytest.fixture(scope="module")
def mutants() -> Path:
    """A folder with the emulated library, its bindings dropping memory between filling the
    parameters and launching, and one of them not launching at all. Stays in build/ until a source
    changes."""
    texts = {path.name: path.read_text() for path in sorted(BINDINGS.iterdir())}
    changed = {}
    for op, (file, name) in EARLY.items():
        text, launch = changed.get(file, texts[file]), f"call.launch(l4k::{op}, "
        assert text.count(launch) == 1
        changed[file] = text.replace(launch, f"{name} = Tensor();\n  {launch}")
    launch, text = "call.launch(l4k::moe_combine, params);", changed["moe.cpp"]
    assert text.count(launch) == 1
    changed["moe.cpp"] = text.replace(launch, "")
    return linked({f"bindings/{file}": text for file, text in changed.items()}, "lifetimes")


PROGRAM = """
import sys
from pathlib import Path
import torch
from l4kernels import ops
from l4kernels import testing
testing.emulator.BUILD = Path(sys.argv[1])
i32 = lambda *values: torch.tensor(values, dtype=torch.int32)
x, cache = torch.ones(4, 5, 128).bfloat16(), torch.ones(1, 1024, 1, 128).bfloat16()
keys, table, starts, length = (cache, cache), i32(0).view(1, 1), i32(0, 4), i32(999)
order = torch.arange(64, dtype=torch.int32)
flat, many = torch.randn(64, 128).bfloat16(), torch.randn(99, 16).bfloat16()
calls = {
    "flash_prefill": lambda: ops.flash_prefill(
        x, *keys, starts, length, table, softmax_scale=1.0, max_seqlen_q=4),
    "flash_decode": lambda: ops.flash_decode(x[None], *keys, length, table, softmax_scale=1.0),
    "moe_route": lambda: ops.moe_route(many, 1),
    "moe_router": lambda: ops.moe_router(flat, flat[0], flat[:16], 16),
    "quantize_tensor": lambda: ops.quantize_fp8(flat, "tensor"),
    "moe_permute": lambda: ops.moe_permute(flat, order, 1),
}
for name, call in calls.items():
    for chain in (False, True):
        with testing.emulated() as control:
            control.reset()
            try:
                if chain:
                    with testing.chained():
                        kept = call()
                else:
                    call()
                print(name, chain, "no report")
            except RuntimeError as error:
                print(name, chain, str(error).replace(chr(10), " "))
            control.reset()
with testing.emulated():
    nan = bool(ops.moe_combine(flat, order, 1).isnan().all())
    print("moe_combine", False, nan)
"""


def run(folder: Path) -> dict[tuple[str, bool], str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split(" ", 2) for line in done.stdout.splitlines()]
    return {(name, chain == "True"): said for name, chain, said in lines}


def test_memory_that_a_binding_drops_before_the_launch_is_reported(mutants):
    said = run(BUILD)
    assert said.pop(("moe_combine", False)) == "False"
    assert set(said.values()) == {"no report"}
    said = run(mutants)
    assert said.pop(("moe_combine", False)) == "True", "unwritten memory is NaN"
    assert {name for name, _ in said} == set(EARLY)
    for (name, chain), report in said.items():
        what = "a result" if EARLY[name][1] == "out" else "a workspace"
        wanted = rf"use-after-free: (reads|writes) {what} of \d+ bytes that was freed before"
        assert re.search(wanted, report), f"{name}, chain {chain}: {report}"


def test_a_tensor_may_be_dropped_behind_the_launch_that_uses_it():
    """As in a stream: the memory is given back once the kernel has run."""
    torch.manual_seed(1)
    x = torch.randn(64, 512).bfloat16()
    expected = ops.silu_mul(ops.silu_mul(x))
    with emulated() as control:
        with chained():
            y = ops.silu_mul(x)
            z = ops.silu_mul(y)
            del y
            kept = [ops.silu_mul(x) for _ in range(3)]  # none of them in its place
        assert control.last_report() is None
    assert_close(z, expected, 3e-3)
    assert all(torch.equal(k, kept[0]) for k in kept)


TOUCH = """
.version 8.0
.target sm_90a
.address_size 64
.visible .entry touch(.param .u64 address) {
  .reg .b64 %a; .reg .b32 %v;
  ld.param.u64 %a, [address];
  mov.b32 %v, 7;
  st.global.b32 [%a + 4], %v;
  ret;
}
"""


def test_a_range_that_has_ended_is_out_of_bounds_for_later_launches():
    with emulated() as control:
        control.reset()
        memory = array.array("i", [0] * 8)
        address, size = memory.buffer_info()[0], 32
        kernel = control.PtxKernel(TOUCH, "touch")
        launch = {"grid": (1, 1, 1), "block": (1, 1, 1)}
        launch["arguments"] = [address.to_bytes(8, "little")]
        control.register_range(address, size)
        kernel.launch(**launch)
        control.end_range(address + 8, 8)  # not the whole of it: another allocation
        kernel.launch(**launch)
        assert memory[1] == 7 and control.last_report() is None
        control.end_range(address, size)
        with pytest.raises(RuntimeError, match="use-after-free: writes registered memory of 32"):
            kernel.launch(**launch)
        assert control.last_report()["kind"] == "use-after-free"
        control.reset()
        control.unregister_range(address, size)
        control.register_range(address, size)  # its next life
        kernel.launch(**launch)
        control.unregister_range(address, size)
