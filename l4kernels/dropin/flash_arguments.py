"""The arguments of FlashAttention 3: which are supported, and what they must be."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from l4kernels.ops.check import Checker, describe

_WHY = {
    "causal": "only causal attention; with one query per sequence False means the same",
    "window_size": "a sliding window is another model's mask; Llama 4's is attention_chunk",
    "softcap": "no soft cap",
    "qv": "no second query",
    "cache_leftpad": "no padding on the left",
    "rotary_cos": "ops.rope_cache rotates and writes the cache",
    "rotary_sin": "ops.rope_cache rotates and writes the cache",
    "rotary_seqlens": "ops.rope_cache rotates and writes the cache",
    "q_descale": "q stays bfloat16; keys and values may be e4m3",
    "seqused_q": "give cu_seqlens_q without unused rows",
    "cu_seqlens_k_new": "new keys come as many for each sequence: [B, S, Hkv, D]",
}
_OFF = {"softcap": 0.0}


def check_offsets(check: Checker, name: str, offsets: Tensor) -> None:
    """Fails unless it is int32 `[B + 1]`."""
    check.dtype(name, offsets, (torch.int32,))
    check.shape(name, offsets, ["B + 1"])
    check.require(len(offsets) > 0, f"expected {name} to be [B + 1], got [0]")


def check_mask(
    check: Checker, causal: bool, window_size: Sequence[int], queries: int, keys: int
) -> None:
    """Fails unless FA3 would see all keys up to the query's, by its rules for this many."""
    left, right = window_size
    right = 0 if causal else -1 if right >= queries - 1 else right
    if 0 <= left < keys - 1 or right > 0:
        got = tuple(window_size)
        check.fail(f"expected window_size to be (-1, -1), got {got}: {_WHY['window_size']}")
    if right < 0 and queries > 1:
        check.fail(f"expected causal to be True, got {causal}: {_WHY['causal']}")


def check_unsupported(check: Checker, **arguments: Any) -> None:
    """Fails for an argument that is not at FA3's default, with the reason."""
    for name, value in arguments.items():
        value = tuple(value) if isinstance(value, list) else value
        off = _OFF.get(name)
        if isinstance(value, Tensor) or (value is not None and value != off):
            got = describe(value) if isinstance(value, Tensor) else value
            check.fail(f"expected {name} to be {off}, got {got}: {_WHY[name]}")


def head_scales(
    check: Checker, k_descale: Tensor | None, v_descale: Tensor | None
) -> dict[str, Tensor | None]:
    """Scales of keys and values per head, as the ops name them."""
    return {
        "k_scale": _head_scale(check, "k_descale", k_descale),
        "v_scale": _head_scale(check, "v_descale", v_descale),
    }


def _head_scale(check: Checker, name: str, scale: Tensor | None) -> Tensor | None:
    """FA3's scales per sequence and head, where all sequences share them."""
    if scale is None or scale.dim() == 1:
        return scale if scale is None else scale.contiguous()
    check.shape(name, scale, ["B", "Hkv"])
    if scale.shape[0] != 1 and scale.stride(0) != 0:
        check.fail(
            f"expected {name} to hold one scale per head, [Hkv] or one row expanded to [B, Hkv], "
            f"got {describe(scale)}: scales that differ between sequences are not supported"
        )
    return scale[0].contiguous()
