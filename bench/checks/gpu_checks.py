"""What a GPU is asked beyond a kernel's cases: repeats, captured graphs, launches and streams that
overlap, other devices, tensors of more than 2^31 elements. `python -m bench.checks.gpu_checks`
runs what the sanitizers watch."""

import contextlib
import functools
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench.checks.cases import cases
from bench.checks.edges import EDGES
from bench.checks.edges_sample import sampling
from bench.checks.inputs import I32, Case
from bench.checks.kernel_checks import (
    BF16_ERROR,
    bound,
    check,
    kernel_cases,
    mutated,
    readable,
    same_bits,
    tensors,
)
from bench.checks.machine import Machine
from bench.checks.oracles import ORACLES, oracle
from bench.checks.whole_model import check as model_is_right
from l4kernels import STATUS, ops, take_device_error
from l4kernels.bench.shapes import SIZES, calls
from l4kernels.bench.timing import capture, time_calls
from l4kernels.ops import OPS
from l4kernels.ops.step import words
from l4kernels.testing import assert_close, relative_error, serial_launches

REPEATS = 20
CHAINED = 4096, 16_384
# More rows than a grid has CTAs along y or z, and more than 2^31 elements.
TOKENS, WIDTH = 1_000_000, 2304
SAMPLED = 10_700, 202_048  # 2^31 elements are 10,628.6 rows
ROUTED = (400_000, 128, 1, True), (TOKENS, 16, 2, True), (8_500_000, 256, 1, False)
ROPE_HEADS, ROPE_PAGES = 8, 33_000
LONG_PREFILL = 1 << 20, 64  # keys, queries
SLAB = 1024, 4096  # rows of a weight that are quantised at a time
LONG_PREFILL_BOUND = 1e-3  # a quarter of a bf16 step: docs/decisions.md


