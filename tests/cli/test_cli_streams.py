"""What reaches the terminal, the pipe and the file: the true text, safely, or one clear error."""

import doctest
import errno
import io
import json
import os
import pty
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from l4kernels.cli import main, output, streams
from l4kernels.cli.demo import ASCII_BLOCKS, BLOCKS
from l4kernels.demo import CHECKPOINT
from l4kernels.planning import cpu
from tests.support.terminals import ENVIRONMENT, L4K, Terminal

EVERY_CHARACTER = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x110000))))
CONTROLS = {chr(c) for c in (*range(0x20), *range(0x7F, 0xA0))} - {"\n", "\t"}
ENCODINGS = ["utf-8", "ascii", "latin-1", "cp1252", "shift_jis", "utf-16"]


class Failing(io.StringIO):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error


def encoded(encoding):
    return io.TextIOWrapper(io.BytesIO(), encoding, newline="")


def written(stream) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode(stream.encoding)


def test_examples():
    assert doctest.testmod(streams) == (0, 2) and doctest.testmod(cpu) == (0, 1)


# The generated text


@given(text=st.text(), cuts=st.lists(st.integers(0, 40)), encoding=st.sampled_from(ENCODINGS))
@settings(max_examples=100, deadline=None)
def test_a_pipe_gets_the_text_in_every_chunking(text, cuts, encoding):
    stream = encoded(encoding)
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        with streams.guarded():
            for first, end in pairwise(bounds):
                output.stream(text[first:end])
    if encoding.startswith("utf"):
        assert written(stream) == text
    else:
        assert stream.buffer.getvalue() == text.encode(encoding, "backslashreplace")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_a_pipe_gets_every_character(monkeypatch, encoding):
    stream = encoded(encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    with streams.guarded():
        output.stream(EVERY_CHARACTER)
    want = EVERY_CHARACTER.encode(encoding, "backslashreplace").decode(encoding)
    assert written(stream) == want
    if encoding.startswith("utf"):
        assert want == EVERY_CHARACTER


def test_a_terminal_gets_every_character_but_controls(monkeypatch):
    """Joiners, wide and no-break spaces, soft hyphens, flags, marks of direction: all of them."""
    monkeypatch.setattr(sys, "stdout", Terminal())
    output.stream(EVERY_CHARACTER)
    shown = "".join(f"\\x{ord(c):02x}" if c in CONTROLS else c for c in EVERY_CHARACTER)
    assert sys.stdout.getvalue() == shown


def test_a_terminal_is_told_of_the_end_of_the_text(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Terminal())
    options = ["--model", str(CHECKPOINT), "--prompt", "In", "--max-new-tokens", "2"]
    assert main(["generate", *options]) == 0
    assert sys.stdout.getvalue().endswith("\n") and "+ 2 tokens" in capsys.readouterr().err


# Reports, JSON and errors


HOSTILE = "[red]x[/red] :smile: \x1b]0;owned\x07\x9b2J\x7f é▄\udc80"
SPELLED = "[red]x[/red] :smile: \\x1b]0;owned\\x07\\x9b2J\\x7f é▄\\udc80"


@pytest.mark.parametrize("terminal", [False, True])
def test_reports_show_text_as_text(monkeypatch, terminal):
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    with streams.guarded():
        output.line(HOSTILE, output.styled(HOSTILE, "bold"))
        output.facts([(HOSTILE, HOSTILE)])
        output.table(HOSTILE, [HOSTILE], [[HOSTILE]])
    assert stream.getvalue().replace("\x1b[1m", "").count(SPELLED) == 7
    assert "\x1b]" not in stream.getvalue() and "\x07" not in stream.getvalue()


def test_a_table_is_as_wide_as_it_is(monkeypatch, capsys):
    """A narrow terminal breaks its lines; cells broken one letter a line could not be read."""
    monkeypatch.setattr(output._console, "width", 20)
    output.table("the title of it", ["name", "tok/s"], [["a name of 20 letters", "1,000.5"]])
    want = "the title of it\nname                    tok/s\na name of 20 letters  1,000.5\n"
    assert capsys.readouterr().out == want


def test_json_is_printable_ascii_in_every_encoding(monkeypatch, capsys):
    output.print_json({HOSTILE: EVERY_CHARACTER})
    out = capsys.readouterr().out
    assert out.isascii() and out.removesuffix("\n").isprintable()
    assert json.loads(out) == {HOSTILE: EVERY_CHARACTER}


def test_errors_are_one_line_that_steers_nothing(capsys):
    code = main(["generate", "--model", f"{HOSTILE}\n next\u00a0line", "--prompt", "a"])
    line = f"l4k: {SPELLED} next\u00a0line: no such checkpoint folder\n"
    assert (code, capsys.readouterr().err) == (2, line)
    assert main(["generate", "--model", HOSTILE, "--prompt", "a", "--json"]) == 2
    assert HOSTILE in json.loads(capsys.readouterr().out)["error"]
    assert main(["plan", "--gpu", "x" * 10**6]) == 2
    assert len(capsys.readouterr().err) < 2100


def test_a_checkpoint_speaks_to_no_terminal(folder, tmp_path, capsys):
    """Names of tensors, of folders, and what a template raises."""
    home = tmp_path / "\x1b]0;owned\x07[red]"
    home.mkdir()
    for file in folder.iterdir():
        (home / file.name).write_bytes(file.read_bytes())
    tensors = load_file(home / "model.safetensors")
    save_file(tensors | {"\x1b[2J[b]": torch.ones(1)}, home / "model.safetensors")
    command = ["generate", "--model", str(home), "--prompt", "a"]
    assert main(command) == 2
    err = capsys.readouterr().err
    assert "\\x1b]0;owned\\x07[red]" in err and "\\x1b[2J[b]" in err
    assert err.removesuffix("\n").isprintable()
    (home / "chat_template.jinja").write_text("{{ raise_exception('\\x1b[2J[b]\\n\\x07') }}")
    assert main([*command, "--chat"]) == 2
    err = capsys.readouterr().err
    assert "\\x1b[2J[b]" in err and err.removesuffix("\n").isprintable()
    assert main(["plan", str(home)]) == 0
    assert "\\x1b]0;owned\\x07[red]: " in capsys.readouterr().out


def test_a_bug_keeps_its_traceback_and_steers_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    real = sys.stderr
    with pytest.raises(KeyError), streams.guarded():
        raise KeyError
    print("\x1b", file=sys.stderr)  # as the interpreter does then
    assert real.getvalue() == "\\x1b\n"


def test_pictures_in_every_encoding(monkeypatch):
    assert ASCII_BLOCKS.isascii() and len(ASCII_BLOCKS) == len(BLOCKS)
    for encoding, fits in (("utf-8", True), ("cp437", True), ("ascii", False), ("cp1252", False)):
        monkeypatch.setattr(sys, "stdout", encoded(encoding))
        assert output.can_print(BLOCKS) == fits


# Streams that are closed, full or not text


@pytest.mark.parametrize(
    "error, code, message",
    [
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
        (OSError(errno.ENOSPC, "No space left"), 2, "l4k: standard output: No space left\n"),
        (OSError(errno.EBADF, "Bad file"), 2, "l4k: standard output: Bad file\n"),
    ],
)
@pytest.mark.parametrize("verb", ["--version", "--help", "plan", "plan --json", "env", "generate"])
def test_output_that_cannot_be_written(monkeypatch, capsys, error, code, message, verb):
    options = f"--model {CHECKPOINT} --prompt In --max-new-tokens 2" if verb == "generate" else ""
    monkeypatch.setattr(sys, "stdout", Failing(error))
    assert main([*verb.split(), *options.split()]) == code
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    "command, code, out, err",
    [
        ("--version >&-", 2, "", "l4k: standard output is closed\n"),
        ("plan --json >&-", 2, "", "l4k: standard output is closed\n"),
        ("plan --json >/dev/full", 2, "", "l4k: standard output: No space left on device\n"),
        ("fly 2>&-", 2, "", ""),
        ("fly 2>/dev/full", 2, "", ""),
        ("fly >&- 2>&-", 2, "", ""),
        ("plan --gpu x --json 2>&-", 2, '{"error": "expected a GPU', ""),
        ("plan | true; exit ${PIPESTATUS[0]}", 141, "", ""),
    ],
)
def test_streams_of_the_shell(command, code, out, err):
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m l4kernels {command}"],
        capture_output=True,
        text=True,
        timeout=60,
        env=ENVIRONMENT,
    )
    assert (done.returncode, done.stderr) == (code, err)
    assert done.stdout.startswith(out) and bool(done.stdout) == bool(out)


