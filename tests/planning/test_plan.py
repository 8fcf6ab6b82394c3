"""The planner against the published tables: parameters, sizes, KV, fits, bytes per step."""

import json
import os
import time
from dataclasses import replace

import pytest
import torch

from l4kernels import Llama4
from l4kernels.cli import main
from l4kernels.demo import CHECKPOINT
from l4kernels.inputs.fields import ConfigError
from l4kernels.layers import linear
from l4kernels.model.config import Llama4Config
from l4kernels.planning import plan as planner
from l4kernels.planning.plan import FORMATS, PlanError, plan
from tests.support import tiny
from tools.nvcc import ROOT

SCOUT, MAVERICK, BEHEMOTH = map(Llama4Config.preset, ("scout", "maverick", "behemoth"))
LENGTHS = (8_192, 131_072, 1_048_576, 10_485_760)

PARAMS = {
    "embedding": (1_034_485_760, 1_034_485_760),
    "lm_head": (1_034_485_760, 1_034_485_760),
    "attention": (3_019_898_880, 3_019_898_880),
    "routed": (96_636_764_160, 386_547_056_640),
    "shared": (6_039_797_760, 3_019_898_880),
    "dense": (0, 6_039_797_760),
    "router": (3_932_160, 15_728_640),
    "norms": (496_640, 496_640),
    "vision": (850_960_896, 850_960_896),
    "projector": (20_971_520, 20_971_520),
}


@pytest.mark.parametrize("index, config", [(0, SCOUT), (1, MAVERICK)])
def test_parameter_counts(index, config):
    counts = {name: block.params for name, block in planner.blocks(config).items()}
    assert counts == {name: pair[index] for name, pair in PARAMS.items()}
    assert sum(counts.values()) == (108_641_793_536, 401_583_781_376)[index]
    assert planner.active_params(config) / 1e9 == pytest.approx((16.138, 16.150)[index], abs=5e-4)


def test_behemoth_is_an_estimate_of_the_published_totals():
    assert BEHEMOTH.estimate
    counts = planner.blocks(BEHEMOTH)
    active = planner.active_params(BEHEMOTH) + counts["embedding"].params
    assert active / 1e9 == pytest.approx(287.2, abs=0.1)
    assert sum(b.params for b in counts.values()) / 1e12 == pytest.approx(2.01, abs=0.01)


def test_parameters_equal_a_built_model():
    """The same sum for the tiny model, counted on transformers' own modules."""
    import torch
    from transformers import Llama4Config as HfConfig
    from transformers import Llama4ForConditionalGeneration

    text = {k: v for k, v in tiny.TEXT.items() if k != "model_type"}
    with torch.device("meta"):
        model = Llama4ForConditionalGeneration(
            HfConfig(text_config=text, vision_config=tiny.VISION)
        )
    ours = planner.blocks(Llama4Config.from_dict(tiny.CONFIG))
    assert sum(b.params for b in ours.values()) == sum(p.numel() for p in model.parameters())


# GB, scales included where the source had them: hence 0.1 % or half a unit of the last digit.
SIZES = {
    "bf16": (217.28, 803.17, 4030),
    "fp8-experts": (120.7, 416.9, 2190),
    "fp8-ffn": (114.6, 407.6, 2070),
    "fp8-bf16head": (111.6, 404.5, 2020),
    "int4-ffn": (64.9, 215.9, 1120),
    "int4-bf16head": (60.4, 211.5, 1050),
    "int4-meta": (66.5, 231.0, None),
    "int4": (59.4, None, None),
    "int4+fp8attn": (60.8, None, None),
}


@pytest.mark.parametrize("name", SIZES)
def test_weight_sizes(name):
    for config, want in zip((SCOUT, MAVERICK, BEHEMOTH), SIZES[name], strict=True):
        if want is not None:
            got = planner.weight_bytes(config, FORMATS[name]) / 1e9
            tolerance = 0.005 if config is BEHEMOTH else 0.001
            assert got == pytest.approx(want, rel=tolerance, abs=0.05)


