"""Calls of `torch.ops` that pass no check of Python: a binding launches nothing on an argument of
the wrong kind or place, and its error names the argument."""

import itertools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from bench.checks.cases import cases
from l4kernels import STATUS, ops
from l4kernels.testing import emulated

KERNELS = pytest.mark.skipif(not STATUS.loaded, reason="no compiled kernels: run `make build`")
BOUND = [name for name in ops.OPS if name in STATUS.kernels]
BOUND += [f"{name}.out" for name in BOUND if ops.OPS[name].has_out]
PAST_THE_DISPATCHER = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


class Call(NamedTuple):
    """A good call, all its arguments by name."""

    op: str  # with ".out", the overload
    arguments: dict[str, Any]

    def overload(self, namespace: str) -> Any:
        name, _, overload = self.op.partition(".")
        return getattr(getattr(getattr(torch.ops, namespace), name), overload or "default")

    def tensors(self) -> dict[str, Tensor]:
        return {k: v for k, v in self.arguments.items() if isinstance(v, Tensor)}

    def binding(self, **changed: Any) -> str:
        """What the emulated twin's binding says of the call; "" if it launches."""
        overload = self.overload("l4kernels_emulated")
        try:
            overload.redispatch(PAST_THE_DISPATCHER, **self.arguments | changed)
        except RuntimeError as error:
            return str(error)
        return ""

    def contract(self, **changed: Any) -> str:
        """What Python says of the shapes and dtypes; "" if they are right."""
        arguments = {
            k: v.to("meta") if isinstance(v, Tensor) else v
            for k, v in (self.arguments | changed).items()
        }
        try:
            self.overload("l4kernels")(**arguments)
        except (ValueError, TypeError) as error:
            return str(error)
        return ""


def op_of(name: str) -> ops.Op[..., Any]:
    return ops.OPS[name.removesuffix(".out")]


def parameters_of(name: str) -> set[str]:
    out = {"out"} if name.endswith(".out") else set()
    return set(op_of(name).signature.parameters) | out


def good_calls(name: str) -> list[Call]:
    found, op = [], op_of(name)
    for case in cases(op.name):
        case = case.copy()
        positional = zip(op.signature.parameters, case.args, strict=False)
        arguments = dict(positional) | case.kwargs
        if name.endswith(".out"):
            arguments["out"] = op(**arguments)
        found.append(Call(name, arguments))
    return [call for call in found if all(t.numel() for t in call.tensors().values())]


def call_for(op: str, argument: str) -> Call:
    """The smallest call in which the argument has the most dimensions with more than one entry."""

    def key(call: Call) -> tuple[int, int]:
        flat = sum(n == 1 for n in call.tensors()[argument].shape)
        return flat, sum(t.numel() for t in call.tensors().values())

    return min((c for c in good_calls(op) if argument in c.tensors()), key=key)


def tensors_of(name: str) -> set[str]:
    return {n for call in good_calls(name) for n in call.tensors()}


def begins_at(t: Tensor, offset: int) -> Tensor:
    """A copy that lies this many bytes after a multiple of 64."""
    memory = torch.zeros(t.numel() * t.element_size() + 128, dtype=torch.uint8)
    first = -memory.data_ptr() % 64 + offset
    moved = torch.frombuffer(memory.numpy(), dtype=t.dtype, count=t.numel(), offset=first)
    return moved.view(t.shape).copy_(t)


def every_other(t: Tensor) -> Tensor | None:
    return t.repeat_interleave(2, -1)[..., ::2] if t.shape[-1] > 1 else None


def rows_apart(t: Tensor) -> Tensor | None:
    """With one element between a row and the next."""
    return torch.cat([t, t[..., :1]], -1)[..., :-1] if t.numel() > t.shape[-1] else None


