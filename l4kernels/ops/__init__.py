"""Typed references: the meaning of every operation, and its CPU implementation."""

from l4kernels.ops.activation import silu_mul, silu_mul_fp8
from l4kernels.ops.append import flash_decode_append
from l4kernels.ops.attention import Attention, flash_decode, flash_prefill
from l4kernels.ops.dispatch import reference
from l4kernels.ops.embed import embed
from l4kernels.ops.epilogue import deinterleave_gate_up, interleave_gate_up
from l4kernels.ops.gemm import gemm, gemm_swiglu_fp8
from l4kernels.ops.int4_tiles import Int4WithZeros, tile_int4, untile_int4
from l4kernels.ops.merge import merge_attention_states
from l4kernels.ops.mma_tile import mma_tile
from l4kernels.ops.moe import (
    CombinedNorm,
    CombinedNormFp8,
    Routing,
    moe_combine,
    moe_combine_norm,
    moe_combine_norm_fp8,
    moe_permute,
    moe_permute_fp8,
    moe_route,
)
from l4kernels.ops.norm import AddRmsNorm, RmsNormFp8, add_rms_norm, rms_norm, rms_norm_fp8
from l4kernels.ops.prefill_plan import flash_prefill_plan
from l4kernels.ops.quant import (
    Int4,
    Quantized,
    dequantize_fp8,
    dequantize_int4,
    pack_int4,
    quantize_fp8,
    quantize_int4,
    unpack_int4,
)
from l4kernels.ops.registry import OPS, Op, OpWithOut, Work
from l4kernels.ops.rope import rope_cache, rope_frequencies, rope_table
from l4kernels.ops.router import RoutedRows, moe_router
from l4kernels.ops.sample import Sample, sample
from l4kernels.ops.step import advance_step, process_logits
from l4kernels.ops.w4 import w4_gemm
from l4kernels.ops.word_sum import word_sum

__all__ = [
    "OPS",
    "AddRmsNorm",
    "Attention",
    "CombinedNorm",
    "CombinedNormFp8",
    "Int4",
    "Int4WithZeros",
    "Op",
    "OpWithOut",
    "Quantized",
    "RmsNormFp8",
    "RoutedRows",
    "Routing",
    "Sample",
    "Work",
    "add_rms_norm",
    "advance_step",
    "deinterleave_gate_up",
    "dequantize_fp8",
    "dequantize_int4",
    "embed",
    "flash_decode",
    "flash_decode_append",
    "flash_prefill",
    "flash_prefill_plan",
    "gemm",
    "gemm_swiglu_fp8",
    "interleave_gate_up",
    "merge_attention_states",
    "mma_tile",
    "moe_combine",
    "moe_combine_norm",
    "moe_combine_norm_fp8",
    "moe_permute",
    "moe_permute_fp8",
    "moe_route",
    "moe_router",
    "pack_int4",
    "process_logits",
    "quantize_fp8",
    "quantize_int4",
    "reference",
    "rms_norm",
    "rms_norm_fp8",
    "rope_cache",
    "rope_frequencies",
    "rope_table",
    "sample",
    "silu_mul",
    "silu_mul_fp8",
    "tile_int4",
    "unpack_int4",
    "untile_int4",
    "w4_gemm",
    "word_sum",
]
