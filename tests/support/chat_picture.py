"""A picture of the chat page: `python -m tests.support.chat_picture docs/images/chat.png`.

The answers are the demo checkpoint's own, greedy. The fonts are those of the machine.
"""

import sys
from io import BytesIO
from pathlib import Path

from PIL import Image

from l4kernels import Engine, Llama4, Prompter
from l4kernels.demo import CHECKPOINT, held_out_digits
from tests.support.chat_page import ChatPage, chromium
from tests.support.serving import serving

GREEDY = {"temperature": 0, "max_completion_tokens": 64}


def digit_as_png(index: int) -> bytes:
    """One of the held-out digits, 8 x 8 pixels."""
    file = BytesIO()
    Image.fromarray(held_out_digits().images[index].numpy()).convert("RGB").save(file, "PNG")
    return file.getvalue()


def attach(page: ChatPage, digits: tuple[int, ...]) -> None:
    for index in digits:
        before = len(page.all("#pending img"))
        page.bring("paste", "#text", "digit.png", "image/png", digit_as_png(index))
        page.wait(lambda: len(page.all("#pending img")) > before, "a thumbnail")  # noqa: B023


def converse(page: ChatPage, url: str, width: int, height: int, scheme: str = "light") -> list[str]:
    """Has the conversation of the picture; returns the answers."""
    page.open(url, width, height, scheme, **GREEDY)
    page.ask("In the beginning was")
    attach(page, (0, 1))
    page.ask("Which digits are these?")
    # A speed in a picture would be a claim, and this machine's.
    page.run(
        "for (const e of document.querySelectorAll('.notes span')) "
        "e.textContent = e.textContent.split(' · ')[0]"
    )
    page.write("And God said unto Noah,")
    return page.answers()


def main() -> None:
    prompter = Prompter(CHECKPOINT)
    with (
        Engine(Llama4.from_pretrained(CHECKPOINT), tokenizer=prompter.tokenizer) as engine,
        serving(engine, prompter, model_name="l4kernels-demo") as server,
        chromium(scale=2) as driver,
    ):
        page = ChatPage(driver)
        print(converse(page, server.url, 1000, 680))
        page.picture(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