def test_sizes_in_gibibytes():
    official = planner.weight_bytes(MAVERICK, FORMATS["fp8-experts"])
    assert official / 2**30 == pytest.approx(388.3, abs=0.06)
    assert planner.weight_bytes(SCOUT, FORMATS["bf16"]) / 2**30 == pytest.approx(202.4, abs=0.06)


@pytest.mark.parametrize(
    "context, bf16, fp8",
    zip(LENGTHS, (1.611, 7.650, 52.748, 516.604), (0.805, 3.825, 26.374, 258.302), strict=True),
)
def test_kv_cache(context, bf16, fp8):
    for config in (SCOUT, MAVERICK):
        assert planner.kv_bytes(config, context, 2) / 1e9 == pytest.approx(bf16, abs=5e-4)
        assert planner.kv_bytes(config, context, 1) / 1e9 == pytest.approx(fp8, abs=5e-4)


def test_kv_cache_grows_by_196608_bytes_in_the_first_chunk_and_49152_after():
    def growth(n):
        return planner.kv_bytes(SCOUT, n + 1) - planner.kv_bytes(SCOUT, n)

    assert [growth(n) for n in (0, 8191, 8192, 100_000)] == [196_608, 196_608, 49_152, 49_152]


def test_kv_reads_are_a_sawtooth():
    token = 4096
    assert planner.kv_read_bytes(SCOUT, 8192) == 48 * token * 8192
    assert planner.kv_read_bytes(SCOUT, 8193) == token * (12 * 8193 + 36)
    reads = [planner.kv_read_bytes(SCOUT, n) / 1e9 for n in (1024, 8192, 131_072, 1_048_576)]
    assert reads == pytest.approx([0.201, 1.611, 7.65, 52.7], rel=2e-3)


STEPS = {  # GB read by one decode step at batch 1, 8, 32, 128
    ("scout", "bf16"): (32.28, 98.1, 189.0, 213.4),
    ("scout", "fp8-bf16head"): (17.18, 50.1, 95.5, 107.8),
    ("scout", "fp8-ffn"): (20.20, 53.1, 98.5, 110.8),
    ("scout", "int4-bf16head"): (9.86, 26.8, 50.3, 56.6),
    ("scout", "int4-ffn"): (14.35, 31.3, 54.7, 61.1),
    ("scout", "int4"): (8.83, 25.8, 49.2, 55.5),
    ("maverick", "bf16"): (32.30, 73.3, 197.9, 516.1),
    ("maverick", "fp8-bf16head"): (17.20, 37.7, 100.0, 259.1),
    ("maverick", "fp8-experts"): (29.28, 49.8, 112.1, 271.2),
    ("maverick", "int4-bf16head"): (9.89, 20.5, 52.6, 134.6),
    ("maverick", "int4-ffn"): (14.37, 24.9, 57.1, 139.1),
}
DECISIONS = {("scout", "fp8"): 16.1, ("scout", "int4+fp8attn"): 10.29}


@pytest.mark.parametrize("model, name", STEPS)
def test_bytes_per_decode_step(model, name):
    config = Llama4Config.preset(model)
    got = [planner.weight_read_bytes(config, FORMATS[name], b) / 1e9 for b in (1, 8, 32, 128)]
    assert got == pytest.approx(STEPS[model, name], rel=1.2e-3, abs=0.051)


@pytest.mark.parametrize("model, name", DECISIONS)
def test_bytes_per_token_of_our_formats(model, name):
    got = planner.weight_read_bytes(Llama4Config.preset(model), FORMATS[name]) / 1e9
    assert got == pytest.approx(DECISIONS[model, name], abs=0.06)


