"""The chat page: one document without requests of its own, put together from the files beside it.

`PAGE` is the document, `HEADERS` what it is served with. Its policy names style and script by their
hashes, so no other script runs, whatever a model or a user writes.
"""

import base64
import hashlib
from pathlib import Path

FOLDER = Path(__file__).parent
SCRIPTS = ("markdown.js", "server.js", "chat.js")


def read(*names: str) -> str:
    return "\n" + "\n".join((FOLDER / name).read_text("utf-8") for name in names)


def digest(text: str) -> str:
    """The source expression of an inline script or style: `'sha256-…'`."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


STYLE, SCRIPT = read("page.css"), read(*SCRIPTS)
PAGE = (
    (FOLDER / "page.html")
    .read_text("utf-8")
    .replace("<style></style>", f"<style>{STYLE}</style>")
    .replace("<script></script>", f"<script>{SCRIPT}</script>")
    .encode()
)
POLICY = {
    "default-src": "'none'",
    "script-src": digest(SCRIPT),
    "style-src": digest(STYLE),
    "img-src": "data: blob:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
