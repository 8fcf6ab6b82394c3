"""The process of the templates: what they may spend there, and that it serves threads and forks."""

import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import spawn

import pytest

from l4kernels.prompt import chat_template, renderer
from l4kernels.prompt.chat_template import ChatError, ChatTemplate
from l4kernels.prompt.renderer import RENDERER, Worker

USER = [{"role": "user", "content": "x"}]

# Each may fail in its own words or break the budget, but nothing else may happen.
BIG = "{% set s = 'ab c' * 4000000 %}"
SPENDING = {
    "no output": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "much output": "{% for i in range(99999) %}{% for j in range(999) %}xx{% endfor %}{% endfor %}",
    "doubling": "{% set n = namespace(s='x') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}"
    "{% endfor %}{{ n.s | length }}",
    "product": "{{ 'x' * 100000000000 }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "digits": "{{ 10 ** 1000000 }}",
    "shift": "{{ '%s' % (7 ** 77777777) }}",
    "percent": "{{ '%1500000000d' % 1 }}",
    "percent filter": "{{ '%1500000000s' | format('x') }}",
    "format": "{{ '{:1500000000}'.format(1) }}",
    "nested format": "{{ '{:{}}'.format(1, 1500000000) }}",
    "ljust": "{{ 'x'.ljust(1500000000) }}",
    "center": "{{ 'x' | center(1500000000) }}",
    "zfill": "{{ 'x'.zfill(1500000000) }}",
    "expandtabs": "{{ '\t'.expandtabs(1500000000) }}",
    "indent": "{{ 'x\n' * 9000 | indent(99999) }}{{ ('x\n' * 90000) | indent(99999) }}",
    "tojson": "{{ range(99999) | list | tojson(indent=99999) }}",
    "batch": "{{ [1] | batch(1500000000, 0) | list | length }}",
    "slice": "{{ [1] | slice(1500000000) | list | length }}",
    "lipsum": "{{ lipsum(n=99999999) | length }}",
    "range": "{{ range(10 ** 12) | list }}",
    "urlize": BIG + "{{ ('http://a.b/c ' * 3000000) | urlize | length }}",
    "wordwrap": BIG + "{{ s | wordwrap(1) | length }}",
    "replace": BIG + "{{ s.replace('a', s) | length }}",
    "join": BIG + "{{ s.join(s) | length }}",
    "list": BIG + "{{ s | list | sort | length }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "loop recursion": "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "deep for": "{% for i in [1] %}" * 40 + "{% endfor %}" * 40,
    "deep if": "{% if 1 %}" * 400 + "{% endif %}" * 400,
    "deep list": "{{ " + "[" * 9000 + "]" * 9000 + " }}",
    "deep parentheses": "{{ " + "(" * 90000 + "1" + ")" * 90000 + " }}",
    "long sum": "{{ " + "1 + " * 90000 + "1 }}",
    "many names": "".join(f"{{% set x{i} = x{i - 1} %}}" for i in range(30000)),
    "break outside": "{% break %}",
    "break in macro": "{% for i in [1] %}{% macro f() %}{% break %}{% endmacro %}{% endfor %}",
    "five megabytes": "{{ x }}" * 800_000,
    "not closed": "{% if x %}",
    "zero": "a\0{{ 1 / 0 }}",
    "undefined": "{{ messages[0].content.missing.attribute }}",
    "types": "{{ 1 + 'a' }}",
    "include": "{% include 'secrets' %}{% extends 'secrets' %}{% import 'os' as os %}",
    "private": "{{ ''.__class__.__mro__ }}{{ raise_exception.__globals__ }}{{ bos_token._mask }}",
    "change": "{{ messages.append(1) }}",
    "end of the process": "{{ raise_exception.__globals__['sys'].exit() }}",
}


@pytest.fixture(scope="module", autouse=True)
def small_budget():
    with pytest.MonkeyPatch.context() as patch:
        RENDERER.stop()
        patch.setattr(renderer, "SECONDS", 0.1)
        patch.setattr(renderer, "MEMORY", 300 << 20)
        patch.setattr(chat_template, "MAX_RENDERED_CHARS", 1 << 20)
        yield
    RENDERER.stop()


@pytest.mark.parametrize("name", SPENDING)
def test_what_a_template_spends_is_bounded(name):
    ChatTemplate("x")  # the process runs
    started = time.perf_counter()
    with pytest.raises(ChatError) as error:
        text = ChatTemplate(SPENDING[name]).render(USER, bos_token="x")
        pytest.fail(f"rendered {text[:200]!r}")
    assert time.perf_counter() - started < 5
    assert str(error.value).startswith("chat template: ") and len(str(error.value)) < 700
    assert str(error.value).isprintable() and "Traceback" not in str(error.value)
    assert ChatTemplate("{{ messages[0].content }}").render(USER) == "x"  # the next one is well


