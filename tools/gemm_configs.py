"""The GEMM's table of configurations, read from the header that the kernels compile."""

import re
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
    cluster_m: int = 1
    cluster_n: int = 1

    def __str__(self) -> str:
        return self.name


def gemm_configs(csrc: Path = CSRC) -> list[GemmConfig]:
    """All of them, by number.

    >>> gemm_configs()[3].name
    'bf16_128x256_2x1'
    """
    found = []
    for number, (name, fields) in enumerate(ENTRY.findall(_header(csrc))):
        values = {key: _value(text) for key, text in FIELD.findall(fields)}
        found.append(GemmConfig(number, name, **values))
    return found


def gemm_config(name: str, csrc: Path = CSRC) -> GemmConfig:
    for config in gemm_configs(csrc):
        if config.name == name:
            return config
    raise ValueError(f"expected a name of kGemmConfigs in configs.h, got {name!r}")


def max_splits(csrc: Path = CSRC) -> int:
    """Into how many parts K may be split."""
    return int(re.search(r"kMaxSplits = (\d+)", _header(csrc)).group(1))


def streamed_rows(experts: int, csrc: Path = CSRC) -> int:
    """Up to how many rows of A a product streams, unless measurements say otherwise."""
    dense, grouped = re.search(
        r"p\.num_experts == 1 \? (\d+) : (\d+)", _header(csrc, "choose.h")
    ).groups()
    return int(dense if experts == 1 else grouped)


def _header(csrc: Path, name: str = "configs.h") -> str:
    return (csrc / "kernels" / "gemm" / name).read_text()


def _value(text: str) -> Any:
    return text == "true" if text in ("true", "false") else int(text)
