"""A server of the chat page whose answers are written down beforehand."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue
from threading import Thread
from typing import Any

from l4kernels.server.page import HEADERS, PAGE

MODEL = "scripted"


@dataclass
class Reply:
    """What one request for a chat gets: an answer in pieces, or an error."""

    pieces: list[str] = field(default_factory=list)
    pause: float = 0.0
    """Seconds before each piece."""
    cut: int | None = None
    """Bytes of each write, wherever they end; by default an event a write."""
    finish_reason: str = "stop"
    status: int = 200
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    breaks: bool = False
    """Ends the connection instead of the answer."""
    late_error: str = ""
    """An error after the pieces."""

    def events(self) -> Iterator[bytes]:
        for piece in self.pieces:
            time.sleep(self.pause)
            yield event({"choices": [{"delta": {"content": piece}, "finish_reason": None}]})
        if self.late_error:
            yield event({"error": {"message": self.late_error}})
        if self.breaks or self.late_error:
            return
        yield event({"choices": [{"delta": {}, "finish_reason": self.finish_reason}]})
        usage = {"prompt_tokens": 5, "completion_tokens": len(self.pieces)}
        yield event({"choices": [], "usage": usage})
        yield b"data: [DONE]\r\n\r\n"


def event(data: dict[str, Any]) -> bytes:
    """With a comment and several lines of data, as the format allows."""
    lines = json.dumps(data, ensure_ascii=False, indent=0).splitlines()
    return "\r\n".join([": comment", *(f"data: {line}" for line in lines), "", ""]).encode()


class ScriptedServer(ThreadingHTTPServer):
    """Answers with `replies` in turn, keeps the `requests` and refuses keys other than `key`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: SimpleQueue[Reply] = SimpleQueue()
        self.requests: list[dict[str, Any]] = []
        self.key: str | None = None
        self.url = f"http://127.0.0.1:{self.server_port}/"

    def will(self, *pieces: str, **settings: Any) -> None:
        self.replies.put(Reply([*pieces], **settings))


class Handler(BaseHTTPRequestHandler):
    server: ScriptedServer

    def do_GET(self) -> None:
        if self.path == "/":
            self.answer(200, PAGE, HEADERS)
        elif self.path == "/v1/models" and self.knows_key():
            self.answer_json(200, {"data": [{"id": MODEL, "object": "model"}]})
        elif self.path != "/v1/models":
            self.refuse(404, "no such page")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.knows_key():
            return
        self.server.requests.append(body)
        reply = self.server.replies.get_nowait()
        if reply.status != 200:
            self.refuse(reply.status, reply.message, reply.headers)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for data in reply.events():
            size = reply.cut or len(data)
            for begin in range(0, len(data), size):
                self.write(data[begin : begin + size])
                time.sleep(0.001 if reply.cut else 0)

    def write(self, data: bytes) -> None:
        try:
            self.wfile.write(data)
        except OSError:  # the page went away
            self.close_connection = True

    def knows_key(self) -> bool:
        known = self.server.key in (None, self.headers.get("Authorization", "")[len("Bearer ") :])
        if not known:
            self.refuse(401, "expected an API key")
        return known

    def refuse(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        self.answer_json(status, {"error": {"message": message}}, headers)

    def answer_json(
        self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None
    ) -> None:
        kind = {"Content-Type": "application/json"}
        self.answer(status, json.dumps(body).encode(), kind | (headers or {}))

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.write(body)

    def log_message(self, *_: Any) -> None:
        """Says nothing: the tests look at `requests`."""


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
