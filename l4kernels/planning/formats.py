"""The one table of weight formats as planning sees them: bytes of each kind of weight."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """Storage of a weight matrix: bytes per weight, and per output row for its scale."""

    per_weight: float
    per_row: float = 0.0


BF16 = Precision(2.0)
FP8 = Precision(1.0, 4.0)  # one float32 scale per output channel
INT4 = Precision(0.5 + 2 / 128)  # one bf16 scale per group of 128
_INT4_FP32 = Precision(0.5 + 4 / 128)

OWN_FORMATS = ("bf16", "fp8", "int4")
"""What `from_pretrained(weights=...)` makes; the others are for comparison."""
WITHOUT_KERNELS = {"int4": ("w4_gemm", "quantize_int4")}
"""Formats of which ops have no CUDA kernel yet."""
FP8_CACHE = ("int4", "int4+fp8attn")
"""Formats whose KV cache is fp8 unless told otherwise."""
KV_BYTES = {"bf16": 2, "fp8": 1}


@dataclass(frozen=True)
class Format:
    """Precision of each kind of weight; embeddings, router, norms and vision stay bf16."""

    name: str
    attention: Precision = BF16
    routed: Precision = BF16
    shared: Precision = BF16
    dense: Precision = BF16
    lm_head: Precision = BF16

    def of(self, kind: str) -> Precision:
        return getattr(self, kind, BF16)


def _ffn(precision: Precision) -> dict[str, Precision]:
    return dict.fromkeys(("routed", "shared", "dense"), precision)


FORMATS = {
    form.name: form
    for form in (
        Format("bf16"),
        Format("fp8", attention=FP8, **_ffn(FP8), lm_head=FP8),
        Format("int4", attention=INT4, **_ffn(INT4), lm_head=FP8),
        Format("int4+fp8attn", attention=FP8, **_ffn(INT4), lm_head=FP8),
        Format("fp8-experts", routed=FP8),  # official Maverick FP8
        Format("fp8-ffn", **_ffn(FP8)),  # FP8-dynamic
        Format("fp8-bf16head", attention=FP8, **_ffn(FP8)),
        Format("int4-ffn", **_ffn(INT4)),  # W4A16
        Format("int4-bf16head", attention=INT4, **_ffn(INT4)),
        Format("int4-meta", routed=_INT4_FP32, shared=_INT4_FP32),
    )
}
