"""Functions of other libraries, with the same names and arguments, on a CPU and on a GPU.

    python examples/drop_in.py

On CUDA tensors (bfloat16) the same calls run the compiled kernels.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention

import l4kernels
from l4kernels.testing import assert_close


def grouped_product() -> None:
    """`torch._grouped_mm`: rows [0, 10) times expert 0, none for expert 1, and so on."""
    a = torch.randn(64, 256)
    w = torch.randn(4, 512, 256)
    ends = torch.tensor([10, 10, 40, 64], dtype=torch.int32)
    d = l4kernels.grouped_gemm(a, w.transpose(-2, -1), offs=ends)
    assert_close(d[:10], a[:10] @ w[0].T, 1e-5)
    print(f"grouped_gemm: {list(a.shape)} x {list(w.shape)} -> {list(d.shape)}")


def attention() -> None:
    """FlashAttention 3's `flash_attn_varlen_func`: two prompts of 5 and 3 tokens in one call."""
    q = torch.randn(8, 8, 128)
    k = torch.randn(8, 2, 128)
    v = torch.randn(8, 2, 128)
    starts = torch.tensor([0, 5, 8], dtype=torch.int32)
    out = l4kernels.flash_attn_varlen_func(q, k, v, starts, starts, 5, 5, causal=True)
    first = [t[None, :5].transpose(1, 2) for t in (q, k, v)]
    alone = scaled_dot_product_attention(*first, is_causal=True, enable_gqa=True)
    assert_close(out[None, :5], alone.transpose(1, 2), 1e-5)
    print(f"flash_attn_varlen_func: {list(q.shape)} -> {list(out.shape)}")


def single_op() -> None:
    """An op of the package's own: routing to the best expert, with no host synchronisation."""
    logits = torch.randn(4, 16)
    routing = l4kernels.ops.moe_route(logits, top_k=1)
    assert torch.equal(routing.topk_ids[:, 0].long(), logits.argmax(1))
    print(f"moe_route: tokens go to experts {routing.topk_ids[:, 0].tolist()}")


if __name__ == "__main__":
    torch.manual_seed(0)
    grouped_product()
    attention()
    single_op()
