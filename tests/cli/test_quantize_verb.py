"""`l4k quantize`: what it says, what it refuses, and its exit codes."""

import json
import math

import pytest

from l4kernels.checkpoint.formats import open_checkpoint
from l4kernels.cli import main, quantize
from l4kernels.cli.quantize import STATISTICS, parse_bytes
from l4kernels.demo import CHECKPOINT, held_out_chapters
from l4kernels.engine.perplexity import Score
from l4kernels.model.config import Llama4Config


@pytest.fixture
def l4k(capsys):
    """Runs the command in this process: (exit code, standard output, standard error)."""

    def run(*arguments) -> tuple[int, str, str]:
        code = main(["quantize", *map(str, arguments), "--device", "cpu"])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(held_out_chapters()[0][:600])
    return file


def test_it_says_what_was_written(l4k, tmp_path):
    code, out, err = l4k(CHECKPOINT, tmp_path / "out", "--format", "int4", "--keep-attention")
    assert (code, err) == (0, "")
    assert "7.5 -> 5.5 MB (72.6%)" in out
    assert "72 matrices, 1,376,256 weights" in out
    assert "attention, lm_head, embedding, router, norms, vision" in out


def test_perplexity_of_both_is_compared(l4k, tmp_path, text):
    options = "--format", "fp8", "--verify", "--text", text, "--json", "--shard-size", "1MB"
    code, out, err = l4k(CHECKPOINT, tmp_path / "out", *options)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["matrices"] == 104 and found["weights"] == 2_949_120
    assert len([*(tmp_path / "out").glob("*.safetensors")]) == 5
    scores = found["perplexity"]
    assert 0 < abs(scores["result"] / scores["source"] - 1) < 0.05
    nats = math.log(scores["source"]) * scores["tokens"]
    bits = nats / math.log(2) / len(text.read_bytes())
    assert scores["source_bits_per_byte"] == pytest.approx(bits)


def test_a_perplexity_that_is_not_finite_is_a_failure(l4k, tmp_path, text, monkeypatch):
    scores = iter([Score(30.0, 10, 40), Score(math.nan, 10, 40)])
    monkeypatch.setattr(quantize, "score", lambda *arguments: next(scores))
    options = "--format", "int4", "--verify", "--text", text
    code, out, _ = l4k(CHECKPOINT, tmp_path / "out", *options)
    assert code == 1 and "perplexity 20.0855 -> nan" in out


def test_calibration_adds_scales_and_statistics(l4k, tmp_path, text):
    out = tmp_path / "out"
    code, said, err = l4k(CHECKPOINT, out, "--format", "int4", "--calibrate", text)
    assert (code, err) == (0, "") and "of 8 layers, from " in said
    found = json.loads((out / STATISTICS).read_text())
    assert "No kernel reads them" in found["note"]
    assert found["absmax"]["layers.7.feed_forward.down_proj"] > 0
    source = open_checkpoint(out, Llama4Config.from_pretrained(out))
    assert sorted(source.kv_scales) == [*range(8)]
    assert all(0 < k < 1 and 0 < v < 1 for k, v in source.kv_scales.values())


@pytest.mark.parametrize(
    "options, message",
    [
        (("--format", "int3"), "expected format to be one of fp8, int4, int4+fp8attn, got 'int3'"),
        (("--format", "fp8", "--shard-size", "5 G"), "expected a size such as 5GB or 500MB"),
        (("--format", "fp8", "--text", "t"), "--text is what --verify measures on"),
        (("--format", "fp8", "--calibrate", "gone.txt"), "gone.txt"),
    ],
)
def test_bad_options_are_one_line(options, message, l4k, tmp_path):
    code, out, err = l4k(CHECKPOINT, tmp_path / "out", *options)
    assert code == 2 and message in err and err.count("\n") == 1 and not out
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("option", ["--calibrate", "--text"])
def test_what_would_fail_later_is_refused_before_anything_is_written(option, l4k, tmp_path):
    (tmp_path / "empty").touch()
    command = CHECKPOINT, tmp_path / "out", "--format", "fp8", "--verify"
    for file, message in {
        "empty": "empty: is empty; expected a text",
        "gone": "gone: not found; expected a text file",
    }.items():
        code, out, err = l4k(*command, option, tmp_path / file)
        assert (code, out, err) == (2, "", f"l4k: {tmp_path}/{message}\n")
    assert main(["quantize", *map(str, command), "--device", "tpu"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_verify_needs_a_text_for_other_models(l4k, tmp_path):
    code, _, err = l4k(tmp_path, tmp_path / "out", "--format", "fp8", "--verify")
    assert code == 2 and "--verify needs a text" in err
    code, _, err = l4k(tmp_path / "gone", tmp_path / "out", "--format", "fp8")
    assert code == 2 and "no such checkpoint folder" in err


def test_sizes_are_read_as_they_are_written():
    assert parse_bytes("0.5GB") == 500_000_000 and parse_bytes("7") == 7
    for wrong in ("", "GB", "0", "-1GB", "1e9", "1.2.3MB", "5GiB", "9" * 13):
        with pytest.raises(ValueError, match="expected a size"):
            parse_bytes(wrong)
