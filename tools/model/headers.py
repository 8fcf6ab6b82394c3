"""Rows, splits and schedules from the project's own headers, by a small program that includes them.

No shape is copied here: what g++ compiles is what the kernels compile.
"""

import hashlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any

from tools.nvcc import ROOT

from .attention import Attention, Work
from .gemm import Problem, Program

CSRC = ROOT / "csrc"
SOURCE = ROOT / "tests" / "host" / "facts.cpp"


def program(csrc: Path = CSRC) -> Path:
    """The compiled program; cached by the content of every header it may include."""
    inputs = [SOURCE, *sorted(csrc.glob("tile/*.h")), *sorted(csrc.glob("kernels/*/*.h"))]
    key = hashlib.sha256(b"".join(p.read_bytes() for p in inputs)).hexdigest()[:16]
    binary = ROOT / "build" / "model" / f"headers.{key}"
    if not binary.exists():
        binary.parent.mkdir(parents=True, exist_ok=True)
        command = ["g++", "-std=c++20", "-O1", "-I", str(csrc), str(SOURCE), "-o", str(binary)]
        subprocess.run(command, check=True)
    return binary


def ask(question: str, csrc: Path = CSRC) -> dict[str, Any]:
    done = subprocess.run(
        [str(program(csrc))], input=question, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def rows(csrc: Path = CSRC) -> int:
    """Of the table."""
    return int(ask("gemm 8 8 64 1 0 0 -1 132\n", csrc)["rows"])


def integer(path: Path, pattern: str) -> int:
    """A constant of a header that only nvcc can compile."""
    return int(re.search(pattern, path.read_text()).group(1))  # type: ignore[union-attr]


def gemm(
    m: int, n: int, k: int, experts: int, form: str, row: int, sms: int, csrc: Path = CSRC
) -> tuple[int, Program, Problem] | None:
    """The row asked for (-1: choose_gemm's), as a program and its problem; None if it cannot."""
    fp8, fast = form != "bf16", form == "fp8_fast"
    facts = ask(f"gemm {m} {n} {k} {experts} {fp8:d} {fast:d} {row} {sms}\n", csrc)
    if facts["row"] < 0:
        return None
    raster = integer(csrc / "kernels/gemm/gemm.cuh", r"kGemmRaster = (\d+)")
    names = ("block_m", "block_n", "stages", "cluster_m", "cluster_n", "promote", "swap")
    shape = Program(
        "specialised",
        **{name: facts[name] for name in names},
        element=1 if fp8 else 2,
        store="direct" if facts["swap"] else "read",
        round_bytes=facts["staging"] // 2,
        splits=facts["splits"],
        slots=facts["clusters"] * facts["ctas"],
        rows_of_tiles=-(-facts["clusters"] // raster) * facts["cluster_m"],
    )
    return facts["row"], shape, Problem(m, n, k, experts, facts["tiles"])


def prefill(
    tokens: int, heads: int, kv_heads: int, chunk: int, fp8: bool, sms: int, csrc: Path = CSRC
) -> tuple[Attention, Work]:
    """One causal sequence of new tokens."""
    facts = ask(f"prefill {tokens} {heads} {kv_heads} {chunk} {sms}\n", csrc)
    loads = csrc / "kernels/flash_prefill/loads.cuh"
    ring = integer(loads, r"kStages = kFp8 \? (?:%s)" % (r"(\d+)" if fp8 else r"\d+ : (\d+)"))
    whole, rest = divmod(tokens, chunk or tokens)
    pairs = whole * (chunk or tokens) ** 2 / 2 + rest**2 / 2
    shape = Attention(128, facts["rows"] // 64, facts["keys"], ring, awaited=False)
    flops = 4.0 * 128 * heads * pairs
    counts = facts["items"], facts["key_tiles"], facts["masked"]
    return shape, Work(*counts, flops, facts["ctas"])
