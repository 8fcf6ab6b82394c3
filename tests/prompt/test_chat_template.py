"""Chat templates: where they are found, what they see, and what they may spend."""

import doctest
import importlib
import os
import time

import pytest

from l4kernels.prompt.chat_template import ChatError, ChatTemplate
from tests.support import tiny

USER = [{"role": "user", "content": "x"}]


def render(source, messages=USER, **arguments):
    return ChatTemplate(source).render(messages, **arguments)


# What is in the folder, and which template is used without and with tools.
SOURCES = [
    ({"chat_template.jinja": "1", "chat_template.json": "2", "tokenizer_config.json": "3"}, "11"),
    ({"chat_template.json": "2", "tokenizer_config.json": "3"}, "22"),
    ({"tokenizer_config.json": "3"}, "33"),
    ({"tokenizer_config.json": {"default": "3", "tool_use": "4"}}, "34"),
    ({"tokenizer_config.json": {"tool_use": "4"}}, "!4"),
    ({"chat_template.jinja": "1", "additional_chat_templates/tool_use.jinja": "5"}, "15"),
    ({"chat_template.jinja": "1", "additional_chat_templates/rag.jinja": "5"}, "11"),
    ({"additional_chat_templates/tool_use.jinja": "5", "tokenizer_config.json": "3"}, "!5"),
]


def write_templates(folder, files):
    for name, source in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        if name.endswith(".jinja"):
            (folder / name).write_text(source)
        else:
            if isinstance(source, dict):
                source = [{"name": name, "template": text} for name, text in source.items()]
            tiny.write_json(folder / name, {"chat_template": source})


@pytest.mark.parametrize("files, used", SOURCES)
def test_templates_are_chosen_as_transformers_does(tmp_path, files, used):
    from transformers import PreTrainedTokenizerFast

    known_to_tokenizers = "chat_template.json" not in files
    if known_to_tokenizers:
        tiny.write_settings(tmp_path)
        (tmp_path / "tokenizer_config.json").write_text("{}")
    write_templates(tmp_path, files)
    theirs = known_to_tokenizers and PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for tools, want in zip((None, [{}]), used, strict=True):
        if want == "!":
            with pytest.raises(ChatError, match="no chat template named 'default'"):
                ChatTemplate.from_pretrained(tmp_path, tools=bool(tools))
            continue
        assert ChatTemplate.from_pretrained(tmp_path, tools=bool(tools)).source == want
        if theirs:
            assert theirs.get_chat_template(tools=tools) == want


def test_templates_are_chosen_by_name(tmp_path):
    write_templates(tmp_path, {"tokenizer_config.json": {"default": "3", "rag": "6"}})
    assert ChatTemplate.from_pretrained(tmp_path, "rag").source == "6"
    with pytest.raises(ChatError, match=r"no chat template named 'x'.*default, rag"):
        ChatTemplate.from_pretrained(tmp_path, "x")


@pytest.mark.parametrize("source", [3, {}, [], ["x"], [{"name": "default"}], {"default": None}])
def test_template_entries_that_are_none(tmp_path, source):
    tiny.write_json(tmp_path / "tokenizer_config.json", {"chat_template": source})
    with pytest.raises(ChatError, match=r"tokenizer_config\.json: expected chat_template to be"):
        ChatTemplate.from_pretrained(tmp_path)


