"""The load test of servers, against servers on this machine that answer by a script."""

import argparse
import asyncio
import doctest
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bench import serving
from bench.serving import Outcome


def chunk(text: str, kind: str = "chat") -> str:
    choice = {"delta": {"content": text}} if kind == "chat" else {"text": text}
    return "data: " + json.dumps({"choices": [{"index": 0, **choice}]})


USAGE = 'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}'
DONE = "data: [DONE]"
WHOLE = [": alive", chunk(""), chunk("a"), 0.05, chunk("b"), USAGE, DONE]


@contextmanager
def scripted(*scripts):
    """A server whose n-th request for an answer meets the n-th script, the last one from then on:
    an HTTP status, or lines of events with pauses between them. Gives its URL and what it saw."""
    seen, lock = [], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply(200, json.dumps({"data": [{"id": "tiny"}]}))

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                script = scripts[min(len(seen), len(scripts) - 1)]
                seen.append((self.path, self.headers.get("Authorization"), body, time.monotonic()))
            if isinstance(script, int):
                self.reply(script, "{}")
                return
            self.send_response(200)
            self.end_headers()
            for line in script:
                if isinstance(line, float):
                    time.sleep(line)
                else:
                    self.wfile.write(f"{line}\n\n".encode())
                    self.wfile.flush()

        def reply(self, status, text):
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def load(capsys):
    """Runs the load test: (exit code, figures, standard error)."""

    def run(url, *arguments):
        options = ["--url", url, "--warmup", "0", "--json", *map(str, arguments)]
        code = serving.main(options)
        captured = capsys.readouterr()
        return code, json.loads(captured.out), captured.err

    return run


def test_examples():
    assert doctest.testmod(serving).failed == 0


def test_what_an_answer_is(load):
    with scripted(WHOLE) as (url, seen):
        code, figures, err = load(url, "--users", 2, "--requests", 6, "--new", 2)
    assert (code, err, figures["model"], figures["errors"]) == (0, "", "tiny", {})
    assert (figures["answered"], figures["prompt_tokens"], figures["new_tokens"]) == (6, 42, 12)
    # One gap in each answer, of 50 ms; the event without text and the comment are no token.
    assert 45 < figures["inter_token_ms"]["p50"] < 200
    assert figures["first_token_ms"]["p50"] < figures["end_to_end_ms"]["p50"]
    assert figures["end_to_end_ms"]["p99"] >= 50
    assert figures["goodput"] == figures["requests_per_second"] == 6 / figures["seconds"]
    path, key, body, _ = seen[0]
    assert (path, key) == ("/v1/chat/completions", None)
    assert (body["max_tokens"], body["stream"], body["ignore_eos"]) == (2, True, True)


def test_the_other_protocol_and_a_key(load):
    events = [chunk("a", "completions"), USAGE, DONE]
    with scripted(events) as (url, seen):
        options = ["--api", "completions", "--api-key", "k", "--model", "m", "--no-ignore-eos"]
        _, figures, _ = load(url, *options, "--requests", 2)
    assert figures["answered"] == 2 and figures["inter_token_ms"] is None
    path, key, body, _ = seen[0]
    assert (path, key, body["model"]) == ("/v1/completions", "Bearer k", "m")
    assert isinstance(body["prompt"], str) and "ignore_eos" not in body


@pytest.mark.parametrize(
    "script, kind",
    [
        (429, "429"),
        (500, "500"),
        ([chunk("a")], "stream cut off"),
        ([chunk("a"), 'data: {"error": {"message": "no"}}'], "error in the stream"),
        (["data: {"], "no JSON"),
        (["data: []"], "not the protocol"),
        (['data: {"choices": [1]}'], "not the protocol"),
        (['data: {"usage": {}}', 'data: {"usage": {"x": 1}}'], "not the protocol"),
        ([USAGE, DONE], "no text"),
        ([chunk("a"), 2.0, DONE], "timeout"),
    ],
)
def test_errors_are_counted_and_measured_in_nothing(load, script, kind):
    with scripted(script, WHOLE) as (url, _):
        options = ["--users", 1, "--requests", 2, "--timeout", 0.5]
        code, figures, _ = load(url, *options)
    assert (code, figures["requests"], figures["answered"]) == (0, 2, 1)
    assert figures["errors"] == {kind: 1} and figures["new_tokens"] == 2


