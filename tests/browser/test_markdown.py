"""Answers and questions as shown: markdown becomes elements, nothing becomes markup."""

import json
import time

import pytest

pytestmark = pytest.mark.browser

ALLOWED = {
    *("P", "H3", "H4", "H5", "H6", "STRONG", "EM", "DEL", "CODE", "PRE", "A", "UL", "OL", "LI"),
    *("BLOCKQUOTE", "HR", "TABLE", "THEAD", "TBODY", "TR", "TH", "TD", "DIV", "SPAN", "BUTTON"),
}

TEXT = """# Title with `code`

Two *kinds* of **emphasis**, ~~gone~~, snake_case_name and 2 * 3 * 4.
A second line, https://example.org/a_b_c. and [a link](https://example.org/x_(y) "why").

1. first
2. second
   - inner **bold**
   - other

     a paragraph of it
3. third

> quoted
> - with a list

| name | value |
|------|------:|
| `a`  | 1     |
| b    | **2** |

```python
if a < b:  # <b>not bold</b>
    print("```x")
```
---
The \\*end\\* ``with ` tick``.
"""

SHOWN = (
    "<h3>Title with <code>code</code></h3>"
    "<p>Two <em>kinds</em> of <strong>emphasis</strong>, <del>gone</del>, snake_case_name and "
    '2 * 3 * 4.\nA second line, <a href="https://example.org/a_b_c" target="_blank" '
    'rel="noopener noreferrer">https://example.org/a_b_c</a>. and '
    '<a href="https://example.org/x_(y)" target="_blank" rel="noopener noreferrer">a link</a>.</p>'
    '<ol start="1"><li><p>first</p></li><li><p>second</p><ul><li><p>inner <strong>bold</strong></p>'
    "</li><li><p>other</p><p>a paragraph of it</p></li></ul></li><li><p>third</p></li></ol>"
    "<blockquote><p>quoted</p><ul><li><p>with a list</p></li></ul></blockquote>"
    '<div class="scroll"><table><thead><tr><th>name</th><th>value</th></tr></thead><tbody>'
    "<tr><td><code>a</code></td><td>1</td></tr><tr><td>b</td><td><strong>2</strong></td></tr>"
    "</tbody></table></div>"
    '<div class="fence"><div><span>python</span><button type="button">Copy</button></div>'
    '<pre tabindex="0"><code>if a &lt; b:  # &lt;b&gt;not bold&lt;/b&gt;\n    print("```x")'
    "</code></pre></div><hr><p>The *end* <code>with ` tick</code>.</p>"
)

ATTACKS = [
    "<img src=x onerror=\"document.title='hit'\">",
    "<script>document.title='hit'</script>",
    "<svg/onload=document.title='hit'><iframe src=javascript:document.title='hit'>",
    "[x](javascript:document.title='hit')",
    "[x](JaVaScRiPt:document.title='hit')",
    "[x](\x01javascript:document.title='hit')",
    "[x](data:text/html,<script>document.title='hit'</script>)",
    "[x](vbscript:hit) [y](//example.org) [z](/v1/models) [w](file:///etc/passwd)",
    "<javascript:document.title='hit'>",
    "![x](https://example.org/pixel.png)",
    '[a](https://example.org/"onmouseover="document.title=1)',
    "[<img src=x onerror=alert(1)>](https://example.org/<script>)",
    "`<img src=x onerror=alert(1)>` **<b onclick=alert(1)>**",
    "```<script>alert(1)</script>\n</code></pre><script>alert(1)</script>\n```",
    "| <img src=x onerror=alert(1)> |\n|---|\n| <script>alert(1)</script> |",
    "# <h1 style='position:fixed'>\n> <style>*{display:none}</style>\n- <base href=//evil>",
    "[[x](javascript:a)](javascript:b) [a [b](https://example.org) c](javascript:d)",
    "&lt;img src=x onerror=alert(1)&gt; &#106;avascript:",
    "[x](https://example.org\njavascript:alert(1))",
    "\u202e[x](javascript:alert(1))\u2028<script>alert(1)</script>",
]

PROBE = """
const root = document.querySelector("#log");
const inside = [...root.querySelectorAll(".markdown *")];
return {
  tags: [...new Set(inside.map((e) => e.tagName))],
  attributes: [...new Set(inside.flatMap((e) => e.getAttributeNames()))],
  links: inside.filter((e) => e.tagName === "A").map((e) => [e.protocol, e.rel]),
  text: root.querySelector(".markdown").textContent,
  questions: root.querySelector(".question .text").innerHTML,
  title: document.title,
};
"""


def html(chat):
    return chat.run("return document.querySelector('.answer:last-of-type .markdown').innerHTML")


