"""The command line: what it prints, and one clear line for every bad input."""

import io
import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import l4kernels
from l4kernels.cli import loading, main
from l4kernels.engine.llama4 import Llama4
from l4kernels.prompt.tokenizer import Tokenizer
from tests.support import pictures, tiny

KEYS = {"text", "token_ids", "prompt_tokens", "completion_tokens", "finish_reason", "timings"}


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    file = tmp_path_factory.mktemp("images") / "two tiles.png"
    Image.new("RGB", (60, 30), (200, 30, 30)).save(file)
    return file


@pytest.fixture
def l4k(capsys):
    """Runs the command in this process: (exit code, standard output, standard error)."""

    def run(*arguments) -> tuple[int, str, str]:
        code = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def generate(l4k, folder):
    def run(*arguments) -> dict:
        code, out, err = l4k("generate", "--model", folder, "--json", *arguments)
        assert (code, err) == (0, ""), out
        return json.loads(out)

    return run


def test_generate_greedy(generate, folder):
    got = generate("--prompt", "the answer", "--max-new-tokens", 12, "--temperature", 0)
    assert set(got) == KEYS
    tokenizer = Tokenizer(folder)
    prompt = tokenizer.encode("the answer")
    want = Llama4.from_pretrained(folder).generate(torch.tensor([prompt]), max_new_tokens=12)
    assert prompt + got["token_ids"] == want[0].tolist()
    assert got["text"] == tokenizer.decode(got["token_ids"])
    assert got["prompt_tokens"] == len(prompt)
    assert got["completion_tokens"] == len(got["token_ids"])
    assert got["finish_reason"] in ("length", "stop")
    assert got["timings"]["prefill_s"] > 0


def test_seed_decides(generate):
    options = ("--prompt", "the", "--max-new-tokens", 12, "--temperature", 1.5)
    first, again, other = (generate(*options, "--seed", s)["token_ids"] for s in (5, 5, 6))
    assert first == again != other


def test_checkpoint_defaults_apply(l4k, folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    options = ("generate", "--model", tmp_path, "--prompt", "the", "--json", "--max-new-tokens", 8)
    greedy = json.loads(l4k(*options)[1])
    # Every token but one ends the text: generation must end at once.
    ends = list(range(tiny.VOCAB))
    tiny.write_json(tmp_path / "generation_config.json", {"eos_token_id": ends})
    got = json.loads(l4k(*options)[1])
    assert greedy["completion_tokens"] > 1
    assert (got["completion_tokens"], got["finish_reason"]) == (1, "stop")
    sampled = {"do_sample": True, "temperature": 3.0, "top_p": 1.0}
    tiny.write_json(tmp_path / "generation_config.json", sampled)
    assert json.loads(l4k(*options)[1])["token_ids"] != greedy["token_ids"]
    assert json.loads(l4k(*options, "--temperature", 0)[1])["token_ids"] == greedy["token_ids"]


def test_a_pad_token_in_the_prompt_is_text(l4k, folder, tmp_path):
    pad = {"pad_token_id": Tokenizer(folder).encode("the")[-1]}
    broken(folder, tmp_path, lambda f: rewrite(f, lambda c: c["text_config"].update(pad)))
    options = ("generate", "--prompt", "the", "--json", "--max-new-tokens", 2, "--model")
    wanted, got = (json.loads(l4k(*options, where)[1]) for where in (folder, tmp_path))
    assert got["token_ids"] == wanted["token_ids"]


def test_stop_string_ends_before_itself(generate):
    options = ("--prompt", "the", "--max-new-tokens", 30, "--temperature", 2, "--seed", 1)
    whole = generate(*options)
    stop = whole["text"][5:8]
    got = generate(*options, "--stop", "never there", "--stop", stop)
    assert got["text"] == whole["text"][: whole["text"].index(stop)]
    assert got["finish_reason"] == "stop"
    assert got["completion_tokens"] <= whole["completion_tokens"]


def test_streaming_prints_the_text_and_nothing_else(l4k, generate, folder):
    options = ("--prompt", "the user", "--max-new-tokens", 12, "--temperature", 1, "--seed", 3)
    want = generate(*options)
    code, out, err = l4k("generate", "--model", folder, *options)
    assert (code, out) == (0, want["text"])
    assert f" + {want['completion_tokens']} tokens ({want['finish_reason']})" in err


def test_prompt_from_standard_input(generate, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("the änswer".encode()), "ascii"))
    piped = generate("--prompt", "-", "--max-new-tokens", 3)
    assert (
        piped["token_ids"] == generate("--prompt", "the änswer", "--max-new-tokens", 3)["token_ids"]
    )


