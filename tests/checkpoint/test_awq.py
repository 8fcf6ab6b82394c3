"""Checkpoints of AWQ: as autoawq packs them, and as gptqmodel writes them."""

import pytest
import torch

from l4kernels import Llama4, ops
from l4kernels.layers.weights import int4_format
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

AWQ = ROOT / "awq"
FORMS = {"awq": "int4-g64-zeros", "awq_symmetric": "int4-g64"}
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
Q = "model.layers.0.self_attn.q_proj."
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def unpack(words):
    """Of words along the columns."""
    codes = torch.empty(*words.shape, 8, dtype=torch.int64)
    for place, column in enumerate(ORDER):
        codes[..., column] = words.long() >> 4 * place & 15
    return codes.flatten(-2)


def pack(codes):
    codes = codes.long().unflatten(-1, (-1, 8))
    whole = sum(codes[..., column] << 4 * place for place, column in enumerate(ORDER))
    return torch.where(whole >= 1 << 31, whole - (1 << 32), whole).int()


@pytest.mark.parametrize("name", FORMS)
def test_logits_are_those_of_the_library(name):
    ids, want = expected(name)
    model = Llama4.from_pretrained(ROOT / name, weights="bf16")
    assert (model.prompt_logits(ids) - want).abs().max() <= 1e-4


@pytest.mark.parametrize("name", FORMS)
def test_codes_stay_as_they_are(name):
    model, source = Llama4.from_pretrained(ROOT / name), opened(ROOT / name)
    tensors, seen = tensors_of_fixture(name), 0
    for weight, slot in source.slots.items():
        stem = weight.removesuffix("weight")
        if f"{stem}qweight" not in tensors:
            continue
        assert model.get_submodule(slot.target).form.name == FORMS[name]
        codes = ops.unpack_int4(held(model, slot, "packed")) + 8
        assert torch.equal(codes.t().long(), unpack(tensors[f"{stem}qweight"])), weight
        zeros = held(model, slot, "zeros")
        stored = unpack(tensors[f"{stem}qzeros"])
        if name == "awq":
            assert torch.equal(zeros.t().long(), stored), weight
        else:
            assert zeros is None and (stored == 8).all()
        scales = tensors[f"{stem}scales"].to(torch.bfloat16)
        assert torch.equal(held(model, slot, "scales").t(), scales), weight
        seen += 1
    assert seen == {"awq": 8 + 3 + 3 + 2 * 3, "awq_symmetric": 4 + 3 + 2 * 3}[name]
    ids, want = expected(name)
    assert (model.prompt_logits(ids) - want).norm() < 0.03 * want.norm()


@pytest.mark.parametrize("name", FORMS)
def test_ranks_read_their_shares(name):
    read_by_ranks(opened(ROOT / name))


def test_what_a_user_hears():
    (line,) = opened(AWQ).notes
    assert "rounded to bfloat16" in line and "2^-9" in line


