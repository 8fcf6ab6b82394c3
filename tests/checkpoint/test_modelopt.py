"""Checkpoints of ModelOpt: FP8 and NVFP4, as the library exports them and as it used to."""

import pytest
import torch

from l4kernels import Llama4
from l4kernels.checkpoint.formats.nvfp4 import dequantised
from tests.support.checkpoints import unfused
from tests.support.fixtures import (
    ROOT,
    config_of,
    expected,
    held,
    opened,
    read_by_ranks,
    rewritten,
    tensors_of_fixture,
    values,
)

FP8, NVFP4 = "modelopt_fp8", "modelopt_nvfp4"
BOTH = [FP8, NVFP4]
EXPERTS = "model.layers.1.feed_forward.experts."
GATE = "model.layers.0.feed_forward.gate_proj."
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def scale_of(name):
    return f"{name}{'' if name.endswith('.weight') else '_weight'}_scale"


def unfused_scales(tensors):
    """Experts one by one, with scales of their own: what newer exports have."""
    fused = {n: t for n, t in tensors.items() if n.startswith(EXPERTS)}
    result = unfused({n: t for n, t in tensors.items() if n not in fused})
    for kind, names in (("gate_up", ("gate", "up")), ("down", ("down",))):
        parts = {"weight": fused[f"{EXPERTS}{kind}_proj"]}
        for side in ("weight_scale", "weight_scale_2", "input_scale"):
            if f"{EXPERTS}{kind}_proj_{side}" in fused:
                parts[side] = fused[f"{EXPERTS}{kind}_proj_{side}"]
        for side, data in parts.items():
            for expert in range(2):
                own = data[expert].t().chunk(len(names)) if data.dim() == 3 else [data] * 2
                for name, rows in zip(names, own, strict=False):
                    result[f"{EXPERTS}{expert}.{name}_proj.{side}"] = rows.clone()
    return result


@pytest.mark.parametrize("name", BOTH)
def test_logits_are_those_of_the_library(name):
    ids, want = expected(name)
    got = Llama4.from_pretrained(ROOT / name, weights="bf16").prompt_logits(ids)
    assert (got - want).abs().max() <= 1e-4


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("change", ["experts one by one", "its own file", "without the file"])
def test_older_and_newer_exports(name, change, tmp_path):
    ids, want = expected(name)
    config, tensors, others = config_of(name), tensors_of_fixture(name), {}
    if change == "experts one by one":
        tensors = unfused_scales(tensors)
    if change == "its own file":  # before config.json said it
        del config["quantization_config"]
        algorithm = {FP8: "FP8", NVFP4: "NVFP4"}[name]
        others = {"hf_quant_config": {"quantization": {"quant_algo": algorithm}}}
    folder = rewritten(tmp_path, tensors, config, **others)
    got = Llama4.from_pretrained(folder, weights="bf16").prompt_logits(ids)
    assert (got - want).abs().max() <= 1e-4


def test_fp8_codes_stay_as_they_are():
    model, source = Llama4.from_pretrained(ROOT / FP8), opened(ROOT / FP8)
    tensors, seen = tensors_of_fixture(FP8), 0
    for name, slot in source.slots.items():
        if scale_of(name) not in tensors:
            continue
        for expert in range(2) if slot.transposed else (None,):
            stored = tensors[name] if expert is None else tensors[name][expert].t()
            codes = held(model, slot, "weight", expert).view(torch.uint8)
            assert torch.equal(codes, stored.view(torch.uint8)), name
            assert (held(model, slot, "scale", expert) == tensors[scale_of(name)]).all(), name
            seen += 1
    assert seen == 8 + 3 + 3 + 2 * 2
    assert model.lm_head.form.name == "bf16" and model.layers[1].feed_forward.router.name == "bf16"


def e2m1(code):
    sign, exponent, mantissa = code >> 3, code >> 1 & 3, code & 1
    size = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2 ** (exponent - 1)
    return -size if sign else size