FLOORS = {  # ms per step at batch 1 for H100 and H200, weights alone
    ("scout", "bf16"): (9.63, 6.72),
    ("scout", "fp8-bf16head"): (5.13, 3.58),
    ("scout", "int4"): (2.64, 1.84),
    ("maverick", "fp8-experts"): (8.74, 6.10),
}


@pytest.mark.parametrize("model, name", FLOORS)
def test_decode_floor(model, name):
    config = Llama4Config.preset(model)
    for gpu, want in zip(("h100", "h200"), FLOORS[model, name], strict=True):
        p = plan(config, name, gpu, context=1, kv_dtype="bf16")
        assert p.step_floor_ms == pytest.approx(want, abs=0.011)
        assert p.tokens_per_second_ceiling == pytest.approx(1e3 / p.step_floor_ms)


FITS = [  # model, format, GPU, KV dtype, does it fit, KV room in millions of tokens
    ("scout", "bf16", "h100", "bf16", False, None),
    ("scout", "bf16", "h200", "bf16", False, None),
    ("scout", "bf16", "2xh200", "bf16", True, None),
    ("scout", "fp8-ffn", "h100", "bf16", False, None),
    ("scout", "fp8-ffn", "2xh100", "bf16", True, None),
    ("scout", "fp8-ffn", "h200", "bf16", True, 0.61),
    ("scout", "fp8-ffn", "h200", "fp8", True, 1.25),
    ("scout", "int4-ffn", "h100", "bf16", True, 0.30),
    ("scout", "int4-ffn", "h100", "fp8", True, 0.63),
    ("scout", "int4-ffn", "h200", "bf16", True, 1.63),
    ("scout", "int4-ffn", "h200", "fp8", True, 3.28),
    ("scout", "int4-ffn", "8xh100", "bf16", True, 10.49),
    ("scout", "bf16", "8xh100", "fp8", True, 10.49),
    ("maverick", "bf16", "8xh100", "bf16", False, None),
    ("maverick", "bf16", "8xh200", "bf16", True, None),
    ("maverick", "fp8-experts", "h200", "bf16", False, None),
    ("maverick", "fp8-experts", "3xh200", "bf16", True, None),
    ("maverick", "fp8-experts", "8xh100", "bf16", True, None),
    ("maverick", "int4-ffn", "h200", "bf16", False, None),
    ("maverick", "int4-ffn", "2xh200", "bf16", True, None),
    ("maverick", "int4-ffn", "4xh100", "bf16", True, None),
    ("behemoth", "int4-bf16head", "8xh100", "bf16", False, None),
    ("behemoth", "int4-bf16head", "8xh200", "bf16", True, None),
]


@pytest.mark.parametrize("model, name, gpu, kv, fits, room", FITS)
def test_what_fits_where(model, name, gpu, kv, fits, room):
    config = Llama4Config.preset(model)
    p = plan(config, name, gpu, context=8192, kv_dtype=kv)
    assert p.fits == fits == (p.spare >= 0) == (p.max_context >= 8192)
    if room is not None:
        assert p.max_context / 1e6 == pytest.approx(room, abs=0.011)


def test_max_context_is_the_last_that_fits():
    p = plan(SCOUT, "int4", "h100", batch=3)
    assert plan(SCOUT, "int4", "h100", p.max_context, 3).fits
    assert not plan(SCOUT, "int4", "h100", p.max_context + 1, 3).fits


def test_maverick_fp8_on_eight_h100_leaves_231_gb_for_kv():
    p = plan(MAVERICK, "fp8-experts", "8xh100", context=1_048_576, batch=4)
    assert (p.spare + p.kv) / 1e9 == pytest.approx(231, abs=0.6)
    assert p.fits and not plan(MAVERICK, "fp8-experts", "8xh100", 1_048_576, batch=5).fits


