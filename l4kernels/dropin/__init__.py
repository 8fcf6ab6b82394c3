"""Functions with the names and meanings of other libraries', on the ops of this one."""

from l4kernels.dropin.attention import flash_attn_varlen_func, flash_attn_with_kvcache
from l4kernels.dropin.matmul import fp8_matmul, grouped_gemm
from l4kernels.dropin.moe import moe_ffn

__all__ = [
    "flash_attn_varlen_func",
    "flash_attn_with_kvcache",
    "fp8_matmul",
    "grouped_gemm",
    "moe_ffn",
]
