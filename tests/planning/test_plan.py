"""Plans: what fits, what a step costs at the least, what cannot be planned, and how it is said."""

import json
import os
import time

import pytest

from l4kernels.cli import main
from l4kernels.inputs.fields import ConfigError
from l4kernels.layers.weights import FORMATS
from l4kernels.model.config import Llama4Config
from l4kernels.ops import OPS
from l4kernels.planning.footprint import CONTEXT_BYTES, activation_bytes, weight_bytes
from l4kernels.planning.plan import PlanError, find_config, find_format, parse_tokens, plan
from tests.support import tiny
from tools.nvcc import ROOT

SCOUT, MAVERICK = map(Llama4Config.preset, ("scout", "maverick"))


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


def test_activations_are_part_of_the_reserve():
    p = plan(SCOUT, "fp8", "2xh200", 131_072)
    assert p.activations == 2 * activation_bytes(SCOUT, 131_072, 1)
    assert 0 < p.activations + 2 * CONTEXT_BYTES <= p.reserve


def test_kv_dtype_follows_the_weights():
    assert plan(SCOUT, "int4", "h100").kv_dtype == "fp8"
    assert plan(SCOUT, "int4+fp8attn", "h100").kv_dtype == "fp8"
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
        ({"form": "int3"}, "unknown format 'int3'; known: bf16, fp8, int4, int4.fp8attn"),
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
    assert parse_tokens(text) == want


@pytest.mark.parametrize("text", ["", "k", "-1", "0", "1e9", "1.5k", "99999M", "٣", "9" * 5000])
def test_bad_token_counts(text):
    with pytest.raises(PlanError, match="expected a number of tokens"):
        parse_tokens(text)


def test_what_cannot_run_yet():
    assert all(plan(SCOUT, form, "h200").obstacles == () for form in FORMATS)
    assert "one GPU only" in " ".join(plan(SCOUT, "fp8", "8xh100").obstacles)
    assert "cannot be loaded" in " ".join(plan(SCOUT, "fp8-ffn", "h100").obstacles)


def test_every_op_has_a_kernel_or_says_why_not():
    bound = "".join(p.read_text() for p in (ROOT / "csrc" / "bindings").rglob("*.cpp"))
    for name, op in OPS.items():
        assert (f'"{name}"' in bound) != bool(op.without_kernel), name


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
    assert "Loading reads the source files" in text


def test_a_plan_without_obstacles_names_none(capsys):
    assert main(["plan", "scout", "--gpu", "h200", "--format", "fp8"]) == 0
    assert "Not yet" not in capsys.readouterr().out


def test_a_plan_for_programs(capsys):
    assert main(["plan", "scout", "--format", "int4", "--gpu", "2xh200", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["source_bytes"] == weight_bytes(SCOUT, find_format("bf16"))
    assert len(found["plans"][0]["obstacles"]) == 1


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
    assert find_config("demo") == Llama4Config.preset("demo")
    with pytest.raises(ValueError, match=r"demo/config\.json: not found"):
        find_config("./demo")
    (tmp_path / "demo" / "config.json").write_text(json.dumps(tiny.CONFIG))
    for spelling in ("./demo", "demo/", str(tmp_path / "demo"), "demo/config.json"):
        assert find_config(spelling).vocab_size == tiny.VOCAB
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="mine/config"):
        find_config("mine")


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
        find_config(str(tmp_path / "model"))
    assert time.monotonic() - started < 2


def test_models_by_name_or_folder(tmp_path):
    assert find_config("Scout") == SCOUT
    (tmp_path / "config.json").write_text(json.dumps(tiny.CONFIG))
    assert find_config(str(tmp_path)).vocab_size == tiny.VOCAB
    with pytest.raises(ValueError, match="expected a preset out of scout, maverick"):
        find_config("llama5")
    with pytest.raises(PlanError, match="no such folder"):
        find_config("./nowhere")
