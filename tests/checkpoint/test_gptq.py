"""Checkpoints of GPTQ: as gptqmodel writes them, and the forms of the layout beside those."""

import pytest
import torch

from l4kernels import Llama4, ops
from l4kernels.checkpoint.formats import nibbles
from l4kernels.ops.quant import INT4_ORDER
from tests.support.fixtures import (
    ROOT,
    config_of,
    drop,
    expected,
    first,
    held,
    opened,
    put,
    read_by_ranks,
    rewritten,
    say,
    tensors_of_fixture,
    values,
)

FORMS = {"gptq": "int4-g64", "gptq_zeros": "int4-g32-zeros", "gptq_order": "bf16"}
Q = "model.layers.0.self_attn.q_proj."
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def unpack(words, bits=4):
    """Codes `[K, n]` of `qweight`."""
    unsigned = words.long() & 0xFFFFFFFF
    return torch.stack([unsigned >> s & (1 << bits) - 1 for s in range(0, 32, bits)], 1).flatten(
        0, 1
    )


def pack(codes, bits=4):
    """Of `[K, n]` along K."""
    words = codes.long().unflatten(0, (-1, 32 // bits))
    whole = sum(words[:, i] << bits * i for i in range(32 // bits))
    return torch.where(whole >= 1 << 31, whole - (1 << 32), whole).int()


def zeros_of(tensors, stem):
    """Zero points `[groups, n]`; format gptq stores them less one."""
    return unpack(tensors[f"{stem}qzeros"].t()).t() + 1


def dequantised(tensors, stem):
    """`[out, in]`, by the definition."""
    groups = tensors[f"{stem}g_idx"].long()
    codes, zeros = unpack(tensors[f"{stem}qweight"]), zeros_of(tensors, stem)
    return ((codes - zeros[groups]) * tensors[f"{stem}scales"].float()[groups]).t()


@pytest.mark.parametrize("name", FORMS)
def test_logits_are_those_of_the_library(name):
    ids, want = expected(name)
    model = Llama4.from_pretrained(ROOT / name, weights="bf16")
    assert (model.prompt_logits(ids) - want).abs().max() <= 1e-4


@pytest.mark.parametrize("name", FORMS)
def test_each_weight_by_its_definition(name):
    tensors = tensors_of_fixture(name)
    for weight, _, data in opened(ROOT / name).tensors(torch.float32):
        stem = weight.removesuffix("weight")
        if f"{stem}qweight" in tensors:
            torch.testing.assert_close(values(data), dequantised(tensors, stem))


@pytest.mark.parametrize("name", ["gptq", "gptq_zeros"])
def test_codes_stay_as_they_are(name):
    model, source = Llama4.from_pretrained(ROOT / name), opened(ROOT / name)
    tensors, seen = tensors_of_fixture(name), 0
    for weight, slot in source.slots.items():
        stem = weight.removesuffix("weight")
        if f"{stem}qweight" not in tensors:
            continue
        linear = model.get_submodule(slot.target)
        assert linear.form.name == FORMS[name]
        codes = ops.unpack_int4(held(model, slot, "packed")) + 8
        assert torch.equal(codes.t(), unpack(tensors[f"{stem}qweight"]).to(torch.int8)), weight
        scales = tensors[f"{stem}scales"].to(torch.bfloat16)
        assert torch.equal(held(model, slot, "scales").t(), scales), weight
        zeros = held(model, slot, "zeros")
        if name == "gptq":
            assert zeros is None and (zeros_of(tensors, stem) == 8).all()
        else:
            assert torch.equal(zeros.t(), zeros_of(tensors, stem).to(torch.uint8)), weight
        seen += 1
    assert seen == {"gptq": 26, "gptq_zeros": 13}[name]
    ids, want = expected(name)
    assert (model.prompt_logits(ids) - want).norm() < 0.03 * want.norm()


@pytest.mark.parametrize("name", FORMS)
def test_ranks_read_their_shares(name):
    read_by_ranks(opened(ROOT / name))


def test_what_a_user_hears():
    (line,) = opened(ROOT / "gptq").notes
    assert "rounded to bfloat16" in line and "2^-9" in line
    (line,) = opened(ROOT / "gptq_order").notes
    assert line.startswith("13 weights are stored in groups of 32 in the order of activations")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [-1, 32, 64, 128, 16])
@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
def test_bits_groups_and_formats(bits, group, form, tmp_path):
    """Every weight of a checkpoint in codes of its own."""
    make = torch.Generator().manual_seed(0)
    tensors, want = tensors_of_fixture("gptq_zeros"), {}
    for stem in [n.removesuffix("qweight") for n in tensors if n.endswith("qweight")]:
        eighth, n = tensors[f"{stem}qweight"].shape
        k = 8 * eighth
        count = 1 if group == -1 else k // group
        codes = torch.randint(0, 1 << bits, (k, n), generator=make)
        zeros = torch.randint(1, 1 << bits, (count, n), generator=make)
        scales = (torch.rand(count, n, generator=make) + 0.1).half()
        scales[:, ::2].neg_()  # as AutoRound writes about half of them
        tensors[f"{stem}qweight"] = pack(codes, bits)
        tensors[f"{stem}qzeros"] = pack((zeros - int(form == "gptq")).t(), bits).t()
        tensors[f"{stem}scales"] = scales
        del tensors[f"{stem}g_idx"]
        zeros, scales = (t.repeat_interleave(k // count, 0) for t in (zeros, scales.float()))
        want[f"{stem}weight"] = ((codes - zeros) * scales).t()
    config = config_of("gptq_zeros")
    config["quantization_config"] |= {"bits": bits, "group_size": group, "checkpoint_format": form}
    source = opened(rewritten(tmp_path, tensors, config))
    got = {name: data for name, _, data in source.tensors(torch.float32)}
    for name, data in want.items():
        torch.testing.assert_close(values(got[name]), data)
    kept = {-1: "int4-g128-zeros", 128: "int4-g128-zeros", 16: "bf16"}
    form = kept.get(group, f"int4-g{group}-zeros") if bits == 4 else "bf16"
    assert source.held(f"{Q}weight").name == form
    assert isinstance(got[f"{Q}weight"], torch.Tensor) == (form == "bf16")


def test_a_record_of_its_own_file(tmp_path):
    ids, want = expected("gptq")
    config, tensors = config_of("gptq"), tensors_of_fixture("gptq")
    record = config.pop("quantization_config")
    del record["quant_method"]
    folder = rewritten(tmp_path, tensors, config, quantize_config=record)
    got = Llama4.from_pretrained(folder, weights="bf16").prompt_logits(ids)
    assert (got - want).abs().max() <= 1e-4


def test_a_zero_point_of_0_borrows_from_its_neighbour(tmp_path):
    """Gptqmodel takes one from each code of a word by one subtraction."""
    tensors, config = tensors_of_fixture("gptq_zeros"), config_of("gptq_zeros")
    zeros = torch.arange(128 * 4).view(4, 128) * 5 % 16
    words = pack(zeros.t()).t().long() - 0x11111111
    words = (words + (1 << 31)) % (1 << 32) - (1 << 31)
    tensors[f"{Q}qzeros"] = words.int()
    source = opened(rewritten(tmp_path / "gptqmodel", tensors, config))
    (got,) = (t for n, _, t in source.tensors(torch.float32) if n == f"{Q}weight")
    assert torch.equal(got.zeros.t(), zeros.to(torch.uint8))
    config["quantization_config"]["meta"]["quantizer"] = ["another:1"]
    source = opened(rewritten(tmp_path / "another", tensors, config))
    with pytest.raises(ValueError, match=r"q_proj\.qzeros: expected zero points from 1 to 15"):
        list(source.tensors(torch.float32))


def test_repacking_by_hand():
    codes = torch.randint(0, 16, (256, 24), dtype=torch.int32)
    want = ops.pack_int4(codes.t().contiguous() - 8)
    assert torch.equal(nibbles.reorder(pack(codes).t()), want)
    across = torch.stack([codes[:, i::8] for i in INT4_ORDER], 1)  # [K, 8, n / 8]
    words = pack(across.flatten(0, 1).view(256, 8, 3).transpose(0, 1).flatten(1))
    assert torch.equal(nibbles.along_k(words.view(256, 3)), want)


REFUSED = {
    "3 bits": ("gptq", say(bits=3), "GPTQ in 3 bits of checkpoint_format 'gptq'.*l4k quantize"),
    "no bits": ("gptq", say(bits=None), "quantization_config: bits is missing"),
    "8 bits said of 4": ("gptq", say(bits=8), r"qweight to be \[32, 128\], got \[16, 128\]"),
    "marlin": (
        "gptq",
        say(checkpoint_format="marlin"),
        "GPTQ in 4 bits of checkpoint_format 'marlin'",
    ),
    "64-bit words": ("gptq", say(pack_dtype="int64"), "in 'int64'"),
    "no group": ("gptq", say(group_size=0), "expected group_size to be -1 or above 0, got 0"),
    "another group": ("gptq", say(group_size=32), r"qzeros to be \[4, 16\], got \[2, 16\]"),
    "a group that divides nothing": ("gptq", say(group_size=48), "groups of 48 do not divide"),
    "no symmetry": ("gptq_zeros", say(sym=True), "qzeros: expected zero points of 8 alone"),
    "sym is text": ("gptq", say(sym="yes"), "expected sym to be true or false"),
    "no order": ("gptq_order", say(desc_act=False), "g_idx: expected groups of 32 inputs that"),
    "no scales": ("gptq", drop(f"{Q}scales"), "missing.*q_proj.scales"),
    "no zeros": ("gptq_zeros", drop(f"{Q}qzeros"), "missing.*q_proj.qzeros"),
    "no order's groups": ("gptq_order", drop(f"{Q}g_idx"), "missing.*q_proj.g_idx"),
    "no words": ("gptq", drop(f"{Q}qweight"), "missing.*q_proj.weight"),
    "scales of another type": ("gptq", put(f"{Q}scales", torch.Tensor.int), "scales to be one of"),
    "words of another type": ("gptq", put(f"{Q}qweight", torch.Tensor.long), "one of I32, got I64"),
    "NaN": (
        "gptq",
        put(f"{Q}scales", first(torch.nan)),
        "scales: expected finite scales other than 0",
    ),
    "zero": (
        "gptq_order",
        put(f"{Q}scales", first(0)),
        "scales: expected finite scales other than 0",
    ),
    "a group too high": ("gptq_order", put(f"{Q}g_idx", first(4)), "expected groups from 0 to 3"),
    "a group below": ("gptq_order", put(f"{Q}g_idx", first(-1)), "expected groups from 0 to 3"),
    "nothing quantised": (
        "gptq",
        lambda tensors, record: [
            tensors.pop(n)
            if not n.endswith("qweight")
            else tensors.update({n[:-7] + "weight": torch.ones(8 * t.shape[0], t.shape[1]).t()})
            or tensors.pop(n)
            for n, t in [*tensors.items()]
            if n.endswith(("qweight", "qzeros", "scales", "g_idx"))
        ],
        "quantised by gptq, but no file of the checkpoint holds a qweight",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what, tmp_path):
    name, change, message = REFUSED[what]
    tensors, config = tensors_of_fixture(name), config_of(name)
    change(tensors, config["quantization_config"])
    folder = rewritten(tmp_path, tensors, config)
    with pytest.raises(ValueError, match=message) as refusal:
        Llama4.from_pretrained(folder)
    assert "\n" not in str(refusal.value) and str(folder) in str(refusal.value)
