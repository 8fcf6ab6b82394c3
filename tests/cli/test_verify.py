"""`l4k verify`: a whole checkpoint, and each way in which one may not be."""

import errno
import hashlib
import json
import os
import pathlib
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

from l4kernels.checkpoint.files import reader
from l4kernels.checkpoint.formats import open_checkpoint
from l4kernels.checkpoint.quantize.run import Job, quantize
from l4kernels.checkpoint.quantize.scheme import Scheme
from l4kernels.cli import main
from l4kernels.demo import CHECKPOINT
from l4kernels.model.config import Llama4Config
from tests.support import tiny

NORM = "language_model.model.norm.weight"
HEAD, EMBEDDING = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"


@pytest.fixture
def l4k(capsys):
    """Runs the command in this process: (exit code, standard output, standard error)."""

    def run(*arguments) -> tuple[int, str, str]:
        code = main(["verify", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(CHECKPOINT, tmp_path / "checkpoint")


@pytest.fixture
def verify(l4k, folder):
    """Of the folder, as JSON."""

    def run(*arguments) -> dict:
        code, out, err = l4k(folder, "--json", *arguments)
        found = json.loads(out)
        assert code == (0 if found["ok"] else 1) and err == ""
        assert found["ok"] == (found["problems"] == [])
        return found

    return run


@pytest.fixture
def change(folder):
    """Rewrites tensors of the folder."""

    def run(alter) -> None:
        tensors = load_file(folder / "model.safetensors")
        alter(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return run


def rewrite(file, alter):
    content = json.loads(file.read_text())
    alter(content)
    file.write_text(json.dumps(content))


def test_the_shipped_checkpoint_is_whole(l4k):
    code, out, err = l4k(CHECKPOINT)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "whole"
    for name in sorted(file.name for file in CHECKPOINT.iterdir()):
        digest = hashlib.sha256((CHECKPOINT / name).read_bytes()).hexdigest()
        assert f"{digest}  {name}\n" in out
    found = json.loads(l4k(CHECKPOINT, "--json")[1])
    assert found["tensors"] == 129 and found["problems"] == []
    assert found["bytes"] == sum(
        t.numel() * t.element_size() for t in load_file(CHECKPOINT / "model.safetensors").values()
    )
    assert {*found["checks"].values()} == {"ok", "not tied"}


@pytest.mark.parametrize("form", ["int4", "fp8"])
def test_a_quantised_one_is_whole_until_a_scale_is_not(form, folder, verify, change, tmp_path):
    source = open_checkpoint(CHECKPOINT, Llama4Config.from_pretrained(CHECKPOINT))
    shutil.rmtree(folder)
    quantize(Job(source, Scheme.of(form)), folder)
    assert verify()["ok"]
    name = "language_model.model.layers.4.self_attn.o_proj.weight_scale"
    change(lambda tensors: tensors[name][3].fill_(0))
    (problem,) = verify()["problems"]
    assert "layers.4.self_attn.o_proj" in problem and "model.safetensors" in problem


def test_every_tensor_that_is_not_finite_is_named(verify, change):
    names = [f"language_model.model.layers.{n}.self_attn.q_proj.weight" for n in (2, 5)]
    stack = "language_model.model.layers.3.feed_forward.experts.down_proj"

    def break_some(tensors):
        tensors[names[0]][7, 7] = torch.nan
        tensors[names[1]][0, 0] = torch.inf
        tensors[stack][2:] = torch.nan

    change(break_some)
    found = verify()
    assert len(found["problems"]) == 3 and found["checks"]["tensors"] == "3 problems"
    for name in (*names, stack):
        assert len([p for p in found["problems"] if name in p]) == 1
    assert found["bytes"] == json.loads(json.dumps(found))["bytes"] > 7_000_000, "all were read"


def test_thousands_of_broken_tensors_are_counted(verify, change, monkeypatch):
    change(lambda tensors: [t.fill_(torch.nan) for t in tensors.values()])
    open_file, opened = reader.safe_open, []

    def counted(file, **options):
        opened.append(file)
        return open_file(file, **options)

    monkeypatch.setattr(reader, "safe_open", counted)
    problems = verify()["problems"]
    assert len(problems) == 21 and problems[-1] == "109 more tensors cannot be used"
    assert len(opened) < 5, "and do not begin anew after each"


def test_structure(folder, verify, change):
    change(lambda tensors: tensors.update({NORM: torch.ones(64)}))
    found = verify()
    assert f"expected {NORM} to be [128]" in found["problems"][0]
    assert found["checks"]["tensors"] == "not looked at" and found["checks"]["tokenizer"] == "ok"
    os.truncate(folder / "model.safetensors", 5000)
    assert "not a complete safetensors file" in verify()["problems"][0]
    (folder / "model.safetensors").unlink()
    assert "found neither model.safetensors nor" in verify()["problems"][0]
    (folder / "config.json").unlink()
    found = verify()
    assert "config.json: not found" in found["problems"][0]
    assert found["checks"]["config"] == "1 problem" and "tokenizer.json" in found["files"]


def test_tied_weights(folder, verify, change):
    for part in (None, "text_config"):
        rewrite(
            folder / "config.json",
            lambda c, part=part: (c[part] if part else c).update(tie_word_embeddings=True),
        )
    (problem,) = verify()["problems"]
    assert f"{HEAD} differs from {EMBEDDING}" in problem
    change(lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].clone()}))
    assert verify()["checks"]["tied weights"] == "ok"
    change(lambda tensors: tensors.pop(HEAD))
    assert verify()["checks"]["tied weights"] == "ok"


