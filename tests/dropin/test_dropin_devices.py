"""Drop-ins whose tensors are on two devices, and scales and tables of too few dimensions."""

import pytest
import torch

from bench.checks.inputs import I32
from l4kernels import ops
from l4kernels.dropin import (
    flash_attn_varlen_func,
    flash_attn_with_kvcache,
    fp8_matmul,
    grouped_gemm,
    moe_ffn,
)

ENDS = torch.tensor([0, 2, 5], dtype=I32)
TWO = torch.tensor([3, 4], dtype=I32)
PAGES = torch.arange(4, dtype=I32).view(2, 2)
NEW = torch.ones(2, 1, 1, 8)
(CODES, CODES_SCALE), (WEIGHT, WEIGHT_SCALE) = (
    ops.quantize_fp8(torch.ones(n, 128), "tensor") for n in (4, 8)
)
CALLS = {
    "varlen": (
        flash_attn_varlen_func,
        (torch.ones(5, 2, 8), torch.ones(5, 1, 8), torch.ones(5, 1, 8), ENDS, ENDS, 3, 3),
        {"causal": True, "seqused_k": torch.tensor([1, 2], dtype=I32)},
    ),
    "unpaged": (
        flash_attn_with_kvcache,
        (torch.ones(2, 1, 2, 8), torch.ones(2, 16, 1, 8), torch.ones(2, 16, 1, 8), NEW, NEW),
        {"cache_seqlens": TWO, "cache_batch_idx": torch.tensor([1, 0])},
    ),
    "paged": (
        flash_attn_with_kvcache,
        (torch.ones(5, 2, 8), torch.ones(4, 16, 1, 8), torch.ones(4, 16, 1, 8)),
        {
            "cache_seqlens": TWO,
            "page_table": PAGES,
            "cu_seqlens_q": ENDS,
            "max_seqlen_q": 3,
            "causal": True,
        },
    ),
    "fp8_matmul": (
        fp8_matmul,
        (CODES, WEIGHT.t(), CODES_SCALE, WEIGHT_SCALE),
        {"bias": torch.ones(8), "out_dtype": torch.float32},
    ),
    "grouped_gemm": (
        grouped_gemm,
        (torch.ones(4, 8), torch.ones(2, 6, 8).mT, torch.tensor([1, 4], dtype=I32)),
        {},
    ),
    "moe_ffn": (
        moe_ffn,
        (torch.ones(2, 4), torch.zeros(2, 4), torch.ones(2, 16, 4), torch.ones(2, 4, 8)),
        {"residual": torch.ones(2, 4)},
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_tensors_on_two_devices_are_refused_by_name(name):
    function, args, kwargs = CALLS[name]
    function(*args, **kwargs)
    for key in [*range(len(args)), *kwargs]:
        changed, named = list(args), dict(kwargs)
        held = changed if isinstance(key, int) else named
        if isinstance(held[key], torch.Tensor):
            held[key] = held[key].to("meta")
            with pytest.raises(ValueError, match=r"expected all tensors on one device, .* meta"):
                function(*changed, **named)


@pytest.mark.parametrize("shape", [(), (2,), (2, 2, 1), (3, 2)])
def test_a_page_table_of_another_shape_is_refused(shape):
    _, args, kwargs = CALLS["paged"]
    table = torch.zeros(shape, dtype=I32)
    with pytest.raises(ValueError, match=r"expected page_table to be \[2, max_pages\], got"):
        flash_attn_with_kvcache(*args, **kwargs | {"page_table": table})


@pytest.mark.parametrize("shape", [(), (8,), (4, 2), (2, 4, 1, 1), (3, 4, 1)])
def test_a_scale_of_another_shape_than_its_groups_is_refused(shape):
    a, _ = ops.quantize_fp8(torch.ones(2, 4, 128), "row")
    b, scale = ops.quantize_fp8(torch.ones(2, 8, 128), "row")
    with pytest.raises(ValueError, match=r"grouped_gemm: expected scale_a to be \[2, 4"):
        grouped_gemm(a, b.mT, scale_a=torch.ones(shape), scale_b=scale)
