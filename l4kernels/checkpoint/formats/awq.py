"""AWQ: words along the outputs, in the order of our own words along the inputs."""

from torch import Tensor

from l4kernels.checkpoint.files.quantization import ADVICE, Quantization
from l4kernels.checkpoint.formats.grouped import Grouped, Scheme
from l4kernels.checkpoint.formats.nibbles import along_k, unpacked
from l4kernels.inputs.files import shown
from l4kernels.ops.quant import INT4_ORDER


class Awq(Grouped):
    """`qweight` int32 `[in, out / 8]`, `qzeros` `[in / group, out / 8]`, `scales` `[in / group,
    out]`; a weight is `(code - zero) * scale`."""

    methods = ("awq",)
    supports = "AWQ in 4 bits, version gemm"
    order = INT4_ORDER

    def read_scheme(self, quantization: Quantization) -> Scheme:
        record = quantization.fields
        bits = record.integer("bits", 1, 32, record.integer("w_bit", 1, 32, 4))
        versions = (record.data.get(key) for key in ("version", "checkpoint_format", "format"))
        version = next((v for v in versions if v is not None), "gemm")
        backend = record.data.get("backend")
        if bits != 4 or str(version).lower() != "gemm" or backend == "llm-awq":
            record.fail(
                f"AWQ in {bits} bits of version "
                f"{shown(backend if backend == 'llm-awq' else version)} cannot be read: its codes "
                f"are packed in another way; supported: {self.supports}; {ADVICE}"
            )
        group = record.integer("group_size", -1, 1 << 20, None)
        if group is None:
            group = record.integer("q_group_size", -1, 1 << 20)
        if group == 0:
            record.fail("expected group_size to be -1 or above 0, got 0")
        return Scheme(bits, group, record.boolean("zero_point", True))

    def words_shape(self, n: int, k: int) -> tuple[int, int]:
        return k, n // 8

    def packed(self, words: Tensor) -> Tensor:
        return along_k(words)

    def codes(self, words: Tensor) -> Tensor:
        return unpacked(words, order=INT4_ORDER).t()