def size(case: Case) -> int:
    return sum(t.nbytes for t in case.args if isinstance(t, Tensor))


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """torch fills every new tensor with NaN: what a kernel leaves unwritten does not pass."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # references may use what has no deterministic form
            yield
    finally:
        torch.use_deterministic_algorithms(False)


def kernel_is_right(op: str) -> dict[str, Any]:
    """All cases against the reference on the GPU; the same bits on every run and in a graph."""
    found, failed = kernel_cases(op, "cuda"), []
    with poisoned_memory():
        for case in found:
            try:
                check(op, case)
            except Exception as error:
                failed.append(f"{case}: {type(error).__name__}: {error}"[:600])
    assert not failed, f"{op}: {len(failed)} of {len(found)} cases\n" + "\n".join(failed[:20])
    case = max(found, key=size)
    first = results_of(op, case)
    for _ in range(REPEATS):
        assert_same(results_of(op, case), first, f"{op} [{case}] on another run")
    mine, results = case.copy(), []
    graph = capture(lambda: results.append(tensors(OPS[op](*mine.args, **mine.kwargs))))
    originals = dict(mutated(op, case))
    for t in results[-1]:
        t.view(torch.uint8).fill_(0xA5)  # a replay has to write them again
    for name, t in mutated(op, mine):
        t.copy_(originals[name])
    graph.replay()
    torch.cuda.synchronize()
    outputs = (*readable(op, results[-1]), *(t for _, t in mutated(op, mine)))
    assert_same(outputs, first, f"{op} [{case}] in a graph")
    return {"cases": len(found), "repeats": REPEATS}


def smoke(op: str) -> Iterator[dict[str, Any]]:
    """A few small cases, one launch after the other first, then as they are in a model: what fails
    only then is a race between neighbours of the stream. Yields what has passed so far."""
    found = [case for case in kernel_cases(op, "cuda") if size(case)]
    rows = [case for case in found if "config" in case.kwargs]
    chosen = [*rows, *sorted((c for c in found if c not in rows), key=size)[-2:]]
    passed: dict[str, list[str]] = {"serial": [], "dependent": []}
    failed = []
    for how, names in passed.items():
        with serial_launches() if how == "serial" else contextlib.nullcontext():
            for case in chosen:
                try:
                    check(op, case)
                    torch.cuda.synchronize()
                    names.append(str(case))
                except AssertionError as error:
                    failed.append(f"{how} {case}: {error}"[:600])
                yield passed
    assert not failed, f"{op}: {len(failed)} of {2 * len(chosen)}\n" + "\n".join(failed)


def results_of(op: str, case: Case) -> tuple[Tensor, ...]:
    """What the op returns and writes, as far as it is meant for others than its kernels."""
    case = case.copy()
    return (*readable(op, OPS[op](*case.args, **case.kwargs)), *(t for _, t in mutated(op, case)))


def assert_same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], what: str) -> None:
    for a, b in zip(got, expected, strict=True):
        assert same_bits(a.flatten(), b.flatten()), f"{what}: other bits"


def dependent_launches_in_a_graph() -> dict[str, Any]:
    """Two kernels, the second launched before the first has ended, replayed on new inputs."""
    x = torch.randn(CHAINED, device="cuda", dtype=torch.bfloat16)
    results: list[Tensor] = []
    graph = capture(lambda: results.append(ops.silu_mul(ops.silu_mul(x))))
    for replay in range(REPEATS):
        x.normal_()
        graph.replay()
        alone = ops.silu_mul(x)
        torch.cuda.synchronize()  # nothing overlaps
        alone = ops.silu_mul(alone)
        assert torch.equal(results[-1], alone), f"replay {replay}: other bits than one by one"
    expected = ops.silu_mul.reference(ops.silu_mul.reference(x[:256]))
    assert_close(results[-1][:256], expected, 5e-3, "chained silu_mul")
    return {"replays": REPEATS}


def attention_in_a_graph(device: str = "cuda", replays: int = 1000) -> dict[str, Any]:
    """Launches captured once follow the lengths on the device, to both sides of every chunk and
    between one split and many, and give the bits that the same call gives outside of a graph."""
    batch, tokens, chunk, page, columns = 3, 2, 8192, 64, 260
    int32 = {"dtype": torch.int32, "device": device}
    caches = torch.randn(2, batch * columns, page, 8, 128, device=device, dtype=torch.bfloat16)
    q = torch.randn(batch, tokens, 40, 128, device=device, dtype=torch.bfloat16)
    table = torch.randperm(batch * columns).view(batch, columns).to(**int32)
    lengths, starts = torch.zeros(batch, **int32), torch.arange(batch + 1, **int32) * tokens
    options = {"softmax_scale": 128**-0.5, "chunk": chunk}

    def attend() -> list[Tensor]:
        decoded = ops.flash_decode(q, *caches, lengths, table, **options)
        rows = (q.flatten(0, 1), *caches, starts, lengths, table)
        return [*decoded, *ops.flash_prefill(*rows, max_seqlen_q=tokens, **options)]

    results: list[list[Tensor]] = []
    graph = capture(lambda: results.append(attend()))
    draw = torch.Generator().manual_seed(0)
    for _ in range(replays):
        edge = torch.randint(3, (batch,), generator=draw) * chunk
        near = edge + torch.randint(-3, 4, (batch,), generator=draw)
        far = torch.randint(columns * page + 1, (batch,), generator=draw)
        lengths.copy_(torch.where(torch.rand(batch, generator=draw) < 0.5, near, far).clamp(min=0))
        graph.replay()
        for replayed, eager in zip(results[-1], attend(), strict=True):
            assert same_bits(replayed, eager), f"other bits in a graph at {lengths.tolist()}"
    return {"replays": replays}


def long_prefill_of_ones(device: str = "cuda") -> dict[str, Any]:
    """What truncation in the tensor cores takes off a weighted sum over a million keys.

    All values are 1, so the result is. A bf16 result would show nothing below half a step: so in
    column d the values of d keys of every 128 are the next bf16 number, and the mean over the
    columns, whose results lie evenly between the two, shows 1/100 of a step.
    """
    (keys, queries), step, columns = LONG_PREFILL, 2.0**-7, torch.arange(128, device=device)
    q = torch.randn(queries, 2, 128, device=device).bfloat16()
    k = torch.randn(keys // 64, 64, 1, 128, device=device).bfloat16()
    v = torch.arange(keys, device=device)[:, None] % 128 < columns
    v = (1 + step * v).bfloat16().view(k.shape)
    starts, length = (torch.tensor(n, device=device, dtype=I32) for n in ([0, queries], [keys]))
    table = torch.arange(keys // 64, device=device, dtype=I32)[None]
    options = {"softmax_scale": 128**-0.5, "max_seqlen_q": queries}
    out = ops.flash_prefill(q, k, v, starts, length, table, **options).out.double()
    mass = torch.zeros(queries, 2, 128, device=device, dtype=torch.float64)  # of keys by j % 128
    position = torch.arange(keys - queries, keys, device=device)[:, None, None]
    for first in range(0, keys, 1 << 16):
        some = k.flatten(0, 2)[first : first + (1 << 16)].double()
        weights = (q.double() @ some.mT * 128**-0.5).exp()
        seen = torch.arange(first, first + len(some), device=device) <= position
        mass += torch.where(seen, weights, 0).unflatten(-1, (-1, 128)).sum(-2)
    before = mass.cumsum(-1) - mass  # of those with j % 128 < column
    expected = 1 + step * before / mass.sum(-1, keepdim=True)
    found = {
        "keys": keys,
        "lost": 1 - (out.mean() / expected.mean()).item(),
        "error_of_ones": (out[..., 0] - 1).abs().max().item(),
    }
    assert abs(found["lost"]) <= LONG_PREFILL_BOUND, f"more than {LONG_PREFILL_BOUND}: {found}"
    assert relative_error(out, expected) <= 2.0**-8, found  # a bf16 result
    return found


def edge_is_right(name: str) -> dict[str, Any]:
    EDGES[name](Machine("cuda"))
    return {}


def references_in_every_state(device: str = "cuda") -> dict[str, Any]:
    """The references on a GPU: no state of torch changes a bit of them, or makes them raise."""
    states: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
        "deterministic": deterministic,
        "autocast": lambda: torch.autocast(device, torch.bfloat16),
        "inference mode": torch.inference_mode,
    }
    failed = []
    for op in STATUS.kernels:
        for case in cases(op, device, torch.bfloat16):
            expected = reference_results(op, case)
            for name, state in states.items():
                try:
                    with state():
                        got = reference_results(op, case)
                    assert_same(got, expected, "reference")
                except (AssertionError, RuntimeError) as error:
                    failed.append(f"{op} [{case}] {name}: {error}"[:300])
    assert not failed, f"{len(failed)} differ\n" + "\n".join(failed[:40])
    return {"states": list(states)}


def quantiser_is_right(device: str = "cuda") -> dict[str, Any]:
    """int4 on torch's kernels: a CPU's codes without a search. With one, sums in another order may
    tell two scales apart that are equally good. And the rate of a slab as loading has it."""
    on_both = (cases("quantize_int4", where) for where in (device, "cpu"))
    for there, here in zip(*on_both, strict=True):
        w, search = here.args
        got = tuple(t.cpu() for t in ops.quantize_int4(*there.args))
        expected = ops.quantize_int4(w, search)
        if not search:
            assert_same(got, expected, f"quantize_int4 [{here}] on a GPU and a CPU")
        errors = [(ops.dequantize_int4(*q) - w.float()).norm() for q in (got, expected)]
        torch.testing.assert_close(*errors, rtol=1e-5, atol=0)
    slab = torch.randn(SLAB, device=device, dtype=torch.bfloat16)
    timing = time_calls(lambda: ops.quantize_int4(slab))
    return {"source_gb_s": slab.nbytes / timing.median / 1e3}


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def reference_results(op: str, case: Case) -> tuple[Tensor, ...]:
    case = case.copy()
    results = tensors(OPS[op].reference(*case.args, **case.kwargs))
    return (*results, *(t for _, t in mutated(op, case)))


def whole_model(form: str, prompt: str) -> dict[str, Any]:
    """The demo checkpoint through the kernels: same greedy tokens as on the references."""
    errors = model_is_right(form, prompt, contextlib.nullcontext(), "cuda")
    take_device_error()
    return errors


def cupy_agrees() -> dict[str, Any]:
    """Every streaming op at a shape of Scout's, against CuPy."""
    if importlib.util.find_spec("cupy") is None:
        return {"skipped": "no CuPy on this machine"}
    import cupy

    errors = {}
    for op in ORACLES:
        case = next(iter(calls(op, ("scout",), ("decode",), {"decode": (64,)})))
        args, kwargs = case.make("cuda")
        got = tensors(OPS[op](*args, **kwargs))[0]
        expected = oracle(cupy, cupy.from_dlpack, op, args, kwargs)
        errors[op] = relative_error(got, torch.from_dlpack(expected))
    # Results in e4m3 are rounded to three bits of mantissa, the oracle's are not.
    wrong = {op: e for op, e in errors.items() if e > (0.03 if op.endswith("fp8") else BF16_ERROR)}
    assert not wrong, f"CuPy differs: {wrong}"
    return errors