def test_chat_and_images(generate, picture):
    options = ("--prompt", "the answer?", "--max-new-tokens", 3)
    raw = generate(*options)["prompt_tokens"]
    chat = generate(*options, "--chat")["prompt_tokens"]
    system = generate(*options, "--system", "the system")["prompt_tokens"]
    one = generate(*options, "--image", picture)["prompt_tokens"]
    two = generate(*options, "--image", picture, "--image", picture)["prompt_tokens"]
    assert raw < chat < system
    assert (one - chat, two - chat) == (17, 34)  # 2 tiles and the global one, 4 patches each


@pytest.mark.parametrize(
    "options",
    [
        ("--weights", "fp8"),
        ("--weights", "int4"),
        ("--dtype", "bfloat16"),
        ("--kv-dtype", "fp8"),
        ("--top-k", 3, "--min-p", 0.1, "--top-p", 0.5),
        ("--top-k", 10**12),
    ],
)
def test_formats_and_sampling(generate, options):
    got = generate("--prompt", "the answer", "--max-new-tokens", 4, "--temperature", 1, *options)
    assert 1 <= got["completion_tokens"] <= 4


def test_reference_gives_the_same_tokens(generate):
    options = ("--prompt", "the", "--max-new-tokens", 5, "--temperature", 0)
    assert generate(*options, "--reference")["token_ids"] == generate(*options)["token_ids"]


def test_an_idle_gpu_is_not_passed_over_in_silence(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert loading.load_options(None, None, "bf16")["device"].type == "cpu"
    assert "l4k: running on the CPU: " in capsys.readouterr().err
    monkeypatch.setattr(loading, "gpu_problem", lambda *weights: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    options = loading.load_options(None, None, "int4")
    assert (options["device"].type, options["dtype"], options["kv_dtype"]) == (
        "cuda",
        torch.bfloat16,
        "fp8",
    )


LONG = ("--prompt", "the " * 600)
GENERATE_ERRORS = {
    "empty prompt": (("--prompt", ""), "the prompt is empty"),
    "empty chat": (("--prompt", "", "--chat"), "the prompt is empty"),
    "long prompt": (LONG, "context of 512 tokens"),
    "many new tokens": (("--prompt", "a", "--max-new-tokens", 512), "context of 512"),
    "no new tokens": (("--prompt", "a", "--max-new-tokens", 0), "--max-new-tokens"),
    "missing image": (("--prompt", "a", "--image", "no.png"), "no.png: no such file"),
    "not an image": (("--prompt", "a", "--image", __file__), "test_cli.py: not an image"),
    "temperature": (("--prompt", "a", "--temperature", "-1"), "expected temperature"),
    "nan": (("--prompt", "a", "--temperature", "nan"), "expected temperature"),
    "top-p": (("--prompt", "a", "--top-p", "0"), "expected top_p"),
    "top-k": (("--prompt", "a", "--top-k", "-2"), "expected top_k"),
    "min-p": (("--prompt", "a", "--min-p", "2"), "expected min_p"),
    "seed": (("--prompt", "a", "--seed", str(1 << 70)), "expected seed"),
    "stop": (("--prompt", "a", "--stop", ""), "stop string"),
    "weights": (("--prompt", "a", "--weights", "int3"), "bf16, fp8, int4"),
    "dtype": (("--prompt", "a", "--dtype", "float8"), "float32, bfloat16"),
    "kv dtype": (("--prompt", "a", "--kv-dtype", "int4"), "auto, fp8"),
    "device": (("--prompt", "a", "--device", "tpu"), "cpu, cuda or cuda:N"),
    "no such GPU": (("--prompt", "a", "--device", "cuda:99"), "CUDA devices are visible"),
    "option": (("--prompt", "a", "--colour"), "No such option"),
    "type": (("--prompt", "a", "--seed", "x"), "--seed"),
    "no prompt": ((), "--prompt"),
}


@pytest.mark.parametrize("case", GENERATE_ERRORS)
def test_bad_requests(l4k, settings, case):
    """The folder has no weights, so these errors come before anything is loaded."""
    arguments, message = GENERATE_ERRORS[case]
    for as_json in ((), ("--json",)):
        code, out, err = l4k("generate", "--model", settings, *arguments, *as_json)
        assert code == 2
        line = json.loads(out)["error"] if as_json else err.removeprefix("l4k: ").rstrip("\n")
        assert message in line and "\n" not in line
        assert (err if as_json else out) == ""


def test_decompression_bomb(l4k, settings, tmp_path):
    png = pictures.png_header(60_000, 60_000) + pictures.chunk(b"IDAT", b"")
    (tmp_path / "bomb.png").write_bytes(png)
    code, _, err = l4k(
        "generate", "--model", settings, "--prompt", "a", "--image", tmp_path / "bomb.png"
    )
    assert code == 2 and "bomb.png" in err and "80,000,000 pixels" in err


def broken(folder, tmp_path, change) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    change(tmp_path)


def rewrite(folder, change) -> None:
    content = json.loads((folder / "config.json").read_text())
    change(content)
    tiny.write_json(folder / "config.json", content)


def drop_tensor(folder) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("language_model.model.norm.weight")
    save_file(tensors, folder / "model.safetensors")


def truncate(folder) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-1000])


