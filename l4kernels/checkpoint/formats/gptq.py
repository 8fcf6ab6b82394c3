"""GPTQ: words along the inputs, the first in the lowest bits."""

from typing import Any

from torch import Tensor

from l4kernels.checkpoint.files.quantization import ADVICE, Quantization
from l4kernels.checkpoint.formats.grouped import Grouped, Scheme
from l4kernels.checkpoint.formats.nibbles import reorder, unpacked
from l4kernels.inputs.files import shown

_FORMATS = ("gptq", "gptq_v2")


class Gptq(Grouped):
    """`qweight` int32 `[in / 8, out]`, `qzeros` `[groups, out / 8]`, `scales` `[groups, out]`,
    `g_idx` int32 `[in]`; of 8 bits a word has 4 codes.

    Of the older format the zero points are stored less one.
    """

    methods = ("gptq",)
    supports = "GPTQ in 4 or 8 bits, checkpoint_format gptq or gptq_v2"

    def read_scheme(self, quantization: Quantization) -> Scheme:
        record = quantization.fields
        bits = record.integer("bits", 1, 32)
        form = record.data.get("checkpoint_format") or record.data.get("format") or "gptq"
        words = record.data.get("pack_dtype") or "int32"
        if bits not in (4, 8) or form not in _FORMATS or words != "int32":
            record.fail(
                f"GPTQ in {bits} bits of checkpoint_format {shown(form)} in {shown(words)} cannot "
                f"be read; supported: {self.supports}, in int32; {ADVICE}"
            )
        group = record.integer("group_size", -1, 1 << 20)
        if group == 0:
            record.fail("expected group_size to be -1 or above 0, got 0")
        meta: Any = record.data.get("meta")
        meta = meta if isinstance(meta, dict) else {}
        self.less_one = form == "gptq"
        self.less_one_in_words = "gptqmodel" in str(meta.get("quantizer"))
        static = True in (record.data.get("static_groups"), meta.get("static_groups"))
        ordered = static or not record.boolean("desc_act", False)
        return Scheme(bits, group, not record.boolean("sym", True), ordered)

    def words_shape(self, n: int, k: int) -> tuple[int, int]:
        return k // self.scheme.per_word, n

    def packed(self, words: Tensor) -> Tensor:
        return reorder(words).t().contiguous()

    def codes(self, words: Tensor) -> Tensor:
        return unpacked(words.t(), self.scheme.bits)

    def zero_points(self, words: Tensor, name: str) -> Tensor:
        stored = super().zero_points(words, name)
        if not self.less_one:
            return stored
        top = (1 << self.scheme.bits) - 1
        if not (stored == top).any():
            return stored + 1
        # A zero point of 0 less one. Gptqmodel takes one from each code of a word with a single
        # subtraction, so that it borrows from the next; others do something else.
        if not self.less_one_in_words:
            self.refuse(
                name,
                "qzeros",
                f"expected zero points from 1 to {top}: what {top} stands for in checkpoint_format "
                f"gptq depends on the writer; convert the checkpoint to gptq_v2",
            )
        ones = 0x11111111 if self.scheme.bits == 4 else 0x01010101
        return super().zero_points(words + ones, name)
