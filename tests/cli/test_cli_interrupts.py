"""Ctrl-C and SIGTERM at any moment: the program ends at once, and shows what there is."""

import contextlib
import importlib
import json
import signal
import subprocess
import sys

import pytest

from l4kernels.checkpoint import load
from l4kernels.cli import generate, interrupts, loading, main
from l4kernels.demo import CHECKPOINT
from tests.support.terminals import ENVIRONMENT, L4K, Terminal


@pytest.fixture(autouse=True)
def heeds_signals():
    """A shell without job control starts what runs in the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def interrupted(monkeypatch):
    """Makes the fourth token of a generation come with a signal."""

    def arrange(number):
        iterate = generate.Generation.__iter__

        def iterate_and_signal(self):
            for step, ids in enumerate(iterate(self)):
                if step == 3:
                    signal.raise_signal(number)
                yield ids

        monkeypatch.setattr(generate.Generation, "__iter__", iterate_and_signal)

    return arrange


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_generation_shows_what_there_is(interrupted, capsys, number, code):
    command = ["generate", "--model", str(CHECKPOINT), "--prompt", "In the", "--json"]
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    assert main([*command, "--max-new-tokens", "3"]) == 0
    whole = json.loads(capsys.readouterr().out)
    interrupted(number)
    assert main(command) == code
    got = json.loads(capsys.readouterr().out)
    assert (got["error"], got["finish_reason"]) == ("interrupted", "interrupted")
    assert (got["text"], got["token_ids"]) == (whole["text"], whole["token_ids"])
    assert got.keys() == whole.keys() | {"error"}
    assert main(command[:-1]) == code
    out, err = capsys.readouterr()
    assert out == whole["text"] and "+ 3 tokens (interrupted)" in err
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_before_the_first_token(monkeypatch, capsys, number, code):
    def load(*arguments, **options):
        signal.raise_signal(number)

    monkeypatch.setattr(loading.Llama4, "from_checkpoint", load)
    command = ["generate", "--model", str(CHECKPOINT), "--prompt", "a"]
    assert main(command) == code and capsys.readouterr() == ("", "l4k: interrupted\n")
    assert main([*command, "--json"]) == code
    assert json.loads(capsys.readouterr().out) == {"error": "interrupted"}


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_import_is_not_interrupted_but_the_verb_after_it(monkeypatch, capsys, number, code):
    """What torch runs while it is imported may swallow an exception, or abort on one."""
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    imported = []
    real = importlib.import_module

    def load(name, package=None):
        if not name.startswith("l4kernels.cli."):
            return real(name, package)
        with contextlib.suppress(BaseException):
            signal.raise_signal(number)
            imported.append(name)
        # Who asks twice does not want to wait.
        assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        return None  # nobody looks at it

    monkeypatch.setattr(importlib, "import_module", load)
    for verb in ("env", "demo", "plan", "generate --model x --prompt a", "bench"):
        assert main(verb.split()) == code
        assert imported.pop() == f"l4kernels.cli.{verb.split()[0]}"
        assert capsys.readouterr() == ("", "l4k: interrupted\n")
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_signals_raise_again_after_an_import():
    with interrupts.interruptible(), pytest.raises(interrupts.Interrupted):
        with interrupts.postponed():
            pass
        signal.raise_signal(signal.SIGTERM)


def test_the_bar_of_the_load_moves_the_cursor_and_is_gone_before_a_message(monkeypatch):
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "__stderr__", terminal)

    def fill(model, slots, tensors, upload):
        next(tensors)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(load, "fill", fill)
    assert main(["generate", "--model", str(CHECKPOINT), "--prompt", "a"]) == 130
    shown = terminal.getvalue()
    assert "Loading" in shown and "\\x" not in shown
    assert shown.rindex("\x1b[?25h") < shown.index("l4k: interrupted")  # the cursor is back


def test_who_asks_twice_does_not_wait():
    twice = """
import signal, sys
sys.argv, sys.orig_argv = ["-m"], ["l4kernels"]  # without torch
from l4kernels.cli.interrupts import interruptible
with interruptible():
    try:
        signal.raise_signal(signal.SIGTERM)
    except KeyboardInterrupt:
        signal.raise_signal(signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", twice], env=ENVIRONMENT, timeout=60)
    assert done.returncode == -signal.SIGINT


def test_ctrl_c_in_a_real_process():
    command = [*L4K, "generate", "--model", str(CHECKPOINT), "--prompt", "And it came to pass"]
    command += ["--max-new-tokens", "3000", "--temperature", "1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=ENVIRONMENT, **pipes) as child:
        first = child.stdout.read(1)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
    assert child.returncode == 130 and first and "tokens (interrupted)" in err
    assert "Traceback" not in err
