"""`l4k chat`: turns, commands, messages of several lines, and Ctrl-C at any moment."""

import base64
import doctest
import io
import json
import signal
import sys

import pytest
import torch
from PIL import Image

from l4kernels import Engine, Llama4, Prompter
from l4kernels.cli import chat, conversation, interrupts, main, messages
from l4kernels.cli.conversation import Conversation, ImageFile, Message
from l4kernels.cli.messages import Typed
from l4kernels.demo import CHECKPOINT
from tests.support import tiny
from tests.support.terminals import L4K, PseudoTerminal

GREEDY = ["--temperature", "0", "--max-new-tokens", "12"]
PAGE = 128  # tokens: what is reused are whole pages
LONG = "And it came to pass in those days, that there went out a decree. " * 8


@pytest.fixture(autouse=True)
def heeds_signals():
    """A shell without job control starts what runs in the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def prompter():
    return Prompter(CHECKPOINT)


@pytest.fixture(scope="module")
def model():
    return Llama4.from_pretrained(CHECKPOINT)


@pytest.fixture
def picture(tmp_path):
    file = tmp_path / "a red one.png"
    Image.new("RGB", (60, 30), (200, 30, 30)).save(file)
    return file


@pytest.fixture
def talk(capsys, monkeypatch):
    """Runs the verb on what a pipe brings: (exit code, standard output, standard error)."""

    def run(typed: str | bytes, *options, model=CHECKPOINT):
        data = typed.encode() if isinstance(typed, str) else typed
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "ascii"))
        code = main(["chat", str(model), *GREEDY, *map(str, options)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def answers(talk):
    def run(typed: str, *options) -> list[dict]:
        code, out, err = talk(typed, "--json", *options)
        assert code == 0, out + err
        return [json.loads(line) for line in out.splitlines()]

    return run


def expected(prompter, model, turns, images=()) -> tuple[list[int], str]:
    """The prompt of a conversation, and the greedy answer, by way of Python alone."""
    prompt = prompter.chat(turns, images)
    ids = torch.tensor([prompt.ids])
    tokens = model.generate(ids, 12, pixel_values=prompt.pixel_values)[0, ids.shape[1] :].tolist()
    return prompt.ids, prompter.tokenizer.decode(tokens).removesuffix("<|eot|>")


def test_examples():
    assert doctest.testmod(messages).failed == doctest.testmod(conversation).failed == 0


# Turns


def test_the_first_answer_is_that_of_generate(talk, capsys):
    code, out, err = talk("Who was Möses?\n")
    assert (code, err) == (0, "")
    options = ["--chat", "--prompt", "Who was Möses?", "--model", str(CHECKPOINT)]
    assert main(["generate", *options, *GREEDY]) == 0
    assert out == capsys.readouterr().out + "\n"


def test_turns_are_those_of_python(answers, prompter, model):
    turns = [{"role": "system", "content": "Be brief."}]
    got = answers(f"{LONG}\n\nAnd then?\r\nEnd?", "--system", "Be brief.")
    assert len(got) == 3  # a blank line is no message
    for asked, answer in zip((LONG, "And then?", "End?"), got, strict=True):
        turns.append({"role": "user", "content": asked})
        ids, text = expected(prompter, model, turns)
        assert (answer["prompt_tokens"], answer["text"]) == (len(ids), text)
        assert answer["completion_tokens"] == len(answer["token_ids"]) <= 12
        assert answer["finish_reason"] in ("stop", "length")
        turns.append({"role": "assistant", "content": text})
    # What was computed for one turn is not computed for the next.
    assert got[0]["reused_tokens"] == 0
    assert got[1]["reused_tokens"] >= PAGE * (got[0]["prompt_tokens"] // PAGE) > 0
    assert got[2]["reused_tokens"] >= got[1]["reused_tokens"]


def test_seed_decides_and_turns_differ(answers):
    def texts(seed):
        typed = "Speak.\n/reset\nSpeak.\n"
        return [a["token_ids"] for a in answers(typed, "--temperature", 1.5, "--seed", seed)]

    first = texts(5)
    assert first == texts(5) != texts(6)
    assert first[0] != first[1]  # or asking again would be of no use


def test_images_stay_part_of_the_conversation(answers, prompter, model, picture):
    content = picture.read_bytes()
    parts = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": LONG}]
    seen = {"role": "user", "content": parts}
    # A space in a name, as it is typed and as a terminal's drag and drop spells it.
    dragged = str(picture).replace(" ", "\\ ")
    got = answers(f"/image {picture}\n/image {dragged}\n{LONG}\nSure?\n/reset\nWho?\n")
    ids, text = expected(prompter, model, [seen], [content] * 2)
    assert (got[0]["prompt_tokens"], got[0]["text"]) == (len(ids), text)
    more = [seen, {"role": "assistant", "content": text}, {"role": "user", "content": "Sure?"}]
    ids, text = expected(prompter, model, more, [content] * 2)
    assert (got[1]["prompt_tokens"], got[1]["text"]) == (len(ids), text)
    assert got[1]["reused_tokens"] > 0
    ids, text = expected(prompter, model, [{"role": "user", "content": "Who?"}])
    assert (got[2]["prompt_tokens"], got[2]["text"]) == (len(ids), text)


# What is typed


@pytest.mark.parametrize(
    "typed, text, block",
    [
        ("one", "one", False),
        ("one\\\n\\\ntwo", "one\n\ntwo", False),
        ("/system a\\\nb", "/system a\nb", False),
        ('"""one"""', "one", True),
        ('  """\none\n\n  two\\\n"""  ', "one\n\n  two\\", True),
        ('"""/reset\n"""', "/reset", True),
        ('say """ and go on', 'say """ and go on', False),
        ("", "", False),
    ],
)
def test_messages_of_several_lines(typed, text, block, monkeypatch):
    data = io.BytesIO(typed.encode() + b"\nnext\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(data))
    lines = messages.PipedLines()
    assert messages.read_message(lines) == (text, block)
    assert messages.read_message(lines) == ("next", False)
    with pytest.raises(EOFError):
        messages.read_message(lines)


@pytest.mark.parametrize(
    "typed, message",
    [
        ("/fly", "/fly: no such command; /help lists them"),
        ("/image", "/image: expected a file"),
        ("/image nothing.png", "nothing.png: no such file"),
        ("/image .", "expected a regular file"),
        ("/image ~nobody/\0", "cannot be read"),
        ("/save", "/save: expected a file"),
        ("/save nowhere/at/all", "nowhere/at/all: cannot be written (No such file"),
        ("/save /", "cannot be written|exists already"),
        ("a\\", "the input ended within a message: expected a line after the backslash"),
        ('"""a', 'the input ended within a message: expected a line that ends with """'),
        (b"a\n\xff", "standard input: line 2 is not UTF-8 at byte 0"),
        ("word " * 5000, "context of 4096"),
    ],
)
def test_an_error_ends_a_piped_chat(talk, typed, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = talk(typed)
    assert code == 2 and any(part in err for part in message.split("|")), err
    assert err.startswith("l4k: ") and err.count("\n") == 1 and not [*tmp_path.iterdir()]


def test_commands_answer_on_standard_error(talk, tmp_path):
    script = '/system Be kind.\n/system\n/system ""\n/system\n/help\n//exit\n/exit\nnever asked\n'
    code, out, err = talk(script)
    assert code == 0 and out.count("\n") == 1
    for text in ("is set", "system message: Be kind.", "is removed", "there is no", "/save FILE"):
        assert text in err


def test_a_conversation_is_saved_as_an_api_takes_it(talk, picture, tmp_path, prompter):
    file, other = tmp_path / "talk.json", tmp_path / "other.json"
    script = f"/image {picture}\nRed?\n/save {file}\nSure?\n/save {file}\n"
    code, out, _ = talk(script, "--system", "Be kind.")
    assert code == 0
    saved = json.loads(file.read_text())
    assert [m["role"] for m in saved] == ["system", *["user", "assistant"] * 2]
    assert [saved[2]["content"], saved[4]["content"]] == out.splitlines()
    image, text = saved[1]["content"]
    assert text == {"type": "text", "text": "Red?"} and image["type"] == "image_url"
    form, _, data = image["image_url"]["url"].partition(",")
    assert form == "data:image/png;base64" and base64.b64decode(data) == picture.read_bytes()
    # A file of somebody else is not overwritten.
    other.write_text("mine")
    code, _, err = talk(f"/save {other}\n")
    assert code == 2 and "other.json: exists already" in err and other.read_text() == "mine"
    assert {p.name for p in tmp_path.iterdir()} == {"talk.json", "other.json", picture.name}


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_every_kind_of_image_has_a_data_url(form):
    data = io.BytesIO()
    Image.new("RGB", (4, 4)).save(data, form)
    assert ImageFile("x", data.getvalue()).url.startswith(f"data:image/{form.lower()};base64,")


# What is checked first


def test_a_checkpoint_without_a_template_is_refused_before_its_weights(talk, tmp_path):
    tiny.write_settings(tmp_path)  # and no weights
    options = {"model": tmp_path}
    assert "safetensors" in talk("a\n", **options)[2]
    for file in tmp_path.glob("chat_template*"):
        file.unlink()
    tokenizer = json.loads((tmp_path / "tokenizer_config.json").read_text())
    tokenizer.pop("chat_template", None)
    tiny.write_json(tmp_path / "tokenizer_config.json", tokenizer)
    code, _, err = talk("a\n", **options)
    assert code == 2 and "no chat template" in err


@pytest.mark.parametrize(
    "options, message",
    [
        (["--max-new-tokens", "0"], "--max-new-tokens >= 1"),
        (["--temperature", "-1"], "temperature"),
        (["--weights", "int2"], "--weights"),
        (["--device", "tpu"], "tpu"),
        (["--stop", ""], "stop"),
    ],
)
def test_options_are_checked_first(talk, tmp_path, options, message):
    tiny.write_settings(tmp_path)
    code, _, err = talk("a\n", *options, model=tmp_path)
    assert code == 2 and message in err


def test_closed_input(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["chat", str(CHECKPOINT)]) == 2
    assert capsys.readouterr().err == "l4k: standard input is closed\n"


# A full context, and errors at a terminal


@pytest.fixture
def small(model, prompter):
    """A chat in a context of 128 tokens."""
    request = chat.Request(model=CHECKPOINT, temperature=0.0)
    with Engine(model, slots=1, context=128, tokenizer=prompter.tokenizer) as engine:
        yield chat.Chat(engine, prompter, request, as_json=False)


def test_a_full_context_ends_an_answer_and_loses_no_message(small, capsys):
    small.say("Tell all. " * 20)
    assert len(small.conversation.messages) == 2
    with pytest.raises(ValueError, match="leaves no room for an answer in a context of 128"):
        while True:
            small.say("And then?")
    assert small.unsent == "And then?"
    assert small.conversation.messages[-1].role == "assistant"


def test_errors_at_a_terminal_do_not_end_the_chat(small, monkeypatch, capsys, tmp_path):
    (tmp_path / "no.png").write_text("no image")
    typed = [
        "/fly",
        f"/image {tmp_path}/no.png",
        "Who?",
        "word " * 200,
        "/reset",
    ]
    drafts = []

    class Typist(messages.TerminalLines):
        def next(self, *, inside):
            drafts.append(self.draft)
            if not typed:
                raise EOFError
            return typed.pop(0)

    monkeypatch.setattr(chat, "TerminalLines", Typist)
    chat.at_terminal(small)
    err = capsys.readouterr().err
    for text in ("/fly: no such command", "no.png: not an image", "leaves no room", "is kept"):
        assert text in err
    assert drafts[:-1] == [""] * 5 and drafts[-1] == "word " * 200


def test_a_message_that_gets_no_answer_keeps_its_images(small, picture, monkeypatch):
    small.take(Typed(f"/image {picture}", False))
    with pytest.raises(ValueError, match="no room"):
        small.say("word " * 200)
    assert len(small._images) == 1 and not small.conversation.messages


# Ctrl-C and SIGTERM


def after(monkeypatch, tokens, act):
    """Calls `act` when an answer has so many tokens."""
    push = chat.Answer.push

    def and_then(self, output):
        push(self, output)
        if len(self.token_ids) == tokens:
            act()

    monkeypatch.setattr(chat.Answer, "push", and_then)


def test_a_stopped_answer_stays_and_the_chat_goes_on(small, monkeypatch, capsys):
    press = lambda: signal.raise_signal(signal.SIGINT)  # noqa: E731
    with interrupts.interruptible(), interrupts.ctrl_c(small.stop):
        after(monkeypatch, 3, press)
        small.say("Who was Moses?")
        after(monkeypatch, 10**9, press)
        small.say("And?")
    kept, answer = small.conversation.messages[1], small.conversation.messages[3]
    shown = capsys.readouterr().out
    assert kept.text and shown == f"{kept.text}\n{answer.text}\n"
    whole = small.prompter.tokenizer.encode(kept.text, bos=False)
    assert 2 <= len(whole) <= 6  # it ended soon after the third token


def test_an_answer_stopped_before_it_began_leaves_no_turn(small, monkeypatch, capsys):
    ask = small._ask

    def pressed(prompt):
        small.stop()
        return ask(prompt)

    monkeypatch.setattr(small, "_ask", pressed)
    with interrupts.interruptible():
        small.say("Who was Moses?")
    kept = [m.text for m in small.conversation.messages]
    assert not kept or kept[1]  # a turn is there with its answer, or not at all
    assert bool(kept) != ("stopped before there was an answer" in capsys.readouterr().err)


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_piped_chat(talk, monkeypatch, number, code):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    after(monkeypatch, 3, lambda: signal.raise_signal(number))
    got = talk("Who was Moses?\nnever asked\n")
    assert got[0] == code and got[1] and got[2] == "l4k: interrupted\n"
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_session_at_a_terminal(tmp_path):
    command = [*L4K, "chat", str(CHECKPOINT), "--temperature", "1", "--stop", "zebra"]
    with PseudoTerminal(command, cwd=tmp_path) as terminal:
        terminal.expect(">>> ")
        terminal.send("/image no.png\r")
        terminal.expect("no.png: no such file")
        terminal.expect(">>> ")
        terminal.send("Who was\\\r")
        terminal.expect("... ")
        terminal.send("Moses?\r")
        terminal.expect("tokens/s")
        terminal.expect(">>> ")
        terminal.send('"""tell\r')
        terminal.expect("... ")
        terminal.send('all"""\r')
        terminal.expect("all")
        terminal.expect("\n")
        terminal.expect(" ")  # a word of the answer, and more to come
        terminal.interrupt()
        terminal.expect("tokens/s")
        terminal.expect(">>> ")
        terminal.send("\x1b[200~pasted\ntwice\x1b[201~\r")
        terminal.expect("tokens/s")
        terminal.expect(">>> ")
        terminal.send("never sent")
        terminal.expect("never sent")
        terminal.interrupt()
        terminal.expect(">>> ")
        terminal.send("/save talk.json\r")
        terminal.expect("6 messages")
        terminal.expect(">>> ")
        terminal.send("\x04")
        assert terminal.ended() == 0
    saved = json.loads((tmp_path / "talk.json").read_text())
    asked = [m["content"] for m in saved if m["role"] == "user"]
    assert asked == ["Who was\nMoses?", "tell\nall", "pasted\ntwice"]
    assert all(m["content"] for m in saved)


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ends_at_a_terminal(number, code):
    with PseudoTerminal([*L4K, "chat", str(CHECKPOINT), "--json"]) as terminal:
        terminal.expect(">>> ")
        if number == signal.SIGTERM:
            terminal.settle()
            terminal.child.send_signal(number)
        else:
            terminal.interrupt()
            terminal.expect("once more")
            terminal.expect(">>> ")
            terminal.interrupt()
        terminal.expect("interrupted")
        assert terminal.ended() == code
    assert "Traceback" not in terminal.shown


def test_an_api_conversation_of_nothing():
    assert Conversation().as_api() == []
    assert Conversation("x", [Message("user", "a")]).as_api()[0]["role"] == "system"