QUANTISED = {"quant_method": "gptq", "bits": 3}
CHECKPOINT_ERRORS = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "safetensors"),
    "truncated": (truncate, "model.safetensors"),
    "missing tensor": (drop_tensor, "norm.weight"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json"),
    "bad config": (lambda f: (f / "config.json").write_text("{"), "config.json"),
    "absurd": (
        lambda f: rewrite(f, lambda c: c["text_config"].update(hidden_size=10**9)),
        "hidden_size",
    ),
    "quantised": (
        lambda f: rewrite(f, lambda c: c.update(quantization_config=QUANTISED)),
        "supported",
    ),
    "empty folder": (lambda f: [file.unlink() for file in f.iterdir()], "config.json"),
}


@pytest.mark.parametrize("case", CHECKPOINT_ERRORS)
def test_bad_checkpoints(l4k, folder, tmp_path, case):
    change, message = CHECKPOINT_ERRORS[case]
    broken(folder, tmp_path, change)
    code, out, err = l4k("generate", "--model", tmp_path, "--prompt", "a", "--max-new-tokens", 2)
    assert (code, out) == (2, "")
    assert message in err and err.count("\n") == 1


def test_missing_folder(l4k, tmp_path):
    code, out, err = l4k("generate", "--model", tmp_path / "nowhere", "--prompt", "a", "--json")
    assert code == 2 and "no such checkpoint folder" in json.loads(out)["error"] and not err


