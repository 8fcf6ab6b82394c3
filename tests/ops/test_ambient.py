"""Results are the same bits and dtypes whatever torch's ambient state is."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import l4kernels
from bench.checks.cases import cases
from bench.checks.kernel_checks import mutated, same_bits, tensors
from l4kernels import Llama4, Llama4Config, Sampling, demo, ops
from tests.support import engines
from tests.support.checkpoints import ALIGNED, TEXT


@contextlib.contextmanager
def switched(switch: Any, on: Any, off: Any) -> Iterator[None]:
    switch(on)
    try:
        yield
    finally:
        switch(off)


STATES = {
    "default dtype": lambda: switched(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "default device": lambda: switched(torch.set_default_device, "meta", None),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic": lambda: switched(torch.use_deterministic_algorithms, True, False),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
}


def outcome(name: str, call: Any, case: Any) -> tuple[Tensor, ...]:
    """All that a call returns and writes."""
    own = case.copy()
    return *tensors(call(*own.args, **own.kwargs)), *(t for _, t in mutated(name, own))


@functools.cache
def plain(name: str) -> list[tuple[Any, Any, tuple[Tensor, ...]]]:
    """Calls, one way or the other, and what they give in torch's own state."""
    op = ops.OPS[name]
    found = [(op, case) for case in cases(name, dtype=torch.bfloat16)]
    found += [(op.reference, case) for case in cases(name, dtype=torch.float32)]
    return [(call, case, outcome(name, call, case)) for call, case in found]


def assert_same(got: Any, wanted: Any, what: Any) -> None:
    for a, e in zip(tensors(got), tensors(wanted), strict=True):
        assert (a.dtype, a.device, a.shape) == (e.dtype, e.device, e.shape), what
        assert same_bits(a.flatten(), e.flatten()), what


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", ops.OPS)
def test_ops(name, state):
    for call, case, wanted in plain(name):
        with STATES[state]():
            got = outcome(name, call, case)
        assert_same(got, wanted, case)


def functions() -> dict[str, Any]:
    """What is no op: tables, packing, and the drop-ins."""
    make = torch.Generator().manual_seed(0)
    x = torch.randn(6, 128, generator=make)
    w = torch.randn(256, 128, generator=make)
    packed, scales = ops.quantize_int4(w)
    (a, a_scale), (b, b_scale) = (ops.quantize_fp8(t, "tensor") for t in (x, w))
    q = torch.randn(5, 2, 64, generator=make)
    ends, one = torch.tensor([0, 5], dtype=torch.int32), torch.tensor([5], dtype=torch.int32)
    cache = torch.randn(1, 16, 2, 64, generator=make)
    experts = torch.randn(4, 256, 128, generator=make)
    down = torch.randn(4, 128, 128, generator=make)
    offsets = torch.tensor([1, 3, 6, 6], dtype=torch.int32)
    llama3 = {
        "rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    return {
        "rope_table": lambda: ops.rope_table(40, theta=500000.0),
        "rope_table llama3": lambda: ops.rope_table(40, theta=500000.0, scaling=llama3),
        "pack_int4": lambda: ops.unpack_int4(ops.pack_int4(torch.full((2, 8), -3, device="cpu"))),
        "dequantize_int4": lambda: ops.dequantize_int4(packed, scales),
        "dequantize_fp8": lambda: ops.dequantize_fp8(*ops.quantize_fp8(x, "1x128"), "1x128"),
        "flash_attn_varlen_func": lambda: l4kernels.flash_attn_varlen_func(
            q, q, q, ends, ends, 5, 5, causal=True
        ),
        "flash_attn_with_kvcache": lambda: l4kernels.flash_attn_with_kvcache(
            q[None, :1], cache.clone(), cache.clone(), cache_seqlens=one
        ),
        "fp8_matmul": lambda: l4kernels.fp8_matmul(
            a, b.t(), a_scale, b_scale, out_dtype=torch.float32
        ),
        "grouped_gemm": lambda: l4kernels.grouped_gemm(x, experts.mT, offsets),
        "moe_ffn": lambda: l4kernels.moe_ffn(x, x[:4].clone(), experts, down),
    }


FUNCTIONS = functions()


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name, state):
    wanted = FUNCTIONS[name]()
    with STATES[state]():
        got = FUNCTIONS[name]()
    assert_same(got, wanted, name)


IDS = torch.tensor([[1, 2, 100, 5, 77, 9, 30, 31, 8, 2], [4, 9, 11, 7, 1, 3, 3, 3, 90, 6]])


def answers(model: Llama4, pixels: Tensor | None = None, ids: Tensor = IDS) -> list[Tensor]:
    """Everything that a model gives, through each of its entry points."""
    drawn = Sampling(1.5, top_k=30, top_p=0.9, seed=3, repetition_penalty=1.2, logit_bias={5: 2.0})
    found = [model.prompt_logits(ids, pixels), model.generate(ids, 4, pixel_values=pixels)]
    found += model.stream(ids, 4, pixels, drawn)
    if pixels is None:
        found += engines.logits_of(model, ids.tolist(), [ids.shape[1] - 2] * len(ids))
    return found + list(model.state_dict().values())


def random_model() -> Llama4:
    short = {**TEXT, **ALIGNED, "num_hidden_layers": 2, "no_rope_layers": [1, 0]}
    return Llama4.random(Llama4Config.from_dict(short), dtype="bfloat16", kv_dtype="fp8")


@pytest.mark.parametrize("state", STATES)
def test_models(state):
    """One that was made before, and one that is made in the state."""
    before = random_model()
    wanted = answers(before)
    with STATES[state]():
        for model in (before, random_model()):
            assert_same(tuple(answers(model)), tuple(wanted), state)


@functools.cache
def demo_call() -> tuple[Tensor, Tensor, list[Tensor]]:
    vision = Llama4Config.from_pretrained(demo.CHECKPOINT).vision
    ids = torch.tensor([[1, *[1042] * vision.tokens_per_tile, 2]])
    size = vision.image_size
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    return ids, pixels, answers(Llama4.from_pretrained(demo.CHECKPOINT), pixels, ids)


@pytest.mark.parametrize("state", ["default dtype", "default device", "autocast"])
def test_a_checkpoint_with_vision(state):
    ids, pixels, wanted = demo_call()
    with STATES[state]():
        got = answers(Llama4.from_pretrained(demo.CHECKPOINT), pixels, ids)
    assert_same(tuple(got), tuple(wanted), state)
