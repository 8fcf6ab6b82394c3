"""The emulator on the ops around the model: each mistake put into a kernel gives other results, or
a report.

A mutant is a kernel's text with a replacement. All of them and the originals are one file, each in
a namespace of its own, and its PTX runs on parameters laid out as the header says. It stays in
build/ until a source changes.
"""

import ctypes
import hashlib
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.checks.cases import cases
from bench.checks.inputs import Case
from bench.checks.kernel_checks import mutated, same_bits, tensors
from l4kernels import STATUS
from l4kernels.emulation import toolchain
from l4kernels.ops import OPS
from l4kernels.testing import emulated
from tests.emulator.emulator_programs import BUILD, MODES, ROOT

pytestmark = pytest.mark.skipif(not STATUS.loaded, reason="no compiled kernels: run `make build`")

SOURCES = {
    "advance_step": ("advance_step.h", "rules.h", "advance_step.cuh"),
    "process_logits": ("process_logits.h", "process_logits.cuh"),
}
SHARED = "ptx/memory.cuh", "ptx/sync.cuh", "tile/base.h"
TOKENS_OF_CTA, ROWS_OF_CTA, THREADS = 512, 32, 128


@dataclass(frozen=True)
class Mutant:
    """`found`: "result" where the results are others, else the kind of the report."""

    op: str
    name: str
    found: str
    old: str
    new: str = ""

    def __str__(self) -> str:
        return f"{self.op}-{self.name}".replace(" ", "-")


RESULT, OUTSIDE = "result", "global-out-of-bounds"
COLUMN = "position < 0 || position >= columns * page_size ? -1 : "
FREQUENCY = "__fsub_rn(v, __fmul_rn(frequency, static_cast<float>(n)))"
MINIMUM = "if (params.generated[row] < params.min_tokens[row])"
MUTANTS = [Mutant(op, *mutant) for op, mutants in {
    "advance_step": (
        ("the last token does not count", RESULT, ">= max_tokens ?", "> max_tokens ?"),
        ("a limit goes before a stop", RESULT, "if (stops)",
         "if (stops && generated < max_tokens)"),
        ("a token that is none goes on", RESULT, "if (!found) return kStepFailed;"),
        ("a token that is none is looked up", OUTSIDE, "word = found ?", "word = true ?"),
        ("a page below 0 is a page", RESULT, "page < 0 ? -1 : position", "position"),
        ("a position has a column anywhere", f"{RESULT} {OUTSIDE}", COLUMN),
        ("the old position", RESULT, "params.positions[row] + 1", "params.positions[row]"),
        ("kinds beyond the lanes are forgotten", RESULT, "kind += kAdvanceStepLanes", "kind += 99"),
        ("an idle row goes on", RESULT, "if (length <= 0)", "if (length < 0)"),
        ("every lane counts", f"{RESULT} global-race same-value-race", "if (lane != 0) return;"),
        ("rows past the last are rows", OUTSIDE, "if (row >= params.rows) return;"),
        ("an ended row keeps its length", RESULT, "length + 1 : 0", "length + 1 : length"),
    ),
    "process_logits": (
        ("the prompt counts as generated", RESULT, "(tally[i]) >> 1", "(tally[i] + 1) >> 1"),
        ("products are fused", RESULT, FREQUENCY, "fmaf(-frequency, static_cast<float>(n), v)"),
        ("no quotient", RESULT, "__fdiv_rn(v, repetition)", "__fmul_rn(v, __frcp_rn(repetition))"),
        ("stops are never too early", RESULT, f"{MINIMUM} allowed &= ~stops;"),
        ("stops are always too early", RESULT, MINIMUM),
        ("the other half of a byte", RESULT, " >> (token & 4)", " >> (~token & 4)"),
        ("every row is active", RESULT, "params.active[row] != 0", "true"),
        ("rows begin anywhere", f"misaligned {OUTSIDE}", "if (vectors)", "if (true)"),
        ("the end of a row is a quad", OUTSIDE, "if (i < count) out[i]", "out[i]"),
        ("tokens past the end of a row", OUTSIDE, "if (token >= params.vocab) continue;"),
        ("rows of one stride", RESULT, "row * params.bias_stride", "row * params.vocab"),
    ),
}.items() for mutant in mutants]  # fmt: skip


def text_of(space: str, op: str, mutant: Mutant | None = None) -> str:
    """The kernel's own files as one, without what they share, in another namespace."""
    folder = ROOT / "csrc" / "kernels" / op
    joined = "\n".join((folder / name).read_text() for name in SOURCES[op])
    text = re.sub(r'(?m)^#(include "|pragma once).*$', "", joined)
    if mutant:
        assert text.count(mutant.old) == 1, f"{mutant}: not once: {mutant.old}"
        text = text.replace(mutant.old, mutant.new)
    return text.replace("namespace l4k {", f"namespace {space} {{ using namespace l4k;")


def program() -> str:
    """Every mutant in a namespace of its number; the originals behind them."""
    every = [*((mutant.op, mutant) for mutant in MUTANTS), *((op, None) for op in SOURCES)]
    spaces = (text_of(f"m{n}", *what) for n, what in enumerate(every))
    return "\n".join([*(f'#include "{header}"' for header in SHARED), *spaces])