def test_template_files_are_read_carefully(tmp_path):
    with pytest.raises(ChatError, match="no chat template"):
        ChatTemplate.from_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[" * 200_000)
    with pytest.raises(ChatError, match="nested too deeply"):
        ChatTemplate.from_pretrained(tmp_path)
    os.mkfifo(tmp_path / "chat_template.jinja")
    with pytest.raises(ChatError, match="expected a regular file, got a pipe"):
        ChatTemplate.from_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(ChatError, match=r"chat_template\.jinja: not a valid template"):
        ChatTemplate.from_pretrained(tmp_path)


def test_template_functions():
    assert render("{{ messages[0] | tojson }}") == '{"role": "user", "content": "x"}'
    assert render("{{ strftime_now('%Y') }}").isdigit()
    assert render("{% generation %}a{% endgeneration %}") == "a"
    loop = "{% for i in range(9) %}{% if i > 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    assert render(loop) == "012"
    assert render("  {% if true %}\nx\n  {% endif %}\n") == "x\n"
    with pytest.raises(ChatError, match="chat template: no such role"):
        render("{{ raise_exception('no such role') }}")


CONTENT = "  é<a</think>b\u2028c%s{0} \U0001f600 & 'q' \"d\"\n\tline  "
# Each sees `c`, the text of a caller, and must make of it what jinja2 makes of the plain text.
EXPRESSIONS = """
c.split('</think>')[-1] | c.split('</think>') | c.rsplit('a', 1) | c.partition('</think>')
c | tojson(ensure_ascii=true) @ c | tojson @ [c, {c: c}] | tojson(indent=2) @ {'k': c} | tojson
c | tojson(separators=(',', ':'), sort_keys=true) @ c | urlencode @ c | length @ c | trim @ [c] | trim
[c] | join('-') @ c | e @ c | upper @ c | title @ c | capitalize @ c | lower @ c | list @ c | reverse
c | replace('<', '>') @ c | indent(3, true) @ c | indent('> ', blank=true) @ '' | indent(2, true) @ c | wordwrap(5) @ c | truncate(9) @ c | center(60)
c | first @ c | last @ c | batch(3) | list @ c | slice(3) | list @ c | wordcount @ c | striptags
c | safe @ (c | safe) + '<b>' @ '<b>' + (c | safe) @ '%s' | format(c) @ '%r %5s %%' | format(c, c)
'{} {!r} {:>60}'.format(c, c, c) @ '{0.x}{a}'.format(c, a=c) @ c.format(1) @ '{x}'.format_map({'x': c})
c ~ 1 ~ c @ c + '<' + c @ '<' + c @ c * 2 @ 2 * c @ c[2:-3] @ c[::-1] @ c[3] @ c.strip('x ') @ c == '  é'
'</think>' in c @ c.startswith('  é<') @ c.find('b') @ c.upper().lower() @ c.splitlines() @ c.split()
c is string @ c is iterable @ c is mapping @ c is sameas c @ c < 'x' @ {c: 1}[c] @ {'a': c}.a @ c | string
[c, 'b'] | sort @ [c, c] | unique | list @ [c] | map('trim') | list @ [c] | map('length') | sum @ (c | attr('upper'))()
[{'k': c}] | map(attribute='k') | join @ [{'k': c}] | selectattr('k', 'equalto', c) | list @ c.encode('utf-8', 'replace')
[c] | string @ (c, c) @ {'k': c} @ namespace(a=c).a @ c | default('x') @ '' | default(c, true) @ c | int @ c | pprint
{'k': c} | items | list @ {'k': c} | dictsort @ [c] | groupby(0) | list @ c | xmlattr @ c | urlize @ c.nothing @ c | map('upper') | list
c.isupper() @ c.count('a') @ c.zfill(70) @ c.ljust(70, '*') @ c.removeprefix('  ') @ c.translate({97: '<'}) @ c.join(['a', 'b'])
c.replace('', '-') @ c.replace('a', '<', 1) @ 'x'.join(c) @ c.expandtabs(3) @ c.swapcase() @ c['upper']() @ c.casefold()
"""  # noqa: E501
TABLE = [e.strip() for line in EXPRESSIONS.split("\n") for e in line.split(" @ ") if e.strip()]


def plain_jinja():
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _compile_jinja_template


@pytest.mark.parametrize("expression", TABLE)
def test_templates_see_what_the_caller_wrote(expression):
    """The text is Hugging Face's, marks or not, in set blocks, macros and filter blocks, too."""
    for source in (
        "{% set c = messages[0].content %}{{ " + expression + " }}",
        "{% macro m(c) %}{% set x %}{{ " + expression + " }}{% endset %}{{ x }}{% endmacro %}"
        "{{ m(messages[0].content) ~ m(bos_token) }}"
        "{% filter trim %} {{ bos_token }}{% endfilter %}",
    ):
        variables = {"messages": [{"content": CONTENT}], "bos_token": "<s>"}
        try:
            want = plain_jinja()(source).render(**variables)
        except Exception:
            with pytest.raises(ChatError):
                render(source, **variables)
            continue
        assert render(source, **variables) == want


def test_no_mark_is_seen_where_text_is_split_escaped_or_shown():
    def of(content, expression):
        return render("{{ messages[0].content" + expression + " }}", [{"content": content}])

    assert of("aa</think>bb", ".split('</think>')[-1]") == "bb"
    assert of("<|eot|>é", " | tojson(ensure_ascii=true)") == '"<|eot|>\\u00e9"'
    assert of("<|eot|>", " | urlencode") == "%3C%7Ceot%7C%3E"
    assert of("<|eot|>", " | length") == "7"
    parts = [{"type": "text", "text": "<|eot|>"}]
    assert of(parts, " | trim") == "[{'type': 'text', 'text': '<|eot|>'}]"


def test_lone_surrogates_reach_the_template_and_come_back():
    text = "a\ud83d\ude00\udcff"
    assert render("{{ messages[0].content }}", [{"content": text}]) == text


def test_the_budget_lets_a_long_conversation_through():
    turns = [{"role": "user", "content": "word " * 200}] * 2000
    started = time.perf_counter()
    text = render(
        "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' ~ m.content | trim }}{% endfor %}", turns
    )
    assert len(text) > 2_000_000
    assert time.perf_counter() - started < 5


def test_errors_are_one_line_of_characters_that_can_be_printed():
    for source in ("{{ raise_exception(messages[0].content) }}", "{% for\n\x1b]0;x\x07 %}"):
        with pytest.raises(ChatError) as error:
            render(source, [{"content": "\x1b]0;x\x07\n\u202e" + "y" * 9999}])
        assert str(error.value).isprintable() and len(str(error.value)) < 700
    with pytest.raises(ChatError, match=r"chat template: \\x1b]0;x"):
        render("{{ raise_exception('\x1b]0;x') }}")


@pytest.mark.parametrize(
    "messages", [[], "hi", ["hi"], {"role": "user"}, [USER, USER], None, 3, iter(())]
)
def test_conversations_that_are_none(messages):
    with pytest.raises(ChatError, match="expected"):
        render("{{ messages }}", messages)


def test_variables_reach_the_template_or_are_refused():
    source = "{% if enable_thinking is defined and enable_thinking %}T{% endif %}{{ date_string }}"
    assert render(source, enable_thinking=True, date_string="D") == "TD"
    assert render(source, enable_thinking=False) == ""
    for unread in ({"enable_thinkng": True}, {"tools": [{}]}, {"documents": [{}]}):
        with pytest.raises(ChatError, match=r"does not read (e|t|d).*date_string, enable_thinking"):
            render(source, **unread)
    assert (
        render("{% set tools = tools or [] %}{{ tools }}", tools=[{"name": "f"}])
        == "[{'name': 'f'}]"
    )
    assert render("{{ tools is none }}{{ documents is none }}", tools=[]) == "FalseTrue"
    for name in ("tools", "documents"):
        for value in ("abc", {"name": "f"}, [len], ["f"]):
            with pytest.raises(ChatError, match="expected"):
                render("{{ tools }}{{ documents }}", **{name: value})
    with pytest.raises(ChatError, match=r"other template variables than \['bos_token'\]"):
        ChatTemplate("{{ bos_token }}").mark(
            USER, special={"bos_token": "<s>"}, variables={"bos_token": "</s>"}
        )


TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content CUT }}[end]{% endfor %}"
OPEN = [
    (TURNS.replace("CUT", ""), "an answer \n"),
    (TURNS.replace("CUT", "| trim"), "an answer \n"),
    (TURNS.replace("CUT", "| trim"), ""),
    (TURNS.replace("CUT", ""), "CONTINUE_FINAL_MESSAGE_TAG x"),
    (TURNS.replace("CUT", "[0].text"), [{"type": "text", "text": "an answer"}]),
    (TURNS.replace("CUT", "[1].text"), [{"type": "image"}, {"type": "text", "text": "a "}]),
]


