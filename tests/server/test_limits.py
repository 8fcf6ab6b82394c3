"""What a server does when clients are many, slow, gone, wrong or unwelcome."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import httpx
import pytest

from l4kernels import Engine
from l4kernels.cli import main
from l4kernels.cli.loading import Loader
from l4kernels.demo import CHECKPOINT
from l4kernels.engine.graphs import as_it_is
from l4kernels.server.serve import taken
from tests.support.deadlines import cheaply
from tests.support.serving import serving

HTTP = httpx.Client(timeout=60, verify=False)  # reading certificates takes longer than a request
SAID = [{"role": "user", "content": "And it came to pass"}]


def body(**fields):
    return {"messages": SAID, "temperature": 0, "max_tokens": 8} | fields


def post(one, route="/v1/chat/completions", **rest):
    return HTTP.post(f"{one.url}{route}", **rest)


def raw(one, content, head=""):
    """A socket on which a chat request was sent, and nothing read."""
    data = json.dumps(content).encode()
    sock = socket.create_connection(one.server.address)
    sock.sendall(
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"{head}Content-Length: {len(data)}\r\n\r\n".encode()
        + data
    )
    return sock


def until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.005)


@pytest.fixture
def small(model, prompter):
    """A server with two slots and a short queue."""
    with (
        Engine(model, tokenizer=prompter.tokenizer, slots=2) as engine,
        serving(engine, prompter, max_waiting=1) as one,
    ):
        yield one


def test_every_route_but_two_asks_for_the_key(model, prompter):
    with (
        Engine(model, tokenizer=prompter.tokenizer, slots=2) as engine,
        serving(engine, prompter, api_keys=("secret", "another")) as one,
    ):
        paths = [
            (method, route.path.replace("{model:path}", "demo"))
            for route in one.server._app.routes
            for method in route.methods
        ]
        assert len(paths) >= 10
        for method, path in paths:
            free = path in ("/", "/health")
            for key in (None, "wrong", "sécret"):
                headers = [] if key is None else [(b"authorization", f"Bearer {key}".encode())]
                answer = HTTP.request(method, f"{one.url}{path}", headers=headers)
                assert (answer.status_code == 401) == (not free), (method, path, answer)
            assert free or method == "HEAD" or answer.json()["error"]["code"] == "invalid_api_key"
        for key in one.server._options.api_keys:
            head = {"Authorization": f"Bearer {key}"}
            assert post(one, json=body(), headers=head).status_code == 200
        # Prefixes are shared by requests of one key alone.
        before = engine.stats().reused_tokens
        long = body(messages=[{"role": "user", "content": "word " * 100}])
        for key, more in (("secret", 0), ("another", 0), ("secret", 64)):
            post(one, json=long, headers={"Authorization": f"Bearer {key}"})
            assert engine.stats().reused_tokens - before >= more
            assert more or engine.stats().reused_tokens == before


def test_bodies_have_limits(model, prompter):
    with (
        Engine(model, tokenizer=prompter.tokenizer, slots=2) as engine,
        serving(engine, prompter, max_body_bytes=1 << 16, body_seconds=0.3) as one,
    ):
        for large in ({"content": b" " * 70_000}, {"content": iter([b" " * 40_000] * 2)}):
            answer = post(one, headers={"Content-Type": "application/json"}, **large)
            assert answer.status_code == 413
            assert answer.json()["error"]["code"] == "request_too_large"
        with socket.create_connection(one.server.address) as sock:
            sock.sendall(b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            assert sock.recv(100).startswith(b"HTTP/1.1 408")
        assert post(one, json=body()).status_code == 200


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b"null", b"[" * 50_000, b'{"messages": NaN}', b"\xff\xfe", b"1" * 10_000],
    ids=range(8),
)  # fmt: skip
def test_bodies_that_are_no_request(demo, content):
    answer = post(demo, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_many_small_objects_are_not_parsed(demo):
    fields = b"{" + b'"a":1,' * 600_000 + b'"a":1}'
    for content in (b"[" + b"{}," * 600_000 + b"{}]", b"[" * 600_000, fields):
        answer = post(demo, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400 and "brackets" in answer.json()["error"]["message"]


def test_tokens_beyond_the_context_are_no_text(demo):
    context = demo.service.context
    assert post(demo, "/detokenize", json={"tokens": [300] * context}).status_code == 200
    answer = post(demo, "/detokenize", json={"tokens": [300] * (context + 1)})
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_a_body_has_one_length(demo):
    """What a proxy in front takes for the next request must not be part of this one."""
    head = (
        b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with socket.create_connection(demo.server.address) as sock:
        sock.settimeout(10)
        sock.sendall(head + b"2\r\n{}\r\n0\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(4096), b""))  # to the end of the connection
    assert answer.startswith(b"HTTP/1.1 400") and answer.count(b"HTTP/1.1") == 1


def test_what_supervisors_get_they_may_ask_the_head_of(demo):
    for path in ("/health", "/", "/v1/models", "/nowhere", "/tokenize"):
        head, whole = HTTP.head(f"{demo.url}{path}"), HTTP.get(f"{demo.url}{path}")
        assert head.status_code == whole.status_code and not head.content
        assert head.headers["content-length"] == whole.headers["content-length"]


def test_schemas_have_a_size(demo):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"enum": [1] * 70_000}}}
    answer = post(demo, json=body(tools=[tool]))
    assert answer.status_code == 400 and "65536 values" in answer.json()["error"]["message"]


def test_forms_of_other_pages_are_not_read(demo):
    """A page of another origin may send plain text without asking first."""
    data = json.dumps(body())
    for kind in ({}, {"Content-Type": "text/plain"}):
        assert post(demo, content=data, headers=kind).status_code == 400


def test_a_client_that_leaves_frees_its_pages_within_a_step(demo):
    core = demo.engine._core
    sock = raw(demo, body(max_tokens=3000, stream=True, ignore_eos=True))
    assert b"200 OK" in sock.recv(4096)
    until(lambda: demo.engine.stats().running)
    sock.close()
    until(lambda: not demo.service.busy)  # the loop has noticed
    steps = core.steps
    assert demo.settled()
    assert core.steps <= steps + 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_while_it_waits(small, stream):
    busy = [raw(small, body(max_tokens=3000, stream=True, ignore_eos=True)) for _ in range(2)]
    until(lambda: small.engine.stats().running == 2)
    waiting = raw(small, body(stream=stream))
    until(lambda: small.engine.stats().waiting == 1)
    waiting.close()
    until(lambda: small.engine.stats().waiting == 0)
    for sock in busy:
        sock.close()
    assert small.settled()


def test_a_full_queue(small):
    busy = [raw(small, body(max_tokens=3000, stream=True, ignore_eos=True)) for _ in range(3)]
    until(lambda: small.engine.stats().waiting == 1)
    answer = cheaply(1, lambda: post(small, json=body()), clock=time.monotonic)
    assert small.engine.stats().waiting == 1, "nobody was waited for"
    assert answer.status_code == 429 and 1 <= int(answer.headers["Retry-After"]) <= 60
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    for sock in busy:
        sock.close()
    assert small.settled()
    assert post(small, json=body()).status_code == 200


def test_slow_readers_hold_nobody_up_and_are_let_go(model, prompter):
    with (
        Engine(model, tokenizer=prompter.tokenizer, slots=8) as engine,
        serving(engine, prompter, stall_seconds=0.5) as one,
    ):
        listening = one.server.servers[0].sockets[0]
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # else megabytes fit
        settings = {"max_tokens": 3000, "ignore_eos": True, "stream": True, "logprobs": True}
        lazy = [raw(one, body(**settings, top_logprobs=20)) for _ in range(3)]
        until(lambda: engine.stats().running == 3)
        assert post(one, json=body()).status_code == 200  # beside them
        assert one.settled(10)
        assert engine.stats().new_tokens < 3 * 2000
        for sock in lazy:
            sock.settimeout(5)
            with sock, sock.makefile("rb") as stream:
                said = stream.read()
            assert b"200 OK" in said and b"[DONE]" not in said


def test_time_is_limited(model, prompter):
    with (
        Engine(model, tokenizer=prompter.tokenizer, slots=2) as engine,
        serving(engine, prompter, request_seconds=0.3) as one,
    ):
        long = body(max_tokens=3000, ignore_eos=True)
        answer = post(one, json=long)
        assert answer.status_code == 408 and answer.json()["error"]["code"] == "request_timeout"
        lines = post(one, json=long | {"stream": True}).text.strip().split("\n\n")
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "request_timeout"
        assert one.settled()


def test_a_request_that_fails_harms_no_other(demo):
    """In the engine, and where nobody thought of it."""
    good = post(demo, json=body()).json()["choices"][0]["message"]["content"]
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(post, demo, json=body(max_tokens=40)) for _ in range(6)]
        with mock.patch("l4kernels.server.service.Service.text_prompt", side_effect=KeyError("/x")):
            answer = post(demo, "/v1/completions", json={"prompt": "x"})
        assert (
            answer.status_code == 500 and "/x" not in answer.text and "KeyError" not in answer.text
        )
        assert re.search(r"error [0-9a-f]{12}", answer.json()["error"]["message"])
        assert len({a.result().json()["choices"][0]["message"]["content"] for a in answers}) == 1
    assert post(demo, json=body()).json()["choices"][0]["message"]["content"] == good


def test_a_model_without_a_next_token(demo, model):
    with (
        mock.patch.object(model, "compute_logits", lambda hidden: _nan(hidden, model)),
        mock.patch.object(demo.engine._core.runner, "capture", as_it_is),
    ):
        answer = post(demo, json=body(n=7))  # a number of rows that no step was captured for
    assert answer.status_code == 500 and "not numbers" in answer.json()["error"]["message"]
    assert demo.settled() and post(demo, json=body()).status_code == 200


def _nan(hidden, model):
    return hidden.new_full((len(hidden), model.config.vocab_size), float("nan")).float()


def test_a_stream_that_has_nothing_to_say_shows_signs_of_life(model, prompter):
    with (
        Engine(model, tokenizer=prompter.tokenizer, slots=1) as engine,
        serving(engine, prompter, heartbeat_seconds=0.05) as one,
    ):
        first = raw(one, body(max_tokens=3000, stream=True, ignore_eos=True))
        until(lambda: engine.stats().running)
        with (
            socket.create_connection(one.server.address),
            HTTP.stream("POST", f"{one.url}/v1/chat/completions", json=body(stream=True)) as answer,
        ):
            lines = answer.iter_lines()
            assert next(lines).startswith("data:")
            assert any(line.startswith(":") for line in (next(lines) for _ in range(6)))
            first.close()
            assert [*lines][-2:] == ["data: [DONE]", ""]


def test_metrics(demo):
    post(demo, json=body())
    text = HTTP.get(f"{demo.url}/metrics").text
    values = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line and line[0] != "#"
    }
    for name in (
        "l4k_time_to_first_token_seconds_count", "l4k_inter_token_seconds_count",
        "l4k_generation_tokens_total", "l4k_request_seconds_count", "l4k_prompt_tokens_total",
        'l4k_http_answers_total{route="/v1/chat/completions",status="200"}',
    ):  # fmt: skip
        assert values[name] > 0, name
    for name in ("requests_waiting", "requests_running", "kv_cache_tokens_in_use",
                 "prefix_cache_hit_tokens_total"):  # fmt: skip
        assert values[f"l4k_{name}"] >= 0


def test_an_engine_that_fails_ends_the_server(model, prompter):
    engine = Engine(model, tokenizer=prompter.tokenizer, slots=2)
    with serving(engine, prompter) as one:
        assert HTTP.get(f"{one.url}/health").status_code == 200
        with mock.patch("l4kernels.server.serve._WATCH_SECONDS", 1):
            time.sleep(0.3)
            engine.close()
            assert HTTP.get(f"{one.url}/health").status_code == 503
            assert post(one, json=body()).status_code == 503
        one.thread.join(15)
        assert one.server.failed


@pytest.fixture
def program():
    """`l4k serve` as a process of its own, its address, and what it writes."""
    command = [sys.executable, "-m", "l4kernels", "serve", str(CHECKPOINT), "--port", "0",
               "--served-model-name", "demo", "--drain-seconds", "20"]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    line = process.stderr.readline()
    url = re.search(r"http://127\.0\.0\.1:\d+", line)
    assert url, line
    yield process, url[0]
    process.kill()
    process.wait()
    process.stderr.close()


def test_an_address_that_cannot_be_had_is_one_line(capsys):
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        mock.patch.object(Loader, "loaded") as load,
    ):
        for host in ("127.0.0.1", "192.0.2.1", "no.such.invalid"):
            command = ["serve", str(CHECKPOINT), "--host", host]
            assert main([*command, "--port", f"{other.getsockname()[1]}"]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith(f"l4k: cannot listen at {host}, port "), line
    assert not load.called, "weights were read before"


def test_an_address_of_both_families():
    listeners = taken("localhost", 0)
    assert len({one.getsockname()[1] for one in listeners}) == 1
    for one in listeners:
        one.close()


def test_sigterm_drains_and_ends(program):
    process, url = program
    found = []

    def ask():
        long = body(max_tokens=300, ignore_eos=True)
        found.append(HTTP.post(f"{url}/v1/chat/completions", json=long))

    thread = threading.Thread(target=ask)
    thread.start()
    until(lambda: "l4k_requests_running 1" in HTTP.get(f"{url}/metrics").text)
    process.send_signal(signal.SIGTERM)
    until(lambda: HTTP.get(f"{url}/health").status_code == 503)
    answer = HTTP.post(f"{url}/v1/chat/completions", json=body())
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "shutting_down"
    thread.join(60)
    assert found[0].status_code == 200 and found[0].json()["usage"]["completion_tokens"] == 300
    assert process.wait(15) == 0


def test_a_second_signal_does_not_wait(program):
    process, url = program
    long = body(max_tokens=3500, ignore_eos=True, stream=True)
    with HTTP.stream("POST", f"{url}/v1/chat/completions", json=long) as answer:
        lines = answer.iter_lines()
        next(lines)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        said = [line for line in lines if line.startswith("data:")]
        assert json.loads(said[-1].removeprefix("data: "))["error"]["code"] == "shutting_down"
    assert process.wait(15) == 0
    assert "Traceback" not in process.stderr.read()