def two_streams() -> dict[str, Any]:
    """Chains on two streams at once, each with its own inputs and workspaces."""
    inputs = [torch.randn(3000, 256, device="cuda").bfloat16() for _ in range(2)]

    def chain(x: Tensor) -> tuple[Tensor, ...]:
        routing = ops.moe_route(x[:, :128], 2)
        rows = ops.moe_permute(x, routing.permutation, 2)
        return *routing, ops.moe_combine(rows, routing.inverse, 2), *ops.quantize_fp8(x, "tensor")

    expected = [chain(x) for x in inputs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in inputs]
    got: list[list[tuple[Tensor, ...]]] = [[], []]
    for _ in range(REPEATS):
        for stream, x, mine in zip(streams, inputs, got, strict=True):
            with torch.cuda.stream(stream):
                mine.append(chain(x))
    torch.cuda.synchronize()
    for mine, wanted in zip(got, expected, strict=True):
        for repeat in mine:
            assert_same(repeat, wanted, "two streams")
    return {"repeats": REPEATS}


def another_device() -> dict[str, Any]:
    """Tensors of cuda:1 while the current device is 0, and of both in one call."""
    if torch.cuda.device_count() < 2:
        return {"skipped": "one GPU on this machine"}
    x, weight = torch.randn(64, 5120).bfloat16(), torch.randn(5120).bfloat16()
    y = ops.rms_norm(x.to("cuda:1"), weight.to("cuda:1"))
    assert y.device.index == 1
    assert_close(y, ops.rms_norm.reference(x, weight), 3e-3)
    try:
        ops.rms_norm(x.to("cuda:1"), weight.to("cuda:0"))
    except (RuntimeError, ValueError) as error:
        assert "one device" in str(error), error
    else:
        raise AssertionError("tensors of two devices were taken")
    return {}