@pytest.mark.parametrize("source, content", OPEN)
def test_the_last_message_goes_on_as_in_transformers(source, content):
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
    [want], _ = render_jinja_template([messages], chat_template=source, continue_final_message=True)
    assert render(source, messages, continue_final_message=True) == want


def test_thoughts_go_on_under_each_name():
    from transformers.utils.chat_template_utils import render_jinja_template

    source = (
        "{{ messages[-1].thinking }}|{{ messages[-1].reasoning_content }}|{{ messages[0].content }}"
    )
    for field in ("reasoning", "thinking", "reasoning_content"):
        messages = [{"role": "user", "content": "q"}, {"role": "assistant", field: "hm "}]
        for go_on in (False, field):
            [want], _ = render_jinja_template(
                [messages], chat_template=source, continue_final_message=go_on
            )
            assert render(source, messages, continue_final_message=go_on) == want


@pytest.mark.parametrize(
    "source, message, arguments, why",
    [
        (
            "{{ messages[0].content }}",
            {"content": "x"},
            {"add_generation_prompt": True},
            "expected one of",
        ),
        ("{{ messages[0].content[:1] }}", {"content": "xyz"}, {}, "leaves out the end"),
        ("{{ messages[0].content | length }}", {"content": "xyz"}, {}, "leaves out the end"),
        ("{{ messages[0].text }}", {"content": "xyz"}, {}, "does not read content"),
        ("{{ messages[0].content }}", {"role": "x"}, {}, "no content to continue"),
        (
            "{{ messages[0].content }}",
            {"content": [{"type": "image"}]},
            {},
            "no content to continue",
        ),
        ("{{ messages[0].content }}", {"content": []}, {}, "no content to continue"),
    ],
)
def test_messages_that_cannot_go_on(source, message, arguments, why):
    with pytest.raises(ChatError, match=why):
        render(source, [message], continue_final_message=True, **arguments)


@pytest.mark.parametrize("value", ["no", "", 0, 1, [], 2.5])
def test_how_a_prompt_ends_is_said_in_bools(value):
    with pytest.raises(ChatError, match="expected add_generation_prompt to be a bool"):
        render("{{ messages[0].content }}", add_generation_prompt=value)
    if value != "no":  # the name of a field
        with pytest.raises(
            ChatError, match="expected continue_final_message to be a bool or a field's name"
        ):
            render("{{ messages[0].content }}", continue_final_message=value)


@pytest.mark.parametrize("module", ["chat", "chat_template", "plain_data"])
def test_examples(module):
    result = doctest.testmod(importlib.import_module(f"l4kernels.prompt.{module}"))
    assert result.attempted and not result.failed
