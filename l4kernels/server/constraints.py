"""Answers that follow a grammar: JSON, JSON of a schema, calls of tools.

The grammar says which tokens may come next, and only when an answer is complete may an end token.
So an answer that ends by itself is right. One that does not is cut off by `max_tokens`, with the
finish reason "length": a model may go on for ever inside a string or list without a bound.
Between tokens of JSON stands nothing or the one space that Python's `json.dumps` writes, lest a
model go on for ever in white space.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from torch import Tensor

from l4kernels.engine.sequence import TokenMask
from l4kernels.inputs.files import shown
from l4kernels.prompt.tokenizer import Tokenizer
from l4kernels.server.schemas import GrammarError, checked_schema

MAX_PARALLEL_CALLS = 32
MAX_TOOLS_BYTES = 256 << 10
"""Of all tools' schemas together, serialised."""
CACHE_BYTES = 64 << 20
GRAMMAR_BYTES, GRAMMAR_BYTES_PER_CHAR = 256 << 10, 64
"""Of memory that a compiled grammar takes, at most: in any case, and for its schema's text."""
STACK_BYTES = 256 << 20
"""The compiler recurses as deep as a schema's references and properties go."""

_MARKER = b"\xff"
"""In no UTF-8 text; the library takes a token that begins with it for one that is not text."""
_JSON_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


def _limits() -> LLParserLimits:
    return LLParserLimits(
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=20_000,
        max_grammar_size=200_000,
        precompute_large_lexemes=False,
        verbose_errors=False,
    )


class Tool(Protocol):
    """What a call can name."""

    @property
    def name(self) -> str: ...

    @property
    def parameters(self) -> Mapping[str, Any] | None:
        """The JSON schema of its arguments, of an object; None: it has none."""


class Grammar:
    """What an answer may be; any number of samples at once may be held to it."""

    def __init__(self, matcher: LLMatcher, words: int):
        self._matcher = matcher
        self._words = words

    def mask(self) -> TokenMask:
        """For one sample: the answer so far -> which tokens may follow, int32 `[ceil(V / 32)]`.

        It is called with all tokens of the answer, which only grow.

        Raises (when called):
            GrammarError: a token that the grammar does not allow, an answer that shrank, or a
                grammar that became too large.
        """
        return _Mask(self._matcher.deep_copy(), self._words)


class _Mask:
    def __init__(self, matcher: LLMatcher, words: int):
        self._matcher = matcher
        self._words = words
        self._seen = 0

    def __call__(self, tokens: list[int]) -> Tensor:
        if len(tokens) < self._seen:
            raise GrammarError(
                f"expected an answer that grows, got {len(tokens)} tokens after {self._seen}"
            )
        new = tokens[self._seen :]
        if new and not self._matcher.consume_tokens(new):
            raise GrammarError("the answer's last token is not one that its grammar allows")
        self._seen = len(tokens)
        mask = torch.empty(self._words, dtype=torch.int32)
        self._matcher.unsafe_compute_mask_ptr(mask.data_ptr(), 4 * self._words)
        if self._matcher.is_error():
            raise GrammarError("the grammar of the answer is too complex to go on")
        return mask


class Grammars:
    """Compiles grammars for one tokenizer, and keeps those used last.

    Args:
        tokenizer: all its tokens are read, which takes about a second for 200,000.
        vocab_size: of the model; ids without bytes are never allowed.
        end_ids: when an answer is complete, any of them may end it.

    >>> from l4kernels.demo import CHECKPOINT
    >>> tokenizer = Tokenizer(CHECKPOINT)
    >>> grammars = Grammars(tokenizer, 1056, [tokenizer.id("<|eot|>")])
    >>> mask = grammars.json_schema({"enum": ["yes", "no"]}).mask()
    >>> words = mask([])
    >>> [i for i in range(1056) if words[i // 32] >> (i % 32) & 1] == tokenizer.encode('"')
    True
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: Sequence[int]):
        ends = list(end_ids)
        if not ends or not all(0 <= id < vocab_size for id in ends):
            raise ValueError(f"expected end_ids in [0, {vocab_size}), got {shown(ends)}")
        tokens = _token_list(tokenizer, vocab_size, ends)
        self._tokenizer = LLTokenizer(tokens, eos_token=ends, slices=LLTokenizer.json_slices())
        self._words = -(-vocab_size // 32)
        self._cache = _Cache(CACHE_BYTES)

    def json_object(self) -> Grammar:
        """Any JSON object."""
        return self._grammar(_json('{"type": "object"}'))

    def json_schema(self, schema: Mapping[str, Any]) -> Grammar:
        """JSON that is valid for a schema, its properties in the schema's order.

        Raises:
            GrammarError: no schema, one that cannot be kept in full, or one that is too complex.
        """
        return self._grammar(_json(checked_schema(schema)))

    def tool_calls(self, tools: Sequence[Tool], *, parallel: bool) -> Grammar:
        """One call of one of the tools, or with `parallel` one and more, as JSON.

        `{"name": "f", "parameters": {...}}`, several with `; ` between them: what the published
        templates ask of the model, and `ToolCallParser` reads.

        Raises:
            GrammarError: no tools, a bad name, or parameters that no grammar can be made of.
        """
        return self._grammar(_calls(tools, parallel))

    def _grammar(self, source: str) -> Grammar:
        return self._cache.get(source, lambda: self._compiled(source))

    def _compiled(self, source: str) -> Grammar:
        matcher = _on_a_large_stack(
            lambda: LLMatcher(self._tokenizer, source, log_level=0, limits=_limits())
        )
        if matcher.is_error():
            raise GrammarError(_one_line(matcher.get_error()))
        warnings = matcher.get_grammar_warnings()
        if warnings:
            raise GrammarError(_one_line(warnings[0]))
        grammar = Grammar(matcher, self._words)
        try:
            grammar.mask()([])
        except GrammarError:
            raise GrammarError(
                "no JSON can be valid for this schema, or it is too complex"
            ) from None
        return grammar


class _TokenList:
    """What the library reads a tokenizer from."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids: Sequence[int] = ()

    def __init__(self, tokens: list[bytes], end: int):
        self.tokens = tokens
        self.eos_token_id = end

    def __call__(self, text: str) -> list[int]:
        raise AssertionError("grammars without forced tokens encode no text")