@pytest.fixture(scope="module")
def ptx() -> str:
    source = program()
    shared = [(ROOT / "csrc" / header).read_text() for header in SHARED]
    name = hashlib.sha256(f"{source}{shared}".encode()).hexdigest()[:16]
    found = BUILD.parent / "step-mutants" / f"{name}.ptx"
    if not found.exists():
        found.parent.mkdir(parents=True, exist_ok=True)
        made = found.with_suffix(f".{os.getpid()}")
        flags = "-std=c++20", "-O3", "-arch=compute_90a", "-lineinfo", f"-I{ROOT / 'csrc'}"
        command = [toolchain.need_nvcc(), *flags, "-ptx", f"{made}.cu", "-o", str(made)]
        Path(f"{made}.cu").write_text(source)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        made.replace(found)
    return found.read_text()


def parameters(op: str, values: dict[str, Any]) -> bytes:
    """The struct of the header, its members filled in by name."""
    header = (ROOT / "csrc" / "kernels" / op / SOURCES[op][0]).read_text()
    (body,) = re.findall(r"Params \{\n(.*?)\};", header, re.S)
    kinds = {"int64_t": ctypes.c_int64, "int": ctypes.c_int32, "bool": ctypes.c_bool}
    members = [
        (name, ctypes.c_void_p if pointer else kinds[kind])
        for kind, pointer, names in re.findall(r"(?m)^  (?:const )?(\w+)(\*?) ([\w, ]+);", body)
        for name in names.split(", ")
    ]
    struct = type("Params", (ctypes.Structure,), {"_fields_": members})
    assert values.keys() == {name for name, _ in members}
    return bytes(struct(**values))


def arguments(op: str, case: Case, out: Tensor) -> tuple[int, list[bytes]]:
    """How many CTAs, and what the binding would hand them."""
    names = OPS[op].signature.parameters
    given = dict.fromkeys(names) | dict(zip(names, case.args, strict=False)) | case.kwargs
    addresses = {n: t.data_ptr() if isinstance(t, Tensor) else t for n, t in given.items()}
    stride = {n: t.stride(0) for n, t in given.items() if isinstance(t, Tensor)}
    if op == "process_logits":
        rows, vocab = out.shape
        tables = {"logits", "tally", "bias"}
        values = addresses | {f"{n}_stride": stride[n] for n in tables | {"allowed"}}
        values |= {"rows": rows, "vocab": vocab, "float32": given["logits"].element_size() == 4}
        values |= {"stop_stride": stride["stop_bits"], "out": out.data_ptr()}
        whole = all(n % 4 == 0 for n in (vocab, *(stride[n] for n in tables)))
        return rows * -(-vocab // TOKENS_OF_CTA), [parameters(op, values), bytes([whole])]
    tables, tally = given["block_tables"], given["tally"]
    kinds, rows, columns = tables.shape
    values = addresses | {"rows": rows, "kinds": kinds, "columns": columns, "vocab": 0}
    values["vocab"] = 32 * given["stop_bits"].shape[1] if tally is None else tally.shape[1]
    values |= {"stop_stride": stride["stop_bits"], "tally_stride": stride.get("tally", 0)}
    values |= {f"{n}_stride": stride[n] for n in ("slots", "results")}
    values |= {"kind_stride": stride["block_tables"], "table_stride": tables.stride(1)}
    return -(-rows // ROWS_OF_CTA), [parameters(op, values)]


def placed(op: str, case: Case) -> Case:
    """A copy, the rows of one table apart; of a step, with tokens far outside."""
    own, at = case.copy(), 2 if op == "process_logits" else 9
    table = own.args[at]
    apart = F.pad(table, (0, 4))[..., : table.shape[-1]]
    own.args = (*own.args[:at], apart, *own.args[at + 1 :])
    if op == "advance_step" and len(own.args[0]) > 2:
        own.args[0][0], own.args[0][-1], own.args[3][-1] = -(2**63), 2**40, 5
    return own


def difference(ptx: str, number: int, op: str, mode: str) -> str:
    """What a launch of this namespace brings to light: a report, "result", or nothing."""
    space, kernel = f"m{number}", f"{op}_kernel"
    (entry,) = re.findall(rf"\.entry (_ZN{len(space)}{space}{len(kernel)}{kernel}\w+)", ptx)
    for case in filter(lambda case: case.args[0].numel(), cases(op)):
        mine, theirs = placed(op, case), placed(op, case)
        expected = tensors(OPS[op].reference(*theirs.args, **theirs.kwargs))
        out = expected[0].clone().fill_(7) if expected else torch.empty(0)
        memory = [t for t in (*mine.args, *mine.kwargs.values(), out) if isinstance(t, Tensor)]
        with emulated(mode=mode, seed=1) as control:
            control.reset()
            ctas, packed = arguments(op, mine, out)
            for t in memory:
                control.register_range(t.data_ptr(), t.untyped_storage().nbytes())
            try:
                launcher = control.PtxKernel(ptx, entry)
                launcher.launch(grid=(ctas, 1, 1), block=(THREADS, 1, 1), arguments=packed)
            except RuntimeError as error:
                return str(error).partition(":")[0]
            finally:
                for t in memory:
                    control.unregister_range(t.data_ptr(), t.untyped_storage().nbytes())
                control.reset()
        got = [*([out] if expected else ()), *dict(mutated(op, mine)).values()]
        wanted = [*expected, *dict(mutated(op, theirs)).values()]
        if not all(same_bits(a, b) for a, b in zip(got, wanted, strict=True)):
            return RESULT
    return ""


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("op", SOURCES)
def test_the_original_is_right_in_every_mode(op: str, mode: str, ptx: str) -> None:
    number = len(MUTANTS) + [*SOURCES].index(op)
    assert difference(ptx, number, op, mode) == ""


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_is_reported_or_gives_other_results(mutant: Mutant, ptx: str) -> None:
    found = difference(ptx, MUTANTS.index(mutant), mutant.op, "late")
    assert found in mutant.found.split(), found
