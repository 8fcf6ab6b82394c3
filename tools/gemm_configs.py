"""The products' tables of configurations, read from the headers that the kernels compile."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.nvcc import ROOT

CSRC = ROOT / "csrc"
STREAM = -3
"""The `config` of no entry: the kernel of csrc/kernels/stream_gemm."""
ENTRY = re.compile(r'\{\.name = "(\w+)"(.*?)\}', re.S)
FIELD = re.compile(r"\.(\w+) = (\w+)")


@dataclass(frozen=True)
class GemmConfig:
    """An entry of `kGemmConfigs`; its number is its place, by which callers ask for it."""

    number: int
    name: str
    block_m: int
    block_n: int
    stages: int
    fp8: bool = False
    swap: bool = False
    promote: bool = False
    gelu: bool = False
    split_k: bool = False
    generation: int = 0
    cluster_m: int = 1
    cluster_n: int = 1

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class W4GemmConfig:
    """An entry of `kW4GemmConfigs`. The op counts from 1: its 0 is the kernel that streams."""

    number: int
    name: str
    block_m: int
    block_n: int
    stages: int

    def __str__(self) -> str:
        return self.name


def gemm_configs(csrc: Path = CSRC) -> list[GemmConfig]:
    """All of them, by number.

    >>> gemm_configs()[3].name
    'bf16_128x256_2x1'
    """
    return [GemmConfig(*entry, **fields) for entry, fields in _entries(csrc, "gemm")]


def w4_gemm_configs(csrc: Path = CSRC) -> list[W4GemmConfig]:
    return [W4GemmConfig(*entry, **fields) for entry, fields in _entries(csrc, "w4_gemm")]


def names_of_instances(csrc: Path = CSRC) -> dict[str, list[str]]:
    """Kernels that are compiled once for each entry of a table, and the entries' names."""
    return {
        "gemm_kernel": [config.name for config in gemm_configs(csrc)],
        "w4_gemm_kernel": [config.name for config in w4_gemm_configs(csrc)],
    }


def gemm_config(name: str, csrc: Path = CSRC) -> GemmConfig:
    for config in gemm_configs(csrc):
        if config.name == name:
            return config
    raise ValueError(f"expected a name of kGemmConfigs in configs.h, got {name!r}")


def max_splits(csrc: Path = CSRC) -> int:
    """Into how many parts K may be split."""
    return int(re.search(r"kMaxSplits = (\d+)", _header(csrc, "gemm")).group(1))


def streamed_rows(experts: int, csrc: Path = CSRC) -> int:
    """Up to how many rows of A a product streams, unless measurements say otherwise."""
    text = (csrc / "tile" / "few_rows.h").read_text()
    dense, grouped = re.search(r"kFewRows = (\d+), kFewRaggedRows = (\d+);", text).groups()
    return int(dense if experts == 1 else grouped)


def _header(csrc: Path, kernel: str) -> str:
    return (csrc / "kernels" / kernel / "configs.h").read_text()


def _entries(csrc: Path, kernel: str) -> Iterator[tuple[tuple[int, str], dict[str, Any]]]:
    """Number and name, and the other fields."""
    for number, (name, fields) in enumerate(ENTRY.findall(_header(csrc, kernel))):
        yield (number, name), {key: _value(text) for key, text in FIELD.findall(fields)}


def _value(text: str) -> Any:
    return text == "true" if text in ("true", "false") else int(text)