def test_reserve_grows_with_what_it_must_hold():
    small = planner.reserve_bytes(SCOUT, planner.GPUS["h100"], 8192, 1)
    assert small == 4.5e9
    assert planner.reserve_bytes(SCOUT, planner.GPUS["h100"], 8192, 4096) > small
    # The tokens of all sequences count, up to what the cache lets into one step.
    text = replace(SCOUT, vision=None)
    one, many, more = (
        planner.activation_bytes(text, 96, batch) - batch * 8 * SCOUT.vocab_size
        for batch in (1, 64, 128)
    )
    assert many == 64 * one and more == planner.activation_bytes(text, 8192, 1) - 8 * 202_048


def test_activations_are_part_of_the_reserve():
    p = plan(SCOUT, "fp8", "2xh200", 131_072)
    assert p.activations == 2 * planner.activation_bytes(SCOUT, 131_072, 1)
    assert 0 < p.activations + 2 * planner.CONTEXT_BYTES <= p.reserve


@pytest.mark.parametrize("weights", planner.OWN_FORMATS)
def test_weights_of_a_plan_are_those_of_the_loaded_model(weights):
    model = Llama4.from_pretrained(CHECKPOINT, dtype=torch.bfloat16, weights=weights)
    loaded = sum(p.nbytes for p in model.parameters())
    planned = planner.weight_bytes(model.config, FORMATS[weights])
    # Padded beside what is planned: rows of the routers, columns of the patch embedding.
    padding = 2 * (4 * 4 * 128 + 64 * 128)
    assert loaded - padding == pytest.approx(planned, abs=1)


def test_formats_of_a_plan_are_those_of_the_model():
    assert set(planner.OWN_FORMATS) == set(linear.FORMATS)


def test_kv_dtype_follows_the_weights():
    assert plan(SCOUT, "int4", "h100").kv_dtype == "fp8"
    assert plan(SCOUT, "fp8", "h200").kv_dtype == "bf16"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"gpu": "a100"}, "unknown GPU 'a100'; known: h100, .*h200"),
        ({"gpu": "0xh100"}, "COUNTxNAME"),
        ({"gpu": "axh100"}, "COUNTxNAME"),
        ({"gpu": "²xh100"}, "COUNTxNAME"),
        ({"gpu": "9" * 5000 + "xh100"}, "COUNTxNAME"),
        ({"gpu": "xh100"}, "COUNTxNAME"),
        ({"form": "int3"}, "unknown format 'int3'; known: bf16, fp8, int4"),
        ({"kv_dtype": "int4"}, "unknown KV dtype"),
        ({"context": 0}, "expected context"),
        ({"batch": 0}, "expected batch"),
        ({"batch": 10**5000}, "expected batch in 1..65536, got a huge int"),
        ({"batch": None}, "expected batch in 1..65536, got None"),
        ({"context": "8k"}, "expected context in 1..1073741824, got '8k'"),
        ({"context": 8192.0}, "expected context in"),
        ({"gpu": None}, "unknown GPU None"),
        ({"form": ["bf16"]}, r"unknown format \['bf16'\]"),
        ({"kv_dtype": []}, r"unknown KV dtype \[\]"),
        ({"context": 10_485_761}, "beyond the model's 10485760 positions"),
    ],
)
def test_impossible_plans(options, message):
    with pytest.raises(PlanError, match=message):
        plan(SCOUT, **options)


@pytest.mark.parametrize("text, want", [("8192", 8192), ("128k", 131_072), ("10M", 10_485_760)])
def test_token_counts(text, want):
    assert planner.parse_tokens(text) == want


@pytest.mark.parametrize("text", ["", "k", "-1", "0", "1e9", "1.5k", "99999M", "٣", "9" * 5000])
def test_bad_token_counts(text):
    with pytest.raises(PlanError, match="expected a number of tokens"):
        planner.parse_tokens(text)


