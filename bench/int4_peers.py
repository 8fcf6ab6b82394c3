"""Products with int4 weights that `w4_gemm` is measured against: each wants its own layout of the
same codes and scales, which is made outside of the timed call."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from l4kernels import ops
from l4kernels.bench.shapes import Arguments

GROUP = 128
ZERO = 8


def prepared(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """The call of a peer: what is left of the op's arguments, and the weights as it wants them."""
    a, tiles = args
    options = {key: value for key, value in kwargs.items() if key != "static_weights"}
    packed, scales, _ = ops.untile_int4(tiles)
    if name not in LAYOUTS:  # bf16, a slab at a time
        slabs = zip(packed.unbind(), scales.unbind(), strict=True) if packed.dim() == 3 else ()
        dense = [ops.dequantize_int4(*slab).bfloat16() for slab in slabs]
        weight = torch.stack(dense) if dense else ops.dequantize_int4(packed, scales).bfloat16()
        return (a, weight), options
    if "activation" in options:
        raise NotImplementedError("no SwiGLU of its own")
    return (a, *LAYOUTS[name](packed, scales)), options


def _codes(packed: Tensor) -> Tensor:
    """`[N, K]`, from 0 to 15."""
    if packed.dim() != 2:
        raise NotImplementedError("experts")
    return (ops.unpack_int4(packed) + ZERO).to(torch.uint8)


def tinygemm_weights(packed: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Two codes a byte, the first above; scales and offsets `[K / group, N, 2]`."""
    codes = _codes(packed)
    pairs = codes[:, ::2] << 4 | codes[:, 1::2]
    factors = torch.stack([scales, torch.zeros_like(scales)], -1).transpose(0, 1).contiguous()
    return torch.ops.aten._convert_weight_to_int4pack(pairs, 8), factors


def _tinygemm(a: Tensor, weight: Tensor, factors: Tensor) -> Tensor:
    return torch.ops.aten._weight_int4pack_mm(a, weight, GROUP, factors)


def _fbgemm_weights(packed: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two codes with signs a byte, the first below; scales and offsets `[K / group, N]`."""
    import fbgemm_gpu.experimental.gen_ai  # noqa: F401

    if packed.dim() == 2:
        return _fbgemm_slab(packed, scales)
    found = [_fbgemm_slab(*slab) for slab in zip(packed, scales, strict=True)]
    weight, factors, offsets = (torch.stack(parts) for parts in zip(*found, strict=True))
    return weight, factors, offsets


def _fbgemm_slab(packed: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    codes = ops.unpack_int4(packed)
    pairs = (codes[:, ::2] & 0xF | codes[:, 1::2] << 4).to(torch.int8)
    weight, factors = torch.ops.fbgemm.preshuffle_i4(pairs, scales.t().contiguous())
    return weight, factors, torch.zeros_like(factors)


def _fbgemm(
    a: Tensor,
    weight: Tensor,
    factors: Tensor,
    offsets: Tensor,
    *,
    expert_offsets: Tensor | None = None,
) -> Tensor:
    library = torch.ops.fbgemm
    if expert_offsets is None:
        return library.bf16i4bf16_shuffled(a, weight, factors, offsets)
    rows = expert_offsets.diff().long()
    return library.bf16i4bf16_shuffled_grouped(a, weight, factors, offsets, rows)


def _gemlite_weights(packed: Tensor, scales: Tensor) -> tuple[Any]:
    from gemlite.core import DType, GemLiteLinear

    n, k = packed.shape[0], packed.shape[1] * 8
    layer = GemLiteLinear(
        4,
        group_size=GROUP,
        in_features=k,
        out_features=n,
        input_dtype=DType.BF16,
        output_dtype=DType.BF16,
    )
    layer.pack(_codes(packed), scales, torch.full_like(scales, ZERO), None)
    return (layer,)


def _gemlite(a: Tensor, layer: Any) -> Tensor:
    return layer(a)


def _marlin_weights(packed: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Made of GPTQ's layout; scales `[K / group, N]`."""
    from vllm import _custom_ops as vllm_ops
    from vllm.model_executor.layers.quantization.utils import marlin_utils

    n, k = packed.shape[0], packed.shape[1] * 8
    words = gptq_words(_codes(packed))
    none = torch.empty(0, dtype=torch.int32, device=packed.device)
    weight = vllm_ops.gptq_marlin_repack(words, none, k, n, 4)
    factors = marlin_utils.marlin_permute_scales(scales.t().contiguous(), k, n, GROUP)
    return weight, factors, marlin_utils.marlin_make_workspace_new(packed.device)


def gptq_words(codes: Tensor) -> Tensor:
    """`[K / 8, N]`: eight neighbours along K a word, the first below."""
    eights = codes.t().unflatten(0, (-1, 8)).long()
    places = torch.arange(0, 32, 4, device=codes.device)[:, None]
    return (eights << places).sum(1).to(torch.int32)


def _marlin(a: Tensor, weight: Tensor, factors: Tensor, workspace: Tensor) -> Tensor:
    from vllm.model_executor.layers.quantization.utils import marlin_utils
    from vllm.scalar_type import scalar_types

    none = torch.empty(0, dtype=torch.int32, device=a.device)
    return marlin_utils.apply_gptq_marlin_linear(
        input=a,
        weight=weight,
        weight_scale=factors,
        weight_zp=none,
        g_idx=none,
        g_idx_sort_indices=none,
        workspace=workspace,
        wtype=scalar_types.uint4b8,
        output_size_per_partition=factors.shape[-1],
        input_size_per_partition=a.shape[-1],
        is_k_full=True,
    )


LAYOUTS: dict[str, Callable[[Tensor, Tensor], tuple[Any, ...]]] = {
    "tinygemm": tinygemm_weights,
    "fbgemm": _fbgemm_weights,
    "gemlite": _gemlite_weights,
    "marlin": _marlin_weights,
}
# (name, module that must be importable, callable)
LIBRARIES: list[tuple[str, str, Callable[..., Any]]] = [
    ("tinygemm", "torch", _tinygemm),
    ("fbgemm", "fbgemm_gpu", _fbgemm),
    ("gemlite", "gemlite", _gemlite),
    ("marlin", "vllm", _marlin),
]