def test_nobody_answers(load):
    with scripted(503) as (url, _):
        code, figures, _ = load(url, "--requests", 3)
    assert code == 1 and figures["errors"] == {"503": 3} and figures["first_token_ms"] is None
    code, figures, _ = load(url, "--requests", 2, "--model", "m")  # it has ended
    assert code == 1 and figures["errors"] == {"ConnectError": 2}
    with pytest.raises(SystemExit, match="names no model"):
        load(url)


def test_closed_loop_has_so_many_at_once(load):
    slow = [chunk("a"), 0.2, USAGE, DONE]
    with scripted(slow) as (url, seen):
        load(url, "--users", 3, "--requests", 6)
    times = sorted(at for *_, at in seen)
    assert times[2] - times[0] < 0.15 and times[3] - times[0] > 0.18


def test_open_loop_does_not_wait_for_answers(load):
    slow = [chunk("a"), 0.5, USAGE, DONE]
    with scripted(slow) as (url, seen):
        _, figures, _ = load(url, "--rate", 40, "--requests", 12, "--seed", 1)
    planned = [job.due for job in serving.jobs(parsed("--rate", 40, "--requests", 12, "--seed", 1))]
    times = sorted(at for *_, at in seen)
    assert times[-1] - times[0] < planned[-1] - planned[0] + 0.3
    assert figures["rate"] == 40 and figures["answered"] == 12


def parsed(*arguments) -> argparse.Namespace:
    return serving.parse([str(a) for a in arguments])


def test_the_seed_decides():
    options = ["--rate", 5, "--prompt", "3:9", "--new", "1:5", "--requests", 400]
    first, again = (serving.jobs(parsed(*options, "--seed", 3)) for _ in range(2))
    assert first == again != serving.jobs(parsed(*options, "--seed", 4))
    assert {len(job.prompt.split()) for job in first} == {*range(3, 10)}
    assert {job.new_tokens for job in first} == {*range(1, 6)}
    assert len({job.prompt.split()[0] for job in first}) == 400  # no prefix in common
    assert 0.85 < first[-1].due * 5 / 400 < 1.15
    assert {job.due for job in serving.jobs(parsed("--users", 2))} == {0.0}


def test_goodput_counts_what_came_in_time():
    options = parsed("--goal-first", 100, "--goal-inter", 20)
    fast = Outcome(1.0, texts=[1.05, 1.06, 1.08], ended=1.1)
    assert serving.meets(fast, options)
    late = Outcome(1.0, late=0.06, texts=[1.05], ended=1.1)  # it waited before it was sent
    stuttering = Outcome(1.0, texts=[1.05, 1.06, 1.13], ended=1.2)
    assert not serving.meets(late, options) and not serving.meets(stuttering, options)


def test_an_open_loop_that_falls_behind_says_so():
    def run(late, growth):
        return [Outcome(i, late, [i + 0.1], i + 0.2 + growth * i) for i in range(40)]

    assert serving.warnings(run(0.0, 0.0)) == []
    (client,) = serving.warnings(run(0.2, 0.0))
    assert "this client fell behind: it sent 40 of 40" in client
    (server,) = serving.warnings(run(0.0, 0.1))
    assert "the server fell behind" in server


def test_what_is_printed_for_people(capsys):
    with scripted(429, WHOLE) as (url, _):
        assert serving.main(["--url", url, "--warmup", "0", "--requests", "3", "--users", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("2 of 3 requests in") and lines[2] == "    1 ended with: 429"
    assert [line.split()[0] for line in lines[-3:]] == ["first", "inter", "end"]


@pytest.mark.parametrize(
    "wrong",
    [
        "--users 0",
        "--rate 0",
        "--rate inf",
        "--prompt 5:2",
        "--new x",
        "--rate 1 --users 2",
        "--url x:80",
    ],
)
def test_options(wrong, capsys):
    with pytest.raises(SystemExit):
        serving.parse(wrong.split())
    assert "error" in capsys.readouterr().err


def test_events_may_come_in_any_lines():
    async def lines():
        for line in ("event: x", "data:  [1", ""):
            yield line

    async def read():
        return [event async for event in serving.events(lines())]

    with pytest.raises(serving.StreamError, match="no JSON"):
        asyncio.run(read())
