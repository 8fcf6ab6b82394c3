"""`/v1/completions`: texts that go on."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from l4kernels.engine.logprobs import TokenLogprob
from l4kernels.engine.request import Output, Request
from l4kernels.prompt.tokenizer import Detokenizer
from l4kernels.server.answers import EngineAnswer
from l4kernels.server.deltas import bounded
from l4kernels.server.errors import ApiError
from l4kernels.server.generation import Nudge
from l4kernels.server.protocol.completions import CompletionRequest
from l4kernels.server.service import Service
from l4kernels.server.streams import DONE, HEARTBEAT, event


class _Choice:
    """One text: of a prompt, and of one of its `n` samples."""

    def __init__(self, service: Service, logprobs: int | None):
        self._tokenizer = service.tokenizer
        self._top = logprobs
        self._spoken = Detokenizer(service.tokenizer)  # its text: what is before the next token
        self.tokens = 0
        self.text = ""
        self.finish_reason: str | None = None
        self.logprobs: dict[str, list[Any]] = _empty()

    def push(self, text: str, tokens: Sequence[tuple[int, float | None, Any]]) -> dict[str, Any]:
        """Adds a text and the tokens that came with it; what is new, in the API's form.

        Args:
            tokens: id, log-probability and the likeliest (None for the first of a prompt).
        """
        new = _empty()
        for token, logprob, top in tokens if self._top is not None else ():
            named = self._tokenizer.token_bytes(token, skip_special=False).decode(
                "utf-8", "replace"
            )
            new["tokens"].append(named)
            new["token_logprobs"].append(None if logprob is None else bounded(logprob))
            if logprob is not None:  # its own is there, too, be it ever so unlikely
                top = self._by_text([*top, (token, logprob)])
            new["top_logprobs"].append(top)
            new["text_offset"].append(len(self._spoken.text))
            self._spoken.push(token)
        self.text += text
        for name, values in new.items():
            self.logprobs[name] += values
        return {"text": text, "logprobs": new if self._top is not None else None}

    def output(self, output: Output) -> dict[str, Any]:
        """An end token has no text, but its log-probability: who sums those of an echoed prompt
        counts on one for each new token."""
        tokens = []
        if output.token_id is not None:
            self.tokens += 1
            tokens.append((output.token_id, output.logprob, output.top_logprobs or []))
        self.finish_reason = output.finish_reason
        return self.push(output.text, tokens)

    def _by_text(self, top: Sequence[tuple[int, float]]) -> dict[str, float]:
        """Tokens that spell the same keep the likeliest's value."""
        named: dict[str, float] = {}
        for token, value in top:
            content = self._tokenizer.token_bytes(token, skip_special=False)
            named.setdefault(content.decode("utf-8", "replace"), bounded(value))
        return named


class CompletionAnswer(EngineAnswer[_Choice]):
    """As `ChatAnswer`, of prompts that are texts or tokens."""

    def __init__(self, service: Service, body: CompletionRequest, key: str):
        self._body, self._key = body, key
        self._n = body.n or 1
        count = len(body.prompts()) * self._n
        super().__init__(service, "cmpl", [_Choice(service, body.logprobs) for _ in range(count)])
        self._echoes: list[dict[str, Any]] = []

    async def begin(self) -> None:
        body, service = self._body, self._service
        if body.suffix:
            raise ApiError(
                400, "suffix is not supported: the models do not fill in", param="suffix"
            )
        if body.best_of is not None and body.best_of != self._n:
            raise ApiError(400, "best_of is not supported beyond n", param="best_of")
        if not body.max_tokens and not body.echo and body.max_tokens is not None:
            raise ApiError(400, "max_tokens = 0 needs echo", param="max_tokens")
        if len(self.choices) > service.options.max_samples:
            raise ApiError(
                400,
                f"expected at most {service.options.max_samples} texts of a request, prompts "
                f"times n",
                param="prompt",
            )
        self.admit()
        requests = await service.in_thread(service.completions, body, self._key)
        self.prompt_tokens = sum(len(request.prompt) for request in requests)
        if body.echo:
            await self._echo(requests)
        if body.max_tokens == 0:
            for choice in self.choices:
                choice.finish_reason = "length"
        else:
            await service.in_thread(service.start, self.generation, requests)

    async def _echo(self, requests: Sequence[Request]) -> None:
        service, top = self._service, self._body.logprobs
        for index, request in enumerate(requests):
            ids = request.prompt
            scores: Sequence[TokenLogprob] = ()
            if top is not None:
                scores = await service.prompt_logprobs(ids, top)
            rest = [(score.logprob, score.top) for score in scores]
            tokens = [(i, *s) for i, s in zip(ids, [(None, None), *rest], strict=False)]
            text = service.tokenizer.decode(ids)
            for choice in self._samples(index):
                self._echoes.append(choice.push(text, tokens))

    def _samples(self, prompt: int) -> Sequence[_Choice]:
        return self.choices[prompt * self._n : (prompt + 1) * self._n]

    async def _pieces(self) -> AsyncIterator[tuple[int, dict[str, Any]] | Nudge]:
        if self._body.max_tokens == 0:
            return
        async for piece in self.generation:
            if isinstance(piece, Nudge):
                yield piece
                continue
            index = piece.request * self._n + piece.output.sample
            yield index, self.choices[index].output(piece.output)

    async def whole(self) -> dict[str, Any]:
        """A `text_completion`."""
        async for _ in self._pieces():
            pass
        asked = self._body.logprobs is not None
        return {
            **self.head("text_completion"),
            "choices": [
                {
                    "index": index,
                    "text": choice.text,
                    "logprobs": choice.logprobs if asked else None,
                    "finish_reason": choice.finish_reason,
                }
                for index, choice in enumerate(self.choices)
            ],
            "usage": self.usage(),
        }

    async def events(self) -> AsyncIterator[bytes]:
        counted = self._body.usage_of_stream
        rest: dict[str, Any] = {"usage": None} if counted else {}
        for index, piece in enumerate(self._echoes):
            reason = self.choices[index].finish_reason  # of a prompt alone
            yield self._event(index, piece, reason, rest)
        async for item in self._pieces():
            if isinstance(item, Nudge):
                yield HEARTBEAT
                continue
            index, piece = item
            reason = self.choices[index].finish_reason
            if counted == "each":
                rest = {"usage": self.usage()}
            if piece["text"] or piece["logprobs"] or reason:
                yield self._event(index, piece, reason, rest)
        if counted:
            yield event({**self.head("text_completion"), "choices": [], "usage": self.usage()})
        yield DONE

    def _event(self, index: int, piece: dict[str, Any], reason: str | None, rest: Any) -> bytes:
        choice = {"index": index, **piece, "finish_reason": reason}
        return event({**self.head("text_completion"), "choices": [choice], **rest})


def _empty() -> dict[str, list[Any]]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