def test_nvfp4_by_its_definition():
    packed = torch.randint(0, 256, (3, 16), dtype=torch.uint8)
    scales = torch.tensor([[0.5, 448], [0, 1], [2**-9, 3]]).to(torch.float8_e4m3fn)
    got = dequantised(packed, scales, torch.tensor(0.25))
    for row in range(3):
        for k in range(32):
            code = int(packed[row, k // 2]) >> (4 * (k % 2)) & 15
            assert got[row, k] == e2m1(code) * scales[row, k // 16].float() * 0.25


def test_nvfp4_of_experts():
    """The exporter transposes them: a byte has two neighbours along K, at [E, K / 2, n]."""
    tensors = tensors_of_fixture(NVFP4)
    name = f"{EXPERTS}down_proj"
    (got,) = (t for n, e, t in opened(ROOT / NVFP4).tensors(torch.float32) if (n, e) == (name, 1))
    for row, k in ((0, 0), (5, 1), (100, 77), (127, 127)):
        code = int(tensors[name][1, k // 2, row]) >> (4 * (k % 2)) & 15
        scale = tensors[f"{name}_weight_scale"][1, k // 16, row].float()
        want = e2m1(code) * (scale * tensors[f"{name}_weight_scale_2"])
        assert got[row, k] == want


@pytest.mark.parametrize("weights, bound", [("fp8", 0.2), ("int4", 0.4)])
def test_nvfp4_is_quantised_again(weights, bound):
    ids, want = expected(NVFP4)
    model = Llama4.from_pretrained(ROOT / NVFP4, weights=weights)
    assert model.layers[1].feed_forward.down_proj.name == weights
    assert (model.prompt_logits(ids) - want).norm() < bound * want.norm()


SHAPES = {  # of scales of gate and up of two experts, and what of them a row of expert 1 has
    "all": ((), lambda s, row: s),
    "one": ((1,), lambda s, row: s[0]),
    "experts": ((2,), lambda s, row: s[1]),
    "experts in three": ((2, 1, 1), lambda s, row: s[1, 0, 0]),
    "outputs": ((2, 256), lambda s, row: s[1, row]),
    "outputs across": ((2, 1, 256), lambda s, row: s[1, 0, row]),
    "outputs along": ((2, 256, 1), lambda s, row: s[1, row, 0]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_scales_of_stacks(shape, tmp_path):
    tensors, name = tensors_of_fixture(FP8), f"{EXPERTS}gate_up_proj"
    size, of = SHAPES[shape]
    scale = torch.rand(size) + 0.5
    folder = rewritten(tmp_path, {**tensors, scale_of(name): scale}, config_of(FP8))
    source = opened(folder)
    got = held(Llama4.from_pretrained(folder), source.slots[name], "scale", 1)
    assert torch.equal(got, torch.stack([of(scale, row) for row in range(256)]))
    read_by_ranks(source)


@pytest.mark.parametrize("shape", [(128,), (128, 1)])
def test_scales_of_outputs(shape, tmp_path):
    scale = torch.rand(shape) + 0.5
    tensors = {**tensors_of_fixture(FP8), f"{GATE}weight_scale": scale}
    config = config_of(FP8)
    config["quantization_config"]["quant_algo"] = "FP8_PER_CHANNEL_PER_TOKEN"
    folder = rewritten(tmp_path, tensors, config)
    source = opened(folder)
    got = held(Llama4.from_pretrained(folder), source.slots[f"{GATE}weight"], "scale")
    assert torch.equal(got, scale.flatten())
    read_by_ranks(source)


@pytest.mark.parametrize("shape", [(1,), (2,), (2, 1, 1)])
def test_whole_scales_of_nvfp4_stacks(shape, tmp_path):
    tensors, name = tensors_of_fixture(NVFP4), f"{EXPERTS}down_proj"
    scale = torch.rand(shape) + 0.5
    before = tensors[f"{name}_weight_scale_2"]
    folder = rewritten(tmp_path, {**tensors, f"{name}_weight_scale_2": scale}, config_of(NVFP4))
    old, new = (
        {e: values(t) for n, e, t in opened(f).tensors(torch.float32) if n == name}
        for f in (ROOT / NVFP4, folder)
    )
    for expert in range(2):
        torch.testing.assert_close(
            new[expert], old[expert] * (scale.flatten()[expert % scale.numel()] / before)
        )


@pytest.mark.parametrize("name", BOTH)
def test_ranks_read_their_shares(name):
    read_by_ranks(opened(ROOT / name))


def test_kv_scales_are_those_of_the_file():
    tensors, got = tensors_of_fixture(FP8), opened(ROOT / FP8).kv_scales
    attention = "model.layers.{}.self_attn.{}_proj.{}_scale"
    want = {
        layer: tuple(tensors[attention.format(layer, kind, kind)].item() for kind in "kv")
        for layer in range(2)
    }
    assert got == want and len({*want[0], *want[1]}) == 4
    assert Llama4.from_pretrained(ROOT / FP8).kv_scales == want
    assert opened(ROOT / NVFP4).kv_scales == {}


def test_what_a_user_hears():
    (line,) = opened(ROOT / FP8).notes
    assert "input_scale" in line and "per token" in line
    (line,) = opened(ROOT / NVFP4).notes
    assert "16 weights are stored in NVFP4 and dequantised" in line and "--weights fp8" in line


def test_scales_of_other_caches_are_not_used(tmp_path):
    config = config_of(FP8)
    config["quantization_config"]["kv_cache_scheme"] = "NVFP4"
    source = opened(rewritten(tmp_path, tensors_of_fixture(FP8), config))
    assert source.kv_scales == {}
    assert source.notes[-1] == "scales of a KV cache in 'NVFP4' are not used"


def test_scales_of_the_vision_model_are_not_read(tmp_path):
    """The exporter writes them for its attention, too; a text model passes over all of it."""
    tensors = tensors_of_fixture(FP8)
    for name in (K, V):
        tensors[f"vision_model.{name}"] = torch.full((), torch.nan)
    source = opened(rewritten(tmp_path, tensors, config_of(FP8)))
    assert source.kv_scales == opened(ROOT / FP8).kv_scales


def test_layers_without_scales(tmp_path):
    tensors = tensors_of_fixture(FP8)
    drop(K, V)(tensors, None)
    source = opened(rewritten(tmp_path, tensors, config_of(FP8)))
    assert source.kv_scales.keys() == {0} and "1 layers have no scales" in source.notes[-1]


K, V = "model.layers.1.self_attn.k_proj.k_scale", "model.layers.1.self_attn.v_proj.v_scale"
STACK = f"{EXPERTS}down_proj"


def algorithm(name):
    return lambda tensors, record: record.update(quant_algo=name)


def put(name, data):
    return lambda tensors, record: tensors.update({name: data(tensors.get(name))})


def drop(*names):
    return lambda tensors, record: [tensors.pop(name) for name in names]


def first_code(byte):
    def change(data):
        data.view(torch.uint8)[0, 0] = byte
        return data

    return change


REFUSED = {
    "scale missing": (FP8, drop(f"{GATE}weight_scale"), r"missing.*gate_proj.weight_scale"),
    "weight missing": (FP8, drop(f"{GATE}weight"), r"missing.*gate_proj.weight"),
    "scale of another shape": (
        FP8,
        put(f"{GATE}weight_scale", lambda t: t.repeat(3)),
        r"expected \S*gate_proj.weight_scale to be \[\], got \[3\]",
    ),
    "scale of another type": (
        FP8,
        put(f"{GATE}weight_scale", lambda t: t.int()),
        r"gate_proj.weight_scale to be one of .*, got I32",
    ),
    "NaN": (FP8, put(f"{GATE}weight_scale", lambda t: t * torch.nan), "gate_proj.weight_scale"),
    "zero": (FP8, put(f"{GATE}weight_scale", torch.zeros_like), "gate_proj.weight_scale.* above 0"),
    "negative": (FP8, put(f"{STACK}_weight_scale", torch.neg), "down_proj_weight_scale.* above 0"),
    "code NaN": (FP8, put(f"{GATE}weight", first_code(0x7F)), "gate_proj.weight has 1 codes or"),
    "unknown": (FP8, algorithm("W8A8_SQ_PER_CHANNEL"), "quant_algo 'W8A8_SQ_.* supported: FP8, "),
    "no name": (FP8, algorithm(7), "quant_algo 7 cannot be read"),
    "another algorithm": (FP8, algorithm("NVFP4"), r"proj.weight: expected U8 or floats.*got F8_"),
    "a norm in bytes": (
        NVFP4,
        put("model.norm.weight", lambda t: t.to(torch.uint8)),
        "norm.weight to be one of BF16, .*got U8",
    ),
    "nothing quantised": (
        FP8,
        lambda tensors, record: [
            tensors.pop(n) if n.endswith("_scale") else tensors.update({n: t.bfloat16()})
            for n, t in [*tensors.items()]
        ],
        "says quant_algo FP8, but no weight is of type F8_E4M3",
    ),
    "k alone": (FP8, drop(V), "holds .*k_scale, but no v_scale of that layer"),
    "a scale for each head": (FP8, put(K, lambda t: t.repeat(2)), "k_scale to be one number"),
    "k is NaN": (FP8, put(K, lambda t: t * torch.nan), "k_scale to be finite and above 0, got nan"),
    "v is zero": (FP8, put(V, torch.zeros_like), "v_scale to be finite and above 0, got 0.0"),
    "a layer too many": (
        FP8,
        put(K.replace(".1.", ".2."), lambda t: torch.ones(())),
        "1 tensors are unexpected",
    ),
    "NVFP4 blocks missing": (NVFP4, drop(f"{GATE}weight_scale"), "missing.*weight_scale"),
    "NVFP4 whole scale missing": (NVFP4, drop(f"{STACK}_weight_scale_2"), "missing.*scale_2"),
    "NVFP4 blocks of 32": (
        NVFP4,
        put(f"{GATE}weight_scale", lambda t: t[:, ::2]),
        r"gate_proj.weight_scale to be \[128, 8\], got \[128, 4\]",
    ),
    "NVFP4 negative": (NVFP4, put(f"{GATE}weight_scale", first_code(0xB8)), "not negative"),
    "NVFP4 NaN": (
        NVFP4,
        put(f"{STACK}_weight_scale", lambda t: first_code(0x7F)(t[0])[None].repeat(2, 1, 1)),
        "scales that are numbers",
    ),
    "NVFP4 whole scale zero": (NVFP4, put(f"{GATE}weight_scale_2", torch.zeros_like), "above 0"),
    "NVFP4 said to be FP8": (NVFP4, algorithm("FP8"), "expected F8_E4M3 or floats.*got U8"),
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