Large = tuple[tuple[Any, ...], Callable[[Tensor], tuple[Any, ...]]]
"""The arguments of a call, and those of the same call on some of its rows."""


def _random(rows: int, width: int) -> Tensor:
    return torch.empty(rows, width, device="cuda", dtype=torch.bfloat16).normal_()


def _rows(*args: Any) -> Large:
    count = len(args[0])

    def some(rows: Tensor) -> tuple[Any, ...]:
        return tuple(a[rows] if isinstance(a, Tensor) and len(a) == count else a for a in args)

    return args, some


def _gathered(source: int, *rest: Any) -> Large:
    """`source`: position of the table among the arguments; the other one is the order."""
    table, order = _random(TOKENS, WIDTH), torch.randperm(TOKENS, device="cuda").to(I32)

    def pair(table: Tensor, order: Tensor) -> tuple[Any, ...]:
        return (table, order, *rest) if source == 0 else (order, table, *rest)

    def some(rows: Tensor) -> tuple[Any, ...]:
        return pair(table[order[rows].long()], torch.arange(len(rows), device="cuda").to(I32))

    return pair(table, order), some


def _sampled() -> Large:
    settings = [t.cuda() for t in sampling(SAMPLED[0], top_p=0.9)]
    return _rows(_random(*SAMPLED), *settings)


def _processed() -> Large:
    """One row of tallies and biases for all."""
    rows, vocab = SAMPLED
    tally = torch.randint(5, (1, vocab), dtype=I32, device="cuda").expand(rows, vocab)
    bias = torch.randn(1, vocab, device="cuda").expand(rows, vocab)
    masks = torch.randint(2**31, (2, rows, words(vocab)), dtype=I32, device="cuda")
    counts = torch.randint(9, (2, rows), device="cuda")
    factors = torch.rand(3, rows, device="cuda") + 0.5
    active = torch.randint(2, (rows,), dtype=I32, device="cuda")
    return _rows(_random(rows, vocab), tally, bias, *masks, *counts, *factors, active)


