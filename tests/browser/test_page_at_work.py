"""What a user does with the chat page: each test against answers that are written down."""

import base64
import time
from io import BytesIO
from itertools import product

import pytest
from PIL import Image

from tests.support.scripted_server import MODEL

pytestmark = pytest.mark.browser


def picture(width: int, height: int, kind: str = "PNG") -> bytes:
    file = BytesIO()
    Image.radial_gradient("L").resize((width, height)).convert("RGB").save(file, kind)
    return file.getvalue()


def sent_image(url: str) -> tuple[str, Image.Image]:
    head, _, data = url.partition(",")
    return head, Image.open(BytesIO(base64.b64decode(data)))


def test_a_conversation_is_sent_whole(chat, server):
    server.will("Hello", ", you.")
    assert chat.ask("Hi") == "Hello, you."
    assert "5 tokens in, 2 out" in chat.notes() and "first after" in chat.notes()
    server.will("Well.")
    chat.write("How are you?\n")  # Enter sends
    assert chat.answer() == "Well."
    assert chat.answers() == ["Hello, you.", "Well."]
    assert server.requests[1] == {
        "model": MODEL,
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello, you."},
            {"role": "user", "content": "How are you?"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_the_model_is_named(chat):
    chat.wait(lambda: chat.find("#model").text == MODEL, "the model's name")


def test_shift_and_enter_begin_a_line(chat, server):
    server.will("Yes")
    chat.write("one")
    chat.run(
        "$('text').dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter', shiftKey: true }))"
    )
    assert server.requests == [] and chat.answers() == []
    chat.run("$('text').value = 'one\\ntwo'")
    chat.write("\n")
    chat.answer()
    assert server.requests[0]["messages"][0]["content"] == "one\ntwo"
    assert chat.find(".question .text").text == "one\ntwo"


def test_an_answer_can_be_stopped_and_the_conversation_goes_on(chat, server):
    server.will(*(f"word{n} " for n in range(1000)), pause=0.01)
    chat.send("Go")
    chat.wait(lambda: "word3" in chat.answers()[-1], "the first words")
    chat.button("Stop").click()
    partial = chat.answer()
    assert partial.startswith("word0 word1 word2 word3") and "word999" not in partial
    assert "stopped" in chat.notes()
    time.sleep(0.1)
    assert chat.answers() == [partial]
    server.will("More.")
    assert chat.ask("Go on") == "More."
    roles = [message["role"] for message in server.requests[1]["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert server.requests[1]["messages"][1]["content"].strip() == partial


def test_an_answer_can_be_regenerated(chat, server):
    server.will("First")
    server.will("Second")
    chat.ask("Go")
    chat.button("Regenerate").click()
    assert chat.answer() == "Second"
    assert chat.answers() == ["Second"]
    assert server.requests[0] == server.requests[1]


def test_the_last_message_can_be_edited(chat, server):
    server.will("4")
    server.will("6")
    chat.bring("paste", "#text", "a.png", "image/png", picture(8, 8))
    chat.wait(lambda: chat.all("#pending img"), "a thumbnail")
    chat.ask("2 + 2")
    chat.button("Edit").click()
    assert chat.answers() == [] and chat.find("#text").get_attribute("value") == "2 + 2"
    assert chat.ask(" + 2") == "6"
    image, text = server.requests[1]["messages"][0]["content"]
    assert text["text"] == "2 + 2 + 2" and image["type"] == "image_url"
    assert len(server.requests[1]["messages"]) == 1


def test_a_new_chat_forgets(chat, server):
    server.will(*"slowly", pause=0.2)
    chat.send("Go")
    chat.wait(lambda: "s" in chat.answers()[-1], "a letter")
    chat.button("New chat").click()
    assert chat.find("#welcome").is_displayed() and chat.answers() == []
    server.will("Hello")
    assert chat.ask("Hi") == "Hello"
    time.sleep(0.5)  # what is left of the first answer goes nowhere
    assert chat.answers() == ["Hello"]
    assert len(server.requests[1]["messages"]) == 1


@pytest.mark.parametrize("way", ["button", "paste", "drop"])
def test_an_image_is_sent_as_it_is(chat, server, tmp_path, way):
    """A small one, before the text; a thumbnail shows it before and after."""
    content = picture(8, 8)
    if way == "button":
        (tmp_path / "a.png").write_bytes(content)
        chat.find("#files").send_keys(str(tmp_path / "a.png"))
    else:
        chat.bring(way, "#text", "a.png", "image/png", content)
    chat.wait(lambda: chat.all("#pending img"), "a thumbnail")
    server.will("A circle")
    assert chat.ask("What is this?") == "A circle"
    url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    assert server.requests[0]["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": "What is this?"},
            ],
        }
    ]
    assert chat.run("return document.querySelector('.question img').naturalWidth") == 8
    assert not chat.all("#pending img")


@pytest.mark.parametrize(
    "size, kind", [((5000, 3000), "JPEG"), ((40, 9000), "PNG"), ((9, 9), "BMP")]
)
def test_what_a_server_may_refuse_is_sent_smaller_as_jpeg(chat, server, size, kind):
    chat.bring("drop", "main", "photo", f"image/{kind.lower()}", picture(*size, kind))
    chat.wait(lambda: chat.all("#pending img"), "a thumbnail")
    server.will("Big")
    chat.button("Send").click()  # without a text
    chat.answer()
    (part,) = server.requests[0]["messages"][0]["content"]
    head, image = sent_image(part["image_url"]["url"])
    scale = min(1, 2048 / max(size))
    assert head == "data:image/jpeg;base64" and image.format == "JPEG"
    assert image.size == tuple(max(1, round(side * scale)) for side in size)


def test_images_can_be_taken_away_and_what_is_none_is_named(chat, server):
    for name in ("a.png", "b.png"):
        chat.bring("paste", "#text", name, "image/png", picture(8, 8))
    chat.wait(lambda: len(chat.all("#pending img")) == 2, "two thumbnails")
    chat.button("Remove image 1").click()
    assert len(chat.all("#pending img")) == 1
    chat.bring("drop", "main", "notes<b>.txt", "text/plain", b"no image")
    chat.wait(lambda: "notes<b>.txt" in chat.find("#hint").text, "a complaint")
    assert len(chat.all("#pending img")) == 1


def test_a_missing_key_is_asked_for(page, server):
    server.key = "secret"
    page.open(server.url)
    page.wait(lambda: page.find("#panel").is_displayed(), "the settings")
    assert "expected an API key" in page.find("#hint").text
    page.find("#key").send_keys("secret")
    page.button("Done").click()
    page.wait(lambda: page.find("#model").text == MODEL, "the model's name")
    server.will("Hello")
    assert page.ask("Hi") == "Hello"
    server.key = "another"
    assert page.ask("Hi") == "" and page.errors() == ["expected an API key"]
    assert page.find("#key") == page.driver.switch_to.active_element
    assert page.run("return JSON.stringify(localStorage)").find("secret") == -1


def test_an_error_is_shown_and_does_not_stay_in_the_conversation(chat, server):
    server.will(status=400, message="expected at most 2 images, got <b>3</b>")
    chat.ask("Bad")
    assert chat.errors() == ["expected at most 2 images, got <b>3</b>"]
    server.will("Good")
    assert chat.ask("Better") == "Good"
    assert [message["content"] for message in server.requests[1]["messages"]] == ["Better"]


@pytest.mark.parametrize(
    "reply, message",
    [
        ({"breaks": True}, "The connection ended before the answer did."),
        ({"late_error": "the engine stopped"}, "the engine stopped"),
        ({"status": 500, "message": ""}, "The server answered with status 500."),
    ],
)
def test_a_failed_answer_can_be_tried_again(chat, server, reply, message):
    server.will("Half", **reply)
    chat.ask("Go")
    assert chat.errors() == [message]
    server.will("Whole")
    chat.button("Try again").click()
    assert chat.answer() == "Whole" and chat.errors() == []


def test_a_server_that_is_gone_is_named(page):
    from tests.support.scripted_server import scripted_server

    with scripted_server() as server:
        page.open(server.url)
        page.wait(lambda: page.find("#model").text == MODEL, "the model's name")
    page.ask("Hi")
    assert page.errors() == ["The server cannot be reached."]


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_when_it_says(chat, server, status):
    server.will(status=status, message="too many requests", headers={"Retry-After": "1"})
    server.will("Now")
    began = time.monotonic()
    chat.send("Hi")
    chat.wait(lambda: "next try in 1 s" in chat.find("#hint").text, "a notice")
    assert chat.answer() == "Now" and time.monotonic() - began >= 1
    assert chat.find("#hint").text == "" and len(server.requests) == 2


def test_waiting_for_a_busy_server_can_be_stopped(chat, server):
    server.will(status=429, message="too many requests", headers={"Retry-After": "3600"})
    chat.send("Hi")
    chat.wait(lambda: "next try in 60 s" in chat.find("#hint").text, "a notice")
    chat.button("Stop").click()
    assert chat.answer() == "" and "stopped" in chat.notes()
    server.will("Hello")
    assert chat.ask("Again") == "Hello"


def test_settings_are_sent_and_stay(chat, server):
    settings = {"temperature": 0.25, "top_p": 0.5, "max_completion_tokens": 7, "seed": 3}
    chat.button("Settings").click()
    for name, value in {**settings, "system": "Be brief."}.items():
        chat.find(f"#{name}").send_keys(str(value))
    chat.button("Done").click()
    chat.driver.refresh()
    server.will("Yes", finish_reason="length")
    chat.ask("Hi")
    assert settings.items() <= server.requests[0].items()
    assert server.requests[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert "reached the limit of tokens" in chat.notes()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_shows_it_all(page, server, scheme):
    """360 pixels wide: nothing sticks out, the composer stays in sight, the newest text too."""
    page.open(server.url, 360, 740, scheme)
    server.will(
        "word " * 300 + "\n\n```\n" + "x" * 500 + "\n```\n\n" + "long" * 200,
        "\n\n| a | b | c |\n|---|---|---|\n" + "| cell of a table |" * 9,
        "\n\nThe end.",
    )
    page.send("unbroken" * 40)
    page.answer()
    widths = page.run(
        "return [document.documentElement, $('main')].map(e => [e.scrollWidth, e.clientWidth])"
    )
    assert all(whole <= seen <= 360 for whole, seen in widths), widths
    for selector in ("#text", "#send", "#attach", "#settings", ".turn:last-child .answer .notes"):
        box = page.find(selector).rect
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360, selector
        assert box["y"] >= 0 and box["y"] + box["height"] <= 740, selector
    page.button("Settings").click()
    panel = page.find("#panel").rect
    assert panel["width"] <= 360 and page.button("Done").is_displayed()


PAIRS = [
    *product(("text", "muted", "accent", "bad"), ("ground", "panel")),
    *(("text", "tint"), ("muted", "tint"), ("on-accent", "accent")),
]


def luminance(colour: list[float]) -> float:
    parts = [c / 255 for c in colour]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_contrast_and_controls_have_names(page, server, scheme):
    page.open(server.url, scheme=scheme)
    colours = page.run(
        """
        const style = getComputedStyle(document.documentElement);
        const bytes = (colour) => colour.match(/[0-9a-f]{2}/g).map((c) => parseInt(c, 16));
        const value = (name) => [name, bytes(style.getPropertyValue(`--${name}`))];
        return Object.fromEntries(arguments[0].map(value));
        """,
        [*{name for pair in PAIRS for name in pair}],
    )
    for one, other in PAIRS:
        dark, light = sorted([luminance(colours[one]), luminance(colours[other])])
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (one, other)
    server.will("Hello")
    page.ask("Hi")
    for opened in ("body", "#panel"):
        controls = page.all(f"{opened} :is(button, input:not([hidden]), textarea, select)")
        seen = [control for control in controls if control.is_displayed()]
        assert len(seen) > 5
        assert not [c.get_attribute("outerHTML") for c in seen if not c.accessible_name]
        page.run("$('panel').open || $('panel').showModal()")
