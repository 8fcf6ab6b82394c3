"""The chat page as a document: one, without requests of its own, under a policy that names it.

What it does in a browser is tested in `tests/browser`.
"""

import base64
import hashlib
import re
from html.parser import HTMLParser

from l4kernels.server.page import FOLDER, HEADERS, PAGE

TEXT = PAGE.decode()
SOURCES = {path.name: path.read_text("utf-8") for path in FOLDER.glob("*.[hcj]*")}


class Document(HTMLParser):
    """Its elements, and the text of scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inner: dict[str, list[str]] = {"script": [], "style": []}

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.lasttag in self.inner and self.cdata_elem:
            self.inner[self.lasttag].append(data)


DOCUMENT = Document()
DOCUMENT.feed(TEXT)


def policy() -> dict[str, str]:
    rules = HEADERS["Content-Security-Policy"].split("; ")
    return dict(rule.split(" ", 1) for rule in rules)


def test_the_policy_names_its_script_and_its_style_and_allows_no_other():
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        (inner,) = re.findall(f"<{tag}>(.*?)</{tag}>", TEXT, re.S)
        assert "".join(DOCUMENT.inner[tag]) == inner
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert policy()[rule] == f"'sha256-{digest}'"
    assert policy()["default-src"] == "'none'" and policy()["connect-src"] == "'self'"


def test_no_element_asks_for_anything_or_holds_code():
    tags = [tag for tag, _ in DOCUMENT.elements]
    assert tags.count("script") == tags.count("style") == 1
    for tag, attributes in DOCUMENT.elements:
        assert tag not in ("iframe", "object", "embed", "base", "audio", "video")
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        assert "src" not in attributes and "action" not in attributes, tag
        assert (attributes.get("href") or "data:").startswith("data:"), tag


def test_scripts_make_text_and_never_markup():
    scripts = "".join(text for name, text in SOURCES.items() if name.endswith(".js"))
    assert len(scripts) > 10_000
    markup = (
        r"innerHTML|outerHTML|insertAdjacent|document\.write|createContextual|DOMParser|setHTML"
    )
    assert not re.findall(rf"{markup}|\beval\(|new Function|\bimport\b|setAttribute", scripts)


def test_nothing_is_asked_of_other_hosts():
    rest = TEXT.replace("http://www.w3.org/2000/svg", "")
    assert not re.findall(r"https?://\w|url\(|@import|[\"'(]//", rest)


def test_labels_and_scripts_find_their_elements():
    ids = [attributes["id"] for _, attributes in DOCUMENT.elements if "id" in attributes]
    assert len(ids) == len({*ids})
    labels = [attributes.get("for") for tag, attributes in DOCUMENT.elements if tag == "label"]
    scripts = "".join(SOURCES.values())
    asked = {*re.findall(r'(?:\$|\bon)\("([\w-]+)"', scripts)}
    assert {*labels} | asked <= {*ids} and len(labels) >= 7


def test_its_files_can_be_read_in_one_sitting():
    for name, text in SOURCES.items():
        lines = text.splitlines()
        assert len(lines) <= 500 and max(map(len, lines)) <= 100, name