_LARGE: dict[str, Callable[[], Large]] = {
    "rms_norm": lambda: _rows(_random(TOKENS, WIDTH), _random(1, WIDTH)[0]),
    "rms_norm_fp8": lambda: _rows(_random(TOKENS, WIDTH), _random(1, WIDTH)[0]),
    "add_rms_norm": lambda: _rows(
        *(_random(n, WIDTH) for n in (TOKENS, TOKENS)), _random(1, WIDTH)[0]
    ),
    "silu_mul": lambda: _rows(_random(TOKENS, 2 * WIDTH)),
    "silu_mul_fp8": lambda: _rows(_random(TOKENS, 2 * WIDTH)),
    "quantize_fp8": lambda: _rows(_random(TOKENS, WIDTH), "1x128"),
    "moe_permute": lambda: _gathered(0, 1),
    "moe_permute_fp8": lambda: _gathered(0, 1),
    "moe_combine": lambda: _gathered(0, 1),
    "moe_combine_norm": lambda: _gathered(0, 1, _random(1, WIDTH)[0]),
    "moe_combine_norm_fp8": lambda: _gathered(0, 1, _random(1, WIDTH)[0]),
    "embed": lambda: _gathered(1),
    "sample": _sampled,
    "process_logits": _processed,
}


def large(op: str) -> dict[str, Any]:
    """A call of more than 2^31 elements, of which some rows are compared: the first, the last and
    those around element 2^31."""
    args, some = _LARGE[op]()
    got = tensors(OPS[op](*args))
    count = len(got[0])
    elements = max(t.numel() for t in (*args, *got) if isinstance(t, Tensor))
    middle = 2**31 * count // elements
    rows = [*range(50), *range(middle - 50, min(middle + 50, count)), *range(count - 50, count)]
    chosen = torch.tensor(rows, device="cuda")
    for a, e in zip(got, tensors(OPS[op].reference(*some(chosen))), strict=True):
        assert_close(a[chosen] if len(a) == count else a, e, bound(op, Case("", ()), e), op)
    return {"rows": count, "elements": elements}


def large_routing() -> dict[str, Any]:
    for tokens, experts, *options in ROUTED:
        logits = _random(tokens, experts)
        got, expected = ops.moe_route(logits, *options), ops.moe_route.reference(logits, *options)
        for name, a, e in zip(got._fields, got, expected, strict=True):
            close = torch.equal(a, e) if e.dtype == I32 else torch.allclose(a, e, rtol=1e-5)
            assert close, f"moe_route of {tokens} tokens: {name} differs"
    return {"elements": logits.numel()}


def large_rope() -> dict[str, Any]:
    """A million tokens, whose slots reach past 2^31 elements of the cache."""
    heads, slots = ROPE_HEADS, 64 * ROPE_PAGES
    qkv, table = _random(TOKENS, 3 * heads * 128), ops.rope_table(8192, theta=5e5).cuda()
    positions = torch.arange(TOKENS, device="cuda") * 10
    mapping = torch.randperm(slots, device="cuda")[:TOKENS]
    caches = [_random(slots, heads * 128).view(-1, 64, heads, 128) for _ in "kv"]
    options = {"num_heads": heads, "cos_sin": table, "qk_norm_eps": 1e-5}
    q = ops.rope_cache(qkv, positions, mapping, *caches, **options)
    rows = mapping.argsort()[torch.tensor([*range(50), *range(-50, 0)])]
    small = [_random(100, heads * 128).view(1, 100, heads, 128) for _ in "kv"]
    expected = ops.rope_cache.reference(
        qkv[rows], positions[rows], torch.arange(100, device="cuda"), *small, **options
    )
    assert_close(q[rows], expected, 3e-3, "rope_cache: q")
    for whole, part in zip(caches, small, strict=True):
        assert_close(whole.flatten(0, 1)[mapping[rows]], part[0], 3e-3, "rope_cache: cache")
    return {"elements": caches[0].numel()}


LARGE: dict[str, Callable[[], dict[str, Any]]] = {
    **{op: functools.partial(large, op) for op in _LARGE},
    "moe_route": large_routing,
    "rope_cache": large_rope,
}


def sanitized_cases() -> None:
    """What the sanitizers watch: every case of the streaming ops, the smallest of the others."""
    for op in STATUS.kernels:
        found = sorted(filter(size, kernel_cases(op, "cuda")), key=size)
        for case in found[:1] if op in SIZES else found:
            results_of(op, case)
            torch.cuda.synchronize()
            print(f"{op} [{case}]", flush=True)


if __name__ == "__main__":
    sanitized_cases()