class Endless(io.RawIOBase):
    def readable(self):
        return True

    def readinto(self, buffer):
        return len(buffer)


@pytest.mark.parametrize(
    "stream, message",
    [
        (None, "standard input is closed"),
        (io.TextIOWrapper(io.BytesIO(b"ab\xff")), "standard input: not UTF-8 at byte 2"),
        (io.TextIOWrapper(io.BufferedReader(Endless())), "at most 64 MiB"),
    ],
)
def test_bad_input(monkeypatch, stream, message):
    monkeypatch.setattr(sys, "stdin", stream)
    with pytest.raises(ValueError, match=message):
        streams.read_input()


def test_input_is_read_byte_for_byte(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("a\r\n\u2028é\n".encode())))
    assert streams.read_input() == "a\r\n\u2028é\n"


def test_a_real_terminal(folder, tmp_path):
    """Prompt, text and error through a pseudo-terminal: Ctrl-D ends the prompt."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('\\x1b]0;x\\x07[red]') }}")
    terminal, end = pty.openpty()
    command = [*L4K, "generate", "--model", str(tmp_path), "--chat", "--prompt", "-"]
    child = subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env=ENVIRONMENT)
    os.close(end)
    os.write(terminal, b"a question\n\x04")
    assert child.wait(60) == 2
    shown = os.read(terminal, 10_000).decode()
    os.close(terminal)
    assert "Ctrl-D ends it" in shown and "\\x1b]0;x\\x07[red]" in shown
    assert shown.isascii() and not CONTROLS - {"\r"} & set(shown)


def test_a_folder_that_is_gone(monkeypatch, tmp_path, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["--version"]) == 0
    capsys.readouterr()
    for verb in ("demo", "plan", f"generate --model {CHECKPOINT} --prompt a"):
        assert main(verb.split()) == 2
        assert "current folder no longer exists" in capsys.readouterr().err
