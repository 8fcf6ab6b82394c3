"""The streaming ops once more for NumPy or CuPy: on a GPU an implementation that has nothing in
common with torch."""

from collections.abc import Callable
from typing import Any

from torch import Tensor


def _norm(cp: Any, x: Any, weight: Any) -> Any:
    return x / cp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight


def _silu_mul(cp: Any, x: Any) -> Any:
    gate, up = cp.split(x, 2, axis=-1)
    return gate / (1 + cp.exp(-gate)) * up


def _e4m3(cp: Any, x: Any, scaling: str = "row") -> Any:
    """Before the rounding to three bits of mantissa."""
    rows = x if scaling == "row" else x.reshape(x.shape[0], -1, 128)
    return (rows * (448 / abs(rows).max(-1, keepdims=True))).reshape(x.shape)


def _moe_route(cp: Any, logits: Any, top_k: int, shared_expert: bool) -> Any:
    chosen = cp.argsort(-logits, axis=-1)[:, :top_k]
    last = cp.full((len(logits), int(shared_expert)), logits.shape[1])
    return cp.concatenate([chosen, last], axis=1)


def _rope_cache(
    cp: Any,
    qkv: Any,
    positions: Any,
    slots: Any,
    k: Any,
    v: Any,
    *,
    num_heads: int,
    cos_sin: Any,
    qk_norm_eps: float | None = None,
) -> Any:
    q = qkv.reshape(len(qkv), -1, 64, 2)[:, :num_heads]
    table = cos_sin[positions % len(cos_sin), None]
    turned = (q[..., 0] + 1j * q[..., 1]) * (table[..., :64] + 1j * table[..., 64:])
    x = cp.stack([turned.real, turned.imag], -1).reshape(len(qkv), num_heads, 128)
    return x if qk_norm_eps is None else x / cp.sqrt((x * x).mean(-1, keepdims=True) + qk_norm_eps)


def _merge(cp: Any, outs: Any, lses: Any) -> Any:
    weight = cp.exp(lses - lses.max(0)).swapaxes(1, 2)[..., None]
    return (outs * weight).sum(0) / weight.sum(0)


def _process_logits(
    cp: Any,
    logits: Any,
    tally: Any,
    bias: Any,
    allowed: Any,
    stop_bits: Any,
    generated: Any,
    min_tokens: Any,
    *settings: Any,
) -> Any:
    repetition, frequency, presence, active = (setting[:, None] for setting in settings)
    x, n = logits + bias, tally // 2
    x = cp.where(tally > 0, x * repetition ** cp.where(x < 0, 1, -1), x)
    x = x - frequency * n - presence * (n > 0)
    token = cp.arange(x.shape[1])
    stops, kept = (mask[:, token // 32] >> token % 32 & 1 for mask in (stop_bits, allowed))
    banned = (kept == 0) | ((stops == 1) & (generated < min_tokens)[:, None])
    return cp.where(active == 0, logits, cp.where(banned, -cp.inf, x))


def _combine(cp: Any, y: Any, inverse: Any, top_k: int, *_: Any, residual: Any) -> Any:
    return y[inverse].reshape(-1, top_k, y.shape[1]).sum(1) + residual


ORACLES: dict[str, Callable[..., Any]] = {
    "rms_norm": _norm,
    "add_rms_norm": lambda cp, x, residual, weight: _norm(cp, x + residual, weight),
    "rms_norm_fp8": lambda cp, x, weight, scaling: _e4m3(cp, _norm(cp, x, weight), scaling),
    "silu_mul": _silu_mul,
    "silu_mul_fp8": lambda cp, x, scaling: _e4m3(cp, _silu_mul(cp, x), scaling),
    "quantize_fp8": _e4m3,
    "moe_route": _moe_route,
    "moe_router": lambda cp, x, norm_weight, *_: _norm(cp, x, norm_weight),
    "moe_permute": lambda cp, x, order, top_k: x[order // top_k],
    "moe_permute_fp8": lambda cp, x, order, top_k: _e4m3(cp, x[order // top_k]),
    "moe_combine": _combine,
    "moe_combine_norm": _combine,
    "moe_combine_norm_fp8": _combine,
    "rope_cache": _rope_cache,
    "merge_attention_states": _merge,
    "embed": lambda cp, ids, weight: weight[ids],
    "process_logits": _process_logits,
    "sample": lambda cp, logits, temperature, *_: None if temperature.any() else logits.argmax(-1),
}
"""Op -> its first result, given the array module and the op's arguments with float32 arrays."""


def oracle(module: Any, convert: Callable[[Tensor], Any], op: str, args: Any, kwargs: Any) -> Any:
    """The op's first result as an array of `module`; None where a case has none."""

    def array(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return convert(value.float() if value.is_floating_point() else value)

    named = {name: array(value) for name, value in kwargs.items()}
    return ORACLES[op](module, *map(array, args), **named)