def test_chat_images_and_system_need_a_template_and_a_tower(l4k, folder, picture, tmp_path):
    def run(*asked):
        options = ("--prompt", "a", *(asked or ("--image", picture)), "--json")
        code, out, _ = l4k("generate", "--model", tmp_path, *options)
        assert code == 2
        return json.loads(out)["error"]

    broken(folder, tmp_path, lambda f: (f / "chat_template.jinja").write_text("no image"))
    assert "1 images were given, but the prompt has room for 0" in run()
    (tmp_path / "chat_template.jinja").unlink()
    tiny.write_json(tmp_path / "tokenizer_config.json", {})
    for asked in ((), ("--chat",), ("--system", "be brief")):
        assert "no chat template" in run(*asked)
    tiny.write_tokenizer(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    assert "preprocessor_config.json" in run()
    rewrite(tmp_path, lambda c: c.pop("vision_config"))
    assert "no vision tower" in run()


def test_plan_json(l4k):
    code, out, _ = l4k(
        "plan", "scout", "--gpu", "h100", "--format", "int4", "--context", "128k", "--json"
    )
    found = json.loads(out)
    (row,) = found["plans"]
    assert code == 0 and row["fits"] and row["context"] == 131_072
    assert found["params"]["total"] == 108_641_793_536
    assert row["weights"] / 1e9 == pytest.approx(59.4, abs=0.05)


def test_plan_for_people(l4k, folder):
    code, out, _ = l4k("plan", "maverick", "--all", "--gpu", "8xh100", "--batch", 4)
    assert code == 0 and "401.58 B parameters" in out and "fp8-experts" in out
    code, out, _ = l4k("plan", "behemoth", "--gpu", "h200")
    assert "never published" in out
    code, out, _ = l4k("plan", folder)
    assert code == 0 and "sizes in MB" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--gpu", "a100"), "unknown GPU 'a100'; known: h100"),
        (("--format", "int2"), "unknown format"),
        (("--context", "lots"), "number of tokens"),
        (("--batch", "0"), "expected batch"),
        (("--kv-dtype", "int8"), "unknown KV dtype"),
        (("llama5",), "expected a preset"),
        (("no/such/folder",), "no such folder"),
    ],
)
def test_bad_plans(l4k, arguments, message):
    code, out, err = l4k("plan", *arguments, "--json")
    assert code == 2 and message in json.loads(out)["error"] and not err


def test_env(l4k):
    code, out, _ = l4k("env", "--json")
    found = json.loads(out)
    assert code == 0 and found["l4kernels"] == l4kernels.__version__
    assert found["torch"] == torch.__version__
    assert found["cpu"]["usable_cores"] >= found["cpu"]["max_threads"] >= 1
    assert set(found["kernels"]) == set(l4kernels.ops.OPS)
    for state in found["kernels"].values():
        assert state["active"] == "cuda" or state["reason"]
    code, out, _ = l4k("env")
    assert code == 0 and f"of {len(found['kernels'])} ops run on CUDA kernels" in out


def test_version_and_help(l4k):
    assert l4k("--version") == (0, l4kernels.__version__ + "\n", "")
    for arguments in ((), ("--help",)):
        code, out, _ = l4k(*arguments)
        assert code == 0 and all(verb in out for verb in ("demo", "plan", "env", "emulate"))
    assert l4k("fly")[0] == 2


@pytest.mark.parametrize(
    "verb", ["demo", "generate", "plan", "env", "bench", "bench e2e", "emulate"]
)
def test_help_of_a_verb(l4k, verb):
    for option in ("-h", "--help"):
        code, out, err = l4k(*verb.split(), option)
        assert (code, err) == (0, "") and out.lower().startswith(f"usage: l4k {verb}")


@pytest.mark.parametrize("module, extra", [("typer", "cli"), ("rich", "cli"), ("PIL", "vision")])
def test_missing_extra_names_its_command(l4k, settings, picture, monkeypatch, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    options = ("--model", settings, "--prompt", "a", "--image", picture, "--json")
    code, out, _ = l4k("generate", *options)
    assert code == 2
    assert f"pip install 'l4kernels[{extra}]'" in json.loads(out)["error"]


def test_full_memory_is_one_line(l4k, folder, monkeypatch):
    def full(*arguments, **options):
        return torch.empty(1 << 60)

    monkeypatch.setattr(Llama4, "from_checkpoint", full)
    code, out, err = l4k("generate", "--model", folder, "--prompt", "a")
    assert (code, out) == (2, "") and err.startswith("l4k: out of memory; `l4k plan`")


def test_bugs_keep_their_traceback(l4k, folder, monkeypatch):
    monkeypatch.setattr(Llama4, "from_checkpoint", lambda *a, **o: None)
    with pytest.raises(AttributeError):
        l4k("generate", "--model", folder, "--prompt", "a")


def test_as_a_program(folder):
    def run(*arguments):
        command = [sys.executable, "-m", "l4kernels", "generate", "--model", folder, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    done = run("--prompt", "the", "--max-new-tokens", "2", "--json")
    assert done.returncode == 0 and set(json.loads(done.stdout)) == KEYS and done.stderr == ""
    done = run("--prompt", "")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "l4k: the prompt is empty\n"
