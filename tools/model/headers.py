"""Choices and schedules from the project's own headers, by a small program that includes them.

No shape is copied here: what g++ compiles is what the kernels compile.
"""

import hashlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any

from tools.gemm_configs import CSRC, gemm_config
from tools.nvcc import ROOT

from .attention import Attention, Work
from .gemm import Problem, Program
from .rates import constants

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


def integer(path: Path, pattern: str) -> int:
    """A constant of a header that only nvcc can compile."""
    return int(re.search(pattern, path.read_text()).group(1))


def gemm(
    m: int,
    n: int,
    k: int,
    experts: int,
    form: str,
    name: str | None,
    sms: int,
    csrc: Path = CSRC,
    *,
    swiglu: bool = False,
) -> tuple[str, Program, Problem] | None:
    """The configuration (None: choose_gemm's) as a program, and its problem; None if it cannot
    compute that."""
    fp8, fast = form != "bf16", form == "fp8_fast"
    number = -1 if name is None else gemm_config(name, csrc).number
    facts = ask(f"gemm {m} {n} {k} {experts} {fp8:d} {fast:d} {swiglu:d} {number} {sms}\n", csrc)
    if facts["config"] is None:
        return None
    config = gemm_config(facts["config"], csrc)
    raster = integer(csrc / "kernels/gemm/gemm.cuh", r"kGemmRaster = (\d+)")
    halves = facts["splits"] > 1 and not config.swap  # of K: a pair that shares no box
    cluster_m = 1 if halves else config.cluster_m
    shape = Program(
        "specialised",
        block_m=config.block_m,
        block_n=config.block_n,
        stages=config.stages,
        cluster_m=cluster_m,
        cluster_n=config.cluster_n,
        promote=config.promote,
        swap=config.swap,
        element=1 if fp8 else 2,
        store="direct" if config.swap else "read",
        round_bytes=facts["staging"] // 2,
        splits=facts["splits"],
        slots=facts["clusters"] * facts["ctas"],
        rows_of_tiles=-(-facts["clusters"] // raster) * cluster_m,
    )
    return config.name, shape, Problem(m, n, k, experts, facts["tiles"])


def prefill(
    tokens: int,
    heads: int,
    kv_heads: int,
    chunk: int,
    fp8: bool,
    sms: int,
    csrc: Path = CSRC,
    *,
    keys: int | None = None,
    cut: bool = True,
) -> tuple[Attention, Work]:
    """One causal sequence of new tokens, the last of so many keys; without `cut` every tile of
    queries is one CTA's."""
    keys = tokens if keys is None else keys
    facts = ask(f"prefill {tokens} {keys} {heads} {kv_heads} {chunk} {sms} {cut:d}\n", csrc)
    loads = csrc / "kernels/flash_prefill/loads.cuh"
    ring = integer(loads, r"kStages = kFp8 \? (?:%s)" % (r"(\d+)" if fp8 else r"\d+ : (\d+)"))
    size = chunk or keys
    ends = keys, keys - tokens

    def pairs(end: int) -> float:
        whole, rest = divmod(end, size)
        return whole * size**2 / 2 + rest**2 / 2

    counted = {name: entry["value"] for name, entry in constants()["attention"].items()}
    shape = Attention(
        128,
        facts["rows"] // 64,
        facts["keys"],
        ring,
        awaited=False,
        convert=counted["convert"] if fp8 else 0,
        queries=counted["queries"] if fp8 else 0,
        end=counted["end"],
        early_q=True,
    )
    flops = 4.0 * 128 * heads * (pairs(ends[0]) - pairs(ends[1]))
    counts = facts["items"], facts["key_tiles"], facts["masked"]
    first = (keys - tokens) // chunk * chunk if chunk else 0  # key that somebody sees
    read = 2.0 * (keys - first) * kv_heads * 128 * (1 if fp8 else 2)
    return shape, Work(*counts, flops, facts["ctas"], facts["pieces"], read)