def test_what_cannot_run_yet():
    assert plan(SCOUT, "fp8", "h200").obstacles == plan(SCOUT, "bf16", "h100").obstacles == ()
    assert "one GPU only" in " ".join(plan(SCOUT, "fp8", "8xh100").obstacles)
    assert "w4_gemm and quantize_int4" in " ".join(plan(SCOUT, "int4", "h100").obstacles)
    assert "cannot be loaded" in " ".join(plan(SCOUT, "fp8-ffn", "h100").obstacles)


def test_formats_without_kernels_are_those_of_the_sources():
    """A kernel that is written must leave the plan's list."""
    bound = "".join(p.read_text() for p in (ROOT / "csrc" / "bindings").rglob("*.cpp"))
    for form in planner.OWN_FORMATS:
        for op in planner.WITHOUT_KERNELS.get(form, ()):
            assert op in linear.ops.OPS and f'"{op}' not in bound


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("demo", "--batch", "2"),
        ("behemoth", "--all"),
        ("maverick", "--all", "--gpu", "8xh100-pcie", "--context", "1M", "--batch", "4"),
        ("scout", "--all", "--batch", "65536"),
        ("behemoth", "--all", "--batch", "65536", "--context", "10M"),
        ("demo", "--batch", "65536", "--gpu", "4096xh100-pcie"),
    ],
)
def test_a_plan_fits_80_columns_and_says_what_it_needs(arguments, capsys):
    assert main(["plan", *arguments]) == 0
    out = capsys.readouterr().out
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 80
    assert "…" not in out
    text = " ".join(out.split())
    assert "Loading reads the source files" in text and "Not yet: " in text
    assert ("int4" in text) == ("w4_gemm" in text)


def test_a_plan_without_obstacles_names_none(capsys):
    assert main(["plan", "scout", "--gpu", "h200", "--format", "fp8"]) == 0
    assert "Not yet" not in capsys.readouterr().out


def test_a_plan_for_programs(capsys):
    assert main(["plan", "scout", "--format", "int4", "--gpu", "2xh200", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["source_bytes"] == planner.weight_bytes(SCOUT, FORMATS["bf16"])
    assert len(found["plans"][0]["obstacles"]) == 2


def test_a_folders_name_is_text(tmp_path, capsys):
    folder = tmp_path / "[red]x\x1b[2J\n"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny.CONFIG))
    assert main(["plan", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "[red]x" in out and "\x1b" not in out


def test_a_preset_wins_over_a_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "scout"):
        (tmp_path / name).mkdir()
    assert planner.find_config("demo") == Llama4Config.preset("demo")
    with pytest.raises(ValueError, match=r"demo/config\.json: not found"):
        planner.find_config("./demo")
    (tmp_path / "demo" / "config.json").write_text(json.dumps(tiny.CONFIG))
    for spelling in ("./demo", "demo/", str(tmp_path / "demo"), "demo/config.json"):
        assert planner.find_config(spelling).vocab_size == tiny.VOCAB
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="mine/config"):
        planner.find_config("mine")


@pytest.mark.parametrize("place", ["model", "model/config.json"])
@pytest.mark.parametrize("kind", ["pipe", "zeros", "itself"])
def test_a_plan_of_what_is_no_file(tmp_path, place, kind):
    file = tmp_path / place
    file.parent.mkdir(exist_ok=True)
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to({"zeros": "/dev/zero", "itself": file.name}[kind])
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"expected a regular file|cannot be read"):
        planner.find_config(str(tmp_path / "model"))
    assert time.monotonic() - started < 2


def test_models_by_name_or_folder(tmp_path):
    assert planner.find_config("Scout") == SCOUT
    (tmp_path / "config.json").write_text(json.dumps(tiny.CONFIG))
    assert planner.find_config(str(tmp_path)).vocab_size == tiny.VOCAB
    with pytest.raises(ValueError, match="expected a preset out of scout, maverick"):
        planner.find_config("llama5")
    with pytest.raises(PlanError, match="no such folder"):
        planner.find_config("./nowhere")