@pytest.mark.parametrize(
    "part, key, value, message",
    [
        ("text_config", "bos_token_id", 1025, "texts begin with 1024; expected the bos_token_id"),
        ("text_config", "pad_token_id", 5, "pad_token_id 5 of config.json is no special token"),
        (None, "image_token_index", 1041, "<|patch|> is 1042; expected the image_token_index"),
        (None, "eoi_token_index", 1037, "<|image_end|> is 1038; expected the eoi_token_index"),
    ],
)
def test_ids_fit_together(part, key, value, message, folder, verify):
    rewrite(folder / "config.json", lambda c: (c[part] if part else c).update({key: value}))
    rewrite(folder / "generation_config.json", lambda c: c.pop(key, None))
    (problem,) = verify()["problems"]
    assert message in problem


def test_the_vocabulary_fits(tmp_path, l4k):
    tiny.write_checkpoint(tmp_path)
    assert l4k(tmp_path)[0] == 0
    rewrite(tmp_path / "config.json", lambda c: c["text_config"].update(vocab_size=300))
    code, out, _ = l4k(tmp_path)
    assert code == 1 and "ids up to 304; expected them below the vocab_size 300" in out


def test_tokenizer_and_template(folder, verify):
    (folder / "chat_template.jinja").write_text("{{ raise_exception('never') }}")
    assert "never" in verify()["problems"][0]
    (folder / "chat_template.jinja").unlink()
    rewrite(folder / "tokenizer_config.json", lambda c: c.pop("chat_template"))
    found = verify()
    assert found["ok"] and found["checks"]["chat template"] == "none: a base model"
    (folder / "tokenizer.json").write_text("{}")
    found = verify()
    assert found["checks"]["tokenizer"] == "1 problem" and "chat template" not in found["checks"]


def test_checksums_are_recorded_and_compared(folder, verify, l4k, tmp_path):
    sums = tmp_path / "sums.txt"
    assert verify("--write", sums)["ok"]
    assert len(sums.read_text().splitlines()) == len([*folder.iterdir()])
    assert verify("--against", sums)["checks"]["checksums"] == "ok"
    rewrite(folder / "generation_config.json", lambda c: c.update(top_p=0.8))
    (problem,) = verify("--against", sums)["problems"]
    assert problem.startswith("generation_config.json: its SHA-256 is not that of the list")
    (folder / "generation_config.json").unlink()
    (problem,) = verify("--against", sums)["problems"]
    assert problem.startswith("generation_config.json: is in the list of checksums, but not in")
    lines = sums.read_text().replace("  ", " *").splitlines()
    (folder / "SHA256SUMS").write_text("\n".join(x for x in lines if "tokenizer" in x))
    found = verify("--against", folder / "SHA256SUMS")
    assert found["ok"] and found["checks"]["checksums"] == "ok; 4 files are not in the list"
    for wrong in ("abc  config.json\n", "", "\n"):  # an empty list would call anything whole
        sums.write_text(wrong)
        code, _, err = l4k(folder, "--against", sums)
        assert code == 2 and "line 1: expected a SHA-256 and a file's name" in err


def test_names_of_any_kind_are_recorded_as_sha256sum_does(folder, verify, l4k, tmp_path):
    sums = tmp_path / "sums.txt"
    for name in ("a\nb.txt", "a\\b.txt", "a\rb.txt", "a b ", "\x1b[31m", "\u2028.txt"):
        (folder / name).write_text(name)
    verify("--write", sums)
    assert verify("--against", sums)["checks"]["checksums"] == "ok"
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", sums], cwd=folder, check=True)
    before = sums.read_bytes()
    (folder / os.fsdecode(b"\xff")).touch()
    code, _, err = l4k(folder, "--write", sums)
    assert code == 2 and "cannot name '\\udcff', which is not UTF-8; rename it" in err
    assert sums.read_bytes() == before


def test_a_list_is_recorded_whole_or_not_at_all(folder, l4k, tmp_path, monkeypatch):
    def full(self, data):
        with open(self, "wb") as stream:
            stream.write(data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    code, out, err = l4k(folder, "--write", tmp_path / "sums.txt")
    assert (code, out) == (2, "")
    assert err == f"l4k: {tmp_path}/sums.txt: cannot be written (No space left on device)\n"
    assert [file.name for file in tmp_path.iterdir()] == [folder.name]


def test_weights_that_nothing_reads_are_named(folder, verify):
    shutil.copy(folder / "model.safetensors", folder / "model-00001-of-00002.safetensors")
    checks = verify()["checks"]
    assert checks["files"] == "ok; weights that nothing reads: model-00001-of-00002.safetensors"


def test_what_is_no_folder_is_bad_input(l4k, tmp_path):
    code, out, err = l4k(tmp_path / "gone")
    assert (code, out) == (2, "") and "no such checkpoint folder" in err