def _token_list(tokenizer: Tokenizer, vocab_size: int, ends: Sequence[int]) -> Any:
    """Bytes of each id; tokens that are not text are marked, so that no text is made of them."""
    tokens = [tokenizer.token_bytes(id) for id in range(vocab_size)]
    # A byte 0xFF of the vocabulary is in no UTF-8 text either, and would be taken for the mark.
    tokens = [b"" if token.startswith(_MARKER) else token for token in tokens]
    for name, id in tokenizer.special.items():
        if id < vocab_size:
            tokens[id] = _MARKER + name.encode()
    for id in ends:
        if not tokens[id].startswith(_MARKER):
            tokens[id] = _MARKER + f"<|end {id}|>".encode()
    return _TokenList(tokens, ends[0])


def _json(schema: str) -> str:
    return _source("start: @schema", {"schema": schema})


def _calls(tools: Sequence[Tool], parallel: bool) -> str:
    if not tools:
        raise GrammarError("expected at least one tool to call, got none")
    schemas = {}
    options = []
    for index, tool in enumerate(tools):
        if not tool.name or not all(c.isascii() and (c.isalnum() or c in "_-.") for c in tool.name):
            raise GrammarError(
                f"expected the name of a tool to be of letters, digits, _ and -, got "
                f"{shown(tool.name)}"
            )
        parameters = _NO_PARAMETERS if tool.parameters is None else tool.parameters
        if not isinstance(parameters, Mapping) or parameters.get("type") != "object":
            raise GrammarError(
                f'expected the parameters of {tool.name} to have "type": "object", got '
                f"{shown(parameters)}"
            )
        try:
            schemas[f"tool{index}"] = checked_schema(parameters)
        except GrammarError as error:
            raise GrammarError(f"parameters of {tool.name}: {error}") from None
        begin = json.dumps(f'{{"name": "{tool.name}", "parameters": ')
        options.append(f'{begin} @tool{index} "}}"')
    if sum(map(len, schemas.values())) > MAX_TOOLS_BYTES:
        raise GrammarError(f"expected tools of at most {MAX_TOOLS_BYTES:,} bytes as JSON")
    more = f' ("; " call){{0,{MAX_PARALLEL_CALLS - 1}}}' if parallel else ""
    return _source(f"start: call{more}\ncall: {' | '.join(options)}", schemas)


def _source(rules: str, schemas: Mapping[str, str]) -> str:
    """In the library's own form: rules that refer to grammars of JSON by name.

    Without `no_forcing` the library would have text that can only go on in one way encoded anew
    for each token of it.
    """
    lark = '%llguidance {"no_forcing": true}\n' + rules
    inner = [
        {"name": name, "json_schema": {**json.loads(text), "x-guidance": _JSON_LAYOUT}}
        for name, text in schemas.items()
    ]
    return json.dumps({"grammars": [{"name": "answer", "lark_grammar": lark}, *inner]})


class _Cache:
    """The grammars that were used last, up to so many bytes by their estimate."""

    def __init__(self, room: int):
        self._room = room
        self._held: OrderedDict[str, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, source: str, make: Callable[[], Grammar]) -> Grammar:
        with self._lock:
            if source in self._held:
                self._held.move_to_end(source)
                return self._held[source]
        grammar = make()
        with self._lock:
            if source not in self._held:
                self._held[source] = grammar
                self._room -= _size(source)
            while self._room < 0:
                old, _ = self._held.popitem(last=False)
                self._room += _size(old)
        return grammar


def _size(source: str) -> int:
    return GRAMMAR_BYTES + GRAMMAR_BYTES_PER_CHAR * len(source)


def _on_a_large_stack(work: Callable[[], LLMatcher]) -> LLMatcher:
    """The system gives memory to a stack only as it is used."""
    done: list[LLMatcher | BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:  # a panic of the library is no Exception
            done.append(error)

    with _stack_lock:
        before = threading.stack_size(STACK_BYTES)
        try:
            thread = threading.Thread(target=run, name="grammar compiler")
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if isinstance(done[0], BaseException):
        raise GrammarError("the schema is too complex") from None
    return done[0]


_stack_lock = threading.Lock()


def _one_line(message: str) -> str:
    """The first line of the library's message, which may go on with the grammar."""
    lines = message.strip().splitlines()
    return lines[0][:300] if lines else "the schema is too complex"
