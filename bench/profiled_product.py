"""One product for ncu: `python bench/profiled_product.py CONFIG`, or `o`, Scout's at one token."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from l4kernels import ops
from tools.gemm_configs import gemm_config


def main(what: str) -> None:
    config = None if what == "o" else gemm_config(what)
    m, n, k = (1, 5120, 5120) if config is None else (16 if config.swap else 8192, 16_384, 5120)
    a, b = (torch.randn(size, k, device="cuda").bfloat16() for size in (m, n))
    options = {} if config is None else {"config": config.number}
    if config is not None and config.fp8:
        a, b = (t.to(torch.float8_e4m3fn) for t in (a, b))
        options |= {"sfa": torch.ones(m, device="cuda"), "sfb": torch.ones(n, device="cuda")}
    for _ in range(2):
        ops.gemm(a, b, **options)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1])
