"""`l4k chat`: turns at a terminal, or line by line through a pipe, on an engine in this process."""

import contextlib
import os
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

from l4kernels.cli.conversation import Conversation, ImageFile, Message, path_of, read_image
from l4kernels.cli.interrupts import ctrl_c
from l4kernels.cli.loading import Loader, ModelRequest, warm_up
from l4kernels.cli.messages import PipedLines, TerminalLines, Typed, read_message
from l4kernels.cli.output import print_json, stream
from l4kernels.engine.engine import Engine, Stream
from l4kernels.engine.request import Output
from l4kernels.engine.request import Request as EngineRequest
from l4kernels.inputs.extras import MissingExtra
from l4kernels.ops.philox import stream_seed
from l4kernels.prompt.chat import Prompt, Prompter
from l4kernels.prompt.chat_template import ChatError
from l4kernels.prompt.tokenizer import Detokenizer

HELP = '''\
/image FILE    attach an image to the next message; once for each image
/system TEXT   set the system message; /system alone shows it, /system "" removes it
/reset         forget the conversation, keep the system message
/save FILE     write the conversation as JSON: what an API takes as messages
/help          this list
/exit          end, as Ctrl-D does
//TEXT         send text that begins with a slash
A line that ends in a backslash goes on in the next one; """ begins and ends a message of several
lines. Ctrl-C stops an answer and keeps what there is of it.'''


@dataclass(frozen=True, kw_only=True)
class Request(ModelRequest):
    system: str | None = None


def run(request: Request, *, as_json: bool) -> None:
    """Everything that can be checked is checked before the weights are read."""
    config = request.config()
    request.sampling()
    prompter = Prompter(request.model, config)
    # A checkpoint without a template, and a template that takes no such conversation, end here.
    Conversation(request.system, [Message("user", "Hi")]).prompt(prompter)
    Detokenizer(prompter.tokenizer, request.stop)
    if sys.stdin is None:
        raise ValueError("standard input is closed")
    loader = Loader(request, config)
    with (
        loader.loaded() as model,
        Engine(model, slots=1, tokenizer=prompter.tokenizer) as engine,
    ):
        warm_up(engine)
        chat = Chat(engine, prompter, request, as_json=as_json)
        if sys.stdin.isatty():
            at_terminal(chat)
        else:
            through_pipe(chat)


class Chat:
    """A conversation with a model: what is typed goes to `take`, answers to standard output,
    everything else to standard error."""

    def __init__(self, engine: Engine, prompter: Prompter, request: Request, *, as_json: bool):
        self.engine, self.prompter, self.request = engine, prompter, request
        self.conversation = Conversation(request.system)
        self.as_json = as_json
        self.unsent = ""
        """A message that got no answer."""
        self._sampling = request.sampling()
        self._images: tuple[ImageFile, ...] = ()  # of the next message
        self._saved: set[str] = set()
        self._turns = 0
        self._stopping = False
        self._stream: Stream | None = None

    def take(self, typed: Typed) -> bool:
        """Sends a message or obeys a command; whether the chat goes on.

        Raises:
            ValueError, MissingExtra: what was typed, the files that it names or the length of the
                conversation do not allow it. The conversation is as before.
        """
        text = typed.text
        if typed.block or not text.startswith("/"):
            self.say(text)
            return True
        if text.startswith("//"):
            self.say(text[1:])
            return True
        name, rest = [*text[1:].split(maxsplit=1), "", ""][:2]
        if name == "exit":
            return False
        commands = {
            "image": self._image,
            "system": self._system,
            "reset": self._reset,
            "save": self._save,
            "help": self._help,
        }
        if name not in commands:
            raise ValueError(
                f"/{name}: no such command; /help lists them, // sends text that begins with a /"
            )
        commands[name](rest.strip())
        return True

    def say(self, text: str) -> None:
        """Sends a message, if it is not blank, and shows the answer as it comes."""
        if not text.strip():
            return
        self._stopping = False
        self.unsent = text
        message = Message("user", text, self._images)
        trial = replace(self.conversation, messages=[*self.conversation.messages, message])
        began, reused = time.perf_counter(), self.engine.stats().reused_tokens
        try:
            prompt = trial.prompt(self.prompter)
            self._stream = self._ask(prompt)
        except ValueError:
            if self._stopping:  # Ctrl-C ends the template's process, too
                note("stopped before there was an answer; the message is not part of the chat")
                return
            raise
        if self._stopping:  # since before there was a stream
            self.stop()
        answer = Answer(began)
        for output in self._stream:
            answer.push(output)
            if not self.as_json:
                stream(output.text)
        self._stream = None
        if self._stopping and not answer.text:
            note("stopped before there was an answer; the message is not part of the chat")
            return
        trial.messages.append(Message("assistant", answer.text))
        self.conversation, self._images, self.unsent = trial, (), ""
        self._turns += 1
        self._report(answer, prompt, self.engine.stats().reused_tokens - reused)

    def stop(self) -> None:
        """Ends the answer that is being made, if one is; for a signal's handler."""
        self._stopping = True
        if self._stream is not None:
            self.engine.cancel(self._stream)

    def _ask(self, prompt: Prompt) -> Stream:
        tokens, context = len(prompt.ids), self.engine.context
        if tokens >= context:
            raise ChatError(
                f"the conversation has {tokens} tokens by now and leaves no room for an answer in "
                f"a context of {context}"
            )
        seed = self._sampling.seed
        if self._turns and seed is not None:  # or every answer would draw the same numbers
            seed = stream_seed(seed, self._turns)
        asked = EngineRequest(
            prompt.ids,
            min(self.request.max_new_tokens or context, context - tokens),
            replace(self._sampling, seed=seed),
            prompt.pixel_values,
            stop=self.request.stop,
        )
        return self.engine.add(asked)

    def _report(self, answer: "Answer", prompt: Prompt, reused: int) -> None:
        facts = answer.facts(prompt_tokens=len(prompt.ids), reused_tokens=reused)
        if self.as_json:
            print_json(facts)
            return
        stream("\n")
        if not sys.stderr.isatty():
            return
        reason = facts["finish_reason"]
        if reason == "length":
            full = len(prompt.ids) + len(answer.token_ids) >= self.engine.context
            reason = "the context is full" if full else "--max-new-tokens"
        note(
            f"{len(prompt.ids)} + {len(answer.token_ids)} tokens ({reason}), {reused} reused, "
            f"{facts['timings']['tokens_per_second']:.1f} tokens/s"
        )

    def _image(self, text: str) -> None:
        if not text:
            raise ValueError("/image: expected a file")
        if self.prompter.config.vision is None:
            raise ValueError("/image: this checkpoint has no vision tower; images cannot be used")
        image = read_image(text)
        self._images += (image,)
        note(f"{image.name}: goes with the next message, as image {len(self._images)} of it")

    def _system(self, text: str) -> None:
        if not text:
            system = self.conversation.system
            note("there is no system message" if system is None else f"system message: {system}")
            return
        self.conversation.system = None if text == '""' else text
        note("the system message is removed" if text == '""' else "the system message is set")

    def _reset(self, text: str) -> None:
        self.conversation.messages, self._images = [], ()
        note("the conversation is forgotten")

    def _save(self, text: str) -> None:
        if not text:
            raise ValueError("/save: expected a file")
        file = path_of(text)
        # What this chat wrote it may write again; nothing else is overwritten.
        self.conversation.save(file, replace=os.path.realpath(file) in self._saved)
        self._saved.add(os.path.realpath(file))
        note(f"{file}: {len(self.conversation.as_api())} messages")

    def _help(self, text: str) -> None:
        print(HELP, file=sys.stderr)


