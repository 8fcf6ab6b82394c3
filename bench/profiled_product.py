"""One product for ncu: `python bench/profiled_product.py row3`, or `o`, Scout's at one token."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from l4kernels import ops

FP8_ROWS = {"row5", "row11"}


def main(what: str) -> None:
    swapped = what in ("row8", "row11", "o")
    m, n, k = (1, 5120, 5120) if what == "o" else (16 if swapped else 8192, 16_384, 5120)
    a, b = (torch.randn(size, k, device="cuda").bfloat16() for size in (m, n))
    options = {} if what == "o" else {"config": int(what.removeprefix("row"))}
    if what in FP8_ROWS:
        a, b = (t.to(torch.float8_e4m3fn) for t in (a, b))
        options |= {"sfa": torch.ones(m, device="cuda"), "sfb": torch.ones(n, device="cuda")}
    for _ in range(2):
        ops.gemm(a, b, **options)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1])