def test_threads_and_forked_processes_share_no_reply():
    template = ChatTemplate("{{ messages[0].content }}")
    wrong = []

    def work(n):
        for i in range(20):
            content = f"{n} {i}" * (n + 1)
            if template.render([{"content": content}]) != content:
                wrong.append(content)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    [t.start() for t in threads]
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(template.render([{"content": "child"}]) != "child")
    assert os.waitpid(child, 0)[1] == 0
    [t.join() for t in threads]
    assert not wrong
    assert template.render([{"content": "parent"}]) == "parent"


def test_an_interrupted_render_leaves_no_reply_behind(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    template = ChatTemplate("{{ messages[0].content }}")
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "_read", interrupt)
        with pytest.raises(KeyboardInterrupt):
            template.render([{"content": "first"}])
    assert template.render([{"content": "second"}]) == "second"


def test_a_process_that_is_gone_is_started_again():
    template = ChatTemplate("{{ messages[0].content }}")
    process = RENDERER._worker._process
    process.kill()
    process.wait()
    assert template.render(USER) == "x"


def test_a_process_that_stands_still_or_breaks_is_replaced():
    template = ChatTemplate("{{ messages[0].content }}")
    for end, why in ((None, "has not answered within 0.2 s"), (signal.SIGKILL, "SIGKILL")):
        worker = RENDERER._worker
        worker._process.send_signal(signal.SIGSTOP)
        worker._socket.settimeout(0.2 if end is None else 60)
        timer = threading.Timer(0.1, worker._process.send_signal, [end or signal.SIGSTOP])
        timer.start()
        with pytest.raises(ChatError, match=why):
            template.render(USER)
        timer.join()
        assert template.render(USER) == "x"


@pytest.mark.parametrize(
    "executable, why",
    [
        ("/bin/true", "its process does not start: /bin/true is no working Python"),
        ("/bin/echo", "its process does not start: /bin/echo is no working Python"),
        ("/usr/bin/yes", "its process does not start: /usr/bin/yes is no working Python"),
        ("/none", "its process cannot be started .*'/none'"),
        ("", ".* this program names none; call multiprocessing.set_executable"),
        (sys.executable, ".* this program names none; call multiprocessing.set_executable"),
    ],
    ids=["true", "echo", "yes", "missing", "unnamed", "frozen"],
)
def test_a_process_that_does_not_start(monkeypatch, executable, why):
    RENDERER.stop()
    with monkeypatch.context() as patch:
        patch.setattr(spawn, "_python_exe", executable)
        # A program that has Python inside it would only start itself again.
        patch.setattr(sys, "frozen", executable == sys.executable, raising=False)
        with pytest.raises(ChatError, match=f"^chat template: {why}"):
            ChatTemplate("x")
    assert ChatTemplate("{{ messages[0].content }}").render(USER) == "x"


PROGRAM = """
import os, signal, tempfile
from l4kernels.prompt.chat_template import ChatError, ChatTemplate
from l4kernels.prompt.renderer import RENDERER

def render(content):
    return ChatTemplate("{{ messages[0].content[:9] }}").render([{"content": content}])

print(render("plain"))
signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # ends a program that writes to a closed pipe
RENDERER._worker.has_ended = lambda: False
os.kill(RENDERER._worker._process.pid, signal.SIGKILL)
try:
    render("x" * 1_000_000)
except ChatError as error:
    print(error)
print(render("again"))
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children that are never waited for
RENDERER.stop()
print(render("ignored"))
os.close(0)
with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
RENDERER.stop()
print(render("gone"))
"""


def test_programs_with_settings_of_their_own():
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    wanted = "plain\nchat template: ended its process by SIGKILL\nagain\nignored\ngone\n"
    assert (done.stdout, done.stderr, done.returncode) == (wanted, "", 0)


def test_memory_that_was_reserved_before_does_not_count(monkeypatch):
    monkeypatch.setattr(renderer, "MEMORY", 40 << 20)  # less than the start takes
    RENDERER.stop()
    assert ChatTemplate("{{ messages[0].content }}").render(USER) == "x"
    with pytest.raises(ChatError, match="needs more than 40 MiB"):
        ChatTemplate("{{ 'x' * 90000000 }}").render(USER)
    RENDERER.stop()