class Answer:
    """What came of an answer so far, and when."""

    def __init__(self, began: float):
        self.text, self.token_ids = "", list[int]()
        self.finish_reason: str | None = None
        self._began = self._first = self._last = began

    def push(self, output: Output) -> None:
        self.finish_reason = output.finish_reason
        self.text += output.text
        if output.token_id is not None:
            self._last = time.perf_counter()
            if not self.token_ids:
                self._first = self._last
            self.token_ids.append(output.token_id)

    def facts(self, **more: int) -> dict[str, Any]:
        tokens, decoding = len(self.token_ids), self._last - self._first
        cancelled = self.finish_reason == "cancelled"
        return {
            "text": self.text,
            "token_ids": self.token_ids,
            **more,
            "completion_tokens": tokens,
            "finish_reason": "interrupted" if cancelled else self.finish_reason,
            "timings": {
                "first_token_s": self._first - self._began,
                "decode_s": decoding,
                "tokens_per_second": (tokens - 1) / decoding if decoding else 0.0,
            },
        }


class LineCleared(Exception):
    """Ctrl-C while a line is typed."""


def at_terminal(chat: Chat) -> None:
    """Errors are said, and the chat goes on; Ctrl-C stops an answer or clears the line."""
    lines = TerminalLines(shown=sys.stdout.isatty() and not chat.as_json)
    typing, empty = False, True

    def pressed() -> None:
        nonlocal empty
        if typing:
            empty = lines.empty
            raise LineCleared
        chat.stop()

    def read() -> Typed:
        nonlocal typing
        typing = True
        try:
            return read_message(lines)
        finally:
            typing = False

    note(f"a context of {chat.engine.context:,} tokens; /help lists commands, Ctrl-D ends")
    asked = False  # to end, by Ctrl-C on an empty line
    with ctrl_c(pressed):
        while True:
            try:
                typed = read()
                asked = False
                if not chat.take(typed):
                    return
                if typed.text.split() == ["/reset"]:
                    lines.draft, chat.unsent = chat.unsent, ""
            except LineCleared:
                new_line(lines)
                if asked and empty:
                    raise KeyboardInterrupt from None
                asked = empty
                if empty:
                    note("Ctrl-C once more ends the chat, as Ctrl-D does")
            except EOFError:
                new_line(lines)
                return
            except (ValueError, MissingExtra) as error:
                note(str(error))
                if chat.unsent and chat.conversation.messages:
                    note("your message is kept: after /reset it stands at the prompt")


def through_pipe(chat: Chat) -> None:
    """A line or a block is a message; the first error ends the chat."""
    lines = PipedLines()
    with contextlib.suppress(EOFError):
        while chat.take(read_message(lines)):
            pass


def new_line(lines: TerminalLines) -> None:
    print(file=sys.stdout if lines.shown else sys.stderr)


def note(text: str) -> None:
    print(f"l4k: {text}", file=sys.stderr)
