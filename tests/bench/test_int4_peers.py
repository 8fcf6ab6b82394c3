"""What int4 products are measured against gets the same weights: layouts that can be checked on a
CPU."""

import pytest
import torch

from bench import int4_peers
from bench.checks.inputs import Maker
from bench.peers import EAGER, peers
from l4kernels import ops
from l4kernels.testing import assert_close


@pytest.fixture
def make() -> Maker:
    return Maker("cpu", torch.bfloat16, seed=2)


def test_bf16_products_have_the_same_weights(make):
    for experts, options in (((), {}), ((3,), {"expert_offsets": make.offsets([4, 0, 5])})):
        args = make.randn(9, 256), make.tiles(*experts, 32, 256)
        options |= {"static_weights": True, "activation": "swiglu", "row_scale": make.uniform(9)}
        given, named = peers("w4_gemm").prepare("torch", (args, options))
        assert given[1].shape == (*experts, 32, 256) and "static_weights" not in named
        if experts:  # torch's grouped product has no CPU form
            continue
        assert_close(EAGER["w4_gemm"](*given, **named), ops.w4_gemm(*args, **options), 1e-2)


def test_tinygemm_has_its_scales_and_offsets_where_its_cpu_form_has_them(make):
    a, weight = make.randn(4, 256), make.int4(64, 256)
    _, factors = tinygemm(weight)
    codes = (ops.unpack_int4(weight.packed) + 8).int()
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 2)
    got = torch.ops.aten._weight_int4pack_mm_for_cpu(a, packed, int4_peers.GROUP, factors)
    assert_close(got, ops.w4_gemm(a, weight.packed, weight.scales), 1e-2)


def tinygemm(weight: ops.Int4WithZeros) -> tuple[torch.Tensor, torch.Tensor]:
    """Its packing is a GPU's; two codes a byte are what it gets."""
    taken = []

    def take(pairs: torch.Tensor, inner: int) -> torch.Tensor:
        taken.append(pairs)
        return pairs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.ops.aten, "_convert_weight_to_int4pack", take)
        _, factors = int4_peers.tinygemm_weights(weight.packed, weight.scales)
    high, low = taken[0] >> 4, taken[0] & 15
    codes = torch.stack([high, low], -1).flatten(1).to(torch.int8) - 8
    assert torch.equal(codes, ops.unpack_int4(weight.packed))
    return taken[0], factors


def test_words_of_gptq_hold_eight_neighbours_along_k(make):
    codes = make.integers(16, 64, high=16).to(torch.uint8)
    words = int4_peers.gptq_words(codes)
    assert words.shape == (8, 16)
    for k in (0, 5, 7, 63):
        assert torch.equal(words[k // 8] >> 4 * (k % 8) & 15, codes[:, k].int())


def test_a_peer_without_the_form_says_so(make):
    a, experts = make.randn(9, 256), make.tiles(3, 32, 256)
    for name in ("tinygemm", "gemlite", "marlin"):
        with pytest.raises((NotImplementedError, ImportError)):
            int4_peers.prepared(name, (a, experts), {"expert_offsets": make.offsets([9, 0, 0])})
    with pytest.raises(NotImplementedError, match="SwiGLU"):
        int4_peers.prepared("tinygemm", (a, experts[0]), {"activation": "swiglu"})
