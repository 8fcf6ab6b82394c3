"""The emulator on Triton's PTX: four kernels, in every mode, against torch."""

import struct
from collections.abc import Callable

import pytest
import torch

from tests.emulator.emulator_programs import MODES, control

pytest.importorskip("triton")
import triton_kernels as kernels

emulator = control()
SEEDS = 5
BF16 = torch.bfloat16


def launch(
    compiled: kernels.Compiled, grid: tuple[int, int], *arguments: torch.Tensor | int | float
) -> None:
    """Runs PTX on CPU tensors; Triton adds two pointers to scratch memory that these do not use."""
    kernel = emulator.PtxKernel(compiled.ptx, compiled.entry)
    tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
    packed = [
        struct.pack("<q", x.data_ptr())
        if isinstance(x, torch.Tensor)
        else struct.pack("<i" if isinstance(x, int) else "<f", x)
        for x in arguments
    ]
    packed += [bytes(8)] * (kernel.parameters - len(packed))
    for x in tensors:
        emulator.register_range(x.data_ptr(), x.nbytes)
    try:
        kernel.launch(
            grid=(*grid, 1),
            block=(compiled.threads, 1, 1),
            shared_bytes=compiled.shared_bytes,
            arguments=packed,
        )
    finally:
        for x in tensors:
            emulator.unregister_range(x.data_ptr(), x.nbytes)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run_softmax() -> tuple[torch.Tensor, torch.Tensor, float]:
    compiled = kernels.compile_kernel(kernels.softmax, "*fp32 *fp32 i32 i32", block=256)
    x = numbers(3, 208)
    out = torch.zeros(3, 208)
    launch(compiled, (3, 1), out, x, 208, 208)
    return out, x.softmax(-1), 1e-6


def run_layer_norm() -> tuple[torch.Tensor, torch.Tensor, float]:
    types = "*bf16 *bf16 *bf16 *bf16 i32 fp32"
    compiled = kernels.compile_kernel(kernels.layer_norm, types, block=512)
    x, weight, bias = (
        numbers(*s, seed=i).to(BF16) for i, s in enumerate([(2, 400), (400,), (400,)])
    )
    out = torch.zeros(2, 400, dtype=BF16)
    launch(compiled, (2, 1), out, x, weight, bias, 400, 1e-5)
    want = torch.nn.functional.layer_norm(x.float(), (400,), weight.float(), bias.float())
    return out.float(), want, 2e-2


def run_matmul() -> tuple[torch.Tensor, torch.Tensor, float]:
    compiled = kernels.compile_kernel(
        kernels.matmul, "*bf16 *bf16 *bf16 i32 i32 i32", block_m=64, block_n=64, block_k=64
    )
    m, n, k = 80, 112, 208
    a, b = numbers(m, k).to(BF16), numbers(k, n, seed=1).to(BF16)
    out = torch.zeros(m, n, dtype=BF16)
    launch(compiled, (2, 2), out, a, b, m, n, k)
    return out.float(), a.float() @ b.float(), 0.15


def run_attention() -> tuple[torch.Tensor, torch.Tensor, float]:
    types = "*bf16 *bf16 *bf16 *bf16 i32 fp32"
    compiled = kernels.compile_kernel(
        kernels.attention, types, stages=2, block_m=64, block_n=64, head=64
    )
    heads, length = 2, 112
    q, k, v = (numbers(heads, length, 64, seed=i).to(BF16) for i in range(3))
    out = torch.zeros_like(q)
    launch(compiled, (2, heads), out, q, k, v, length, 64**-0.5 * 1.4426950408889634)
    want = torch.nn.functional.scaled_dot_product_attention(
        q.float(), k.float(), v.float(), is_causal=True
    )
    return out.float(), want, 2e-2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kernel", [run_softmax, run_layer_norm, run_matmul, run_attention])
def test_triton(kernel: Callable[[], tuple[torch.Tensor, torch.Tensor, float]], mode: str) -> None:
    for seed in range(SEEDS):
        emulator.configure(mode=mode, seed=seed, sms=4, threads=1)
        emulator.reset()
        got, want, tolerance = kernel()
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