def test_markdown_becomes_elements(chat, server):
    server.will(TEXT)
    chat.ask("Show it")
    assert html(chat) == SHOWN


@pytest.mark.parametrize("cut", [None, 1], ids=["events", "bytes"])
def test_a_growing_answer_ends_as_the_whole_one(chat, server, cut):
    """Whatever the pieces are: characters of UTF-8, lines and events may be cut anywhere."""
    text = TEXT if cut is None else "**Größe** ≤ 5 €\n\n- 🦙\n- `x`\n\nEnd"
    server.will(*text, pause=0.0003, cut=cut)
    chat.ask("Show it slowly")
    grown = html(chat)
    server.will(text)
    chat.button("Regenerate").click()
    chat.answer()
    assert grown == html(chat)


def test_nothing_becomes_markup(chat, server):
    """Neither of an answer nor of a question, each attack alone and all of them together."""
    for text in [*ATTACKS, "\n\n".join(ATTACKS), " ".join(ATTACKS)]:
        server.will(text)
        chat.run("$('text').value = arguments[0]; fit()", text)
        chat.button("Send").click()
        chat.answer()
        seen = chat.run(PROBE)
        assert {*seen["tags"]} <= ALLOWED, text
        assert {*seen["attributes"]} <= {
            "href",
            "rel",
            "target",
            "class",
            "type",
            "start",
            "tabindex",
        }
        assert all(link in (["https:", "noopener noreferrer"],) for link in seen["links"]), text
        assert "<" not in seen["questions"], text
        assert seen["title"] == "l4kernels"
        chat.button("New chat").click()
    asked = chat.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert {url.removeprefix(server.url) for url in asked} == {"v1/models", "v1/chat/completions"}


def test_what_is_no_link_stays_readable(chat, server):
    server.will("[x](javascript:alert(1)) and <img src=x onerror=alert(1)>")
    assert chat.ask("Go") == "[x](javascript:alert(1)) and <img src=x onerror=alert(1)>"


HOSTILE = {
    "brackets": "[" * 100_000,
    "links": "[](" * 60_000,
    "targets": "[](a(b" * 30_000,
    "paired targets": "[](a" + "(b)" * 60_000,
    "stars": "*a **a " * 30_000,
    "runs of stars": "*" * 100_000,
    "ticks": "".join("`" * n + " " for n in range(1, 450)),
    "quotes": ">" * 50_000,
    "lists": "- " * 50_000,
    "items": "- a\n" * 20_000,
    "fences": "```a`" * 30_000,
    "rules": "- " * 30_000 + "x\n" + "*" * 50_000 + "x",
    "columns": "|a\n" + "|-" * 50_000 + "x",
    "headings": "# " + " #" * 50_000 + "x",
    "spaces": "x" + " " * 100_000 + "x\n" + " " * 100_000 + "- x",
    "addresses": "http://" * 20_000,
    "marks": "http://a" + "." * 100_000 + "x",
    "code": "``` \n" + "a\n" * 60_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_the_time_is_linear(chat, name):
    """Four times the text takes four times as long, with a quadratic scan sixteen times; the
    shortest of some times, for the machine may be busy."""
    quarter, whole = chat.run(
        """
        const time = (text) => {
          const began = performance.now();
          new Rendering(document.createElement("div")).show(text);
          return performance.now() - began;
        };
        const shortest = (text) => Math.min(...Array.from({ length: 5 }, () => time(text)));
        const text = arguments[0];
        return [shortest(text.slice(0, text.length / 4)), shortest(text)];
        """,
        HOSTILE[name],
    )
    assert whole < 9 * quarter + 30


def test_a_long_answer_does_not_block_the_page(chat, server):
    """Of 6,000 blocks only the last is made anew while the answer grows."""
    pieces = [f"Paragraph {n} of **many**.\n\n" for n in range(6000)]
    server.will(*pieces)
    chat.run(
        """
        window.made = 0;
        new MutationObserver((all) => all.forEach((one) => { made += one.addedNodes.length; }))
          .observe($("log"), { childList: true, subtree: true });
        """
    )
    began = time.monotonic()
    chat.send("Write a lot")
    chat.wait(lambda: chat.find("#log").get_attribute("aria-busy") == "false", "an answer")
    assert chat.run("return document.querySelectorAll('.markdown > p').length") == 6000
    assert chat.run("return made") < 9000, json.dumps(time.monotonic() - began)


def test_code_can_be_copied(chat, server):
    chat.command(
        "Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"]
    )
    server.will("```\n<b>&amp;</b>\n  two\n```")
    chat.ask("Code")
    chat.find(".fence button").click()
    chat.wait(lambda: chat.find(".fence button").text == "Copied", "a copy")
    assert chat.run("return navigator.clipboard.readText()") == "<b>&amp;</b>\n  two"