@pytest.mark.parametrize("zero_point", [True, False])
@pytest.mark.parametrize("group", [-1, 32, 64, 128, 16])
def test_groups_and_zero_points(group, zero_point, tmp_path):
    make = torch.Generator().manual_seed(0)
    tensors, want = tensors_of_fixture("awq"), {}
    for stem in [n.removesuffix("qweight") for n in tensors if n.endswith("qweight")]:
        k, n = tensors[f"{stem}qweight"].shape[0], 8 * tensors[f"{stem}qweight"].shape[1]
        count = 1 if group == -1 else k // group
        codes = torch.randint(0, 16, (k, n), generator=make)
        zeros = torch.randint(0, 16, (count, n), generator=make)
        if not zero_point:
            zeros.fill_(8)
        scales = (torch.rand(count, n, generator=make) + 0.1).half()
        scales[:, ::2].neg_()  # as AutoRound writes about half of them
        tensors |= {f"{stem}qweight": pack(codes), f"{stem}qzeros": pack(zeros)}
        tensors[f"{stem}scales"] = scales
        zeros, scales = (t.repeat_interleave(k // count, 0) for t in (zeros, scales.float()))
        want[f"{stem}weight"] = ((codes - zeros) * scales).t()
    config = config_of("awq")
    config["quantization_config"] |= {"group_size": group, "zero_point": zero_point}
    source = opened(rewritten(tmp_path, tensors, config))
    got = {name: data for name, _, data in source.tensors(torch.float32)}
    for name, data in want.items():
        torch.testing.assert_close(values(got[name]), data)
    size = {-1: 128}.get(group, group)
    kept = "bf16" if size == 16 else int4_format(size, zeros=zero_point).name
    assert source.held(f"{Q}weight").name == kept


def test_a_record_of_its_own_file(tmp_path):
    """As the library wrote it before config.json had it."""
    ids, want = expected("awq")
    config, tensors = config_of("awq"), tensors_of_fixture("awq")
    del config["quantization_config"]
    record = {"zero_point": True, "q_group_size": 64, "w_bit": 4, "version": "GEMM"}
    folder = rewritten(tmp_path, tensors, config, quant_config=record)
    got = Llama4.from_pretrained(folder, weights="bf16").prompt_logits(ids)
    assert (got - want).abs().max() <= 1e-4


@pytest.mark.parametrize(
    "load", [Llama4.from_pretrained, lambda folder: Llama4.from_checkpoint(opened(folder))]
)
def test_warnings_are_of_the_line_that_loads(load):
    with pytest.warns(UserWarning, match="scales are rounded to bfloat16") as seen:
        load(ROOT / "awq")
    assert {warning.filename for warning in seen} == {__file__}


REFUSED = {
    "3 bits": (say(bits=3), "AWQ in 3 bits of version 'gemm' cannot be read.*l4k quantize"),
    "gemv": (say(version="gemv"), "AWQ in 4 bits of version 'gemv'"),
    "llm-awq": (say(backend="llm-awq"), "AWQ in 4 bits of version 'llm-awq'"),
    "no group": (say(group_size=None), "q_group_size is missing"),
    "a group of 0": (say(group_size=0), "expected group_size to be -1 or above 0, got 0"),
    "another group": (say(group_size=128), r"qzeros to be \[1, 16\], got \[2, 16\]"),
    "zero points all the same": (say(zero_point=False), "qzeros: expected zero points of 8 alone"),
    "no scales": (drop(f"{Q}scales"), "missing.*q_proj.scales"),
    "no zeros": (drop(f"{Q}qzeros"), "missing.*q_proj.qzeros"),
    "GPTQ's words": (
        put(f"{Q}qweight", lambda t: t.reshape(16, 128)),
        r"qweight to be \[128, 16\], got \[16, 128\]",
    ),
    "scales across": (put(f"{Q}scales", torch.t), r"scales to be \[2, 128\], got \[128, 2\]"),
    "words of another type": (put(f"{Q}qweight", torch.Tensor.float), "one of I32, got F32"),
    "infinite": (
        put(f"{Q}scales", first(torch.inf)),
        "scales: expected finite scales other than 0",
    ),
    "zero": (put(f"{Q}scales", first(0)), "scales: expected finite scales other than 0"),
    "weights beside": (
        lambda tensors, record: tensors.update({f"{Q}weight": torch.ones(128, 128)}),
        "1 tensors are unexpected by config.json: .*q_proj.weight",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what, tmp_path):
    change, message = REFUSED[what]
    tensors, config = tensors_of_fixture("awq"), config_of("awq")
    change(tensors, config["quantization_config"])
    folder = rewritten(tmp_path, tensors, config)
    with pytest.raises(ValueError, match=message) as refusal:
        Llama4.from_pretrained(folder)
    assert "\n" not in str(refusal.value) and str(folder) in str(refusal.value)