LAYOUTS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "float64": lambda t: t.to(torch.float64),
    "int16": lambda t: t.to(torch.int16),
    "bool": lambda t: t.to(torch.bool),
    "complex": lambda t: t.to(torch.complex64),
    "every other element": every_other,
    "rows apart": rows_apart,
    "a byte off": lambda t: begins_at(t, 1),
    "another device": lambda t: t.to("meta"),
}
TAKEN = {
    *itertools.product(["word_sum data", "moe_permute x"], ["float64", "int16", "bool", "complex"]),
    *itertools.product(
        ["moe_route logits", "sample logits", "flash_prefill block_table"], ["rows apart"]
    ),
    ("flash_decode block_table", "rows apart"),
    ("flash_decode_append block_table", "rows apart"),
    *((f"process_logits {name}", "rows apart")
      for name in ("logits", "tally", "bias", "allowed", "stop_bits")),
    *((f"advance_step {name}", "rows apart")
      for name in ("stop_bits", "slots", "block_tables", "results", "tally")),
}  # fmt: skip
SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "no dimension": lambda t: t.new_zeros(()),
    "one less": lambda t: t[0].clone(),
    "one more": lambda t: t[None].clone(),
    "flat": lambda t: t.flatten().clone(),
    "a row less": lambda t: t[1:].clone(),
    "a column less": lambda t: t[..., 1:].clone(),
    "no rows": lambda t: t[:0].clone(),
    "no columns": lambda t: t[..., :0].clone(),
    "twice the rows": lambda t: torch.cat([t, t]),
    "twice the columns": lambda t: torch.cat([t, t], -1),
}
BIG = 2**31
NUMBERS: dict[str, list[Any]] = {
    "top_k": [0, -1, 10, BIG, 2**62],
    "num_experts": [0, -1, 1000, BIG, 2**62],
    "top_logprobs": [-1, BIG, 2**62],
    # The last would be the right number, if products had no more than 64 bits.
    "num_heads": [0, -1, BIG, 2**62, 2**57 + 1],
    "kv_heads": [0, -1, BIG, 2**62, 2**57 + 1],
    "capacity": [-1],
    "rows": [-1, BIG, 2**62],
    "floor_scale": [0, -1, BIG],
    "qk_norm_eps": [-1.0, float("nan")],
    "softmax_scale": [0.0, -1.0, float("nan"), float("inf")],
    "chunk": [-1, BIG],
    "page_size": [0, -1, BIG, 2**62],
    "max_seqlen_q": [-1],
    "tokens": [0, -1, 17, BIG, 2**62],
    "config": [-4, 99, 10_000, BIG, 2**32 - 1],
    "scaling": ["", "rows"],
    "activation": ["", "relu"],
    "out_dtype": [torch.float16, torch.int64],
}
NOT_ADDRESSES = {
    "eps", "attn_scale", "fast_accum", "keep_y", "shared_expert", "static_weights", "settled",
}  # fmt: skip
REFERENCE_ONLY = {"w4_gemm": {"scales", "zeros"}}  # tensors that no kernel takes


@pytest.mark.parametrize("op", BOUND)
def test_the_sample_calls_have_every_argument(op):
    refused = REFERENCE_ONLY.get(op_of(op).name, set())
    assert parameters_of(op) - tensors_of(op) <= set(NUMBERS) | NOT_ADDRESSES | refused
    parameters = op_of(op).signature.parameters.values()
    tensors = {p.name for p in parameters if p.annotation in (Tensor, Tensor | None)}
    assert tensors - refused <= tensors_of(op)


@KERNELS
@pytest.mark.parametrize("op", BOUND)
def test_a_wrong_kind_or_place_is_refused_by_name(op):
    seen = set()
    for argument in tensors_of(op):
        call = call_for(op, argument)
        good = call.tensors()[argument]
        for kind, change in LAYOUTS.items():
            wrong = change(good)
            if wrong is None or (f"{op} {argument}", kind) in TAKEN:
                continue
            with emulated():
                said = call.binding(**{argument: wrong})
            assert re.match(rf"l4kernels\.{op_of(op).name}: expected .*\b{argument}\b", said), (
                kind,
                said,
            )
            seen.add(kind)
    assert {"a byte off", "another device"} <= seen


@KERNELS
@pytest.mark.parametrize("op", BOUND)
def test_a_wrong_shape_is_refused_and_no_other_leads_outside(op):
    names = "|".join(parameters_of(op))
    for argument in tensors_of(op):
        call = call_for(op, argument)
        good = call.tensors()[argument]
        for kind, change in SHAPES.items():
            try:
                wrong = {argument: change(good)}
            except (RuntimeError, IndexError):  # there is no such tensor
                continue
            with emulated():
                said = call.binding(**wrong)
            refused = re.match(rf"l4kernels\.{op_of(op).name}: expected .*\b({names})\b", said)
            assert refused or (said == "" and call.contract(**wrong) == ""), (argument, kind, said)


@KERNELS
@pytest.mark.parametrize("op", BOUND)
def test_a_wrong_number_is_refused_by_name(op):
    call = good_calls(op)[0]
    for argument in set(NUMBERS) & parameters_of(op) - tensors_of(op):
        for wrong in NUMBERS[argument]:
            with emulated():
                said = call.binding(**{argument: wrong})
            assert re.match(rf"l4kernels\.{op_of(op).name}: expected .*\b{argument}\b", said), (
                wrong,
                said,
            )


@KERNELS
@pytest.mark.parametrize("op", [op for op in BOUND if op_of(op).name in REFERENCE_ONLY])
def test_a_tensor_that_no_kernel_takes_is_refused_by_name(op):
    call = good_calls(op)[0]
    for argument in REFERENCE_ONLY[op_of(op).name]:
        with emulated():
            said = call.binding(**{argument: torch.ones(16, 1).bfloat16()})
        assert re.match(rf"l4kernels\.{op_of(op).name}: expected .*\b{argument}\b", said), said


@pytest.mark.parametrize("op", BOUND)
def test_the_dispatcher_takes_no_tensor_of_another_device(op):
    for argument in tensors_of(op):
        call = call_for(op, argument)
        tensors = call.tensors()
        if len(tensors) > 1:
            changed = call.arguments | {argument: tensors[argument].to("meta")}
            said = rf"on one device, .*\b{argument} on meta|expected {argument} to be .* on meta"
            with pytest.raises(ValueError, match=said):
                call.overload("l4kernels")(**changed)
